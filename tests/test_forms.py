"""Forms are loops over the fields of recipe and plans: each field is there, a new one too, and no plan is lost in a form."""

import re
from collections.abc import Mapping
from dataclasses import fields, make_dataclass, replace
from html import escape
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import some_mask

from lottery_nb.core import LotteryError, Reference, Registry, setting
from lottery_nb.data.batches import AUGMENTATIONS
from lottery_nb.data.domains import domain
from lottery_nb.engine.recipes import LR_SCHEDULES, OPTIMIZERS, PRECISIONS, QUIRKS, Recipe
from lottery_nb.models.network import Network
from lottery_nb.models.weights import Weights
from lottery_nb.plans.find import FindPlan
from lottery_nb.plans.tickets import Ticket
from lottery_nb.plans.transfer import TransferPlan
from lottery_nb.pruning.schedules import cubic, geometric, linear, listed, one_shot, Schedule
from lottery_nb.rewinding.snapshots import fresh
from lottery_nb.workbench import carry as workbench_carry
from lottery_nb.workbench import fields as workbench_fields
from lottery_nb.workbench import find as workbench_find
from lottery_nb.workbench import forms as workbench_forms
from lottery_nb.workbench.cell import code_of
from lottery_nb.workbench.fields import Form
from lottery_nb.workbench.forms import FIND, find_plan, read_as, refusals, TRANSFER, transfer_plan, values_of
from lottery_nb.workbench.forms import write_as

OTHER = {  # a value of each field that is not its default
    Recipe: dict(
        optimizer="adam",
        lr=0.2,
        epochs=3,
        steps=9,
        batch_size=32,
        schedule="step",
        warmup=0.1,
        drops=((0.3, 0.5),),
        momentum=0.5,
        nesterov=True,
        betas=(0.8, 0.9),
        eps=1e-6,
        weight_decay=1e-4,
        augment=("flip", "crop"),
        precision="fp32",
        keep="last",
        patience=2,
        quirks=("evaluation mode",),
        decay="matrices",
        clip=0.5,
        label_smoothing=0.1,
    ),
    FindPlan: dict(
        source="digits[0-4]+blur(1)@500",
        network="conv-2",
        width=0.5,
        schedule=cubic(0.001, 50),
        rewind="epoch 2",
        retrain="learning-rate rewinding",
        recipe=Recipe(lr=0.3, steps=7),
        seeds=(0, 3, 7),
        criterion="random",
        scope="layer",
        score_at="start",
        prunable=("fc1.weight",),
        layer_fractions={"head": 0.1, "fc1": 0.2},
        controls=("random mask", "reinit"),
        floor=0.5,
        rates=(0.03,),
        margin=0.01,
    ),
    TransferPlan: dict(
        targets=("digits[0,2]", "mnist@500"),
        start=("fresh", "rewind"),
        body="frozen",
        norm="updated",
        head="mlp",
        controls=("shuffled", "dense"),
        recipe=Recipe(steps=3, optimizer="adamw"),
        normalise="source",
        floor=0.3,
        rates=(0.2,),
        margin=0.02,
    ),
}
ELSEWHERE = {"TransferPlan.tickets", "FindPlan.weights"}  # chosen by rounds of a run, or read from a file; held below


def tickets_of(rounds=(1, 2, 3), seeds=(0, 1)):
    network = Network("lenet-300-100", (1, 8, 8), 5, 0.05)
    start, mask = fresh(network, 0), some_mask(network)
    made = dict(recipe=Recipe(epochs=4), source="digits[0-4]", domain="0" * 16, norm=((0.3,), (0.4,)))
    return [
        Ticket(mask, network, {"init": start}, **made, round=r, seed=s, plan="f" * 16)
        for r in rounds
        for s in seeds
    ]


@pytest.fixture(scope="module")
def tickets():
    return tickets_of()


def find_form(cls=FindPlan):
    return Form(workbench_find.find_fields(cls), lambda: None)


def transfer_form():
    return Form(workbench_carry.transfer_fields(), lambda: None)


def held_by(form, record):
    """The form's values once it holds a recipe or plan."""
    form.hold(values_of(record))
    return form.values


def label_of(field):
    control = field.control
    return control.label if isinstance(control, workbench_fields.Checks) else control.description


def tooltip_of(field):
    """What is said when the pointer rests on a label; a box of boxes has no tooltip of its own."""
    control = field.control
    if isinstance(control, workbench_fields.Checks):
        assert control.tooltip is None  # the page would show an error in its place
        return re.search(r'title="([^"]*)"', control.legend.value)[1]
    return escape(control.tooltip)


