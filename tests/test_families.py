"""Words that hold for a whole table, equality that has to be shown, intervals and power: against statsmodels and scipy, and by simulation of runs whose truth is known."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from lottery_nb.core import canonical, from_plain, LotteryError
from lottery_nb.plans.find import FindPlan, rates_of, Search
from lottery_nb.plans.power import detectable, enough_seeds, power_of, seeds_for
from lottery_nb.pruning.schedules import geometric
from lottery_nb.rewinding.controls import CONTROLS, TICKET
from lottery_nb.results.families import holm, p_above, p_apart, p_below, p_inverted, p_within, wider
from lottery_nb.results.landmarks import matches_down_to
from lottery_nb.results.report import findings, report
from lottery_nb.results.stats import (
    as_family,
    COLUMNS,
    compare,
    Interval,
    interval,
    left_out,
    left_out_lines,
    margin_of,
    METHODS,
    NOT_AT_RANDOM,
    ranking,
    spread_of,
    told_text,
    widened,
    with_counts,
)
from lottery_nb.results.tables import short_table, text_table
from lottery_nb.results.verdict import beyond, conditions, FAIL, matching, OPEN, PASS
from lottery_nb.runs.log import FAILED, Records
from lottery_nb.workbench.find import pilot_text
from made_up import made_up_results

RUNS = 1500  # of a simulation
ERROR = 3 * (0.05 * 0.95 / RUNS) ** 0.5  # of a share of 5 % in it


def drawn(seeds, densities, gap=0.0, spread=0.01, runs=RUNS):
    "Rows as `compare` gives them of many runs: ticket minus dense by density, of which the dense network is one."
    g = np.random.default_rng(seeds * 100 + densities)
    noise = g.standard_normal((runs, seeds, densities)) - g.standard_normal((runs, seeds, 1))
    d = gap + spread * noise / 2**0.5
    return d.mean(1), d.std(1, ddof=1) / seeds**0.5, np.full((runs, densities), seeds)


def each_run(p):
    return np.apply_along_axis(holm, 1, p)


def tables(how):
    for mean, se, n in zip(*how, strict=True):
        yield pd.DataFrame(dict(mean=mean, se=se, n=n))


# the formulas


@settings(max_examples=20, deadline=None)  # statsmodels takes its time
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_that_of_statsmodels(p):
    theirs = multipletests(p, method="holm")[1]
    assert np.allclose(holm(p), theirs)
    some = [x for one in p for x in (one, np.nan)]
    assert np.allclose(holm(some)[::2], theirs) and np.isnan(holm(some)[1::2]).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-0.05, 0.05), min_size=2, max_size=12), st.floats(0.001, 0.05))
def test_equivalence_is_that_of_statsmodels(d, margin):
    d = np.array(d)
    if d.std(ddof=1) < 1e-6:
        return
    how = d.mean(), d.std(ddof=1) / len(d) ** 0.5, len(d)
    theirs = ttost_paired(d, np.zeros(len(d)), -margin, margin)
    assert np.isclose(p_within(*how, margin), theirs[0], atol=1e-9)
    assert np.isclose(p_above(*how, -margin), theirs[1][1]) and np.isclose(
        p_below(*how, margin), theirs[2][1]
    )
    assert np.isclose(p_apart(*how), scipy_stats.ttest_1samp(d, 0).pvalue)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 16, 64])
@pytest.mark.parametrize("comparisons", [1, 10, 36])
def test_power_is_that_of_statsmodels(n, comparisons):
    for difference in (0.2, 1.0, 3.0):
        theirs = TTestPower().power(difference, n, 0.05 / comparisons, alternative="two-sided")
        ours = power_of(difference, 1.0, n, comparisons)
        assert np.isnan(theirs) or np.isclose(ours, theirs, atol=1e-6)
    least = detectable(0.4, n, comparisons)
    assert np.isclose(power_of(least, 0.4, n, comparisons), 0.8, atol=1e-4)
    assert seeds_for(least * (1 + 1e-6), 0.4, comparisons) == n


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=14), st.sampled_from([0.8, 0.95]))
def test_bca_is_that_of_scipy(v, confidence):
    if np.ptp(v) < 1e-6:
        return
    low, high = scipy_stats.bootstrap(
        (v,), np.mean, confidence_level=confidence, method="BCa", rng=np.random.default_rng(3)
    ).confidence_interval
    found = interval(v, confidence, "bca", seed=3)
    assert np.allclose([found.low, found.high], [low, high])


@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_a_percentile_bootstrap_of_few_seeds_is_refused(n):
    few = np.random.default_rng(n).random(10)
    with pytest.raises(LotteryError, match=f"percentile bootstrap of {n} seeds.*method='t', or 'bca'"):
        interval(few[:n], method="bootstrap")
    frame = made_up_results(seeds=n, rounds=1)
    with pytest.raises(LotteryError, match="percentile bootstrap"):
        compare(frame, method="bootstrap")
    assert (compare(frame, method="bca")["n"] == n).all()
    assert interval(few, method="bootstrap").n == 10


def test_without_the_bell_few_seeds_cannot_be_sure():
    d = np.array([0.010, 0.011, 0.012])
    assert interval(d, method="bca").low > 0 and p_inverted(d, METHODS["bca"]) == 0.25
    frame = made_up_results(seeds=3, rounds=1)
    assert set(compare(frame, method="bca")["verdict"]) == {"not separable"}


# families of which the truth is known


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_no_difference_shows_none_in_nineteen_of_twenty_tables(seeds):
    how = drawn(seeds, 12)
    p = p_apart(*how)
    assert (p < 0.05).any(1).mean() > 0.15  # what each alone would say
    assert (each_run(p) < 0.05).any(1).mean() <= 0.05 + ERROR


@pytest.mark.parametrize("seeds", [5, 12])
def test_a_planted_difference_is_found_as_often_as_promised(seeds):
    gap = detectable(0.01, seeds)
    assert abs((p_apart(*drawn(seeds, 1, gap)) < 0.05).mean() - 0.8) < 3 * (0.16 / RUNS) ** 0.5
    many = detectable(0.01, seeds, comparisons=12)
    found = each_run(p_apart(*drawn(seeds, 12, many))) < 0.05
    assert found.mean(0).min() > 0.8 - 3 * (0.16 / RUNS) ** 0.5  # Holm is no weaker than what was promised


@pytest.mark.parametrize("gap, side", [(0.005, "above"), (-0.005, "below")])
def test_what_lies_at_the_margin_is_called_a_match_in_one_table_of_twenty(gap, side):
    "At the very edge of the margin, on either side: the worst case of a test that is to show equality."
    said = each_run(p_within(*drawn(8, 6, gap, spread=0.003), 0.005)) < 0.05
    assert said.any(1).mean() <= 0.05 + ERROR


def test_equals_are_shown_to_be_so_where_they_are_measured_well():
    assert (each_run(p_within(*drawn(8, 6, 0.0, spread=0.001), 0.005)) < 0.05).mean() > 0.95
    assert (each_run(p_within(*drawn(8, 6, 0.0, spread=0.05), 0.005)) < 0.05).mean() < 0.01


def test_conditions_are_wrong_in_one_table_of_twenty():
    short = list(tables(drawn(5, 6, -0.005, spread=0.004, runs=400)))  # half a point below, all of them
    wrong = np.mean([(matching(rows, 0.005) == PASS).any() for rows in short])
    lost = np.mean([(matching(rows, 0.005) == FAIL).any() for rows in short])
    better = list(tables(drawn(5, 6, 0.005, spread=0.004, runs=400)))  # better by the margin, not more
    won = np.mean([(beyond(rows, 0.005) != OPEN).any() for rows in better])
    assert max(wrong, lost, won) <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_a_ticket_far_above_matches_and_one_far_below_does_not():
    rows = pd.DataFrame(dict(mean=[0.03, 0.0, -0.03, 0.0], se=[0.002, 0.0005, 0.002, 0.02], n=5))
    assert list(matching(rows, 0.005)) == [PASS, PASS, FAIL, OPEN]
    assert list(beyond(rows, 0.005)) == [PASS, FAIL, FAIL, OPEN]


def test_a_band_holds_its_whole_curve():
    mean, se, n = drawn(5, 12)
    half = se * scipy_stats.t.ppf(0.975, 4)
    alone = pd.DataFrame(dict(mean=mean[0], low=mean[0] - half[0], high=mean[0] + half[0], n=n[0]))
    factor = (widened(alone)["high"] - alone["mean"]) / half[0]
    assert np.allclose(factor, scipy_stats.t.ppf(0.5 + wider(0.95, 12) / 2, 4) / scipy_stats.t.ppf(0.975, 4))
    inside = (np.abs(mean) < half * factor[0]).all(1).mean()
    assert inside >= 0.95 - ERROR and (np.abs(mean) < half).all(1).mean() < 0.9


def test_equals_are_ranked_in_one_table_of_twenty():
    g, wrong = np.random.default_rng(0), 0
    keys = [
        ("a", "a", role, "fresh", 1, 0.5 if role != "dense" else 1.0)
        for role in ("dense", "ticket", "reinit")
    ]
    for _ in range(60):
        rows = [
            (*key, s, 1, "test", "accuracy", 0.9 + 0.01 * g.standard_normal())
            for key in keys
            for s in range(5)
        ]
        wrong += ranking(pd.DataFrame(rows, columns=COLUMNS))["rank"].nunique() > 1
    assert wrong <= 60 * (0.05 + 3 * (0.05 * 0.95 / 60) ** 0.5)


# tables, sentences, pages


def noise_alone(seed, seeds=5, rounds=12):
    "A search in which nothing differs from anything."
    frame = made_up_results(seeds=seeds, rounds=rounds)
    place = ["role", "start", "round", "seed"]
    g = np.random.default_rng(seed)
    arms = frame[place].drop_duplicates()
    arms = arms.assign(level=0.9 + 0.01 * g.standard_normal(len(arms)))
    return frame.assign(value=frame.merge(arms, on=place, how="left")["level"].to_numpy())


def test_stars_words_and_sentences_follow_the_corrected_test():
    alone, stars = 0, 0
    for seed in range(12):
        frame = noise_alone(seed)
        rows = compare(frame, "ticket", "dense")
        alone += (rows["p"] < 0.05).any()
        told = rows["verdict"].isin(["above", "below"])
        stars += told.any()
        assert told.equals(rows["p_holm"] < 0.05) and set(rows["family"]) == {12}
        if seed < 3:
            text, table, (sentence,) = text_table(frame), short_table(frame), findings(frame)
            assert text.count(" *\n") + text.count(" *  ") == told.sum()
            assert "all 12 comparisons of the table together" in " ".join(text.split())
            assert table["ticket − dense, points"].str.contains("above|below").sum() == told.sum()
            assert told.any() or "above dense" not in sentence and "below dense" not in sentence
    assert alone >= 2 and stars <= 2


def test_a_page_counts_its_comparisons_once_for_all_targets():
    frame = made_up_results(seeds=3, rounds=2, targets=("made-up target", "made-up shift"))
    rows = compare(frame, "ticket", "dense")
    assert set(rows["family"]) == {8}
    page = report(frame).replace("\u00a0", " ")
    assert "all 8 comparisons of the table together" in page
    above = rows[rows["verdict"] == "above"]
    for row in above.itertuples():
        assert f"above ({row.text.removesuffix(' points')})" in page


def test_several_questions_may_be_one_family():
    frame = made_up_results(seeds=4, rounds=3)
    one, both = compare(frame, "ticket", "dense"), compare(frame, "ticket", ("dense", "reinit"))
    apart = pd.concat([one, compare(frame, "ticket", "reinit")], ignore_index=True)
    joined = as_family(apart)
    key = ["against", "density"]
    assert set(both["family"]) == {6} and set(one["family"]) == {3}
    sides = [t.sort_values(key)["p_holm"].to_numpy() for t in (joined, both)]
    assert np.allclose(*sides)


def test_a_match_is_a_word_of_its_own():
    frame = made_up_results(seeds=5, rounds=3, noise=0.0005)
    level = frame["role"].map({"dense": 0.9, "ticket": 0.9002, "reinit": 0.88, "random mask": 0.8})
    wave = 0.0004 * np.sin(37.0 * frame["seed"] + 11.0 * frame["round"])
    close = frame.assign(value=level + wave)
    assert set(compare(close, "ticket", "dense")["match"]) == {"match"}
    assert short_table(close)["ticket − dense, points"].iloc[1].startswith("match (")
    assert (
        "= a match within 0.5 points" in text_table(close)
        and "shown to match dense at 3 of 3" in findings(close)[0]
    )
    assert set(compare(close, "ticket", "dense", margin=0.0001)["match"]) == {""}
    assert set(compare(close, "ticket", "dense", metric="loss")["match"]) == {""}


@pytest.mark.parametrize("noise, shown", [(0.0005, True), (0.05, False)])
def test_what_nothing_refutes_is_no_match(noise, shown):
    frame = made_up_results(seeds=5, rounds=4, noise=noise)
    level = frame["role"].map({"dense": 0.9, "ticket": 0.9, "reinit": 0.8, "random mask": 0.7})
    jitter = noise * np.sin(53.0 * frame["seed"] + 17.0 * frame["round"] + frame["role"].map(len))
    row = matches_down_to(frame.assign(value=level + jitter)).iloc[0]
    assert row["unrefuted"].endswith("the sparsest tried") and row["most_seeds"] == 5
    assert (row["text"].endswith("the sparsest tried"), row["shown"] > 0) == (shown, shown)


def test_who_failed_is_named_counted_and_said_to_be_no_accident():
    frame = made_up_results(seeds=4, rounds=2)
    gone = (frame["role"] == "reinit") & (frame["seed"] == 2) & (frame["round"] == 2)
    tags = frame.loc[gone, COLUMNS[:7]].drop_duplicates()
    lucky = frame[~gone].copy()
    lucky.attrs[FAILED] = Records(
        (*row, "the loss became nan: lower it") for row in tags.itertuples(index=False, name=None)
    )
    assert list(left_out(lucky)["why"]) == ["failed: the loss became nan"] and left_out(frame).empty
    assert left_out_lines(lucky)[-1] == NOT_AT_RANDOM
    told, table, page = " ".join(text_table(lucky).split()), short_table(lucky), report(lucky)
    assert (
        "Left out on made-up source: reinit (fresh), seed 2, at 42.3 %; failed: the loss became nan." in told
    )
    assert NOT_AT_RANDOM in told and NOT_AT_RANDOM in page and "(n = 3)" in table["reinit"].iloc[2]
    waits = frame[~(gone & (frame["split"] == "test"))]
    assert list(left_out(waits)["why"]) == ["it has not ended"] and NOT_AT_RANDOM not in left_out_lines(waits)


# before the run


@pytest.mark.parametrize("n", [3, 8])
def test_a_pilot_tells_the_spread(n):
    g = np.random.default_rng(0)
    keys = [
        ("a", "a", "dense", "fresh", 0, 1.0),
        *(("a", "a", "ticket", "rewind", r, 0.5**r) for r in range(1, 60)),
    ]
    rows = [(*k, s, 1, "test", "accuracy", 0.9 + 0.01 * g.standard_normal()) for k in keys for s in range(n)]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    assert 0.006 < spread_of(frame) < 0.024
    assert told_text(frame).startswith(f"With {n} seeds") and told_text(frame[frame["seed"] == 0]) == ""


@pytest.mark.parametrize(
    "text, comparisons",
    [("enough for 1 point at a spread of 0.6", 1), ("enough for .5 points at a spread of 1 points", 12)],
)
def test_as_many_seeds_as_it_takes(text, comparisons):
    wanted, spread = (float(w) / 100 for w in text.split() if w.strip(".").replace(".", "").isdigit())
    n = enough_seeds(text, comparisons, "FindPlan.seeds")
    assert power_of(wanted, spread, n, comparisons) >= 0.8 > power_of(wanted, spread, n - 1, comparisons)


@pytest.mark.parametrize(
    "text",
    [
        "enough",
        "enough for 1 point",
        "enough for 0 points at a spread of 1",
        "enough for 1 point at a spread of 0",
        "5 or so",
    ],
)
def test_what_says_no_number_of_seeds_is_refused(text):
    with pytest.raises(LotteryError, match="FindPlan.seeds"):
        enough_seeds(text, 1, "FindPlan.seeds")


def test_the_five_conditions_take_the_margin_of_the_plan():
    frame = made_up_results(seeds=5, rounds=2, noise=0.001)
    words = {
        m: set(conditions(frame, 0.5, m).query("condition == 'beats reinit'")["verdict"]) for m in (0.0, 0.5)
    }
    assert words[0.5] == {FAIL} and PASS not in words[0.0]  # one learning rate can lose it, not win it


@pytest.mark.parametrize("make", [FindPlan, partial(replace, FindPlan(rates=(0.3,)), floor=0.5)])
def test_a_plan_that_states_no_margin_is_the_plan_it_was(make):
    plan = make()
    assert "margin" not in canonical(plan) and plan.margin == 0.005
    other = replace(plan, margin=0.01)
    assert other.hash != plan.hash and from_plain(json.loads(canonical(other))) == other
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(LotteryError, match="FindPlan.margin"):
            replace(plan, margin=wrong)


def test_the_margin_of_a_plan_goes_with_its_results():
    frame = made_up_results(seeds=5, rounds=1, noise=0.001)
    wide, narrow = (SimpleNamespace(frame=frame.copy(), plan=SimpleNamespace(margin=m)) for m in (0.2, 1e-5))
    assert set(compare(wide, "ticket", "dense")["match"]) == {"match"}
    assert set(compare(narrow, "ticket", "dense")["match"]) == {""}
    assert margin_of([wide, narrow]) == 1e-5 and margin_of(frame) == 0.005
    assert matches_down_to(wide)["shown"].item() == 1 and findings(wide)[0].count("shown to match dense") == 1


@pytest.mark.parametrize("rates, extra", [((), 0), ((0.3,), 0), ((0.3, 0.03), 2), ((0.3, 0.03, 0.01), 3)])
def test_both_sides_of_a_comparison_get_the_same_grid(rates, extra):
    assert len(rates_of(rates, TICKET)) == extra and rates_of(rates, CONTROLS["reinit"]) == rates
    assert rates_of(rates, CONTROLS["shuffled"]) == ()
    plan = FindPlan("digits[0-4]@200", width=0.05, seeds=2, rates=rates, schedule=geometric(0.5, 3))
    own = 1 + len(rates) + 3 * (1 + extra)  # dense, and tickets of three rounds
    assert Search(plan).planned().arms == 2 * (own + 3 * (1 + len(rates)) + 3 + 3)


def test_the_panel_says_what_the_seeds_will_tell_by_the_run_that_is_selected():
    plan, frame = FindPlan(seeds=3), made_up_results(seeds=4, rounds=3)
    pilot = SimpleNamespace(plan=FindPlan(seeds=4), frame=frame)
    said = pilot_text(plan, pilot)
    assert (
        said.startswith(" By the selected run: With 3 seeds and a spread of")
        and "Enough for 1 point:" in said
    )
    enough = int(said.split("Enough for 1 point: ")[1].split()[0])
    assert enough == seeds_for(0.01, spread_of(frame), plan.schedule.rounds)
    other = SimpleNamespace(plan=FindPlan("digits[0-4]"), frame=frame)
    for nothing in (None, other, SimpleNamespace(plan=plan, frame=frame[frame["seed"] == 0])):
        assert pilot_text(plan, nothing) == ""
    assert FindPlan(seeds="enough for 3 points at a spread of 1", schedule=geometric(0.5, 1)).seeds == tuple(
        range(seeds_for(0.03, 0.01))
    )


@pytest.mark.parametrize(
    "mean, low, high, text",
    [
        (-0.0002, -0.0102, 0.0098, "0.0 ± 1.0 points"),
        (0.0041, 0.0001, 0.0081, "+0.41 ± 0.40 points"),
        (-0.0041, -0.0081, -0.0001, "−0.41 ± 0.40 points"),
        (0.0004, -0.0096, 0.0104, "0.0 ± 1.0 points"),
        (0.02, 0.01, 0.03, "+2.0 ± 1.0 points"),
    ],
)
def test_signs_and_digits_say_on_which_side_of_nothing_an_interval_ends(mean, low, high, text):
    assert str(Interval(mean, low, high, 5, unit="points")) == text
    assert "−0.0" not in str(Interval(mean, low, high, 5, unit="points"))


ord_of = dict(zip(("dense", "ticket", "reinit", "random mask"), range(4), strict=True)).get


def test_ties_are_ties_in_a_ranking_as_in_a_comparison():
    frame = made_up_results(seeds=4, rounds=1)
    level = frame["role"].map({"dense": 0.9, "ticket": 0.95, "reinit": 0.6, "random mask": 0.5})
    alike = frame.assign(value=level + 0.0001 * frame["seed"] ** 2)  # every seed differs by the same
    assert set(compare(alike, "ticket", "dense")["verdict"]) == {"not separable"}
    assert (
        set(ranking(alike)["rank"]) == {1} and ranking(alike)["note"].str.contains("alike in all seeds").all()
    )
    apart = alike.assign(value=alike["value"] + 1e-4 * frame["seed"] * frame["role"].map(ord_of))
    assert ranking(apart)["rank"].nunique() == 4


def test_a_file_says_how_many_and_who_failed():
    frame = made_up_results(seeds=3, rounds=1)
    gone = (frame["role"] == "reinit") & (frame["seed"] == 1)
    lucky = frame[~gone].copy()
    tags = frame.loc[gone, COLUMNS[:7]].drop_duplicates().itertuples(index=False, name=None)
    lucky.attrs[FAILED] = Records((*row, "it became nan") for row in tags)
    written = with_counts(lucky)
    assert list(written.loc[written["split"] == "failed", "note"]) == ["it became nan"]
    assert (
        set(written.loc[written["role"] == "reinit", "seeds"]) == {2} and written["value"].isna().sum() == 1
    )
    assert written.drop(columns=["seeds", "note"]).iloc[:-1].equals(lucky.reset_index(drop=True))
