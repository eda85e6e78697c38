"""What is pruned, on networks of every kind: matrices and kernels wherever they lie, effective weights, frozen parameters, both densities, layers that die.

Numbers are compared with plain torch: counts by hand, scores by autograd, training by a loop with `torch.where`."""

import copy
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from tiny import listen, of, plan, same
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lottery_nb.core import LotteryError
from lottery_nb.data.domains import domain
from lottery_nb.engine import arms as engine_arms
from lottery_nb.engine.arms import Arm, ENGINE, engine_of, identity, rules_of
from lottery_nb.engine.recipes import Recipe
from lottery_nb.engine.trainer import batches_of
from lottery_nb.engine.training import train
from lottery_nb.events import LayersEmpty
from lottery_nb.models.network import frozen_by_author, Network, prunable, what_each_does
from lottery_nb.models.uses import MULTIPLIES, parametrised
from lottery_nb.models.zoo import NETWORKS
from lottery_nb.plans.find import _next_mask, _Seed, find_tickets, Search, SMALL_SHARE
from lottery_nb.plans.tickets import Ticket
from lottery_nb.plans.transfer import transfer, TransferPlan
from lottery_nb.pruning.masks import Mask
from lottery_nb.pruning.schedules import listed, one_shot
from lottery_nb.results.report import report
from lottery_nb.results.tables import OF_NETWORK, short_table, text_table
from lottery_nb.rewinding.points import TRAINED
from lottery_nb.rewinding.snapshots import fresh, held, load
from lottery_nb.runs.writing import run
from lottery_nb.workbench.follow import Follower
from lottery_nb.workbench.watch import log_html, ticket_options

CPU = torch.device("cpu")
DIGITS = "digits[0-4]@200"
QUICK = Recipe(lr=0.05, epochs=1, batch_size=32)


# --- networks: rows of a picture [1, 8, 8] as a sequence, or the picture flat ---


class Rows(nn.Module):
    "The rows of a picture through a body, the mean over them, a head."

    def __init__(self, body, width, n):
        super().__init__()
        self.body, self.out = body, nn.Linear(width, n)

    def forward(self, x):
        h = self.body(x.flatten(0, 1) if x.dim() == 4 else x)
        h = h[0] if isinstance(h, tuple) else h
        return self.out(h.mean(1))


class Attends(nn.Module):
    "Attention of rows to themselves, with keys of their own width where it is asked for."

    def __init__(self, **options):
        super().__init__()
        self.wide, self.mha = "kdim" in options, nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x):
        other = torch.cat([x, x], -1) if self.wide else x
        return self.mha(x, other, other)[0]


class Cells(nn.Module):
    "Rows one by one through a recurrent cell."

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = None
        for row in x.unbind(1):
            state = self.cell(row, state)
        return (state[0] if isinstance(state, tuple) else state).unsqueeze(1)


class Conv1D(nn.Module):
    "As GPT-2 has it: the weight is [inputs, outputs]."

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(inputs, outputs) * 0.3),
            nn.Parameter(torch.zeros(outputs)),
        )

    def forward(self, x):
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


class Own(nn.Module):
    "Matrices of an own module, in every way to write a product; a scale, a shift, a token and a gate that are none."

    def __init__(self):
        super().__init__()
        self.left, self.summed = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))
        self.batched, self.low = nn.Parameter(torch.randn(1, 8, 6)), nn.Parameter(torch.randn(6, 2))
        self.high, self.tensor = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(6, 6))
        self.scale, self.shift = nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.zeros(8, 8))
        self.token, self.gate = nn.Parameter(torch.zeros(1, 1, 6)), nn.Parameter(torch.ones(6, 1))

    def forward(self, x):
        x = (self.left @ x) * self.scale + self.shift
        x = torch.einsum("brc,cd->brd", x, self.summed)
        x = x @ self.batched
        x = x @ (self.low @ self.high).T
        x = torch.tensordot(x, self.tensor, dims=1)
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1) * self.gate.T


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.both, self.one = nn.Bilinear(8, 8, 5), nn.Conv1d(5, 1, 1)

    def forward(self, x):
        h = self.both(x, x.flip(1))
        return h + self.one(h.transpose(1, 2)).transpose(1, 2)


class Queries(nn.Module):
    "Learned queries, with and without a leading 1, that look at the rows; a position bias that is looked up by place."

    def __init__(self):
        super().__init__()
        self.latents, self.seed = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(1, 1, 8))
        self.to_query, self.bias = nn.Linear(8, 8, bias=False), nn.Parameter(torch.zeros(15, 2))
        self.register_buffer("places", torch.arange(3)[:, None] + torch.arange(8))
        self.pool = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        scores = self.to_query(self.latents) @ x.mT + self.bias[self.places].sum(-1)
        h = scores.softmax(-1) @ x
        return self.pool(self.seed.expand(len(x), -1, -1), h, h)[0]


