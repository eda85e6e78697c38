"""Networks of every kind against plain torch: scores, masks, and training under a mask, each computed here by hand; and several of them in one step as one by one.

Recurrent, attending, transposed, grouped, tied, normed and own layers, and the architectures of torchvision, timm and Hugging Face in small. The way from a search to a transfer is in `test_pretrained.py`."""

from dataclasses import replace
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from test_kinds_masks import Conv1D, KINDS, Lines, NORMS, normed, of_rows, picture
from tiny import HF, hf_sizes, listen, of
from torch import nn

from lottery_nb.core import LotteryError
from lottery_nb.data.domains import domain
from lottery_nb.data.own import from_texts
from lottery_nb.data.texts import train_vocabulary
from lottery_nb.engine.arms import Arm
from lottery_nb.engine.recipes import Recipe
from lottery_nb.engine.trainer import batches_of
from lottery_nb.engine.training import train
from lottery_nb.models.network import Network, prunable
from lottery_nb.models.pretrained import architecture
from lottery_nb.plans.find import _next_mask, _Seed, find_tickets, FindPlan, Search
from lottery_nb.pruning.masks import Mask
from lottery_nb.pruning.schedules import listed, one_shot
from lottery_nb.rewinding.snapshots import fresh, held, load

CPU = torch.device("cpu")
STEPS = 3


class Tied(nn.Module):
    "Two layers of one weight, and a third that is its transpose."

    def __init__(self, n):
        super().__init__()
        self.first, self.second = nn.Linear(64, 8), nn.Linear(8, 8)
        self.third, self.out = nn.Linear(8, 8), nn.Linear(64, n)
        self.third.weight = self.second.weight

    def forward(self, x):
        h = self.third(self.second(self.first(x.flatten(1)).relu()).relu())
        return self.out(F.linear(h, self.first.weight.T).relu())


def tied(shape, n):
    return Tied(n)


def widened(shape, n):
    "A transposed convolution between two convolutions, with weight norm and groups."
    up = nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(4, 8, 2, 2, groups=2))
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), up, nn.ReLU(), nn.Flatten(), nn.Linear(512, n))


def looped(shape, n):
    "An LSTM whose step follows a convolution."
    return nn.Sequential(
        Lines(8, 8),
        nn.Conv1d(8, 8, 3, padding=1),
        of_rows(partial(nn.LSTM, 8, 6, batch_first=True), 6)(shape, n),
    )


PICTURES = domain("digits[0-4]@100")
COLOUR = domain("digits[0-2]@30").adapt((3, 32, 32))
OWN = {kind: factory for kind, (factory, _) in KINDS.items()}
OWN |= {f"linear, {kind}": partial(lambda shape, n, kind: normed(kind, n), kind=kind) for kind in NORMS}
OWN |= {
    "tied": tied,
    "weight norm of a grouped transposed convolution": widened,
    "LSTM after a convolution": looped,
}

TORCHVISION = "image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32"
OTHERS = {
    "torchvision": [
        "torchvision:resnet18",
        "torchvision:mobilenet_v3_small(width_mult=0.25, dropout=0.0)",
        f"torchvision:VisionTransformer({TORCHVISION})",
    ],
    "timm": [
        "timm:vit_tiny_patch16_224(img_size=32, embed_dim=16, depth=2, num_heads=2)",
        "timm:convnext_atto(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))",
    ],
}
NAMES = [(library, name) for library, names in OTHERS.items() for name in names]
QUIET = dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0
)
MORE = {
    "roberta": dict(pad_token_id=0),
    "distilbert": dict(dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0),
    "vit": dict(patch_size=16),
}


@cache
def texts():
    "Texts of several lengths, so that there is padding."
    words = "thin thick good bad plot film pan and a of the very".split()
    drawn = [[words[(7 * i + 3 * j + i * j) % 12] for j in range(2 + i % 6)] for i in range(60)]
    made = [" ".join(text) for text in drawn]
    there = from_texts(made, [i % 2 for i in range(60)], name="films")
    return there.tokenised(train_vocabulary(made * 3, 40), 12)


