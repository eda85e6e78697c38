"""Files that unpack to far more than they are, or that are no files: refused by what they say of themselves, or while they are read, in little memory."""

import bz2
import gzip
import io
import lzma
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import within

from lottery_nb import files
from lottery_nb.core import LotteryError
from lottery_nb.data.own import from_csv, from_parquet, from_texts
from lottery_nb.data.readers import decode, read_idx, read_matrix, read_parquet
from lottery_nb.data.texts import read_table
from lottery_nb.files import open_unpacked, room_for, UNPACK

ROOM = 3_000_000


@pytest.fixture(autouse=True)
def little(monkeypatch):
    "Room for three megabytes, however small the file is."
    monkeypatch.setattr(files, "LEAST_ROOM", ROOM)
    monkeypatch.setattr(files, "TIMES", 1)


def zipped(content, says=None):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("table.csv", content)
    raw = out.getvalue()
    if says is not None:  # a smaller size than it has, in both of its headers
        raw = raw.replace(struct.pack("<I", len(content)), struct.pack("<I", says))
    return raw


PACKERS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zip": zipped,
    "zip that lies": lambda content: zipped(content, says=10),
    "gz in two parts": lambda content: gzip.compress(content[:9]) + gzip.compress(content[9:]),
    "xz in two parts": lambda content: lzma.compress(content[:9]) + lzma.compress(content[9:]),
}


def refused_in_little_memory(read, says):
    tracemalloc.start()
    with within(60), pytest.raises(LotteryError, match=says) as refusal:
        read()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 6 * ROOM and "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("packer", PACKERS)
def test_a_table_that_unpacks_to_too_much_is_refused(packer, tmp_path):
    content = b"text,label\n" + b"good,1\n" * 6_000_000  # 42 MB
    (tmp_path / "bomb.csv").write_bytes(PACKERS[packer](content))
    for read in (
        lambda: read_table(tmp_path / "bomb.csv", ("text", "label"), "csv"),
        lambda: from_csv(tmp_path / "bomb.csv"),
    ):
        refused_in_little_memory(read, "bomb.csv")


@pytest.mark.parametrize("packer", [p for p in PACKERS if "lies" not in p])
def test_a_small_packed_table_is_read(packer, tmp_path):
    content = b"text,label\ngood,1\nbad,0\n"
    (tmp_path / "small.anything").write_bytes(PACKERS[packer](content))
    table = read_table(tmp_path / "small.anything", ("text", "label"), "csv")
    assert table.to_dict("list") == {"text": ["good", "bad"], "label": ["1", "0"]}  # as written


@pytest.mark.parametrize(
    "packer, way", [*((p, way) for p in PACKERS for way in ("cut", "flipped")), ("zip", "locked")]
)
def test_a_damaged_packed_table_is_refused_in_one_sentence(packer, way, tmp_path):
    raw = PACKERS[packer](b"text,label\n" + bytes(range(33, 126)) * 300)
    if way == "locked":
        raw = raw.replace(b"PK\3\4\x14\0\0\0", b"PK\3\4\x14\0\1\0").replace(
            b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"
        )
    else:
        raw = raw[:-20] if way == "cut" else raw[: len(raw) // 2] + b"\xff\0\xff" + raw[len(raw) // 2 + 3 :]
    (tmp_path / "damaged.csv").write_bytes(raw)
    with pytest.raises(LotteryError, match="damaged.csv") as refusal:
        read_table(tmp_path / "damaged.csv", ("text", "label"), "csv")
    assert "\n" not in str(refusal.value)


def idx(shape, content):
    return b"\0\0\x08" + bytes([len(shape)]) + np.array(shape, ">u4").tobytes() + content


def matrix(shape, content):
    return np.array([0x1E3D4C55, len(shape), *shape], "<u4").tobytes() + content


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, bz2.compress])
@pytest.mark.parametrize("read, make", [(read_idx, idx), (read_matrix, matrix)])
@pytest.mark.parametrize("says", [(4000, 100, 100), (2**32 - 1,) * 8, (10, 10, 10)])
def test_an_array_is_refused_by_the_size_that_it_says_or_that_it_has(read, make, says, pack, tmp_path):
    (tmp_path / "array.gz").write_bytes(pack(make(says, bytes(40_000_000 if pack is not bytes else 4000))))
    refused_in_little_memory(lambda: read(tmp_path / "array.gz"), "array.gz")


