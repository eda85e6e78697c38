"""Exact counts under every kind of score, scopes and schedules by property, criteria against independent computation."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import prune as torch_prune

from lottery_nb.core import canonical, from_plain, LotteryError, to_plain
from lottery_nb.pruning.masks import Mask, random_mask
from lottery_nb.pruning.schedules import cubic, geometric, linear, listed, one_shot, Schedule
from lottery_nb.pruning.criteria import CRITERIA, in_steps, Scoring
from lottery_nb.pruning.scopes import _share_out, Group, kept_count, make_mask, prune, quotas, SCOPES

ANY_DENSITY = [name for name in SCOPES.names if not hasattr(SCOPES[name], "check_density")]
FEW = settings(max_examples=80, deadline=None)
VALUES = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 1e-30, 0.5, 0.5, 2.0, math.inf])


def by_sorting(scores, mask, count):
    """The definition: of what the mask keeps, the highest scores, equal ones by position."""
    places = [
        (-s.flatten()[i].item(), n, i)
        for n, (name, s) in enumerate(scores.items())
        for i in range(s.numel())
        if mask[name].flatten()[i]
    ]
    kept = {(n, i) for _, n, i in sorted(places)[:count]}
    return Mask(
        {
            name: torch.tensor([(n, i) in kept for i in range(s.numel())]).view(s.shape)
            for n, (name, s) in enumerate(scores.items())
        }
    )


@st.composite
def problems(draw):
    """Scores with many ties, a last mask, and a density that it can give."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    scores = {
        f"l{i}.weight": torch.tensor(draw(st.lists(VALUES, min_size=n, max_size=n)))
        for i, n in enumerate(sizes)
    }
    bits = {
        name: torch.tensor(draw(st.lists(st.booleans(), min_size=len(s), max_size=len(s))))
        for name, s in scores.items()
    }
    mask = Mask(bits)
    return scores, mask, draw(st.floats(0, mask.density))


@FEW
@given(problems())
def test_global_pruning_is_sorting_at_every_count(problem):
    scores, mask, density = problem
    made = prune(scores, mask, density)
    assert made == by_sorting(scores, mask, kept_count(density, mask.size)) and made <= mask


@FEW
@given(problems())
def test_layerwise_pruning_is_global_pruning_of_each_layer(problem):
    scores, mask, _ = problem
    density = min(mask.kept_in[n] / b.numel() for n, b in mask.items())
    made = prune(scores, mask, density, scope="layer")
    for name, s in scores.items():
        alone = prune({name: s}, Mask({name: mask[name]}), density)
        assert torch.equal(made[name], alone[name])


@FEW
@given(problems())
def test_erk_keeps_the_exact_total(problem):
    scores, mask, density = problem
    made = prune(scores, mask, density, scope="erk")
    assert made.kept == kept_count(density, mask.size) and made <= mask


@pytest.mark.parametrize("scope", ANY_DENSITY)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_all_equal_one_weight_and_none(scope, size):
    scores = {"a.weight": torch.zeros(size), "b.weight": torch.zeros(1, 1)}
    dense = Mask.dense(scores)
    assert prune(scores, dense, 0, scope=scope).kept == 0
    assert prune(scores, dense, 1, scope=scope) == dense
    assert prune(scores, Mask({n: torch.zeros_like(b) for n, b in dense.items()}), 0, scope=scope).kept == 0
    for density in (0.1, 0.25, 0.5, 0.9):
        made = prune(scores, dense, density, scope=scope)
        assert (made["a.weight"].int().diff() <= 0).all(), "ties go by position"
        expected = (
            kept_count(density, size) + kept_count(density, 1)
            if scope == "layer"
            else kept_count(density, size + 1)
        )
        assert made.kept == expected


