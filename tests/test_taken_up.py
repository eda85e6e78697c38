"""Runs that are taken up again after someone changed something: the plan, the code, a file, the layout, the engine, the clock, or the worker itself."""

import importlib
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
from filelock import FileLock
from tiny import of, plan

from lottery_nb.runs import reading as runs_reading
from lottery_nb.runs import writing as runs_writing
from lottery_nb.engine import arms as engine_arms
from lottery_nb.engine import recipes as engine_recipes
from lottery_nb.cli import main
from lottery_nb.core import LotteryError
from lottery_nb.events import RunFailed
from lottery_nb.runs.log import worker_of
from lottery_nb.runs.reading import Run, write_plan
from lottery_nb.runs.writing import record, run, steer
from lottery_nb.plans.tickets import Ticket
from lottery_nb.engine.recipes import Recipe
from lottery_nb.runs.workers import pause, resume, start, stop


def until(folder, kind, count, **how):
    "Run a plan up to the nth event of a kind, and close it there."
    stream = record(plan(seeds=3, controls=("reinit",)), folder, "cpu", **how)
    for e in stream:
        count -= type(e).__name__ == kind
        if count == 0:
            break
    stream.close()


def frames(found):
    return found.frame.sort_values(["arm", "epoch", "split", "metric"]).reset_index(drop=True)


@pytest.mark.parametrize("asked, other", [("alone", "stacked"), ("stacked", "alone"), (2, "auto")])
def test_a_run_keeps_the_layout_that_it_began_with(asked, other, tmp_path):
    whole = run(
        plan(seeds=3, controls=("reinit",)), tmp_path / "whole" / "run", "cpu", show=False, layout=asked
    )
    until(tmp_path / "cut" / "run", "ArmDone", 4, layout=asked)
    again = run(
        plan(seeds=3, controls=("reinit",)), tmp_path / "cut" / "run", "cpu", show=False, layout=other
    )

    def groups(r):
        return sorted({tuple(sorted(g)) for e in of("Layout", r.events) for g in e.groups})

    assert groups(again) == groups(whole) and frames(again).equals(frames(whole))
    assert max(len(g) for g in groups(whole)) == {"alone": 1, "stacked": 6, 2: 2}[asked]


def test_one_by_one_is_not_taken_from_a_stack(tmp_path):
    run(plan(seeds=3), tmp_path / "a", "cpu", show=False, layout="stacked")
    alone = run(plan(seeds=3), tmp_path / "b", "cpu", show=False, layout="alone")
    assert not of("ArmTaken", alone.events) and {
        len(g) for e in of("Layout", alone.events) for g in e.groups
    } == {1}


@pytest.mark.parametrize("harm", ["cut", "pickle", "snapshot"])
def test_a_damaged_ticket_is_written_again(harm, tmp_path):
    whole = run(plan(seeds=3, controls=("reinit",)), tmp_path / "whole" / "run", "cpu", show=False)
    until(tmp_path / "cut" / "run", "TicketFound", 4)
    ticket = sorted((tmp_path / "cut" / "run" / "tickets").iterdir())[0]
    target = (
        max((tmp_path / "cut" / "run" / "snapshots").iterdir(), key=lambda p: p.stat().st_size)
        if harm == "snapshot"
        else ticket
    )
    target.write_bytes(b"\x80\x04." if harm == "pickle" else target.read_bytes()[:200])
    again = run(plan(seeds=3, controls=("reinit",)), tmp_path / "cut" / "run", "cpu", show=False)
    assert [t.content for t in again.tickets] == [t.content for t in whole.tickets]


def test_a_finished_run_whose_plan_was_changed_is_refused(tmp_path, capsys):
    found = run(plan(), tmp_path / "run", "cpu", show=False)
    file = found.path / "plan.json"
    file.write_text(file.read_text().replace('"epochs": 2', '"epochs": 3'))
    assert (
        main(["run", str(found.path), "--quiet"]) == 2
        and "not the plan that this run began with" in capsys.readouterr().err
    )


