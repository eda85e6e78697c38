"""Nothing is lost, whatever happens: workers that are killed, disks that fail, files that are damaged, two workers at once, arms taken from other runs.

The long loops run with `--flags slow`; LOTTERY_FUZZ_SECONDS is how long each reader is fuzzed (2 s)."""

import contextlib
import json
import math
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import breaking
import pytest
import tiny
import torch
from breaking import Disk, broken_bytes, little_memory, noised, places, raw_file, tampered, until, with_change, worker
from filelock import FileLock
from tiny import of, plan, some_arm, some_mask, trained, within

from lottery_nb.runs import reading as runs_reading
from lottery_nb.runs import writing as runs_writing
from lottery_nb.runs import log as runs_log
from lottery_nb.engine import arms as engine_arms
from lottery_nb.engine import trainer as engine_trainer
from lottery_nb.core import LotteryError
from lottery_nb.events import EpochDone
from lottery_nb.files import read_tensors, write_tensors
from lottery_nb.models.network import Network
from lottery_nb.data.own import from_arrays, load_domain
from lottery_nb.pruning.schedules import geometric
from lottery_nb.rewinding.snapshots import Snapshot
from lottery_nb.runs.log import Tail, worker_of
from lottery_nb.runs.reading import read_plan, Run, write_plan
from lottery_nb.runs.writing import Arms, read_arms, record, run, steer
from lottery_nb.plans.tickets import Ticket
from lottery_nb.engine.recipes import Recipe
from lottery_nb.plans.transfer import TransferPlan
from lottery_nb.runs.workers import glance, pause, resume, start, stop, work

FUZZ = float(os.environ.get("LOTTERY_FUZZ_SECONDS", "2"))


def search(**fields):
    return plan(**{"width": 0.2, "controls": ("reinit",), "rewind": "step 2", **fields})


def outcome(folder):
    "Results and the bytes of tickets and snapshots."
    frame = Run(folder).frame.sort_values(["arm", "epoch", "split", "metric"], ignore_index=True)
    return frame, {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for part in ("tickets", "snapshots")
        for p in sorted((folder / part).glob("*"))
        if part != "snapshots" or (folder / "tickets").exists()
    }


def same(a, b):
    return a[0].equals(b[0]) and a[1] == b[1]


def temporary(folder):
    return [p for p in folder.rglob("*") if p.name.endswith(".tmp")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A search and a transfer that nobody disturbed, each alone in its folder."
    home = tmp_path_factory.mktemp("whole")
    find = run(search(), home / "a" / "find", "cpu", show=False)
    move = run(
        TransferPlan(find.tickets[-1], ("digits[5-9]@200",), ("rewind", "fresh"), controls=("dense",)),
        home / "b" / "transfer",
        "cpu",
        show=False,
    )
    return {"find": find, "transfer": move}


@pytest.fixture
def many(request):
    "Skips what is too long for every day."

    def many(n, often):
        if n > often and "slow" not in request.config.getoption("--flags"):
            pytest.skip(f"{n} moments take minutes: run with --flags slow")

    return many


# --- killed ---


@pytest.mark.parametrize("moments", [3, 20])
@pytest.mark.parametrize("kind", ["find", "transfer"])
def test_killed_at_random_moments_a_run_ends_with_the_same_bits(
    kind, moments, whole, many, tmp_path, monkeypatch, record_property
):
    many(moments, often=3)
    record_property("cases", moments)
    source, draw = whole[kind].path, random.Random(f"{kind} {moments}")
    disk, clock = Disk(), time.monotonic()
    with monkeypatch.context() as m:
        disk.install(m)
        run(read_plan(source), tmp_path / "counted" / "run", "cpu", show=False)
    seconds = time.monotonic() - clock
    for i in range(moments):
        folder = tmp_path / f"killed{i}" / "run"
        at = draw.randrange(len(disk.seen) - 5)
        assert worker(folder, source, dies_at=at) == -signal.SIGKILL, disk.seen[
            at
        ]  # in the middle of a write
        if (folder / "plan.json").exists() and (folder / "heartbeat").exists():
            os.utime(folder / "heartbeat", (0, 0))  # as it is after ten seconds
            assert Run(folder).status in ("interrupted", "planned"), at
        assert worker(folder, source, dies_after=draw.uniform(0, seconds)) in (
            0,
            -signal.SIGKILL,
        )  # at any moment
        assert worker(folder, source) == 0
        assert Run(folder).status == "done" and same(outcome(folder), outcome(source)), (i, at, disk.seen[at])
        assert not [p for p in temporary(folder) if p.parent.name not in ("run", "inputs")], at
        assert {breaking.kind_of(p) for p in temporary(folder)} <= {
            "plan",
            "input",
        }  # written before the lock is held, they may stay


def test_what_a_killed_process_left_is_swept_and_is_no_ticket(whole, tmp_path):
    folder = shutil.copytree(whole["find"].path, tmp_path / "run")
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "events.jsonl").write_bytes(b"".join(lines[:-1]))  # not done any more
    for part in ("arms", "tickets", "snapshots"):
        (folder / part / ".half.safetensors.0a1b2c3d.tmp").write_bytes(b"half")
    assert run(search(), folder, "cpu", show=False).status == "done"
    assert not temporary(folder) and same(outcome(folder), outcome(whole["find"].path))


# --- a disk that fails ---


def fails_at(what, how):
    return lambda *step: how if step == what else None


def steps_of(p, home, monkeypatch):
    "(kind, step, how often before) of every write of a plan."
    disk, seen = Disk(), {}
    with monkeypatch.context() as m:
        disk.install(m)
        run(p, home / "counted" / "run", "cpu", show=False)
    out = []
    for step in disk.seen:
        out.append((*step, seen.get(step, 0)))
        seen[step] = seen.get(step, 0) + 1
    return [s for s in out if s[0] != "heartbeat" or s[2] == 0]


def sound(folder):
    "No file is half-new, and of the log one line at most is torn."
    for file in folder.rglob("*.safetensors"):
        read_tensors(file)
    if (folder / "plan.json").exists():
        read_plan(folder)
    tail = Tail(folder / "events.jsonl")
    tail.new()
    return tail.skipped <= 1 and not temporary(folder)


def test_every_step_of_writing_is_seen(monkeypatch, tmp_path, whole):
    "What the faults below stand on: a way of writing that they would miss ends here."
    seen = {s[:2] for kind in whole for s in steps_of(whole[kind].plan, tmp_path / kind, monkeypatch)}
    atomic = {
        (kind, step)
        for kind in ("plan", "ticket", "snapshot", "arm", "input")
        for step in ("open", "write", "fsync", "replace")
    }
    assert seen == atomic | {(kind, step) for kind in ("log", "heartbeat") for step in ("open", "write")}
    assert sum(s[0] == "log" for s in steps_of(search(), tmp_path / "again", monkeypatch)) > 20


