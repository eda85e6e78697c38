"""What is no lesson of 02_models: agreement with torchvision, any picture shape, odd networks of a user's, and that looking at a network changes nothing."""

import copy
import json
import pickle

import pytest
import torch
import torchvision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from lottery_nb.core import canonical, from_plain, LotteryError
from lottery_nb.models.zoo import HEADS, MLPHead, NETWORKS, scaled
from lottery_nb.models.network import (
    head_of,
    head_parameters,
    Network,
    prunable,
    replace_head,
    run_once,
    small_network,
    summary,
)

ALL = sorted(NETWORKS)
PICTURES = [name for name in ALL if name != "text-cnn"]
BODIES = [name for name in ALL if name != "logistic-regression"]  # which is a head alone


def small(name, **changes):
    "A narrow network of that kind on small pictures, or on short texts."
    network = (
        Network(name, (3, 12, 12), 4, width=0.1)
        if name in PICTURES
        else Network(name, (12,), 4, width=0.1, vocabulary=60)
    )
    return network.with_(**changes)


def batch(name, n=2):
    "What `small(name)` reads."
    return torch.rand(n, 3, 12, 12) if name in PICTURES else torch.randint(60, (n, 12))


def same(model, other):
    a, b = model.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def randomise(model):
    "Biases, scales of both signs and statistics that tell every layer from every other."
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.ndim == 1:
                draw = torch.rand(value.shape, generator=generator)
                value.copy_(
                    draw + 0.5
                    if name.endswith("running_var")
                    else 4 * draw - 2
                    if name.endswith("weight")
                    else draw / 10
                )
    return model.eval()


# --- the published networks ---


def transplant(source, target):
    "Load by position: the same tensors in the same order."
    values, keys = list(source.state_dict().values()), list(target.state_dict())
    assert [v.shape for v in values] == [target.state_dict()[k].shape for k in keys]
    target.load_state_dict(dict(zip(keys, values, strict=True)))
    return target.eval()


def test_resnet18_computes_what_torchvisions_does_behind_a_cifar_stem():
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = randomise(Network("resnet-18", (3, 32, 32), 10).build(0))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(transplant(ours, theirs)(x), ours(x), rtol=1e-4, atol=1e-4)


def test_vgg19_computes_what_torchvisions_features_do():
    theirs = nn.Sequential(
        torchvision.models.vgg19_bn(init_weights=False).features,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    ours = randomise(Network("vgg-19", (3, 32, 32), 10).build(0))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(transplant(ours, theirs)(x), ours(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name, shape, count",
    [
        ("lenet-300-100", (1, 28, 28), 266_610),
        ("conv-2", (3, 32, 32), 4_301_642),
        ("conv-4", (3, 32, 32), 2_425_930),
        ("conv-6", (3, 32, 32), 2_262_602),
        ("resnet-20", (3, 32, 32), 272_474),
        ("resnet-18", (3, 32, 32), 11_173_962),
        ("vgg-19", (3, 32, 32), 20_040_522),
    ],
)
def test_parameter_counts(name, shape, count):
    assert Network(name, shape, 10).parameters_count == count


@pytest.mark.parametrize("name", PICTURES)
def test_initial_weights_have_the_stated_spread(name):
    for key, w in Network(name, (3, 32, 32), 10).build(3).named_parameters():
        if key.endswith("bias"):
            assert not w.any(), key
        elif w.ndim == 1:
            assert (w == 1).all(), key
        elif w.numel() > 4000:
            fan_in, fan_out = w[0].numel(), w.numel() // w.shape[1]
            spread = (2 / fan_in if name.startswith(("resnet", "vgg")) else 2 / (fan_in + fan_out)) ** 0.5
            assert w.std().item() == pytest.approx(spread, rel=0.05), key
            assert abs(w.mean().item()) < 5 * spread / w.numel() ** 0.5, key


# --- plain modules ---


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ALL)
def test_copies_pickles_and_loads(name, head):
    network = small(name, head=head)
    model, other = network.build(0), network.build(1)
    assert not same(model, other)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), network.build(0)):
        assert same(model, twin) and twin is not model
    other.load_state_dict(model.state_dict())
    assert same(model, other)
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert set(model.state_dict()) == {n for n, _ in model.named_parameters()} | {
        n for n, _ in model.named_buffers()
    }


