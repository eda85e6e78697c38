"""Runs in the tools that people have, each with its real library and a store on this machine; a library that is missing is skipped."""

import json
import os
import sqlite3
import subprocess
import sys
import time

import pytest
from tiny import of, plan

from lottery_nb.cli import main, make_parser
from lottery_nb.core import LotteryError
from lottery_nb.events import ArmStarted, EpochDone, RunDone
from lottery_nb.files import RunFolder
from lottery_nb.runs import trackers
from lottery_nb.runs.listeners import LISTENERS
from lottery_nb.runs.reading import Run, write_plan
from lottery_nb.runs.trackers import flat, settings_of, Tracker
from lottery_nb.runs.workers import start
from lottery_nb.runs.writing import record, run

EPOCH = EpochDone("ticket seed 0", 1, 60, 0.1, 0.7, 0.8, 0.6, 0.85, 2.0)


class Kept(Tracker):
    def __init__(self):
        self.told = []
        super().__init__()

    def begin(self, folder, arm, settings):
        self.told.append(("begin", arm, settings))
        return arm

    def log(self, entry, numbers, epoch):
        self.told.append(("log", entry, epoch, numbers))

    def end(self, entry, done):
        self.told.append(("end", entry, done))


def epochs_of(found):
    "arm -> [(epoch, validation accuracy)], as the log has it."
    curves = {}
    for e in of("EpochDone", found.events):
        curves.setdefault(e.arm, []).append((e.epoch, pytest.approx(e.validation_accuracy, abs=1e-6)))
    return curves


def test_a_tracker_hears_each_arm_whole_and_in_order(tmp_path):
    kept = Kept()
    found = run(plan(), tmp_path / "run", "cpu", show=False, listeners=[kept])
    curves = epochs_of(found)
    assert len(curves) >= 2
    for arm, curve in curves.items():
        mine = [told for told in kept.told if told[1] == arm]
        assert [t[0] for t in mine] == ["begin", *["log"] * (len(curve) + 1), "end"] and mine[-1][2] is True
        assert [(t[2], t[3]["validation/accuracy"]) for t in mine[1:-2]] == curve
        (done,) = of("ArmDone", found.events, arm=arm)
        assert mine[-2][3]["kept/test/accuracy"] == done.metrics["test"]["accuracy"]
        (began,) = of("ArmStarted", found.events, arm=arm)
        assert mine[0][2]["arm.seed"] == began.tags["seed"] and mine[0][2]["arm.role"] == began.tags["role"]
        assert mine[0][2]["plan.recipe.lr"] == found.plan.recipe.lr


def test_what_is_trained_keeps_its_bits(tmp_path):
    found = run(plan(), tmp_path / "run", "cpu", show=False, listeners=[Kept()])
    apart = run(plan(), tmp_path / "elsewhere" / "run", "cpu", show=False)
    assert [t.content for t in apart.tickets] == [t.content for t in found.tickets]


def test_a_tool_that_fails_is_dropped_and_the_run_ends_done(tmp_path):
    class Away(Kept):
        def log(self, entry, numbers, epoch):
            raise ConnectionError("no route to the server")

    with pytest.warns(UserWarning, match="no route to the server"):
        found = run(plan(), tmp_path / "run", "cpu", show=False, listeners=[Away()])
    assert found.status == "done" and len(of("ListenerDropped", found.events)) == 1


def test_a_tool_that_hangs_holds_up_nothing_but_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "PATIENCE", 0.3)

    class Slow(Kept):
        def log(self, entry, numbers, epoch):
            time.sleep(3600)

    with pytest.warns(UserWarning, match=r"has not taken it all within 0\.3 s"):
        found = run(plan(), tmp_path / "run", "cpu", show=False, listeners=[Slow()])
    assert found.status == "done"


def test_a_tool_that_is_far_behind_is_given_up(monkeypatch):
    monkeypatch.setattr(trackers, "WAITING", 3)

    class Slow(Kept):
        def begin(self, folder, arm, settings):
            time.sleep(3600)

    slow = Slow()
    with pytest.raises(LotteryError, match="3 events behind"):
        for _ in range(6):
            slow(EPOCH, RunFolder("run"))


def test_an_arm_that_was_begun_in_another_process_is_begun_again(tmp_path):
    stream = record(plan(), tmp_path / "run", "cpu", listeners=[Kept()])
    while type(next(stream)).__name__ != "EpochDone":
        pass
    stream.close()
    before, kept = of("EpochDone", Run(tmp_path / "run").events), Kept()
    found = run(plan(), tmp_path / "run", "cpu", show=False, listeners=[kept])
    told = [(t[1], t[2]) for t in kept.told if t[0] == "log" and "validation/accuracy" in t[3]]
    every = [(e.arm, e.epoch) for e in of("EpochDone", found.events)]
    assert sorted(told) == sorted(every[len(before) :]) and found.status == "done"


def test_a_run_that_is_stopped_ends_what_it_began(tmp_path):
    kept = Kept()
    stream = record(plan(), tmp_path / "run", "cpu", listeners=[kept])
    while type(next(stream)).__name__ != "EpochDone":
        pass
    stream.close()
    begun = [t[1] for t in kept.told if t[0] == "begin"]
    assert begun and sorted(t[1:] for t in kept.told if t[0] == "end") == sorted((arm, False) for arm in begun)