@pytest.mark.parametrize("how", ["ENOSPC", "EIO", "torn"])
@pytest.mark.parametrize("kind", ["find", "transfer"])
def test_every_write_fails_once(kind, how, whole, monkeypatch, tmp_path, thinned):
    p, done = whole[kind].plan, outcome(whole[kind].path)
    steps = steps_of(p, tmp_path, monkeypatch)
    steps = [s for s in steps if how != "torn" or s[1] == "write"]
    steps = thinned(steps, 2, turn=how == "EIO")  # the two refusals of a disk share the steps
    fired = 0
    for i, what in enumerate(steps):
        folder, disk = tmp_path / f"f{i}" / "run", Disk(fails_at(what, how))
        error = None
        with monkeypatch.context() as m:
            disk.install(m)
            try:
                run(p, folder, "cpu", show=False)
            except OSError as e:
                error = e
        fired += disk.count.get(what[:2], 0) > what[2]
        assert sound(folder), what
        if what[0] in ("arm", "heartbeat"):  # without these it goes on
            assert error is None and Run(folder).status == "done", what
            if what[0] == "arm" and disk.count[what[:2]] > what[2]:
                assert len(of("NotSaved", Run(folder).events)) == 1, what
        else:
            assert error is not None, what
            if (
                what[0] in ("ticket", "snapshot", "log")
                and what[:2] != ("log", "open")
                and not (kind == "transfer" and what[0] == "snapshot")
            ):
                failed = Run(folder)
                assert (
                    failed.status == "failed"
                    and of("RunFailed", failed.events)[-1].reason
                    and "OSError" in of("RunFailed", failed.events)[-1].traceback
                ), what
        again = run(p, folder, "cpu", show=False)
        assert again.status == "done" and same(outcome(folder), done) and not temporary(folder), what
    assert fired >= 0.8 * len(steps)


def test_a_disk_that_stays_full_ends_the_run_and_a_place_made_takes_it_up(whole, monkeypatch, tmp_path):
    n, done = len(steps_of(search(), tmp_path, monkeypatch)), outcome(whole["find"].path)
    for i, at in enumerate(range(6, n - 6, n // 6)):
        folder, disk = tmp_path / f"full{i}" / "run", Disk()
        disk.fails = lambda *_, disk=disk, at=at: "ENOSPC" if len(disk.seen) > at else None
        with monkeypatch.context() as m, pytest.raises(OSError):
            disk.install(m)
            run(search(), folder, "cpu", show=False)
        assert sound(folder) and Run(folder).status in ("interrupted", "planned"), at
        assert run(search(), folder, "cpu", show=False).status == "done" and same(outcome(folder), done), at


def test_a_heart_goes_on_beating_when_a_beat_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(runs_writing, "HEARTBEAT", 0.02)
    disk = Disk(lambda kind, step, before: "ENOSPC" if kind == "heartbeat" and before < 2 else None)
    disk.install(monkeypatch)
    with runs_writing.working(tmp_path):
        until(lambda: disk.count.get(("heartbeat", "write"), 0) > 2, seconds=10)
        assert runs_log.beating(tmp_path)
    assert disk.count["heartbeat", "open"] > 4 and not (tmp_path / "heartbeat").exists()


@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace"])
def test_a_word_to_a_worker_is_there_or_not(step, monkeypatch, tmp_path):
    steer(tmp_path, "pause")
    with monkeypatch.context() as m, pytest.raises(OSError):
        Disk(fails_at(("control", step, 0), "torn" if step == "write" else "EIO")).install(m)
        steer(tmp_path, "stop")
    assert (tmp_path / "control").read_text() == "pause" and [p.name for p in tmp_path.iterdir()] == [
        "control"
    ]


# --- damaged files ---


def refused(read, what):
    "Whether reading is refused with one sentence; anything but a `LotteryError`, a hang, or much memory is a failure."
    try:
        with within(20):
            read()
    except LotteryError as e:
        assert str(e) and "\n" not in str(e) and len(str(e)) < 1000, (what, str(e))
        return True
    except Exception as e:
        raise AssertionError(f"{what}: {type(e).__name__} {str(e)[:200]}") from e
    return False


@pytest.fixture(scope="module")
def one_file(whole, tmp_path_factory):
    "A ticket with its snapshots in one file."
    return whole["find"].tickets[-1].save(tmp_path_factory.mktemp("ticket") / "t.safetensors")


def used(file):
    "Everything that is done with a ticket that was read."
    t = Ticket.load(file)
    assert repr(t) and t.name and t.density and t.content and t.plain()
    if isinstance(t.network.name, str):  # one of a user's is imported to be built
        t.model()
    for point in ("rewind", "init", "source-trained"):
        t.start(point)
    t.save(file.with_name("again.safetensors"))
    return t


def test_a_damaged_ticket_is_refused(one_file, tmp_path):
    content, cases = Ticket.load(one_file).content, 0
    with little_memory():
        for what, damaged in broken_bytes(one_file.read_bytes(), random.Random(1), flips=40):
            (tmp_path / "t").write_bytes(damaged)
            assert (
                refused(lambda: Ticket.load(tmp_path / "t"), what)
                or Ticket.load(tmp_path / "t").content == content
            ), what
            cases += 1
    assert cases >= 60


MUST = {  # what a reader cannot let through
    "schema": (0, 3, 99, -1, "2", None, 10**30, float("inf"), float("nan")),
    "source": (3, None, []),
    "network": (None, "lenet-300-100", {"type": "Popen"}),
    "recipe": (None, 3, {"type": "Recipe", "lr": -1}),
    "round": (-1, "../../x", 1.5, None),
    "seed": ("x", None, -1),
    "norm": (None, [], [[0.1], "x"], [[float("nan")], [1.0]], [[0.1, 0.1], [0.2, 0.2]]),
    "snapshots": ({}, [], None, {"init": {}}),
    "mask": ([], None, [["x", [3]]], {"a": 1}),
    "domain": (1,),
    "plan": (None, {}),
    "version": ([],),
}


def test_a_ticket_of_wrong_values_with_a_right_checksum_is_refused(one_file, tmp_path):
    tensors, record = read_tensors(one_file)
    cases = [
        (f"{key}={value!r}", tensors, with_change(record, (key,), value))
        for key, values in MUST.items()
        for value in values
    ]
    cases += [(f"no {key}", tensors, with_change(record, (key,), ...)) for key in MUST if key != "schema"]
    for point in ("init", "rewind", "source-trained"):
        cases += [
            (f"{point}.{k}={v!r}", tensors, with_change(record, ("snapshots", point, k), v))
            for k in ("step", "updates")
            for v in (-1, 1.5, "x", None, float("inf"), float("nan"))
        ]
        cases += [
            (f"{point} stored {v!r}", tensors, with_change(record, ("snapshots", point, "stored"), v))
            for v in ("../../x", "/etc/passwd", "..", "", "a\0b", "a/b", "x" * 300)
        ]
    weights = [n for n in tensors if n.startswith("snapshot/")]
    for n in (*weights, *(n for n in tensors if n.startswith("mask/"))):
        cases += [
            (f"{n} {way}", {**tensors, n: change(tensors[n])}, record)
            for way, change in {
                "int": lambda t: t.to(torch.int32) + 1,
                "complex": lambda t: t.to(torch.complex64),
                "cut": lambda t: t.flatten()[:-1].clone(),
                "more axes": lambda t: t.unsqueeze(0),
                "empty": lambda t: t[:0].clone(),
                "NaN": lambda t: torch.full(t.shape, torch.nan),
            }.items()
        ]
        if "optimizer" not in n:  # a frozen weight has none
            cases.append((f"no {n}", {k: t for k, t in tensors.items() if k != n}, record))
    with little_memory():
        for what, t, r in cases:
            write_tensors(tmp_path / "t.safetensors", t, r)
            assert refused(lambda: Ticket.load(tmp_path / "t.safetensors"), what), what
    assert len(cases) >= 100


def test_a_damaged_stored_snapshot_is_refused(whole, tmp_path):
    folder = shutil.copytree(whole["find"].path, tmp_path / "run")
    ticket = sorted((folder / "tickets").iterdir())[-1]
    content, cases = Ticket.load(ticket).content, 0
    for i, file in enumerate(sorted((folder / "snapshots").iterdir())):
        good = file.read_bytes()
        for what, damaged in broken_bytes(good, random.Random(i), flips=6):
            file.write_bytes(damaged)
            assert refused(lambda: Ticket.load(ticket), what) or Ticket.load(ticket).content == content, what
            cases += 1
        tensors, record = read_tensors(
            shutil.copy(
                next(
                    f
                    for f in sorted(whole["find"].path.joinpath("snapshots").iterdir())
                    if f.name != file.name
                ),
                tmp_path / "other",
            )
        )
        write_tensors(file, tensors, record)  # whole, and another's
        assert not refused(partial(read_tensors, file), "another") and refused(
            lambda: Ticket.load(ticket), "another snapshot"
        ), file
        file.unlink()
        assert refused(lambda: Ticket.load(ticket), "no snapshot")
        file.write_bytes(good)
    assert cases >= 60 and Ticket.load(ticket).content == content


def test_a_damaged_arm_is_not_taken_and_trained_again(whole, tmp_path):
    folder = shutil.copytree(whole["find"].path, tmp_path / "a" / "run")
    file, draw = sorted((folder / "arms").iterdir())[0], random.Random(3)
    good, arms, cases = file.read_bytes(), Arms(folder / "arms"), 0
    tensors, record = read_tensors(file)
    with little_memory():
        for what, damaged in broken_bytes(good, draw):
            file.write_bytes(damaged)
            assert refused(lambda: read_arms(file), what) and arms.result(file.stem) is None, what
            cases += 1
        for _ in range(60):
            what, t, r = tampered(tensors, record, draw)
            try:
                write_tensors(file, t, r)
            except (TypeError, ValueError):
                continue  # JSON or safetensors cannot hold it
            refused(lambda: read_arms(file), what)
            refused(lambda: arms.result(file.stem), what)
            cases += 1
    assert cases >= 75
    shutil.copy(sorted((folder / "arms").iterdir())[1], file)  # whole, and another's
    assert refused(lambda: read_arms(file), "renamed") and arms.result(file.stem) is None
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "events.jsonl").write_bytes(b"".join(lines[:4]))
    assert run(search(), folder, "cpu", show=False).status == "done" and same(
        outcome(folder), outcome(whole["find"].path)
    )
    assert len(of("ArmTaken", Run(folder).events)) == Run(folder).info["arms"] - 1 and not refused(
        lambda: read_arms(file), "new"
    )


def test_a_damaged_plan_is_refused_or_another_plan(whole, tmp_path):
    cases = 0
    for kind in whole:
        folder = shutil.copytree(whole[kind].path, tmp_path / kind)
        file, draw = folder / "plan.json", random.Random(4)
        good, text = file.read_bytes(), json.loads(file.read_bytes())
        damages = [*broken_bytes(good, draw, 20)] + [
            (f"{where} = {new!r}", json.dumps(with_change(text, where, new)).encode())
            for where in places(text)
            for new in draw.sample((*breaking.NASTY, ...), 4)
            if where or new is not ...
        ]
        with little_memory():
            for what, damaged in damages:
                file.write_bytes(damaged)
                if not refused(partial(read_plan, folder), what):
                    assert type(read_plan(folder)) in runs_reading.PLANS, what
                refused(partial(Run, folder), what)
                assert glance(folder)["run"] == kind
            with open(file, "wb") as f:
                f.truncate(10 << 30)
            assert refused(partial(read_plan, folder), "10 GB") and glance(folder)["kind"] == "unreadable"
        file.unlink()
        cases += len(damages)
    assert cases >= 150


def test_a_run_goes_on_with_the_plan_that_it_began_with_and_no_other(whole, tmp_path):
    folder = shutil.copytree(whole["find"].path, tmp_path / "run")
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "events.jsonl").write_bytes(b"".join(lines[:9]))
    good = (folder / "plan.json").read_text()
    (folder / "plan.json").write_text(good.replace("0.4", "0.5"))  # a bit flipped, and still a plan
    assert read_plan(folder).schedule == geometric(0.5, 2)
    with pytest.raises(LotteryError, match="not the plan that this run began with"):
        work(folder, "cpu")
    assert Run(folder).status == "failed" and not of("ArmDone", Run(folder).events[9:])
    (folder / "plan.json").write_text(good)
    assert worker(folder) == 0 and same(outcome(folder), outcome(whole["find"].path))


