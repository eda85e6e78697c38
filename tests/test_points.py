"""Rewind points: one record each, a number where one is asked for, and those of other packages."""

import json

import pandas as pd
import pytest
from tiny import plan

from lottery_nb.core import canonical, from_plain, LotteryError, Reference
from lottery_nb.plans.find import FindPlan, Search
from lottery_nb.rewinding.points import ImportedPoint, Length, POINTS, rewind_point, rewind_step, starts
from lottery_nb.results.stats import in_order, STARTS
from lottery_nb.results.style import DASHES
from lottery_nb.results.words import plan_table
from lottery_nb.workbench.forms import FIND, find_plan, refusals

LENGTH = Length(steps=60, steps_per_epoch=20)


def tenth(length, number=3):
    "tenths of the dense training"
    return length.steps * number // 10


def last_step(length):
    return length.steps - 1


def before_all(length):
    return -1


@pytest.fixture
def registered():
    "Points that a notebook registers, forgotten afterwards."
    before = set(POINTS)
    yield rewind_point
    for name in set(POINTS) - before:
        del POINTS[name]


@pytest.mark.parametrize(
    "point, step",
    [
        ("init", 0),
        ("step 0", 0),
        ("step 7", 7),
        ("epoch 2", 40),
        ("source-trained", None),
        (f"{__name__}:tenth 5", 30),
        (f"{__name__}:last_step", 59),
    ],
)
def test_a_point_is_a_step_of_the_dense_training(point, step):
    kept = FindPlan(rewind=point).rewind
    assert rewind_step(kept, LENGTH) == step and str(kept) == point


@pytest.mark.parametrize(
    "point",
    [
        "late",
        "step",
        "step -1",
        "step 1.5",
        "step  2",
        "init 3",
        "source-trained 1",
        "epoch two",
        "",
        None,
        3,
    ],
)
def test_other_words_are_refused_with_what_may_be_given(point):
    with pytest.raises(LotteryError, match="give 'init', 'step 500', 'epoch 2' or 'source-trained'") as e:
        FindPlan(rewind=point)
    assert e.value.place == "FindPlan.rewind"


@pytest.mark.parametrize(
    "point, says",
    [
        (f"{__name__}:tenth", f"give '{__name__}:tenth 3'"),
        (f"{__name__}:last_step 2", f"give '{__name__}:last_step'"),
        (f"{__name__}:nothing 2", "holds no 'nothing'"),
        ("no_such_package:f", "cannot be imported here"),
        (lambda length, number: 0, "give '<lambda>"),
        (max, "has no Python source"),
    ],
)
def test_a_point_by_import_is_refused_as_others_are(point, says):
    with pytest.raises(LotteryError, match=says) as e:
        FindPlan(rewind=point)
    assert e.value.place in ("FindPlan.rewind", "")


def test_a_step_that_is_none_is_refused_before_training():
    with pytest.raises(LotteryError, match="its step") as e:
        rewind_step(FindPlan(rewind=before_all).rewind, LENGTH)
    assert e.value.place == "FindPlan.rewind"


def test_a_point_by_import_goes_to_json_and_back():
    given = FindPlan(rewind=f"{__name__}:tenth 4")
    again = from_plain(json.loads(canonical(given)))
    assert again == given and again.hash == given.hash and isinstance(again.rewind, ImportedPoint)
    assert again.hash != FindPlan(rewind=f"{__name__}:tenth 5").hash
    assert FindPlan(rewind=last_step).rewind == ImportedPoint(Reference.to(last_step))


@pytest.mark.parametrize(
    "damaged", [{"point": "init"}, {"point": None}, {"number": -1}, {"number": "4"}, {"number": 1.5}]
)
def test_a_damaged_point_is_refused_when_it_is_read(damaged):
    plain = json.loads(canonical(FindPlan(rewind=f"{__name__}:tenth 4")))
    with pytest.raises(LotteryError):
        from_plain(plain | {"rewind": plain["rewind"] | damaged})


def test_a_file_imports_nothing_for_a_point():
    plain = json.loads(canonical(FindPlan()))
    with pytest.raises(LotteryError, match="without the hash of its source"):
        from_plain(plain | {"rewind": "antigravity:fly"})
    read = from_plain(plain | {"rewind": "of somebody else"})  # whose package may be missing here
    assert read.rewind == "of somebody else"
    assert dict(plan_table(read).itertuples(index=False, name=None))["rewind to"] == "of somebody else"
    with pytest.raises(LotteryError, match="give 'init'"):
        Search(read)


def test_a_registered_point_is_offered_and_taken(registered):
    registered("tenth")(tenth)
    found = Search(plan(rewind="tenth 5"))
    assert found.point == found.total // 2 and "tenth" in POINTS.names
    form = FIND | {"rewind": "tenth", "rewind_at": 5}
    assert not refusals(form) and find_plan(form).rewind == "tenth 5"
    with pytest.raises(LotteryError, match="'source-trained' or 'tenth 3'"):
        FindPlan(rewind=tenth)  # without its number
    with pytest.raises(LotteryError, match="'source-trained' or 'tenth 3'"):
        FindPlan(rewind="eleventh 2")


def test_every_ticket_holds_points_of_this_package_only(registered):
    with pytest.raises(LotteryError, match="cannot be held by every ticket"):
        registered("tenth", held=True)(tenth)
    registered("tenth")(tenth)
    assert list(starts()) == list(STARTS) == list(DASHES) == ["rewind", "init", "source-trained", "fresh"]


def test_dashes_and_order_follow_from_the_records():
    assert len(set(DASHES.values())) == len(DASHES) and all(start.help for start in starts().values())
    rows = [
        {"role": "ticket", "start": s, "density": 1.0}
        for s in ("fresh", "elsewhere", "source-trained", "rewind")
    ]
    assert list(in_order(pd.DataFrame(rows))["start"]) == ["rewind", "source-trained", "fresh", "elsewhere"]


@pytest.mark.parametrize("name", ["rewind", "fresh", "late 500", "a:b", "", " late", "500"])
def test_a_name_that_cannot_be_told_from_others_is_refused(name):
    with pytest.raises(LotteryError, match="rewind point"):
        rewind_point(name)


def test_a_form_refuses_an_unknown_point_at_its_own_field():
    assert list(refusals(FIND | {"rewind": "late"})) == ["rewind"]
    assert list(refusals(FIND | {"rewind": "step", "rewind_at": -1})) == ["rewind_at"]
