"""``pgfl export`` writes whole artifacts or nothing, from the run's test set where there is one."""

import dataclasses
import io
import json
import pickle
import shutil
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import pgfl_jax
from pgfl_jax import cli
from pgfl_jax.errors import UserError
from pgfl_jax.export import artifact, export_onnx, export_stablehlo
from pgfl_jax.export.failures import ExportFailed
from pgfl_jax.export.formats import FORMATS, Model
from pgfl_jax.export.onnx import write_onnx
from pgfl_jax.export.real import from_data, from_folder
from pgfl_jax.export.verify import LOWEST_COSINE, verify
from pgfl_jax.preprocessing import PictureError
from pgfl_jax.retrieval.protocols import EvaluationData, EvaluationSplit, Protocol
from tests.export.conftest import unverified
from tests.export.test_contract import KERNELS, MULTIPLY_ADDS
from tests.networks import golden
from tests.runs import GOLDEN_RUN, ROOT, finish, launch

pytestmark = pytest.mark.usefixtures("onnxruntime_alone")
MIB = 2**20


@pytest.fixture(scope="module")
def embedder():
    return golden()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 256, (90, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(GOLDEN_RUN, tmp_path / "run")


def export(*arguments):
    return cli.main(["export", *map(str, arguments)])


def read(folder, name="parity.json"):
    return json.loads((folder / name).read_text())


def test_the_repositorys_main_exports_with_the_test_set(tiny_data_dir, tmp_path):
    command = "main.py", "--mode=export", f"--workdir={GOLDEN_RUN}", f"--out={tmp_path}"
    data = f"--config.data.data_dir={tiny_data_dir}"
    status, out, err = finish(launch(*command, "--formats=onnx,stablehlo", data))
    assert status == 0, err
    # The stored run is from before runs kept the digests of their images.
    assert err.count("\n") == 1 and "as it has no training_images.npy" in err
    assert f"{tmp_path}/stablehlo: written and verified" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["onnx", "stablehlo"]
    record = read(tmp_path / "onnx")
    # Those that the training stored, of the pictures that TensorFlow had decoded and resized.
    stored = {
        name: read(GOLDEN_RUN / "results", f"{name}.json") for name in ("occluded", "holistic")
    }
    models = ["model.onnx", "model_float16.onnx", "model_int8.onnx"]
    assert [row["model"] for row in record["retrieval"]] == [m for m in models for _ in range(2)]
    for row in record["retrieval"]:
        if row["precision"] == "float32":
            assert row["before"] == pytest.approx(row["after"], abs=5e-5)
        assert row["before"]["mAP"] == pytest.approx(row["after"]["mAP"], abs=0.01)
        assert row["before"]["mAP"] == pytest.approx(stored[row["protocol"]]["mAP"], abs=0.01)
        assert row["queries"] == stored[row["protocol"]]["num_valid_queries"]
    counts = {check["pictures"]: check["count"] for check in record["checks"]}
    assert counts == {"probe": 32, "synthetic_occluded_reid/tiny/1.0.27623 occluded": 64}
    assert all([*check["batches"]] == ["1", "7", "32"] for check in record["checks"])
    card = (tmp_path / "onnx" / "README.md").read_text()
    assert "| holistic | 16 | 24.6 (16.5–34.3) | 25.0 (6.2–43.8) |" in card


def test_pgfl_export_is_the_repositorys_main(monkeypatch):
    def execv(program, command):  # which does not return
        raise SystemExit(command[1:])

    monkeypatch.setattr(cli.os, "execv", execv)
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "runs/x", "--formats", "onnx,torch", "--config.data.data_dir=d"])
    assert ended.value.code == [
        str(ROOT / "main.py"),
        "--mode=export",
        "--workdir=runs/x",
        "--formats=onnx,torch",
        "--config.data.data_dir=d",
    ]


