"""The declared dependencies are those of the code, and the pinned ones satisfy them."""

import ast
import configparser
import importlib
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pgfl_jax

ROOT = Path(__file__).parents[1]
OURS = {"pgfl_jax", "input_pipeline", "configs", "studies", "benchmarks", "tests"}
PROVIDES = metadata.packages_distributions()


def _setup():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup


def _requirements(lines):
    return [Requirement(line) for line in lines.splitlines() if line]


def _applicable(lines):
    required = _requirements(lines)
    return {canonicalize_name(r.name) for r in required if not r.marker or r.marker.evaluate()}


def _required(*extras):
    setup = _setup()
    lines = [setup["options"]["install_requires"]]
    lines += [setup["options.extras_require"][extra] for extra in extras]
    return set().union(*map(_applicable, lines))


def _imports(*paths, everywhere):
    """Distributions that files import: when they are imported, or anywhere in their functions."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    nodes = [node for tree in trees for node in (ast.walk(tree) if everywhere else tree.body)]
    modules = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    modules += [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module]
    tops = {module.split(".")[0] for module in modules} - OURS - sys.stdlib_module_names
    return {canonicalize_name(PROVIDES.get(top, [top])[0]) for top in tops}


def test_the_wheel_requires_what_it_imports_and_nothing_else():
    exporters = ROOT / "pgfl_jax" / "export"
    others = [path for path in (ROOT / "pgfl_jax").iterdir() if path != exporters]
    assert _imports(*others, everywhere=False) == _required()
    assert _imports(exporters, everywhere=False) <= _required("export")


def test_what_is_imported_late_is_in_an_extra():
    late = _imports(ROOT / "pgfl_jax", everywhere=True) - _required()
    extras = "train", "report", "parity", "export", "openvino", "search"
    assert late <= _required(*extras), late


def test_a_clone_runs_with_the_train_extra():
    sources = [ROOT / name for name in ("main.py", "configs", "input_pipeline", "pgfl_jax")]
    missing = _imports(*sources, everywhere=False) - _required("train")
    # For preparing on a cluster, running a pose model, and exporting.
    assert missing <= _required("beam", "poses", "export"), missing


def test_the_tested_versions_satisfy_every_lower_bound():
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    setup = _setup()
    extras = setup["options.extras_require"].values()
    every = _requirements("\n".join([setup["options"]["install_requires"], *extras]))
    for requirement in every:
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        assert name in versions, f"{name} is not pinned"
        assert requirement.specifier.contains(versions[name]), requirement


def test_only_the_package_is_installed():
    setup = _setup()
    assert setup["options.packages.find"]["include"] == "pgfl_jax*"
    assert setup["options.package_data"]["pgfl_jax"] == "py.typed"
    assert (ROOT / "pgfl_jax" / "py.typed").exists()


def test_the_version_is_declared_once_and_has_its_notes():
    assert _setup()["metadata"]["version"] == "attr: pgfl_jax.__version__"
    notes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{pgfl_jax.__version__}] - " in notes


def test_the_console_script_exists():
    script = _setup()["options.entry_points"]["console_scripts"]
    target = script.split("=")[1].strip()
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
