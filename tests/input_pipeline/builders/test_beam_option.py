import io
import sys

import pytest
import tensorflow_datasets as tfds

from input_pipeline.builders import load_builder, prepared_builder
from input_pipeline.builders.beam_option import BeamOption, import_beam
from pgfl_jax.errors import UserError
from tests.input_pipeline.trees import write_tree


def rows(builder):
    """Everything that is stored, by split and file name."""
    skip = {"image": tfds.decode.SkipDecoding()}
    return {
        split: {
            row["filename"]: (row["image"], int(row["identity"]), int(row["camera"]))
            for row in tfds.as_numpy(builder.as_dataset(split=split, decoders=skip))
        }
        for split in builder.info.splits
    }


def test_beam_stores_the_same(tmp_path):
    from apache_beam.options.pipeline_options import PipelineOptions

    write_tree("occluded_reid", tmp_path / "in")
    plain = prepared_builder("occluded_reid", str(tmp_path / "plain"), str(tmp_path / "in"))
    assert plain.beam_wanted is False
    builder = load_builder("occluded_reid", str(tmp_path / "beam"))
    config = tfds.download.DownloadConfig(
        manual_dir=tmp_path / "in", beam_options=PipelineOptions(["--runner=DirectRunner"])
    )
    builder.download_and_prepare(download_config=config)
    assert builder.beam_wanted is True
    assert rows(builder) == rows(plain)
    assert builder.info.metadata == plain.info.metadata


class Recorder:
    """Takes the place of TFDS's builder."""

    def _download_and_prepare(self, dl_manager, download_config):
        self.seen = self.beam_wanted


class Option(BeamOption, Recorder):
    pass


@pytest.mark.parametrize(
    ("options", "wanted"),
    [({}, False), ({"beam_runner": "DirectRunner"}, True), ({"beam_options": object()}, True)],
)
def test_beam_is_wanted_with_a_runner_or_options(options, wanted):
    option = Option()
    option._download_and_prepare(None, tfds.download.DownloadConfig(**options))
    assert option.seen is wanted


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_without_beam_records_are_read_one_by_one(stream, shown, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream())
    examples = Option().examples("train", [1, 2], lambda record: (str(record), {"value": record}))
    assert not sys.stderr.getvalue()  # the bar appears with the first record
    assert list(examples) == [("1", {"value": 1}), ("2", {"value": 2})]
    assert ("train:   0%" in sys.stderr.getvalue()) is shown


def test_a_missing_beam_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[beam\]'") as caught:
        import_beam()
    assert "\n" not in str(caught.value)
