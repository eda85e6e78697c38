"""A ticket is held against the dense network of its own start, or against none: what is missing is said, with the reason, wherever the comparison stands; and seeds that tie claim no certainty."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from lottery_nb.core import LotteryError
from lottery_nb.engine.recipes import Recipe
from lottery_nb.events import ArmFailed
from lottery_nb.plans.find import FindPlan
from lottery_nb.plans.transfer import TransferPlan
from lottery_nb.pruning.schedules import geometric
from lottery_nb.results.landmarks import matches_down_to, speed, transition
from lottery_nb.results.plots import transfer_cells, transfer_curves, transfer_plot
from lottery_nb.results.report import findings, report
from lottery_nb.results.stats import (
    compare,
    Interval,
    interval,
    kept_rows,
    may_differ,
    paired,
    ranking,
    results_of,
    seeds_text,
    summary,
    ties_text,
    verdict,
)
from lottery_nb.results.tables import short_table, text_table
from lottery_nb.results.verdict import conditions
from lottery_nb.runs.log import FAILED, frame_of, Records
from lottery_nb.runs.reading import Run
from lottery_nb.runs.writing import run
from lottery_nb.workbench.compare import compared, run_html
from lottery_nb.workbench.follow import Follower
from made_up import made_up_results

MOVED = made_up_results(seeds=3, rounds=2, targets=("made-up target",))
COLUMN = "ticket − dense, points"
NAN = "the training loss became nan in epoch 1"


def without(frame, role="dense", start=None, seed=None, **failed):
    "The frame without some arms, which are told as failed where a reason is given."
    gone = frame["role"] == role
    for column, value in (("start", start), ("seed", seed)):
        gone &= value is None or frame[column] == value
    kept = frame[~gone].copy()
    if failed:
        lost = frame.loc[
            gone, ["source", "domain", "role", "start", "round", "density", "seed"]
        ].drop_duplicates()
        kept.attrs[FAILED] = Records(
            (*row, f"{NAN}: lower Recipe.lr") for row in lost.itertuples(index=False, name=None)
        )
    return kept


LOST = {
    "failed": (without(MOVED, start="rewind", why=NAN), f"dense (rewind) failed in 3 seeds: {NAN}"),
    "missing": (without(MOVED, start="rewind"), "dense (rewind) is not in these results"),
    "every start failed": (without(MOVED, why=NAN), f"dense (rewind) failed in 3 seeds: {NAN}"),
    "other seeds": (
        without(without(MOVED, start="rewind", seed=0), "ticket", "rewind", 1).query(
            "role != 'ticket' or start != 'rewind' or seed == 0"
        ),
        "dense (rewind) has other seeds only: 1, 2",
    ),
}


@pytest.mark.parametrize("case", LOST)
def test_another_start_never_takes_the_place_of_the_right_one(case):
    frame, why = LOST[case]
    rows = compare(frame, "ticket", "dense").set_index("start")
    lost = rows.loc[["rewind"]]
    assert (lost["n"] == 0).all() and lost[["mean", "low", "high"]].isna().all(axis=None)
    assert set(lost["verdict"]) == {"no yardstick"} and set(lost["text"]) == {why}
    assert set(lost["against_start"]) == {"rewind"} and all(lost["left_out"])
    if case != "every start failed":
        whole = compare(MOVED, "ticket", "dense").set_index("start").loc["source-trained"]
        family = ["p_holm", "family", "verdict", "match"]  # which is smaller without the lost ones
        pd.testing.assert_frame_equal(
            rows.loc["source-trained"].drop(columns=family), whole.drop(columns=family)
        )
        assert set(rows["family"]) == {2} and set(whole["family"]) == {4}


@pytest.mark.parametrize("case", LOST)
def test_tables_sentences_verdicts_figures_and_pages_say_what_is_missing(case):
    frame, why = LOST[case]
    table = short_table(frame)
    cells = table[table["start"] == "rewind"]
    assert set(cells.loc[cells["ticket"] != "", COLUMN]) == {f"no yardstick ({why})"}
    told = text_table(frame)
    assert f"no yardstick on made-up target at 65 %, 42.3 %: {why}" in " ".join(told.split())
    assert max(map(len, told.splitlines())) <= 100
    (rewind,) = (s for s in findings(frame) if "(rewind)" in s)
    assert f"without a yardstick where {why}" in rewind
    of = conditions(frame).set_index(["start", "condition"])
    dense = of.loc[("rewind", "matches dense")]
    assert set(dense["verdict"]) == {"not enough evidence"} and set(dense["evidence"]) == {
        f"no yardstick: {why}"
    }
    cell = transfer_cells(frame, "accuracy", 0.95).query("density < 1").set_index(["role", "start"])
    cell = cell.loc[("ticket", "rewind")]
    assert set(cell["note"]) == {"no yardstick"} and set(cell["z"]) == {0.0} and set(cell["lost"]) == {why}
    curves = (
        [] if case == "other seeds" else [transfer_curves(frame)]
    )  # the right dense network is drawn there
    for fig in (transfer_plot(frame), *curves):
        assert why in fig.layout.title.subtitle.text.replace("<br>", "; ")
    assert f"no yardstick ({why})" in report(frame).replace("\u00a0", " ")


def test_a_panel_of_one_start_shows_no_dense_network_of_another():
    fig = transfer_curves(without(MOVED, start="rewind"))
    panels = {
        a.text.split("start: ")[-1]: f"x{i or ''}".replace("x0", "x")
        for i, a in enumerate(fig.layout.annotations)
    }
    rewind, trained = (
        [t.name for t in fig.data if t.xaxis == "x"],
        [t.name for t in fig.data if t.xaxis == "x2"],
    )
    assert list(panels) == ["rewind", "source-trained"]
    assert "dense" not in {str(n).split(" (")[0] for n in rewind} and "dense" in {
        str(n).split(" (")[0] for n in trained
    }


def test_the_floor_of_a_ticket_is_that_of_its_own_dense_network():
    frame = MOVED.copy()
    frame.loc[(frame["role"] == "dense") & (frame["start"] == "source-trained"), "value"] *= 0.5
    of = conditions(frame, floor=0.7).set_index(["start", "density", "condition"])["verdict"]
    sparse = frame["density"].min()
    assert of["rewind", sparse, "sparse and trained"] == "pass"
    assert of["source-trained", sparse, "sparse and trained"] == "fail"
    lost = conditions(without(MOVED, start="rewind"), floor=0.7).set_index(["start", "density", "condition"])
    assert lost.loc[("rewind", sparse, "sparse and trained"), "lacks"] == "dense"


def test_a_search_has_one_dense_network_which_tickets_come_out_of():
    for dense in ("fresh", "init", "rewind"):
        frame = made_up_results(seeds=3, rounds=2)
        frame.loc[frame["role"] == "dense", "start"] = dense
        rows = compare(frame, "ticket", "dense")
        assert (rows["n"] == 3).all() and set(rows["against_start"]) == {dense}
        assert (compare(frame, "reinit", "dense")["n"] == 3).all()


def test_tickets_moved_to_their_own_domain_are_held_to_their_start():
    home = MOVED.assign(domain="made-up source")
    lost = without(home, start="rewind", why=NAN)
    rows = compare(lost, "ticket", "dense").set_index("start")
    assert (
        set(rows.loc["rewind", "verdict"]) == {"no yardstick"}
        and (rows.loc["source-trained", "n"] == 3).all()
    )
    only = without(lost, "ticket", "rewind")
    assert (compare(only, "ticket", "dense")["n"] == 3).all()


@pytest.mark.parametrize("role", ["shuffled", "tuned dense"])
def test_every_role_that_keeps_the_tickets_weights_is_held_to_its_start(role):
    source = "dense" if role == "tuned dense" else "ticket"
    more = MOVED[(MOVED["role"] == source) & (MOVED["start"] == "source-trained")].assign(role=role)
    rows = compare(pd.concat([MOVED, more]), "ticket", role).set_index("start")
    assert set(rows.loc["rewind", "text"]) == {f"{role} (rewind) is not in these results"}
    assert (rows.loc["source-trained", "n"] == 3).all()


@pytest.mark.parametrize("role", ["reinit", "random mask"])
def test_what_draws_its_weights_is_a_partner_of_every_start(role):
    rows = compare(MOVED, "ticket", role)
    assert (rows["n"] == 3).all() and set(rows["against_start"]) == {"fresh"} and len(rows) == 4


def test_a_role_of_somebody_else_is_held_to_what_its_rows_say():
    kept = MOVED[MOVED["role"] == "ticket"].assign(role="my control")
    both = compare(pd.concat([MOVED, kept]), "ticket", "my control")
    assert (both["start"] == both["against_start"]).all() and (both["n"] == 3).all()
    lost = compare(pd.concat([MOVED, kept[kept["start"] == "rewind"]]), "ticket", "my control").set_index(
        "start"
    )
    assert (lost.loc["rewind", "n"] == 3).all()


def test_landmarks_of_a_ticket_without_its_dense_network_say_so():
    frame, why = LOST["failed"]
    for table in (matches_down_to(frame), transition(frame, 0.1)):
        row = table.set_index("start").loc["rewind"]
        assert row["text"] == f"no yardstick: {why}" and np.isnan(row["density"])
    assert "rewind" not in set(speed(frame)["start"]) and "source-trained" in set(speed(frame)["start"])
    with pytest.raises(LotteryError, match="no dense network"):
        speed(without(MOVED))


def test_reasons_go_with_a_frame_wherever_it_goes(tmp_path):
    frame, why = LOST["failed"]
    other = made_up_results(seeds=3, rounds=1)
    for given in (frame, frame[frame["split"] == "test"], [other, frame], kept_rows(frame)):
        rows = compare(given, "ticket", "dense")
        assert why in set(rows["text"])
    assert results_of([other, frame]).attrs[FAILED] == frame.attrs[FAILED]
    frame.to_parquet(tmp_path / "f.parquet")
    assert pd.read_parquet(tmp_path / "f.parquet")["value"].equals(frame["value"])


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    "A real transfer of which the dense networks of one start fail in the first epoch."
    home = tmp_path_factory.mktemp("runs")
    recipe = Recipe(lr=0.05, epochs=1, batch_size=64)
    find = FindPlan("digits[0-4]@200", width=0.05, schedule=geometric(0.5, 1), recipe=recipe, seeds=2)
    tickets = run(find, home / "find", "cpu", show=False).tickets
    plan = TransferPlan(tickets, "digits[5-9]@200", start=("rewind", "source-trained"), controls=("dense",))
    done = run(plan, home / "moved", "cpu", show=False)
    lines = done.folder.log.read_text().splitlines()
    kept = []
    for line in lines:
        e = json.loads(line)
        if "/dense/rewind/" not in str(e.get("arm", "")) or e["event"] == "ArmStarted":
            kept.append(line)
        elif e["event"] == "ArmDone":
            kept.append(f'{{"t":{e["t"]},{ArmFailed(e["arm"], 1, 3, f"{NAN}: lower Recipe.lr").line()[1:]}')
    done.folder.log.write_text("\n".join(kept) + "\n")
    return Run(home / "moved")


def test_a_run_whose_dense_networks_of_one_start_diverged_says_so(diverged):
    why = f"dense (rewind) failed in 2 seeds: {NAN}"
    assert len(frame_of(diverged.state).attrs[FAILED]) == 2
    rows = compare(diverged, "ticket", "dense").set_index("start")
    assert rows.loc["rewind", "text"] == why and rows.loc["source-trained", "n"] == 2
    assert f"no yardstick ({why})" in set(short_table(diverged)[COLUMN])
    assert why in " ".join(text_table(diverged).split()) and why in report(diverged).replace("\u00a0", " ")
    assert why in run_html(diverged, "accuracy").replace("\u00a0", " ")
    fig = compared({"moved": diverged.frame})
    assert why in fig.layout.title.subtitle.text.replace("<br>", "; ")
    assert not [t.name for t in fig.data if "dense" in str(t.name)]


def test_a_run_that_goes_on_says_that_its_yardstick_is_still_training(diverged, tmp_path):
    live = Run(shutil.copytree(diverged.path, tmp_path / "live"))
    lines = live.folder.log.read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["event"] not in ("RunDone", "ArmFailed")]
    live.folder.log.write_text("\n".join(kept) + "\n")
    live.folder.heartbeat.touch()
    assert live.status == "running"
    why = "dense (rewind) is not there yet: 2 networks are still training or waiting"
    rows = compare(live, "ticket", "dense").set_index("start")
    assert rows.loc["rewind", "text"] == why and rows.loc["source-trained", "n"] == 2
    follower = Follower(live.path)
    follower.read()
    for frame in (live.frame, live.kept, follower.frame):
        assert set(compare(frame, "ticket", "dense").set_index("start").loc[["rewind"], "text"]) == {why}
    assert f"no yardstick ({why})" in set(short_table(live)[COLUMN])
    assert why in " ".join(text_table(live).split()) and why in report(live).replace("\u00a0", " ")
    os.utime(live.folder.heartbeat, (0, 0))  # its process is gone
    assert Run(live.path).status == "interrupted"
    rows = compare(Run(live.path), "ticket", "dense").set_index("start")
    assert rows.loc["rewind", "text"] == "dense (rewind) is not in these results"


# seeds that tie


@pytest.mark.parametrize("values", [[0.5] * 2, [1.0] * 5, [0.1 + 0.2, 0.3, 0.3], [0.0] * 30, [1 / 3] * 3])
@pytest.mark.parametrize("method", ["t", "bootstrap"])
def test_seeds_that_tie_have_no_interval(values, method):
    found = interval(values, method=method)
    assert (
        found.tied
        and np.isnan(found.low)
        and np.isnan(found.high)
        and np.isclose(found.mean, np.mean(values))
    )
    assert (
        str(found).endswith(f"({len(values)} seeds tie)")
        and "±" not in str(found)
        and "to" not in str(found)[:9]
    )
    assert not interval([0.5]).tied and not interval([0.5, 0.6]).tied and Interval(0.5, 0.5, 0.5, 3).tied


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 59, 200])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_what_ties_allow_is_the_exact_bound_for_none_of_n(n, confidence):
    exact = scipy_stats.binomtest(0, n, alternative="less").proportion_ci(confidence, method="exact").high
    assert may_differ(n, confidence) == pytest.approx(exact, rel=1e-9)


def test_ties_separate_and_rank_nothing_and_tell_their_source():
    tie = paired({0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.85, 1: 0.75, 2: 0.65})
    assert tie.tied and verdict(tie) == "not separable" and str(tie) == "+5.0 points (3 seeds tie)"
    frame = made_up_results(seeds=3, rounds=2)
    level = frame["role"].map({"dense": 0.9, "ticket": 0.95, "reinit": 0.6, "random mask": 0.5})
    alike = frame.assign(value=level)
    assert ranking(alike)["rank"].isna().all() and set(ranking(alike)["note"]) == {
        "not ranked: all seeds tie"
    }
    assert set(compare(alike, "ticket", "dense")["verdict"]) == {"not separable"}
    judged = conditions(alike, 0.5)
    assert set(judged[judged["condition"] != "sparse and trained"]["verdict"]) == {"not enough evidence"}
    assert set(short_table(alike)[COLUMN]) == {"", "not separable (+5.0, 3 seeds tie)"}
    said = ties_text(summary(alike))
    assert (
        "after 3 seeds alike, up to 63 % of further seeds may differ (95 %, Clopper and Pearson 1934)" in said
    )
    assert said in " ".join(text_table(alike).split()) and said in report(alike)
    assert (
        seeds_text(summary(alike)).endswith("; none where all seeds tie") and ties_text(summary(frame)) == ""
    )
    moved = MOVED.assign(value=0.5)
    for fig in (transfer_plot(moved), transfer_curves(moved)):
        assert "none where all seeds tie" in fig.layout.title.subtitle.text.replace("<br>", "; ")
    assert matches_down_to(alike)["shown"].item() == 0 and "±" not in " ".join(speed(alike)["text"])
