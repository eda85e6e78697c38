"""A module that was edited after its import, in the same session: what runs is not what its file says, and that is told."""

import importlib
import os
import sys

import pytest
from tiny import of, plan

from lottery_nb.code import edited_in, reach_of
from lottery_nb.core import code_of, LotteryError, Reference
from lottery_nb.runs.writing import run

NET = """
from torch import nn
from edited_parts import WIDTH
def net(input_shape, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, n_classes))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A folder with a network and a module that it uses, both imported."
    (tmp_path / "edited_net.py").write_text(NET)
    (tmp_path / "edited_parts.py").write_text("WIDTH = 8\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("edited_net")
    yield tmp_path
    for name in ("edited_net", "edited_parts"):
        sys.modules.pop(name, None)


def test_a_constant_of_a_helper_that_was_edited_is_noticed_before_anything_is_trained(home):
    net = sys.modules["edited_net"].net
    first = run(plan(network=net, width=1.0), home / "first", "cpu", show=False)
    (home / "edited_parts.py").write_text("WIDTH = 16\n")
    with pytest.raises(LotteryError, match="before edited_parts was edited: restart this session, or reload"):
        run(plan(network=net, width=1.0), home / "second", "cpu", show=False)
    assert not (home / "second").exists() and first.status == "done"


def test_modules_that_were_loaded_again_run(home):
    (home / "edited_parts.py").write_text("WIDTH = 16\n")
    with pytest.raises(LotteryError, match="was edited"):
        Reference.to(sys.modules["edited_net"].net)
    for name in ("edited_parts", "edited_net"):
        importlib.reload(sys.modules[name])
    net = sys.modules["edited_net"].net
    found = run(plan(network=net, width=1.0), home / "run", "cpu", show=False)
    assert net((1, 8, 8), 5)[1].out_features == 16 and len(of("ArmDone", found.events)) > 1


def test_an_edit_that_is_taken_back_is_none(home):
    net, text = sys.modules["edited_net"].net, (home / "edited_parts.py").read_text()
    before = code_of(net)
    (home / "edited_parts.py").write_text("WIDTH = 16\n")
    assert edited_in(reach_of("edited_net", "net")) == "edited_parts"
    (home / "edited_parts.py").write_text(text)
    assert edited_in(reach_of("edited_net", "net")) == "" and code_of(net) == before


def test_a_file_that_is_only_touched_is_none(home):
    net = sys.modules["edited_net"].net
    before = code_of(net)
    os.utime(home / "edited_parts.py")
    assert code_of(net) == before


def test_a_first_look_after_the_edit_notices_it_too(home):
    (home / "edited_net.py").write_text(NET.replace("ReLU", "Tanh"))
    with pytest.raises(LotteryError, match="before edited_net was edited"):
        Reference.to(sys.modules["edited_net"].net)


def test_what_is_no_longer_imported_is_read_anew(home):
    (home / "edited_net.py").write_text(NET.replace("ReLU", "Tanh"))
    sys.modules.pop("edited_net")
    importlib.invalidate_caches()
    net = importlib.import_module("edited_net").net
    assert type(net((1, 8, 8), 5)[2]).__name__ == "Tanh" and Reference.to(net).found() is net