def of_rows(body, width):
    "A factory `(input_shape, n_classes) -> module` of a body of rows."
    return lambda shape, n: Rows(body(), width, n)


def picture(*layers, width):
    "A factory of layers on a picture, and a head on what they give."
    return lambda shape, n: nn.Sequential(*(layer() for layer in layers), nn.Flatten(), nn.Linear(width, n))


class Lines(nn.Module):
    "Pictures [1, 8, 8] as sequences of one dimension, or as volumes."

    def __init__(self, *shape):
        super().__init__()
        self.shape = shape

    def forward(self, x):
        return x.view(len(x), *self.shape)


encoder = partial(nn.TransformerEncoderLayer, 8, 2, 16, 0.0, batch_first=True)
KINDS = {  # factory, and the weights that are pruned: name -> how many, counted by hand
    "lstm": (
        of_rows(lambda: nn.LSTM(8, 6, batch_first=True), 6),
        {"weight_ih_l0": 24 * 8, "weight_hh_l0": 24 * 6},
    ),
    "lstm with projection, both ways": (
        of_rows(lambda: nn.LSTM(8, 6, batch_first=True, proj_size=3, bidirectional=True), 6),
        {f"weight_{k}_l0{way}": n for way in ("", "_reverse") for k, n in dict(ih=192, hh=72, hr=18).items()},
    ),
    "gru of two layers": (
        of_rows(lambda: nn.GRU(8, 6, 2, batch_first=True), 6),
        {"weight_ih_l0": 144, "weight_hh_l0": 108, "weight_ih_l1": 108, "weight_hh_l1": 108},
    ),
    "rnn": (of_rows(lambda: nn.RNN(8, 6, batch_first=True), 6), {"weight_ih_l0": 48, "weight_hh_l0": 36}),
    "lstm cell": (
        of_rows(lambda: Cells(nn.LSTMCell(8, 6)), 6),
        {"cell.weight_ih": 192, "cell.weight_hh": 144},
    ),
    "gru cell": (of_rows(lambda: Cells(nn.GRUCell(8, 6)), 6), {"cell.weight_ih": 144, "cell.weight_hh": 108}),
    "attention": (of_rows(Attends, 8), {"mha.in_proj_weight": 192, "mha.out_proj.weight": 64}),
    "attention, separate projections and biases of keys": (
        of_rows(partial(Attends, kdim=16, vdim=16, add_bias_kv=True), 8),
        {f"mha.{p}_proj_weight": n for p, n in dict(q=64, k=128, v=128).items()}
        | {"mha.out_proj.weight": 64},
    ),
    "transformer encoder": (
        of_rows(lambda: nn.TransformerEncoder(encoder(), 2), 8),
        {
            f"layers.{k}.{w}": n
            for k in range(2)
            for w, n in {
                "self_attn.in_proj_weight": 192,
                "self_attn.out_proj.weight": 64,
                "linear1.weight": 128,
                "linear2.weight": 128,
            }.items()
        },
    ),
    "gpt-like": (
        of_rows(lambda: nn.Sequential(Conv1D(8, 16), nn.GELU(), Conv1D(16, 8)), 8),
        {"0.weight": 128, "2.weight": 128},
    ),
    "bilinear": (of_rows(Bilinear, 5), {"both.weight": 320, "one.weight": 5}),
    "matrices of an own module": (
        of_rows(Own, 6),
        {"left": 64, "summed": 64, "batched": 48, "low": 12, "high": 12, "tensor": 36},
    ),
    "learned queries": (
        of_rows(Queries, 8),
        {"to_query.weight": 64, "pool.in_proj_weight": 192, "pool.out_proj.weight": 64},
    ),
    "transposed 1d": (
        picture(lambda: Lines(1, 64), lambda: nn.ConvTranspose1d(1, 4, 3), width=264),
        {"1.weight": 12},
    ),
    "transposed 2d, grouped": (
        picture(lambda: nn.Conv2d(1, 4, 3), lambda: nn.ConvTranspose2d(4, 8, 3, groups=2), width=512),
        {"0.weight": 36, "1.weight": 4 * 4 * 9},
    ),
    "transposed 3d": (
        picture(lambda: Lines(1, 4, 4, 4), lambda: nn.ConvTranspose3d(1, 2, 2), width=250),
        {"1.weight": 16},
    ),
    "depth-wise and point-wise": (
        picture(
            lambda: nn.Conv2d(1, 6, 3),
            lambda: nn.Conv2d(6, 6, 3, groups=6),
            lambda: nn.Conv2d(6, 1, 1),
            width=16,
        ),
        {"0.weight": 54, "1.weight": 54, "2.weight": 6},
    ),
    "grouped": (
        picture(
            lambda: nn.Conv2d(1, 4, 3),
            lambda: nn.Conv2d(4, 8, 3, groups=2),
            lambda: nn.GroupNorm(2, 8),
            width=128,
        ),
        {"0.weight": 36, "1.weight": 8 * 2 * 9},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_multiplies_is_pruned_and_nothing_else(kind):
    factory, counts = KINDS[kind]
    network = Network(factory, (1, 8, 8), 3)
    model = network.build(0)
    before = copy.deepcopy(model.state_dict())
    names = prunable(model, network.input_shape)
    there = {n.removeprefix("body.").removeprefix("body."): model.get_parameter(n).numel() for n in names}
    assert there == counts
    assert same(before, model.state_dict()) and not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters()) and torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"logistic-regression"}))