def test_names_in_a_plan_stay_in_its_folder(whole, tmp_path):
    folder = shutil.copytree(whole["transfer"].path, tmp_path / "run")
    shutil.copy(next((folder / "inputs").iterdir()), tmp_path / "x.safetensors")
    plan_text = (folder / "plan.json").read_text()
    content = whole["find"].tickets[-1].content
    for name in ("../../x", "../x", str(tmp_path / "x"), "a/../../x", "C:x", "a\\b"):
        (folder / "plan.json").write_text(plan_text.replace(content, json.dumps(name)[1:-1]))
        with pytest.raises(LotteryError, match="plain name"):
            read_plan(folder)
    other = whole["find"].tickets[0].save(folder / "inputs" / f"{content}.safetensors")
    (folder / "plan.json").write_text(plan_text)
    with pytest.raises(LotteryError, match="other content"):
        read_plan(folder)
    assert other.exists()


def read_log(folder):
    "All that is ever made of a log."
    found = Run(folder)
    found.events, found.frame, found.layers, found.status, found.info, repr(found), glance(folder)
    refused(lambda: found.tickets, "tickets")  # a name from a log may lead nowhere
    runs_writing.Writer(folder, Arms(folder / "arms")).log.close()


def damaged_lines(log, draw):
    "(what was done, the log) with one line changed by someone who knows JSON."
    lines = log.splitlines()
    i = draw.randrange(len(lines))
    record_ = json.loads(lines[i])
    where, new = draw.choice([p for p in places(record_) if p]), draw.choice((*breaking.NASTY, ..., 10**400))
    text = json.dumps(
        with_change(record_, where, new if new != 10**400 else "BIG"), separators=(",", ":")
    ).replace('"BIG"', "1" + "0" * 400)
    return f"line {i}, {where} = {str(new)[:40]!r}", b"\n".join(
        [*lines[:i], text.encode(), *lines[i + 1 :]]
    ) + b"\n"


