"""What a file, a plan or a log from a stranger may not do: run code. What the user allows, and how far that reaches."""

import copy
import importlib
import inspect
import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import test_golden
import tiny
import torch
from breaking import places, with_change
from torch import nn

from lottery_nb.cli import main
from lottery_nb.code import read_source, reach_of, whole_text
from lottery_nb.core import allow, ALLOWED, fingerprint, FOUND, LotteryError, Reference, Registry, WRITTEN
from lottery_nb.events import event_from, EVENTS, Unknown
from lottery_nb.files import read_tensors, RunFolder, write_tensors
from lottery_nb.trust import config_home, config_path
from lottery_nb.data.own import from_arrays, load_domain, save_domain
from lottery_nb.models.zoo import NETWORKS
from lottery_nb.models.network import Network
from lottery_nb.pruning.schedules import geometric, kind_of, Schedule, SCHEDULES
from lottery_nb.pruning.criteria import CRITERIA
from lottery_nb.pruning.scopes import Group, kept_count, SCOPES
from lottery_nb.rewinding.controls import CONTROLS
from lottery_nb.engine.recipes import Recipe
from lottery_nb.engine.arms import identity
from lottery_nb.plans.tickets import Ticket
from lottery_nb.plans.find import find_tickets, FindPlan
from lottery_nb.runs.listeners import how_of
from lottery_nb.runs.log import Tail
from lottery_nb.runs.reading import read_plan, Run, write_plan
from lottery_nb.runs.writing import run
from lottery_nb.runs.workers import glance, resume, start
from lottery_nb.results.words import plan_table
from lottery_nb.workbench.cell import cell_of


@pytest.fixture(autouse=True)
def a_session(monkeypatch):
    "Nothing is allowed, and nothing was written, at the start of each test."
    monkeypatch.delenv("LOTTERY_TRUST", raising=False)
    kept = set(ALLOWED), set(WRITTEN), dict(FOUND)
    for known in (ALLOWED, WRITTEN, FOUND):
        known.clear()
    yield
    for known, before in zip((ALLOWED, WRITTEN, FOUND), kept, strict=True):
        known.clear()
        known.update(before)


# --- the user's own folder ---


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A config folder of this test alone."
    monkeypatch.setenv("LOTTERY_CONFIG", str(tmp_path / "own"))
    return tmp_path / "own"


def test_the_own_folder_is_for_this_user_alone(own):
    own.mkdir(mode=0o755)
    own.chmod(0o755)
    assert config_home() == own and stat.S_IMODE(own.stat().st_mode) == 0o700
    assert config_home() == own  # and stays


