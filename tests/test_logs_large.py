"""Logs that are damaged in every field, and logs of half a million events: read field by field at the door, in little time and memory.

The long ones run with `--flags slow`."""

import io
import json
import random
import re
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import breaking
import pandas as pd
import pytest
from breaking import places, with_change
from tiny import plan

from lottery_nb import cli
from lottery_nb.core import LotteryError
from lottery_nb.events import ArmDone, ArmStarted, EpochDone, event_from
from lottery_nb.results.report import write_report
from lottery_nb.runs import log as runs_log
from lottery_nb.runs.log import Epochs, frame_of, RESULT_COLUMNS, RunState, Tail
from lottery_nb.runs.reading import Run
from lottery_nb.runs.writing import run

ODD = (
    *breaking.NASTY,
    0.5,
    -0.5,
    7,
    "7",
    "dense at rate x",
    "ticket at rate 0.1",
    {"a": 1},
    [1.5],
    "BIG",
    ...,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A search that nobody disturbed."
    p = plan(controls=("reinit",), seeds=2)
    return run(p, tmp_path_factory.mktemp("whole") / "run", "cpu", show=False)


def shown(folder):
    "What `lottery show` says and how it ends; anything but a refusal is a failure."
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = cli.main(["show", str(folder)])
    return status, out.getvalue(), err.getvalue()


def text_of(record):
    "A line of a log, in which a number may be too large for any table."
    return json.dumps(record, separators=(",", ":")).replace('"BIG"', "1" + "0" * 400)


def changed(lines, draw, each):
    "(what, log) with one field of one line of each kind of event changed in some ways; `t` and `event` too."
    seen = set()
    for i, line in enumerate(lines):
        record = json.loads(line)
        if record["event"] in seen:
            continue
        seen.add(record["event"])
        for where in (p for p in places(record) if p):
            for new in draw.sample(ODD, each):
                text = text_of(with_change(record, where, new))
                yield f"{record['event']} {where} = {new!r:.40}", [*lines[:i], text, *lines[i + 1 :]]


@pytest.mark.parametrize("each", [1, len(ODD)])
def test_a_log_with_an_odd_field_is_shown_without_that_line(each, whole, tmp_path, request):
    if each > 1 and "slow" not in request.config.getoption("--flags"):
        pytest.skip("thousands of logs take minutes: run with --flags slow")
    folder = shutil.copytree(whole.path, tmp_path / "run")
    lines, draw, cases, left_out = (folder / "events.jsonl").read_text().splitlines(), random.Random(1), 0, 0
    for what, log in changed(lines, draw, each):
        (folder / "events.jsonl").write_text("\n".join(log) + "\n")
        try:
            status, out, err = shown(folder)
            found = Run(folder)
            found.info, found.frame, found.layers, repr(found)
        except Exception as e:
            raise AssertionError(f"{what}: {type(e).__name__} {e}") from e
        assert status in (0, 2) and "Traceback" not in out + err, what
        assert not found.damaged or "is damaged, left out: line" in err or status == 2, what
        cases, left_out = cases + 1, left_out + bool(found.damaged)
        if cases % 60 == 0:
            try:
                write_report(tmp_path / "report.html", Run(folder))
            except LotteryError:
                pass
    assert cases > 80 and left_out > cases / 4


@pytest.mark.parametrize("tag", ["source", "domain", "role", "start", "round", "density", "seed"])
@pytest.mark.parametrize("value", [7, -0.5, "x", None, True, [], {}, float("nan"), float("inf"), 10**30])
def test_a_tag_is_of_its_type_or_its_line_is_damage(tag, value, whole, tmp_path):
    folder = shutil.copytree(whole.path, tmp_path / "run")
    lines = (folder / "events.jsonl").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if '"event":"ArmStarted"' in line)
    record = json.loads(lines[at])
    record["tags"][tag] = value
    (folder / "events.jsonl").write_text(
        "\n".join([*lines[:at], json.dumps(record), *lines[at + 1 :]]) + "\n"
    )
    tail = Tail(folder / "events.jsonl")
    tail.new()
    word = tag in ("source", "domain", "role", "start")
    fits = isinstance(value, str) if word else type(value) is int and value < 2**63
    assert [number for number, _ in tail.damaged] == ([] if fits else [at + 1])
    status, _, err = shown(folder)
    assert status in (0, 2) and (fits or f"left out: line {at + 1}" in err)


