"""Every refusal of a plan says which field it is about, and every field of a form is refused at that field."""

from dataclasses import fields

import pytest
import torch
from torch import nn

from lottery_nb.core import expect_error, LotteryError, NotFound
from lottery_nb.workbench.forms import (
    FIND,
    find_field,
    find_plan,
    RECIPES,
    refusals,
    TRANSFER,
    transfer_refusals,
)
from lottery_nb.workbench.forms import values_of
from lottery_nb.workbench.cost import looked_at
from lottery_nb.models.network import Network
from lottery_nb.pruning.schedules import cubic, geometric, linear, listed, one_shot, Schedule
from lottery_nb.plans.find import find_tickets, FindPlan, Search
from lottery_nb.engine.recipes import Recipe
from lottery_nb.engine.training import finish
from lottery_nb.plans.transfer import transfer_arms, TransferPlan

RECIPE = dict(
    optimizer="sdg",
    lr=0,
    epochs=0,
    steps=0,
    batch_size=1.5,
    schedule="one",
    warmup=2,
    drops=((2, 0.1),),
    momentum=1,
    nesterov=None,
    betas=(0.9, 2),
    eps=0,
    weight_decay=-1,
    augment=("flop",),
    precision="fp8",
    keep="first",
    patience=-1,
    quirks=("odd",),
    decay="some",
    clip=0,
    label_smoothing=2,
)
FIND_PLAN = dict(
    source="digitz",
    network="lenet-30",
    width=0,
    schedule=3,
    rewind="stpe 3",
    retrain="fine",
    recipe=3,
    seeds=0,
    criterion="magnitud",
    scope="globl",
    score_at="end",
    prunable="fc1.weight",
    layer_fractions={"head": 2},
    controls=("re-init",),
    floor=2,
    rates=(0,),
    margin=2,
    weights="nowhere.safetensors",
)
TRANSFER_PLAN = dict(
    tickets=("a.safetensors",),
    targets=("digitz",),
    start=("late",),
    body="thaw",
    norm="lost",
    head="old",
    controls=("re-init",),
    recipe=3,
    normalise="none",
    floor=-1,
    rates=(0,),
    margin=-1,
)
NETWORK = dict(
    name="lenet-30",
    input_shape=(1, 0, 8),
    n_classes=1,
    width=0,
    head="tail",
    head_layer="nowhere",
    vocabulary=1,
    weights="nowhere.safetensors",
)
UNCHECKED = {"Recipe.nesterov"}  # any value is as good as True or False


@pytest.fixture(scope="module")
def tickets():
    plan = FindPlan(
        "digits[0-4]",
        schedule=geometric(0.5, 1),
        recipe=Recipe(epochs=1, batch_size=64),
        seeds=1,
        controls=(),
    )
    return finish(find_tickets(plan, "cpu"))


def place(make):
    with pytest.raises(LotteryError) as e:
        make()
    return e.value.place


@pytest.mark.parametrize("name", [f.name for f in fields(Recipe)])
def test_a_recipe_says_which_field_is_wrong(name):
    if f"Recipe.{name}" in UNCHECKED:
        return
    assert place(lambda: Recipe(**{name: RECIPE[name]})) == f"Recipe.{name}"


@pytest.mark.parametrize("name", [f.name for f in fields(FindPlan)])
def test_a_plan_to_find_tickets_says_which_field_is_wrong(name):
    assert place(lambda: FindPlan(**{name: FIND_PLAN[name]})) == f"FindPlan.{name}"


@pytest.mark.parametrize("name", [f.name for f in fields(TransferPlan)])
def test_a_transfer_says_which_field_is_wrong(name, tickets):
    assert (
        place(lambda: TransferPlan(**{"tickets": tickets, "targets": "digits", name: TRANSFER_PLAN[name]}))
        == f"TransferPlan.{name}"
    )


