"""What is no lesson of 09_runs: logs that are torn or foreign, readers beside a writer, plans on disk with everything in them, and runs that were ended at any moment."""

import pickle
import shutil
from dataclasses import replace

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import listen, of, plan

from lottery_nb.runs import writing as runs_writing
from lottery_nb.runs import reading as runs_reading
from lottery_nb.runs import log as runs_log
from lottery_nb.core import expect_error, LotteryError
from lottery_nb.events import (
    ArmDone,
    ArmFailed,
    ArmStarted,
    EpochDone,
    Event,
    event,
    event_from,
    EVENTS,
    Planned,
    RoundDone,
    RunDone,
    RunPaused,
    RunResumed,
    RunStarted,
    RunStopped,
    Tick,
    TicketFound,
)
from lottery_nb.files import write_atomic
from lottery_nb.workbench.follow import Follower
from lottery_nb.pruning.schedules import listed, one_shot
from lottery_nb.runs.log import (
    LAYER_COLUMNS,
    layers_frame,
    Log,
    RESULT_COLUMNS,
    results_frame,
    RunState,
    Tail,
)
from lottery_nb.runs.reading import read_plan, Run, run_folder, write_plan
from lottery_nb.runs.writing import Arms, record, run, Writer
from lottery_nb.plans.find import find_tickets
from lottery_nb.engine.recipes import Recipe
from lottery_nb.plans.transfer import TransferPlan
from lottery_nb.runs.workers import glance


def go(p, folder):
    return run(p, folder, "cpu", show=False)


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def results(found):
    return found.frame.reset_index(drop=True)


# --- the log ---

text = st.text(st.characters(blacklist_categories=("Cs",)), max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
some = st.one_of(
    st.builds(RoundDone, st.integers(0, 99), numbers, st.integers(0, 99)),
    st.builds(
        ArmStarted,
        text,
        st.dictionaries(text, st.one_of(text, numbers, st.integers(0, 9)), max_size=3),
        numbers,
        st.integers(0, 10**9),
    ),
    st.builds(ArmFailed, text, st.integers(0, 9), st.integers(0, 9), text),
).filter(lambda e: e.sound())


@settings(deadline=None, max_examples=60)
@given(events=st.lists(some, min_size=1, max_size=8), data=st.data())
def test_a_reader_sees_every_whole_line_once_however_it_grows(events, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    log = Log(path)
    for e in events:
        log.write(e)
    log.close()
    whole, tail, seen, growing = (
        path.read_bytes(),
        Tail(path.with_name("growing")),
        [],
        path.with_name("growing").open("ab", buffering=0),
    )
    assert whole.count(b"\n") == len(events)
    for a, b in zip(
        [0, *(cuts := sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6))))],
        [*cuts, len(whole)],
        strict=True,
    ):
        growing.write(whole[a:b])
        seen += [e for _, e in tail.new()]
        assert len(seen) == whole[:b].count(b"\n")
    growing.close()
    assert [e for _, e in Tail(path).new()] == seen == events and tail.skipped == 0 and tail.new() == []


@pytest.mark.parametrize(
    "torn",
    [
        b'{"t":1,"event":"RoundDo',
        b"\0" * 30,
        b"\xff\xfe{",
        b'{"t":1,"event":"RoundDone","round":1,"density":0.5,"rounds":2}',
    ],
)
def test_a_torn_last_line_costs_that_line_only(torn, tmp_path):
    path = tmp_path / "events.jsonl"
    log = Log(path)
    log.write(RoundDone(0, 1.0, 2))
    log.close()
    with open(path, "ab") as f:
        f.write(torn)
    log = Log(path)
    log.write(RoundDone(2, 0.3, 2))
    log.close()
    rounds = [e.round for _, e in Tail(path).new()]
    assert rounds in ([0, 2], [0, 1, 2]) and (len(rounds) == 3) == torn.endswith(b"}")


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[1]",
        b"null",
        b'{"t":1}',
        b'{"t":1,"event":""}',
        b'{"t":1,"event":"os system()"}',
        b'{"t":1,"event":"RoundDone"}',
        b'{"t":"x","event":"RunDone","seconds":1}',
        b"[" * 100_000,
        b'{"t":1,"event":["RunDone"],"seconds":1}',
        b'{"event":"RunDone","seconds":1}',
    ],
)
def test_a_foreign_line_is_skipped_and_counted(line, tmp_path):
    good = b'{"t":1,"event":"RunDone","seconds":2}'
    (tmp_path / "log").write_bytes(line + b"\n" + good + b"\n")
    tail = Tail(tmp_path / "log")
    assert [e for _, e in tail.new()] == [RunDone(2)] and tail.skipped == 1