@pytest.mark.parametrize(
    "platform, given, place",
    [
        ("linux", {}, "~/.config/lottery_nb"),
        ("linux", {"XDG_CONFIG_HOME": "/elsewhere"}, "/elsewhere/lottery_nb"),
        ("linux", {"XDG_CONFIG_HOME": "not/absolute"}, "~/.config/lottery_nb"),
        ("linux", {"LOTTERY_CONFIG": "/mine", "XDG_CONFIG_HOME": "/elsewhere"}, "/mine"),
        ("darwin", {}, "~/Library/Application Support/lottery_nb"),
        ("win32", {"APPDATA": "/roaming"}, "/roaming/lottery_nb"),
        ("win32", {}, "~/AppData/Roaming/lottery_nb"),
    ],
)
def test_the_own_folder_is_where_the_system_keeps_such_things(platform, given, place, monkeypatch):
    for name in ("LOTTERY_CONFIG", "XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert config_path() == Path(place).expanduser()


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are of POSIX")
def test_a_folder_that_cannot_be_ones_own_is_refused(own, monkeypatch):
    own.write_text("a file")
    with pytest.raises(LotteryError, match="set LOTTERY_CONFIG to a folder of your own"):
        config_home()
    own.unlink()
    monkeypatch.setattr(os, "getuid", lambda: own.parent.stat().st_uid + 1)
    with pytest.raises(LotteryError, match="belongs to somebody else"):
        config_home()


# --- what a function reaches ---

NET = """
import parts
from parts import act as activation, Base
from pack.inner import deep
from pack import lent
import pack.other as other
SIZES = [3, 4]
TABLE = {}
TABLE["a"] = 1


def deco(fn):
    return fn


def unrelated(x):
    return x


@deco
def net(x, by=len(SIZES)):
    from late import lately
    import pack.local
    weights = "weights.bin"
    return activation(Net(x)), deep(x), other.thing(x), lent(x), lately(x), pack.local.here(x), parts.nested.f, TABLE


class Net(Base):
    def forward(self, x):
        return parts.through(x)


if __name__ == "__main__":
    print("a script")
"""
FILES = {
    "mine.py": NET,
    "parts.py": "import helper\nnested = helper\ndef act(x): return helper.on(x)\nclass Base:\n    k = 1\n"
    "def through(x): return LIMIT\nLIMIT = 7\ndef idle(): return 1\n",
    "helper.py": "from stars import *\ndef on(x): return starry(x)\ndef f(): return 1\ndef idle(): return 1\n",
    "stars.py": "def starry(x): return 1\ndef dim(x): return 1\n",
    "pack/__init__.py": "from .inner import lent\nSTATE = []\nSTATE.append(1)\n",
    "pack/inner.py": "def deep(x): return near(x)\ndef near(x): return 1\ndef lent(x): return 1\n",
    "pack/other.py": "from . import inner\ndef thing(x): return inner.near(x) + own()\ndef own(): return 1\n",
    "pack/local.py": "def here(x): return 1\n",
    "late.py": "def lately(x): return 1\ndef idle(x): return 1\n",
    "weights.bin": "abc",
    "apart.py": "def apart(): return 1\n",
}
COUNTS = {  # what is edited -> (file, old, new)
    "the function": ("mine.py", "weights = ", "weight = "),
    "a constant": ("mine.py", "[3, 4]", "[3, 5]"),
    "a decorator": ("mine.py", "    return fn", "    return lambda x: fn(x)"),
    "a class beside it": ("mine.py", "parts.through(x)", "parts.through(2 * x)"),
    "what a module does to its own table": ("mine.py", 'TABLE["a"] = 1', 'TABLE["a"] = 2'),
    "a helper that is imported by name": ("parts.py", "return helper.on(x)", "return -helper.on(x)"),
    "a base class": ("parts.py", "k = 1", "k = 2"),
    "a helper by way of its module": ("parts.py", "return LIMIT", "return -LIMIT"),
    "a constant of a helper": ("parts.py", "LIMIT = 7", "LIMIT = 8"),
    "a helper of a helper": ("helper.py", "return starry(x)", "return -starry(x)"),
    "a module that is handed on": ("helper.py", "def f(): return 1", "def f(): return 2"),
    "what came with a star": ("stars.py", "starry(x): return 1", "starry(x): return 2"),
    "what a package does when it is imported": ("pack/__init__.py", "append(1)", "append(2)"),
    "a module in a package": ("pack/inner.py", "return near(x)", "return -near(x)"),
    "a relative import": ("pack/inner.py", "near(x): return 1", "near(x): return 2"),
    "what a package lends": ("pack/inner.py", "lent(x): return 1", "lent(x): return 2"),
    "a module under another name": ("pack/other.py", "own(): return 1", "own(): return 2"),
    "an import inside the function": ("late.py", "lately(x): return 1", "lately(x): return 2"),
    "a package imported inside the function": ("pack/local.py", "return 1", "return 2"),
    "a file that it names": ("weights.bin", "abc", "abd"),
}
COUNTS_NOT = {
    "another function": ("mine.py", "unrelated(x):\n    return x", "unrelated(x):\n    return 2 * x"),
    "a comment beside it": ("mine.py", "\n\n\nclass Net", "\n\n# a word\n\nclass Net"),
    "blanks at the ends of lines": ("mine.py", "SIZES = [3, 4]", "SIZES = [3, 4]  "),
    "what runs as a script alone": ("mine.py", "a script", "another script"),
    "an idle function of a helper": ("parts.py", "idle(): return 1", "idle(): return 2"),
    "an idle function of a later helper": ("late.py", "idle(x): return 1", "idle(x): return 2"),
    "a new function": ("late.py", "def idle", "def new(): pass\ndef idle"),
    "a module that it does not use": ("apart.py", "return 1", "return 2"),
}


@pytest.fixture
def modules(tmp_path, monkeypatch):
    "The user's modules, on the path of this process and of those that it starts; none is imported. Forgotten afterwards."
    site = tmp_path / "site"
    for name, text in FILES.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    monkeypatch.syspath_prepend(site)
    before = set(sys.modules)
    yield site
    for module in set(sys.modules) - before:
        if str(site) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]


@pytest.mark.parametrize("what", [*COUNTS, *COUNTS_NOT])
def test_a_hash_is_of_what_a_function_reaches(what, modules):
    before = reach_of("mine", "net")
    file, old, new = (COUNTS | COUNTS_NOT)[what]
    text = (modules / file).read_text()
    assert text.count(old) == 1, (file, old)
    (modules / file).write_text(text.replace(old, new))
    os.utime(modules / file, ns=(1, 1))  # as if it were written at another time, on a coarse clock too
    assert (reach_of("mine", "net").source != before.source) == (what in COUNTS)
    assert not {"mine", "parts", "pack", "late"} & set(sys.modules)  # all this is told from the source


def test_foreign_packages_count_by_version(modules, monkeypatch):
    (modules / "deep.py").write_text(
        "import json, torch\nfrom torch import nn\ndef net(x): return nn.Linear(3, json.loads('4'))\n"
    )
    before = reach_of("deep", "net")
    torch = next(p for p in before.packages if p.startswith("torch "))
    assert [p.split()[0] for p in before.packages] == ["python", "torch"] and set(before.modules) == {"deep"}
    monkeypatch.setattr("lottery_nb.code.version_of", lambda top: f"{top} 99")
    monkeypatch.setattr("lottery_nb.code._REACHED", {})
    after = reach_of("deep", "net")
    assert (
        after.source == before.source
        and after.packages == ("json 99", "torch 99")
        and torch not in after.packages
    )


@pytest.mark.parametrize(
    "text",
    ["def net(:\n", "def net(): pass\n\xff", "# -*- coding: no-such -*-\ndef net(): pass\n", "x = '\0'\n"],
)
def test_what_is_no_python_is_refused_in_a_sentence(text, modules):
    (modules / "bad.py").write_bytes(text.encode("latin-1"))
    with pytest.raises(LotteryError, match="bad:net has no Python source"):
        Reference("bad:net", "x").check()


