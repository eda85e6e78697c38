"""The panel without a browser: clicks, and what follows from them. Nothing moves but by `tick`, so every step is seen."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from lottery_nb.workbench import follow as workbench_follow
from lottery_nb.workbench import charts as workbench_charts
from lottery_nb.workbench import forms as workbench_forms
from lottery_nb.workbench import cell as workbench_cell
from lottery_nb.workbench import live as workbench_live
from lottery_nb.workbench import compare as workbench_compare
from lottery_nb.workbench import workbench as workbench_workbench
from lottery_nb.workbench import find as workbench_find
from lottery_nb.core import LotteryError
from lottery_nb.data.domains import domain
from lottery_nb.events import EpochDone, RunFailed, RunStarted
from lottery_nb.pruning.schedules import geometric
from lottery_nb.runs.log import Log
from lottery_nb.runs.reading import Run
from lottery_nb.runs.writing import run
from lottery_nb.plans.find import FindPlan
from lottery_nb.engine.recipes import Recipe
from lottery_nb.runs.workers import stop

SMALL = FindPlan(
    "digits[0-4]",
    schedule=geometric(0.5, 2),
    recipe=Recipe(lr=0.05, epochs=2, batch_size=32),
    seeds=2,
    controls=("reinit",),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with one finished run."""
    home = tmp_path_factory.mktemp("runs")
    run(SMALL, home / "find-small", device="cpu", show=False)
    return home


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    monkeypatch.setattr(workbench_workbench, "PUMPING", False)


def turn_until(bench, what, timeout=90.0):
    """Tick until something is so."""
    deadline = time.monotonic() + timeout
    while not (found := what()):
        bench.tick()
        assert time.monotonic() < deadline, (bench.trouble.value, bench.bar.status.value, bench.jobs.going)
        time.sleep(0.02)
    return found


def settle(bench):
    """Tick until no job is left (but the ones that come back every two seconds)."""
    bench.tick()
    turn_until(bench, lambda: not set(bench.jobs.going) - {"runs", "use"})
    bench.tick()


def form_of(bench, **values):
    bench.tabs["find"].form.hold(values)
    settle(bench)
    return bench.tabs["find"]


# ---- the form


def test_a_fresh_workbench_can_start_what_its_form_says(tmp_path):
    bench = workbench_workbench.Workbench(home=tmp_path)
    tab = form_of(bench)
    assert not tab.go.disabled and bench.bar.place.value == "find"
    assert {"schedule", "classes", "network"} <= bench.live.sent.keys()
    assert "data:image/png" in tab.wide.value and "50,610 parameters" in tab.form.fields["network"].line.value


@pytest.mark.parametrize(
    "field, changes",
    [
        ("lr", {"lr": 0.0}),
        ("part", {"part": "[0-99]"}),
        ("part", {"part": "+blurr"}),
        ("part", {"part": "@5"}),
        ("rewind_at", {"rewind": "step", "rewind_at": 10**6}),
        ("densities", {"kind": "listed", "densities": "0.1, 0.5"}),
        ("layer_fractions", {"kind": "cubic", "layer_fractions": "head=0.1"}),
        ("steps", {"steps": "many"}),
        ("prunable", {"prunable": "fc9.weight"}),
        ("drops", {"drops": "0.5, 0.1"}),
        ("seeds", {"seeds": "1, 1"}),
        ("rates", {"rates": "0.1"}),
        ("retrain", {"retrain": "fine-tuning"}),
        ("batch_size", {"batch_size": 0}),
        ("warmup", {"warmup": 2.0}),
        ("densities", {"kind": "listed", "densities": "0.5,abc"}),
        ("densities", {"kind": "listed", "densities": ""}),
        ("part", {"part": "abc"}),
        ("epochs", {"epochs": 1.5}),
        ("epochs", {"epochs": 10**12}),
        ("rewind_at", {"rewind": "epoch", "rewind_at": 1.5}),
        ("patience", {"patience": -1}),
        ("width", {"width": 1e9}),
        ("width", {"width": 1e30}),
    ],
)
def test_a_bad_form_cannot_be_started(tmp_path, field, changes):
    bench = workbench_workbench.Workbench(home=tmp_path)
    tab = form_of(bench, **changes)
    refused = {name for name, f in tab.form.fields.items() if f.why}
    assert refused == {field} and tab.go.disabled
    assert 'role="alert"' in tab.form.fields[field].line.value and "Not yet" in tab.why.value
    assert (
        not re.search(r">(FindPlan|Recipe|Network)\.", tab.form.fields[field].line.value)
        and bench.trouble.value == ""
    )
    tab.go.click()
    settle(bench)
    assert list(tmp_path.iterdir()) == []


