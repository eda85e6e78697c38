"""Networks as people write them: what they give, how they come, what their weights are, and what is refused before anything is trained. Numbers are compared with plain torch."""

import collections
import dataclasses
import functools
import itertools
import math
import random
import re
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tiny import listen
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from lottery_nb.core import LotteryError
from lottery_nb.data.batches import epoch_order
from lottery_nb.data.own import from_arrays
from lottery_nb.engine import arms as engine_arms
from lottery_nb.engine.arms import Arm
from lottery_nb.engine.recipes import Recipe
from lottery_nb.engine.trainer import batches_of, recalibrated
from lottery_nb.engine.training import train
from lottery_nb.models.network import logits_of, Network
from lottery_nb.plans.find import find_tickets, FindPlan
from lottery_nb.plans.transfer import transfer, TransferPlan
from lottery_nb.pruning.criteria import BATCHES, Scoring, snip
from lottery_nb.pruning.masks import Mask
from lottery_nb.pruning.schedules import geometric, linear, one_shot
from lottery_nb.results.style import density_axis
from lottery_nb.rewinding.controls import control, CONTROLS
from lottery_nb.rewinding.snapshots import fresh
from lottery_nb.runs.writing import run

CPU = torch.device("cpu")
RECIPE = Recipe(lr=0.05, epochs=2, batch_size=20, schedule="constant", keep="last", precision="fp32")