# --- each field is there ---


@pytest.mark.parametrize("cls", OTHER)
def test_each_field_is_in_the_form_or_in_the_list_of_those_that_are_not(cls):
    form = transfer_form() if cls is TransferPlan else find_form()
    for f in fields(cls):
        place = f"{cls.__name__}.{f.name}"
        if place in workbench_forms.NOT_IN_FORM:
            assert workbench_forms.NOT_IN_FORM[place]
            continue
        names = workbench_forms.parts_of(cls, f).write(workbench_forms.default_of(f)).keys()
        assert names and names <= form.fields.keys(), place
        assert f.name in OTHER[cls] or place in ELSEWHERE, f"{place} has no other value here"


def test_weights_are_a_file_that_the_form_names_and_no_form_holds_what_a_plan_made_of_it(tmp_path):
    network = Network("lenet-300-100", (1, 8, 8), 10)
    save_file(network.build(3).state_dict(), tmp_path / "begun.safetensors")
    assert find_plan(FIND | {"weights": ""}).weights is None
    plan = find_plan(FIND | {"weights": str(tmp_path / "begun.safetensors")})
    assert plan.weights == Weights.of(network.build(3))
    with pytest.raises(LotteryError, match="change this plan in Python") as e:
        values_of(plan)
    assert e.value.place == "FindPlan.weights"


def test_the_list_of_those_that_are_not_names_fields():
    places = {f"{cls.__name__}.{f.name}" for cls in OTHER for f in fields(cls)}
    assert workbench_forms.NOT_IN_FORM.keys() <= places
    assert workbench_forms.PARTS.keys() <= places


def test_a_form_holds_nothing_else():
    assert set(find_form().fields) == {*FIND, "device"} and set(transfer_form().fields) == {*TRANSFER, "run"}


def test_a_field_that_is_left_out_is_missed(monkeypatch):
    """The walk above can fail: a field that is in neither is found."""
    less = [f for f in fields(Recipe) if f.name != "momentum"]
    whole = workbench_forms.asked_fields
    for module in (workbench_fields, workbench_forms):
        monkeypatch.setattr(module, "asked_fields", lambda cls: less if cls is Recipe else whole(cls))
    with pytest.raises(AssertionError, match="Recipe.momentum"):
        test_each_field_is_in_the_form_or_in_the_list_of_those_that_are_not(Recipe)


@pytest.mark.parametrize("name", OTHER[Recipe])
def test_each_field_of_a_recipe_comes_back_from_the_controls(name):
    plan = FindPlan(recipe=Recipe(**{name: OTHER[Recipe][name]}))
    again = find_plan(held_by(find_form(), plan))
    assert again == plan and again.hash == plan.hash and again != FindPlan()


@pytest.mark.parametrize("name", OTHER[FindPlan])
def test_each_field_of_a_search_comes_back_from_the_controls(name):
    plan = FindPlan(**{name: OTHER[FindPlan][name]})
    again = find_plan(held_by(find_form(), plan))
    assert again == plan and again.hash == plan.hash and again != FindPlan()


@pytest.mark.parametrize("name", OTHER[TransferPlan])
def test_each_field_of_a_transfer_comes_back_from_the_controls(name, tickets):
    plan = TransferPlan(tickets, **{"targets": "digits[5-9]", name: OTHER[TransferPlan][name]})
    again = transfer_plan(held_by(transfer_form(), plan), tickets)
    assert again == plan and again.hash == plan.hash


def test_the_tickets_of_some_rounds_come_back_from_the_controls(tickets):
    plan = TransferPlan([t for t in tickets if t.round > 1], "digits[5-9]")
    assert transfer_plan(held_by(transfer_form(), plan), tickets).tickets == plan.tickets


def test_each_control_has_label_help_and_tooltip():
    for form in (find_form(), transfer_form()):
        for name, field in form.fields.items():
            assert field.help and tooltip_of(field) == escape(field.help), name
            assert label_of(field), name


def test_what_is_said_of_a_field_is_said_of_one_that_there_is():
    assert workbench_fields.LOOKS.keys() <= FIND.keys() | TRANSFER.keys()
    owners = {"FindPlan": FIND, "TransferPlan": TRANSFER}
    for place in workbench_fields.WIDGETS:
        owner, _, name = place.partition(".")
        assert name in owners[owner], place
    told = workbench_find.FIND_SECTIONS | workbench_carry.TRANSFER_SECTIONS
    named = {name for names in told.values() for name in names if isinstance(name, str)}
    assert named <= FIND.keys() | TRANSFER.keys()


