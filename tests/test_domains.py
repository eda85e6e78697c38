"""What is not a lesson of the chapters data_files, domains and own_data: properties, published formats, planted faults, real data."""

import copy
import gzip
import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lottery_nb.data import readers as data_readers
from lottery_nb.data import builtin as data_builtin
from lottery_nb.data import batches as data_batches
from lottery_nb.data import domains as data_domains
from lottery_nb.core import canonical, from_plain, LotteryError, to_plain
from lottery_nb.data.readers import Raw, read_matrix, SMALLNORB, SMALLNORB_MD5
from lottery_nb.data.batches import stratified
from lottery_nb.data.batches import batch_images, epoch_draws, epoch_order
from lottery_nb.data.builtin import DOMAINS
from lottery_nb.data.names import DomainName, parse_name, SHIFTS
from lottery_nb.data.domains import domain, register_domain
from lottery_nb.data.own import from_arrays, from_dataset, from_frame, load_domain, save_domain


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """Each test with an empty cache, no download, and the registry as it was."""
    monkeypatch.setenv("LOTTERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LOTTERY_DOWNLOAD", "0")
    before = dict(DOMAINS)
    yield
    DOMAINS.clear()
    DOMAINS.update(before)
    data_domains.read_raw.cache_clear()
    data_domains.found_of.cache_clear()
    data_domains.content_of.cache_clear()


