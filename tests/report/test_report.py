"""The report: its numbers are those of the files, and nothing in it leads elsewhere."""

import base64
import dataclasses
import io
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import pgfl_jax
from input_pipeline.errors import DataError
from input_pipeline.from_config import evaluation_data, report_data
from pgfl_jax import cli
from pgfl_jax.errors import UserError
from pgfl_jax.report.feature_maps import feature_maps
from pgfl_jax.report.gallery import choose
from pgfl_jax.report.page import template
from pgfl_jax.report.report import Request, write_report
from pgfl_jax.report.thumbnails import HEIGHT, thumbnail
from pgfl_jax.retrieval.queries import encode_queries, read_queries
from studies.ablation import summary
from tests.report.pages import Page, evaluated_run, other_run, scores, write
from tests.runs import GOLDEN_RUN, finish, launch, start


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_data_dir):
    """Folder and configuration of a run with all results."""
    return evaluated_run(tmp_path_factory.mktemp("runs") / "one", tiny_data_dir)


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return write([run[0]], run[1], tmp_path_factory.mktemp("page") / "page.html")


def test_scores_and_queries_are_those_of_the_files(run, page):
    rows = page.table("protocol", "run", "ranking", "mAP (95 %)")
    assert [row[:3] for row in rows] == [
        [protocol, "one", "main branch, step 30"] for protocol in ("occluded", "holistic")
    ]
    assert [one["name"] for one in page.gallery["protocols"]] == ["occluded", "holistic"]
    for row, protocol in zip(rows, page.gallery["protocols"], strict=True):
        stored = scores(run[0], protocol["name"])
        low, high = (100 * end for end in stored["ci95"]["mAP"])
        assert row[3] == f"{100 * stored['mAP']:.1f} ({low:.1f}–{high:.1f})"
        assert row[5:] == [f"{100 * stored['cmc']['5']:.1f}", f"{100 * stored['mINP']:.1f}", "16"]
        results = read_queries(run[0] / "results" / f"{protocol['name']}.queries.parquet")
        mean = np.mean([query["r"][0]["ap"] for query in protocol["queries"]])
        assert mean == pytest.approx(stored["mAP"], abs=1e-4)
        for row, query in enumerate(protocol["queries"]):
            assert query["f"] == results.query.filenames[row]
            (ranking,) = query["r"]
            assert ranking["first"] == results.first_match_rank[row]
            for place, (item, kind, distance) in enumerate(ranking["top"]):
                name, identity, camera, _ = protocol["gallery"][item]
                assert name == results.filenames[row, place]
                assert distance == pytest.approx(results.nearest.distances[row, place], abs=1e-4)
                same = identity == query["i"]
                assert kind == ("i" if not same else "j" if camera == query["c"] else "m")


def test_the_table_without_scripts_has_every_query(run, page):
    results = read_queries(run[0] / "results" / "occluded.queries.parquet")
    rows = page.table("query", "identity", "camera")
    assert [row[0] for row in rows] == results.query.filenames.tolist()
    for row, cells in enumerate(rows):
        assert cells[4] == f"{100 * results.average_precision[row]:.1f}"
        marks = {"match": "✓", "junk": "○", "impostor": "✗"}
        assert cells[6] == "".join(marks[kind] for kind in results.relations[row, :10])


def test_nothing_leads_out_of_the_page(page):
    for _, name, value in page.attributes:
        if name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            assert value.startswith(("#", "data:")), value
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", page.text)
    outside = re.findall(r"https?://[^\s\"'<]+", page.text)
    assert {*outside} == {"http://www.w3.org/2000/svg"}  # the name of SVG's elements
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src"
    assert f'content="{policy} ' in page.text
    graphics = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "role")]
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(graphics) == len(labels) > 5 and all(labels)


def test_pictures_are_those_of_the_data(run, page):
    data = evaluation_data(run[1])
    encoded = {}
    for split in data.splits.values():
        encoded |= dict(zip(split.filenames, split.encoded, strict=True))
    shown = 0
    for protocol in page.gallery["protocols"]:
        items = [(query["f"], query["p"]) for query in protocol["queries"]]
        items += [(name, picture) for name, _, _, picture in protocol["gallery"]]
        for name, number in items:
            jpeg = base64.b64decode(page.gallery["pictures"][number])
            assert jpeg == thumbnail(encoded[name])
            shown += 1
    assert shown > len(page.gallery["pictures"])  # a picture is there once
    assert len(page.text) < 1_000_000


