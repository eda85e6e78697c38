"""Whose numbers a run takes: those in its own folder, those of a run that the user named, and, of runs beside it, only what this user's key signed."""

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from tiny import of, plan

from lottery_nb.cli import main
from lottery_nb.core import LotteryError, Unreadable
from lottery_nb.files import read_tensors, write_tensors
from lottery_nb.keys import digest_of, is_signed, KEY, signature, user_key
from lottery_nb.plans.transfer import TransferPlan
from lottery_nb.runs.listeners import read_how
from lottery_nb.runs.reading import Run
from lottery_nb.runs.writing import Arms, read_arms, record, run, write_arms
from lottery_nb.runs.workers import start, work
from lottery_nb.results.report import report
from lottery_nb.results.tables import text_table


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    "A user of this test alone."
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setenv("LOTTERY_CONFIG", str(tmp_path / "own"))
    return tmp_path / "own"


def another(monkeypatch, tmp_path, name="another"):
    "From now on it is another user who works."
    monkeypatch.setenv("LOTTERY_CONFIG", str(tmp_path / name))


FEW, MORE = plan(), plan(seeds=2)  # the second has the arms of the first, and as many again


def rows(found):
    "Results in one order."
    return found.frame.sort_values(["arm", "epoch", "split", "metric"], ignore_index=True)


def files(folder):
    return sorted(p for p in (folder / "arms").iterdir() if p.suffix == ".safetensors")


def results(told):
    "What is read of a file of arms, with numbers that nobody has measured."
    good = {"accuracy": 0.999, "loss": 0.001}
    record = replace(told.record, validation=good, score=0.999)
    events = tuple(
        replace(e, metrics={"test": good, "validation": good}) if type(e).__name__ == "ArmDone" else e
        for e in told.events
    )
    return replace(told, record=record, metrics={"test": good, "validation": good}, events=events)


def better(file):
    "Write results into a file of arms as who knows the code would: signed with the key of the moment."
    write_arms(file, {name: results(told) for name, told in read_arms(file).items()})


def with_record(file, change):
    "Write a file of arms again with another record: what `change` makes of record and tensors."
    tensors, record = read_tensors(file)
    record.pop("schema")
    write_tensors(file, *change(tensors, record))


# --- a folder that somebody else wrote ---


def unsigned(folder, **_):
    for file in files(folder):
        better(file)
        with_record(file, lambda t, r: (t, {k: v for k, v in r.items() if k != "signature"}))


def by_another(folder, monkeypatch, tmp_path):
    with monkeypatch.context() as m:
        another(m, tmp_path)
        for file in files(folder):
            better(file)


def truncated(folder, **_):
    for file in files(folder):
        with_record(file, lambda t, r: (t, r | {"signature": r["signature"][:32]}))


def empty(folder, **_):
    for file in files(folder):
        with_record(file, lambda t, r: (t, r | {"signature": ""}))


def no_text(folder, **_):
    for file in files(folder):
        with_record(file, lambda t, r: (t, r | {"signature": [r["signature"]]}))


def replayed(folder, **_):
    "The signature of one arm on another, whose numbers are changed."
    signed = [read_tensors(file)[1]["signature"] for file in files(folder)]
    for file, other in zip(files(folder), signed[1:] + signed[:1], strict=True):
        better(file)
        with_record(file, lambda t, r, other=other: (t, r | {"signature": other}))


def kept_signature(folder, **_):
    "Numbers are changed, the signature stays."
    for file in files(folder):
        signed = read_tensors(file)[1]["signature"]
        better(file)
        with_record(file, lambda t, r, signed=signed: (t, r | {"signature": signed}))


def other_weights(folder, **_):
    "One weight is changed, and nothing else."

    def changed(tensors, record):
        name = max(tensors, key=lambda n: tensors[n].numel())
        tensors[name] = tensors[name].clone().flatten().index_fill(0, torch.tensor([0]), 9.0).view(tensors[name].shape)
        return tensors, record

    for file in files(folder):
        if read_tensors(file)[0]:
            with_record(file, changed)
        else:
            file.unlink()


def other_places(folder, **_):
    "The file of one arm in the place of another of the same network, with its name and its identity put in."
    signed = [read_tensors(file) for file in files(folder)]
    for file, (tensors, told) in zip(files(folder), signed[1:] + signed[:1], strict=True):
        arms = [[file.stem, arm] for _, arm in told["arms"]]
        write_tensors(file, tensors, {"file": file.stem, "arms": arms, "signature": told["signature"]})