def test_a_run_whose_plan_was_changed_is_not_taken_up(tmp_path, capsys):
    until(tmp_path / "run", "ArmDone", 1)
    file, before = tmp_path / "run" / "plan.json", (tmp_path / "run" / "events.jsonl").read_bytes()
    file.write_text(file.read_text().replace('"epochs": 2', '"epochs": 3'))
    assert (
        main(["resume", str(tmp_path / "run")]) == 2
        and "not the plan that this run began with" in capsys.readouterr().err
    )
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == before and Run(
        tmp_path / "run"
    ).status == "stopped"


def test_a_network_whose_code_was_changed_is_trained_again(tmp_path, monkeypatch):
    code = (
        "import torch\nfrom torch import nn\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, shape, n):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Linear(64, 8), nn.Linear(8, n)\n"
        "    def forward(self, x): return self.b(torch.relu(self.a(x.flatten(1))))\n\n"
        "def make(input_shape, n_classes): return Net(input_shape, n_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "somenet.py").write_text(code)
    importlib.invalidate_caches()
    first = run(plan(network="somenet:make", width=1.0), tmp_path / "runs" / "a", "cpu", show=False)
    (tmp_path / "somenet.py").write_text(code.replace("torch.relu", "torch.tanh") + "\n# changed\n")
    importlib.reload(sys.modules["somenet"])
    second = run(plan(network="somenet:make", width=1.0), tmp_path / "runs" / "b", "cpu", show=False)
    assert not of("ArmTaken", second.events) and first.plan.hash != second.plan.hash
    assert not frames(first)["value"].equals(frames(second)["value"])


def test_a_worker_is_told_the_layout(tmp_path):
    found = start(plan(seeds=3), tmp_path / "run", "cpu", layout="alone")
    deadline = time.monotonic() + 60
    while found.status != "done" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found.status == "done" and {len(g) for e in of("Layout", found.events) for g in e.groups} == {1}
    with pytest.raises(LotteryError, match="layout"):
        start(plan(seeds=2), tmp_path / "other", "cpu", layout="foo")
    assert not (tmp_path / "other").exists()


def test_a_worker_that_is_suspended_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("lottery_nb.runs.log.DEAD_AFTER", 1.5)
    found = start(plan(recipe=Recipe(epochs=5000, batch_size=32)), tmp_path / "run", "cpu")
    pid = worker_of(found.path).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        while found.status == "running":
            time.sleep(0.1)
        assert found.status == "interrupted"
        for act in (resume, stop, pause):
            with pytest.raises(LotteryError, match=f"process {pid} holds .*kill -CONT {pid}"):
                act(found.path)
    finally:
        os.kill(pid, signal.SIGCONT)
    while found.status != "running":
        time.sleep(0.1)
    assert stop(found.path).status == "stopped"


def test_a_worker_that_fails_at_once_says_why_in_the_shell(tmp_path, capsys):
    write_plan(plan(), tmp_path / "run")
    file = tmp_path / "run" / "plan.json"
    file.write_text(file.read_text().replace("digits[0-4]@200", "digits[0-4]+no_such_shift@200"))
    assert main(["resume", str(tmp_path / "run")]) == 1 and "no_such_shift" in capsys.readouterr().err


# --- another engine, device or torch: nothing of the old one stays in the table ---


def test_arms_that_are_trained_anew_leave_no_old_numbers(tmp_path, monkeypatch):
    until(tmp_path / "cut" / "run", "RoundDone", 2)
    old = Run(tmp_path / "cut" / "run")
    begun = {e.arm for e in of("ArmStarted", old.events)}
    monkeypatch.setattr(engine_arms, "ENGINE", engine_arms.ENGINE + 1)
    factor = engine_recipes.lr_factor
    monkeypatch.setattr(engine_recipes, "lr_factor", lambda *args: 0.7 * factor(*args))
    with pytest.warns(UserWarning, match="they are trained anew"):
        again = run(plan(seeds=3, controls=("reinit",)), tmp_path / "cut" / "run", "cpu", show=False)
    fresh = run(plan(seeds=3, controls=("reinit",)), tmp_path / "fresh" / "run", "cpu", show=False)
    assert begun and frames(again).equals(frames(fresh)) and again.info["arms"] == fresh.info["arms"]

    def inside(r):
        return {
            p.relative_to(r.path): p.read_bytes()
            for part in ("tickets", "snapshots")
            for p in (r.path / part).iterdir()
        }

    assert inside(again) == inside(fresh)


def test_a_run_is_taken_up_on_the_device_where_it_was(tmp_path, monkeypatch):
    until(tmp_path / "run", "ArmDone", 1)
    seen, pick = [], runs_writing.pick_device
    monkeypatch.setattr(runs_writing, "pick_device", lambda name: seen.append(str(name)) or pick(name))
    stream = record(plan(seeds=3, controls=("reinit",)), tmp_path / "run")
    next(stream)
    stream.close()
    assert set(seen) == {"cpu"}
    file = tmp_path / "run" / "events.jsonl"
    file.write_text(file.read_text().replace('"device":"cpu"', '"device":"cuda:77"'))
    stream = record(plan(seeds=3, controls=("reinit",)), tmp_path / "run")
    next(stream)
    stream.close()
    assert seen[-1] == "auto"  # a device that is not here


# --- lost files, other processes, other clocks ---


@pytest.mark.parametrize("lost", ["ticket", "snapshot", "damaged"])
def test_a_finished_run_makes_lost_tickets_again(lost, tmp_path):
    found = run(plan(seeds=2), tmp_path / "run", "cpu", show=False)
    contents, epochs = [t.content for t in found.tickets], len(of("EpochDone", found.events))
    for file in (found.path / ("snapshots" if lost == "snapshot" else "tickets")).iterdir():
        file.write_bytes(b"{}") if lost == "damaged" else file.unlink()
    again = run(plan(seeds=2), tmp_path / "run", "cpu", show=False)
    assert (
        again.status == "done"
        and [t.content for t in again.tickets] == contents
        and len(of("EpochDone", again.events)) == epochs
    )
    assert run(plan(seeds=2), tmp_path / "run", "cpu", show=False).info == again.info


def test_a_plan_that_came_second_does_not_train_in_the_folder_of_the_first(tmp_path, monkeypatch):
    working = runs_writing.working

    def late(folder):
        monkeypatch.undo()
        run(plan(seeds=1), tmp_path / "run", "cpu", show=False)  # another process is faster
        return working(folder)

    monkeypatch.setattr(runs_writing, "working", late)
    with pytest.raises(LotteryError, match="another plan"):
        run(plan(seeds=2), tmp_path / "run", "cpu", show=False)
    assert (
        Run(tmp_path / "run").status == "done"
        and run(plan(seeds=1), tmp_path / "run", "cpu", show=False).status == "done"
    )


def test_a_worker_that_died_while_it_was_paused_is_taken_up(tmp_path):
    found = start(plan(recipe=Recipe(epochs=5000, batch_size=32)), tmp_path / "run", "cpu")
    pause(found.path)
    while found.status != "paused":
        time.sleep(0.02)
    os.kill(worker_of(found.path).pid, signal.SIGKILL)
    with FileLock(found.path / "lock", timeout=10):
        assert found.status == "paused"  # its last heartbeat is young
    assert resume(found.path).status == "running" and len(of("RunStarted", found.events)) == 2
    assert stop(found.path).status == "stopped"


def test_a_worker_outlives_the_process_that_started_it(tmp_path):
    write_plan(plan(recipe=Recipe(epochs=5000, batch_size=32)), tmp_path / "run")
    code = (
        "import time; from lottery_nb.runs.workers import resume; "
        f"resume({str(tmp_path / 'run')!r}, 'cpu'); print('up', flush=True); time.sleep(99)"
    )
    kernel = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert kernel.stdout.readline() == "up\n"
    os.killpg(kernel.pid, signal.SIGKILL)
    kernel.wait()
    found = Run(tmp_path / "run")
    told = len(found.events)
    deadline = time.monotonic() + 30
    while len(found.events) < told + 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(found.events) >= told + 5 and stop(found.path).status == "stopped"


def test_a_worker_that_reads_its_data_can_be_stopped(tmp_path, monkeypatch):
    planned, stopped = runs_reading.PLANS[type(plan())], []

    def slow(*args):
        assert Run(tmp_path / "run").status == "running"
        steer(tmp_path / "run", "stop")
        stopped.append(True)
        return planned(*args)

    write_plan(plan(), tmp_path / "run")
    monkeypatch.setitem(runs_reading.PLANS, type(plan()), slow)
    assert (
        run(plan(), tmp_path / "run", "cpu", show=False).status == "stopped"
        and stopped
        and not of("ArmStarted", Run(tmp_path / "run").events)
    )


def test_a_worker_stops_in_the_middle_of_an_epoch(tmp_path):
    stream = record(plan(network="conv-2", recipe=Recipe(epochs=1, batch_size=1)), tmp_path / "run", "cpu")
    next(e for e in stream if type(e).__name__ == "Tick")
    steer(tmp_path / "run", "stop")
    clock, rest = time.monotonic(), list(stream)
    assert time.monotonic() - clock < 1 and [
        type(e).__name__ for e in rest if type(e).__name__ != "Tick"
    ] == ["RunStopped"]


def test_an_interrupted_progress_bar_lets_go_of_the_run(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs_writing.tqdm, "update", interrupt)
    with pytest.raises(KeyboardInterrupt) as kept:
        run(plan(), tmp_path / "run", "cpu", show=False)
    assert kept and Run(tmp_path / "run").status == "stopped"  # though the traceback is still held
    monkeypatch.undo()
    assert run(plan(), tmp_path / "run", "cpu", show=False).status == "done"


# --- errors that are hard to write down ---


def test_a_worker_that_cannot_import_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "filelock.py").write_text("raise ImportError('half an installation')")
    monkeypatch.syspath_prepend(tmp_path / "broken")  # a worker looks where its starter does
    found = start(plan(), tmp_path / "run", "cpu")
    failed = found.events[-1]
    assert (
        found.status == "failed"
        and isinstance(failed, RunFailed)
        and "half an installation" in failed.traceback
    )


