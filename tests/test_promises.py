"""What goes wrong in other tools, each row a test: a name begins with the row's number. Beside a row stand the faults themselves, planted, where a guard must see them.

1 pruned weights revive · 2 only the weights are rewound · 3 counts that are off · 4 controls that are none · 5 heads and grey pictures that do not fit ·
6 evaluation mode while training, choosing by test data · 7 copies and files that lose the mask · 8 runs that cannot go on · 9 claims that the numbers do not carry
"""

import copy
import io
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from tiny import (
    Watched,
    exactly,
    find,
    listen,
    measure,
    noise_domain,
    of,
    plan,
    same,
    some_arm,
    some_mask,
    trained,
)

from lottery_nb.engine import training as engine_training
from lottery_nb.engine import trainer as engine_trainer
from lottery_nb.core import LotteryError
from lottery_nb.data.domains import domain
from lottery_nb.pruning.masks import Mask
from lottery_nb.models.network import Network
from lottery_nb.pruning.schedules import listed, one_shot
from lottery_nb.pruning.criteria import Scoring
from lottery_nb.pruning.scopes import make_mask, prune, SCOPES
from lottery_nb.rewinding.snapshots import fresh, Snapshot
from lottery_nb.rewinding.points import Beginning
from lottery_nb.rewinding.controls import CONTROLS
from lottery_nb.runs.reading import Run
from lottery_nb.runs.writing import record, run
from lottery_nb.results.stats import ARM, compare, paired, ranking
from lottery_nb.plans.tickets import Ticket
from lottery_nb.plans.find import find_tickets
from lottery_nb.engine.recipes import Recipe
from lottery_nb.plans.transfer import target_domain, transfer, TransferPlan

RULES = {
    "sgd": Recipe(lr=0.1, momentum=0.9, weight_decay=0.05, batch_size=32, epochs=2),
    "nesterov": Recipe(lr=0.1, nesterov=True, weight_decay=0.05, batch_size=32, epochs=2),
    "adam": Recipe("adam", 0.01, weight_decay=0.05, batch_size=32, epochs=2),
    "adamw": Recipe("adamw", 0.01, weight_decay=0.5, batch_size=32, epochs=2),
    "clipped": Recipe(
        lr=0.1, weight_decay=0.05, decay="matrices", clip=0.1, label_smoothing=0.1, batch_size=32, epochs=2
    ),
}


def dead(tensors, mask):
    "Every value that the mask prunes is +0 to the bit."
    kind = {torch.float32: torch.int32, torch.float64: torch.int64}
    return all((tensors[n][~bits].view(kind[tensors[n].dtype]) == 0).all() for n, bits in mask.items())


# --- row 1: the optimizer revives pruned weights ---


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
@pytest.mark.parametrize("rule", RULES)
def test_row_1_pruned_weights_and_their_state_are_plus_zero_after_every_step(rule, precision):
    recipe = replace(RULES[rule], precision=precision, augment=("crop",))
    dense = some_arm(recipe=recipe)
    wide = replace(
        dense.start, weights={n: -w.abs() - 1e-3 for n, w in dense.start.weights.items()}
    )  # whose pruned values become −0 when multiplied
    slots = {
        s: {n: torch.full_like(w, 0.3) for n, w in wide.weights.items()}
        for s in engine_trainer.SLOTS[recipe.optimizer]
    }
    mask = some_mask(dense.network)
    (result,), _ = trained(
        replace(dense, start=replace(wide, optimizer=slots, updates=4), mask=mask, capture=tuple(range(11)))
    )
    assert list(result.captured) == list(range(11))
    for s in (*result.captured.values(), result.last, result.kept):
        assert dead(s.weights, mask) and all(dead(slot, mask) for slot in s.optimizer.values())
        assert all((s.weights[n][bits] != 0).any() for n, bits in mask.items())
    assert all(
        slot[n][mask[n]].any()
        for s in (result.captured[5], result.last)
        for slot in s.optimizer.values()
        for n in mask
    )