def test_a_module_that_lies_elsewhere_by_now_is_looked_at_there(modules, tmp_path, monkeypatch):
    before = reach_of("late", "lately").source
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "late.py").write_text("def lately(x): return 'elsewhere'\n")
    monkeypatch.syspath_prepend(tmp_path / "first")
    assert reach_of("late", "lately").source != before


# --- whose code may run ---


def written(name):
    "A reference as somebody else wrote it, with the right hash."
    return Reference(name, reach_of(*name.split(":")).source)


def test_a_reference_of_somebody_else_is_refused_in_a_sentence_that_says_how_to_allow_it(modules):
    for name in ("late:lately", "pack.inner:deep", "textwrap:dedent"):
        module = name.partition(":")[0]
        with pytest.raises(LotteryError) as e:
            written(name)(1)
        said = str(e.value)
        assert f"trust=['{module}'], --trust {module} or LOTTERY_TRUST={module}" in said and ".py" in said
        assert "\n" not in said
    assert not {"late", "pack"} & set(sys.modules)


@pytest.mark.parametrize("way", ["allow", "environment", "package", "typed"])
def test_what_the_user_allows_runs(way, modules, monkeypatch):
    told = written("pack.inner:deep")
    if way == "allow":
        allow("pack.inner")
    elif way == "typed":
        Registry("thing").keep("pack.inner:deep")
    else:
        monkeypatch.setenv("LOTTERY_TRUST", "other, pack" if way == "package" else "pack.inner")
    assert told(1) == 1


@pytest.mark.parametrize("word", ["pac", "pack.inner.deep", "inner", "pack.innermost", "mine"])
def test_other_words_allow_nothing(word, modules, monkeypatch):
    monkeypatch.setenv("LOTTERY_TRUST", word)
    with pytest.raises(LotteryError, match="LOTTERY_TRUST=pack.inner"):
        written("pack.inner:deep")(1)


def test_another_source_is_refused_before_anything_is_imported(modules):
    (modules / "trap.py").write_text("raise SystemExit('imported')\ndef f(): pass\n")
    allow("trap", "pack")
    for name in ("trap:f", "pack.inner:deep"):
        with pytest.raises(LotteryError, match="its source has changed"):
            Reference(name, "reach-1:" + "0" * 32)(1)
    assert not {"trap", "pack"} & set(sys.modules)


def test_a_package_is_not_imported_to_find_what_is_in_it(modules):
    (modules / "pack" / "__init__.py").write_text("raise SystemExit('imported')\n")
    with pytest.raises(LotteryError, match="LOTTERY_TRUST=pack.inner"):
        written("pack.inner:deep")(1)
    (modules / "bare" / "inner").mkdir(parents=True)  # namespaces: folders without a file of their own
    (modules / "bare" / "inner" / "room.py").write_text("def f(x): return x\n")
    allow("bare")
    assert written("bare.inner.room:f")(7) == 7


def test_the_bytes_that_were_hashed_run_and_no_compiled_file(modules):
    import importlib.util
    import py_compile

    source = modules / "late.py"
    harmless = source.read_bytes()
    source.write_bytes(harmless.replace(b"return 1", b"return 9"))
    py_compile.compile(str(source), cfile=importlib.util.cache_from_source(str(source)))
    stamp = source.stat().st_mtime_ns
    source.write_bytes(harmless)  # of the same size; and of the same time
    os.utime(source, ns=(stamp, stamp))
    allow("late")
    told = written("late:lately")
    assert told(0) == 1
    assert importlib.import_module("late").__file__ == str(source)


def test_a_module_that_is_imported_later_is_the_one_that_was_hashed(modules):
    (modules / "lazy.py").write_text("def net(x):\n    from late import lately\n    return lately(x)\n")
    allow("lazy")
    told = written("lazy:net")
    net = told.found()
    assert "late" not in sys.modules
    (modules / "late.py").write_text("raise SystemExit('somebody else wrote this')\n")
    assert net(0) == 1


def test_a_copy_of_a_reference_is_trusted_no_more_than_it(modules):
    told = written("late:lately")
    for copied in (copy.deepcopy(told), pickle.loads(pickle.dumps(told))):
        assert copied == told and not copied.trusted
    allow("late")
    sent = pickle.dumps(told)
    ALLOWED.clear()
    assert not told.trusted
    assert pickle.loads(sent)(0) == 1  # another process of this session


def test_only_what_its_module_made_is_found(modules):
    (modules / "reach.py").write_text("import os\nfrom late import lately\nvalue = 3\ndef f(): return 1\n")
    allow("reach")
    for name in ("reach:os.getcwd", "reach:lately", "reach:value", "reach:f.__globals__"):
        with pytest.raises(LotteryError):
            written(name).found()


# --- hashes of earlier plans ---


def whole(name):
    "A reference as an earlier version wrote it."
    module, attr = name.split(":")
    return Reference(name, fingerprint(whole_text(read_source(module), attr)))


def test_a_plan_of_an_earlier_version_runs_where_the_whole_module_is_as_it_was(modules):
    told = whole("late:lately")
    assert told.source == fingerprint(
        inspect.getsource(importlib.import_module("late").lately) + FILES["late.py"]
    )
    del sys.modules["late"]
    with pytest.raises(LotteryError, match="LOTTERY_TRUST=late"):
        told(0)
    allow("late")
    with pytest.warns(UserWarning, match="hash of the earlier kind"):
        assert told(0) == 1
    del sys.modules["late"]
    (modules / "late.py").write_text(FILES["late.py"] + "\n# a word\n")
    with pytest.raises(LotteryError, match="its source has changed"):
        told(0)


