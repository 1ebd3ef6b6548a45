"""The least time of a program, and the table that states it."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import cpu
from benchmarks.floor import ceilings, floor
from pgfl_jax.errors import UserError

REACHED = {"copy_gb_per_second": 10.0, "product_gflop_per_second": 100.0}


@pytest.mark.usefixtures("all_optimizations")
def test_the_floor_by_hand():
    def chain(a, b):
        return (a @ b) @ b

    a, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((512, 256), (256, 256)))
    found = floor(jax.jit(chain).lower(a, b).compile().as_text(), REACHED)
    # Each product reads both of its operands and writes its result.
    assert found["gflop"] == pytest.approx(2 * 2 * 512 * 256 * 256 / 1e9)
    assert found["gigabytes"] == pytest.approx(2 * 4 * (2 * 512 * 256 + 256 * 256) / 1e9)
    assert found["product_ms"] == pytest.approx(found["gflop"] * 10)
    assert found["copy_ms"] == pytest.approx(found["gigabytes"] * 100)


def test_what_the_machine_reaches():
    found = ceilings("float32")
    # Between a slow virtual machine and a large server.
    assert 0.5 < found["copy_gb_per_second"] < 5_000
    assert 1 < found["product_gflop_per_second"] < 50_000


def _line(side, median, **more):
    return {
        "side": side, "batch": 32, "images_per_second": 32_000 / median,
        "step_ms": {"min": median - 1, "median": median, "max": median + 1}, **more,
    }  # fmt: skip


def test_the_table_and_its_place():
    ours = _line("jax", 100.0, speed_to_torch=1.5, floor={"product_ms": 60.0})
    made = cpu.rows("training", [ours, _line("torch", 150.0)])
    assert made.splitlines() == [
        "| training, 32 images | jax | 320.0 | 100.0 (99.0–101.0) | 1 | 60% |",
        "|  | torch | 213.3 | 150.0 (149.0–151.0) | **1.50** |  |",
    ]
    page = f"before\n{cpu.BEGIN}old\n{cpu.END}after\n"
    once = cpu.insert(page, made)
    assert once == f"before\n{cpu.BEGIN}{made}{cpu.END}after\n" and cpu.insert(once, made) == once
    with pytest.raises(UserError, match="lacks the line"):
        cpu.insert("before\n", made)
    assert cpu.BEGIN in cpu.PAGE.read_text()


def test_a_benchmark_that_fails_is_one_line():
    with pytest.raises(UserError, match=r"--batch=3 .*: ended with status 1"):
        cpu.run("jax", "--batch=3")
