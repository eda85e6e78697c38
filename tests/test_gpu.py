"""What a step does on a GPU, and what of it a CPU can show: it waits for no value, and keeps what it should in full precision."""

from dataclasses import replace

import pytest
import torch
from tiny import noise_domain, some_arm, some_mask
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lottery_nb.core import device_name, free_memory
from lottery_nb.data.domains import domain, vocabulary
from lottery_nb.data.own import from_texts
from lottery_nb.engine.recipes import Recipe
from lottery_nb.engine.trainer import evaluate, Trainer
from lottery_nb.engine.training import _run_epoch, finish, train
from lottery_nb.models.network import Network
from lottery_nb.rewinding.snapshots import fresh
from lottery_nb.workbench.cost import gpu_use

aten = torch.ops.aten
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.item, aten.is_nonzero}


class Waiting(TorchDispatchMode):
    """Notices operations for which a GPU would be waited for: a value, a place, a boolean index, another device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) else ()
        boolean = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
        if func.overloadpacket in WAITS or boolean:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def texts():
    """Made-up texts in pieces."""
    rows = [f"plot {word} scene {'good' if i % 2 else 'bad'}" for i, word in enumerate("abcdefghij" * 8)]
    made = from_texts(rows, [i % 2 for i in range(len(rows))])
    return made.tokenised(vocabulary(made, 40), 8)


def arms_for(network, n, recipe):
    """Arms with masks and seeds of their own."""
    d = texts() if network == "text-cnn" else noise_domain(n=120, shape=(3, 16, 16))
    pieces = len(d.vocabulary) if d.vocabulary else None
    net = Network(network, d.shape, d.n_classes, 0.1 if network != "resnet-20" else 0.25, vocabulary=pieces)
    arm = some_arm("0", net, "digits@200", start=fresh(net, 0), recipe=recipe)
    return [
        replace(arm, name=str(k), domain=d, seed=k, start=fresh(net, k), mask=some_mask(net, seed=k))
        for k in range(n)
    ]


def begun(arms, device):
    """A trainer on the device whose first steps are done, and its sums."""
    where = torch.device(device)
    arms = [replace(a, domain=a.domain.to(where)) for a in arms]
    t = Trainer(arms, where)
    sums = torch.zeros(len(arms), 2, device=where)
    list(_run_epoch(t, 1, sums))
    return t, sums


NETWORKS = ["lenet-300-100", "conv-4", "resnet-20", "vgg-19", "text-cnn"]
SGD = Recipe("sgd", lr=0.01, batch_size=16, nesterov=True, weight_decay=1e-4)
ADAM = Recipe("adam", lr=1e-3, batch_size=16)


@pytest.mark.parametrize("recipe", [SGD, ADAM, replace(ADAM, optimizer="adamw")], ids=lambda r: r.optimizer)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("n", [1, 3])
def test_steps_wait_for_no_value(n, network, recipe):
    augment = () if network == "text-cnn" else ("crop", "flip")
    t, sums = begun(arms_for(network, n, replace(recipe, augment=augment)), "cpu")
    with Waiting() as waiting:
        list(_run_epoch(t, t.per_epoch, sums))
    assert t.step == t.per_epoch > 3 and not waiting.seen


class Curious(nn.Module):
    """A network that asks for a value in its forward pass."""

    def __init__(self, shape, n_classes, how):
        super().__init__()
        self.body, self.how = nn.Linear(shape[0] * shape[1] * shape[2], n_classes), how

    def forward(self, x):
        out = self.body(x.flatten(1))
        return out + 0 * self.how(out)


def item(x):
    return x.sum().item()


def chosen(x):
    return x[x > 0].sum()


def places(x):
    return (x > 0).nonzero().sum()


def taken(x):
    return 1.0 if (x.sum() > 0) else 0.0


def masked(x):
    return x.masked_select(x > 0).sum()


def same(x):
    return float(torch.equal(x, x + 1))


@pytest.mark.parametrize("how", [item, chosen, places, taken, masked, same])
def test_a_step_that_waits_is_noticed(how):
    def curious(input_shape, n_classes):
        return Curious(input_shape, n_classes, how)

    d = noise_domain(n=120, shape=(3, 16, 16))
    net = Network(curious, d.shape, d.n_classes)
    arm = some_arm("0", net, "digits@200", start=fresh(net, 0), recipe=SGD)
    t, sums = begun([replace(arm, domain=d)], "cpu")
    with Waiting() as waiting:
        list(_run_epoch(t, t.per_epoch, sums))
    assert waiting.seen


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", [SGD, ADAM], ids=lambda r: r.optimizer)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("n", [1, 3])
def test_steps_on_a_gpu_do_not_wait(n, network, recipe):
    augment = () if network == "text-cnn" else ("crop", "flip")
    t, sums = begun(arms_for(network, n, replace(recipe, augment=augment)), "cuda")
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        list(_run_epoch(t, t.per_epoch, sums))
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert t.step == t.per_epoch > 3 and sums.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_half_precision_keeps_weights_and_state_in_full(optimizer, device):
    recipe = Recipe(optimizer, lr=0.01, batch_size=16, precision="bf16")
    t, _ = begun(arms_for("conv-2", 2, recipe), device)
    kept = {t.flat.theta.dtype, *(v.dtype for v in t.state.values()), *(b.dtype for b in t.model.buffers())}
    assert kept == {torch.float32} and {w.dtype for w in t.snapshot().weights.values()} == {torch.float32}
    seen = []
    hook = t.model.fc1.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    x = t.inputs(t.domain.train, torch.arange(8, device=t.device).expand(2, -1))
    assert t.forward(x).dtype == torch.float32 and set(seen) <= {torch.bfloat16, torch.float32}
    hook.remove()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("network", ["conv-4", "vgg-19"])
def test_pictures_and_kernels_lie_pixel_by_pixel(network, device):
    t, _ = begun(arms_for(network, 1, SGD), device)
    x = t.inputs(t.domain.train, torch.arange(4, device=t.device))
    last = torch.channels_last
    kernels = [p for p in t.model.parameters() if p.ndim == 4]
    assert x.is_contiguous(memory_format=last) and all(p.is_contiguous(memory_format=last) for p in kernels)
    assert all(g["fused"] for g in t.optimizer.param_groups)


@pytest.mark.gpu
@pytest.mark.parametrize("network", NETWORKS)
def test_a_stack_on_a_gpu_gives_what_each_arm_gives_alone(network):
    recipe = replace(SGD, precision="fp64", steps=5, keep="last")
    arms = arms_for(network, 3, recipe)
    together, alone = (finish(train(arms, "cuda", layout=how)) for how in ("stacked", "alone"))
    for a, b in zip(together, alone, strict=True):
        for name, w in a.last.weights.items():
            torch.testing.assert_close(w, b.last.weights[name], rtol=1e-7, atol=1e-9)


@pytest.mark.gpu
def test_a_gpu_is_told_by_its_name_and_memory():
    where = torch.device("cuda", 0)
    name = device_name(where)
    assert name and "CPU" not in name and free_memory(where) > 2**28
    use = gpu_use(0)
    assert use == "" or (name in use and "GiB" in use)


@pytest.mark.gpu
def test_evaluation_on_a_gpu_agrees_with_the_cpu():
    arm = some_arm(recipe=Recipe(precision="fp64", batch_size=32))
    scores = [
        evaluate(
            Trainer([replace(arm, domain=domain(arm.domain.name).to(where))], torch.device(where)), split
        )
        for where in ("cpu", "cuda")
        for split in [domain(arm.domain.name).to(where).validation]
    ]
    assert scores[0][0]["accuracy"] == scores[1][0]["accuracy"]
    assert scores[0][0]["loss"] == pytest.approx(scores[1][0]["loss"], abs=1e-12)