def numbered(n=300, k=5, size=8, channels=1):
    """A data set whose pictures say which they are: picture i holds i in its first two bytes, the test pictures go on counting."""

    def pictures(start, stop):
        i = torch.arange(start, stop)
        x = (
            i.view(-1, 1, 1, 1) * torch.arange(size * size * channels).view(1, channels, size, size) % 251
        ).to(torch.uint8)
        x[:, 0, 0, 0], x[:, 0, 0, 1] = (i // 256).to(torch.uint8), (i % 256).to(torch.uint8)
        return x, i % k

    return Raw(*pictures(0, n), tuple("abcdefghij"[:k]), pictures(n, n + n // 5))


def which(split):
    return (split.x[:, 0, 0, 0].int() * 256 + split.x[:, 0, 0, 1]).tolist()


# names


@given(
    st.builds(
        DomainName,
        st.sampled_from(["digits", "mnist", "my-own_1.2"]),
        st.sampled_from([(), ("0-4",), ("1", "cat"), ("Ankle boot", "T-shirt/top")]),
        st.lists(
            st.sampled_from(
                [("invert", ()), ("blur", ()), ("blur", (1.5,)), ("noise", (0.25,)), ("rotate", (-30.0,))]
            ),
            max_size=3,
        ).map(tuple),
        st.none() | st.integers(1, 10**6),
    )
)
@settings(max_examples=60, deadline=None)
def test_a_name_reads_as_it_is_written(name):
    assert parse_name(str(name)) == name


@pytest.mark.parametrize(
    "text, part",
    [
        ("digits[0-4", "cannot be read"),
        ("", "cannot be read"),
        (None, "cannot be read"),
        ("digits@", "cannot be read"),
        ("digits@0", "at least 1"),
        ("digits[]", "classes []"),
        ("digits[1,,2]", "classes [1,,2]"),
        ("digts", "did you mean 'digits'"),
        ("digits+invrt", "did you mean 'invert'"),
        ("digits+blur(x)", "is not a number"),
        ("digits+blur(nan)", "blur(sigma)=nan"),
        ("digits+noise(2)", "at most 1"),
        ("digits+blur(1,2)", "takes (sigma)"),
        ("digits[0-12]", "numbered 0 to 9"),
        ("digits[4-0]", ""),
        ("digits[3,3]", "two or more different"),
        ("cifar10[cat,dgo]", "did you mean 'dog'"),
    ],
)
def test_a_bad_name_is_refused_before_anything_is_read(text, part, monkeypatch):
    def fail():
        raise AssertionError("read")

    for name in ("digits", "cifar10"):
        monkeypatch.setitem(DOMAINS, name, data_builtin.Loader(fail, DOMAINS[name].classes, True))
    with pytest.raises(LotteryError) as e:
        domain(text)
    assert part in str(e.value) and "\n" not in str(e.value)


def test_reading_waits_and_happens_once():
    calls = []
    register_domain("mine", lambda: calls.append(1) or numbered())
    first, second = domain("mine[0-2]"), domain("mine+invert")
    assert not calls and "not read yet" in repr(first)
    assert first.n_classes == 3 and second.n_classes == 5 and domain("mine[0-2]").train.x is first.train.x
    assert calls == [1]
    register_domain("mine", numbered)
    assert domain("mine").train.x is not first.train.x


# splits


@given(st.integers(2, 6), st.data())
@settings(max_examples=40, deadline=None)
def test_no_selection_moves_a_picture_between_splits(k, data):
    register_domain("mine", lambda: numbered(60 * k, k))
    whole = domain("mine")
    labels = data.draw(st.lists(st.integers(0, k - 1), min_size=2, max_size=k, unique=True))
    limit = data.draw(st.none() | st.integers(2 * len(labels), 60 * len(labels)))
    part = domain(f"mine[{','.join(map(str, labels))}]" + (f"@{limit}" if limit else ""))
    train, val = set(which(part.train)), set(which(part.validation))
    assert train <= set(which(whole.train)) and val <= set(which(whole.validation)) and not train & val
    assert len(train) + len(val) == (limit or 60 * len(labels)) == len(part.train) + len(part.validation)
    for split in (part.train, part.validation, part.test):
        assert split.y.unique().tolist() == list(range(len(labels)))
        assert [labels[c] for c in split.y.tolist()] == [i % k for i in which(split)]
    counts = part.train.y.bincount()
    assert counts.max() - counts.min() <= 1


@given(st.lists(st.integers(2, 40), min_size=2, max_size=5), st.floats(0.01, 0.5))
@settings(max_examples=60, deadline=None)
def test_a_stratified_share_is_exact_and_leaves_some(counts, share):
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[
        torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0))
    ]
    chosen = stratified(y, share, "test")
    assert y[chosen].bincount(minlength=len(counts)).tolist() == [
        min(max(1, int(share * n + 0.5)), n - 1) for n in counts
    ]


def test_a_limit_takes_the_first_pictures_of_unbalanced_classes_in_proportion():
    y = torch.tensor([0] * 90 + [1] * 9 + [2])
    kept = data_batches.first_of_each(y, 20)
    assert (
        len(kept) == 20
        and y[kept].bincount().tolist() == [18, 1, 1]
        and kept[:18].tolist() == list(range(18))
    )
    assert [y[data_batches.first_of_each(y, n)].bincount().tolist() for n in (3, 5, 100)] == [
        [1, 1, 1],
        [3, 1, 1],
        [90, 9, 1],
    ]
    y = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    assert y[data_batches.first_of_each(y, 7)].bincount().tolist() == [4, 2, 1]


def test_a_class_missing_from_train_is_refused():
    raw = numbered()
    register_domain("holes", lambda: Raw(raw.x[raw.y != 2], raw.y[raw.y != 2], raw.classes))
    with pytest.raises(LotteryError, match="class 'c' of holes has fewer than two training pictures"):
        domain("holes").train  # noqa: B018
    assert domain("holes[a,b]").n_classes == 2


@pytest.mark.parametrize("limit", [5, 301])
def test_a_limit_that_cannot_be_met_is_refused(limit):
    register_domain("mine", numbered)
    with pytest.raises(LotteryError, match=f"limit @{limit}"):
        domain(f"mine@{limit}").train  # noqa: B018


def test_nothing_touches_the_global_random_state():
    before = torch.get_rng_state()
    domain("digits+noise").adapt((3, 16, 16)).thumbnails()
    epoch_order(10, 0, 0), epoch_draws(10, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


# shifts and adapters


def test_shifts_treat_a_picture_alike_whatever_else_was_picked():
    register_domain("mine", lambda: numbered(1200))
    raw = numbered(1200)
    for shift in SHIFTS:
        whole, part = domain(f"mine+{shift}"), domain(f"mine[1,3]+{shift}@100")
        position = {i: n for n, i in enumerate(which(domain("mine").train))}
        chosen = [position[i] for i in which(domain("mine[1,3]@100").train)]
        assert torch.equal(part.train.x, whole.train.x[chosen]), shift
    assert torch.equal(domain("mine").train.x, raw.x[which(domain("mine").train)])


def test_shifts_do_what_they_say():
    x, ids = numbered(40).x, torch.arange(40)
    assert torch.equal(SHIFTS["invert"](SHIFTS["invert"](x, ids), ids), x)
    assert torch.equal(SHIFTS["rotate"](x, ids, 90), x.rot90(1, (2, 3)))
    flat = torch.full((2, 3, 8, 8), 77, dtype=torch.uint8)
    assert torch.equal(SHIFTS["blur"](flat, ids[:2], 2.0), flat)
    grey = torch.full((500, 1, 16, 16), 128, dtype=torch.uint8)
    drawn = SHIFTS["noise"](grey, torch.arange(500), 0.1).double() - 128
    assert abs(drawn.std() - 25.5) < 0.3 and abs(drawn.mean()) < 0.3 and not torch.equal(drawn[0], drawn[1])
    register_domain("mine", numbered)
    a, b = domain("mine+invert+rotate"), domain("mine+rotate+invert")
    assert a.fingerprint != b.fingerprint and not set(map(bytes, a.train.x.numpy())) & set(
        map(bytes, domain("mine").train.x.numpy())
    )


def test_every_channel_of_a_grey_picture_is_that_picture():
    register_domain("mine", numbered)
    d = domain("mine").adapt((3, 8, 8))
    for c in range(3):
        assert torch.equal(d.train.x[:, c : c + 1], domain("mine").train.x)
    assert (
        d.adapters == ("grey to 3 equal channels",)
        and d.fingerprint == domain("mine").fingerprint
        and d.name == "mine"
    )
    assert torch.equal(d.mean.flatten(), domain("mine").mean.flatten().expand(3))


def test_adapting_is_torchvisions_resize_and_luminance():
    x = numbered(20, channels=3).x
    exact = (x.double() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)  # ITU-R BT.601
    assert (data_batches.adapt_pictures(x, (1, 8, 8))[:, 0] - exact).abs().max() < 0.55
    up = F.interpolate(x.float(), (32, 32), mode="bilinear", antialias=True).round().clamp(0, 255)
    assert torch.equal(data_batches.adapt_pictures(x, (3, 32, 32)).float(), up)
    register_domain("mine", lambda: numbered(channels=3))
    assert torch.equal(
        domain("mine").adapt((1, 9, 9)).adapt((3, 32, 32)).train.x, domain("mine").adapt((3, 32, 32)).train.x
    )


def test_statistics_are_of_the_training_pictures_alone():
    register_domain("mine", lambda: numbered(channels=3))
    d = domain("mine")
    x = d.train.x.double() / 255
    assert torch.allclose(d.mean.flatten().double(), x.mean((0, 2, 3))) and torch.allclose(
        d.std.flatten().double(), x.std((0, 2, 3), correction=0)
    )


# identity


def test_fingerprint_is_of_the_content():
    raw = numbered()
    changed = [copy.deepcopy(raw) for _ in range(4)]
    changed[0].x[7, 0, 3, 3] ^= 1
    changed[1].test[0][5, 0, 3, 3] ^= 1
    changed[2].y[[0, 1]] = changed[2].y[[1, 0]]
    other = [Raw(r.x, r.y, r.classes, r.test) for r in changed[:3]] + [
        Raw(raw.x, raw.y, ("a", "b", "c", "d", "E"), raw.test)
    ]
    prints = [data_domains.Domain(DomainName("mine"), raw=r).fingerprint for r in (raw, *other)]
    assert (
        len(set(prints)) == 5
        and prints[0] == data_domains.Domain(DomainName("other"), raw=numbered()).fingerprint
    )


def test_a_domain_is_plain_data():
    d = (
        domain("digits[0-4]+noise(0.2)@200", validation=0.2)
        .adapt((3, 16, 16))
        .normalised_by((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    )
    again = from_plain(json.loads(canonical(d)))
    assert again == d and hash(again) == hash(d) and again.train.x is d.train.x
    assert (
        pickle.loads(pickle.dumps(d)) == copy.deepcopy(d) == d
        and "content" not in pickle.loads(pickle.dumps(d)).__dict__
    )
    own = from_arrays(numbered().x, numbered().y)
    assert torch.equal(pickle.loads(pickle.dumps(own)).train.x, own.train.x)
    register_domain("mine", numbered)
    for d in (own, data_domains.for_plan("mine")):
        assert to_plain(d)["type"] == "OwnDomain" and to_plain(d)["content"] == d.fingerprint
    assert data_domains.for_plan("digits") == "digits" and data_domains.for_plan("mine").raw is not None


# batches


def by_hand(x, mean, std, dy=4, dx=4, flip=0):
    x = F.pad(x, (4, 4, 4, 4))[:, dy : dy + x.shape[1], dx : dx + x.shape[2]]
    return ((x.flip(2) if flip else x) / 255 - mean) / std


@pytest.mark.parametrize("augment", [(), ("crop",), ("flip",), ("crop", "flip")])
def test_batches_are_the_pictures_padded_cropped_flipped_and_normalised(augment):
    register_domain("mine", lambda: numbered(channels=3))
    d = domain("mine")
    order, draws = epoch_order(len(d.train), 3, 1), epoch_draws(len(d.train), 3, 1, augment)
    got = batch_images(d.train.x, order, d.mean, d.std, draws)
    want = torch.stack(
        [
            by_hand(d.train.x[i], d.mean, d.std, **{k: int(v[p]) for k, v in draws.items()})
            for p, i in enumerate(order.tolist())
        ]
    )
    assert torch.allclose(got, want, atol=1e-5)
    if draws:
        assert not torch.allclose(got, batch_images(d.train.x, order, d.mean, d.std))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_the_size_of_a_batch_changes_no_bit(sizes, epoch):
    x, mean, std = (
        numbered(channels=3).x,
        torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1),
        torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1),
    )
    order, draws = epoch_order(len(x), 0, epoch), epoch_draws(len(x), 0, epoch)
    whole, at = batch_images(x, order, mean, std, draws), 0
    for n in sizes:
        here = slice(at, at + n)
        part = batch_images(x, order[here], mean, std, {k: v[here] for k, v in draws.items()})
        assert torch.equal(part, whole[here])
        at += n
        if at >= len(x):
            break


def test_a_stack_of_networks_gets_what_each_would_get_alone():
    x, mean, std = numbered().x, torch.full((1, 1, 1), 0.4), torch.full((1, 1, 1), 0.3)
    orders = torch.stack([epoch_order(len(x), s, 2)[:16] for s in range(3)])
    draws = [epoch_draws(len(x), s, 2) for s in range(3)]
    stack = batch_images(
        x, orders, mean, std, {k: torch.stack([d[k][:16] for d in draws]) for k in draws[0]}, torch.bfloat16
    )
    assert stack.shape == (3, 16, 1, 8, 8) and stack.dtype == torch.bfloat16
    for s in range(3):
        assert torch.equal(
            stack[s],
            batch_images(x, orders[s], mean, std, {k: v[:16] for k, v in draws[s].items()}).bfloat16(),
        )


def test_draws_are_a_function_of_seed_epoch_and_kind_alone():
    assert epoch_order(500, 0, 0).sort().values.tolist() == list(range(500))
    seen = {tuple(epoch_order(500, s, e).tolist()) for s in range(4) for e in range(4)}
    assert len(seen) == 16
    draws = epoch_draws(5000, 1, 7)
    assert torch.equal(draws["dx"], epoch_draws(5000, 1, 7, ("crop",))["dx"]) and not torch.equal(
        draws["dx"], draws["dy"]
    )
    assert (
        draws["dx"].unique().tolist() == list(range(9)) == draws["dy"].unique().tolist()
        and 0.45 < draws["flip"].double().mean() < 0.55
    )


# files


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_idx_set(folder, ending=""):
    folder.mkdir(parents=True)
    for split, n in (("train", 40), ("t10k", 20)):
        for kind, array in (
            ("images-idx3", np.arange(n * 64, dtype=np.uint8).reshape(n, 8, 8)),
            ("labels-idx1", (np.arange(n) % 10).astype(np.uint8)),
        ):
            blob = idx(array)
            (folder / f"{split}-{kind}-ubyte{ending}").write_bytes(gzip.compress(blob) if ending else blob)


@pytest.mark.parametrize(
    "name, folder, ending",
    [
        ("mnist", "MNIST/raw", ""),
        ("mnist", "mnist", ".gz"),
        ("fashion_mnist", "FashionMNIST/raw", ""),
        ("fashion_mnist", "fashion-mnist", ".gz"),
    ],
)
def test_idx_files_are_found_in_each_layout(name, folder, ending, tmp_path, monkeypatch):
    write_idx_set(tmp_path / "b" / folder, ending)
    monkeypatch.setenv("LOTTERY_DATA", f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}")
    d = domain(name)
    assert (len(d.train), len(d.validation), len(d.test)) == (
        30,
        10,
        20,
    ) and d.note == "40 of the 60,000 training pictures"
    assert torch.equal(d.test.x.flatten(), torch.arange(20 * 64).to(torch.uint8)) and len(d.classes) == 10


def test_what_is_nowhere_is_refused_with_the_places_and_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("LOTTERY_DATA", str(tmp_path / "empty"))
    for name in ("mnist", "cifar10", "smallnorb"):
        with pytest.raises(LotteryError) as e:
            domain(name).train  # noqa: B018
        assert (
            str(tmp_path / "empty") in str(e.value)
            and str(tmp_path / "cache") in str(e.value)
            and "LOTTERY_DATA" in str(e.value)
        )


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_foreign_pickle_is_never_opened(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]
    for name in names:
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "gone off")))
    monkeypatch.setenv("LOTTERY_DATA", str(tmp_path))
    with pytest.raises(LotteryError, match="MD5"):
        domain("cifar10").train  # noqa: B018
    assert not (tmp_path / "gone off").exists()
    pickle.loads((folder / names[0]).read_bytes())
    assert (tmp_path / "gone off").exists()