# --- files that somebody else wrote ---

TRAP = """
from pathlib import Path
Path(__file__).with_suffix(".imported").touch()
raise SystemExit("imported")
"""
KINDS = (
    "criterion",
    "scope",
    "network",
    "domain",
    "schedule",
    "control",
    "listener",
    "executor",
    "event",
    "kind_of_record",
    "shift",
)


@pytest.fixture
def trap(tmp_path, monkeypatch):
    "A package on the path that nobody may import: by name, and by entry points of every kind of name."
    (tmp_path / "traps").mkdir()
    tiny.installed(
        tmp_path / "traps", monkeypatch, "trap", TRAP, **{kind: "Plugged = trap:go" for kind in KINDS}
    )
    yield tmp_path / "traps"
    assert "trap" not in sys.modules and not (tmp_path / "traps" / "trap.imported").exists()


NETWORK = dict(type="Network", input_shape=[1, 8, 8], n_classes=2, width=1.0, head="linear", head_layer=None)


def hostile():
    "Values that name code: texts, and records that are looked up when they are built."
    names = [
        "trap:go",
        "trap:",
        "trap::x",
        ":trap",
        "trap:go ",
        " trap:go",
        "trap:go\n",
        "trap-mod:go",
        "trap.in:go",
    ]
    names += [
        "trар:go",
        "trap：go",
        "trap:go\0",
        "Plugged",
        "trap:go[0-4]",
        "trap:go@3",
        "digits+Plugged",
        "trap:go~bpe",
    ]
    references = [
        {"type": "Reference", "name": n, "source": s}
        for n in ("trap:go", "trap:go ")
        for s in ("0" * 16, "x")
    ]
    networks = [NETWORK | {"name": n} for n in ("trap:go", "trap:go ", "Plugged", references[0])]
    others = [{"type": kind} for kind in ("Plugged", "trap:go", "Oven")]
    schedules = [
        {"type": "Schedule", "kind": k, "rounds": 1, "numbers": []}
        for k in ("trap:go", "Plugged", references[0])
    ]
    return [
        *names,
        *references,
        *networks,
        *others,
        *schedules,
        [references[0]],
        {"type": "dict", "items": [["trap:go", networks[0]]]},
    ]


def leaves(value):
    "Places of a JSON value that hold a text, None or a record."
    return [
        where for where in places(value) if where and not isinstance(at(value, where), (int, float, list))
    ]


def at(value, where):
    for key in where:
        value = value[key]
    return value


def quietly_read(do):
    "Read what may be hostile: it is read, or refused in a sentence."
    try:
        return do()
    except LotteryError as e:
        assert "\n" not in str(e) and len(str(e)) < 700, str(e)
    return None


def test_a_ticket_of_a_stranger_imports_nothing(trap, tmp_path, thinned):
    path = test_golden.made_up_ticket().save(tmp_path / "t.safetensors")
    tensors, record = read_tensors(path)
    tried, read = 0, 0
    for turn, where in enumerate(leaves(record)):
        if where[0] in ("mask", "snapshots"):
            continue
        for value in thinned(hostile(), 4, turn):
            write_tensors(path, tensors, with_change(record, where, value))
            ticket = quietly_read(lambda: Ticket.load(path))
            tried += 1
            if ticket is not None:
                read += 1
                repr(ticket), ticket.plain(), ticket.content
                quietly_read(lambda t=ticket: t.save(tmp_path / "again.safetensors"))
    assert tried > 120 and 0 < read < tried / 4


@pytest.mark.parametrize(
    "where", [("network", "head_layer"), ("network", "name"), ("recipe", "quirks"), ("recipe", "quirks", 0)]
)
def test_a_field_takes_the_kinds_that_it_declares_and_no_other(where, trap, tmp_path):
    path = test_golden.made_up_ticket().save(tmp_path / "t.safetensors")
    tensors, record = read_tensors(path)
    record["recipe"]["quirks"] = ["evaluation mode"]
    write_tensors(path, tensors, record)
    assert Ticket.load(path).recipe.quirks
    for value in (
        NETWORK | {"name": "lenet-300-100"},
        record["recipe"],
        {"type": "dict", "items": []},
        7,
        True,
    ):
        write_tensors(path, tensors, with_change(record, where, value))
        with pytest.raises(LotteryError, match="cannot be"):
            Ticket.load(path)


@pytest.mark.parametrize("name", ["default", "everything", "network", "transfer"])
def test_a_plan_of_a_stranger_imports_nothing(name, trap, tmp_path, thinned):
    write_plan(test_golden.plans()[name], tmp_path)
    file = tmp_path / "plan.json"
    record = json.loads(file.read_text())
    tried, read = 0, 0
    for turn, where in enumerate(leaves(record)):
        for value in thinned(hostile(), 4, turn):
            file.write_text(json.dumps(with_change(record, where, value)))
            plan = quietly_read(lambda: read_plan(tmp_path))
            quietly_read(lambda: glance(tmp_path))
            tried += 1
            if plan is not None:
                read += 1
                (
                    repr(plan),
                    plan_table(plan),
                    quietly_read(lambda: cell_of(tmp_path)),
                    quietly_read(lambda p=plan: p.hash),
                )
    assert tried > 100 and read > 0


