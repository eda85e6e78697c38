from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lottery_nb.core import LotteryError
from lottery_nb.results.verdict import undertrained
from lottery_nb.results.style import broken, curves, density_axis, SUBTITLE_WIDTH, styled, UNWANTED, view_of
from lottery_nb.results.plots import (
    accuracy_plot,
    layer_density_plot,
    training_plot,
    transfer_cells,
    transfer_curves,
    transfer_plot,
)
from lottery_nb.rewinding.controls import roles
from lottery_nb.results.stats import summary, widened
from made_up import made_up_results

FOUND = made_up_results(seeds=3, rounds=4)
MOVED = made_up_results(seeds=3, rounds=3, targets=("made-up target", "made-up shift"))
LAYERS = pd.DataFrame(
    [
        dict(
            seed=s, round=r, density=0.5**r, layer=n, kept=round(100 * 0.5**r), size=100, layer_density=0.5**r
        )
        for s in range(2)
        for r in range(3)
        for n in ("b.weight", "a.weight")
    ]
)


def drawn(fig):
    return {t.name: t for t in fig.data if t.name}


def test_curves_show_the_means_in_per_cent():
    rows = summary(FOUND, ("role", "density"))
    traces = drawn(accuracy_plot(FOUND))
    for role in ("ticket", "reinit", "random mask"):
        expected = rows[rows["role"] == role]
        assert np.allclose(
            traces[role].x, expected["density"], rtol=0 if role == "ticket" else 0.1, atol=1e-9
        ) and np.allclose(traces[role].y, 100 * expected["mean"])
    assert len(set(traces["dense"].y)) == 1 and np.isclose(
        traces["dense"].y[0], 100 * rows.loc[rows["role"] == "dense", "mean"].item()
    )


def test_bands_are_the_intervals():
    rows = summary(FOUND, ("role", "density")).query("role == 'ticket'")
    bands = [t for t in accuracy_plot(FOUND).data if t.fill and t.legendgroup == "ticket"]
    whole = widened(rows)  # a band is that of a whole curve
    assert len(bands) == 1 and np.allclose(bands[0].y, 100 * np.r_[whole["low"], whole["high"][::-1]])
    assert (whole["low"] < rows["low"]).all() and "whole curve" in accuracy_plot(
        FOUND
    ).layout.title.subtitle.text
    rows, bars = (
        summary(FOUND, ("role", "density")).query("role == 'reinit'"),
        drawn(accuracy_plot(FOUND))["reinit"],
    )
    assert np.allclose(bars.y + bars.error_y.array, 100 * rows["high"]) and np.allclose(
        bars.y - bars.error_y.arrayminus, 100 * rows["low"]
    )


def crowded():
    """All controls at the same densities."""
    return pd.concat(
        [
            FOUND,
            *(
                FOUND[FOUND["role"] == "reinit"].assign(role=role)
                for role in ("reinit signs kept", "shuffled", "small dense")
            ),
        ]
    )


def test_bars_stand_side_by_side_inside_the_axis():
    rows = summary(crowded(), ("role", "start", "density"))
    traces = [t for t in curves(rows, "accuracy") if t.name and t.name != "dense"]
    assert (
        len(traces) == 6
        and [t.name for t in traces if t.error_y.array is None] == ["ticket"]
        and traces[-1].name == "ticket"
    )
    places = np.log10(np.sort(np.array([t.x for t in traces]), axis=0))
    left, right = density_axis(rows["density"])["range"]
    assert np.diff(places, axis=0).min() > 0.005 and places.min() > right and places.max() < left
    assert places[:, 0].min() > places[:, 1].max()


def test_dense_runs_along_the_whole_axis():
    fig = accuracy_plot(FOUND)
    bands = [t for t in fig.data if t.fill]
    assert {t.legendgroup for t in bands} == {"dense", "ticket"}
    for trace in (drawn(fig)["dense"], next(t for t in bands if t.legendgroup == "dense")):
        assert np.allclose([max(trace.x), min(trace.x)], [10**e for e in fig.layout.xaxis.range])


def rows_with(low, high, mean=(0.97, 0.96, 0.95)):
    return pd.DataFrame(dict(mean=mean, low=low, high=high, n=3))


@pytest.mark.parametrize(
    "rows, beyond",
    [
        (rows_with((0.96, 0.95, 0.94), (0.98, 0.97, 0.96)), False),
        (rows_with((0.96, 0.95, 0.10), (0.98, 0.97, 1.80)), True),
        (rows_with((0.96, 0.95, 0.94), (1.01, 0.97, 0.96)), True),
    ],
)
def test_view_holds_the_means_and_no_room_above_100(rows, beyond):
    (low, high), said = view_of(rows, "accuracy")
    assert 85 < low < 95 and 97 < high <= 100 and ("go on beyond" in said) is beyond
    assert beyond or (low <= 94 and high >= 98)