def test_row_1_no_nan_comes_through_a_mask():
    arm = some_arm(mask=some_mask(some_arm().network))
    spoilt = {
        n: torch.where(arm.mask[n], w, torch.nan) if n in arm.mask else w
        for n, w in arm.start.weights.items()
    }
    (clean,), _ = trained(arm)
    (freed,), _ = trained(replace(arm, name="spoilt", start=Snapshot(spoilt, arm.start.buffers)))
    assert same(clean.last.tensors(), freed.last.tensors())


@pytest.mark.parametrize("rule", RULES)
def test_row_1_no_nan_comes_back_from_a_gradient(rule):
    arm = some_arm(network="tiny:rooted", recipe=RULES[rule])
    arm = replace(arm, mask=Mask({"first.weight": some_mask(arm.network)["first.weight"]}))
    model = arm.network.build(0)
    model.first.weight.data[~arm.mask["first.weight"]] = 0
    model(torch.rand(4, 1, 8, 8)).sum().backward()
    assert model.first.weight.grad.isnan()[~arm.mask["first.weight"]].any()  # such a gradient there is
    (result,), _ = trained(arm)
    assert (
        not result.failed
        and dead(result.last.weights, arm.mask)
        and all(t.isfinite().all() for t in result.last.tensors().values())
    )


def gradient(t):
    "The gradients of one arm as a vector; they are spent."
    vector = t.flat.vector([dict(zip(t.flat.shapes, (p.grad for p in t.flat.params), strict=True))])
    for p in t.flat.params:
        p.grad = None
    return vector


def revive(t):
    "Plain SGD that knows of no mask."
    t.flat.theta.data.add_(gradient(t), alpha=-0.1)


def remember(t):
    "The weights are masked, the momentum is not."
    t.state["momentum"].add_(gradient(t))
    moved = t.flat.theta - 0.1 * t.state["momentum"]
    t.flat.theta.data.copy_(moved if t.flat.bits is None else torch.where(t.flat.bits != 0, moved, 0.0))


def multiply(t):
    "The mask is multiplied, so −0 stays −0."
    t.flat.theta.data.copy_((t.flat.theta - 0.1 * gradient(t).abs()) * (t.flat.bits != 0))


def faulty(fault):
    def descend(t):
        fault(t)
        t.step, t.updates = t.step + 1, t.updates + 1

    return descend


@pytest.mark.parametrize("fault", [revive, remember, multiply])
def test_row_1_planted_the_guard_stops_at_the_first_step(fault, monkeypatch):
    arm = some_arm(mask=some_mask(some_arm().network))
    monkeypatch.setattr(engine_trainer.Trainer, "descend", faulty(fault))
    told = []
    with pytest.raises(AssertionError, match="pruned values came back to life"):
        for e in engine_training.train([arm], "cpu"):
            told.append(e)
    assert not of("EpochDone", told)
    if fault is not multiply:
        trained(replace(arm, mask=None))  # which sees nothing wrong in a dense network


# --- row 2: rewinding the weights alone ---


@pytest.mark.parametrize(
    "network, width", [("lenet-300-100", 0.1), ("resnet-20", 0.15), ("tiny:dropping", 1.0)]
)
@pytest.mark.parametrize("rewind, step", [("init", 0), ("step 3", 3), ("epoch 1", 5)])
def test_row_2_a_ticket_that_prunes_nothing_repeats_the_dense_training_to_the_bit(
    network, width, rewind, step, monkeypatch
):
    recipe = Recipe("adam", 0.01, epochs=2, batch_size=32, augment=("crop", "flip"))
    tickets, events, made = find(
        monkeypatch, network=network, width=width, rewind=rewind, recipe=recipe, schedule=listed([1.0])
    )
    dense, ticket = made["r00/dense/s0"], made["r01/ticket/s0"]
    assert tickets[0].density == 1 and ticket.arm.start.step == step
    assert same(ticket.last.tensors(), dense.last.tensors()) and (ticket.last.step, ticket.last.updates) == (
        10,
        10,
    )
    told = {
        arm: {e.epoch: (e.validation_loss, e.lr) for e in of("EpochDone", events, arm=arm)}
        for arm in ("r00/dense/s0", "r01/ticket/s0")
    }
    assert told["r01/ticket/s0"] and told["r01/ticket/s0"].items() <= told["r00/dense/s0"].items()


