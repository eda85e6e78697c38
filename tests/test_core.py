"""What is no lesson of 00_core: functions that cannot be named in a file, and records that no class can hold."""

import copy
import importlib
import linecache
import math
import pickle
import subprocess
import sys

import breaking
import numpy as np
import pytest
import tiny
import torch

from lottery_nb.core import (
    about,
    Busy,
    canonical,
    check_choice,
    check_number,
    DATA,
    data,
    expect_error,
    from_plain,
    imported,
    LotteryError,
    Reference,
    Registry,
    to_plain,
)
from lottery_nb.events import EVENTS
from lottery_nb.files import safe_child


def says(do):
    "The one sentence that a refusal is."
    with pytest.raises(LotteryError) as e:
        do()
    assert str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 500
    return str(e.value)


@pytest.mark.parametrize(
    "fn",
    [len, math.sin, dict.get, torch.nn.functional.gelu, torch.matmul, print, dict, type(len)],
    ids=lambda fn: fn.__name__,
)
def test_what_has_no_python_source_is_no_reference(fn):
    assert "has no Python source" in says(lambda: Reference.to(fn)) or "move it to a module" in says(
        lambda: Reference.to(fn)
    )
    says(lambda: canonical(fn))


def test_a_function_whose_source_is_gone_is_no_reference(tmp_path, monkeypatch):
    (tmp_path / "vanishing.py").write_text("def f(x): return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    known = Reference.to(importlib.import_module("vanishing").f)
    (tmp_path / "vanishing.py").unlink()
    importlib.invalidate_caches()
    linecache.clearcache()
    assert "vanishing:f has no Python source" in says(lambda: Reference.to(sys.modules["vanishing"].f))
    assert "vanishing:f has no Python source" in says(lambda: known(1))
    assert "has no Python source" in says(lambda: Reference("builtins:exec", "0" * 16)("1"))


@pytest.mark.parametrize(
    "error", [RuntimeError, KeyError, ValueError, AttributeError, OverflowError, TypeError]
)
def test_an_error_of_many_lines_in_a_record_is_one_sentence(error):
    def refuse(self):
        raise error("Expected\n  all tensors\n" + "x" * 5000)

    Clumsy = data(type("Clumsy", (), {"__annotations__": {"x": int}, "__post_init__": refuse}))
    try:
        assert (
            "'Clumsy' does not fit this version: " in says(lambda: from_plain({"type": "Clumsy", "x": 1}))
            and Clumsy
        )
    finally:
        del DATA["Clumsy"]


@pytest.mark.parametrize(
    "value",
    [
        *breaking.NASTY,
        {"type": "dict", "items": [[1]]},
        {"type": "dict", "items": [[{"type": "dict", "items": []}, 1]]},
        {"type": "float", "value": []},
        {"type": "Network", "name": "conv-2", "input_shape": [2**62, 2**31, 2**31], "n_classes": 2},
        {"type": "Recipe", "lr": 10**400},
    ],
    ids=lambda v: repr(v)[:40],
)
def test_a_record_is_read_or_refused_in_one_sentence(value):
    try:
        from_plain(value)
    except LotteryError as e:
        assert "\n" not in str(e) and len(str(e)) < 1000


def test_a_name_of_any_length_is_refused_in_a_short_sentence(tmp_path):
    for name in ("9" * 10**6, 10**400, "a/" * 1000):
        with pytest.raises(LotteryError) as e:
            safe_child(tmp_path, name)
        assert len(str(e.value)) < 200


# --- what a refusal is about ---


@pytest.mark.parametrize(
    "again",
    [
        copy.copy,
        copy.deepcopy,
        lambda e: pickle.loads(pickle.dumps(e)),
        lambda e: e.within("a file"),
        lambda e: e.at("Recipe.eps"),
    ],
    ids=["copy", "deepcopy", "pickle", "within", "at"],
)
def test_a_refusal_keeps_its_class_place_and_kind(again):
    e = again(Busy("lr=0: give more", "Recipe.lr", "small"))
    assert (type(e), e.place, e.kind) == (Busy, "Recipe.lr", "small") and str(e).endswith("lr=0: give more")


@pytest.mark.parametrize(
    "what, place",
    [
        ("Recipe.lr", "Recipe.lr"),
        ("Recipe.drops share", "Recipe.drops"),
        ("FindPlan.layer_fractions['head']", "FindPlan.layer_fractions"),
        ("floor", ""),
        ("its seed", ""),
    ],
)
def test_a_check_knows_the_field_that_its_place_begins_with(what, place):
    with expect_error(what, place):
        check_number(-1, what)
    with expect_error(what, place):
        check_choice(-1, (1, 2), what)
    with expect_error(what, "Schedule.rounds"):
        check_number(-1, what, place="Schedule.rounds")


@pytest.mark.parametrize(
    "number", [torch.tensor(0.5), np.float32(0.5), np.int64(1)], ids=["torch", "numpy", "whole"]
)
def test_a_number_of_a_library_is_refused_by_what_it_is(number):
    with expect_error("give a number of Python (`.item()` gives it) above 0", "Recipe.lr"):
        check_number(number, "Recipe.lr", above=True)
    check_number(number.item(), "Recipe.lr", above=True)
    check_number(np.float64(0.5), "Recipe.lr", above=True)  # which is one of Python


def test_the_innermost_field_is_the_one_that_a_refusal_is_about():
    with expect_error("no", "Network.width"), about("FindPlan.network"), about("Network.width"):
        raise LotteryError("no")
    with pytest.raises(ZeroDivisionError), about("FindPlan.network"):
        raise ZeroDivisionError


def test_a_refusal_about_another_field_is_not_the_one_that_was_expected():
    with pytest.raises(AssertionError, match="Recipe.lr"), expect_error("no", "Recipe.eps"):
        raise LotteryError("no", "Recipe.lr")


# --- names from elsewhere ---


def test_an_entry_point_is_listed_from_metadata_and_loaded_when_its_name_is_used(tmp_path, monkeypatch):
    tiny.installed(
        tmp_path, monkeypatch, "orchard", "def pear(): return 'soft'\n", odd_fruit="pear = orchard:pear"
    )
    fruits = Registry("odd fruit")
    assert fruits.names == ("pear",) and "orchard" not in sys.modules and "pear" not in fruits
    assert (
        fruits["pear"]() == "soft"
        and "orchard" in sys.modules
        and fruits["pear"] is fruits.find("pear")
        and fruits.keep("pear") == "pear"
    )
    assert "did you mean 'pear'" in says(lambda: fruits["paer"])
    assert Registry("fruit").names == ()
    del sys.modules["orchard"]


def test_a_package_may_register_its_entry_itself(tmp_path, monkeypatch):
    source = (
        "from test_core import SHELF\n"
        "@SHELF.register('quince')\n"
        "def quince(): return 'hard'\n"
        "SHELF['quince'] = (quince, 'a record')\n"
    )
    tiny.installed(tmp_path, monkeypatch, "shelf", source, shelf="quince = shelf:quince")
    assert SHELF["quince"][1] == "a record"
    del sys.modules["shelf"], SHELF["quince"]


SHELF = Registry("shelf", record=lambda fn: (fn, "made from a function"))


@pytest.mark.parametrize(
    "line, about", [("plum = no_such_package:plum", "no_such_package"), ("plum = textwrap:plum", "plum")]
)
def test_an_entry_point_that_cannot_be_loaded_is_refused_with_its_package(line, about, tmp_path, monkeypatch):
    tiny.installed(tmp_path, monkeypatch, "rotten", "", fruit=line)
    assert (said := says(lambda: Registry("fruit")["plum"])).startswith(
        "'plum' of rotten cannot be loaded"
    ) and about in said


def test_a_name_found_by_import_is_kept_as_a_reference():
    found = SHELF.keep("tiny:listen")
    assert found == Reference.to(tiny.listen) and SHELF["tiny:listen"] == SHELF.find(found) == SHELF.find(
        tiny.listen
    ) == (tiny.listen, "made from a function")
    assert SHELF.names == () and str(found) == "tiny:listen"  # what was found is not registered


@pytest.mark.parametrize(
    "name",
    [
        "tiny:listen ",
        " tiny:listen",
        "tiny:listen\n",
        "tiny:",
        ":listen",
        "tiny::listen",
        "tiny:a:b",
        "tiny..x:listen",
        "tiny:listen.",
        ".tiny:listen",
        "os/path:join",
        "tiny:listen()",
        "",
    ],
)
def test_only_one_form_of_name_is_imported(name):
    assert "cannot be imported here: write package.module:name" in says(lambda: imported(name))
    says(lambda: SHELF[name])


def test_reading_a_file_imports_nothing(tmp_path, monkeypatch):
    @data
    class Shelf:
        fruit: str

        def __post_init__(self):
            SHELF.find(self.fruit)

    (tmp_path / "trap.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert "without the hash of its source" in says(
            lambda: from_plain({"type": "Shelf", "fruit": "trap:f"})
        )
        with pytest.raises(SystemExit):
            Shelf("trap:f")
        for kind in ("trap:f", "textwrap:dedent"):
            says(lambda kind=kind: from_plain({"type": kind}))
            says(lambda kind=kind: EVENTS[kind])
        assert from_plain(to_plain(Shelf("tiny:listen") and Reference("trap:f", "0" * 16))).name == "trap:f"
    finally:
        del DATA["Shelf"]


# --- names that move ---

MOVED = """from lottery_nb.core import deprecated
deprecated("old", "0.2.0", "new")
"""
SERVED = """from lottery_nb.core import deprecated
def __getattr__(name):
    if name != "thing":
        raise AttributeError(name)
    deprecated(f"served.{name}", "0.2.0", f"new.{name}")
    return 7
"""


@pytest.mark.parametrize(
    "script, says",
    [
        ("import old", "old has moved: use new"),
        ("import json\nfrom served import thing\nassert thing == 7", "served.thing has moved: use new.thing"),
        ("import served\n\nassert served.thing == 7", "served.thing has moved: use new.thing"),
    ],
)
def test_a_script_is_told_the_line_that_uses_an_old_name(script, says, tmp_path):
    (tmp_path / "old.py").write_text(MOVED)
    (tmp_path / "served.py").write_text(SERVED)
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    line = len(script.splitlines()) - ("assert thing" in script)
    assert done.returncode == 0, done.stderr
    assert f"script.py:{line}: DeprecationWarning: {says}" in done.stderr and "since 0.2.0" in done.stderr
    refused = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "script.py"], cwd=tmp_path, capture_output=True
    )
    assert refused.returncode == 1


def test_a_notebook_s_copy_of_a_record_stays_in_its_notebook(monkeypatch):
    "nbdev_test runs many notebooks in one process; a class of a user that only bears a record's name is none."
    import types

    import IPython

    from lottery_nb.core import DATA, data, from_plain, to_plain
    from lottery_nb.engine.recipes import Recipe

    before, namespace = to_plain(Recipe(lr=0.5)), {}
    monkeypatch.setattr(IPython, "get_ipython", lambda: types.SimpleNamespace(user_ns=namespace))
    copy = type("Recipe", (), {"__annotations__": {"lr": float}, "lr": 0.1, "__module__": "__main__"})
    namespace["Recipe"] = data(copy)
    assert DATA["Recipe"] is Recipe and DATA.now("Recipe") is copy
    namespace["Recipe"] = type("Recipe", (), {"__module__": "__main__"})  # not a record
    assert DATA.now("Recipe") is Recipe and from_plain(before) == Recipe(lr=0.5)
    namespace.clear()
    assert DATA.now("Recipe") is Recipe
