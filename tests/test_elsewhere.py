"""Tickets that leave for other tools, and masks and weights that come from them: outputs of processes that cannot import this package, and masks to the bit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import NAME, plan
from torch import nn
from torch.nn.utils import prune

from lottery_nb.core import LotteryError
from lottery_nb.data.domains import domain
from lottery_nb.files import read_tensors
from lottery_nb.models.network import Network
from lottery_nb.plans.formats import FORMATS
from lottery_nb.plans.tickets import Ticket
from lottery_nb.plans.transfer import TransferPlan
from lottery_nb.pruning.masks import Mask
from lottery_nb.rewinding.snapshots import fresh
from lottery_nb.runs.writing import run

ALONE = """
import json, sys
sys.modules["lottery_nb"] = None  # an import of it fails
import torch
from torch import nn
from torch.nn.utils import prune

class LeNet(nn.Module):
    def __init__(self, hidden, last, classes):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(64, hidden), nn.Linear(hidden, last), nn.Linear(last, classes)

    def forward(self, x):
        return self.head(self.fc2(self.fc1(x.flatten(1)).relu()).relu())

def lenet(state):
    net = LeNet(len(state["fc1.bias"]), len(state["fc2.bias"]), len(state["head.bias"]))
    net.load_state_dict(state)
    return net

def pruned(state):
    names = [name.removesuffix("_orig") for name in state if name.endswith("_orig")]
    net = LeNet(len(state["fc1.bias"]), len(state["fc2.bias"]), len(state["head.bias"]))
    for name in names:
        place, _, last = name.rpartition(".")
        prune.identity(net.get_submodule(place), last)
    net.load_state_dict(state)
    return net

def from_safetensors(path):
    from safetensors.torch import load_file
    return lenet(load_file(path))

def from_onnx(path):
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    return lambda x: torch.tensor(session.run(None, {"x": x.numpy()})[0])

READERS = {
    "safetensors": from_safetensors,
    "dense": lambda path: lenet(torch.load(path)),
    "torch": lambda path: lenet(torch.load(path)["state_dict"]),
    "prune": lambda path: pruned(torch.load(path)),
    "program": lambda path: torch.export.load(path).module(),
    "onnx": from_onnx,
}
files = json.loads(sys.argv[1])
x, scores = torch.load(files.pop("outputs"))
apart = {}
for name, path in files.items():
    with torch.no_grad():
        apart[name] = (READERS[name](path)(x) - scores).abs().max().item()
print(json.dumps(apart))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    "A finished search."
    return run(plan(), tmp_path_factory.mktemp("found") / "run", "cpu", show=False)


@pytest.fixture(scope="module")
def ticket(found):
    return found.tickets[-1]