@pytest.mark.parametrize("name", ["lenet-300-100", "resnet-20", "text-cnn"])
def test_compiles_as_one_graph(name):
    model, x = small(name).build(0).eval(), batch(name)
    assert torch.allclose(torch.compile(model, backend="eager", fullgraph=True)(x), model(x), atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_exports_and_runs_channels_last(name):
    model, x = small(name).build(0).eval(), batch(name)
    with torch.no_grad():
        wanted = model(x)
        assert torch.allclose(torch.export.export(model, (x,)).module()(x), wanted, atol=1e-6)
        if name in PICTURES:
            assert torch.allclose(
                copy.deepcopy(model).to(memory_format=torch.channels_last)(
                    x.to(memory_format=torch.channels_last)
                ),
                wanted,
                atol=1e-5,
            )


@pytest.mark.parametrize("name", ALL)
def test_every_weight_gets_a_gradient(name):
    model = Network(name, (3, 32, 32), 4, width=0.1).build(0) if name in PICTURES else small(name).build(0)
    model(torch.rand(8, 3, 32, 32) if name in PICTURES else batch(name, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([name for name in PICTURES if name in BODIES]),
    st.tuples(st.integers(1, 4), st.integers(8, 33), st.integers(8, 33)),
    st.integers(2, 12),
    st.floats(0.005, 0.1),
    st.sampled_from(HEADS),
)
def test_adapts_to_any_picture(name, shape, n_classes, width, head):
    network = Network(name, shape, n_classes, width, head)
    model = network.build(0)
    logits = model(torch.rand(3, *shape))
    assert logits.shape == (3, n_classes) and logits.isfinite().all()
    assert sum(p.numel() for p in model.parameters()) == network.parameters_count
    assert head_of(model, shape, n_classes) == "head"
    assert not any(n.startswith("head") for n in prunable(model, shape))


# --- building ---


def test_building_leaves_the_global_random_state_and_ignores_it():
    first = small("resnet-20").build(5)
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    assert same(first, small("resnet-20").build(5))
    assert small("resnet-20").parameters_count == sum(p.numel() for p in first.parameters())
    replace_head(first, (3, 12, 12), 7, seed=2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", BODIES)
def test_one_seed_gives_one_body_whatever_the_head(name):
    body = {k: v for k, v in small(name).build(2).state_dict().items() if not k.startswith("head")}
    assert len(body) > 2
    for change in (dict(n_classes=9), dict(head="mlp"), dict(n_classes=2, head="mlp")):
        other = small(name, **change).build(2).state_dict()
        assert all(torch.equal(body[k], other[k]) for k in body)


def test_builds_on_the_cpu_under_another_default_device():
    with torch.device("meta"):
        model = small("conv-2").build(0)
    assert same(model, small("conv-2").build(0))


# --- the head and the prunable weights of a network that we did not write ---


class Tangle(nn.Module):
    "Head first in the file; a dead layer and a shortcut with as many outputs as classes; token and position embeddings; one weight used twice."

    def __init__(self, n=6):
        super().__init__()
        self.out = nn.Linear(8, n)
        self.never = nn.Linear(8, n)
        self.words, self.places = nn.Embedding(20, 8), nn.Embedding(5, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.gate, self.again = nn.Linear(8, 8), nn.Linear(8, 8)
        self.again.weight = self.gate.weight
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.early = nn.Conv1d(8, n, 1)
        self.norm.eval()

    def forward(self, tokens):
        x = (self.words(tokens) + self.places(torch.arange(5, device=tokens.device))).transpose(1, 2)
        x = x + self.early(x).mean(1, keepdim=True)
        x = self.drop(self.norm(self.conv(x))).mean(2)
        return self.out(torch.tanh(self.again(torch.relu(self.gate(x)))))


def test_head_and_prunable_of_a_tangled_network():
    model = Tangle()
    assert head_of(model, (5,)) == "out"
    assert head_parameters(model, (5,), 6) == ("out.weight", "out.bias")
    body = ("never.weight", "words.weight", "conv.weight", "gate.weight", "early.weight")
    assert prunable(model, (5,)) == body  # the places are looked up by place
    layers = ("out.weight", *body[:2], "places.weight", *body[2:])
    assert prunable(model, head=True) == layers  # without a run, by the classes of layers
    assert prunable(model, head_layer="never") == (layers[0], *layers[2:])
    assert prunable(model, (5,), include=["gate.*", "norm.weight", "out.*"]) == (
        "gate.weight",
        "gate.bias",
        "norm.weight",
    )


def test_looking_at_a_network_changes_nothing():
    model = Tangle()
    modes, state, rng = (
        [m.training for m in model.modules()],
        copy.deepcopy(model.state_dict()),
        torch.get_rng_state(),
    )
    prunable(model, (5,))
    with pytest.raises(LotteryError, match="does not pass"):
        run_once(model, (5, 3))
    assert modes == [m.training for m in model.modules()] and len(set(modes)) == 2
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


class Nested(nn.Module):
    def __init__(self, head, rank):
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        self.inner = nn.ModuleDict(
            {"first": nn.Sequential(conv(2, 6, 3, padding=1), nn.ReLU()), "last": nn.Sequential(head)}
        )
        self.pointwise = not isinstance(head, nn.Linear)

    def forward(self, x):
        x = self.inner["first"](x)
        return (
            self.inner["last"](x).flatten(2).mean(2)
            if self.pointwise
            else self.inner["last"](x.flatten(2).mean(2))
        )


@pytest.mark.parametrize(
    "rank, head",
    [
        (1, nn.Conv1d(6, 4, 1)),
        (2, nn.Conv2d(6, 4, 1)),
        (3, nn.Conv3d(6, 4, 1)),
        (2, nn.Linear(6, 4)),
        (2, nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))),
    ],
)
def test_replaces_the_head_and_nothing_else(rank, head):
    shape, model = (2, *[5] * rank), Nested(head, rank).double()
    body = {k: v.clone() for k, v in model.state_dict().items() if ".first." in k}
    twin = copy.deepcopy(model)
    for n, kind in ((3, "mlp"), (9, "linear"), (4, "mlp"), (5, "mlp")):
        replace_head(model, shape, n, kind, seed=4)
        assert head_of(model, shape, n) == "inner.last.0"
        assert isinstance(model.inner["last"][0], MLPHead) == (kind == "mlp")
        assert model(torch.rand(2, *shape, dtype=torch.double)).shape == (2, n)
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in body.items())
    assert same(model, replace_head(twin, shape, 5, "mlp", seed=4))
    assert not same(model, replace_head(twin, shape, 5, "mlp", seed=5))


def test_a_weight_that_the_head_shares_belongs_to_the_head():
    model = nn.Sequential(
        nn.Embedding(7, 3),
        nn.AdaptiveAvgPool2d((1, 3)),
        nn.Flatten(),
        nn.Linear(3, 3),
        nn.Linear(3, 7, bias=False),
    )
    model[4].weight = model[0].weight
    assert head_parameters(model, (5,)) == ("0.weight",)
    assert prunable(model, (5,)) == ("3.weight",)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: prunable(nn.Sequential(nn.ReLU()), head=True), "no prunable weights"),
        (lambda: prunable(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (4,)), "outside its head"),
        (lambda: prunable(Tangle()), "give input_shape"),
        (lambda: prunable(Tangle(), (5,), include=["gate.wieght"]), "did you mean 'gate.weight'"),
        (lambda: prunable(Tangle(), (5,), include=["out.*"]), "belongs to the head: give the head a rate"),
        (lambda: head_of(Tangle(), (5,), 7), "n_classes=7, but Tangle gives 6 logits"),
        (lambda: head_of(Tangle(), (5,), head_layer="outt"), "did you mean 'out'"),
        (lambda: head_of(nn.Flatten(), (5,)), "head_layer="),
        (lambda: replace_head(Tangle(), (5,), 3, head_layer="norm"), "'norm' of Tangle cannot be replaced"),
        (lambda: replace_head(Tangle(), (5,), 3, "deep"), "head='deep'"),
    ],
)
def test_refusals_for_models(call, says):
    with pytest.raises(LotteryError) as e:
        call()
    assert says in str(e.value) and "\n" not in str(e.value)


