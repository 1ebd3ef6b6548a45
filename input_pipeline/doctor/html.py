"""The diagnosis as one HTML file with sample images: no scripts, nothing fetched."""

import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from input_pipeline.doctor.choice import choose_matches, choose_samples
from input_pipeline.doctor.colours import Picture, suspects
from input_pipeline.doctor.diagnosis import Diagnosis
from input_pipeline.doctor.pictures import draw_picture, draw_sample
from input_pipeline.doctor.statistics import Dataset, Listing, Protocol, Split, Survey
from input_pipeline.doctor.text import protocol_table, split_table, verdict
from pgfl_jax.files import replacing
from pgfl_jax.report.page import data_uri, document, html_table

_STYLE = """.strip { display: flex; flex-wrap: wrap; gap: .8rem; margin-bottom: 1.2rem; }
.rows { column-gap: 3rem; }
figure { width: min-content; min-width: 9.5rem; }
figure img { display: block; max-width: 92vw; height: auto; }
.first figure:first-child img { outline: 3px solid var(--good); }
figcaption { font-size: .8rem; width: 0; min-width: 100%; overflow: hidden;
  text-overflow: ellipsis; }
"""


def write_page(diagnosis: Diagnosis, path: Path) -> None:
    """Write the page atomically.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        beside.write_text(format_page(diagnosis), encoding="utf-8", errors="backslashreplace")


def format_page(diagnosis: Diagnosis) -> str:
    """The page as HTML."""
    survey = diagnosis.survey
    title = f"Data of {survey.config.data.dataset}"
    body = [f"<h1>{escape(title)}</h1>", _verdict(diagnosis)]
    for heading, lines in (
        ("Warnings", diagnosis.findings.warnings),
        ("Notes", diagnosis.findings.notes),
    ):
        if lines:
            body.append(f"<h3>{heading}</h3>\n{_list(lines)}")
    for dataset in survey.datasets:
        body += _dataset(survey, dataset)
    if diagnosis.listings:
        body += ["<h2>Files</h2>", *map(_listing, diagnosis.listings)]
    return document(title, "\n".join(body), style=_STYLE)


def _verdict(diagnosis: Diagnosis) -> str:
    errors = diagnosis.findings.errors
    kind, problems = (" bad", _list(errors)) if errors else ("", "")
    return f'<div class="verdict{kind}"><p>{escape(verdict(diagnosis))}</p>{problems}</div>'


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>\n" for line in lines) + "</ul>"


def _dataset(survey: Survey, dataset: Dataset) -> Iterator[str]:
    """Tables and samples of a data set."""
    yield f"<h2>{escape(dataset.name)}</h2>"
    if dataset.source:
        yield f"<p>Prepared from {escape(dataset.source)}</p>"
    if not dataset.splits:
        yield "<p>It could not be opened.</p>"
        return
    yield html_table(split_table(survey, dataset))
    if dataset.protocols:
        yield "<h3>Protocols</h3>"
        yield html_table(protocol_table(dataset))
    for split in dataset.splits.values():
        yield _samples(survey, split)
    for protocol in dataset.protocols:
        yield from _matches(protocol)
    yield from _suspects(dataset)


def _samples(survey: Survey, split: Split) -> str:
    """A strip of pictures, each with its skeleton and part maps if it has a pose."""
    figures, has_pose = [], split.catalog.has_pose
    for row in choose_samples(split):
        jpeg = draw_sample(split.catalog, row, survey.config.data.pose)
        no_pose = "" if has_pose[row] else ", no pose"
        figures.append(_figure(jpeg, split.describe(row) + no_pose))
    return f"<h3>{escape(split.name)}</h3>\n{_strip(figures)}"


def _matches(protocol: Protocol) -> Iterator[str]:
    """Some queries, each in a row with its matches."""
    rows = choose_matches(protocol)
    if rows:
        yield f"<h3>{escape(protocol.name)}: queries and their matches</h3>"
        yield (
            "<p>In each row a query, framed, and gallery images of its identity from other "
            "cameras. Do they show the same person?</p>"
        )
    for query, matches in rows:
        pictures = [Picture(protocol.gallery, row) for row in matches]
        yield _row([Picture(protocol.query, query), *pictures])


def _suspects(dataset: Dataset) -> Iterator[str]:
    """Pictures whose labels may be wrong, each in a row with two others."""
    train = [split for name, split in dataset.splits.items() if name == "train"]
    found = [
        *(one for split in train for one in suspects([split], split.catalog.identities)),
        *suspects(dataset.test_splits, dataset.queried),
    ]
    if found:
        yield "<h3>Labels to look at</h3>"
        yield (
            "<p>In each row a picture, framed; the picture of its own identity with the most "
            "similar colours; and one of another identity, from the same camera, whose colours are "
            "more similar. Occlusion, light and similar clothes have this effect, too. It is a "
            "hint, not a verdict: most of these labels may be right.</p>"
        )
        yield _strip([_row([one.picture, one.own, one.other]) for one in found], "strip rows")


def _row(pictures: Sequence[Picture]) -> str:
    """Pictures side by side, the first one framed."""
    figures = [
        _figure(draw_picture(one.split.catalog, one.row), one.split.describe(one.row))
        for one in pictures
    ]
    return _strip(figures, "strip first")


def _strip(figures: Sequence[str], classes: str = "strip") -> str:
    return "\n".join([f'<div class="{classes}">', *figures, "</div>"])


def _figure(jpeg: bytes, text: str) -> str:
    """A picture with its caption, which breaks after separators and is cut only if it must be."""
    full = escape(text)
    caption = "<wbr>".join(map(escape, re.split(r"(?<=[/_-])", text)))
    return (
        f'<figure><img src="{data_uri(jpeg)}" alt="{full}">'
        f'<figcaption title="{full}">{caption}</figcaption></figure>'
    )


def _listing(listing: Listing) -> str:
    lines = escape("\n".join(listing.lines))
    title = escape(f"{listing.title}: {len(listing.lines):,}")
    return f"<details><summary>{title}</summary><pre>{lines}</pre></details>"
