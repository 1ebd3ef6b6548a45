"""Ahead-of-time compilation: arithmetic by hand, a step for CPUs, and one for TPU chips."""

import dataclasses
import importlib.util
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import jax
import pytest

from benchmarks import aot
from benchmarks.chips import CHIPS, ENVIRONMENT, interconnect_seconds
from benchmarks.hlo import Collective
from configs import default, synthetic_tiny
from input_pipeline.from_config import training_data
from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.errors import UserError
from pgfl_jax.experiment import Experiment
from pgfl_jax.train_step import make_train_step
from tests.runs import launch

IDENTITIES = 300


def test_the_roofline_by_hand():
    v5e = CHIPS["v5e"]
    found = aot.roofline(v5e, tflop=1.97, hbm_gb=8.19, interconnect=0.002, images=64)
    assert found == {
        "roofline_ms": {"compute": 10.0, "memory": 10.0, "interconnect": 2.0},
        "limited_by": "compute",
        "images_per_second_at_most": 6400,
    }
    assert aot.roofline(v5e, 1.97, 16.38, 0.002, images=64)["limited_by"] == "memory"
    slow = aot.roofline(v5e, 1.97, 16.38, 0.04, images=64)
    assert (slow["limited_by"], slow["images_per_second_at_most"]) == ("interconnect", 64 / 0.04)
    found = aot.roofline(CHIPS["h100"], 9.89, 67.0, 0.0, images=256)
    assert found["roofline_ms"] == {"compute": 10.0, "memory": 20.0, "interconnect": 0.0}


@pytest.mark.parametrize(
    ("chip", "kind", "group", "milliseconds"),
    [
        ("v5e", "all-reduce", 1, 0),
        ("v5e", "all-reduce", 64, 2 * 63 / 64 * 720 / 200),
        # Among the GPUs of one machine, NVLink counts.
        ("h100", "all-reduce", 8, 2 * 7 / 8 * 720 / 450),
        # Sixteen machines send two fifteen-sixteenths of it by eight adapters each.
        ("h100", "all-reduce", 128, 2 * 15 / 16 * 720 / 8 / 50),
        ("h100", "all-gather", 128, 15 / 16 * 720 / 8 / 50),
        # Every GPU has another result. Its own machine needs most of what it reduces.
        ("h100", "reduce-scatter", 16, 15 * 720 / 450),
        ("h100", "all-to-all", 16, 1 / 2 * 720 / 50),
    ],
)
def test_the_interconnects_time_by_hand(chip, kind, group, milliseconds):
    twice = Collective(kind, 360_000_000, group, times=2)
    seconds = interconnect_seconds(CHIPS[chip], [twice])
    assert 1000 * seconds == pytest.approx(milliseconds, rel=1e-9)


@pytest.fixture
def known_version(monkeypatch):
    """Fixes the versions in the lines, whether libtpu is installed or not."""
    monkeypatch.setattr(aot.importlib.metadata, "version", lambda name: "1.0")


def _tiny_case(batch, **changes):
    values = synthetic_tiny.get_config()
    return aot.make_case("tiny", "v5e:2x2", values, identities=IDENTITIES, batch=batch, **changes)


