"""A control is one record: tags, order, colours, flags, choices and words of a control that somebody else registers follow from it."""

import importlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import find, listen, of, plan, within


from lottery_nb.cli import main
from lottery_nb.core import canonical, from_plain, LotteryError, Reference
from lottery_nb.workbench.follow import Follower
from lottery_nb.workbench.charts import matrix_height
from lottery_nb.workbench.forms import FIND, find_plan
from lottery_nb.workbench.cell import cell_of
from lottery_nb.results import plots, stats
from lottery_nb.results.plots import accuracy_plot, training_plot, transfer_curves, transfer_plot
from lottery_nb.results.report import findings, write_report
from lottery_nb.rewinding.points import TRAINED
from lottery_nb.rewinding.controls import control, CONTROLS, MARKERS, PALETTE, role_of, roles
from lottery_nb.runs.reading import Run
from lottery_nb.runs.writing import run
from lottery_nb.results.stats import in_order, results_of, summary
from lottery_nb.results.tables import text_table
from lottery_nb.plans.find import find_tickets, FindPlan, Search
from lottery_nb.engine.recipes import Recipe
from lottery_nb.plans.transfer import transfer_arms, TransferPlan
from lottery_nb.results.verdict import conditions, verdict_lines
from lottery_nb.runs.workers import start


@pytest.fixture
def own():
    "The module of a user's controls, as it is before anybody imported it; forgotten afterwards."
    sys.modules.pop("own_controls", None)
    before = set(CONTROLS)
    yield importlib.import_module("own_controls")
    sys.modules.pop("own_controls", None)
    for name in set(CONTROLS) - before:
        del CONTROLS[name]


OWN = ("half signs", "other draw", "late dense")


def test_a_record_gives_place_and_looks(own):
    assert list(roles()) == [
        "dense",
        "tuned dense",
        "ticket",
        "tuned ticket",
        "other draw",
        "tuned other draw",
        "reinit",
        "tuned reinit",
        "reinit signs kept",
        "shuffled",
        "random mask",
        "small dense",
        "half signs",
        "late dense",
    ]
    assert (role_of("half signs").colour, role_of("half signs").marker) == (
        "#ABCDEF",
        "hexagon2",
    ) and role_of("half signs").help == "every second weight with the other sign"
    assert (role_of("other draw").colour, role_of("late dense").colour) == PALETTE[:2] and role_of(
        "other draw"
    ).marker == MARKERS[0]
    assert (
        len({r.colour for r in roles().values()}) == len({r.marker for r in roles().values()}) == len(roles())
    )
    assert [n for n, r in roles().items() if r.whole] == ["dense", "tuned dense", "late dense"]
    assert (
        role_of("dense at rate 0.1") is not None
        and role_of("dense at rate 0.1").colour == role_of("tuned dense").colour
    )


@pytest.mark.parametrize("retrain", ["weight rewinding", "fine-tuning"])
def test_tags_of_a_search_follow_from_the_record(own, monkeypatch, retrain):
    recipe = Recipe(lr=0.05, epochs=2, batch_size=32, schedule="step")
    _, events, made = find(monkeypatch, controls=OWN, rates=(0.02,), recipe=recipe, retrain=retrain)
    tags = {a.arm.name: a.arm.tags for a in made.values()}
    starts = {
        "half signs": "rewind",
        "late dense": "rewind",
        "other draw": "fresh",
        "other draw at rate 0.02": "fresh",
        "ticket": "rewind",
        "dense": "fresh",
        "dense at rate 0.02": "fresh",
    }
    assert {t["role"]: t["start"] for t in tags.values()} == starts
    assert {t["round"]: t["density"] for t in tags.values() if t["role"] in ("dense", "late dense")} == {
        0: 1.0
    }
    assert [n for n in tags if "late dense" in n] == ["r00/late dense/s0"] and {
        t["round"] for t in tags.values() if t["role"] == "half signs"
    } == {1, 2}
    assert of("Planned", events)[0].arms == len(of("ArmDone", events)) == len(tags)
    same = (
        made["r01/half signs/s0"].arm.recipe
        == made["r01/ticket/s0"].arm.recipe
        != made["r01/other draw at rate 0.02/s0"].arm.recipe
    )
    assert same and (made["r01/other draw/s0"].arm.recipe == recipe)


def test_dense_beside_a_ticket_is_no_further_network(monkeypatch):
    _, events, made = find(monkeypatch, controls=("dense", "reinit"), rates=(0.02,))
    assert {
        (a.arm.tags["round"], a.arm.tags["density"])
        for a in made.values()
        if a.arm.tags["role"].startswith("dense")
    } == {(0, 1.0)}
    assert sorted(n for n in made if "/dense" in n) == ["r00/dense at rate 0.02/s0", "r00/dense/s0"] and of(
        "Planned", events
    )[0].arms == len(made)
    old = FindPlan(controls=("dense", "reinit"))
    assert from_plain(json.loads(canonical(old))) == old and old.controls == ("dense", "reinit")