def test_a_damaged_log_costs_lines_and_is_made_whole(whole, tmp_path):
    folder, draw = shutil.copytree(whole["find"].path, tmp_path / "a" / "run"), random.Random(5)
    file = folder / "events.jsonl"
    good = file.read_bytes()
    damages = [*broken_bytes(good, draw, 30)] + [damaged_lines(good, draw) for _ in range(150)]
    with little_memory():
        for i, (what, damaged) in enumerate(damages):
            file.write_bytes(damaged)
            assert not refused(lambda: read_log(folder), what), what
            if i % 12 == 0 and "bit" not in what and "line" not in what:
                again = run(search(), folder, "cpu", show=False)
                assert again.status == "done" and same(outcome(folder), outcome(whole["find"].path)), what
    with little_memory(1 << 28), open(file, "wb") as f:
        f.truncate(600 << 20)  # one line without an end
        assert not refused(lambda: Run(folder).status, "600 MB")
    assert len(damages) >= 180
    file.unlink()
    file.mkdir()
    assert refused(lambda: Run(folder).status, "a folder") and glance(folder)["run"] == "run"


def test_a_damaged_saved_domain_is_refused(tmp_path):
    p = plan(source=tiny.noise_domain(), recipe=Recipe(epochs=1, batch_size=9))
    write_plan(p, tmp_path)
    (file,) = (tmp_path / "inputs").iterdir()
    good, draw, cases = file.read_bytes(), random.Random(6), 0
    with little_memory():
        for what, damaged in broken_bytes(good, draw, 30):
            file.write_bytes(damaged)
            assert refused(lambda: read_plan(tmp_path), what) or read_plan(tmp_path).hash == p.hash, what
            cases += 1
            assert (
                refused(partial(load_domain, file), what)
                or load_domain(file).fingerprint == p.source.fingerprint
            ), what
        file.write_bytes(good)
        tensors, record_ = read_tensors(file)
        for _ in range(80):
            what, t, r = tampered(tensors, record_, draw)
            write_tensors(file, t, r)
            refused(partial(load_domain, file), what)
            assert (
                refused(lambda: read_plan(tmp_path), what)
                or read_plan(tmp_path).source.fingerprint == p.source.fingerprint
            ), what
            cases += 1
    assert cases >= 110


WORDS = (
    b"",
    b"go",
    b"stopp",
    b"STOP",
    b"pause now",
    b"\xff\xfe",
    b"\0" * 100,
    b"../../x",
    b"[" * 100_000,
    b"\n\n",
    b"stop" * 10_000,
)


@pytest.mark.parametrize("word", range(len(WORDS) + 2))
def test_a_damaged_word_to_a_worker_is_no_word(word, tmp_path):
    folder = tmp_path / "run"
    for i, _ in enumerate(record(plan(schedule=geometric(0.4, 1)), folder, "cpu")):
        if i == 2 and word < len(WORDS):
            (folder / "control").write_bytes(WORDS[word])
        elif i == 2 and word == len(WORDS):
            (folder / "control").mkdir()
        elif i == 2:
            with little_memory(), open(folder / "control", "wb") as f:
                f.truncate(10 << 30)
                assert not refused(lambda: runs_writing._command(folder), "10 GB")
    assert Run(folder).status == "done"


@pytest.mark.parametrize("content", [b"", b"x", b"-1", b"\xff", b"9" * 100_000, None])
@pytest.mark.parametrize("age", [-1e6, 0, 1e6, 1.5e9])
def test_a_damaged_heartbeat_tells_no_lie_about_a_run_that_is_done(content, age, whole, tmp_path):
    folder = shutil.copytree(whole["find"].path, tmp_path / "a" / "run")
    if content is None:
        (folder / "heartbeat").mkdir()
    else:
        (folder / "heartbeat").write_bytes(content)
    os.utime(folder / "heartbeat", (time.time() - age,) * 2)
    assert Run(folder).status == "done" == glance(folder)["status"]
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "events.jsonl").write_bytes(b"".join(lines[:-2]))
    assert Run(folder).status == ("interrupted" if abs(age) > 10 else "running")
    assert run(search(), folder, "cpu", show=False).status == "done" and same(
        outcome(folder), outcome(whole["find"].path)
    )


# --- fuzzing, for as long as one likes ---

TYPED = (b'{"type":',)  # how a record begins


def fuzz(seconds, case, least=50):
    "Runs cases with the numbers 0, 1, … until the time is over, and at least so many: a case depends on its number alone, so that a failure repeats. How many there were."
    end, n = time.monotonic() + seconds, 0
    with little_memory():
        while time.monotonic() < end or n < least:
            case(random.Random(n))
            n += 1
    return n


def test_fuzz_the_ticket_reader(one_file, tmp_path, record_property):
    good, (tensors, record_), content = (
        one_file.read_bytes(),
        read_tensors(one_file),
        Ticket.load(one_file).content,
    )

    def case(draw):
        path = tmp_path / "t.safetensors"
        if draw.random() < 0.4:
            path.write_bytes(noised(good, draw, TYPED, flips=True))
            assert refused(lambda: Ticket.load(path), "noise") or Ticket.load(path).content == content
            return
        what, t, r = tampered(tensors, record_, draw)
        if draw.random() < 0.3:
            what, t, r = tampered(t, r, draw) if t and isinstance(r, dict) and len(r) > 1 else (what, t, r)
        write_tensors(path, t, r)
        if not refused(lambda: Ticket.load(path), what):
            used(path)

    record_property("cases", fuzz(FUZZ, case))


def test_fuzz_the_log_reader(whole, tmp_path, record_property):
    folder = shutil.copytree(whole["find"].path, tmp_path / "run")
    file = folder / "events.jsonl"
    good = file.read_bytes()

    def case(draw):
        if draw.random() < 0.6:
            what, content = damaged_lines(good, draw)
        else:
            what, content = "noise", noised(good, draw, TYPED, flips=True)
        file.write_bytes(content)
        assert not refused(lambda: read_log(folder), what)

    record_property("cases", fuzz(FUZZ, case))


# --- two workers, steering, errors of a worker ---


@pytest.fixture
def ended(tmp_path):
    "Ends the worker of a test that failed."
    yield
    if (tmp_path / "run" / "heartbeat").exists():
        with contextlib.suppress(OSError, AttributeError):
            os.kill(worker_of(tmp_path / "run").pid, signal.SIGKILL)