@pytest.mark.parametrize("forget", ["optimizer", "buffers", "step", "updates"])
def test_row_2_planted_what_is_forgotten_is_seen(forget):
    "Each part of a snapshot matters: without it the training ends elsewhere."
    arm = some_arm(
        network=Network("resnet-20", (1, 8, 8), 5, 0.15), recipe=Recipe("adam", 0.01, epochs=2, batch_size=32)
    )
    (first,), _ = trained(replace(arm, capture=(3,)))
    whole = first.captured[3]
    lost = replace(
        whole,
        **{
            "optimizer": {"optimizer": {}},
            "buffers": {"buffers": arm.start.buffers},
            "step": {"step": 0},
            "updates": {"updates": 0},
        }[forget],
    )
    (good, bad), _ = trained(replace(arm, name="good", start=whole), replace(arm, name="bad", start=lost))
    assert same(good.last.tensors(), first.last.tensors()) and not same(
        bad.last.tensors(), first.last.tensors()
    )


def test_row_2_planted_the_guard_sees_a_start_that_is_not_the_snapshot(monkeypatch):
    arm, real_fill = some_arm(), engine_trainer.Flat.fill
    monkeypatch.setattr(
        engine_trainer.Flat,
        "fill",
        lambda flat, vector, k, named: real_fill(
            flat, vector, k, {n: w * (1 + 1e-6) for n, w in named.items()}
        ),
    )
    with pytest.raises(AssertionError, match="does not start from its snapshot"):
        trained(arm)


def test_row_2_a_ticket_from_a_file_trains_as_the_search_did(monkeypatch, tmp_path):
    tickets, events, _ = find(
        monkeypatch,
        rewind="step 3",
        network="resnet-20",
        width=0.15,
        schedule=one_shot(0.4),
        recipe=Recipe("adam", 0.01, epochs=2, batch_size=60),
    )
    t = Ticket.load(tickets[0].save(tmp_path / "t.safetensors"))
    _, again = trained(
        some_arm("again", t.network, recipe=t.recipe, seed=t.seed, start=t.start(), mask=t.mask)
    )

    def timeless(es):
        return [replace(e, arm="", seconds=0.0) for e in es]

    assert timeless(of("EpochDone", again)) == timeless(of("EpochDone", events, arm="r01/ticket/s0"))


# --- row 3: a weight more or less ---


@pytest.mark.parametrize("scope", [name for name in SCOPES if not hasattr(SCOPES[name], "check_density")])
@pytest.mark.parametrize("density", [0.0049, 0.3, 1 / 3, 0.5, 0.99995])
@pytest.mark.parametrize("ties", [1, 3, 10**6])
def test_row_3_exactly_as_many_weights_stay_with_ties(scope, density, ties):
    g = torch.Generator().manual_seed(0)
    scores = {
        n: torch.randint(ties, shape, generator=g).float()
        for n, shape in (
            ("a.weight", (101, 97)),
            ("b.weight", (3, 7)),
            ("c.weight", (1, 1)),
            ("d.weight", (64, 8, 3, 3)),
        )
    }
    mask = prune(scores, Mask.dense(scores), density, scope)
    sizes = {n: s.numel() for n, s in scores.items()}
    if scope == "layer":
        assert mask.kept_in == {n: exactly(density, k) for n, k in sizes.items()}
    assert scope == "layer" or mask.kept == round(density * sum(sizes.values()))


def test_row_3_at_twenty_million_weights_too():
    scores = {
        "a.weight": (torch.arange(20_000_003, dtype=torch.float32) % 1000).view(1, -1)
    }  # 20,000 ties at every value
    mask = prune(scores, Mask.dense(scores), 0.123456789, "global")
    assert mask.kept == round(0.123456789 * 20_000_003)
    again = prune(scores, mask, 0.0987654321, "global")
    assert (
        again.kept == round(0.0987654321 * 20_000_003) and not (again["a.weight"] & ~mask["a.weight"]).any()
    )


def test_row_3_in_a_search_where_all_weights_are_equal():
    tickets, events = listen(
        find_tickets(
            plan(
                network="tiny:level",
                width=1.0,
                score_at="start",
                schedule=listed([0.7, 0.31, 0.0071]),
                recipe=Recipe(epochs=1, batch_size=60),
            ),
            "cpu",
        )
    )
    size = 64 * 7 + 7 * 5
    assert (
        [t.mask.kept for t in tickets]
        == [round(d * size) for d in (0.7, 0.31, 0.0071)]
        == [e.kept for e in of("TicketFound", events)]
    )


