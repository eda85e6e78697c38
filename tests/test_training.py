"""What is no lesson of 06_training: the engine against a loop written with torch.optim, trainings entered again anywhere, frozen bodies, modes, and what test data may be used for."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import Watched, measure, of, same, some_arm, some_mask, trained

from lottery_nb.data import domains as data_domains
from lottery_nb.core import LotteryError
from lottery_nb.data.batches import batch_images, epoch_draws, epoch_order, Split
from lottery_nb.data.domains import domain
from lottery_nb.models.network import Network
from lottery_nb.rewinding.snapshots import fresh, load, masked
from lottery_nb.engine.recipes import lr_factor, Recipe, LR_SCHEDULES
from lottery_nb.engine.arms import check_arms
from lottery_nb.engine.trainer import evaluate
from lottery_nb.engine.training import train

# --- the update rules and schedules, against torch.optim ---

OPTIM = {
    "plain sgd": (dict(momentum=0.0), lambda p: torch.optim.SGD(p, 0.1)),
    "sgd, momentum and decay": (
        dict(momentum=0.8, weight_decay=0.02),
        lambda p: torch.optim.SGD(p, 0.1, 0.8, weight_decay=0.02),
    ),
    "nesterov and decay": (
        dict(nesterov=True, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True, weight_decay=0.01),
    ),
    "adam": (dict(optimizer="adam", lr=0.01), lambda p: torch.optim.Adam(p, 0.01)),
    "adam, all numbers": (
        dict(optimizer="adam", lr=0.01, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.05),
        lambda p: torch.optim.Adam(p, 0.01, (0.7, 0.95), 1e-3, 0.05),
    ),
    "adamw": (
        dict(optimizer="adamw", lr=0.01, betas=(0.8, 0.9), weight_decay=0.3),
        lambda p: torch.optim.AdamW(p, 0.01, (0.8, 0.9), weight_decay=0.3),
    ),
    "decay of matrices": (
        dict(weight_decay=0.05, decay="matrices"),
        lambda p: torch.optim.SGD(by_depth(p, 0.05), 0.1, 0.9),
    ),
    "clipped": (dict(clip=0.3), lambda p: torch.optim.SGD(p, 0.1, 0.9)),
    "smoothed labels": (dict(label_smoothing=0.2), lambda p: torch.optim.SGD(p, 0.1, 0.9)),
    "all three": (
        dict(optimizer="adamw", lr=0.01, weight_decay=0.3, decay="matrices", clip=0.5, label_smoothing=0.1),
        lambda p: torch.optim.AdamW(by_depth(p, 0.3), 0.01),
    ),
}


def by_depth(parameters, decay):
    "Groups as scripts make them: weight decay on matrices and kernels, none on biases."
    every = list(parameters)
    deep, flat = ([p for p in every if (p.ndim > 1) == matrix] for matrix in (True, False))
    return [dict(params=deep, weight_decay=decay), dict(params=flat, weight_decay=0.0)]


RATES = {
    "constant": (dict(schedule="constant"), lambda o, n: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1.0)),
    "cosine": (dict(schedule="cosine"), torch.optim.lr_scheduler.CosineAnnealingLR),
    "step": (
        dict(schedule="step"),
        lambda o, n: torch.optim.lr_scheduler.MultiStepLR(o, [n // 2, 3 * n // 4], 0.1),
    ),
    "step, own drops": (
        dict(schedule="step", drops=((0.75, 0.2), (0.25, 0.5))),
        lambda o, n: torch.optim.lr_scheduler.LambdaLR(
            o, lambda t: 0.2 if t >= 3 * n / 4 else 0.5 if t >= n / 4 else 1
        ),
    ),
    "one-cycle": (
        dict(schedule="one-cycle"),
        lambda o, n: torch.optim.lr_scheduler.OneCycleLR(o, o.param_groups[0]["lr"], n, cycle_momentum=False),
    ),
    "one-cycle, quick": (
        dict(schedule="one-cycle", warmup=0.2),
        lambda o, n: torch.optim.lr_scheduler.OneCycleLR(
            o, o.param_groups[0]["lr"], n, pct_start=0.2, cycle_momentum=False
        ),
    ),
}


def by_hand(arm, make_optimizer, make_rates):
    "The same training, written as anyone would with torch.optim; a mask is put on weights and gradients around each step."
    model = load(arm.network.build(0).double(), masked(arm.start, arm.mask)).train()
    optimizer, n, size = make_optimizer(list(model.parameters())), len(arm.domain.train), arm.recipe.batch_size
    per_epoch = n // size
    rates = make_rates(optimizer, per_epoch * arm.recipe.epochs)
    for epoch in range(arm.recipe.epochs):
        order, draws = epoch_order(n, arm.seed, epoch), epoch_draws(n, arm.seed, epoch, arm.recipe.augment)
        for at in range(0, per_epoch * size, size):
            index = order[at : at + size]
            x = batch_images(
                arm.domain.train.x,
                index,
                arm.domain.mean,
                arm.domain.std,
                {k: v[at : at + size] for k, v in draws.items()} or None,
                torch.float64,
            )
            optimizer.zero_grad(set_to_none=False)
            smoothing = dict(label_smoothing=arm.recipe.label_smoothing)
            F.cross_entropy(model(x), arm.domain.train.y[index], **smoothing).backward()
            for name, p in model.named_parameters():
                if arm.mask and name in arm.mask:
                    p.grad *= arm.mask[name]
            if arm.recipe.clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), arm.recipe.clip)
            optimizer.step()
            rates.step()
            with torch.no_grad():
                for name, p in model.named_parameters():
                    if arm.mask and name in arm.mask:
                        p *= arm.mask[name]
    return dict(model.named_parameters())


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize(
    "rule, rate, sparse, augment",
    [
        *((rule, "constant", False, ()) for rule in OPTIM),
        *(("sgd, momentum and decay", rate, False, ()) for rate in RATES if rate != "constant"),
        *((rule, "one-cycle", True, ("crop", "flip")) for rule in OPTIM),
        ("adam", "cosine", False, ("flip",)),
    ],
)
def test_a_training_is_that_of_torch_optim(rule, rate, sparse, augment):
    (numbers, optimizer), (schedule, rates) = OPTIM[rule], RATES[rate]
    recipe = Recipe(
        **{
            "lr": 0.1,
            "epochs": 4,
            "batch_size": 32,
            "precision": "fp64",
            "augment": augment,
            **numbers,
            **schedule,
        }
    )
    arm = some_arm(recipe=recipe, seed=3)
    arm = replace(arm, mask=some_mask(arm.network) if sparse else None)
    (result,), _ = trained(arm)
    theirs = by_hand(arm, optimizer, rates)
    for name, weights in result.last.weights.items():
        assert not torch.equal(weights, arm.start.weights[name].double())
        torch.testing.assert_close(weights, theirs[name].detach(), rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(LR_SCHEDULES), st.floats(0, 1), st.integers(1, 60))
@example("one-cycle", 0.1, 10)
@example("cosine", 1.0, 3)
@example("one-cycle", 1.0, 1)
def test_every_schedule_has_a_rate_at_every_step(schedule, warmup, total):
    factors = [lr_factor(Recipe(schedule=schedule, warmup=warmup), t, total) for t in range(total)]
    assert all(0 <= f <= 1 for f in factors)
    rising = max(0, math.ceil((warmup or (0.3 if schedule == "one-cycle" else 0)) * total) - 1)
    assert factors[:rising] == sorted(set(factors[:rising]))  # strictly up
    if schedule != "step":
        assert factors[rising + 1 :] == sorted(factors[rising + 1 :], reverse=True)


def test_warmup_is_a_straight_line_to_the_peak():
    recipe = Recipe(schedule="constant", warmup=0.25)
    assert [lr_factor(recipe, t, 16) for t in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    drops = [lr_factor(replace(recipe, schedule="step"), t, 16) for t in range(16)]
    assert drops[4:] == [1] * 4 + [0.1] * 4 + [0.01] * 4  # counted from the start, warm-up included


def test_the_rate_that_is_told_is_the_one_that_was_used():
    (_,), events = trained(some_arm(recipe=Recipe(lr=0.2, epochs=3, batch_size=60, schedule="cosine")))
    assert [e.lr for e in of("EpochDone", events)] == pytest.approx(
        [0.2 * (1 + math.cos(math.pi * t / 9)) / 2 for t in (2, 5, 8)]
    )
    assert [(e.epoch, e.step) for e in of("EpochDone", events)] == [(1, 3), (2, 6), (3, 9)]


# --- data: order, batches, seeds ---


@pytest.fixture
def log():
    Watched.log.clear()
    yield Watched.log
    Watched.log.clear()


def shown(log):
    "The batches that were trained on."
    return [x for learning, _, x in log if learning]


def keys(batches):
    "One number for each picture shown."
    return [
        round(v, 4)
        for x in batches
        for v in (x.double().flatten(1) * torch.arange(1, x[0].numel() + 1)).sum(1).tolist()
    ]


def test_an_epoch_shows_a_picture_at_most_once_and_the_next_in_another_order(log):
    trained(some_arm(network="tiny:watched", recipe=Recipe(epochs=2, batch_size=50)))
    batches = shown(log)
    assert [len(x) for x in batches] == [50] * 6
    first, second = keys(batches[:3]), keys(batches[3:])
    distinct = len(
        set(
            keys(
                [
                    batch_images(
                        domain(tiny.NAME).train.x,
                        torch.arange(180),
                        domain(tiny.NAME).mean,
                        domain(tiny.NAME).std,
                    )
                ]
            )
        )
    )
    assert len(set(first)) > 150 - (180 - distinct) - 1 and first != second


def test_a_seed_decides_the_order_and_the_arm_does_not(log):
    orders = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        log.clear()
        trained(
            some_arm(
                name,
                "tiny:watched",
                seed=seed,
                recipe=Recipe(epochs=1, batch_size=60, lr=0.01 if name == "b" else 0.1),
            )
        )
        orders[name] = keys(shown(log))
    assert orders["a"] == orders["b"] != orders["c"]


def test_a_batch_larger_than_the_data_is_all_of_them(log):
    (result,), events = trained(some_arm(network="tiny:watched", recipe=Recipe(epochs=3, batch_size=10_000)))
    assert (
        [len(x) for x in shown(log)] == [180] * 3
        and result.last.step == 3
        and len(of("EpochDone", events)) == 3
    )
    assert of("ArmStarted", events)[0].images == 180
    assert all(0 <= e.train_accuracy <= 1 for e in of("EpochDone", events))


def test_steps_may_end_within_an_epoch():
    (result,), events = trained(some_arm(recipe=Recipe(steps=13, batch_size=32)))
    assert result.last.step == result.last.updates == 13
    assert [(e.epoch, e.step) for e in of("EpochDone", events)] == [(1, 5), (2, 10), (3, 13)]


@pytest.mark.parametrize("size", [60, 10_000])
def test_the_told_training_loss_and_accuracy_are_those_of_the_batches(size):
    arm = some_arm(recipe=Recipe(lr=1e-12, epochs=1, batch_size=size, schedule="constant"))
    _, events = trained(arm)
    (epoch,), want = of("EpochDone", events), measure(arm.network, arm.start, arm.domain.train, arm.domain)
    assert epoch.train_loss == pytest.approx(
        want["loss"], rel=1e-5
    ) and epoch.train_accuracy == pytest.approx(want["accuracy"])


def test_the_global_random_state_is_neither_used_nor_changed():
    arm = some_arm(network="tiny:dropping", recipe=Recipe(epochs=2, batch_size=32, augment=("crop", "flip")))
    prints = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before, events, states = torch.get_rng_state(), train([arm], "cpu"), []
        try:
            while True:
                next(events)
                states.append(torch.get_rng_state())
        except StopIteration as end:
            prints.append(end.value[0].last.fingerprint)
        assert all(torch.equal(before, s) for s in states) and torch.equal(before, torch.get_rng_state())
    assert prints[0] == prints[1]


def test_an_arm_is_the_same_alone_and_in_company():
    arms = [
        some_arm("a"),
        some_arm("b", "tiny:dropping", seed=1),
        some_arm("c", seed=2, recipe=Recipe("adam", 0.01, epochs=1)),
    ]
    together, events = trained(*arms)
    assert [r.last.fingerprint for r in together] == [trained(a)[0][0].last.fingerprint for a in arms]
    assert [e.arm for e in of("ArmStarted", events)] == ["a", "b", "c"] and type(
        events[0]
    ).__name__ == "Layout"


# --- entered again ---


@pytest.mark.parametrize(
    "network, width",
    [("lenet-300-100", 0.1), ("resnet-20", 0.15), ("tiny:dropping", 1.0), ("tiny:watched", 1.0)],
)
@pytest.mark.parametrize(
    "numbers",
    [
        dict(lr=0.05, weight_decay=1e-3, nesterov=True),
        dict(optimizer="adam", lr=1e-3),
        dict(optimizer="adamw", lr=1e-3, weight_decay=0.1),
    ],
    ids=["sgd", "adam", "adamw"],
)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_entered_again_anywhere_it_ends_with_the_same_bits(network, width, numbers, sparse):
    there = domain(tiny.NAME)
    network = Network(network, there.shape, there.n_classes, width)
    recipe = Recipe(**numbers, steps=8, batch_size=60, augment=("crop", "flip"))
    arm = some_arm(network=network, recipe=recipe, seed=5, mask=some_mask(network) if sparse else None)
    (alone,), events = trained(arm)
    (first,), again = trained(replace(arm, capture=(0, 1, 3, 5, 7, 8)))
    assert first.last.fingerprint == alone.last.fingerprint and list(first.captured) == [
        0,
        1,
        3,
        5,
        7,
        8,
    ]  # to look is not to touch
    assert first.captured[8].fingerprint == first.last.fingerprint
    assert all(
        s.step == s.updates == k
        and (k == 0 or any(v.any() for slot in s.optimizer.values() for v in slot.values()))
        for k, s in first.captured.items()
    )
    told = {e.step: (e.validation_loss, e.validation_accuracy) for e in of("EpochDone", events)}
    for k in (3, 7) if network.name == "resnet-20" else (0, 1, 3, 5, 7):
        (later,), more = trained(replace(arm, start=first.captured[k]))
        assert same(later.last.tensors(), first.last.tensors()) and (later.last.step, later.last.updates) == (
            8,
            8,
        ), k
        assert all(
            (e.validation_loss, e.validation_accuracy) == told[e.step] for e in of("EpochDone", more)
        ), k


def test_double_precision_is_entered_again_in_double_precision():
    arm = some_arm(recipe=Recipe(epochs=2, batch_size=32, precision="fp64"), capture=(3,))
    (first,), _ = trained(arm)
    (again,), _ = trained(replace(arm, start=first.captured[3]))
    assert same(again.last.tensors(), first.last.tensors())


def test_a_training_changes_nothing_that_it_was_given():
    mask = some_mask(some_arm().network)
    (first,), _ = trained(some_arm(mask=mask, capture=(3,)))
    given = {k: t.clone() for k, t in first.captured[3].tensors().items()}
    trained(some_arm(mask=mask, start=first.captured[3]))
    assert same(first.captured[3].tensors(), given)


# --- which epoch is kept, and when to stop ---


@pytest.mark.parametrize("keep", ["best accuracy", "best loss", "last"])
def test_the_kept_epoch_is_the_one_that_was_asked_for(keep):
    arm = some_arm(recipe=Recipe(lr=0.4, epochs=7, batch_size=16, schedule="constant", keep=keep), seed=1)
    (result,), events = trained(arm)
    epochs = of("EpochDone", events)
    accuracy, loss = [e.validation_accuracy for e in epochs], [e.validation_loss for e in epochs]
    want = {"best accuracy": accuracy.index(max(accuracy)), "best loss": loss.index(min(loss)), "last": 6}[
        keep
    ] + 1
    assert result.epoch == of("ArmDone", events)[0].epoch == want and result.kept.step == want * 11
    for split in ("validation", "test"):
        assert result.metrics[split] == pytest.approx(
            measure(arm.network, result.kept, getattr(arm.domain, split), arm.domain), rel=1e-5
        )
    assert result.metrics["validation"] == {"accuracy": accuracy[want - 1], "loss": loss[want - 1]}
    assert (
        len({accuracy.index(max(accuracy)), loss.index(min(loss)), 6}) > 1
    )  # the three do not mean the same here


def test_an_equal_epoch_is_no_better_one():
    (result,), events = trained(
        some_arm(recipe=Recipe(lr=1e-12, epochs=9, batch_size=60, schedule="constant", patience=3))
    )
    assert result.epoch == 1 and len(of("EpochDone", events)) == 4


@pytest.mark.parametrize("keep", ["best accuracy", "best loss"])
@pytest.mark.parametrize("patience", [1, 2, 4])
def test_patience_ends_a_training_and_changes_nothing_before(keep, patience):
    arm = some_arm(recipe=Recipe(lr=0.3, epochs=14, batch_size=30, schedule="constant", keep=keep), seed=2)
    _, whole = trained(arm)
    scores = [
        e.validation_accuracy if keep == "best accuracy" else -e.validation_loss
        for e in of("EpochDone", whole)
    ]
    stop = (
        next(
            (i for i in range(len(scores)) if i - scores.index(max(scores[: i + 1])) >= patience),
            len(scores) - 1,
        )
        + 1
    )
    (result,), events = trained(replace(arm, recipe=replace(arm.recipe, patience=patience)))

    def timeless(es):
        return [replace(e, seconds=0.0) for e in of("EpochDone", es)]

    assert timeless(events) == timeless(whole)[:stop] and result.epoch == scores.index(max(scores[:stop])) + 1
    assert stop < 14 or patience == 4


# --- modes, and frozen bodies ---


def test_training_mode_at_every_step_and_evaluation_mode_at_every_look(log):
    trained(some_arm(network="tiny:watched", recipe=Recipe(epochs=3, batch_size=60), capture=(1, 4)))
    assert [learning for learning, _, _ in log] == [True] * 3 + [False] + [True] * 3 + [False] + [
        True
    ] * 3 + [False, False]
    assert all(modes == {learning} for learning, modes, _ in log)


def body_of(arm):
    return frozenset(n for n in arm.start.weights if not n.startswith("4."))


@pytest.fixture(scope="module")
def used():
    "A network with batch norm whose statistics are those of other pictures."
    (result,), _ = trained(
        some_arm(network="tiny:normed", on="digits[5-9]@200", recipe=Recipe(epochs=2, batch_size=32))
    )
    return replace(result.kept, optimizer={}, step=0, updates=0)


def test_a_frozen_body_is_a_fixed_function_with_a_linear_model_on_it(used):
    arm = some_arm(
        network="tiny:normed", start=used, recipe=Recipe(lr=0.1, epochs=3, batch_size=32, precision="fp64")
    )
    (result,), _ = trained(replace(arm, frozen=body_of(arm)))
    assert same(
        result.last.buffers, {n: b.double() if b.is_floating_point() else b for n, b in used.buffers.items()}
    )
    assert all(torch.equal(result.last.weights[n], used.weights[n].double()) for n in body_of(arm))
    assert set(result.last.optimizer["momentum"]) == {"4.weight", "4.bias"}
    model = load(arm.network.build(0).double(), used)
    body, head, there = model[:4].eval(), model[4], arm.domain
    optimizer = torch.optim.SGD(head.parameters(), 0.1, 0.9)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 15, cycle_momentum=False)
    for epoch in range(3):
        for index in list(epoch_order(180, 0, epoch).split(32))[:5]:
            with torch.no_grad():
                features = body(
                    batch_images(there.train.x, index, there.mean, there.std, dtype=torch.float64)
                )
            optimizer.zero_grad()
            F.cross_entropy(head(features), there.train.y[index]).backward()
            optimizer.step()
            rates.step()
    torch.testing.assert_close(result.last.weights["4.weight"], head.weight.detach(), rtol=1e-9, atol=1e-12)


def test_recalibrated_statistics_are_those_of_the_target(used):
    arm = some_arm(
        network="tiny:normed",
        start=used,
        norm="recalibrated",
        recipe=Recipe(lr=0.1, epochs=2, batch_size=32, augment=("crop",), precision="fp32"),
    )
    (result,), _ = trained(replace(arm, frozen=body_of(arm), capture=(3,)))
    conv, there = load(arm.network.build(0), used)[0], arm.domain
    with torch.no_grad():
        seen = conv(batch_images(there.train.x, torch.arange(180), there.mean, there.std))
    torch.testing.assert_close(
        result.last.buffers["1.running_mean"], seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        result.last.buffers["1.running_var"], seen.var((0, 2, 3)), rtol=1e-4, atol=1e-5
    )
    assert same({n: result.last.weights[n] for n in body_of(arm)}, {n: used.weights[n] for n in body_of(arm)})
    (again,), _ = trained(replace(arm, frozen=body_of(arm), start=result.captured[3]))
    assert again.last.fingerprint == result.last.fingerprint


def test_updated_statistics_go_on_as_in_a_training(used):
    arm = some_arm(
        network="tiny:normed",
        start=used,
        norm="updated",
        recipe=Recipe(lr=0.1, epochs=1, batch_size=90, precision="fp64"),
    )
    (result,), _ = trained(replace(arm, frozen=body_of(arm)))
    model, there = load(arm.network.build(0).double(), used).train(), arm.domain
    for index in epoch_order(180, 0, 0).split(90):
        model(batch_images(there.train.x, index, there.mean, there.std, dtype=torch.float64))
    torch.testing.assert_close(result.last.buffers["1.running_mean"], model[1].running_mean)
    torch.testing.assert_close(result.last.buffers["1.running_var"], model[1].running_var)


def test_batch_norm_outside_of_what_is_frozen_goes_on(used):
    arm = some_arm(network="tiny:normed", start=used)
    (result,), _ = trained(replace(arm, frozen=frozenset({"0.weight", "0.bias"})))
    assert not torch.equal(result.last.buffers["1.running_mean"], used.buffers["1.running_mean"])
    assert torch.equal(result.last.weights["0.weight"], used.weights["0.weight"]) and not torch.equal(
        result.last.weights["1.weight"], used.weights["1.weight"]
    )


def test_a_frozen_layer_keeps_its_mask_and_a_start_with_state_of_it_is_welcome():
    arm = some_arm(mask=some_mask(some_arm().network))
    (first,), _ = trained(replace(arm, capture=(4,)))
    still = frozenset({"fc1.weight", "fc1.bias"})
    (result,), _ = trained(replace(arm, start=first.captured[4], frozen=still))
    assert (
        torch.equal(result.last.weights["fc1.weight"], first.captured[4].weights["fc1.weight"])
        and "fc1.weight" not in result.last.optimizer["momentum"]
    )
    assert (result.last.weights["fc1.weight"][~arm.mask["fc1.weight"]] == 0).all()


# --- test data ---


class Counted(Split):
    "A split that counts how often its pictures or labels are asked for."

    reads = 0

    def __getattribute__(self, name):
        if name in ("x", "y"):
            Counted.reads += 1
        return object.__getattribute__(self, name)


@pytest.fixture
def counted(monkeypatch):
    "Every domain's test split is counted."
    real = data_domains.content_of

    def content_of(*args):
        content = real(*args)
        return replace(content, test=content.test and Counted(content.test.x, content.test.y))

    monkeypatch.setattr(data_domains, "content_of", content_of)
    Counted.reads = 0


def test_test_data_are_read_once_at_the_very_end(counted):
    reads = {}
    for e in train(
        [
            some_arm("a", recipe=Recipe(epochs=4, batch_size=32, patience=1)),
            some_arm("b", recipe=Recipe(lr=1e9, epochs=2, batch_size=32, schedule="constant")),
        ],
        "cpu",
    ):
        reads[type(e).__name__] = Counted.reads
        if type(e).__name__ == "ArmDone":
            assert Counted.reads > 0
            Counted.reads = 0
    assert reads["EpochDone"] == reads["ArmStarted"] == reads["ArmFailed"] == 0


def test_other_test_data_change_the_report_and_nothing_else():
    a = tiny.noise_domain(seed=1)
    b = replace(a, raw=replace(a.raw, test=(255 - a.raw.test[0], (a.raw.test[1] + 1) % 3)))
    one, other = (
        trained(
            some_arm(
                network=Network("lenet-300-100", a.shape, 3, 0.1),
                on=d,
                recipe=Recipe(epochs=5, batch_size=9, patience=2),
            )
        )[0][0]
        for d in (a, b)
    )
    assert (one.epoch, one.metrics["validation"], one.last.fingerprint) == (
        other.epoch,
        other.metrics["validation"],
        other.last.fingerprint,
    )
    assert one.metrics["test"] != other.metrics["test"]


def test_what_is_measured_is_never_augmented():
    arm = some_arm(recipe=Recipe(epochs=2, batch_size=32, augment=("crop", "flip")))
    (result,), _ = trained(arm)
    for split in ("validation", "test"):
        assert result.metrics[split] == pytest.approx(
            measure(arm.network, result.kept, getattr(arm.domain, split), arm.domain), rel=1e-5
        )


def test_own_data_without_test_pictures_report_validation_alone():
    there = tiny.noise_domain(test=False)
    (result,), events = trained(some_arm(network=Network("lenet-300-100", there.shape, 3, 0.1), on=there))
    assert set(result.metrics) == {"validation"} == set(of("ArmDone", events)[0].metrics)


def test_measuring_in_parts_is_measuring_at_once():
    from lottery_nb.engine.trainer import Trainer

    arm = some_arm(network="tiny:watched")
    t = Trainer([arm], torch.device("cpu"))
    for size in (1, 7, 1000):
        assert evaluate(t, arm.domain.test, size)[0] == pytest.approx(
            measure(arm.network, arm.start, arm.domain.test, arm.domain), rel=1e-5
        )


# --- losses that explode ---


def test_a_nan_ends_its_arm_with_an_event_and_the_others_go_on():
    wild, tame = (
        some_arm("wild", recipe=Recipe(lr=1e9, epochs=5, batch_size=32, schedule="constant")),
        some_arm("tame", seed=1),
    )
    results, events = trained(wild, tame)
    (failed,) = of("ArmFailed", events)
    assert (
        failed.arm == "wild"
        and failed.epoch == 1
        and "Recipe.lr" in failed.reason
        and results[0].failed == failed.reason
    )
    assert [e.arm for e in of("ArmDone", events)] == ["tame"] and results[1].last.fingerprint == trained(
        tame
    )[0][0].last.fingerprint
    with pytest.raises(LotteryError, match="'wild' has no weights: it failed"):
        results[0].weights  # noqa: B018


@pytest.mark.parametrize("keep", ["best accuracy", "best loss", "last"])
def test_weights_that_explode_in_the_very_last_step_are_a_failure_too(keep):
    wild = some_arm("wild", recipe=Recipe(lr=1e30, steps=1, batch_size=32, schedule="constant", keep=keep))
    results, events = trained(wild, some_arm("tame"))
    assert (
        results[0].failed and not results[1].failed and [e.arm for e in of("ArmFailed", events)] == ["wild"]
    )
    assert [e.arm for e in of("ArmDone", events)] == ["tame"]


# --- precision, networks of the user's, refusals ---


def test_bf16_computes_in_16_bits_and_keeps_its_weights_in_32():
    arms = {
        p: some_arm(p, recipe=Recipe(epochs=4, batch_size=32, precision=p)) for p in ("fp32", "bf16", "fp64")
    }
    results = {p: trained(a)[0][0] for p, a in arms.items()}
    assert {p: r.last.weights["fc1.weight"].dtype for p, r in results.items()} == {
        "fp32": torch.float32,
        "bf16": torch.float32,
        "fp64": torch.float64,
    }
    weights = {p: r.last.weights["fc1.weight"].double() for p, r in results.items()}
    gap = {p: (w - weights["fp64"]).norm() / weights["fp64"].norm() for p, w in weights.items()}
    assert 0 < gap["fp32"] < 1e-4 < gap["bf16"] < 0.1
    assert results["bf16"].metrics["test"]["accuracy"] == pytest.approx(
        results["fp64"].metrics["test"]["accuracy"], abs=0.1
    )


def test_dropout_of_a_users_function_draws_anew_at_every_step():
    arm = some_arm(
        network="tiny:dropping", recipe=Recipe(lr=1e-12, steps=6, batch_size=180, schedule="constant")
    )
    _, events = trained(arm)
    losses = [e.train_loss for e in of("EpochDone", events)]  # the same pictures, the same weights
    assert len({round(v, 4) for v in losses}) == 6
    _, other = trained(replace(arm, seed=1))
    assert losses != [e.train_loss for e in of("EpochDone", other)]


def test_ticks_come_by_the_clock_and_tell_how_far_it_is(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr("lottery_nb.engine.training.time.monotonic", lambda: float(next(clock)))
    _, events = trained(some_arm(recipe=Recipe(epochs=2, batch_size=60)))
    assert [e.epoch for e in of("Tick", events)] == pytest.approx([k / 3 for k in range(1, 7)]) and {
        e.epochs for e in of("Tick", events)
    } == {2.0}


def test_closing_between_two_epochs_stops_there():
    events, arm = train([some_arm(recipe=Recipe(epochs=1000, batch_size=180))], "cpu"), None
    for e in events:
        if type(e).__name__ == "EpochDone":
            arm = e
            break
    events.close()
    assert arm.epoch == 1 and list(events) == []


@pytest.mark.parametrize(
    "numbers, says",
    [
        (dict(optimizer="adam", betas=(1.0, 0.9)), "betas"),
        (dict(optimizer="adam", betas=(0.9, 1.0)), "betas"),
        (dict(betas=(0.9,)), "betas"),
        (dict(drops=(0.5,)), "drops"),
        (dict(augment="crop"), "Recipe.augment"),
        (dict(lr=True), "Recipe.lr"),
        (dict(lr="0.1"), "Recipe.lr"),
        (dict(steps=0), "Recipe.steps"),
        (dict(patience=0), "Recipe.patience"),
        (dict(warmup=1.5), "Recipe.warmup"),
        (dict(keep="best"), "Recipe.keep"),
        (dict(precision="fp16"), "did you mean"),
        (dict(weight_decay=-1.0), "Recipe.weight_decay"),
        (dict(momentum=1.5), "momentum"),
        (dict(eps=0.0), "Recipe.eps"),
        (dict(batch_size=0), "Recipe.batch_size"),
    ],
)
def test_recipes_refuse_nonsense_in_one_sentence(numbers, says):
    with pytest.raises(LotteryError) as e:
        Recipe(**numbers)
    assert says in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(frozen=frozenset({"fc9.weight"})), "'fc9.weight'"),
        (dict(norm="keep"), "did you mean 'kept'"),
        (dict(mask=some_mask(Network("conv-2", (1, 8, 8), 5, 0.1))), "masks or freezes"),
    ],
)
def test_arms_refuse_what_does_not_fit(change, says):
    with pytest.raises(LotteryError, match=says):
        check_arms([replace(some_arm(), **change)])


WIDER = Network("lenet-300-100", (1, 8, 8), 5, 0.2)


@pytest.mark.parametrize(
    "bad", [dict(start=fresh(WIDER, 0)), dict(mask=some_mask(WIDER))], ids=["start", "mask"]
)
def test_a_bad_arm_is_refused_before_a_good_one_starts(bad):
    events = []
    with pytest.raises(LotteryError):
        for e in train([some_arm("good"), some_arm("bad", **bad)], "cpu"):
            events.append(e)
    assert not of("ArmStarted", events)
