"""Functions without a name (lambdas, closures, functions of notebook cells): they run for the one who wrote them, here and in a worker, and for nobody else."""

import copy
import functools
import importlib
import json
import os
import re
import pickle
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch
from tiny import listen, of, plan, some_arm
from torch import nn

from lottery_nb.cli import main
from lottery_nb.core import canonical, contents_of, FOUND, from_plain, HERE, LotteryError, Reference, SERIALISED
from lottery_nb.core import Unnamed, WRITTEN
from lottery_nb.files import read_tensors, RunFolder, write_tensors
from lottery_nb.functions import packed, PURPOSE, Serialised
from lottery_nb.keys import KEY, signature
from lottery_nb.engine.training import train
from lottery_nb.models.network import Network
from lottery_nb.pruning.schedules import Schedule
from lottery_nb.plans.find import FindPlan
from lottery_nb.plans.tickets import Ticket
from lottery_nb.plans.transfer import TransferPlan
from lottery_nb.runs.reading import read_plan, Run, write_plan
from lottery_nb.runs.workers import glance, resume, start, work
from lottery_nb.runs.writing import run
from lottery_nb.results.report import report
from lottery_nb.workbench.cell import cell_of


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    "A user of this test alone, and their first session."
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setenv("LOTTERY_CONFIG", str(tmp_path / "own"))
    another_session()
    yield tmp_path / "own"
    another_session()


def another_session():
    "From now on nothing is known that this session made or read."
    for known in (FOUND, HERE, SERIALISED, WRITTEN):
        known.clear()


def mlp(hidden):
    "A factory that is a closure."
    return lambda shape, n: nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, n))


def small(network, **fields):
    return plan(**{"network": network, "width": 1.0, "recipe": FEW, **fields})


FEW = plan().recipe


def refused(do, *parts):
    with pytest.raises(LotteryError) as e:
        do()
    assert "\n" not in str(e.value) and all(part in str(e.value) for part in parts), str(e.value)
    return str(e.value)


def rows(found):
    return found.frame.sort_values(["arm", "epoch", "split", "metric"], ignore_index=True)


def ended(found, seconds=240):
    "A run, when its worker has ended."
    deadline = time.monotonic() + seconds
    while found.status in ("running", "planned", "paused") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found.status == "done", (found.status, found.stand.word, found.folder.worker_log.read_text()[-2000:])
    return found


# --- what tells one from another ---

OFFSET = 3
TABLE = {"a": [1, 2]}


def helper(x):
    return x + OFFSET


def around(value):
    return lambda x: (x, value)


def same(a, b):
    return contents_of(a)[0] == contents_of(b)[0]


@pytest.mark.parametrize(
    "value, other",
    [
        (1, 2),
        (1, 1.0),
        (True, 1),
        (0.0, -0.0),
        ("a", b"a"),
        ([1, 2], [2, 1]),
        ((1, 2), [1, 2]),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), torch.tensor([1.0, 2.0])),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (nn.Parameter(torch.ones(2)), torch.ones(2)),
        (np.ones(2), np.ones((2, 1))),
        (np.float32(1), np.float64(1)),
        (np.array([1, "a"], object), np.array([1, "b"], object)),
        (functools.partial(helper, 1), functools.partial(helper, 2)),
        (helper, around),
        (len, max),
        ([].append, [1].append),
        (torch.relu, torch.tanh),
        (torch.float32, torch.float16),
        (Path("a"), Path("b")),
        (nn.Linear(2, 2), nn.Linear(2, 2)),  # drawn
        (nn.ReLU, nn.GELU),
        (FEW, None),
        (Network("lenet-300-100", (1, 8, 8), 10), Network("lenet-300-100", (1, 8, 8), 5)),
        (np.random.default_rng(0), np.random.default_rng(1)),
    ],
    ids=lambda value: re.sub(r"0x[0-9a-fA-F]+", "somewhere", repr(value)),  # the same in every process
)
def test_a_closure_is_known_by_what_it_holds(value, other):
    assert same(around(value), around(value)) and not same(around(value), around(other))
    assert same(around(value), around(copy.deepcopy(value)))


