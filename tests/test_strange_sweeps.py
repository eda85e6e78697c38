"""A sweep's folder from a stranger, or a damaged one: read, shown and worked on, it is refused in a sentence or does no harm, and nothing outside of it is touched."""

import errno
import gzip
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from tiny import plan

from lottery_nb.cli import main
from lottery_nb.core import allow, ALLOWED, fingerprint, LotteryError, one_text, to_plain
from lottery_nb.engine.recipes import Recipe
from lottery_nb.events import RunFailed
from lottery_nb.pruning.schedules import geometric
from lottery_nb.runs.log import Log
from lottery_nb.runs.writing import run
from lottery_nb.sweeps import leases
from lottery_nb.sweeps.axes import SweepPlan
from lottery_nb.sweeps.folders import check_length, ranked, Sweep, write_sweep
from lottery_nb.sweeps.leases import claimed, claims_in
from lottery_nb.sweeps.toml import cell_value, read_sweep, read_table

READ = ("status", "show")
WORK = (*READ, "work", "sweep")


def small(**fields):
    recipe = Recipe(lr=0.05, epochs=1, batch_size=64)
    return plan(recipe=recipe, schedule=geometric(0.4, 1), **fields)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    there = write_sweep(SweepPlan(small(), {"recipe.lr": (0.05, 0.1)}), tmp_path_factory.mktemp("s") / "good")
    for point in there.points:
        run(there.run(point).plan, there.run(point).path, "cpu", show=False)
    return there


@pytest.fixture
def there(trained, tmp_path):
    "A copy that may be damaged."
    return Sweep(shutil.copytree(trained.path, tmp_path / "x"))


def rewritten(there, change):
    "The record with a change and the checksum that belongs to it, as who means harm would write it."
    record = json.loads(there.folder.record.read_text())
    change(record)
    record.pop("check", None)
    record["check"] = fingerprint(one_text(json.loads(json.dumps(record))))
    there.folder.record.write_text(json.dumps(record))


def said(capsys, *line):
    status = main([str(word) for word in line])
    return status, capsys.readouterr()


def refused(there, capsys, commands=WORK):
    for command in commands:
        status, told = said(capsys, command, there.path)
        assert status == 2 and told.err.count("\n") == 1, (command, told)
    return told.err


# --- where its points lie ---


@pytest.mark.parametrize("leads", ["a folder", "nowhere", "a run", "itself", "its parent"])
def test_a_point_that_leads_out_of_the_sweep_is_refused_and_nothing_is_written_there(
    leads, there, trained, capsys, tmp_path
):
    outside, point = tmp_path / "outside", there.folder.run(there.points[0].hash)
    outside.mkdir()
    (outside / "theirs").touch()
    targets = {"a folder": outside, "nowhere": tmp_path / "new", "a run": trained.path / point.name}
    shutil.rmtree(point)
    point.symlink_to(targets.get(leads, {"itself": point.name, "its parent": ".."}.get(leads)))
    before = sorted(p for p in trained.path.rglob("*"))
    assert "is a symbolic link" in refused(there, capsys)
    assert [p.name for p in outside.iterdir()] == ["theirs"] and not (tmp_path / "new").exists()
    assert sorted(p for p in trained.path.rglob("*")) == before
    with pytest.raises(LotteryError, match="is a symbolic link"):
        write_sweep(there_plan(), there.path, there.settings)


def there_plan():
    return SweepPlan(small(), {"recipe.lr": (0.05, 0.1)})


@pytest.mark.parametrize("name", ["leases", "left"])
@pytest.mark.parametrize("what", ["a link", "a pipe", "a file"])
def test_a_part_that_is_no_folder_is_refused_before_work(name, what, there, capsys, tmp_path):
    part = there.path / name
    shutil.rmtree(part, ignore_errors=True)
    {"a link": lambda p: p.symlink_to(tmp_path), "a pipe": os.mkfifo, "a file": Path.touch}[what](part)
    assert f"{name} in " in refused(there, capsys, ("work", "sweep"))


def test_the_run_of_another_plan_is_not_that_of_a_point(there, capsys):
    one, other = (there.folder.run(point.hash) for point in there.points)
    shutil.rmtree(one)
    shutil.copytree(other, one)
    assert "another plan than that of point 1" in refused(there, capsys, ["show"])
    status, told = said(capsys, "work", there.path)
    assert status == 1 and "point 1 (recipe.lr=0.05): failed: " in told.out and "another plan" in told.out


# --- claims ---


@pytest.mark.parametrize("number", [1_000_000, 999_999_999, 10**30])
@pytest.mark.parametrize("end", ["", ".failed", ".done"])
def test_a_number_that_nobody_comes_to_is_no_claim(number, end, there, capsys):
    there.folder.leases.mkdir(exist_ok=True)
    (there.folder.leases / f"{there.points[0].hash}.{number}{end}").write_text(
        '{"held": false, "worker": "1"}'
    )
    assert "is no claim" in refused(there, capsys)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"reason": 7}', '{"reason": {"a": 1}}', "[" * 10_000, '{"reason": "a\\nb"}']
)
def test_a_reason_is_one_line_or_nothing(text, there, capsys):
    there.folder.leases.mkdir(exist_ok=True)
    (there.folder.leases / f"{there.points[0].hash}.1.failed").write_text(text)
    status, told = said(capsys, "status", there.path)
    assert status == 1 and told.err in ("", "point 1 failed: a b\n")