def hf(kind):
    "A small model of Hugging Face, without dropout, and data for it."
    transformers = pytest.importorskip("transformers")
    there = COLOUR if kind == "vit" else texts()
    words = {} if kind == "vit" else {"vocab_size": len(there.vocabulary)}
    sizes = hf_sizes(kind, there.shape[0] + 2, **words, **QUIET, **MORE.get(kind, {}))
    return architecture(transformers.AutoConfig.for_model(kind, **sizes)), there


def made(case):
    "A network, and data for it."
    if case in OWN:
        factory, there = OWN[case], PICTURES
    elif case in HF:
        factory, there = hf(case)
    else:
        pytest.importorskip(dict(map(reversed, NAMES))[case])
        factory, there = case, COLOUR
    words = there.vocabulary and len(there.vocabulary)
    return Network(factory, there.shape, there.n_classes, vocabulary=words), there


CASES = [*OWN, *(name for _, name in NAMES), *HF]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.partition("(")[0])


def drawn_mask(network, start, share=0.4):
    "Random bits for all that may be pruned; no unit of a norm is empty."
    g = torch.Generator().manual_seed(3)
    bits = {}
    for name in prunable(network.build(0), network.input_shape):
        b = torch.rand(start.weights[name].shape, generator=g) < share
        b[:, 0] = True
        b[0] = True
        bits[name] = b
    return Mask(bits)


def by_hand(network, start, mask, there, recipe):
    "Training in plain torch: pruned weights are set to 0 before and after each step, and their gradients too."
    model = load(network.build(0), start).double().train()
    named = dict(model.named_parameters())
    opt = torch.optim.SGD([p for p in named.values() if p.requires_grad], recipe.lr, recipe.momentum)
    x = there.inputs(there.train.x, torch.arange(len(there.train.y)), None, torch.float64)

    def cut(tensors):
        with torch.no_grad():
            for name in mask:
                tensors[name].copy_(torch.where(mask[name], tensors[name], 0.0))

    cut(named)
    for _ in range(recipe.steps):
        opt.zero_grad()
        out = model(x)
        F.cross_entropy(out if isinstance(out, torch.Tensor) else out[0], there.train.y).backward()
        cut({n: named[n].grad for n in mask})
        opt.step()
        cut(named)
    return model


def whole_batches(there, **fields):
    "A recipe whose every step sees all of the data, in double precision."
    known = dict(lr=0.02, steps=STEPS, batch_size=len(there.train.y), schedule="constant", precision="fp64")
    return Recipe(**known | fields)


@cases
def test_training_under_a_mask_is_that_of_plain_torch(case):
    network, there = made(case)
    start = fresh(network, 0)
    mask = drawn_mask(network, start)
    recipe = whole_batches(there, steps=1 if "resnet18" in case else STEPS)
    ((got,), _) = listen(train([Arm("a", network, there, recipe, 0, start, mask)], "cpu"))
    assert not got.failed, got.failed
    model = by_hand(network, start, mask, there, recipe)
    moved = 0.0
    for name, p in model.named_parameters():
        assert torch.allclose(got.last.weights[name].double(), p, atol=1e-6, rtol=0), name
        moved = max(moved, (p - start.weights[name]).abs().max().item())
    assert moved > 1e-4
    for name, b in model.named_buffers():
        assert torch.allclose(got.last.buffers[name].to(b), b, atol=1e-6), name
    hold = held(mask, start.weights)
    assert all(not got.last.weights[n][~bits].any() for n, bits in hold.items())
    assert sum(int(b.count_nonzero()) for b in mask.values()) == mask.kept


PLAIN = [case for case in CASES if "norm" not in case and "resnet18" not in case]
"Effective weights have tests of their own; eleven million weights take long to sort."