def test_every_format_gives_the_same_outputs_where_this_package_cannot_be_imported(ticket, tmp_path):
    files = {name: str(ticket.export(tmp_path / name, name)) for name in FORMATS}
    assert len(files) == 6
    x = torch.rand(5, *ticket.network.input_shape)
    files["outputs"] = str(tmp_path / "outputs.pt")
    torch.save((x, ticket.model().eval()(x).detach()), files["outputs"])
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    line = [sys.executable, "-c", ALONE, json.dumps(files)]
    done = subprocess.run(line, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    apart = json.loads(done.stdout)
    assert apart.keys() == set(FORMATS)
    exact = {"safetensors", "dense", "torch", "prune"}
    assert all(apart[name] == 0 for name in exact) and all(x < 1e-5 for x in apart.values()), apart


@pytest.mark.parametrize("name", ["resnet-20", "text-cnn"])
def test_a_program_holds_batch_norm_and_reads_tokens(name, tmp_path):
    network = (
        Network(name, (1, 8, 8), 3, 0.25)
        if name == "resnet-20"
        else Network(name, (12,), 3, 0.1, vocabulary=50)
    )
    mask = Mask.from_zeros({n: (w > 0) * w for n, w in fresh(network, 0).weights.items()})
    ticket = Ticket(mask, network, {"init": fresh(network, 0)}, plan().recipe, "a", "", ((), ()), 1, 0)
    net = ticket.model().eval()
    x = torch.rand(5, 1, 8, 8) if name == "resnet-20" else torch.randint(50, (5, 12))
    again = torch.export.load(ticket.export(tmp_path / "net.pt2", "program")).module()(x)
    assert (again - net(x)).abs().max() < 1e-5


class Branching(nn.Module):
    "What no tracer follows: its path depends on what it reads."

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(64, 3)

    def forward(self, x):
        return self.out(x.flatten(1)) if x.sum() > 0 else self.out(-x.flatten(1))


def branching(input_shape, n_classes):
    return Branching()


def test_a_network_that_a_format_cannot_hold_is_refused_and_leaves_no_file(tmp_path):
    network = Network(branching, (1, 8, 8), 3)
    mask = Mask.dense(fresh(network, 0).weights, ["out.weight"])
    ticket = Ticket(
        mask, network, {"init": fresh(network, 0)}, plan().recipe, "a", "", ((0.0,), (1.0,)), 1, 0
    )
    with pytest.raises(LotteryError, match="Branching cannot be written as a program .*: export its weights"):
        ticket.export(tmp_path / "net.pt2", "program")
    assert not list(tmp_path.iterdir())
    assert ticket.export(tmp_path / "net.safetensors").exists()


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_its_extra(missing, ticket, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(LotteryError, match=rf"{missing} is not installed here .*: pip install 'lottery_nb\[onnx\]'"):
        ticket.export(tmp_path / "net.onnx", "onnx")


def test_an_unknown_format_is_refused_before_anything_is_written(ticket, tmp_path):
    with pytest.raises(LotteryError, match="did you mean 'safetensors'"):
        ticket.export(tmp_path / "x", "safe-tensors")
    assert not list(tmp_path.iterdir())


# --- the format on one page ---

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads((ROOT / "lottery_nb" / "ticket.schema.json").read_text(encoding="utf-8"))


def test_the_schema_holds_for_tickets_of_every_kind(found, ticket, tmp_path):
    theirs = Ticket.of(ticket.network, ticket.mask, ticket.start().weights, NAME)
    alone = [t.save(tmp_path / f"{i}.safetensors") for i, t in enumerate((ticket, theirs))]
    in_runs = [*found.folder.tickets.iterdir(), *sorted((ROOT / "tests/golden/folders").glob("*/tickets/*"))]
    assert len(in_runs) > len(found.tickets)
    for path in (*alone, *in_runs):
        jsonschema.validate(read_tensors(path)[1], SCHEMA)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 99},
        {"round": -1},
        {"mask": []},
        {"mask": [["w", [0]]]},
        {"snapshots": {}},
        {"snapshots": {"init": {"step": 1}}},
        {"network": {"type": "Recipe"}},
        {"more": 1},
    ],
    ids=str,
)
def test_the_schema_refuses_what_is_no_ticket(change, ticket, tmp_path):
    record = read_tensors(ticket.save(tmp_path / "t.safetensors"))[1]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record | change, SCHEMA)