def test_maps_are_those_of_the_network(run, page):
    embedder = pgfl_jax.load(run[0])
    data = report_data(run[1], run[1])
    protocol = data.protocols[0]
    split = data.splits[protocol.query]
    rows = np.array([1, 4, 15])
    maps = feature_maps(embedder, split, rows)
    batches = list(split.batches())
    images = np.concatenate([batch["images"] for batch in batches])[rows]
    normal = (images / 255.0 - np.array(run[1].data.mean)) / np.array(run[1].data.std)
    outputs = embedder.model.apply(embedder.variables, jnp.float32(normal), train=False)
    features = np.asarray(outputs.features, np.float64)
    expected = (features**2).reshape(*features.shape[:3], 8, -1).sum(-1)
    np.testing.assert_allclose(maps.energy, expected, rtol=2e-4, atol=1e-4)
    part_maps = np.concatenate([batch["part_maps"] for batch in batches])[rows]
    np.testing.assert_array_equal(maps.part_maps, part_maps)
    assert maps.predicted is None  # its main branch pools by a plain mean
    shown = page.gallery["protocols"][0]["queries"]
    for row, place in zip(rows, range(3), strict=True):
        (found,) = shown[row]["a"]
        whole = maps.energy[place].sum(-1)
        eight_bits = np.frombuffer(base64.b64decode(found["e"]), np.uint8)
        np.testing.assert_allclose(eight_bits / 255, whole.ravel() / whole.max(), atol=4e-3)
        share = (whole * part_maps[place].max(-1)).sum() / whole.sum()
        assert found["s"] == pytest.approx(share, abs=1e-4)
        group = np.frombuffer(base64.b64decode(found["g"]), np.uint8).reshape(8, *found["grid"])
        assert group.reshape(8, -1).argmax(1).tolist() == [
            int(maps.energy[place, ..., part].argmax()) for part in range(8)
        ]
    table = page.table("hidden", "run", "queries", "on the person")
    shares = [query["a"][0]["s"] for query in shown]
    total = next(row for row in table if row[0] == "all")
    assert float(total[3]) == pytest.approx(100 * np.mean(shares), abs=0.06)


def test_skeletons_are_those_of_the_poses(page):
    lines = [query["l"] for protocol in page.gallery["protocols"] for query in protocol["queries"]]
    assert any(lines)
    for part, *ends in (line for one in lines for line in one):
        assert 0 <= part < len(page.gallery["parts"]) == 8
        assert all(-0.5 < end < 1.5 for end in ends)


def test_two_runs_side_by_side(run, tmp_path):
    other = other_run(run[0], tmp_path / "two")
    page = write([run[0], other], run[1], tmp_path / "page.html", queries=5)
    for protocol in page.gallery["protocols"]:
        first, second = (
            read_queries(folder / "results" / f"{protocol['name']}.queries.parquet")
            for folder in (run[0], other)
        )
        gap = np.abs(first.average_precision - second.average_precision)
        chosen = [query["n"] for query in protocol["queries"]]
        assert len(chosen) == 5 and min(gap[chosen]) >= np.sort(gap)[-5]
        for query in protocol["queries"]:
            ours, theirs = (one.average_precision[query["n"]] for one in (first, second))
            assert [ranking["ap"] for ranking in query["r"]] == pytest.approx(
                [ours, theirs], abs=1e-4
            )
            assert len(query["a"]) == 2
    assert "5 of 16 queries, those on which the runs differ most" in page.text
    (row, *_) = page.table("protocol", "points (95 %)", "mAP")
    # A query's scores are only exchanged with another's: the means are the same.
    assert row[:2] == ["occluded", "one − two"] and re.match(r"[+−]0\.0 \(", row[2])


def test_runs_on_other_files_are_not_compared(run, tmp_path):
    other = other_run(run[0], tmp_path / "two")
    path = other / "results" / "occluded.queries.parquet"
    found = read_queries(path)
    mark = found.facts["fingerprint"] | {"sha256": "0" * 64}
    facts = found.facts | {"fingerprint": mark}
    path.write_bytes(encode_queries(dataclasses.replace(found, facts=facts)))
    page = Page(write_report(Request([run[0], other], tmp_path / "page.html"), None).read_text())
    compared = {one["name"]: one["runs"] for one in page.gallery["protocols"]}
    assert compared == {"occluded": [0], "holistic": [0, 1]}
    assert "two: occluded was scored on other files or by other rules than in one" in page.text


def test_runs_that_were_scored_by_other_options_are_named(run, tmp_path):
    other = other_run(run[0], tmp_path / "two")
    scored = scores(other, "occluded") | {"flip": True, "distance": "euclidean"}
    (other / "results" / "occluded.json").write_text(json.dumps(scored))
    path = other / "results" / "occluded.queries.parquet"
    found = read_queries(path)
    facts = found.facts | {"flip": True, "distance": "euclidean"}
    path.write_bytes(encode_queries(dataclasses.replace(found, facts=facts)))
    page = Page(write_report(Request([run[0], other], tmp_path / "page.html"), None).read_text())
    rankings = [row[1:3] for row in page.table("protocol", "run", "ranking", "mAP (95 %)")]
    plain = "main branch, step 30"
    unlike = "main branch, with mirror images, by Euclidean distance, step 30"
    assert rankings == [["one", plain], ["two", unlike], ["one", plain], ["two", plain]]
    words = "which was scored with distance = euclidean (not cosine), flip = True (not False)."
    assert page.text.count(words) == 1


