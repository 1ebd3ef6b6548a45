"""The Python in the documents runs, on a stored run and a few pictures.

A block that cannot run follows a comment ``<!-- not run: WHY -->``.
"""

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgfl_jax.pretrained import save_state_dict
from pgfl_jax.retrieval.search.gallery import Origin, gallery_table, write_gallery
from pgfl_jax.retrieval.search.pictures import Picture
from tests.runs import GOLDEN_RUN

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(
    r"^(?P<mark> *<!-- not run: \S.*? -->\n\s*)?"
    r"^(?P<indent> *)```(?:python|py)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_FENCE = re.compile(r"^ *```(?:python|py)\b", re.MULTILINE)


def _blocks(text):
    """The blocks to run: each one's first line, from 1, and its code."""
    return [
        (1 + text.count("\n", 0, block.start("code")), textwrap.dedent(block["code"]))
        for block in _BLOCK.finditer(text)
        if not block["mark"]
    ]


def _pages():
    """The documents with Python, by their paths."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    pages = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in found}
    return {name: text for name, text in pages.items() if _FENCE.search(text)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder of a reader who has trained the demo."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/demo").symlink_to(GOLDEN_RUN)
    rng = np.random.default_rng(0)
    for name in ("query.jpg", "someone.jpg", "gallery/1.jpg", "gallery/2.jpg", "pictures/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (64, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    origin = Origin(str(GOLDEN_RUN), 30, "trained", "a", 192)
    rows = np.eye(2, 192, dtype=np.float32)
    people = [Picture(tmp_path / "gallery" / name) for name in ("1.jpg", "2.jpg")]
    write_gallery(tmp_path / "crops.parquet", origin, [gallery_table(people, rows, tmp_path)])
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", _pages())
def test_the_python_of_a_page_runs(page, folder):
    text = _pages()[page]
    assert len(_BLOCK.findall(text)) == len(_FENCE.findall(text)), "a block was not found"
    if "dino.pth" in text:
        pytest.importorskip("torch")
        weights = {f"{name}.conv1.weight": np.zeros(3) for name in ("student", "teacher")}
        save_state_dict("weights/dino.pth", weights)
    names = {"__name__": "documents.page"}  # TFDS names a builder for its package
    for line, code in _blocks(text):
        # Lines of a traceback are then those of the page.
        exec(compile("\n" * (line - 1) + code, ROOT / page, "exec"), names)
    for name in ("network", "weights/teacher"):
        if f'"{name}.safetensors"' in text:
            assert Path(f"{name}.safetensors").is_file()


def test_only_marked_blocks_are_left_out():
    text = """
```python
a
```
  <!-- not run: because -->

  ```python
  b
  ```
1. c

    ```py
    if c:
        d
    ```
<!-- not run: -->
```python
e
```
"""
    assert _blocks(text) == [(3, "a\n"), (13, "if c:\n    d\n"), (18, "e\n")]