def test_one_worker_at_a_time_that_obeys_and_is_found_dead(ended, tmp_path):
    "In one test, because a process of its own takes seconds to start."
    endless = plan(recipe=Recipe(lr=0.01, epochs=100_000, batch_size=32))
    found = start(endless, tmp_path / "run", "cpu")
    assert found.status == "running"
    for second in (
        lambda: work(tmp_path / "run", "cpu"),
        lambda: run(endless, tmp_path / "run", "cpu", show=False),
        lambda: resume(tmp_path / "run", "cpu"),
        lambda: start(endless, tmp_path / "run", "cpu"),
    ):
        with within(20), pytest.raises(LotteryError, match="another process works on"):
            second()
    assert not of("RunFailed", found.events)
    pause(tmp_path / "run")
    until(lambda: found.status == "paused")
    told = len(found.events)
    assert glance(tmp_path / "run")["status"] == "paused"
    time.sleep(0.3)
    assert len(found.events) == told
    assert resume(tmp_path / "run").path == found.path
    until(lambda: found.status == "running" and len(found.events) > told + 3)
    assert stop(tmp_path / "run").status == "stopped"
    with pytest.raises(LotteryError, match="it is stopped"):
        pause(tmp_path / "run")
    assert resume(tmp_path / "run", "cpu").status == "running"  # at once: the one that was stopped has let go
    pause(tmp_path / "run")
    until(lambda: found.status == "paused")
    assert stop(tmp_path / "run").status == "stopped"  # a paused one hears it too
    assert resume(tmp_path / "run", "cpu").status == "running"
    os.kill(worker_of(tmp_path / "run").pid, signal.SIGKILL)
    os.utime(tmp_path / "run" / "heartbeat", (0, 0))
    assert found.status == "interrupted"
    for steering in (pause, stop):
        with pytest.raises(LotteryError, match="it is interrupted"):
            steering(tmp_path / "run")
    with FileLock(tmp_path / "run" / "lock", timeout=5):
        (tmp_path / "run" / "heartbeat").unlink()


def test_a_dead_worker_is_taken_over_by_a_process_of_its_own(whole, tmp_path):
    folder = tmp_path / "run"
    assert worker(folder, whole["find"].path, dies_at=40) == -signal.SIGKILL
    os.utime(folder / "heartbeat", (0, 0))
    assert Run(folder).status == "interrupted" == glance(folder)["status"]
    found = resume(folder, "cpu")
    until(lambda: found.status == "done")
    assert same(outcome(folder), outcome(whole["find"].path)) and (folder / "worker.log").read_text() == ""
    until(lambda: not (folder / "heartbeat").exists())


@pytest.mark.parametrize(
    "network, says", [("breaks_in_training", "no third batch"), ("breaks_when_made", "no network today")]
)
def test_an_exception_of_a_worker_is_in_the_log_with_its_traceback(network, says, tmp_path):
    p = plan(network=f"breaking:{network}", width=1.0)
    write_plan(p, tmp_path / "run")
    for times in (1, 2):
        assert worker(tmp_path / "run") == 1
        failed = of("RunFailed", Run(tmp_path / "run").events)
        assert (
            says in failed[-1].reason
            and f"in {network if network == 'breaks_when_made' else 'forward'}" in failed[-1].traceback
            and "ZeroDivisionError" in failed[-1].traceback
        )
        assert (
            Run(tmp_path / "run").status == "failed" == glance(tmp_path / "run")["status"]
            and len(failed) <= times
        )
    (tmp_path / "run" / "plan.json").write_text("{}")
    assert worker(tmp_path / "run") == 1
    assert "record" in of("RunFailed", Run(tmp_path / "run").events)[-1].reason


# --- stacks ---


@pytest.fixture
def every_state(monkeypatch):
    "States are written at every epoch, however long it takes."
    monkeypatch.setattr(
        runs_writing.Arms, "next_state", property(lambda self: 0.0, lambda self, _: None), raising=False
    )


def crowd(**fields):
    "A search whose arms share their steps, and leave when they have learnt nothing for an epoch."
    return search(
        **{
            "seeds": 3,
            "rewind": "init",
            "schedule": geometric(0.4, 1),
            "recipe": Recipe(lr=0.3, epochs=7, batch_size=32, patience=1, schedule="constant"),
            **fields,
        }
    )


def states(folder):
    return sorted((folder / "arms").glob("state-*"))


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    "A search in stacks that nobody disturbed, and its events."
    folder = tmp_path_factory.mktemp("crowded") / "run"
    events = [e for e in record(crowd(), folder, "cpu") if type(e).__name__ != "Tick"]
    layouts = [e for e in Run(folder).events if type(e).__name__ == "Layout"]
    stacks = [
        e.groups[0]
        for e in layouts
        if {n[:3] for n in e.groups[0]} == {"r00"} and len(e.groups[0]) == 3 or len(e.groups[0]) == 6
    ]
    assert [len(names) for names in stacks] == [
        3,
        6,
    ]  # all seeds, tickets and controls together, shared their steps
    for names in stacks:
        assert len({len(of("EpochDone", events, arm=n)) for n in names}) > 1  # some left before others
    return folder, events