def pictures(n=60, classes=4, channels=1, size=8, seed=0, name="toy"):
    "Pictures in which a bright block says the class."
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = rng.integers(0, 80, (n, channels, size, size)).astype(np.uint8)
    for i, c in enumerate(y):
        x[i, :, :, 2 * c : 2 * c + 2] += 120
    return from_arrays(x, y, test=(x[: n // 2], y[: n // 2]), name=name)


TOY = pictures()


def arm_of(network, on=TOY, recipe=RECIPE, seed=0, **fields):
    network = network if isinstance(network, Network) else Network(network, on.shape, on.n_classes)
    return Arm("arm", network, on, recipe, seed, fresh(network, seed), **fields)


def trained(arm, **how):
    (result,), _ = listen(train([arm], "cpu", **how))
    assert not result.failed
    return result.last.weights


def by_hand(arm, model, take=lambda output: output):
    "The arm's training in plain torch: SGD with momentum on the batches of its seed."
    there, recipe = arm.domain, arm.recipe
    model = model.float().train()
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
    )
    n, size = len(there.train.y), recipe.batch_size
    for epoch in range(recipe.epochs):
        order = epoch_order(n, arm.seed, epoch)
        for index in order[: n // size * size].split(size):
            optimizer.zero_grad()
            F.cross_entropy(take(model(there.inputs(there.train.x, index))), there.train.y[index]).backward()
            optimizer.step()
    return dict(model.named_parameters())


def close(got, want, tolerance=1e-6):
    return set(got) == set(want) and all(torch.allclose(got[n], want[n].detach(), 0, tolerance) for n in want)


def plan_of(network, on=TOY, **fields):
    usual = dict(schedule=geometric(0.5, 2), recipe=RECIPE, seeds=1, controls=())
    return FindPlan(on, network, **{**usual, **fields})


def refused(stream, says, place=None):
    "A stream that is refused before an arm or an epoch is told of."
    seen = []
    with pytest.raises(LotteryError, match=says) as e:
        for event in stream:
            seen.append(type(event).__name__)
    assert not {"ArmStarted", "ArmTaken", "EpochDone", "ArmDone", "ArmFailed", "TicketFound"} & set(seen), (
        seen
    )
    assert place in (None, e.value.place), (place, e.value.place)
    assert str(e.value).count("\n") == 0
    return str(e.value)


# --- forward as people write it: layouts ---


class Cnn(nn.Module):
    "The small CNN that everybody writes."

    def __init__(self, n_classes, flatten, channels=1):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.fc, self.out, self.flatten = nn.Linear(8 * 4 * 4, 16), nn.Linear(16, n_classes), flatten

    def forward(self, x):
        x = F.max_pool2d(self.conv2(self.conv1(x).relu()).relu(), 2)
        return self.out(self.fc(self.flatten(x)).relu())


class Patches(nn.Module):
    "Patches by a convolution, then tokens by view, as in ViTs."

    def __init__(self, n_classes):
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(1, 6, 2, 2), nn.Linear(6, 8), nn.Linear(8, n_classes)

    def forward(self, x):
        x = self.conv(x)
        n, c, h, w = x.shape
        return self.out(self.fc(x.view(n, c, h * w).transpose(1, 2)).relu().mean(1))


class Shuffled(nn.Module):
    "Channels shuffled by view, as ShuffleNet does."

    def __init__(self, n_classes):
        super().__init__()
        self.conv, self.conv2, self.out = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(6, n_classes)

    def forward(self, x):
        x = self.conv(x).relu()
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.out(self.conv2(x).relu().mean((2, 3)))


class Placed(nn.Module):
    "A learned map of four dimensions that is flattened by view."

    def __init__(self, n_classes):
        super().__init__()
        self.conv, self.place = nn.Conv2d(1, 3, 3, padding=1), nn.Parameter(torch.randn(1, 3, 8, 8) * 0.1)
        self.fc, self.out = nn.Linear(192, 8), nn.Linear(8, n_classes)

    def forward(self, x):
        return self.out(self.fc((self.conv(x).flatten(1) + self.place.view(1, -1)).relu()).relu())


LAYOUTS = {
    "view(N, -1)": lambda n: Cnn(n, lambda x: x.view(x.size(0), -1)),
    "view(-1, features)": lambda n: Cnn(n, lambda x: x.view(-1, 128)),
    "map of four dimensions": Placed,
    "as it lies in memory": lambda n: Cnn(n, lambda x: x.as_strided((len(x), 128), (128, 1))),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_network_that_fails_on_pixels_channels_last_is_trained_in_the_plain_layout(case):
    arm = arm_of(lambda shape, n: LAYOUTS[case](n))
    assert not engine_arms.channels_last(arm) and engine_arms.engine_of(arm) == engine_arms.ENGINE
    assert close(trained(arm), by_hand(arm, arm.network.build(0)))


TAKEN = {
    "flatten": lambda n: Cnn(n, lambda x: x.flatten(1)),
    "mean over the map": lambda n: nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, n)
    ),
    "patches by view": Patches,
    "channel shuffle by view": Shuffled,
}


@pytest.mark.parametrize("case", TAKEN)
def test_a_network_that_takes_them_keeps_its_layout_and_its_results(case):
    arm = arm_of(lambda shape, n: TAKEN[case](n))
    assert engine_arms.channels_last(arm) and engine_arms.engine_of(arm) == engine_arms.ENGINE - 1
    assert close(trained(arm), by_hand(arm, arm.network.build(0)), 1e-5)


def test_a_search_on_the_small_cnn_finds_tickets():
    tickets, events = listen(
        find_tickets(plan_of(lambda s, n: Cnn(n, lambda x: x.view(x.size(0), -1))), "cpu")
    )
    assert [t.round for t in tickets] == [1, 2] and tickets[-1].density == pytest.approx(0.25, abs=1e-3)


# --- forward as people write it: outputs ---


@dataclasses.dataclass
class Output:
    hidden: torch.Tensor
    scores: torch.Tensor


class ModelOutput(collections.OrderedDict):
    "As Hugging Face's: a mapping whose keys are attributes."

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


Named = collections.namedtuple("Named", "aux logits")

OUTPUTS = {
    "tuple in training alone": (
        lambda m, h: (m.out(h), m.aux(h)) if m.training else m.out(h),
        lambda o: o[0] if isinstance(o, tuple) else o,
    ),
    "named tuple, auxiliary first": (lambda m, h: Named(m.aux(h), m.out(h)), lambda o: o.logits),
    "dictionary": (
        lambda m, h: {"loss": h.sum(), "aux": m.aux(h), "logits": m.out(h)},
        lambda o: o["logits"],
    ),
    "dictionary without names of ours": (
        lambda m, h: {"hidden": h, "scores": m.out(h)},
        lambda o: o["scores"],
    ),
    "model output": (
        lambda m, h: ModelOutput(loss=None, hidden_states=(h, h), logits=m.out(h)),
        lambda o: o["logits"],
    ),
    "dataclass": (lambda m, h: Output(h, m.out(h)), lambda o: o.scores),
    "features first": (lambda m, h: (h, m.out(h)), lambda o: o[1]),
    "list in a tuple": (lambda m, h: ([h, m.out(h)], h.mean()), lambda o: o[0][1]),
    "one in a tuple": (lambda m, h: (m.out(h),), lambda o: o[0]),
}


class Giving(nn.Module):
    def __init__(self, n_classes, give):
        super().__init__()
        self.fc, self.out, self.aux, self.give = (
            nn.Linear(64, 16),
            nn.Linear(16, n_classes),
            nn.Linear(16, n_classes),
            give,
        )

    def forward(self, x):
        return self.give(self, self.fc(x.flatten(1)).relu())


@pytest.mark.parametrize("case", OUTPUTS)
def test_logits_are_taken_from_whatever_a_network_gives(case):
    give, take = OUTPUTS[case]
    arm = arm_of(lambda shape, n: Giving(n, give))
    want = by_hand(arm, arm.network.build(0), take)
    assert close(trained(arm), want)
    stacked, _ = listen(train([arm, replace(arm, name="twin", seed=1)], "cpu", layout="stacked"))
    assert close(stacked[0].last.weights, want, 1e-5)


@pytest.mark.parametrize("case", OUTPUTS)
def test_snip_scores_them_as_autograd_does(case):
    give, take = OUTPUTS[case]
    network = Network(lambda shape, n: Giving(n, give), TOY.shape, TOY.n_classes)
    model, there = network.build(0), TOY
    mask = Mask.dense({"fc.weight": model.fc.weight})
    batches = batches_of(there, 0, CPU, 20)
    got = snip(Scoring(model, {"fc.weight": model.fc.weight.detach()}, mask, batches=batches, n_classes=4))
    twin = network.build(0).train()
    for x, y in batches(BATCHES):
        F.cross_entropy(take(twin(x)), y).backward()
    assert torch.allclose(got["fc.weight"], (twin.fc.weight * twin.fc.weight.grad).abs(), 1e-6, 1e-9)


def test_a_search_with_such_a_network_finds_what_one_with_a_tensor_finds():
    found = {}
    for case in ("tuple in training alone", "features first", "model output"):
        give = OUTPUTS[case][0]
        for how, gives in (("odd", give), ("plain", lambda m, h: m.out(h))):
            plan = plan_of(lambda shape, n, gives=gives: Giving(n, gives), criterion="snip")
            found[case, how] = listen(find_tickets(plan, "cpu"))[0][-1].mask.fingerprint
        assert found[case, "odd"] == found[case, "plain"], case


NO_LOGITS = {
    "nothing": (lambda m, h: None, "gives NoneType of no tensor for 2 examples"),
    "a sequence of tables": (
        lambda m, h: m.out(h).unsqueeze(1).expand(-1, 3, -1),
        r"gives \(2, 3, 4\) for 2 examples",
    ),
    "a dictionary of others": (lambda m, h: {"hidden": h, "mean": h.mean()}, "16 logits"),
    "whole numbers": (lambda m, h: m.out(h).argmax(1), r"gives \(2,\)"),
    "another shape while it trains": (
        lambda m, h: m.out(h).mean(0) if m.training else m.out(h),
        r"gives \(4,\) for 20 examples",
    ),
    "other classes while it trains": (lambda m, h: h if m.training else m.out(h), "gives 16 logits"),
}


@pytest.mark.parametrize("case", NO_LOGITS)
def test_an_output_without_logits_is_refused_by_name(case):
    give, says = NO_LOGITS[case]
    said = refused(find_tickets(plan_of(lambda shape, n: Giving(n, give)), "cpu"), says)
    assert "Giving" in said or "lambda" in said


def test_the_first_table_that_fits_is_taken_and_a_name_goes_before_it():
    a, b = torch.zeros(3, 4), torch.ones(3, 4)
    assert logits_of((a, b), 3, 4) is a and logits_of({"x": a, "logits": b}, 3, 4) is b
    assert logits_of((torch.zeros(3, 9), b), 3, 4) is b


# --- how networks come ---


class OfShape(nn.Module):
    "A class that takes what a factory takes."

    def __init__(self, input_shape, n_classes, hidden=16):
        super().__init__()
        self.fc, self.out = nn.Linear(int(np.prod(input_shape)), hidden), nn.Linear(hidden, n_classes)

    def forward(self, x):
        return self.out(self.fc(x.flatten(1)).relu())


class OfFour(OfShape):
    def __init__(self):
        super().__init__((1, 8, 8), 4)


class ByKeyword(OfShape):
    def __init__(self, *, num_classes=1000, hidden=8):
        super().__init__((1, 8, 8), num_classes, hidden)


def with_hidden(hidden, input_shape, n_classes):
    return OfShape(input_shape, n_classes, hidden)


class Builder:
    def build(self, input_shape, n_classes):
        return OfShape(input_shape, n_classes, 6)

    def __call__(self, input_shape, n_classes):
        return self.build(input_shape, n_classes)


COMES = {
    "class": (OfShape, 16),
    "class that takes nothing": (OfFour, 16),
    "class with keywords": (ByKeyword, 8),
    "partial": (functools.partial(with_hidden, 5), 5),
    "partial of a class": (functools.partial(OfShape, hidden=7), 7),
    "partial with the classes": (functools.partial(OfShape, n_classes=99), 16),
    "bound method": (Builder().build, 6),
    "object that is called": (Builder(), 6),
}


@pytest.mark.parametrize("case", COMES)
def test_a_factory_may_be_whatever_can_be_called(case):
    factory, hidden = COMES[case]
    arm = arm_of(factory)
    assert tuple(arm.start.weights["fc.weight"].shape) == (hidden, 64)
    assert close(trained(arm), by_hand(arm, arm.network.build(0)))
    assert len(listen(find_tickets(plan_of(factory), "cpu"))[0]) == 2


def test_a_factory_that_cannot_be_called_or_fails_is_refused_by_name():
    refused(
        find_tickets(plan_of(functools.partial(with_hidden)), "cpu"),
        r"with_hidden takes \(hidden, input_shape",
    )
    refused(find_tickets(plan_of(lambda shape, n: {}["x"]), "cpu"), "fails when it makes a network")
    refused(find_tickets(plan_of(lambda shape, n: OfShape), "cpu"), "let the factory return an nn.Module")


def module_of(hidden=16, n=4, **how):
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden, **how), nn.ReLU(), nn.Linear(hidden, n, **how))


