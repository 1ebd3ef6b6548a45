"""The command ``pgfl``."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import pgfl_jax
from pgfl_jax import cli
from pgfl_jax.checkpoint import CheckpointError
from pgfl_jax.report.manifest import read_config
from pgfl_jax.retrieval.search.gallery import read_gallery
from pgfl_jax.train import begin
from tests.runs import GOLDEN_RUN, finish, launch

# Everything that a machine without the extra [train] lacks.
BLOCKED = """
import sys
absent = {"tensorflow", "tensorflow_datasets", "clu", "torch", "ml_collections", "cv2"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent | {"input_pipeline", "configs"}:
            raise ModuleNotFoundError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
from pgfl_jax.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("b.png", "a/1.png", "a/2.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (50, 30, 3), dtype=np.uint8)).save(
            tmp_path / "in" / name
        )
    return tmp_path / "in"


def names(path):
    return [picture["path"] for picture in read_gallery(path).labels.to_pylist()]


def test_a_folder_is_embedded_without_tensorflow(folder, tmp_path):
    out = tmp_path / "x.parquet"
    status, printed, err = finish(
        launch("-c", BLOCKED, "embed", folder, "--run", GOLDEN_RUN, "--out", out)
    )
    assert (status, printed) == (0, f"{out}: 3 embeddings of 192 numbers\n"), err
    assert names(out) == ["in/a/1.png", "in/a/2.jpg", "in/b.png"]
    expected = pgfl_jax.load(GOLDEN_RUN)(folder)
    np.testing.assert_allclose(read_gallery(out).embeddings(), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("others", "line"),
    [
        (["notes.txt"], "left out: 1 file that is no picture by its name\n"),
        (["a/x.csv", "y.pdf"], "left out: 2 files that are no pictures by their names\n"),
    ],
)
def test_other_files_of_a_folder_are_counted(folder, tmp_path, capsys, others, line):
    for name in others:
        (folder / name).touch()
    out = tmp_path / "x.parquet"
    assert cli.main(["embed", str(folder), "--run", str(GOLDEN_RUN), "--out", str(out)]) == 0
    assert capsys.readouterr().err == line
    assert len(names(out)) == 3


def test_what_cannot_be_read_is_left_out_and_said(folder, tmp_path, capsys):
    (folder / "c.jpg").write_bytes(b"nothing")
    out = tmp_path / "x.parquet"
    run = ["--run", str(GOLDEN_RUN), "--add", "--out", str(out)]
    assert cli.main(["embed", str(folder), *run]) == 1
    assert "c.jpg: damaged, or not a picture" in capsys.readouterr().err
    (folder / "share").symlink_to("/absent/share")
    assert cli.main(["embed", str(folder), *run]) == 1
    assert "share: a broken link, to /absent/share\n" in capsys.readouterr().err
    assert names(out) == ["in/a/1.png", "in/a/2.jpg", "in/b.png"]
    out.unlink()
    assert cli.main(["embed", str(folder / "c.jpg"), *run]) == 1
    assert "error: none of 1 pictures can be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "x", "--run", "y", "--out", "x.txt"], "must end in .parquet"),
        (["embed", "x", "--run", "y", "--out", "/absent/x.parquet"], "there is no folder /absent"),
        (
            ["embed", "x", "--run", "y", "--out", "FOLDER"],
            "folder.parquet: is a folder; give a file",
        ),
        (
            ["embed", "x", "--run", "/absent", "--out", "x.parquet"],
            "is /absent the folder of a train",
        ),
        (["info", "/absent"], "is /absent the folder of a training run?"),
    ],
)
def test_a_users_error_is_one_line(arguments, message, capsys, tmp_path):
    folder = tmp_path / "folder.parquet"
    folder.mkdir()
    arguments = [str(folder) if argument == "FOLDER" else argument for argument in arguments]
    assert cli.main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["embed"], ["nothing"], ["info", "x", "--y"], []])
def test_a_wrong_command_line_shows_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2 and "usage: pgfl" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["info", ""], ["embed", "", "--run=x", "--out=x.parquet"], ["export", "x", "--out="]],
)
def test_an_empty_path_is_not_the_current_folder(arguments, capsys):
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert "an empty path; is a variable not set?" in capsys.readouterr().err


def test_an_artifact_is_not_a_run(tmp_path, capsys):
    shutil.copy(GOLDEN_RUN / "config.json", tmp_path)
    (tmp_path / "parity.json").write_text("{}")
    assert cli.main(["info", str(tmp_path)]) == 1
    words = "an exported artifact, not a training run; its README.md describes it, and pgfl verify"
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: {words}")
    assert cli.main(["export", str(tmp_path), f"--pictures={tmp_path}"]) == 1
    words = "is an exported artifact; give the folder of its run"
    assert capsys.readouterr().err == f"error: {tmp_path}: {words}\n"


def test_info_is_a_screenful_of_facts(capsys):
    assert cli.main(["info", str(GOLDEN_RUN)]) == 0
    out = capsys.readouterr().out
    for fact in (
        "resnet8, 64x32 pixels, float32, gap pooling, embeddings of 192 numbers",
        "128 images of 16 people",
        "annotated, on 100% of the images",
        "commit 0cfe5767f998, jax 0.10.2, 1 x cpu",
        "30 (newest)",
        "scores at step 30",
    ):
        assert fact in out
    assert len(out.splitlines()) < 20