def stack_moments(events, number):
    "Some moments, spread over a run: after an epoch, a state, the end of an arm …"
    told = [
        i
        for i, e in enumerate(events)
        if type(e).__name__ in ("EpochDone", "StateKept", "ArmDone", "ArmStarted", "Layout")
    ]
    return told[2 :: max(1, len(told) // number)]


@pytest.mark.parametrize("moments", [9, 60])
@pytest.mark.parametrize("way", ["copied", "closed", "told to stop"])
def test_a_stack_cut_off_at_any_moment_ends_with_the_same_bits(
    way, moments, crowded, every_state, many, tmp_path
):
    many(moments, often=9)
    done, found = outcome(crowded[0]), 0
    for at in stack_moments(crowded[1], moments):
        folder = tmp_path / f"{way}{at}" / "run"
        stream = record(crowd(), folder, "cpu")
        for i, _ in enumerate(e for e in stream if type(e).__name__ != "Tick"):
            if i == at and way == "told to stop":
                steer(folder, "stop")
            elif i == at:
                break
        if way == "copied":  # as it lay on the disk when the power went
            folder = shutil.copytree(folder, tmp_path / f"copy{at}" / "run")
            (folder / "heartbeat").unlink(missing_ok=True)
        stream.close()
        found += bool(states(folder))
        again = run(crowd(), folder, "cpu", show=False)
        assert again.status == "done" and same(outcome(folder), done), (at, crowded[1][at])
        assert not states(folder) and len(list((folder / "arms").iterdir())) == 9, at
    assert found > 2


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_count_of_updates_goes_on(optimizer, every_state, tmp_path):
    p = crowd(recipe=Recipe(optimizer, lr=0.01, epochs=4, batch_size=32, schedule="constant"), controls=())
    whole = run(p, tmp_path / "whole" / "run", "cpu", show=False)
    stream = record(p, tmp_path / "cut" / "run", "cpu")
    for e in stream:
        if type(e).__name__ == "StateKept" and of("EpochDone", Run(tmp_path / "cut" / "run").events, epoch=2):
            break
    next(stream)
    stream.close()
    assert states(tmp_path / "cut" / "run")
    assert same(outcome(run(p, tmp_path / "cut" / "run", "cpu", show=False).path), outcome(whole.path))


def test_a_worker_killed_in_a_stack_is_taken_up(crowded, tmp_path):
    source, draw = crowded[0], random.Random("stack")
    for i in range(2):
        folder = tmp_path / f"killed{i}" / "run"
        assert worker(folder, source, dies_at=draw.randrange(30, 90)) == -signal.SIGKILL
        assert worker(folder, source) == 0 and same(outcome(folder), outcome(source)) and not states(folder)


def test_a_stack_goes_on_where_it_was(crowded, every_state, tmp_path, monkeypatch):
    "What was saved is not trained again: neither the epochs before, nor the arms that had left."
    steps, real = [], engine_trainer.Trainer.descend
    stream = record(crowd(), tmp_path / "run", "cpu")
    for e in stream:
        if type(e).__name__ == "ArmDone" and e.arm.startswith("r01"):
            break
    left = {e.arm for e in of("ArmDone", Run(tmp_path / "run").events) if e.arm.startswith("r01")}
    for e in stream:
        if type(e).__name__ == "StateKept":
            break
    next(stream)
    stream.close()
    monkeypatch.setattr(
        engine_trainer.Trainer, "descend", lambda t: (steps.append([a.name for a in t.arms]), real(t))[1]
    )
    assert run(crowd(), tmp_path / "run", "cpu", show=False).status == "done" and same(
        outcome(tmp_path / "run"), outcome(crowded[0])
    )
    longest = max(
        len(of("EpochDone", crowded[1], arm=a))
        for a in {e.arm for e in of("ArmDone", crowded[1])}
        if a.startswith("r01")
    )
    assert (
        left
        and not left & {n for names in steps for n in names}
        and all(n.startswith("r01") for names in steps for n in names)
        and 0 < len(steps) < 5 * longest
    )


def test_a_damaged_state_is_ignored(crowded, every_state, tmp_path):
    stream = record(crowd(), tmp_path / "half" / "run", "cpu")
    for e in stream:
        if isinstance(e, EpochDone) and e.epoch == 3 and e.arm.startswith("r01"):
            break
    stream.close()
    (state,) = states(tmp_path / "half" / "run")
    good, cases, draw = state.read_bytes(), 0, random.Random(8)
    arms = Arms(tmp_path / "half" / "run" / "arms")
    name = state.stem.removeprefix("state-")
    assert len(arms.state(name)) == 6
    with little_memory():
        for what, damaged in broken_bytes(good, draw):
            state.write_bytes(damaged)
            assert arms.state(name) == {} and refused(lambda: read_arms(state), what), what
            cases += 1
    for i, damaged in enumerate((good[:-5], b"", good)):
        folder = shutil.copytree(tmp_path / "half" / "run", tmp_path / str(i) / "run")
        (folder / "arms" / state.name).write_bytes(damaged)
        assert (
            run(crowd(), folder, "cpu", show=False).status == "done"
            and same(outcome(folder), outcome(crowded[0]))
            and not states(folder)
        )
    assert cases > 25


def test_a_state_that_was_not_removed_is_removed_when_its_stack_is_found_done(crowded, every_state, tmp_path):
    "The worker died between the last result and the removal."
    folder, kept = tmp_path / "run", {}
    for _ in record(crowd(), folder, "cpu"):
        kept |= {p.name: p.read_bytes() for p in states(folder)}
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "events.jsonl").write_bytes(b"".join(lines[:-1]))
    for name, content in kept.items():
        (folder / "arms" / name).write_bytes(content)
    assert (
        len(kept) == 2
        and run(crowd(), folder, "cpu", show=False).status == "done"
        and not states(folder)
        and same(outcome(folder), outcome(crowded[0]))
    )


def test_a_result_that_could_not_be_saved_is_saved_when_the_stack_is_taken_up(
    crowded, every_state, tmp_path, monkeypatch
):
    real, full = runs_writing.write_arms, []

    def write_arms(path, saved):
        if not full and not path.name.startswith("state-"):
            full.append(path.name)
            raise OSError("no space")
        real(path, saved)

    folder = tmp_path / "run"
    with monkeypatch.context() as m:
        m.setattr(runs_writing, "write_arms", write_arms)
        stream = record(crowd(), folder, "cpu")
        for e in stream:
            if full and type(e).__name__ == "StateKept":
                break
        stream.close()
    (lost,) = of("NotSaved", Run(folder).events)
    assert lost.arm.startswith("r00") and not (folder / "arms" / full[0]).exists()
    assert run(crowd(), folder, "cpu", show=False).status == "done" and same(
        outcome(folder), outcome(crowded[0])
    )
    assert (folder / "arms" / full[0]).exists() and len(
        of("EpochDone", Run(folder).events, arm=lost.arm)
    ) == len(of("EpochDone", crowded[1], arm=lost.arm))


def test_a_failed_arm_of_a_stack_is_told_once_and_where_it_failed(every_state, tmp_path):
    p = crowd(
        network="tiny:explosive", width=1.0, controls=(), recipe=Recipe(lr=0.05, epochs=4, batch_size=32)
    )
    list(record(p, tmp_path / "whole" / "run", "cpu"))
    (failed,) = of("ArmFailed", Run(tmp_path / "whole" / "run").events)
    assert (failed.arm, failed.epoch, failed.step) == ("r00/dense/s1", 1, 5) and len(
        of("Layout", Run(tmp_path / "whole" / "run").events)[0].groups
    ) == 1
    for epoch in (1, 2, 3):
        folder = tmp_path / str(epoch) / "run"
        stream = record(p, folder, "cpu")
        for e in stream:
            if type(e).__name__ == "StateKept" and of("EpochDone", Run(folder).events, epoch=epoch):
                break
        next(stream)
        stream.close()
        assert states(folder) and read_arms(states(folder)[0])  # readable, though weights of one arm are NaN
        assert run(p, folder, "cpu", show=False).status == "done" and same(
            outcome(folder), outcome(tmp_path / "whole" / "run")
        )
        assert of("ArmFailed", Run(folder).events) == [failed]


def test_a_stack_with_a_failed_arm_is_not_trained_again(tmp_path):
    p = crowd(
        network="tiny:explosive", width=1.0, controls=(), recipe=Recipe(lr=0.05, epochs=4, batch_size=32)
    )
    stream = record(p, tmp_path / "run", "cpu")
    assert next(e for e in stream if type(e).__name__ == "RoundDone").round == 0
    stream.close()
    before = Run(tmp_path / "run").events
    again = list(record(p, tmp_path / "run", "cpu"))
    assert of("ArmFailed", before) and of("ArmFailed", Run(tmp_path / "run").events) == of(
        "ArmFailed", before
    )
    assert {e.arm for e in of("ArmTaken", again)} == {
        e.arm for e in of("ArmStarted", before)
    }  # the failed one too
    assert Run(tmp_path / "run").status == "done" and not [
        e for e in again if type(e).__name__ == "Tick" and e.arm.startswith("r00")
    ]


def test_what_was_begun_keeps_its_layout_on_other_threads(tmp_path):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        whole = run(crowd(), tmp_path / "a" / "run", "cpu", show=False)
        stream = record(crowd(), tmp_path / "b" / "run", "cpu")
        for e in stream:
            if isinstance(e, EpochDone) and e.arm.startswith("r01"):
                break
        stream.close()
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        again = run(crowd(), tmp_path / "b" / "run", "cpu", show=False)
    finally:
        torch.set_num_threads(threads)
    first, second = ([e for e in of("Layout", r.events) if e.lanes == 2] for r in (whole, again))
    assert first == second and [sorted(map(len, e.groups)) for e in first] == [[1, 2], [3, 3]]
    assert same(outcome(again.path), outcome(whole.path)) and again.status == "done"


def test_a_layout_that_cannot_be_is_not_followed(crowded, tmp_path):
    lines = (crowded[0] / "events.jsonl").read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if b'"Layout"' in line)
    event = json.loads(lines[first])
    (names,) = event["groups"]
    for i, change in enumerate(
        (
            {"groups": [names, names[:1]]},
            {"threads": 0},
            {"threads": 10**6},
            {"groups": [names[:2], names[:2], names[2:]]},
            {"lanes": -3},
        )
    ):
        folder = tmp_path / str(i) / "run"
        folder.mkdir(parents=True)
        shutil.copy(crowded[0] / "plan.json", folder)
        (folder / "events.jsonl").write_bytes(
            b"".join(lines[:first]) + json.dumps({**event, **change}).encode() + b"\n"
        )
        with within(60):
            assert run(crowd(), folder, "cpu", show=False).status == "done" and same(
                outcome(folder), outcome(crowded[0])
            ), change