def matrix(array, magic):
    return (
        np.array([magic, array.ndim, *array.shape, *[1] * (3 - array.ndim)], "<u4").tobytes()
        + array.tobytes()
    )


@pytest.fixture
def smallnorb(tmp_path, monkeypatch):
    """The six files in the published format; `cat` and the test `info` are the published ones, pictures are 4×4 and say which they are."""
    n = 24_300
    cat = np.tile(np.arange(5, dtype="<i4"), n // 5)
    grid = [
        (i, e, a, li) for i in (0, 1, 2, 3, 5) for e in range(9) for a in range(0, 36, 2) for li in range(6)
    ]
    info = {"test": np.repeat(np.array(grid, "<i4"), 5, 0)}
    toys = np.random.default_rng(0).permutation(np.repeat([4, 6, 7, 8, 9], 972))
    info["train"] = np.repeat(np.stack([toys, *np.zeros((3, n // 5), int)], 1).astype("<i4"), 5, 0)
    md5, sums = hashlib.md5, dict(SMALLNORB_MD5)
    for s in ("train", "test"):
        dat = np.zeros((n, 2, 4, 4), np.uint8)
        dat[:, 0, 0, 0], dat[:, 0, 0, 1], dat[:, 1] = np.arange(n) // 256, np.arange(n) % 256, 9
        for kind, array, magic in (
            ("dat", dat, 0x1E3D4C55),
            ("cat", cat, 0x1E3D4C54),
            ("info", info[s], 0x1E3D4C54),
        ):
            blob = matrix(array, magic)
            (tmp_path / f"{SMALLNORB[s]}-{kind}.mat").write_bytes(blob)
            if kind == "dat" or (s, kind) == ("train", "info"):
                sums[f"{s}-{kind}"] = ("", md5(blob).hexdigest())
    monkeypatch.setattr(data_builtin, "SMALLNORB_MD5", sums)
    monkeypatch.setenv("LOTTERY_DATA", str(tmp_path))
    return info["train"][:, 0], cat


def test_smallnorb_is_read_in_its_published_format(smallnorb):
    toys, cat = smallnorb
    d = domain("smallnorb")
    assert (
        d.classes == ("animal", "human", "airplane", "truck", "car")
        and d.shape == (1, 4, 4)
        and len(d.test) == 24_300
    )
    train, val = which(d.train), which(d.validation)
    assert len(train) == 24_300 * 4 // 5 and len(val) == 24_300 // 5 and not set(train) & set(val)
    held = {c: set(toys[[i for i in val if cat[i] == c]].tolist()) for c in range(5)}
    assert all(len(t) == 1 for t in held.values())
    assert all(toys[i] not in held[cat[i]] for i in train)
    assert d.train.y.tolist() == cat[train].tolist() and d.train.x.max() != 9 and "toy" in d.note


def test_smallnorb_with_a_wrong_byte_is_refused(smallnorb, tmp_path):
    path = tmp_path / f"{SMALLNORB['test']}-info.mat"
    blob = bytearray(path.read_bytes())
    assert read_matrix(path, SMALLNORB_MD5["test-info"]).shape == (24_300, 4)
    blob[-1] ^= 1
    path.write_bytes(blob)
    with pytest.raises(LotteryError, match="does not have its makers' MD5 sum"):
        domain("smallnorb").train  # noqa: B018


def test_matrices_packed_of_other_types_and_cut_off(tmp_path):
    array = np.arange(10, dtype="<f8").reshape(2, 5)
    packed = tmp_path / "a.mat.gz"
    packed.write_bytes(gzip.compress(matrix(array, 0x1E3D4C53)))
    sums = (hashlib.md5(packed.read_bytes()).hexdigest(), "")
    assert np.array_equal(read_matrix(packed, sums), array)
    for blob in (matrix(array, 0x1E3D4C53)[:-1], matrix(array, 0x12345678), b"short"):
        (tmp_path / "b.mat").write_bytes(blob)
        with pytest.raises(LotteryError, match="not a whole SmallNORB matrix"):
            read_matrix(tmp_path / "b.mat")


def test_a_limit_decodes_only_what_it_takes(monkeypatch):
    import io

    def png(picture):
        file = io.BytesIO()
        Image.fromarray(picture[0].numpy()).save(file, "PNG")
        return file.getvalue()

    raw = numbered(400)
    encoded = data_readers.Encoded([png(p) for p in raw.x], "mine")
    decoded, decode = [], data_readers.decode
    monkeypatch.setattr(
        data_readers, "decode", lambda file, where="": decoded.append(where) or decode(file, where)
    )
    register_domain("packed", lambda: Raw(encoded, raw.y, raw.classes))
    register_domain("open", lambda: Raw(raw.x, raw.y, raw.classes))
    assert domain("packed@50").fingerprint == domain("open@50").fingerprint and len(decoded) == 50


# own data

BAD = {
    "not a number": (
        lambda x: np.where(np.arange(len(x))[:, None, None] == 3, np.nan, x / 255.0),
        "picture 3 of mine holds nan",
    ),
    "infinite": (
        lambda x: np.where(np.arange(len(x))[:, None, None] == 3, np.inf, x / 255.0),
        "picture 3 of mine holds inf",
    ),
    "normalised": (lambda x: x / 50.0 - 2, "holds -2"),
    "too bright": (lambda x: x.astype(int) + 300, "holds 300"),
    "one axis": (lambda x: x.reshape(len(x), -1)[:, 0], "have shape"),
    "two axes": (lambda x: x.reshape(len(x), -1), "have shape"),
    "five axes": (lambda x: x[:, None, None], "have shape"),
    "no pixels": (lambda x: x[:, :0], "have shape"),
    "several sizes": (lambda x: [*x[:-1], x[0, :5]], "bring all to one size"),
    "text": (lambda x: x.astype(str), "give numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_pictures_are_refused_in_one_sentence(case):
    change, part = BAD[case]
    x = np.zeros((20, 8, 8), np.uint8)
    x[10:] = 200
    assert from_arrays(x, [0, 1] * 10, name="mine").n_classes == 2
    with pytest.raises(LotteryError) as e:
        from_arrays(change(x), [0, 1] * 10, name="mine")
    assert part in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "y, classes, part",
    [
        ([0, 1] * 9, None, "for 20 rows"),
        ([0.5, 1.0] * 10, None, "label 0.5 in row 0 of mine is float"),
        ([0, -1] * 10, None, "label -1"),
        ([0, 5] * 10, ("a", "b"), "label 5"),
        ([0, 0] * 10, None, "class '0'"),
        ([0] * 19 + [1], None, "class '1'"),
        (["a", "c"] * 10, ("a", "b"), "label 'c'"),
        ([0, 1] * 10, ("a", "b", "c"), "class 'c'"),
        ([1, None] * 10, None, "the label in row 1 of mine is missing (None)"),
        ([[0], [1]] * 10, None, "labels of mine have shape (20, 1)"),
        ([1j, 0j] * 10, None, "is complex"),
    ],
)
def test_bad_labels_are_refused_in_one_sentence(y, classes, part):
    with pytest.raises(LotteryError) as e:
        from_arrays(np.zeros((20, 8, 8)), y, classes=classes, name="mine")
    assert part in str(e.value) and "\n" not in str(e.value)


def test_white_is_decided_on_the_training_pictures():
    x = torch.zeros(20, 8, 8)
    x[5:] = 1
    d = from_arrays(x, [0, 1] * 10, (x[:4] * 0.5, [0, 1] * 2))
    assert d.test.x.max() == 0 and d.train.x.max() == 255
    assert from_arrays(x * 200, [0, 1] * 10, (x[8:12], [0, 1] * 2)).test.x.max() == 1
    with pytest.raises(LotteryError, match="picture 0 of the test pictures of own holds 255"):
        from_arrays(x, [0, 1] * 10, (x[8:12] * 255, [0, 1] * 2))


@given(
    st.integers(1, 4),
    st.sampled_from([torch.uint8, torch.int16, torch.int64, torch.float16, torch.float64, torch.bool]),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_all_forms_of_one_picture_are_one_picture(seed, kind, last):
    x = (
        torch.randint(2, (12, 3, 8, 9), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        * 255
    )
    given_x = x / 255 if kind.is_floating_point else x > 0 if kind == torch.bool else x
    given_x = given_x.to(kind).permute(0, 2, 3, 1) if last else given_x.to(kind)
    assert from_arrays(given_x.numpy(), [0, 1] * 6).fingerprint == from_arrays(x, [0, 1] * 6).fingerprint


def test_tables_of_paths_and_of_mixed_pictures(tmp_path):
    colour, grey = Image.new("RGBA", (8, 8), (10, 20, 30, 0)), Image.new("L", (8, 8), 50)
    for i in range(6):
        (colour if i % 2 else grey).save(tmp_path / f"{i}.png")
    frame = pd.DataFrame(
        {
            "image": [str(tmp_path / f"{i}.png") for i in range(6)],
            "label": pd.Categorical(["cat", "cat", "cat", "dog", "dog", "dog"]),
        }
    )
    d = from_frame(frame, channels=3)
    assert (
        d.classes == ("cat", "dog")
        and d.raw.x[1, :, 0, 0].tolist() == [255, 255, 255]
        and d.note == "own data without test pictures; what is transparent is laid on white"
        and d.raw.x[0, :, 0, 0].tolist() == [50] * 3
    )
    with pytest.raises(LotteryError, match="say channels=3"):
        from_frame(frame)
    frame.loc[2, "image"] = None
    with pytest.raises(LotteryError, match="picture 2 of the frame of own is"):
        from_frame(frame, channels=3)


def test_a_torch_data_set_that_yields_names_and_one_that_only_iterates():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(torch.full((1, 8, 8), i / 12), "ab"[i % 2]) for i in range(12)])

    d = from_dataset(Stream())
    assert d.classes == ("a", "b") and len(d.train) + len(d.validation) == 12


def test_a_saved_domain_is_the_same_and_a_foreign_file_is_refused(tmp_path):
    own = from_arrays(
        numbered().x, numbered().y, numbered().test, classes=tuple("abcde"), name="mine", validation=0.2
    )
    register_domain("mine", lambda: own)
    picked = domain("mine[1,3]+noise@80").adapt((3, 8, 8))
    for d in (own, picked, domain("digits[0-4]")):
        back = load_domain(save_domain(d, tmp_path / "d.safetensors"))
        assert (
            back.fingerprint == d.fingerprint
            and back.adapters == d.adapters
            and back.name == d.name
            and torch.equal(back.train.x, d.train.x)
        )
    (tmp_path / "bad.safetensors").write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(LotteryError, match="bad.safetensors: it is not a safetensors file"):
        load_domain(tmp_path / "bad.safetensors")


# real data

REAL = {
    "mnist": ((1, 28, 28), 10, 10_000),
    "fashion_mnist": ((1, 28, 28), 10, 10_000),
    "cifar10": ((3, 32, 32), 10, 10_000),
    "smallnorb": (None, None, None),
}


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_real_data(name):
    try:
        d = domain(f"{name}@500")
    except LotteryError as e:
        pytest.skip(str(e))
    try:
        size = len(d.train)
    except LotteryError as e:
        pytest.skip(str(e))
    shape, k, tests = REAL[name]
    assert size == 450 and len(d.validation) == 50
    assert (d.shape, d.n_classes, len(d.test)) == (shape, k, tests) if shape else d.n_classes in (3, 5)
    assert (
        d.train.y.bincount().min() > 0
        and 0.05 < float(d.mean.mean()) < 0.9
        and 0.05 < float(d.std.mean()) < 0.5
    )
    assert not {p.tobytes() for p in d.train.x.numpy()} & {p.tobytes() for p in d.validation.x.numpy()}
