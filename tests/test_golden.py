"""What may not change unseen: plan hashes, identities of arms, the bytes of tickets, results and CSV of small runs, and run folders of earlier versions.

`python tests/test_golden.py` writes tests/golden anew: only where a format is changed on purpose, which the changelog then says. The folders of runs stay as they were written."""

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lottery_nb.core import canonical
from lottery_nb.data.domains import domain, vocabulary
from lottery_nb.pruning.masks import Mask
from lottery_nb.models.network import Network
from lottery_nb.data.own import from_texts
from lottery_nb.pruning.schedules import cubic, geometric, linear, listed, one_shot
from lottery_nb.rewinding.snapshots import fresh, Snapshot
from lottery_nb.rewinding.points import TRAINED
from lottery_nb.runs.reading import Run
from lottery_nb.runs.writing import run
from lottery_nb.plans.tickets import Ticket
from lottery_nb.plans.find import FindPlan
from lottery_nb.engine.recipes import Recipe
from lottery_nb.engine.arms import Arm, identity
from lottery_nb.plans.transfer import TransferPlan

HOME = Path(__file__).parent / "golden"
QUICK = Recipe(lr=0.05, epochs=2, batch_size=32, precision="fp64")
FIND = FindPlan(
    "digits[0-4]@200",
    width=0.05,
    schedule=geometric(0.4, 2),
    rewind="step 3",
    recipe=QUICK,
    seeds=2,
    controls=("reinit", "shuffled", "random mask", "small dense"),
    rates=(0.02,),
)


def wave(shape, phase):
    "Numbers that no generator drew: the same on every machine."
    return (
        ((torch.arange(np.prod(shape), dtype=torch.float64) * 0.7 + phase).sin() * 0.3).float().view(*shape)
    )


def made_up(network, phase=0.0):
    "A snapshot and a mask of a network that are functions of their place."
    drawn = fresh(network, 0)
    weights = {n: wave(w.shape, phase + i) for i, (n, w) in enumerate(sorted(drawn.weights.items()))}
    return Snapshot(weights, drawn.buffers), Mask(
        {n: w > 0.1 for n, w in weights.items() if w.ndim > 1 and "head" not in n}
    )


def made_up_ticket():
    network = Network("lenet-300-100", (1, 8, 8), 5, 0.05)
    start, mask = made_up(network)
    return Ticket(
        mask=mask,
        network=network,
        snapshots={"init": start, TRAINED: made_up(network, 0.5)[0]},
        recipe=QUICK,
        source="digits[0-4]",
        domain="0123456789abcdef",
        norm=((0.3,), (0.4,)),
        round=2,
        seed=1,
        plan="fedcba9876543210",
        version="0.1.0",
    )


def reviews():
    "Made-up sentences, cut into pieces."
    draw = np.random.default_rng(0)
    words = "the film and an actor in one long scene of a dull plot".split()
    texts = [
        " ".join([*draw.choice(words, 4), "good" if i % 2 else "bad", *draw.choice(words, 4)])
        for i in range(200)
    ]
    made = from_texts(
        texts[:160], np.arange(160) % 2, (texts[160:], np.arange(40) % 2), ("negative", "positive"), "films"
    )
    return made.tokenised(vocabulary(made, 70), 12)


def plans():
    "Plans that between them use every kind of field."
    everything = FindPlan(
        "digits[0-4]+invert",
        "conv-2",
        0.25,
        cubic(0.05, 4),
        rewind="epoch 1",
        retrain="learning-rate rewinding",
        recipe=Recipe(
            "adamw",
            lr=0.002,
            steps=50,
            schedule="step",
            weight_decay=0.1,
            augment=("crop", "flip"),
            precision="bf16",
            keep="best loss",
            patience=3,
        ),
        seeds=(3, 5),
        criterion="snip",
        scope="erk",
        score_at="start",
        controls=("dense", "reinit signs kept"),
        floor=0.5,
    )
    finds = {
        "default": FindPlan(),
        "everything": everything,
        "one-shot": replace(FIND, schedule=one_shot(0.1)),
        "linear": replace(FIND, schedule=linear(0.1, 3)),
        "listed": replace(FIND, schedule=listed([0.5, 0.2])),
        "network": replace(FIND, network=Network("resnet-20", (1, 8, 8), 5, 0.5, head="mlp"), width=1.0),
        "head": replace(FIND, layer_fractions={"head": 0.1}),
        "quirks": replace(FIND, recipe=replace(QUICK, quirks=("rebuilt optimizer",))),
    }
    move = TransferPlan(
        (made_up_ticket(),),
        ("digits[5-9]", "digits[0-4]+blur(1)@300"),
        start=("rewind", "fresh"),
        body="frozen",
        recipe=QUICK,
        rates=(0.1,),
    )
    return {**finds, "transfer": move}