@pytest.mark.parametrize("name", ["tickets", "targets", "start"])
@pytest.mark.parametrize("empty", [(), 3])
def test_a_transfer_of_nothing_says_what_is_missing(name, empty, tickets):
    with pytest.raises(LotteryError) as e:
        TransferPlan(**{"tickets": tickets, "targets": "digits", name: empty})
    assert e.value.place == f"TransferPlan.{name}" and e.value.kind == ("" if empty else "empty")


@pytest.mark.parametrize("name", [f.name for f in fields(Network)])
def test_a_network_says_which_field_is_wrong(name):
    own = (
        {"name": lambda shape, n: nn.Sequential(nn.Flatten(), nn.Linear(64, n))}
        if name == "head_layer"
        else {}
    )
    made = {"name": "lenet-300-100", "input_shape": (1, 8, 8), "n_classes": 5, **own, name: NETWORK[name]}
    assert place(lambda: Search(FindPlan("digits[0-4]", Network(**made)))) == f"Network.{name}"


@pytest.mark.parametrize(
    "make, field",
    [
        (lambda: geometric(1.5, 3), "fraction"),
        (lambda: geometric(0.2, 0), "rounds"),
        (lambda: one_shot(0), "density"),
        (lambda: one_shot(-1), "density"),
        (lambda: linear(2, 3), "density"),
        (lambda: cubic(0.0, 3), "density"),
        (lambda: listed([0.5, 0.6]), "densities"),
        (lambda: listed([-1]), "densities"),
        (lambda: Schedule("geometrical", 3, (0.2,)), "kind"),
    ],
)
def test_a_schedule_says_which_number_is_wrong(make, field):
    assert place(make) == f"Schedule.{field}"


def gives_nothing(shape, n):
    return torch.nn.Flatten()


@pytest.mark.parametrize(
    "changes, field",
    [
        (dict(rewind="epoch 50"), "FindPlan.rewind"),
        (dict(layer_fractions={"hed": 0.1}), "FindPlan.layer_fractions"),
        (dict(prunable=("fc9.weight",)), "FindPlan.prunable"),
        (dict(source="digits[0-99]"), "FindPlan.source"),
        (dict(source="digits@3"), "FindPlan.source"),
        (dict(network=gives_nothing), "Network.n_classes"),
        (dict(network="text-cnn"), "Network.input_shape"),
        (dict(retrain="fine-tuning"), "FindPlan.retrain"),
        (dict(layer_fractions={"head": 0.1}, schedule=cubic(0.1, 2)), "FindPlan.layer_fractions"),
    ],
)
def test_what_does_not_fit_together_has_a_place(changes, field):
    assert place(lambda: Search(FindPlan(**{"source": "digits[0-4]", **changes}))) == field


def test_a_target_that_does_not_fit_has_a_place(tickets):
    assert place(lambda: transfer_arms(TransferPlan(tickets, "digits[0-99]"))) == "TransferPlan.targets"
    assert (
        place(lambda: transfer_arms(TransferPlan(tickets, "digits[0-2]", head="reuse")))
        == "TransferPlan.head"
    )


# --- forms ---