def test_view_without_intervals_and_of_losses():
    (low, high), said = view_of(pd.DataFrame(dict(mean=[1.0, 1.0], low=np.nan, high=np.nan, n=1)), "accuracy")
    assert low < 100 and high == 100 and not said
    (low, high), _ = view_of(rows_with((-0.5, 1.9, 0.4), (0.7, 2.1, 0.6), (0.1, 2.0, 0.5)), "loss")
    assert low == 0 and 2 < high < 4


def test_subtitle_says_what_runs_out_of_the_picture():
    wild = FOUND.copy()
    at = (wild["role"] == "reinit") & (wild["round"] == 2) & (wild["seed"] == 0)
    wild.loc[at, "value"] = 0.2
    shown = accuracy_plot(wild)
    assert (
        "go on beyond it" in shown.layout.title.subtitle.text
        and "go on" not in accuracy_plot(made_up_results(rounds=4, noise=1e-4)).layout.title.subtitle.text
    )
    assert shown.layout.yaxis.range[0] > 30 and shown.layout.yaxis.range[1] <= 100


def test_each_start_has_its_panel():
    fig = transfer_curves(MOVED)
    assert [a.text for a in fig.layout.annotations] == [
        f"<b>made-up {d}</b><br>start: {s}" for d in ("target", "shift") for s in ("rewind", "source-trained")
    ]
    tickets = [t for t in fig.data if t.name == "ticket"]
    rows = summary(MOVED[MOVED["domain"] == "made-up target"], ("role", "start", "density")).query(
        "role == 'ticket'"
    )
    for trace, start in zip(tickets[:2], ("rewind", "source-trained"), strict=True):
        assert np.allclose(trace.y, 100 * rows.loc[rows["start"] == start, "mean"])
    assert (
        len([t for t in fig.data if t.name == "fresh weights (reinit)"]) == 4
        and len([t for t in fig.data if t.showlegend]) == 4
    )


def test_single_runs_have_no_band_and_say_so():
    fig = accuracy_plot(FOUND[FOUND["seed"] == 0])
    assert not any(t.fill or t.error_y.array is not None for t in fig.data) and all(
        t.name.endswith("(single run)") for t in fig.data
    )
    assert "single run" in fig.layout.title.subtitle.text


def test_each_role_has_its_colour_and_marker():
    looks = roles().values()
    assert len({r.colour for r in looks}) == len({r.marker for r in looks}) == len(looks) == 10


@pytest.mark.parametrize("floor, shown", [(None, True), (0.0, True), (0.5, True), (0.95, False)])
def test_floor(floor, shown):
    assert bool(accuracy_plot(FOUND, floor=floor).data) is shown
    run = SimpleNamespace(frame=FOUND, plan=SimpleNamespace(floor=floor))
    assert bool(accuracy_plot(run).data) is shown


def test_floor_reads_validation_and_not_test():
    frame = FOUND.copy()
    frame.loc[(frame["split"] == "test"), "value"] = 0.99
    assert "undertrained" in undertrained(frame, 0.95, "made-up source")
    assert "cannot be checked" in undertrained(frame[frame["role"] != "dense"], 0.5, "made-up source")


def test_floor_of_a_target_hides_that_target_only():
    matrix, curves = transfer_plot(MOVED, floor=0.86), transfer_curves(MOVED, floor=0.86)
    assert (
        len(matrix.data) == 1
        and "made-up shift is not shown, undertrained" in matrix.layout.title.subtitle.text
    )
    assert "made-up shift is not shown" in curves.layout.title.subtitle.text and not any(
        "shift" in a.text for a in curves.layout.annotations
    )
    assert not transfer_plot(MOVED, floor=0.99).data and not transfer_curves(MOVED, floor=0.99).data


def test_domain_must_be_said_where_there_are_several():
    with pytest.raises(LotteryError, match="say domain="):
        accuracy_plot(MOVED)
    assert "made-up shift" in accuracy_plot(MOVED, domain="made-up shift").layout.title.text
    with pytest.raises(LotteryError, match="did you mean 'made-up shift'"):
        accuracy_plot(MOVED, domain="made-up shft")
    assert "made-up source" in accuracy_plot([FOUND, MOVED]).layout.title.text


