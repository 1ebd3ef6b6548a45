"""The diagnosis as text."""

from collections.abc import Iterator

from input_pipeline.checks import Findings
from input_pipeline.doctor.diagnosis import Diagnosis
from input_pipeline.doctor.survey import Listing, Survey
from input_pipeline.doctor.tables import Table, protocol_table, split_table

_SHOWN = 10  # lines of each listing


def format_text(diagnosis: Diagnosis) -> str:
    """Tables, listings, findings and the verdict."""
    survey, findings = diagnosis.survey, diagnosis.findings
    blocks = [*_tables(survey), *map(_format_listing, diagnosis.listings)]
    for title, lines in (("warnings", findings.warnings), ("notes", findings.notes)):
        if lines:
            blocks.append("\n".join([title, *(f"  - {line}" for line in lines)]))
    blocks.append("\n".join([verdict(diagnosis), *(f"  - {line}" for line in findings.errors)]))
    return "\n\n".join(blocks)


def verdict(diagnosis: Diagnosis) -> str:
    """One line: ``ready: …`` or ``2 problems:``."""
    survey, findings = diagnosis.survey, diagnosis.findings
    if findings.errors:
        return f"{_count(findings, 'errors', 'problem')}:"
    train = survey.datasets[0].splits["train"].catalog
    scored = sum(len(dataset.protocols) for dataset in survey.datasets if dataset.scored)
    line = (
        f"ready: {len(train):,} images of {train.num_identities:,} people to train on, "
        f"{scored} protocol{'s' * (scored != 1)} to score"
    )
    return f"{line}; {_count(findings, 'warnings', 'warning')}" if findings.warnings else line


def _count(findings: Findings, kind: str, word: str) -> str:
    number = len(getattr(findings, kind))
    return f"{number} {word}{'s' * (number != 1)}"


def _tables(survey: Survey) -> Iterator[str]:
    for dataset in survey.datasets:
        source = f" (prepared from {dataset.source})" if dataset.source else ""
        title = f"{dataset.name}{source}"
        if dataset.splits:
            yield f"{title}\n{format_table(split_table(survey, dataset))}"
        if dataset.protocols:
            yield format_table(protocol_table(survey, dataset))


def format_table(table: Table) -> str:
    """Columns as wide as their widest cell; the first to the left, numbers to the right."""
    lines = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        ).rstrip()
        for line in lines
    )


def _format_listing(listing: Listing) -> str:
    lines = [f"{listing.title}: {len(listing.lines):,}"]
    lines += [f"  {line}" for line in listing.lines[:_SHOWN]]
    if len(listing.lines) > _SHOWN:
        lines.append(f"  and {len(listing.lines) - _SHOWN:,} more, in the page")
    return "\n".join(lines)