def test_the_wheel_exports_with_given_pictures(run, pictures, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_PROGRAM", ROOT / "absent")
    assert export(run, "--contract", "float255_nchw") == 0
    assert "probe: worst cosine" in capsys.readouterr().out
    assert "given pictures" not in str(read(run / "export" / "onnx")["checks"])
    assert export(run, "--pictures", pictures) == 0  # replaces the other
    record = read(run / "export" / "onnx")
    assert record["contract"] == "uint8_nhwc"
    assert record["checks"][1]["pictures"] == "given pictures"
    assert record["checks"][1]["count"] == 3


def test_sizes_are_the_main_branchs_and_below_the_training_graphs(embedder, tmp_path):
    export_onnx(embedder, tmp_path / "onnx")
    record = read(tmp_path / "onnx")
    main, training = record["main_branch"], record["training_graph"]
    assert (main["kernels"], main["multiply_adds"]) == (KERNELS, MULTIPLY_ADDS)
    assert training["inputs"] == ["images", "pose_maps", "visibility"]
    # Three classifiers of 16 identities, and the statistics of the teachers' necks.
    assert training["kernels"] - KERNELS >= 3 * 16 * 192
    # In float32 and float16.
    for model, width in zip(record["models"], (4, 2), strict=True):
        assert model["graph"]["kernels"] == KERNELS
        assert model["graph"]["multiply_adds"] == MULTIPLY_ADDS
        assert model["graph"]["inputs"] == ["images"]
        assert width * KERNELS < model["bytes"] < width * KERNELS + 25_000


@pytest.mark.parametrize(
    ("export", "contract"),
    [(export_onnx, "uint8_nhwc"), (export_onnx, "normalised_nchw"),
     (export_stablehlo, "float255_nchw")],
)  # fmt: skip
def test_an_artifact_is_loaded_as_a_run_is(embedder, pictures, tmp_path, export, contract):
    with unverified():
        export(embedder, tmp_path / "x", contract=contract)
    loaded = pgfl_jax.load(tmp_path / "x")
    assert repr(loaded) == repr(embedder) and loaded.dim == embedder.dim
    np.testing.assert_allclose(loaded(pictures), embedder(pictures), rtol=0, atol=2e-6)
    images = np.stack([loaded.preprocess(path) for path in sorted(pictures.iterdir())])
    rows = loaded.apply(loaded.variables, jnp.asarray(images))
    np.testing.assert_allclose(rows, embedder(pictures), rtol=0, atol=2e-6)
    assert loaded.config.data.mean == embedder.config.data.mean
    with pytest.raises(UserError, match="an artifact holds one checkpoint"):
        pgfl_jax.load(tmp_path / "x", checkpoint="best")
    again = pickle.loads(pickle.dumps(loaded))
    np.testing.assert_array_equal(again(pictures), loaded(pictures))
    with pytest.raises(ValueError, match=r"shape \(3, 128, 64, 3\); expected \(N, 64, 32, 3\)"):
        loaded.apply(loaded.variables, jnp.zeros((3, 128, 64, 3), np.uint8))
    if contract == "uint8_nhwc":
        with pytest.raises(ValueError, match="images have type float32; this artifact takes uint8"):
            loaded.apply(loaded.variables, jnp.asarray(images / 255, jnp.float32))
    for name in ("preprocessing.json", "config.json"):
        before = (tmp_path / "x" / name).read_text()
        (tmp_path / "x" / name).write_text("{}")
        with pytest.raises(UserError, match=rf"{name}: damaged; export again"):
            pgfl_jax.load(tmp_path / "x")
        (tmp_path / "x" / name).write_text(before)
    record = read(tmp_path / "x")
    for wrong in (
        {},
        record | {"contract": "x"},
        record | {"files": 3},
        {name: value for name, value in record.items() if name != "checkpoint"},
    ):
        (tmp_path / "x" / "parity.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r"parity\.json: damaged; export again"):
            pgfl_jax.load(tmp_path / "x")


def test_deepstream_gets_its_configuration(embedder, tmp_path):
    with unverified():
        export_onnx(embedder, tmp_path / "onnx", contract="float255_nchw")
    text = (tmp_path / "onnx" / "deepstream_tracker.yml").read_text()
    for line in ("inferDims: [3, 64, 32]", "reidFeatureSize: 192", "netScaleFactor: 1.0 "):
        assert f"  {line}" in text
    card = (tmp_path / "onnx" / "README.md").read_text()
    assert text in card and "--optShapes=images:32x3x64x32" in card


def other_neck(embedder):
    """The embedder with other scales in the main branch's BNNeck."""
    scale = np.linspace(0.5, 2, 192, dtype=np.float32)
    params = embedder.variables["params"] | {"main_neck": {"scale": scale}}
    return dataclasses.replace(embedder, variables={**embedder.variables, "params": params})


def test_averaged_parameters_are_another_artifact(embedder, tmp_path):
    average = dataclasses.replace(other_neck(embedder), parameters="average")
    export_onnx(average, tmp_path / "onnx")
    assert read(tmp_path / "onnx")["checkpoint"]["parameters"] == "average"
    assert read(tmp_path / "onnx")["scores"] == []  # the stored ones are of the others
    picture = np.zeros((64, 32, 3), np.uint8)
    found = pgfl_jax.load(tmp_path / "onnx")(picture)
    np.testing.assert_allclose(found, average(picture), atol=2e-6)
    assert np.abs(found - embedder(picture)).max() > 1e-3


# What fails leaves nothing behind, and the artifact of before stays.


def test_a_wrong_model_is_not_written(embedder, tmp_path):
    export_onnx(embedder, tmp_path / "onnx")
    before = (tmp_path / "onnx" / "parity.json").read_bytes()

    def write(embedder, contract, folder):
        write_onnx(other_neck(embedder), contract, folder)

    wrong = dataclasses.replace(FORMATS["onnx"], write=write)
    with (
        mock.patch.dict(FORMATS, onnx=wrong),
        pytest.raises(
            ExportFailed, match=r"^onnx: not written, since it is wrong: model\.onnx on "
        ),
    ):
        export_onnx(embedder, tmp_path / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
    assert (tmp_path / "onnx" / "parity.json").read_bytes() == before
    assert all(finding.passed is not False for finding in verify(tmp_path / "onnx"))


def assert_one_line(capsys, *words):
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err


def test_files_put_beside_a_model_are_not_deleted(embedder, tmp_path):
    folder = tmp_path / "onnx"
    with unverified():
        export_onnx(embedder, folder)
        export_onnx(embedder, folder)  # replaces its own files
        (folder / "trt").mkdir()
        (folder / "trt" / "model.engine").write_bytes(b"built for an hour")
        (folder / "notes.txt").symlink_to("nowhere")
        with pytest.raises(UserError) as error:
            export_onnx(embedder, folder)
    assert str(error.value) == (
        f"{folder}: would be replaced, but holds files that no export wrote: notes.txt, "
        "trt/model.engine; move them away, or choose another folder"
    )
    assert (folder / "trt" / "model.engine").read_bytes() == b"built for an hour"
    (folder / "parity.json").write_text("{")
    with pytest.raises(UserError, match=r"parity\.json: damaged; delete .*, or choose another"):
        export_onnx(embedder, folder)


def test_an_untrained_folder(tmp_path, pictures, capsys):
    assert export(tmp_path / "absent", "--pictures", pictures) == 1
    assert_one_line(capsys, "absent/config.json: not found; is")
    shutil.copytree(GOLDEN_RUN, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert export(tmp_path / "run", "--pictures", pictures) == 1
    assert_one_line(capsys, "run/checkpoints: no checkpoint; train first")
    assert not (tmp_path / "run" / "export").exists()


def test_through_main_an_untrained_folder_is_one_line_too(tmp_path):
    status, _, err = finish(launch("main.py", "--mode=export", f"--workdir={tmp_path / 'x'}"))
    assert status == 1 and err.count("\n") == 1 and "config.json: not found; is" in err


def test_an_unwritable_place(run, pictures, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert export(run, "--pictures", pictures, "--out", tmp_path / "file" / "x") == 1
    assert_one_line(capsys, "--out: the folder", "cannot be written to")
    (tmp_path / "out" / "onnx").mkdir(parents=True)
    (tmp_path / "out" / "onnx" / "mine.txt").touch()
    assert export(run, "--pictures", pictures, "--out", tmp_path / "out") == 1
    assert_one_line(capsys, "out/onnx: exists and is not an artifact; choose another folder")
    assert (tmp_path / "out" / "onnx" / "mine.txt").exists()


@pytest.mark.parametrize("limit", [MIB, MIB // 4, 2 * MIB])
def test_a_full_disk(run, pictures, limit):
    command = "-m", "pgfl_jax.cli", "export", run, "--formats=onnx,stablehlo"
    status, _, err = finish(launch(*command, "--pictures", pictures, file_size=limit))
    assert status == 1
    for line, name in zip(err.splitlines(), ("onnx", "stablehlo"), strict=True):
        assert line == (
            f"error: {run}/export/{name}: file too large; nothing was written; free space and "
            "export again"
        )
    assert [*(run / "export").iterdir()] == []


def test_a_disk_that_is_full_of_test_pictures(run, embedder):
    """As through main.py: the decoded test set finds no room."""
    program = f"""
import sys
from pathlib import Path
import pgfl_jax
from pgfl_jax.command_line import guarded
from pgfl_jax.export.command import Request, export_run
from tests.export.test_command import _few
run = Path({str(run)!r})
sys.exit(guarded(lambda: export_run(Request(run), data=_few(pgfl_jax.load(run)))))
"""
    status, _, err = finish(launch("-c", program, file_size=20_000))
    full = "file too large; nothing was written; free space and export again"
    assert (status, err) == (1, f"error: {run}/export: {full}\n")
    assert [*(run / "export").iterdir()] == []


def test_without_flatbuffers_a_program_is_not_loaded(embedder, tmp_path):
    with unverified():
        export_stablehlo(embedder, tmp_path / "x")
    with (
        mock.patch("jax.export.deserialize", side_effect=ImportError("flatbuffers")),
        pytest.raises(UserError, match=r"x: flatbuffers is not installed; pip install flatbuffers"),
    ):
        pgfl_jax.load(tmp_path / "x")


@pytest.mark.parametrize("absent", ["onnx", "onnxruntime"])
def test_a_missing_package(run, pictures, tmp_path, absent):
    (tmp_path / f"{absent}.py").write_text(
        f"raise ModuleNotFoundError('No module named {absent}', name='{absent}')"
    )
    command = "-m", "pgfl_jax.cli", "export", run, "--pictures", pictures
    status, _, err = finish(launch(*command, env={"PYTHONPATH": str(tmp_path)}))
    assert status == 1 and err.count("\n") == 1, err
    assert err.startswith("error: --formats=onnx: ")
    assert f"{absent} is not installed" in err and "pip install 'pgfl-jax[export]'" in err
    assert [*(run / "export").iterdir()] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--formats", "onnx,tf"], "--formats=tf: must be among stablehlo, onnx"),
        (["--contract", "bgr"], "--contract=bgr: must be one of uint8_nhwc, float255_nchw"),
        (["--checkpoint", "7"], "no checkpoint 7; there are [30]"),
        (["--parameters", "average"], "no average of the parameters"),
        (["--config.data.data_dir=x"], "--config.data.data_dir=x: only where the test set is read"),
    ],
)
def test_wrong_options(run, pictures, capsys, options, message):
    assert export(run, "--pictures", pictures, *options) == 1
    assert_one_line(capsys, message)


def test_a_name_that_is_no_format_is_no_attribute():
    with pytest.raises(AttributeError):
        pgfl_jax.export.export_keras  # noqa: B018
    with pytest.raises(UserError, match="must be one of"):
        artifact.export("keras", golden(), "x")


def test_a_sample_is_spread_over_the_pictures(embedder, tmp_path):
    for number in range(130):
        pixels = np.full((8, 8, 3), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:03}.png")
    chosen = from_folder(embedder, tmp_path).sample[:, 0, 0, 0]
    assert len(chosen) == 64 and chosen[0] == 0 and chosen[-1] == 129
    assert 1 < np.diff(chosen.astype(int)).min() + 1 <= 3


# Models in less precision.


def _few(embedder):
    """A test set of six people: a picture of each, and the same with noise from camera 1."""
    rng = np.random.default_rng(3)
    people = rng.integers(0, 256, (6, 64, 32, 3), np.uint8)
    seen = np.clip(people + rng.normal(0, 20, people.shape), 0, 255).astype(np.uint8)

    def split(pictures, camera):
        names = np.array([f"{camera}_{number}.png" for number in range(6)], object)
        return EvaluationSplit(
            filenames=names,
            identities=np.arange(6),
            cameras=np.full(6, camera),
            occlusion=np.full(6, np.nan, np.float32),
            batches=lambda: iter(()),
            encoded=[_png(picture) for picture in pictures],
        )

    splits = {"query": split(people, 0), "gallery": split(seen, 1)}
    return EvaluationData(splits, [Protocol("few", "tests", "query", "gallery")])


def _png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return file.getvalue()


def test_a_model_that_loses_much_has_a_name_that_says_so(embedder, tmp_path):
    calibrated = []

    def quantise(embedder, contract, folder, rows):
        """A good one and one that has lost its second half."""
        calibrated.append(rows)
        shutil.copy(folder / "model.onnx", folder / "model_int8.onnx")
        scale = embedder.variables["params"]["main_neck"]["scale"] * (np.arange(192) < 1)
        params = embedder.variables["params"] | {"main_neck": {"scale": scale}}
        other = dataclasses.replace(embedder, variables={**embedder.variables, "params": params})
        (folder / "poor").mkdir()
        write_onnx(other, contract, folder / "poor")
        (folder / "poor" / "model.onnx").rename(folder / "poor_int8.onnx")
        shutil.rmtree(folder / "poor")

    names = "model_int8.onnx", "poor_int8.onnx"
    models = tuple(Model(name, ("onnxruntime",), "int8") for name in names)
    wanted = dataclasses.replace(FORMATS["onnx"], quantise=quantise, quantised=models)
    data = _few(embedder)
    training = {f"{n}.png": _png(np.full((80, 30, 3), n, np.uint8)) for n in range(4)}
    real = from_data(embedder, data, tmp_path, training)
    with (
        mock.patch.dict(FORMATS, onnx=wanted),
        mock.patch.dict(LOWEST_COSINE, int8=-1.1),
    ):
        export_onnx(embedder, tmp_path / "onnx", pictures=real)
    (rows,) = calibrated
    assert rows.shape == (4, 64, 32, 3) and [*rows[:, 0, 0, 0]] == [0, 1, 2, 3]
    record = read(tmp_path / "onnx")
    scores = {row["model"]: row for row in record["retrieval"]}
    loss = [row["before"]["mAP"] - row["after"]["mAP"] for row in scores.values()][-1]
    before = [model.file for model in FORMATS["onnx"].models]
    poor = f"poor_int8_loses_{100 * loss:.1f}_points.onnx"
    assert loss > 0.01 and [*scores] == [*before, "model_int8.onnx", poor]
    assert (tmp_path / "onnx" / poor).is_file() and poor in record["files"]
    assert [model["file"] for model in record["models"]] == [*scores]
    assert {check["model"] for check in record["checks"]} == {*scores}
    assert f"| {poor} | tests few |" in (tmp_path / "onnx" / "README.md").read_text()
    with mock.patch.dict(LOWEST_COSINE, int8=-1.1):
        assert all(finding.passed is not False for finding in verify(tmp_path / "onnx"))


def test_a_damaged_picture_of_the_test_set_is_named(embedder, tmp_path):
    data = _few(embedder)
    data.splits["gallery"].encoded[2] = b"nothing"
    with pytest.raises(PictureError, match=r"^1_2\.png: damaged, or not a picture$"):
        from_data(embedder, data, tmp_path)
