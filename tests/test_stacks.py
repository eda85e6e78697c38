"""Many arms in one step end where each would have ended alone; lanes, halving, layouts. Each test looks at the Layout event: arms really shared their steps, or really did not.

Tolerance: 1e-10 in double precision after at most STEPS steps, relative to the largest weight and absolute for losses; 1e-4 in single precision, 1e-2 for a deep network after two."""

import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import Watched, find, listen, of, plan, same, some_arm, some_mask, trained, within
from torch import nn

from lottery_nb.engine import trainer as engine_trainer
from lottery_nb.engine import layout as engine_layout
from lottery_nb.engine import arms as engine_arms
from lottery_nb.engine import training as engine_training
from lottery_nb.core import canonical, LotteryError
from lottery_nb.events import EpochDone, Layout, StateKept
from lottery_nb.data.texts import train_vocabulary
from lottery_nb.data.domains import domain
from lottery_nb.models.zoo import NETWORKS
from lottery_nb.models.network import Network
from lottery_nb.data.own import from_texts
from lottery_nb.rewinding.snapshots import fresh, masked
from lottery_nb.runs.reading import Run
from lottery_nb.runs.writing import record
from lottery_nb.engine.stacks import habits
from lottery_nb.plans.find import find_tickets
from lottery_nb.engine.recipes import OPTIMIZERS, Recipe, LR_SCHEDULES
from lottery_nb.engine.arms import identity, precision_of, Recall
from lottery_nb.engine.trainer import Trainer
from lottery_nb.engine.layout import arrange, memory_of
from lottery_nb.engine.training import train

STEPS = 15
CPU = torch.device("cpu")
EXACT = Recipe(lr=0.02, steps=STEPS, batch_size=36, precision="fp64")
WIDTHS = {
    "lenet-300-100": 0.1,
    "conv-2": 0.08,
    "conv-4": 0.08,
    "conv-6": 0.06,
    "resnet-20": 0.15,
    "resnet-18": 0.05,
    "vgg-19": 0.05,
    "text-cnn": 0.05,
}


class Laid(Recall):
    "Only knows how arms were laid out."

    def __init__(self, *args):
        self.past = Layout(*args)

    def layout(self, arms):
        return self.past


class Memory(Recall):
    "Keeps states in memory."

    def __init__(self):
        self.states = {}

    def state(self, identity):
        return self.states.get(identity, {})

    def keep_state(self, identity, arms):
        self.states[identity] = arms()
        return True


def reviews():
    "Texts of three to nine pieces, so that there is padding."
    draw, words = np.random.default_rng(0), "the film and an actor in one long scene of a dull plot".split()
    texts = [
        " ".join([*draw.choice(words, draw.integers(2, 8)), "good" if i % 2 else "bad"]) for i in range(200)
    ]
    made = from_texts(
        texts[:150], np.arange(150) % 2, (texts[150:], np.arange(50) % 2), ("no", "yes"), "reviews"
    )
    return made.tokenised(train_vocabulary(texts * 3, 40), 12)


def net(name, there):
    return Network(
        name,
        there.shape,
        there.n_classes,
        WIDTHS.get(name, 1.0),
        **({"vocabulary": len(there.vocabulary)} if there.modality == "text" else {}),
    )


def crowd(network="lenet-300-100", recipe=EXACT, there=None, number=4, starts=None, **fields):
    "Arms that differ in all that arms of a stack may differ in: one is dense, two share a seed."
    there = there or (reviews() if network == "text-cnn" else domain(tiny.NAME))
    network = network if isinstance(network, Network) else net(network, there)
    return [
        some_arm(
            f"arm {k}",
            network,
            there.name if there.modality == "image" else there,
            seed=(0, 1, 1, 2, 3)[k],
            start=starts[k] if starts else fresh(network, k),
            mask=None if k == 1 else some_mask(network, 0.3 + 0.1 * k, k),
            recipe=replace(recipe, lr=recipe.lr * (1 + 0.3 * k), weight_decay=1e-3 * k),
            **fields,
        )
        for k in range(number)
    ]


@pytest.fixture(autouse=True)
def domains_as_they_are(monkeypatch):
    "An arm may be on a domain that has no name."
    real = tiny.domain
    monkeypatch.setattr(tiny, "domain", lambda d: real(d) if isinstance(d, str) else d)


def gap(a, b):
    "The largest difference between two groups of tensors by name, relative to the largest value of each."
    assert set(a) == set(b) and all(a[n].shape == b[n].shape for n in a)
    return max(
        (
            float((a[n].double() - b[n].double()).abs().max() / (1e-3 + a[n].double().abs().max()))
            for n in a
            if a[n].numel()
        ),
        default=0.0,
    )


def epochs(events, name):
    return [
        (e.epoch, e.step, e.lr, e.train_loss, e.train_accuracy, e.validation_loss, e.validation_accuracy)
        for e in of("EpochDone", events, arm=name)
    ]


