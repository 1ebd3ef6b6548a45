"""The common part of all builders of real data sets: features, preparation, warnings, metadata."""

import abc
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from input_pipeline.builders.beam_option import BeamOption
from input_pipeline.builders.records import Record, read_record
from input_pipeline.builders.source import places_of, signature
from input_pipeline.errors import DataError
from input_pipeline.file_tree import Location, close_archives


@dataclasses.dataclass
class Survey:
    """The contents of a data set's folder.

    Attributes:
        records: the images of each split.
        unmatched: files in the splits' folders whose names fit no pattern; they are left out.
        metadata: further facts to keep with the prepared data.
        warnings: one line each.
        lists: the files that name the images, if any.
    """

    records: dict[str, list[Record]] = dataclasses.field(default_factory=dict)
    unmatched: list[str] = dataclasses.field(default_factory=list)
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    lists: list[Location] = dataclasses.field(default_factory=list)


class ReidBuilder(BeamOption, tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A data set that the user provides as a folder or archive; nothing is downloaded.

    ``info.metadata`` is kept with the prepared data: ``source`` (the user's copy, without links),
    ``source_places`` and ``source_sha256`` (where its files are, and their signature), ``warnings``
    and ``unmatched`` of the :class:`Survey`, and the survey's own metadata.

    A subclass names the required files in ``MANUAL_DOWNLOAD_INSTRUCTIONS``, as part of a sentence.
    """

    VERSION = tfds.core.Version("1.0.0")
    _manual_dir: Path | None = None

    @abc.abstractmethod
    def survey(self, source: Path) -> Survey:
        """List the images of the user's folder or archive.

        Raises:
            DataError: something is missing or wrong there; the message says so in one line.
        """

    def annotation_features(self) -> dict[str, Any]:
        """Features beyond those of every set."""
        return {}

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "identity": tfds.features.Scalar(np.int64),
            "camera": tfds.features.Scalar(np.int64),
            "filename": tfds.features.Text(),
            **self.annotation_features(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="docs/datasets.md",  # TFDS would link to a page that does not exist
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),
        )

    def _download_and_prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig,
    ) -> None:
        # The manager's own manual_dir refuses a single archive.
        if download_config.manual_dir:
            self._manual_dir = Path(download_config.manual_dir).expanduser()
        try:
            super()._download_and_prepare(dl_manager, download_config)
        finally:
            close_archives()

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        source = self._manual_dir or self._default_manual_dir(dl_manager)
        survey = self.survey(source)
        for warning in survey.warnings:
            logging.warning("%s", warning)  # for `tfds build`; a run prints what is stored
        images = (record.location for records in survey.records.values() for record in records)
        places = [] if hasattr(self, "make_config") else places_of(source, images, survey.lists)
        self.info.metadata.update(
            source=str(source.resolve()),
            source_places=places,
            source_sha256=signature(source, places),
            warnings=survey.warnings,
            unmatched=survey.unmatched,
            **survey.metadata,
        )
        return {
            split: self._generate_examples(split, records)
            for split, records in survey.records.items()
        }

    def _generate_examples(self, split: str, records: list[Record]) -> Any:
        return self.examples(split, records, read_record)

    def _default_manual_dir(self, dl_manager: tfds.download.DownloadManager) -> Path:
        """TFDS's own folder for manual downloads."""
        try:
            return Path(dl_manager.manual_dir)
        except AssertionError as error:
            raise DataError(
                f"{self.name}: give --manual_dir=DIR, where DIR holds "
                f"{self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            ) from error
