"""Everything that is to be known from a GPU, in one command, in order of worth.

    python tools/on_gpu.py --minutes 9 [--out DIR]     measure; called again, it goes on where it stopped
    python tools/on_gpu.py --rehearse                  all of it on the CPU, so small that its figures mean nothing
    python tools/on_gpu.py --pack DIR                  put the data that it needs into a folder, to be taken along
    python tools/on_gpu.py --store DIR                 keep what came back under bench/results and papers/results

Each phase is a process of its own, which is ended at its limit. What it found is in DIR/PHASE.json after each of its pieces,
so nothing that was measured is lost; a piece that is there is not measured again. The machine needs torch, torchvision,
pandas and what they bring: nothing that draws, no network, and no installation of this package.
"""

import argparse
import gzip
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

WORKER = ROOT / "tools/gpu_phases.py"  # does the work of a phase
MOST_BYTES = 64 << 20  # of a file that came back
MOST_FILES = 8  # that come back from such a machine, each of 16 MiB
EARLIER = "earlier.json"  # what did not fit into them any more: the first phases, together
MARGIN = 10.0  # seconds that are left for the end
PATIENCE = 10  # times its limit that a phase may take in a rehearsal, which tells nothing about time
CUT = "cut off"


@dataclass(frozen=True)
class Phase:
    """A part of the measuring: seconds that it may take, and what it tells."""

    name: str
    limit: float
    tells: str


PHASES = (
    Phase("facts", 50, "machine, modules that import, matrix products, copies"),
    Phase("parity", 120, "CPU and GPU to 1e-10 in double precision, masks, promises 1 to 4, moves, memory"),
    Phase("tests", 80, "every test marked gpu"),
    Phase("stacks", 80, "stacked against alone: LeNet, ResNet-20"),
    Phase("resnet18", 130, "ResNet-18, batch 512: images a second, share of the peak, where the time goes"),
    Phase("peers", 270, "the benchmark in its GPU sizes, with the peers that are there"),
    Phase("fair", 100, "LeNet, 5 seeds, 10 rounds, 4 controls"),
    Phase("workbench", 45, "the workbench's line on the GPU, of a real worker"),
    Phase("paper", 270, "a seed of a paper (--paper, --seed)"),
)
PAPERS = {
    "pictures": "sparse transfer, ResNet-18",
    "vgg": "sparse transfer, VGG-19",
    "texts": "distribution shift, all pairs",
}


def key_of(args, phase):
    """What a phase's result is called: that of a paper has paper and seed in its name."""
    return f"{args.paper}-seed{args.seed}" if phase.name == "paper" else phase.name


