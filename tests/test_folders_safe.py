"""A run's folder that came from anyone, or goes away: links and pipes in it, a worker whose folder is moved or deleted, two workers at once, and the limits of a system. Real processes and real signals.

The long loops run with `--flags slow`."""

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from breaking import until
from tiny import of, plan, within

from lottery_nb.core import Busy, LotteryError
from lottery_nb.engine.recipes import Recipe
from lottery_nb.events import EpochDone
from lottery_nb.files import Gone, held, write_atomic
from lottery_nb.pruning.schedules import geometric
from lottery_nb.runs import workers as runs_workers
from lottery_nb.runs.log import Tail, Worker, worker_of
from lottery_nb.runs.reading import Run, write_plan
from lottery_nb.runs.workers import BUSY, glance, resume, start, stop, work
from lottery_nb.runs.writing import record, run, steer

LONG = Recipe(lr=0.01, epochs=100_000, batch_size=32)
FILES = ("events.jsonl", "lock", "heartbeat", "worker.log", "control")
FOLDERS = ("arms", "tickets", "snapshots", "inputs")


def tree(folder):
    "Every file in a folder with its bytes, links as where they lead."
    return {
        p.relative_to(folder).as_posix(): os.readlink(p) if p.is_symlink() else p.is_file() and p.read_bytes()
        for p in sorted(Path(folder).rglob("*"))
    }


def outcome(folder):
    "Results and the bytes of tickets."
    frame = Run(folder).frame.sort_values(["arm", "epoch", "split", "metric"], ignore_index=True)
    return frame, {p.name: p.read_bytes() for p in sorted((Path(folder) / "tickets").iterdir())}


