"""Runs to report, and a reader of the page."""

import dataclasses
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from input_pipeline.from_config import evaluation_data, report_data
from pgfl_jax.report.manifest import read_config
from pgfl_jax.report.report import Request, write_report
from pgfl_jax.retrieval.evaluate import evaluate_checkpoint
from pgfl_jax.retrieval.queries import encode_queries, read_queries
from tests.runs import GOLDEN_RUN


def evaluated_run(folder, data_dir):
    """A copy of the stored run, evaluated by this version, and its configuration here."""
    shutil.copytree(GOLDEN_RUN, folder)
    stored = read_config(folder)
    config = dataclasses.replace(
        stored, data=dataclasses.replace(stored.data, data_dir=str(data_dir))
    )
    evaluate_checkpoint(config, folder, evaluation_data(config))
    return folder, config


def other_run(run, folder):
    """A copy of a run whose rankings are those of the next query, and are scored so."""
    shutil.copytree(run, folder)
    for path in sorted((folder / "results").glob("*.queries.parquet")):
        found = read_queries(path)
        changed = dataclasses.replace(
            found,
            average_precision=np.roll(found.average_precision, 1),
            first_match_rank=np.roll(found.first_match_rank, 1),
        )
        path.write_bytes(encode_queries(changed))
    return folder


def write(runs, config, out, **options):
    """The page of some runs with pictures, read again."""
    page = write_report(Request(runs, out, **options), lambda stored: report_data(config, stored))
    return Page(page.read_text(encoding="utf-8"))


class Page(HTMLParser):
    """A page's tables, attributes and data."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tables, self.attributes, self.cell = text, [], [], None
        self.heading, self.headings, self.scripts, self.open = None, [], [], []
        self.feed(text)
        self.gallery = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if not self.open:
            return
        if self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.open[-1] == "script":
            self.scripts[-1] += data

    def table(self, *header):
        """The rows of the first table with such a header, which may go on."""
        return next(t[1:] for t in self.tables if tuple(t[0][: len(header)]) == header)


def scores(run, protocol):
    """The JSON of a result."""
    return json.loads((Path(run) / "results" / f"{protocol}.json").read_text())