FORGED = [unsigned, by_another, truncated, empty, no_text, replayed, kept_signature, other_weights, other_places]


@pytest.mark.parametrize("forge", FORGED, ids=lambda f: f.__name__)
def test_numbers_of_a_copied_folder_do_not_become_mine(forge, tmp_path, monkeypatch, own):
    first = run(FEW, tmp_path / "home" / "first", "cpu", show=False)
    forge(first.path, monkeypatch=monkeypatch, tmp_path=tmp_path)
    assert files(first.path)
    second = run(MORE, tmp_path / "home" / "second", "cpu", show=False)
    alone = run(MORE, tmp_path / "alone" / "second", "cpu", show=False)
    assert not of("ArmTaken", second.events) and rows(second).equals(rows(alone))
    assert not (second.frame.value == 0.999).any()
    (skipped,) = of("NeighboursSkipped", second.events)
    assert skipped.runs == ["first"] and "--reuse" in skipped.says() and not of("NeighboursSkipped", alone.events)


def test_an_old_folder_is_skipped_with_one_sentence_for_all(tmp_path, capsys):
    for name in ("first", "second", "third"):
        unsigned(run(replace(FEW, floor=0.001 * len(name)), tmp_path / "home" / name, "cpu", show=False).path)
    found = run(MORE, tmp_path / "home" / "more", "cpu", show=True)
    (skipped,) = of("NeighboursSkipped", found.events)
    assert skipped.runs == ["first", "second", "third"]
    assert capsys.readouterr().err.count("are trained again here") == 1


def test_a_folder_without_wanted_arms_is_not_mentioned(tmp_path):
    unsigned(run(plan(recipe=replace(FEW.recipe, lr=0.04)), tmp_path / "home" / "first", "cpu", show=False).path)
    assert not of("NeighboursSkipped", run(FEW, tmp_path / "home" / "more", "cpu", show=False).events)


# --- one's own ---


def test_ones_own_neighbour_is_taken_with_the_same_bits_and_the_table_says_so(tmp_path):
    first = run(FEW, tmp_path / "home" / "first", "cpu", show=False)
    second = run(MORE, tmp_path / "home" / "second", "cpu", show=False)
    taken = of("ArmTaken", second.events)
    assert {e.arm for e in taken} == set(first.frame.arm) and {e.origin for e in taken} == {"first"}
    assert not of("NeighboursSkipped", second.events)
    mine = rows(second)
    assert mine[mine.arm.isin(first.frame.arm)].reset_index(drop=True).equals(rows(first))
    says = "taken from first, not trained in this run (3): r00/dense/s0"
    assert says in " ".join(text_table(second, width=60).split()) and says in report(second)
    assert "taken from" not in text_table(first) and says in text_table(second.kept, width=500)


def test_what_is_trained_anew_is_taken_no_more(tmp_path, monkeypatch):
    run(FEW, tmp_path / "home" / "first", "cpu", show=False)
    second = run(MORE, tmp_path / "home" / "second", "cpu", show=False)
    shutil.rmtree(tmp_path / "home" / "first")
    monkeypatch.setattr(torch, "__version__", "99.0.0")
    lines = second.folder.log.read_bytes().splitlines(keepends=True)
    second.folder.log.write_bytes(b"".join(lines[:-1]))  # not done any more
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = run(MORE, second.path, "cpu", show=False)
    assert of("ArmTaken", again.events) and not again.state.taken and "taken from" not in text_table(again)


def test_a_folder_that_is_taken_up_is_ones_own_whoever_signed_it(tmp_path, monkeypatch, own):
    "Moved here, brought back from another machine, or written before there were signatures."
    found = run(FEW, tmp_path / "there" / "run", "cpu", show=False)
    before = rows(found)
    unsigned_lines = found.folder.log.read_bytes().splitlines(keepends=True)
    for file in files(found.path):
        with_record(file, lambda t, r: (t, {k: v for k, v in r.items() if k != "signature"}))
    found.folder.log.write_bytes(b"".join(unsigned_lines[:-1]))
    another(monkeypatch, tmp_path)
    moved = shutil.move(found.path, tmp_path / "run")
    again = run(FEW, moved, "cpu", show=False)
    assert len(of("ArmTaken", again.events)) == 3 and {e.origin for e in of("ArmTaken", again.events)} == {""}
    assert rows(again).equals(before) and not of("NeighboursSkipped", again.events)