# --- Network as data ---


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(name="resnet20"), "did you mean 'resnet-20'"),
        (dict(name="no.such:thing"), "cannot be imported"),
        (dict(n_classes=1), "Network.n_classes=1"),
        (dict(n_classes=2.0), "Network.n_classes=2.0"),
        (dict(width=0), "Network.width=0"),
        (dict(width=float("nan")), "Network.width=nan"),
        (dict(width=float("inf")), "Network.width=inf"),
        (dict(width="wide"), "Network.width='wide'"),
        (dict(head="mpl"), "did you mean 'mlp'"),
        (dict(input_shape=(3, 7, 32)), "8 x 8"),
        (dict(input_shape=(0, 32, 32)), "input_shape=(0, 32, 32)"),
        (dict(input_shape=(3, 32)), "(channels, height, width)"),
        (dict(input_shape=(3, 32.0, 32)), "input_shape=(3, 32.0, 32)"),
        (dict(input_shape=32), "input_shape=(32,)"),
    ],
)
def test_nonsense_is_refused_when_the_network_is_named(changes, says):
    with pytest.raises(LotteryError) as e:
        Network("resnet-20", (3, 32, 32), 10).with_(**changes)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_goes_to_json_and_back():
    network = Network("conv-4", [1, 28, 28], 5, width=1, head="mlp")
    again = from_plain(json.loads(canonical(network)))
    assert again == network and hash(again) == hash(network) and same(again.build(1), network.build(1))
    assert canonical(network) == canonical(network.with_(width=1.0))


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_nets_for_test.py").write_text(
        "from torch import nn\n"
        "def narrow(input_shape, n_classes, width=1.0):\n"
        "    units = max(1, round(20*width))\n"
        "    return nn.Sequential(nn.Flatten(), nn.LazyLinear(units), nn.ReLU(), nn.Linear(units, n_classes))\n"
        "def fixed(input_shape, n_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, n_classes))\n"
        "def ten(input_shape, n_classes):\n"
        "    return fixed(input_shape, 10)\n"
        "def nothing(input_shape, n_classes):\n"
        "    return None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_nets_for_test"


