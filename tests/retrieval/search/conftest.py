import numpy as np
import pytest
from PIL import Image

from pgfl_jax.retrieval.search.gallery import Origin, gallery_table, write_gallery
from pgfl_jax.retrieval.search.pictures import Picture


@pytest.fixture
def make_pictures():
    """Writes small pictures, all different: ``make_pictures(folder, count)``."""

    def make(folder, count):
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(count)
        for index in range(count):
            pixels = rng.integers(0, 256, (8, 4, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:03}.png")
        return sorted(folder.iterdir())

    return make


@pytest.fixture
def make_gallery(tmp_path):
    """Writes a gallery of given rows: ``make_gallery(rows, name="crops", **origin)``."""

    def make(rows, name="crops", **changes):
        facts = {"run": str(tmp_path / "run"), "step": 30, "parameters": "trained", "sha256": "a"}
        origin = Origin(**facts | {"channels": rows.shape[1]} | changes)
        pictures = [
            Picture(tmp_path / f"{at}.png", identity=None if at % 2 else f"p{at}")
            for at in range(len(rows))
        ]
        path = tmp_path / f"{name}.parquet"
        write_gallery(path, origin, [gallery_table(pictures, rows, tmp_path)])
        return path

    return make


@pytest.fixture
def unit_rows():
    """Random rows of unit length around a few centres: ``unit_rows(count, channels)``."""

    def make(count, channels, seed=0):
        rng = np.random.default_rng(seed)
        centres = rng.standard_normal((max(1, count // 8), channels))
        rows = centres[rng.integers(len(centres), size=count)]
        rows = rows + 0.7 * rng.standard_normal((count, channels))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    return make