def test_built_in_networks_prune_what_they_did(name):
    old = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)
    shape = (12,) if name == "text-cnn" else (3, 12, 12)
    model = Network(name, shape, 4, 0.1, vocabulary=60 if name == "text-cnn" else None).build(0)
    layers = [
        f"{n}.weight" for n, m in model.named_modules() if isinstance(m, old) and not n.startswith("head")
    ]
    assert list(prunable(model, shape)) == layers


def vit(shape, n):
    "torchvision's own, for pictures of one channel."
    net = torchvision.models.VisionTransformer(8, 4, 2, 2, 8, 16, num_classes=n)
    net.conv_proj = nn.Conv2d(shape[0], 8, 4, 4)
    return net


def test_the_class_token_and_positions_of_a_vision_transformer_stay():
    network = Network(vit, (1, 8, 8), 3)
    does = what_each_does(network.build(0), (1, 8, 8))
    assert does["class_token"] == "joined to the data" and does["encoder.pos_embedding"] == "added"
    # two layers of attention 24×8 and 8×8 and an MLP 16×8 and 8×16, and the patches 8×16
    names = prunable(network.build(0), (1, 8, 8))
    assert (
        sum(network.build(0).get_parameter(n).numel() for n in names) == 2 * (192 + 64 + 128 + 128) + 8 * 16
    )


@pytest.mark.parametrize(
    "factory, kept",
    [
        (torchvision.models.convnext_tiny, "layer_scale"),
        (torchvision.models.swin_t, "relative_position_bias_table"),
        (torchvision.models.swin_v2_t, "logit_scale"),
    ],
)
def test_scales_and_position_biases_of_published_networks_stay(factory, kept):
    does = what_each_does(factory(num_classes=3), (3, 64, 64))
    left = {n: use for n, use in does.items() if use not in (MULTIPLIES, "one-dimensional")}
    assert left and all(n.endswith(kept) and use in ("added", "scales") for n, use in left.items())


class Texts(nn.Module):
    "Words, places and a head whose weight is that of the words."

    def __init__(self, n, tied):
        super().__init__()
        self.words, self.places = nn.Embedding(n if tied else 20, 6), nn.Embedding(5, 6)
        self.mix, self.out = nn.Linear(6, 6), nn.Linear(6, n, bias=False)
        if tied:
            self.out.weight = self.words.weight

    def forward(self, tokens):
        places = self.places(torch.arange(5, device=tokens.device).expand_as(tokens))
        return self.out(
            (self.words(tokens) + places).mean(1).add(self.mix.weight.sum() * 0) @ self.mix.weight
        )


def test_words_are_pruned_places_are_not_and_a_tied_table_belongs_to_the_head():
    assert prunable(Texts(4, tied=False), (5,)) == ("words.weight", "mix.weight")
    assert prunable(Texts(7, tied=True), (5,)) == ("mix.weight",)
    assert prunable(Texts(7, tied=True), (5,), head=True) == ("words.weight", "mix.weight")


def test_layers_that_zeros_do_not_run_are_known_by_their_class():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.GRU(4, 4, batch_first=True)
            self.loose, self.out = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.one(x) if not x.any() else self.two(x[:, None])[0][:, 0] @ self.loose)

    assert prunable(Experts(), (4,)) == ("one.weight", "two.weight_ih_l0", "two.weight_hh_l0")
    assert prunable(Experts(), (4,), include=["loose"]) == ("loose",)


# --- effective weights ---


def old_norm(norm, layer, **options):
    with warnings.catch_warnings(action="ignore"):
        return norm(layer, **options)


NORMS = {
    "new weight norm": lambda layer: parametrizations.weight_norm(layer),
    "old weight norm": lambda layer: old_norm(nn.utils.weight_norm, layer),
    "weight norm over inputs": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight norm of the whole": lambda layer: old_norm(nn.utils.weight_norm, layer, dim=None),
    "new spectral norm": lambda layer: parametrizations.spectral_norm(layer),
    "old spectral norm": lambda layer: old_norm(nn.utils.spectral_norm, layer),
}


def normed(kind, n):
    return nn.Sequential(
        nn.Flatten(),
        NORMS[kind](nn.Linear(64, 12)),
        nn.ReLU(),
        nn.Linear(12, 10),
        nn.ReLU(),
        nn.Linear(10, n),
    )


def new_weight_norm(shape, n):
    return normed("new weight norm", n)


def old_weight_norm(shape, n):
    return normed("old weight norm", n)