def test_a_domain_of_a_stranger_imports_nothing(trap, tmp_path, thinned):
    x = torch.arange(20 * 16, dtype=torch.uint8).view(20, 1, 4, 4)
    path = save_domain(from_arrays(x, torch.arange(20) % 2, channels="first"), tmp_path / "d.safetensors")
    tensors, record = read_tensors(path)
    read = 0
    for turn, where in enumerate(leaves(record)):
        for value in thinned(hostile(), 4, turn):
            write_tensors(path, tensors, with_change(record, where, value))
            found = quietly_read(lambda: load_domain(path))
            if found is not None:
                read += 1
                repr(found), found.name, quietly_read(lambda d=found: d.classes)
    assert read


@pytest.mark.parametrize("kind", ["Plugged", "trap:go", "trap.go", "Strange"])
def test_an_event_of_a_stranger_is_plain_data(kind, trap, tmp_path):
    line = json.dumps({"t": 1.5, "event": kind, "arm": 3, "deep": [{"a": None}], "place": "trap:go"})
    (tmp_path / "events.jsonl").write_text(line + "\n" + line.replace("1.5", "2.5") + "\n")
    tail = Tail(tmp_path / "events.jsonl")
    (first, _), (second, e) = tail.new()
    assert (first, second, tail.skipped) == (1.5, 2.5, 0)
    assert e == Unknown(kind, {"arm": 3, "deep": [{"a": None}], "place": "trap:go"}) and e.sound()
    assert (
        e.says() == f"{kind}: arm 3, deep [{{'a': None}}], place 'trap:go'"
        and json.loads(e.line())["event"] == kind
    )


def test_an_event_is_typed_where_its_package_was_imported(tmp_path, monkeypatch):
    source = (
        "from lottery_nb.events import Event, event\n@event\nclass Brewed(Event):\n    cups: int\n"
        "    def says(self): return f'{self.cups} cups'\n"
    )
    tiny.installed(tmp_path, monkeypatch, "brewery", source, event="Brewed = brewery:Brewed")
    line = '{"event":"Brewed","cups":3}'
    try:
        assert (
            "Brewed" in EVENTS.names
            and event_from(line).says() == "Brewed: cups 3"
            and "brewery" not in sys.modules
        )
        importlib.import_module("brewery")
        assert event_from(line).says() == "3 cups"
    finally:
        EVENTS.pop("Brewed", None)
        sys.modules.pop("brewery", None)


@pytest.mark.parametrize("value", [v for v in hostile() if isinstance(v, str)])
def test_what_works_on_a_folder_of_a_stranger_is_not_imported(value, trap, tmp_path):
    write_plan(test_golden.plans()["default"], tmp_path)
    place = RunFolder(tmp_path)
    for how in ({"executor": value, "listeners": []}, {"executor": "threads", "listeners": ["print", value]}):
        place.how.write_text(json.dumps(how))
        assert glance(tmp_path)["status"] == "planned" and Run(tmp_path).plan
        for act in (how_of, lambda p: resume(p.path), lambda p: run(Run(p).plan, p.path, "cpu", show=False)):
            with pytest.raises(LotteryError):
                act(place)


# --- what a user wrote may run again ---


@pytest.fixture
def planned(modules, own, tmp_path):
    "A plan with functions of the user's, written to a folder; and a session that knows of nothing."
    (modules / "nets.py").write_text(
        "from torch import nn\nimport late\n"
        "def net(shape, n): return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, n))\n"
        "def score(scoring): return {n: w.abs() * late.lately(0) for n, w in scoring.weights.items()}\n"
    )
    plan = FindPlan(
        "digits[0-4]@200",
        "nets:net",
        criterion="nets:score",
        controls=(),
        seeds=1,
        schedule=geometric(0.5, 1),
        recipe=Recipe(lr=0.05, epochs=1, batch_size=60),
    )
    write_plan(plan, tmp_path / "run")
    another_session()
    return tmp_path / "run"


def another_session():
    for known in (ALLOWED, WRITTEN, FOUND):
        known.clear()
    for module in [m for m in sys.modules if m in ("nets", "late")]:
        del sys.modules[module]


def test_what_a_user_wrote_runs_in_another_session(planned):
    plan = read_plan(planned)
    assert "nets" not in sys.modules
    found = run(plan, planned, "cpu", show=False)
    assert found.status == "done"
    another_session()
    assert found.tickets[0].model()(torch.zeros(1, 1, 8, 8)).shape == (1, 5)
    file = found.tickets[0].save(planned.parent / "mine.safetensors")
    another_session()
    assert Ticket.load(file).model() is not None
    assert not [f for f in planned.rglob("*") if "trust" in f.name]  # nothing of it lies in the folder


def test_a_copy_may_come_from_anyone(planned, capsys):
    copied = planned.parent / "copy"
    shutil.copytree(planned, copied)
    for act in (
        lambda: run(read_plan(copied), copied, "cpu", show=False),
        lambda: start(read_plan(copied), copied, "cpu"),
        lambda: resume(copied, "cpu"),
    ):
        with pytest.raises(LotteryError, match="trust=\\['nets'\\], --trust nets or LOTTERY_TRUST=nets"):
            act()
    assert main(["run", str(copied), "--device", "cpu", "--quiet"]) == 2
    assert "--trust nets" in capsys.readouterr().err and "nets" not in sys.modules
    assert {p.name for p in copied.iterdir()} - {"lock"} == {p.name for p in planned.iterdir()}
    assert main(["run", str(copied), "--device", "cpu", "--quiet", "--trust", "nets"]) == 0
    another_session()  # which the user has allowed once, for this folder and this source
    assert Run(copied).tickets[0].model() is not None


