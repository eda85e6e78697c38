"""Listeners and executors of runs: what they hear, how they fail, how a worker and a resumed run find them, and whom they trust."""

import json
import os
import sys
import time

import pytest
import tiny
from tiny import installed, of, plan

from lottery_nb.cli import main
from lottery_nb.core import LotteryError
from lottery_nb.files import RunFolder
from lottery_nb.runs.listeners import How, how_of, LISTENERS, read_how
from lottery_nb.runs.reading import Run, write_plan
from lottery_nb.runs.writing import record, run
from lottery_nb.runs.workers import glance, resume, start

TRACKER = """
from pathlib import Path
Path(__file__).with_suffix(".imported").touch()
def hears(event, folder):
    with open(folder.path/"tracked.txt", "a") as file: file.write(type(event).__name__ + chr(10))
def runs(jobs, lanes):
    from lottery_nb.engine.executors import in_threads
    return (yield from in_threads(jobs, 1))
"""


def kinds(events):
    return [type(e).__name__ for e in events]


def named_in(folder, executor="threads", listeners=()):
    folder.how.parent.mkdir(parents=True, exist_ok=True)
    folder.how.write_text(json.dumps({"executor": executor, "listeners": list(listeners)}))


def test_a_listener_hears_each_logged_event_after_it_is_written(tmp_path):
    heard, read = [], []

    def hears(event, folder):
        heard.append(event)
        read.append(kinds(Run(folder).events))

    found = run(plan(), tmp_path / "run", "cpu", show=False, listeners=hears)
    assert kinds(heard) == kinds(found.events) and "Tick" not in kinds(heard)
    assert read == [kinds(heard)[: n + 1] for n in range(len(heard))]
    apart = run(plan(), tmp_path / "elsewhere" / "run", "cpu", show=False)
    assert [t.content for t in apart.tickets] == [t.content for t in found.tickets]
    assert not found.folder.how.exists()  # it has no name


def test_a_resumed_run_tells_listeners_only_what_is_new(tmp_path):
    stream = record(plan(), tmp_path / "run", "cpu")
    while type(next(stream)).__name__ != "ArmDone":
        pass
    stream.close()
    before, heard = len(Run(tmp_path / "run").events), []
    found = run(
        plan(), tmp_path / "run", "cpu", show=False, listeners=[lambda event, folder: heard.append(event)]
    )
    assert kinds(heard) == kinds(found.events[before:]) and heard


def test_a_listener_that_raises_is_dropped_and_told_of_once(tmp_path):
    heard = []
    with pytest.warns(UserWarning, match="no route to the server") as warned:
        found = run(
            plan(),
            tmp_path / "run",
            "cpu",
            show=False,
            listeners=["tiny:broken", lambda event, folder: heard.append(event)],
        )
    (dropped,) = of("ListenerDropped", found.events)
    assert len([w for w in warned if "no route" in str(w.message)]) == 1 and found.status == "done"
    assert (dropped.listener, dropped.reason) == (
        "tiny:broken",
        "ConnectionError: no route to the server",
    ) and dropped in heard
    assert kinds(found.events)[:2] == ["RunStarted", "ListenerDropped"]


def test_a_listener_hears_how_a_run_ends(tmp_path):
    stopped = []
    stream = record(plan(), tmp_path / "run", "cpu", listeners=[lambda event, folder: stopped.append(event)])
    next(stream)
    stream.close()
    assert kinds(stopped)[-1] == "RunStopped"

    def fails(jobs, lanes):
        raise ZeroDivisionError("at once")
        yield

    with pytest.raises(ZeroDivisionError):
        run(
            plan(),
            tmp_path / "run",
            "cpu",
            show=False,
            listeners=[lambda event, folder: stopped.append(event)],
            executor=fails,
        )
    assert kinds(stopped)[-1] == "RunFailed"