def weight_norm_over_inputs(shape, n):
    return normed("weight norm over inputs", n)


def weight_norm_of_the_whole(shape, n):
    return normed("weight norm of the whole", n)


def new_spectral_norm(shape, n):
    return normed("new spectral norm", n)


def old_spectral_norm(shape, n):
    return normed("old spectral norm", n)


def normed_by(kind):
    "The factory of a kind: a function that a module holds."
    return globals()[kind.replace(" ", "_")]


def plain_of(network, snapshot):
    "The same network with the weights that multiply as plain parameters, by hand: its layers' weights after a run."
    model = load(network.build(0), snapshot).eval()
    with torch.no_grad():
        model(torch.zeros(2, *network.input_shape))
    weights = {f"{i}.weight": model[i].weight.detach().clone() for i in (1, 3, 5)}
    plain = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 12),
        nn.ReLU(),
        nn.Linear(12, 10),
        nn.ReLU(),
        nn.Linear(10, network.n_classes),
    )
    plain.load_state_dict(weights | {f"{i}.bias": model[i].bias.detach() for i in (1, 3, 5)})
    return plain


@pytest.mark.parametrize("criterion", ["magnitude", "snip"])
@pytest.mark.parametrize("kind", NORMS)
def test_the_effective_weight_is_scored(kind, criterion):
    search = Search(plan(network=normed_by(kind), width=1.0, criterion=criterion, score_at="start"))
    θ0 = fresh(search.network, 0)
    lengths = {n: w for n, w in θ0.weights.items() if n.endswith(("original0", "_g"))}  # equal to the norms
    longer = {n: w * torch.linspace(0.2, 3, w.numel()).view_as(w) for n, w in lengths.items()}
    θ0 = replace(θ0, weights={**θ0.weights, **longer})
    seed = _Seed(0, θ0, {}, θ0, search.dense(search.network.build(0)))
    stored = next(n for n in search.names if n.startswith("1."))
    assert len(search.names) == 2 and seed.mask[stored].shape == (12, 64)
    plain = plain_of(search.network, θ0)
    scores = {n: plain.get_parameter(n).detach().abs() for n in ("1.weight", "3.weight")}
    if criterion == "snip":
        batches = batches_of(search.domain, 0, CPU, search.plan.recipe.batch_size)
        sum(F.cross_entropy(plain(x), y) for x, y in batches(8)).backward()
        scores = {n: (plain.get_parameter(n) * plain.get_parameter(n).grad).abs().detach() for n in scores}
    found = _next_mask(search, seed, 1, CPU)
    keep = round(0.6 * (12 * 64 + 12 * 10))
    ranked = torch.cat([scores[n].flatten() for n in scores]).sort(descending=True).values
    threshold = (ranked[keep - 1] + ranked[keep]) / 2
    wanted = [scores[n] > threshold for n in scores]
    got = [found[stored], found["3.weight"]]
    differ = sum(int((a != b).sum()) for a, b in zip(wanted, got, strict=True))
    assert found.kept == keep and differ <= (0 if criterion == "magnitude" else 4)  # sums of gradients round