@pytest.mark.parametrize("criterion", ["magnitude", "snip"])
@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.partition("(")[0])
def test_masks_are_those_of_scores_by_hand(case, criterion):
    if criterion == "snip" and "VisionTransformer" in case:
        pytest.skip("its head begins as zeros: see the last test")
    network, there = made(case)
    recipe = Recipe(lr=0.01, epochs=1, batch_size=20)
    fields = dict(schedule=one_shot(0.4), seeds=1, controls=(), recipe=recipe, score_at="start")
    search = Search(FindPlan(there, network, criterion=criterion, **fields))
    θ0 = fresh(search.network, 0)
    model = load(search.network.build(0), θ0)
    found = _next_mask(search, _Seed(0, θ0, {}, θ0, search.dense(model)), 1, CPU)
    model.train()
    if criterion == "snip":
        for x, y in batches_of(search.domain, 0, CPU, 20)(8):
            out = model(x)
            F.cross_entropy(out if isinstance(out, torch.Tensor) else out[0], y).backward()
    scores = {}
    for name in search.names:
        p = model.get_parameter(name)
        scores[name] = (p.detach() if criterion == "magnitude" else p.detach() * p.grad).abs()
    ranked = torch.cat([s.flatten() for s in scores.values()]).sort(descending=True).values
    keep = round(0.4 * len(ranked))
    surely, never = ranked[keep - 1] * (1 + 1e-3), ranked[keep - 1] * (1 - 1e-3)  # sums of gradients round
    assert found.kept == keep and set(found) == set(scores)
    for name, s in scores.items():
        assert found[name][s > surely].all() and not found[name][s < never].any(), name
    sure = sum(int((s > surely).sum() + (s < never).sum()) for s in scores.values())
    assert sure > 0.9 * len(ranked)


STACKS = {  # of the kinds that have been read for it
    "bert": True,
    "gpt2": True,
    "roberta": True,
    "distilbert": True,
    "vit": True,
    "timm:vit_tiny_patch16_224(img_size=32, embed_dim=16, depth=2, num_heads=2)": True,
    "gpt-like": True,
    "tied": False,
    "lstm": False,
}


@pytest.mark.parametrize("case", STACKS, ids=lambda case: case.partition("(")[0])
def test_several_in_one_step_end_as_one_by_one(case):
    network, there = made(case)
    recipe = whole_batches(there, batch_size=16)
    starts = [fresh(network, seed) for seed in range(3)]
    masks = [drawn_mask(network, starts[0], 0.2 + 0.2 * k) for k in range(3)]
    arms = [Arm(f"a{k}", network, there, recipe, k, starts[k], masks[k]) for k in range(3)]
    stacked, events = listen(train(arms, "cpu", layout="stacked"))
    layout = of("Layout", events)[0]
    assert layout.groups == ([[a.name for a in arms]] if STACKS[case] else [[a.name] for a in arms])
    alone, _ = listen(train(arms, "cpu", layout="alone"))
    for one, other in zip(alone, stacked, strict=True):
        for a, b in ((one.last.weights, other.last.weights), (one.last.buffers, other.last.buffers)):
            assert set(a) == set(b)
            assert all(torch.allclose(a[n].double(), b[n].double(), atol=1e-9, rtol=0) for n in a)


class Numbers(nn.Module):
    "Places as a buffer: whole numbers that all share, that a seed draws, or that each step changes."

    def __init__(self, n, kind):
        super().__init__()
        self.kind, self.table, self.out = kind, nn.Embedding(64, 4), nn.Linear(4 * 64, n)
        order = torch.randperm(64) if kind == "drawn" else torch.arange(64)
        self.register_buffer("numbers", order[None])

    def forward(self, x):
        if self.kind == "changed" and self.training:
            self.numbers.copy_((self.numbers + 1) % 64)
        return self.out((self.table(self.numbers) * x.flatten(1).unsqueeze(-1)).flatten(1))


def numbers(shape, n, kind):
    return Numbers(n, kind)


@pytest.mark.parametrize("kind", ["shared", "drawn", "changed"])
def test_tables_of_places_are_shared_where_they_are_one(kind):
    network = Network(partial(numbers, kind=kind), PICTURES.shape, 5)
    recipe = whole_batches(PICTURES, batch_size=30)
    arms = [Arm(f"a{k}", network, PICTURES, recipe, k, fresh(network, k)) for k in range(3)]
    stacked, events = listen(train(arms, "cpu", layout="stacked"))
    groups = of("Layout", events)[0].groups
    assert groups == ([["a0", "a1", "a2"]] if kind == "shared" else [["a0"], ["a1"], ["a2"]])
    for arm, got in zip(arms, stacked, strict=True):
        (one,), _ = listen(train([arm], "cpu"))
        assert got.last.buffers["numbers"].equal(one.last.buffers["numbers"])
        assert torch.allclose(got.last.weights["table.weight"], one.last.weights["table.weight"], atol=1e-9)