def test_a_worker_runs_what_was_allowed(planned):
    copied = planned.parent / "copy"
    shutil.copytree(planned, copied)
    found = start(read_plan(copied), copied, "cpu", trust=["nets"])
    with tiny.within(120):
        while found.status in ("planned", "running"):
            time.sleep(0.1)
    assert found.status == "done", found.events[-1]


def test_an_edited_function_is_another_one_for_its_folder(planned, modules):
    (modules / "late.py").write_text(FILES["late.py"].replace("lately(x): return 1", "lately(x): return -1"))
    with pytest.raises(LotteryError, match="nets:score is not the function that the plan was made with"):
        run(read_plan(planned), planned, "cpu", show=False)
    assert "nets" not in sys.modules or "late" not in sys.modules


def test_a_note_by_somebody_else_is_none(planned, own):
    note = next((own / "trust").glob("*.json"))
    kept = note.read_text()
    own.chmod(0o777)
    with pytest.raises(LotteryError, match="LOTTERY_TRUST=nets"):
        read_plan(planned).network.check()
    own.chmod(0o700)
    for text in ("", "[]", kept.replace(str(planned), "/elsewhere"), '{"place": 3}', "[" * 100_000):
        note.write_text(text)
        with pytest.raises(LotteryError, match="LOTTERY_TRUST=nets"):
            read_plan(planned).network.check()
    note.write_text(kept)
    read_plan(planned).network.check()


def test_a_folder_that_cannot_be_written_costs_a_question_and_nothing_else(modules, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOTTERY_CONFIG", str(tmp_path / "file" / "own"))
    with pytest.warns(UserWarning, match="another session will ask whether late:lately may run"):
        write_plan(FindPlan("digits[0-4]@200", criterion="late:lately"), tmp_path / "run")
    assert read_plan(tmp_path / "run").criterion.trusted


def test_what_a_stranger_s_plan_names_is_not_noted(planned, own, tmp_path):
    copied = planned.parent / "copy"
    shutil.copytree(planned, copied)
    write_plan(read_plan(copied), tmp_path / "again")
    assert len(list((own / "trust").glob("*.json"))) == 1
    another_session()
    assert not read_plan(tmp_path / "again").network.trusted


# --- a result belongs to the code that gave it ---


def kept(scoring):
    return {n: w.abs() for n, w in scoring.weights.items()}


def turned(scoring):
    return {n: -w.abs() for n, w in scoring.weights.items()}


def together(mask, names, density):
    return [Group(names, kept_count(density, sum(mask[n].numel() for n in names)))]


def apart(mask, names, density):
    return [Group((n,), kept_count(density, mask[n].numel())) for n in names]


def narrow(shape, n):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, n))


def smooth(shape, n):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, n))


def wide(shape, n):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, n))


def halved(b):
    return replace(b, start=replace(b.start, weights={n: w / 2 for n, w in b.start.weights.items()}))


def doubled(b):
    return replace(b, start=replace(b.start, weights={n: w * 2 for n, w in b.start.weights.items()}))


def half(r, rounds):
    return 0.5**r


def third(r, rounds):
    return 1 / 3**r


REGISTERED = {
    "criterion": (CRITERIA, kept, turned, dict(criterion="own")),
    "criterion of a notebook": (CRITERIA, lambda s: kept(s), lambda s: turned(s), dict(criterion="own")),
    "scope": (SCOPES, together, apart, dict(scope="own")),
    "network": (NETWORKS, narrow, smooth, dict(network="own")),
    "network of a notebook": (
        NETWORKS,
        lambda s, n: narrow(s, n),
        lambda s, n: smooth(s, n),
        dict(network="own"),
    ),
    "control": (CONTROLS, halved, doubled, dict(controls=("own",))),
    "schedule": (SCHEDULES, kind_of(half), kind_of(third), dict(schedule=("own", 1))),
}


def small(schedule=("geometric", 1, (0.5,)), **fields):
    "A small search of what is registered now."
    how = dict(recipe=Recipe(lr=0.05, epochs=1, batch_size=60), seeds=1, controls=())
    return FindPlan("digits[0-4]@200", **how | fields, schedule=Schedule(*schedule))


@pytest.mark.parametrize("kind", REGISTERED)
def test_other_code_under_a_registered_name_is_another_plan(kind, tmp_path, monkeypatch):
    registry, first, second, fields = REGISTERED[kind]
    monkeypatch.setitem(registry, "own", first)
    plan = small(**fields)
    write_plan(plan, tmp_path)
    assert read_plan(tmp_path).hash == plan.hash == small(**fields).hash == RunFolder(tmp_path).plan_hash()
    assert next(find_tickets(read_plan(tmp_path), "cpu")).arms > 0
    monkeypatch.setitem(registry, "own", second)
    assert small(**fields).hash != plan.hash == read_plan(tmp_path).hash
    for old in (plan, read_plan(tmp_path)):
        with pytest.raises(LotteryError, match="own is not the one that the plan was made with"):
            next(find_tickets(old, "cpu"))
    with pytest.raises(LotteryError, match="holds the run of another plan"):
        run(small(**fields), tmp_path, "cpu", show=False)