class Held(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4)

    def forward(self, x):
        return {"logits": self.out(self.norm(self.conv(x)).relu().mean((2, 3)))}


INSTANCES = {
    "sequential": module_of,
    "with batch norm": Held,
    "attention": lambda: Attending(),
    "in evaluation mode": lambda: module_of().eval(),
    "after a step": lambda: stepped(module_of()),
}


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.attend, self.out = (
            nn.Linear(8, 12),
            nn.MultiheadAttention(12, 2, batch_first=True),
            nn.Linear(12, 4),
        )

    def forward(self, x):
        h = self.first(x.squeeze(1))
        return self.out(self.attend(h, h, h, need_weights=False)[0].mean(1))


def stepped(net):
    net(torch.rand(3, 1, 8, 8)).sum().backward()
    return net


@pytest.mark.parametrize("case", INSTANCES)
def test_a_module_given_as_network_is_copied_and_its_weights_are_the_start(case):
    torch.manual_seed(1)
    module = INSTANCES[case]()
    weights = {n: p.detach().clone() for n, p in module.named_parameters()}
    plan = plan_of(module, seeds=2, controls=("reinit", "random mask"))
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()  # what happens to it later changes nothing
    tickets, events = listen(find_tickets(plan, "cpu"))
    for t in tickets:
        assert all(t.start("init").weights[n].equal(w) for n, w in weights.items())
    drawn = [fresh(tickets[0].network, seed, "reinit").weights for seed in (0, 1)]
    for n in tickets[0].mask:
        assert not drawn[0][n].equal(weights[n]) and not drawn[0][n].equal(drawn[1][n])
    assert type(tickets[0].model()) is type(module) and not any(p.any() for p in module.parameters())


def test_a_module_is_trained_as_plain_torch_trains_it():
    module = module_of()
    arm = arm_of(Network(module, TOY.shape, TOY.n_classes))
    take = module_of()
    assert close(trained(arm), by_hand(arm, take))


def alone(module):
    "A module in a process group of one."
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(module)


def inner_compiled(module):
    return nn.Sequential(torch.compile(module[:-1]), module[-1])


def compiled_in_place(module):
    module.compile()
    return module


WRAPPED = {
    "compiled": torch.compile,
    "compiled in place": compiled_in_place,
    "a compiled part": inner_compiled,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": alone,
    "compiled DataParallel": lambda module: torch.compile(nn.DataParallel(module)),
    "averaged": lambda module: AveragedModel(AveragedModel(module)),
    "in inference mode": torch.inference_mode()(deepcopy),
    "of tensors shared by processes": nn.Module.share_memory,
    "traced by FX": torch.fx.symbolic_trace,
}


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("way", ["given", "made"])
def test_of_a_wrapped_module_the_module_is_taken(how, way):
    module = WRAPPED[how](module_of())
    network = Network(module if way == "given" else lambda shape, n: module, TOY.shape, TOY.n_classes)
    plain, there = module_of(), network.build(0)
    if how == "a compiled part":
        plain = nn.Sequential(plain[:-1], plain[-1])
    assert list(there.state_dict()) == list(plain.state_dict())
    assert all(m._compiled_call_impl is None and not hasattr(m, "_orig_mod") for m in there.modules())
    arm = arm_of(network)
    assert way == "made" or close(trained(arm), by_hand(arm, plain))
    if dist.is_initialized():
        dist.destroy_process_group()


def quantised(module):
    return torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)


def masked_by_torch(module):
    prune.random_unstructured(module[-1], "weight", 0.5)
    return nn.Sequential(module, nn.Identity())


def with_buffer(module):
    module[-1].register_buffer("places", torch.arange(3, device="meta"))
    return module


def exported(module):
    return torch.export.export(module, (torch.rand(2, 1, 8, 8),))