def write(path, content):
    """Write JSON in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    left = path.with_name(f".{path.name}.tmp")
    left.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(left, path)


def read(*places):
    """What is known so far: phase -> result. Places are files or folders, later ones count more; a file that is none of ours is passed over."""
    known = {}
    folders = {
        p: sorted(p.glob("*.json"), key=lambda f: f.name != EARLIER) for p in map(Path, places) if p.is_dir()
    }
    for path in (f for p in map(Path, places) for f in folders.get(p, [p])):
        try:
            if not path.is_file() or path.stat().st_size > MOST_BYTES:  # a pipe is not waited for
                continue
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        phases = found.get("phases", [found]) if isinstance(found, dict) else ()
        for result in phases if isinstance(phases, (list, tuple)) else ():
            if is_result(result):
                known[result["key"]] = result
    return known


def is_result(result):
    """Whether it is what a phase writes: texts and pieces."""
    if not isinstance(result, dict):
        return False
    pieces, texts = result.get("pieces"), (result.get("key"), result.get("state"))
    return (
        all(isinstance(text, str) for text in texts)
        and isinstance(pieces, dict)
        and all(isinstance(piece, dict) for piece in pieces.values())
    )


def make_room(out, path):
    """Let there be room for a new file among `MOST_FILES`: the oldest ones go into one."""
    files = sorted(out.glob("*.json"), key=lambda p: p.stat().st_mtime)
    if path in files or len(files) < MOST_FILES:
        return
    old = [p for p in files if p.name != EARLIER][:2]
    parts = read(*([out / EARLIER] if (out / EARLIER).exists() else []), *old)
    write(out / EARLIER, {"phases": list(parts.values())})
    for p in old:
        p.unlink()


# --- the phases, one after the other ---


def finished(result):
    """Whether there is nothing left to measure."""
    return result is not None and result["state"] == "done"


def surroundings(args, phase):
    """The environment of a phase: modules from this tree, data from the folder that was taken along."""
    places = [str(ROOT), str(ROOT / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONUNBUFFERED": "1"}
    if args.data:
        env["LOTTERY_DATA"] = os.pathsep.join(
            [str(args.data.resolve()), *filter(None, [env.get("LOTTERY_DATA")])]
        )
    if phase.name == "parity":
        env["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it matrix products are not deterministic
    return env


def end(process):
    """End a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def worked(args, phase, limit, job):
    """Run a phase to its end or to its limit; (state, why)."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "job.json"), job | {"folder": folder})
        log = Path(folder, "output.txt")
        with log.open("wb") as output:
            line = [sys.executable, "-P", str(WORKER), str(Path(folder, "job.json"))]
            how = dict(stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0)
            process = subprocess.Popen(line, env=surroundings(args, phase), cwd=folder, **how)
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                return CUT, f"it was not done after {limit:.0f} s"
            finally:
                end(process)
        said = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    if process.returncode:
        return "failed", f"it ended with status {process.returncode}: {' | '.join(said[-3:])[-600:]}"
    return "done", ""


def measured(args, phase, before, limit):
    """Do what is left of a phase; its result, as its file has it too."""
    key = key_of(args, phase)
    path, begin = args.out / f"{key}.json", time.monotonic()
    known = {"pieces": {}, "seconds": 0.0, **(before or {})}
    pieces = {n: p for n, p in known["pieces"].items() if "failed" not in p}
    about = {"key": key, "phase": phase.name, "toy": args.rehearse, "device": args.device}
    about |= {"paper": args.paper, "seed": args.seed} if phase.name == "paper" else {}
    result = {**about, "state": "begun", "why": "", "seconds": known["seconds"], "pieces": pieces}
    result["date"] = datetime.now(UTC).date().isoformat()
    make_room(args.out, path)
    write(path, result)
    state, why = worked(args, phase, limit, {**about, "result": str(path)})
    result = json.loads(path.read_text(encoding="utf-8"))
    if state == "done" and (lost := [n for n, p in result["pieces"].items() if "failed" in p]):
        state, why = "failed", f"{', '.join(lost)}: see there"
    result |= {"state": state, "why": why, "seconds": round(known["seconds"] + time.monotonic() - begin, 1)}
    write(path, result)
    return result


def broken(result):
    """Pieces whose claim does not hold, by name."""
    return [name for name, piece in result["pieces"].items() if piece.get("holds") is False]


def told(phase, result):
    """A line about a phase, and one for each piece of it."""
    yield f"{phase.name}: {result['state']}, {result['seconds']:.0f} s{', ' * bool(result['why'])}{result['why']}"
    for name, piece in result["pieces"].items():
        rest = {k: v for k, v in piece.items() if not isinstance(v, (list, dict))}
        yield f"    {name}: {', '.join(f'{k} {short(v)}' for k, v in rest.items())}"


def short(value):
    """A value as a line shows it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)[:160]


def measure(args):
    """Measure phase after phase until the time is up; exit status 1 where something asked for is missing or does not hold."""
    begin, known, good = time.monotonic(), read(*args.before, args.out), True
    for phase in args.wanted:
        result = known.get(key_of(args, phase))
        if finished(result) and phase.name not in args.again:
            print(f"{phase.name}: done before", flush=True)
        else:
            left = 60 * args.minutes - (time.monotonic() - begin) - MARGIN
            if left < 5:
                print(f"{phase.name}: not begun, the time is up", flush=True)
                good = False
                continue
            before = None if phase.name in args.again else result
            most = phase.limit * (PATIENCE if args.rehearse and not args.limits else 1)
            result = measured(args, phase, before, min(most, left))
            print("\n".join(told(phase, result)), flush=True)
        good &= finished(result) and not broken(result)
    return 0 if good else 1


# --- what is taken along, and what came back ---