# --- what a form holds at first ---


@pytest.mark.parametrize("cls, form", [(FindPlan, FIND), (TransferPlan, TRANSFER)])
def test_a_form_begins_as_its_plan_but_for_what_is_said(cls, form):
    differs = {name: form[name] for name, value in values_of(cls).items() if form[name] != value}
    assert differs == workbench_forms.AT_FIRST[cls]


def test_a_form_without_what_is_said_is_the_plan_of_nothing_said(tickets):
    assert find_plan(values_of(FindPlan)) == FindPlan()
    values = values_of(TransferPlan) | {"others": "digits[5-9]", "rounds": (1, 2, 3)}
    assert transfer_plan(values, tickets) == TransferPlan(tickets, "digits[5-9]")


# --- a field that is new ---

GLAZES = Registry("glaze")
GLAZES |= {"clear": None, "blue": None}
NEW = {  # type, default, another value, what the control holds then
    "smoothing": (float, 0.0, 0.1, 0.1),
    "grace": (int, 1, 3, 3),
    "centred": (bool, False, True, True),
    "mood": (Literal["calm", "wild"], "calm", "wild", "wild"),
    "muse": (Literal["one", "two"] | None, None, "two", "two"),
    "tricks": (tuple[Literal["a", "b", "c"], ...], (), ("c", "a"), ("c", "a")),
    "shrink": (float | None, None, 0.5, "0.5"),
    "limit": (int | None, 3, None, ""),
    "path": (tuple[tuple[float, float], ...], ((0.5, 0.1),), ((0.1, 0.2), (0.3, 1e-5)), "0.1:0.2, 0.3:1e-05"),
    "several": (tuple[float, ...], (), (0.25, 2), "0.25, 2"),
    "layers": (tuple[str, ...] | None, None, ("fc1", "1"), "fc1, 1"),
    "shares": (Mapping[str, float], None, {"fc1": 0.5, "fc2": 1}, "fc1=0.5, fc2=1"),
    "note": (str, "", "a, b", "a, b"),
    "whatever": (Any, 3, (0, 3), "0, 3"),
}
REGISTERED = dict(default="clear", registry=GLAZES)


def with_field(cls, name, kind, **given):
    """A recipe or plan with one field more, as another package would write it."""
    return make_dataclass(
        f"Own{cls.__name__}", [(name, kind, setting("what is new", **given))], bases=(cls,), frozen=True
    )


def with_recipe(recipe):
    """A plan whose recipe is of that class."""
    return make_dataclass(
        "OwnFindPlan", [("recipe", recipe, setting("how", default=recipe()))], bases=(FindPlan,), frozen=True
    )


def goes_round(cls, plan, name, held, made):
    """Control, plan, text of a cell, plan, form: the same each time."""
    form = find_form(cls)
    field = form.fields[name]
    assert field.help == "what is new" == tooltip_of(field) and "what is new" in field.line.value
    assert any(field in fold.inside.children for fold in form.folds.values())
    workbench_fields.hold(field.control, held)
    assert form.values[name] == held
    told = find_plan(values_of(plan) | {name: form.values[name]}, cls)
    assert told == plan and refusals(form.values) == {}
    names = {made.__name__: made, cls.__name__: cls, "Recipe": Recipe}
    again = eval(code_of(told), names)  # noqa: S307
    assert again == plan and find_plan(held_by(find_form(cls), again), cls) == plan


@pytest.mark.parametrize("name", NEW)
def test_a_new_field_of_a_recipe_stands_in_the_form(name):
    kind, default, other, held = NEW[name]
    given = {"default_factory": dict} if kind == Mapping[str, float] else {"default": default}
    made = with_field(Recipe, name, kind, **given)
    cls = with_recipe(made)
    goes_round(cls, cls(recipe=made(**{name: other})), name, held, made)


@pytest.mark.parametrize("name", NEW)
def test_a_new_field_of_a_plan_stands_in_the_form(name):
    kind, default, other, held = NEW[name]
    given = {"default_factory": dict} if kind == Mapping[str, float] else {"default": default}
    cls = with_field(FindPlan, name, kind, **given)
    goes_round(cls, cls(**{name: other}), name, held, cls)