def changed_code(x=1):
    return lambda v: v - x


def test_a_function_is_known_by_its_code_and_all_that_it_reaches(monkeypatch):
    module = sys.modules[__name__]
    for fn, change in (
        (lambda x: [helper(v) for v in x], ("helper", lambda x: x)),  # a name in an inner piece of code
        (lambda x: TABLE["a"], ("TABLE", {"a": [1, 3]})),
        (lambda x: (lambda: OFFSET)(), ("OFFSET", 4)),
    ):
        before = contents_of(fn)[0]
        with monkeypatch.context() as m:
            m.setattr(module, *change)
            assert contents_of(fn)[0] != before
        assert contents_of(fn)[0] == before
    assert not same(lambda x, y=1: x, lambda x, y=2: x) and not same(lambda x, *, y=1: x, lambda x, *, y=2: x)
    assert not same(lambda x: x + 1, lambda x: x - 1) and not same(lambda x: x.a, lambda x: x.b)
    assert same(lambda x: x + 1, lambda x: x + 1)


def made_class(size=1, base=object, call=lambda self: 1, kind=property):
    return type("Made", (base,), {"size": size, "call": kind(call), "__module__": "__main__"})


def test_a_class_is_known_by_its_bases_and_what_stands_in_it():
    whole = contents_of(made_class())[0]
    assert contents_of(made_class())[0] == whole
    others = [
        made_class(size=2),
        made_class(base=nn.Module),
        made_class(call=lambda self: 2),
        made_class(kind=staticmethod),
        made_class(kind=classmethod),
    ]
    assert len({whole, *(contents_of(cls)[0] for cls in others)}) == 6
    recursive = made_class()
    recursive.me = recursive
    assert contents_of(recursive)[0] == contents_of(recursive)[0] != whole


SCRIPT = """
import functools, sys
from dataclasses import dataclass
from lottery_nb.core import contents_of
import here_module

NAMES = {"b", "a", "c", "d", "e", "f"}

@dataclass
class Shape:
    size: int = 3
    names: tuple = ("x", "y")
    def area(self):
        return self.size * len(NAMES)

class Net(Shape):
    __slots__ = ("extra",)
    @staticmethod
    def of(x, kinds=frozenset({"p", "q", "r"})):
        return x in {"u", "v", "w"} or x in kinds or super

def make(by):
    def inner(x):
        return Net(by).area() + here_module.helper(x) + x in {"k", "l", "m"}
    return inner

for fn in (make(2), Net, Shape(4).area, functools.partial(make, NAMES), lambda: here_module):
    print(contents_of(fn)[0])
"""


MODULE = """
BY = 2
def helper(x):
    return BY * x

def unrelated():
    return 1
"""


def in_sessions(tmp_path, *scripts):
    "What scripts print, each in a session of its own with other addresses and other orders of sets."
    (tmp_path / "here_module.py").write_text(MODULE)
    said = []
    for seed, script in enumerate(scripts):
        (tmp_path / f"script{seed}.py").write_text(script)
        paths = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(tmp_path)])
        env = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": paths}
        words = [sys.executable, str(tmp_path / f"script{seed}.py")]
        said.append(subprocess.run(words, env=env, capture_output=True, text=True, check=True, cwd=tmp_path).stdout)
    return said


def test_the_same_code_is_known_again_in_another_session(tmp_path):
    moved = "# a comment\n\n\n" + SCRIPT  # other lines
    changed = SCRIPT.replace("size: int = 3", "size: int = 4")
    first, second, third, other = in_sessions(tmp_path, SCRIPT, SCRIPT, moved, changed)
    assert first == second == third and len(set(first.split())) == 5
    assert other.split()[:3] != first.split()[:3] and other.split()[4] == first.split()[4]


