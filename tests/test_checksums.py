"""Damage to any file is found by its checksum."""

import hashlib
import json

import pytest

from pgfl_jax import checksums
from tests.runs import delete, flip, halve

FILES = {"state/d/abc": bytes(range(256)), "state/manifest": b"m", "metrics/metrics": b'{"a": 1}'}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "notes").write_text("changed by others later")
    checksums.write(tmp_path)
    return tmp_path


def test_every_file_in_the_subfolders_has_its_digest(folder):
    stored = json.loads((folder / checksums.DIGESTS).read_text())
    assert stored == {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    assert checksums.find_damage(folder) is None
    (folder / "notes").unlink()
    assert checksums.find_damage(folder) is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (delete, "is missing"),
        (halve, "is not as it was written"),
        (flip, "is not as it was written"),
    ],
)
def test_damage_is_named(folder, name, harm, words):
    harm(folder / name)
    assert checksums.find_damage(folder) == f"{name} {words}"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (delete, "digests.json is missing, as in checkpoints of older versions"),
        (halve, "digests.json is unreadable"),
        (lambda path: path.write_text("[]"), "digests.json is unreadable"),
    ],
)
def test_digests_that_are_damaged_themselves(folder, harm, message):
    harm(folder / checksums.DIGESTS)
    assert checksums.find_damage(folder) == message


def test_a_file_that_cannot_be_read_is_named(folder):
    (folder / "state" / "manifest").unlink()
    (folder / "state" / "manifest").mkdir()  # reading it fails with an OSError, as on a bad disk
    assert checksums.find_damage(folder) == "state/manifest cannot be read: Is a directory"
