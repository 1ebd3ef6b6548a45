"""Pods without a pod: memory, compute and communication per chip of the real training step.

    python -m benchmarks.aot --topology=v5e:16x16 --batch=16384
    PYTHONPATH=.cache/cuda python -m benchmarks.aot --topology=h100:8 --batch=2048

Compiles a configuration's step for TPUs or NVIDIA H100s on a machine without them: the compilers,
libtpu (``pip install -e '.[tpu]'``) and JAX's CUDA plugin, run on the CPU. Options are those of
main.py: ``--config=configs/X.py --config.mesh.model=8``. Prints one JSON line per measurement; a
step that does not fit into memory is a measurement too. ``--table`` measures 1 to 256 TPU chips
with 64 images each and 1 to 64 GPUs with 256 images each, and rewrites the tables of
docs/scaling.md.

The TPU compiler is asked for less optimisation. A step then compiles in a minute or two instead of
seven and more. docs/scaling.md says what that changes.

All figures are for one chip and one step:

- memory: how the compiler assigns main memory. Arguments (state and batch), outputs, outputs that
  reuse donated arguments (aliased), temporaries, the program, and the peak. The TPU compiler
  reserves 0.25 GiB.
- tflop: convolutions and matrix products as compiled, with every iteration of a loop.
- hbm_gb: an estimate of main-memory traffic: the whole operands and results of every operation,
  except those that the compiler keeps in vector memory.
- collectives: how many, and the megabytes of their results on the chip.
- roofline_ms: the time that each of these takes at the published peak rates, which are in
  benchmarks/chips.py. The longest limits the images per second. This is a bound, not a forecast: no
  unit reaches its peak, and units that wait for one another add up.
"""

import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from benchmarks.chips import (
    CHIPS,
    ENVIRONMENT,
    Chip,
    chip_of,
    interconnect_seconds,
    topology_devices,
)
from benchmarks.hlo import Program
from configs import default
from pgfl_jax.command_flags import define_config, define_path
from pgfl_jax.command_line import run as run_command_line
from pgfl_jax.config import NUM_PARTS, Config, parse_config
from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.errors import UserError
from pgfl_jax.experiment import Experiment
from pgfl_jax.report.writers import replace_text
from pgfl_jax.train_step import make_train_step

FLAGS = flags.FLAGS
STEPS_PER_EPOCH = 100  # a constant in the schedule; the figures do not depend on it

TPU_TOPOLOGIES = {"v5e:1x1": 1, "v5e:2x2": 4, "v5e:4x4": 16, "v5e:8x8": 64, "v5e:16x16": 256}
GPU_TOPOLOGIES = {"h100:1": 1, "h100:8": 8, "h100:64": 64}
IMAGES_PER_TPU, IMAGES_PER_GPU = 64, 256
MANY_IDENTITIES = 200_000
MANY_MODEL = 8  # at most this many chips share a classifier
BEGIN, END = "<!-- aot -->", "<!-- /aot -->"


@dataclasses.dataclass(frozen=True)
class Case:
    """A step to compile.

    Attributes:
        name: the name in the JSON line and the table.
        topology: the chips, such as ``v5e:16x16`` or ``h100:8``.
        config: the configuration; its batch is shared by all chips.
        identities: number of classes.
    """

    name: str
    topology: str
    config: Config
    identities: int