def test_a_reason_in_a_folded_section_is_seen(tmp_path):
    bench = workbench_workbench.Workbench(home=tmp_path)
    folds = bench.tabs["find"].form.folds
    assert not any(fold.head.value for fold in folds.values())
    form_of(bench, patience=-1)
    assert [title for title, fold in folds.items() if fold.head.value] == ["More about training"] and folds[
        "More about training"
    ].inside.layout.display is None


def test_what_was_typed_as_a_whole_number_is_one(tmp_path):
    bench = workbench_workbench.Workbench(home=tmp_path)
    values = form_of(bench, epochs=7, batch_size=16).form.values
    assert (values["epochs"], values["batch_size"]) == (7, 16) and all(
        type(values[n]) is int for n in ("epochs", "batch_size", "rewind_at")
    )
    assert form_of(bench, epochs=1.5).form.fields["epochs"].control.value == 1.5


def test_a_plan_that_would_take_years_is_told(tmp_path):
    bench = workbench_workbench.Workbench(home=tmp_path)
    tab = form_of(bench, part="[0-4]", epochs=10**8)
    assert "That is long" in tab.cost.value and not tab.go.disabled
    assert "That is long" not in form_of(bench, epochs=10).cost.value


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("<odd>")])
def test_any_fault_of_the_look_at_a_form_is_told_and_goes(tmp_path, monkeypatch, error):
    bench = workbench_workbench.Workbench(home=tmp_path)
    good = workbench_find.looked_at

    def bad(plan):
        raise error

    monkeypatch.setattr(workbench_find, "looked_at", bad)
    tab = form_of(bench, width=0.5)
    assert (
        type(error).__name__ in tab.form.fields["network"].why and type(error).__name__ in bench.trouble.value
    )
    assert "Reading" not in tab.why.value and tab.go.disabled
    monkeypatch.setattr(workbench_find, "looked_at", good)
    assert not form_of(bench, width=0.25).go.disabled and bench.trouble.value == ""


