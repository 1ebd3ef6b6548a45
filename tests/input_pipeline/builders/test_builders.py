"""How data sets are found by name and prepared."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from input_pipeline import builders
from input_pipeline.catalog import read_catalog
from input_pipeline.errors import DataError
from tests.input_pipeline.trees import TREES, write_tree


def test_available_data_sets():
    assert builders.available_datasets() == [
        "dukemtmc_reid",
        "market1501",
        "msmt17",
        "occluded_duke",
        "occluded_reid",
        "p_dukemtmc_reid",
        "partial_ilids",
        "partial_reid",
        "synthetic_occluded_reid",
        "table",
    ]


def test_unknown_names(tmp_path):
    with pytest.raises(builders.UnknownDatasetError, match=r"'market'; available: .*, msmt17"):
        builders.prepared_builder("market", str(tmp_path))
    with pytest.raises(builders.UnknownDatasetError, match="no config 'v3'; available: v1, v2"):
        builders.prepared_builder("msmt17/v3", str(tmp_path))


def test_the_synthetic_set_is_prepared_quietly(tmp_path, capfd):
    builder = builders.prepared_builder("synthetic_occluded_reid/tiny", str(tmp_path))
    assert builder.info.splits["train"].num_examples > 0
    captured = capfd.readouterr()
    assert not captured.out
    assert not {"Generating", "Shuffling"} & set(captured.err.split())


def test_an_assertion_of_tfds_becomes_one_line(tmp_path, monkeypatch):
    builder = builders.load_builder("synthetic_occluded_reid/tiny", str(tmp_path))
    empty = {"train": iter(())}
    monkeypatch.setattr(type(builder), "_split_generators", lambda self, dl_manager: empty)
    with pytest.raises(
        DataError, match=r"^synthetic_occluded_reid/tiny/.*No examples were yielded"
    ):
        builders.prepared_builder("synthetic_occluded_reid/tiny", str(tmp_path))


def test_another_process_may_be_faster(tmp_path, monkeypatch):
    write_tree("partial_ilids", tmp_path / "in")
    arguments = ("partial_ilids", str(tmp_path / "out"), str(tmp_path / "in"))
    builder = type(builders.load_builder(*arguments))
    survey = builder.survey

    def slow_survey(self, source):
        monkeypatch.undo()
        builders.prepared_builder(*arguments)  # the other process, from beginning to end
        return survey(self, source)

    monkeypatch.setattr(builder, "survey", slow_survey)
    found = builders.prepared_builder(*arguments)
    assert len(read_catalog(found, "gallery")) == 3
    assert [path.name for path in (tmp_path / "out/partial_ilids").iterdir()] == ["1.0.0"]


@pytest.mark.parametrize("moment", ["load_builder", "_check_source"])
def test_another_process_may_finish_at_any_moment(moment, tmp_path, monkeypatch):
    """After the builder has looked for prepared data, or even after it has found none."""
    write_tree("partial_ilids", tmp_path / "in")
    arguments = ("partial_ilids", str(tmp_path / "out"), str(tmp_path / "in"))
    original = getattr(builders, moment)

    def interrupted(*given):
        result = original(*given)
        monkeypatch.undo()
        builders.prepared_builder(*arguments)  # the other process, from beginning to end
        return result

    monkeypatch.setattr(builders, moment, interrupted)
    found = builders.prepared_builder(*arguments)
    assert {split: info.num_examples for split, info in found.info.splits.items()} == {
        "query": 3,
        "gallery": 3,
    }
    assert found.info.metadata["source"] == str(tmp_path / "in")
    assert len(read_catalog(found, "gallery")) == 3


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_text("")])
def test_a_lost_description_is_named_with_the_remedy(tmp_path, harm):
    write_tree("partial_ilids", tmp_path / "in")
    arguments = ("partial_ilids", str(tmp_path / "out"), str(tmp_path / "in"))
    builders.prepared_builder(*arguments)
    folder = tmp_path / "out" / "partial_ilids"
    harm(folder / "1.0.0" / "dataset_info.json")
    with pytest.raises(DataError) as error:
        builders.prepared_builder(*arguments)
    assert str(error.value) == (
        f"{folder}: its dataset_info.json is missing or damaged; delete the folder, and the data "
        "set is prepared again"
    )
    shutil.rmtree(folder)
    assert len(read_catalog(builders.prepared_builder(*arguments), "gallery")) == 3


def test_a_prepared_set_is_read_as_a_catalog(tmp_path):
    write_tree("market1501", tmp_path / "in")
    builder = builders.prepared_builder("market1501", str(tmp_path / "out"), str(tmp_path / "in"))
    catalog = read_catalog(builder, "gallery")
    images = sorted(TREES["market1501"].splits["gallery"])
    assert list(catalog.filenames) == [path for path, _, _ in images]
    np.testing.assert_array_equal(catalog.identities, [identity for _, identity, _ in images])
    np.testing.assert_array_equal(catalog.cameras, [camera for _, _, camera in images])
    np.testing.assert_array_equal(catalog.image_sizes, [[64, 32]] * 4)
    assert not catalog.keypoints.any() and np.isnan(catalog.occlusion).all()


def test_tfds_build_prepares_what_main_prepares(tmp_path):
    write_tree("market1501", tmp_path / "in")
    folder = Path(builders.__file__).parent / "market1501"
    command = ["-m", "tensorflow_datasets.scripts.cli.main", "build", str(folder)]
    folders = [f"--manual_dir={tmp_path / 'in'}", f"--data_dir={tmp_path / 'out'}"]
    done = subprocess.run(
        [sys.executable, *command, *folders],
        capture_output=True,
        cwd=folder.parents[2],
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "market1501 train: 16 images, 12,936 were published" in done.stdout
    builder = builders.prepared_builder("market1501", str(tmp_path / "out"))
    assert builder.info.splits["train"].num_examples == 16
