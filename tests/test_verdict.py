"""What is no lesson of 10_verdict: each condition on made-up results where the answer is known."""

import pandas as pd
import pytest

from lottery_nb.results import verdict as results_verdict
from lottery_nb.core import LotteryError
from lottery_nb.plans.find import MARGIN
from lottery_nb.results.verdict import (
    CONDITIONS,
    conditions,
    FAIL,
    OPEN,
    PASS,
    verdict_lines,
    winning,
)

SPREAD = (-0.004, -0.002, 0.0, 0.002, 0.004)  # over five seeds


def frame(density=0.1, **roles):
    "One test and one validation accuracy for each role and seed; the seeds' spreads are shifted, so that pairs differ."
    rows = []
    for k, (role, mean) in enumerate(roles.items()):
        for seed, off in enumerate(SPREAD):
            where = dict(
                source="a",
                domain="a",
                role=role.replace("_", " "),
                start="rewind" if role == "ticket" else "fresh",
                round=0 if role == "dense" else 1,
                density=1.0 if role == "dense" else density,
                seed=seed,
                epoch=3,
                metric="accuracy",
            )
            rows += [
                dict(where, split=split, value=mean + off * (1 + 0.1 * k)) for split in ("validation", "test")
            ]
    return pd.DataFrame(rows)


def said(floor=0.8, density=0.1, **roles):
    return (
        conditions(
            frame(density, **{"ticket": 0.90, "dense": 0.90, "reinit": 0.88, "small_dense": 0.85, **roles}),
            floor,
        )
        .set_index("condition")["verdict"]
        .to_dict()
    )


def test_a_ticket_that_stands_everything_that_one_rate_can_show():
    assert said() == dict(zip(CONDITIONS, (PASS, PASS, OPEN, PASS, OPEN), strict=True))


@pytest.mark.parametrize(
    "change, condition",
    [
        (dict(density=0.5), "sparse and trained"),
        (dict(floor=0.95), "sparse and trained"),
        (dict(small_dense=0.92), "beats small dense"),
        (dict(reinit=0.897), "beats reinit"),
        (dict(reinit=0.93), "beats reinit"),
        (dict(dense=0.91), "matches dense"),
        (dict(dense=0.91), "matches tuned dense"),
    ],
)
def test_each_condition_fails_where_it_should(change, condition):
    before, after = said(), said(**change)
    assert before[condition] != FAIL and after[condition] == FAIL


def test_a_gap_at_the_margin_is_no_evidence():
    assert (
        said(reinit=0.90 - MARGIN)["beats reinit"] == OPEN
        and said(dense=0.90 + MARGIN)["matches dense"] == OPEN
    )
    assert said(small_dense=0.90)["beats small dense"] == OPEN


def test_no_floor_and_no_control_are_no_evidence():
    assert said(floor=0.0)["sparse and trained"] == OPEN
    bare = conditions(frame(ticket=0.9, dense=0.9), 0.8).set_index("condition")
    assert (
        bare.loc["beats small dense", "verdict"] == bare.loc["beats reinit", "verdict"] == OPEN
        and "no reinit was trained" in bare.loc["beats reinit", "evidence"]
    )


def test_a_single_seed_proves_nothing():
    one = frame(ticket=0.99, dense=0.5, reinit=0.1, small_dense=0.1)
    assert set(conditions(one[one["seed"] == 0], 0.4)["verdict"]) == {
        PASS,
        OPEN,
    }  # the sparsity alone needs no seeds


def test_winning_needs_all_five():
    table = conditions(frame(ticket=0.9, dense=0.9, reinit=0.88, small_dense=0.85), 0.8)
    assert winning(table)["winning"].tolist() == [OPEN]
    assert winning(table.assign(verdict=PASS))["winning"].tolist() == [PASS]
    assert winning(table.assign(verdict=[PASS, PASS, FAIL, OPEN, PASS]))["winning"].tolist() == [FAIL]


