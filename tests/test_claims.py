"""Sentences about results say what their records say: claims, and the tutorials that are made of them."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lottery_nb.cli import main
from lottery_nb.core import LotteryError
from lottery_nb.engine.recipes import Recipe
from lottery_nb.papers import distribution_shift, sparse_transfer
from lottery_nb.papers.papers import kept, STATES
from lottery_nb.plans.find import FindPlan
from lottery_nb.pruning.schedules import geometric
from lottery_nb.results.anatomy import overlaps
from lottery_nb.results.claims import claim, claims_of, claims_text, found_text, from_printed, measured
from lottery_nb.results.stats import compare
from lottery_nb.runs.writing import run
from lottery_nb.science.basins import twin
from lottery_nb.science.yardsticks import linear

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "nbs" / "72_paper_pictures.ipynb"


@pytest.fixture(scope="module")
def tool():
    """tools/claims.py."""
    spec = importlib.util.spec_from_file_location("claims_tool", ROOT / "tools" / "claims.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_tutorials_say_what_their_records_say(tool):
    told = [line for path in tool.tutorials() for line in tool.faults(path, tool.definitions_of())]
    assert told == []
    assert sum(len(tool.makers(json.loads(p.read_text()))) for p in tool.tutorials()) >= 6


def test_definitions_are_needed(tool):
    """A sentence that no chapter has any more is struck from the list."""
    books = [json.loads(path.read_text(encoding="utf-8")) for path in tool.tutorials()]
    cells = [tool.text_of(c["source"]) for b in books for c in b["cells"] if c["cell_type"] == "markdown"]
    assert tool.definitions_of() <= {s for text in cells for s in tool.sentences(text)}


@pytest.mark.parametrize(
    "sentence",
    [
        "Tickets beat dense networks on SmallNORB.",
        "- one shot loses to rounds, which is the paper's ordering.",
        "On Fashion-MNIST late-reset tickets match the dense network down to 7.8 %.",
        "Masks of books lose what the paper says; the rest is as it was.",
        "> Tickets outperform their re-initialisations.",
        "A ticket trains to 3 points more.",
        "Here the mask is shown to travel.",
        "The paper's ordering is confirmed.",
        "## Tickets win on all targets",
        "Sparse networks are as good as dense ones.",
    ],
)
def test_an_overclaim_in_a_chapter_is_found(tool, tmp_path, sentence):
    book = json.loads(PICTURES.read_text(encoding="utf-8"))
    prose = [c for c in book["cells"] if c["cell_type"] == "markdown"]
    copy = tmp_path / PICTURES.name
    copy.write_text(json.dumps({**book, "cells": prose}))
    assert tool.faults(copy, tool.definitions_of()) == []
    prose[1]["source"] = [*prose[1]["source"], "\n" + sentence]
    copy.write_text(json.dumps({**book, "cells": prose}))
    told = tool.faults(copy, tool.definitions_of())
    assert len(told) == 1 and "no record carries" in told[0]


def test_a_list_that_was_edited_is_found(tool, tmp_path, monkeypatch):
    book = json.loads(PICTURES.read_text(encoding="utf-8"))
    fresh = [text for _, text in tool.rendered(book)]
    monkeypatch.setattr(tool, "rendered", lambda book: zip(tool.makers(book), fresh, strict=True))
    copy = tmp_path / PICTURES.name
    for old, new in (
        ("not told from dense at all 3", "above dense at all 3"),
        ("−2.5 ± 1.3 points; 3 seeds", "−2.5 ± 0.3 points; 3 seeds"),
        ("36 comparisons held together", "3 comparisons held together"),
        ("; no match within 0.5 points shown", ""),
        ("; 3 seeds; 15", "; 8 seeds; 15"),
    ):
        text = fresh[0]
        assert old in text
        cell = tool.makers(book)[0]
        cell["outputs"][0]["data"]["text/markdown"] = text
        copy.write_text(json.dumps(book))
        assert tool.faults(copy, tool.definitions_of()) == []
        cell["outputs"][0]["data"]["text/markdown"] = text.replace(old, new, 1)
        copy.write_text(json.dumps(book))
        assert any("is not what its records say" in line for line in tool.faults(copy, tool.definitions_of()))


def test_a_claim_follows_its_numbers():
    """The same sentence with other numbers says another thing, and what follows is said of its verdict only."""
    found = kept("sparse-transfer", "cpu")
    frame = found["fine-tune all"].frame
    so = {"not separable": "Nothing.", "above": "It wins.", "below": "It loses."}
    words = {}
    for gain in (-0.5, 0.0, 0.5):
        moved = frame.assign(value=frame["value"] + gain * (frame["role"] == "ticket"))
        rows = compare(moved, "ticket", "dense").query("domain == 'fashion_mnist@3000'")
        words[gain] = claim("They", rows, so).sentence
    assert "They: not told from dense" in words[0.0] and words[0.0].endswith("Nothing.")
    assert "They: above dense at all 6" in words[0.5] and words[0.5].endswith("It wins.")
    assert "They: below dense at all 6" in words[-0.5] and words[-0.5].endswith("It loses.")
    assert "no match" in words[0.0] and "no match" not in words[0.5]


def rows_of(verdicts, densities=None, match=""):
    """Comparisons with these verdicts."""
    n = len(verdicts)
    densities = densities or [0.8**i for i in range(1, n + 1)]
    text = [f"{i}.0 ± 0.1 points" for i in range(n)]
    rows = dict(role="ticket", against="dense", density=densities, text=text, n=3, family=n, match=match)
    return pd.DataFrame(rows | dict(mean=np.arange(n) / 100, verdict=verdicts))


def test_spans_name_no_density_that_is_not_meant():
    said = found_text(rows_of(["above", "below", "above", "above", "above"]))
    assert (
        said
        == "above dense at 4 of 5 densities, 80 % to 32.8 % with gaps; below dense at 1 of 5 densities, 64 %"
    )
    assert found_text(rows_of(["above"] * 3)) == "above dense at all 3 densities, 80 % to 51.2 %"
    assert found_text(rows_of(["above"] * 2)) == "above dense at both densities, 80 % and 64 %"
    assert found_text(rows_of(["above"])) == "above dense at 80 %"
    assert found_text(rows_of(["above"] * 2, [0.5, 0.5])) == "above dense at both comparisons, 50 %"
    assert "no yardstick" not in found_text(rows_of(["no yardstick"])) and found_text(rows_of(["single run"]))


def test_a_claim_needs_rows_of_one_partner():
    with pytest.raises(LotteryError, match="none comparisons"):
        claim("x", rows_of([]))
    both = pd.concat([rows_of(["above"]), rows_of(["below"]).assign(against="reinit")])
    with pytest.raises(LotteryError, match="several comparisons"):
        claim("x", both)
    assert [c.comparison for c in claims_of("x", both)] == ["ticket − dense", "ticket − reinit"]
    shown = claim("x", rows_of(["not separable"], match="match"))
    assert shown.margin is None and "shown to match dense" in shown.sentence
    assert claims_text([measured("a", "b"), measured("c", "1", 1)]) == "- a: b.\n- c: 1 (1 seed)."


def test_a_printed_table_never_says_more_than_its_frame():
    """Rounded numbers err on the side of saying nothing, whatever was rounded."""
    draws = np.random.default_rng(0)
    for _ in range(12):
        frame = pd.DataFrame(
            [
                dict(source="a", domain="a", role=role, start="rewind", round=1, density=d, seed=s)
                | dict(epoch=1, split="test", metric="accuracy", value=0.8 + draws.normal(gap, 0.002))
                for role, d, gap in (("dense", 1.0, 0), ("ticket", 0.5, 0.002), ("ticket", 0.2, -0.004))
                for s in range(5)
            ]
        )
        rows = compare(frame, "ticket", "dense")
        ends = zip(rows["mean"], rows["high"] - rows["mean"], strict=True)
        texts = [f"{100 * mean:+.1f} ± {100 * half:.1f} points" for mean, half in ends]
        again = from_printed(rows.assign(text=texts))
        assert (again["verdict"].eq(rows["verdict"]) | again["verdict"].eq("not separable")).all()
        assert (again["match"].eq("") | rows["match"].eq("match")).all()


def test_states_of_a_paper_follow_planted_numbers():
    """Results that are planted turn a claim from open to reproduced and contradicted."""
    frame, place = kept("sparse-transfer", "cpu")["fine-tune all"].frame, "fashion_mnist@3000"
    frame = frame[(frame["domain"] == place) & (frame["start"] == "rewind")]
    ticket, states, drift = frame["role"] == "ticket", {}, frame["seed"] / 1e4
    for gain in (None, -0.3, 0.3):
        flat = frame if gain is None else frame.assign(value=0.6 + drift * (1 + ticket) + gain * ticket)
        down = sparse_transfer._down(flat, place, 0.069, "rewind")
        states[gain] = sparse_transfer._never(flat, place).state, down.state
    open_, yes, no = STATES[2], STATES[0], STATES[1]
    assert states == {None: (open_, open_), -0.3: (yes, no), 0.3: (no, yes)}
    rising = frame.assign(value=0.5 - drift * frame["density"] - 0.1 * np.log2(frame["density"]))
    assert sparse_transfer._slope(rising, place, "ticket", "rewind").state == yes
    falling = rising.assign(value=1 - rising["value"])
    assert sparse_transfer._slope(falling, place, "ticket", "rewind").state == no
    assert set(sparse_transfer._no_tickets(falling, place)._fields) == {"measured", "state"}


def test_claims_about_texts_follow_planted_numbers():
    frame, states = kept("distribution-shift", "cpu").frame, {}
    away = frame["run"].str.startswith("from ")
    own = (frame["role"] == "ticket") & ~away
    for gain in (-0.1, 0.0, 0.04, 0.1):
        flat = frame.assign(value=0.7 + frame["seed"] / 1e4 * (1 + own) + gain * own)
        books = flat[flat["run"] == "books"]
        costs = distribution_shift.transfer_costs(distribution_shift.arms_of(flat), sparsest=0.1)
        lost = costs[costs["source"].str.startswith("amazon-books")]
        moved = distribution_shift._moved(lost, "to", "below", distribution_shift.LOST)
        states[gain] = distribution_shift.above_dense(books).state, moved.state
    assert states[0.04] == ("reproduced", "reproduced") and states[-0.1] == ("contradicted", "contradicted")
    assert states[0.1] == ("reproduced", "contradicted")  # ten points are not three to five


def test_the_command_prints_claims_and_trains_nothing(capsys, monkeypatch):
    monkeypatch.setattr("lottery_nb.papers.papers.run_paper", None)
    assert main(["paper", "distribution-shift", "--scale", "cpu", "--claims"]) == 0
    shown = capsys.readouterr().out
    assert "17 claims: 2 reproduced, 0 contradicted" in shown and shown.count("NOT MEASURED. ") > 4
    assert main(["paper", "sparse-transfer", "--scale", "full", "--claims"]) == 2
    assert "no kept results" in capsys.readouterr().err


@pytest.mark.parametrize("network", ["conv-2", "resnet-20"])
def test_a_twin_begins_a_hair_beside_its_run(tmp_path, network):
    """Each weight is moved, by a hair; buffers of batch norm, seed and the rest of the plan are the same."""
    quick = Recipe(lr=0.05, epochs=1, batch_size=64)
    how = dict(width=0.25, schedule=geometric(0.5, 1), recipe=quick, seeds=(3,), controls=("reinit",))
    plan = FindPlan("digits[0-4]@128", network, **how)
    ticket = run(plan, tmp_path / "a", "cpu", False).tickets[0]
    other = twin(plan, ticket)
    again = run(other, tmp_path / "b", "cpu", False).tickets[0]
    here, there = ticket.start("init"), again.start("init")
    gaps = {n: float((w - there.weights[n]).abs().max()) for n, w in here.weights.items()}
    assert 0 < min(gaps.values()) and max(gaps.values()) < 1e-6
    assert all(v.equal(there.buffers[n]) for n, v in here.buffers.items()) and set(here.buffers) == set(
        there.buffers
    )
    assert again.seed == 3 and again.recipe == ticket.recipe and other.controls == ()
    assert 0.5 < overlaps({"a": [ticket], "b": [again]})["iou"].item() <= 1


@pytest.mark.data
@pytest.mark.parametrize("name", ["smallnorb@3000", "amazon-kitchen"])
def test_stored_linear_yardsticks_are_those_of_scikit_learn(name):
    stored = pd.read_csv(ROOT / "papers" / "results" / "linear.csv").set_index("domain").loc[name]
    now = linear(name, 100)
    assert abs(now.test - stored["test"]) < 0.01 and now.examples == stored["examples"]