CLOSED = {
    "scripted": (
        torch.jit.script,
        "is compiled to TorchScript, which hides its layers: give the module that",
    ),
    "traced": (lambda m: torch.jit.trace(m, torch.rand(2, 1, 8, 8)), "is compiled to TorchScript"),
    "frozen": (lambda m: torch.jit.freeze(torch.jit.script(m.eval())), "is compiled to TorchScript"),
    "a scripted part": (
        lambda m: nn.Sequential(torch.jit.script(m), nn.Identity()),
        "layer '0' of Sequential",
    ),
    "exported": (exported, "ExportedProgram is an exported graph, which has no layers: give the module that"),
    "module of an export": (lambda m: exported(m).module(), "is an exported graph"),
    "unflattened export": (lambda m: torch.export.unflatten(exported(m)), "is an exported graph"),
    "quantised": (quantised, "is quantised and has no weights to train: give the module as it was before"),
    "masked by torch": (
        masked_by_torch,
        "of Sequential is under a mask of torch.nn.utils.prune: call prune.rem",
    ),
    "a buffer without memory": (
        with_buffer,
        "places' of Sequential is without memory (device 'meta'): give it",
    ),
    "all without memory": (lambda m: m.to("meta"), "of Sequential is without memory"),
    "compiled around a quantised one": (lambda m: torch.compile(quantised(m)), "is quantised and has no"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("how", CLOSED)
def test_a_module_without_layers_or_weights_is_refused_by_its_reason(how):
    make, says = CLOSED[how]
    module = make(module_of())
    for network in (module, *[lambda shape, n: module] * (how != "exported")):
        with pytest.raises(LotteryError) as e:
            Network(network, TOY.shape, TOY.n_classes).build(0)
        assert says in str(e.value) and "\n" not in str(e.value) and e.value.place == "Network.name"


def remembering(module):
    module.register_forward_hook(remember)
    return module


def remember(module, x, y):
    module.last = y


HOLDS = {
    "what it gave": remembering,
    "a weight by an older hook": lambda m: nn.Sequential(m[:-1], nn.utils.weight_norm(m[-1])),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("how", HOLDS)
def test_a_module_that_holds_what_was_computed_is_copied(how):
    module = HOLDS[how](module_of())
    module(torch.rand(2, 1, 8, 8))
    there = Network(module, TOY.shape, TOY.n_classes).build(0)
    batch = torch.rand(2, 1, 8, 8)
    assert there(batch).equal(module(batch))


@pytest.mark.parametrize(
    "given, says",
    [(3, "int"), (module_of().state_dict(), "OrderedDict"), (None, "NoneType"), ([module_of()], "list")],
)
def test_what_is_no_network_is_refused_in_a_short_sentence(given, says):
    with pytest.raises(LotteryError) as e:
        Network(given, TOY.shape, TOY.n_classes)
    assert (
        f"the network is {says}: give a name, a factory or a module" in str(e.value)
        and len(str(e.value)) < 140
    )
    assert ("Network(…, weights=…)" in str(e.value)) == (says == "OrderedDict")


@pytest.mark.gpu
def test_a_module_on_another_device_is_taken_from_there():
    module = module_of()
    network = Network(deepcopy(module).to("cuda"), TOY.shape, TOY.n_classes)
    made = Network(lambda shape, n: deepcopy(module).to("cuda"), TOY.shape, TOY.n_classes)
    for there in (network.build(0), made.build(0)):
        assert all(p.device == CPU and p.equal(module.get_parameter(n)) for n, p in there.named_parameters())


def test_a_module_that_cannot_draw_is_refused_where_a_draw_is_wanted_and_works_where_it_is_not():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Parameter(torch.randn(64, 8)), nn.Linear(8, 4)
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return self.out(self.fc(x.flatten(1) @ self.table).relu())

    refused(
        find_tickets(plan_of(Bare(), controls=("reinit",)), "cpu"), "no reset_parameters to draw them anew"
    )
    assert len(listen(find_tickets(plan_of(Bare(), controls=("shuffled",), seeds=2), "cpu"))[0]) == 4
    normed = nn.Sequential(
        nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 8)), nn.ReLU(), nn.Linear(8, 4)
    )
    refused(find_tickets(plan_of(normed, controls=("reinit",)), "cpu"), "no reset_parameters")

    class Fixed(nn.Linear):
        def reset_parameters(self):
            nn.init.constant_(self.bias, 0)
            with torch.no_grad():
                self.weight.copy_(torch.linspace(-1, 1, self.weight.numel()).view_as(self.weight))

    still = nn.Sequential(nn.Flatten(), Fixed(64, 8), nn.ReLU(), nn.Linear(8, 4))
    refused(
        find_tickets(plan_of(still, controls=("random mask",)), "cpu"),
        "'1.weight' of Sequential is the same under every seed",
    )


def test_a_module_for_other_classes_is_refused_in_a_search_and_gets_a_head_in_a_transfer():
    refused(find_tickets(plan_of(module_of(n=7)), "cpu"), "gives 7 logits")
    refused(
        find_tickets(plan_of(module_of(), on=pictures(size=10)), "cpu"), "does not pass through Sequential"
    )
    tickets, _ = listen(find_tickets(plan_of(module_of()), "cpu"))
    there = pictures(classes=3, name="three", seed=5)
    plan = TransferPlan(tickets[-1], there, start=("rewind", "fresh"), controls=("shuffled", "random mask"))
    results, _ = listen(transfer(plan, "cpu"))
    body = tickets[-1].start().weights["1.weight"]
    begun = {r.arm.tags["role"]: r.arm.start.weights for r in results}
    assert begun["ticket"]["1.weight"].equal(body) and not begun["reinit"]["1.weight"].equal(body)
    assert all(tuple(w["3.weight"].shape) == (3, 16) for w in begun.values())


# --- a control that is none ---


PRE = OfShape((1, 8, 8), 4).state_dict()


def loads(shape, n):
    net = OfShape(shape, n)
    net.load_state_dict(PRE)
    return net


def loads_its_body(shape, n):
    net = OfShape(shape, n)
    net.fc.load_state_dict({"weight": PRE["fc.weight"], "bias": PRE["fc.bias"]})
    return net


def seeds_itself(shape, n):
    torch.manual_seed(0)
    return OfShape(shape, n)


def own_generator(shape, n):
    net, g = OfShape(shape, n), torch.Generator().manual_seed(4)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g) * 0.1
    return net


def from_numpy(draw):
    def made(shape, n):
        net = OfShape(shape, n)
        for p in net.parameters():
            p.data = torch.tensor(draw(tuple(p.shape)), dtype=torch.float32) * 0.1
        return net

    return made


def numpy_seeded(shape):
    np.random.seed(0)
    return np.random.randn(*shape)


def by_random(shape):
    return np.reshape([random.gauss(0, 1) for _ in range(int(np.prod(shape)))], shape)


def uninitialised(shape, n):
    net = OfShape(shape, n)
    net.fc.weight.data.fill_(float("nan"))
    return net


