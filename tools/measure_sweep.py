"""What a queue of folders costs: a sweep of short points by local workers, against the same points trained one after the other.

python tools/measure_sweep.py             write bench/sweeps/overhead.json (200 points of some 2 s, 2 workers)
python tools/measure_sweep.py --points 6 --epochs 2 --print

Each worker's time counts from the start of the command to its end, with what its process imports. The yardstick is a part
of the points, trained by `run` in this process, when no worker is at work. On a machine that does nothing else.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from lottery_nb.bench.race import machine
from lottery_nb.engine.recipes import Recipe
from lottery_nb.plans.find import FindPlan
from lottery_nb.pruning.schedules import geometric
from lottery_nb.runs.writing import run
from lottery_nb.sweeps.axes import SweepPlan
from lottery_nb.sweeps.running import sweep

ROOT = Path(__file__).parent.parent


def points_of(points: int, epochs: int) -> SweepPlan:
    """So many searches of a small network, which differ in their rate."""
    how = dict(schedule=geometric(0.5, 1), seeds=1, controls=(), width=0.5)
    base = FindPlan("digits", recipe=Recipe(epochs=epochs, batch_size=32), **how)
    return SweepPlan(base, {"recipe.lr": tuple(0.01 + 0.0005 * i for i in range(points))})


def alone(plan: SweepPlan, some: int, folder: Path) -> float:
    """Median seconds of a point that is trained in this process; the first one, which warms it up, does not count."""
    seconds = []
    for point in plan.points[: some + 1]:
        clock = time.perf_counter()
        run(point.plan, folder / point.hash, "cpu", show=False)
        seconds.append(time.perf_counter() - clock)
    return median(seconds[1:])


def measured(points: int, epochs: int, workers: int, some: int) -> dict:
    """The figures."""
    torch.set_num_threads(1)
    plan, home = points_of(points, epochs), Path(tempfile.mkdtemp())
    try:
        each = alone(plan, some, home / "alone")
        clock = time.perf_counter()
        done = sweep(plan, f"local:{workers}", home / "sweep", "cpu", threads=1, show=False)
        wall = time.perf_counter() - clock
        assert done.done
    finally:
        shutil.rmtree(home)
    lost = 1 - points * each / (workers * wall)
    return {
        "points": points,
        "workers": workers,
        "seconds of a point alone": round(each, 3),
        "points timed alone": some,
        "seconds of the sweep": round(wall, 1),
        "share of the workers' time that is lost": round(lost, 4),
        "machine": machine(torch.device("cpu"), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("points", 200), ("epochs", 25), ("workers", 2), ("some", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--print", action="store_true", help="print them, and write nothing")
    args = vars(parser.parse_args())
    shown = args.pop("print")
    text = json.dumps(measured(**args), indent=1) + "\n"
    print(text, end="")
    if not shown:
        (ROOT / "bench" / "sweeps" / "overhead.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
