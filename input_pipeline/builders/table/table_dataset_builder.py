"""TFDS builder of a user's own data: images listed in DIR/NAME.csv or DIR/NAME.jsonl."""

import collections
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.builders.base import ReidBuilder, Survey
from input_pipeline.builders.records import Record
from input_pipeline.builders.table.names import alike, placeholders
from input_pipeline.builders.table.reader import Table, read_table
from input_pipeline.errors import DataError
from input_pipeline.keypoints import origin_warnings, without_origin

SUFFIXES = (".csv", ".jsonl")


@dataclasses.dataclass(eq=False)
class TableConfig(tfds.core.BuilderConfig):
    """A table and the version of its data.

    The last number of the version is the table's fingerprint, so that a changed table or image is
    never mistaken for the data prepared before.
    """

    table: Table | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Derive the version from the table."""
        if self.table is not None:
            self.version = tfds.core.Version(f"1.0.{self.table.fingerprint}")


class Builder(ReidBuilder):
    """A user's own images, listed in a table.

    ``info.metadata`` also keeps ``identities`` and ``cameras``, the names in the order of their
    numbers, and ``identity_map_sha256``, the SHA-256 of the identities as a JSON list.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = "the table NAME.csv or NAME.jsonl"
    builder_config: TableConfig

    @classmethod
    def make_config(cls, name: str, manual_dir: str) -> TableConfig:
        """The configuration of the table ``manual_dir/name``, read and checked.

        Raises:
            DataError: there is no such table, or two of them, or something is wrong with it.
        """
        if not manual_dir or not name or Path(name).name != name:
            raise DataError(
                "your own data need --config.data.dataset=table/NAME and "
                "--config.data.manual_dir=DIR, where DIR holds NAME.csv or NAME.jsonl"
            )
        files = [Path(manual_dir).expanduser() / (name + suffix) for suffix in SUFFIXES]
        found = [file for file in files if file.is_file()]
        if len(found) != 1:
            raise DataError(
                f"{manual_dir}: holds {'both' if found else 'neither'} {name}.csv "
                f"{'and' if found else 'nor'} {name}.jsonl; give exactly one of them"
            )
        return TableConfig(name=name, table=read_table(found[0]))

    @property
    def table(self) -> Table:
        """The table of this configuration."""
        if self.builder_config is None or self.builder_config.table is None:
            raise DataError("table/NAME is prepared by main.py, not by tfds build")
        return self.builder_config.table

    def annotation_features(self) -> dict[str, Any]:
        """Keypoints and occlusion, if the table has the columns."""
        features = {
            "keypoints": tfds.features.Tensor(shape=(17, 3), dtype=np.float32),
            "occlusion": tfds.features.Scalar(np.float32),
        }
        return {name: features[name] for name in sorted(self.table.columns)}

    def survey(self, source: Path) -> Survey:
        """The images of the table, with identities and cameras numbered in order."""
        rows = self.table.rows
        identities = sorted({row.identity for row in rows})
        cameras = sorted({row.camera for row in rows})
        identity_numbers = {name: number for number, name in enumerate(identities)}
        camera_numbers = {name: number for number, name in enumerate(cameras)}
        splits = sorted({row.split for row in rows})
        matched = collections.Counter(row.identity for row in rows if row.split != "gallery")
        warnings = [
            *alike("identities", identities),
            *alike("cameras", cameras),
            *alike("splits", splits),
            *placeholders(matched),
        ]
        survey = Survey(
            metadata={
                "identities": identities,
                "cameras": cameras,
                "identity_map_sha256": hashlib.sha256(json.dumps(identities).encode()).hexdigest(),
            },
            warnings=[f"{self.table.file}: {warning}" for warning in warnings]
            + _origin_warnings(self.table),
        )
        for row in rows:
            record = Record(
                location=(str(row.file),),
                filename=row.path,
                identity=identity_numbers[row.identity],
                camera=camera_numbers[row.camera],
                annotations={name: getattr(row, name) for name in self.table.columns},
            )
            survey.records.setdefault(row.split, []).append(record)
        return survey


def _origin_warnings(table: Table) -> list[str]:
    """A warning if joints are at (0, 0); the catalog sets their confidence to 0."""
    dropped = [int(without_origin(row.keypoints)[1].sum()) for row in table.rows]
    return origin_warnings(str(table.file), sum(dropped), int(np.count_nonzero(dropped)))
