"""Labels, pictures and files as people have them: kept as they are, or refused in a sentence that names the place and the remedy. Each kind has members that no lesson shows."""

import decimal
import io
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.transforms.v2.functional import center_crop, resize

from lottery_nb.core import LotteryError
from lottery_nb.data.builtin import read_idx_set
from lottery_nb.data.domains import domain, register_domain
from lottery_nb.data.own import (
    from_arrays,
    from_csv,
    from_dataset,
    from_folder,
    from_frame,
    from_parquet,
    from_texts,
    load_domain,
    save_domain,
    to_labels,
)
from lottery_nb.data.readers import Raw
from lottery_nb.engine.recipes import Recipe
from lottery_nb.plans.find import find_tickets, FindPlan
from lottery_nb.pruning.schedules import geometric

GREY = np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8)


def refused(fn, *parts):
    "The sentence of a refusal, which must hold all parts."
    with pytest.raises(LotteryError) as e:
        fn()
    said = str(e.value)
    assert "\n" not in said and all(part in said for part in parts), said
    return said


def labels_of(d):
    "The labels of a domain's rows by class name, in the order of the rows."
    return [d.raw.classes[c] for c in d.raw.y.tolist()]


# labels

GAPS = {
    "None": [0, None] * 10,
    "nan": [0.0, float("nan")] * 10,
    "nan among names": ["a", float("nan")] * 10,
    "empty": ["a", ""] * 10,
    "only spaces": ["a", "  "] * 10,
    "NaT": [0, pd.NaT] * 10,
    "pd.NA": pd.array([0, None] * 10, "Int64"),
    "pd.NA among names": pd.array(["a", None] * 10, "string"),
    "numpy's NaT": ["a", np.datetime64("NaT")] * 10,
    "a masked array": np.ma.masked_array([0, 1] * 10, [False, True] * 10),
    "a decimal": ["a", decimal.Decimal("nan")] * 10,
    "a tensor": torch.tensor([0.0, float("nan")] * 10),
    "half precision": torch.tensor([0.0, float("nan")] * 10, dtype=torch.bfloat16),
    "a category": pd.Categorical(["a", None] * 10),
}


@pytest.mark.parametrize("gap", GAPS)
def test_a_missing_label_is_refused_with_its_row(gap):
    refused(lambda: from_arrays(GREY, GAPS[gap], name="mine"), "the label in row 1 of mine is missing")


MAPPED = {
    "from 1": ([1, 2, 3, 1, 2], ("1", "2", "3"), [0, 1, 2, 0, 1]),
    "two of ten": ([8, 3, 8, 3, 8], ("3", "8"), [1, 0, 1, 0, 1]),
    "identifiers": ([15_000_000, 7, 2**62, 7, 7], ("7", "15000000", str(2**62)), [1, 0, 2, 0, 0]),
    "beyond 64 bits": ([10**30, 5, 10**30, 5, 5], ("5", str(10**30)), [1, 0, 1, 0, 0]),
    "unsigned": (
        np.array([2**64 - 1, 3], np.uint64)[[0, 1, 0, 1, 1]],
        ("3", str(2**64 - 1)),
        [1, 0, 1, 0, 0],
    ),
    "truth": ([True, False, True, False, True], ("False", "True"), [1, 0, 1, 0, 1]),
    "whole floats": ([2.0, 1.0, 2.0, 1.0, 1.0], ("1", "2"), [1, 0, 1, 0, 0]),
    "floats and ints": ([2.0, 1, 2, 1.0, 1], ("1", "2"), [1, 0, 1, 0, 0]),
    "signs": ([-1, 1, 1, -1, 1], ("-1", "1"), [0, 1, 1, 0, 1]),
    "names": (["b", "a", "b", "a", "a"], ("a", "b"), [1, 0, 1, 0, 0]),
    "words for nothing": (
        ["nan", "NA", "None", "null", "NA"],
        ("NA", "None", "nan", "null"),
        [2, 0, 1, 3, 0],
    ),
    "numbers as text": (["10", "9", "10", "9", "9"], ("10", "9"), [0, 1, 0, 1, 1]),
    "any script": (["猫", "किताब", "猫", "кот", "кот"], ("кот", "किताब", "猫"), [2, 1, 2, 0, 0]),
    "numpy strings": (np.array(["b", "a"])[[0, 1, 0, 1, 1]], ("a", "b"), [1, 0, 1, 0, 0]),
    "a series": (pd.Series([5, 4, 5, 4, 4], index=[9, 8, 7, 6, 5]), ("4", "5"), [1, 0, 1, 0, 0]),
    "an arrow column": (pa.array([5, 4, 5, 4, 4]), ("4", "5"), [1, 0, 1, 0, 0]),
    "tensors in a list": ([torch.tensor(5), np.int8(4), torch.tensor(5), 4, 4], ("4", "5"), [1, 0, 1, 0, 0]),
    "small integers": (torch.tensor([200, 4, 200, 4, 4], dtype=torch.uint8), ("4", "200"), [1, 0, 1, 0, 0]),
}


@pytest.mark.parametrize("form", MAPPED)
def test_labels_are_what_they_are(form):
    labels, classes, places = MAPPED[form]
    y, names = to_labels(labels, None, 5, "mine")
    assert (y.tolist(), names, y.dtype) == (places, classes, torch.int64)


