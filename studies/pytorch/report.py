"""The figures of a comparison, their verdicts, and the report as tables, JSON and a plot."""

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Title and x-axis unit of each panel of the plot.
PANELS = {
    "steps": ("Small network: after each step, float64", "step"),
    "layers": ("ResNet-50: outputs of BatchNorms and blocks, from input to output", "layer"),
    "gradients": ("ResNet-50: gradients, from input to output", "parameter"),
    "steps of ResNet-50": ("ResNet-50, rate 3.5e-6: after each step, float64", "step"),
    "rounding": ("ResNet-50, rate 3.5e-4: parameters, distance from PyTorch, float64", "step"),
}


class Figure(NamedTuple):
    """One line of the table.

    Attributes:
        section: what was run.
        case: the case within the section; empty if there is only one.
        name: what was compared.
        value: the largest difference.
        bound: the largest difference allowed.
        where: the tensor, term or step with the largest difference.
    """

    section: str
    case: str
    name: str
    value: float
    bound: float
    where: str = ""

    @property
    def ok(self) -> bool:
        """Whether the value is within its bound. NaN never is, nor is any value if it is infinite.

        >>> [Figure("section", "", "name", 1e-9, bound).ok for bound in (1e-8, math.inf)]
        [True, False]
        """
        return self.value <= self.bound < math.inf


@dataclasses.dataclass
class Parity:
    """The figures so far, the plot's curves by panel and name, and the names of the layers."""

    figures: list[Figure] = dataclasses.field(default_factory=list)
    curves: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=dict)
    labels: list[str] = dataclasses.field(default_factory=list)

    def worst(
        self, section: str, name: str, found: dict[str, float], bound: float, case: str = ""
    ) -> None:
        """Add a figure: the largest of several differences."""
        where, value = largest(found)
        self.figures.append(Figure(section, case, name, value, bound, where))

    def curve(self, panel: str, name: str, values: list[float]) -> None:
        """Add a curve to one of :data:`PANELS`."""
        self.curves.setdefault(panel, {})[name] = values


def largest(found: Mapping[str, float]) -> tuple[str, float]:
    """The key and value of the largest difference; NaN counts as the largest.

    >>> largest({"a": 1.0, "b": float("nan")})
    ('b', nan)
    """
    return max(found.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])


def write_report(parity: Parity, out: Path, seconds: float) -> int:
    """Write the files and print a summary; returns 1 if a bound is exceeded, else 0."""
    names = ("torch", "jax", "flax", "optax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    table = markdown(parity.figures)
    failed = [figure for figure in parity.figures if not figure.ok]
    verdict = f"{len(parity.figures)} figures, {len(failed)} above their bound"
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    summary = f"{verdict}; {seconds:.0f} s on {os.cpu_count()} CPU cores, {listed}."
    (out / "parity.md").write_text(f"{table}\n{summary}\n", encoding="utf-8")
    content = {
        "versions": versions | {"python": platform.python_version()},
        "machine": {"system": platform.platform(), "cpu_cores": os.cpu_count()},
        "seconds": round(seconds, 1),
        "figures": [figure._asdict() | {"ok": figure.ok} for figure in parity.figures],
        "layers": parity.labels,
        "curves": parity.curves,
    }
    (out / "parity.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (out / "parity.png").unlink(missing_ok=True)
    if parity.curves:
        plot(parity, out / "parity.png")
    print(f"\n{summary}", flush=True)
    return int(bool(failed))


def markdown(figures: list[Figure]) -> str:
    """One table per section. A section with several cases has one row per case."""
    lines: list[str] = []
    for section in dict.fromkeys(figure.section for figure in figures):
        group = [figure for figure in figures if figure.section == section]
        lines += ["", f"**{section}**", ""]
        if not group[0].case:
            lines += ["| compared | largest difference | bound | | at |", "|---|---:|---:|---|---|"]
            lines += [
                f"| {x.name} | {_short(x.value)} | {_short(x.bound)} | {_verdict(x)} | {x.where} |"
                for x in group
            ]
            continue
        bounds = {figure.name: figure.bound for figure in group}
        heads = [f"{name}, at most {_short(bound)}" for name, bound in bounds.items()]
        lines += [f"| | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
        for case in dict.fromkeys(figure.case for figure in group):
            row = [figure for figure in group if figure.case == case]
            cells = [
                f"{_short(x.value)} {_verdict(x)}{'' if x.ok else f' at {x.where}'}" for x in row
            ]
            lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _verdict(figure: Figure) -> str:
    return "ok" if figure.ok else "FAILED"


def plot(parity: Parity, path: Path) -> None:
    """Plot differences by layer, by parameter and by step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(parity.curves), figsize=(9, 3.2 * len(parity.curves)))
    for axis, (panel, curves) in zip(np.atleast_1d(axes), parity.curves.items(), strict=True):
        for name, values in curves.items():
            title, unit = PANELS[panel]
            first = 1 if unit == "step" else 0
            # A logarithmic axis cannot show 0.
            positive = np.where(np.asarray(values) > 0, values, np.nan)
            axis.semilogy(np.arange(len(values)) + first, positive, ".-", label=name, linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_ylabel("relative difference")
        axis.set_xlabel(unit)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