@pytest.mark.parametrize("kind", NORMS)
def test_what_is_pruned_is_zero_where_it_multiplies_and_an_empty_unit_is_a_number(kind):
    "One weight in a hundred is left, so that most units are empty."
    fields = dict(
        network=normed_by(kind), width=1.0, schedule=listed([0.3, 0.012]), recipe=QUICK, scope="layer"
    )
    tickets, events = listen(find_tickets(plan(**fields, controls=("reinit", "shuffled"), seeds=2), "cpu"))
    assert len(tickets) == 4 and not of("ArmFailed", events)
    assert all(torch.isfinite(torch.tensor(e.validation_loss)) for e in of("EpochDone", events))
    last = tickets[-1]
    stored = next(n for n in last.mask if n.startswith("1."))
    assert last.mask.kept_in[stored] == round(0.012 * 768) and (~last.mask[stored].any(1)).any()
    for start in ("rewind", TRAINED):
        model = last.model(start)
        x = torch.rand(5, 1, 8, 8)
        for mode in (False, True):
            assert model.train(mode)(x).isfinite().all()
            weight = model[1].weight
            assert not weight[~last.mask[stored]].any() and weight.isfinite().all()
    model.zero_grad()
    model(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_a_unit_that_is_empty_stays_empty_under_momentum_and_weight_decay():
    network = Network(normed_by("new weight norm"), (1, 8, 8), 5)
    start, name = fresh(network, 0), "1.parametrizations.weight.original1"
    bits = torch.rand(12, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    bits[:4] = False
    mask = Mask({name: bits})
    hold = held(mask, start.weights)
    assert hold[name][:4].all() and not hold[name.replace("original1", "original0")][:4].any()
    recipe = Recipe(lr=0.1, momentum=0.9, weight_decay=0.01, epochs=2, batch_size=32)
    arms = [Arm(f"a{k}", network, domain(DIGITS), recipe, k, start, mask) for k in range(2)]
    for done in listen(train(arms, "cpu", layout="stacked"))[0]:
        assert not done.failed
        model = load(network.build(0), done.last)
        assert not model[1].weight[~bits].any() and model[1].weight[bits].all()
        assert not done.last.optimizer["momentum"][name.replace("original1", "original0")][:4].any()


class Exp(nn.Module):
    def forward(self, x):
        return x.exp()


class Mirrored(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T


REFUSED = {
    "Orthogonal": parametrizations.orthogonal,
    "Exp": lambda layer: parametrize.register_parametrization(layer, "weight", Exp()),
    "Mirrored": lambda layer: parametrize.register_parametrization(layer, "weight", Mirrored()),
    "SpectralNorm, Exp": lambda layer: parametrize.register_parametrization(
        parametrizations.spectral_norm(layer), "weight", Exp()
    ),
}


def odd(kind, n):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), REFUSED[kind](nn.Linear(8, 8)), nn.Linear(8, n)
    )


def orthogonal(shape, n):
    return odd("Orthogonal", n)


@pytest.mark.parametrize("kind", REFUSED)
def test_other_parametrisations_are_refused_by_name(kind):
    with pytest.raises(LotteryError, match=f"'3.weight' is computed by {kind}, whose"):
        next(find_tickets(plan(network=lambda shape, n: odd(kind, n), width=1.0), "cpu"))


def test_a_network_with_another_parametrisation_is_pruned_elsewhere():
    fields = dict(network=orthogonal, width=1.0, prunable=("1.weight",), recipe=QUICK, schedule=one_shot(0.5))
    tickets, _ = listen(find_tickets(plan(**fields), "cpu"))
    assert list(tickets[-1].mask) == ["1.weight"] and parametrize.is_parametrized(tickets[-1].model()[3])


def test_a_parametrisation_that_keeps_zeros_is_pruned():
    class Half(nn.Module):
        def forward(self, x):
            return x / 2

    layer = parametrize.register_parametrization(nn.Linear(8, 8), "weight", Half())
    net = nn.Sequential(layer, nn.Linear(8, 3))
    assert prunable(net, (8,)) == ("0.parametrizations.weight.original",)
    assert parametrised(net)["0.parametrizations.weight.original"].keeps_zero


def test_parts_of_a_parametrised_weight_are_refused():
    class Product(nn.Module):
        def forward(self, a, b):
            return a @ b if a.shape != b.shape else a * b

        def right_inverse(self, w):
            return (w[:, :2], w[:2]) if w.shape[0] > 2 else (w, torch.ones_like(w))

    low = parametrize.register_parametrization(nn.Linear(8, 8), "weight", Product(), unsafe=True)
    twice = parametrize.register_parametrization(nn.Linear(8, 2), "weight", Product())
    for net in (nn.Sequential(low, nn.Linear(8, 3)), nn.Sequential(twice, nn.Linear(2, 3))):
        with pytest.raises(LotteryError, match="is a part of what Product computes '0.weight' of"):
            prunable(net, (8,))
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 3))
    with pytest.raises(LotteryError, match="original0' is a part of what WeightNorm computes"):
        prunable(net, (8,), include=["0.*0"])


def test_weights_that_the_forward_pass_standardises_are_left_out():
    class Standardised(nn.Linear):
        def forward(self, x):
            w = self.weight - self.weight.mean(1, keepdim=True)
            return F.linear(x, w / w.std(1, keepdim=True), self.bias)

    class Softmaxed(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight.softmax(-1), self.bias)

    class Signed(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight * self.weight.abs(), self.bias)

    net = nn.Sequential(Standardised(8, 8), Softmaxed(8, 8), Signed(8, 8), nn.Linear(8, 3))
    assert prunable(net, (8,)) == ("2.weight",)
    assert what_each_does(net, (8,))["1.weight"] == "changed before it multiplies"


# --- training under a mask, against plain torch ---


def lstm(shape, n):
    return KINDS["lstm"][0](shape, n)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_lstm_under_a_mask_trains_as_plain_torch_does(optimizer):
    network, there = Network(lstm, (1, 8, 8), 5), domain(DIGITS)
    start = fresh(network, 0)
    names = prunable(network.build(0), (1, 8, 8))
    g = torch.Generator().manual_seed(3)
    mask = Mask({n: torch.rand(start.weights[n].shape, generator=g) < 0.3 for n in names})
    options = dict(momentum=0.9) if optimizer == "sgd" else {}
    recipe = Recipe(
        optimizer,
        lr=0.05,
        steps=5,
        batch_size=180,
        schedule="constant",
        warmup=0.0,
        weight_decay=0.01,
        precision="fp64",
        **options,
    )
    ((got,), _) = listen(train([Arm("a", network, there, recipe, 0, start, mask)], "cpu"))
    model = load(network.build(0), start).double()
    make = partial(torch.optim.SGD, momentum=0.9) if optimizer == "sgd" else torch.optim.AdamW
    opt = make(model.parameters(), lr=0.05, weight_decay=0.01)

    def cut(tensors):
        with torch.no_grad():
            for n, t in tensors:
                if n in mask:
                    t.copy_(torch.where(mask[n], t, 0.0))

    x, y = there.inputs(there.train.x, torch.arange(180), None, torch.float64), there.train.y
    cut(model.named_parameters())
    for _ in range(5):
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        cut((n, p.grad) for n, p in model.named_parameters())
        opt.step()
        cut(model.named_parameters())
    for n, p in model.named_parameters():
        assert torch.allclose(got.last.weights[n].double(), p, atol=1e-6, rtol=0), n
    assert not any(got.last.weights[n][~bits].any() for n, bits in mask.items())


