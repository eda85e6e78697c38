"""What is no lesson of 10_verdict: each condition on made-up results where the answer is known."""
import pandas as pd
import pytest

from lottery_nb.core import LotteryError
from lottery_nb.verdict import CONDITIONS, FAIL, MARGIN, OPEN, PASS, conditions, winning

SPREAD = (-0.004, -0.002, 0.0, 0.002, 0.004)  # over five seeds


def frame(density=0.1, **roles):
    "One test and one validation accuracy for each role and seed; the seeds' spreads are shifted, so that pairs differ."
    rows = []
    for k, (role, mean) in enumerate(roles.items()):
        for seed, off in enumerate(SPREAD):
            where = dict(source="a", domain="a", role=role.replace("_", " "), start="rewind" if role == "ticket" else "fresh", round=0 if role == "dense" else 1,
                         density=1.0 if role == "dense" else density, seed=seed, epoch=3, metric="accuracy")
            rows += [dict(where, split=split, value=mean + off*(1 + 0.1*k)) for split in ("validation", "test")]
    return pd.DataFrame(rows)


def said(floor=0.8, density=0.1, **roles):
    return conditions(frame(density, **{"ticket": 0.90, "dense": 0.90, "reinit": 0.88, "small_dense": 0.85, **roles}), floor).set_index("condition")["verdict"].to_dict()


def test_a_ticket_that_stands_everything_that_one_rate_can_show():
    assert said() == dict(zip(CONDITIONS, (PASS, PASS, OPEN, PASS, OPEN), strict=True))


@pytest.mark.parametrize("change, condition", [
    (dict(density=0.5), "sparse and trained"), (dict(floor=0.95), "sparse and trained"), (dict(small_dense=0.92), "beats small dense"),
    (dict(reinit=0.897), "beats reinit"), (dict(reinit=0.93), "beats reinit"), (dict(dense=0.91), "matches dense"), (dict(dense=0.91), "matches tuned dense")])
def test_each_condition_fails_where_it_should(change, condition):
    before, after = said(), said(**change)
    assert before[condition] != FAIL and after[condition] == FAIL


def test_a_gap_at_the_margin_is_no_evidence():
    assert said(reinit=0.90 - MARGIN)["beats reinit"] == OPEN and said(dense=0.90 + MARGIN)["matches dense"] == OPEN
    assert said(small_dense=0.90)["beats small dense"] == OPEN


def test_no_floor_and_no_control_are_no_evidence():
    assert said(floor=0.0)["sparse and trained"] == OPEN
    bare = conditions(frame(ticket=0.9, dense=0.9), 0.8).set_index("condition")
    assert bare.loc["beats small dense", "verdict"] == bare.loc["beats reinit", "verdict"] == OPEN and "no reinit was trained" in bare.loc["beats reinit", "evidence"]


def test_a_single_seed_proves_nothing():
    one = frame(ticket=0.99, dense=0.5, reinit=0.1, small_dense=0.1)
    assert set(conditions(one[one["seed"] == 0], 0.4)["verdict"]) == {PASS, OPEN}  # the sparsity alone needs no seeds


def test_winning_needs_all_five():
    table = conditions(frame(ticket=0.9, dense=0.9, reinit=0.88, small_dense=0.85), 0.8)
    assert winning(table)["winning"].tolist() == [OPEN]
    assert winning(table.assign(verdict=PASS))["winning"].tolist() == [PASS]
    assert winning(table.assign(verdict=[PASS, PASS, FAIL, OPEN, PASS]))["winning"].tolist() == [FAIL]


@pytest.mark.parametrize("numbers", [dict(floor=1.5), dict(floor=-0.1), dict(floor=0.5, margin=2.0)])
def test_numbers_that_are_none_are_refused(numbers):
    with pytest.raises(LotteryError):
        conditions(frame(ticket=0.9, dense=0.9), **numbers)