def test_scores_of_the_best_checkpoint_are_shown_as_such(tmp_path, capsys):
    run = shutil.copytree(GOLDEN_RUN, tmp_path / "run")
    result = json.loads((run / "results" / "occluded.json").read_text())
    (run / "results" / "occluded.best.json").write_text(json.dumps(result | {"step": 20}))
    assert cli.main(["info", str(run)]) == 0
    out = capsys.readouterr().out
    assert out.index("scores at step 30\n") < out.index("scores at step 20, the best\n")
    assert out.count("occluded") - out.count("synthetic_occluded") == 2


def test_files_beside_the_results_that_are_none_change_nothing(tmp_path, capsys):
    run = shutil.copytree(GOLDEN_RUN, tmp_path / "run")
    assert cli.main(["info", str(run)]) == 0
    expected = capsys.readouterr().out
    (run / "results" / "notes.json").write_text('{"a": 1}')
    (run / "results" / "._occluded.json").write_bytes(b"\0\5\x16\7")
    assert cli.main(["info", str(run)]) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results/occluded.json", "", "damaged (Expecting value: line 1 column 1 (char 0))"),
        (
            "results/occluded.json",
            '{"step": 30, "protocol": "occluded"}',
            "has no scores; evaluate again (pgfl evaluate), or remove it",
        ),
        ("manifest.json", "{}", "not the manifest of a run; put a copy back"),
        ("manifest.json", '{"data": 1}', "not the manifest of a run; put a copy back"),
        (
            "config.json",
            '{"data.dataset": 3}',
            "config.data.dataset: expected str, got 3; the run is from another version",
        ),
        (
            "checkpoints/30/metrics/metrics",
            "",
            "damaged; put a copy back, or move the folder of step 30 away",
        ),
        (
            "checkpoints/30/metrics/metrics",
            '{"score": null}',
            "damaged; put a copy back, or move the folder of step 30 away",
        ),
    ],
)
def test_a_damaged_file_of_a_run_is_named(tmp_path, capsys, name, content, message):
    run = shutil.copytree(GOLDEN_RUN, tmp_path / "run")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text(content)
    assert cli.main(["info", str(run)]) == 1
    assert capsys.readouterr().err == f"error: {run / name}: {message}\n"


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_a_file_missing_beside_checkpoints_is_named(tmp_path, capsys, name):
    run = shutil.copytree(GOLDEN_RUN, tmp_path / "run")
    (run / name).unlink()
    assert cli.main(["info", str(run)]) == 1
    assert capsys.readouterr().err == (
        f"error: {run / name}: not found, though {run} holds checkpoints; put a copy of it back, "
        "or use another --workdir\n"
    )


def test_checkpoints_that_are_no_folder_are_not_taken_for_none(tmp_path, capsys):
    run = shutil.copytree(GOLDEN_RUN, tmp_path / "run")
    (run / "checkpoints").rename(tmp_path / "disk")
    (run / "checkpoints").symlink_to(tmp_path / "disk")
    assert cli.main(["info", str(run)]) == 0
    assert "30 (newest)" in capsys.readouterr().out
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    assert cli.main(["info", str(run)]) == 1
    line = f"{run}/checkpoints: a link to {tmp_path}/disk, which is missing; bring the folder back"
    assert line in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"a link to .*, which is missing"):
        begin(read_config(run), run, evaluates=False)
    (run / "checkpoints").unlink()
    (run / "checkpoints").touch()
    with pytest.raises(CheckpointError, match="checkpoints: a file, not a folder; bring"):
        begin(read_config(run), run, evaluates=False)


def test_lists_in_the_place_of_a_runs_files_are_no_traceback(tmp_path):
    run = shutil.copytree(GOLDEN_RUN, tmp_path / "run")
    names = "results/list.json", "manifest.json", "config.json"
    # Another process, since tests check the types of what a function returns.
    program = f"""
from pathlib import Path
from pgfl_jax.cli import main
for name in {names}:
    Path({str(run)!r}, name).write_text("[1]")
    main(["info", {str(run)!r}])
"""
    status, out, err = finish(launch("-c", program))
    assert status == 0 and out.count("scores at step 30") == 1
    assert err.splitlines() == [
        f"error: {run}/manifest.json: not the manifest of a run; put a copy back",
        f"error: {run}/config.json: config: expected a group of options, got [1]; the run is from "
        "another version",
    ]


def test_evaluate_is_the_repositorys_main(monkeypatch):
    def execv(program, command):  # which does not return
        assert program == command[0] == sys.executable and command[1].endswith("/main.py")
        raise SystemExit(command[2:])

    monkeypatch.setattr(cli.os, "execv", execv)
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", "runs/x", "--config.eval.checkpoint=best"])
    assert ended.value.code == [
        "--mode=evaluate",
        "--workdir=runs/x",
        "--config.eval.checkpoint=best",
    ]


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == pgfl_jax.__version__
