"""What is said must be so: who is blamed for a loss that exploded, what a spreadsheet does with an export, remedies that exist."""

import argparse
import ast
import csv
import importlib
import io
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lottery_nb.cli import make_parser
from lottery_nb.core import library, LotteryError
from lottery_nb.data.domains import domain
from lottery_nb.engine.arms import Arm
from lottery_nb.engine.recipes import Recipe, remedy
from lottery_nb.engine.training import finish, train
from lottery_nb.files import room_for
from lottery_nb.models.network import Network
from lottery_nb.plans.find import FindPlan
from lottery_nb.pruning import scopes
from lottery_nb.pruning.masks import Mask
from lottery_nb.pruning.schedules import geometric, one_shot
from lottery_nb.results.tables import csv_text, FORMULA, NUMBER, read_csv
from lottery_nb.rewinding.snapshots import fresh
from lottery_nb.runs.writing import run
from lottery_nb.workbench.cost import looked_at

ROOT = Path(__file__).resolve().parents[1]


# a loss that exploded

GUILTY = {
    "weight_decay (now 1e+30)": dict(weight_decay=1e30),
    "weight_decay (now 1000)": dict(weight_decay=1e3),
    "weight_decay (now 100000)": dict(optimizer="adamw", lr=1e-3, weight_decay=1e5),
    "lr (now 1e+30)": dict(lr=1e30),
    "lr (now 1e+25)": dict(lr=1e25, weight_decay=1e-4, momentum=0.0),
    "lr (now 1e+20)": dict(optimizer="adamw", lr=1e20, weight_decay=0.01),
    "the factor 1e+08": dict(schedule="step", drops=((0.3, 1e8),)),
    "betas (now 0.9, 0)": dict(optimizer="adam", lr=1e-3, betas=(0.9, 0.0)),
    "eps (now 1e-50)": dict(optimizer="adam", lr=1e-3, eps=1e-50),
}
SETTINGS = ("lr (", "weight_decay", "drops", "momentum", "betas", "eps")


@pytest.fixture(scope="module")
def arm():
    pictures = domain("digits@300")
    network = Network("lenet-300-100", pictures.shape, pictures.n_classes, width=0.1)
    return Arm(name="a", network=network, domain=pictures, recipe=Recipe(), start=fresh(network, 0), seed=0)


@pytest.mark.parametrize("says", GUILTY)
def test_a_loss_that_exploded_is_blamed_on_what_made_it_explode(says, arm):
    recipe = Recipe(epochs=3, batch_size=32, **GUILTY[says])
    (trained,) = finish(train([replace(arm, recipe=recipe)], "cpu"))
    assert trained.failed and says in trained.failed
    assert sum(f"Recipe.{name}" in trained.failed for name in SETTINGS) == 1


def test_two_that_are_guilty_are_both_named_and_a_start_before_any_recipe(arm):
    recipe = Recipe(epochs=3, batch_size=32, lr=1e30, weight_decay=1e30)
    big = replace(arm.start, weights={n: w * 1e30 for n, w in arm.start.weights.items()})
    for one, says in (
        (replace(arm, recipe=recipe), "lower Recipe.lr .*, and lower Recipe.weight_decay"),
        (replace(arm, start=big), "the weights that it starts from go up to .*e.29; give others$"),
    ):
        (trained,) = finish(train([one], "cpu"))
        assert re.search(says, trained.failed)


@pytest.mark.parametrize("lr", [1e-5, 0.1, 1.0])
@pytest.mark.parametrize("decay", [0, 1e-4, 0.1])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_nothing_is_blamed_that_people_train_with(optimizer, decay, lr):
    told = remedy(Recipe(optimizer, lr=lr if optimizer == "sgd" else lr / 10, weight_decay=decay))
    assert told.startswith("no setting of its recipe is out of reason; try a lower Recipe.lr (now ")


# an export in a spreadsheet

TEXTS = st.text(st.sampled_from("'=+-@\t\r\n＝＋－＠a1.,;\" é"), max_size=6) | st.sampled_from(
    [
        "=1+1",
        "a\r=1+1",
        "+cmd|' /C calc'!A0",
        "-2+3",
        "@SUM(A1)",
        "\t=1",
        "'=1",
        "''",
        "-0.5",
        "+1e3",
        "NA",
        "None",
        "007",
        "",
    ]
)


@given(st.lists(st.tuples(TEXTS, TEXTS, st.floats(allow_nan=False, allow_infinity=False)), min_size=1))
def test_no_cell_of_an_export_is_a_formula_and_all_come_back(rows):
    frame = pd.DataFrame(rows, columns=["role", "run", "=value"])
    text = csv_text(frame)
    for row in csv.reader(io.StringIO(text, newline="")):
        assert not any(cell[:1] in tuple("=+-@\t\r＝＋－＠") and not NUMBER.fullmatch(cell) for cell in row)
    again = read_csv(io.StringIO(text, newline=""))
    assert list(again) == list(frame) and again[["role", "run"]].equals(frame[["role", "run"]])
    assert again["=value"].tolist() == frame["=value"].tolist()