def test_tags_of_a_transfer_follow_from_the_record(own):
    tickets, _ = listen(find_tickets(plan(), "cpu"))
    arms = transfer_arms(
        TransferPlan(tickets, "digits[5-9]@200", (TRAINED, "rewind", "fresh"), controls=OWN, rates=(0.02,))
    )
    starts = {}
    for a in arms:
        starts.setdefault(a.tags["role"], set()).add(a.tags["start"])
    every = {"rewind", TRAINED, "fresh"}
    assert starts == {
        "ticket": {"rewind", TRAINED},
        "reinit": {"fresh"},
        "reinit at rate 0.02": {"fresh"},
        "half signs": every,
        "late dense": every,
        "other draw": {"fresh"},
        "other draw at rate 0.02": {"fresh"},
    }
    assert {(a.tags["round"], a.tags["density"]) for a in arms if a.tags["role"] == "late dense"} == {
        (0, 1.0)
    }
    assert (
        sum(a.tags["role"] == "late dense" for a in arms) == 3
        and sum(a.tags["role"] == "half signs" for a in arms) == 3 * 2
    )


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    "A search and a transfer with a user's controls, run; their records are there as long as the tests of this module."
    sys.modules.pop("own_controls", None)
    before = set(CONTROLS)
    importlib.import_module("own_controls")
    folder = tmp_path_factory.mktemp("runs")
    found = run(
        plan(controls=(*OWN, "reinit"), seeds=2, rates=(0.02,)), folder / "find", device="cpu", show=False
    )
    moved = run(
        TransferPlan(found.tickets, "digits[5-9]@200", ("rewind", "fresh"), controls=(*OWN, "dense")),
        folder / "move",
        device="cpu",
        show=False,
    )
    yield found, moved
    sys.modules.pop("own_controls", None)
    for name in set(CONTROLS) - before:
        del CONTROLS[name]


def test_tables_and_figures_know_the_controls(ended):
    found, moved = ended
    order = [
        "dense",
        "tuned dense",
        "ticket",
        "other draw",
        "tuned other draw",
        "reinit",
        "tuned reinit",
        "half signs",
        "late dense",
    ]
    assert (
        list(summary(found)["role"].unique())
        == list(in_order(results_of(found).iloc[::-1])["role"].unique())
        == order
    )
    traces = {t.name: t for t in accuracy_plot(found).data if t.name}
    assert {name: t.line.color for name, t in traces.items()} == {
        name: role_of(name).colour for name in order
    }
    assert {name: t.marker.symbol for name, t in traces.items()} == {
        name: role_of(name).marker for name in order
    }
    assert (
        traces["late dense"].mode == "lines"
        and len(traces["half signs"].x) == 2
        and [n for n, t in sorted(traces.items(), key=lambda item: item[1].legendrank)] == order
    )
    for picture in (training_plot(found, "half signs"), transfer_plot(moved), transfer_curves(moved)):
        assert picture.data
    rows = set(transfer_plot(moved).data[0].y)
    assert {"ticket", "half signs (rewind)", "half signs (fresh)", "other draw"} <= rows and not any(
        "dense" in row for row in rows
    )


def test_words_about_the_controls_do_not_break(ended, tmp_path):
    found, moved = ended
    assert "half signs" in text_table(found) and "other draw" in text_table(moved)
    assert len(verdict_lines(conditions(found))) == 2 and len(findings(found)) == 1
    page = write_report(tmp_path / "report.html", [found, moved])
    assert "half signs" in page.read_text(encoding="utf-8")


def test_results_whose_roles_nobody_registered_have_looks_of_their_own(ended):
    frame = ended[0].frame.assign(role=ended[0].frame["role"].str.replace("half signs", "of somebody else"))
    (trace,) = (t for t in accuracy_plot(frame).data if t.name == "of somebody else")
    assert trace.line.color in PALETTE and trace.marker.symbol in MARKERS


# --- by reference ---


def test_a_function_named_by_its_module_is_a_control(own, monkeypatch):
    named = plan(controls=("own_controls:half_signs", own.turned_round, own.drawn_anew))
    assert (
        all(isinstance(c, Reference) for c in named.controls)
        and from_plain(json.loads(canonical(named))) == named
    )
    assert named.hash != replace(named, controls=("half signs", own.turned_round, own.drawn_anew)).hash
    _, _, made = find(monkeypatch, controls=named.controls)
    assert {t.arm.tags["role"]: t.arm.tags["start"] for t in made.values() if t.arm.tags["round"] == 1} == {
        "ticket": "rewind",
        "half signs": "rewind",
        "turned round": "rewind",
        "drawn anew": "fresh",
    }
    assert (
        CONTROLS.find(named.controls[0]) is CONTROLS["half signs"]
        and CONTROLS.keep(CONTROLS["half signs"]) == "half signs"
    )


def test_a_plan_with_a_control_by_reference_is_read_without_its_module(own, monkeypatch):
    text = canonical(plan(controls=("own_controls:half_signs",)))
    monkeypatch.setitem(sys.modules, "own_controls", None)
    again = from_plain(json.loads(text))
    assert canonical(again) == text
    with pytest.raises(LotteryError, match="cannot be imported"):
        Search(again)