def assert_exact(pruner):
    """Counts to the weight over chains of rounds, with and without ties."""
    for scores in (torch.arange(97.0), torch.arange(97.0) // 10, torch.ones(97)):
        mask = Mask({"w": torch.ones(97, dtype=torch.bool)})
        for density in geometric(0.2, 15).densities[1:]:
            mask = pruner({"w": scores}, mask, density)
            assert mask.kept == kept_count(density, 97)


def test_counts_stay_exact_over_rounds():
    assert_exact(prune)


def test_planted_fault_a_threshold_is_noticed():
    def by_threshold(scores, mask, density):
        return Mask({"w": mask["w"] & (scores["w"] >= scores["w"].quantile(1 - density))})

    def of_what_is_left(scores, mask, density):
        count = int(mask.kept * (density / mask.density))
        return by_sorting(scores, mask, count)

    for fault in (by_threshold, of_what_is_left):
        with pytest.raises(AssertionError):
            assert_exact(fault)


def test_twenty_million_weights_with_ties():
    scores = {"a": torch.rand(4000, 5000, generator=torch.Generator().manual_seed(0)).mul_(100).floor_()}
    made = prune(scores, Mask.dense(scores), 0.1234567)
    assert made.kept == round(0.1234567 * 20_000_000)
    assert scores["a"][made["a"]].min() >= scores["a"][~made["a"]].max()


def test_equal_to_torch_where_there_are_no_ties():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(20, 9))
    scores = {f"{i}.weight": m.weight.detach().abs() for i, m in enumerate(net)}
    dense = Mask.dense(scores)
    for density in (0.9, 0.5, 0.01):
        ours, theirs = prune(scores, dense, density), copy.deepcopy(net)
        torch_prune.global_unstructured(
            [(m, "weight") for m in theirs], torch_prune.L1Unstructured, amount=ours.size - ours.kept
        )
        assert ours == Mask({f"{i}.weight": m.weight_mask.bool() for i, m in enumerate(theirs)})


@pytest.mark.gpu
def test_cuda_gives_the_same_masks_with_deterministic_algorithms():
    scores = {"a": (torch.rand(100_000) * 1000).floor(), "b": torch.rand(50, 30)}
    here = prune(scores, Mask.dense(scores), 0.2)
    torch.use_deterministic_algorithms(True)
    try:
        there = prune({n: s.cuda() for n, s in scores.items()}, Mask.dense(scores), 0.2)
    finally:
        torch.use_deterministic_algorithms(False)
    assert here == there


def test_half_precision_and_whole_numbers_can_be_ranked():
    dense = Mask({"w": torch.ones(8, dtype=torch.bool)})
    for dtype in (torch.bool, torch.bfloat16, torch.float16, torch.int64, torch.float64):
        scores = torch.tensor([0, 1, 0, 1, 0, 0, 0, 0]).to(dtype)
        assert prune({"w": scores}, dense, 0.25)["w"].tolist() == [False, True, False, True] + [False] * 4


def test_bad_scores_and_densities_are_refused_by_name():
    dense = Mask({"a.weight": torch.ones(4, dtype=torch.bool), "b.weight": torch.ones(2, dtype=torch.bool)})
    good = {"a.weight": torch.rand(4), "b.weight": torch.rand(2)}
    bad = {
        "'b.weight' have a NaN": {"scores": good | {"b.weight": torch.tensor([1.0, math.nan])}},
        "'b.weight' are missing": {"scores": {"a.weight": good["a.weight"]}},
        r"'a.weight' are \[2, 2\]": {"scores": good | {"a.weight": torch.rand(2, 2)}},
        "density=1.5": {"density": 1.5},
        "density=-0.1": {"density": -0.1},
        "density=nan": {"density": math.nan},
        "did you mean 'layer'": {"scope": "layers"},
        "did you mean 'a'": {"layer_densities": {"aa": 0.5}},
        "ask for 0.5 or less": {
            "mask": Mask({n: b & (torch.arange(len(b)) < len(b) / 2) for n, b in dense.items()}),
            "density": 0.6,
        },
    }
    for message, change in bad.items():
        with pytest.raises(LotteryError, match=message):
            prune(**{"scores": good, "mask": dense, "density": 0.5} | change)


def test_a_nan_where_nothing_is_left_to_keep_does_not_matter():
    mask = Mask({"w": torch.tensor([True, True, False])})
    assert prune({"w": torch.tensor([1.0, 2.0, math.nan])}, mask, 1 / 3)["w"].tolist() == [False, True, False]