def test_results_come_back_as_they_were_from_a_domain_with_any_name(tmp_path):
    plan = FindPlan(
        "digits[0-4]@200", schedule=geometric(0.5, 1), recipe=Recipe(epochs=1), seeds=(0,), controls=()
    )
    frame = run(plan, tmp_path / "r", "cpu", show=False).frame
    frame = frame.assign(domain="=HYPERLINK(1)", source="@x", run="007")
    pd.testing.assert_frame_equal(read_csv(io.StringIO(csv_text(frame))), frame, check_dtype=False)
    assert "'=HYPERLINK(1)" in csv_text(frame) and FORMULA.match("=HYPERLINK(1)")


# remedies that exist, and numbers that are so


@pytest.mark.parametrize("scope", ["1:3", "2:3", "1:7", "5:6", "2:4"])
def test_a_density_that_a_refusal_offers_is_taken(scope):
    with pytest.raises(LotteryError) as e:
        FindPlan("digits", network="lenet-300-100", scope=scope, schedule=one_shot(0.123))
    offered = float(re.search(r"one_shot\(([\d.]+)\)", str(e.value))[1])
    FindPlan("digits", network="lenet-300-100", scope=scope, schedule=one_shot(offered))


@pytest.mark.parametrize("size, kept", [(3, 1), (30_000_001, 11_000_001), (11_173_962, 9_999_991)])
def test_the_density_that_is_left_is_not_more_than_is_left(size, kept):
    mask = Mask({"w": torch.arange(size) < kept})
    with pytest.raises(LotteryError) as e:
        scopes._quota(mask, ("w",), 0.99)
    offered = float(re.search(r"ask for ([\d.e-]+) or less", str(e.value))[1])
    assert scopes._quota(mask, ("w",), offered) == (("w",), kept)


@pytest.mark.parametrize(
    "field", [dict(momentum=1), dict(momentum=1.0), dict(optimizer="adam", betas=(0.9, 1.0))]
)
def test_a_bound_that_is_refused_is_not_offered(field):
    with pytest.raises(LotteryError, match="of at least 0 and below 1$"):
        Recipe(**field)


@pytest.mark.parametrize("asked", ["2 GB", "1e9", "-1", "lots", "²"])
def test_room_that_cannot_be_read_is_no_room(asked, monkeypatch):
    monkeypatch.setenv("LOTTERY_UNPACK", asked)
    with pytest.raises(LotteryError, match="LOTTERY_UNPACK=.*give a whole number of bytes"):
        room_for(10)
    monkeypatch.setenv("LOTTERY_UNPACK", " 2000000000 ")
    assert room_for(10) == 2_000_000_000


def test_what_is_too_long_is_said_of_the_field_that_was_given():
    for recipe, place in ((Recipe(epochs=10**15), "Recipe.epochs"), (Recipe(steps=10**16), "Recipe.steps")):
        with pytest.raises(LotteryError, match=f"give fewer {place[7:]}") as e:
            looked_at(FindPlan("digits[0-4]", recipe=recipe))
        assert e.value.place == place and str(e.value).startswith(f"{place}=")


def test_what_installs_a_library_is_there_to_be_installed():
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    extras = set(re.findall(r"\n(\w+_requirements) = ", settings))
    asked = set()
    for path in (ROOT / "lottery_nb").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        asked |= {f"{extra}_requirements" for _, extra in re.findall(r'library\("([\w.]+)", "(\w+)"\)', text)}
        asked |= {f"{extra}_requirements" for extra in re.findall(r"lottery_nb\[(\w+)\]", text)}
    assert {"timm_requirements", "hf_requirements", "app_requirements"} <= asked <= extras
    with pytest.raises(LotteryError, match="pip install nowhere$"):
        library("nowhere.part")


def test_names_in_refusals_are_names_that_exist():
    """`package.module.name` and `--flag` in a sentence: each can be imported, or is a flag of the shell."""
    flags = {
        flag
        for parser in parsers(make_parser())
        for action in parser._actions
        for flag in action.option_strings
    }
    flags |= {"--no-browser", "--port", "--Voila.ip"}
    for path in sorted((ROOT / "lottery_nb").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "LotteryError",
                "NotFound",
                "Busy",
            ):
                said = ast.unparse(node.args[0]) if node.args else ""
                for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", said):
                    assert flag in flags, f"{path.name} says {flag}"
                for wing, room, name in re.findall(
                    r"\b(data|results|runs|plans|models)\.(\w+)\.(\w+)\b", said
                ):
                    assert hasattr(importlib.import_module(f"lottery_nb.{wing}.{room}"), name), said


def parsers(parser):
    """A parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from parsers(one)