def _bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("model", [1, 4])
def test_a_step_for_eight_devices(model):
    case = _tiny_case(16, **{"mesh.model": model, "optim.name": "sgd"})
    experiment = Experiment.create(case.config, num_identities=IDENTITIES, num_images=320)
    state, batch = experiment.abstract_state(), aot.abstract_batch(case.config)
    mesh = make_mesh(jax.devices()[:8], model=model)
    compiled = make_train_step(experiment, mesh).lower(state, batch).compile()
    line = aot.analyse(compiled, 2, CHIPS["v5e"])

    classifiers = {
        name: tree for name, tree in state.params.items() if name.endswith("_classifier")
    }
    assert len(classifiers) == 3
    # The momentum has the parameters' shapes.
    whole = _bytes(state) - 2 * _bytes(classifiers)
    own = whole + 2 * _bytes(classifiers) / model + _bytes(batch) / 8
    assert line["memory_gib"]["arguments"] == pytest.approx(own / 2**30, abs=1e-3)
    assert compiled.memory_analysis().argument_size_in_bytes == pytest.approx(own, rel=1e-3)
    # The step reuses its state's memory.
    assert line["memory_gib"]["aliased"] == pytest.approx(own / 2**30, abs=1e-3)
    assert line["memory_gib"]["peak"] >= line["memory_gib"]["arguments"]

    # XLA also counts elementwise operations, which are few compared with the products.
    flops = compiled.cost_analysis()["flops"]
    assert 0.8 * flops < 1e12 * line["tflop"] < flops
    assert line["loops_of_unknown_length"] == 0

    # Gradients are summed over all devices, the classifiers' over the data axis.
    gradients = _bytes(state.params) - _bytes(classifiers) * (1 - 1 / model)
    reduced = 1e6 * line["collectives"]["all-reduce"]["mb"]
    assert gradients < reduced < 1.2 * gradients


def test_the_batch_has_the_input_pipelines_shapes(tiny_config):
    config = tiny_config()
    batch = next(training_data(config).batches(0))
    found = {name: (array.shape, array.dtype) for name, array in batch.items() if name != "indices"}
    expected = aot.abstract_batch(config)
    assert found == {name: (each.shape, each.dtype) for name, each in expected.items()}


@pytest.mark.usefixtures("known_version")
def test_the_description_of_a_case():
    case = _tiny_case(16, **{"loss.logit_kd": 2.0})
    assert (case.config.data.batch_size, case.config.data.images_per_identity) == (16, 4)
    line = aot.described(case)
    assert (line["batch"], line["identities"], line["topology"]) == (16, IDENTITIES, "v5e:2x2")
    assert line["options"]["model.backbone"] == "resnet8"
    assert line["options"]["loss.logit_kd"] == 2.0
    assert "optim.momentum" not in line["options"]
    assert _tiny_case(0).config.data.batch_size == 16  # the configuration's own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 30}, r"--batch=30: must be a multiple .*images_per_identity, 4"),
        ({"identities": 0}, r"--identities=0: must be above 0"),
        (
            {"model.backbone": "resnet9"},
            r"config\.model\.backbone = 'resnet9': is not one of resnet8",
        ),
    ],
)
def test_impossible_cases_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        aot.make_case("x", "v5e:2x2", default.get_config(), **({"identities": 9} | arguments))


@pytest.mark.parametrize(
    "topology",
    ["v5e", "v5e:4", "v6e:2x2", "v5e:2x2x2", "4x4", "h100", "h100:0", "h100:8x8", "h200:8"],
)
def test_malformed_topologies_are_refused(topology):
    with pytest.raises(UserError, match=f"--topology={topology}: must look like v5e:4x4 or h100"):
        aot.topology_devices(topology)


def test_machines_that_are_not_full_are_refused():
    with pytest.raises(UserError, match="--topology=h100:12: must fill its machines of 8 chips"):
        aot.topology_devices("h100:12")


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"libtpu is not installed: pip install -e '\.\[tpu\]'"):
        aot.topology_devices("v5e:2x2")
    with pytest.raises(UserError, match=r"jax_cuda13_plugin is not installed: .*PYTHONPATH"):
        aot.topology_devices("h100:1")


def test_the_cases_of_the_table():
    cases = aot.table_cases(default.get_config(), 751)
    chips, gpus = [1, 4, 16, 64, 256], [1, 8, 64]
    counts = chips * 3 + gpus * 2
    assert [int(case.topology.removeprefix("h100:")) for case in cases[15:]] == gpus * 2
    sizes = [
        case.config.data.batch_size // count for case, count in zip(cases, counts, strict=True)
    ]
    assert sizes == [64] * 15 + [256] * 6
    posed = [case.config.model.pose_branches for case in cases]
    assert posed == [False] * 5 + [True] * 10 + [False] * 3 + [True] * 3
    assert [case.config.mesh.model for case in cases] == [1] * 10 + [1, 4, 8, 8, 8] + [1] * 6
    assert [case.identities for case in cases] == [751] * 10 + [200_000] * 5 + [751] * 6
    for case, count in zip(cases, counts, strict=True):
        case.config.check_devices(count)