def agree(arms, tolerance=1e-10, together=None, groups=None):
    "That arms end in stacks where they end one by one; both lists of results, and the events of the stacks."
    alone, apart = listen(train(arms, "cpu", layout="alone"))
    results, events = together or listen(train(arms, "cpu", layout="stacked"))
    assert of("Layout", apart)[0].groups == [[a.name] for a in arms] and len(of("Layout", apart)) == 1
    assert of("Layout", events)[0].groups == (groups or [[a.name for a in arms]]) and any(
        len(g) > 1 for e in of("Layout", events) for g in e.groups
    )
    for a, one, many in zip(arms, alone, results, strict=True):
        assert (
            many.arm.name == a.name and many.epoch == one.epoch and bool(many.failed) == bool(one.failed)
        ), a.name
        for mine, theirs in (
            (one.last, many.last),
            (one.kept, many.kept),
            *((one.captured[s], many.captured[s]) for s in a.capture),
        ):
            assert (mine.step, mine.updates) == (theirs.step, theirs.updates) and gap(
                mine.tensors(), theirs.tensors()
            ) < tolerance, a.name
        pairs = list(zip(epochs(apart, a.name), epochs(events, a.name), strict=True))
        assert pairs and all(
            x == pytest.approx(y, abs=tolerance * (10 if tolerance > 1e-9 else 1), rel=tolerance)
            for x, y in pairs
        ), a.name
        for split in one.metrics:
            assert many.metrics[split] == pytest.approx(one.metrics[split], abs=10 * tolerance), (
                a.name,
                split,
            )
        for name, bits in (a.mask or {}).items():
            w = many.last.weights[name]
            assert not w[~bits].view(torch.int64 if w.dtype == torch.float64 else torch.int32).any(), (
                a.name,
                name,
            )  # +0 to the bit
            assert int((w != 0).sum()) <= int(bits.sum()) and (
                name in a.frozen or (w[bits] != 0).double().mean() > 0.9
            )
            assert all(not slot[name][~bits].any() for slot in many.last.optimizer.values() if name in slot)
    assert len({float(next(iter(r.last.weights.values())).sum()) for r in results}) == len(
        arms
    )  # no two ended at one place
    return alone, results, events


# --- every network, optimizer and schedule ---


def test_every_network_is_named_here():
    assert set(WIDTHS) == set(NETWORKS) - {"logistic-regression"}  # a head alone: there is nothing to mask


@pytest.mark.parametrize("name", WIDTHS)
def test_a_network_is_the_same_in_a_stack(name):
    agree(
        crowd(
            name,
            replace(
                EXACT,
                schedule="cosine",
                steps=STEPS if name in ("lenet-300-100", "conv-2", "text-cnn") else 7,
            ),
        )
    )


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
@pytest.mark.parametrize(
    "numbers",
    [
        dict(momentum=0.0),
        dict(),
        dict(nesterov=True),
        dict(optimizer="adam", lr=1e-3),
        dict(optimizer="adamw", lr=1e-3),
        dict(decay="matrices", clip=0.5, label_smoothing=0.1),
    ],
    ids=["plain sgd", "sgd", "nesterov", "adam", "adamw", "decay, clip and smoothing"],
)
def test_an_optimizer_and_a_schedule_are_the_same_in_a_stack(numbers, schedule):
    assert {r.optimizer for r in (Recipe(), Recipe(**numbers))} <= set(OPTIMIZERS)
    agree(crowd(recipe=replace(EXACT, schedule=schedule, warmup=0.2, **numbers), capture=(0, 3)))


@pytest.mark.parametrize("keep", ["best loss", "best accuracy", "last"])
def test_arms_leave_a_stack_when_they_would_have_ended(keep):
    arms = crowd(
        recipe=replace(EXACT, lr=0.1, steps=None, epochs=9, patience=1, keep=keep, schedule="constant"),
        number=5,
    )
    _, _, events = agree(arms)
    lengths = {len(epochs(events, a.name)) for a in arms}
    left = of("Layout", events)[1:]
    if keep == "last":
        assert lengths == {9} and not left
    else:
        assert len(lengths) > 1 and min(lengths) < 9 and all(1 < len(e.groups[0]) < 5 for e in left) and left


def test_an_early_end_waits_for_its_snapshots():
    arms = crowd(recipe=replace(EXACT, lr=0.3, steps=None, epochs=9, patience=1, schedule="constant"))
    arms[0] = replace(arms[0], capture=(2, 33))
    alone, _, _ = agree(arms)
    assert alone[0].last.step >= 33 > min(r.last.step for r in alone)


def test_arms_enter_a_stack_with_state_of_an_optimizer():
    first, _ = trained(
        *(replace(a, capture=(6,)) for a in crowd(recipe=replace(EXACT, optimizer="adam", lr=1e-3)))
    )
    arms = [replace(r.arm, start=r.captured[6], capture=()) for r in first]
    _, results, _ = agree(arms)
    assert all(
        gap(a.last.tensors(), b.last.tensors()) < 1e-10 for a, b in zip(first, results, strict=True)
    )  # as if it had not been left


@pytest.mark.parametrize("augment", [("crop",), ("flip",), ("crop", "flip")])
def test_augmentation_is_the_same_in_a_stack(augment):
    agree(crowd("conv-2", replace(EXACT, augment=augment)))


@pytest.mark.parametrize("network", ["tiny:dropping", "tiny:watched"])
def test_dropout_is_each_arms_own(network):
    arms = crowd(network)
    agree(arms)
    twins = [
        replace(arms[0], name=str(k), seed=k % 2) for k in range(3)
    ]  # one start and mask; two share a seed
    results, events = listen(train(twins, "cpu", layout="stacked"))
    a, b, c = (r.last.weights for r in results)
    assert len(of("Layout", events)[0].groups[0]) == 3 and gap(a, c) < 1e-10 < gap(a, b)


