"""The tables and charts of the page, from the files of the runs."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pgfl_jax.options import flatten
from pgfl_jax.report.attention import BinShares, Shares, by_occlusion, mean_of, overall
from pgfl_jax.report.figures import Bar, Chart, Number, Series, bar_chart, line_chart
from pgfl_jax.report.gallery import Comparison
from pgfl_jax.report.page import Table
from pgfl_jax.report.run_files import EMBEDDINGS, RunFiles
from pgfl_jax.report.summary import CHECKPOINTS, run_facts
from pgfl_jax.report.writers import BRANCHES, embedding_label
from pgfl_jax.retrieval.compare import MEASURES, Difference, compare, unlike
from pgfl_jax.retrieval.results import occlusion_bins

CMC_LENGTH = 20
_LABELS = {
    "main": "main branch",
    "foreground": "teacher: foreground (poses at test)",
    "parts": "teacher: parts (poses at test)",
    "joined": "all three branches (poses at test)",
}


def headline_sentences(runs: Sequence[RunFiles], comparisons: Sequence[Comparison]) -> list[str]:
    """What the scores say, one protocol a sentence."""
    against: dict[str, list[str]] = {}
    for protocol, other, found, ranked in _differences(runs, comparisons):
        against.setdefault(protocol, []).append(_verdict(other, found["mAP"], ranked))
    sentences = []
    for protocol, shown in runs[0].shown.items():
        scores = shown.scores
        first = (
            f"{protocol}: {runs[0].name} puts the right person first for "
            f"{percent(scores['cmc']['1'])} % of {scores['num_valid_queries']:,} queries; mAP "
            f"{percent(scores['mAP'])} %"
        )
        sentences.append(", ".join([first, *against.get(protocol, ())]) + ".")
    return sentences


def _verdict(other: str, found: Difference, ranked: str) -> str:
    """How the first run compares with another, which was ranked as ``ranked`` says, in words."""
    verdict = {
        "better": f"{points(found.difference)} points better than {other}",
        "worse": f"{points(-found.difference)} points worse than {other}",
        "undecided": f"neither better nor worse than {other} for sure",
    }[found.verdict].removeprefix("+")
    caution = f", which was scored with {ranked}" if ranked else ""
    return f"{verdict} (95 %: {points(found.low)} to {points(found.high)}){caution}"


def _differences(
    runs: Sequence[RunFiles], comparisons: Sequence[Comparison]
) -> Iterator[tuple[str, str, Mapping[str, Difference], str]]:
    """For each protocol and other run: how the first run differs from it, and :func:`unlike`."""
    for comparison in comparisons:
        for run, queries in zip(comparison.runs[1:], comparison.queries[1:], strict=True):
            if comparison.runs[0] == 0:
                first = comparison.queries[0]
                name, ranked = runs[run].name, unlike(first, queries)
                yield comparison.protocol, name, compare(queries, first), ranked


def difference_rows(runs: Sequence[RunFiles], comparisons: Sequence[Comparison]) -> Table:
    """By how many points the first run is better than each other, with 95 % intervals."""
    rows = [
        [protocol, f"{runs[0].name} − {other}"]
        + [f"{points(d.difference)} ({points(d.low)} to {points(d.high)})" for d in found.values()]
        for protocol, other, found, _ in _differences(runs, comparisons)
    ]
    return Table(["protocol", "points (95 %)", *MEASURES], rows, texts=2)


def score_rows(runs: Sequence[RunFiles]) -> Table:
    """Every result of every run, protocol by protocol."""
    header = (
        "protocol",
        "run",
        "ranking",
        "mAP (95 %)",
        "Rank-1 (95 %)",
        "Rank-5",
        "mINP",
        "queries",
    )
    rows = []
    for protocol in dict.fromkeys(s["protocol"] for run in runs for _, s in run.results):
        for run in runs:
            for checkpoint, scores in run.results:
                if scores["protocol"] == protocol:
                    rows.append([protocol, run.name, *_score_cells(checkpoint, scores)])
    return Table(header, rows, texts=3)


def _score_cells(checkpoint: str, scores: Mapping[str, Any]) -> list[str]:
    embedding, *added = embedding_label(scores).split(".")
    words = {
        "average": ", averaged parameters",
        "rerank": ", re-ranked",
        "flip": ", with mirror images",
        "euclidean": ", by Euclidean distance",
    }
    if scores.get("flip"):
        added.append("flip")
    if scores["distance"] != "cosine":
        added.append(scores["distance"])
    label = _LABELS[embedding] + "".join(words[word] for word in added) + CHECKPOINTS[checkpoint]
    intervals = [f"{percent(lo)}–{percent(hi)}" for lo, hi in scores["ci95"].values()]
    return [
        f"{label}, step {scores['step']}",
        f"{percent(scores['mAP'])} ({intervals[0]})",
        f"{percent(scores['cmc']['1'])} ({intervals[1]})",
        percent(scores["cmc"]["5"]),
        percent(scores["mINP"]),
        f"{scores['num_valid_queries']:,}",
    ]


def cmc_charts(comparisons: Sequence[Comparison], runs: Sequence[RunFiles]) -> list[Chart]:
    """Share of queries with a match among the first k, by k."""
    charts = []
    for comparison in comparisons:
        series = []
        for run, queries in zip(comparison.runs, comparison.queries, strict=True):
            first = queries.first_match_rank[~np.isnan(queries.first_match_rank)]
            points = [(k, float(np.mean(first <= k))) for k in range(1, CMC_LENGTH + 1)]
            series.append(Series(runs[run].name, points, run))
        charts.append(
            line_chart(
                f"CMC, {comparison.protocol}",
                series,
                x_label="rank k, without junk",
                y_label="queries with a match by k, %",
                percent=True,
            )
        )
    return charts


def occlusion_charts(runs: Sequence[RunFiles]) -> list[tuple[Chart, Table]]:
    """Scores by how much of the person is hidden, with the numbers as a table."""
    found = []
    for protocol in dict.fromkeys(name for run in runs for name in run.shown):
        bins: dict[tuple[Number, Number], dict[int, Mapping[str, Any]]] = {}
        for number, run in enumerate(runs):
            for one in run.shown[protocol].scores["by_occlusion"] if protocol in run.shown else ():
                bins.setdefault((one["bin"][0], one["bin"][1]), {})[number] = one
        if not bins:
            continue
        groups, rows = [], []
        for ends, scored in sorted(bins.items()):
            label = _bin_text(*ends)
            bars = [
                Bar(one["mAP"], number, f"{label} % hidden, {run.name}: {percent(one['mAP'])} %")
                if (one := scored.get(number))
                else Bar(None, number, "")
                for number, run in enumerate(runs)
            ]
            groups.append((label, bars))
            rows += [
                [
                    f"{label} %",
                    runs[number].name,
                    f"{one['queries']:,}",
                    percent(one["mAP"]),
                    percent(one["rank1"]),
                ]
                for number, one in scored.items()
            ]
        chart = bar_chart(
            f"mAP by occlusion, {protocol}",
            groups,
            x_label="hidden share of the person, %",
            y_label="mAP, %",
            runs=[run.name for run in runs],
        )
        found.append((chart, Table(["hidden", "run", "queries", "mAP", "Rank-1"], rows, texts=2)))
    return found


def training_charts(runs: Sequence[RunFiles]) -> list[Chart]:
    """The curves of ``metrics.jsonl``: scores, each loss, the learning rate."""
    groups: dict[str, list[Series]] = {}
    several = len(runs) > 1
    for number, run in enumerate(runs):
        for name, points in _curves(run.metrics).items():
            group, label, dash = _curve_group(name)
            label = " ".join(([run.name] if several else []) + ([label] if label else []))
            groups.setdefault(group, []).append(Series(label, points, number, dash))
    charts = []
    for group, series in sorted(groups.items(), key=lambda item: _group_order(item[0])):
        series.sort(key=lambda one: (one.run, one.dash))
        scores = group.startswith("mAP")
        y_label = "mAP, %" if scores else group.partition(":")[0]
        charts.append(line_chart(group, series, x_label="step", y_label=y_label, percent=scores))
    return charts


def _curves(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[Number, Number]]]:
    """Steps and finite values of each quantity."""
    curves: dict[str, list[tuple[Number, Number]]] = {}
    for line in metrics:
        for name, value in line.items():
            if name not in ("step", "images_per_second", "gradient_norm") and math.isfinite(value):
                curves.setdefault(name, []).append((line["step"], value))
    return {name: points for name, points in curves.items() if not name.endswith("/rank1")}


def _curve_group(name: str) -> tuple[str, str, int]:
    """The chart that a curve is in, its label there and its dash pattern."""
    if name.endswith("/mAP"):
        protocol, branch, _ = name.rsplit("/", 2)
        return f"mAP, {protocol}", branch, EMBEDDINGS.index(branch.partition(".")[0])
    for dash, branch in enumerate(BRANCHES):
        if name.endswith(branch):
            return f"loss: {name.removesuffix(branch)}", branch.removeprefix("_"), dash
    return (name.replace("_", " ") if name == "learning_rate" else f"loss: {name}"), "", 0


def _group_order(group: str) -> tuple[int, str]:
    """Scores first, then the total, the losses and the learning rate."""
    kinds = ("mAP", "loss: total", "loss")
    return next((n for n, kind in enumerate(kinds) if group.startswith(kind)), len(kinds)), group


def data_table(runs: Sequence[RunFiles]) -> Table:
    """Training data, poses and recipe of each run."""
    columns = [dict(run_facts(run.config, run.manifest)) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, "–") for column in columns)] for name in names]
    return Table(["", *(run.name for run in runs)], rows, texts=1 + len(runs))


def protocol_rows(comparisons: Sequence[Comparison]) -> Table:
    """The queries and gallery of each protocol."""
    header = (
        "protocol",
        "queries",
        "without a match",
        "gallery",
        "cameras",
        "hidden, median",
        "known",
    )
    rows = []
    for comparison in comparisons:
        first = comparison.queries[0]
        hidden = first.query.occlusion[~np.isnan(first.query.occlusion)]
        rows.append(
            [
                comparison.protocol,
                f"{len(first.query):,}",
                f"{np.isnan(first.average_precision).sum():,}",
                f"{first.facts['fingerprint']['num_gallery']:,}",
                f"{len(np.unique(first.query.cameras))}",
                f"{percent(float(np.median(hidden)))} %" if hidden.size else "–",
                f"{100 * hidden.size / len(first.query):.0f} %",
            ]
        )
    return Table(header, rows)


def camera_rows(comparisons: Sequence[Comparison], runs: Sequence[RunFiles]) -> Table:
    """The mAP by the query's camera."""
    rows = []
    for comparison in comparisons:
        cameras = comparison.queries[0].query.cameras
        for camera in np.unique(cameras).tolist():
            scores = comparison.average_precision[:, cameras == camera]
            cells = dict(zip(comparison.runs, map(mean_of, scores), strict=True))
            rows.append(
                [comparison.protocol, str(camera), f"{scores.shape[1]:,}"]
                + [percent(cells.get(number, math.nan)) for number in range(len(runs))]
            )
    return Table(["protocol", "camera", "queries", *(f"mAP, {run.name}" for run in runs)], rows)


