"""The one command for a GPU: what it keeps, where it goes on, what it refuses, and all of it at toy size without what draws."""

import gzip
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import gpu_phases
import on_gpu
import pandas as pd
import pytest
import torch
from test_packaging import DRAWS, DRAWS_NOTHING, MODULES

from lottery_nb.core import fingerprint, LotteryError
from lottery_nb.data.builtin import load_fashion_mnist
from lottery_nb.data.domains import domain
from lottery_nb.papers.papers import kept

ROOT = Path(on_gpu.__file__).parents[1]
BLOCKED = (
    "plotly",
    "ipywidgets",
    "anywidget",
    "jupyterlab",
    "IPython",
    "nbdev",
    "fastcore",
    "fasterai",
    "kaleido",
)
HOOK = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}: it is blocked", name=name)

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture
def bare(tmp_path):
    """The environment of a machine that has nothing that draws, and no data."""
    place = tmp_path / "hook"
    place.mkdir()
    (place / "sitecustomize.py").write_text(HOOK)
    env = {k: v for k, v in os.environ.items() if k not in ("LOTTERY_DATA", "PYTEST_XDIST_WORKER")}
    return env | {"PYTHONPATH": os.pathsep.join([str(place), str(ROOT)]), "OMP_NUM_THREADS": "1"}


def command(*words, **how):
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, **how)


def test_the_hook_blocks(bare):
    done = command("-c", "import plotly", env=bare)
    assert done.returncode and "it is blocked" in done.stderr


TRAINS = """
import importlib, json, sys
for name in MODULES:
    importlib.import_module(f"lottery_nb.{name}")
from lottery_nb.engine.recipes import Recipe
from lottery_nb.plans.find import FindPlan
from lottery_nb.pruning.schedules import geometric
from lottery_nb.runs.writing import run

how = dict(schedule=geometric(0.5, 1), recipe=Recipe(epochs=1, batch_size=32), seeds=1, controls=("reinit",))
found = run(FindPlan("digits@200", width=0.1, **how), "run", "cpu", show=False)
found.frame.to_parquet("results.parquet")
found.frame.to_json("results.json", orient="records")
assert not {name.split(".")[0] for name in sys.modules} & set(BLOCKED)
"""