def test_damage_is_kept_aside_with_the_numbers_of_its_lines(whole, tmp_path):
    folder = shutil.copytree(whole.path, tmp_path / "run")
    lines = (folder / "events.jsonl").read_bytes().splitlines()
    for number in (5, 9, 12):
        lines.insert(number - 1, b'{"t":1,"event":"RoundDone","round":"one"}')
    (folder / "events.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    found = Run(folder)
    assert found.frame.equals(whole.frame)
    assert found.damaged == [(n, b'{"t":1,"event":"RoundDone","round":"one"}\n') for n in (5, 9, 12)]
    assert "events.jsonl is damaged, left out: line 5, 9, 12\n" in shown(folder)[2]


# --- the frame is what it was ---


def frame_by_rows(state):
    "The frame row by row, as it was made before: slow, and easy to see through."
    begun = {e.arm: e.tags for e in state if isinstance(e, ArmStarted)}
    epochs = {(e.arm, e.epoch): e for e in state if isinstance(e, EpochDone)}
    done = {e.arm: e for e in state if isinstance(e, ArmDone)}
    tags = ("source", "domain", "role", "start", "round", "density", "seed")
    table = [
        (*(begun[e.arm].get(t) for t in tags), e.epoch, split, metric, getattr(e, f"{split}_{metric}"), e.arm)
        for e in epochs.values()
        for split in ("train", "validation")
        for metric in ("accuracy", "loss")
    ]
    table += [
        (*(begun[e.arm].get(t) for t in tags), e.epoch, "test", metric, value, e.arm)
        for e in done.values()
        for metric, value in e.metrics["test"].items()
    ]
    domains = list(dict.fromkeys(tag["domain"] for tag in begun.values()))
    splits = ("train", "validation", "test")
    key = lambda r: (domains.index(r[1]), r[4], r[11], r[7], splits.index(r[8]), r[9])  # noqa: E731
    return pd.DataFrame(sorted(table, key=key), columns=list(RESULT_COLUMNS))


def test_the_frame_is_the_one_that_is_made_row_by_row(whole):
    frame = frame_by_rows(whole.events)
    assert whole.frame.equals(frame) and (whole.frame.dtypes == frame.dtypes).all()
    kept = whole.kept
    assert set(kept.columns) == set(frame.columns) and len(kept) == 6 * frame.arm.nunique()
    test = frame[frame.split == "test"].reset_index(drop=True)
    assert kept[kept.split == "test"].reset_index(drop=True).equals(test)


def test_the_table_of_kept_epochs_is_that_of_all(whole):
    from lottery_nb.results.tables import text_table

    assert text_table(whole.kept) == text_table(whole.frame)


def test_epochs_that_come_twice_or_out_of_order_are_ordered():
    draw, epochs, last = random.Random(3), Epochs(), {}
    for _ in range(300):
        e = EpochDone("a", draw.randrange(60), 1, 0.1, draw.random(), 0.5, draw.random(), 0.5, 0.1)
        epochs.add(e.epoch, (e.train_accuracy, e.train_loss, e.validation_accuracy, e.validation_loss))
        last[e.epoch] = e.train_loss
    assert epochs.at.tolist() == sorted(last)
    assert epochs.values[1::4].tolist() == [last[epoch] for epoch in sorted(last)]


def test_no_results_are_an_empty_frame_with_the_columns():
    assert list(frame_of(RunState())) == list(RESULT_COLUMNS) and frame_of(RunState()).empty


# --- passing over ---


def test_what_is_passed_over_is_what_we_wrote_and_nothing_else(whole):
    log = whole.path / "events.jsonl"
    every = [e for _, e in Tail(log).new()]
    without = [e for _, e in Tail(log, without=["EpochDone"]).new()]
    assert without == [e for e in every if not isinstance(e, EpochDone)] and len(without) < len(every)
    assert [e for _, e in Tail(log, only=["ArmDone"]).new()] == [e for e in every if isinstance(e, ArmDone)]


@pytest.mark.parametrize(
    "line",
    [
        '{"event":"RunDone","t":1.0,"seconds":2.0}',
        '{ "t":1.0,"event":"RunDone","seconds":2.0}',
        '{"t":1,"event":"RunDone","seconds":2}',
        '{"t": 1.0, "event": "RunDone", "seconds": 2.0}',
    ],
)
def test_a_line_that_is_written_otherwise_is_not_passed_over(line, tmp_path):
    (tmp_path / "log").write_text(line + "\n")
    for how in ({"without": ["EpochDone"]}, {"only": ["RunDone"]}):
        assert [e for _, e in Tail(tmp_path / "log", **how).new()] == [event_from(line)]


def test_an_epoch_as_we_write_it_is_what_its_json_says():
    draw, quick = random.Random(5), 0
    odd = [
        0.0,
        1,
        -1,
        1e-5,
        -2.5e300,
        5e-324,
        float("inf"),
        float("nan"),
        10**17,
        10**19,
        0.1,
        2.0,
        True,
        "1",
        None,
    ]
    for _ in range(3000):
        record = {"t": draw.choice([1.5] * 9 + [2, 1e12, -1.0, 3.25]), "event": "EpochDone"}
        record |= {"arm": draw.choice(["r00/dense/s0", 'a"b', "ä", "\\n", "x" * 300, ""])}
        record |= {n: draw.choice([3, 0, 7, *odd[:2]]) for n in ("epoch", "step")}
        names = ("lr", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds")
        record |= {n: draw.choice(odd if draw.random() < 0.05 else [0.25, 1e-7, 3.5]) for n in names}
        line = (json.dumps(record, separators=(",", ":"), ensure_ascii=draw.random() < 0.5) + "\n").encode()
        pair = Tail("").pair(line)
        quick += bool(found := runs_log.EPOCH.fullmatch(line))
        e = event_from(line)
        sound = runs_log.is_amount(record["t"]) and record["t"] < 9e9 and e.sound()
        assert (
            (pair == (record["t"], e) if pair else not sound) and bool(pair) == sound or "nan" in repr(e)
        ), line
        if found:
            assert repr(pair[1]) == repr(e)
    assert 300 < quick < 2900


# --- half a million events ---


def long_log(folder, source, events):
    "A run of many arms with so many events, in the folder of another one's plan."
    folder.mkdir()
    shutil.copy(source.path / "plan.json", folder)
    lines = (source.path / "events.jsonl").read_text().splitlines()
    first = next(json.loads(line) for line in lines if '"event":"ArmStarted"' in line)
    done = next(json.loads(line) for line in lines if '"event":"ArmDone"' in line)
    start = next(line for line in lines if '"event":"RunStarted"' in line)
    draw, seeds, epochs = random.Random(0), 50, 200
    with open(folder / "events.jsonl", "w") as f:
        f.write(
            start
            + "\n"
            + text_of({"t": 1.0, "event": "Planned", "arms": events // epochs, "images": 1e9})
            + "\n"
        )
        for k in range(events // epochs):
            at, seed = divmod(k, seeds)
            role = "dense" if not at else "ticket"
            tags = first["tags"] | {"role": role, "round": at, "density": 0.8**at, "seed": seed}
            arm = f"r{at:02d}/{role}/s{seed}"
            f.write(text_of(first | {"arm": arm, "tags": tags, "epochs": epochs - 2}) + "\n")
            for epoch in range(1, epochs - 1):
                four = ",".join(f'"{n}":{draw.random()!r}' for n in ("train_loss", "train_accuracy"))
                four += "," + ",".join(
                    f'"{n}":{draw.random()!r}' for n in ("validation_loss", "validation_accuracy")
                )
                f.write(
                    f'{{"t":{k + 2:.3f},"event":"EpochDone","arm":"{arm}","epoch":{epoch},"step":{epoch * 391},'
                    f'"lr":{draw.random()!r},{four},"seconds":{draw.random()!r}}}\n'
                )
            f.write(text_of(done | {"arm": arm, "epoch": epochs - 2}) + "\n")
        f.write('{"t":99999.0,"event":"RunDone","seconds":9.0}\n')
    return folder


MEASURE = """
import json, re, resource, sys, time
from lottery_nb import cli
from lottery_nb.results.tables import text_table
from lottery_nb.results.verdict import undertrained
from lottery_nb.runs.reading import Run
import lottery_nb.runs.writing, lottery_nb.results.report

def memory(which):
    return int(re.search(rf"{which}:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

cli.main([sys.argv[1], sys.argv[2]])
before, start = resource.getrusage(resource.RUSAGE_SELF), memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
cli.main([sys.argv[1], sys.argv[3]])
after = resource.getrusage(resource.RUSAGE_SELF)
seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
peak = memory("VmHWM") - start
lines = open(sys.argv[3] + "/events.jsonl", "rb").readlines()[:20_000]
clock = time.process_time()
for line in lines:
    json.loads(line)
json_seconds = (time.process_time() - clock) / len(lines)
print("cost", seconds, peak, json_seconds, file=sys.stderr)
"""


def cost(command, small, large):
    "Seconds of a processor and megabytes above the start that a command takes for a run; and the seconds that JSON alone takes for a line of its log, here and now."
    words = [sys.executable, "-c", MEASURE, command, str(small), str(large)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return tuple(map(float, re.search(r"cost (\S+) (\S+) (\S+)", done.stderr).groups())), done.stdout


@pytest.mark.parametrize("events", [20_000, 500_000])
def test_a_long_log_is_shown_and_told_of_in_little_time_and_memory(
    events, whole, tmp_path, request, record_property
):
    if events > 20_000 and "slow" not in request.config.getoption("--flags"):
        pytest.skip("a log of 129 MB: run with --flags slow")
    folder, share = long_log(tmp_path / "long", whole, events), events / 500_000
    for command, seconds, megabytes in (("show", 5, 300), ("status", 2, 50)):
        (took, more, line), out = cost(command, whole.path, folder)
        record_property(command, f"{took:.2f} s, {more:.0f} MB")
        slow = max(1.0, line / 2.5e-6)  # a machine at other work is slower than one at rest
        assert took < max(1.5, seconds * share) * slow, (command, took, line)
        assert more < max(60, megabytes * share), (command, more)
        assert "long" in out


def test_a_log_of_gigabytes_that_were_never_written_is_read_at_once(whole, tmp_path):
    folder, good = shutil.copytree(whole.path, tmp_path / "run"), (whole.path / "events.jsonl").read_bytes()
    lines = good.splitlines(keepends=True)
    with open(folder / "events.jsonl", "wb") as f:
        f.write(b"".join(lines[:5]))
        f.seek(1 << 36)
        f.write(b"\n" + b"".join(lines[5:]))
    clock = time.process_time()
    found = Run(folder)
    assert found.frame.equals(whole.frame) and found.status == "done"
    assert time.process_time() - clock < 5
    with open(folder / "events.jsonl", "wb") as f:
        f.truncate(1 << 36)
    assert Run(folder).frame.empty and time.process_time() - clock < 10
    with open(folder / "events.jsonl", "wb") as f:  # what is written as zeros is read, and no event
        f.write(b"".join(lines[:5]) + bytes(3 << 20) + b"\n" + b"".join(lines[5:]))
    assert Run(folder).frame.equals(whole.frame)