def test_a_plan_of_registered_names_by_an_earlier_version_still_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(CRITERIA, "own", kept)
    write_plan(small(criterion="own"), tmp_path)
    record = json.loads((tmp_path / "plan.json").read_text())
    assert [name for name, _ in record.pop("code")] == ["criterion own"]
    (tmp_path / "plan.json").write_text(json.dumps(record))
    plan = read_plan(tmp_path)
    assert plan.code == () and next(find_tickets(plan, "cpu")).arms == 2


@pytest.mark.parametrize("code", [3, None, [["a"]], [["a", 3]], "ab", [["a", "b", "c"]]])
def test_an_odd_code_of_a_plan_is_refused(code, tmp_path):
    write_plan(small(), tmp_path)
    record = json.loads((tmp_path / "plan.json").read_text()) | {"code": code}
    (tmp_path / "plan.json").write_text(json.dumps(record))
    with pytest.raises(LotteryError):
        read_plan(tmp_path)


def of_network(name):
    network = Network(name, (1, 8, 8), 5)
    return identity(tiny.some_arm(network=network), torch.device("cpu"), 1)


@pytest.mark.parametrize("kind", ["network", "network of a notebook"])
def test_an_arm_of_other_code_is_another_arm(kind, monkeypatch):
    registry, first, second, _ = REGISTERED[kind]
    monkeypatch.setitem(registry, "own", first)
    before = of_network("own")
    assert before and before == of_network("own")
    monkeypatch.setitem(registry, "own", second)
    assert of_network("own") != before


def test_an_arm_under_another_version_of_a_package_is_another_arm(monkeypatch):
    before = of_network("test_trust:narrow"), of_network("lenet-300-100")
    monkeypatch.setattr("lottery_nb.code._REACHED", {})
    monkeypatch.setattr("lottery_nb.code.version_of", lambda top: f"{top} 99")
    after = of_network("test_trust:narrow"), of_network("lenet-300-100")
    assert after[0] != before[0] and after[1] == before[1]


def test_an_edited_helper_gives_another_plan_and_another_arm(modules):
    (modules / "nets.py").write_text(
        "from torch import nn\nimport late\n"
        "def net(shape, n): return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), late.act(), nn.Linear(8, n))\n"
    )
    seen = []
    for text in ("nn.ReLU()", "nn.Tanh()", "nn.ReLU()\ndef more(): pass"):
        (modules / "late.py").write_text(f"from torch import nn\ndef act(): return {text}\n")
        another_session()
        seen.append((small(network="nets:net").hash, of_network("nets:net")))
    assert seen[0] == seen[2] != seen[1] and seen[0][1] != seen[1][1]


def test_a_ticket_goes_on_with_another_factory_where_its_source_has_moved(planned, modules, capsys):
    found = run(read_plan(planned), planned, "cpu", show=False)
    ticket, x = found.tickets[0], torch.rand(3, 1, 8, 8)
    out = ticket.model()(x)
    (modules / "nets.py").rename(modules / "moved.py")
    another_session()
    ticket = found.tickets[0]
    with pytest.raises(LotteryError, match="put the module on the path"):
        ticket.model()
    for network in (narrow, "test_trust:narrow", "moved:net"):
        assert torch.equal(ticket.model(network=network)(x), out)
        assert ticket.made_by(network).content != ticket.content
    with pytest.raises(LotteryError):
        ticket.model(network=wide)
    line = ["transfer", str(planned), "--targets", "digits[0-2]@100", "--device", "cpu", "--quiet"]
    line += ["--controls", "none", "--start", "rewind", "--epochs", "1"]
    assert (
        main([*line, "--out", str(planned.parent / "no")]) == 2
        and "put the module" in capsys.readouterr().err
    )
    assert main([*line, "--out", str(planned.parent / "t"), "--network", "moved:net"]) == 0