def test_own_rates_leave_the_rest_exact():
    torch.manual_seed(0)
    scores = {
        "fc1.weight": torch.rand(300, 64),
        "fc2.weight": torch.rand(100, 300),
        "fc3.weight": torch.rand(10, 100),
    }
    mask = Mask.dense(scores)
    for r in range(1, 12):
        mask = prune(scores, mask, 0.8**r, layer_densities={"fc3": 0.9**r})
        assert mask.kept_in["fc3.weight"] == kept_count(0.9**r, 1000)
        assert mask.kept - mask.kept_in["fc3.weight"] == kept_count(0.8**r, 300 * 64 + 100 * 300)


def test_a_layers_bias_is_ranked_with_its_weights():
    scores = {"a.weight": torch.zeros(3, 3), "a.bias": torch.ones(3), "b.weight": torch.full((4,), 9.0)}
    made = prune(scores, Mask.dense(scores), 0.25, scope="layer")
    assert made.kept_in == {"a.weight": 0, "a.bias": 3, "b.weight": 1}


@FEW
@given(st.data())
def test_sharing_out(data):
    caps = data.draw(st.lists(st.integers(0, 50), min_size=1, max_size=8))
    shares = data.draw(st.lists(st.integers(1, 99), min_size=len(caps), max_size=len(caps)))
    total = data.draw(st.integers(0, sum(caps)))
    parts = _share_out(total, shares, caps)
    assert sum(parts) == total and all(0 <= p <= c for p, c in zip(parts, caps, strict=True))
    low, high = 0.0, 51.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if sum(min(c, middle * s) for s, c in zip(shares, caps, strict=True)) < total
            else (low, middle)
        )
    assert all(abs(p - min(c, high * s)) < 1 + 1e-9 for p, s, c in zip(parts, shares, caps, strict=True)), (
        "within one of the exact proportion"
    )


def test_erk_densities_follow_evci():
    shapes = {"a.weight": (64, 32, 3, 3), "b.weight": (128, 64, 3, 3), "c.weight": (256, 512)}
    mask = Mask({n: torch.ones(s, dtype=torch.bool) for n, s in shapes.items()})
    made = prune({n: torch.rand(s) for n, s in shapes.items()}, mask, 0.02, scope="erk")
    ratios = [made.kept_in[n] / math.prod(s) / (sum(s) / math.prod(s)) for n, s in shapes.items()]
    assert max(ratios) - min(ratios) < 1 / 70, (
        "densities are proportional to sum over product of the dimensions"
    )


ROUNDS = st.integers(1, 60)
SHARE = st.floats(0.001, 0.999)
ANY = st.one_of(
    st.builds(geometric, st.floats(0.001, 0.9), ROUNDS),
    st.builds(one_shot, SHARE),
    st.builds(linear, SHARE, ROUNDS),
    st.builds(cubic, SHARE, ROUNDS),
    st.builds(lambda ds: listed(sorted(ds, reverse=True)), st.lists(SHARE, min_size=1, max_size=20)),
)


@FEW
@given(ANY)
def test_schedules_fall_from_one_and_survive_json(schedule):
    densities = schedule.densities
    assert densities[0] == 1 and len(densities) == schedule.rounds + 1
    assert all(0 < b <= a for a, b in zip(densities, densities[1:], strict=False))
    assert [schedule.density(r) for r in range(schedule.rounds + 1)] == list(densities)
    back = from_plain(to_plain(schedule))
    assert (
        back == schedule
        and hash(back) == hash(schedule)
        and canonical(back) == canonical(schedule)
        and back.densities == densities
    )


@FEW
@given(SHARE, ROUNDS)
def test_schedules_arrive(final, rounds):
    assert linear(final, rounds).densities[-1] == final == cubic(final, rounds).densities[-1]
    assert geometric(final, rounds).densities[-1] == pytest.approx((1 - final) ** rounds)