class Channels(nn.Module):
    "Dropout of whole maps, and layer norm."

    def __init__(self, shape, n_classes):
        super().__init__()
        self.conv, self.drop, self.norm, self.out = (
            nn.Conv2d(shape[0], 6, 3, padding=1),
            nn.Dropout2d(0.4),
            nn.LayerNorm(6 * shape[1] * shape[2]),
            nn.Linear(6 * shape[1] * shape[2], n_classes),
        )

    def forward(self, x):
        return self.out(
            self.norm(F.dropout(self.drop(self.conv(x)).relu(), 0.2, self.training, True).flatten(1))
        )


def test_dropout_of_channels_and_layer_norm_are_the_same_in_a_stack():
    there = domain(tiny.NAME)
    agree(crowd(Network(Channels, there.shape, there.n_classes)))


class Scales(nn.Module):
    "Parameters that meet the batch: added and multiplied from both sides, of fewer dimensions, and repeated; a product as GPT-2 has it."

    def __init__(self, shape, n_classes):
        super().__init__()
        self.shift, self.gain = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.ones(1, 8, 8))
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Embedding(9, 8)
        self.register_buffer("numbers", torch.arange(9)[None])
        self.weight, self.bias = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.zeros(4))
        self.factor, self.out = nn.Parameter(torch.tensor(1.5)), nn.Linear(36, n_classes)

    def forward(self, x):
        x = self.shift + (x.flatten(0, 1) * self.gain)
        x = torch.cat([self.token.expand((len(x), -1, -1)), x], 1) + self.places(self.numbers)
        x = torch.addmm(self.bias, torch.mul(self.factor, x).flatten(0, 1), self.weight)
        return self.out(x.view(-1, 36).relu())


def test_parameters_that_meet_the_batch_are_the_same_in_a_stack():
    there = domain(tiny.NAME)
    agree(crowd(Network(Scales, there.shape, there.n_classes)))


@pytest.mark.parametrize("norm", ["kept", "recalibrated", "updated"])
def test_frozen_bodies_are_the_same_in_a_stack(norm):
    there = domain(tiny.NAME)
    starts = [
        replace(
            trained(some_arm(network="tiny:normed", on="digits[5-9]@200", seed=k))[0][0].kept,
            optimizer={},
            step=0,
            updates=0,
        )
        for k in range(4)
    ]
    arms = crowd(
        net("tiny:normed", there),
        starts=starts,
        norm=norm,
        frozen=frozenset({"0.weight", "0.bias", "1.weight", "1.bias"}),
    )
    _, results, _ = agree(arms)
    for a, r in zip(arms, results, strict=True):
        assert same(
            {n: r.last.weights[n] for n in a.frozen},
            {n: masked(a.start, a.mask).weights[n].double() for n in a.frozen},
        )
        assert torch.equal(r.last.buffers["1.running_mean"], a.start.buffers["1.running_mean"].double()) == (
            norm == "kept"
        )


@pytest.mark.parametrize("layout", ["stacked", 2])
def test_searches_in_stacks_find_the_same_tickets(layout):
    p = plan(
        seeds=3,
        controls=("reinit", "shuffled"),
        recipe=Recipe(lr=0.05, epochs=2, batch_size=32, precision="fp64"),
    )
    (stacked, events), (alone, apart) = (
        listen(find_tickets(p, "cpu", layout=how)) for how in (layout, "alone")
    )
    assert max(len(g) for e in of("Layout", events) for g in e.groups) == (
        9 if layout == "stacked" else 2
    ) and all(len(g) == 1 for e in of("Layout", apart) for g in e.groups)
    assert [t.name for t in stacked] == [t.name for t in alone] and len(stacked) == 6
    for a, b in zip(stacked, alone, strict=True):
        assert (
            a.mask == b.mask
            and a.mask.kept == b.mask.kept
            and gap(a.start("source-trained").weights, b.start("source-trained").weights) < 1e-10
        )


def test_find_gives_tickets_with_the_right_arms_weights(monkeypatch):
    _, events, made = find(monkeypatch, seeds=2)
    assert len(of("Layout", events)[0].groups) == 1
    for name, result in made.items():
        a = replace(result.arm, capture=(), recipe=result.arm.recipe)
        assert gap(trained(a)[0][0].last.weights, result.last.weights) < 1e-3, name


@pytest.mark.parametrize("name", ["lenet-300-100", "conv-2", "resnet-20", "text-cnn"])
def test_in_single_precision_rounding_is_all_that_differs(name):
    "With many layers, rounding flips a ReLU now and then, in a stack and alone: after two steps it has not."
    agree(
        crowd(name, replace(EXACT, precision="fp32", steps=2 if name == "resnet-20" else 6)),
        1e-2 if name == "resnet-20" else 1e-4,
    )


def test_in_bf16_a_stack_trains_as_one_arm_does():
    arms = crowd("resnet-20", replace(EXACT, precision="bf16", steps=6))
    alone, results = (listen(train(arms, "cpu", layout=how))[0] for how in ("alone", "stacked"))
    for a, b in zip(alone, results, strict=True):
        assert {w.dtype for w in b.last.weights.values()} == {torch.float32}
        assert a.metrics["validation"]["loss"] == pytest.approx(b.metrics["validation"]["loss"], rel=0.1)
        assert torch.cat([w.flatten() for w in b.last.weights.values()]).allclose(
            torch.cat([w.flatten() for w in a.last.weights.values()]), atol=0.1
        )


# --- where oneDNN's gradients cannot be trusted ---