def same(a, b):
    return a[0].equals(b[0]) and a[1] == b[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A search that nobody disturbed."
    return run(plan(), tmp_path_factory.mktemp("whole") / "run", "cpu", show=False)


@pytest.fixture
def many(request):
    "Skips what is too long for every day."

    def many(n, often):
        if n > often and "slow" not in request.config.getoption("--flags"):
            pytest.skip(f"{n} rounds take minutes: run with --flags slow")

    return many


@pytest.fixture
def workers():
    "Processes that a test began, which end with it."
    begun = []
    yield begun
    for process in begun:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def begun(p, folder, workers):
    "A worker on a plan that trains by now."
    found = start(p, folder, "cpu")
    workers.append(worker_of(folder).pid)
    until(lambda: of("EpochDone", found.events))
    return found, worker_of(folder)


# --- links, pipes, sockets, devices ---


def to_file(part, outside):
    (outside / "file").write_text("theirs")
    part.symlink_to(outside / "file")


def to_nothing(part, outside):
    part.symlink_to(outside / "not there yet")


def to_folder(part, outside):
    part.symlink_to(outside, target_is_directory=True)


def by_a_chain(part, outside):
    to_file(outside / "second", outside)
    part.symlink_to(outside / "second")


def pipe(part, outside):
    os.mkfifo(part)


def plug(part, outside):
    here = os.getcwd()
    os.chdir(part.parent)  # the name of a socket is short
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as s:
        s.bind(part.name)
    os.chdir(here)


def null(part, outside):
    part.symlink_to("/dev/zero")


LINKS, ODD = (to_file, to_nothing, to_folder, by_a_chain), (pipe, plug, null)


@pytest.mark.parametrize("way", LINKS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("part", [*FILES, *FOLDERS])
def test_nothing_is_written_through_a_link(part, way, whole, tmp_path):
    folder, outside = tmp_path / "a" / "run", tmp_path / "outside"
    folder.mkdir(parents=True)
    outside.mkdir()
    shutil.copy(whole.path / "plan.json", folder)
    way(folder / part, outside)
    before = tree(outside)
    for refused in (
        lambda: run(plan(), folder, "cpu", show=False),
        lambda: start(plan(), folder, "cpu"),
        lambda: work(folder, "cpu"),
        lambda: write_plan(plan(), folder),
    ):
        with within(20), pytest.raises(LotteryError, match=f"{part} in .* is a symbolic link"):
            refused()
    assert tree(outside) == before


@pytest.mark.parametrize("part", FOLDERS)
def test_a_link_that_comes_while_a_run_goes_on_leads_nowhere(part, tmp_path):
    folder, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    with held(folder):
        write_atomic(folder / part / "first", b"1")
        shutil.rmtree(folder / part)
        (folder / part).symlink_to(outside)
        with pytest.raises(OSError):
            write_atomic(folder / part / "second", b"2")
    assert not tree(outside)


def test_a_run_whose_folder_of_arms_becomes_a_link_writes_nothing_there(tmp_path):
    folder, outside = tmp_path / "a" / "run", tmp_path / "outside"
    outside.mkdir()
    for e in record(plan(), folder, "cpu"):
        if isinstance(e, EpochDone) and not (folder / "arms").is_symlink():
            shutil.rmtree(folder / "arms", ignore_errors=True)
            (folder / "arms").symlink_to(outside)
    assert not tree(outside) and of("NotSaved", Run(folder).events)


def test_the_folder_of_a_run_may_be_a_link_and_may_lie_behind_one(whole, tmp_path):
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "deep")
    for folder in (tmp_path / "runs" / "x" / "run", tmp_path / "run"):
        assert same(outcome(run(plan(), folder, "cpu", show=False).path), outcome(whole.path))


def looked_at(folder):
    "All that reads a run's folder."
    found = Run(folder)
    found.status, found.events, found.frame, found.layers, found.info, repr(found), found.whole, found.tickets
    return found


@pytest.mark.parametrize("way", ODD, ids=lambda way: way.__name__)
@pytest.mark.parametrize("part", ["plan.json", "how.json", *FILES, *FOLDERS])
def test_what_would_wait_for_ever_is_refused_at_once(part, way, whole, tmp_path):
    folder = shutil.copytree(whole.path, tmp_path / "a" / "run")
    shutil.rmtree(folder / part, ignore_errors=True)
    (folder / part).unlink(missing_ok=True)
    way(folder / part, tmp_path)
    log = (folder / "events.jsonl").read_bytes().splitlines(keepends=True) if part != "events.jsonl" else []
    if log:
        (folder / "events.jsonl").write_bytes(b"".join(log[:9]))
    with within(30):
        glance(folder)
        with contextlib.suppress(LotteryError):
            looked_at(folder)
        for refused in (lambda: run(plan(), folder, "cpu", show=False), lambda: resume(folder, "cpu")):
            with pytest.raises(LotteryError) as refusal:
                refused()
            assert part in str(refusal.value) or "no plan.json" in str(refusal.value), refusal.value
        steer(folder, "stop")


@pytest.mark.parametrize("way", ODD, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", ["tickets", "snapshots", "arms"])
def test_a_pipe_in_the_place_of_a_ticket_is_made_again_as_a_file(kind, way, whole, tmp_path):
    folder = shutil.copytree(whole.path, tmp_path / "a" / "run")
    file = sorted((folder / kind).iterdir())[-1]
    file.unlink()
    way(file, tmp_path)
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "events.jsonl").write_bytes(b"".join(lines[:-1]))
    with within(60):
        if kind != "arms":
            with pytest.raises(LotteryError):
                looked_at(folder)
        again = run(plan(), folder, "cpu", show=False)
        assert again.status == "done" and same(outcome(folder), outcome(whole.path)) and file.is_file()


# --- a folder that goes away ---


def until_gone(stream, away):
    """Goes on with a run whose folder goes `away` after its first epoch: the error, and the seconds until it came."""
    clock = None
    try:
        with within(60):
            for e in stream:
                if isinstance(e, EpochDone) and clock is None:
                    away()
                    clock = time.monotonic()
    except Gone as e:
        return e, time.monotonic() - clock
    raise AssertionError("it went on for nobody")


@pytest.mark.parametrize("way", ["moved", "moved and replaced", "parent moved"])
def test_a_run_whose_folder_is_moved_ends_and_is_taken_up_where_it_lies(way, whole, tmp_path):
    old, new = tmp_path / "a" / "run", tmp_path / "b" / "run"

    def away():
        if way == "parent moved":
            (tmp_path / "a").rename(tmp_path / "b")
            return
        new.parent.mkdir()
        old.rename(new)
        if way == "moved and replaced":
            shutil.copytree(whole.path, old)

    error, seconds = until_gone(record(plan(), old, "cpu"), away)
    assert seconds < 2 and "take the run up where it lies now" in str(error)
    assert tree(old) == tree(whole.path) if way == "moved and replaced" else not old.exists()
    moved = Run(new)
    assert moved.status == "failed" and "was moved or removed" in of("RunFailed", moved.events)[-1].reason
    assert "heartbeat" not in tree(new)
    assert run(plan(), new, "cpu", show=False).status == "done" and same(outcome(new), outcome(whole.path))


@pytest.mark.parametrize("part", [None, "lock", "events.jsonl"])
def test_a_run_whose_folder_is_emptied_ends(part, tmp_path):
    """A folder that is deleted while something is written in it stays behind, without its log: nobody would see the run go on."""
    folder = tmp_path / "run"

    def away():
        for file in folder.iterdir():
            if file.is_file() and part in (None, file.name):
                file.unlink()

    error, seconds = until_gone(record(plan(recipe=LONG), folder, "cpu"), away)
    assert seconds < 2 and "was moved or removed" in str(error)
    assert not (folder / "heartbeat").exists()


@pytest.mark.parametrize("what", ["none", "a link", "a file", "a pipe", "another folder"])
@pytest.mark.parametrize("part", ["arms", "tickets", "snapshots"])
def test_a_run_ends_when_a_part_of_its_folder_is_another_one_and_is_taken_up_whole(
    part, what, whole, tmp_path
):
    """Nothing is written elsewhere, and no run is done whose tickets were removed meanwhile."""
    folder, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    put = {"a link": lambda p: p.symlink_to(outside), "a pipe": os.mkfifo, "another folder": Path.mkdir}
    put |= {"a file": Path.touch, "none": lambda p: None}
    with (
        pytest.raises(Gone, match=f"{part} in it"),
        contextlib.closing(record(plan(), folder, "cpu")) as stream,
    ):
        for e in stream:
            if isinstance(e, EpochDone) and (folder / part).is_dir() and list((folder / part).iterdir()):
                shutil.rmtree(folder / part)
                put[what](folder / part)
    assert Run(folder).status == "failed" and not list(outside.iterdir())
    if what not in ("none", "another folder"):
        (folder / part).unlink()
    again = run(plan(), folder, "cpu", show=False)
    assert again.whole and same(outcome(folder), outcome(whole.path))


@pytest.mark.parametrize("way", ["deleted", "deleted and made again", "parent deleted", "in a pause"])
def test_a_run_whose_folder_is_deleted_ends_and_makes_nothing_again(way, tmp_path):
    folder = tmp_path / "a" / "run"

    def away():
        if way == "in a pause":
            steer(folder, "pause")
            threading.Timer(0.3, shutil.rmtree, (folder,)).start()
            return
        shutil.rmtree(folder.parent if way == "parent deleted" else folder)
        if way == "deleted and made again":
            folder.mkdir()

    _, seconds = until_gone(record(plan(recipe=LONG), folder, "cpu"), away)
    assert seconds < 2
    time.sleep(1.2)  # longer than from one beat of the heart to the next
    assert not list(folder.iterdir()) if way == "deleted and made again" else not folder.exists()


def deleted(folder):
    "Whether a folder is there no more, after a try: a file may come while the others go."
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def test_a_worker_notices_that_its_folder_is_gone_wherever_it_went(whole, workers, tmp_path):
    """Two processes of their own: one is moved, one deleted."""
    kept, lost = tmp_path / "kept", tmp_path / "lost"
    (_, first), (_, second) = (begun(plan(recipe=LONG), folder, workers) for folder in (kept, lost))
    clock = time.time()
    kept.rename(tmp_path / "moved")
    until(lambda: deleted(lost))
    until(lambda: not first.lives and not second.lives)
    ((t, said),) = [(t, e) for t, e in Tail(tmp_path / "moved" / "events.jsonl").new() if e.word == "failed"]
    assert t - clock < 5 and "was moved or removed" in said.reason
    assert (tmp_path / "moved" / "worker.log").read_text().startswith("Gone: ")
    assert not kept.exists() and not lost.exists()


def test_a_worker_is_stopped_where_its_folder_lies_by_then(workers, tmp_path):
    "The folder goes away while `stop` waits: it waits for the process, not for the path."
    folder = tmp_path / "run"
    _, who = begun(plan(recipe=LONG), folder, workers)
    os.kill(who.pid, signal.SIGSTOP)
    folder.rename(tmp_path / "moved")
    assert worker_of(tmp_path / "moved") == who and who.lives
    os.kill(who.pid, signal.SIGCONT)
    assert stop(tmp_path / "moved").status == "failed"
    until(lambda: not who.lives)


def test_a_number_that_another_process_has_now_is_not_the_worker(tmp_path):
    this = Worker.this()
    for other in (
        Worker(this.pid, "1", this.system),
        Worker(this.pid, this.began, "elsewhere"),
        Worker(this.pid),
    ):
        assert this.lives and not other.lives
    child = subprocess.Popen([sys.executable, "-c", ""])
    who = Worker(child.pid, runs_workers.worker_of.__globals__["_began"](child.pid), this.system)
    until(lambda: not who.lives, 10)  # it has ended, though nobody has asked how
    child.wait()


# --- two workers ---


def test_two_clicks_are_one_worker_and_no_word_of_the_other_in_its_log(workers, tmp_path):
    folder = tmp_path / "run"
    write_plan(plan(recipe=LONG), folder)
    code = "import sys; from lottery_nb.runs.workers import work_alone; work_alone(sys.argv[1:])"
    words = [sys.executable, "-c", code, str(folder), "cpu", "auto", "auto"]
    both = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    workers.extend(p.pid for p in both)
    until(lambda: any(p.poll() is not None for p in both))
    first, second = sorted(both, key=lambda p: p.poll() is not None)
    said = second.communicate()[1]
    assert (
        second.returncode == BUSY
        and said.startswith("Busy: another process works on")
        and said.count("\n") == 1
    )
    until(lambda: of("EpochDone", Run(folder).events))
    assert first.poll() is None and not of("RunFailed", Run(folder).events)
    assert stop(folder).status == "stopped" and first.wait(20) == 0


def test_the_second_click_is_told_when_its_worker_finds_the_first(workers, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    _, who = begun(plan(recipe=LONG), folder, workers)
    monkeypatch.setattr(runs_workers, "_is_locked", lambda found: False)  # as it was a moment ago
    before = (folder / "events.jsonl").read_bytes()
    monkeypatch.setattr(
        runs_workers, "_spawn", lambda *_: subprocess.Popen([sys.executable, "-c", f"exit({BUSY})"])
    )
    os.kill(who.pid, signal.SIGSTOP)
    with pytest.raises(Busy):
        resume(folder, "cpu")
    assert (folder / "events.jsonl").read_bytes().startswith(before)
    assert not of("RunFailed", Run(folder).events)


def test_errors_of_a_second_worker_do_not_go_into_the_log_of_the_first(workers, tmp_path):
    folder = tmp_path / "run"
    begun(plan(recipe=LONG), folder, workers)
    good = (folder / "plan.json").read_text()
    for text, how in ((good, ("cuda:99",)), (good, ("cpu", "sideways")), ("{}", ("cpu",))):
        (folder / "plan.json").write_text(text)
        with pytest.raises(LotteryError):
            work(folder, *how)
    (folder / "plan.json").write_text(good)
    assert not of("RunFailed", Run(folder).events)


def test_the_error_of_a_worker_that_is_alone_goes_into_the_log(tmp_path):
    write_plan(plan(), tmp_path / "run")
    with pytest.raises(LotteryError):
        work(tmp_path / "run", "cuda:99")
    assert "cuda:99" in of("RunFailed", Run(tmp_path / "run").events)[-1].reason


# --- what a system does to a worker: each ends in a sentence, and is taken up with the same bits ---


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    "A search of some seconds that nobody disturbed."
    p = plan(recipe=Recipe(lr=0.05, epochs=60, batch_size=32), schedule=geometric(0.4, 1))
    return run(p, tmp_path_factory.mktemp("longer") / "run", "cpu", show=False)


@pytest.mark.parametrize("rounds", [1, 15])
def test_a_worker_outlives_its_shell_and_sleeps_and_wakes(rounds, longer, workers, many, tmp_path):
    many(rounds, often=1)
    for i in range(rounds):
        folder = tmp_path / str(i) / "run"
        write_plan(longer.plan, folder)
        code = f"from lottery_nb.cli import main; main(['run', {str(folder)!r}, '--background', '--device', 'cpu'])"
        shell = subprocess.Popen(
            ["sh", "-c", '"$0" -c "$1"; sleep 600', sys.executable, code], start_new_session=True
        )
        workers.append(shell.pid)
        until(lambda folder=folder: of("EpochDone", Run(folder).events), 120)
        who = worker_of(folder)
        workers.append(who.pid)
        os.kill(who.pid, signal.SIGSTOP)
        os.killpg(shell.pid, signal.SIGKILL)
        os.utime(folder / "heartbeat", (0, 0))  # as it is after ten seconds
        assert Run(folder).status == "interrupted" and who.lives
        with pytest.raises(Busy, match=f"process {who.pid} holds .* wake it with `kill -CONT {who.pid}`"):
            resume(folder, "cpu")
        os.kill(who.pid, signal.SIGCONT)
        until(lambda folder=folder: Run(folder).status == "done", 120)
        assert same(outcome(folder), outcome(longer.path))


def taken_up(folder, p, whole, says):
    "A failed run has a sentence, and is taken up."
    failed = Run(folder)
    assert failed.status == "failed" and says in of("RunFailed", failed.events)[-1].reason, failed.events[-1]
    assert run(p, folder, "cpu", show=False).status == "done" and same(outcome(folder), outcome(whole.path))


NO_MEMORY = """
import re, resource, sys
from pathlib import Path
from lottery_nb.events import ArmStarted
from lottery_nb.runs.reading import read_plan
from lottery_nb.runs.writing import record
stream = record(read_plan(sys.argv[1]), Path(sys.argv[1]), "cpu")
next(e for e in stream if isinstance(e, ArmStarted))
size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + (4 << 20),) * 2)
for _ in stream:
    pass
"""


def test_memory_that_runs_out_in_a_stack_is_said(tmp_path):
    """In a process of its own: a library below may end it without a word, and then the run is interrupted."""
    p = plan(width=4.0, seeds=6, schedule=geometric(0.4, 1), recipe=Recipe(lr=0.05, epochs=1, batch_size=90))
    whole, folder = run(p, tmp_path / "a" / "run", "cpu", show=False), tmp_path / "b" / "run"
    write_plan(p, folder)
    words = [sys.executable, "-c", NO_MEMORY, str(folder)]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode
    if ended.returncode == 1:
        taken_up(folder, p, whole, "memory ran out, make room and take the run up again")
        return
    os.utime(folder / "heartbeat", (0, 0))
    assert Run(folder).status == "interrupted"
    assert run(p, folder, "cpu", show=False).status == "done" and same(outcome(folder), outcome(whole.path))


def test_files_that_may_not_be_opened_any_more_are_said(whole, tmp_path):
    folder, (soft, hard) = tmp_path / "run", resource.getrlimit(resource.RLIMIT_NOFILE)
    stream = record(plan(), folder, "cpu")
    next(e for e in stream if isinstance(e, EpochDone))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        with pytest.raises(OSError):
            for _ in stream:
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    taken_up(folder, plan(), whole, "raise the limit (`ulimit -n`) and take the run up again")


@pytest.fixture
def nobody():
    "As a user who may not write everywhere, also where tests run as root."
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


def test_a_folder_that_can_only_be_read_is_said_and_left_as_it_is(whole, request):
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o755)
        folder = shutil.copytree(whole.path, Path(d, "run"))
        lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
        (folder / "events.jsonl").write_bytes(b"".join(lines[:-1]))
        before, frame = tree(folder), whole.frame
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        request.getfixturevalue("nobody")
        for refused in (lambda: run(plan(), folder, "cpu", show=False), lambda: resume(folder, "cpu")):
            with pytest.raises(LotteryError, match="cannot be written to .* take the run up again"):
                refused()
        assert Run(folder).frame.equals(frame)
        if os.getuid() == 0:
            os.seteuid(0)
        assert tree(folder) == before
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        assert run(plan(), folder, "cpu", show=False).status == "done"
        assert same(outcome(folder), outcome(whole.path))


def test_a_clock_that_is_set_back_costs_nothing(whole, tmp_path, monkeypatch):
    folder, real, off = tmp_path / "run", time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: real() - off)
    stream = record(plan(), folder, "cpu")
    for e in stream:
        if isinstance(e, EpochDone) and not off:
            off = 86_400.0
    times = [t for t, _ in Tail(folder / "events.jsonl").new()]
    assert times != sorted(times)
    assert Run(folder).status == "done" and same(outcome(folder), outcome(whole.path))
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "events.jsonl").write_bytes(b"".join(lines[:-1]))  # as if it had been killed
    again = run(plan(), folder, "cpu", show=False)
    assert again.status == "done" and 0 <= again.info["seconds"] < 1000 and again.stand.worked >= 0


def test_two_hundred_runs_beside_it_and_some_of_them_odd(whole, tmp_path):
    home, (soft, hard) = tmp_path / "home", resource.getrlimit(resource.RLIMIT_NOFILE)
    for i in range(200):
        shutil.copytree(whole.path, home / f"run{i:03d}", copy_function=os.link)
    for i, name in enumerate(("plan.json", "events.jsonl", "heartbeat", "control", "how.json")):
        (home / f"run{i:03d}" / name).unlink(missing_ok=True)
        os.mkfifo(home / f"run{i:03d}" / name)
    open_now = len(os.listdir("/proc/self/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 24, hard))
        with within(60):
            table = runs_workers.runs(home)
        found = run(plan(seeds=(5,)), home / "new", "cpu", show=False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(table) == 200 and set(table.status) <= {"done", "planned", "interrupted"}
    assert found.status == "done" and len(os.listdir("/proc/self/fd")) <= open_now + 2