def test_a_transfer_takes_ones_own_arms_too(tmp_path):
    ticket = run(FEW, tmp_path / "find", "cpu", show=False).tickets[-1]
    targets = ("digits[5-9]@200",)
    first = TransferPlan(ticket, targets, ("rewind",), controls=())
    run(first, tmp_path / "home" / "first", "cpu", show=False)
    second = run(replace(first, start=("rewind", "fresh")), tmp_path / "home" / "second", "cpu", show=False)
    assert len(of("ArmTaken", second.events)) == 1


@pytest.mark.parametrize("whose", ["mine", "another's"])
def test_what_goes_on_from_a_state_of_somebody_else_is_not_signed(whose, tmp_path, monkeypatch):
    "Who takes up a folder takes its numbers, but no later run takes them for this user's own."
    monkeypatch.setattr(Arms, "next_state", property(lambda self: 0.0, lambda self, _: None), raising=False)
    stream = record(FEW, tmp_path / "home" / "run", "cpu")
    for e in stream:
        if type(e).__name__ == "StateKept" and e.arms == ["r01/ticket/s0"]:
            break
    stream.close()
    (state,) = (tmp_path / "home" / "run" / "arms").glob("state-*")
    if whose != "mine":
        with monkeypatch.context() as m:
            another(m, tmp_path)
            write_arms(state, {name: replace(told, metrics={}) for name, told in read_arms(state).items()})
    found = run(FEW, tmp_path / "home" / "run", "cpu", show=False)
    signed = []
    for file in files(found.path):
        with contextlib.suppress(Unreadable):
            signed += read_arms(file, signed=True)
    assert found.status == "done" and len(signed) == (3 if whose == "mine" else 2)
    again = run(replace(FEW, floor=0.001), tmp_path / "home" / "more", "cpu", show=False)
    assert {e.arm for e in of("ArmTaken", again.events)} >= {"r00/dense/s0"}
    assert len(of("ArmTaken", again.events)) == len(signed) and rows(again).equals(rows(found))


# --- a run that was named ---


def test_a_named_run_is_taken_as_it_is(tmp_path, capsys):
    first = run(FEW, tmp_path / "far" / "first", "cpu", show=False)
    unsigned(first.path)
    second = run(MORE, tmp_path / "home" / "second", "cpu", show=False, reuse=[first.path])
    assert {e.origin for e in of("ArmTaken", second.events)} == {str(first.path)}
    assert (second.kept.value == 0.999).sum() == 3 and "taken from" in text_table(second)
    third = run(MORE, tmp_path / "home" / "third", "cpu", show=False, reuse=str(tmp_path / "far"))  # where it lies
    assert len(of("ArmTaken", third.events)) == 6  # three of `second` beside it, which are this user's own
    assert not of("NeighboursSkipped", third.events)


def test_a_run_that_was_named_beside_is_not_skipped(tmp_path):
    first = run(FEW, tmp_path / "home" / "first", "cpu", show=False)
    unsigned(first.path)
    second = run(MORE, tmp_path / "home" / "second", "cpu", show=False, reuse=[first.path])
    assert len(of("ArmTaken", second.events)) == 3 and not of("NeighboursSkipped", second.events)


@pytest.mark.parametrize("place", ["nothing", "a file", "an empty folder", "itself"])
def test_a_place_without_runs_is_refused_before_anything_is_written(place, tmp_path):
    (tmp_path / "a file").write_text("x")
    (tmp_path / "an empty folder").mkdir()
    for go in (run, start):
        with pytest.raises(LotteryError, match="holds no run to take results from") as e:
            go(FEW, tmp_path / "itself", "cpu", reuse=[tmp_path / place])
        assert e.value.place == "reuse" and not (tmp_path / "itself").exists()


def test_a_worker_takes_from_a_run_that_was_named_and_goes_on_without_it(tmp_path):
    first = run(FEW, tmp_path / "far" / "first", "cpu", show=False)
    unsigned(first.path)
    found = start(MORE, tmp_path / "home" / "run", "cpu", reuse=[first.path])
    while found.status == "running":
        pass
    assert found.status == "done" and len(of("ArmTaken", found.events)) == 3
    assert read_how(found.folder).reuse == (str(first.path),)
    shutil.rmtree(first.path)
    lines = found.folder.log.read_bytes().splitlines(keepends=True)
    found.folder.log.write_bytes(b"".join(lines[:-1]))
    with pytest.warns(UserWarning, match="holds no run to take results from"):
        work(found.path, "cpu")
    assert Run(found.path).status == "done"