def test_ten_lines_of_the_page_read_a_ticket_without_this_package(ticket, tmp_path):
    page = (ROOT / "TICKETS.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len([line for line in code.splitlines() if line]) <= 10
    ticket.save(tmp_path / "ticket.safetensors")
    code = 'import sys\nsys.modules["lottery_nb"] = None\n' + code + "\nnp.savez('read.npz', **weights)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    read = np.load(tmp_path / "read.npz")
    assert {
        n: torch.tensor(read[n]).equal(t) for n, t in ticket.model().state_dict().items()
    } == dict.fromkeys(read, True)


# --- masks that others made ---


def made(*sizes):
    layers = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
    return nn.Sequential(*layers)


def unstructured(net):
    prune.global_unstructured([(m, "weight") for m in net], prune.L1Unstructured, amount=0.6)


def structured(net):
    prune.ln_structured(net[0], "weight", amount=0.5, n=2, dim=0)


def several_times(net):
    for amount in (0.3, 0.3):
        prune.l1_unstructured(net[0], "weight", amount=amount)


def biases_too(net):
    prune.random_unstructured(net[0], "weight", amount=3)
    prune.random_unstructured(net[1], "bias", amount=1)


@pytest.mark.parametrize(
    "way", [unstructured, structured, several_times, biases_too], ids=lambda way: way.__name__
)
def test_masks_of_prune_come_and_go_to_the_bit(way, tmp_path):
    torch.manual_seed(0)
    net = made(6, 5, 3)
    x = torch.rand(4, 6)
    way(net)
    mask = Mask.from_prune(net)
    theirs = {n.removesuffix("_mask"): b.bool() for n, b in net.named_buffers()}
    assert mask == Mask(theirs)
    plain = made(6, 5, 3)
    with torch.no_grad():
        for name, p in plain.named_parameters():
            p.copy_(dict(net.named_parameters()).get(name + "_orig", dict(net.named_parameters()).get(name)))
    assert mask.to_prune(plain) is plain and plain(x).equal(net(x))
    torch.save(net.state_dict(), tmp_path / "pruned.pt")
    assert Mask.read(tmp_path / "pruned.pt") == mask  # from its state_dict


def test_attention_is_pruned_under_its_own_names():
    attention = nn.MultiheadAttention(8, 2)
    bits = {"in_proj_weight": torch.rand(24, 8) > 0.5, "out_proj.weight": torch.rand(8, 8) > 0.5}
    assert Mask.from_prune(Mask(bits).to_prune(attention)) == Mask(bits)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64]
)
def test_a_file_of_masks_is_read_whatever_its_numbers(dtype, tmp_path):
    bits = {"fc.weight": torch.rand(5, 4) > 0.5, "conv.weight": torch.rand(3, 2, 3, 3) > 0.5}
    torch.save({n: b.to(dtype) for n, b in bits.items()}, tmp_path / "mask.pth")
    assert Mask.read(tmp_path / "mask.pth") == Mask(bits)
    if dtype != torch.bool:
        safetensors.torch.save_file({n: b.to(dtype) for n, b in bits.items()}, tmp_path / "mask.safetensors")
        assert Mask.read(tmp_path / "mask.safetensors") == Mask(bits)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trap",)


NO_MASKS = {
    "weights": ({"w": torch.tensor([[0.0, 0.5]])}, "holds weights and no masks"),
    "not numbers": ({"w": torch.tensor([[float("nan"), 1.0]])}, "holds weights and no masks"),
    "code": ({"w": Trap()}, "more than tensors"),
    "lists": ({"w": [0, 1]}, "give a state_dict"),
    "nothing": ({}, "give a state_dict"),
    "twos": (
        {"a.weight_orig": torch.rand(2, 2), "a.weight_mask": torch.full((2, 2), 2.0)},
        "numbers other than 0 and 1",
    ),
}


@pytest.mark.parametrize("case", NO_MASKS)
def test_what_is_no_mask_is_refused_by_the_name_of_its_file(case, tmp_path, monkeypatch):
    content, why = NO_MASKS[case]
    monkeypatch.chdir(tmp_path)
    torch.save(content, "mask.pth")
    with pytest.raises(LotteryError, match=rf"mask\.pth.*{why}"):
        Mask.read("mask.pth")
    assert not (tmp_path / "trap").exists()


def test_zeros_of_a_checkpoint_are_its_mask():
    weights = {
        "a.weight": torch.tensor([[0.0, 2.0], [-0.0, 1.0]]),
        "a.bias": torch.zeros(2),
        "n": torch.zeros(2, 2).long(),
    }
    assert Mask.from_zeros(weights) == Mask({"a.weight": torch.tensor([[False, True], [False, True]])})
    with pytest.raises(LotteryError, match="none of 1 matrices and kernels"):
        Mask.from_zeros({"a.weight": torch.ones(2, 2)})


