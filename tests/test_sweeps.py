"""What is no lesson of the wing of sweeps: every kind of axis, files that people write, and workers as real processes that are killed, suspended, late or on a machine that is gone."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from tiny import noise_domain, plan, within

from lottery_nb.cli import main
from lottery_nb.core import from_plain, LotteryError, to_plain
from lottery_nb.events import ArmDone, EpochDone
from lottery_nb.engine.recipes import Recipe
from lottery_nb.files import RunFolder
from lottery_nb.models.network import Network
from lottery_nb.plans.find import FindPlan
from lottery_nb.plans.transfer import TransferPlan
from lottery_nb.pruning.schedules import cubic, geometric, listed
from lottery_nb.runs.log import Tail
from lottery_nb.runs.reading import Run
from lottery_nb.runs.workers import runs
from lottery_nb.runs.writing import locked, run, steer
from lottery_nb.sweeps.axes import changed, SweepPlan, text_at, value_at
from lottery_nb.sweeps.folders import best, ranked, reopen, Settings, Sweep, write_sweep
from lottery_nb.sweeps.leases import Claim, claimed, claims_in, Queue
from lottery_nb.sweeps.toml import read_sweep, template
from lottery_nb.sweeps.running import sweep
from lottery_nb.sweeps.working import spawned, work_on


def small(**fields):
    return plan(**{"recipe": Recipe(lr=0.05, epochs=2, batch_size=32), **fields})


def outcome(folder):
    "Results of a run, and the bytes of its tickets and snapshots."
    frame = Run(folder).frame.sort_values(["arm", "epoch", "split", "metric"], ignore_index=True)
    return frame, {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for part in ("tickets", "snapshots")
        for p in sorted((folder / part).glob("*"))
    }


def same_bits(one, other):
    "Whether two sweeps of the same points have the same results, to the bit, each arm counted once."
    assert {p.hash for p in one.points} == {p.hash for p in other.points}
    for point in one.points:
        a, b = (outcome(s.folder.run(point.hash)) for s in (one, other))
        assert len(a[0]) and a[0].equals(b[0]) and a[1] == b[1], point
    for s in (one, other):
        assert not s.frame.duplicated(["point", "arm", "epoch", "split", "metric"]).any()
        for point in s.points:
            log = RunFolder(s.folder.run(point.hash)).log
            ended = [e.arm for _, e in Tail(log, only=["ArmDone"]).stream() if isinstance(e, ArmDone)]
            assert sorted(ended) == sorted(set(ended)) and len(ended) == Run(log.parent).stand.planned.arms
    return True


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    "A search, for its tickets."
    return run(small(), tmp_path_factory.mktemp("found") / "find", "cpu", show=False)


# --- points ---

FIND = {
    "source": (tiny.NAME, "digits[0-4]@100"),
    "network": ("lenet-300-100", "logistic-regression", "tiny:watched"),
    "width": (0.1, 1),
    "schedule": (geometric(0.5, 2), cubic(0.1, 3), listed([0.5, 0.1])),
    "rewind": ("init", "step 2"),
    "retrain": ("weight rewinding", "learning-rate rewinding"),
    "recipe": (Recipe(epochs=1), Recipe(epochs=2)),
    "seeds": (1, (0, 3), [4, 5]),
    "criterion": ("magnitude", "snip", "tiny:by_row"),
    "scope": ("global", "erk", "layer"),
    "controls": ((), ("reinit",), ["shuffled", "random mask"]),
    "layer_fractions": ({}, {"head": 0.1}),
    "floor": (0, 0.5),
    "rates": ((), (0.01, 0.2)),
}
TRANSFER = {
    "targets": (("digits[5-9]@200",), ["digits[0-4]@200", "digits[5-9]@200"]),
    "start": (("rewind",), ("fresh", "source-trained")),
    "body": ("fine-tune", "frozen"),
    "head": ("new", "mlp"),
    "controls": ((), ("dense",)),
    "recipe": (Recipe(epochs=1), Recipe(epochs=2)),
    "normalise": ("target", "source"),
}


@pytest.mark.parametrize("field", FIND)
def test_every_field_of_a_search_is_an_axis(field):
    base = small(schedule=geometric(0.4, 3))
    p = SweepPlan(base, {field: FIND[field]})
    made, wanted = [point.plan for point in p.points], [replace(base, **{field: v}) for v in FIND[field]]
    assert made == wanted and [getattr(m, field) for m in made] == [getattr(w, field) for w in wanted]
    assert [text_at(value_at(m, field)) for m in made] == [p.texts(point)[field] for point in p.points]


@pytest.mark.parametrize("field", TRANSFER)
def test_every_field_of_a_transfer_is_an_axis(field, found):
    base = TransferPlan(found.tickets[-1], ("digits[5-9]@200",), controls=())
    made = [point.plan for point in SweepPlan(base, {field: TRANSFER[field]}).points]
    assert [p.hash for p in made] == [replace(base, **{field: v}).hash for v in TRANSFER[field]]


@pytest.mark.parametrize(
    "name, value, held",
    [
        ("recipe.lr", 1, 1.0),
        ("recipe.steps", 30, 30),
        ("recipe.optimizer", "adam", "adam"),
        ("recipe.drops", [[0.5, 0.1]], ((0.5, 0.1),)),
        ("recipe.augment", "flip", ("flip",)),
        ("schedule.rounds", 5, 5),
        ("schedule.fraction", 0.5, 0.5),
    ],
)
def test_fields_of_recipe_and_schedule_are_axes(name, value, held):
    p = changed(small(), {name: value})
    assert value_at(p, name) == held and p.hash != small().hash
    assert replace(p, recipe=small().recipe, schedule=small().schedule) == small()


def test_a_transfer_that_names_no_recipe_begins_with_that_of_its_tickets(found):
    base = TransferPlan(found.tickets[-1], ("digits[5-9]@200",))
    assert base.recipe is None
    recipe = changed(base, {"recipe.lr": 0.2}).recipe
    assert recipe == replace(found.tickets[-1].recipe, lr=0.2)


def test_a_network_of_ones_own_has_fields():
    base = small(network=Network("lenet-300-100", (1, 8, 8), 5, 0.1), width=1.0)
    assert changed(base, {"network.head": "mlp"}).network.head == "mlp"


@pytest.mark.parametrize(
    "axes, rows, says",
    [
        ({"recipe.lr": (0.1, -1)}, (), r"point 2 \(recipe.lr=-1\): Recipe.lr"),
        ({"seeds": (1, (0, 0))}, (), "point 2 .*give each seed once"),
        ({"network": ("lenet-300-10",)}, (), "did you mean"),
        ({"rewind": ("step x",)}, (), r"point 1 \(rewind=step x\)"),
        ({"schedule": ("cubik(0.1, 3)",)}, (), "did you mean 'cubic'"),
        ({"schedule.fractoin": (0.1,)}, (), "did you mean 'fraction'"),
        ({"schedule.rounds.x": (1,)}, (), "has no fields of its own"),
        ({"recipe.lr.x": (1,)}, (), "has no fields of its own"),
        ({"recipe": (3,)}, (), r"point 1 .*give a Recipe"),
        ({"recipe.lr": 0.1}, (), "give a list"),
        ({"recipe.lr": ()}, (), "at least one value"),
        ({}, (), "changes nothing"),
        ({}, ({},), "give a list of dictionaries"),
        ({}, "abc", "give a list of dictionaries"),
        ([], (), "give a dictionary"),
        ({"seeds": range(3)}, (), "give a list"),
        ({"recipe.lr": (0.1,)}, ({"recipe.lr": 0.2},), "is an axis"),
        ({"recipe.lr": (0.1, 0.1)}, (), "is the same plan as point 1"),
        ({}, ({"width": 1}, {"width": 1.0}), "is the same plan as point 1"),
        ({f"recipe.{n}": tuple(range(1, 1000)) for n in ("lr", "epochs")}, (), "at most 100,000"),
    ],
)
def test_a_bad_point_is_refused_by_its_name(axes, rows, says):
    with pytest.raises(LotteryError, match=says):
        SweepPlan(small(), axes, rows)


def test_what_is_no_plan_is_no_base():
    with pytest.raises(LotteryError, match="give one of FindPlan"):
        SweepPlan("digits", {"recipe.lr": (0.1,)})


def test_identity_is_that_of_the_points():
    one = SweepPlan(small(), {"recipe.lr": (0.1, 0.2), "width": (0.1, 0.2)})
    rows = [{"width": w, "recipe.lr": lr} for lr in (0.2, 0.1) for w in (0.2, 0.1)]
    other = SweepPlan(small(recipe=Recipe(lr=3, epochs=2, batch_size=32)), {}, rows)
    assert one.hash == other.hash and one != other
    assert one.hash != SweepPlan(small(), {"recipe.lr": (0.1, 0.2)}).hash


@pytest.mark.parametrize("field", [f for f in FIND])
def test_json_both_ways(field):
    p = SweepPlan(small(schedule=geometric(0.4, 3)), {field: FIND[field]})
    again = from_plain(json.loads(json.dumps(to_plain(p))))
    assert replace(again).hash == p.hash and [q.plan for q in replace(again).points] == [
        q.plan for q in p.points
    ]


# --- files ---


@pytest.mark.parametrize("kind", ["find", "transfer"])
def test_the_template_is_a_sweep(kind, tmp_path, found):
    text = (
        template(kind)
        .replace("lottery-runs/find-digits-1a2b3c4d", str(found.path))
        .replace('"digits[5-9]"', '"digits[5-9]@200"')
    )
    (tmp_path / "s.toml").write_text(text)
    read = read_sweep(tmp_path / "s.toml")
    assert len(read.points) == 2
    want = (
        FindPlan() if kind == "find" else TransferPlan(found.tickets, ("digits[5-9]@200",), recipe=Recipe())
    )
    assert read.base.hash == want.hash


def test_a_table_is_a_list_of_overrides(tmp_path):
    (tmp_path / "t.csv").write_text(
        'network, recipe.lr,seeds,schedule\nvgg-19,0.1,"[0, 3]","geometric(0.5, 2)"\n\nlenet-300-100,1,,"[0.5, 0.2]"\n'
    )
    (tmp_path / "s.toml").write_text(
        'table = "t.csv"\n[base]\nwidth = 0.1\n[axes]\nrewind = ["init", "step 2"]\n'
    )
    points = read_sweep(tmp_path / "s.toml").points
    assert len(points) == 4 and points[0].plan.seeds == (0, 3) and points[0].plan.network == "vgg-19"
    assert points[2].plan.recipe.lr == 1.0 and points[2].plan.schedule == listed([0.5, 0.2])


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "changes nothing"),
        ("kind = 3", "kind=3"),
        ('kind = "fynd"', "did you mean 'find'"),
        ("[base]\nsedes = 3", "did you mean 'seeds'"),
        ("[base.recipe]\nlr = 0", "Recipe.lr=0"),
        ("[base.recipe]\nlrr = 1", "did you mean 'lr'"),
        ("[base]\nschedule = 3", "FindPlan.schedule=3"),
        ("[axes]\nwidth = 3", "give a list"),
        ('[axes]\ntickets = ["a"]', "no axis of a file"),
        ('table = "nowhere.csv"', "no file nowhere.csv"),
        ('kind = "transfer"\n[base]\ntargets = ["mnist"]\n[axes]\nbody = ["frozen"]', "tickets"),
        ('kind = "transfer"\n[base]\ntickets = "nowhere"\ntargets = ["mnist"]', "is not a run"),
        ("[[points]]\n", "give a list of dictionaries"),
        ("x" * 100, "cannot be read as a sweep"),
        ("\udcff", "cannot be read as a sweep"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(text, says, tmp_path):
    (tmp_path / "s.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(LotteryError, match=says) as refusal:
        read_sweep(tmp_path / "s.toml")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "a name over each column"),
        ("a,a\n1,2\n", "a name over each"),
        ("a,\n1,2\n", "a name over each"),
        ("a\n1\n1,2\n", "row 2 has 2 cells"),
    ],
)
def test_a_bad_table_is_refused(text, says, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    (tmp_path / "s.toml").write_text('table = "t.csv"')
    with pytest.raises(LotteryError, match=says):
        read_sweep(tmp_path / "s.toml")


def test_json_is_for_programs(tmp_path):
    p = SweepPlan(small(), {"recipe.lr": (0.1, 0.2)})
    (tmp_path / "s.json").write_text(json.dumps(to_plain(p)))
    assert read_sweep(tmp_path / "s.json").hash == p.hash
    (tmp_path / "s.json").write_text(json.dumps(to_plain(small())))
    with pytest.raises(LotteryError, match="holds FindPlan"):
        read_sweep(tmp_path / "s.json")


# --- folders ---


def test_a_wider_sweep_keeps_what_is_done(tmp_path):
    done = sweep(
        SweepPlan(small(), {"recipe.lr": (0.05, 0.1)}),
        out=tmp_path / "s",
        device="cpu",
        threads=1,
        show=False,
    )
    logs = {p.hash: (done.folder.run(p.hash) / "events.jsonl").read_bytes() for p in done.points}
    wider = SweepPlan(small(), {"width": (0.2, 0.1), "recipe.lr": (0.1, 0.05)})
    done = sweep(wider, out=tmp_path / "s", show=False)
    assert done.done and len(done.points) == 4
    assert {name: (done.folder.run(name) / "events.jsonl").read_bytes() for name in logs} == logs
    with pytest.raises(LotteryError, match="holds another sweep"):
        sweep(SweepPlan(small(), {"recipe.lr": (0.05, 0.1)}), out=tmp_path / "s", show=False)
    with pytest.raises(LotteryError, match="give the same, or another folder"):
        sweep(tmp_path / "s", threads=2, show=False)


def test_data_and_tickets_lie_once(tmp_path, found):
    own = noise_domain(n=60)
    base = small(source=own, width=0.1, recipe=Recipe(epochs=1, batch_size=16), schedule=geometric(0.5, 1))
    for name, base_plan in {
        "own": base,
        "moved": TransferPlan(found.tickets[-1], ("digits[5-9]@200",), controls=()),
    }.items():
        there = write_sweep(SweepPlan(base_plan, {"floor": (0.0, 0.1)}), tmp_path / name)
        files = [sorted(RunFolder(there.folder.run(p.hash)).inputs.iterdir()) for p in there.points]
        assert files[0] and [f.name for f in files[0]] == [f.name for f in files[1]]
        assert {f.stat().st_ino for pair in files for f in pair} == {
            f.stat().st_ino for f in RunFolder(there.path).inputs.iterdir()
        }
        assert Sweep(there.path).plan.hash == there.plan.hash
        assert [Run(there.folder.run(p.hash)).plan.hash for p in there.points] == [
            p.hash for p in there.points
        ]


def test_a_sweep_of_a_transfer_is_trained(tmp_path, found):
    p = SweepPlan(
        TransferPlan(found.tickets[-1], ("digits[5-9]@200",), ("rewind",), controls=()),
        {"body": ("fine-tune", "frozen")},
    )
    done = sweep(p, out=tmp_path / "s", device="cpu", show=False)
    assert done.done and set(done.frame["body"]) == {"fine-tune", "frozen"}
    assert best(done).changes["body"] in ("fine-tune", "frozen")


def test_the_best_point_is_chosen_without_test_data(tmp_path, monkeypatch):
    done = sweep(
        SweepPlan(small(seeds=2), {"recipe.lr": (0.001, 0.1)}), out=tmp_path / "s", device="cpu", show=False
    )
    table = ranked(done)
    log = RunFolder(done.folder.run(done.points[int(table["point"].iloc[-1]) - 1].hash)).log
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        if line["event"] == "ArmDone":
            line["metrics"]["test"]["accuracy"] = 1.0
    log.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    again = ranked(Sweep(done.path))
    assert again["point"].tolist() == table["point"].tolist() and again["test"].iloc[-1] == 1.0
    assert best(Sweep(done.path)).number == table["point"].iloc[0]


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{}",
        "[1]",
        "null",
        '{"schema": 2}',
        "{" * 50_000,
        '{"schema": 1, "settings": {}, "points": [{"hash": "../../etc", "changes": {}}], "plan": {}}',
    ],
)
def test_a_damaged_record_is_refused(damage, tmp_path, capsys):
    write_sweep(SweepPlan(small(), {"recipe.lr": (0.05, 0.1)}), tmp_path)
    (tmp_path / "sweep.json").write_text(damage)
    with pytest.raises(LotteryError):
        Sweep(tmp_path)
    for command in ("status", "show", "work", "sweep"):
        assert main([command, str(tmp_path)]) == 2 and capsys.readouterr().err.count("\n") == 1


def test_lists_do_not_break_on_a_sweep(tmp_path, capsys):
    write_sweep(SweepPlan(small(), {"recipe.lr": (0.05, 0.1)}), tmp_path / "s")
    assert len(runs(tmp_path)) == 0 and len(runs(tmp_path / "s")) == 2
    for line in (["runs", tmp_path], ["runs", tmp_path / "s"], ["status", tmp_path / "s"]):
        assert main([str(word) for word in line]) == 0
    assert "0 of 2 points done" in capsys.readouterr().out
    for line in (
        ["show", tmp_path / "s"],
        ["resume", tmp_path / "s"],
        ["show", tmp_path / "s", "--report", "x.html"],
    ):
        assert main([str(word) for word in line]) == 2


# --- workers ---

PATIENT = Settings(patience=8.0)


def long(**fields):
    "Points of some seconds."
    return SweepPlan(
        plan(recipe=Recipe(lr=0.05, epochs=60, batch_size=16), seeds=2, width=0.3, **fields),
        {"recipe.lr": (0.03, 0.05), "rewind": ("init", "step 2")},
    )


def until(what, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


@contextmanager
def workers():
    "Processes that work on sweeps; none is left behind."
    there = []

    def add(found):
        there.append(spawned(found, 0))
        return there[-1]

    try:
        yield add
    finally:
        for worker in there:
            if worker.poll() is None:
                os.kill(worker.pid, signal.SIGKILL)
            worker.wait()


def held_by(found, pid):
    "The points that a process holds."
    names = []
    for name, claim in found.claims.items():
        said = json.loads((found.folder.leases / f"{name}.{claim.number}").read_bytes() or b"{}")
        if not claim.end and said.get("held") and said["worker"].split()[0] == str(pid):
            names.append(name)
    return names


def epochs_of(found, name):
    return sum(1 for _ in Tail(RunFolder(found.folder.run(name)).log, only=["EpochDone"]).stream())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "The long sweep, by one worker that nobody disturbed."
    there = write_sweep(long(), tmp_path_factory.mktemp("alone") / "s")
    assert work_on(there.path, tell=lambda line: None) == {"done": 4}
    return there


def test_killed_suspended_and_late_workers_end_with_the_bits_of_one(tmp_path, alone):
    there = write_sweep(long(), tmp_path / "s", PATIENT)
    with within(600), workers() as add:
        killed, paused = add(there), add(there)
        ours = until(lambda: held_by(there, killed.pid))[0]
        theirs = until(lambda: held_by(there, paused.pid))[0]
        assert ours != theirs
        until(lambda: epochs_of(there, ours) > 20)
        os.kill(killed.pid, signal.SIGKILL)
        until(lambda: epochs_of(there, theirs) > 20)
        os.kill(paused.pid, signal.SIGSTOP)
        late = add(there)
        until(lambda: there.claims[theirs].number > 1, 240)  # taken over from one that is silent
        os.kill(paused.pid, signal.SIGCONT)
        until(lambda: late.poll() is not None and paused.poll() is not None, 180)
        assert (late.returncode, paused.returncode) == (0, 0)
    assert there.done and {c.number for c in there.claims.values()} == {1, 2}
    log = there.folder.worker_log.read_text()
    assert log.count(": lost") == 1 and log.count(": done") == 4
    assert same_bits(there, alone)


def test_a_suspended_worker_is_overtaken_while_it_holds_the_lock(tmp_path, alone):
    there = write_sweep(long(), tmp_path / "s", PATIENT)
    with within(600), workers() as add:
        first = add(there)
        name = until(lambda: held_by(there, first.pid))[0]
        until(lambda: epochs_of(there, name) > 30)
        os.kill(first.pid, signal.SIGSTOP)
        assert work_on(there.path, tell=lambda line: None) == {"done": 4}
        before = outcome(there.folder.run(name))
        os.kill(first.pid, signal.SIGCONT)
        until(lambda: first.poll() is not None)
        assert first.returncode == 0 and "lost" in there.folder.worker_log.read_text()
        after = outcome(there.folder.run(name))
        assert before[0].equals(after[0]) and before[1] == after[1]
    assert same_bits(there, alone)


def test_a_lease_of_a_machine_that_is_gone_is_taken_over(tmp_path, alone):
    there = write_sweep(long(), tmp_path / "s", PATIENT)
    name = there.points[0].hash
    claimed(there.folder.leases, name, 1).file.write_text(
        json.dumps({"worker": "7 1 elsewhere gpu7", "beat": 3, "held": True})
    )
    assert Queue(there.folder.leases, [name], patience=1000).take() == (None, True)
    assert work_on(there.path, tell=lambda line: None) == {"done": 4}
    assert there.claims[name] == Claim(2, "done") and same_bits(there, alone)


def _race(folder, names, gate, won):
    for name in names:
        gate.wait()
        lease = claimed(Path(folder), name, 1)
        if lease:
            won.put(name)
    won.put(None)


def test_of_workers_that_race_for_a_point_one_wins(tmp_path):
    names = [f"{i:016x}" for i in range(100)]
    context = multiprocessing.get_context("fork")
    gate, won = context.Barrier(4), context.Queue()
    racing = [context.Process(target=_race, args=(tmp_path, names, gate, won)) for _ in range(4)]
    with within(120):
        for process in racing:
            process.start()
        ended, winners = 0, []
        while ended < 4:
            name = won.get()
            ended, winners = ended + (name is None), winners + [name] * (name is not None)
        for process in racing:
            process.join()
    assert sorted(winners) == names and claims_in(tmp_path) == {name: Claim(1) for name in names}


def layouts_of(found, point):
    log = RunFolder(found.folder.run(point.hash)).log
    return [e.groups for _, e in Tail(log, only=["Layout"]).stream()]


def test_what_a_point_gives_does_not_depend_on_which_others_are_done(tmp_path):
    few, more = (0, 1), (0, 1, 2)
    for name, seeds in {"up": (few, more), "down": (more, few)}.items():
        there = write_sweep(SweepPlan(small(), {"seeds": seeds}), tmp_path / name)
        assert work_on(there.path, tell=lambda line: None) == {"done": 2}
    up, down = Sweep(tmp_path / "up"), Sweep(tmp_path / "down")
    for point in up.points:
        assert layouts_of(up, point) == layouts_of(down, point)
    assert same_bits(up, down)


def test_arms_that_two_points_share_are_trained_once(tmp_path):
    there = write_sweep(SweepPlan(small(), {"criterion": ("magnitude", "random")}), tmp_path / "s")
    assert work_on(there.path, tell=lambda line: None) == {"done": 2}
    seconds = [
        {e.arm: e.seconds for e in Run(there.folder.run(p.hash)).events if isinstance(e, EpochDone)}
        for p in there.points
    ]
    shared = {arm for arm in seconds[0] if seconds[0][arm] == seconds[1].get(arm)}
    assert {arm for arm in shared if "/dense/" in arm} == shared != set()


def test_a_clock_that_is_wrong_kills_nobody(tmp_path):
    "Silence is counted by the clock of who listens: the times of files say nothing."
    lease = claimed(tmp_path, "a" * 16, 1)
    os.utime(lease.file, (0, 0))
    queue = Queue(tmp_path, ["a" * 16], patience=0.3)
    for _ in range(4):
        lease.beat()
        os.utime(lease.file, (0, 0))
        assert queue.take() == (None, True)
        time.sleep(0.15)


def test_a_point_that_fails_leaves_the_others_and_is_tried_again(tmp_path, capsys):
    there = write_sweep(SweepPlan(small(), {"criterion": ("magnitude", "tiny:gives_way")}), tmp_path / "s")
    lines = []
    assert work_on(there.path, trust=["tiny"], tell=lines.append) == {"done": 1, "failed": 1}
    assert "not today" in lines[-1] and there.status["status"].tolist() == ["done", "failed"]
    assert work_on(there.path, tell=lines.append) == {}
    assert main(["status", str(there.path)]) == 1 and "not today" in capsys.readouterr().err
    assert [p.number for p in reopen(there)] == [2]
    assert there.status["tries"].tolist() == [1, 2]


def test_a_point_that_is_stopped_by_hand_waits_for_who_goes_on(tmp_path):
    there = write_sweep(long(), tmp_path / "s")
    with within(120), workers() as add:
        worker = add(there)
        name = until(lambda: held_by(there, worker.pid))[0]
        until(lambda: epochs_of(there, name) > 5)
        steer(there.folder.run(name), "stop")
        until(lambda: there.claims[name].end == "stopped")
        worker.terminate()
        assert worker.wait(30) == 130
    others = [n for n, c in there.claims.items() if n != name]
    assert all(Queue(there.folder.leases, [n]).take()[0] for n in others)  # given back at once
    assert [p.hash for p in reopen(there)] == [name]


def test_a_run_that_somebody_works_on_is_left_alone(tmp_path):
    there = write_sweep(SweepPlan(small(), {"recipe.lr": (0.05, 0.1)}), tmp_path / "s")
    with locked(there.folder.run(there.points[0].hash)):
        ends = work_on(there.path, wait=False, tell=lambda line: None)
    assert (
        ends["done"] == 1
        and ends["busy"]
        and there.points[0].hash not in [n for n, c in there.claims.items() if c.end]
    )


def test_a_machine_without_the_device_does_nothing(tmp_path):
    there = write_sweep(SweepPlan(small(), {"recipe.lr": (0.05, 0.1)}), tmp_path / "s", Settings("mps"))
    with pytest.raises(LotteryError, match="is not on this machine"):
        work_on(there.path)
    assert there.claims == {}


def test_workers_that_die_are_told_of(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "not a number")
    monkeypatch.setattr(
        "lottery_nb.sweeps.working.surroundings", lambda: {**os.environ, "PYTHONPATH": "/nowhere"}
    )
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LotteryError, match="the workers ended and 2 of 2 points are not done"):
        sweep(SweepPlan(small(), {"recipe.lr": (0.05, 0.1)}), out=tmp_path / "s", device="cpu", show=False)


def test_the_shell_does_it_all(tmp_path, capsys):
    (tmp_path / "s.toml").write_text(
        f'[base]\nsource = "{tiny.NAME}"\nwidth = 0.1\nseeds = 1\ncontrols = []\nschedule = "geometric(rounds=1)"\n'
        'recipe = { epochs = 1, batch_size = 32 }\n[axes]\n"recipe.lr" = [0.05, 0.1]\n'
    )
    out = str(tmp_path / "s")
    assert (
        main(
            ["sweep", str(tmp_path / "s.toml"), "--on", "local:2", "--out", out, "--device", "cpu", "--quiet"]
        )
        == 0
    )
    assert "2 of 2 points done" in capsys.readouterr().out
    assert main(["sweep", out, "--quiet"]) == 0 and main(["work", out]) == 0
    assert main(["show", out, "--csv", str(tmp_path / "all.csv")]) == 0
    assert (tmp_path / "all.csv").read_text().startswith("point,recipe.lr,source,")
    capsys.readouterr()
    assert main(["sweep"]) == 2 and main(["sweep", out, "--on", "lokal:2"]) == 2
    assert "did you mean 'local'?" in capsys.readouterr().err


def test_one_line_starts_a_worker_anywhere(tmp_path):
    there = write_sweep(SweepPlan(small(), {"recipe.lr": (0.05, 0.1)}), tmp_path / "s")
    line = [
        sys.executable,
        "-c",
        "from lottery_nb.cli import main; raise SystemExit(main())",
        "work",
        str(there.path),
    ]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.count(": done") == 2, done.stderr