def test_the_shell_names_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = run(FEW, tmp_path / "far" / "first", "cpu", show=False)
    unsigned(first.path)
    shutil.copytree(first.path, tmp_path / "home" / "run")
    (tmp_path / "home" / "run" / "events.jsonl").unlink()
    shutil.rmtree(tmp_path / "home" / "run" / "arms")
    assert main(["run", "home/run", "--device", "cpu", "--quiet", "--reuse", "far/first"]) == 0
    assert "not trained in this run (3)" in " ".join(capsys.readouterr().out.split())
    assert main(["find", "--reuse", "nowhere", "--quiet"]) == 2 and "nowhere holds no run" in capsys.readouterr().err


# --- damage beside a run ends no run ---


def garbage(first):
    for file in files(first):
        file.write_bytes(b"\0garbage" * 50)


def other_arms(first):
    for file in files(first):
        with_record(file, lambda t, r: (t, r | {"arms": []}))


def no_list(first):
    for file in files(first):
        with_record(file, lambda t, r: (t, r | {"arms": {"a": 3}}))


def arms_a_file(first):
    shutil.rmtree(first / "arms")
    (first / "arms").write_text("no folder")


def arms_a_pipe(first):
    shutil.rmtree(first / "arms")
    os.mkfifo(first / "arms")


def pipes(first):
    for file in files(first):
        file.unlink()
        os.mkfifo(file)


def folders(first):
    for file in files(first):
        file.unlink()
        file.mkdir()


def a_loop(first):
    shutil.rmtree(first / "arms")
    (first / "arms").symlink_to(first / "arms")


def plan_a_pipe(first):
    (first / "plan.json").unlink()
    os.mkfifo(first / "plan.json")


def told_nonsense(first):
    for file in files(first):
        with_record(file, lambda t, r: (t, r | {"arms": [[n, a | {"told": ["{}", 3]}] for n, a in r["arms"]]}))


DAMAGE = [garbage, other_arms, no_list, arms_a_file, arms_a_pipe, pipes, folders, a_loop, plan_a_pipe, told_nonsense]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_damage_beside_a_run_does_not_end_it(damage, named, tmp_path):
    first = run(FEW, tmp_path / "home" / "first", "cpu", show=False)
    whole = rows(first)
    damage(first.path)
    reuse = [tmp_path / "home" / "first"] if named and damage is not plan_a_pipe else None
    second = run(replace(FEW, floor=0.001), tmp_path / "home" / "second", "cpu", show=False, reuse=reuse)
    assert second.status == "done" and rows(second).equals(whole)


# --- the key ---


def test_a_key_is_made_once_and_for_this_user_alone(own):
    key = user_key()
    assert user_key() == key and len(key) == 64
    if os.name == "posix":
        assert stat.S_IMODE((own / "key").stat().st_mode) == 0o600
        assert stat.S_IMODE(own.stat().st_mode) == 0o700


def test_processes_that_make_the_key_at_once_have_the_same(own):
    code = (
        "import sys, time; from lottery_nb.keys import signature\n"
        "print('ready', flush=True); sys.stdin.readline(); print(signature('a', 'b'))"
    )
    many = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for p in many:
        assert p.stdout.readline() == "ready\n"
    for p in many:
        p.stdin.write("\n")
        p.stdin.flush()
    assert {p.communicate()[0] for p in many} == {signature("a", "b") + "\n"}
    assert [p.name for p in own.iterdir()] == ["key"]


def test_a_key_in_the_environment_is_shared_by_two_users(tmp_path, monkeypatch, own):
    first = run(FEW, tmp_path / "home" / "first", "cpu", show=False)
    shared = (own / "key").read_text()
    another(monkeypatch, tmp_path)
    assert not of("ArmTaken", run(replace(FEW, floor=0.001), tmp_path / "home" / "b", "cpu", show=False).events)
    shutil.rmtree(tmp_path / "home" / "b")
    monkeypatch.setenv(KEY, shared)
    second = run(replace(FEW, floor=0.002), tmp_path / "home" / "c", "cpu", show=False)
    assert {e.origin for e in of("ArmTaken", second.events)} == {first.path.name}
    monkeypatch.delenv(KEY)
    monkeypatch.setenv("LOTTERY_CONFIG", str(own))
    third = run(replace(MORE, floor=0.003), tmp_path / "home" / "d", "cpu", show=False)
    assert len(of("ArmTaken", third.events)) == 3