WRONG = {
    "fractions": ([0.5, 1.0] * 10, "label 0.5 in row 0"),
    "infinity": ([1.0, float("inf")] * 10, "label inf in row 1"),
    "too large for a float": ([1.0, 1e300] * 10, "label 1e+300 in row 1"),
    "one-hot": (np.eye(2)[[0, 1] * 10], "have shape (20, 2)"),
    "several labels": ([[0], [0, 1]] * 10, "label [0] in row 0"),
    "sets": ([{0}, {1}] * 10, "label {0} in row 0"),
    "dictionaries": ([{"a": 1}, {"b": 1}] * 10, "label {'a': 1} in row 0"),
    "bytes": ([b"cat", b"dog"] * 10, "label b'cat' in row 0"),
    "dates": (pd.to_datetime(["2020-01-01", "2020-01-02"] * 10), "Timestamp"),
    "complex": ([1j, 0j] * 10, "is complex"),
    "names and numbers": (["a", 1] * 10, "label 1 in row 1 of mine is a number and the first is a name"),
    "truth and names": ([True, "no"] * 10, "label 'no' in row 1"),
    "unknown, as -1": ([0, 1, -1, 1] * 5, "label -1 of mine is negative"),
    "half a character": (["a", "\ud83d"] * 10, "in row 1 of mine holds half a character"),
    "fewer than pictures": ([0, 1] * 9, "have shape (18,) for 20 rows"),
    "more than pictures": ([0, 1] * 11, "have shape (22,) for 20 rows"),
    "one class": ([4] * 20, "class '4'"),
    "each its own": (list(range(7, 27)), "class '7'"),
}


@pytest.mark.parametrize("form", WRONG)
def test_what_is_no_label_is_refused_in_a_sentence(form):
    labels, part = WRONG[form]
    refused(lambda: from_arrays(GREY, labels, name="mine"), part)


@pytest.mark.parametrize("high", [1, 15_000_000, 2**62])
def test_time_and_memory_do_not_grow_with_the_label(high):
    labels = np.array([0, high] * 5_000, np.int64)
    tracemalloc.start()
    begun = time.process_time()
    y, classes = to_labels(labels, None, 10_000, "mine")
    seconds, (_, peak) = time.process_time() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert y.tolist() == [0, 1] * 5_000 and classes == ("0", str(high))
    assert peak < 4e6 and seconds < 2


def test_test_labels_go_through_the_mapping_of_the_training_labels():
    d = from_arrays(GREY, [3, 8] * 10, (GREY[:3], [8, 8, 3]))
    assert d.classes == ("3", "8") and d.test.y.tolist() == [1, 1, 0]
    one = from_arrays(GREY, [1, 2] * 10, (GREY[:2], [1, 1]))  # 1 is a class here, not the second place
    assert one.test.y.tolist() == [0, 0]
    assert from_arrays(GREY, ["1", "2"] * 10, (GREY[:2], [2, 1])).test.y.tolist() == [1, 0]
    named = from_arrays(GREY, [0, 1] * 10, (GREY[:2], [1, 0]), classes=("7", "0"))
    assert named.test.y.tolist() == [1, 0]
    refused(
        lambda: from_arrays(GREY, [3, 8] * 10, (GREY[:1], [0])),
        "label 0 of the test pictures of own is none of the classes 3, 8",
    )
    refused(lambda: from_texts(list("abcd"), ["x", "y"] * 2, (["a"], ["z"])), "label 'z' of the test texts")
    refused(lambda: from_arrays(GREY, [0, 1] * 10, classes=("a", "a")), "class 'a' of own stands twice")
    refused(
        lambda: from_arrays(GREY, [0, 1] * 10, (GREY[:2], [0, None])),
        "row 1 of the test pictures of own is missing",
    )


def test_a_mapped_domain_goes_to_a_file_and_trains(tmp_path):
    d = from_arrays(GREY, [3, 15_000_000] * 10, (GREY[:2], [15_000_000, 3]), name="ids")
    back = load_domain(save_domain(d, tmp_path / "d.safetensors"))
    assert back.fingerprint == d.fingerprint and back.classes == ("3", "15000000")
    register_domain("ids", lambda: d)
    assert domain("ids[15000000,3]").test.y.tolist() == [0, 1]


WORDS = ["NA", "null", "None", "nan", "N/A", "#N/A", "NULL", "<NA>", "n/a", "-nan", "True", "1e5"]


def test_words_for_nothing_in_a_csv_are_words(tmp_path):
    rows = [f"{word},{label}" for word in WORDS for label in ("NA", "None", "null", "nan")]
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    d = from_csv(tmp_path / "t.csv")
    assert d.classes == ("NA", "None", "nan", "null") and set(d.raw.x.rows) == set(WORDS)
    assert labels_of(d)[:4] == ["NA", "None", "null", "nan"]
    for name, text, classes in (
        ("whole.csv", "a,2\nb,10\nc,2\nd,10\n", ("2", "10")),
        ("zeros.csv", "a,007\nb,7\nc,007\nd,7\n", ("007", "7")),
        ("floats.csv", "a,1.0\nb,0.0\nc,1.0\nd,0.0\n", ("0", "1")),
    ):
        (tmp_path / name).write_text("text,label\n" + text)
        assert from_csv(tmp_path / name).classes == classes
    (tmp_path / "gap.csv").write_text("text,label\na,NA\nb,\nc,x\nd,x\n")
    refused(lambda: from_csv(tmp_path / "gap.csv"), "the label in row 1 of own is missing")