def attention_tables(
    shares: Mapping[tuple[str, int], Shares],
    comparisons: Sequence[Comparison],
    runs: Sequence[RunFiles],
    parts: Sequence[str],
) -> list[tuple[str, Table, Table]]:
    """For each protocol, shares of energy by occlusion and by part."""
    found = []
    for comparison in comparisons:
        rows, part_rows = [], []
        hidden = comparison.queries[0].query.occlusion[comparison.chosen]
        for run in comparison.runs:
            if (comparison.protocol, run) not in shares:
                continue
            own = shares[comparison.protocol, run]
            edges = runs[run].config.eval.occlusion_bins
            rows += [
                [_bin_text(one.low, one.high) + " %", runs[run].name, *_share_cells(one)]
                for one in by_occlusion(own, hidden, edges)
            ]
            rows.append(["all", runs[run].name, *_share_cells(overall(own))])
            means = [mean_of(own.parts[:, part]) for part in range(len(parts))]
            even = [mean_of(own.even_parts[:, part]) for part in range(len(parts))]
            part_rows += [
                [runs[run].name, *map(percent, means)],
                ["spread evenly", *map(percent, even)],
            ]
        if rows:
            header = "hidden", "run", "queries", "on the person", "spread evenly"
            table = Table([*header, "groups on their parts", "spread evenly"], rows, texts=2)
            by_part = Table(["", *parts], _unique(part_rows))
            found.append((comparison.protocol, table, by_part))
    return found