# --- row 4: controls that are none ---


def beginning(density=0.3, seed=3, round=2):
    network = Network("lenet-300-100", (1, 8, 8), 5, 0.3)
    start = fresh(network, seed)
    names = [n for n, w in start.weights.items() if w.ndim > 1]
    weights = {n: start.weights[n] for n in names}
    scoring = Scoring(network.build(seed), weights, Mask.dense(weights))
    return Beginning(
        network, make_mask("magnitude", scoring, density), replace(start, step=4), seed, round
    ), names


def joined(b, names):
    return torch.cat([b.start.weights[n].flatten() for n in names])


@pytest.mark.parametrize("density", [0.9, 0.3, 0.01])
def test_row_4_every_control_differs_from_the_ticket_as_it_says(density):
    ticket, names = beginning(density)
    made = {c: CONTROLS[c](ticket) for c in CONTROLS}
    weights, mine = (
        {c: joined(b, names) for c, b in made.items() if c != "small dense"},
        joined(ticket, names),
    )
    for c in ("shuffled", "random mask"):
        assert made[c].mask.kept_in == ticket.mask.kept_in
        for n, bits in ticket.mask.items():
            if 20 < ticket.mask.kept_in[n] < bits.numel() - 20:
                shared = (made[c].mask[n] & bits).sum().item() / bits.sum().item()
                assert abs(shared - bits.float().mean()) < 0.2 and not torch.equal(
                    made[c].mask[n], bits
                )  # what chance gives
    assert made["reinit"].mask == made["reinit signs kept"].mask == ticket.mask and made["dense"].mask is None
    assert same(made["shuffled"].start.weights, ticket.start.weights) and same(
        made["dense"].start.weights, ticket.start.weights
    )
    for c in ("reinit", "random mask"):
        agree = (weights[c].sign() == mine.sign()).float().mean()
        assert (
            0.45 < agree < 0.55
            and abs(torch.corrcoef(torch.stack([weights[c], mine]))[0, 1]) < 0.05
            and made[c].start.step == 0
        )
    assert (
        torch.equal(weights["reinit signs kept"].sign(), mine.sign())
        and abs(torch.corrcoef(torch.stack([weights["reinit signs kept"].abs(), mine.abs()]))[0, 1]) < 0.05
    )
    left = sum(w.numel() for w in ticket.start.weights.values()) - ticket.mask.size + ticket.mask.kept
    assert abs(sum(w.numel() for w in made["small dense"].start.weights.values()) - left) < 0.05 * left + 40


def test_row_4_controls_repeat_under_their_seed_and_under_no_other():
    ticket, names = beginning()

    def identity(b):
        return (b.mask.fingerprint if b.mask else "", b.start.fingerprint)

    for c, control in CONTROLS.items():
        torch.manual_seed(1)
        one = identity(control(ticket))
        torch.manual_seed(2)
        assert identity(control(ticket)) == one
        other = identity(control(replace(ticket, seed=4)))
        assert (other == one) == (c == "dense"), c
        if c in ("shuffled", "random mask"):  # drawn anew in each round
            assert identity(control(replace(ticket, round=3)))[0] != one[0]


# --- row 5: heads, and grey pictures ---


@pytest.mark.parametrize("head", ["new", "mlp"])
def test_row_5_the_head_always_fits_the_target(head):
    tickets, _ = listen(find_tickets(plan(schedule=one_shot(0.3)), "cpu"))
    targets = tuple(noise_domain(f"own{k}", n=6 * k, classes=k) for k in (2, 3, 11))
    moved = TransferPlan(
        tickets,
        (*targets, "digits@300"),
        ("rewind", "fresh"),
        head=head,
        recipe=Recipe(epochs=1, batch_size=6),
        controls=("dense", "random mask", "small dense"),
    )
    results, _ = listen(transfer(moved, "cpu"))
    assert {r.arm.domain.n_classes for r in results} == {2, 3, 10, 11} and not any(r.failed for r in results)
    for r in results:
        out = r.arm.network.build(0)(torch.zeros(2, *r.arm.domain.shape))
        assert out.shape == (2, r.arm.domain.n_classes) and set(r.metrics["test"]) == {"accuracy", "loss"}