def test_finished_stacks_of_a_neighbour_are_taken_whole_or_not_at_all(tmp_path):
    p = {s: crowd(seeds=s) for s in ((0, 1), (0, 1, 2), (0, 2))}
    first = run(p[0, 1], tmp_path / "home" / "first", "cpu", show=False)
    more = run(p[0, 1, 2], tmp_path / "home" / "more", "cpu", show=False)
    taken = {e.arm for e in of("ArmTaken", more.events)}
    assert (
        taken == set(first.frame.arm)
        and not any(a.endswith("s2") for a in taken)
        and first.frame.arm.nunique() == 6
    )
    assert sorted(map(sorted, of("Layout", more.events)[0].groups)) == [
        ["r00/dense/s0", "r00/dense/s1"],
        ["r00/dense/s2"],
    ]
    both = more.frame[more.frame.seed < 2].sort_values(["arm", "epoch", "split", "metric"], ignore_index=True)
    assert both.equals(outcome(first.path)[0])
    shutil.copytree(first.path, tmp_path / "other" / "first")
    assert not of(
        "ArmTaken", run(p[0, 2], tmp_path / "other" / "others", "cpu", show=False).events
    )  # seed 1 is missing
    files = sorted((tmp_path / "other" / "first" / "arms").iterdir())
    names = [f.stem.partition("-")[0] for f in files]
    recall = Arms(tmp_path / "none" / "arms", [tmp_path / "other" / "first" / "arms"])
    assert sorted(map(len, recall.stacks(names))) == [2, 4] and recall.stacks(names[:1]) == []
    files[0].unlink()
    assert sum(map(len, recall.stacks(names))) in (2, 4)  # the other stack is whole


# --- arms taken from other runs ---


def test_an_arm_is_taken_from_another_run_that_was_itself_taken_up(every_state, tmp_path):
    few, more = (
        search(recipe=Recipe(lr=0.05, epochs=4, batch_size=32)),
        search(recipe=Recipe(lr=0.05, epochs=4, batch_size=32), seeds=2),
    )
    stream = record(
        few, tmp_path / "home" / "few", "cpu", layout="alone"
    )  # in a stack with others it would round otherwise
    for e in stream:
        if isinstance(e, EpochDone) and e.epoch == 3:
            break
    stream.close()  # in the middle of an arm
    first = run(few, tmp_path / "home" / "few", "cpu", show=False, layout="alone")
    assert not of("ArmTaken", first.events) and len(of("EpochDone", first.events, arm="r00/dense/s0")) == 4
    second = run(more, tmp_path / "home" / "more", "cpu", show=False, layout="alone")
    taken = of("ArmTaken", second.events)
    assert {e.arm for e in taken} == set(first.frame.arm) and len(taken) == first.info["arms"] == second.info[
        "arms"
    ] / 2
    alone = run(more, tmp_path / "apart" / "more", "cpu", show=False, layout="alone")
    assert not of("ArmTaken", alone.events) and same(outcome(second.path), outcome(alone.path))
    shutil.rmtree(first.path)
    assert same(outcome(second.path), outcome(alone.path)) and [t.content for t in second.tickets] == [
        t.content for t in alone.tickets
    ]


def test_a_state_of_another_run_is_not_taken(every_state, tmp_path):
    stream = record(search(), tmp_path / "half", "cpu")
    for e in stream:
        if isinstance(e, EpochDone) and e.arm == "r01/ticket/s0":
            next(stream), next(stream)
            break
    stream.close()
    assert [
        a for p in (tmp_path / "half" / "arms").iterdir() for a in read_arms(p).values() if a.now is not None
    ]
    second = run(search(seeds=2), tmp_path / "second", "cpu", show=False)
    assert {e.arm for e in of("ArmTaken", second.events)} == {"r00/dense/s0"} and len(
        of("EpochDone", second.events, arm="r01/ticket/s0")
    ) == 2


@pytest.mark.parametrize("change", ["engine", "torch", "threads", "recipe", "seed", "epochs"])
def test_an_arm_that_was_trained_otherwise_is_not_taken(change, tmp_path, monkeypatch):
    p = plan(
        network="tiny:normed",
        width=1.0,
        schedule=geometric(0.4, 1),
        recipe=Recipe(lr=0.05, epochs=1, batch_size=64),
    )
    run(p, tmp_path / "first", "cpu", show=False)
    threads = torch.get_num_threads()
    other = {
        "recipe": replace(p, recipe=replace(p.recipe, lr=0.04)),
        "seed": replace(p, seeds=(1,)),
        "epochs": replace(p, recipe=replace(p.recipe, epochs=2)),
    }.get(change, replace(p, floor=0.01))
    if change == "engine":
        monkeypatch.setattr(engine_arms, "ENGINE", engine_arms.ENGINE + 1)
    if change == "torch":
        monkeypatch.setattr(torch, "__version__", "99.0.0")
    try:
        torch.set_num_threads(threads + (change == "threads"))
        second = run(other, tmp_path / "second", "cpu", show=False)
    finally:
        torch.set_num_threads(threads)
    assert second.status == "done" and not of("ArmTaken", second.events)
    monkeypatch.undo()
    third = run(replace(p, floor=0.02), tmp_path / "third", "cpu", show=False)
    assert len(of("ArmTaken", third.events)) == 2  # as it was in the first


def noise(first_label=0):
    "Pictures that are always the same, of which one may have another label."
    x, y = torch.rand(60, 8, 8, generator=torch.Generator().manual_seed(0)).numpy(), torch.arange(60) % 5
    y[0] = first_label
    return from_arrays(x, y.numpy(), name="noise")