def test_names_are_kept_in_the_folder_and_found_by_a_worker_and_a_resumed_run(tmp_path, monkeypatch):
    monkeypatch.setenv(
        "PYTHONPATH",
        os.pathsep.join(
            [os.path.dirname(tiny.__file__), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        ),
    )
    found = start(plan(), tmp_path / "run", "cpu", listeners=("tiny:heard",), executor="tiny:sent")
    deadline = time.monotonic() + 60
    while found.status in ("planned", "running") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found.status == "done" and (tmp_path / "run" / "heard.txt").read_text().split() == kinds(
        found.events
    )
    assert read_how(found.folder) == How("tiny:sent", ("tiny:heard",))


def test_a_name_is_that_of_a_function_of_a_module(tmp_path):
    run(
        plan(),
        tmp_path / "run",
        "cpu",
        show=False,
        listeners=(tiny.heard, LISTENERS["print"], lambda event, folder: 0),
        executor=tiny.sent,
    )
    assert read_how(RunFolder(tmp_path / "run")) == How("tiny:sent", ("tiny:heard", "print"))


@pytest.mark.parametrize(
    "how",
    [dict(listeners=(lambda event, folder: 0,)), dict(executor=lambda jobs, lanes: 0)],
    ids=["listener", "executor"],
)
def test_what_has_no_name_is_refused_for_a_worker_before_anything_is_written(how, tmp_path):
    with pytest.raises(LotteryError, match="has no name that another process finds"):
        start(plan(), tmp_path / "run", **how)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "how, says",
    [
        (dict(listeners=("prind",)), "did you mean 'print'"),
        (dict(executor="thread"), "did you mean 'threads'"),
        (dict(listeners=("nowhere:it",)), "cannot be imported"),
    ],
)
def test_an_unknown_name_is_refused_before_anything_is_written(how, says, tmp_path):
    for refused in (start, run):
        with pytest.raises(LotteryError, match=says):
            refused(plan(), tmp_path / "run", **how)
        assert not (tmp_path / "run").exists()


def test_a_name_in_a_folder_is_not_imported_unless_it_is_trusted(tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch, "tracker", TRACKER, listener="plugged = tracker:hears")
    folder, imported = RunFolder(tmp_path / "run"), tmp_path / "tracker.imported"
    stream = record(plan(), folder.path, "cpu")
    next(stream)
    stream.close()
    for how in (
        dict(listeners=["tracker:hears"]),
        dict(executor="tracker:runs"),
        dict(listeners=["print", "plugged"]),
    ):
        named_in(folder, **how)
        assert (
            Run(folder).status == "stopped"
            and Run(folder).plan == plan()
            and glance(folder)["status"] == "stopped"
        )  # reading imports nothing
        for refused in (
            lambda: run(plan(), folder.path, "cpu", show=False),
            lambda: resume(folder.path),
            lambda: start(plan(), folder.path),
            lambda: next(record(plan(), folder.path)),
        ):
            with pytest.raises(LotteryError, match="LOTTERY_TRUST=tracker"):
                refused()
        assert not imported.exists() and "tracker" not in sys.modules and Run(folder).status == "stopped"
    named_in(folder, listeners=["tracker:hears"])
    stream = record(plan(), folder.path, "cpu", listeners=(), executor="auto")  # given anew: without it
    next(stream)
    stream.close()
    assert not imported.exists() and read_how(folder) == How()
    named_in(folder, "tracker:runs", ["plugged"])
    monkeypatch.setenv("LOTTERY_TRUST", "guild, tracker")
    assert (
        run(plan(), folder.path, "cpu", show=False).status == "done"
        and imported.exists()
        and "RunDone" in (folder.path / "tracked.txt").read_text()
    )
    assert read_how(folder) == How("tracker:runs", ("plugged",))


def test_functions_of_this_package_are_not_for_a_folder_to_call(tmp_path):
    folder = RunFolder(tmp_path / "run")
    named_in(folder, listeners=["lottery_nb.files:write_atomic"])
    with pytest.raises(LotteryError, match="a folder may come from anyone"):
        how_of(folder)
    named_in(folder, listeners=["print"])
    assert how_of(folder) == How(listeners=("print",))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"executor": 3, "listeners": []}',
        '{"executor": "threads", "listeners": "print"}',
        '{"executor": "threads", "listeners": [["print"]]}',
        "[" * 100_000,
    ],
)
def test_a_damaged_how_is_refused_and_harms_no_reader(text, tmp_path):
    done = run(plan(), tmp_path / "run", "cpu", show=False)
    done.folder.how.write_text(text)
    assert Run(done.path).whole and run(plan(), done.path, show=False).status == "done"
    with pytest.raises(LotteryError, match="cannot be read as what works on a run"):
        how_of(done.folder)
    assert how_of(done.folder, "threads", (), ()) == How()


def test_the_shell_names_listeners(tmp_path, capsys, monkeypatch):
    write_plan(plan(), tmp_path / "run")
    assert (
        main(
            [
                "run",
                str(tmp_path / "run"),
                "--device",
                "cpu",
                "--quiet",
                "--listen",
                "print",
                "--executor",
                "tiny:sent",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("run: ")] == [
        f"run: {e.says()}" for e in Run(tmp_path / "run").events
    ]
    assert read_how(RunFolder(tmp_path / "run")) == How("tiny:sent", ("print",))