@pytest.mark.parametrize("message", ["lone \ud800 surrogate", "x" * 3_000_000, "two\nlines\n\nand more"])
def test_any_message_of_an_error_reaches_the_log(message, tmp_path, monkeypatch):
    def breaks(*_):
        raise ValueError(message)

    monkeypatch.setattr(runs_writing, "_command", breaks)
    with pytest.raises(ValueError):
        run(plan(), tmp_path / "run", "cpu", show=False)
    failed = Run(tmp_path / "run").events[-1]
    assert (
        Run(tmp_path / "run").status == "failed"
        and "\n" not in failed.reason
        and failed.reason[:3] == message[:3]
        and len(failed.reason) <= 2100
    )


def test_states_take_a_twentieth_of_the_time_where_writing_is_slow(tmp_path, monkeypatch):
    write = runs_writing.write_arms
    spent = []

    def slow(path, saved):
        if path.name.startswith("state-"):
            time.sleep(0.05)
            spent.append(0.05)
        write(path, saved)

    monkeypatch.setattr(runs_writing, "write_arms", slow)
    clock = time.monotonic()
    run(plan(seeds=1, recipe=Recipe(epochs=400, batch_size=200)), tmp_path / "run", "cpu", show=False)
    epochs = len(of("EpochDone", Run(tmp_path / "run").events))
    assert spent and epochs > 400 and len(spent) <= 3 + (time.monotonic() - clock) / (20 * 0.05)


def test_a_folder_is_forced_to_the_disk_after_a_rename(tmp_path, monkeypatch):
    from lottery_nb.files import write_atomic

    fsync, seen = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(os.fstat(fd).st_mode) or fsync(fd))
    write_atomic(tmp_path / "a", "x")
    assert [stat.S_ISDIR(mode) for mode in seen] == [False, True]


def test_a_pipe_that_poses_as_a_ticket_is_refused(tmp_path):
    os.mkfifo(tmp_path / "t.safetensors")
    with pytest.raises(LotteryError, match="is no file"):
        Ticket.load(tmp_path / "t.safetensors")
