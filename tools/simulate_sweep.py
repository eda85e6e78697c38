"""What taking work costs many workers that share a slow folder: the queue of `sweeps.leases` itself, on a clock and a file system that are made up.

python tools/simulate_sweep.py            write bench/sweeps/simulation.json (10,000 groups, 256 workers, 20 ms a round trip)
python tools/simulate_sweep.py --groups 300 --workers 16 --print

A round trip is what one request to a file server takes. Counted are the folder of leases alone: a list of it (a round trip
for 1,000 names), a claim that is read (2), made (2), ended (4) or given back (4), and beats (4 each). What a run writes into
its own folder is not counted. Needs greenlet, which playwright brings.
"""

import argparse
import heapq
import itertools
import json
import random
import statistics
import time
from pathlib import Path

import greenlet

from lottery_nb.sweeps import leases
from lottery_nb.sweeps.leases import BEATS, Claim, PATIENCE, Queue
from lottery_nb.sweeps.working import PAUSE

ROOT = Path(__file__).parent.parent
SAID = '{"worker": "1 1 boot elsewhere", "beat": %d, "held": true}'


class Folder:
    """A folder of leases with a clock of its own: whoever touches it sleeps as long as the round trips take."""

    def __init__(self, trip):
        self.trip, self.now, self.trips, self.claims, self.files = trip, 0.0, 0, {}, 0
        self.waiting, self.order, self.hub = [], itertools.count(), greenlet.getcurrent()

    def sleep(self, seconds):
        heapq.heappush(self.waiting, (self.now + seconds, next(self.order), greenlet.getcurrent()))
        self.hub.switch()

    def go(self, trips):
        self.trips += trips
        self.sleep(trips * self.trip)

    def claims_in(self, _):
        self.go(1 + self.files // 1000)
        return dict(self.claims)

    def said(self, *_):
        self.go(2)
        return (SAID % (self.now * BEATS / PATIENCE)).encode()

    def claimed(self, _, name, number, fenced=False):
        self.go(1)
        if self.claims.get(name, Claim()).number >= number:
            return None
        self.claims[name] = Claim(number)
        self.files += 1
        self.go(1)
        return name

    def monotonic(self):
        return self.now


def worker(folder, names, seconds, draw, took):
    """Take work until there is none, as `work_on` does."""
    queue = Queue(Path("leases"), names)
    while True:
        begin = folder.now
        name, held = queue.take()
        if name:
            took.append(folder.now - begin)
            folder.sleep(seconds * draw.uniform(0.8, 1.2))
            folder.go(4)
            folder.claims[name] = Claim(1, "done")
            folder.files += 1
            folder.go(4)
        elif held:
            folder.sleep(PAUSE)
        else:
            return


def simulated(groups, workers, trip, seconds):
    """What so many workers, who start at once, need for groups of so many seconds each."""
    folder, took, draw = Folder(trip), [], random.Random(0)
    leases.claims_in, leases._said, leases.claimed, leases.time = folder.claims_in, folder.said, folder.claimed, folder
    names = [f"{i:016x}" for i in range(groups)]
    for _ in range(workers):
        one = greenlet.greenlet(lambda: worker(folder, names, seconds, draw, took))
        heapq.heappush(folder.waiting, (0.0, next(folder.order), one))
    while folder.waiting:
        folder.now, _, one = heapq.heappop(folder.waiting)
        one.switch()
    work, beats = groups * seconds, groups * seconds * BEATS / PATIENCE
    assert len(took) == groups
    took.sort()
    return {
        "seconds a group": seconds,
        "median seconds to take": round(statistics.median(took), 2),
        "95th percentile": round(took[int(0.95 * len(took))], 2),
        "longest": round(took[-1], 2),
        "whole hours": round(folder.now / 3600, 3),
        "share of the workers' time in training": round(work / (workers * folder.now), 3),
        "round trips a second, taking": round(folder.trips / folder.now, 1),
        "round trips a second, beats": round(4 * beats / folder.now, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=256)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds a round trip takes (default: 0.02)")
    parser.add_argument("--seconds", type=float, nargs="*", default=[2, 10, 60], help="that a group is trained for")
    parser.add_argument("--print", action="store_true", help="write nothing")
    args = parser.parse_args()
    begin = time.perf_counter()
    rows = [simulated(args.groups, args.workers, args.latency, s) for s in args.seconds]
    said = {"groups": args.groups, "workers": args.workers, "latency_s": args.latency, "results": rows}
    print(json.dumps(said, indent=1), f"simulated in {time.perf_counter() - begin:.0f} s", sep="\n")
    if not args.print:
        place = ROOT / "bench" / "sweeps" / "simulation.json"
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