@pytest.mark.parametrize(
    "nonsense",
    [
        lambda: geometric(0.2, 0), lambda: geometric(0.2, -1), lambda: geometric(0.2, 2.0),
        lambda: geometric(0.2, True), lambda: geometric(0.2, "3"),
        lambda: geometric(0, 3), lambda: geometric(1, 3), lambda: geometric(1.5, 2),
        lambda: geometric(-0.2, 3), lambda: geometric(math.nan, 3),
        lambda: geometric(0.9, 10_000), lambda: geometric(0.2, 10**9),
        lambda: one_shot(0), lambda: one_shot(1.01), lambda: one_shot(math.inf),
        lambda: linear(0, 3), lambda: linear(2, 3), lambda: cubic(-0.1, 3), lambda: cubic(None, 3),
        lambda: listed([]), lambda: listed([0.5, 0.6]), lambda: listed([0.5, 0.0]),
        lambda: listed([1.1]), lambda: listed(["0.5"]),
        lambda: Schedule("spiral", 3, (0.5,)),
        lambda: geometric(0.2, 3).density(4), lambda: geometric(0.2, 3).density(-1),
    ],
)  # fmt: skip
def test_schedules_refuse_nonsense_in_one_sentence(nonsense):
    with pytest.raises(LotteryError) as refusal:
        nonsense()
    assert "\n" not in str(refusal.value)