def test_a_factory_of_the_users_by_name(own_module):
    network = Network(f"{own_module}:narrow", (3, 2, 2), 4)
    again = from_plain(json.loads(canonical(network)))
    assert (
        again == network
        and same(again.build(3), network.build(3))
        and not same(network.build(3), network.build(4))
    )
    assert str(network) == "narrow (3×2×2 → 4)" and network.parameters_count == 12 * 20 + 20 + 20 * 4 + 4
    assert small_network(network, 100).parameters_count == 6 * 17 + 4
    mlp = network.with_(head="mlp").build(3)
    assert isinstance(mlp[3], MLPHead) and torch.equal(mlp[1].weight, network.build(3)[1].weight)
    assert list(summary(network).query("prunable").parameter) == ["1.weight"]


@pytest.mark.parametrize(
    "factory, changes, says",
    [
        ("fixed", dict(width=0.5), "takes no width"),
        ("ten", {}, "gives 10 logits"),
        ("nothing", {}, "gives NoneType"),
        ("fixed", dict(input_shape=(1, 2, 2)), "does not pass"),
    ],
)
def test_a_factory_of_the_users_is_checked_when_built(own_module, factory, changes, says):
    with pytest.raises(LotteryError) as e:
        Network(f"{own_module}:{factory}", (3, 2, 2), 4).with_(**changes).build(0)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_a_lambda_is_known_by_what_it_is_made_of():
    def made(by):
        return Network(lambda shape, n: nn.Sequential(nn.Flatten(), nn.Linear(12, by * n)), (3, 2, 2), 4)

    assert made(1).parameters_count == 52
    assert canonical(made(1)) == canonical(made(1)) != canonical(made(2))


# --- equally small dense networks ---


def every_size(network):
    "Parameter counts at every width up to 1 that differs in some layer's channels: those of LeNet step at odd multiples of 1/600."
    return sorted({network.with_(width=k / 600 + 1e-9).parameters_count for k in (0, *range(1, 600, 2))})


@pytest.fixture(scope="module")
def lenet_sizes():
    return every_size(Network("lenet-300-100", (1, 8, 8), 10))


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 50_610))
@example(10_639)
@example(10_751)
def test_small_network_comes_closest(lenet_sizes, parameters):
    got = small_network(Network("lenet-300-100", (1, 8, 8), 10), parameters).parameters_count
    assert abs(got - parameters) == min(abs(n - parameters) for n in lenet_sizes), got


@pytest.mark.parametrize("name", ["lenet-300-100", "conv-6", "resnet-20"])
def test_small_network_at_full_size_and_beyond(name):
    network = Network(name, (3, 32, 32), 10)
    assert small_network(network, network.parameters_count) == network
    assert small_network(network.with_(width=0.3), network.parameters_count) == network
    assert small_network(network, 2 * network.parameters_count).parameters_count == pytest.approx(
        2 * network.parameters_count, rel=0.02
    )
    assert small_network(network, 1).parameters_count == network.with_(width=1e-9).parameters_count


@given(st.integers(1, 4096), st.floats(1e-6, 4), st.floats(1e-6, 4))
def test_channels_grow_with_width(channels, a, b):
    low, high = sorted((a, b))
    assert 1 <= scaled(channels, low) <= scaled(channels, high) and scaled(channels, 1.0) == channels