@event
class Sent(Event):
    "An event that another package registers, with its own idea of when it is sound, the same, and how it reads."

    arm: str
    to: str
    tries: int | None = None

    def sound(self):
        return super().sound() and self.to.startswith("http")

    def key(self):
        return "Sent", self.arm, self.to

    def says(self):
        return f"{self.arm} was sent to {self.to}"


def test_an_event_of_somebody_else_is_read_back_like_ours(tmp_path):
    sent = Sent("a", "http://here", 2)
    log = Log(tmp_path / "events.jsonl")
    log.write(sent)
    log.file.write(
        b'{"t":1,"event":"Sent","arm":"a","to":"nowhere"}\n'
        b'{"t":1,"event":"Sent","arm":"a","to":"http://x","tries":"two"}\n'
    )
    log.close()
    tail = Tail(tmp_path / "events.jsonl")
    ((_, back),) = tail.new()
    assert (
        back == sent
        and type(back) is Sent
        and tail.skipped == 2
        and back.says() == "a was sent to http://here"
    )


def test_an_event_of_an_unknown_kind_is_kept_and_is_no_damage(tmp_path):
    lines = [
        '{"t":1,"event":"Charged","arm":"a","dollars":2,"by":["x",{"y":null}]}',
        '{"t":2,"event":"Charged"}',
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    tail = Tail(tmp_path / "events.jsonl")
    first, second = (e for _, e in tail.new())
    assert (
        tail.skipped == 0
        and (first.name, first.fields) == ("Charged", {"arm": "a", "dollars": 2, "by": ["x", {"y": None}]})
        and second.says() == "Charged"
    )
    assert (
        event_from(first.line()) == first
        and pickle.loads(pickle.dumps(first)) == first
        and first.key() != second.key()
        and "dollars 2" in first.says()
    )
    assert results_frame([first, second]).empty


def test_a_run_with_events_of_others_is_taken_up_and_tells_each_once(tmp_path):
    found, strange = (
        go(plan(), tmp_path / "run"),
        '{"t":1,"event":"Charged","arm":"r00/dense/s0","dollars":2}\n',
    )
    writer = Writer(found.path, Arms(found.path / "arms"))
    for _ in range(2):
        writer.write(Sent("a", "http://here"))
    writer.log.file.write(strange.encode())
    writer.log.close()
    again = Writer(found.path, Arms(found.path / "arms"))
    again.write(Sent("a", "http://here"))
    again.write(event_from(strange))
    again.write(Sent("a", "http://there"))
    again.log.close()
    read = Run(found.path)
    assert (
        [getattr(e, "to", "") for e in read.events[-3:]] == ["http://here", "", "http://there"]
        and read.status == "done"
        and read.frame.equals(found.frame)
    )


def test_an_event_may_not_take_the_name_of_another_or_of_what_a_log_writes():
    for fields in ({}, {"t": float}, {"event": str}):
        name = "Sent" if not fields else "Timed"
        with expect_error("give"):
            event(type(name, (Event,), {"__annotations__": fields, "__module__": "elsewhere"}))
    with expect_error("is no Event"):
        event(type("Bare", (), {}))
    assert "Timed" not in EVENTS and EVENTS["Sent"] is Sent


def test_ticks_are_not_logged_and_a_missing_log_is_empty(tmp_path):
    assert Tail(tmp_path / "none").new() == []
    log = Log(tmp_path / "log")
    log.write(Tick("a", 0.5, 1.0))
    log.close()
    assert (tmp_path / "log").read_bytes() == b""


def test_every_event_survives_its_line():
    made = TicketFound("t", 1, 0, 0.5, 2, 4, {"w": [2, 4]})
    assert event_from(made.line()) == made
    assert {
        "RunStarted",
        "Planned",
        "Layout",
        "ArmStarted",
        "EpochDone",
        "ArmDone",
        "ArmFailed",
        "TicketFound",
        "RoundDone",
        "RunDone",
        "RunFailed",
        "Tick",
    } <= set(EVENTS)


def test_all_events_of_a_find_and_a_transfer_are_facts_that_cross_a_process(tmp_path, monkeypatch):
    "What is trained travels beside them, to the store."
    monkeypatch.setattr(Arms, "next_state", property(lambda self: 0.0, lambda self, _: None), raising=False)
    p = plan(recipe=Recipe(epochs=2, batch_size=60), controls=("reinit",))
    events = list(record(p, tmp_path / "find", "cpu"))
    moved = TransferPlan(Run(tmp_path / "find").tickets, ("digits[5-9]@200",), controls=("dense",))
    events += record(moved, tmp_path / "move", "cpu")
    kinds = {type(e).__name__ for e in events}
    assert {
        "RunStarted",
        "Planned",
        "Layout",
        "ArmStarted",
        "EpochDone",
        "StateKept",
        "ArmDone",
        "TicketFound",
        "RoundDone",
        "RunDone",
    } <= kinds
    for e in events:
        assert e.sound() and pickle.loads(pickle.dumps(e)) == e and event_from(e.line()) == e, e
    assert [e.content for e in of("TicketFound", events)] == [t.content for t in moved.tickets]


# --- frames ---


def test_frames_by_hand():
    tags = dict(source="s", domain="d", role="ticket", start="rewind", round=1, density=0.5, seed=3)
    epoch = EpochDone("a", 1, 5, 0.1, 0.9, 0.6, 0.8, 0.7, 1.0)
    events = [
        ArmStarted("a", tags, 2.0, 100),
        epoch,
        replace(epoch, epoch=2, validation_accuracy=0.75),
        epoch,  # an epoch again: a run that was taken up
        ArmDone(
            "a",
            1,
            {"test": {"accuracy": 0.65, "loss": 1.0}, "validation": {"accuracy": 0.7, "loss": 0.8}},
            2.0,
        ),
        ArmDone("a", 2, {"test": {"accuracy": 0.66, "loss": 1.1}}, 2.0),
    ]
    frame = results_frame(events)
    assert tuple(frame.columns) == RESULT_COLUMNS and len(frame) == 2 * 4 + 2 and not frame.isna().any().any()
    assert (frame[list(tags)].drop_duplicates().iloc[0] == list(tags.values())).all()
    value = {(r.epoch, r.split, r.metric): r.value for r in frame.itertuples()}
    assert (
        value[1, "train", "loss"] == 0.9
        and value[1, "train", "accuracy"] == 0.6
        and value[2, "validation", "accuracy"] == 0.75
        and value[1, "validation", "loss"] == 0.8
    )
    assert value[2, "test", "accuracy"] == 0.66 and (1, "test", "accuracy") not in value  # one row an arm
    layers = layers_frame([TicketFound("t", 1, 0, 0.5, 3, 6, {"w": [1, 4], "v": [2, 2]})] * 2)
    assert tuple(layers.columns) == LAYER_COLUMNS and layers.values.tolist() == [
        [0, 1, 0.5, "w", 1, 4, 0.25],
        [0, 1, 0.5, "v", 2, 2, 1.0],
    ]
    assert (
        tuple(results_frame([]).columns) == RESULT_COLUMNS
        and tuple(layers_frame([]).columns) == LAYER_COLUMNS
    )


def test_an_arm_that_begins_anew_drops_what_it_told_before():
    epoch, tags = (
        EpochDone("a", 1, 5, 0.1, 0.9, 0.6, 0.8, 0.7, 1.0),
        dict(source="s", domain="d", role="ticket", start="rewind", round=1, density=0.5, seed=3),
    )
    old = [
        ArmStarted("a", tags, 3.0, 100, "old"),
        epoch,
        replace(epoch, epoch=2),
        replace(epoch, epoch=3),
        ArmDone("a", 3, {"test": {"accuracy": 0.65}}, 2.0),
        ArmStarted("b", tags, 3.0, 100),
        replace(epoch, arm="b"),
    ]
    new = results_frame([*old, ArmStarted("a", tags, 3.0, 100, "new"), epoch])
    assert (
        sorted(new.loc[new["arm"] == "a", "epoch"].unique()) == [1]
        and "test" not in set(new["split"])
        and "b" in set(new["arm"])
    )


def test_one_reduction_for_the_log_the_stream_and_the_follower(tmp_path):
    "What a run comes to is the same, read from its log at once or event by event, kept with its epochs or without."
    p = plan(seeds=2, recipe=Recipe(epochs=2, batch_size=60))
    stream = RunState(record(p, tmp_path / "run", "cpu"), epochs=False)
    found, follower = Run(tmp_path / "run"), Follower(tmp_path / "run")
    follower.read()
    whole = found.state
    assert (
        whole.images == pytest.approx(stream.images) == follower.state.images == whole.planned.images
        and len(whole.done) == whole.planned.arms > 2
    )
    assert set(stream.ends) == set(whole.ends) == set(follower.state.ends) and list(whole.tickets) == [
        t.name for t in found.tickets
    ]
    assert stream.epochs is None and sum(map(len, whole.epochs.values())) == 2 * len(whole.done)
    assert glance(tmp_path / "run")[
        "planned"
    ] == whole.planned.arms == follower.arms and follower.done == len(whole.done)


def test_time_between_a_death_and_the_next_process_and_pauses_are_no_work():
    started = RunStarted("p", "FindPlan", "cpu", "CPU", {}, 1)
    told = [
        (0, started),
        (10, RoundDone(0, 1.0, 2)),
        (1000, started),
        (1010, RunPaused()),
        (2000, RunResumed()),
        (2005, RoundDone(1, 0.5, 2)),
        (2006, RunStopped()),
    ]
    assert (
        runs_writing.worked(told) == 26
        and runs_writing.worked(told[:-1]) == 25
        and runs_writing.worked(told[:4]) == 20
        and runs_writing.worked([]) == 0
    )


def test_an_arm_that_begins_anew_takes_back_all_that_it_told():
    state, epoch = RunState(), EpochDone("a", 1, 5, 0.1, 0.9, 0.6, 0.8, 0.7, 1.0)
    for e in (
        ArmStarted("a", {}, 1.5, 100),
        epoch,
        ArmFailed("a", 2, 7, "nan"),
        ArmStarted("b", {}, 1.0, 10),
        replace(epoch, arm="b"),
    ):
        state.add(e)
    assert (state.images, [e.arm for e in state.failed]) == (160, ["a"])
    state.add(ArmStarted("a", {}, 1.5, 100))
    assert (state.images, state.ends, list(state.epochs)) == (10, {}, ["b"])
    state.add(Tick("a", 2.5, 3.0))  # it began at 1.5 of 3 epochs, as a rewound arm does
    assert state.images == 110
    state.add(epoch)
    assert state.images == 110
    state.add(replace(epoch, epoch=3))
    assert state.images == 160


# --- plans on disk ---

PLANS = {
    "default": dict(),
    "own functions": dict(network="tiny:normed", width=1.0, criterion=tiny.by_row),
    "callable": dict(network=tiny.dropping, width=1.0),
    "numbers": dict(
        schedule=listed([0.9, 0.3]),
        seeds=(3, 1),
        rewind="step 2",
        retrain="fine-tuning",
        recipe=Recipe(lr=0.05, epochs=2, batch_size=32, schedule="step"),
        layer_fractions={},
        controls=("small dense",),
        floor=0.2,
    ),
    "layers": dict(
        layer_fractions={"head": 0.1},
        prunable=("fc*.weight", "head.weight"),
        scope="layer",
        recipe=Recipe("adamw", 0.01, steps=4, drops=((0.2, 0.5),), augment=("flip",)),
    ),
}


@pytest.mark.parametrize("kind", PLANS)
def test_a_search_comes_back_from_its_folder(kind, tmp_path):
    p = plan(**PLANS[kind])
    write_plan(p, tmp_path)
    again = read_plan(tmp_path)
    assert (
        type(again) is type(p)
        and again.hash == p.hash
        and (again.seeds, again.schedule, again.recipe, again.controls)
        == (p.seeds, p.schedule, p.recipe, p.controls)
    )
    write_plan(again, tmp_path / "b")
    assert (tmp_path / "b" / "plan.json").read_bytes() == (tmp_path / "plan.json").read_bytes()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return go(
        plan(seeds=2, rewind="step 2", controls=("random mask",)), tmp_path_factory.mktemp("runs") / "find"
    )


def test_a_transfer_comes_back_from_its_folder_with_its_tickets(found, tmp_path):
    p = TransferPlan(
        found.tickets,
        ("digits[5-9]@200", "digits[0-2]+blur(2)@200"),
        ("fresh",),
        "frozen",
        "updated",
        "mlp",
        (),
        Recipe(epochs=1),
        "source",
        0.1,
    )
    write_plan(p, tmp_path)
    again = read_plan(tmp_path)
    assert again.hash == p.hash and [t.content for t in again.tickets] == [t.content for t in p.tickets]
    assert again.recipe == p.recipe and (
        again.targets,
        again.start,
        again.body,
        again.norm,
        again.head,
        again.normalise,
    ) == (p.targets, p.start, p.body, p.norm, p.head, p.normalise)
    moved = shutil.move(tmp_path, tmp_path.with_name("elsewhere"))  # a folder stands alone
    assert read_plan(moved).hash == p.hash


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "3",
        "[]",
        '"x"',
        '{"type": "FindPlan", "sauce": 1}',
        '{"type": "Popen"}',
        '{"type": "FindPlan", "rewind": 3}',
        '{"type": "FindPlan", "rewind": "step"}',
        '{"type": "Ticket"}',
        '{"type": "Ticket", "content": "../../x"}',
        '{"type": "Ticket", "content": 3}',
        '{"type": ["FindPlan"]}',
        '{"type": {"a": 1}}',
    ],
)
def test_a_foreign_plan_is_refused_in_one_sentence(content, tmp_path):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(LotteryError) as e:
        read_plan(tmp_path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("network", ["tiny:normed", tiny.normed], ids=["by name", "itself"])
def test_a_plan_of_another_process_with_a_changed_function_is_refused(network, tmp_path, monkeypatch):
    write_plan(plan(network=network, width=1.0), tmp_path)
    again = read_plan(tmp_path)
    monkeypatch.setattr(tiny, "normed", tiny.dropping)
    with pytest.raises(LotteryError, match="changed|source"):
        listen(find_tickets(again, "cpu"))


def test_a_ticket_name_from_a_log_leads_nowhere_else(found, tmp_path):
    shutil.copytree(found.path, tmp_path / "run")
    log = Log(tmp_path / "run" / "events.jsonl")
    log.write(TicketFound("../../x", 1, 0, 0.5, 1, 2, {}))
    log.close()
    with pytest.raises(LotteryError, match="plain name"):
        Run(tmp_path / "run").tickets  # noqa: B018


# --- running ---


def test_a_finished_run_is_read_and_not_trained(found, monkeypatch):
    before = files(found.path)
    monkeypatch.setitem(runs_reading.PLANS, type(found.plan), None)
    again = go(found.plan, found.path)
    assert again.status == "done" and results(again).equals(results(found)) and files(found.path) == before


def test_what_a_run_tells(found):
    info, frame = found.info, found.frame
    assert (
        info["plan_hash"] == found.plan.hash
        and info["kind"] == "FindPlan"
        and info["device"] == "cpu"
        and info["seconds"] > 0
        and info["failed"] == []
    )
    assert info["arms"] == of("Planned", found.events)[0].arms == 2 * (1 + 2 * 2) and info[
        "versions"
    ].keys() >= {"lottery_nb", "torch", "python"}
    assert [(t.round, t.seed) for t in found.tickets] == [(1, 0), (1, 1), (2, 0), (2, 1)] and all(
        t.plan == found.plan.hash for t in found.tickets
    )
    assert (frame[frame.split == "test"].groupby("arm").size() == 2).all() and frame.arm.nunique() == 10
    assert frame.value.between(0, 1)[frame.metric == "accuracy"].all() and not [
        p for p in files(found.path) if p.endswith(".tmp")
    ]
    by_event = {e.arm: e.metrics["test"]["accuracy"] for e in of("ArmDone", found.events)}
    test = frame[(frame.split == "test") & (frame.metric == "accuracy")].set_index("arm").value
    assert test.to_dict() == by_event


def test_a_run_that_grows_is_followed(tmp_path):
    stream, seen = record(plan(), tmp_path / "run", "cpu"), []
    for e in stream:
        if not seen:
            follower = Run(tmp_path / "run")
        if type(e).__name__ == "ArmDone":
            frame = follower.frame
            seen.append(len(frame[frame.split == "test"]))
            assert follower.status == "running" and len(follower.tickets) == len(
                of("TicketFound", follower.events)
            )
        elif not seen:
            seen.append(0)
    assert seen == [0, 2, 4, 6] and follower.status == "done"


def test_a_run_that_was_ended_at_any_moment_ends_with_the_same_bits(tmp_path):
    p = plan(seeds=2, controls=("random mask",), schedule=one_shot(0.4))
    whole, moments = tmp_path / "whole" / "run", []
    for i, e in enumerate(record(p, whole, "cpu")):
        if type(e).__name__ in ("RunStarted", "TicketFound", "RoundDone") or (
            type(e).__name__ == "EpochDone" and e.arm == "r01/ticket/s1"
        ):
            moments.append(
                shutil.copytree(whole, tmp_path / f"killed{i}" / "run")
            )  # what a kill would leave behind
    assert len(moments) == 1 + 2 + 2 + 2
    for k, killed in enumerate(moments):
        with open(killed / "events.jsonl", "ab") as f:
            f.write(b'{"t":1,"event":"Epo' * (k % 2))
        (killed / "tickets").mkdir(exist_ok=True)
        (killed / "tickets" / ".half.safetensors.0.tmp").write_bytes(b"half")
        again = go(p, killed)
        assert again.status == "done" and len(again.tickets) == 2
        want, have = (
            r.frame.sort_values(["arm", "epoch", "split", "metric"]).reset_index(drop=True)
            for r in (Run(whole), again)
        )
        assert want.equals(have), killed

        def kept(folder):
            return {
                n: b
                for n, b in files(folder).items()
                if n.endswith(".safetensors") and n.startswith(("tickets", "snapshots"))
            }

        assert kept(killed) == kept(whole), killed


def test_a_run_that_failed_says_so_and_can_be_run_again(tmp_path, monkeypatch):
    real = runs_reading.PLANS[type(plan())]

    def breaking(p, *args, **kwargs):
        for e in real(p, *args, **kwargs):
            yield e
            if type(e).__name__ == "TicketFound":
                raise RuntimeError("no memory left")

    monkeypatch.setitem(runs_reading.PLANS, type(plan()), breaking)
    with pytest.raises(RuntimeError, match="no memory"):
        go(plan(), tmp_path / "r")
    failed = Run(tmp_path / "r")
    assert (
        failed.status == "failed"
        and of("RunFailed", failed.events)[0].reason == "no memory left"
        and "RuntimeError" in of("RunFailed", failed.events)[0].traceback
    )
    monkeypatch.undo()
    assert go(plan(), tmp_path / "r").status == "done"


def test_another_plan_is_refused_and_the_folder_left_as_it_was(found):
    before = files(found.path)
    for other in (
        replace(found.plan, seeds=(0, 2)),
        replace(found.plan, recipe=Recipe()),
        TransferPlan(found.tickets, ("digits[5-9]@200",)),
    ):
        with pytest.raises(LotteryError, match="another plan"):
            go(other, found.path)
    assert files(found.path) == before


@pytest.mark.parametrize(
    "fields",
    [
        dict(rewind="epoch 9"),
        dict(source="digits[0-4]@9999"),
        dict(layer_fractions={"fc7": 0.1}),
        dict(prunable=("head.weight",)),
        dict(network="tiny:nowhere"),
    ],
)
def test_a_bad_plan_is_refused_before_anything_is_written(fields, tmp_path):
    with pytest.raises(LotteryError):
        go(plan(**fields), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_bad_transfer_or_device_is_refused_before_anything_is_written(found, tmp_path):
    for bad, device in (
        (TransferPlan(found.tickets, ("digits@9999",)), "cpu"),
        (TransferPlan(found.tickets, ("digits@300",), head="reuse"), "cpu"),
        (plan(), "cuda:77"),
        ("digits", "cpu"),
    ):
        with pytest.raises(LotteryError):
            run(bad, tmp_path / "r", device, show=False)
    assert not (tmp_path / "r").exists()


def test_a_file_in_the_way_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "r").write_text("mine")
    with pytest.raises(LotteryError):
        go(plan(), tmp_path / "r")
    assert (tmp_path / "r").read_text() == "mine"


def test_the_default_folder_is_of_the_plan(monkeypatch, tmp_path):
    monkeypatch.setenv("LOTTERY_RUNS", str(tmp_path))
    folders = {
        run_folder(p)
        for p in (
            plan(),
            plan(seeds=2),
            plan(source="digits[0-4]+blur(1)@200"),
            plan(source="digits[0-4]@201"),
        )
    }
    assert (
        len(folders) == 4
        and all(f.parent == tmp_path and f.name.startswith("find-digits") for f in folders)
        and run_folder(plan()) == run_folder(plan())
    )


def test_own_arrays_run_and_are_read_again(tmp_path):
    own = tiny.noise_domain("mine")
    p = plan(source=own, recipe=Recipe(epochs=1, batch_size=9))
    done = go(p, tmp_path / "r")
    assert (
        done.status == "done"
        and {t.source for t in done.tickets} == {"mine"}
        and Run(tmp_path / "r").plan.hash == p.hash
    )
    moved = go(
        TransferPlan(
            done.tickets[-1], (tiny.noise_domain("other", classes=4),), recipe=Recipe(epochs=1, batch_size=9)
        ),
        tmp_path / "t",
    )
    assert moved.status == "done" and set(moved.frame.domain) == {"other"}


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_atomic(tmp_path / "f", "old")
    monkeypatch.setattr(
        "lottery_nb.core.os.replace", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError):
        write_atomic(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["f"]


def test_planned_comes_before_anything_is_trained(found):
    kinds = [type(e).__name__ for e in found.events]
    assert (
        kinds[:2] == ["RunStarted", "Planned"]
        and kinds[-1] == "RunDone"
        and isinstance(found.events[1], Planned)
    )


# --- the order of results ---


def test_results_have_one_order_however_side_by_side_arms_end(tmp_path):
    moved = TransferPlan(
        go(plan(seeds=2), tmp_path / "find").tickets,
        ("digits[5-9]@200", "digits[0-4]+invert@200"),
        recipe=Recipe(epochs=2, batch_size=32),
    )
    found = go(moved, tmp_path / "move")
    frame, events = found.frame, found.events
    assert list(frame["domain"].unique()) == [
        "digits[5-9]@200",
        "digits[0-4]+invert@200",
    ]  # as the plan has them, not by the alphabet
    by_arm = {}
    for e in events:
        by_arm.setdefault(getattr(e, "arm", None), []).append(e)
    other = by_arm.pop(None) + [
        e for arm in reversed(by_arm) for e in by_arm[arm]
    ]  # each arm's own events stay in their order
    assert results_frame(other).equals(frame) and [e.arm for e in runs_log.ends_of(other)] == [
        e.arm for e in runs_log.ends_of(events)
    ]
    assert frame.loc[frame["domain"] == "digits[5-9]@200", "round"].is_monotonic_increasing