@pytest.mark.parametrize("kind, other", [(str, "blue"), (tuple, ("blue", "clear"))])
def test_a_new_field_with_a_registry_offers_its_names(kind, other):
    given = REGISTERED | {"default": ()} if kind is tuple else REGISTERED
    cls = with_field(FindPlan, "glaze", kind, **given)
    goes_round(cls, cls(glaze=other), "glaze", other, cls)


def test_a_form_of_before_says_nothing_of_a_new_field():
    cls = with_field(FindPlan, "smoothing", float, default=0.25)
    assert find_plan(FIND, cls).smoothing == 0.25


def test_a_new_field_that_is_wrong_is_refused_beside_it():
    """A number that the plan refuses, in a box that holds a text."""
    assert list(refusals(FIND | {"steps": "1.5"})) == ["steps"]
    assert list(refusals(FIND | {"nesterov": "yes"})) == ["nesterov"]


# --- no plan is lost in a form ---

SHARE = st.floats(0.001, 0.99)
RECIPES = st.builds(
    Recipe,
    optimizer=st.sampled_from(OPTIMIZERS),
    lr=st.floats(1e-9, 1e3),
    epochs=st.integers(1, 10**6),
    steps=st.none() | st.integers(1, 10**6),
    batch_size=st.integers(1, 10**4),
    schedule=st.sampled_from(LR_SCHEDULES),
    warmup=st.floats(0, 1),
    drops=st.lists(st.tuples(SHARE, SHARE), max_size=3).map(tuple),
    momentum=SHARE,
    nesterov=st.booleans(),
    betas=st.tuples(SHARE, SHARE),
    eps=st.floats(1e-12, 1),
    weight_decay=st.floats(0, 1),
    augment=st.lists(st.sampled_from(AUGMENTATIONS), unique=True).map(tuple),
    precision=st.sampled_from(PRECISIONS),
    keep=st.sampled_from(["best accuracy", "best loss", "last"]),
    patience=st.none() | st.integers(1, 100),
    quirks=st.lists(st.sampled_from(list(QUIRKS)[1:]), unique=True).map(tuple),
    decay=st.sampled_from(["all", "matrices"]),
    clip=st.none() | st.floats(1e-6, 1e3),
    label_smoothing=SHARE,
)
SCHEDULES_MADE = st.one_of(
    st.builds(geometric, SHARE, st.integers(1, 60)),
    st.builds(one_shot, SHARE),
    st.builds(linear, SHARE, st.integers(1, 60)),
    st.builds(cubic, SHARE, st.integers(1, 60)),
    st.lists(SHARE, min_size=1, max_size=5, unique=True).map(lambda d: listed(sorted(d, reverse=True))),
)
FINDS = st.builds(
    FindPlan,
    source=st.sampled_from(["digits", "digits[0-4]", "digits+blur(1)@500", "digits[0,2]+rotate(30)"]),
    width=st.floats(0.01, 8),
    schedule=SCHEDULES_MADE,
    rewind=st.sampled_from(["init", "step 7", "epoch 12", "source-trained"]),
    retrain=st.sampled_from(["weight rewinding", "learning-rate rewinding"]),
    recipe=RECIPES,
    seeds=st.integers(1, 30) | st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True).map(tuple),
    score_at=st.sampled_from(["trained", "start"]),
    prunable=st.none() | st.lists(st.sampled_from(["fc1.weight", "0.weight", "7"]), max_size=3).map(tuple),
    controls=st.lists(st.sampled_from(["reinit", "shuffled", "random mask"]), unique=True).map(tuple),
    floor=st.floats(0, 1),
    margin=st.floats(0, 1),
)


@settings(max_examples=75, deadline=None)
@given(FINDS)
def test_a_search_goes_into_a_form_and_comes_back(plan):
    again = find_plan(values_of(plan))
    assert again == plan and again.hash == plan.hash and type(again.seeds) is tuple


@settings(max_examples=60, deadline=None)
@given(
    st.none() | RECIPES,
    st.lists(st.sampled_from(["digits[5-9]", "mnist", "digits[0,1]+invert"]), min_size=1, unique=True),
    st.lists(st.sampled_from([1, 2, 3]), min_size=1, unique=True).map(sorted),
)
def test_a_transfer_goes_into_a_form_and_comes_back(recipe, targets, rounds):
    every = tickets_of(seeds=(0,))
    plan = TransferPlan([t for t in every if t.round in rounds], targets, recipe=recipe)
    assert transfer_plan(values_of(plan), every).hash == plan.hash