# --- what is frozen ---


def stem(shape, n):
    "A fixed stem, with batch norm behind it, and a bias that is fixed."
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 12),
        nn.ReLU(),
        nn.Linear(12, n),
    )
    net[1].requires_grad_(False)
    net[4].bias.requires_grad_(False)
    return net


def fixed_kernel(shape, n):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, n))
    net[0].weight.requires_grad_(False)
    return net


def fixed_lstm(shape, n):
    net = lstm(shape, n)
    net.body.weight_hh_l0.requires_grad_(False)
    return net


FROZEN = {
    stem: {"1.weight", "1.bias", "4.bias"},
    fixed_kernel: {"0.weight"},
    fixed_lstm: {"body.weight_hh_l0"},
}


@pytest.mark.parametrize("layout", ["alone", "stacked"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("factory", FROZEN, ids=lambda f: f.__name__)
def test_what_is_frozen_is_neither_trained_nor_pruned(factory, optimizer, layout):
    momentum = dict(momentum=0.9, nesterov=True) if optimizer == "sgd" else {}
    recipe = Recipe(optimizer, lr=0.05, epochs=1, batch_size=32, weight_decay=0.1, **momentum)
    fields = dict(network=factory, width=1.0, seeds=2, recipe=recipe, schedule=one_shot(0.2))
    tickets, events = listen(find_tickets(plan(**fields), "cpu", layout=layout))
    names = FROZEN[factory]
    for t in tickets:
        assert not names & set(t.mask) and frozen_by_author(t.network) == names
        for n in t.start("init").weights:
            moved = not torch.equal(t.start("init").weights[n], t.start(TRAINED).weights[n])
            assert moved == (n not in names), n
        model = t.model(TRAINED)
        assert {n for n, p in model.named_parameters() if not p.requires_grad} == names
    assert not of("ArmFailed", events)
    shared = [len(group) for e in of("Layout", events) for group in e.groups]
    assert max(shared) == (2 if layout == "stacked" and factory is not fixed_lstm else 1)


def test_frozen_parameters_are_never_named_and_an_all_frozen_network_is_refused():
    with pytest.raises(LotteryError, match="'1.weight', which is frozen"):
        listen(find_tickets(plan(network=stem, width=1.0, prunable=("1.weight",)), "cpu"))
    assert prunable(stem((1, 8, 8), 5), (1, 8, 8), include=["*.weight"]) == ("2.weight", "4.weight")

    def still(shape, n):
        return stem(shape, n).requires_grad_(False)

    with pytest.raises(LotteryError, match="no prunable weights"):
        listen(find_tickets(plan(network=still, width=1.0), "cpu"))
    arm = Arm(
        "a", Network(still, (1, 8, 8), 5), domain(DIGITS), QUICK, 0, fresh(Network(still, (1, 8, 8), 5), 0)
    )
    with pytest.raises(LotteryError, match="freezes every parameter"):
        listen(train([arm], "cpu"))


def test_only_arms_that_end_otherwise_are_trained_anew():
    def arm(network, mask=None):
        return Arm("a", network, domain(DIGITS), QUICK, 0, fresh(network, 0), mask)

    assert rules_of(arm(Network("lenet-300-100", (1, 8, 8), 5, 0.1))) == ()
    assert rules_of(arm(Network(lstm, (1, 8, 8), 5))) == ()  # its arms differ by their masks
    assert rules_of(arm(Network(stem, (1, 8, 8), 5))) == ("frozen stays",)
    network, name = Network(normed_by("new weight norm"), (1, 8, 8), 5), "1.parametrizations.weight.original1"
    bits = torch.ones(12, 64, dtype=torch.bool)
    whole, part = (Mask({name: bits & (torch.arange(12) >= k)[:, None]}) for k in range(2))
    assert rules_of(arm(network, whole)) == () and rules_of(arm(network, part)) == ("an empty unit is 0",)
    assert engine_of(arm(Network(stem, (1, 8, 8), 5))) == ENGINE - 1


def test_a_rule_is_part_of_an_identity(monkeypatch):
    network = Network(stem, (1, 8, 8), 5)
    one = Arm("a", network, domain(DIGITS), QUICK, 0, fresh(network, 0))
    now = identity(one, CPU, 1)
    monkeypatch.setattr(engine_arms, "frozen_by_author", lambda network: frozenset())
    assert now and identity(one, CPU, 1) != now


# --- both densities ---


def test_both_densities_are_said(tmp_path):
    found = run(
        plan(network=lstm, width=1.0, schedule=one_shot(0.2), recipe=QUICK, seeds=2),
        tmp_path / "run",
        "cpu",
        show=False,
    )
    (ticket, _) = found.tickets
    prunable_, all_ = 24 * 8 + 24 * 6, 24 * 8 + 24 * 6 + 2 * 24 + 6 * 5 + 5
    kept = round(0.2 * prunable_)
    assert (ticket.mask.size, ticket.parameters, ticket.mask.kept) == (prunable_, all_, kept)
    whole = (all_ - prunable_ + kept) / all_
    assert ticket.network_density == whole and f"{whole:.1%} of the network" in repr(ticket)
    (told, _) = of("TicketFound", found.events)
    text = f"{100 * whole:.3g} %"
    assert told.network_density == whole and f"{text} of the network" in told.says()
    assert short_table(found)[OF_NETWORK].tolist()[-1] == text
    shell = text_table(found)
    assert OF_NETWORK in shell and text in shell and "of all parameters" in shell
    assert short_table(found.frame)[OF_NETWORK].equals(short_table(found)[OF_NETWORK])
    assert f">{text.replace(' %', chr(160) + '%')}<" in report(found)
    assert (
        ticket.model().body.weight_hh_l0.count_nonzero() + ticket.model().body.weight_ih_l0.count_nonzero()
        == kept
    )


def mostly_scales(shape, n):
    "Most of its parameters are an element-wise map."

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.map, self.first, self.out = (
                nn.Parameter(torch.ones(40, 64)),
                nn.Linear(64, 8),
                nn.Linear(8, n),
            )

        def forward(self, x):
            return self.out(self.first((x.flatten(1)[:, None] * self.map).mean(1)).relu())

    return Scaled()


def test_a_plan_that_may_prune_little_says_so_before_it_runs():
    fields = dict(network=mostly_scales, width=1.0, recipe=QUICK, schedule=one_shot(0.5))
    events = find_tickets(plan(**fields), "cpu")
    planned, said = next(events), next(events)
    events.close()
    assert type(planned).__name__ == "Planned" and (said.prunable, said.parameters) == (512, 2560 + 520 + 45)
    assert said.prunable / said.parameters < SMALL_SHARE and said.left_out["map"] == [2560, "scales"]
    assert "only 16.4 % of the network's 3,125 parameters may be pruned" in said.says()
    assert not of("LayersEmpty", listen(find_tickets(plan(**fields), "cpu"))[1])
    assert not of("FewPrunable", listen(find_tickets(plan(recipe=QUICK, schedule=one_shot(0.5)), "cpu"))[1])


# --- old tickets ---


def deep(shape, n):
    return nn.Sequential(lstm(shape, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, n))


def test_a_ticket_of_the_old_rule_keeps_its_mask(tmp_path):
    "A mask that leaves the LSTM out, as it was found before."

    network = Network(deep, (1, 8, 8), 5)
    θ0 = fresh(network, 0)
    mask = Mask({"2.weight": θ0.weights["2.weight"] > 0})
    there = domain(DIGITS)
    norm = (tuple(there.mean.flatten().tolist()), tuple(there.std.flatten().tolist()))
    ticket = Ticket(
        mask, network, {"init": θ0, TRAINED: θ0}, QUICK, there.name, there.fingerprint, norm, 1, 0
    )
    ticket = Ticket.load(ticket.save(tmp_path / "old.safetensors"))
    assert ticket.mask == mask and list(ticket.mask) == ["2.weight"]
    model = ticket.model()
    assert model[0].body.weight_hh_l0.all() and model[2].weight.count_nonzero() == mask.kept
    done, events = listen(_transferred(ticket))
    assert not of("ArmFailed", events) and all(
        a.arm.mask is None or list(a.arm.mask) == ["2.weight"] for a in done
    )


def _transferred(ticket):
    return transfer(
        TransferPlan((ticket,), ("digits[5-9]@200",), start=("rewind",), recipe=QUICK, controls=("reinit",)),
        "cpu",
    )


# --- layers that die ---


def chain(shape, n):
    "Two narrow convolutions one after the other."
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, n)
    )