SAME = {
    "loads": (loads, "loads weights"),
    "loads its body": (loads_its_body, "'fc.weight' of loads_its_body is the same under every seed"),
    "seeds itself": (seeds_itself, "seeds torch itself"),
    "own generator": (own_generator, "the same under every seed"),
    "numpy, seeded": (from_numpy(numpy_seeded), "draws by numpy"),
    "numpy, own generator": (
        from_numpy(lambda s: np.random.default_rng(0).normal(size=s)),
        "the same under every seed",
    ),
}
WILD = {
    "numpy": (from_numpy(lambda s: np.random.randn(*s)), "draws by numpy"),
    "random": (from_numpy(by_random), "draws by Python's random"),
    "numpy, a generator without seed": (
        from_numpy(lambda s: np.random.default_rng().normal(size=s)),
        "without a seed",
    ),
    "the operating system": (
        from_numpy(lambda s: random.SystemRandom().random() * np.ones(s)),
        "without a seed",
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_a_factory_that_draws_the_same_under_every_seed_is_refused_where_a_draw_is_wanted(case):
    factory, says = SAME[case]
    for fields in (dict(seeds=2), dict(controls=("reinit",)), dict(controls=("shuffled", "random mask"))):
        said = refused(find_tickets(plan_of(factory, **fields), "cpu"), says, "Network.name")
        wanted = [repr(c) for c in fields.get("controls", ()) if c != "shuffled"] or ["seeds"]
        assert all(w in said for w in wanted) and "'shuffled'" not in said
    assert len(listen(find_tickets(plan_of(factory, controls=("shuffled",)), "cpu"))[0]) == 2


@pytest.mark.parametrize("case", WILD)
def test_a_factory_that_draws_otherwise_each_time_is_always_refused(case):
    factory, says = WILD[case]
    refused(
        find_tickets(plan_of(factory), "cpu"),
        "another one at each draw from the same seed.*" + says,
        "Network.name",
    )


def test_weights_that_are_nothing_yet_are_refused():
    refused(find_tickets(plan_of(uninitialised), "cpu"), "begins with NaN or infinity")


def eye(shape, n):
    net = OfShape(shape, n)
    nn.init.eye_(net.fc.weight)
    nn.init.zeros_(net.out.weight)
    return net


@pytest.mark.parametrize("factory", [eye, OfShape, ByKeyword])
def test_a_network_that_draws_by_torch_is_let_through(factory):
    plan = plan_of(factory, seeds=2, controls=("reinit", "random mask"))
    assert len(listen(find_tickets(plan, "cpu"))[0]) == 4


HELD = OfShape((1, 8, 8), 4)
HELD_WEIGHT = torch.randn(16, 64)


def same_module(shape, n):
    return HELD


def same_layer(shape, n):
    net = OfShape(shape, n)
    net.fc = HELD.fc
    return net


def same_tensor(shape, n):
    net = OfShape(shape, n)
    net.fc.weight.data = HELD_WEIGHT
    return net


@pytest.mark.parametrize("factory", [same_module, same_layer, same_tensor])
def test_what_a_factory_holds_is_never_trained(factory):
    before = {n: p.detach().clone() for n, p in HELD.named_parameters()}, HELD_WEIGHT.clone()
    arm = arm_of(factory)
    want = by_hand(arm, arm.network.build(0))
    assert close(trained(arm), want)
    tickets, _ = listen(find_tickets(plan_of(factory, controls=("shuffled",)), "cpu"))
    assert tickets[-1].start("init").weights["fc.weight"].equal(arm.start.weights["fc.weight"])
    assert all(p.equal(before[0][n]) for n, p in HELD.named_parameters()) and HELD_WEIGHT.equal(before[1])
    refused(find_tickets(plan_of(factory, controls=("reinit",)), "cpu"), "the same under every seed")


def test_the_generators_of_others_stand_where_they_stood_and_torch_too():
    torch.manual_seed(11)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    listen(find_tickets(plan_of(OfShape, seeds=2, controls=("reinit",), schedule=one_shot(0.5)), "cpu"))
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert torch.equal(before[0], after[0]) and (before[1] == after[1]).all() and before[2] == after[2]


@pytest.fixture
def own_control():
    names = []

    def add(name, make, **how):
        names.append(name)
        return control(name, **how)(make)

    yield add
    for name in names:
        CONTROLS.pop(name, None)


def seeded_draw(b):
    return replace(b, start=fresh(b.network, 7, "mine"))


def wild_draw(b):
    return replace(b, start=fresh(b.network, random.SystemRandom().randrange(10**9)))


def fixed_mask(b):
    return replace(b, mask=b.mask.shuffle(5))


NONE = {
    "keeps what it says it draws": (
        lambda b: b,
        dict(weights="drawn", mask="kept"),
        "is the same as the ticket's",
    ),
    "keeps the mask that it says it draws": (
        lambda b: b,
        dict(weights="kept", mask="drawn"),
        "draws its mask, which is the same as",
    ),
    "draws weights by one seed": (
        seeded_draw,
        dict(weights="drawn", mask="kept"),
        "the same under every seed",
    ),
    "draws masks by one seed": (fixed_mask, dict(weights="kept", mask="drawn"), "the same under every seed"),
    "draws otherwise each time": (
        wild_draw,
        dict(weights="drawn", mask="kept"),
        "is another one at each call",
    ),
    "fails": (lambda b: b.nothing, dict(weights="kept", mask="kept"), "fails .* 'nothing'"),
    "gives no beginning": (
        lambda b: b.mask,
        dict(weights="kept", mask="kept"),
        "gives Mask: let it return a Beginning",
    ),
}


@pytest.mark.parametrize("network", ["lenet-300-100", OfShape])
@pytest.mark.parametrize("case", NONE)
def test_a_control_that_is_none_is_refused_before_training(case, network, own_control):
    make, how, says = NONE[case]
    own_control("mine", make, **how)
    width = {"width": 0.1} if isinstance(network, str) else {}
    said = refused(find_tickets(plan_of(network, controls=("mine",), **width), "cpu"), says)
    assert said.startswith("control 'mine'")


def test_a_control_that_is_none_is_refused_in_a_transfer(own_control):
    own_control("mine", seeded_draw, weights="drawn", mask="kept")
    tickets, _ = listen(find_tickets(plan_of("lenet-300-100", width=0.1), "cpu"))
    plan = TransferPlan(tickets[-1], "digits[5-9]@200", controls=("mine",), start="rewind")
    refused(transfer(plan, "cpu"), "the same under every seed", "TransferPlan.controls")


def test_a_fresh_start_of_a_loaded_network_is_refused_in_a_transfer():
    tickets, _ = listen(find_tickets(plan_of(loads), "cpu"))
    there = pictures(name="there", seed=3)
    refused(
        transfer(TransferPlan(tickets[-1], there, start=("rewind", "fresh"), controls=()), "cpu"),
        "'fresh' would be no fresh draw",
    )
    refused(
        transfer(TransferPlan(tickets[-1], there, start="rewind", controls=("random mask",)), "cpu"),
        "'random mask' would be",
    )
    assert listen(transfer(TransferPlan(tickets[-1], there, start="rewind", controls=("dense",)), "cpu"))[0]


# --- what can be refused is refused before the dense training ---


class Normed(nn.Module):
    def __init__(self, n_classes, norm):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 4, 3), norm, nn.Linear(4, n_classes)

    def forward(self, x):
        return self.out(self.norm(self.conv(x).mean((2, 3), keepdim=True)).flatten(1))


NORMS = {
    "2d": lambda s, n: Normed(n, nn.BatchNorm2d(4)),
    "without weights": lambda s, n: Normed(n, nn.BatchNorm2d(4, affine=False)),
    "1d": lambda s, n: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, n)
    ),
    "lazy": lambda s, n: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Linear(8, n)
    ),
    "vgg-19": "vgg-19",
}