def test_frames_and_parquet_files_keep_names_and_refuse_gaps(tmp_path):
    cells = [png(p) for p in GREY]
    for label in (["NA", "null"], ["猫", "кот"], [41, 7], [True, False]):
        frame = pd.DataFrame({"image": cells, "label": label * 10})
        frame.to_parquet(tmp_path / "p.parquet")
        one, two = from_frame(frame), from_parquet(tmp_path / "p.parquet")
        assert one.fingerprint == two.fingerprint and set(one.classes) == set(map(str, label))
        assert labels_of(two) == list(map(str, label * 10))
    pq.write_table(pa.table({"image": cells, "label": [1, None] * 10}), tmp_path / "g.parquet")
    refused(lambda: from_parquet(tmp_path / "g.parquet"), "the label in row 1 of own is missing")
    texts = pd.DataFrame({"text": list("abcd"), "label": [1, 0, None, 1]})
    texts.to_parquet(tmp_path / "t.parquet")
    refused(lambda: from_parquet(tmp_path / "t.parquet", text="text"), "the label in row 2 of own is missing")


def idx(path, array):
    head = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(head + array.tobytes())
    return [path]


@pytest.mark.parametrize(
    "y, test_y, parts",
    [
        ([0, 10, 2, 3], [0, 1], ("label 10 in row 1 of train-labels", "10 classes are labelled 0 to 9")),
        ([0, 1, 2, 3], [0, 255], ("label 255 in row 1 of test-labels",)),
        ([0, 1, 2], [0, 1], ("train-labels has 4 rows and 3 labels",)),
        ([0, 1, 2, 3, 4], [0, 1], ("train-labels has 4 rows and 5 labels",)),
        ([0, 1, 2, 3], [0], ("test-labels has 2 rows and 1 labels",)),
    ],
)
def test_idx_labels_that_do_not_belong_are_refused(y, test_y, parts, tmp_path):
    y, test_y = (np.array(labels, np.uint8) for labels in (y, test_y))
    pictures = idx(tmp_path / "train-pictures", GREY[:4]), idx(tmp_path / "test-pictures", GREY[:2])
    labels = idx(tmp_path / "train-labels", y), idx(tmp_path / "test-labels", test_y)
    refused(lambda: read_idx_set([pictures[0], labels[0], pictures[1], labels[1]]), *parts)


def test_a_loader_of_somebody_else_is_held_to_the_same():
    x = torch.from_numpy(GREY).unsqueeze(1)
    for y, part in (
        (torch.tensor([0, 2] * 10), "label 2 in row 1"),
        (torch.tensor([0, -1] * 10), "label -1 in row 1"),
        (torch.tensor([0, 1] * 9), "20 rows and 18 labels"),
        (torch.tensor([0.0, 1.0] * 10), "torch.float32"),
        ([0, 1] * 10, "are list"),
    ):
        refused(lambda y=y: Raw(x, y, ("a", "b")), part)
    refused(
        lambda: Raw(x, torch.tensor([0, 1] * 10), ("a", "b"), held_out=torch.ones(3).bool()), "(3,) for 20"
    )


# pictures


def png(array, kind="PNG", **more):
    file = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(file, kind, **more)
    return file.getvalue()


def pictures_of(d):
    return d.raw.x


HALF = [0, 1] * 10
AXES = {
    "grey": ((20, 9, 7), None, (1, 9, 7)),
    "one channel first": ((20, 1, 9, 7), None, (1, 9, 7)),
    "one channel last": ((20, 9, 7, 1), None, (1, 9, 7)),
    "two last": ((20, 9, 7, 2), None, (2, 9, 7)),
    "transparency last": ((20, 32, 32, 4), None, (4, 32, 32)),
    "transparency first": ((20, 4, 32, 32), None, (4, 32, 32)),
    "colour last": ((20, 9, 7, 3), None, (3, 9, 7)),
    "five bands": ((20, 5, 9, 7), 5, (5, 9, 7)),
    "seven bands last": ((20, 9, 6, 7), 7, (7, 9, 6)),
    "said first": ((20, 3, 3, 3), "first", (3, 3, 3)),
    "said last": ((20, 3, 8, 4), "last", (4, 3, 8)),
    "a number tells": ((20, 3, 8, 4), 3, (3, 8, 4)),
}


@pytest.mark.parametrize("case", AXES)
def test_the_axis_of_channels_is_found(case):
    shape, channels, wanted = AXES[case]
    x = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    kept = pictures_of(from_arrays(x, HALF, channels=channels)).numpy()
    assert kept.shape[1:] == wanted
    if x.ndim == 4:
        x = x if kept.shape == x.shape else np.moveaxis(x, 3, 1)
    assert np.array_equal(kept, x.reshape(kept.shape))


@pytest.mark.parametrize(
    "shape", [(20, 3, 3, 3), (20, 4, 4, 4), (20, 1, 8, 3), (20, 2, 9, 4), (20, 5, 9, 7), (20, 8, 8, 8)]
)
def test_an_axis_that_cannot_be_told_is_asked_for(shape):
    refused(lambda: from_arrays(np.zeros(shape), HALF), "say channels='first' for [N, C, H, W]", str(shape))


def test_channels_that_are_asked_for_must_be_there():
    refused(
        lambda: from_arrays(np.zeros((20, 9, 9, 3)), HALF, channels=4), "neither axis can be the channels"
    )


