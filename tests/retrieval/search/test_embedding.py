"""``pgfl embed``: what is interrupted goes on, what is added joins, what is left out is said."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

import pgfl_jax
from pgfl_jax import cli
from pgfl_jax.checksums import sha256
from pgfl_jax.errors import UserError
from pgfl_jax.retrieval.search.gallery import Origin, read_gallery
from pgfl_jax.retrieval.search.journal import open_journal
from tests.runs import GOLDEN_RUN, finish, launch

# The killed process, and the one after it, which also does the work undisturbed.
KILLED = "from pgfl_jax.cli import main; main({0!r})"
AFTER = """
import sys
from pgfl_jax.cli import main
status = main({0!r})
print("status", status, file=sys.stderr)
main({1!r})
"""
BATCH = 4


def options(folder, out, *more):
    return ["embed", str(folder), "--run", str(GOLDEN_RUN), "--out", str(out), *more]


def test_after_a_kill_the_file_is_the_same(make_pictures, tmp_path):
    make_pictures(tmp_path / "in", 200)
    (tmp_path / "in" / "002.png").write_bytes(b"nothing")
    (tmp_path / "in" / "199.png").write_bytes(b"nothing")
    outs = [tmp_path / f"{name}.parquet" for name in ("killed", "whole")]
    commands = [options(tmp_path / "in", out, f"--batch-size={BATCH}") for out in outs]
    part = outs[0].with_name("killed.parquet.part")
    process = launch("-c", KILLED.format(commands[0]))
    while process.poll() is None and not (part.exists() and part.stat().st_size > 60 * 192 * 4):
        time.sleep(0.001)
    done = part.stat().st_size
    os.kill(process.pid, signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
    assert part.exists() and not outs[0].exists()

    status, _, err = finish(launch("-c", AFTER.format(*commands)))
    assert status == 0, err
    resumed, undisturbed = err.split("status 1\n")
    kept = int(resumed.partition("kept: ")[2].split()[0])
    # All batches that the file held when it was looked at; a row takes a few bytes more.
    assert kept % BATCH == 0 and done // (192 * 4 + 300) - BATCH <= kept < 200
    assert "kept: " not in undisturbed
    for name in ("002", "199"):
        line = f"warning: left out: {tmp_path}/in/{name}.png: damaged, or not a picture\n"
        assert line in resumed and line in undisturbed
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert not part.exists()
    assert len(read_gallery(outs[0])) == 198


def test_any_end_of_the_journal_is_cut_back_to_whole_batches(tmp_path):
    path, request = tmp_path / "x.part", {"pictures": "a"}
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    rows[3] = np.nan
    ends = []
    with open_journal(path, request, 2) as journal:
        for start, errors in ((0, []), (2, ["bad"]), (4, [])):
            ends.append(path.stat().st_size)
            journal.append(rows[start : start + 2], errors)
    content = path.read_bytes()
    near = {end + step for end in ends for step in range(-9, 10)}
    for size in sorted({0, *range(0, len(content), 61), *near} - {len(content)}):
        path.write_bytes(content[:size])
        whole = sum(end <= size for end in [*ends[1:], len(content)])
        with open_journal(path, request, 2) as journal:
            assert journal.count == 2 * whole
        assert path.stat().st_size == [*ends, len(content)][whole]
    with open_journal(path, request, 2) as journal:
        journal.append(rows[4:], [])
        journal_rows = [batch["embedding"].to_pylist() for batch in journal.batches()]
        assert [batch["error"].to_pylist() for batch in journal.batches()][1] == [None, "bad"]
    assert journal_rows == [[[0, 1], [2, 3]], [[4, 5], None], [[8, 9], [10, 11]]]
    assert path.read_bytes() == content


def test_the_beginning_of_other_work_is_not_continued(make_pictures, tmp_path, capsys):
    make_pictures(tmp_path / "in", 3)
    out = tmp_path / "x.parquet"
    request = {"run": ["a", "trained"], "arithmetic": "float32", "pictures": "b", "batch size": 8}
    part = tmp_path / "x.parquet.part"
    with open_journal(part, request, 192) as journal:
        assert cli.main(options(tmp_path / "in", out)) == 1
        assert "x.parquet.part: another process is writing it" in capsys.readouterr().err
        journal.append(np.ones((8, 192), np.float32), [])
    content = part.read_bytes()
    assert cli.main(options(tmp_path / "in", out, "--batch-size=8")) == 1
    line = "x.parquet.part: holds the beginning of another embedding (run, pictures differ); give"
    assert line in capsys.readouterr().err
    assert part.read_bytes() == content
    part.write_bytes(b"a download of another program")
    assert cli.main(options(tmp_path / "in", out)) == 1
    assert "x.parquet.part: not the beginning of an embedding" in capsys.readouterr().err
    assert part.read_bytes() == b"a download of another program"
    part.write_bytes(content[:-1])  # of other work, without a batch: nothing is lost
    assert cli.main(options(tmp_path / "in", out)) == 0
    assert len(read_gallery(out)) == 3 and not part.exists()


def test_pictures_are_added_to_a_gallery(make_pictures, tmp_path, capsys):
    paths = make_pictures(tmp_path / "in", 5)
    out = tmp_path / "x.parquet"
    assert cli.main(["embed", str(paths[3]), *options(paths[0], out)[1:]]) == 0
    before = read_gallery(out).embeddings()
    assert cli.main(options(tmp_path / "in", out)) == 1
    assert "x.parquet: exists; --add embeds the pictures that it lacks" in capsys.readouterr().err
    assert cli.main(options(tmp_path / "in", out, "--add")) == 0
    printed = capsys.readouterr()
    assert printed.err.endswith("kept: 2 that the file held before\n")
    assert printed.out == f"{out}: 5 embeddings of 192 numbers\n"
    found = read_gallery(out)
    order = [3, 0, 1, 2, 4]
    assert [found.picture(at).path for at in range(5)] == [paths[at] for at in order]
    np.testing.assert_array_equal(found.embeddings()[:2], before)
    expected = pgfl_jax.load(GOLDEN_RUN)([paths[at] for at in order])
    np.testing.assert_allclose(found.embeddings(), expected, atol=2e-6)
    assert cli.main(options(tmp_path / "in", out, "--add")) == 0
    assert read_gallery(out).sha256 == found.sha256


def test_pictures_that_changed_are_embedded_again(make_pictures, tmp_path, capsys):
    paths = make_pictures(tmp_path / "in", 3)
    out = tmp_path / "x.parquet"
    (tmp_path / "t.csv").write_text("path,identity,camera\nin/001.png,Ada,c1\nin/002.png,Ben,c2\n")
    assert cli.main(options(tmp_path / "t.csv", out)) == 0
    before = read_gallery(out).embeddings()
    paths[0].replace(paths[1])  # another picture under the name of the old one
    later = out.stat().st_mtime_ns + 10**9
    os.utime(paths[1], ns=(later, later))
    assert cli.main(options(tmp_path / "in", out, "--add")) == 0
    words = "kept: 1 that the file held before\nembedded again: 1 that are newer than the file\n"
    assert capsys.readouterr().err.endswith(words)
    found = read_gallery(out)
    labels = [("002.png", "Ben", "c2"), ("001.png", "Ada", "c1")]
    pictures = [found.picture(at) for at in range(len(found))]
    assert [(one.path.name, one.identity, one.camera) for one in pictures] == labels
    np.testing.assert_array_equal(found.embeddings()[0], before[1])
    expected = pgfl_jax.load(GOLDEN_RUN)(paths[1])
    np.testing.assert_allclose(found.embeddings()[1:], expected, atol=2e-6)
    assert np.abs(before[0] - expected).max() > 1e-3


def test_a_name_that_no_gallery_can_hold_is_said_before_any_work(make_pictures, tmp_path, capsys):
    (path,) = make_pictures(tmp_path / "in", 1)
    path.rename(os.fsdecode(os.fsencode(path.parent) + b"/caf\xe9.png"))
    assert cli.main(options(tmp_path / "in", tmp_path / "x.parquet")) == 1
    assert "caf\\udce9.png': its name is not UTF-8; rename" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["in"]  # nothing half-done


def test_embeddings_of_another_network_are_not_added(
    make_pictures, make_gallery, unit_rows, capsys
):
    path = make_gallery(unit_rows(2, 192))
    make_pictures(path.parent / "in", 1)
    content = path.read_bytes()
    assert cli.main(options(path.parent / "in", path, "--add")) == 1
    assert "embeddings of two networks cannot be compared" in capsys.readouterr().err
    assert path.read_bytes() == content


def test_a_table_brings_who_is_seen(make_pictures, tmp_path):
    make_pictures(tmp_path / "in", 2)
    (tmp_path / "t.csv").write_text("path,identity,camera\nin/001.png,7,c2\nin/000.png,,\n")
    assert cli.main(options(tmp_path / "t.csv", tmp_path / "x.parquet")) == 0
    table = pq.read_table(tmp_path / "x.parquet").drop(["embedding"])
    assert table.to_pylist() == [
        {"path": "in/001.png", "identity": "7", "camera": "c2"},
        {"path": "in/000.png", "identity": None, "camera": None},
    ]


def test_an_artifact_and_its_run_are_the_same_network(tmp_path):
    embedder = pgfl_jax.load(GOLDEN_RUN)
    ours = Origin.of(embedder, GOLDEN_RUN)
    record = {"checkpoint": {"sha256": sha256(GOLDEN_RUN / "checkpoints/30/digests.json")}}
    (tmp_path / "parity.json").write_text(json.dumps(record))
    ours.require_same(Origin.of(embedder, tmp_path), "a", "b")
    (tmp_path / "parity.json").write_text('{"checkpoint": {"sha256": null}}')
    with pytest.raises(UserError, match=r"parity\.json: names no checkpoint"):
        Origin.of(embedder, tmp_path)


def test_a_run_that_changes_meanwhile_is_another_network(tmp_path):
    run = shutil.copytree(GOLDEN_RUN, tmp_path / "run")
    embedder = pgfl_jax.load(run)
    before = Origin.of(embedder, run)
    digests = run / "checkpoints" / "30" / "digests.json"
    digests.write_text(digests.read_text() + " ")
    with pytest.raises(UserError, match="cannot be compared"):
        before.require_same(Origin.of(embedder, run), "a", "b")