def test_cells_are_coloured_only_where_separable():
    cells = transfer_cells(MOVED[MOVED["domain"] == "made-up target"], "accuracy", 0.95)
    apart = cells["verdict"].isin(["above", "below"])
    assert (cells.loc[~apart, "z"] == 0).all() and apart.any()
    assert np.allclose(cells.loc[apart, "z"], 100 * cells.loc[apart, "mean_gain"])
    single = transfer_cells(
        MOVED[(MOVED["domain"] == "made-up target") & (MOVED["seed"] == 0)], "accuracy", 0.95
    )
    assert (single["z"] == 0).all()


def test_transfer_works_without_dense():
    frame = MOVED[MOVED["role"] != "dense"]
    fig = transfer_plot(frame)
    assert (np.asarray(fig.data[0].z) == 0).all() and "dense" not in fig.data[0].x


def test_layers_keep_the_network_order_and_the_mean_over_seeds():
    heat = layer_density_plot(LAYERS).data[0]
    assert [y.split()[0] for y in heat.y] == ["b", "a"] and np.allclose(heat.z[0], np.log10([1, 0.5, 0.25]))
    empty = LAYERS.assign(layer_density=LAYERS["layer_density"].where(LAYERS["layer"] == "b.weight", 0.0))
    heat = layer_density_plot(empty).data[0]
    assert np.isfinite(heat.z).all() and heat.text[1][0] == "0" and heat.customdata[1][0] == "0 %"


@pytest.mark.parametrize(
    "bad, says",
    [
        (LAYERS.drop(columns="size"), "lacks the column 'size'"),
        (LAYERS.iloc[:0], "no rows"),
        (SimpleNamespace(layers=None), "holds no layers"),
    ],
)
def test_layers_refused(bad, says):
    with pytest.raises(LotteryError, match=says):
        layer_density_plot(bad)


def test_training_curves():
    fig = training_plot(FOUND, "reinit", "train")
    assert len(drawn(fig)) == 5 and all(list(t.x) == [1, 2, 3, 4, 5] for t in drawn(fig).values())
    with pytest.raises(LotteryError, match="split='test'"):
        training_plot(FOUND, split="test")


@pytest.mark.parametrize(
    "fig",
    [
        accuracy_plot(FOUND),
        transfer_plot(MOVED),
        transfer_curves(MOVED),
        training_plot(FOUND),
        layer_density_plot(LAYERS),
    ],
)
def test_no_figure_offers_an_upload(fig):
    assert "sendChartToCloud" in UNWANTED and set(UNWANTED) <= set(fig.layout.modebar.remove)
    assert fig.layout.title.text and fig.layout.title.subtitle.text


def test_a_name_with_markup_stays_text():
    frame = FOUND.replace({"made-up source": "<a href='x'>"})
    assert "&lt;a href" in accuracy_plot(frame).layout.title.text
    assert "<a" not in transfer_plot(frame).to_json() and "<a" not in training_plot(frame).to_json()


def test_metrics_and_own_roles_are_drawn():
    frame = FOUND.replace({"random mask": "my control"})
    assert (
        "my control" in drawn(accuracy_plot(frame))
        and "nats" in accuracy_plot(frame, metric="loss").layout.yaxis.title.text
    )
    assert transfer_plot(MOVED, metric="loss").data and transfer_curves(MOVED, metric="loss").data


@pytest.mark.parametrize("low", [0.9, 0.8, 0.64, 0.41, 0.2, 0.034, 0.0012])
def test_density_axis_has_ticks_to_read_by(low):
    ticks = density_axis(pd.Series([1.0, low]))["tickvals"]
    assert len(ticks) >= 3 and min(ticks) >= low * 0.95 and len(ticks) < 12 and np.isclose(max(ticks), 1)


def test_a_long_subtitle_has_lines_and_room():
    said = (
        "test accuracy, mean and 95 % interval over 3 seeds; "
        "intervals at the edge go on beyond it; dots: epochs of what trains now"
    )
    assert (
        all(len(line) <= SUBTITLE_WIDTH for line in broken(said).split("<br>"))
        and broken(said).replace("<br>", "; ") == said
    )
    plain, long = (accuracy_plot(FOUND), broken(said).count("<br>"))
    assert (
        long == 1
        and broken("one; two") == "one; two"
        and styled(plain, "title", said).layout.margin.t == 84 + 16
    )


def test_fresh_weights_are_told_in_a_transfer_and_only_there():
    assert "reinit" in drawn(accuracy_plot(FOUND))
    assert (
        "fresh weights (reinit)" in transfer_plot(MOVED).data[0].y
        and "reinit" not in transfer_plot(MOVED).data[0].y
    )
    one = transfer_curves(MOVED[MOVED["seed"] == 0])
    assert "fresh weights (reinit) (single run)" in drawn(one)