EXHAUSTED = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(17.91G) exceeds available HBM (15.75G)."
)
FITS = {
    "fits": True,
    "memory_gib": {"arguments": 0.341, "temporaries": 4.0, "peak": 4.567},
    "tflop": 1.477,
    "hbm_gb": 20.58,
    "collectives": {"all-reduce": {"count": 38, "mb": 123.4}},
    "roofline_ms": {"compute": 7.497, "memory": 25.13, "interconnect": 1.0},
    "limited_by": "memory",
    "images_per_second_at_most": 2547,
    "compile_seconds": 400.4,
}


def _fake_measured(case):
    if case.config.mesh.model == 4:
        found = {"fits": False, "compiler": aot.shortage(EXHAUSTED), "compile_seconds": 7.0}
    else:
        found = FITS
    chips = (aot.TPU_TOPOLOGIES | aot.GPU_TOPOLOGIES)[case.topology]
    model = case.config.mesh.model
    mesh = {"data": chips // model, "model": model}
    return aot.described(case) | {"chips": chips, "mesh": mesh} | found


@pytest.mark.usefixtures("known_version")
def test_the_table_is_written_and_resumed(tmp_path, monkeypatch, capsys):
    cases = aot.table_cases(default.get_config(), 751)
    store, page = tmp_path / "new" / "aot.json", tmp_path / "page.md"
    page.write_text(f"# Scaling\n\n{aot.BEGIN}\nold\n{aot.END}\n\nend\n", encoding="utf-8")
    calls = []

    def measured(case, stop_at=8):
        calls.append(case)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return _fake_measured(case)

    monkeypatch.setattr(aot, "measured", measured)
    with pytest.raises(KeyboardInterrupt):
        aot.write_table(cases, store, page, keep=False)
    assert len(json.loads(store.read_text())) == 7
    assert "old" in page.read_text(encoding="utf-8")

    calls.clear()
    monkeypatch.setattr(aot, "measured", lambda case: measured(case, stop_at=0))
    aot.write_table(cases, store, page, keep=True)
    assert calls == cases[7:]
    lines = json.loads(store.read_text())
    assert [line["batch"] for line in lines] == [case.config.data.batch_size for case in cases]

    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# Scaling\n\n{aot.BEGIN}\n**Main branch only**\n\n| chips | mesh |")
    assert text.endswith(f"|\n{aot.END}\n\nend\n") and "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 3 * (2 + 5) + 2 * (2 + 3)
    assert len({row.count("|") for row in rows}) == 1
    assert "memory, of 16 GiB" in rows[14] and "memory, of 79 GiB" in rows[21]
    assert rows[6] == (
        "| 256 | 256 × 1 | 16384 | 4.57 (arguments 0.34, temporaries 4.00) | 1.48 | 20.6 "
        "| 123.4 (38) | 7.5 / 25.1 / 1 | memory | 2547 | 400 s |"
    )
    assert rows[17].startswith(
        "| 4 | 1 × 4 | 256 | does not fit: Ran out of memory on HBM, the total memory required for "
        "HLO temporaries (17.91G) exceeds available HBM (15.75G). |"
    )

    # Without --keep, or with other options, everything is measured again.
    calls.clear()
    aot.write_table(cases[:2], store, page, keep=False)
    values = default.get_config()
    values.optim.name = "sgd"
    aot.write_table(aot.table_cases(values, 751)[:2], store, page, keep=True)
    assert len(calls) == 4
    capsys.readouterr()


@pytest.mark.parametrize(
    "text",
    [None, "no markers", aot.BEGIN, f"{aot.END}{aot.BEGIN}", f"{aot.BEGIN}{aot.BEGIN}{aot.END}"],
)
def test_a_page_without_markers_fails_before_measuring(tmp_path, text):
    page = tmp_path / "page.md"
    if text is not None:
        page.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"page\.md: must have"):
        aot.write_table([], tmp_path / "aot.json", page, keep=False)