@pytest.mark.parametrize("case", NORMS)
def test_batch_norm_in_a_batch_of_one_is_refused(case):
    width = {"width": 0.05} if case == "vgg-19" else {}
    plan = plan_of(NORMS[case], recipe=replace(RECIPE, batch_size=1), **width)
    refused(
        find_tickets(plan, "cpu"), "has no statistics of 1 example: use a larger batch", "Recipe.batch_size"
    )


@pytest.mark.parametrize("case", ["2d", "1d", "lazy"])
def test_scores_leave_out_a_last_batch_of_one(case):
    there = pictures(n=61 + 6)
    n = len(there.train.y)
    recipe = replace(RECIPE, batch_size=n - 1)
    plan = plan_of(NORMS[case], on=there, recipe=recipe, criterion="snip", schedule=one_shot(0.5))
    (ticket,) = listen(find_tickets(plan, "cpu"))[0]
    assert ticket.density == pytest.approx(0.5, abs=0.01)


def test_statistics_are_measured_anew_without_a_last_batch_of_one():
    net, there = Network(NORMS["1d"], TOY.shape, 4), TOY
    arm = arm_of(
        net, frozen=frozenset(n for n in fresh(net, 0).weights if not n.startswith("4")), norm="recalibrated"
    )
    many = replace(there, spec=there.spec)
    long = 250 * 250 + 1  # in 251 parts the last is of one
    split = replace(many.train, x=many.train.x[:1].repeat(long, 1, 1, 1), y=many.train.y[:1].repeat(long))

    class Long:
        train, n_classes, shape = split, 4, TOY.shape

        def inputs(self, *args):
            return TOY.inputs(*args)

    got = recalibrated(replace(arm, domain=Long()), CPU).buffers
    assert got["2.running_mean"].isfinite().all() and got["2.num_batches_tracked"] == 250


class Odd(OfShape):
    def __init__(self, shape, n, dtype, trained=True):
        super().__init__(shape, n)
        value = torch.ones(16, 16).to(dtype)
        self.odd = nn.Parameter(
            value, requires_grad=trained and (value.is_floating_point() or value.is_complex())
        )

    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.int64, torch.int8, torch.bool])
def test_weights_of_another_kind_are_refused(dtype):
    said = refused(
        find_tickets(plan_of(lambda s, n: Odd(s, n, dtype)), "cpu"), "weight 'odd' of Odd is", "Network.name"
    )
    assert str(dtype).removeprefix("torch.") in said


def test_weights_without_memory_and_sparse_ones_are_refused():
    def made(change):
        def factory(shape, n):
            return change(OfShape(shape, n))

        return factory

    def sparse(net):
        net.more = nn.Parameter(torch.eye(4).to_sparse())
        return net

    refused(find_tickets(plan_of(made(lambda net: net.to("meta"))), "cpu"), "is without memory")
    refused(find_tickets(plan_of(made(sparse)), "cpu"), "weight 'more' of OfShape is sparse_coo")


class Phases(OfShape):
    "A complex buffer, as rotary positions have."

    def __init__(self, shape, n):
        super().__init__(shape, n)
        self.register_buffer("phases", torch.polar(torch.ones(16), torch.arange(16.0)))

    def forward(self, x):
        return self.out((self.fc(x.flatten(1)) * self.phases).imag)


def test_a_complex_buffer_stays_complex():
    arm = arm_of(Phases)
    assert close(trained(arm), by_hand(arm, arm.network.build(0)))