FIND_FORM = dict(
    source=dict(source="digitz"),
    part=dict(part="[0-99]"),
    network=dict(network="lenet-30"),
    width=dict(width=0.0),
    optimizer=dict(optimizer="sdg"),
    lr=dict(lr=0.0),
    lr_schedule=dict(lr_schedule="one"),
    epochs=dict(epochs=1.5),
    batch_size=dict(batch_size=0),
    weight_decay=dict(weight_decay=-1.0),
    warmup=dict(warmup=2.0),
    augment=dict(augment=("flop",)),
    precision=dict(precision="fp8"),
    keep=dict(keep="first"),
    patience=dict(patience="-1"),
    criterion=dict(criterion="magnitud"),
    scope=dict(scope="globl"),
    score_at=dict(score_at="end"),
    kind=dict(kind="square"),
    fraction=dict(fraction=1.2),
    rounds=dict(rounds=0),
    density=dict(kind="cubic", density=0.0),
    densities=dict(kind="listed", densities="0.2, 0.5"),
    written=dict(written="cubic(0)"),
    layer_fractions=dict(layer_fractions="head=2"),
    prunable=dict(prunable="fc9.weight"),
    rates=dict(rates="0.03, much"),
    steps=dict(steps="0"),
    drops=dict(drops="0.5"),
    momentum=dict(momentum=1.5),
    nesterov=dict(nesterov="perhaps"),
    betas=dict(betas="0.9"),
    eps=dict(eps=0.0),
    quirks=dict(quirks=("haste",)),
    decay=dict(decay="some"),
    clip=dict(clip="0"),
    label_smoothing=dict(label_smoothing=2.0),
    rewind=dict(rewind="late"),
    rewind_at=dict(rewind="epoch", rewind_at=1.5),
    retrain=dict(retrain="fine"),
    seeds=dict(seeds="3, 3"),
    controls=dict(controls=("re-init",)),
    floor=dict(floor=2.0),
    margin=dict(margin=2.0),
    weights=dict(weights="nowhere.safetensors"),
)
TRANSFER_FORM = dict(
    rounds=dict(rounds=()),
    targets=dict(targets=("digitz",)),
    others=dict(others="digitz"),
    start=dict(start=("late",)),
    body=dict(body="thaw"),
    norm=dict(norm="lost"),
    head=dict(head="old"),
    controls=dict(controls=("re-init",)),
    normalise=dict(normalise="none"),
    floor=dict(floor=-1.0),
    rates=dict(rates="-1"),
    margin=dict(margin=-1.0),
    recipe=dict(recipe="some other"),
)
TRANSFER_FORM |= {
    name: dict(recipe=RECIPES[1], **FIND_FORM[name]) for name in values_of(Recipe)
}  # a recipe is asked for in the same words


def test_the_tables_have_every_field():
    assert FIND_FORM.keys() == FIND.keys() and TRANSFER_FORM.keys() == TRANSFER.keys()


@pytest.mark.parametrize("field", FIND_FORM)
def test_each_field_of_the_form_that_finds_tickets_is_refused_at_that_field(field):
    values = FIND | FIND_FORM[field]
    found = refusals(values)
    if not found:
        with pytest.raises(LotteryError) as e:
            looked_at(find_plan(values))
        found = {find_field(e.value, values): str(e.value)}
    assert list(found) == [field]
    assert not any(why.startswith(("FindPlan.", "Recipe.", "Network.")) for why in refusals(values).values())


@pytest.mark.parametrize("field", TRANSFER_FORM)
def test_each_field_of_the_transfer_form_is_refused_at_that_field(field, tickets):
    values = TRANSFER | dict(rounds=(1,), targets=("digits[5-9]",)) | TRANSFER_FORM[field]
    found = transfer_refusals(values, tickets, deep=True)
    assert list(found) == [field] and not found[field].startswith(("TransferPlan.", "Recipe."))


def test_data_that_are_nowhere_are_the_fault_of_the_source(monkeypatch, tmp_path):
    monkeypatch.setenv("LOTTERY_DATA", str(tmp_path))
    monkeypatch.setenv("LOTTERY_DOWNLOAD", "0")
    monkeypatch.setattr("lottery_nb.data.readers.data_folders", lambda: (tmp_path,))
    monkeypatch.setattr("lottery_nb.data.domains.data_folders", lambda: (tmp_path,))
    values = FIND | dict(source="smallnorb", part="[0-3]")
    with pytest.raises(NotFound) as e:
        looked_at(find_plan(values))
    assert e.value.place == "FindPlan.source" and find_field(e.value, values) == "source"
    with expect_error("classes", "FindPlan.source"):
        looked_at(find_plan(FIND | dict(part="[0]")))