@pytest.mark.parametrize(("topology", "table"), [(None, False), ("v5e:2x2", True)])
def test_the_command_needs_a_topology_or_the_table(monkeypatch, topology, table):
    monkeypatch.setattr(aot, "FLAGS", SimpleNamespace(topology=topology, table=table))
    message = r"^give either --topology or --table, and no other arguments \(\[\]\)$"
    with pytest.raises(UserError, match=message):
        aot.main(["aot"])


def test_devices_that_cannot_share_the_batch_are_refused(monkeypatch):
    monkeypatch.setattr(aot, "topology_devices", lambda topology: list(range(16)))
    with pytest.raises(UserError, match="which 16 devices cannot share evenly; take a mul"):
        aot.measure(_tiny_case(24))


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is not installed: pip install -e '.[tpu]'",
)


# tests/conftest.py turns most of XLA's passes off; the tables are made with them.
OPTIMIZED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}


@pytest.fixture(scope="module")
def compiler():
    """A process with the TPU compiler, to which cases are given as `aot.measured` does."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, **OPTIMIZED}.items():
            patch.setenv(name, value)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            yield lambda case: pool.submit(aot.measure, case).result(timeout=900)


@needs_libtpu
def test_a_step_for_four_chips():
    """By the command, from its options to the printed line."""
    options = (
        "--config=configs/synthetic_tiny.py", "--topology=v5e:2x2", "--batch=16",
        "--identities=512", "--config.mesh.model=2", "--config.optim.name=sgd",
    )  # fmt: skip
    process = launch("-m", "benchmarks.aot", *options, env=OPTIMIZED)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    (line,) = map(json.loads, out.splitlines())
    assert (line["chips"], line["mesh"], line["batch"]) == (4, {"data": 2, "model": 2}, 16)
    assert line["options"]["optim.name"] == "sgd"
    case = _tiny_case(16, **{"mesh.model": 2, "optim.name": "sgd"})
    state = Experiment.create(case.config, num_identities=512, num_images=160).abstract_state()
    classifiers = sum(
        _bytes(tree) for name, tree in state.params.items() if name.endswith("_classifier")
    )
    # More than the elements, since layouts are padded, especially images with 3 channels.
    own = (
        _bytes(state) - 2 * classifiers / 2 + _bytes(aot.abstract_batch(case.config)) / 4
    ) / 2**30
    assert own - 0.001 < line["memory_gib"]["arguments"] < 2 * own
    assert line["memory_gib"]["arguments"] <= line["memory_gib"]["peak"] < 1
    gradients = (_bytes(state.params) - classifiers / 2) / 1e6
    assert gradients < line["collectives"]["all-reduce"]["mb"] < 1.3 * gradients
    # Each chip computes a quarter of what one CPU device computes for the same batch.
    experiment = Experiment.create(case.config, num_identities=512, num_images=160)
    step = make_train_step(experiment, make_mesh(jax.devices()[:1]))
    compiled = step.lower(state, aot.abstract_batch(case.config)).compile()
    one = aot.analyse(compiled, 16, CHIPS["v5e"])["tflop"]
    assert line["tflop"] == pytest.approx(one / 4, rel=0.1)
    assert line["loops_of_unknown_length"] == 0
    assert line["images_per_second_at_most"] > 1000


@needs_libtpu
def test_a_step_that_does_not_fit_is_a_measurement(compiler):
    case = _tiny_case(16, **{"model.pose_branches": False})
    line = compiler(dataclasses.replace(case, topology="v5e:1x1", identities=300_000_000))
    assert line["fits"] is False
    assert "15.75G" in line["compiler"]


@needs_libtpu
def test_a_topology_that_the_compiler_does_not_know_gives_a_one_line_error(compiler):
    with pytest.raises(UserError, match=r"^--topology=v5e:3x3: [^\n]+$"):
        compiler(dataclasses.replace(_tiny_case(16), topology="v5e:3x3"))
