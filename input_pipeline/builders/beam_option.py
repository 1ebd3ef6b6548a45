"""Apache Beam as an option; without it, it need not be installed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import tensorflow_datasets as tfds

from input_pipeline.progress import progress
from pgfl_jax.errors import UserError

T = TypeVar("T")
Example = tuple[str, dict[str, Any]]


class BeamOption:
    """Mixin that must precede ``tfds.core.GeneratorBasedBuilder`` among a builder's bases.

    Attributes:
        beam_wanted: whether the running preparation has a Beam runner or Beam options, as from
            ``tfds build --beam_pipeline_options=…``.
    """

    beam_wanted: bool = False

    def _download_and_prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig,
    ) -> None:
        self.beam_wanted = bool(download_config.beam_runner) or (
            download_config.beam_options is not None
        )
        super()._download_and_prepare(  # type: ignore[misc]
            dl_manager=dl_manager, download_config=download_config
        )

    def examples(
        self, split: str, records: Sequence[T], read: Callable[[T], Example]
    ) -> Iterable[Example]:
        """The value that ``_split_generators`` returns for a split.

        Args:
            split: its name, shown beside the progress bar.
            records: small descriptions of the examples; with Beam they must be picklable.
            read: makes a record's key and example; with Beam it must be a module's function.

        Returns:
            A generator with a progress bar or, if Beam is wanted, a transform that reads the
            records on Beam's workers.
        """
        if self.beam_wanted:
            beam = import_beam()
            return beam.Create(records) | beam.Map(read)
        return _read_with_progress(split, records, read)


def _read_with_progress(
    split: str, records: Sequence[T], read: Callable[[T], Example]
) -> Iterator[Example]:
    """A generator, so that the bar appears only when TFDS starts on this split."""
    yield from map(read, progress(records, split, unit=" images"))


def import_beam() -> Any:
    """The module ``apache_beam``; a UserError names the extra if it is not installed."""
    try:
        import apache_beam
    except ImportError as error:
        raise UserError(
            f"Apache Beam cannot be imported ({error}): pip install -e '.[beam]'"
        ) from error
    return apache_beam