CHANGES = {
    "a label": lambda a: replace(a, domain=noise(1)),
    "size": lambda a: replace(a, domain=a.domain.adapt((3, 8, 8))),
    "pixels": lambda a: replace(a, domain=a.domain.normalised_by((0.1,), (0.2,))),
    "frozen": lambda a: replace(a, frozen=frozenset(["fc1.weight"])),
    "norm": lambda a: replace(a, norm="recalibrated"),
    "capture": lambda a: replace(a, capture=(3,)),
    "what is returned": lambda a: replace(a, returns_weights=False),
    "start": lambda a: replace(a, start=replace(a.start, step=5)),
    "mask": lambda a: replace(a, mask=some_mask(a.network)),
    "seed": lambda a: replace(a, seed=9),
    "learning rate": lambda a: replace(a, recipe=replace(a.recipe, lr=0.07)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_all_that_decides_a_training_is_in_its_identity(change):
    arm, cpu = replace(some_arm(), domain=noise()), torch.device("cpu")
    assert (
        engine_arms.identity(CHANGES[change](arm), cpu, 1)
        != engine_arms.identity(arm, cpu, 1)
        == engine_arms.identity(replace(arm, name="b", tags={"role": "ticket"}), cpu, 1)
    )


def test_where_a_training_is_computed_is_in_its_identity(monkeypatch):
    arm = some_arm(recipe=Recipe(precision="fp32"))
    places = [engine_arms.identity(arm, torch.device(kind), 1) for kind in ("cpu", "cuda", "mps")]
    monkeypatch.setattr(torch, "__version__", "99.0.0")
    assert (
        len(
            {
                *places,
                engine_arms.identity(arm, torch.device("cpu"), 1),
                engine_arms.identity(arm, torch.device("cpu"), 2),
            }
        )
        == 5
    )


# --- the engine's version ---


def wave(shape, phase):
    return (torch.arange(math.prod(shape), dtype=torch.float64) * 0.7 + phase).sin().view(shape) * 0.3


def golden_arm(network="lenet-300-100", width=0.05, sparse=True, **recipe):
    "An arm in double precision with weights that no generator drew."
    if network == "tiny:normed":
        width = 1.0
    arm = some_arm(
        network=Network(network, (1, 8, 8), 5, width),
        recipe=Recipe(**{"epochs": 3, "batch_size": 48, "lr": 0.05, "precision": "fp64", **recipe}),
    )
    weights = {n: wave(w.shape, i).float() for i, (n, w) in enumerate(sorted(arm.start.weights.items()))}
    mask = some_mask(arm.network)
    mask = type(mask)({n: wave(b.shape, 2) > 0.05 for n, b in mask.items()}) if sparse else None
    return replace(arm, start=Snapshot(weights, arm.start.buffers), mask=mask)


ARMS = {
    "sgd": dict(
        momentum=0.9, nesterov=True, weight_decay=1e-3, schedule="one-cycle", augment=("crop", "flip")
    ),
    "plain": dict(momentum=0.0, schedule="step", drops=((0.5, 0.1),), sparse=False, keep="last"),
    "adam": dict(optimizer="adam", lr=0.01, schedule="cosine", warmup=0.1),
    "adamw": dict(optimizer="adamw", lr=0.01, weight_decay=0.1, schedule="constant", keep="best loss"),
    "batch norm": dict(network="tiny:normed", schedule="cosine"),
}
GOLDEN = {
    3: {
        "sgd": [-18.34129963674166, -9.809117601766467, 7.741521919209303, 1.5997926425088462],
        "plain": [-43.79328519772886, -19.17484042761771, 23.072864202337918, 1.508904571566417],
        "adam": [-18.310755660176493, -9.623398217694238, 7.911667165561408, 1.562383293346341],
        "adamw": [-18.053223649253255, -9.279511143656247, 8.025741112760116, 1.451573364934563],
        "batch norm": [20.556283335360483, -3.075143039403217, -23.879297085488318, 1.5746623596823146],
    }
}  # engine -> arm -> three sums over the weights, the running statistics and the loss of validation


def golden_values(name):
    (result,), _ = trained(golden_arm(**ARMS[name]))
    named = {**result.last.weights, **result.last.buffers}
    vector = torch.cat([named[n].double().flatten() for n in sorted(named)])
    return [float(vector @ wave(vector.shape, phase)) for phase in (0.0, 1.0, 2.0)] + [
        result.metrics["validation"]["loss"]
    ]


@pytest.mark.parametrize("name", ARMS)
def test_an_engine_that_computes_something_else_has_another_number(name):
    "Where this fails: raise ENGINE in training, so that no arm of the old engine is taken for one of the new, and store the new values under that number."
    assert engine_arms.ENGINE in GOLDEN, "store the values of the new engine in GOLDEN"
    *sums, loss = golden_values(name)
    *want, want_loss = GOLDEN[engine_arms.ENGINE][name]
    assert sums == pytest.approx(want, rel=1e-12, abs=1e-12) and loss == pytest.approx(want_loss, rel=1e-12)


# --- files of other times and other data ---


def test_a_ticket_that_was_read_does_not_change_with_its_file(one_file, tmp_path):
    file = tmp_path / "t.safetensors"
    file.write_bytes(one_file.read_bytes())
    t = Ticket.load(file)
    with open(file, "r+b") as f:  # in place, as a copy or a download over it would
        f.write(bytes(file.stat().st_size))
    again = Ticket.load(one_file)
    assert (
        t.content == again.content
        and all(
            tiny.same(t.start(p).tensors(), again.start(p).tensors())
            for p in ("rewind", "init", "source-trained")
        )
        and t.mask == again.mask
    )


def test_a_ticket_of_schema_1_is_read(one_file, tmp_path):
    "It had no checksum: the record stood in the metadata by itself."
    tensors, record_ = read_tensors(one_file)
    old = raw_file(tmp_path / "old.safetensors", tensors, {"lottery": json.dumps({**record_, "schema": 1})})
    assert Ticket.load(old).content == Ticket.load(one_file).content
    raw_file(old, tensors, {"lottery": json.dumps({**record_, "schema": 2})})
    assert refused(lambda: Ticket.load(old), "a file of today without a checksum")


def test_own_data_in_a_plan_are_taken_up_by_another_process(tmp_path):
    p = plan(source=tiny.noise_domain("mine"), recipe=Recipe(epochs=2, batch_size=9))
    done = run(p, tmp_path / "a" / "run", "cpu", show=False)
    stream = record(p, tmp_path / "b" / "run", "cpu")
    for e in stream:
        if isinstance(e, EpochDone) and e.arm == "r01/ticket/s0":
            break
    stream.close()
    assert Run(tmp_path / "b" / "run").status == "stopped" and worker(tmp_path / "b" / "run") == 0
    assert (
        same(outcome(tmp_path / "b" / "run"), outcome(done.path))
        and Run(tmp_path / "b" / "run").plan.hash == p.hash
    )


def test_what_a_run_leaves_on_disk(whole):
    "A bit for a weight of a mask, each snapshot once, a result for each arm, no state of an arm that is done, no word, lock or heart of a process."
    found = whole["find"]
    arms = [a for p in (found.path / "arms").iterdir() for a in read_arms(p).values()]
    assert len(arms) == found.info["arms"] and all(a.now is None and a.metrics["test"] for a in arms)
    assert sorted(p.name for p in found.path.iterdir()) == [
        "arms",
        "events.jsonl",
        "lock",
        "plan.json",
        "snapshots",
        "tickets",
    ]
    assert (
        len(list((found.path / "snapshots").iterdir())) == 3
    )  # the start, the rewind point and the trained one, for two tickets
    for t, file in zip(found.tickets, sorted((found.path / "tickets").iterdir()), strict=True):
        tensors, _ = read_tensors(file)
        assert sum(x.numel() for x in tensors.values()) <= t.mask.size / 8 + len(t.mask) and {
            x.dtype for x in tensors.values()
        } == {torch.uint8}
    text = b"".join(p.read_bytes() for p in (found.path / "tickets").iterdir())
    for private in (os.uname().nodename, str(found.path), str(Path.home())):
        assert private.encode() not in text