def test_what_does_not_fit_is_refused_and_changes_nothing():
    net = made(4, 4)
    before = net.state_dict().keys()
    for bits in ({"0.weight": torch.ones(3, 4).bool()}, {"1.weight": torch.ones(4, 4).bool()}):
        with pytest.raises(LotteryError, match="give the plain network of the mask"):
            Mask(bits).to_prune(net)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(LotteryError, match="'0.weight' is tied to '1.weight'"):
        Mask({"0.weight": torch.eye(4).bool()}).to_prune(tied)
    assert net.state_dict().keys() == before


# --- a ticket of theirs ---


@pytest.mark.parametrize("form", ["state", "file", "module", "pruned"])
def test_a_mask_and_a_state_are_a_ticket_that_is_carried_on(form, ticket, tmp_path):
    state = ticket.start().weights
    net = ticket.network.build(3)
    net.load_state_dict(state)
    torch.save(state, tmp_path / "model.pth")
    given = {"state": state, "file": tmp_path / "model.pth", "module": net}.get(form)
    if form == "pruned":
        given = ticket.mask.to_prune(net).state_dict()
    theirs = Ticket.of(ticket.network, ticket.mask, given, NAME, recipe=ticket.recipe)
    x = torch.rand(3, *ticket.network.input_shape)
    assert theirs.model()(x).equal(ticket.model()(x)) and theirs.domain == domain(NAME).fingerprint
    read = Ticket.load(theirs.save(tmp_path / "theirs.safetensors"))
    assert read.content == theirs.content and set(read.snapshots) == {"init"}


def test_a_ticket_without_trained_weights_goes_where_it_can(ticket, tmp_path):
    theirs = Ticket.of(ticket.network, ticket.mask, ticket.start().weights, NAME, recipe=ticket.recipe)
    how = dict(recipe=ticket.recipe, controls=())
    carried = run(
        TransferPlan((theirs,), (NAME,), start=("rewind", "fresh"), **how), tmp_path / "a", "cpu", show=False
    )
    assert carried.status == "done" and np.isfinite(carried.frame["value"]).all()
    with pytest.raises(LotteryError, match="holds no weights trained on its source"):
        run(
            TransferPlan((theirs,), (NAME,), start=("source-trained",), **how),
            tmp_path / "b",
            "cpu",
            show=False,
        )
    assert not (tmp_path / "b").exists()
    full = Ticket.of(
        ticket.network, ticket.mask, ticket.start().weights, NAME, ticket.start("source-trained").weights
    )
    x = torch.rand(3, *ticket.network.input_shape)
    assert full.model("source-trained")(x).equal(ticket.model("source-trained")(x))


def test_a_state_of_another_network_is_refused(ticket):
    with pytest.raises(LotteryError, match="should be|in the snapshot and"):
        Ticket.of(ticket.network.with_(width=0.7), ticket.mask, ticket.start().weights, NAME)
    short = {n: w for n, w in ticket.start().weights.items() if "bias" not in n}
    with pytest.raises(LotteryError, match="missing in the snapshot"):
        Ticket.of(ticket.network, ticket.mask, short, NAME)
    with pytest.raises(LotteryError, match="use a mask made for this network"):
        Ticket.of(ticket.network, Mask({"fc1.weight": torch.ones(2, 2).bool()}), ticket.start().weights, NAME)


def test_the_shell_writes_networks_for_other_tools(found, tmp_path, capsys):
    from lottery_nb.cli import main

    assert main(["convert", str(found.path), str(tmp_path), "--format", "torch", "--rounds", "1"]) == 0
    files = capsys.readouterr().out.split()
    assert len(files) == len({t.seed for t in found.tickets}) and all(f.endswith(".pt") for f in files)
    held = torch.load(files[0])
    ticket = next(t for t in found.tickets if t.round == 1)
    assert Mask(held["mask"]) == ticket.mask and all(
        held["state_dict"][n].equal(t) for n, t in ticket.model().state_dict().items()
    )
    assert main(["convert", str(found.path), str(tmp_path / "no"), "--format", "tf"]) == 2
    assert "unknown export format 'tf'" in capsys.readouterr().err and not (tmp_path / "no").exists()