def test_a_claim_on_a_full_disk_holds_nothing(there, capsys, monkeypatch):
    class Full:
        def __init__(self, *how, **more):
            self.file = real(*how, **more)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    real = leases.open_file
    monkeypatch.setattr(leases, "open_file", Full)
    assert "the disk is full, make room" in refused(there, capsys, ["work"])
    assert not claims_in(there.folder.leases)
    monkeypatch.undo()
    assert said(capsys, "work", there.path)[0] == 0 and there.done


# --- the record ---


def of_all_points(**changes):
    return lambda record: [point["changes"].update(changes) for point in record["points"]]


ODD = {
    "no points": lambda r: r.update(points=[]),
    "points as a record": lambda r: r.update(points={}),
    "a point twice": lambda r: r.update(points=r["points"][:1] * 2),
    "a point less": lambda r: r.update(points=r["points"][:1]),
    "another point": lambda r: r["points"][0].update(hash="f" * 16),
    "a hash with a line": lambda r: r["points"][0].update(hash=r["points"][0]["hash"] + "\n"),
    "no hash": lambda r: r.update(hash=7),
    "a field without a name": of_all_points(**{"": 1}),
    "a field of two lines": of_all_points(**{"a\nb": 1}),
    "a field that is a path": of_all_points(**{"../x": 1}),
    "a column twice": of_all_points(**{"plan.density": 1, "density": 2}),
    "a list": of_all_points(**{"recipe.lr": [1]}),
    "nothing": of_all_points(**{"recipe.lr": None}),
    "patience for ever": lambda r: r["settings"].update(patience=1e300),
    "a true schema": lambda r: r.update(schema=True),
    "a later schema": lambda r: r.update(schema=3),
}


@pytest.mark.parametrize("what", ODD)
def test_a_record_that_cannot_be_one_is_refused(what, there, capsys):
    rewritten(there, ODD[what])
    assert "sweep.json" in refused(there, capsys)


def test_a_digit_that_is_another_is_seen(there, capsys):
    there.folder.record.write_text(there.folder.record.read_text().replace("0.05", "0.06", 1))
    assert "not what its checksum says" in refused(there, capsys)


def test_a_record_from_before_it_had_a_checksum_is_read(there, capsys):
    record = json.loads(there.folder.record.read_text())
    del record["check"]
    there.folder.record.write_text(json.dumps(record))
    refused(there, capsys, ["show"])
    there.folder.record.write_text(json.dumps(record | {"schema": 1}))
    assert said(capsys, "show", there.path)[0] == 0


def test_a_plan_of_other_points_is_none(there):
    other = SweepPlan(small(), {"recipe.lr": (0.05, 0.2)})
    rewritten(there, lambda r: r.update(plan=to_plain(other)))
    with pytest.raises(LotteryError, match="another plan than that of its points"):
        Sweep(there.path).plan  # noqa: B018


