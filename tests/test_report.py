import html
import json
import re
from dataclasses import dataclass
from types import SimpleNamespace

import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from lottery_nb.core import LotteryError
from lottery_nb.pruning.schedules import cubic, geometric, listed, one_shot, Schedule
from lottery_nb.pruning.scopes import SCOPES
from lottery_nb.results.words import plan_table, recipe_text, schedule_text, value_text
from lottery_nb.results.report import findings, report, time_text, write_report
from lottery_nb.results.tables import short_table
from lottery_nb.plans.find import FindPlan
from lottery_nb.engine.recipes import Recipe
from made_up import made_up_results

FOUND = made_up_results(seeds=3, rounds=3)
MOVED = made_up_results(seeds=3, rounds=3, targets=("made-up target", "made-up shift"))


@dataclass(frozen=True)
class Plan:
    source: str = "made-up source"
    seeds: int = 3
    floor: float = 0.0
    note: str = "<i>mine</i>"


def run(frame=FOUND, **changes):
    info = dict(
        plan_hash="feedbeef",
        device="cpu",
        device_name="CPU, 2 threads",
        date="2025-01-31",
        seconds=84.0,
        versions={"torch": "2.11"},
    )
    return SimpleNamespace(
        **{**dict(frame=frame, layers=None, plan=Plan(), info=info, status="done"), **changes}
    )


def body(page):
    "The page without plotly.js."
    return page.replace(get_plotlyjs(), "")


def test_page_is_complete_in_itself():
    page = report([run(), run(MOVED)])
    assert page.count(get_plotlyjs()) == 1
    assert not re.search(r"""(src|href)\s*=|@import|url\(|https?://""", body(page))
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")


def test_figures_are_readable_data():
    data = re.findall(r'<script type="application/json">(.*?)</script>', body(report(run(MOVED))), re.S)
    assert len(data) == 2 and all(json.loads(d)["data"] for d in data)


@pytest.mark.parametrize("frame", [FOUND, MOVED])
def test_numbers_of_the_table_stand_in_the_page(frame):
    page = body(report(frame)).replace("\u00a0", " ")
    for cell in short_table(frame).drop(columns="domain").to_numpy().ravel():
        assert f"<td>{cell}</td>" in page


def test_a_table_for_each_target_in_html():
    page = body(report(MOVED))
    assert page.count("<table") == 2 + 2 and re.findall(r"<h3>(.*?)</h3>", page) == [
        f"Test accuracy on made-up {d}, from made-up source" for d in ("target", "shift")
    ] + ["Is it a winning ticket?"]
    assert "\u00a0±\u00a0" in page and not re.search(r"<td>[^<]* ± ", page)


def test_users_words_are_escaped_everywhere():
    evil = "</script><script>alert(1)</script>"
    frame = FOUND.replace({"made-up source": evil})
    page = body(
        report(
            run(frame, plan=Plan(evil), info=dict(device_name=evil, failed=[evil]), status=evil), title=evil
        )
    )
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert page.count("<script") == page.count("</script>")


def test_undertrained_runs_show_no_curve_and_claim_nothing():
    page = body(report(run(plan=Plan(floor=0.95))))
    assert "undertrained: dense validation accuracy" in page and not findings(run(plan=Plan(floor=0.95)))
    (figure,) = re.findall(r'<script type="application/json">(.*?)</script>', page, re.S)
    assert json.loads(figure)["data"] == []


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(status="running"), "This run is running"),
        (
            dict(frame=FOUND[~((FOUND["role"] == "reinit") & (FOUND["split"] == "test"))]),
            "9 of 30 networks have no test result",
        ),
        (dict(frame=FOUND[FOUND["seed"] == 0]), "Single run"),
    ],
)
def test_warnings(change, says):
    assert says in body(report(run(**change))) and says not in body(report(run()))


def test_findings_say_what_the_verdicts_say():
    (one,) = findings(made_up_results())
    assert "above dense at 4 of 8 densities (65 % to 11.6 %)" in one and "below" not in one
    assert one.endswith(", over 5 seeds.")
    turned = made_up_results()
    turned["role"] = (
        turned["role"].map({"ticket": "random mask", "random mask": "ticket"}).fillna(turned["role"])
    )
    (one,) = findings(turned)
    assert "below dense at" in one and "below random mask at 8 of 8" in one
    assert (
        findings(FOUND[FOUND["role"] != "ticket"]) == [] and findings(FOUND[FOUND["role"] == "ticket"]) == []
    )


def test_plan_in_words():
    told = dict(plan_table(Plan(floor=0.9)).to_numpy())
    assert (
        told["seeds"] == "3"
        and told["floor"] == "90 % validation accuracy of the dense network"
        and "floor" not in dict(plan_table(Plan()).to_numpy())
    )
    assert (
        value_text(()) == "none"
        and value_text({"head": 0.1}) == "head 0.1"
        and value_text(time_text) == "time_text"
        and value_text(SimpleNamespace(name="x-r1")) == "x-r1"
    )
    assert value_text(tuple(range(20))) == "0, 1, 2 … 19 (20 in all)"


