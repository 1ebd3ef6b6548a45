"""``pgfl search``: the nearest by brute force, verdicts by the calibration, sheets that show it."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import pgfl_jax
from pgfl_jax import cli
from pgfl_jax.retrieval.search.gallery import Origin, gallery_table, write_gallery
from pgfl_jax.retrieval.search.pictures import Picture
from tests.runs import GOLDEN_RUN


@pytest.fixture
def people(make_pictures, tmp_path, monkeypatch):
    """Eight pictures and their embeddings by a copy of the golden run, in the current folder.

    ``crops.parquet`` holds all of them, ``first.parquet`` the first.
    """
    monkeypatch.chdir(tmp_path)
    paths = make_pictures(tmp_path / "in", 8)
    run = shutil.copytree(GOLDEN_RUN, tmp_path / "run")
    embedder = pgfl_jax.load(run)
    rows = embedder(paths)
    pictures = [Picture(path, f"p{at}", "c1") for at, path in enumerate(paths)]
    table = gallery_table(pictures, rows, tmp_path)
    origin = Origin.of(embedder, run)
    write_gallery(tmp_path / "crops.parquet", origin, [table])
    write_gallery(tmp_path / "first.parquet", origin, [table.slice(0, 1)])
    return paths, rows


def calibrate(name, threshold, **changes):
    scored = {"step": 30, "parameters": "trained", "embedding": "main", "distance": "cosine"}
    scored["flip"] = False
    points = [{"far": 0.001, "threshold": threshold}, {"far": 0.0001, "threshold": None}]
    content = {"scored": scored | changes, "operating_points": points}
    with open(f"run/results/{name}.calibration.json", "w", encoding="utf-8") as file:
        json.dump(content, file)


def search(*arguments):
    return cli.main(["search", *map(str, arguments), "--gallery", "crops.parquet"])


def brute_force(rows, query):
    """The lines without verdicts: rank, score, name; the products in float64."""
    scores = rows.astype(np.float64) @ rows[query].astype(np.float64)
    order = sorted(range(len(rows)), key=lambda at: -scores[at])
    return [
        f"{rank:>4}  {scores[at]:.3f}  identity p{at}, camera c1  in/{at:03}.png"
        for rank, at in enumerate(order, 1)
    ]


def test_the_nearest_are_those_of_brute_force(people, capsys):
    paths, rows = people
    assert search(paths[5], paths[2]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:9] == ["in/005.png", *brute_force(rows, 5)]
    assert lines[9:18] == ["in/002.png", *brute_force(rows, 2)]
    assert lines[18].startswith("no verdicts: the run has no calibration of this checkpoint")
    assert search("crops.parquet", "--top=1") == 0  # each finds itself
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:-1:2]] == [f"in/{at:03}.png" for at in range(8)]


def test_verdicts_follow_the_strictest_calibration_of_this_checkpoint(people, capsys):
    _, rows = people
    distances = np.sort(1 - rows @ rows[0])
    threshold = float(distances[3] + distances[4]) / 2
    calibrate("occluded", threshold)
    calibrate("holistic", 1.9)
    calibrate("other", 0.0, step=20)
    calibrate("parts", 0.0, embedding="parts")
    assert search("first.parquet") == 0
    out = capsys.readouterr().out
    assert out.count("  match  ") == 4 and out.count("  no match  ") == 4
    assert out.index("  no match  ") > out.rindex("  match  ")
    assert f"a match scores at least {1 - threshold:.3f}: 0.001 of the pairs of different" in out
    assert "(occluded.calibration.json)" in out
    assert search("first.parquet", "--far=0.0001") == 0  # too few pairs to say
    assert "no verdicts" in capsys.readouterr().out
    with open("run/results/occluded.calibration.json", "w", encoding="utf-8") as file:
        file.write("{}")
    assert search("first.parquet") == 1
    assert "occluded.calibration.json: damaged; evaluate again" in capsys.readouterr().err


def test_another_network_is_refused(people, make_gallery, unit_rows, capsys):
    paths, _ = people
    other = make_gallery(unit_rows(2, 192), name="other")
    assert search(other) == 1
    assert "embeddings of two networks cannot be compared" in capsys.readouterr().err
    digests = open("run/checkpoints/30/digests.json", "a", encoding="utf-8")  # noqa: SIM115
    print(file=digests)
    digests.close()
    assert search(paths[0]) == 1
    assert "embeddings of two networks cannot be compared" in capsys.readouterr().err
    assert search(paths[0], "--run", GOLDEN_RUN) == 0  # where the gallery's checkpoint still is
    shutil.move("run", "moved")
    assert search(paths[0]) == 1
    assert "which is not there; say where it is with --run" in capsys.readouterr().err


def test_queries_that_cannot_be_read_are_listed(people, tmp_path, capsys):
    paths, _ = people
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    assert search(paths[0], "bad.jpg", "--top=1") == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("in/000.png\n   1  1.000  identity p0, camera c1  in/000.png\n")
    line = f"warning: left out: {tmp_path}/bad.jpg: damaged, or not a picture\n"
    assert printed.err.endswith(line)  # after a progress bar, if it took long
    assert search("bad.jpg") == 1
    assert "none of 1 queries can be read; the first: " in capsys.readouterr().err
    assert search(paths[0], "--top=0") == 1
    assert "--top=0: must be at least 1" in capsys.readouterr().err
    assert search(paths[0], "--out=sheet.pdf") == 1
    assert "--out=sheet.pdf: must end in .html or .png" in capsys.readouterr().err


def test_a_sheet_does_not_overwrite_a_picture(people, tmp_path, capsys):
    paths, _ = people
    for picture in (paths[0], paths[3]):  # a query, and one of the gallery
        before = picture.read_bytes()
        assert search(paths[0], f"--out={picture}") == 1
        assert f"--out={picture}: is a picture of the search" in capsys.readouterr().err
        assert picture.read_bytes() == before


def test_a_sheet_shows_what_was_found(people, tmp_path):
    paths, rows = people
    calibrate("occluded", float(np.sort(1 - rows @ rows[0])[1:3].mean()))
    paths[7].unlink()
    assert (
        search("first.parquet", "--out=sheet.html")
        == search("first.parquet", "--out=sheet.png")
        == 0
    )
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert "http" not in page
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 1 + 7 and page.count("cannot be read") == 1
    first = Image.open(io.BytesIO(base64.b64decode(pictures[0])))
    assert first.size == (96, 192)
    expected = Image.open(paths[0]).resize((96, 192), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(first, float) - np.asarray(expected, float)).mean() < 12
    assert page.count('<td class="match">') == 2 and page.count('<td class="other">') == 6
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size[0] == 9 * 120
    # Green frames around two pictures, red lines below six.
    colours = {colour: count for count, colour in sheet.getcolors(2**24)}
    assert colours[0x1A, 0x7F, 0x37] > 2 * 1000 and colours[0xC4, 0x43, 0x2B] >= 6 * 4 * 90