class Striding(nn.Module):
    "A 1×1 convolution with a stride, called as a function, of so many channels in so many groups."

    def __init__(self, shape, n_classes, channels=4, groups=1, kernel=1, stride=2, transposed=False):
        super().__init__()
        self.stem = nn.Conv2d(shape[0], channels, 3, padding=1)
        self.weight = nn.Parameter(0.1 * torch.randn(channels, channels // groups, kernel, kernel))
        self.out, self.groups, self.stride, self.transposed = (
            nn.Linear(channels, n_classes),
            groups,
            stride,
            transposed,
        )

    def forward(self, x):
        convolve = F.conv_transpose2d if self.transposed else F.conv2d
        return self.out(
            convolve(self.stem(x).relu(), self.weight, stride=self.stride, groups=self.groups).mean((2, 3))
        )


def striding(shape, n_classes):
    return Striding(shape, n_classes)


class StridingInSingle(Striding):
    "Runs in single precision only."

    def __init__(self, shape, n_classes):
        super().__init__(shape, n_classes, 16)

    def forward(self, x):
        return super().forward(x.float())


STRIDES = {  # fields -> whether the pixels of such a network stay in the plain layout
    "narrow": ({}, True),
    "one channel": ({"channels": 1}, True),
    "a block": ({"channels": 16}, False),
    "groups": ({"channels": 32, "groups": 4}, True),
    "wide groups": ({"channels": 32, "groups": 2}, False),
    "no stride": ({"stride": 1}, False),
    "3×3": ({"kernel": 3}, False),
    "transposed": ({"transposed": True}, True),
}


@pytest.mark.parametrize("case", STRIDES)
def test_pixels_stay_in_the_plain_layout_where_a_narrow_convolution_strides(case):
    fields, plain = STRIDES[case]
    network = Network(lambda shape, n: Striding(shape, n, **fields), (1, 8, 8), 10)
    arm = some_arm("a", network, tiny.NAME, start=fresh(network, 0), recipe=EXACT)
    (layout,) = {
        w.is_contiguous() for w in Trainer([arm], CPU).flat.params if w.ndim == 4 and min(w.shape[1:]) > 1
    } or {plain}
    assert engine_arms.channels_last(arm) is not plain and layout is plain


def test_a_network_that_cannot_be_judged_keeps_the_plain_layout_and_a_wide_one_keeps_its_number():
    def engine(name, width=1.0):
        network = Network(name, (1, 8, 8), 10, width)
        return engine_arms.engine_of(some_arm("a", network, tiny.NAME, start=fresh(network, 0), recipe=EXACT))

    assert engine(StridingInSingle) == engine("resnet-20", 0.9) == engine_arms.ENGINE
    assert (
        engine("resnet-20") == engine("conv-2", 0.1) == engine("lenet-300-100") == engine_arms.ENGINE - 1
    )  # their results of engine 2 are still taken


@pytest.mark.parametrize("layout", ["alone", "stacked"])
def test_narrow_networks_survive_a_processor_without_avx512(layout):
    "A process of its own: with the channels last it dies here by a damaged heap, or trains on wrong gradients (oneDNN issue 6035)."
    code = f"""
        from test_stacks import *
        recipe = replace(EXACT, precision="fp32", steps=30)
        for name, width in (("resnet-20", 0.13), ("resnet-20", 0.25), (striding, 1.0), ("resnet-18", 0.05)):
            network = Network(name, (1, 8, 8), 10, width)
            arms = [
                some_arm(f"arm {{k}}", network, "digits", start=fresh(network, k), recipe=recipe)
                for k in range(2)
            ]
            for result in listen(train(arms, "cpu", layout={layout!r}))[0]:
                assert not result.failed
        print("alive")"""
    env = {
        **os.environ,
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


# --- what cannot be stacked ---


class Mixing(nn.Module):
    "Looks at the whole batch."

    def __init__(self, shape, n_classes):
        super().__init__()
        self.out = nn.Linear(shape[1] * shape[2], n_classes)

    def forward(self, x):
        return self.out((x - x.mean(0)).flatten(1))


class Wandering(Mixing):
    "Draws random numbers of its own."

    def forward(self, x):
        return self.out(F.rrelu(x.flatten(1), training=self.training) + 0.1 * torch.randn(1) * self.training)


class Positions(Mixing):
    "Uses a function of a parameter."

    def __init__(self, shape, n_classes):
        super().__init__(shape, n_classes)
        self.place = nn.Parameter(torch.ones(shape[1] * shape[2]))

    def forward(self, x):
        return self.out(x.flatten(1) * self.place.exp())


class Bounded(Mixing):
    "An embedding that is kept short; at first it is."

    def __init__(self, shape, n_classes):
        super().__init__(shape, n_classes)
        self.table, self.out = nn.Embedding(4, 3, max_norm=6.0), nn.Linear(3 * shape[1] * shape[2], n_classes)

    def forward(self, x):
        return self.out(self.table(x.clamp(-1, 2).round().long().flatten(1) + 1).flatten(1))


class Single(Mixing):
    "Runs in single precision only."

    def forward(self, x):
        return F.linear(x.flatten(1).float(), self.out.weight, self.out.bias)


@pytest.mark.parametrize("made", [Mixing, Wandering, Positions, Bounded, Single])
def test_what_cannot_be_stacked_is_trained_alone(made):
    there = domain(tiny.NAME)
    arms = crowd(Network(made, there.shape, there.n_classes), replace(EXACT, precision="fp32"), number=3)
    before = torch.get_rng_state()
    results, events = listen(train(arms, "cpu", layout="stacked"))
    (layout,) = of("Layout", events)
    assert layout.groups == [[a.name] for a in arms] and torch.equal(before, torch.get_rng_state())
    for a, r in zip(arms, results, strict=True):
        torch.manual_seed(int(time.monotonic() * 1e6))
        assert trained(a)[0][0].last.fingerprint == r.last.fingerprint, a.name
    loss = [e.train_loss for e in of("EpochDone", events, arm="arm 0")]
    assert not results[0].failed and loss[-1] < loss[0]


def test_a_network_that_is_tried_leaves_no_trace(monkeypatch):
    there = domain(tiny.NAME)
    x = there.inputs(there.train.x, torch.arange(4))
    for made, want in (
        (Mixing, (False, False, False)),
        (Wandering, (False, True, False)),
        (Positions, (False, False, False)),
        (Channels, (True, False, True)),
    ):
        before = torch.get_rng_state()
        seen = habits(Network(made, there.shape, there.n_classes), x)
        assert (
            (seen.drops, seen.draws, seen.stacks) == want
            and seen.saved > 0
            and torch.equal(before, torch.get_rng_state())
        )


# --- side by side ---


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_two_lanes_give_the_bits_of_one(two_threads):
    arms, told = crowd(recipe=replace(EXACT, precision="fp32", augment=("crop",))), torch.get_num_threads()
    results, events = listen(train(arms, "cpu"))
    (layout,) = of("Layout", events)
    assert (layout.groups, layout.lanes, layout.threads) == (
        [["arm 0", "arm 1"], ["arm 2", "arm 3"]],
        2,
        1,
    ) and torch.get_num_threads() == told == 2
    torch.set_num_threads(1)
    one, apart = listen(train(arms, "cpu", Laid(layout.groups, 1, 1)))
    assert [r.last.fingerprint for r in one] == [r.last.fingerprint for r in results] and of("Layout", apart)[
        0
    ].lanes == 1
    for kind in ("ArmStarted", "EpochDone", "ArmDone"):
        names = [e.arm for e in of(kind, events)]
        assert set(names) == {a.name for a in arms} and sorted(names) == sorted(
            e.arm for e in of(kind, apart)
        )
    assert [epochs(events, a.name) for a in arms] == [epochs(apart, a.name) for a in arms]


def test_convolutions_run_side_by_side_one_arm_each(two_threads):
    arms = crowd("conv-2", replace(EXACT, precision="fp32"))
    results, events = listen(train(arms, "cpu"))
    (layout,) = of("Layout", events)
    assert [len(g) for g in layout.groups] == [1] * 4 and (layout.lanes, layout.threads) == (2, 1)
    torch.set_num_threads(1)
    assert [trained(a)[0][0].last.fingerprint for a in arms] == [r.last.fingerprint for r in results]


def test_ticks_come_from_all_lanes(two_threads, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(engine_training.time, "monotonic", lambda: float(next(clock)))
    _, events = listen(train(crowd(), "cpu"))
    assert {e.arm for e in of("Tick", events)} == {f"arm {k}" for k in range(4)} and all(
        0 < e.epoch <= e.epochs for e in of("Tick", events)
    )


@pytest.mark.parametrize("after", ["ArmStarted", "EpochDone"])
def test_closing_ends_both_lanes(after, two_threads):
    threads, stream = threading.active_count(), train(crowd(recipe=replace(EXACT, steps=10**6)), "cpu")
    with within(30):
        for e in stream:
            if type(e).__name__ == after and e.arm == "arm 3":
                break
        assert threading.active_count() == threads + 2
        stream.close()
    assert threading.active_count() == threads and list(stream) == [] and torch.get_num_threads() == 2


def test_an_exception_in_one_lane_ends_the_other(two_threads, monkeypatch):
    real, threads = engine_trainer.Trainer.descend, threading.active_count()

    def descend(t):
        if t.step == 7 and t.arms[0].name == "arm 2":
            raise ZeroDivisionError("at the seventh step")
        real(t)

    monkeypatch.setattr(engine_trainer.Trainer, "descend", descend)
    with within(30), pytest.raises(ZeroDivisionError, match="seventh"):
        listen(train(crowd(recipe=replace(EXACT, steps=10**6)), "cpu"))
    assert threading.active_count() == threads and torch.get_num_threads() == 2


@pytest.mark.parametrize("network", ["tiny:dropping", "tiny:normed"])
@pytest.mark.parametrize("known", [False, True], ids=["new", "laid out before"])
def test_lanes_neither_use_nor_change_the_global_random_state(network, known, two_threads, monkeypatch):
    "Networks of a user's; frozen bodies whose statistics are measured first."
    frozen = (
        dict(norm="recalibrated", frozen=frozenset({"0.weight", "0.bias", "1.weight", "1.bias"}))
        if network == "tiny:normed"
        else {}
    )
    arms, prints, groups = (
        crowd(network, replace(EXACT, augment=("crop",)), **frozen),
        [],
        [["arm 0", "arm 1"], ["arm 2"], ["arm 3"]],
    )
    changes, real = [], torch.set_rng_state
    monkeypatch.setattr(
        torch.random, "set_rng_state", lambda s: (changes.append(threading.current_thread()), real(s))[1]
    )
    monkeypatch.setattr(
        torch.random,
        "fork_rng",
        lambda *a, real=torch.random.fork_rng, **k: (
            changes.append(threading.current_thread()),
            real(*a, **k),
        )[1],
    )
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        stream = train(arms, "cpu", Laid(groups, 2, 1)) if known else train(arms, "cpu")
        assert next(stream).lanes == 2 and torch.equal(before, torch.get_rng_state())
        changes.clear()
        prints.append([r.last.fingerprint for r in listen(stream)[0]])
        assert torch.equal(before, torch.get_rng_state()) and {t for t in changes} <= {
            threading.main_thread()
        }
    assert prints[0] == prints[1]


def test_a_network_that_draws_is_alone_in_its_process(two_threads):
    there = domain(tiny.NAME)
    arms = crowd(Network(Wandering, there.shape, there.n_classes), replace(EXACT, precision="fp32"), number=3)
    results, events = listen(train(arms, "cpu"))
    assert of("Layout", events)[0].lanes == 1
    assert (
        listen(train(arms, "cpu", Laid([[a.name] for a in arms], 3, 1)))[1][0].lanes == 1
    )  # a log that says otherwise is damaged
    assert len(results) == 3


# --- memory ---


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("when", ["at once", "in the second epoch"])
def test_a_stack_that_does_not_fit_is_halved_and_goes_on(error, when, monkeypatch):
    arms, real_init, real_step = crowd(number=5), Trainer.__init__, Trainer.descend

    def init(t, some, *args):
        if len(some) > 2 and when == "at once":
            raise error
        real_init(t, some, *args)

    def descend(t):
        if len(t.arms) > 2 and t.step == 7:
            raise error
        real_step(t)

    with monkeypatch.context() as m:
        m.setattr(Trainer, "__init__", init)
        m.setattr(Trainer, "descend", descend)
        together = listen(train(arms, "cpu", layout="stacked"))
    n = [f"arm {k}" for k in range(5)]
    assert [e.groups for e in of("Layout", together[1])] == [[n], [n[:2], n[2:]], [n[2:3], n[3:]]]
    agree_last = agree([replace(a) for a in arms], together=listen(train(arms, "cpu", layout="stacked")))[0]
    for one, many in zip(agree_last, together[0], strict=True):
        assert (
            many.arm.name == one.arm.name
            and gap(one.last.tensors(), many.last.tensors()) < 1e-10
            and many.metrics["test"] == pytest.approx(one.metrics["test"])
        )
    assert [e.arm for e in of("ArmDone", together[1])] == n


def test_one_arm_that_does_not_fit_is_an_error(monkeypatch):
    def init(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "__init__", init)
    with pytest.raises(torch.OutOfMemoryError):
        trained(*crowd())


def test_another_error_is_not_taken_for_little_memory(monkeypatch):
    def descend(t):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Trainer, "descend", descend)
    told = []
    with pytest.raises(RuntimeError, match="do not fit"):
        for e in train(crowd(), "cpu", layout="stacked"):
            told.append(e)
    assert len(of("Layout", told)) == 1  # and is not tried again in halves


def test_a_stack_that_was_halved_leaves_no_state(monkeypatch, tmp_path):
    real, saved = Trainer.descend, []
    monkeypatch.setattr(
        "lottery_nb.runs.writing.Arms.next_state",
        property(lambda self: 0.0, lambda self, _: None),
        raising=False,
    )

    def descend(t):
        if len(t.arms) > 2 and t.step == 12:
            raise MemoryError
        real(t)

    monkeypatch.setattr(Trainer, "descend", descend)
    for _ in record(
        plan(seeds=3, recipe=Recipe(lr=0.05, epochs=4, batch_size=32)),
        tmp_path / "run",
        "cpu",
        layout="stacked",
    ):
        saved += [p.name for p in (tmp_path / "run" / "arms").glob("state-*")]
    assert (
        len(set(saved)) > 2
        and not list((tmp_path / "run" / "arms").glob("state-*"))
        and Run(tmp_path / "run").status == "done"
    )


def test_groups_are_cut_to_the_memory_that_is_free(monkeypatch):
    there = domain(tiny.NAME)
    arms = [replace(a, domain=there) for a in crowd(number=5)]
    need = memory_of(arms[0], habits(arms[0].network, there.inputs(there.train.x, torch.arange(4))))
    sizes = {}
    for fit in (0.2, 1, 2, 3, 100):
        monkeypatch.setattr(
            engine_layout, "free_memory", lambda device, fit=fit: int(fit * need / engine_layout.ROOM) + 100
        )
        sizes[fit] = [sorted(map(len, arrange(arms, CPU, how).groups)) for how in ("stacked", 4, "auto")]
    assert sizes == {
        0.2: [[1] * 5] * 3,
        1: [[1] * 5] * 3,
        2: [[1, 2, 2]] * 3,
        3: [[2, 3]] * 3,
        100: [[5], [2, 3], [5]],
    }


def test_the_memory_of_an_arm_is_that_of_its_weights_and_its_batch():
    a = some_arm()
    there, weights = a.domain, sum(w.numel() for w in a.start.weights.values())
    seen = habits(a.network, there.inputs(there.train.x, torch.arange(4)))
    assert seen.saved >= 4 * (64 + 30 + 10)  # inputs of the three layers
    need = {
        n: memory_of(replace(a, recipe=replace(a.recipe, batch_size=n)), seen)
        for n in (1, 51, 101, 180, 10**6)
    }
    assert (
        need[101] - need[51] == need[51] - need[1] == 50 * 2 * seen.saved
        and need[1] - 2 * seen.saved == 4 * weights * 4
    )
    assert need[180] == need[10**6]  # there are no more pictures
    assert (
        memory_of(replace(a, recipe=replace(a.recipe, optimizer="adam")), seen) - memory_of(a, seen)
        == 4 * weights
    )
    assert memory_of(replace(a, recipe=replace(a.recipe, precision="fp64")), seen) == 2 * memory_of(a, seen)
    texts = crowd("text-cnn")[0]
    x = texts.domain.inputs(texts.domain.train.x, torch.arange(4))
    assert (
        habits(texts.network, x).saved >= 4 * 12 * 21
    )  # the embedded text, though a large table is not kept
    assert 0 < engine_layout.free_memory(CPU) < 1 << 50


# --- layouts ---


@pytest.mark.parametrize(
    "layout, sizes",
    [("alone", [1] * 5), ("stacked", [5]), (3, [2, 3]), (1, [1] * 5), (99, [5]), ("auto", [5])],
)
def test_a_layout_can_be_forced(layout, sizes):
    _, events = listen(train(crowd(recipe=replace(EXACT, steps=2), number=5), "cpu", layout=layout))
    assert [len(g) for g in of("Layout", events)[0].groups] == sizes


@pytest.mark.parametrize("layout", ["together", 0, True, 1.5, "", -2, None])
def test_a_layout_that_is_none_is_refused_in_one_sentence(layout):
    with pytest.raises(LotteryError, match="layout") as e:
        next(train(crowd(), "cpu", layout=layout))
    assert "\n" not in str(e.value)


def test_arms_that_differ_in_more_do_not_share_steps():
    a = some_arm("a")
    others = [
        replace(a, name="longer", recipe=replace(a.recipe, epochs=3)),
        replace(
            a,
            name="wider",
            network=replace(a.network, width=0.2),
            start=fresh(replace(a.network, width=0.2), 0),
        ),
        some_arm("elsewhere", on="digits[5-9]@200"),
        replace(a, name="frozen", frozen=frozenset({"fc1.weight"})),
        replace(a, name="later", start=replace(a.start, step=3)),
        replace(a, name="momentum", recipe=replace(a.recipe, momentum=0.5)),
    ]
    twin = replace(
        a, name="twin", seed=5, start=fresh(a.network, 5), recipe=replace(a.recipe, lr=0.3, weight_decay=0.1)
    )
    _, events = listen(train([a, *others, twin], "cpu", layout="stacked"))
    assert sorted(of("Layout", events)[0].groups) == sorted([["a", "twin"], *([o.name] for o in others)])


@pytest.mark.parametrize(
    "past",
    [
        ([["arm 0", "arm 1"]], 1, 1),
        ([["arm 0", "arm 1", "arm 2", "arm 3"]], 1, 0),
        ([["arm 0"], ["arm 0", "arm 1", "arm 2", "arm 3"]], 1, 1),
        ([["arm 0", "arm 1", "arm 2", "arm 3", "x"]], 1, 1),
        ([[]], 1, 1),
    ],
)
def test_an_impossible_layout_of_earlier_is_not_followed(past):
    _, events = listen(train(crowd(recipe=replace(EXACT, steps=2)), "cpu", Laid(*past), layout="stacked"))
    assert (
        of("Layout", events)[0].groups == [[f"arm {k}" for k in range(4)]] and len(of("ArmDone", events)) == 4
    )


# --- precision ---


@pytest.mark.parametrize("amx, avx, able", [(True, False, True), (False, True, False), (False, False, False)])
def test_the_processor_decides_about_bf16_and_a_recipe_decides_first(amx, avx, able, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)
    auto = Recipe(lr=0.02, epochs=1, batch_size=60)
    kernels, plain = (
        some_arm("kernels", net("conv-2", domain(tiny.NAME)), recipe=auto),
        some_arm("plain", recipe=auto),
    )
    assert (precision_of(kernels, CPU), precision_of(plain, CPU)) == ("bf16" if able else "fp32", "fp32")
    for forced in ("fp32", "bf16", "fp64"):
        assert {
            precision_of(replace(a, recipe=replace(auto, precision=forced)), CPU) for a in (kernels, plain)
        } == {forced}
    results = {
        p: trained(replace(kernels, recipe=replace(auto, precision=p)))[0][0]
        for p in ("auto", "bf16" if able else "fp32", "fp32")
    }
    assert (
        results["auto"].last.fingerprint == results["bf16" if able else "fp32"].last.fingerprint
        and (results["auto"].last.fingerprint != results["fp32"].last.fingerprint) == able
    )
    assert (
        results["auto"].arm.recipe.precision == "auto"
        and '"auto"' in canonical(results["auto"].arm.recipe)
        and {w.dtype for w in results["auto"].last.weights.values()} == {torch.float32}
    )
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: not able, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert precision_of(kernels, CPU) == ("fp32" if able else "bf16")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert precision_of(kernels, CPU) == "fp32"  # a torch that cannot tell


def test_what_was_computed_in_another_precision_is_another_training(monkeypatch):
    kernels, names = some_arm("kernels", net("conv-2", domain(tiny.NAME))), set()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda able=able: able, raising=False)
        names.add(identity(kernels, CPU, 1))
    assert len(names | {identity(kernels, CPU, 2)}) == 3


# --- losses that explode, states, snapshots ---


def test_a_loss_that_explodes_leaves_the_stack_and_the_others_end_as_alone():
    arms = crowd(recipe=replace(EXACT, steps=None, epochs=4, schedule="constant"), capture=(3,))
    arms[2] = replace(arms[2], recipe=replace(arms[2].recipe, lr=1e300))
    results, events = listen(train(arms, "cpu", layout="stacked"))
    (failed,), (alone,) = of("ArmFailed", events), of("ArmFailed", trained(arms[2])[1])
    assert (
        failed == alone
        and results[2].failed
        and (failed.epoch, failed.step) == (1, 5)
        and results[2].kept is None
    )
    rest = [a for k, a in enumerate(arms) if k != 2]
    ones = listen(train(rest, "cpu", layout="alone"))[0]
    for one, many in zip(ones, (r for k, r in enumerate(results) if k != 2), strict=True):
        assert gap(one.last.tensors(), many.last.tensors()) < 1e-10 and one.epoch == many.epoch
    assert [e.groups for e in of("Layout", events)] == [[[a.name for a in arms]], [[a.name for a in rest]]]


@pytest.mark.parametrize("taken", range(1, 5))
def test_a_stack_is_taken_up_with_early_leavers_and_a_failure(taken, monkeypatch):
    steps, real = [], Trainer.descend
    arms = crowd(
        "tiny:normed",
        Recipe(
            lr=0.2,
            epochs=6,
            batch_size=32,
            patience=2,
            schedule="constant",
            keep="best loss",
            precision="fp32",
        ),
        capture=(7,),
        number=5,
    )
    arms[3] = replace(arms[3], recipe=replace(arms[3].recipe, lr=1e30))
    whole, told = listen(train(arms, "cpu", layout="stacked"))
    assert len({len(of("EpochDone", told, arm=a.name)) for a in arms}) > 2
    memory = Memory()
    stream = train(arms, "cpu", memory, layout="stacked")
    name = list(itertools.islice((e for e in stream if isinstance(e, StateKept)), taken))[-1].identity
    stream.close()
    state = memory.states[name]
    kept = {
        n: ({k: t.clone() for k, t in s.now.tensors().items()} if s.now else {}, dict(s.record.captured))
        for n, s in state.items()
    }
    monkeypatch.setattr(Trainer, "descend", lambda t: (steps.append(1), real(t))[1])
    again, events = listen(train(arms, "cpu", memory, layout="stacked"))
    assert of("ArmFailed", events) == of("ArmFailed", told) and len(steps) == 5 * (
        max(e.epoch for e in of("EpochDone", told)) - taken
    )
    plain = [replace(e, seconds=0.0) for e in of("EpochDone", told)]
    assert sorted(map(repr, plain)) == sorted(
        repr(replace(e, seconds=0.0)) for e in of("EpochDone", events)
    )  # what was told before is told again, once
    for a, b in zip(whole, again, strict=True):
        assert (a.epoch, a.failed, a.metrics) == (b.epoch, b.failed, b.metrics) and (
            a.kept and a.kept.fingerprint
        ) == (b.kept and b.kept.fingerprint)
        assert {s: p.fingerprint for s, p in a.captured.items()} == {
            s: p.fingerprint for s, p in b.captured.items()
        }
    for n, s in state.items():  # what was saved was not changed by going on
        assert same(s.now.tensors() if s.now else {}, kept[n][0]) and set(s.record.captured) == set(
            kept[n][1]
        )


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("network", ["tiny:normed", "resnet-20", "lenet-300-100"])
def test_a_snapshot_is_a_copy(network, number):
    arms = crowd(network, replace(EXACT, precision="fp32"), number=3)[:number]
    t = Trainer(arms, CPU)
    given = [{k: v.clone() for k, v in a.start.tensors().items()} for a in arms]
    taken = [t.snapshot(k) for k in range(number)]
    before = [{k: v.clone() for k, v in s.tensors().items()} for s in taken]
    with torch.no_grad():
        for tensor in (t.flat.theta, *t.state.values(), *t.model.buffers()):
            tensor.add_(1)
    assert all(same(s.tensors(), b) for s, b in zip(taken, before, strict=True)) and all(
        same(a.start.tensors(), g) for a, g in zip(arms, given, strict=True)
    )
    assert all(
        not torch.equal(t.snapshot(k).weights[n], w)
        for k, s in enumerate(taken)
        for n, w in s.weights.items()
    )


def test_a_saved_state_is_a_copy():
    arms, stream = crowd(recipe=replace(EXACT, steps=None, epochs=3), capture=(2, 9)), None
    memory = Memory()
    stream = train(arms, "cpu", memory, layout="stacked")
    saved = memory.states[next(e for e in stream if isinstance(e, StateKept)).identity]
    before = {
        n: ({k: v.clone() for k, v in s.now.tensors().items()}, s.record.epoch, set(s.record.captured))
        for n, s in saved.items()
    }
    for _ in stream:
        pass
    for n, s in saved.items():
        assert (
            same(s.now.tensors(), before[n][0]) and (s.record.epoch, set(s.record.captured)) == before[n][1:]
        )


def test_a_stack_evaluates_in_evaluation_mode_and_trains_in_training_mode():
    Watched.log.clear()
    arms = crowd("tiny:watched", replace(EXACT, precision="fp32", steps=None, epochs=2, batch_size=60))
    listen(train(arms, "cpu", layout="stacked"))
    told = [(learning, modes) for learning, modes, x in Watched.log if len(x) >= 20]
    Watched.log.clear()
    assert all(modes == {learning} for learning, modes in told) and sum(learning for learning, _ in told) == 6


def test_epochs_are_told_when_their_arms_are_still_in_the_stack():
    events = listen(
        train(
            crowd(
                recipe=replace(EXACT, lr=0.3, steps=None, epochs=9, patience=1, schedule="constant"), number=5
            ),
            "cpu",
            layout="stacked",
        )
    )[1]
    ended = set()
    for e in events:
        if type(e).__name__ == "ArmDone":
            ended.add(e.arm)
        assert not (isinstance(e, EpochDone) and e.arm in ended)
    assert len(ended) == 5