def test_without_data_the_page_says_so(run, tmp_path):
    def no_data(config):
        raise DataError("no such <folder>")

    page = Page(write_report(Request([run[0]], tmp_path / "page.html"), no_data).read_text())
    assert "one: no pictures: no such &lt;folder&gt;" in page.text
    assert page.gallery["pictures"] == []
    assert all(query["p"] is None for query in page.gallery["protocols"][0]["queries"])
    assert len(page.table("query", "identity")) == 16


def test_other_data_of_the_same_name_give_no_pictures(run, tmp_path):
    def changed(config):
        data = report_data(run[1], config)
        for name, split in data.splits.items():
            data.splits[name] = dataclasses.replace(split, cameras=split.cameras + 1)
        return data

    page = Page(write_report(Request([run[0]], tmp_path / "page.html"), changed).read_text())
    assert page.gallery["pictures"] == []
    assert "one: no pictures of occluded: the data here are not those that were ranked" in page.text


def test_without_results_of_queries_the_scores_remain(tmp_path):
    shutil.copytree(GOLDEN_RUN, tmp_path / "old")
    page = Page(write_report(Request([tmp_path / "old"], tmp_path / "page.html"), None).read_text())
    assert len(page.table("protocol", "run")) == 2
    assert "no results of the single queries of occluded" in page.text
    assert page.gallery["protocols"] == []
    for path in (tmp_path / "old" / "results").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="has no scores yet"):
        write_report(Request([tmp_path / "old"], tmp_path / "page.html"), None)


def test_names_cannot_end_the_script(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "<b>")
    path = tmp_path / "<b>" / "results" / "occluded.queries.parquet"
    found = read_queries(path)
    found.query.filenames[0] = "</script><b>"
    path.write_bytes(encode_queries(found))
    page = Page(write_report(Request([tmp_path / "<b>"], tmp_path / "page.html"), None).read_text())
    assert page.gallery["protocols"][0]["queries"][0]["f"] == "</script><b>"
    assert page.gallery["runs"] == ["<b>"]
    assert "<b>" not in page.text


def test_which_queries_are_shown():
    scores = np.array([[0.5, 0.1, np.nan, 0.9, 0.3]])
    assert choose(scores, 5).tolist() == [0, 1, 2, 3, 4]
    assert choose(scores, 2).tolist() == [1, 2]  # the worst, and the skipped one, which is last
    other = np.array([[0.5, 0.1, 0.4, 0.9, 0.3], [0.4, 0.2, 0.9, 0.5, 0.3]])
    assert choose(other, 2).tolist() == [2, 3]


