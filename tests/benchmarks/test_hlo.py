"""The reader of compiled programs, on hand-written lines and on programs counted by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.hlo import Collective, Program, array_bytes, dimensions
from pgfl_jax.distributed.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("all_optimizations")

REDUCTION = """
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}
"""


def program(entry, others=""):
    """A module of eight partitions whose entry takes ``%p = f32[16,4]``."""
    return Program(
        f"HloModule jit_f, is_scheduled=true, num_partitions=8\n{REDUCTION}{others}\n"
        "ENTRY %main (p: f32[16,4]) -> f32[16,4] {\n"
        f"  %p = f32[16,4]{{1,0}} parameter(0)\n{entry}\n}}\n"
    )


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[16,4]{1,0:T(8,128)}", 256),
        ("bf16[3]{0}", 6),
        ("pred[5]", 5),
        ("f8e4m3fn[7]{0}", 7),
        ("s4[3]{0}", 2),
        ("c64[2]", 16),
        ("f32[]", 4),
        ("token[]", 0),
        ("((f32[2]{0:T(128)S(1)}, u32[]{:S(2)}), s8[3])", 15),
    ],
)
def test_bytes_of_shapes(shape, size):
    assert array_bytes(shape) == size


def test_bytes_of_a_memory_space():
    shape = "(f32[2]{0:T(128)S(1)}, f32[3]{0:T(128)}, u32[]{:S(2)})"
    assert [array_bytes(shape, space=space) for space in range(4)] == [12, 8, 4, 0]
    assert dimensions("bf16[4,1,7]{2,1,0:T(8,128)(2,1)S(1)}") == [4, 1, 7]


@pytest.mark.parametrize(
    ("line", "kind", "size", "group"),
    [
        (
            "%r = (f32[16,4]{1,0:T(8,128)S(1)}, f32[3]{0}) all-reduce(%p, %q), channel_id=1, "
            "replica_groups=[2,4]<=[8], use_global_device_ids=true, to_apply=%add",
            "all-reduce", 256 + 12, 4,
        ),
        (
            "%r = f32[16,4]{1,0} all-reduce-start(%p), replica_groups={}, to_apply=%add",
            "all-reduce", 256, 8,
        ),
        (
            "%r = (f32[16,4]{1,0}, bf16[2]{0}) all-reduce-start(%p, %q), "
            "replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add",
            "all-reduce", 256 + 4, 2,
        ),
        (
            "%r = (f32[16,4]{1,0}, f32[32,4]{1,0}) all-gather-start(%p), channel_id=3, "
            "replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, dimensions={0}",
            "all-gather", 512, 2,
        ),
        (
            "%r = ((f32[16,4]{1,0}, f32[2]), (f32[128,4]{1,0}, f32[16]{0})) "
            "all-gather-start(%p, %q), channel_id=3, dimensions={0}, "
            "replica_groups=mesh['axis_0'=2,'axis_1'=4,'axis_2'=9] {'axis_0','axis_1'}",
            "all-gather", 2048 + 64, 8,
        ),
        (
            "%r = ((f32[16,4]{1,0}), f32[2,4]{1,0}, u32[]{:S(2)}, /*index=3*/u32[]) "
            "reduce-scatter-start(%p), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add",
            "reduce-scatter", 32, 8,
        ),
        (
            "%r = f32[16,4]{1,0} all-to-all(%p), replica_groups={{0,1,2,3},{4,5,6,7}}",
            "all-to-all", 256, 4,
        ),
        (
            "%r = (f32[16,4]{1,0}, f32[16,4]{1,0}, u32[], u32[]) collective-permute-start(%p), "
            "source_target_pairs={{0,1},{1,0}}",
            "collective-permute", 256, 8,
        ),
        (
            "%r = f32[16,4]{1,0} all-reduce(%p), channel_id=1, replica_groups="
            "mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_1'}, "
            "use_global_device_ids=true, to_apply=%add",
            "all-reduce", 256, 4,
        ),
        (
            "%r = f32[16,4]{1,0} all-reduce(%p), "
            "replica_groups=mesh['a'=8,'b'=2] {'a':(2)4,'b'}, to_apply=%add",
            "all-reduce", 256, 8,
        ),
    ],
)  # fmt: skip
def test_a_collective_by_hand(line, kind, size, group):
    done = f"  ROOT %d = f32[16,4]{{1,0}} {kind}-done(%r)"
    assert program(f"  {line}\n{done}").collectives == [Collective(kind, size, group)]


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        # The result has 800 bytes on each of 4 devices in a ring.
        ("all-reduce", 2 * 3 * 200),  # 3 rounds of a quarter to reduce, 3 to gather
        ("all-gather", 3 * 200),  # each passes on 3 of the 4 quarters
        ("reduce-scatter", 3 * 800),  # the operand is four times the result
        ("all-to-all", 3 * 200),
        ("collective-permute", 800),
    ],
)
def test_bytes_that_a_device_sends(kind, sent):
    assert Collective(kind, 800, 4).sent_bytes == sent


LOOP = """
%inner_condition (i: s32[]) -> pred[] {
  %i = s32[]{:T(128)} parameter(0)
  %n = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%inner (i: s32[]) -> s32[] {
  ROOT %i.1 = s32[] parameter(0)
  %b = f32[4]{0} broadcast(%i.1), dimensions={}
  %r = f32[4]{0} all-reduce(%b), channel_id=1, replica_groups={}, to_apply=%add
}

%outer_condition (i: s32[]) -> pred[] {
  %i.2 = s32[] parameter(0)
  ROOT %odd = pred[] custom-call(%i.2), custom_call_target="unknowable"
}

%outer (i: s32[]) -> s32[] {
  %i.3 = s32[] parameter(0)
  %b.1 = f32[8]{0} broadcast(%i.3), dimensions={}
  %s = f32[1]{0} reduce-scatter(%b.1), channel_id=2, replica_groups={}, to_apply=%add
  ROOT %w = s32[] while(%i.3), condition=%inner_condition, body=%inner
}
"""
OUTER = "  %i.4 = s32[] constant(0)\n  %w.1 = s32[] while(%i.4), condition=%outer_condition, "


def test_every_iteration_of_a_loop_counts():
    known = 'backend_config={"known_trip_count":{"n":"3"},"other":{"n":"7"}}'
    nested = program(f"{OUTER}body=%outer, {known}", LOOP)
    assert nested.unknown_loops == 0
    assert set(nested.collectives) == {
        Collective("reduce-scatter", 4, 8, times=3),
        Collective("all-reduce", 16, 8, times=15),
    }
    unknown = program(f"{OUTER}body=%outer", LOOP)
    assert unknown.unknown_loops == 1
    assert [each.times for each in unknown.collectives] == [1, 5]


def test_a_collective_spread_over_fusions_is_one():
    """The TPU compiler's form: the start, the overlapping work and the end each hold a copy."""
    fused = "\n".join(
        f"%fused.{i} (a: f32[2,4]) -> f32[16,4] {{\n  %a = f32[2,4]{{1,0}} parameter(0)\n"
        f"  %g.{i} = f32[16,4]{{1,0}} all-gather(%a), channel_id={channel}, dimensions={{0}}, "
        f"replica_groups={{}}\n  ROOT %c = f32[16,4]{{1,0}} custom-call(%g.{i}), "
        'custom_call_target="AsyncCollectiveStart"\n}\n'
        for i, channel in enumerate((5, 5, 5, 6))
    )
    calls = "\n".join(
        f"  %f.{i} = f32[16,4]{{1,0}} fusion(%p), kind=kCustom, calls=%fused.{i}" for i in range(4)
    )
    assert program(calls, fused).collectives == [Collective("all-gather", 256, 8)] * 2


def test_memory_counts_what_leaves_the_chip():
    fused = (
        "%fused (a: f32[16,4]) -> f32[16,4] {\n  %a = f32[16,4]{1,0} parameter(0)\n"
        "  %huge = f32[1000,16,4]{2,1,0} broadcast(%a), dimensions={1,2}\n"
        "  ROOT %s = f32[16,4]{1,0} slice(%huge), slice={[0:1], [0:16], [0:4]}\n}\n"
    )
    lines = """
  %near = f32[16,4]{1,0:T(8,128)S(1)} fusion(%p), kind=kLoop, calls=%fused
  %both = f32[16,4]{1,0:T(8,128)S(1)} add(%near, %near)
  %far = f32[16,4]{1,0:T(8,128)} add(%both, %p)
  %start = (f32[16,4]{1,0:T(8,128)S(1)}, f32[16,4]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%far)
  %copied = f32[16,4]{1,0:T(8,128)S(1)} copy-done(%start)
  %part = ((f32[16,4]{1,0}), f32[2,4]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={}
  %t = (f32[16,4]{1,0}, f32[16,4]{1,0}) tuple(%far, %p)
  %new = f32[16,4]{1,0} custom-call(), custom_call_target="AllocateBuffer"
"""
    # p read; nothing; p read and far written; far read; none; a slice of p read; none; none
    assert program(lines, fused).memory_bytes == 256 + 0 + 512 + 256 + 0 + 32 + 0 + 0


def test_replica_groups_of_an_unknown_form_are_refused():
    line = "  %r = f32[16,4]{1,0} all-reduce(%p), replica_groups=<new>, to_apply=%add"
    with pytest.raises(ValueError, match="unknown form: replica_groups=<new>"):
        _ = program(line).collectives


def test_a_module_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        Program("HloModule nothing\n")


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "SAME"},
        {"padding": [(3, 2), (0, 4)], "window_strides": (2, 3)},
        {"padding": "VALID", "rhs_dilation": (2, 1)},
        {"padding": [(2, 1), (-1, 3)], "lhs_dilation": (2, 3)},
        {"padding": "SAME", "feature_group_count": 2},
    ],
)
def test_flops_of_a_convolution_are_its_products(options):
    """A convolution of ones sums to the number of its products."""
    options = {"window_strides": (1, 1), **options}
    groups = options.get("feature_group_count", 1)
    images, kernel = jnp.ones((3, 9, 7, 4)), jnp.ones((3, 5, 4 // groups, 6))

    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
        )

    products = float(convolve(images, kernel).sum())
    text = jax.jit(convolve).lower(images, kernel).compile().as_text()
    assert Program(text).matrix_flops == 2 * products


def test_flops_of_the_gradients_of_a_strided_convolution():
    """Every product of the forward pass occurs once in each of the two gradients."""
    images, kernel = jnp.ones((2, 9, 8, 4)), jnp.ones((3, 3, 4, 6))

    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def gradients(images, kernel):
        return jax.grad(lambda *both: convolve(*both).sum(), argnums=(0, 1))(images, kernel)

    products = float(convolve(images, kernel).sum())
    text = jax.jit(gradients).lower(images, kernel).compile().as_text()
    assert Program(text).matrix_flops == 2 * 2 * products


# NVIDIA's libraries describe a gradient by the convolution that it belongs to.
DIMENSIONS = (
    'backend_config={"gemm_backend_config":{"beta":0,"dot_dimension_numbers":'
    '{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}'
)


@pytest.mark.parametrize(
    ("line", "products", "moved"),
    [
        (
            "(bf16[2,4,4,6], u8[1000]) custom-call(%x, %k), CONV __cudnn$convForward",
            2 * 6 * 4 * 11 * 11, 1024 + 432 + 384,
        ),
        (
            "(bf16[2,4,4,6], u8[0]) custom-call(%x, %k, %b, %y), "
            "CONV __cudnn$convBiasActivationForward",
            2 * 6 * 4 * 11 * 11, 1024 + 432 + 24 + 2 * 384,
        ),
        (
            "(bf16[2,8,8,4], u8[1000]) custom-call(%y, %k), CONV __cudnn$convBackwardInput",
            2 * 6 * 4 * 11 * 11, 1024 + 432 + 384,
        ),
        (
            "(bf16[6,3,3,4], u8[1000]) custom-call(%x, %y), CONV __cudnn$convBackwardFilter",
            2 * 6 * 4 * 11 * 11, 1024 + 432 + 384,
        ),
        (
            f"(f32[16,6], s8[1000]) custom-call(%p, %w), DOT __cublas$lt$matmul, {DIMENSIONS}",
            16 * 4 * 6, 256 + 96 + 384,
        ),
        (
            f"f32[16,6] custom-call(%p, %w), DOT __cublas$gemm, {DIMENSIONS}",
            16 * 4 * 6, 256 + 96 + 384,
        ),
    ],
)  # fmt: skip
def test_calls_of_nvidias_libraries_by_hand(line, products, moved):
    """Along each axis of 8 pixels, stride 2 and padding 1 leave 11 of 12 products."""
    window = "window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, "
    for short, long in {"CONV ": window, "DOT ": ""}.items():
        line = line.replace(short, f"{long}custom_call_target=")
    line = re.sub(r"target=([\w$]+)", r'target="\1"', line)
    operands = (
        "  %x = bf16[2,8,8,4] parameter(1)\n  %k = bf16[6,3,3,4] parameter(2)\n"
        "  %y = bf16[2,4,4,6] parameter(3)\n  %w = f32[4,6] parameter(4)\n"
        "  %b = f32[6] parameter(5)\n"
    )
    read = program(f"{operands}  %r = {line}")
    assert read.matrix_flops == 2 * products
    assert read.memory_bytes == moved  # without the workspace


def test_flops_and_memory_of_matrix_products_in_a_loop():
    def f(a, b):
        def turn(total, part):
            return total + jnp.tanh(part @ b), None

        return jax.lax.scan(turn, jnp.zeros((16, 32)), a)[0]

    compiled = jax.jit(f).lower(jnp.ones((6, 16, 64)), jnp.ones((64, 32))).compile()
    read = Program(compiled.as_text())
    assert read.unknown_loops == 0
    assert read.matrix_flops == 6 * 2 * 16 * 64 * 32
    # XLA's own analysis counts one iteration.
    assert compiled.cost_analysis()["flops"] < 2 * 2 * 16 * 64 * 32
    # Each iteration reads at least b and a part of a, and reads and writes the total.
    least = 6 * 4 * (64 * 32 + 16 * 64 + 2 * 16 * 32)
    assert least <= read.memory_bytes < 6 * least


def _compiled(function, spec_in, spec_out, *shapes):
    """The program of a function that is mapped over the shards of 2 x 4 devices."""
    mesh = make_mesh(jax.devices()[:8], model=4)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec_in, out_specs=spec_out)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return Program(jax.jit(mapped).lower(*arguments).compile().as_text())