def measure(case: Case) -> dict[str, Any]:
    """Compile the step of a case and measure it; call it in a separate process.

    Returns:
        The line to print. If memory does not suffice, ``fits`` is False and ``compiler`` holds the
        compiler's message.
    """
    chip, devices = chip_of(case.topology), topology_devices(case.topology)
    case.config.check_devices(len(devices))
    experiment = Experiment.create(
        case.config,
        num_identities=case.identities,
        num_images=STEPS_PER_EPOCH * case.config.data.batch_size,
    )
    mesh = make_mesh(devices, model=case.config.mesh.model)
    line = described(case) | {"chips": len(devices), "mesh": dict(mesh.shape)}
    started = time.perf_counter()
    train_step: Any = make_train_step(experiment, mesh)
    lowered = train_step.lower(experiment.abstract_state(), abstract_batch(case.config))
    line["lower_seconds"] = round(time.perf_counter() - started, 1)
    _say(f"{case.name} on {case.topology}: compiling, which takes minutes")
    started = time.perf_counter()
    compiled = None
    try:
        compiled = lowered.compile(chip.options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line |= {"fits": False, "compiler": shortage(str(error))}
    line["compile_seconds"] = round(time.perf_counter() - started, 1)
    if compiled is not None:
        line |= {
            "fits": True,
            **analyse(compiled, case.config.data.batch_size / len(devices), chip),
        }
    return line


def abstract_batch(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and types of a global batch from the input pipeline."""
    data, parts = config.data, config.train.accumulation
    rows = (data.batch_size,) if parts == 1 else (parts, data.batch_size // parts)

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*rows, *shape), dtype)

    return {
        "images": array(data.height, data.width, 3, dtype=jnp.uint8),
        "erased": array(4, dtype=jnp.int32),
        "labels": array(dtype=jnp.int32),
        "part_maps": array(*config.map_shape, NUM_PARTS),
        "visibility": array(NUM_PARTS),
    }


def analyse(compiled: jax.stages.Compiled, images: float, chip: Chip) -> dict[str, Any]:
    """The memory, compute and communication of one chip in a compiled step.

    Args:
        compiled: the step.
        images: images per chip.
        chip: what runs it.
    """
    memory: Any = compiled.memory_analysis()
    program = Program(compiled.as_text() or "")
    gib = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
    }
    collectives: dict[str, dict[str, float]] = {}
    sent = 0.0
    for each in program.collectives:
        kind = collectives.setdefault(each.kind, {"count": 0, "mb": 0.0})
        kind["count"] += each.times
        kind["mb"] += each.times * each.bytes / 1e6
        sent += each.times * each.sent_bytes / 1e9
    tflop, hbm_gb = program.matrix_flops / 1e12, program.memory_bytes / 1e9
    return {
        "memory_gib": {name: round(size / 2**30, 3) for name, size in gib.items()},
        "tflop": _digits(tflop),
        "hbm_gb": _digits(hbm_gb),
        "sent_gb": _digits(sent),
        "collectives": {
            kind: {"count": total["count"], "mb": _digits(total["mb"])}
            for kind, total in sorted(collectives.items())
        },
        "loops_of_unknown_length": program.unknown_loops,
        **roofline(
            chip, tflop, hbm_gb, interconnect_seconds(chip, program.collectives), images=images
        ),
    }


def roofline(
    chip: Chip, tflop: float, hbm_gb: float, interconnect: float, *, images: float
) -> dict[str, Any]:
    """The least time of compute, memory and interconnect, and which of them is the limit.

    Args:
        chip: what runs the step.
        tflop: of products.
        hbm_gb: that move between chip and main memory.
        interconnect: seconds, from :func:`benchmarks.chips.interconnect_seconds`.
        images: images per chip.

    >>> found = roofline(CHIPS["v5e"], tflop=1.97, hbm_gb=4.095, interconnect=0.002, images=64)
    >>> found["roofline_ms"]
    {'compute': 10.0, 'memory': 5.0, 'interconnect': 2.0}
    >>> found["limited_by"], found["images_per_second_at_most"]
    ('compute', 6400)
    """
    seconds = {
        "compute": tflop / chip.tflop_per_second,
        "memory": hbm_gb / chip.hbm_gb_per_second,
        "interconnect": interconnect,
    }
    limit = max(seconds, key=lambda name: seconds[name])
    return {
        "roofline_ms": {name: _digits(1e3 * time_) for name, time_ in seconds.items()},
        "limited_by": limit,
        "images_per_second_at_most": round(images / seconds[limit]),
    }


def shortage(error: str) -> str:
    """The sentence of the compiler's error that gives the memory needed and available."""
    sentence = _first_line(error)
    return re.sub(r"^.*?RESOURCE_EXHAUSTED: ", "", sentence)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0]


def _digits(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")


def described(case: Case) -> dict[str, Any]:
    """The part of a JSON line that identifies a case."""
    standard = parse_config(default.get_config()).flat_options()
    options = {
        name: value
        for name, value in case.config.flat_options().items()
        if value != standard[name] and name != "data.identities_per_batch"
    }
    compiler = CHIPS[case.topology.partition(":")[0]].distribution
    line = {
        "name": case.name,
        "topology": case.topology,
        "batch": case.config.data.batch_size,
        "identities": case.identities,
        "options": options,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", compiler)},
    }
    return json.loads(json.dumps(line))  # tuples become lists, as in the file


def measured(case: Case) -> dict[str, Any]:
    """:func:`measure` in a fresh process, which Ctrl-C ends at once.

    Raises:
        UserError: the process was killed.
    """
    context = multiprocessing.get_context("spawn")
    handler = (signal.SIGINT, signal.SIG_DFL)
    try:
        with ProcessPoolExecutor(1, context, initializer=signal.signal, initargs=handler) as pool:
            return pool.submit(measure, case).result()
    except BrokenProcessPool as error:
        raise UserError(
            f"{case.name} on {case.topology}: the compiler's process was killed; this machine "
            "probably has too little memory"
        ) from error


def make_case(
    name: str, topology: str, values: ConfigDict, *, identities: int, batch: int = 0, **changes: Any
) -> Case:
    """A case with the configuration ``values``.

    Args:
        name: of the case.
        topology: of the case.
        values: the configuration.
        identities: number of classes.
        batch: images per step, over all chips; 0 keeps the configuration's batch.
        **changes: other options by dotted name.

    Raises:
        UserError: the batch or the number of identities is impossible.
    """
    values = values.copy_and_resolve_references()
    values.update_from_flattened_dict(changes)
    images = values.data.images_per_identity
    if batch % images or batch < 0:
        raise UserError(
            f"--batch={batch}: must be a multiple of config.data.images_per_identity, {images}"
        )
    if batch:
        values.data.identities_per_batch = batch // images
    if identities < 1:
        raise UserError(f"--identities={identities}: must be above 0")
    return Case(name, topology, parse_config(values), identities)


def table_cases(values: ConfigDict, identities: int) -> list[Case]:
    """The cases of the tables: three networks on 1 to 256 TPU chips, two on 1 to 64 GPUs.

    Their main branch pools by a plain mean.
    """
    three: dict[str, Any] = {"identities": identities, "model.pooling": "gap"}
    main = three | {"model.pose_branches": False}
    many = three | {"identities": MANY_IDENTITIES}
    on_tpus = {
        "Main branch only": main,
        "Three branches": three,
        f"Three branches, {MANY_IDENTITIES:,} identities": many,
    }
    cases = [
        make_case(
            name,
            topology,
            values,
            batch=IMAGES_PER_TPU * chips,
            **changes | ({"mesh.model": min(chips, MANY_MODEL)} if changes is many else {}),
        )
        for name, changes in on_tpus.items()
        for topology, chips in TPU_TOPOLOGIES.items()
    ]
    on_gpus = {"Main branch only, on H100s": main, "Three branches, on H100s": three}
    return cases + [
        make_case(name, topology, values, batch=IMAGES_PER_GPU * chips, **changes)
        for name, changes in on_gpus.items()
        for topology, chips in GPU_TOPOLOGIES.items()
    ]


def tables(lines: list[dict]) -> str:
    """The measurements as Markdown, one table per name."""
    parts = []
    for name in dict.fromkeys(line["name"] for line in lines):
        own = [line for line in lines if line["name"] == name]
        kinds = sorted({kind for line in own for kind in line.get("collectives", {})})
        memory = CHIPS[own[0]["topology"].partition(":")[0]].memory_gib
        head = [
            "chips", "mesh", "batch", f"memory, of {memory} GiB", "TFLOP", "HBM, GB",
            *(f"{kind}, MB (calls)" for kind in kinds), "compute / memory / interconnect, ms",
            "limited by", "images/s per chip, at most", "compiled in",
        ]  # fmt: skip
        rows = [_row(line, kinds) for line in own]
        parts += [f"**{name}**", "", _cells(head), _cells(["---:"] * len(head))]
        parts += [*map(_cells, rows), ""]
    return "\n".join(parts)


def _row(line: dict, kinds: list[str]) -> list[str]:
    mesh = " × ".join(map(str, line["mesh"].values()))
    start = [str(line["chips"]), mesh, str(line["batch"])]
    end = f"{line['compile_seconds']:.0f} s"
    if not line["fits"]:
        return [*start, f"does not fit: {line['compiler']}", *[""] * (len(kinds) + 5), end]
    memory, shares = line["memory_gib"], line["roofline_ms"]
    exchanged = [line["collectives"].get(kind) for kind in kinds]
    return [
        *start,
        f"{memory['peak']:.2f} (arguments {memory['arguments']:.2f}, temporaries "
        f"{memory['temporaries']:.2f})",
        f"{line['tflop']:.3g}",
        f"{line['hbm_gb']:.3g}",
        *(f"{each['mb']:.4g} ({each['count']})" if each else "–" for each in exchanged),
        " / ".join(f"{time_:.3g}" for time_ in shares.values()),
        line["limited_by"],
        str(line["images_per_second_at_most"]),
        end,
    ]


def _cells(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def rewritten(page: Path, block: str) -> str:
    """The page's text with ``block`` between its markers.

    Raises:
        UserError: the page does not exist, or does not have each marker once and in order.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in after:
        raise UserError(f"{page}: must have one line {BEGIN} and, below it, one line {END}")
    return f"{before}{BEGIN}\n{block}{END}{after}"


def write_table(cases: list[Case], store: Path, page: Path, *, keep: bool) -> None:
    """Measure the cases one by one; write the measurements and the page's tables.

    Args:
        cases: what to measure.
        store: JSON file of all measurements, written after each so that none is lost.
        page: the page with the markers :data:`BEGIN` and :data:`END`.
        keep: reuse measurements of the same cases in ``store``.
    """
    rewritten(page, "")  # an unsuitable page must fail now, not hours later
    found = json.loads(store.read_text(encoding="utf-8")) if keep and store.is_file() else []
    lines: list[dict | None] = [_find(case, found) for case in cases]
    for place, case in enumerate(tqdm(cases, desc="steps", unit="step")):
        if lines[place] is None:
            lines[place] = measured(case)
            _write_store(store, list(filter(None, lines)))
        print(json.dumps(lines[place]), flush=True)
    replace_text(page, rewritten(page, tables(list(filter(None, lines)))))


def _find(case: Case, lines: list[dict]) -> dict | None:
    wanted = described(case)
    return next((line for line in lines if all(line.get(k) == v for k, v in wanted.items())), None)


def _write_store(store: Path, lines: list[dict]) -> None:
    store.parent.mkdir(parents=True, exist_ok=True)
    replace_text(store, "[\n" + ",\n".join(map(json.dumps, lines)) + "\n]\n")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def define_flags() -> None:
    """Define the command-line flags."""
    define_config("configs/large_batch.py")
    flags.DEFINE_string("topology", None, "The chips, such as v5e:16x16 or h100:8.")
    flags.DEFINE_integer("batch", 0, "Images per step, over all chips; 0: as in the config.")
    flags.DEFINE_integer("identities", 751, "Number of classes; Market-1501 has 751.")
    flags.DEFINE_boolean("table", False, "Measure and rewrite all tables.")
    define_path("store", "docs/scaling/aot.json", "With --table: the measurements.")
    define_path("page", "docs/scaling.md", "With --table: the page with the tables.")
    flags.DEFINE_boolean(
        "keep",
        False,
        "With --table: continue after an interruption with the measurements in --store. Does not "
        "detect changes of the code.",
    )


def main(argv: list[str]) -> None:
    """Check the flags, measure, print."""
    if argv[1:] or bool(FLAGS.topology) == FLAGS.table:
        raise UserError(f"give either --topology or --table, and no other arguments ({argv[1:]})")
    os.environ.update(ENVIRONMENT)
    values = FLAGS.config
    if FLAGS.table:
        cases = table_cases(values, FLAGS.identities)
        for case in cases:  # a compiler that is missing must be named now, not hours later
            chip_of(case.topology)
        write_table(cases, Path(FLAGS.store), Path(FLAGS.page), keep=FLAGS.keep)
    else:
        case = make_case(
            "Training step",
            FLAGS.topology,
            values,
            identities=FLAGS.identities,
            batch=FLAGS.batch,
        )
        print(json.dumps(measured(case)), flush=True)


if __name__ == "__main__":
    define_flags()
    run_command_line(main, required=[])