def _unique(rows: Sequence[list[str]]) -> list[list[str]]:
    """The rows, each once, the even spread last."""
    return sorted(
        {tuple(row): row for row in rows}.values(), key=lambda row: row[0] == "spread evenly"
    )


def _share_cells(one: BinShares) -> list[str]:
    values = one.foreground, one.even_foreground, one.parts, one.even_parts
    return [f"{one.queries:,}", *map(percent, values)]


def calibrations(runs: Sequence[RunFiles]) -> Iterator[tuple[str, Chart | None, Table, Table]]:
    """For each calibrated result: title, histograms, operating points, pairs of cameras."""
    for run in runs:
        for protocol, shown in run.shown.items():
            if shown.calibration is not None:
                title = f"{protocol}, {run.name}"
                known = shown.calibration
                yield title, _histogram(known), _points(known), _camera_pairs(known)


def _histogram(calibration: Mapping[str, Any]) -> Chart | None:
    """Densities of matches and impostors by distance; the bins differ in width."""
    histogram, series = calibration["histogram"], []
    for dash, kind in enumerate(("matches", "impostors")):
        counts, edges = histogram[kind], histogram["edges"]
        if total := sum(counts):
            steps = [
                (x, count / total / (hi - lo))
                for lo, hi, count in zip(edges, edges[1:], counts, strict=False)
                for x in (lo, hi)
            ]
            series.append(Series(kind, steps, dash, dash))
    if not series:
        return None
    label = f"{calibration['scored']['distance']} distance"
    return line_chart("Distances of pairs", series, x_label=label, y_label="density of pairs")


