import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from lottery_nb.core import LotteryError
from lottery_nb.results.stats import (
    ARM,
    compare,
    Interval,
    interval,
    kept_rows,
    METHODS,
    paired,
    ranking,
    summary,
    tied,
    verdict,
)
from lottery_nb.results.tables import columns_text, short_table, text_table
from made_up import made_up_results

values = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(values, st.sampled_from([0.8, 0.95, 0.99]))
def test_t_interval_is_scipys(v, confidence):
    found = interval(v, confidence)
    if np.ptp(v) < 1e-9:
        assert found.tied and np.isnan(found.low) and np.isnan(found.high) and found.mean == np.mean(v)
        return
    low, high = scipy_stats.ttest_1samp(v, 0).confidence_interval(confidence)
    assert np.allclose([found.low, found.high], [low, high], rtol=1e-6, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=10, max_size=14), st.integers(0, 5))
def test_bootstrap_lies_within_the_values_and_repeats(v, seed):
    one, two = (interval(v, method="bootstrap", seed=seed) for _ in range(2))
    assert one == two
    assert one.tied or min(v) - 1e-9 <= one.low <= one.high <= max(v) + 1e-9


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.integers(0, 50), st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8),
    st.randoms(),
)
def test_pairing_goes_by_seed_whatever_the_order(pairs, random):
    a, b = {k: v[0] for k, v in pairs.items()}, {k: v[1] for k, v in pairs.items()}
    shuffled = list(b.items())
    random.shuffle(shuffled)
    one, two = paired(a, b), paired(a, dict(shuffled))
    assert (
        np.isclose(one.mean, np.mean([a[k] - b[k] for k in a]))
        and np.isclose(one.low, two.low, equal_nan=True)
        and np.isclose(one.mean, -paired(b, a).mean)
    )


def test_pairing_by_position_would_be_noticed():
    a, b = pd.Series([0.5, 0.7, 0.9], [0, 1, 2]), pd.Series([0.88, 0.68, 0.48], [2, 1, 0])
    assert verdict(paired(a, b)) == "not separable" and paired(a, b).tied
    assert np.allclose(paired(a, b).mean, 0.02)


@pytest.mark.parametrize(
    "bad, says", [([], "no values"), ([0.5, np.nan], "over nan"), ([np.inf, 0.5], "over inf")]
)
def test_interval_refuses(bad, says):
    with pytest.raises(LotteryError, match=says):
        interval(bad)


def test_interval_refuses_unknown_method_and_confidence():
    with pytest.raises(LotteryError, match="did you mean 'bootstrap'"):
        interval([0.1, 0.2], method="bootstrp")
    for confidence in (0, 1.5, float("nan")):
        with pytest.raises(LotteryError, match="confidence"):
            interval([0.1, 0.2], confidence)


def test_own_method_is_used():
    METHODS["range"] = lambda v, confidence, seed: (v.min(), v.max())
    try:
        found = interval([0.1, 0.2, 0.6], method="range")
        assert (found.low, found.high) == (0.1, 0.6) and str(found) == "30.0 % (10.0 to 60.0)"
    finally:
        del METHODS["range"]


@pytest.mark.parametrize(
    "found, text",
    [
        (Interval(0.894, 0.891, 0.897, 5), "89.4 % ± 0.3"),
        (Interval(0.894, 0.8938, 0.8942, 5), "89.40 % ± 0.02"),
        (Interval(0.882, np.nan, np.nan, 1), "88.2 % (single run)"),
        (Interval(-0.009, -0.013, -0.005, 5, unit="points"), "−0.9 ± 0.4 points"),
        (Interval(0.009, np.nan, np.nan, 1, unit="points"), "+0.9 points (single run)"),
        (Interval(0.894, 0.890, 0.896, 5, "bootstrap"), "89.4 % (89.0 to 89.6)"),
        (Interval(0.3512, 0.3412, 0.3612, 3, unit=""), "0.351 ± 0.010"),
        (Interval(0.5, 0.5, 0.5, 3), "50.0 % (3 seeds tie)"),
        (Interval(-0.01, np.nan, np.nan, 4, unit="points"), "−1.0 points (4 seeds tie)"),
    ],
)
def test_texts(found, text):
    assert str(found) == text


@pytest.mark.parametrize(
    "low, high, n, word",
    [
        (0.001, 0.01, 3, "above"),
        (-0.01, -0.001, 3, "below"),
        (-0.01, 0.01, 3, "not separable"),
        (0, 0.01, 3, "not separable"),
        (0.01, 0.01, 3, "not separable"),
        (np.nan, np.nan, 1, "single run"),
    ],
)
def test_verdicts(low, high, n, word):
    assert verdict(Interval((low + high) / 2, low, high, n, unit="points")) == word