def test_a_control_by_reference_works_in_another_process(own, tmp_path, monkeypatch):
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    )
    folder = tmp_path / "run"
    found = start(plan(controls=("own_controls:half_signs",)), folder, "cpu")
    with within(120):
        while found.status == "running":
            time.sleep(0.1)
    assert found.status == "done" and set(found.frame["role"]) == {"half signs", "ticket", "dense"}


@pytest.mark.parametrize(
    "how, says",
    [
        (dict(weights="half", mask="kept"), "weights='half'"),
        (dict(weights="kept", mask="some"), "mask='some'"),
        (dict(weights="kept", mask="kept", colour="red"), "'#RRGGBB'"),
    ],
)
def test_a_record_that_cannot_be_is_refused(how, says):
    with pytest.raises(LotteryError, match=says):
        control("mine", **how)
    assert "mine" not in CONTROLS


@pytest.mark.parametrize("name", ["ticket", "none", "tuned mine", "mine at rate 3", "a/b", "a, b", ""])
def test_names_that_mean_something_else_are_refused(name):
    with pytest.raises(LotteryError, match="give it words of letters and digits"):
        control(name, weights="kept", mask="kept")


def test_a_control_that_is_not_as_it_says_is_refused(own):
    with pytest.raises(
        LotteryError,
        match="control 'reinit' is registered by lottery_nb.rewinding.controls: choose another name",
    ):
        control("reinit", weights="kept", mask="kept")(own.bare)
    control("untrue", weights="kept", mask="kept")(lambda b: replace(b, mask=None))
    for controls, says in (
        (("untrue",), "its mask is 'none'"),
        ((own.bare,), "keeps every weight"),
        (("half signs", "own_controls:half_signs"), "stands twice"),
    ):
        with pytest.raises(LotteryError, match=says):
            listen(find_tickets(plan(controls=controls), "cpu"))
    with pytest.raises(LotteryError, match="control 3: give a name"):
        plan(controls=(3,))


# --- shell, forms, panel ---


def test_the_shell_lists_controls_and_takes_them_by_import(own, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["find", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    listed = text.partition("--controls LIST")[2]
    assert "random-mask, small-dense" in listed and "package.module:name" in text
    quick = [
        "--source",
        "digits[0-4]@200",
        "--width",
        "0.1",
        "--fraction",
        "0.5",
        "--rounds",
        "1",
        "--epochs",
        "1",
        "--seeds",
        "1",
        "--device",
        "cpu",
        "--quiet",
    ]
    assert (
        main(
            [
                "find",
                *quick,
                "--controls",
                "own_controls:half_signs,other-draw,own_controls:turned_round",
                "--out",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )
    found = Run(tmp_path / "run")
    assert (
        set(found.frame["role"]) == {"dense", "ticket", "half signs", "other draw", "turned round"}
        and found.plan.controls[1] == "other draw"
    )
    assert "controls=('own_controls:half_signs', 'other draw', 'own_controls:turned_round')" in cell_of(
        tmp_path / "run"
    )
    status = main(
        [
            "transfer",
            str(tmp_path / "run"),
            "--targets",
            "digits[5-9]@200",
            "--start",
            "rewind",
            "--controls",
            "own_controls:late_dense",
            "--epochs",
            "1",
            "--device",
            "cpu",
            "--quiet",
            "--out",
            str(tmp_path / "move"),
        ]
    )
    assert status == 0 and set(Run(tmp_path / "move").frame["role"]) == {"ticket", "late dense"}


def test_forms_offer_the_controls(own):
    panel = pytest.importorskip("lottery_nb.panel")
    for sections, dense in ((panel.find_fields(), False), (panel.transfer_fields(), True)):
        (field,) = (fields["controls"] for fields in sections.values() if "controls" in fields)
        boxes = {b.name: b for b in field.control.box.children}
        assert (
            set(OWN) < set(boxes)
            and ("dense" in boxes) is dense
            and boxes["half signs"].tooltip == "every second weight with the other sign"
        )
    assert find_plan({**FIND, "controls": ("half signs", "reinit")}).controls == ("half signs", "reinit")


def test_the_place_for_a_transfer_is_as_high_as_its_rows(ended):
    follower = Follower(ended[1].path)
    rows = len(set(transfer_plot(ended[1]).data[0].y))
    assert matrix_height(follower) == 110 + 44 + 40 * rows
    by_import = replace(ended[1].plan, controls=("own_controls:half_signs",))
    follower.plan = by_import
    assert matrix_height(follower) == 110 + 44 + 40 * 4


def test_names_that_have_moved_warn():
    for module, name, says in (
        (plots, "COLOURS", {n: r.colour for n, r in roles().items()}),
        (plots, "SYMBOLS", {n: r.marker for n, r in roles().items()}),
        (stats, "ROLES", tuple(roles())),
    ):
        with pytest.warns(
            DeprecationWarning,
            match=rf"lottery_nb.*{name} has moved: use lottery_nb.rewinding.controls.roles",
        ):
            assert getattr(module, name) == says
        with pytest.raises(AttributeError):
            module.NO_SUCH_NAME  # noqa: B018
