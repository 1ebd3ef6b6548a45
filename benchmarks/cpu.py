"""The table of docs/performance.md for CPUs: training and embedding against their best opponents.

    python -m benchmarks.cpu

Runs :mod:`benchmarks.train_step` for the network of the demo and for ResNet-50, prints the table
and writes it into the page. It takes nine minutes on two cores, which should be idle.
"""

import json
import os
import platform
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from input_pipeline.cores import available_cores
from pgfl_jax.command_line import guarded
from pgfl_jax.errors import UserError
from pgfl_jax.report.manifest import source_commit

PAGE = Path("docs/performance.md")
BEGIN, END = "<!-- made by make bench -->\n", "<!-- end -->\n"
DEMO = "--config=configs/synthetic_demo.py", "--identities=128", "--seconds=5"
LARGE = "--batch=16", "--seconds=6"
TASKS = {
    "training, ResNet-8, 128×64": ("jax torch", *DEMO),
    "embedding, ResNet-8, 128×64": ("jax torch onnxruntime", "--task=embed", *DEMO),
    "training, ResNet-50, 256×128": ("jax torch", *LARGE),
    "embedding, ResNet-50, 256×128": ("jax torch onnxruntime", "--task=embed", *LARGE),
}
HEAD = """\
| | side | images/s | ms (least to most) | speed of `pgfl_jax` to it | of the floor |
|---|---|---:|---:|---:|---:|
"""


def run(sides: str, *options: str) -> list[dict[str, Any]]:
    """The lines of the benchmark.

    Raises:
        UserError: it ended with an error, which it has shown.
    """
    given = [f"--side={side}" for side in sides.split()]
    command = [sys.executable, "-m", "benchmarks.train_step", "--rounds=5", *options, *given]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)}: ended with status {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def rows(task: str, lines: Iterable[Mapping[str, Any]]) -> str:
    """The rows of a task: ours, then the others."""
    ours, *others = lines
    found = [_row(f"{task}, {ours['batch']} images", ours, "1")]
    for line in others:
        speed = ours[f"speed_to_{line['side']}"]
        found.append(_row("", line, f"**{speed:.2f}**"))
    return "".join(found)


def _row(label: str, line: Mapping[str, Any], speed: str) -> str:
    milliseconds = line["step_ms"]
    part = ""
    if least := line.get("floor"):
        part = f"{least['product_ms'] / milliseconds['median']:.0%}"
    span = f"{milliseconds['min']:,.1f}–{milliseconds['max']:,.1f}"
    return (
        f"| {label} | {line['side']} | {line['images_per_second']:,.1f} | "
        f"{milliseconds['median']:,.1f} ({span}) | {speed} | {part} |\n"
    )


def machine() -> str:
    """What is said below the table."""
    names = "jax", "flax", "torch", "onnxruntime"
    huge = "with" if "hugetlb=1" in os.environ.get("GLIBC_TUNABLES", "") else "without"
    facts = (
        f"{available_cores()} cores of {_processor()}",
        f"Python {platform.python_version()}",
        *(f"{name} {metadata.version(name)}" for name in names),
        f"{huge} huge pages",
        f"commit {(source_commit() or 'unknown')[:7]}.",
    )
    return textwrap.fill(", ".join(facts), 100) + "\n"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def insert(page: str, made: str) -> str:
    """The page with another text between its marks.

    Raises:
        UserError: a mark is missing.
    """
    if BEGIN not in page or END not in page:
        raise UserError(f"{PAGE}: lacks the line {BEGIN.strip()} or {END.strip()}")
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + made + END + rest.partition(END)[2]


def main(tasks: Mapping[str, Sequence[str]] = TASKS) -> int:
    """Measure, print and write."""
    table = HEAD
    for task, (sides, *options) in tasks.items():
        added = rows(task, run(sides, *options))
        print(added, end="", flush=True)
        table += added
    made = f"{table}\n{machine()}"
    PAGE.write_text(insert(PAGE.read_text(), made))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