@pytest.mark.parametrize("read, make", [(read_idx, idx), (read_matrix, matrix)])
@pytest.mark.parametrize("cut", range(0, 30, 3))
def test_an_array_that_ends_in_its_header_is_refused(read, make, cut, tmp_path):
    whole = make((2, 3, 4), bytes(24))
    (tmp_path / "array").write_bytes(whole[:cut])
    with pytest.raises(LotteryError, match="array is not a whole"):
        read(tmp_path / "array")
    (tmp_path / "array").write_bytes(whole)
    assert tuple(read(tmp_path / "array").shape) == (2, 3, 4)


def test_xz_that_asks_for_a_gigabyte_of_memory_is_refused(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}]
    big = lzma.LZMACompressor(filters=filters)
    (tmp_path / "big.csv.xz").write_bytes(big.compress(b"text,label\ngood,1\n") + big.flush())
    with pytest.raises(LotteryError, match="big.csv.xz cannot be"):
        with open_unpacked(tmp_path / "big.csv.xz") as f:
            f.read()


def test_parquet_is_refused_by_what_it_says_and_by_its_rows(tmp_path):
    cell = os.urandom(1000) * 20
    pq.write_table(
        pa.table({"text": [cell.hex()] * 300, "label": [0] * 300}),
        tmp_path / "says.parquet",
        use_dictionary=False,
    )
    once = pa.DictionaryArray.from_arrays(np.zeros(300, "i4"), [cell.hex()])
    table = pa.table({"text": once, "label": np.zeros(300, "i8")})
    pq.write_table(table, tmp_path / "rows.parquet", store_schema=False)
    assert (tmp_path / "rows.parquet").stat().st_size < ROOM / 30
    for name in ("says.parquet", "rows.parquet"):
        for read in (
            lambda name=name: read_table(tmp_path / name, ("text", "label"), "parquet"),
            lambda name=name: from_parquet(tmp_path / name, text="text"),
            lambda name=name: read_parquet([tmp_path / name], "text", "label"),
        ):
            with pytest.raises(LotteryError, match=f"{name} has .* would come to more than 3,000,000"):
                read()


def test_a_picture_is_refused_by_the_size_that_it_says():
    out = io.BytesIO()
    Image.new("RGB", (2000, 2000)).save(out, "PNG")
    with pytest.raises(LotteryError, match="would come to more"):
        decode(out.getvalue(), "a picture")


def test_more_is_unpacked_where_a_user_says_so(tmp_path, monkeypatch):
    (tmp_path / "large.gz").write_bytes(gzip.compress(idx((5, 1000, 1000), bytes(5_000_000))))
    with pytest.raises(LotteryError, match=f"set {UNPACK}"):
        read_idx(tmp_path / "large.gz")
    monkeypatch.setenv(UNPACK, "6000000")
    assert read_idx(tmp_path / "large.gz").shape == (5, 1000, 1000) and room_for(1) == 6_000_000


@pytest.mark.parametrize("what", ["pipe", "folder", "device"])
def test_what_is_no_file_is_never_waited_for(what, tmp_path):
    path = tmp_path / "x"
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda p: os.symlink("/dev/zero", p)}[what](path)
    for read in (
        lambda: read_idx(path),
        lambda: read_matrix(path),
        lambda: read_parquet([path]),
        lambda: read_table(path, ("text", "label"), "csv"),
        lambda: read_table(path, ("text", "label"), "parquet"),
    ):
        with within(10), pytest.raises(LotteryError, match="x in .* is a|x cannot be read"):
            read()
    assert from_texts(["a", "b", "a", "b"], [0, 1, 0, 1]).n_classes == 2  # and what is sound is read