NUMBER = st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
WORD = st.text(st.characters(codec="ascii", categories=("L", "N"), include_characters="._-"), min_size=1)


@settings(max_examples=75, deadline=None)
@given(
    st.one_of(
        st.tuples(st.just(tuple[float, ...]), st.lists(NUMBER).map(tuple)),
        st.tuples(st.just(tuple[float, ...] | None), st.none() | st.lists(NUMBER).map(tuple)),
        st.tuples(st.just(tuple[str, ...] | None), st.none() | st.lists(st.text()).map(tuple)),
        st.tuples(st.just(tuple[tuple[float, float], ...]), st.lists(st.tuples(NUMBER, NUMBER)).map(tuple)),
        st.tuples(st.just(Mapping[str, float]), st.dictionaries(st.text(), NUMBER)),
        st.tuples(st.just(Mapping[str, float]), st.dictionaries(WORD, NUMBER)),
        st.tuples(st.just(float | None), st.none() | NUMBER),
        st.tuples(st.just(Any), NUMBER | st.lists(NUMBER, min_size=1).map(tuple)),
    )
)
def test_a_text_says_the_value_that_it_was_written_from(pair):
    kind, value = pair
    again = read_as(write_as(value, kind), kind)
    assert again == value and repr(again) == repr(value)


@pytest.mark.parametrize(
    "text, kind, value",
    [
        ("{'head': 0.1}", Mapping[str, float], {"head": 0.1}),
        ("head = 0.1", Mapping[str, float], {"head": 0.1}),
        ("(0.1, 0.2)", tuple[float, ...], (0.1, 0.2)),
        ("()", tuple[str, ...] | None, ()),
        (" ", tuple[str, ...] | None, None),
        ("0.5 : 0.1", tuple[tuple[float, float], ...], ((0.5, 0.1),)),
        ("3,", Any, (3,)),
        ("(", Any, "("),
    ],
)
def test_a_text_may_be_written_as_one_likes(text, kind, value):
    assert read_as(text, kind) == value


# --- what a form cannot hold ---


def test_data_and_networks_of_ones_own_are_refused(tickets):
    for plan, place in (
        (FindPlan(domain("digits[0-4]").adapt((1, 4, 4))), "FindPlan.source"),
        (FindPlan(network=Network("conv-2", (1, 8, 8), 5)), "FindPlan.network"),
        (TransferPlan(tickets, [domain("digits").adapt((1, 4, 4))]), "TransferPlan.targets"),
    ):
        with pytest.raises(LotteryError, match="a form holds names only") as e:
            values_of(plan)
        assert e.value.place == place


def test_a_criterion_by_its_module_is_held(monkeypatch, tmp_path):
    (tmp_path / "kiln.py").write_text("def heat(scoring):\n    return scoring.weights\n")
    monkeypatch.syspath_prepend(tmp_path)
    plan = FindPlan(criterion="kiln:heat")
    assert isinstance(plan.criterion, Reference)
    assert find_plan(held_by(find_form(), plan)) == plan


def test_a_schedule_of_a_kind_without_a_name_stands_as_a_call(monkeypatch, tmp_path):
    (tmp_path / "stair.py").write_text(
        "def down(r, rounds, low, steps=2):\n    return 1 - (1 - low) * r / rounds\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plan = FindPlan(schedule=Schedule("stair:down", 3, (0.25, 4)))
    values = held_by(find_form(), plan)
    assert values["written"].startswith("stair:down(") and find_plan(values) == plan


# --- controls ---


def test_what_is_ticked_again_stands_where_it_stood():
    """A plan's controls keep their order in a form, and a click forth and back makes no other plan."""
    plan = FindPlan(controls=("random mask", "reinit", "shuffled"))
    form = find_form()
    form.hold(values_of(plan))
    boxes = {b.name: b for b in form.fields["controls"].control.box.children}
    boxes["random mask"].value = False
    assert find_plan(form.values).controls == ("reinit", "shuffled")
    boxes["random mask"].value = True
    assert find_plan(form.values) == plan


def test_a_slider_reaches_further_for_a_plan_that_does():
    form = find_form()
    form.hold(values_of(replace(FindPlan(), schedule=geometric(0.0001, 400))))
    assert (form.values["rounds"], form.values["fraction"]) == (400, 0.0001)