@pytest.mark.parametrize(
    "scopes, says, not_said",
    [
        (("layer",), ["Masks are unstructured: zeros are stored"], ["pattern"]),
        (("erk", "global"), ["Masks are unstructured: zeros are stored"], ["pattern"]),
        (("2:4",), ["scope 2:4 follow the pattern 2:4, and kernels"], ["unstructured"]),
        (("1:8",), ["follow the pattern 1:8"], ["unstructured"]),
        (("layer", "4:8"), ["Masks are unstructured", "follow the pattern 4:8"], []),
        (("my rows",), ["scope my rows follow the pattern whole rows"], ["unstructured"]),
        (("my blocks",), ["the structure that scope my blocks gives them"], ["unstructured", "pattern"]),
        (("of a package that is missing here",), ["the structure that scope of a package"], ["unstructured"]),
        ((), ["Masks: zeros are stored"], ["unstructured", "pattern"]),
    ],
)
def test_what_masks_are_follows_from_the_scope(scopes, says, not_said, monkeypatch):
    def rows(mask, names, density):
        return []

    monkeypatch.setitem(SCOPES, "my blocks", lambda mask, names, density: [])
    monkeypatch.setitem(SCOPES, "my rows", rows)
    rows.pattern = "whole rows"
    runs = [run(plan=SimpleNamespace(scope=scope)) for scope in scopes] or [run(MOVED)]
    limits = html.unescape(body(report(runs)).partition("and its limits</h2>")[2])
    assert all(word in limits for word in says) and not any(word in limits for word in not_said)
    assert limits.count("Masks") == len(says)


def test_find_plan_says_what_is_special_and_no_more():
    plain = dict(plan_table(FindPlan("digits", schedule=geometric(0.4, 6))).to_numpy())
    assert (
        plain["sparsity"] == "geometric, 40 % of the remaining weights a round, 6 rounds"
        and plain["rewind to"] == "initial weights"
    )
    assert not {"width", "score at", "prunable", "floor", "layers with a rate of their own"} & set(plain)
    special = dict(
        plan_table(FindPlan("digits", width=0.5, score_at="start", layer_fractions={"head": 0.1})).to_numpy()
    )
    assert (special["width"], special["score at"], special["layers with a rate of their own"]) == (
        "0.5",
        "start",
        "head: 10 % a round",
    )


@pytest.mark.parametrize(
    "schedule, says",
    [
        (geometric(0.2, 1), "geometric, 20 % of the remaining weights a round, 1 round"),
        (one_shot(0.1), "one-shot, down to 10 %"),
        (cubic(0.05, 4), "cubic, down to 5 % in 4 rounds"),
        (listed([0.5, 0.2]), "listed densities: 50 %, 20 %"),
        (Schedule("linear", 2, (0.3,)), "linear, down to 30 % in 2 rounds"),
    ],
)
def test_schedules_in_words(schedule, says):
    assert schedule_text(schedule) == says


@pytest.mark.parametrize(
    "recipe, says",
    [
        (
            Recipe(lr=0.05, epochs=8, batch_size=32),
            "sgd, learning rate 0.05 (one-cycle), 8 epochs, batches of 32",
        ),
        (None, "as the tickets were found"),
        (
            Recipe(optimizer="adam", steps=5000, weight_decay=1e-4, augment=("crop", "flip")),
            "adam, learning rate 0.1 (one-cycle), 5,000 steps, batches of 128, weight decay 0.0001, augment crop, flip",
        ),
    ],
)
def test_recipes_in_words(recipe, says):
    assert recipe_text(recipe) == says


def test_written_whole(tmp_path):
    path = write_report(tmp_path / "deep" / "report.html", FOUND, "T")
    assert path.read_text(encoding="utf-8") == report(FOUND, "T") and [
        p.name for p in path.parent.iterdir()
    ] == ["report.html"]


def test_refused():
    with pytest.raises(LotteryError, match="about no runs"):
        report([])
    with pytest.raises(LotteryError, match="no rows"):
        report(FOUND.iloc[:0])
    with pytest.raises(LotteryError, match="holds no results"):
        report(pd.Series([1]))


def test_the_verdict_has_a_line_for_each_ticket_and_says_what_open_means():
    page = body(report(run()))
    section = page[page.index("Is it a winning ticket?") : page.index("<details>")]
    assert (
        section.count("<tr") == 1 + 3
        and "<td>open</td>" in section
        and "'open' is not enough evidence" in html.unescape(section)
    )
    assert "The evidence for each word" in page and "winning ticket?" not in body(
        report(run(plan=Plan(floor=0.95)))
    )


def test_figures_are_as_wide_as_the_page_and_plans_have_names():
    page = body(report(run(plan=FindPlan("digits", schedule=geometric(0.4, 6)))))
    assert "What was run: a search for tickets" in page and "FindPlan" not in page
    assert ".figure{margin:.6rem 0 1.2rem;width:100%}" in page and "max-width:880px" not in page