RAMP = np.linspace(0, 65535, 20 * 64).astype(np.uint16).reshape(20, 8, 8)
DEEP = {
    "16 bits": (RAMP, RAMP / 257),
    "16 bits of which few are used": ((RAMP // 16), (RAMP // 16) / 257),
    "floats 0 to 1": ((RAMP / 65535).astype(np.float32), RAMP / 257),
    "doubles 0 to 255": (RAMP / 257, RAMP / 257),
    "floats -1 to 1": (RAMP / 65535 * 2 - 1, RAMP / 257),
    "big-endian": (RAMP.astype(">u2"), RAMP / 257),
    "big-endian floats": ((RAMP / 65535).astype(">f4"), RAMP / 257),
    "80-bit floats": ((RAMP / 65535).astype(np.longdouble), RAMP / 257),
    "a list of arrays": (list(RAMP), RAMP / 257),
    "Pillow, 16 bits": ([Image.fromarray(p) for p in RAMP], RAMP / 257),
    "Pillow, floats": ([Image.fromarray((p / 65535).astype(np.float32)) for p in RAMP], RAMP / 257),
    "Pillow, mode I": ([Image.fromarray(p.astype(np.int32)) for p in RAMP], RAMP / 257),
    "TIFF files, 16 bits": ([png(p, "TIFF") for p in RAMP], RAMP / 257),
    "PNG files, 16 bits": ([png(p) for p in RAMP], RAMP / 257),
    "PGM files, 16 bits": ([png(p, "PPM") for p in RAMP], RAMP / 257),
}


@pytest.mark.parametrize("form", DEEP)
def test_deep_pictures_keep_their_levels(form, tmp_path):
    given, wanted = DEEP[form]
    d = from_dataset([(p, i % 2) for i, p in enumerate(given)])
    kept = pictures_of(d)
    assert kept.dtype == torch.float32 and len(kept.unique()) == len(np.unique(wanted))
    assert np.abs(kept[:, 0].double().numpy() - wanted).max() < 1e-3 and "32-bit numbers" in d.note
    back = load_domain(save_domain(d, tmp_path / "d.safetensors"))
    assert back.fingerprint == d.fingerprint and torch.equal(pictures_of(back), kept)


BYTES = {
    "whole floats": GREY.astype(np.float64),
    "0 to 1": GREY.astype(np.float32) / 255,
    "0 to 1 in half precision": (GREY / 255).astype(np.float16),
    "-1 to 1, as Normalize((.5,), (.5,)) makes them": (torch.from_numpy(GREY).float() / 255 - 0.5) / 0.5,
    "-1 to 1 in doubles": GREY / 127.5 - 1,
    "bytes as 16 bits": GREY.astype(np.uint16),
    "whole numbers": GREY.astype(np.int64),
    "bfloat16": torch.from_numpy(GREY // 2 * 2).bfloat16(),
}


@pytest.mark.parametrize("form", BYTES)
def test_what_fits_bytes_stays_bytes(form):
    same = from_arrays(GREY // 2 * 2 if form == "bfloat16" else GREY, HALF)
    assert from_arrays(BYTES[form], HALF).fingerprint == same.fingerprint


@pytest.mark.parametrize(
    "form", ["by mean and deviation", "beyond 16 bits", "negative whole", "above 255", "nan"]
)
def test_pictures_whose_white_nobody_knows_are_refused(form):
    x = {
        "by mean and deviation": (GREY / 255 - 0.485) / 0.229,
        "beyond 16 bits": [Image.fromarray(np.full((8, 8), 70_000 + i, np.int32)) for i in range(20)],
        "negative whole": GREY.astype(np.int32) - 1,
        "above 255": GREY.astype(np.float32) * 3,
        "nan": np.where(GREY == 9, np.nan, GREY / 255),
    }[form]
    said = refused(lambda: from_dataset([(p, i % 2) for i, p in enumerate(x)]), "holds")
    assert "give" in said


def test_sixteen_bit_colour_is_refused_and_not_cut_to_eight(tmp_path):
    import struct
    import zlib

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    def deep_png(colour, channels):
        rows = b"".join(b"\0" + np.full((8, channels), 1000, ">u2").tobytes() for _ in range(8))
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, colour, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

    ppm = b"P6 8 8 65535\n" + np.full((8, 8, 3), 1000, ">u2").tobytes()
    for file in (deep_png(2, 3), deep_png(6, 4), deep_png(4, 2), ppm):
        assert Image.open(io.BytesIO(file)).mode in ("RGB", "RGBA", "LA")
        frame = pd.DataFrame({"image": [file] * 4, "label": [0, 1] * 2})
        refused(
            lambda frame=frame: from_frame(frame), "picture 0 of the frame of own has 16 bits for each colour"
        )


def transparent(mode, value=0, alpha=0):
    return Image.new(mode, (8, 8), {"RGBA": (value,) * 3 + (alpha,), "LA": (value, alpha)}[mode])


def keyed(mode):
    "A picture in which a colour stands for transparency, as PNG and GIF can say it."
    picture = Image.new(mode, (8, 8), 5 if mode in "LP" else (5, 5, 5))
    if mode == "P":
        picture.putpalette([9, 9, 9] * 256)
    return png(picture, "PNG", transparency=5 if mode in "LP" else (5, 5, 5))


SEEN = {  # what a picture that is transparent all over is on white
    "colour": (transparent("RGBA"), 3),
    "grey": (transparent("LA"), 1),
    "a file of colour": (png(transparent("RGBA")), 3),
    "a file of grey": (png(transparent("LA")), 1),
    "a palette": (keyed("P"), 3),
    "a grey level as key": (keyed("L"), 1),
    "a colour as key": (keyed("RGB"), 3),
    "WebP": (png(transparent("RGBA"), "WEBP", lossless=True, exact=True), 3),
    "premultiplied": (transparent("RGBA").convert("RGBa"), 3),
}


@pytest.mark.parametrize("form", SEEN)
def test_what_is_transparent_is_laid_on_white_and_told(form):
    cell, channels = SEEN[form]
    d = from_frame(pd.DataFrame({"image": [cell] * 4, "label": [0, 1] * 2}))
    assert pictures_of(d).shape[1] == channels and (pictures_of(d) == 255).all()
    assert d.note.endswith("; what is transparent is laid on white")


SEVERAL = {"TIFF": "tif", "GIF": "gif", "PNG": "png", "WEBP": "webp", "AVIF": "avif"}


def frames(kind, n=3):
    "The bytes of a file of n pictures."
    Image.init()
    if kind not in Image.SAVE_ALL:
        pytest.skip(f"this Pillow writes no {kind}")
    first, *others = [Image.fromarray(GREY[i]).convert("RGB") for i in range(n)]
    file = io.BytesIO()
    first.save(file, kind, save_all=True, append_images=others)
    return file.getvalue()


@pytest.mark.parametrize("kind", SEVERAL)
def test_a_file_of_several_pictures_is_refused_by_its_name(kind, tmp_path):
    for i in range(4):
        (tmp_path / f"{i % 2}").mkdir(exist_ok=True)
        (tmp_path / f"{i % 2}" / f"{i}.png").write_bytes(frames("PNG", 1))
    odd, says = tmp_path / "1" / f"stack.{SEVERAL[kind]}", f"is a {kind} of several pages or frames"
    odd.write_bytes(frames(kind))
    if kind != "AVIF":  # a folder of pictures leaves files with this ending out
        refused(lambda: from_folder(tmp_path), odd.name, says)
    for cell in (str(odd), {"bytes": odd.read_bytes(), "path": odd.name}, Image.open(odd)):
        table = pd.DataFrame({"image": [cell] * 4, "label": [0, 1] * 2})
        refused(lambda table=table: from_frame(table), odd.name, says)
    odd.write_bytes(frames(kind, 1))
    table = pd.DataFrame({"image": [str(odd)] * 4, "label": [0, 1] * 2})
    assert len(from_frame(table).raw.x) == 4


@pytest.mark.parametrize("gap", [None, float("nan"), pd.NA, np.float64("nan")], ids=repr)
def test_a_missing_picture_is_refused_with_its_row(gap):
    cells = [Image.fromarray(GREY[0]), Image.fromarray(GREY[1]), gap, gap]
    table = pd.DataFrame({"image": pd.Series(cells, dtype=object), "label": [0, 1] * 2})
    refused(lambda: from_frame(table), "picture 2 of the frame of own is missing: fill the gap")
    refused(lambda: from_dataset(list(zip(cells, [0, 1] * 2, strict=True))), "picture 2 of", "is missing")


@pytest.mark.parametrize("name", ["nowhere/x.png", "folder", "https://a.example/c.png"])
def test_a_file_that_cannot_be_read_is_named(name, tmp_path):
    (tmp_path / "folder").mkdir()
    cell = name if ":" in name else str(tmp_path / name)
    refused(
        lambda: from_frame(pd.DataFrame({"image": [cell] * 4, "label": [0, 1] * 2})), name.rpartition("/")[2]
    )


@pytest.mark.parametrize("encoding", ["latin1", "utf-16", "cp1252", "shift_jis"])
def test_a_table_in_another_encoding_is_refused_by_it(encoding, tmp_path):
    word = "日本" if encoding == "shift_jis" else "café"
    text = "text,label\n" + "".join(f"{word} {i},{'ab'[i % 2]}\n" for i in range(4))
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    refused(lambda: from_csv(tmp_path / "a.csv"), "a.csv is not written in UTF-8", "save it as UTF-8")
    (tmp_path / "a.csv").write_bytes(text.encode("utf-8-sig"))
    assert from_csv(tmp_path / "a.csv").raw.x.rows[0] == f"{word} 0"


@pytest.mark.parametrize("kind, says", [("MPO", "several views"), ("ICO", "sizes of an icon")])
def test_of_views_and_sizes_of_one_picture_one_is_read_and_this_is_told(kind, says):
    file = io.BytesIO()
    picture = Image.new("RGB", (32, 32), "white")
    more = {"sizes": [(16, 16), (32, 32)]} if kind == "ICO" else {}
    more |= {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]} if kind == "MPO" else {}
    picture.save(file, kind, **more)
    d = from_frame(pd.DataFrame({"image": [file.getvalue()] * 4, "label": [0, 1] * 2}))
    assert d.raw.x.shape[2:] == (32, 32) and (d.raw.x == 255).all() and says in d.note


def test_half_transparency_is_mixed_and_can_be_kept_as_a_channel():
    cells = [transparent("RGBA", 100, 51), transparent("RGBA", 0, 255)]
    frame = pd.DataFrame({"image": cells * 2, "label": [0, 0, 1, 1]})
    d = from_frame(frame)
    assert pictures_of(d)[:2, :, 0, 0].tolist() == [[224] * 3, [0] * 3]  # 0.2 · 100 + 0.8 · 255
    kept = from_frame(frame, channels=4)
    assert pictures_of(kept)[:2, :, 0, 0].tolist() == [[100, 100, 100, 51], [0, 0, 0, 255]]
    assert "4 channels, each read as it is" in kept.note and "white" not in kept.note
    two = from_frame(
        pd.DataFrame({"image": [transparent("LA", 7, 9)] * 4, "label": [0, 0, 1, 1]}), channels=2
    )
    assert pictures_of(two)[0, :, 0, 0].tolist() == [7, 9]
    opaque = from_frame(pd.DataFrame({"image": [transparent("RGBA", 100, 255)] * 4, "label": [0, 0, 1, 1]}))
    assert "transparent" not in opaque.note and (pictures_of(opaque) == 100).all()
    arrays = from_arrays(np.zeros((20, 8, 8, 4), np.uint8), HALF)
    assert arrays.shape == (4, 8, 8) and "4 channels" in arrays.note and arrays.thumbnails(2).shape[-1] == 3


MODES = {
    "1": (Image.new("1", (8, 8), 1), [255]),
    "P": (keyed("P"), None),
    "CMYK": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), [255, 0, 0]),
    "a CMYK file": (png(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), [255, 0, 0]),
    "YCbCr": (Image.new("YCbCr", (8, 8), (255, 128, 128)), [255, 255, 255]),
    "HSV": (Image.new("HSV", (8, 8), (0, 0, 200)), [200, 200, 200]),
}


@pytest.mark.parametrize("mode", [m for m in MODES if MODES[m][1]])
def test_colours_are_those_that_are_seen(mode):
    cell, colour = MODES[mode]
    d = from_frame(pd.DataFrame({"image": [cell] * 4, "label": [0, 1] * 2}))
    assert pictures_of(d)[0, :, 0, 0].tolist() == colour


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_camera_that_was_turned_is_followed(orientation, kind):
    picture = np.zeros((16, 32), np.uint8)
    picture[:8, :8] = 255  # at the upper left of what the file holds
    exif = Image.Exif()
    exif[0x0112] = orientation
    d = from_frame(pd.DataFrame({"image": [png(picture, kind, exif=exif)] * 4, "label": [0, 1] * 2}))
    kept = pictures_of(d)[0, 0].float()
    corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[
        orientation
    ]
    h, w = kept.shape
    assert (h, w) == ((16, 32) if orientation < 5 else (32, 16))
    quarters = {
        (i, j): kept[i * h // 2 :, j * w // 2 :][: h // 2, : w // 2].mean() for i in (0, 1) for j in (0, 1)
    }
    assert max(quarters, key=quarters.get) == corner and ("EXIF" in d.note) == (orientation > 1)


def test_pictures_of_several_sizes_are_refused_or_brought_to_one():
    rng = np.random.default_rng(0)
    shapes = [(12, 20), (20, 12), (16, 16), (9, 31)] * 2
    arrays = [rng.integers(0, 255, (*shape, 3)).astype(np.uint8) for shape in shapes]
    y, forms = (
        [0, 1] * 4,
        {
            "arrays": arrays,
            "channels first": [np.moveaxis(a, 2, 0) for a in arrays],
            "tensors": [torch.from_numpy(a) for a in arrays],
            "files": [png(a) for a in arrays],
            "images": [Image.fromarray(a) for a in arrays],
        },
    )
    wanted = []
    for a in arrays:
        h, w = a.shape[:2]
        scale = max(8 / h, 10 / w)
        cover = [max(8, round(h * scale)), max(10, round(w * scale))]
        x = resize(torch.from_numpy(a).permute(2, 0, 1).float(), cover, antialias=True)
        wanted.append(center_crop(x, [8, 10]).round().to(torch.uint8))
    for form, cells in forms.items():
        pairs = list(zip(cells, y, strict=True))
        said = refused(lambda pairs=pairs: from_dataset(pairs), "picture 1 of", "size=")
        assert "the first" in said, form
        d = from_dataset(pairs, size=(8, 10))
        assert torch.equal(pictures_of(d), torch.stack(wanted)), form
        assert d.note.endswith("resized and cut to 8×10")
    assert from_arrays(arrays, y, (arrays[:2], [0, 1]), size=6).test.x.shape == (2, 3, 6, 6)
    floats = from_arrays([a / 255 for a in arrays], y, size=8)
    assert pictures_of(floats).dtype == torch.float32 and pictures_of(floats).max() > 100
    for size in (0, -3, 2.5, "8", (8,), (8, 0), (8, 8, 3), True):
        refused(lambda size=size: from_arrays(arrays, y, size=size), "size=")


def test_a_picture_in_colour_among_grey_ones_is_told_as_what_it_is():
    mixed = [Image.new("L", (8, 8), 9), Image.new("RGB", (8, 8), (1, 2, 3))] * 2
    pairs = list(zip(mixed, [0, 0, 1, 1], strict=True))
    refused(
        lambda: from_dataset(pairs), "picture 1 of the data set of own is in colour and the first is grey"
    )
    assert pictures_of(from_dataset(pairs, channels=3))[:2, :, 0, 0].tolist() == [[9, 9, 9], [1, 2, 3]]
    mixed = [png(GREY[0]), png(RAMP[0])] * 2
    frame = pd.DataFrame({"image": mixed, "label": [0, 0, 1, 1]})
    refused(lambda: from_frame(frame), "picture 1 of the frame of own holds torch.uint16")


# folders


def lay(root, *files):
    for i, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(GREY[i]))


def classes_in(split, n=2, names=("cat", "dog")):
    return [f"{split}/{c}/{i}.png" for c in names for i in range(n)]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val", "dev"])
@pytest.mark.parametrize("train, test", [("train", "test"), ("training", "testing"), ("Train", "TEST")])
def test_folders_of_splits_are_read_as_such(val, train, test, tmp_path):
    lay(tmp_path, *classes_in(train, 4), *classes_in(val), *classes_in(test, 3))
    d = from_folder(tmp_path)
    assert (len(d.train), len(d.validation), len(d.test)) == (8, 4, 6) and d.classes == ("cat", "dog")
    assert torch.equal(d.validation.x[:, 0].to(torch.uint8), torch.from_numpy(GREY[8:12]))
    assert (
        torch.equal(d.train.x[:, 0], torch.from_numpy(GREY[:8]))
        and f"validation is the folder '{val}'" in d.note
    )
    back = load_domain(save_domain(d, tmp_path / "d.safetensors"))
    assert torch.equal(back.validation.x, d.validation.x) and back.fingerprint == d.fingerprint


def test_folders_that_leave_a_question_are_refused_or_told(tmp_path):
    one = tmp_path / "one"
    lay(one, *classes_in("train"), *classes_in("val"), *classes_in("valid"))
    refused(lambda: from_folder(one), "'val' and 'valid', which both stand for validation")
    two = tmp_path / "two"
    lay(two, *classes_in("val"), *classes_in("test"))
    refused(lambda: from_folder(two), "has 'val', 'test' and no 'train'")
    three = tmp_path / "three"
    lay(three, *classes_in("train"), *classes_in("val", names=("cat", "dog", "cow")))
    refused(lambda: from_folder(three), "class 'cow' of folder 'val' is missing from train")
    four = tmp_path / "four"
    lay(four, *classes_in("train"), *classes_in("extra"))
    assert "not read: extra" in from_folder(four).note
    five = tmp_path / "five"  # kinds of transport: here 'train' is a class
    lay(five, "train/0.png", "train/1.png", "bus/0.png", "bus/1.png")
    assert from_folder(five).classes == ("bus", "train")
    six = tmp_path / "six"
    lay(six, *classes_in("."), ".ipynb_checkpoints/a.png", "__MACOSX/a.png", "cat/._0.png")
    assert from_folder(six).classes == ("cat", "dog") and len(from_folder(six).raw.y) == 4


@pytest.mark.parametrize("name", ["猫と犬", "हिन्दी चित्र", "Фото 2024", "صور", "ελληνικά", "café"])
def test_names_of_files_classes_and_domains_may_be_in_any_script(name, tmp_path):
    lay(tmp_path / name, *[f"{c}/{name} {i}.png" for c in (name, "NA") for i in range(2)])
    d = from_folder(tmp_path / name)
    assert set(d.classes) == {name, "NA"} and d.name == name.replace(" ", "-")
    register_domain(d.name, lambda: d)
    assert domain(f"{d.name}[NA,{name}]").classes == ("NA", name)
    back = load_domain(save_domain(d, tmp_path / f"{name}.safetensors"))
    assert back.name == d.name and back.classes == d.classes


def test_one_class_whose_accent_is_written_in_two_ways_is_one(tmp_path):
    lay(
        tmp_path,
        *classes_in("train", names=("caf\u00e9", "dog")),
        *classes_in("test", names=("cafe\u0301", "dog")),
    )
    assert from_folder(tmp_path).test.y.tolist() == [0, 0, 1, 1]


# data sets

X, Y = torch.from_numpy(GREY).unsqueeze(1), torch.tensor([0, 1] * 10)
SAME = from_arrays(GREY, HALF).fingerprint


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y.tolist(), strict=True))