def test_row_5_each_channel_of_a_grey_picture_is_that_picture():
    colours = noise_domain("colours", shape=(3, 8, 8))
    ticket = listen(
        find_tickets(
            plan(source=colours, schedule=one_shot(0.3), recipe=Recipe(epochs=1, batch_size=9)), "cpu"
        )
    )[0][0]
    there, grey = target_domain(ticket, tiny.NAME), domain(tiny.NAME)
    for split in ("train", "validation", "test"):
        x, was = getattr(there, split).x, getattr(grey, split).x
        assert x.shape == (len(was), 3, 8, 8) and all(torch.equal(x[:, c], was[:, 0]) for c in range(3))


# --- row 6: modes, and test data ---


def test_row_6_training_mode_at_every_step_and_frozen_layers_aside():
    Watched.log.clear()
    trained(some_arm(network="tiny:watched", recipe=Recipe(epochs=3, batch_size=60), capture=(1, 2, 5)))
    assert {learning: modes for learning, modes, _ in Watched.log} == {True: {True}, False: {False}} and len(
        Watched.log
    ) == 3 * 3 + 3 + 1
    assert all(modes == {learning} for learning, modes, _ in Watched.log)
    Watched.log.clear()
    arm = some_arm(network="tiny:watched", recipe=Recipe(epochs=2, batch_size=60))
    trained(replace(arm, frozen=frozenset(n for n in arm.start.weights if n.startswith("body"))))
    assert {frozenset(modes) for learning, modes, _ in Watched.log if learning} == {frozenset({True, False})}
    Watched.log.clear()


def test_row_6_other_test_data_change_no_choice():
    there = noise_domain(n=90)
    swapped = replace(
        there, raw=replace(there.raw, test=(there.raw.test[0].flip(0), (there.raw.test[1] + 1) % 3))
    )
    found = {}
    for key, d in (("a", there), ("b", swapped)):
        tickets, events = listen(
            find_tickets(
                plan(source=d, controls=("random mask",), recipe=Recipe(epochs=6, batch_size=9, patience=2)),
                "cpu",
            )
        )
        found[key] = (
            [t.mask for t in tickets],
            [t.start("source-trained").fingerprint for t in tickets],
            [replace(e, seconds=0.0) for e in of("EpochDone", events)],
            [(e.epoch, e.metrics["validation"]) for e in of("ArmDone", events)],
        )
        found[key + " test"] = [e.metrics["test"] for e in of("ArmDone", events)]
    assert found["a"] == found["b"] and found["a test"] != found["b test"]


def test_row_6_what_is_reported_is_the_kept_epoch_on_pictures_as_they_are():
    arm = some_arm(
        recipe=Recipe(lr=0.3, epochs=6, batch_size=20, schedule="constant", augment=("crop", "flip")), seed=1
    )
    (result,), _ = trained(arm)
    assert result.epoch < 6  # else this says nothing
    for split in ("validation", "test"):
        assert result.metrics[split] == pytest.approx(
            measure(arm.network, result.kept, getattr(arm.domain, split), arm.domain), rel=1e-5
        )
        assert result.metrics[split] != pytest.approx(
            measure(arm.network, result.last, getattr(arm.domain, split), arm.domain), rel=1e-5
        )


# --- row 7: copies and files ---