TYPES = {"half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("criterion", ["magnitude", "snip", "grasp", "synflow"])
def test_a_network_of_another_precision_is_trained_and_scored_in_the_recipes(kind, criterion):
    def odd(shape, n):
        return OfShape(shape, n).to(TYPES[kind])

    def rounded(shape, n):
        return OfShape(shape, n).to(TYPES[kind]).float()

    arm = arm_of(odd)
    assert arm.start.weights["fc.weight"].dtype == torch.float32
    assert close(trained(arm), by_hand(arm, arm.network.build(0)))
    masks = [
        listen(find_tickets(plan_of(f, criterion=criterion, schedule=one_shot(0.3)), "cpu"))[0][
            0
        ].mask.fingerprint
        for f in (odd, rounded)
    ]
    assert masks[0] == masks[1]


@pytest.mark.parametrize("network", ["lenet-300-100", "conv-2", OfShape])
def test_the_default_type_of_torch_changes_nothing(network):
    width = {"width": 0.1} if isinstance(network, str) else {}
    plan = plan_of(network, criterion="snip", controls=("reinit", "random mask"), seeds=2, **width)
    want = [
        t.content if isinstance(network, str) else t.mask.fingerprint
        for t in listen(find_tickets(plan, "cpu"))[0]
    ]
    torch.set_default_dtype(torch.float64)
    try:
        got = [
            t.content if isinstance(network, str) else t.mask.fingerprint
            for t in listen(find_tickets(plan, "cpu"))[0]
        ]
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert got == want


class Complex(OfShape):
    "Complex numbers have no 16-bit form of this kind."

    def forward(self, x):
        h = self.fc(x.flatten(1))
        return self.out(torch.complex(h, h).abs())


class Scattered(OfShape):
    "Single precision of its own."

    def forward(self, x):
        h = self.fc(x.flatten(1))
        return self.out(torch.zeros(len(h), 16).index_add(0, torch.arange(len(h)), h))


class Placing(OfShape):
    "Writes into a tensor of single precision."

    def forward(self, x):
        h, held = self.fc(x.flatten(1)), torch.zeros(len(x), 16)
        held[torch.arange(len(h))] = h
        return self.out(held)


class Bits(OfShape):
    "Looks at the bits of its numbers."

    def forward(self, x):
        h = self.fc(x.flatten(1))
        return self.out(h * (1 + (h.detach().view(torch.int32) >> 31)))


@pytest.mark.parametrize("net", [Complex, Scattered, Placing, Bits])
def test_a_network_that_does_not_run_in_16_bits_is_refused_and_runs_in_32(net):
    plan = plan_of(net, recipe=replace(RECIPE, precision="bf16"))
    refused(find_tickets(plan, "cpu"), "does not run in bf16 .*: use precision='fp32'", "Recipe.precision")
    assert listen(find_tickets(replace(plan, recipe=RECIPE), "cpu"))[0]


class OnlySingle(OfShape):
    def forward(self, x):
        return super().forward(x) + torch.mm(x.flatten(1), torch.ones(64, 1))


def test_a_network_that_does_not_run_in_double_is_refused_there():
    plan = plan_of(OnlySingle, recipe=replace(RECIPE, precision="fp64"))
    refused(find_tickets(plan, "cpu"), "does not run in fp64", "Recipe.precision")


class Squeezed(OfShape):
    "Gives no table for one example."

    def forward(self, x):
        return super().forward(x).unsqueeze(-1).squeeze()


class Carrying(OfShape):
    "Keeps a graph from one step to the next."

    carried = None

    def forward(self, x):
        h = self.fc(x.flatten(1)).relu()
        if self.training and torch.is_grad_enabled():
            h = h + (0 if self.carried is None else self.carried)
            self.carried = h.mean(0)
        return self.out(h)


class Cut(OfShape):
    def forward(self, x):
        return super().forward(x).detach()


class Pairs(OfShape):
    def forward(self, x):
        return super().forward(x).unflatten(0, (-1, 2)).flatten(0, 1)


class Endless(OfShape):
    "Gives what is no number, whatever its weights."

    def forward(self, x):
        return super().forward(x) * float("inf")


class Off(OfShape):
    "Turns gradients off for the whole process."

    def forward(self, x):
        torch.set_grad_enabled(False)
        return super().forward(x)


FAILS = {
    "one example at the end of the test data": (lambda s, n: Squeezed(s, n), dict(on=pictures(n=60)), None),
    "a graph from one step to the next": (Carrying, {}, "second time|inplace|backward"),
    "no gradient": (Cut, {}, "does not require grad"),
    "another batch": (Pairs, dict(recipe=replace(RECIPE, batch_size=19)), "unflatten|multiply"),
    "no numbers from the first": (Endless, {}, "its loss is nan before the first step"),
    "gradients turned off": (Off, {}, "does not require grad"),
}


@pytest.mark.parametrize("case", list(FAILS)[1:])
def test_a_network_that_cannot_take_a_step_is_refused(case):
    factory, fields, says = FAILS[case]
    said = refused(find_tickets(plan_of(factory, **fields), "cpu"), says, "Network.name")
    assert "cannot be trained on toy" in said and torch.is_grad_enabled()


def test_a_network_that_fails_on_a_last_batch_of_one_is_refused():
    one = from_arrays(
        TOY.train.x.numpy(),
        TOY.train.y.numpy(),
        test=(TOY.train.x[:1].numpy(), TOY.train.y[:1].numpy()),
        name="one",
    )
    refused(find_tickets(plan_of(Squeezed, on=one), "cpu"), r"gives \(4,\) for 1 examples")
    assert listen(find_tickets(plan_of(Squeezed), "cpu"))[0]


CRITERIA_THAT_FAIL = {
    "another shape": (
        lambda s: {n: w.flatten() for n, w in s.weights.items()},
        r"the scores of 'fc.weight' are \[1024\]",
    ),
    "transposed": (lambda s: {n: w.T for n, w in s.weights.items()}, "its weights are"),
    "no scores": (lambda s: {}, "are missing"),
    "no mapping": (lambda s: [w.abs() for w in s.weights.values()], "it gives list"),
    "nothing": (lambda s: None, "it gives NoneType"),
    "arrays": (lambda s: {n: w.numpy() for n, w in s.weights.items()}, "are ndarray"),
    "crashes": (lambda s: {n: s.weights[n] / s.nothing for n in s.mask}, "has no attribute 'nothing'"),
    "divides by nothing": (lambda s: {n: w * 0 / 0 for n, w in s.weights.items()}, "have a NaN"),
    "complex": (lambda s: {n: torch.complex(w, w) for n, w in s.weights.items()}, "."),
}


@pytest.mark.parametrize("network", ["lenet-300-100", OfShape])
@pytest.mark.parametrize("case", CRITERIA_THAT_FAIL)
def test_a_criterion_that_fails_is_refused_before_training(case, network):
    criterion, says = CRITERIA_THAT_FAIL[case]
    width = {"width": 0.1} if isinstance(network, str) else {}
    says = says.replace("fc.weight", "fc1.weight").replace("1024", "1920") if width else says
    refused(find_tickets(plan_of(network, criterion=criterion, **width), "cpu"), says, "FindPlan.criterion")


def test_a_criterion_that_looks_at_the_way_weights_went_is_let_through():
    def way(s):
        return {n: (w - s.start[n]).abs() / (w - s.start[n]).abs() for n, w in s.weights.items()}

    seen = [
        type(e).__name__
        for e, _ in zip(find_tickets(plan_of(OfShape, criterion=way), "cpu"), range(3), strict=False)
    ]
    assert "ArmStarted" in seen


def raises(mask, names, density):
    return {}["nothing"]


SCOPES_THAT_FAIL = {
    "no number": (
        lambda mask, names, density: [((n,), mask[n].numel() * 1.5) for n in names],
        "does not give",
    ),
    "no groups": (lambda mask, names, density: 5, "'int' object is not iterable"),
    "nothing": (lambda mask, names, density: None, "does not give groups"),
    "a part": (
        lambda mask, names, density: [],
        "the scope groups nothing to keep nothing: put each of fc.weight",
    ),
    "others": (lambda mask, names, density: [(("bogus",), 3)], "the scope groups bogus to keep 3"),
    "twice": (lambda mask, names, density: [(names, 3), (names, 3)], "groups fc.weight, fc.weight"),
    "less than none": (lambda mask, names, density: [(names, -1)], "with a count of at least 0"),
    "crashes": (raises, "the scope fails, or does not give groups (KeyError: 'nothing')"),
}


@pytest.mark.parametrize("case", SCOPES_THAT_FAIL)
def test_a_scope_that_fails_is_refused_before_training(case):
    scope, says = SCOPES_THAT_FAIL[case]
    refused(find_tickets(plan_of(OfShape, scope=scope), "cpu"), re.escape(says), "FindPlan.scope")


NO_NAMES = {
    "none": ((), "include names nothing: name parameters that are trained"),
    "the head": (
        ("out.weight", "out.bias"),
        "include names 'out.bias', which belongs to the head: give the head a",
    ),
}


@pytest.mark.parametrize("case", NO_NAMES)
def test_names_that_leave_nothing_to_prune_are_refused(case):
    names, says = NO_NAMES[case]
    refused(find_tickets(plan_of(OfShape, prunable=names), "cpu"), says, "FindPlan.prunable")


class Drawing(nn.Module):
    "Draws in its forward pass."

    def __init__(self, draw, n=4):
        super().__init__()
        self.fc, self.out, self.draw = nn.Linear(64, 16), nn.Linear(16, n), draw

    def forward(self, x):
        return self.out(self.fc(x.flatten(1)).relu() * self.draw())


DRAWS = {
    "numpy": (lambda: float(np.random.rand()), "it draws by numpy in its forward pass"),
    "numpy's normal": (lambda: float(np.random.standard_normal()), "it draws by numpy in its forward pass"),
    "random": (random.random, "it draws by Python's random in its forward pass"),
    "a choice": (lambda: random.choice((0.5, 2.0)), "it draws by Python's random in its forward pass"),
}


@pytest.mark.parametrize("case", DRAWS)
def test_a_forward_pass_that_draws_outside_of_torch_is_refused(case):
    draw, says = DRAWS[case]
    refused(find_tickets(plan_of(lambda shape, n: Drawing(draw)), "cpu"), says, "Network.name")


def test_a_forward_pass_that_draws_by_torch_repeats():
    def masks():
        tickets, _ = listen(find_tickets(plan_of(lambda shape, n: Drawing(lambda: torch.rand(1))), "cpu"))
        return [t.mask["fc.weight"] for t in tickets]

    assert all(a.equal(b) for a, b in zip(masks(), masks(), strict=True))


def narrows(shape, n, width=1.0):
    if width < 0.5:
        raise ValueError("no layer left")
    return OfShape(shape, n, int(16 * width))


def ignores(shape, n, width=1.0):
    return OfShape(shape, n)


NO_SMALL = {
    "no width": (OfShape, "takes no width"),
    "a width that fails": (narrows, "no layer left"),
    "a width that changes nothing": (ignores, "as large at every width"),
    "a module": (module_of, "takes no width"),
}


@pytest.mark.parametrize("case", NO_SMALL)
def test_small_dense_is_refused_where_a_network_cannot_be_small(case):
    factory, says = NO_SMALL[case]
    given = factory() if case == "a module" else factory
    fields = dict(controls=("small dense",))
    if case == "a width that fails":
        fields["schedule"] = one_shot(1 / 1024)
    said = refused(find_tickets(plan_of(given, **fields), "cpu"), says)
    assert said.startswith("control 'small dense'")


# --- no memory, no weights ---


SIZES = {
    "lenet-300-100": {"width": 1e6},
    "conv-6": {"width": 1e5},
    "resnet-18": {"width": 1e300},
    "vgg-19": {"width": 1e4},
    "a factory with a width": {
        "network": lambda s, n, width=1.0: OfShape(s, n, int(1e6 * width)),
        "width": 1e5,
    },
}


@pytest.mark.parametrize("case", SIZES)
def test_a_network_that_no_memory_holds_is_refused_before_it_is_made(case):
    fields = {"network": case, **SIZES[case]}
    said = refused(
        find_tickets(plan_of(fields.pop("network"), **fields), "cpu"),
        re.escape(f"width={fields['width']:g}"),
        "Network.width",
    )
    assert "GB" in said or "more weights than can be counted" in said


def test_a_network_that_fits_alone_and_not_in_training_is_refused(monkeypatch):
    from lottery_nb.models import network as models_network

    whole = Network("lenet-300-100", (1, 8, 8), 4, 2000.0).parameters_count
    monkeypatch.setattr(models_network, "free_memory", lambda device: 4 * whole + 1)
    refused(find_tickets(plan_of("lenet-300-100", width=2000.0), "cpu"), "GB in training", "Network.width")


@pytest.mark.parametrize("density", [1e-9, 1e-300, 1e-4])
def test_a_density_that_keeps_no_weight_is_refused(density):
    for schedule in (one_shot(density), geometric(0.99, 3), linear(density, 3)):
        if schedule.densities[-1] * 1088 < 0.5:
            refused(
                find_tickets(plan_of(OfShape, schedule=schedule), "cpu"),
                "keeps none of 1,024 weights",
                "FindPlan.schedule",
            )


def test_figures_of_tiny_densities_have_room_for_their_ticks():
    assert str(one_shot(1e-9)).endswith("to 1e-07 % density") and str(one_shot(0.2)).endswith(
        "to 20.000% density"
    )
    for density in (1e-6, 1e-9, 1e-12, 1e-300):
        axis = density_axis(pd.Series([1.0, 0.5, density]))
        low, ticks = math.log10(density), axis["tickvals"]
        assert 3 <= len(ticks) <= 20 and min(ticks) >= density * 0.9 and axis["range"][1] < low
        if density < 1e-6:
            gaps = {round(math.log10(a) - math.log10(b)) for a, b in itertools.pairwise(ticks)}
            assert len(ticks) <= 8 and len(gaps) == 1


def test_a_transfer_that_cannot_be_trained_is_refused_before_its_first_event():
    tickets, _ = listen(find_tickets(plan_of(NORMS["1d"], schedule=one_shot(0.5)), "cpu"))
    there = pictures(name="there", seed=2)
    one = replace(RECIPE, batch_size=1, epochs=1)
    plan = TransferPlan(tickets, there, start="rewind", controls=(), recipe=one)
    with pytest.raises(LotteryError, match="has no statistics of 1 example"):
        next(transfer(plan, "cpu"))
    still = TransferPlan(tickets, there, start="rewind", controls=(), recipe=one, body="frozen")
    (result,), _ = listen(transfer(still, "cpu"))
    assert not result.failed  # its batch norm keeps its statistics


def holding(thing):
    "A factory that holds what no file takes."
    return lambda shape, n: Cnn(n, lambda x: x.flatten(1)) if thing else None


def test_a_refused_plan_leaves_no_run_behind(tmp_path):
    for network, says in (
        (holding(i for i in range(3)), "cannot be written to a file"),
        (loads, "no fresh draw"),
        (Cut, "does not require grad"),
    ):
        with pytest.raises(LotteryError, match=says):
            run(plan_of(network, controls=("reinit",)), tmp_path / "run", "cpu", show=False)
        assert not list(tmp_path.rglob("*.json*"))  # neither a plan nor a log


def half_drawn(b):
    drawn = fresh(b.network, b.seed, "half").weights
    return replace(b, start=replace(b.start, weights={**b.start.weights, "fc2.weight": drawn["fc2.weight"]}))


def test_a_control_that_draws_a_part_of_the_weights_is_one(own_control):
    own_control("mine", half_drawn, weights="drawn", mask="kept")
    plan = plan_of("lenet-300-100", controls=("mine",), width=0.1, seeds=2)
    assert len(listen(find_tickets(plan, "cpu"))[0]) == 4