def test_arms_whose_tables_differ_do_not_share_steps():
    "The trial sees one table; weights that were given may hold another."
    network = Network(partial(numbers, kind="shared"), PICTURES.shape, 5)
    start = fresh(network, 0)
    other = replace(start, buffers={"numbers": start.buffers["numbers"].flip(1)})
    recipe = whole_batches(PICTURES, batch_size=30)
    arms = [Arm(f"a{k}", network, PICTURES, recipe, 0, s) for k, s in enumerate((start, other, start, other))]
    results, events = listen(train(arms, "cpu", layout="stacked"))
    assert sorted(map(sorted, of("Layout", events)[0].groups)) == [["a0", "a2"], ["a1", "a3"]]
    first, second, *_ = (r.last for r in results)
    assert second.buffers["numbers"].equal(other.buffers["numbers"])
    turned = second.weights["table.weight"].flip(0)
    assert not torch.allclose(first.weights["table.weight"], second.weights["table.weight"], atol=1e-3)
    assert turned.isfinite().all()


# --- patterns N:M lie along the inputs, however a layer keeps them ---


class Products(nn.Module):
    "Matrices in every way to write a product."

    def __init__(self):
        super().__init__()
        shapes = {"right": (8, 12), "left": (8, 8), "turned": (4, 12), "summed": (4, 8), "batched": (1, 8, 4)}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))

    def forward(self, x):
        x = self.left @ x @ self.right
        x = F.linear(x, self.turned).relu()
        x = torch.einsum("brc,cd->brd", x, self.summed)
        return x @ self.batched


LAID = {  # factory, and the dimension of each weight's inputs, as its author wrote it
    "gpt-like": (of_rows(lambda: nn.Sequential(Conv1D(8, 16), nn.GELU(), Conv1D(16, 8)), 8), (0, 0)),
    "linear": (of_rows(lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), 8), (1, 1)),
    "attention": (
        of_rows(lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 8),
        (1, 1, 1, 1),
    ),
    "lstm": (of_rows(partial(nn.LSTM, 8, 4, batch_first=True), 4), (1, 1)),
    "transposed": (
        picture(lambda: nn.Conv2d(1, 4, 1), lambda: nn.ConvTranspose2d(4, 6, 3), width=600),
        (None, 0),
    ),
    "transposed and grouped": (
        picture(lambda: nn.Conv2d(1, 8, 1), lambda: nn.ConvTranspose2d(8, 4, 3, groups=2), width=400),
        (None, 0),
    ),
    "transposed, one dimension": (
        picture(lambda: Lines(4, 16), lambda: nn.ConvTranspose1d(4, 6, 3), width=108),
        (0,),
    ),
    "grouped": (
        picture(lambda: nn.Conv2d(1, 8, 1), lambda: nn.Conv2d(8, 6, 3, groups=2), width=216),
        (None, 1),
    ),
    "weight norm of a transposed convolution": (
        picture(
            lambda: nn.Conv2d(1, 8, 1),
            lambda: nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(8, 4, 3, groups=2)),
            width=400,
        ),
        (None, 0),
    ),
    "products": (of_rows(Products, 4), (0, 1, 1, 0, 1)),
}


def checked_blocks(mask, axes, m=4, kept=2):
    "Every m consecutive bits along a dimension, counted one by one."
    for (name, bits), axis in zip(mask.items(), axes, strict=True):
        rows = bits.movedim(axis, -1).flatten(0, -2).tolist()
        for row in rows:
            assert all(sum(row[k : k + m]) == kept for k in range(0, len(row), m)), name