@pytest.mark.parametrize(
    "network, width", [("lenet-300-100", 0.1), ("resnet-20", 0.15), ("tiny:normed", 1.0)]
)
def test_row_7_a_ticket_survives_copies_pickles_and_files(network, width, tmp_path):
    ticket = listen(
        find_tickets(
            plan(
                network=network,
                width=width,
                rewind="step 2",
                schedule=one_shot(0.2),
                recipe=Recipe(epochs=1, batch_size=60),
            ),
            "cpu",
        )
    )[0][0]
    again = Ticket.load(ticket.save(tmp_path / "t.safetensors"))
    assert (
        again.mask == ticket.mask
        and again.content == ticket.content
        and again.density == pytest.approx(0.2, abs=0.01)
    )
    for start in ("rewind", "init", "source-trained"):
        net, plain = again.model(start), ticket.network.build(5)
        assert type(net) is type(plain) and list(net.state_dict()) == list(plain.state_dict())
        assert not any(
            m._forward_hooks
            or m._forward_pre_hooks
            or m._backward_hooks
            or m._state_dict_hooks
            or m._load_state_dict_pre_hooks
            for m in net.modules()
        )
        stored = io.BytesIO()
        torch.save(net.state_dict(), stored)
        stored.seek(0)
        plain.load_state_dict(torch.load(stored, weights_only=True))
        x = torch.rand(3, *ticket.network.input_shape)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), plain):
            assert torch.equal(other.eval()(x), net.eval()(x)) and dead(
                dict(other.named_parameters()), ticket.mask
            )
        assert all(p.requires_grad and p.is_leaf for p in net.parameters())


def test_row_7_nothing_is_unpickled(tmp_path, monkeypatch):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    for name, content in (("plain", pickle.dumps(Bomb())), ("old", pickle.dumps(Bomb(), 0))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LotteryError, match="not a safetensors file"):
            Ticket.load(tmp_path / name)
    torch.save({"a": torch.ones(3)}, tmp_path / "torch")
    with pytest.raises(LotteryError, match="not a safetensors file"):
        Ticket.load(tmp_path / "torch")


# --- row 8: runs that cannot go on ---


def bits(folder):
    "Tickets, snapshots and results of a run."
    kept = {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for part in ("tickets", "snapshots")
        for p in (folder / part).glob("*.safetensors")
    }
    return kept, Run(folder).frame.sort_values(["arm", "epoch", "split", "metric"]).to_csv(index=False)


def test_row_8_killed_at_any_event_a_search_goes_on_and_ends_with_the_same_bits(tmp_path):
    p, whole, count = (
        plan(
            schedule=one_shot(0.4),
            rewind="step 2",
            controls=("reinit",),
            recipe=Recipe(epochs=2, batch_size=60),
        ),
        tmp_path / "whole" / "run",
        0,
    )
    for i, _ in enumerate(record(p, whole, "cpu")):
        shutil.copytree(
            whole, tmp_path / f"k{i}" / "run"
        )  # each has a folder of its own: nothing to take from beside it
        count = i + 1
    want = bits(whole)
    assert count > 12 and want[0]
    for i in range(count):
        killed = tmp_path / f"k{i}" / "run"
        done = {e.arm for e in of("ArmDone", Run(killed).events)}
        with open(killed / "events.jsonl", "ab") as f:
            f.write([b"", b'{"t":17', b"\0\0\0"][i % 3])
        before = len(Run(killed).events)
        assert run(p, killed, "cpu", show=False).status == "done" and bits(killed) == want, i
        assert not done & {
            e.arm
            for e in of("EpochDone", Run(killed).events[before:])
            if e.arm not in {t.arm for t in of("ArmTaken", Run(killed).events)}
        }, i


def test_row_8_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    p, steps, real = (
        plan(schedule=one_shot(0.4), recipe=Recipe(epochs=4, batch_size=60)),
        [],
        engine_trainer.Trainer.descend,
    )
    monkeypatch.setattr(engine_trainer.Trainer, "descend", lambda t: (steps.append(1), real(t))[1])
    moments = {
        "StateKept": 3,
        "ArmDone": 12,
        "TicketFound": 12,
    }  # steps of three in an epoch, of twelve in an arm
    for e in record(p, tmp_path / "whole" / "run", "cpu"):
        if (kind := type(e).__name__) in moments and not (tmp_path / kind).exists():
            shutil.copytree(tmp_path / "whole" / "run", tmp_path / kind / "run")
    assert len(steps) == 24
    for kind, done in moments.items():
        steps.clear()
        assert (
            run(p, tmp_path / kind / "run", "cpu", show=False).status == "done" and len(steps) == 24 - done
        ), kind
        assert bits(tmp_path / kind / "run") == bits(tmp_path / "whole" / "run")