def test_a_worker_finds_no_module_in_the_folder_that_it_is_started_in(tmp_path, monkeypatch):
    (tmp_path / "tqdm.py").write_text("raise SystemExit('imported from the folder')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    write_plan(small(), tmp_path / "run")
    found = resume(tmp_path / "run", "cpu")
    with tiny.within(120):
        while found.status in ("planned", "running"):
            time.sleep(0.1)
    assert found.status == "done", found.events[-1]


# --- the canary ---

CANARY = """
import importlib.abc, json, sys, warnings
from pathlib import Path

warnings.simplefilter("ignore")
from lottery_nb.cli import main
from lottery_nb.core import LotteryError
from lottery_nb.data.own import load_domain
from lottery_nb.plans.tickets import Ticket
from lottery_nb.runs.reading import Run, read_plan
from lottery_nb.runs.workers import glance, runs
from lottery_nb.results.report import write_report
from lottery_nb.workbench import workbench
from lottery_nb.workbench.cell import cell_of
from lottery_nb.workbench.follow import Follower
from lottery_nb.workbench.workbench import Workbench

workbench.PUMPING = False
home, clean, out = map(Path, sys.argv[1:])


def look(folder):
    "Everything that only reads or shows a run; what is refused is refused in a sentence."
    done = 0
    for do in (
        lambda: read_plan(folder), lambda: Run(folder).frame, lambda: Run(folder).tickets, lambda: Run(folder).info,
        lambda: glance(folder), lambda: repr(Run(folder)), lambda: [e.says() for e in Run(folder).events],
        lambda: write_report(out / "report.html", Run(folder)), lambda: cell_of(folder),
        lambda: Follower(folder).read(), lambda: [Ticket.load(f) for f in sorted(folder.glob("*/*-r0*.safetensors"))],
        *(lambda f=f: load_domain(f) for f in folder.glob("inputs/*.safetensors") if b'x_ends' in f.read_bytes()),
    ):
        try:
            do()
            done += 1
        except LotteryError as e:
            assert "\\n" not in str(e), str(e)
            print(folder.name, e, file=sys.stderr)
    for words in (["show"], ["status"], ["export", str(out / "tickets")]):
        main([words[0], str(folder), *words[1:]])
    main(["show", str(folder), "--csv", str(out / "r.csv")])
    return done


def first_look(folder):
    "What the workbench does when it is opened on a run: every tab in front, until its jobs are done."
    bench = Workbench(folder, home=folder.parent)
    for tab in bench.tabs:
        bench.bar.place.value = tab
        if tab == "transfer":
            control = bench.tabs[tab].form.fields["run"].control
            bench.due = dict.fromkeys(bench.due, 0.0)
            bench.tick()
            for thread in list(bench.jobs.going.values()):
                thread.join(60)
            bench.tick()
            options = [v for _, v in getattr(control, "options", ())]
            control.value = next((v for v in options if v and Path(v).name == folder.name), control.value)
        for _ in range(4):
            bench.due = dict.fromkeys(bench.due, 0.0)
            bench.tick()
            for thread in list(bench.jobs.going.values()):
                thread.join(60)


def all_of(folders):
    done = [look(folder) for folder in folders]
    main(["runs", str(folders[0].parent)])
    runs(folders[0].parent)
    for folder in folders:
        if not folder.name.startswith("odd-"):
            first_look(folder)
    return done


assert all(n >= 11 for n in all_of(sorted(clean.iterdir())))  # whatever is imported late is imported now
known = {name.partition(".")[0] for name in sys.modules} | set(sys.stdlib_module_names)
asked = []


class Canary(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in known:
            asked.append(name)
            raise SystemExit(f"imported {name}")


sys.meta_path.insert(0, Canary())
done = all_of(sorted(home.iterdir()))
assert not asked, asked
print(json.dumps(done))
"""


def hostile_folders(clean, home):
    "Copies of finished runs in which what may hold a name holds one that must not be looked up: whole runs that can be read, and plans that cannot."
    told = {"type": "Reference", "name": "trap:go", "source": "0" * 16}
    for turn, finished in enumerate(sorted(clean.iterdir())):
        plan = json.loads((finished / "plan.json").read_text())
        for name, value in (("told", told), ("plugged", "Plugged")):
            fields = dict.fromkeys(("network", "criterion", "scope"), value) | {"controls": [value]}
            fields["schedule"] = {"type": "Schedule", "kind": value, "rounds": 2, "numbers": []}
            changed = {field: v for field, v in fields.items() if field in plan} | {
                "code": [["control Plugged", "x"]]
            }
            folder = home / f"{finished.name}-{name}"
            shutil.copytree(finished, folder)
            (folder / "plan.json").write_text(json.dumps(plan | changed))
            hostile_run(folder, told if name == "told" else "Plugged")
        fields = [f for f in ("network", "criterion", "controls", "source", "targets", "recipe") if f in plan]
        for field in fields[turn % 3 :: 3]:  # each of them in one of the runs
            folder = home / f"odd-{finished.name}-{field}"
            folder.mkdir()
            odd = ["trap:go"] if isinstance(plan[field], list) else "trap:go"
            (folder / "plan.json").write_text(json.dumps(plan | {field: odd}))


def hostile_run(folder, value):
    "Everything but the plan: log, listeners, executor, tickets, data."
    lines = (folder / "events.jsonl").read_text().splitlines()
    stranger = ['{"t":1.0,"event":"Plugged","arm":3}', '{"t":1.0,"event":"trap:go","name":{"a":[1]}}']
    renamed = [line.replace("reinit", "Plugged").replace("digits[0-4]@200", "trap:go") for line in lines]
    (folder / "events.jsonl").write_text("\n".join([lines[0], *stranger, *renamed[1:], *stranger]) + "\n")
    (folder / "how.json").write_text('{"executor": "trap:go", "listeners": ["Plugged", "trap:go"]}')
    for file in [*folder.glob("tickets/*"), *folder.glob("inputs/*")]:
        tensors, record = read_tensors(file)
        if "network" in record:
            write_tensors(
                file, tensors, record | {"network": record["network"] | {"name": value}, "source": "Plugged"}
            )
        elif "domain" in record:
            write_tensors(file, tensors, with_change(record, ("domain", "items", 0, 1, "base"), "Plugged"))


def test_nothing_is_imported_by_loading_showing_listing_exporting_and_looking(trap, own, tmp_path):
    shutil.copytree(test_golden.HOME / "folders", clean := tmp_path / "clean")
    (home := tmp_path / "home").mkdir()
    hostile_folders(clean, home)
    assert len(list(home.iterdir())) > 9
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(trap), *sys.path])}
    line = [sys.executable, "-c", CANARY, str(home), str(clean), str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    looked = json.loads(done.stdout.splitlines()[-1])
    assert len(looked) == len(list(home.iterdir())) and sum(n >= 7 for n in looked) >= 6
    assert not own.exists()  # and nothing is trusted for it