def test_a_seed_that_stands_twice_or_is_nan_is_refused():
    frame = made_up_results(seeds=2, rounds=1)
    with pytest.raises(LotteryError, match="is there twice"):
        summary([frame, frame])
    frame.loc[(frame["split"] == "test") & (frame["seed"] == 1) & (frame["role"] == "reinit"), "value"] = (
        np.nan
    )
    with pytest.raises(LotteryError, match="test accuracy of reinit on made-up source with seed 1 is nan"):
        summary(frame)
    with pytest.raises(LotteryError, match="one side|twice"):
        paired(pd.Series([0.1, 0.2], [0, 0]), pd.Series([0.1], [0]))


def test_kept_epoch_is_that_of_the_test_row():
    frame = made_up_results(seeds=1, rounds=1)
    early = frame[(frame["split"] != "test") | (frame["role"] != "ticket")]
    extra = frame[
        (frame["split"] == "validation") & (frame["role"] == "ticket") & (frame["epoch"] == 2)
    ].assign(split="test")
    rows = kept_rows(pd.concat([early, extra]), "validation").set_index("role")
    assert rows.loc["ticket", "epoch"] == 2 and rows.loc["dense", "epoch"] == 5
    assert kept_rows(early, "validation").set_index("role").loc["ticket", "epoch"] == 5
    assert (kept_rows(frame, "validation").groupby(ARM).size() == 1).all()


def test_dense_partner_is_that_of_the_same_start_and_seed():
    frame = made_up_results(seeds=3, rounds=2, targets=("made-up target",))
    rows = compare(frame, "ticket", "dense")
    assert (rows["start"] == rows["against_start"]).all() and set(rows["start"]) == {
        "rewind",
        "source-trained",
    }
    value = kept_rows(frame).set_index(["role", "start", "density", "seed"])["value"]
    expected = np.mean(
        [
            value["ticket", "source-trained", 0.65, s] - value["dense", "source-trained", 1.0, s]
            for s in range(3)
        ]
    )
    assert np.isclose(
        rows.loc[(rows["start"] == "source-trained") & (rows["density"] == 0.65), "mean"].item(), expected
    )
    assert set(compare(frame, "ticket", "reinit")["against_start"]) == {"fresh"}


def test_a_failed_partner_is_left_out_and_named():
    frame = made_up_results(seeds=3, rounds=1)
    rows = compare(frame[~((frame["role"] == "reinit") & (frame["seed"] == 2))])
    assert rows["n"].item() == 2 and rows["left_out"].item() == (2,)
    apart = (frame["role"] == "reinit") & (frame["seed"] != 2) | (frame["role"] == "ticket") & (frame["seed"] == 2)
    lost = compare(frame[~apart]).iloc[0]
    assert (lost["n"], lost["verdict"], lost["left_out"]) == (0, "no yardstick", (0, 1))
    assert lost["text"] == "reinit (fresh) has other seeds only: 2"


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.3)), min_size=1, max_size=8))
def test_overlapping_arms_share_a_rank(pairs):
    pairs = sorted(pairs, reverse=True)
    low, high = np.array([m - h for m, h in pairs]), np.array([m + h for m, h in pairs])
    ranks = tied(low, high)
    for i in range(len(pairs)):
        for j in range(i):
            if low[j] <= high[i]:
                assert ranks[i] == ranks[j]
    assert ranks[0] == 1 and all(
        r == s or r == i + 1 for i, (r, s) in enumerate(zip(ranks[1:], ranks, strict=False), 1)
    )


def test_ranking_refuses_single_runs_and_turns_round_for_loss():
    frame = made_up_results(seeds=3, rounds=8)
    assert ranking(frame[frame["seed"] == 0])["note"].eq("not ranked: single run").all()
    worst = {
        metric: ranking(frame, 0.65**8, metric=metric)["role"].iloc[-1] for metric in ("accuracy", "loss")
    }
    assert worst == {"accuracy": "random mask", "loss": "random mask"}


def test_short_table_has_every_number_once():
    frame = made_up_results(seeds=3, rounds=2)
    table = short_table(frame)
    cells = table[["dense", "ticket", "reinit", "random mask"]].to_numpy().ravel()
    assert sorted(c for c in cells if c) == sorted(summary(frame)["text"])
    assert list(table["density"]) == ["100 %", "65 %", "42.3 %"]
    assert short_table(frame, metric="loss").columns[4] == "ticket − dense"