def test_everything_below_the_figures_imports_trains_and_writes(bare, tmp_path):
    below = [name for name in MODULES if name.split(".")[0] not in DRAWS or name in DRAWS_NOTHING]
    code = TRAINS.replace("MODULES", repr(below)).replace("BLOCKED", repr(BLOCKED))
    done = command("-c", code, env=bare, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    frame = pd.read_parquet(tmp_path / "results.parquet")
    assert len(frame) == len(json.loads((tmp_path / "results.json").read_text())) > 0
    assert {"results.stats", "papers.sparse_transfer", "workbench.cost", "bench.race", "runs.workers"} <= set(
        below
    )


def test_it_all_runs_at_toy_size_where_nothing_draws(bare, tmp_path):
    out = tmp_path / "out"
    done = command(ROOT / "tools/on_gpu.py", "--rehearse", "--out", out, env=bare, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    files = list(out.glob("*"))
    assert len(files) <= on_gpu.MOST_FILES and all(f.suffix == ".json" for f in files)
    known = on_gpu.read(out)
    assert known.keys() == {p.name for p in on_gpu.PHASES} - {"paper"} | {"pictures-seed0"}
    lost = known["facts"]["pieces"]["modules"]["not imported"]
    assert lost and all(why.split(".")[0] in BLOCKED for why in lost.values())
    assert not [name for name in lost if name.split(".")[1] not in ("results", "workbench", "cli")]
    for result in known.values():
        assert result["state"] == "done" and result["pieces"] and result["machine"]["versions"]["torch"]
    assert known["parity"]["pieces"]["ResNet-20"]["largest difference"] == 0  # the CPU against itself
    assert known["fair"]["pieces"]["fair test"]["arms"] == 2 * (1 + 2 * 5)
    again = command(ROOT / "tools/on_gpu.py", "--rehearse", "--out", out, env=bare, cwd=tmp_path)
    assert again.stdout.count("done before") == len(on_gpu.PHASES)  # nothing is measured twice
    on_gpu.store(out, tmp_path / "root")
    [kept] = (tmp_path / "root").rglob("*.json")
    assert f"-rehearsed-torch-{torch.__version__.partition('+')[0]}" in kept.name
    assert kept.parent == tmp_path / "root/bench/results"
    assert {r["key"] for r in json.loads(kept.read_text())["phases"]} == known.keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert on_gpu.main(["--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1 and "'cuda' is not on this machine" in said and not (tmp_path / "out").exists()
    )


# --- where it stops, and goes on ---

FAKE = """
import json, sys, time
job = json.load(open(sys.argv[1]))
result = json.load(open(job["result"]))
PIECES
for name, seconds in pieces.items():
    if name in result["pieces"]:
        continue
    time.sleep(seconds)
    result["pieces"][name] = {"n": len(result["pieces"])}
    json.dump(result, open(job["result"], "w"))
"""


@pytest.fixture
def faked(tmp_path, monkeypatch):
    """Phases whose pieces take so many seconds; what `main` says with words."""
    monkeypatch.setattr(on_gpu, "WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(on_gpu, "PHASES", (on_gpu.Phase("one", 2.0, ""), on_gpu.Phase("two", 2.0, "")))

    def call(*words, code="", **pieces):
        text = FAKE.replace("PIECES", f"pieces = {pieces!r}\n{code}")
        on_gpu.WORKER.write_text(text)
        return on_gpu.main(["--rehearse", "--limits", "--out", str(tmp_path / "out"), *words])

    return call


def test_a_phase_that_is_cut_off_goes_on_where_it_was(faked, tmp_path):
    begin = time.monotonic()
    assert faked("--phases", "one", a=0, b=60) == 1
    assert time.monotonic() - begin < 30
    result = on_gpu.read(tmp_path / "out")["one"]
    assert result["state"] == "cut off" and "2 s" in result["why"] and result["pieces"] == {"a": {"n": 0}}
    assert faked("--phases", "one", a=60, b=0) == 0  # a is not measured again
    result = on_gpu.read(tmp_path / "out")["one"]
    assert result["state"] == "done" and result["pieces"] == {"a": {"n": 0}, "b": {"n": 1}}
    assert faked("--phases", "one", a=60, b=60) == 0
    assert faked("--phases", "one", "--again", "one", c=0) == 0
    assert list(on_gpu.read(tmp_path / "out")["one"]["pieces"]) == ["c"]


def test_results_that_were_taken_along_count(faked, tmp_path):
    assert faked("--phases", "one", a=0) == 0
    (tmp_path / "out").rename(tmp_path / "earlier")
    assert faked("--before", str(tmp_path / "earlier"), b=0) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["two.json"]


@pytest.mark.parametrize(
    "code, why",
    [
        ("raise RuntimeError('out of luck')", "RuntimeError: out of luck"),
        ("import os; os.kill(os.getpid(), 9)", "status -9"),
        ("sys.exit(3)", "status 3"),
        (
            "result['pieces']['x'] = {'failed': 'no'}; json.dump(result, open(job['result'], 'w'))",
            "x: see there",
        ),
    ],
)
def test_what_fails_is_told_and_the_next_phase_begins(code, why, faked, tmp_path, capsys):
    assert faked(a=0, code=f"if job['phase'] == 'one':\n    {code}") == 1
    known = on_gpu.read(tmp_path / "out")
    assert (
        known["one"]["state"] == "failed" and why in known["one"]["why"] and known["two"]["state"] == "done"
    )
    assert "one: failed" in capsys.readouterr().out
    assert faked(a=0) == 0 and "failed" not in on_gpu.read(tmp_path / "out")["one"]["pieces"].get("x", {})


def test_what_does_not_hold_is_no_success(faked, tmp_path):
    held = "result['pieces']['x'] = {'holds': HOLDS}; json.dump(result, open(job['result'], 'w'))"
    assert faked("--phases", "one", code=held.replace("HOLDS", "False")) == 1
    assert faked("--phases", "two", code=held.replace("HOLDS", "True")) == 0


def test_phases_are_chosen_and_skipped(faked, tmp_path, capsys):
    assert faked("--skip", "one", a=0) == 0 and list(on_gpu.read(tmp_path / "out")) == ["two"]
    assert faked("--minutes", "0.1", a=0) == 1 and "not begun, the time is up" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        faked("--phases", "three")
    assert "'three' is no phase" in capsys.readouterr().err


def test_what_a_phase_started_ends_with_it(faked, tmp_path):
    started = "import subprocess; p = subprocess.Popen(['sleep', '60']); open(PLACE, 'w').write(str(p.pid))"
    place = tmp_path / "pid"
    faked("--phases", "one", a=60, code=started.replace("PLACE", repr(str(place))))
    deadline = time.monotonic() + 10
    while Path("/proc", place.read_text(), "cmdline").exists() and time.monotonic() < deadline:
        if not Path("/proc", place.read_text(), "cmdline").read_bytes():
            break  # a zombie has none
        time.sleep(0.05)
    assert time.monotonic() < deadline


def test_eight_files_come_back_whatever_was_measured(faked, tmp_path, monkeypatch):
    names = [f"phase{k:02d}" for k in range(12)]
    monkeypatch.setattr(on_gpu, "PHASES", tuple(on_gpu.Phase(n, 20.0, "") for n in names))
    assert faked(a=0) == 0
    assert on_gpu.MOST_FILES - 1 <= len(list((tmp_path / "out").iterdir())) <= on_gpu.MOST_FILES
    assert sorted(on_gpu.read(tmp_path / "out")) == names
    assert faked("--again", names[0], "--phases", names[0], b=0) == 0
    assert list(on_gpu.read(tmp_path / "out")[names[0]]["pieces"]) == ["b"]


# --- what came back ---


def came_back(seed, device="NVIDIA H100"):
    """A phase's result with a piece of the benchmark, and one with a seed of a paper."""
    machine = {"slug": "nvidia-h100", "versions": {"torch": "2.11.0+cu130"}}
    columns = "run source domain role start round density seed epoch split metric value".split()
    table = ",".join(columns) + f"\ndigits,digits,digits,dense,rewind,0,1,{seed},1,test,accuracy,0.9\n"
    run = {"plan_hash": "p", "device_name": device, "date": f"day {seed}", "seconds": 1.0, "floor": 0.0}
    about = {
        "paper": "toy",
        "scale": "gpu",
        "note": "",
        "hash": f"h{seed}",
        "design": "d",
        "runs": {"digits": run},
    }
    paper = {"name": "toy-gpu", "about": {**about, "table": fingerprint(table)}, "table": table}
    bench = {"machine": {"device": device}, "pieces": {f"piece {seed}": {}}, "alone": {}}
    pieces = {"work": {"took": 1.0, "bench": bench}, "all of it": {"took": 2.0, "paper": paper}}
    return {
        "key": f"pictures-seed{seed}",
        "state": "done",
        "toy": False,
        "machine": machine,
        "pieces": pieces,
    }


def test_what_came_back_on_several_days_is_kept_together(tmp_path, capsys):
    for seed, device in ((0, "NVIDIA H100"), (3, "NVIDIA H200"), (0, "NVIDIA H100")):
        on_gpu.write(tmp_path / f"day{seed}" / "paper.json", came_back(seed, device))
        assert on_gpu.store(tmp_path / f"day{seed}", tmp_path / "root") == 0
    assert capsys.readouterr().out.count("kept in") == 9
    figures = json.loads((tmp_path / "root/bench/results/on-gpu-nvidia-h100.json").read_text())
    assert [p["key"] for p in figures["phases"]] == ["pictures-seed0", "pictures-seed3"]
    assert figures["phases"][0]["pieces"] == {"work": {"took": 1.0}, "all of it": {"took": 2.0}}
    bench = json.loads((tmp_path / "root/bench/results/nvidia-h100.json").read_text())
    assert set(bench["pieces"]) == {"piece 0", "piece 3"}
    found = kept("toy", "gpu", tmp_path / "root/papers/results")
    assert sorted(found.frame["seed"]) == [0, 3] and len(found.about["days"]) == 2
    assert found["digits"].info["device_name"] == "NVIDIA H200, NVIDIA H100"
    assert found["digits"].info["date"] == "day 3, day 0" and found["digits"].info["seconds"] == 2.0


def test_results_of_another_plan_are_not_mixed_in(tmp_path):
    on_gpu.write(tmp_path / "one" / "paper.json", came_back(0))
    on_gpu.store(tmp_path / "one", tmp_path / "root")
    other = came_back(1)
    other["pieces"]["all of it"]["paper"]["about"]["design"] = "another"
    on_gpu.write(tmp_path / "two" / "paper.json", other)
    with pytest.raises(LotteryError, match="not only of other seeds"):
        on_gpu.store(tmp_path / "two", tmp_path / "root")
    assert set(kept("toy", "gpu", tmp_path / "root/papers/results").frame["seed"]) == {0}


def no_name(result):
    result["machine"]["slug"] = ["nvidia"]


LEADS = {
    "a card elsewhere": lambda r: r["machine"].update(slug="../../../elsewhere"),
    "a card at a root": lambda r: r["machine"].update(slug="x/../../../../elsewhere"),
    "a card without a name": no_name,
    "a torch elsewhere": lambda r: (r.update(toy=True), r["machine"]["versions"].update(torch="/../../x")),
    "a paper elsewhere": lambda r: r["pieces"]["all of it"]["paper"].update(name="../../elsewhere"),
    "kept as a paper elsewhere": lambda r: r["pieces"]["all of it"]["paper"]["about"].update(paper="../x"),
    "a rehearsal of sorts": lambda r: r.update(toy="no"),
    "no versions": lambda r: r["machine"].update(versions=[]),
    "a machine that is none": lambda r: r.update(machine=7),
    "a benchmark that is none": lambda r: r["pieces"]["all of it"].update(bench=[1]),
    "a paper that is none": lambda r: r["pieces"]["all of it"].update(paper=3),
}


@pytest.mark.parametrize("what", LEADS)
def test_what_came_back_is_kept_in_the_repository_or_refused_in_a_sentence(what, tmp_path, capsys):
    came = came_back(0)
    LEADS[what](came)
    on_gpu.write(tmp_path / "back" / "paper.json", came)
    with pytest.raises(LotteryError, match="use a fresh copy|plain name|cannot be read|does not hold"):
        on_gpu.store(tmp_path / "back", tmp_path / "root")
    made = {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*") if p.is_file()}
    assert made <= {"back", "root"} and not (tmp_path.parent / "elsewhere.json").exists()


@pytest.mark.parametrize(
    "what", ["a pipe", "a list", "deep", "phases of none", "pieces of none", "a key of none"]
)
def test_what_is_no_result_is_passed_over(what, tmp_path, capsys):
    texts = {
        "a list": "[1]",
        "deep": "[" * 100_000,
        "phases of none": '{"phases": 3}',
        "pieces of none": '{"key": "a", "state": "done", "pieces": [1]}',
        "a key of none": '{"key": {}, "state": "done", "pieces": {}}',
    }
    if what == "a pipe":
        os.mkfifo(tmp_path / "x.json")
    else:
        (tmp_path / "x.json").write_text(texts[what])
    assert on_gpu.main(["--store", str(tmp_path)]) == 2
    assert "no results of this tool" in capsys.readouterr().err


# --- what is taken along ---


def test_the_first_pictures_of_a_set_are_such_a_set(tmp_path):
    pictures, labels = np.arange(5 * 28 * 28, dtype=np.uint8), np.arange(5, dtype=np.uint8)
    for name, head, content in (
        ("train-images-idx3", struct.pack(">IIII", 2051, 5, 28, 28), pictures),
        ("train-labels-idx1", struct.pack(">II", 2049, 5), labels),
    ):
        (tmp_path / f"{name}-ubyte.gz").write_bytes(gzip.compress(head + content.tobytes()))
    images, names = on_gpu.first_of(*sorted(tmp_path.iterdir()), 3)
    assert gzip.decompress(images) == struct.pack(">IIII", 2051, 3, 28, 28) + pictures[: 3 * 784].tobytes()
    assert gzip.decompress(names) == struct.pack(">II", 2049, 3) + labels[:3].tobytes()


@pytest.mark.data
def test_the_data_fit_and_are_found(tmp_path, monkeypatch, capsys):
    place = tmp_path / "pack"
    assert on_gpu.main(["--pack", str(place)]) == 0
    size = sum(p.stat().st_size for p in place.rglob("*") if p.is_file()) + on_gpu.tracked()
    assert 0.8 * on_gpu.ROOM < size <= on_gpu.ROOM and "of 64 MiB" in capsys.readouterr().out
    whole = load_fashion_mnist()
    monkeypatch.setenv("LOTTERY_DATA", str(place))
    part = load_fashion_mnist()
    n = len(part.y)
    assert n >= 20_000 and torch.equal(part.x, whole.x[:n]) and torch.equal(part.test[0], whole.test[0])
    for name in ("cifar10", "smallnorb", "amazon-books"):
        assert len(domain(name).test)
    assert on_gpu.main(["--pack", str(place)]) == 2 and "it is not empty" in capsys.readouterr().err


def test_without_data_nothing_is_packed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOTTERY_DATA", str(tmp_path))
    assert on_gpu.main(["--pack", str(tmp_path / "new")]) == 2 and "LOTTERY_DATA" in capsys.readouterr().err
    assert (
        on_gpu.main(["--store", str(tmp_path)]) == 2 and "no results of this tool" in capsys.readouterr().err
    )


# --- claims that can fail ---


def test_a_difference_is_seen():
    from lottery_nb.models.network import Network
    from lottery_nb.rewinding.snapshots import fresh, Snapshot

    one = fresh(Network("lenet-300-100", (1, 8, 8), 10, 0.1), 0)
    name = next(iter(one.weights))
    other = Snapshot({**one.weights, name: one.weights[name] + 1e-6}, one.buffers)
    assert gpu_phases.gap(one, one) == 0 and gpu_phases.same(one, one)
    assert 5e-7 < gpu_phases.gap(one, other) < 2e-6 and not gpu_phases.same(one, other)


@pytest.mark.parametrize("name", ["promise 1", "promise 2", "promise 3, LeNet", "promise 4", "out of memory"])
def test_each_promise_is_broken_by_a_fault(name, monkeypatch, tmp_path):
    from lottery_nb.engine import stacks, training

    job = gpu_phases.Job(torch.device("cpu"), True, tmp_path)
    work = gpu_phases.parity(job)[name]
    if name == "promise 1":
        monkeypatch.setattr(stacks.Flat, "mask_gradients", lambda self: None)
        monkeypatch.setattr(training, "guard_zeros", lambda t: None)
    elif name == "promise 2":
        real = gpu_phases.prune
        monkeypatch.setattr(gpu_phases, "prune", lambda s, m, d: real(s, m, d if len(s["a"]) < 999 else 0.21))
    elif name in ("promise 3, LeNet", "promise 4"):
        real_order, calls = training.epoch_order, iter(range(1, 10**6))
        monkeypatch.setattr(training, "epoch_order", lambda n, seed, epoch: real_order(n, seed, next(calls)))
    else:
        monkeypatch.setattr(gpu_phases, "little_memory", lambda job, arms: open(os.devnull))
    found = gpu_phases.done(work)
    assert found.get("holds") is False or "failed" in found
