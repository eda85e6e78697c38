"""What is no lesson of 12_many_runs and 12_follow: what a narrow card shows, what is kept between two looks, and what a run without results says."""

from pathlib import Path

import pytest

from lottery_nb.workbench import follow as workbench_follow
from lottery_nb.workbench import charts as workbench_charts
from lottery_nb.workbench import compare as workbench_compare
from lottery_nb.results import verdict as results_verdict
from lottery_nb.workbench.follow import Follower
from lottery_nb.pruning.schedules import geometric
from lottery_nb.runs.reading import Run
from lottery_nb.runs.writing import run
from lottery_nb.results.tables import short_table
from lottery_nb.plans.find import FindPlan
from lottery_nb.engine.recipes import Recipe
from lottery_nb.plans.transfer import TransferPlan
from made_up import made_up_results

FOUND = made_up_results(seeds=3, rounds=4)
MOVED = made_up_results(seeds=3, rounds=4, targets=("made-up target", "made-up shift"))
NAMES = ("find-a-1692e225", "transfer-a-9494a0a2")
PLAN = FindPlan(
    "digits[0-4]",
    schedule=geometric(0.5, 2),
    recipe=Recipe(lr=0.05, epochs=2, batch_size=32),
    seeds=2,
    controls=(),
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run(PLAN, tmp_path_factory.mktemp("runs") / "found", device="cpu", show=False)


def test_the_legend_names_each_run_and_each_role_once():
    fig = workbench_compare.compared(
        dict(zip(NAMES, (FOUND, MOVED), strict=True)), ("ticket", "dense", "reinit")
    )
    assert sorted(t.name for t in fig.data if t.showlegend is not False) == [
        "dense",
        "find-a",
        "reinit",
        "ticket",
        "transfer-a",
    ]
    assert fig.layout.yaxis.range[1] <= 100 and fig.layout.legend.font.size < 12
    one = workbench_compare.compared({NAMES[1]: MOVED})
    assert [t.name for t in one.data if t.showlegend] == ["transfer-a: dense", "transfer-a: ticket"]


def test_targets_have_dashes_and_dense_stands_once_for_each():
    fig = workbench_compare.compared({NAMES[1]: MOVED})
    tickets, dense = ([t for t in fig.data if t.name.endswith(role)] for role in ("ticket", "dense"))
    assert [t.line.dash for t in tickets] == ["solid", "solid", "dash", "dash"] and len(
        {(t.line.dash, t.marker.symbol) for t in tickets}
    ) == 4
    assert (
        len(dense) == 2
        and all("start: rewind" in t.hovertemplate for t in dense)
        and "dash for each target" in fig.layout.title.subtitle.text
    )


def test_short_names_stay_apart():
    assert list(workbench_compare.short_names(["x-00000001", "x-00000002", "y"]).values()) == [
        "x-00000001",
        "x-00000002",
        "y",
    ]
    assert list(workbench_compare.short_names(["x-1234abcd", "x"]).values()) == ["x-1234", "x"]


def test_a_second_look_reads_nothing_again(found, monkeypatch):
    first, fig = (
        workbench_compare.verdict_table(Run(found.path)),
        workbench_compare.overlap_figure([found.path]),
    )
    for name in ("conditions", "pairs_of"):
        monkeypatch.setattr(workbench_compare, name, lambda *_: pytest.fail("computed again"))
    assert (
        workbench_compare.verdict_table(Run(found.path)).equals(first)
        and workbench_compare.overlap_figure([found.path]) == fig
    )
    first.loc[:, "winning"] = "spoilt"
    assert "spoilt" not in set(workbench_compare.verdict_table(found)["winning"])


def test_results_of_a_run_are_read_once(found, monkeypatch):
    frame, table = workbench_compare.frame_of(found.path), workbench_compare.results_table(found.path, "loss")
    assert frame.equals(found.frame) and table.equals(short_table(frame, metric="loss"))
    for name in ("Run", "short_table"):
        monkeypatch.setattr(workbench_compare, name, lambda *_, **__: pytest.fail("read again"))
    frame.loc[:, "value"] = -1.0
    assert (workbench_compare.frame_of(found.path)["value"] >= 0).all() and workbench_compare.results_table(
        found.path, "loss"
    ).equals(table)


def test_a_longer_log_is_read_anew(found, monkeypatch):
    workbench_compare.verdict_table(found)
    monkeypatch.setattr(workbench_compare, "conditions", lambda _: results_verdict.conditions(FOUND))
    log = Path(found.path, "events.jsonl")
    old = log.read_bytes()
    log.write_bytes(old + old.splitlines(keepends=True)[-1])
    try:
        assert len(workbench_compare.verdict_table(found)) == 4
    finally:
        log.write_bytes(old)


@pytest.mark.parametrize("draw", ["live_accuracy", "live_training", "live_layers"])
def test_a_run_whose_networks_all_diverged_waits_for_nothing(tmp_path, draw):
    lost = Follower(
        run(
            FindPlan(
                "digits[0-4]",
                schedule=geometric(0.5, 1),
                recipe=Recipe(lr=1e30, epochs=2),
                seeds=2,
                controls=(),
            ),
            tmp_path / "lost",
            device="cpu",
            show=False,
        ).path
    )
    lost.read()
    fig = getattr(workbench_charts, draw)(lost)
    said = fig.layout.annotations[0].text.replace("<br>", " ")
    assert (
        not fig.data
        and "2 networks ended early" in said
        and "wait" not in said
        and "now" not in fig.layout.title.text
    )


@pytest.mark.parametrize(
    "status, says",
    [
        ("failed", "the run failed before the first ticket"),
        ("stopped", "the run was stopped before the first ticket"),
        ("running", None),
        ("paused", None),
    ],
)
def test_each_end_has_its_words(found, monkeypatch, status, says):
    monkeypatch.setattr(workbench_follow.Follower, "status", status)
    fig = workbench_charts.live_layers(Follower(found.path))
    assert (says or "waits for the first ticket") in fig.layout.annotations[0].text.replace("<br>", " ")


def test_what_ran_last_is_not_what_runs_now(found, monkeypatch):
    f = Follower(found.path)
    f.read()
    assert (
        "ran last" in workbench_charts.live_training(f).layout.title.text
        and "dots" not in workbench_charts.live_accuracy(f).layout.title.subtitle.text
    )
    next(iter(f.curves.values())).over = False
    monkeypatch.setattr(workbench_follow.Follower, "status", "running")
    assert (
        "runs now" in workbench_charts.live_training(f).layout.title.text
        and "dots: epochs of what trains now" in workbench_charts.live_accuracy(f).layout.title.subtitle.text
    )


def test_a_mask_has_the_unit_of_its_colours(found):
    mask = workbench_charts.mask_of(found.path, found.tickets[-1].name)
    assert workbench_charts.mask_figure(mask, (1, 8, 8), "x").data[0].colorbar.title.text == "kept<br>(count)"


def test_fresh_weights_have_a_name_in_watch(found, tmp_path):
    moved = Follower(
        run(
            TransferPlan(found.tickets, "digits[5-9]", start=("rewind", "fresh"), controls=()),
            tmp_path / "moved",
            device="cpu",
            show=False,
        ).path
    )
    moved.read()
    assert (
        "fresh weights (reinit)" in {t.name for t in workbench_charts.live_targets(moved).data}
        and "fresh weights (reinit)" in workbench_charts.live_matrix(moved).data[0].y
    )


def test_a_target_where_only_dense_is_done_has_no_matrix_yet(found, monkeypatch):
    f = Follower(found.path)
    dense, first = MOVED["role"] == "dense", MOVED["domain"] == "made-up target"
    monkeypatch.setattr(workbench_follow.Follower, "status", "running")
    monkeypatch.setattr(workbench_follow.Follower, "frame", MOVED[dense])
    assert "waits for the first ticket" in workbench_charts.live_matrix(f).layout.annotations[0].text.replace(
        "<br>", " "
    )
    monkeypatch.setattr(workbench_follow.Follower, "frame", MOVED[dense | first])
    assert len(workbench_charts.live_matrix(f).data) == 1
    monkeypatch.setattr(workbench_follow.Follower, "frame", MOVED)
    assert len(workbench_charts.live_matrix(f).data) == 2
