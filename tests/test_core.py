"""What is no lesson of 00_core: functions that cannot be named in a file, and records that no class can hold."""
import importlib
import linecache
import math
import sys

import breaking
import pytest
import torch

from lottery_nb.core import DATA, LotteryError, Reference, canonical, data, from_plain, safe_child


def says(do):
    "The one sentence that a refusal is."
    with pytest.raises(LotteryError) as e:
        do()
    assert str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 500
    return str(e.value)


@pytest.mark.parametrize("fn", [len, math.sin, dict.get, torch.nn.functional.gelu, torch.matmul, print, dict, type(len)], ids=lambda fn: fn.__name__)
def test_what_has_no_python_source_is_no_reference(fn):
    assert "has no Python source" in says(lambda: Reference.to(fn)) or "move it to a module" in says(lambda: Reference.to(fn))
    says(lambda: canonical(fn))


def test_a_function_whose_source_is_gone_is_no_reference(tmp_path, monkeypatch):
    (tmp_path/"vanishing.py").write_text("def f(x): return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    known = Reference.to(importlib.import_module("vanishing").f)
    (tmp_path/"vanishing.py").unlink()
    importlib.invalidate_caches()
    linecache.clearcache()
    assert "vanishing:f has no Python source" in says(lambda: Reference.to(sys.modules["vanishing"].f))
    assert "vanishing:f has no Python source" in says(lambda: known(1))
    assert "has no Python source" in says(lambda: Reference("builtins:exec", "0"*16)("1"))


@pytest.mark.parametrize("error", [RuntimeError, KeyError, ValueError, AttributeError, OverflowError, TypeError])
def test_an_error_of_many_lines_in_a_record_is_one_sentence(error):
    def refuse(self): raise error("Expected\n  all tensors\n" + "x"*5000)
    Clumsy = data(type("Clumsy", (), {"__annotations__": {"x": int}, "__post_init__": refuse}))
    try:
        assert "'Clumsy' does not fit this version: " in says(lambda: from_plain({"type": "Clumsy", "x": 1})) and Clumsy
    finally:
        del DATA["Clumsy"]


@pytest.mark.parametrize("value", [*breaking.NASTY, {"type": "dict", "items": [[1]]}, {"type": "dict", "items": [[{"type": "dict", "items": []}, 1]]}, {"type": "float", "value": []},
                                   {"type": "Network", "name": "conv-2", "input_shape": [2**62, 2**31, 2**31], "n_classes": 2}, {"type": "Recipe", "lr": 10**400}], ids=lambda v: repr(v)[:40])
def test_a_record_is_read_or_refused_in_one_sentence(value):
    try:
        from_plain(value)
    except LotteryError as e:
        assert "\n" not in str(e) and len(str(e)) < 1000


def test_a_name_of_any_length_is_refused_in_a_short_sentence(tmp_path):
    for name in ("9"*10**6, 10**400, "a/"*1000):
        with pytest.raises(LotteryError) as e:
            safe_child(tmp_path, name)
        assert len(str(e.value)) < 200