def beside(shape, n):
    "The same with a way around the second one."

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
            self.out = nn.Linear(128, n)

        def forward(self, x):
            x = self.conv1(x).relu()
            return self.out((x + self.conv2(x)).flatten(1))

    return Beside()


def empties(name):
    "A criterion that gives up a layer first."

    def first_to_go(scoring):
        return {n: w.abs() - 100.0 * (n == name) for n, w in scoring.weights.items()}

    return first_to_go


@pytest.mark.parametrize(
    "factory, name, cut",
    [(chain, "2.weight", True), (chain, "0.weight", True), (beside, "conv2.weight", False)],
)
def test_a_layer_that_dies_is_told(factory, name, cut, tmp_path):
    fields = dict(network=factory, width=1.0, recipe=QUICK, schedule=one_shot(0.3), criterion=empties(name))
    tickets, events = listen(find_tickets(plan(**fields), "cpu"))
    (died,) = of("LayersEmpty", events)
    assert died == LayersEmpty(tickets[0].name, [name], cut)
    assert events.index(died) == events.index(of("TicketFound", events)[0]) + 1
    layer = name.removesuffix(".weight")
    assert died.says().endswith(
        f"{layer} is empty: " + ("the network is cut" if cut else "other paths go on")
    )


def test_a_unit_path_that_dies_is_told_where_no_layer_is_empty():
    def crossed(scoring):
        scores = {n: torch.zeros_like(w) for n, w in scoring.weights.items()}
        scores["0.weight"][0] = 2.0  # the first map is written,
        scores["2.weight"][:, 1] = 1.0  # the second one is read
        return scores

    fields = dict(network=chain, width=1.0, recipe=QUICK, schedule=one_shot(27 / 54), criterion=crossed)
    tickets, events = listen(find_tickets(plan(**fields), "cpu"))
    assert all(tickets[0].mask.kept_in.values())
    (died,) = of("LayersEmpty", events)
    assert died.layers == [] and died.cut and "no path is left" in died.says()