@pytest.mark.parametrize("piece", [b"{},", b"[],", b"1,", b'"",', b" " * 64])
def test_a_record_that_would_fill_memory_is_refused_before_it_is_parsed(piece):
    with pytest.raises(LotteryError, match="too long"):
        check_length(piece * ((1 << 26) // len(piece)))


# --- what is shown of it ---

COLUMNS = (
    "validation",
    "spread",
    "seeds",
    "test",
    "note",
    "status",
    "tries",
    "reason",
    "path",
    "density",
    "arm",
)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_field_may_be_called_as_a_column_is(name, there, capsys, tmp_path):
    rewritten(there, of_all_points(**{name: 1}))
    for line in (["status"], ["show"], ["show", "--csv", tmp_path / "all.csv"]):
        assert said(capsys, line[0], there.path, *line[1:])[0] == 0


def test_an_axis_of_seeds_is_ranked(tmp_path):
    there = write_sweep(SweepPlan(small(), {"seeds": ((0,), (0, 1))}), tmp_path)
    for point in there.points:
        run(there.run(point).plan, there.run(point).path, "cpu", show=False)
    assert sorted(zip(*(ranked(there)[c] for c in ("plan.seeds", "seeds")), strict=True)) == [
        ("0", 1),
        ("0, 1", 2),
    ]


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+A1", "-1+1", "@SUM(A1)"])
def test_no_cell_of_the_table_is_a_formula(text, there, capsys, tmp_path):
    rewritten(there, of_all_points(network=text))
    assert said(capsys, "show", there.path, "--csv", tmp_path / "all.csv")[0] == 0
    assert f"'{text}" in (tmp_path / "all.csv").read_text()


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb", "\0", "é" * 3])
def test_any_text_is_shown(text, there, capsys, tmp_path):
    rewritten(there, of_all_points(network=text))
    for line in (["status"], ["show"], ["show", "--csv", tmp_path / "all.csv"]):
        assert said(capsys, line[0], there.path, *line[1:])[0] == 0


TERMINAL = ["\x1b[2J\x1b[32mall is well", "\x1b]0;title\x07", "a\x08\x08b", "\x9b31m", "\u202elleh", "a\rb"]


@pytest.mark.parametrize("text", TERMINAL)
def test_nothing_that_is_read_commands_the_terminal(text, there, capsys):
    rewritten(there, of_all_points(network=text))
    claimed(there.folder.leases, there.points[0].hash, 1).end("failed", text)
    log = Log(there.run(there.points[1]).folder.log)
    log.write(RunFailed(text, text))
    log.close()
    for line in (("status", there.path), ("show", there.path), ("status", there.run(there.points[1]).path)):
        told = said(capsys, *line)[1]
        assert not {*told.out, *told.err} & {"\x1b", "\x07", "\x08", "\x9b", "\u202e", "\r"}, told


def test_a_refusal_does_not_command_the_terminal_either(tmp_path, capsys):
    status, told = said(capsys, "stop", tmp_path / "\x1b[2J")
    assert status == 2 and "\x1b" not in told.err and "\\x1b[2J" in told.err


# --- commands that take one run ---


@pytest.mark.parametrize("command", ["stop", "pause", "resume", "run", "export", "convert", "transfer"])
def test_what_takes_one_run_says_what_to_do_with_a_sweep(command, there, capsys, tmp_path):
    more = (
        dict.fromkeys(["export", "convert"], [tmp_path / "out"]) | {"transfer": ["--targets", "digits"]}
    ).get(command, [])
    status, told = said(capsys, command, there.path, *more)
    assert (
        status == 2
        and "is a sweep, not a run: " in told.err
        and "give the folder of one of its points" in told.err
    )


# --- files that a person writes, or a stranger ---

BASE = '[base]\nsource = "digits[0-4]@200"\n'


@pytest.fixture
def evil(tmp_path, monkeypatch):
    "A module on the path that tells when it is imported."
    (tmp_path / "evil_sweeps.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n\ndef go(*a, **k): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "ran"
    sys.modules.pop("evil_sweeps", None)
    ALLOWED.discard("evil_sweeps")


NAMED = {
    "a network": '[axes]\nnetwork = ["evil_sweeps:go"]',
    "a criterion": '[axes]\ncriterion = ["magnitude", "evil_sweeps:go"]',
    "a scope": '[axes]\nscope = ["evil_sweeps:go"]',
    "a control": '[axes]\ncontrols = [["evil_sweeps:go"]]',
    "data": '[axes]\nsource = ["evil_sweeps:go"]',
    "the base's": None,
    "a row's": '[[points]]\nnetwork = "evil_sweeps:go"',
    "a table's": 'table',
}  # fmt: skip


@pytest.mark.parametrize("what", NAMED)
def test_a_name_in_a_file_is_imported_only_where_it_is_allowed(what, evil, tmp_path, capsys):
    text = BASE + (NAMED[what] or 'network = "evil_sweeps:go"\n[axes]\nwidth = [0.1]')
    if what == "a table's":
        text = 'table = "t.csv"\n' + BASE
        (tmp_path / "t.csv").write_text("criterion\nevil_sweeps:go\n")
    (tmp_path / "s.toml").write_text(text)
    status, told = said(capsys, "sweep", tmp_path / "s.toml", "--out", tmp_path / "out")
    assert status == 2 and "--trust evil_sweeps" in told.err and told.err.count("\n") == 1
    assert not evil.exists() and not (tmp_path / "out").exists()
    if what == "a criterion":
        allow("evil_sweeps")
        assert len(read_sweep(tmp_path / "s.toml").points) == 2 and evil.exists()


TEXTS = {
    "a cell beyond all cells": ("network\n" + "x" * 200_000 + "\n", "cannot be read as a table"),
    "too many cells": (
        ",".join(f"a{i}" for i in range(2000)) + ("\n1" + "," * 1999) * 600,
        "more than 1,000,000 cells",
    ),
    "a table that is too long": ("width\n" + "1" * (1 << 24), "more than 16,777,216 bytes"),
}


@pytest.mark.parametrize("what", TEXTS)
def test_a_table_that_nobody_wrote_is_refused(what, tmp_path):
    (tmp_path / "t.csv").write_text(TEXTS[what][0])
    with pytest.raises(LotteryError, match=TEXTS[what][1]):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "cell, value",
    [("0.1\nother = 3", "0.1\nother = 3"), ("a." * 60_000 + "a", None), ("{" + "a." * 60_000 + "a=1}", None)],
)
def test_a_cell_is_one_value(cell, value):
    assert cell_value(cell) == (cell if value is None else value)


@pytest.mark.parametrize("end", ["\n#" + "x" * (1 << 20), "\n" + "a." * 100_000 + "a = 1"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_file_is_read_whole_or_not_at_all(end, pack, tmp_path):
    (tmp_path / "s.toml").write_bytes(pack((BASE + "[axes]\nwidth = [0.1]" + end).encode()))
    with pytest.raises(LotteryError, match="more than 1,048,576 bytes|too many dots"):
        read_sweep(tmp_path / "s.toml")