@pytest.mark.parametrize(
    "given, says",
    [("short", "has 5 characters"), ("x" * 31, "has 31 characters"), ("y" * 5000, "has 5000 characters")],
)
def test_a_key_that_is_too_short_or_too_long_is_refused_and_not_shown(given, says, monkeypatch):
    monkeypatch.setenv(KEY, given)
    with pytest.raises(LotteryError, match=says) as e:
        user_key()
    assert given not in str(e.value)


def readable(file):
    file.chmod(0o644)


def writable(file):
    file.chmod(0o622)


def a_folder(file):
    file.unlink()
    file.mkdir()


def a_pipe(file):
    file.unlink()
    os.mkfifo(file)


def cut(file):
    file.write_text("abc\n")


def nothing(file):
    file.write_text("")


def leads_nowhere(file):
    file.unlink()
    file.symlink_to(file.parent / "nowhere")


SPOILT = [readable, writable, a_folder, a_pipe, cut, nothing, leads_nowhere]


@pytest.mark.skipif(os.name != "posix", reason="modes and pipes are of POSIX")
@pytest.mark.parametrize("spoil", SPOILT, ids=lambda f: f.__name__)
def test_a_key_that_is_none_is_refused_but_ends_no_run(spoil, tmp_path, own):
    first = run(FEW, tmp_path / "home" / "first", "cpu", show=False)
    key = (own / "key").read_text().strip()
    spoil(own / "key")
    with pytest.raises(LotteryError, match="the key ") as e:
        user_key()
    assert key not in str(e.value) and "\n" not in str(e.value)
    with pytest.warns(UserWarning, match="results are not signed"):
        second = run(MORE, tmp_path / "home" / "second", "cpu", show=False)
    assert second.status == "done" and not of("ArmTaken", second.events)
    (skipped,) = of("NeighboursSkipped", second.events)
    assert "the key " in skipped.says() and key not in second.folder.log.read_text()
    assert rows(second)[rows(second).arm.isin(first.frame.arm)].reset_index(drop=True).equals(rows(first))
    with pytest.raises(Unreadable):
        read_arms(files(second.path)[0], signed=True)


@pytest.mark.skipif(os.name != "posix" or not os.getuid(), reason="root may read anything")
def test_a_key_that_may_not_be_read_is_refused(own):
    user_key()
    (own / "key").chmod(0)
    with pytest.raises(LotteryError, match="cannot be read"):
        user_key()


def test_a_key_of_somebody_else_is_refused(own, monkeypatch):
    user_key()
    real = os.fstat

    def of_another(fd):
        found = list(real(fd))
        found[4] += 1
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", of_another)
    with pytest.raises(LotteryError, match="belongs to somebody else"):
        user_key()


@pytest.mark.parametrize("part", ["purpose", "first", "border", "type", "shape", "name", "bits"])
def test_a_signature_is_of_one_content(part):
    t = {"w": torch.ones(2, 3), "b": torch.zeros(2)}
    signed = signature("arm", "ab", "c", digest_of(t))
    other = {
        "type": {**t, "w": torch.ones(2, 3, dtype=torch.int32)},
        "shape": {**t, "w": torch.ones(3, 2)},
        "name": {"v": t["w"], "b": t["b"]},
        "bits": {**t, "b": -t["b"]},  # −0 is another number
    }.get(part, t)
    words = {"purpose": ("function", "ab", "c"), "first": ("arm", "aB", "c"), "border": ("arm", "a", "bc")}
    assert is_signed(signed, "arm", "ab", "c", digest_of(t))
    assert not is_signed(signed, *words.get(part, ("arm", "ab", "c")), digest_of(other))


def test_no_key_and_no_signature_is_told_by_the_shell(tmp_path, capsys, own):
    run(FEW, tmp_path / "first", "cpu", show=False)
    key = (own / "key").read_text().strip()
    for words in (["show", str(tmp_path / "first")], ["status", str(tmp_path / "first")], ["doctor"]):
        main(words)
    said = capsys.readouterr()
    assert key not in said.out + said.err and key not in report(Run(tmp_path / "first"))