def test_settings_are_flat_short_and_survive_a_damaged_plan(tmp_path):
    assert dict(flat({"a": {"b": [1, 2], "c": None}, "d": "x" * 900})) == {"a.b": "[1, 2]", "a.c": None, "d": "x" * 500}
    (tmp_path / "plan.json").write_text("{")
    assert settings_of(RunFolder(tmp_path), {"role": "dense"}) == {"arm.role": "dense"}


def test_the_flag_names_trackers_and_fills_listeners(capsys):
    args = make_parser().parse_args(["find", "--track", "tensorboard", "--listen", "print", "--track", "wandb"])
    assert args.listen == ["tensorboard", "print", "wandb"]
    with pytest.raises(SystemExit):
        main(["find", "--help"])
    said = capsys.readouterr().out
    table = said[said.index("names for --track:") :].partition("\n\n")[0]
    assert [line.split()[0] for line in table.splitlines()[1:] if line.startswith("  t")] == ["tensorboard", "trackio"]
    assert "print" not in table


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb", "trackio"])
def test_a_library_that_is_missing_is_refused_before_anything_is_trained(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LotteryError, match=rf"pip install 'lottery_nb\[{name}\]'"):
        run(plan(), tmp_path / "run", "cpu", show=False, listeners=[name])
    assert not (tmp_path / "run" / "events.jsonl").exists() or not of("ArmStarted", Run(tmp_path / "run").events)


def scalars_in(folder):
    "tag -> [(step, value)] of an event file."
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(s.step, s.value) for s in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_what_a_run_wrote(tmp_path):
    pytest.importorskip("tensorboard")
    found = run(plan(), tmp_path / "run", "cpu", show=False, listeners=["tensorboard"])
    curves, folders = epochs_of(found), sorted((tmp_path / "run" / "tensorboard").iterdir())
    assert len(folders) == len(curves)
    read = [scalars_in(folder)["validation/accuracy"] for folder in folders]
    assert all(curve in read for curve in curves.values())


def test_tensorboard_follows_a_worker(tmp_path):
    pytest.importorskip("tensorboard")
    found = start(plan(), tmp_path / "run", "cpu", listeners=("tensorboard",))
    deadline = time.monotonic() + 90
    while found.status in ("planned", "running") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found.status == "done"
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == len(epochs_of(found))


def test_tensorboard_writes_through_no_link(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "away").mkdir()
    write_plan(plan(), tmp_path / "run")
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "away")
    with pytest.raises(LotteryError, match="tensorboard"):
        run(plan(), tmp_path / "run", "cpu", show=False, listeners=["tensorboard"])
    assert not list((tmp_path / "away").iterdir())


def test_mlflow_reads_what_a_run_wrote_and_a_resumed_one_goes_on(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    stream = record(plan(), tmp_path / "run", "cpu", listeners=["mlflow"])
    while type(next(stream)).__name__ != "EpochDone":
        pass
    stream.close()
    found = run(plan(), tmp_path / "run", "cpu", show=False, listeners=["mlflow"])
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("lottery_nb")
    runs = client.search_runs([experiment.experiment_id])
    curves = epochs_of(found)
    assert len(runs) == len(curves) and {r.info.status for r in runs} == {"FINISHED"}
    for r in runs:
        arm = r.info.run_name.removeprefix("run ")
        history = client.get_metric_history(r.info.run_id, "validation/accuracy")
        assert sorted({(m.step, m.value) for m in history}) == curves[arm]
        assert r.data.params["plan.recipe.lr"] == str(found.plan.recipe.lr)


def test_wandb_keeps_runs_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    found = run(plan(), tmp_path / "run", "cpu", show=False, listeners=["wandb"])
    assert not of("ListenerDropped", found.events)
    kept = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(kept) == len(epochs_of(found)) and all(file.stat().st_size > 500 for file in kept)


def test_trackio_keeps_runs_in_its_folder(tmp_path):
    pytest.importorskip("trackio")
    told = f"{str(tmp_path / 'run')!r}, 'cpu', show=False, listeners=['trackio']"
    code = f"from tiny import plan; from lottery_nb.runs.writing import run; run(plan(), {told})"
    paths = [os.path.dirname(__file__), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    where = {"TRACKIO_DIR": str(tmp_path / "store"), "PYTHONPATH": os.pathsep.join(paths)}  # read when it is imported
    subprocess.run([sys.executable, "-c", code], env=os.environ | where, check=True, timeout=120)
    found = Run(tmp_path / "run")
    assert not of("ListenerDropped", found.events)
    (store,) = (tmp_path / "store").rglob("lottery_nb*.db")
    with sqlite3.connect(store) as db:
        rows = db.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    curves = {}
    for name, step, metrics in rows:
        if "validation/accuracy" in (numbers := json.loads(metrics)):
            curves.setdefault(name, []).append((step, numbers["validation/accuracy"]))
    want = [[(n, v.expected) for n, v in curve] for curve in epochs_of(found).values()]
    assert sorted(map(sorted, curves.values())) == sorted(want)


def test_a_class_of_somebody_else_is_a_tracker(tmp_path):
    assert isinstance(LISTENERS["tensorboard"], type) and os.fspath(RunFolder(tmp_path)) == str(tmp_path)
    kept = Kept()
    for e in (ArmStarted("ticket seed 0", {"role": "ticket"}, 1, 60), EPOCH, RunDone(2.0)):
        kept(e, RunFolder(tmp_path))
    assert [t[0] for t in kept.told] == ["begin", "log", "end"]