@pytest.mark.parametrize("change", ["BY = 3", "def helper(x):\n    return x"])
def test_an_edited_module_that_a_lambda_uses_makes_it_another(change, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"edited_{abs(hash(change)) % 1000}"
    file = tmp_path / f"{name}.py"
    file.write_text(MODULE)
    module = importlib.import_module(name)
    fn = eval("lambda x: module.helper(x)", {"module": module, "__name__": "__main__"})
    before = contents_of(fn)[0]
    file.write_text(file.read_text().replace("return 1", "return 22222"))
    assert contents_of(fn)[0] == before
    file.write_text(file.read_text() + f"\n\n{change}\n")
    assert contents_of(fn)[0] != before


@pytest.mark.parametrize("held", ["file", "lock", "generator", "frame"])
def test_what_holds_a_thing_that_cannot_be_written_down_is_refused(held, tmp_path):
    import threading

    with open(os.devnull) as file:
        things = {"file": file, "lock": threading.Lock(), "generator": (i for i in "ab"), "frame": sys._getframe()}
        thing = things[held]
        p = small(lambda shape, n, thing=thing: mlp(8)(shape, n))
        for go in (run, start):
            refused(lambda go=go: go(p, tmp_path / "run", "cpu"), "cannot be written to a file", "move it to a module")
        assert not (tmp_path / "run").exists()


# --- it runs ---


def test_a_plan_of_nameless_functions_goes_to_json_and_back():
    p = small(mlp(8), criterion=lambda scoring: {n: w.abs() for n, w in scoring.weights.items()})
    again = from_plain(json.loads(canonical(p)))
    assert again.hash == p.hash == small(mlp(8), criterion=p.criterion).hash
    assert again.hash != small(mlp(9), criterion=p.criterion).hash
    assert isinstance(again.network, Unnamed) and canonical(again) == canonical(p)
    assert "fn" not in json.loads(canonical(p))["network"]
    bad = json.loads(canonical(p))
    bad["network"]["fn"] = "print"
    refused(lambda: from_plain(bad))
    bad["network"] = {"type": "Unnamed", "name": "net", "source": "reach-1:" + "0" * 32}
    refused(lambda: from_plain(bad), "damaged")


def test_a_lambda_runs_here_and_is_taken_up_by_another_session(tmp_path):
    p = small(mlp(8))
    found = run(p, tmp_path / "run", "cpu", show=False)
    assert found.status == "done" and len(found.tickets) == 2
    another_session()
    again = Run(tmp_path / "run")
    assert again.whole and again.plan.hash == p.hash and run(again.plan, again.path, "cpu", show=False).whole
    model = again.tickets[-1].model()
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    lines = again.folder.log.read_bytes().splitlines(keepends=True)
    again.folder.log.write_bytes(b"".join(lines[:-1]))
    another_session()
    assert rows(run(read_plan(again.path), again.path, "cpu", show=False)).equals(rows(found))


def test_a_neighbour_with_the_same_closure_is_taken_and_with_another_is_not(tmp_path):
    run(small(mlp(8)), tmp_path / "home" / "a", "cpu", show=False)
    another_session()
    more = run(small(mlp(8), floor=0.001), tmp_path / "home" / "b", "cpu", show=False)
    assert len(of("ArmTaken", more.events)) == 3
    assert not of("ArmTaken", run(small(mlp(9)), tmp_path / "home" / "c", "cpu", show=False).events)


def test_a_worker_runs_all_kinds_of_nameless_functions(tmp_path):
    by = torch.tensor(2.0)

    class Body(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.first, self.last = nn.Linear(64, 12), nn.Linear(12, n)

        def forward(self, x):
            return self.last(torch.relu(self.first(x.flatten(1))) * by)

    def mine(b):
        "Weights turned around."
        start = {n: -w for n, w in b.start.weights.items()}
        return b.__class__(b.network, b.mask, b.start.__class__(start, b.start.buffers), b.seed, b.round)

    p = small(
        lambda shape, n: Body(n),
        criterion=lambda scoring: {n: (w * by).abs() for n, w in scoring.weights.items()},
        schedule=Schedule(lambda round, rounds: 1 - 0.3 * round, 2),
        rewind=lambda length: 3,
        controls=("reinit",),
    )
    here = run(p, tmp_path / "a" / "run", "cpu", show=False)
    found = ended(start(p, tmp_path / "b" / "run", "cpu"))
    assert rows(found).equals(rows(here)) and not of("ArmTaken", found.events)
    assert [t.content for t in found.tickets] == [t.content for t in here.tickets]
    kept = list((found.path / "inputs").glob("function-*.safetensors"))
    assert len(kept) == 4 and all(f.name in {k.name for k in kept} for f in (here.path / "inputs").iterdir())


def test_a_network_that_was_given_as_a_module_runs_in_a_worker(tmp_path):
    torch.manual_seed(0)
    given = mlp(8)((1, 8, 8), 5)
    p = small(given)
    assert p.hash == small(copy.deepcopy(given)).hash
    with torch.no_grad():
        given[1].weight[0, 0] += 1  # the plan has a copy
    assert p.hash != small(given).hash
    found = ended(start(p, tmp_path / "b" / "run", "cpu"))
    assert torch.equal(found.tickets[0].start("init").weights["1.weight"], p.network.model[1].weight)


def test_a_ticket_of_a_lambda_is_transferred_and_made_elsewhere(tmp_path):
    ticket = run(small(mlp(8)), tmp_path / "find", "cpu", show=False).tickets[-1]
    p = TransferPlan(ticket, ("digits[5-9]@200",), ("rewind",), controls=())
    write_plan(p, tmp_path / "move")
    another_session()
    moved = run(read_plan(tmp_path / "move"), tmp_path / "move", "cpu", show=False)
    assert moved.status == "done"
    ticket.save(tmp_path / "alone.safetensors")
    another_session()
    alone = Ticket.load(tmp_path / "alone.safetensors")
    refused(alone.model, "nothing that was read keeps it", "network=")
    assert alone.model(network=mlp(8))(torch.zeros(2, 1, 8, 8)).shape == (2, 5)


def test_a_notebook_starts_a_run_of_its_own_functions_in_the_background(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [
        "import torch, time\nfrom torch import nn\nimport lottery_nb as lt\nfrom tiny import plan\nSIZE = 9",
        """
        class Net(nn.Module):
            def __init__(self, n):
                super().__init__()
                self.a, self.b = nn.Linear(64, SIZE), nn.Linear(SIZE, n)

            def forward(self, x):
                return self.b(torch.relu(self.a(x.flatten(1))))

        def net(shape, n):
            return Net(n)

        def score(scoring):
            return {name: w.abs() for name, w in scoring.weights.items()}""",
        "p = plan(network=net, width=1.0, criterion=score, seeds=1)\nfound = lt.start(p, 'home/run', 'cpu')",
        "while found.status in ('running', 'planned'):\n    time.sleep(0.2)\nprint(found.status, len(found.tickets))",
        "again = lt.run(p, 'apart/run', 'cpu', show=False)\nsame = [t.content for t in found.tickets]\n"
        "assert same == [t.content for t in again.tickets]\nprint('same bits')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(c)) for c in cells])
    there = {"path": str(tmp_path)}
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": there}).execute()
    said = [out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", ())]
    assert "done 2\n" in said and "same bits\n" in said, (said, (tmp_path / "home/run/worker.log").read_text())


def by_mail(jobs, lanes):
    "An executor that sends each job as bytes."
    results = []
    for job in jobs:
        results.append((yield from pickle.loads(pickle.dumps(job))()))
    return results


def test_an_executor_sends_nameless_networks_to_other_processes():
    class Local(nn.Sequential):
        pass

    def net(shape, n):
        return Local(*mlp(8)(shape, n))

    for network in (Network(net, (1, 8, 8), 5), Network(mlp(8)((1, 8, 8), 5), (1, 8, 8), 5)):
        here, _ = listen(train([some_arm(network=network)], "cpu"))
        sent, _ = listen(train([some_arm(network=network)], "cpu", executor=by_mail))
        assert sent[0].kept.fingerprint == here[0].kept.fingerprint


# --- what somebody else has written is never opened ---


class Canary:
    "Makes a folder when it is opened."

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


def forge(file, path, **changes):
    "Put other bytes into a serialised function."
    tensors, record = read_tensors(file)
    record.pop("schema")
    bytes_of = pickle.dumps(Canary(path))
    record |= changes
    write_tensors(file, {"pickle": torch.frombuffer(bytearray(bytes_of), dtype=torch.uint8)}, record)
    return bytes_of


def kept_signature(file, canary, **_):
    forge(file, canary)


def no_signature(file, canary, **_):
    forge(file, canary, signature="")


def truncated(file, canary, **_):
    forge(file, canary, signature=read_tensors(file)[1]["signature"][:20])


def another_users(file, canary, monkeypatch, tmp_path, **_):
    about, bytes_of = read_tensors(file)[1]["function"], pickle.dumps(Canary(canary))
    with monkeypatch.context() as m:
        m.setenv("LOTTERY_CONFIG", str(tmp_path / "another"))
        signed = signature(PURPOSE, about["name"], about["source"], about["python"], bytes_of)
    forge(file, canary, signature=signed)


def of_another_purpose(file, canary, **_):
    about, bytes_of = read_tensors(file)[1]["function"], pickle.dumps(Canary(canary))
    forge(file, canary, signature=signature("arms of a run", about["name"], about["source"], about["python"], bytes_of))


def replayed(file, canary, **_):
    "A function that this user signed, in the place of another: its whole file, and with the other's hash put in."
    tensors, record = packed(Reference.to(lambda shape, n, place=str(canary): os.mkdir(place)))
    write_tensors(file, tensors, record)


def replayed_as_the_other(file, canary, **_):
    source = read_tensors(file)[1]["function"]["source"]
    tensors, record = packed(Reference.to(lambda shape, n, place=str(canary): os.mkdir(place)))
    write_tensors(file, tensors, record | {"function": record["function"] | {"source": source}})


def other_reaches(file, canary, **_):
    about = read_tensors(file)[1]["function"]
    forge(file, canary, function=about | {"reaches": [["a", 3]]})


def garbage(file, canary, **_):
    file.write_bytes(pickle.dumps(Canary(canary)))


def gone(file, **_):
    file.unlink()


def a_pipe(file, **_):
    file.unlink()
    os.mkfifo(file)


FORGED = [
    kept_signature,
    no_signature,
    truncated,
    another_users,
    of_another_purpose,
    replayed,
    replayed_as_the_other,
    other_reaches,
    garbage,
    gone,
    a_pipe,
]


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    "A run that has a ticket, and one that is only planned."
    home = tmp_path_factory.mktemp("planned")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("LOTTERY_CONFIG", str(home / "own"))
        run(small(mlp(8)), home / "run", "cpu", show=False)
    return home


@pytest.mark.parametrize("how", FORGED, ids=lambda f: f.__name__)
def test_a_forged_function_is_never_opened(how, planned, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(planned / "own", tmp_path / "own")
    folder = shutil.copytree(planned / "run", tmp_path / "run")
    (file,) = (folder / "inputs").glob("function-*")
    canary = tmp_path / "canary"
    how(file, canary=canary, monkeypatch=monkeypatch, tmp_path=tmp_path)
    another_session()
    found = Run(folder)
    assert found.whole and found.plan and not found.frame.empty  # reading opens nothing
    tickets = found.tickets
    for do in (tickets[-1].model, lambda: work_anew(folder), lambda: start(read_plan(folder), tmp_path / "new", "cpu")):
        another_session()
        Ticket.load(next((folder / "tickets").iterdir()))  # which says where functions may lie
        refused(do)
        assert not canary.exists() and not (tmp_path / "new").exists()
    lines = found.folder.log.read_bytes().splitlines(keepends=True)
    found.folder.log.write_bytes(b"".join(lines[:-1]))
    another_session()
    refused(lambda: resume(folder, "cpu"))
    assert not canary.exists()


def work_anew(folder):
    "As a worker does it, on a run that has not begun."
    RunFolder(folder).log.unlink(missing_ok=True)
    work(folder, "cpu")


def test_reading_opens_nothing_even_if_it_is_ones_own(tmp_path, capsys):
    canary = tmp_path / "canary"
    found = run(small(mlp(8)), tmp_path / "run", "cpu", show=False)
    (file,) = (found.path / "inputs").glob("function-*")
    about, bytes_of = read_tensors(file)[1]["function"], pickle.dumps(Canary(canary))
    forge(file, canary, signature=signature(PURPOSE, about["name"], about["source"], about["python"], bytes_of))
    another_session()
    assert Serialised(file, about["source"]).sound
    report(Run(found.path)), glance(found.path), cell_of(found.path), Run(found.path).tickets
    for words in (["show"], ["status"], ["export", str(tmp_path / "out")]):
        assert main([words[0], str(found.path), *words[1:]]) == 0
    assert not canary.exists()
    refused(Run(found.path).tickets[0].model)  # now it was opened: this user signed it
    assert canary.exists()


def test_a_plan_whose_hash_was_changed_is_refused(tmp_path):
    write_plan(small(mlp(8)), tmp_path / "run")
    told = json.loads((tmp_path / "run" / "plan.json").read_text())
    source = told["network"]["source"]
    told["network"]["source"] = source[:-1] + ("0" if source[-1] != "0" else "1")
    (tmp_path / "run" / "plan.json").write_text(json.dumps(told))
    another_session()
    says = refused(lambda: resume(tmp_path / "run", "cpu"), "write it to a module")
    assert "nothing that was read keeps it" in says
    refused(lambda: run(read_plan(tmp_path / "run"), tmp_path / "run", "cpu", show=False), "write it to a module")


def test_another_python_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lottery_nb.functions.PYTHON", "3.99")
    write_plan(small(mlp(8)), tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setenv("LOTTERY_CONFIG", str(tmp_path / "own"))
    another_session()
    refused(lambda: resume(tmp_path / "run", "cpu"), "was written by Python 3.99", "write it to a module")


def test_a_module_that_was_edited_since_is_refused_before_anything_is_opened(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "used_by_lambda.py"
    file.write_text("def size():\n    return 8\n")
    module = importlib.import_module("used_by_lambda")
    inner = mlp
    write_plan(small(lambda shape, n: inner(module.size())(shape, n)), tmp_path / "run")
    another_session()
    read_plan(tmp_path / "run").network.check()
    file.write_text("def size():\n    return 99\n")
    opened = []
    monkeypatch.setattr(cloudpickle, "loads", opened.append)
    refused(lambda: resume(tmp_path / "run", "cpu"), "used_by_lambda", "make the plan again")
    assert not opened


def test_a_worker_is_refused_where_there_is_no_key_and_nothing_is_left(tmp_path, own):
    own.mkdir(mode=0o700)
    (own / "key").mkdir()
    refused(lambda: start(small(mlp(8)), tmp_path / "run", "cpu"), "the key ")
    assert not (tmp_path / "run").exists()


def test_what_a_closure_holds_may_not_change_behind_a_plan():
    table = [8]
    p = FindPlan(schedule=Schedule(lambda round, rounds: 1 - round / table[0], 2))
    kind = p.schedule.kind
    table[0] = 9
    refused(lambda: kind(1, 2), "has changed since", "make the plan again")


def test_a_nameless_function_goes_to_another_process_of_this_session():
    told = Reference.to(around(torch.ones(2)))
    again = pickle.loads(pickle.dumps(told))
    assert again == told and copy.deepcopy(told) is told
    assert torch.equal(again(1)[1], torch.ones(2))