def test_thumbnails():
    def encoded(height, width, kind):
        file = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(file, kind)
        return file.getvalue()

    small = encoded(40, 20, "JPEG")
    assert thumbnail(small) == small
    for kind in ("PNG", "JPEG"):
        with Image.open(io.BytesIO(thumbnail(encoded(512, 256, kind)))) as picture:
            assert (picture.format, picture.height, picture.width) == ("JPEG", HEIGHT, HEIGHT // 2)
    assert thumbnail(small[:300]) is None and thumbnail(b"no picture") is None


def _luminance(colour):
    channels = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def _contrast(one, other):
    """WCAG 2.2, contrast ratio."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_have_the_contrast_of_level_aa(theme):
    light, dark = {}, {}
    for sheet in ("house.css", "report.css"):
        text = template(sheet)
        night = "".join(re.findall(r"prefers-color-scheme: dark\) \{ :root \{(.*?)\}", text, re.S))
        day = re.search(r":root \{(.*?)\}", text, re.S)[1]
        light |= dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", day))
        dark |= dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", night))
    assert light.keys() == dark.keys() and len(light) > 10
    colours = light if theme == "light" else dark
    for ground in ("ground", "raised"):
        for name in ("text", "dim", "good", "bad", "accent"):
            assert _contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for run in range(6):  # graphics: 3:1
            assert _contrast(colours[f"run{run}"], colours[ground]) >= 3, (run, ground)


def test_a_baseline_is_looked_at_with_poses_too(run):
    model = dataclasses.replace(run[1].model, pose_branches=False)
    data = report_data(run[1], dataclasses.replace(run[1], model=model))
    split = data.splits[data.protocols[0].query]
    assert {"images", "part_maps", "visibility"} <= next(split.batches()).keys()
    assert split.limbs(0)


def test_a_training_ends_with_the_report(run, tiny_data_dir, tmp_path):
    workdir = tmp_path / "new"
    status, printed, err = finish(
        start(
            tiny_data_dir, workdir, "--config.train.epochs=2", "--config.eval.report=True",
            f"--config.eval.compare=('{run[0]}',)",
        )
    )  # fmt: skip
    assert status == 0, err
    page = workdir / "report" / "index.html"
    assert printed.splitlines()[-1] == f"report: {page}"
    found = Page(page.read_text())
    assert found.gallery["runs"] == ["new", "one"]
    assert [one["runs"] for one in found.gallery["protocols"]] == [[0, 1], [0, 1]]
    query = found.gallery["protocols"][0]["queries"][0]
    assert query["a"][0]["q"] and not query["a"][1]["q"]  # only the new one predicts maps
    status, printed, err = finish(
        start(
            tiny_data_dir, tmp_path / "bad", "--config.eval.report=True",
            f"--config.eval.compare=('{tmp_path}',)",
        )
    )  # fmt: skip
    assert (status, "is " in err, "the folder of a training run?" in err) == (1, True, True), err


def test_the_commands(run, tmp_path, capsys):
    out = tmp_path / "plain.html"
    assert cli.main(["report", str(run[0]), "--no-pictures", f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"report: {out}\n"
    assert Page(out.read_text()).gallery["pictures"] == []
    metrics = run[0] / "metrics.jsonl"  # a slip: the page would replace it
    before = metrics.read_bytes()
    assert cli.main(["report", str(run[0]), "--no-pictures", f"--out={metrics}"]) == 1
    assert f"error: --out={metrics}: must end in .html" in capsys.readouterr().err
    assert metrics.read_bytes() == before
    status, printed, err = finish(
        launch(
            "-m", "pgfl_jax.cli", "report", run[0], f"--config.data.data_dir={run[1].data.data_dir}"
        )
    )
    page = run[0] / "report" / "index.html"
    assert (status, printed) == (0, f"report: {page}\n"), err
    assert len(Page(page.read_text()).gallery["pictures"]) > 16
    assert json.loads((run[0] / "config.json").read_text())["data.dataset"].endswith("/tiny")
    assert jax.process_count() == 1


def test_a_summary_is_shown_beside_a_run(run, tmp_path, monkeypatch):
    folder, config = run
    scored = []

    def evaluate(config, folder, data):
        scored.append((config, folder, data))
        return [scores(folder, protocol) for protocol in ("occluded", "holistic")]

    monkeypatch.setattr(summary, "evaluate_checkpoint", evaluate)
    monkeypatch.setattr(summary, "evaluation_data", lambda config, run: "the data")
    out = tmp_path / "baseline"
    out.mkdir()
    summary.summarise(folder, out, str(config.data.data_dir))
    ((asked, *rest),) = scored
    assert asked.eval.datasets == () and asked.data.data_dir == config.data.data_dir
    assert rest == [folder, "the data"]
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    names = [f"results/{one}.{end}" for one in ("holistic", "occluded")
             for end in ("json", "queries.parquet")]  # fmt: skip
    assert files == ["config.json", "manifest.json", *names]
    assert str(tmp_path) not in (out / "config.json").read_text()
    assert str(config.data.data_dir) not in (out / "config.json").read_text()

    other = other_run(folder, tmp_path / "other")
    page = write_report(Request([other, out], tmp_path / "page.html"), None)
    found = Page(page.read_text(encoding="utf-8"))
    assert found.gallery["runs"] == ["other", "baseline"]
    whole = read_queries(folder / "results" / "occluded.queries.parquet")
    stored = read_queries(out / "results" / "occluded.queries.parquet")
    np.testing.assert_array_equal(stored.filenames, whole.filenames[:, :10])
    assert stored.facts == whole.facts
    items = found.gallery["protocols"][0]["gallery"]
    for row, query in enumerate(found.gallery["protocols"][0]["queries"]):
        shown, kept = query["r"]
        assert shown["ap"] == pytest.approx(whole.average_precision[row - 1], abs=1e-4)
        assert kept["ap"] == pytest.approx(whole.average_precision[row], abs=1e-4)
        assert kept["first"] == whole.first_match_rank[row]
        assert [items[at][0] for at, *_ in kept["top"]] == whole.filenames[row, :10].tolist()
    bins = found.table("hidden", "run", "queries", "mAP")
    assert [row[1] for row in bins[:2]] == ["other", "baseline"]
    assert bins[0][3] == bins[1][3]  # the copy's scores are those of the run
