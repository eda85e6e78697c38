"""Properties of masks, and faults that the properties must catch."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lottery_nb.core import LotteryError
from lottery_nb.pruning.masks import Mask, overlap, random_mask

FEW = settings(max_examples=60, deadline=None)
SHAPES = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=4)


@st.composite
def masks(draw):
    """A mask of one to four parameters of one to four dimensions, with any pattern of bits."""
    shapes = draw(SHAPES)
    sizes = [math.prod(s) for s in shapes]
    bits = [draw(st.lists(st.booleans(), min_size=n, max_size=n)) for n in sizes]
    return Mask(
        {
            f"layer{i}.weight": torch.tensor(b).view(s)
            for i, (b, s) in enumerate(zip(bits, shapes, strict=True))
        }
    )


def mask_of(*rows):
    return Mask({f"w{i}": torch.tensor(row, dtype=torch.bool) for i, row in enumerate(rows)})


@FEW
@given(masks())
def test_packing_round_trips_in_one_bit_a_weight(mask):
    packed, shapes = mask.pack()
    back = Mask.unpack(packed, shapes)
    assert back == mask and list(back) == list(mask)
    assert {n: p.numel() for n, p in packed.items()} == {n: math.ceil(b.numel() / 8) for n, b in mask.items()}


@FEW
@given(masks(), st.data())
def test_a_flipped_byte_is_another_mask_or_refused(mask, data):
    packed, shapes = mask.pack()
    name = data.draw(st.sampled_from(list(packed)))
    place = data.draw(st.integers(0, packed[name].numel() - 1))
    packed[name][place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert Mask.unpack(packed, shapes) != mask
    except LotteryError as refusal:
        assert name in str(refusal) and "\n" not in str(refusal)


@pytest.mark.parametrize(
    "shape", [[-3, -3], [0], [3, 2.0], [True, 9], "33", None, 9, [10**30], [10**12, 10**12], [3, 3, 2]]
)
def test_shapes_that_do_not_fit_are_refused(shape):
    with pytest.raises(LotteryError, match="'w'"):
        Mask.unpack({"w": torch.zeros(2, dtype=torch.uint8)}, {"w": shape})


@pytest.mark.parametrize(
    "packed",
    [torch.zeros(2), torch.zeros(2, dtype=torch.int8), torch.zeros(1, 2, dtype=torch.uint8), b"\0\0", None],
)
def test_bytes_of_another_kind_are_refused(packed):
    with pytest.raises(LotteryError, match="'w'"):
        Mask.unpack({"w": packed}, {"w": [3, 3]})


def assert_selects(apply, mask, weights):
    """Pruned entries are +0 in every bit, kept ones are untouched, the argument too."""
    before = {n: w.clone() for n, w in weights.items()}
    for name, w in apply(mask, weights).items():
        gone = w[~mask[name]]
        assert (gone == 0).all() and not torch.signbit(gone).any()
        assert torch.equal(w[mask[name]], before[name][mask[name]])
    assert all(torch.equal(weights[n], before[n]) or before[n].isnan().any() for n in weights)


WEIGHTS = {"w0": torch.tensor([-1.0, -2.0, 3.0]), "w1": torch.tensor([-math.inf, math.nan, -0.5])}
HALF = mask_of([1, 0, 0], [0, 0, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_apply_selects(dtype):
    assert_selects(Mask.apply, HALF, {n: w.to(dtype) for n, w in WEIGHTS.items()})


def test_planted_fault_multiplying_is_noticed():
    with pytest.raises(AssertionError):
        assert_selects(lambda m, ws: {n: w * m[n] for n, w in ws.items()}, HALF, WEIGHTS)


def assert_control(control, mask):
    """As many weights in each layer; another mask wherever there is a choice; the same again under the same seed."""
    made = control(mask, 0)
    assert made.kept_in == mask.kept_in and list(made) == list(mask)
    assert made == control(mask, 0)
    for name, bits in mask.items():
        assert torch.equal(made[name], bits) == (mask.kept_in[name] in (0, bits.numel()))


@FEW
@given(masks())
def test_shuffle_changes_every_layer_that_it_can(mask):
    assert_control(Mask.shuffle, mask)


def test_planted_fault_a_shuffle_that_changes_nothing_or_the_density_is_noticed():
    mask = mask_of([1, 0, 0, 1], [1, 1, 1])
    for fault in (
        lambda m, s: m,
        lambda m, s: Mask({n: ~b for n, b in m.items()}),
        lambda m, s: m.shuffle(torch.seed()),
    ):
        with pytest.raises(AssertionError):
            for _ in range(40):
                assert_control(fault, mask)


def test_shuffles_are_uniform_over_the_other_arrangements():
    mask = mask_of([1, 1, 0, 0])
    seen = [tuple(mask.shuffle(seed)["w0"].tolist()) for seed in range(500)]
    assert len(set(seen)) == 5
    assert all(60 < seen.count(s) < 140 for s in set(seen))


@FEW
@given(masks(), st.integers(0, 2**40))
def test_random_mask_has_the_counts_and_repeats(mask, seed):
    drawn = random_mask(mask, seed)
    assert drawn.kept_in == mask.kept_in and drawn == random_mask(mask, seed)


def test_draws_depend_on_seed_and_name_and_leave_the_global_state_alone():
    half = torch.arange(1000) < 500
    mask, state = Mask({"a": half, "b": half}), torch.get_rng_state()
    one = random_mask(mask, 0)
    assert not torch.equal(one["a"], one["b"]) and one != random_mask(mask, 1)
    assert torch.equal(one["b"], random_mask(Mask({"b": half}), 0)["b"])
    assert torch.equal(state, torch.get_rng_state())


@FEW
@given(masks(), st.integers(0, 9))
def test_overlap_counts_and_is_symmetric(mask, seed):
    other = random_mask(mask, seed)
    table, swapped = overlap(mask, other), overlap(other, mask)
    for name, row in zip(mask, table.itertuples(), strict=False):
        both, either = int((mask[name] & other[name]).sum()), int((mask[name] | other[name]).sum())
        assert row.shared == both and (row.iou == both / either if either else math.isnan(row.iou))
    assert table.iou.equals(swapped.iou) and table.chance.equals(swapped.chance)


def test_chance_is_what_random_masks_give():
    shape = mask_of([1] * 30 + [0] * 170, [1] * 60 + [0] * 40)
    tables = [overlap(random_mask(shape, 2 * i), random_mask(shape, 2 * i + 1)) for i in range(150)]
    shared = sum(t.shared for t in tables) / 150
    assert ((shared - tables[0].expected).abs() < 0.6).all()
    deviations = torch.tensor([t.deviations.tolist() for t in tables])
    assert (deviations.mean(0).abs() < 0.25).all() and (deviations.std(0) - 1).abs().max() < 0.2


@FEW
@given(masks(), st.integers(0, 9))
def test_nesting(mask, seed):
    other = random_mask(mask, seed)
    assert mask & other <= mask and mask & other <= other and mask <= mask
    assert (mask <= other) == all(not (mask[n] & ~other[n]).any() for n in mask)


def test_masks_of_other_networks_are_refused():
    a, b = mask_of([1, 0]), mask_of([[1, 0]])
    for use in (
        lambda: a & b,
        lambda: a <= b,
        lambda: overlap(a, mask_of([1, 0], [1])),
        lambda: a.apply({"w0": torch.ones(3)}),
        lambda: a.apply({}),
    ):
        with pytest.raises(LotteryError, match="w0|w1"):
            use()


def test_content_decides_equality_and_nothing_changes_it():
    bits = torch.tensor([True, False])
    mask = Mask({"w": bits})
    before = hash(mask)
    bits[1] = True
    assert mask["w"].tolist() == [True, False] and hash(mask) == before
    with pytest.raises(TypeError):
        mask["w"] = bits
    assert (
        mask != Mask({"v": mask["w"]})
        and mask != Mask({"w": mask["w"].view(1, 2)})
        and mask != {"w": mask["w"]}
    )
    assert (
        copy.deepcopy(mask) == mask == pickle.loads(pickle.dumps(mask)) and len({mask, mask.to("cpu")}) == 1
    )


@pytest.mark.parametrize(
    "bits",
    [
        {},
        {"w": torch.ones(2)},
        {"w": torch.ones(2, dtype=torch.uint8)},
        {"w": [True]},
        {"w": torch.ones(0, dtype=torch.bool)},
    ],
)
def test_what_is_no_mask_is_refused(bits):
    with pytest.raises(LotteryError):
        Mask(bits)


def test_dense_takes_names_from_a_network_or_a_mapping():
    net = nn.Linear(3, 2)
    assert Mask.dense(net, ["weight"]).density == 1 and list(Mask.dense(dict(net.named_parameters()))) == [
        "weight",
        "bias",
    ]
    with pytest.raises(LotteryError, match="'wieght'"):
        Mask.dense(net, ["wieght"])