def encoded(shape, n):
    return KINDS["transformer encoder"][0](shape, n)


def test_whole_networks_are_not_called_dead():
    for factory in (lstm, vit, encoded, chain):
        fields = dict(network=factory, width=1.0, recipe=QUICK, schedule=one_shot(0.3), scope="layer")
        events = listen(find_tickets(plan(**fields), "cpu"))[1]
        assert not of("LayersEmpty", events) and of("TicketFound", events)


def last_two(scoring):
    "Gives up the second layer first."
    return empties("2.weight")(scoring)


def test_the_table_the_report_and_the_panel_tell_of_a_dead_layer(tmp_path, capsys):
    fields = dict(network=chain, width=1.0, recipe=QUICK, schedule=one_shot(0.3), criterion=last_two)
    found = run(plan(**fields), tmp_path / "run", "cpu", show=False)
    says = of("LayersEmpty", found.events)[0].says()
    assert says.endswith("2 is empty: the network is cut")
    assert text_table(found).splitlines()[-1] == says and says in report(found)
    run(plan(**fields), tmp_path / "shown", "cpu", show=True)
    assert says in capsys.readouterr().err
    follower = Follower(found.path)
    assert "tickets" in follower.read()
    ((label, _),) = ticket_options(follower)
    assert (
        "2 is empty: the network is cut" in label
        and "of the network)" in label
        and says in log_html(follower)
    )


def test_a_ticket_of_no_weight_is_refused_before_anything_is_trained():
    for schedule in (one_shot(1e-9), listed([0.5, 1e-6])):
        with pytest.raises(LotteryError, match="keeps none of"):
            next(find_tickets(plan(schedule=schedule), "cpu"))
    network = Network("lenet-300-100", (1, 8, 8), 5, 0.1)
    θ0 = fresh(network, 0)
    none = Mask({"fc1.weight": torch.zeros_like(θ0.weights["fc1.weight"], dtype=torch.bool)})
    ticket = Ticket(
        none, network, {"init": θ0, TRAINED: θ0}, QUICK, "digits", "0" * 16, ((0.3,), (0.4,)), 1, 0
    )
    with pytest.raises(LotteryError, match="keeps none of its"):
        TransferPlan((ticket,), ("digits[5-9]@200",))


def test_an_emptied_spectral_norm_is_refused_in_a_sentence():
    name = "1.weight"
    fields = dict(
        network=normed_by("new spectral norm"),
        width=1.0,
        recipe=QUICK,
        schedule=one_shot(0.1),
        criterion=empties(name),
    )
    with pytest.raises(LotteryError, match="which is divided by its spectral norm, now 0"):
        listen(find_tickets(plan(**fields), "cpu"))


# --- hooks ---


CALLS: list = []


def hooked(shape, n):
    net = chain(shape, n)
    net[0].register_forward_hook(note_call)
    return net


def note_call(*_):
    CALLS.append(1)


def test_hooks_of_a_network_stay_and_none_is_added():
    network = Network(hooked, (1, 8, 8), 5)
    model = network.build(0)
    prunable(model, (1, 8, 8))
    assert [len(m._forward_hooks) for m in model.modules()] == [0, 1, 0, 0, 0, 0, 0] and CALLS
    tickets, _ = listen(
        find_tickets(plan(network=hooked, width=1.0, recipe=QUICK, schedule=one_shot(0.5)), "cpu")
    )
    assert [len(m._forward_hooks) for m in tickets[0].model().modules()] == [0, 1, 0, 0, 0, 0, 0]
