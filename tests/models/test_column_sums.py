import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.models.column_sums import _partial_sums, column_sums


def _terms(x, gradient, mean):
    d = jnp.where(x > 0, gradient, 0)
    return d, d * (x - mean)


def _draw(rows, columns):
    rng = np.random.default_rng(0)
    x, gradient = (jnp.asarray(rng.standard_normal((rows, columns)), "bfloat16") for _ in "12")
    return x, gradient, jnp.asarray(rng.standard_normal(columns), "float32")


def _expected(x, gradient, mean):
    x, gradient, mean = (np.float64(each) for each in (x, gradient, mean))
    d = np.where(x > 0, gradient, 0)
    return d, d.sum(0), (d * (x - mean)).sum(0)


# The first has a height that no full tile divides, the second more tiles than programs.
@pytest.mark.parametrize(("rows", "columns"), [(96, 256), (1920, 64)])
def test_the_gpu_kernel_sums_in_float32(rows, columns, monkeypatch):
    monkeypatch.setattr("pgfl_jax.models.column_sums._PROGRAMS", 4)
    arrays = _draw(rows, columns)
    kept, sums = _partial_sums(_terms, 2, 2, True, *arrays, interpret=True)
    d, first, second = _expected(*arrays)
    np.testing.assert_array_equal(np.float64(kept), d)
    assert sums.dtype == jnp.float32
    found = np.float64(sums).sum(0)
    # bfloat16 sums of this length would be off by whole units.
    np.testing.assert_allclose(found, [first, second], rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize("columns", [64, 48])
def test_sums_and_the_kept_term(columns):
    arrays = _draw(96, columns)
    kept, *sums = column_sums(_terms, arrays[:2], arrays[2:], keep=True)
    d, first, second = _expected(*arrays)
    np.testing.assert_array_equal(np.float64(kept), d)
    assert kept.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(sums), [first, second], rtol=1e-5, atol=1e-4)
    without = column_sums(_terms, arrays[:2], arrays[2:])
    np.testing.assert_array_equal(without, sums)