ROOM = 64 * 2**20  # bytes that travel: the repository's files and the data
SPARE = 2**20
TAKEN = ("cifar10-*.parquet", "smallnorb-subset/*.parquet", "amazon/*.parquet")
FASHION = "fashion-mnist"


def tracked():
    """Bytes of the repository's files."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return sum(path.stat().st_size for n in names.split(b"\0") if n and (path := ROOT / n.decode()).is_file())


def first_of(images, labels, n):
    """The first n pictures and labels of two idx files, as such files, packed."""
    parts = []
    for path, head in ((images, 16), (labels, 8)):
        content = gzip.decompress(path.read_bytes())
        size = (len(content) - head) // struct.unpack(">I", content[4:8])[0]
        count = struct.pack(">I", n)
        parts.append(
            gzip.compress(content[:4] + count + content[8:head] + content[head : head + n * size], 9, mtime=0)
        )
    return parts


def packed_fashion(source, target, room):
    """Copy Fashion-MNIST, with as many thousands of its training pictures as there is room for; how many."""
    target.mkdir(parents=True)
    for path in source.glob("t10k-*"):
        (target / path.name).write_bytes(path.read_bytes())
        room -= path.stat().st_size
    names = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
    files = [source / name for name in names]
    whole = sum(f.stat().st_size for f in files)
    parts, n = [f.read_bytes() for f in files], 60_000
    while sum(map(len, parts)) > room and n > 2000:
        n = min(n - 1000, int(room / whole * 60) * 1000) if n == 60_000 else n - 1000
        parts = first_of(*files, n)
    for name, part in zip(names, parts, strict=True):
        (target / name).write_bytes(part)
    return n


def pack(folder):
    """Copy the data of the phases into a folder, so that it and the repository's files travel together."""
    from lottery_nb.core import LotteryError

    places = [Path(p) for p in os.environ.get("LOTTERY_DATA", "").split(os.pathsep) if p]
    source = next((p for p in places if list(p.glob(TAKEN[0]))), None)
    if source is None:
        raise LotteryError(
            "LOTTERY_DATA names no folder with cifar10-*.parquet: set it to the folder of the real data"
        )
    if folder.exists() and any(folder.iterdir()):
        raise LotteryError(f"--pack {folder}: it is not empty, give a new folder")
    taken = [path for pattern in TAKEN for path in sorted(source.glob(pattern))]
    for path in taken:
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    room = ROOM - SPARE - tracked() - sum(p.stat().st_size for p in taken)
    n = packed_fashion(source / FASHION, folder / FASHION, room) if (source / FASHION).is_dir() else 0
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    print(
        f"{folder}: {size / 2**20:.1f} MiB, {n:,} training pictures of Fashion-MNIST; with the repository's files"
    )
    print(
        f"{(size + tracked()) / 2**20:.1f} of {ROOM / 2**20:.0f} MiB. Take it along and give --data {folder} there."
    )
    return 0


def store(folder, root=ROOT):
    """Keep what came back: figures under bench/results, results of papers under papers/results; prints where."""
    from gpu_phases import kept_paper
    from lottery_nb.core import DAMAGE, LotteryError

    known = read(folder)
    if not known:
        raise LotteryError(
            f"--store {folder}: it has no results of this tool, give the folder that --out named"
        )
    by_card = {}
    for key, result in known.items():
        if "machine" not in result:
            print(f"{key}: it tells no machine, so it is left out")
            continue
        name, toy = named(key, result)
        by_card.setdefault((name, toy), {})[key] = result
    for (name, toy), results in by_card.items():
        try:
            for path in stored(name, toy, results, root, kept_paper):
                print(f"kept in {path}")
        except LotteryError:
            raise
        except DAMAGE as e:
            says = " ".join(str(e).split())[:120]
            raise LotteryError(
                f"--store {folder}: {name} is damaged ({type(e).__name__}: {says}), use a fresh copy"
            ) from None
    return 0


def named(key, result):
    """(name, whether it is a rehearsal) that a result is kept under; refuses one whose machine has no such name, which would lead elsewhere."""
    from lottery_nb.core import DAMAGE, LotteryError

    try:
        card, torch = result["machine"]["slug"], result["machine"]["versions"]["torch"].partition("+")[0]
        if PLAIN.fullmatch(card) and PLAIN.fullmatch(torch) and isinstance(toy := result["toy"], bool):
            return f"on-gpu-{card}" + f"-rehearsed-torch-{torch}" * toy, toy
    except DAMAGE:
        pass
    raise LotteryError(f"{key[:80]!r}: its machine has no name to keep it under, use a fresh copy")


PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def stored(name, toy, results, root, kept_paper):
    """Write what one card gave; the paths. A rehearsal is kept by its torch, and nothing else of it."""
    path = root / "bench/results" / f"{name}.json"
    old = json.loads(path.read_text(encoding="utf-8"))["phases"] if path.exists() else []
    merged = {r["key"]: r for r in old} | results
    slim = [{**r, "pieces": {n: without_rows(p) for n, p in r["pieces"].items()}} for r in merged.values()]
    write(path, {"toy": toy, "phases": slim})
    yield path
    for piece in (p for r in results.values() for p in r["pieces"].values() if not toy):
        if "bench" in piece:
            to = root / "bench/results" / f"{name.removeprefix('on-gpu-')}.json"
            write(to, merged_bench(to, piece["bench"]))
            yield to
        if "paper" in piece:
            yield kept_paper(piece["paper"], root / "papers/results")


def without_rows(piece):
    """A piece without what is kept elsewhere."""
    return {k: v for k, v in piece.items() if k not in ("bench", "paper")}


def merged_bench(path, new):
    """Results of the benchmark with those that were there."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return new | {part: {**old.get(part, {}), **new[part]} for part in ("pieces", "alone")}


# --- the command line ---


def names(text):
    """Phases named in a list."""
    known = {phase.name for phase in PHASES}
    chosen = [word.strip() for word in text.split(",") if word.strip()]
    for name in chosen:
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"{name!r} is no phase: choose any of {', '.join(p.name for p in PHASES)}"
            )
    return chosen


def arguments(words=None):
    """What was asked for."""
    width = max(len(p.name) for p in PHASES)
    listed = "\n".join(f"  {p.name:{width}}  {p.limit:4.0f} s at most: {p.tells}" for p in PHASES)
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nphases:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, help="in all (default 9; of a rehearsal 60)")
    parser.add_argument("--limits", action="store_true", help="of each phase hold in a rehearsal too")
    parser.add_argument("--out", type=Path, help="folder of the results (default gpu-results)")
    parser.add_argument("--before", type=Path, nargs="*", default=[], help="folders of earlier results")
    parser.add_argument("--data", type=Path, help="folder of the data, as --pack makes it")
    parser.add_argument("--phases", type=names, help="these alone, in this order")
    parser.add_argument("--skip", type=names, default=[], help="not these")
    parser.add_argument("--again", type=names, default=[], help="these anew, whatever is known")
    told = "; ".join(f"{name}: {what}" for name, what in PAPERS.items())
    parser.add_argument("--paper", choices=PAPERS, default="pictures", help=f"{told} (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the paper (default %(default)s)")
    parser.add_argument("--device", help="default cuda; with --rehearse cpu")
    for name, takes in (("rehearse", None), ("pack", Path), ("store", Path)):
        how = {"action": "store_true"} if takes is None else {"type": takes, "metavar": "DIR"}
        parser.add_argument(f"--{name}", **how, help="see above")
    args = parser.parse_args(words)
    args.device = args.device or ("cpu" if args.rehearse else "cuda")
    args.minutes = args.minutes or (60.0 if args.rehearse else 9.0)
    args.out = args.out or Path("gpu-rehearsal" if args.rehearse else "gpu-results")
    by_name = {p.name: p for p in PHASES}
    args.wanted = [by_name[n] for n in args.phases or by_name if n not in args.skip]
    return args


def told_to_end(*_):
    """Somebody ends this process: what it started ends too."""
    raise SystemExit(143)


def main(words=None):
    args = arguments(words)
    from lottery_nb.core import LotteryError, pick_device

    try:
        if args.pack:
            return pack(args.pack)
        if args.store:
            return store(args.store)
        args.device = str(pick_device(args.device))
        signal.signal(signal.SIGTERM, told_to_end)
        return measure(args)
    except LotteryError as e:
        print(f"on_gpu: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
