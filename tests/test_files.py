"""What a damaged or foreign file raises is one sentence that names the file."""

import gzip
import json
import shutil
import zlib

import pytest
import torch
from safetensors import SafetensorError

from lottery_nb.core import Busy, LotteryError, Unreadable
from lottery_nb.files import is_sound, read_tensors, reading, write_tensors
from lottery_nb.papers.papers import kept, RESULTS
from lottery_nb.runs.reading import read_plan, write_plan
from lottery_nb.runs.writing import read_arms
from lottery_nb.plans.find import FindPlan
from lottery_nb.runs.workers import glance


@pytest.mark.parametrize(
    "raised",
    [
        KeyError("a"),
        IndexError(),
        ZeroDivisionError(),
        OverflowError(),
        TypeError("b"),
        ValueError("two\nlines"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"),
        AttributeError("c"),
        RuntimeError("d" * 5000),
        RecursionError(),
        OSError(5, "Input/output error"),
        PermissionError(13, "no"),
        EOFError(),
        zlib.error("e"),
        gzip.BadGzipFile("f"),
        SafetensorError("g"),
        json.JSONDecodeError("h", "", 0),
    ],
    ids=lambda e: type(e).__name__,
)
def test_whatever_a_file_raises_is_one_sentence_about_it(raised, tmp_path):
    with pytest.raises(Unreadable) as e, reading(tmp_path / "some.json", "a thing", "get another"):
        raise raised
    said = str(e.value)
    assert (
        said.startswith(f"some.json cannot be read as a thing ({type(raised).__name__}")
        and said.endswith("get another")
        and "\n" not in said
        and len(said) < 300
    )


def test_a_refusal_gets_the_name_of_the_file_once(tmp_path):
    with (
        pytest.raises(Unreadable) as e,
        reading(tmp_path / "outer.json", "a plan"),
        reading(tmp_path / "inner.safetensors", "a ticket"),
    ):
        raise LotteryError("its seed=-1: give more", "Ticket.seed", "small")
    assert (str(e.value), e.value.place, e.value.kind) == (
        "inner.safetensors: its seed=-1: give more",
        "Ticket.seed",
        "small",
    )


@pytest.mark.parametrize("raised", [KeyboardInterrupt, MemoryError, AssertionError])
def test_what_is_no_damage_passes(raised, tmp_path):
    with pytest.raises(raised), reading(tmp_path / "some.json", "a thing"):
        raise raised


def test_a_folder_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(Unreadable, match="is no file"):
        read_tensors(tmp_path)
    with pytest.raises(Unreadable, match=f"there is no file gone.safetensors in {tmp_path}"):
        read_tensors(tmp_path / "gone.safetensors")
    assert not is_sound(tmp_path) and not is_sound(tmp_path / "gone.safetensors")


def test_each_kind_of_file_is_unreadable_where_it_is_another(tmp_path):
    file = write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)}, {"file": "b"})
    for read in (read_arms,):
        with pytest.raises(Unreadable, match="a.safetensors: it is the file of other arms"):
            read(file)
    write_plan(FindPlan("digits"), tmp_path)
    record = json.loads((tmp_path / "plan.json").read_text())
    record["recipe"]["lr"] = 0
    (tmp_path / "plan.json").write_text(json.dumps(record))
    with pytest.raises(Unreadable, match="^plan.json: Recipe.lr=0") as e:
        read_plan(tmp_path)
    assert e.value.place == "Recipe.lr"
    (tmp_path / "plan.json").write_text('{"type": "FindPlan", "source": 3}')
    assert glance(tmp_path)["kind"] == "unreadable"


def test_kept_results_without_their_table_are_unreadable(tmp_path):
    for file in RESULTS.glob("sparse-transfer-cpu.*"):
        shutil.copy(file, tmp_path)
    kept("sparse-transfer", "cpu", tmp_path)
    table = tmp_path / "sparse-transfer-cpu.csv.gz"
    table.write_bytes(table.read_bytes()[:-9])
    with pytest.raises(Unreadable, match="sparse-transfer-cpu.json: sparse-transfer-cpu.csv.gz cannot be unpacked"):
        kept("sparse-transfer", "cpu", tmp_path)
    table.unlink()
    with pytest.raises(Unreadable, match="there is no file sparse-transfer-cpu.csv.gz"):
        kept("sparse-transfer", "cpu", tmp_path)


def test_a_run_that_is_busy_has_an_error_of_its_own(tmp_path):
    from lottery_nb.runs.writing import working

    with working(tmp_path / "run"), pytest.raises(Busy, match="another process works on"):
        with working(tmp_path / "run"):
            pass
