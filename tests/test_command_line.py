"""Folders that are tried before the work is done."""

from pathlib import Path

import pytest

from pgfl_jax.command_line import writable_folder
from pgfl_jax.errors import UserError


def test_a_folder_that_cannot_be_made_is_named_with_its_option(tmp_path):
    assert writable_folder(tmp_path / "a" / "b", "--workdir").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--workdir: the folder .*/file/run cannot be written to"):
        writable_folder(tmp_path / "file" / "run", "--workdir")


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket", "file:///tmp/run"])
def test_a_url_is_refused(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^--workdir: (gs|s3|file)://\w+.* is a URL; only folders"):
        writable_folder(Path(url), "--workdir")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a:b", "gs:", "c/d:/e"])
def test_a_colon_makes_no_url(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert writable_folder(Path(name), "--workdir").is_dir()