def test_short_table_of_one_seed_says_so():
    table = short_table(made_up_results(seeds=1, rounds=1))
    assert table["ticket"][1].endswith("(single run)") and table["ticket − dense, points"][1].startswith(
        "single run ("
    )


def test_starts_stand_together_and_every_number_stands_once():
    frame = made_up_results(seeds=3, rounds=2, targets=("made-up target", "made-up shift"))
    table = short_table(frame)
    assert list(table.columns[:3]) == ["domain", "density", "start"]
    one = table[table["domain"] == "made-up target"]
    assert (
        list(one["start"]) == ["rewind", "source-trained"] + ["rewind", "source-trained", "fresh"] * 2
        and list(one["density"]) == ["100 %"] * 2 + ["65 %"] * 3 + ["42.3 %"] * 3
    )
    cells = table[["dense", "ticket", "reinit", "random mask"]].to_numpy().ravel()
    assert sorted(c for c in cells if c) == sorted(summary(frame)["text"])
    assert (table.loc[table["start"] == "fresh", "ticket"] == "").all() and (
        table.loc[table["start"] != "fresh", "reinit"] == ""
    ).all()


def test_start_stands_only_where_a_domain_has_several():
    frame = pd.concat(
        [made_up_results(seeds=2, rounds=1), made_up_results(seeds=2, rounds=1, targets=("made-up target",))]
    )
    starts = short_table(frame).groupby("domain", sort=False)["start"].agg(set).to_dict()
    assert starts == {"made-up source": {""}, "made-up target": {"rewind", "source-trained", "fresh"}}


@pytest.mark.parametrize("width", [60, 100])
def test_terminal_table_fits_and_loses_nothing(width):
    frame = made_up_results(seeds=3, rounds=3, targets=("made-up target", "made-up shift"))
    more = [
        frame[frame["role"] == "random mask"].assign(role=role)
        for role in ("shuffled", "reinit signs kept", "small dense")
    ]
    frame = pd.concat([frame, *more])
    told = text_table(frame, width=width)
    blocks = told.split("made-up source → ")[1:]
    assert max(len(line) for block in blocks for line in block.splitlines()[2:-2]) <= width and [
        b.split("\n")[0] for b in blocks
    ] == ["made-up target", "made-up shift"]
    for row in summary(frame[frame["domain"] == "made-up shift"]).itertuples():
        assert row.text.replace(" %", "") in blocks[1]
    assert all(block.count("dense: ") == 1 for block in blocks)
    assert "over 3 seeds" in told


def test_terminal_table_stars_what_differs():
    frame, star = (
        made_up_results(),
        compare(made_up_results(), "ticket", "dense")["verdict"].isin(["above", "below"]),
    )
    assert star.any() and not star.all()
    assert text_table(frame).split("test accuracy in %")[0].count(
        " *"
    ) == star.sum() and "* above or below" in text_table(frame)
    noisy = text_table(made_up_results(noise=0.3))
    assert " *" not in noisy and "none is above or below" in noisy
    loss = text_table(frame, metric="loss")
    assert "test loss, mean" in loss and "%" not in loss.split("density")[0]


def test_terminal_table_of_one_seed_and_without_dense():
    told = text_table(made_up_results(seeds=1, rounds=1))
    assert told.endswith("single run, no interval") and "±" not in told and told.count("single run") == 1
    frame = made_up_results(seeds=2, rounds=1)
    mixed = text_table(frame[(frame["role"] != "reinit") | (frame["seed"] == 0)])
    assert mixed.count("(single run)") == 1 and "over 1 to 2 seeds" in mixed
    assert "dense" not in text_table(frame[frame["role"] != "dense"])


def test_columns_that_do_not_fit_follow_below():
    table = pd.DataFrame({"key": ["a", "a", "b"], "one": ["1", "", "3"], "two": ["x" * 10] * 3})
    assert (
        columns_text(table, 1, 12)
        == f"key  one\na    1\nb    3\n\nkey  two\na    {'x' * 10}\n     {'x' * 10}\nb    {'x' * 10}"
    )


def test_missing_column_and_wrong_thing():
    with pytest.raises(LotteryError, match="lacks the column 'density'"):
        summary(made_up_results(seeds=1, rounds=1).drop(columns="density"))
    with pytest.raises(LotteryError, match="int holds no results"):
        summary(3)
    with pytest.raises(LotteryError, match="no rows"):
        summary(made_up_results(seeds=1, rounds=1).iloc[:0])