def _points(calibration: Mapping[str, Any]) -> Table:
    """Thresholds for wanted rates of false accepts, with intervals."""
    rows = [
        [
            f"{100 * point['far']:g} %",
            _with_interval(point["threshold"], point["threshold_ci95"], "{:.4f}"),
            _with_interval(point["tar"], point["tar_ci95"], "{:.1f} %", 100),
        ]
        for point in calibration["operating_points"]
    ]
    eer = calibration["eer"]
    if eer:
        rows.append(
            ["equal error rate", "", _with_interval(eer["rate"], eer["ci95"], "{:.1f} %", 100)]
        )
    header = "impostors accepted", "largest distance (95 %)", "matches accepted (95 %)"
    return Table(header, rows)


def _camera_pairs(calibration: Mapping[str, Any]) -> Table:
    rows = [
        [
            f"{pair['query_camera']} → {pair['gallery_camera']}",
            f"{pair['matches']:,}",
            f"{pair['impostors']:,}",
            percent(pair["eer"]),
        ]
        for pair in calibration["camera_pairs"]
    ]
    return Table(["cameras", "matches", "impostors", "equal error rate, %"], rows)


def _with_interval(
    value: Number | None, ends: Sequence[Number] | None, form: str, scale: Number = 1
) -> str:
    """A number with the ends of its interval.

    >>> _with_interval(0.5, [0.4, 0.6], "{:.1f} %", 100)
    '50.0 % (40.0–60.0)'
    """
    if value is None:
        return "too few pairs"
    low_high = [form.removesuffix(" %").format(scale * end) for end in ends or ()]
    return form.format(scale * value) + (f" ({'–'.join(low_high)})" if ends else "")


def manifests(runs: Sequence[RunFiles]) -> list[tuple[str, Table]]:
    """Everything that went into each run: its manifest and its options."""
    found = []
    for run in runs:
        facts = dict(flatten(run.manifest)) | {
            f"config.{name}": value for name, value in run.config.flat_options().items()
        }
        rows = [[name, json.dumps(value)] for name, value in facts.items()]
        found.append((run.name, Table(["option or fact", "value"], rows, texts=2)))
    return found


def query_rows(comparison: Comparison, runs: Sequence[RunFiles]) -> Table:
    """The shown queries without pictures, for readers without scripts."""
    header = ["query", "identity", "camera", "hidden, %"]
    for run in comparison.runs:
        header += [f"AP, {runs[run].name}", "first match", "top ten"]
    query, rows = comparison.queries[0].query, []
    for row in comparison.chosen.tolist():
        cells = [str(query.filenames[row]), str(query.identities[row]), str(query.cameras[row])]
        cells.append(percent(float(query.occlusion[row])))
        for queries in comparison.queries:
            first = queries.first_match_rank[row]
            marks = {"match": "✓", "junk": "○", "impostor": "✗"}
            cells += [
                percent(float(queries.average_precision[row])),
                "–" if np.isnan(first) else f"{first:.0f}",
                "".join(marks[relation] for relation in queries.relations[row, :10]),
            ]
        rows.append(cells)
    return Table(header, rows)


def occlusion_choices(
    comparisons: Sequence[Comparison], edges: Sequence[Number]
) -> list[list[Number]]:
    """The bins of occlusion that hold a query, for the page's filter."""
    hidden = [comparison.queries[0].query.occlusion for comparison in comparisons]
    values = np.concatenate(hidden) if hidden else np.zeros(0)
    return [[low, high] for low, high, inside in occlusion_bins(values, edges) if inside.any()]


def percent(value: Number) -> str:
    """A fraction in percent with one decimal; a dash for NaN.

    >>> percent(0.4567), percent(float("nan"))
    ('45.7', '–')
    """
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def points(value: Number) -> str:
    """A difference of fractions in points, with its sign.

    >>> points(0.123), points(-0.05)
    ('+12.3', '−5.0')
    """
    return f"{100 * value:+.1f}".replace("-", "−")


def _bin_text(low: Number, high: Number) -> str:
    return f"{100 * low:g}–{100 * high:g}"
