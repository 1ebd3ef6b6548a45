"""Trains the cells of a grid with several seeds, and collects their scores.

    python -m studies.ablation.run --grid=core --seeds=5 --out=runs/study --hours=3

Each cell and seed is a run of ``main.py`` in a folder of its own, ``OUT/demo/CELL/seed0``, below
the name of the data set that is scored. The same command goes on where an earlier one stopped.
After every run ``OUT/GRID.json`` holds all scores, with each run's options, commit and time, and
``OUT/GRID.md`` the table. All cells get one seed before any gets the next, so that a study cut
short is complete for the seeds it has.
"""

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from absl import flags

from pgfl_jax.command_flags import define_path
from pgfl_jax.command_line import run as run_command_line
from pgfl_jax.command_line import writable_folder
from pgfl_jax.errors import UserError
from pgfl_jax.report.writers import duration, replace_text, write_json
from studies.ablation.cells import CELLS, GRIDS, Grid
from studies.ablation.collect import collect, finished, folder, marker, table

FLAGS = flags.FLAGS
Job = tuple[str, int]  # cell and seed


def define_flags() -> None:
    """Define the command-line flags."""
    flags.DEFINE_enum("grid", None, list(GRIDS), "What to compare (studies/ablation/cells.py).")
    flags.DEFINE_integer("seeds", None, "Number of seeds; default: the grid's.", lower_bound=1)
    flags.DEFINE_float("hours", None, "No run starts that would probably end later than this.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time, which share the devices.", lower_bound=1)
    define_path("out", "runs/study", "Folder of the runs.")
    define_path("data_dir", "data", "Folder of prepared data sets.")


def train(job: Job, grid: Grid, out: Path, data_dir: Path) -> float:
    """Train one cell with one seed; returns the seconds that it took.

    Raises:
        UserError: the run failed, or stopped early; its output is in ``seed0.log`` beside it.
    """
    cell, seed = job
    workdir = folder(out, grid) / cell / f"seed{seed}"
    workdir.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "main.py", f"--config=configs/study.py:{cell}", f"--workdir={workdir}"),
        *(f"--config.seed={seed}", f"--config.data.data_dir={data_dir}"),
        f"--config.eval.datasets={grid.datasets!r}",
    ]
    started = time.monotonic()
    log = workdir.with_suffix(".log")
    with log.open("a", encoding="utf-8") as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
    if status:
        said = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
        raise UserError(f"{cell}, seed {seed}: ended with status {status}: {said} (see {log})")
    seconds = time.monotonic() - started
    facts = finished(workdir, grid)
    if facts is None:  # a training that is asked to stop saves, and ends with status 0
        raise UserError(f"{cell}, seed {seed}: stopped before its end; the same command goes on")
    what = {"about": CELLS[cell].about, "changes": dict(CELLS[cell].changes)}
    write_json(marker(workdir), {"seconds": round(seconds, 1), **what, **facts})
    return seconds


def next_job(missing: Sequence[Job], seconds: Mapping[str, list[float]], left: float) -> Job | None:
    """The first job that probably ends in time if it starts now, or None.

    A cell takes as long as its longest run so far; one that never ran, as long as the longest of
    all runs.

    Args:
        missing: what is to be run, in order.
        seconds: what each cell's runs took.
        left: seconds until the end.

    >>> next_job([("b", 0), ("a", 0)], {"a": [50.0, 60.0], "b": [90.0]}, 80.0)
    ('a', 0)
    """
    longest = max(itertools.chain(*seconds.values()), default=0.0)
    return next((job for job in missing if max(seconds.get(job[0], [longest])) <= left), None)


def run_grid(
    name: str, seeds: int, out: Path, data_dir: Path, *, hours: float | None, jobs: int
) -> None:
    """Train what is missing of a grid, within the time, and write scores after every run."""
    grid, started = GRIDS[name], time.monotonic()
    wanted = [(cell, seed) for seed in range(seeds) for cell in grid.cells]
    done = collect(folder(out, grid), grid.cells)
    check_kept(out / f"{name}.json", folder(out, grid))
    seconds: dict[str, list[float]] = {}
    for run in done:
        seconds.setdefault(run["cell"], []).append(run["seconds"])
    ended = {(run["cell"], run["seed"]) for run in done}
    missing = [job for job in wanted if job not in ended]
    running: dict[Future[float], Job] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while missing or running:
            left = float("inf") if hours is None else hours * 3600 - (time.monotonic() - started)
            while len(running) < jobs and (job := next_job(missing, seconds, left)):
                missing.remove(job)
                running[pool.submit(train, job, grid, out, data_dir)] = job
            if not running:
                print(f"out of time: {len(missing)} runs left; the same command goes on")
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, seed = running.pop(future)
                seconds.setdefault(cell, []).append(future.result())
                write(name, out)
                to_go = len(missing) + len(running)
                rest = duration(statistics.mean(itertools.chain(*seconds.values())) * to_go / jobs)
                count = f"[{len(wanted) - to_go}/{len(wanted)}]"
                print(f"{count} {cell} seed {seed} | about {rest} left", flush=True)
    write(name, out)


def check_kept(path: Path, runs_folder: Path) -> None:
    """Make sure that a grid's scores replace no other file, and no scores whose runs are gone.

    Raises:
        UserError: they would.
    """
    if not path.exists():
        return
    try:
        kept = [(run["cell"], run["seed"]) for run in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, LookupError):
        raise UserError(f"{path}: the study would overwrite it; use another --out") from None
    for cell, seed in kept:
        if not marker(runs_folder / cell / f"seed{seed}").exists():
            raise UserError(
                f"{path}: holds scores of {cell}, seed {seed}, whose run is not in {runs_folder}; "
                "use another --out"
            )


def write(name: str, out: Path) -> None:
    """Write ``GRID.json`` and ``GRID.md`` of the finished runs."""
    runs = collect(folder(out, GRIDS[name]), GRIDS[name].cells)
    write_json(out / f"{name}.json", runs)
    replace_text(out / f"{name}.md", table(runs, GRIDS[name].cells))


def main(argv: list[str]) -> None:
    """Run the grid that the flags name, and print its table."""
    del argv
    if not Path("main.py").is_file():
        raise UserError("run the study in the folder of main.py")
    out = writable_folder(Path(FLAGS.out), "--out")
    seeds = FLAGS.seeds or GRIDS[FLAGS.grid].seeds
    hours, data_dir = FLAGS.hours, Path(FLAGS.data_dir)
    run_grid(FLAGS.grid, seeds, out, data_dir, hours=hours, jobs=FLAGS.jobs)
    print((out / f"{FLAGS.grid}.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    define_flags()
    run_command_line(main, required=["grid"], interrupted="interrupted; the same command goes on")