class Small(nn.Module):
    """Convolution, batch norm, dropout, a frozen bias and a parameter that the output does not depend on."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.drop, self.head = (
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.Dropout(0.5),
            nn.Linear(4, 3),
        )
        self.unused = nn.Linear(2, 2)
        self.head.bias.requires_grad_(False)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.bn(self.conv(x))).mean((2, 3))))


PRUNABLE = ("conv.weight", "head.weight", "unused.weight")


@pytest.fixture
def scoring():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small()
        model.bn.running_mean.fill_(3.0)
        x, y = torch.randn(4, 8, 1, 8, 8), torch.randint(3, (4, 8))
        start = {n: torch.randn_like(p) for n, p in model.named_parameters() if n in PRUNABLE}
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if n in PRUNABLE}
    return Scoring(
        model, weights, Mask.dense(weights), start, lambda n: zip(x[:n], y[:n], strict=True), (1, 8, 8)
    )


@pytest.mark.parametrize("name", CRITERIA.names)
def test_criteria_leave_everything_as_it_was_and_repeat(scoring, name):
    model = scoring.model
    model.bn.eval()
    model.head.weight.grad = torch.full_like(model.head.weight, 7.0)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    weights = {n: t.clone() for n, t in scoring.weights.items()}
    modes, wanted = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = CRITERIA[name](scoring)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    with torch.no_grad():
        second = CRITERIA[name](scoring)
    assert set(first) == set(PRUNABLE) and all(
        torch.equal(first[n], second[n]) and first[n].shape == weights[n].shape for n in first
    )
    assert not any(s.requires_grad for s in first.values())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(torch.equal(t, weights[n]) for n, t in scoring.weights.items())
    assert [m.training for m in model.modules()] == modes and [
        p.requires_grad for p in model.parameters()
    ] == wanted
    assert (model.head.weight.grad == 7).all() and model.conv.weight.grad is None


@pytest.mark.parametrize("name", CRITERIA.names)
@pytest.mark.parametrize("scope", ANY_DENSITY)
def test_every_criterion_with_every_scope_is_exact_and_nested(scoring, name, scope):
    mask = scoring.mask
    for density in (0.5, 0.2):
        made = make_mask(name, Scoring(**{**vars(scoring), "mask": mask}), density, scope=scope)
        sizes = [b.numel() for b in mask.values()]
        assert (
            made.kept
            == (
                sum(kept_count(density, n) for n in sizes)
                if scope == "layer"
                else kept_count(density, sum(sizes))
            )
            and made <= mask
        )
        mask = made


def test_a_failing_network_gets_its_modes_back(scoring):
    scoring.model.bn.eval()
    broken = Scoring(
        **{**vars(scoring), "batches": lambda n: iter([(torch.randn(2, 5), torch.zeros(2).long())])}
    )
    with pytest.raises(RuntimeError):
        CRITERIA["snip"](broken)
    assert scoring.model.training and not scoring.model.bn.training


def test_pruned_weights_count_as_zero_whatever_they_hold(scoring):
    mask = random_mask(
        Mask({n: torch.arange(b.numel()).view_as(b) % 2 == 0 for n, b in scoring.mask.items()}), 0
    )
    dirty = {n: torch.where(mask[n], w, torch.nan) for n, w in scoring.weights.items()}
    clean = mask.apply(scoring.weights)
    for name in ("gradient", "snip", "grasp", "synflow"):
        one, two = (
            CRITERIA[name](Scoring(**{**vars(scoring), "mask": mask, "weights": w})) for w in (dirty, clean)
        )
        assert all(torch.equal(one[n], two[n]) for n in one)


def flow(model, x, y, w, shape):
    """Squared norm of the gradient by the weights, in float64."""
    w = w.view(shape).requires_grad_()
    loss = cross_entropy(torch.tanh(x @ w.T) / 200, y)
    (g,) = torch.autograd.grad(loss, w, create_graph=True)
    return (g * g).sum()


def test_grasp_predicts_how_gradient_flow_changes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 3, bias=False), nn.Tanh()).double()
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 3
    w = {"0.weight": net[0].weight.detach().clone()}
    scores = CRITERIA["grasp"](Scoring(net, w, Mask.dense(w), batches=lambda n: iter([(x, y)])))[
        "0.weight"
    ].flatten()
    flat, step = w["0.weight"].flatten(), 1e-5
    for q in range(18):
        smaller = flat.clone()
        smaller[q] *= 1 - step
        change = flow(net, x, y, smaller, (3, 6)) - flow(net, x, y, flat.clone(), (3, 6))
        assert change.item() / step == pytest.approx(-2 * scores[q].item(), rel=1e-3, abs=1e-15)


def test_snip_is_the_derivative_by_the_switch(scoring):
    x, y = next(scoring.batches(1))
    one = Scoring(**{**vars(scoring), "batches": lambda n: iter([(x, y)])})
    scoring.model.drop.eval()

    def loss(scale):
        weights = {**scoring.weights, "conv.weight": scoring.weights["conv.weight"] * scale}
        parameters = {n: t.double() for n, t in {**dict(scoring.model.named_parameters()), **weights}.items()}
        return cross_entropy(torch.func.functional_call(scoring.model, parameters, x.double()), y)

    scores, h = CRITERIA["snip"](one)["conv.weight"].flatten(), 1e-4
    scoring.model.bn.double()
    for q in range(0, 36, 5):
        bump = torch.zeros(36, dtype=torch.float64)
        bump[q] = h
        slope = (loss((1 + bump).view(4, 1, 3, 3)) - loss((1 - bump).view(4, 1, 3, 3))) / (2 * h)
        assert scores[q].item() == pytest.approx(abs(slope.item()), rel=1e-2, abs=1e-5)


def test_synflow_is_never_negative_and_never_cuts_a_layer_off(scoring):
    scores = CRITERIA["synflow"](scoring)
    assert (
        all((s >= 0).all() and s.isfinite().all() for s in scores.values())
        and scores["conv.weight"].gt(0).all()
    )
    torch.manual_seed(0)
    net = nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(40, 40), nn.ReLU())], nn.Linear(40, 10))
    weights = {n: p.detach() for n, p in net.named_parameters() if p.dim() == 2}
    look = Scoring(net, weights, Mask.dense(weights), batches=lambda n: iter([(torch.zeros(1, 40), None)]))
    assert min(make_mask("synflow", look, 0.005).kept_in.values()) > 0
    assert min(prune(CRITERIA["synflow"](look), look.mask, 0.005).kept_in.values()) == 0, (
        "one step does cut it off, so the test can fail"
    )


def test_inner_steps_go_down_exponentially(scoring):
    seen = []

    @in_steps(4)
    def watched(s):
        seen.append(s.mask.kept)
        return {n: w.abs() for n, w in s.weights.items()}

    made = make_mask(watched, scoring, 1 / 4)
    n = scoring.mask.size
    assert made == make_mask("magnitude", scoring, 1 / 4)
    assert seen == [n] + [round(n * (kept_count(1 / 4, n) / n) ** (k / 4)) for k in (1, 2, 3)]


def test_criteria_say_what_they_lack(scoring):
    bare = Scoring(scoring.model, scoring.weights, scoring.mask)
    for name in ("gradient", "snip", "grasp", "synflow"):
        with pytest.raises(LotteryError, match="batches"):
            CRITERIA[name](bare)
    with pytest.raises(LotteryError, match="start"):
        CRITERIA["magnitude increase"](bare)
    with pytest.raises(LotteryError, match="did you mean 'synflow'"):
        make_mask("sinflow", bare, 0.5)


def test_random_scores_are_fair_between_layers():
    mask = Mask({"a": torch.ones(30_000, dtype=torch.bool), "b": torch.ones(10_000, dtype=torch.bool)})
    net = nn.Linear(1, 1)
    made = make_mask("random", Scoring(net, {}, mask, seed=3), 0.1)
    other = make_mask("random", Scoring(net, {}, mask, seed=4), 0.1)
    assert abs(made.kept_in["a"] / 30_000 - 0.1) < 0.01 and made != other
    assert made == make_mask("random", Scoring(net, {}, mask, seed=3), 0.1)


# --- blocks ---

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2))


@st.composite
def blocked(draw):
    """A pattern N:M, scores with many ties of a convolution and a linear layer, and a last mask that keeps at least N of each block."""
    m = draw(st.integers(2, 5))
    n = draw(st.integers(1, m - 1))
    outs, groups, height, width = draw(SHAPES)
    shapes = {"conv.weight": (outs, groups * m, height, width), "fc.weight": (outs, groups * m)}
    scores = {
        name: torch.tensor(draw(st.lists(VALUES, min_size=math.prod(s), max_size=math.prod(s)))).view(s)
        for name, s in shapes.items()
    }
    k = draw(st.integers(n, m))
    first = {
        name: torch.tensor(draw(st.lists(VALUES, min_size=s.numel(), max_size=s.numel()))).view(s.shape)
        for name, s in scores.items()
    }
    return n, m, scores, prune(first, Mask.dense(first), k / m, scope=f"{n}:{m}"), draw(st.integers(n, k))


def in_blocks(bits, m):
    """[blocks, m] along the inputs, written down another way than the package does."""
    return bits.flatten(2).transpose(1, 2).reshape(-1, m) if bits.ndim > 2 else bits.reshape(-1, m)


@FEW
@given(blocked())
def test_every_block_keeps_exactly_its_count_and_revives_nothing(problem):
    n, m, scores, mask, keep = problem
    made = prune(scores, mask, keep / m, scope=f"{n}:{m}")
    assert made <= mask and made.kept == kept_count(keep / m, mask.size)
    for name, s in scores.items():
        rows, may, kept = (
            in_blocks(s, m).tolist(),
            in_blocks(mask[name], m).tolist(),
            in_blocks(made[name], m).tolist(),
        )
        for values, open_, stays in zip(rows, may, kept, strict=True):
            best = sorted((-v, i) for i, v in enumerate(values) if open_[i])[:keep]
            assert [i for i, bit in enumerate(stays) if bit] == sorted(i for _, i in best)


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("scope, density", [("2:4", 0.5), ("1:4", 0.5), ("1:4", 0.25), ("2:4", 0.75)])
def test_a_criterion_in_steps_ends_with_the_blocks_that_were_asked_for(steps, scope, density):
    @in_steps(steps)
    def criterion(scoring):
        return {n: w.abs() for n, w in scoring.weights.items()}

    net = nn.Sequential(nn.Linear(16, 8, bias=False))
    weights = {n: p.detach() for n, p in net.named_parameters()}
    made = make_mask(criterion, Scoring(net, weights, Mask.dense(weights)), density, scope=scope)
    assert set(in_blocks(made["0.weight"], 4).sum(1).tolist()) == {4 * density}
    assert made == prune({n: w.abs() for n, w in weights.items()}, Mask.dense(weights), density, scope=scope)


@pytest.mark.parametrize(
    "scope, density, shape, says",
    [
        ("2:4", 0.25, (2, 8), "use one_shot(0.5), or a schedule of 0.75, 0.5"),
        ("2:4", 0.6, (2, 8), "cannot give 0.6"),
        ("1:3", 0.33, (2, 9), "cannot give 0.33"),
        ("2:4", 0.5, (4, 1, 3, 3), "has 1 inputs, which are no multiple of 4"),
        ("2:4", 0.5, (4, 6), "has 6 inputs"),
        ("5:4", 0.5, (2, 8), "n=5"),
        ("0:4", 0.5, (2, 8), "n=0"),
        ("1:1", 1, (2, 8), "m=1"),
    ],
)
def test_a_pattern_refuses_what_it_cannot_give(scope, density, shape, says):
    with pytest.raises(LotteryError) as e:
        prune(
            {"w": torch.rand(shape)}, Mask({"w": torch.ones(shape, dtype=torch.bool)}), density, scope=scope
        )
    assert says in str(e.value) and e.value.place == "FindPlan.scope"


def test_blocks_that_lost_too_much_are_refused_not_revived():
    gone = torch.ones(1, 8, dtype=torch.bool)
    gone[0, :3] = False
    with pytest.raises(LotteryError, match="keeps only 1 in one of them"):
        prune({"w": torch.rand(1, 8)}, Mask({"w": gone}), 0.5, scope="2:4")


def by_output(mask, names, density):
    """A scope of somebody else: each output is a block of its own."""
    return [
        Group(
            (n,),
            round(density * mask[n][0].numel()),
            lambda bits: torch.arange(len(bits)).view(-1, *[1] * (bits.ndim - 1)).expand_as(bits),
        )
        for n in names
    ]


def test_a_scope_of_somebody_else_may_have_blocks_or_give_pairs():
    score = torch.tensor([[4.0, 3.0, 2.0, 1.0], [40.0, 30.0, 20.0, 10.0]])
    everything = Mask({"w": torch.ones(2, 4, dtype=torch.bool)})
    assert prune({"w": score}, everything, 0.5, scope=by_output)["w"].int().tolist() == [[1, 1, 0, 0]] * 2
    assert prune({"w": score}, everything, 0.5, scope=lambda mask, names, density: [(names, 4)])[
        "w"
    ].int().tolist() == [[0] * 4, [1] * 4]


@pytest.mark.parametrize(
    "block, says",
    [
        (lambda bits: torch.arange(8).view(2, 4) // 3, "have 2 to 3 weights"),
        (lambda bits: torch.arange(8), "a number for each weight"),
        (lambda bits: None, "a number for each weight"),
    ],
)
def test_blocks_that_are_none_are_refused(block, says):
    with pytest.raises(LotteryError, match=says):
        prune(
            {"w": torch.rand(2, 4)},
            Mask({"w": torch.ones(2, 4, dtype=torch.bool)}),
            0.5,
            scope=lambda mask, names, density: [Group(names, 1, block)],
        )


def test_weights_that_are_gone_may_score_anything():
    bits = torch.tensor([[True, True, False, True]])
    for odd in (math.nan, math.inf, -math.inf):
        made = prune({"w": torch.tensor([[-math.inf, 0.0, odd, -1.0]])}, Mask({"w": bits}), 0.5, scope="2:4")
        assert made["w"].int().tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize(
    "returned",
    [None, 3, "all", {}, {"a": 1}, [1], ["ab"], [("w", 1)], [(("w",), 1.0)], [(("x",), 1)], [(("w",), -1)]],
)
def test_a_scope_that_gives_no_groups_is_refused_in_a_sentence(returned):
    mask = Mask({"w": torch.ones(4, dtype=torch.bool)})
    with pytest.raises(LotteryError, match="let it return|put each of w into one group"):
        quotas(mask, 0.5, scope=lambda *_: returned)