def test_row_8_killed_while_it_transfers(tmp_path):
    found = run(
        plan(schedule=one_shot(0.4), recipe=Recipe(epochs=1, batch_size=60)),
        tmp_path / "find" / "run",
        "cpu",
        show=False,
    )
    p, whole, count = (
        TransferPlan(found.tickets, ("digits[5-9]@200",), ("rewind", "fresh"), controls=("dense",)),
        tmp_path / "whole" / "run",
        0,
    )
    for i, _ in enumerate(record(p, whole, "cpu")):
        count = i + 1
        if i % 4 == 1:
            shutil.copytree(whole, tmp_path / f"k{i}" / "run")
    for i in range(1, count, 4):
        assert run(p, tmp_path / f"k{i}" / "run", "cpu", show=False).status == "done" and bits(
            tmp_path / f"k{i}" / "run"
        ) == bits(whole), i


# --- row 9: claims that the numbers do not carry ---


def results(**arms):
    "A frame with one test accuracy for each role and seed; the seeds in another order for each role."
    rows = []
    for k, (role, values) in enumerate(arms.items()):
        for seed in np.roll(range(len(values)), k):
            d = 1.0 if role == "dense" else 0.2
            rows += [
                (
                    "s",
                    "s",
                    role.replace("_", " "),
                    "fresh",
                    int(d < 1),
                    d,
                    int(seed),
                    3,
                    "test",
                    "accuracy",
                    values[seed],
                )
            ]
    return pd.DataFrame(rows, columns=[*ARM, "epoch", "split", "metric", "value"])


def test_row_9_overlapping_arms_are_not_ranked():
    frame = results(
        dense=[0.88, 0.90, 0.89, 0.91], ticket=[0.89, 0.91, 0.90, 0.92], reinit=[0.70, 0.71, 0.72, 0.70]
    )
    table = ranking(frame).set_index("role")
    assert table["rank"].to_dict() == {"ticket": 1, "dense": 1, "reinit": 3}
    assert (
        "not ranked" in table.note["ticket"]
        and "not ranked" in table.note["dense"]
        and table.note["reinit"] == "ranked"
    )


def test_row_9_differences_are_paired_by_seed():
    base = np.array([0.80, 0.85, 0.90, 0.95, 0.82])
    frame = results(
        dense=list(base),
        ticket=list(base + 0.01 + np.array([1, -1, 2, -2, 0]) * 1e-3),
        reinit=list(base + np.array([1, -1, 1, -1, 0]) * 1e-2),
    )
    (above,) = compare(frame, "ticket", "dense").itertuples()
    assert above.verdict == "above" and above.mean == pytest.approx(0.01) and above.low > 0 and above.n == 5
    assert (
        ranking(frame).set_index("role")["rank"].nunique() == 1
    )  # unpaired, the same numbers do not separate
    (unclear,) = compare(frame, "reinit", "dense").itertuples()
    assert unclear.verdict == "not separable" and unclear.low < 0 < unclear.high


def test_row_9_a_pair_is_a_seed_and_not_a_place():
    a = pd.Series([0.9, 0.8, 0.7], index=[0, 1, 2])
    shuffled = (a - 0.01).iloc[[2, 0, 1]]
    assert (d := paired(a, shuffled)).mean == pytest.approx(0.01) and d.tied  # by seed they differ alike
    with pytest.raises(LotteryError, match="seed 2"):
        paired(a, shuffled.iloc[1:])


def test_row_9_a_single_run_is_called_that_and_ranked_nowhere():
    frame = results(dense=[0.88], ticket=[0.95])
    (single,) = compare(frame, "ticket", "dense").itertuples()
    assert single.verdict == "single run" and "single run" in single.text
    assert ranking(frame)["rank"].isna().all() and ranking(frame).note.str.contains("single run").all()


def test_row_9_a_real_run_carries_its_seeds(tmp_path):
    from lottery_nb.results.tables import short_table

    found = run(
        plan(seeds=2, schedule=one_shot(0.4), controls=("random mask",)), tmp_path / "two", "cpu", show=False
    )
    assert set(found.frame.seed) == {0, 1} and all(
        "±" in cell for cell in short_table(found)[["ticket", "random mask"]].to_numpy().flatten() if cell
    )
    alone = run(plan(schedule=one_shot(0.4)), tmp_path / "one", "cpu", show=False)
    assert "single run" in short_table(alone).to_string()