def test_a_source_that_is_missing_shows_nothing_of_the_one_before(tmp_path, monkeypatch):
    monkeypatch.delenv("LOTTERY_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    bench = workbench_workbench.Workbench(home=tmp_path / "runs")
    tab = form_of(bench)
    assert "data:image" in tab.wide.value and "networks" in tab.cost.value
    form_of(bench, source="amazon-books", network="text-cnn")
    assert "was not found in" in tab.form.fields["source"].why and not tab.form.fields["network"].why
    assert (
        "data:image" not in tab.wide.value
        and "networks" not in tab.cost.value
        and "parameters" not in tab.form.fields["network"].line.value
    )
    assert bench.live.sent["classes"]["traces"] == bench.live.sent["network"]["traces"] == []
    form_of(bench, source="digits", network="lenet-300-100")
    assert "data:image" in tab.wide.value and bench.live.sent["classes"]["traces"] and not tab.go.disabled
    form_of(bench, part="[0-99]")
    assert "data:image" not in tab.wide.value and bench.live.sent["classes"]["traces"] == []
    form_of(bench, part="")
    assert "data:image" in tab.wide.value and bench.live.sent["classes"]["traces"]


def test_long_texts_are_cut():
    html = workbench_find.texts_html([("word " * 1000, "positive"), ("<i>", "negative")])
    assert (
        len(re.sub(r"<[^>]*>", "", html)) < 250
        and "positive" in html
        and "&lt;i&gt;" in html
        and "<i>" not in html
    )


def test_the_form_is_filled_with_the_configuration_of_the_selected_run(home, tmp_path):
    bench = workbench_workbench.Workbench(home / "find-small", home=home)
    tab = form_of(bench, lr=0.7, momentum=0.3, patience=4)
    assert not tab.again.disabled
    tab.again.click()
    settle(bench)
    assert workbench_forms.find_plan(tab.form.values) == SMALL and bench.trouble.value == ""
    empty = workbench_workbench.Workbench(home=tmp_path)
    tab = form_of(empty, lr=0.7)
    tab.again.click()
    assert tab.again.disabled and tab.form.values["lr"] == 0.7


def test_a_run_on_data_of_ones_own_is_refused_by_the_form(home):
    bench = workbench_workbench.Workbench(home / "find-small", home=home)
    tab = form_of(bench, lr=0.7)
    bench.follower.plan = replace(SMALL, source=domain("digits[0-4]").adapt((1, 4, 4)))
    tab.again.click()
    assert "a form holds names only" in bench.trouble.value and tab.form.values["lr"] == 0.7


def test_a_mended_form_can_be_started_again(tmp_path):
    bench = workbench_workbench.Workbench(home=tmp_path)
    assert form_of(bench, lr=-1.0).go.disabled
    assert not form_of(bench, lr=0.1).go.disabled


def test_a_click_on_a_form_that_is_still_looked_at_counts(tmp_path):
    """Run pressed right after the last field was changed, before the answer about that field has come."""
    bench = workbench_workbench.Workbench(home=tmp_path)
    tab = form_of(bench, part="[0-4]", rounds=1, seeds=1, controls=())
    tab.form.fields["epochs"].control.value = -1
    tab.go.click()
    settle(bench)
    assert list(tmp_path.iterdir()) == [] and not tab.wanted and "epochs=-1" in tab.form.fields["epochs"].why
    tab.form.fields["epochs"].control.value = 1
    tab.go.click()
    assert list(tmp_path.iterdir()) == []
    turn_until(bench, lambda: bench.follower and bench.follower.status == "done")
    [found] = tmp_path.glob("find-*")
    assert Run(found).plan.recipe.epochs == 1


def test_a_click_is_forgotten_where_the_form_or_the_tab_changes_after_it(tmp_path):
    bench = workbench_workbench.Workbench(home=tmp_path)
    tab = form_of(bench, part="[0-4]", rounds=1, seeds=1, controls=())
    for after in (
        lambda: setattr(tab.form.fields["epochs"].control, "value", 2),
        lambda: setattr(bench.bar.place, "value", "watch"),
    ):
        bench.bar.place.value = "find"
        tab.form.fields["epochs"].control.value = 3
        tab.go.click()
        assert tab.wanted
        after()
        settle(bench)
        bench.bar.place.value = "find"
        settle(bench)
        assert not tab.wanted and list(tmp_path.iterdir()) == []


def test_the_schedule_is_drawn_as_the_slider_moves(tmp_path):
    bench = workbench_workbench.Workbench(home=tmp_path)
    for rounds in (3, 12):
        form_of(bench, rounds=rounds)
        [(_, arrays)] = bench.live.sent["schedule"]["traces"]
        assert len(arrays["y"]) == rounds + 1 and arrays["y"][-1] == pytest.approx(100 * 0.8**rounds)


def test_time_and_memory_are_measured_before_a_run(tmp_path):
    bench = workbench_workbench.Workbench(home=tmp_path)
    tab = form_of(bench, part="[0-4]", epochs=3)
    assert "not measured yet" in tab.cost.value
    tab.gauge.click()
    settle(bench)
    assert "GiB on" in tab.cost.value and "examples/s" in tab.cost.value
    [cost] = tab.costs.values()
    before = tab.cost.value
    form_of(bench, rounds=2)
    assert list(tab.costs.values()) == [cost] and tab.cost.value != before and "GiB on" in tab.cost.value
    form_of(bench, width=0.5)
    assert "not measured yet" in tab.cost.value


# ---- a run


def test_run_pause_resume_stop(tmp_path):
    bench = workbench_workbench.Workbench(home=tmp_path)
    tab = form_of(bench, part="[0-4]", epochs=400, rounds=1, seeds=1, controls=())
    tab.go.click()
    turn_until(bench, lambda: bench.follower)
    turn_until(bench, lambda: "accuracy" in bench.live.sent and bench.follower.curves)
    assert bench.bar.place.value == "watch" and bench.alive and tab.go.disabled
    for name, status in (("pause", "paused"), ("resume", "running"), ("stop", "stopped")):
        turn_until(bench, lambda n=name: not bench.bar.buttons[n].disabled)
        bench.bar.buttons[name].click()
        turn_until(bench, lambda s=status: bench.follower.status == s)
    assert bench.trouble.value == ""
    turn_until(bench, lambda: not bench.alive and not bench.bar.buttons["resume"].disabled)


def test_a_second_run_is_refused_while_one_is_at_work(tmp_path):
    bench = workbench_workbench.Workbench(home=tmp_path)
    tab = form_of(bench, part="[0-4]", epochs=2000, rounds=1, seeds=1, controls=())
    tab.go.click()
    turn_until(bench, lambda: bench.alive)
    try:
        bench.bar.place.value = "find"
        settle(bench)
        assert tab.go.disabled and "at work" in tab.why.value
        bench.launch(workbench_forms.find_plan({**tab.form.values, "lr": 0.2}), "cpu")
        assert "at work" in bench.trouble.value and len(list(tmp_path.glob("*/plan.json"))) == 1
        other = workbench_workbench.Workbench(home=tmp_path)  # as after a restart of the kernel
        turn_until(other, lambda: other.follower and other.follower.curves)
        assert other.bar.place.value == "watch" and other.follower.path == bench.follower.path
    finally:
        stop(bench.follower.path)


def test_an_error_of_the_worker_is_shown_folded(tmp_path, home):
    folder = tmp_path / "find-broken"
    folder.mkdir()
    (folder / "plan.json").write_bytes((home / "find-small" / "plan.json").read_bytes())
    log = Log(folder / "events.jsonl")
    log.write(RunFailed("out of <memory>", "Traceback: line 1"))
    bench = workbench_workbench.Workbench(folder, home=tmp_path)
    settle(bench)
    assert (
        'role="alert"' in bench.trouble.value
        and "<details>" in bench.trouble.value
        and "out of &lt;memory&gt;" in bench.trouble.value
    )
    assert "<details open" not in bench.trouble.value and not bench.bar.buttons["resume"].disabled


def test_an_error_has_its_name_and_goes_with_its_run(tmp_path, home):
    folder = tmp_path / "find-broken"
    folder.mkdir()
    (folder / "plan.json").write_bytes((home / "find-small" / "plan.json").read_bytes())
    Log(folder / "events.jsonl").write(
        RunFailed("division by zero", "Traceback:\n  1/0\nZeroDivisionError: division by zero\n")
    )
    bench = workbench_workbench.Workbench(folder, home=tmp_path)
    settle(bench)
    assert "<summary>ZeroDivisionError: division by zero" in bench.trouble.value
    bench.bar.place.value = "find"
    form_of(bench, lr=0.2)
    assert "ZeroDivisionError" in bench.trouble.value  # it is not about the form
    bench.attach(home / "find-small")
    settle(bench)
    assert bench.trouble.value == ""


def test_a_worker_that_dies_at_once_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(
        workbench_workbench, "start", lambda plan, out, device: Run(_planned(plan, out, "Segmentation fault"))
    )
    bench = workbench_workbench.Workbench(home=tmp_path)
    form_of(bench).go.click()
    turn_until(bench, lambda: bench.trouble.value)
    assert "Segmentation fault" in bench.trouble.value


def _planned(plan, out, printed):
    from lottery_nb.runs.reading import write_plan

    write_plan(plan, out)
    (out / "worker.log").write_text(printed)
    return out


def test_a_folder_without_a_run_is_said_not_raised(tmp_path):
    bench = workbench_workbench.Workbench(home=tmp_path)
    bench.attach(tmp_path)
    assert "there is no file plan.json" in bench.trouble.value


def test_a_fault_in_drawing_does_not_end_the_pump(home, monkeypatch):
    bench = workbench_workbench.Workbench(home / "find-small", home=home)
    monkeypatch.setattr(workbench_workbench, "PUMPING", True)
    monkeypatch.setattr(workbench_workbench, "BEAT", 0.01)
    bench.tabs["watch"].easel.charts["training"] = (lambda: 1 / 0, {"epochs"}, {})
    bench.wake()
    deadline = time.monotonic() + 30
    while "ZeroDivisionError" not in bench.trouble.value and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "ZeroDivisionError" in bench.trouble.value and bench.pump.awake
    bench.live.seen = -1e9
    while bench.pump.awake and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not bench.pump.awake  # asleep: no page was heard of
    bench.live.heard({"ask": "here"})
    assert bench.pump.awake
    bench.live.seen = -1e9


# ---- transfer


def test_transfer_from_the_form(home, tmp_path):
    bench = workbench_workbench.Workbench(home=home)
    bench.bar.place.value = "transfer"
    tab = bench.tabs["transfer"]
    turn_until(bench, lambda: tab.tickets)
    fields = tab.form.fields
    settle(bench)
    assert (
        fields["rounds"].control.value == (2,)
        and not any(field.why for field in fields.values())
        and tab.go.disabled
    )  # nothing was chosen yet: no mistake
    assert "Choose targets." in tab.why.value
    fields["rounds"].control.value = ()
    settle(bench)
    assert "Choose tickets and targets." in tab.why.value and not any(field.why for field in fields.values())
    fields["rounds"].control.value = (2,)
    fields["targets"].control.value = ("digits[0-4]+invert",)
    fields["others"].control.value = "digits[5-9], nothing"
    settle(bench)
    assert "nothing" in fields["others"].why and tab.go.disabled
    fields["others"].control.value = "digits[5-9]"
    assert fields["lr"].control.value == SMALL.recipe.lr  # the tickets' own
    fields["recipe"].control.value = workbench_forms.RECIPES[1]
    fields["epochs"].control.value = 1
    settle(bench)
    turn_until(bench, lambda: not tab.go.disabled)
    tab.go.click()
    turn_until(bench, lambda: bench.moves and bench.follower.status == "done")
    settle(bench)
    turn_until(bench, lambda: len(bench.live.sent["matrix"]["traces"]) == 2)
    plan = bench.follower.plan
    assert (
        plan.targets == ("digits[0-4]+invert", "digits[5-9]")
        and plan.recipe == replace(SMALL.recipe, epochs=1)
        and {t.round for t in plan.tickets} == {2}
    )


@pytest.mark.data
def test_texts_from_samples_to_words_to_another_domain(tmp_path):
    bench = workbench_workbench.Workbench(home=tmp_path)
    tab = form_of(
        bench,
        source="amazon-kitchen",
        part="@300~bpe(300,20)",
        network="text-cnn",
        width=0.05,
        epochs=1,
        rounds=1,
        seeds=1,
        controls=(),
    )
    assert not tab.go.disabled, tab.why.value
    assert (
        "<table" in tab.wide.value and "negative" in tab.wide.value
    )  # sentences with their class, not thumbnails
    tab.go.click()
    turn_until(bench, lambda: bench.follower and bench.follower.status == "done")
    bench.bar.place.value = "watch"
    turn_until(
        bench, lambda: any(p.get("orientation") == "h" for p, _ in bench.live.sent["mask"]["traces"])
    )  # a bar for each word
    bench.bar.place.value = "transfer"
    there = bench.tabs["transfer"]
    turn_until(bench, lambda: there.tickets)
    settle(bench)
    offered = [box.name for box in there.form.fields["targets"].control.box.children]
    assert "amazon-books" in offered and not any("digits" in name or "+" in name for name in offered)
    there.form.fields["others"].control.value = "amazon-books@300"
    settle(bench)
    turn_until(bench, lambda: not there.go.disabled)
    there.go.click()
    turn_until(bench, lambda: bench.moves and bench.follower.status == "done", 180)
    assert set(bench.follower.frame["domain"]) == {"amazon-books@300"}


# ---- compare


def test_compare_and_the_ways_out(home, tmp_path, monkeypatch):
    bench = workbench_workbench.Workbench(home / "find-small", home=home)
    bench.bar.place.value = "compare"
    tab = bench.tabs["compare"]
    turn_until(bench, lambda: tab.which.value == (str(home / "find-small"),))
    turn_until(bench, lambda: "curves" in bench.live.sent and tab.tables.value)
    assert "verdict" in tab.tables.value and [p["name"] for p, _ in bench.live.sent["curves"]["traces"]] == [
        "find-small: dense",
        "find-small: ticket",
    ]
    ways = {b.description: b for b in tab.ways}
    for way in ("CSV file", "HTML report", "Tickets"):
        ways[way].click()
    ways["Python cell"].click()
    assert "FindPlan(" in tab.cell.value and tab.out in tab.side.children
    turn_until(
        bench, lambda: tab.out.value.count("Written to") == 3
    )  # each beside the others, and beside the cell
    assert "FindPlan(" in tab.cell.value and "Writing" not in tab.out.value
    table = pd.read_csv(home / "exports" / "find-small.csv")
    assert len(table) == len(Run(home / "find-small").frame) and set(table["run"]) == {"find-small"}
    assert len(list((home / "exports" / "tickets" / "find-small").glob("*.safetensors"))) == 4
    assert "<!doctype html>" in (home / "exports" / "find-small.html").read_text()[:40]
    tab.which.value = ()
    ways["CSV file"].click()
    assert "no run is chosen" in bench.trouble.value
    bench.bar.place.value = "find"
    assert bench.trouble.value == ""


def test_the_printed_cell_runs_as_it_is(home, monkeypatch, tmp_path):
    monkeypatch.chdir(home)
    names = {}
    exec(workbench_cell.cell_of(home / "find-small"), names)
    assert (
        names["found"].status == "done"
        and names["plan"] == SMALL
        and "'find-small'" in workbench_cell.cell_of(home / "find-small")
    )


def test_masks_of_other_networks_are_not_compared(home, tmp_path):
    wide = FindPlan(
        "digits[0-4]",
        width=0.5,
        schedule=geometric(0.5, 2),
        recipe=Recipe(epochs=1, batch_size=32),
        seeds=2,
        controls=(),
    )
    other = run(wide, tmp_path / "wide", device="cpu", show=False)
    fig = workbench_compare.overlap_figure([home / "find-small", other.path])
    assert not fig.data and "parameter" in fig.layout.annotations[0].text


# ---- what goes to the page


class Page(workbench_live.Live):
    """A widget whose messages are kept, and a page that applies them as workbench_live.js does."""

    def __init__(self):
        super().__init__("watch")
        self.outbox, self.page = [], {}

    def send(self, content, buffers=None):
        content = json.loads(json.dumps(content, allow_nan=False))
        self.outbox.append((content, buffers))

        def unpack(v):
            return np.frombuffer(buffers[v["$"]]).tolist() if isinstance(v, dict) else v

        if content["all"]:
            self.page = {}
        for change in content["charts"]:
            if "whole" in change:
                self.page[change["name"]] = [
                    {**t["props"], **{p: unpack(v) for p, v in t["arrays"].items()}}
                    for t in change["whole"]["traces"]
                ]
                continue
            traces = self.page[change["name"]]
            for i, path, start, left, value in change["splices"]:
                old = traces[i][path]
                traces[i][path] = old[:start] + unpack(value) + old[len(old) - left :]
            for i, path, value in change["props"]:
                traces[i][path] = value


def same(page, fig):
    want = [
        {**p, **{k: list(v) for k, v in a.items()}}
        for p, a in map(workbench_live.taken_apart, (t.to_plotly_json() for t in fig.data))
    ]
    return json.dumps(page) == json.dumps(want)


def test_the_page_holds_what_was_drawn_after_any_changes():
    rng, page = np.random.default_rng(1), Page()
    for _ in range(60):
        fig = go.Figure()
        for k in range(rng.integers(1, 4)):
            n = int(rng.integers(0, 9))
            fig.add_scatter(
                x=rng.integers(0, 3, n).tolist(),
                y=[None if v == 0 else float(v) for v in rng.integers(0, 3, n)],
                hovertext=[str(v) for v in rng.integers(0, 3, n)],
                name=f"{k}",
                marker_size=int(rng.integers(1, 3)),
            )
        page.show("chart", fig, "watch")
        page.flush()
        assert same(page.page["chart"], fig)
    page.heard({"ask": "all"})
    assert same(page.page["chart"], fig)


def test_an_update_costs_no_more_in_a_long_run(home, tmp_path):
    """20,000 epochs of one network: bytes of an update, and points kept, do not grow with them."""
    folder = tmp_path / "long"
    folder.mkdir()
    source = home / "find-small"
    (folder / "plan.json").write_bytes((source / "plan.json").read_bytes())
    head = (source / "events.jsonl").read_bytes().splitlines(keepends=True)
    start = next(i for i, line in enumerate(head) if b"ArmStarted" in line)
    (folder / "events.jsonl").write_bytes(b"".join(head[: start + 1]))
    arm = json.loads(head[start])["arm"]
    log, follower, page, costs = Log(folder / "events.jsonl"), workbench_follow.Follower(folder), Page(), []
    for epoch in range(1, 20_001):
        log.write(EpochDone(arm, epoch, epoch, 0.1, 1.0, 0.5, 1.0, 0.5 + epoch / 1e5, 0.01))
        if epoch % 200 == 0:
            follower.read()
            page.show("training", workbench_charts.live_training(follower), "watch")
            page.show("accuracy", workbench_charts.live_accuracy(follower), "watch")
            page.flush()
            content, buffers = page.outbox[-1]
            costs.append(len(json.dumps(content)) + sum(map(len, buffers)))
    assert len(page.page["training"][0]["x"]) <= workbench_follow.POINTS
    assert np.median(costs[-20:]) < 2 * np.median(costs[1:10]) + 2000


def test_a_long_log_of_a_run_at_work_is_not_taken_for_a_planned_one(home, tmp_path):
    """The last word about its state lies further back than the end that a glance reads."""
    folder = tmp_path / "long"
    folder.mkdir()
    (folder / "plan.json").write_bytes((home / "find-small" / "plan.json").read_bytes())
    log = Log(folder / "events.jsonl")
    log.write(RunStarted("hash", "FindPlan", "cpu", "CPU", {}, 1))
    for epoch in range(1000):
        log.write(EpochDone("arm", epoch, epoch, 0.1, 1.0, 0.5, 1.0, 0.5, 0.01))
    assert workbench_workbench.newest(tmp_path) == (folder, False) and workbench_workbench.runs(tmp_path)[
        "status"
    ].tolist() == ["interrupted"]
    (folder / "heartbeat").write_text("1")
    assert workbench_workbench.newest(tmp_path) == (folder, True)


def test_no_update_when_nothing_happens(home):
    bench = workbench_workbench.Workbench(home / "find-small", home=home)
    settle(bench)
    turn_until(bench, lambda: not bench.tabs["watch"].easel.stale)
    bench.tick()
    assert [bench.tick() for _ in range(5)] == [0] * 5


def test_what_was_typed_is_shown_as_text(tmp_path):
    """A name that looks like HTML is not."""
    error = workbench_workbench.error_html(LotteryError("<script>alert(1)</script>"))
    assert "<script>" not in error
    bench = workbench_workbench.Workbench(home=tmp_path)
    form_of(bench, part="<img src=x onerror=alert(1)>")
    assert "<img src=x" not in bench.tabs["find"].form.fields["part"].line.value


def test_readers_without_widgets_are_told_what_to_do(tmp_path):
    said = workbench_workbench.Workbench(home=tmp_path)._repr_mimebundle_()
    assert "JupyterLab 4" in said["text/plain"] and "application/vnd.jupyter.widget-view+json" in said


def test_the_page_side_is_shipped():
    static = Path(workbench_live.__file__).parent / "static"
    assert {p.name for p in static.iterdir()} == {"live.js", "live.css"}
    assert (
        "http" not in (static / "live.js").read_text() + (static / "live.css").read_text()
    )  # nothing from the network


ENDS = """
import contextvars, pathlib, sys, time
from lottery_nb.workbench.jobs import ENDING, in_thread

def work():
    ENDING.wait(30)
    time.sleep(0.3)
    pathlib.Path(sys.argv[1]).touch()

in_thread(work, contextvars.copy_context())
"""


def test_the_end_of_a_process_lets_what_the_panel_began_end(tmp_path):
    """A thread that is cut off inside of torch would abort the process."""
    line = [sys.executable, "-c", ENDS, str(tmp_path / "ended")]
    assert subprocess.run(line, timeout=100).returncode == 0 and (tmp_path / "ended").exists()