ALL, MODEL = PartitionSpec(("data", "model")), PartitionSpec("model")


@pytest.mark.parametrize(
    ("function", "spec_in", "spec_out", "expected"),
    [
        (lambda x: jax.lax.psum(x, "data"), ALL, MODEL, ("all-reduce", 2 * 48 * 4, 2)),
        (lambda x: jax.lax.all_gather(x, "model"), ALL, ALL, ("all-gather", 4 * 2 * 48 * 4, 4)),
        (
            lambda x: jax.lax.psum_scatter(x, "model", scatter_dimension=1, tiled=True),
            ALL, ALL, ("reduce-scatter", 2 * 12 * 4, 4),
        ),
        (
            lambda x: jax.lax.all_to_all(x, "model", 1, 0, tiled=True),
            ALL, ALL, ("all-to-all", 2 * 48 * 4, 4),
        ),
        (
            lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]),
            ALL, ALL, ("collective-permute", 2 * 48 * 4, 8),
        ),
    ],
)  # fmt: skip
def test_collectives_that_a_program_asks_for(function, spec_in, spec_out, expected):
    found = _compiled(function, spec_in, spec_out, (16, 48)).collectives
    assert found == [Collective(*expected)]


def test_a_collective_in_a_loop_that_a_program_asks_for():
    def f(x):
        def turn(total, part):
            return total + jnp.sin(jax.lax.psum(part * total, "model")), None

        return jax.lax.scan(turn, jnp.ones((48,)), x)[0]

    read = _compiled(f, PartitionSpec(None, "model"), PartitionSpec(), (7, 4 * 48))
    assert read.collectives == [Collective("all-reduce", 48 * 4, 4, times=7)]


def test_collectives_that_the_partitioner_adds():
    """A matrix product over a split axis, and a resharding that gathers rows."""
    mesh = make_mesh(jax.devices()[:8], model=4)

    def place(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    product = jax.jit(
        jnp.matmul, in_shardings=(place(None, "model"), place("model")), out_shardings=place()
    )
    text = product.lower(np.ones((24, 64)), np.ones((64, 8))).compile().as_text()
    read = Program(text)
    assert read.collectives == [Collective("all-reduce", 24 * 8 * 4, 4)]
    assert read.matrix_flops == 2 * 24 * 8 * 64 / 4  # of one device
    gathered = jax.jit(lambda x: x, in_shardings=place("data"), out_shardings=place())
    text = gathered.lower(np.ones((24, 64), np.float32)).compile().as_text()
    assert Program(text).collectives == [Collective("all-gather", 24 * 64 * 4, 2)]