@pytest.mark.parametrize("numbers", [dict(floor=1.5), dict(floor=-0.1), dict(floor=0.5, margin=2.0)])
def test_numbers_that_are_none_are_refused(numbers):
    with pytest.raises(LotteryError):
        conditions(frame(ticket=0.9, dense=0.9), **numbers)


def lines(floor=0.8, **roles):
    return verdict_lines(conditions(frame(**{"ticket": 0.90, "dense": 0.90, **roles}), floor)).iloc[0]


def test_one_line_a_ticket_says_what_is_missing():
    bare = lines(0.0)
    assert list(bare.index) == [
        "density",
        "winning",
        "sparse, trained",
        "beats small",
        "beats reinit",
        "matches dense",
        "matches tuned",
        "missing",
    ]
    assert bare["winning"] == "open" and bare["missing"] == "a floor, small dense, reinit, rates"
    assert (
        lines(reinit=0.88, small_dense=0.85)["missing"] == "rates"
        and "seeds" in lines(reinit=0.88, small_dense=0.90)["missing"]
    )
    failed = lines(small_dense=0.95)
    assert failed["winning"] == failed["beats small"] == "fail" and failed["missing"] == ""


def test_lines_name_domain_and_start_where_there_are_several():
    two = pd.concat([frame(ticket=0.9, dense=0.9), frame(ticket=0.9, dense=0.9).assign(domain="b")])
    assert list(verdict_lines(conditions(two))["domain"]) == ["a", "b"] and "start" not in verdict_lines(
        conditions(two)
    )


def test_each_comparison_is_made_once(monkeypatch):
    calls = []
    monkeypatch.setattr(
        results_verdict,
        "compare",
        lambda frame, ours, theirs: calls.append(theirs) or COMPARE(frame, ours, theirs),
    )
    conditions(
        pd.concat(
            [frame(d, ticket=0.9, dense=0.9, reinit=0.88) for d in (0.4, 0.3, 0.2, 0.1)]
        ).drop_duplicates(),
        0.8,
    )
    assert sorted(calls) == ["dense", "reinit"]


COMPARE = results_verdict.compare


def test_a_control_that_still_trains_is_no_evidence():
    half = frame(ticket=0.9, dense=0.9, reinit=0.88)
    table = conditions(half[(half["role"] != "reinit") | (half["split"] != "test")], 0.8).set_index(
        "condition"
    )
    assert table.loc["beats reinit", "verdict"] == OPEN


@pytest.mark.parametrize(
    "roles, floor, condition, lacks",
    [
        (dict(ticket=0.9, dense=0.9), 0.0, "sparse and trained", "a floor"),
        (dict(ticket=0.9, reinit=0.8), 0.9, "sparse and trained", "dense"),
        (dict(ticket=0.9, dense=0.9), 0.9, "beats small dense", "small dense"),
        (dict(ticket=0.9, dense=0.9), 0.9, "beats reinit", "reinit"),
        (dict(ticket=0.9, dense=0.9, reinit=0.8), 0.9, "beats reinit", "rates"),
        (dict(ticket=0.9, dense=0.9, small_dense=0.9), 0.9, "beats small dense", "seeds"),
        (dict(ticket=0.9, dense=0.9, reinit=0.8), 0.95, "sparse and trained", ""),
        (dict(ticket=0.9, dense=0.9, reinit=0.95), 0.9, "beats reinit", ""),
        (dict(ticket=0.9, dense=0.9), 0.9, "matches dense", ""),
    ],
)
def test_what_an_open_condition_lacks_is_said_as_a_word(roles, floor, condition, lacks):
    table = conditions(frame(**roles), floor).set_index("condition")
    assert (
        table.loc[condition, "lacks"] == lacks
        and set(table["lacks"][table["verdict"] != OPEN]) <= {""}
        and "" not in set(table["lacks"][table["verdict"] == OPEN])
    )