@pytest.mark.parametrize("kind", LAID)
def test_a_pattern_lies_along_the_inputs(kind):
    factory, axes = LAID[kind]
    model = Network(factory, (1, 8, 8), 5).build(0)
    names = prunable(model, (1, 8, 8))
    chosen = [(n, axis) for n, axis in zip(names, axes, strict=True) if axis is not None]
    recipe = Recipe(lr=0.05, epochs=1, batch_size=30)
    fields = dict(scope="2:4", schedule=listed([0.75, 0.5]), prunable=tuple(n for n, _ in chosen))
    plan = FindPlan(PICTURES, factory, recipe=recipe, seeds=1, controls=("reinit",), **fields)
    first, last = listen(find_tickets(plan, "cpu"))[0]
    checked_blocks(first.mask, [axis for _, axis in chosen], kept=3)
    checked_blocks(last.mask, [axis for _, axis in chosen])
    assert last.mask <= first.mask and last.density == 0.5


def test_a_pattern_on_gpt2_lies_along_its_inputs():
    (network, there), sizes = (
        hf("gpt2"),
        {"attn.c_attn": 16, "attn.c_proj": 16, "mlp.c_fc": 16, "mlp.c_proj": 64},
    )
    names = tuple(f"transformer.h.{k}.{n}.weight" for k in range(2) for n in sizes)
    recipe = Recipe(lr=0.01, epochs=1, batch_size=20)
    plan = FindPlan(
        there,
        network,
        scope="2:4",
        schedule=one_shot(0.5),
        prunable=names,
        recipe=recipe,
        seeds=1,
        controls=(),
    )
    (ticket,) = listen(find_tickets(plan, "cpu"))[0]
    assert [len(b) for b in ticket.mask.values()] == [*sizes.values()] * 2
    checked_blocks(ticket.mask, [0] * 8)


@pytest.mark.parametrize(
    "layer, says",
    [
        (
            lambda: nn.ConvTranspose2d(4, 4, 3, groups=2),
            "has 2 inputs in each group, which are no multiple of 4",
        ),
        (lambda: nn.ConvTranspose2d(4, 4, 3, groups=4), "has 1 inputs in each group"),
        (lambda: nn.Conv2d(4, 4, 3, groups=2), "has 2 inputs, which"),
        (lambda: nn.Conv2d(4, 4, 3, groups=4), "has 1 inputs, which"),
    ],
)
def test_blocks_do_not_reach_from_one_group_into_the_next(layer, says):
    factory = picture(lambda: nn.Conv2d(1, 4, 1), layer, width=4 * (100 if layer().transposed else 36))
    plan = FindPlan(
        PICTURES, factory, scope="2:4", schedule=one_shot(0.5), prunable=("1.weight",), controls=()
    )
    with pytest.raises(LotteryError, match=f"'1.weight' {says}") as refused:
        next(find_tickets(plan, "cpu"))
    assert refused.value.place == "FindPlan.scope"


class Headless(nn.Module):
    "A head of zeros, through which no gradient reaches the rest."

    def __init__(self, n):
        super().__init__()
        self.fc, self.out = nn.Linear(64, 16), nn.Linear(16, n)
        nn.init.zeros_(self.out.weight)

    def forward(self, x):
        return self.out(self.fc(x.flatten(1)).relu())


def headless(shape, n):
    return Headless(n)


@pytest.mark.parametrize(
    "criterion", ["snip", "gradient", lambda s: {n: w * 0 for n, w in s.weights.items()}]
)
@pytest.mark.parametrize("case", ["torchvision", "own"])
def test_scores_that_are_all_zero_are_refused(case, criterion):
    network, there = made(NAMES[2][1]) if case == "torchvision" else (headless, PICTURES)
    fields = dict(
        seeds=1, controls=(), schedule=one_shot(0.5), recipe=Recipe(lr=0.05, epochs=1, batch_size=20)
    )
    plan = FindPlan(there, network, criterion=criterion, score_at="start", **fields)
    with pytest.raises(LotteryError, match="gives every weight the score 0") as refused:
        next(find_tickets(plan, "cpu"))
    assert refused.value.place == "FindPlan.criterion"
    if isinstance(criterion, str):
        assert next(find_tickets(replace(plan, score_at="trained"), "cpu"))