class Long(Stream):
    def __len__(self):
        return 20


class Items(Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 20

    def __getitem__(self, i):
        if i >= 20:
            raise IndexError
        return self.make(X[i], int(Y[i]))


class Feature:
    names = ["0", "1"]


SETS = {
    "iterable": Stream(),
    "iterable with a length": Long(),
    "a generator": (pair for pair in Stream()),
    "a list": list(Stream()),
    "image and label": Items(lambda x, y: {"image": x, "label": y}),
    "pixel_values and labels": Items(lambda x, y: {"pixel_values": x.float() / 127.5 - 1, "labels": y}),
    "img and target, and more": Items(lambda x, y: {"id": 7, "img": x, "target": torch.tensor(y)}),
    "three parts": Items(lambda x, y: (x, y, "where it was found")),
    "a list for a pair": Items(lambda x, y: [x, y]),
    "numpy": Items(lambda x, y: (x.numpy(), np.int64(y))),
    "tensors": TensorDataset(X, Y),
    "two together": ConcatDataset(
        [Subset(TensorDataset(X, Y), range(10)), Subset(TensorDataset(X, Y), range(10, 20))]
    ),
    "normalised to -1 and 1": Items(lambda x, y: ((x.float() / 255 - 0.5) / 0.5, y)),
    "images": Items(lambda x, y: (Image.fromarray(x[0].numpy()), y)),
    "files": Items(lambda x, y: (png(x[0].numpy()), y)),
}


@pytest.mark.parametrize("form", SETS)
def test_every_form_of_a_data_set_is_the_same_data(form):
    assert from_dataset(SETS[form]).fingerprint == SAME


def test_names_of_classes_come_with_the_data_set():
    hugging = Items(lambda x, y: {"image": x, "label": y})
    hugging.features = {"image": None, "label": Feature()}
    assert from_dataset(hugging).classes == ("0", "1")
    part = Subset(TensorDataset(X, torch.arange(20) % 4), [i for i in range(20) if i % 4 in (1, 3)])
    assert from_dataset(part).classes == ("1", "3") and len(from_dataset(part).raw.y) == 10
    keys = Items(lambda x, y: {"photo": x, "kind": "ab"[y]})
    assert from_dataset(keys, image="photo", label="kind").classes == ("a", "b")


REFUSED_SETS = {
    "a loader": (
        DataLoader(TensorDataset(X, Y), 8),
        "is a DataLoader, which gives batches",
        "loader.dataset",
    ),
    "a loader of one": (DataLoader(Stream(), batch_size=None), "is a DataLoader"),
    "batches": ([(X[:8], Y[:8]), (X[8:], Y[8:])], "gives batches of shape (8, 1, 8, 8)"),
    "pictures alone": (list(X), "does not give (picture, label)"),
    "nothing": ([], "does not give (picture, label)"),
    "a dictionary": ({"image": X, "label": Y}, "is a dict", "from_arrays"),
    "a frame": (pd.DataFrame({"image": [1], "label": [2]}), "is a DataFrame", "from_frame"),
    "a path": (Path("somewhere"), "from_folder"),
    "a number": (3, "cannot be read item by item"),
    "other keys": (
        Items(lambda x, y: {"photo": x, "kind": y}),
        "has the keys photo, kind",
        "image= and label=",
    ),
    "two that fit": (
        Items(lambda x, y: {"image": x, "label": y, "labels": y}),
        "has the keys image, label, labels",
    ),
    "a gap": (Items(lambda x, y: (x, y if x[0, 0, 0] != X[3, 0, 0, 0] else None)), "row 3 of own is missing"),
    "one-hot": (Items(lambda x, y: (x, torch.eye(2)[y])), "have shape (20, 2)", "argmax"),
}


@pytest.mark.parametrize("form", REFUSED_SETS)
def test_what_gives_no_pairs_is_refused_in_a_sentence(form):
    given, *parts = REFUSED_SETS[form]
    refused(lambda: from_dataset(given), *parts)


# all the way


def test_deep_pictures_are_shifted_adapted_and_trained_as_bytes_are():
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    x = rng.integers(0, 20_000, (80, 12, 12)).astype(np.uint16)
    x[y == 1, :6] += 30_000
    d = from_arrays(x, y, (x[:20], y[:20]), name="deep")
    register_domain("deep", lambda: d)
    shifted = domain("deep+invert+noise(0.05)+blur(1)").adapt((3, 8, 8))
    assert shifted.train.x.dtype == torch.float32 and len(shifted.train.x.unique()) > 2000
    assert 0 <= shifted.train.x.min() and shifted.train.x.max() <= 255
    batch = d.inputs(d.train.x, torch.arange(len(d.train)))
    scaled = (d.train.x.double() - d.train.x.double().mean()) / d.train.x.double().std(correction=0)
    assert batch.std(correction=0).item() == pytest.approx(1, abs=1e-4) and len(batch.unique()) > 2000
    assert (batch.double() - scaled).abs().max() < 1e-5
    recipe = Recipe(lr=0.1, epochs=4, batch_size=16, augment=("crop", "flip"))
    plan = FindPlan(d, network="lenet-300-100", width=0.1, schedule=geometric(0.5, 1), recipe=recipe, seeds=1)
    done = [e for e in find_tickets(plan, "cpu") if type(e).__name__ == "ArmDone"]
    assert len(done) == 5 and min(e.metrics["test"]["accuracy"] for e in done) > 0.9


# --- what holds no plain numbers ---

SQUARES = torch.randint(256, (20, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
NO_NUMBERS = {
    "sparse": ((SQUARES > 128).float().to_sparse(), "are a sparse tensor"),
    "compressed rows": ((SQUARES[:, 0] > 128).float().to_sparse_csr(), "are a sparse tensor"),
    "quantised": (torch.quantize_per_tensor(SQUARES / 255, 0.01, 0, torch.quint8), "are a quantised tensor"),
    "without memory": (torch.empty(20, 8, 8, device="meta"), "are a without memory tensor"),
    "masked": (np.ma.masked_where(np.arange(1280).reshape(20, 8, 8) == 200, SQUARES.numpy()), "row 3 of"),
    "a list of sparse": ([(g > 128).float().to_sparse() for g in SQUARES], "are a sparse tensor"),
    "a list of masked": (
        [np.ma.masked_equal(g.numpy(), g[0, 0].item()) for g in SQUARES],
        "is masked in part",
    ),
}


@pytest.mark.parametrize("form", NO_NUMBERS)
def test_pictures_that_hold_no_plain_numbers_are_refused(form):
    x, says = NO_NUMBERS[form]
    with pytest.raises(LotteryError, match=says):
        from_arrays(x, np.arange(20) % 2)
    if isinstance(x, torch.Tensor):
        with pytest.raises(LotteryError, match=says.replace("are a", "labels of own are a")):
            from_arrays(SQUARES.numpy(), x)


def test_an_array_that_could_be_masked_and_is_not_is_read():
    plain = from_arrays(SQUARES.numpy(), np.arange(20) % 2)
    assert from_arrays(np.ma.array(SQUARES.numpy()), np.arange(20) % 2).train.x.equal(plain.train.x)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("black", [0, -1])
def test_short_floats_keep_their_levels_and_bytes_in_them_stay_bytes(kind, black):
    "Eight or eleven bits are finer than bytes where the number is small."
    scaled = (SQUARES.double() / 255 * (1 - black) + black).to(kind)
    if black == 0:
        there = from_arrays(scaled, np.arange(20) % 2)
        assert there.train.x.dtype == torch.uint8 and int(there.train.x.max()) == int(SQUARES.max())
    fine = (torch.linspace(0.001, 0.03, 64).view(8, 8).expand(20, 8, 8) * (1 - black) + black * 0.01).to(kind)
    fine[:, 0, 0], fine[:, 0, 1] = black, 1
    read = from_arrays(fine, np.arange(20) % 2).train.x
    assert read.dtype == torch.float32 and len(read[0].unique()) == len(fine[0].unique())


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("train/a/x.avif", "1 file in 'train' (.avif)"),
        ("train/a/x.JP2", "1 file in 'train' (.jp2)"),
        ("train/b/notes", "1 file in 'train' ('notes')"),
        ("val/a/deep/x.txt", "1 file in 'val' (.txt)"),
        ("test/b/x.webm", "1 file in 'test' (.webm)"),
        ("train/a/.DS_Store", ""),
        ("train/__MACOSX/x.avif", ""),
    ],
)
def test_files_that_are_no_pictures_are_told_of_and_not_left_out_in_silence(extra, says, tmp_path):
    home = tmp_path / "own"
    for split, n in (("train", 4), ("val", 1), ("test", 1)):
        for kind in "ab":
            for i in range(n):
                place = home / split / kind / f"{i}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), 40 * i + (kind == "b")).save(place)
    (home / extra).parent.mkdir(parents=True, exist_ok=True)
    (home / extra).write_bytes(b"x")
    told = from_folder(home).note
    assert (f"not read: {says}" in told) if says else "not read" not in told