def identities():
    "Arms of every kind, known by a torch of a made-up version."
    lenet, conv = Network("lenet-300-100", (1, 8, 8), 5, 0.05), Network("conv-2", (1, 8, 8), 5, 0.1)
    arms = {}
    for name, network in (
        ("lenet", lenet),
        ("conv", conv),
        ("resnet", Network("resnet-20", (1, 8, 8), 5, 0.25)),
    ):
        start, mask = made_up(network)
        arms[name] = Arm(
            "a", network, domain("digits[0-4]@200"), replace(QUICK, precision="fp32"), 1, start, mask
        )
    arms["frozen"] = replace(
        arms["lenet"],
        frozen=frozenset(["fc1.weight"]),
        norm="recalibrated",
        capture=(3,),
        returns_weights=False,
    )
    arms["dense"] = replace(arms["lenet"], mask=None, start=replace(arms["lenet"].start, step=4, updates=2))
    return {name: identity(arm, torch.device("cpu"), 1) for name, arm in arms.items()}


def csv_of(frame):
    return frame.to_csv(index=False, float_format="%.10g")


def machine():
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"


def facts(monkeypatch, folder):
    "Everything that is a function of the code alone."
    monkeypatch.setattr(torch, "__version__", "golden")
    file = made_up_ticket().save(folder / "ticket.safetensors")
    return {
        "plans": {name: p.hash for name, p in plans().items()},
        "texts": {
            name: hashlib.sha256(canonical(p).encode()).hexdigest()[:16] for name, p in plans().items()
        },
        "identities": identities(),
        "ticket": hashlib.sha256(file.read_bytes()).hexdigest(),
        "content": made_up_ticket().content,
    }


def run_plan(name, folder):
    "One of the three small runs, in a folder."
    if name == "transfer":
        return run(
            TransferPlan(
                run_plan("find", folder).tickets[-1:],
                ("digits[5-9]@200", "digits[0-4]+invert@200"),
                recipe=QUICK,
                controls=("reinit", "random mask"),
            ),
            folder / name,
            "cpu",
            show=False,
        )
    texts = FindPlan(
        reviews(),
        "text-cnn",
        0.05,
        geometric(0.5, 1),
        recipe=replace(QUICK, optimizer="adam", lr=0.01, batch_size=20),
        seeds=1,
        controls=("shuffled",),
    )
    return run({"find": FIND, "texts": texts}[name], folder / name, "cpu", show=False)


RUNS = ("find", "transfer", "texts")


def test_what_follows_from_the_code_alone_is_as_it_was(monkeypatch, tmp_path):
    assert facts(monkeypatch, tmp_path) == json.loads((HOME / "facts.json").read_text())


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_an_earlier_version_is_read(name, tmp_path):
    shutil.copytree(HOME / "folders", tmp_path / "runs")
    old, stored = Run(tmp_path / "runs" / name), json.loads((HOME / "runs.json").read_text())[name]
    assert old.status == "done" and old.whole and csv_of(old.frame) == (HOME / f"{name}.csv").read_text()
    assert old.plan.hash == stored["hash"] == old.info["plan_hash"]
    assert [t.content for t in old.tickets] == stored["tickets"] and len(old.layers) == stored["layers"]
    lines = (old.path / "events.jsonl").read_bytes()
    again = run(old.plan, old.path, "cpu", show=False)
    assert again.info == old.info and (old.path / "events.jsonl").read_bytes() == lines  # it is only read
    for ticket, file in zip(old.tickets, sorted(old.path.glob("tickets/*")), strict=True):
        assert (
            ticket.save(tmp_path / "tickets" / file.name, store=tmp_path / "snapshots").read_bytes()
            == file.read_bytes()
        )


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_with_the_results_that_it_had(name, tmp_path):
    "To the bit where it was stored; elsewhere losses within a thousandth and accuracies within one picture of the test."
    found, stored = run_plan(name, tmp_path), json.loads((HOME / "runs.json").read_text())[name]
    want = pd.read_csv(HOME / f"{name}.csv", keep_default_na=False)
    got = pd.read_csv(io.StringIO(csv_of(found.frame)), keep_default_na=False)
    assert got.drop(columns="value").equals(want.drop(columns="value"))
    assert (
        name == "transfer" or found.plan.hash == stored["hash"]
    )  # a transfer's is of its tickets, which are of one machine
    loss = got["metric"] == "loss"
    assert np.allclose(got["value"][loss], want["value"][loss], rtol=1e-3) and np.allclose(
        got["value"][~loss], want["value"][~loss], atol=0.051
    )
    if machine() == stored["machine"]:
        assert (
            csv_of(found.frame) == (HOME / f"{name}.csv").read_text()
            and [t.content for t in found.tickets] == stored["tickets"]
        )


def write(name, folder):
    found = run_plan(name, folder)
    (HOME / f"{name}.csv").write_text(csv_of(found.frame))
    return {
        "hash": found.plan.hash,
        "tickets": [t.content for t in found.tickets],
        "layers": len(found.layers),
        "machine": machine(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    HOME.mkdir(exist_ok=True)
    if not (HOME / "folders").exists():
        (HOME / "runs.json").write_text(
            json.dumps({name: write(name, HOME / "folders") for name in RUNS}, indent=1) + "\n"
        )
        for left in (HOME / "folders").glob("*/lock"):
            left.unlink()
    with pytest.MonkeyPatch.context() as patch:
        (HOME / "facts.json").write_text(json.dumps(facts(patch, Path(HOME)), indent=1) + "\n")
        (HOME / "ticket.safetensors").unlink()
