"""Hostile inputs over all kinds of files that somebody else could have written, each read in a process whose memory and time are measured.

`python tests/hostile.py` tries all of them and writes `hostile_results.json`. A case is a kind and a number, which alone decide its bytes, so that a failure repeats: `python tests/hostile.py plan 17`.

What an input may come to:
- *refused*: a `LotteryError` of one line (or, in the shell, one line and exit status 2);
- *same*: it is read, and what was read is what the sound file holds;
- *told*: it is read without its damaged part, and the shell says which part that is;
- *sound*: it is read as other content, which passes every check of its kind and is used to its end (a domain is read whole and batched, a ticket becomes a network, a run is shown).
All else is a fault: *traceback* (any other exception, or a refusal of several lines), *silent* (below), *hang* (more than `SECONDS`), *memory* (the process grew by more than `MOST` bytes while it read; what it holds before, the libraries and their code, is measured and stored beside), *died* (the process ended by a signal).

What counts as silent acceptance, and how this file knows:
- the maker of an input says what it must come to. `REFUSED`: it cannot be what it claims to be (a pickle called a picture, a label that is missing, a bomb, a name that leads elsewhere or names code), so anything but a refusal is silent acceptance. `SAME`: its format has a checksum, so that damage is refused or does no harm; other content is silent acceptance. `TOLD`: a field of another type than it was written with; reading it without a word is silent acceptance. `SOUND`: damage that no reader can know (a flipped bit of an unpacked table is another table), where content that fails its kind's check, or its use, is silent acceptance;
- no input may run code, whatever it comes to: a finder on `sys.meta_path` notes every import of the module that hostile names name, hostile pickles and PostScript would make a file, and links lead to a folder that is looked at. A trace of any of them is silent acceptance.
"""

import bz2
import contextlib
import datetime
import faulthandler
import functools
import gzip
import io
import json
import lzma
import os
import pickle
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(HERE)]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
from breaking import broken_bytes, NASTY, noised, places, tampered, with_change  # noqa: E402
from PIL import Image  # noqa: E402

from lottery_nb import __version__, cli  # noqa: E402
from lottery_nb.bench.pages import read as read_bench  # noqa: E402
from lottery_nb.bench.pages import table as bench_table  # noqa: E402
from lottery_nb.core import fingerprint, LotteryError, one_text  # noqa: E402
from lottery_nb.data.builtin import read_idx_set  # noqa: E402
from lottery_nb.data.own import from_arrays, from_csv, from_folder, from_parquet, from_texts  # noqa: E402
from lottery_nb.data.own import load_domain, save_domain  # noqa: E402
from lottery_nb.data.readers import decode, read_idx, read_matrix  # noqa: E402
from lottery_nb.data.texts import tokenizer, train_vocabulary, Vocabulary  # noqa: E402
from lottery_nb.files import read_tensors, RunFolder, write_tensors  # noqa: E402
from lottery_nb.models.weights import Weights  # noqa: E402
from lottery_nb.papers.papers import kept, RESULTS  # noqa: E402
from lottery_nb.plans.tickets import Ticket  # noqa: E402
from lottery_nb.runs.listeners import read_how  # noqa: E402
from lottery_nb.runs.reading import check_begun, read_plan, Run  # noqa: E402
from lottery_nb.runs.workers import glance  # noqa: E402
from lottery_nb.runs.writing import read_arms  # noqa: E402
from lottery_nb.sweeps.folders import Sweep  # noqa: E402
from lottery_nb.sweeps.toml import read_sweep  # noqa: E402

SECONDS, MOST = 60, 512 << 20
BATCH = 100  # cases that a process reads
BEFORE = (
    int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10
    if Path("/proc/self/status").exists()
    else 0
)
"Bytes that a process holds once it has imported what reads."
STORED = HERE / "hostile_results.json"
REFUSED, SAME, TOLD, SOUND = (
    "refused",
    "same",
    "told",
    "sound",
)  # what a maker says that its input must come to
FAULTS = ("traceback", "silent", "hang", "memory", "died")


@dataclass(frozen=True)
class Kind:
    "A kind of file: how hostile ones are made, and how they are read."

    make: Callable  # (draw, place, good) -> (what was done, what it must come to); writes into `place`
    read: Callable  # (place) -> what was read, to be held against what a sound file gives


KINDS: dict[str, Kind] = {}


def kind(name, read):
    "Decorator of what makes hostile files of a kind."

    def add(make):
        KINDS[name] = Kind(make, read)
        return make

    return add


# --- traps ---

HIT: list = []


class Trap:
    "Notes who asks for a module that only hostile files name."

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("trap", "evil_mod", "trap-mod"):
            HIT.append(name)


class Bomb:
    "A pickle of it makes a file when it is loaded."

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


NAMES = (
    "trap:go",
    "evil_mod:go",
    "trap:",
    "trap::x",
    "trap:go ",
    "trap-mod:go",
    "trap.in:go",
    "trap:go@3",
    "../../trap:go",
)
CODE = (
    *NAMES,
    {"type": "Reference", "name": "trap:go", "source": "0" * 16},
    {"type": "Reference", "name": "trap:go ", "source": "x"},
    {"type": "Network", "name": "trap:go", "input_shape": [1, 8, 8], "n_classes": 2, "head": "linear"},
    {"type": "Popen", "args": ["touch", "pwned"]},
    {"type": "Schedule", "kind": "trap:go", "rounds": 1, "numbers": []},
    {
        "type": "DomainName",
        "base": "trap:go",
        "classes": ["trap:go"],
        "shifts": [["trap:go", []]],
        "limit": None,
    },
)


# --- pieces ---


def damaged(content, draw):
    "(what was done, bytes): a file cut off, flipped, noised, or something else altogether."
    if draw.random() < 0.5:
        return "noise", noised(content, draw)
    return draw.choice([*broken_bytes(content, draw)])


def pickled(place, draw):
    "A pickle that would run something, in one of the forms that numpy and torch give it."
    bomb, way, out = Bomb(place / "pwned"), draw.randrange(4), io.BytesIO()
    if way == 0:
        out.write(pickle.dumps(bomb, protocol=draw.randrange(2, 6)))
    elif way == 1:
        np.save(out, np.array([bomb], object), allow_pickle=True)
    elif way == 2:
        np.savez(out, x=np.array([bomb], object))
    else:
        torch.save({"weight": torch.zeros(2), "more": bomb}, out)
    return out.getvalue()


def changed_json(text, draw, values=NASTY):
    "(what was done, text): one part of a JSON file is another one, or gone."
    record = json.loads(text)
    where = draw.choice([p for p in places(record) if p])
    new = draw.choice((*values, ...))
    return f"{'/'.join(map(str, where))} = {new!r:.60}", json.dumps(with_change(record, where, new))


def same_type(old, new):
    "Whether JSON has one word for the types of two values."
    words = ((bool,), (int, float), (str,), (list,), (dict,), (type(None),))
    return any(
        isinstance(old, w) and isinstance(new, w) and isinstance(old, bool) == isinstance(new, bool)
        for w in words
    )


def other_type(old, draw):
    "A value of another type than the old one's."
    return draw.choice(
        [v for v in (*NASTY, [1], {"a": 1}, "7", 7, 0.5, True) if v is not None and not same_type(old, v)]
    )


def used(d):
    "All that is done with a domain, and what tells its content."
    rows = []
    for split in (d.train, d.validation, d.test):
        if split is None:
            continue
        assert len(split) == len(split.x) > 0 and int(split.y.min()) >= 0 and int(split.y.max()) < d.n_classes
        x = d.inputs(split.x, torch.arange(len(split))[:32])
        assert x.shape[1:] == d.shape and bool(torch.isfinite(x.float()).all())
        rows.append(len(split))
    assert set(d.train.y.tolist()) == set(range(d.n_classes))
    return d.name, d.fingerprint, tuple(map(str, d.classes)), tuple(rows), len(d.summary()), d.note, repr(d)


def shell(*line):
    "What `lottery …` says and how it ends; anything but 0 or a refusal of one line is an error."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([str(word) for word in line])
    said = err.getvalue()
    out.getvalue().encode()
    assert status in (0, 1, 2) and "Traceback" not in said + out.getvalue(), said[-400:]
    if status == 2:
        assert said.rstrip("\n").splitlines()[-1].startswith(f"lottery {line[0]}: "), said[-400:]
        raise LotteryError(said.rstrip("\n").splitlines()[-1])
    return out.getvalue(), said


# --- our own files ---


def tensors_of(make_record, name):
    "Makes hostile files of our own format, with and without a right checksum."

    def make(draw, place, good):
        file = good / name
        if draw.random() < 0.45:
            what, content = damaged(file.read_bytes(), draw)
            (place / name).write_bytes(content)
            return what, SAME
        tensors, record = read_tensors(file)
        what, tensors, record, must = make_record(draw, tensors, record)
        write_tensors(place / name, tensors, record)
        return what, must

    return make


def with_code(draw, record, inside=()):
    "A record in which a text or a record is one that names code."
    leaves = [w for w in places(record) if w[: len(inside)] == inside and len(w) > len(inside)]
    where, new = draw.choice(leaves), draw.choice(CODE)
    return f"{'/'.join(map(str, where))} = {new!r:.60}", with_change(record, where, new)


def any_part(draw, tensors, record):
    if draw.random() < 0.4:
        what, record = with_code(draw, record)
        return what, tensors, record, SOUND
    return (*tampered(tensors, record, draw), SOUND)


def read_ticket(place):
    t = Ticket.load(place / "t.safetensors")
    repr(t), t.name, t.plain()
    if isinstance(t.network.name, str):
        model = t.model().eval()
        with torch.no_grad():
            out = model(torch.zeros(2, *t.network.input_shape))
        assert bool(torch.isfinite(out).all())
    else:
        with contextlib.suppress(LotteryError):
            t.model()  # what it names may not run
    t.save(place / "again.safetensors")
    return t.content


kind("ticket", read_ticket)(tensors_of(any_part, "t.safetensors"))
kind("arms", lambda place: sorted(read_arms(place / next(p.name for p in place.glob("*.safetensors")))))(
    lambda draw, place, good: tensors_of(any_part, next(good.glob("arms-*")).name)(draw, place, good)
)


ODD_DOMAINS = {
    "classes that are not there": lambda t, r: r["spec"].update(classes=["0-99999999999"]),
    "a class that names code": lambda t, r: r["spec"].update(classes=["trap:go", "evil_mod:go"]),
    "a shift that names code": lambda t, r: r["spec"].update(shifts=[["trap:go", []]]),
    "a shift of other numbers": lambda t, r: r["spec"].update(shifts=[["blur", [1.0, 2.0, 3.0]]]),
    "a shift beyond all numbers": lambda t, r: r["spec"].update(shifts=[["blur", [1e300]]]),
    "a base that names code": lambda t, r: r["spec"].update(base="trap:go"),
    "a vocabulary that names code": lambda t, r: r["spec"].update(
        reading={"type": "Reading", "domains": ["trap:go"]}
    ),
    "texts of pictures": lambda t, r: r["spec"].update(
        reading={"type": "Reading", "pieces": 100, "length": 9}
    ),
    "a limit beyond the rows": lambda t, r: r["spec"].update(limit=10**9),
    "a limit of one": lambda t, r: r["spec"].update(limit=1),
    "classes as one text": lambda t, r: r.update(classes="abc"),
    "a class twice": lambda t, r: r.update(classes=["0", "0", "1"]),
    "fewer classes": lambda t, r: r.update(classes=["0", "1"]),
    "a note that is none": lambda t, r: r.update(note=7),
    "validation beyond a half": lambda t, r: r.update(validation=0.99),
    "validation that is no number": lambda t, r: r.update(validation={"type": "float", "value": "nan"}),
    "a shape of two": lambda t, r: r.update(target=[8, 8]),
    "a shape of no memory": lambda t, r: r.update(target=[3, 10**7, 10**7]),
    "all validate": lambda t, r: t.update(held_out=torch.ones(len(t["y"]), dtype=torch.bool)),
    "none validate": lambda t, r: t.update(held_out=torch.zeros(len(t["y"]), dtype=torch.bool)),
    "a class validates": lambda t, r: t.update(held_out=t["y"] == 0),
    "validation of numbers": lambda t, r: t.update(held_out=t["y"] * 5),
    "labels of another type": lambda t, r: t.update(y=t["y"].double()),
    "negative labels": lambda t, r: t.update(y=t["y"] - 1),
    "labels beyond": lambda t, r: t.update(y=t["y"] + 1),
    "test labels without pictures": lambda t, r: t.pop("test_x"),
    "test pictures without labels": lambda t, r: t.pop("test_y"),
    "a tensor more": lambda t, r: t.update(z=torch.zeros(3)),
    "pictures of no size": lambda t, r: t.update(x=t["x"][:, :, :0], test_x=t["test_x"][:, :, :0]),
    "pictures of another number": lambda t, r: t.update(x=t["x"][:-1].clone()),
    "pictures that are none": lambda t, r: t.update(
        x=torch.full(t["x"].shape, torch.nan), test_x=t["test_x"].float()
    ),
    "pictures beyond white": lambda t, r: t.update(x=t["x"].float() + 255, test_x=t["test_x"].float()),
}


def odd_domain(draw, tensors, record):
    if draw.random() < 0.3:
        return any_part(draw, tensors, record)
    what = draw.choice(sorted(ODD_DOMAINS))
    about = dict(map(lambda pair: (pair[0], pair[1]), record["domain"]["items"]))
    ODD_DOMAINS[what](tensors, about)
    record["domain"]["items"] = [list(pair) for pair in about.items()]
    return what, tensors, record, REFUSED if what != "a shape of no memory" else SOUND


def read_domain(place, name="own.safetensors"):
    d = load_domain(place / name)
    if d.target and d.modality == "image" and np.prod(d.target) > 1e9:
        with contextlib.suppress(LotteryError):
            return used(d)  # refused where it is used: how much memory there is, only then is known
        return ()
    return used(d)


kind("own domain", read_domain)(tensors_of(odd_domain, "own.safetensors"))


def odd_texts(draw, tensors, record):
    ways = {
        "ends beyond the bytes": lambda: tensors.update(x_ends=tensors["x_ends"] + 7),
        "ends that go back": lambda: tensors.update(x_ends=tensors["x_ends"].flip(0)),
        "bytes that are no text": lambda: tensors.update(
            x=torch.full(tensors["x"].shape, 255, dtype=torch.uint8)
        ),
        "bytes as numbers": lambda: tensors.update(x=tensors["x"].float()),
        "ends of test texts without these": lambda: tensors.pop("test_x"),
        "pictures under ends": lambda: tensors.update(x=torch.zeros(9, 1, 8, 8, dtype=torch.uint8)),
    }
    if draw.random() < 0.5:
        return any_part(draw, tensors, record)
    what = draw.choice(sorted(ways))
    ways[what]()
    return what, tensors, record, REFUSED


def read_texts(place):
    d = load_domain(place / "texts.safetensors")
    assert all(isinstance(row, str) for row in d.found.train.x.rows)
    return d.fingerprint, tuple(d.classes), len(d.found.train), str(d.spec), d.note


kind("own texts", read_texts)(tensors_of(odd_texts, "texts.safetensors"))


# --- runs ---


def a_run(place, good):
    return shutil.copytree(good / "run", place / "run")


def read_run_plan(place):
    glance(place / "run")
    plan = read_plan(place / "run")
    repr(plan)
    check_begun(None, place / "run")  # the log says which plan it began with
    shell("status", place / "run")
    return plan.hash


@kind("plan", read_run_plan)
def plans(draw, place, good):
    file = a_run(place, good) / "plan.json"
    way = draw.random()
    if way < 0.3:
        what, content = damaged(file.read_bytes(), draw)
        file.write_bytes(content)
        return what, SAME
    what, text = changed_json(file.read_text(), draw, NASTY if way < 0.6 else CODE)
    file.write_text(text)
    return what, SAME


def read_shown(place):
    said = "".join(shell("show", place / "run"))
    found = Run(place / "run")
    frame, told = found.frame, re.findall(r"left out: line .*", said)
    found.info, found.layers, repr(found), glance(place / "run")
    assert bool(told) == bool(found.damaged)
    if len(frame) and random.Random(len(said)).random() < 0.25:
        shell("show", place / "run", "--report", place / "r.html", "--csv", place / "r.csv")
    for column in ("round", "seed", "epoch"):
        assert pd.api.types.is_integer_dtype(frame[column]) or not len(frame), column
    return ("told",) if told else (frame.to_csv(),)


@kind("log", read_shown)
def logs(draw, place, good):
    file = a_run(place, good) / "events.jsonl"
    lines = file.read_bytes().splitlines()
    if draw.random() < 0.3:
        file.write_bytes(noised(file.read_bytes(), draw))
        return "noise", SOUND
    i = draw.randrange(len(lines))
    record = json.loads(lines[i])
    where = draw.choice([p for p in places(record) if p and p != ("event",)])
    old = functools.reduce(lambda v, k: v[k], where, record)
    typed = where[0] not in ("versions", "network_density", "identity") and len(where) < 2 + (
        where[0] == "tags"
    )
    if typed and old is not None and draw.random() < 0.8:
        new, must = other_type(old, draw), TOLD
    else:
        new, must = (
            draw.choice((*NASTY, *CODE, "\ud800", "=cmd|' /C calc'!A0", "<script>alert(1)</script>")),
            SOUND,
        )
    lines[i] = json.dumps(with_change(record, where, new), separators=(",", ":")).encode()
    file.write_bytes(b"\n".join(lines) + b"\n")
    return f"{record['event']} {'/'.join(map(str, where))} = {new!r:.60}", must


PARTS = (
    "plan.json",
    "events.jsonl",
    "lock",
    "heartbeat",
    "control",
    "how.json",
    "worker.log",
    "arms",
    "tickets",
    "snapshots",
    "inputs",
)


def read_folder(place):
    before = sorted(p.name for p in (place / "outside").iterdir())
    folder = place / "run"
    for line in (("status", folder), ("runs", place), ("show", folder), ("export", folder, place / "out")):
        with contextlib.suppress(LotteryError):
            shell(*line)
    if (place / "report").exists():
        with contextlib.suppress(LotteryError):
            shell("show", folder, "--report", place / "r.html", "--csv", place / "r.csv")
    for read in (
        read_plan,
        lambda f: check_begun(None, f),
        lambda f: read_how(RunFolder(f)),
        lambda f: Run(f).whole,
    ):
        with contextlib.suppress(LotteryError):
            read(folder)
    assert sorted(p.name for p in (place / "outside").iterdir()) == before == ["theirs"], "written outside"
    return read_shown(place)


def odd_part(part, draw, place):
    "Put what should not be there in the place of a file or folder."
    outside = place / "outside"
    shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
    way = draw.randrange(8)
    if way == 0:
        os.mkfifo(part)
    elif way == 1:
        part.symlink_to(
            draw.choice((outside, outside / "theirs", outside / "new", "/dev/zero", "/etc/passwd", part.name))
        )
    elif way == 2:
        part.mkdir()
    elif way == 3:
        with open(part, "wb") as f:
            f.truncate(draw.choice((0, 1 << 20, 3 << 30)))
    elif way == 4:
        part.write_bytes(draw.randbytes(draw.choice((1, 100, 100_000))))
    elif way == 5:
        part.write_bytes(pickled(place, draw))
    elif way == 6:
        part.write_text(json.dumps({"executor": draw.choice(NAMES), "listeners": [draw.choice(NAMES)]}))
    # else it is gone


@kind("run folder", read_folder)
def folders(draw, place, good):
    folder, outside = a_run(place, good), place / "outside"
    outside.mkdir()
    (outside / "theirs").write_text("theirs")
    names = draw.sample(PARTS, draw.choice((1, 1, 2)))
    for name in names:
        part = folder / name
        inner = sorted(part.iterdir()) if part.is_dir() and draw.random() < 0.6 else []
        odd_part(draw.choice(inner) if inner else part, draw, place)
    if draw.random() < 0.25:  # a page takes a second
        (place / "report").touch()
    return f"{' and '.join(names)} are odd", SOUND


def read_sweep_folder(place):
    folder, outside = place / "sweep", place / "outside"
    before = sorted(p.name for p in outside.iterdir())
    lines = [("status", folder), ("runs", folder), ("show", folder, "--csv", place / "s.csv")]
    for line in (*lines, ("stop", folder), ("work", folder), ("work", folder), *lines):
        with contextlib.suppress(LotteryError):
            shell(*line)
    assert sorted(p.name for p in outside.iterdir()) == before == ["theirs"], "written outside"
    found = Sweep(folder)
    repr(found), found.status, found.plan
    return found.frame.to_csv(index=False), shell("show", folder)[0]


@kind("sweep", read_sweep_folder)
def sweeps(draw, place, good):
    folder, outside = shutil.copytree(good / "sweep", place / "sweep"), place / "outside"
    outside.mkdir()
    (outside / "theirs").write_text("theirs")
    file, way = folder / "sweep.json", draw.random()
    point = draw.choice(json.loads(file.read_text())["points"])["hash"]
    if way < 0.25:
        what, content = damaged(file.read_bytes(), draw)
        file.write_bytes(content)
        return what, SAME
    if way < 0.5:  # as who means harm would write it
        what, text = changed_json(file.read_text(), draw, (*NASTY, *CODE))
        record = json.loads(text)
        if isinstance(record, dict):
            record.pop("check", None)
            record["check"] = fingerprint(one_text(record))
        file.write_text(json.dumps(record))
        return what, SOUND
    if way < 0.75:
        number = draw.choice((1, 2, 3, 999_998, 999_999, 10**9, 10**30, 0, "01", "-1", "1e30", "١"))
        claim = folder / "leases" / f"{point}.{number}{draw.choice(('', '.done', '.failed', '.stopped'))}"
        worker = draw.choice((f"{10**30} a b c", "-1 a b c", "1", "", *NASTY))
        said = {
            "worker": worker,
            "beat": draw.choice((0, 1e300, *NASTY)),
            "held": draw.choice((True, *NASTY)),
        }
        said = draw.choice((said, said | {"reason": draw.choice(("a\nb", *NASTY))}, *NASTY))
        claim.write_text(json.dumps(said))
        if draw.random() < 0.3:
            odd_part(claim, draw, place)
        return f"claim {number}", SOUND
    names = ("sweep.json", "leases", "left", "inputs", "how.json", "workers.log", point)
    inner = ("plan.json", "events.jsonl", "arms", "tickets", "snapshots", "how.json", "lock", "heartbeat")
    name = draw.choice((*names, *(f"{point}/{part}" for part in inner)))
    odd_part(folder / name, draw, place)
    return f"{name} is odd", SOUND


TOML = """kind = "find"
table = "points.csv"
[base]
source = "digits[0-4]@200"
width = 0.1
schedule = "geometric(0.4, 2)"
[base.recipe]
epochs = 2
[axes]
"recipe.lr" = [0.03, 0.1]
seeds = [1, 2]
"""
POINTS = "network,recipe.batch_size\nlenet-300-100,32\nlogistic-regression,64\n"


def read_sweep_file(place):
    read = [read_sweep(file) for file in (place / "s.toml", place / "s.json") if file.exists()]
    return [[(point.hash, repr(point.changes)) for point in one.points] for one in read]


def sweep_file(place):
    (place / "points.csv").write_text(POINTS)
    (place / "s.toml").write_text(TOML)


ODD_TOML = (
    "2026-11-26",
    "07:32:00",
    "9999-12-31T23:59:59Z",
    "inf",
    "nan",
    "0x" + "f" * 1000,
    "9" * 5000,
    "[" * 500 + "]" * 500,
    "{" + "a." * 60_000 + "a = 1}",
    '"\\u001b[2J"',
    "{ type = 'Network', name = 'trap:go' }",
    *(json.dumps(name) for name in NAMES),
    '"/dev/zero"',
    '"../../../etc/passwd"',
)


@kind("sweep file", read_sweep_file)
def sweep_files(draw, place, good):
    sweep_file(place)
    way = draw.randrange(4)
    if way == 0:
        (place / "s.toml").unlink()
        record = json.loads((good / "sweep" / "sweep.json").read_text())["plan"]
        what, text = changed_json(json.dumps(record), draw, (*NASTY, *CODE))
        (place / "s.json").write_text(text)
        return what, SOUND
    if way == 1:
        file = draw.choice((place / "s.toml", place / "points.csv"))
        what, content = damaged(file.read_bytes(), draw)
        if draw.random() < 0.3:
            content = PACKERS[draw.choice([*PACKERS])](content + b"\n#" + b"x" * (1 << 25))
        file.write_bytes(content)
        return what, SOUND
    lines = TOML.splitlines() if way == 2 else POINTS.splitlines()
    i, odd = draw.randrange(len(lines)), draw.choice(ODD_TOML)
    if way == 2:
        lines[i] = f"{lines[i].partition('=')[0]}= {odd}" if "=" in lines[i] else f"[{odd}]"
        (place / "s.toml").write_text("\n".join(lines))
    else:
        lines[i] = ",".join(
            draw.choice((cell, '"' + odd.replace('"', '""') + '"')) for cell in lines[i].split(",")
        )
        (place / "points.csv").write_text("\n".join(lines))
    return f"{lines[i]:.60}", SOUND


HOW = '{"executor": "threads", "listeners": ["trap:go"]}'


@kind("how.json", lambda place: (lambda how: (how.executor, how.listeners))(read_how(RunFolder(place))))
def hows(draw, place, good):
    whole = HOW
    what, text = (
        changed_json(whole, draw, (*NASTY, *CODE))
        if draw.random() < 0.6
        else ("noise", noised(whole.encode(), draw))
    )
    (place / "how.json").write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    return what, SOUND


# --- tables ---

PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zip": None}


def zipped(content):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("table.csv", content)
    return out.getvalue()


PACKERS[".zip"] = zipped
ROWS = [
    ("good book " * 3, 1),
    ("bad film", 0),
    ("so, so\nso", 1),
    ('"quoted" é', 0),
    ("fine", 1),
    ("dull", 0),
]


def csv_of(rows, sep=",", head=("text", "label")):
    return pd.DataFrame(rows, columns=list(head)).to_csv(index=False, sep=sep).encode()


@functools.cache
def bomb(ending):
    "A packed table that comes to 300 MB."
    content = b"text,label\n" + b"good,1\n" * 43_000_000
    return lzma.compress(content, preset=0) if ending == ".xz" else PACKERS[ending](content)


ODD_TABLES = {
    "a label is missing": lambda: csv_of([*ROWS, ("more", "")]),
    "a text is missing": lambda: csv_of([*ROWS, ("", 1)]),
    "labels of two kinds": lambda: csv_of([*ROWS, ("more", "x"), ("more", 1.5)]),
    "a class of one row": lambda: csv_of([*ROWS, ("more", 7)]),
    "one class": lambda: csv_of([(t, 1) for t, _ in ROWS]),
    "no rows": lambda: csv_of([]),
    "no columns": lambda: b"\n\n\n",
    "nothing": lambda: b"",
    "another separator": lambda: csv_of(ROWS, "\t"),
    "other columns": lambda: csv_of(ROWS, head=("texts", "labels")),
    "a row is longer": lambda: csv_of(ROWS) + b"a,1,2,3,4,5,6\n",
    "a quote without an end": lambda: csv_of(ROWS) + b'"never ends,1\n' + b"x\n" * 1000,
    "no UTF-8": lambda: csv_of(ROWS) + b"\xff\xfe\xfd,1\n\xff,0\n",
    "zeros": lambda: bytes(5000),
    "negative labels": lambda: csv_of([(t, y - 3) for t, y in ROWS]),
}


def table_file(place):
    return next(p for p in place.iterdir() if p.name.startswith(("table", "parts")))


@kind(
    "csv",
    lambda place: (lambda d: (d.fingerprint, tuple(d.classes), len(d.found.train)))(
        from_csv(table_file(place))
    ),
)
def tables(draw, place, good):
    ending = draw.choice(sorted(PACKERS))
    way = draw.random()
    if way < 0.06 and ending in (".gz", ".xz", ".zip"):
        what, file, must = "a bomb", bomb(ending), REFUSED
    elif way < 0.4:
        what = draw.choice(sorted(ODD_TABLES))
        file, must = PACKERS[ending](ODD_TABLES[what]()), REFUSED
    elif way < 0.5:
        what, file, must = "a pickle", pickled(place, draw), REFUSED
    else:
        what, file = damaged(PACKERS[ending](csv_of(ROWS * 20)), draw)
        must = SAME if ending in (".gz", ".xz", ".bz2") else SOUND  # of a zip its names are not summed
    (place / f"table.{draw.choice(('csv', 'tsv'))}{ending}").write_bytes(file)
    return f"{ending or 'plain'}, {what}", must


def encoded(shade, format="PNG", mode="L", size=(8, 8)):
    out = io.BytesIO()
    Image.new(mode, size, shade).save(out, format)
    return out.getvalue()


def features(**said):
    return json.dumps({"info": {"features": said}}).encode()


HINTS = {  # five kinds and more: metadata that say what is no column, no list, no JSON
    "no JSON": b"{",
    "no UTF-8": b"\xff\xfe",
    "a list": b"[]",
    "null": b"null",
    "info is null": b'{"info": null}',
    "features are a list": b'{"info": {"features": [1, 2]}}',
    "features are a number": b'{"info": {"features": 7}}',
    "names are a number": features(label={"_type": "ClassLabel", "names": 7}),
    "names are a text": features(label={"_type": "ClassLabel", "names": "ab"}),
    "names are records": features(label={"_type": "ClassLabel", "names": [{}, []]}),
    "a name twice": features(label={"_type": "ClassLabel", "names": ["a", "a"]}),
    "too few names": features(label={"_type": "ClassLabel", "names": ["a"]}),
    "deep": b"[" * 100_000,
    "deep objects": b'{"info":' * 50_000,
    "another column": features(nowhere={"_type": "Image"}, label={"_type": "Image"}),
}


def pictures(n=8, **columns):
    cells = pa.array([{"bytes": encoded(9 * i), "path": f"{i}.png"} for i in range(n)])
    return pa.table({"image": cells, "label": [i % 2 for i in range(n)], **columns})


def bomb_table():
    once = pa.DictionaryArray.from_arrays(np.zeros(6000, "i4"), [encoded(1) + bytes(1 << 17)])
    return pa.table({"image": once, "label": np.arange(6000) % 2})


ODD_PARQUET = {
    "no picture in a row": lambda: pictures().set_column(0, "image", pa.array([None] * 8, pa.binary())),
    "structs without bytes": lambda: pictures().set_column(0, "image", pa.array([{"path": "a.png"}] * 8)),
    "paths": lambda: pictures().set_column(0, "image", pa.array(["/etc/passwd"] * 8)),
    "pickles": lambda: pictures().set_column(
        0, "image", pa.array([pickle.dumps(Bomb("/nowhere/pwned"))] * 8)
    ),
    "numbers": lambda: pictures().set_column(0, "image", pa.array(range(8))),
    "labels are lists": lambda: pictures().set_column(1, "label", pa.array([[0, 1]] * 8)),
    "a label is missing": lambda: pictures().set_column(1, "label", pa.array([0, 1, 0, 1, 0, 1, 0, None])),
    "labels beyond": lambda: pictures().set_column(1, "label", pa.array([2**64 - 1, 0] * 4, pa.uint64())),
    "negative labels": lambda: pictures().set_column(1, "label", pa.array([-5, 0] * 4)),
    "no rows": lambda: pictures().slice(0, 0),
    "one row": lambda: pictures().slice(0, 1),
    "a column twice": lambda: pa.table(
        [*pictures().columns, pictures().column(1)], names=["image", "label", "label"]
    ),
    "no label": lambda: pictures().drop(["label"]),
    "a bomb": bomb_table,
}
PANDAS = {
    "index": lambda: {"index_columns": ["text", "label"], "columns": [], "column_indexes": []},
    "no record": lambda: [1, 2],
    "odd columns": lambda: {
        "index_columns": [{"kind": "range", "start": 0, "stop": 9**20, "step": 0}],
        "columns": [7],
    },
}


def read_pictures(place):
    return used(from_parquet(table_file(place)))[:4]


@kind("parquet", read_pictures)
def parquets(draw, place, good):
    way, file = draw.random(), place / "table.parquet"
    if way < 0.3:
        what = draw.choice(sorted(HINTS))
        pq.write_table(pictures().replace_schema_metadata({"huggingface": HINTS[what]}), file)
        return f"metadata: {what}", REFUSED if what != "another column" else SOUND
    if way < 0.6:
        what = draw.choice(sorted(ODD_PARQUET))
        pq.write_table(ODD_PARQUET[what](), file, store_schema=False)
        return what, REFUSED
    if way < 0.65:
        file.write_bytes(pickled(place, draw))
        return "a pickle", REFUSED
    out = io.BytesIO()
    pq.write_table(pictures(40), out, compression=draw.choice(("snappy", "zstd", "none", "gzip")))
    what, content = damaged(out.getvalue(), draw)
    file.write_bytes(content)
    return what, SOUND


def text_table():
    return pa.table({"text": [t for t, _ in ROWS] * 4, "label": [y for _, y in ROWS] * 4})


def read_text_table(place):
    d = from_parquet(table_file(place), text="text")
    return d.fingerprint, tuple(d.classes), len(d.found.train)


@kind("parquet of texts", read_text_table)
def text_parquets(draw, place, good):
    table = text_table()
    if draw.random() < 0.3:
        what = draw.choice(sorted(PANDAS))
        said = json.dumps(PANDAS[what]()).encode() if draw.random() < 0.8 else b"{"
        pq.write_table(table.replace_schema_metadata({"pandas": said}), place / "table.parquet")
        return f"pandas: {what}", SAME
    out = io.BytesIO()
    pq.write_table(table, out)
    what, content = damaged(out.getvalue(), draw)
    (place / "table.parquet").write_bytes(content)
    return what, SOUND


# --- arrays ---


def idx_bytes(array):
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def matrix_bytes(array, magic=0x1E3D4C55):
    dims = [*array.shape, *[1] * (3 - array.ndim)]
    return np.array([magic, array.ndim, *dims], "<u4").tobytes() + array.tobytes()


CUBE = np.arange(120, dtype=np.uint8).reshape(4, 5, 6)


def array_file(draw, whole, place, name):
    "An array's file, damaged, packed and damaged, or another thing."
    ending = draw.choice(("", ".gz", ".xz"))
    way = draw.random()
    if way < 0.12:
        (place / name).write_bytes(pickled(place, draw))
        return "a pickle", REFUSED
    if way < 0.2:
        (place / name).write_bytes(gzip.compress(whole[:4] + b"\xff" * 40 + bytes(1 << 20)))
        return "axes beyond all numbers", REFUSED
    if ending and way < 0.6:
        what, content = damaged(PACKERS[ending](whole), draw)
        (place / name).write_bytes(content)
        return f"{ending}, {what}", SAME
    what, content = damaged(whole, draw)
    (place / name).write_bytes(PACKERS[ending](content))
    return what, SOUND


def read_idx_file(place):
    x = read_idx(place / "x")
    assert x.dtype == torch.uint8 and x.numel() and x.ndim
    return x.shape, x.flatten().tolist()


@kind("idx", read_idx_file)
def idxs(draw, place, good):
    return array_file(draw, idx_bytes(CUBE), place, "x")


def idx_set(place):
    x, y = np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8), (np.arange(40) % 10).astype(np.uint8)
    for name, array in (("x", x), ("y", y), ("test_x", x), ("test_y", y)):
        (place / name).write_bytes(idx_bytes(array))
    return x, y


@kind("idx set", lambda place: used_raw(read_idx_set([[place / n] for n in ("x", "y", "test_x", "test_y")])))
def idx_sets(draw, place, good):
    x, y = idx_set(place)
    ways = {
        "labels beyond": y + 9,
        "fewer labels": y[:-1],
        "labels of two axes": y.reshape(20, 2),
        "one picture": x[0],
    }
    name, what = draw.choice(("x", "y", "test_x", "test_y")), draw.choice(sorted(ways))
    if draw.random() < 0.5:
        (place / name).write_bytes(idx_bytes(ways[what]))
        return f"{name}: {what}", REFUSED
    return array_file(draw, idx_bytes(y if "y" in name else x), place, name)


def used_raw(raw):
    return used(from_arrays(raw.x, raw.y, raw.test))[:4] if raw.x.ndim == 4 else refuse("no pictures")


def refuse(why):
    raise LotteryError(why)


def read_matrix_file(place):
    x = read_matrix(place / "x")
    return x.dtype.str, x.shape, x.tobytes()


@kind("matrix", read_matrix_file)
def matrices(draw, place, good):
    return array_file(draw, matrix_bytes(CUBE), place, "x")


EVERY = {
    "idx": lambda p: read_idx(p),
    "matrix": lambda p: read_matrix(p),
    "weights": lambda p: Weights.of(p),
    "domain": lambda p: load_domain(p),
    "ticket": lambda p: Ticket.load(p),
    "csv": lambda p: from_csv(p),
    "parquet": lambda p: from_parquet(p),
    "picture": lambda p: decode(p.read_bytes()),
    "tokenizer": lambda p: tokenizer(p.parent),
    "bench": lambda p: read_bench(p),
    "run": lambda p: Run(p.parent),
}


def read_everywhere(place):
    name, file = (place / "reader").read_text(), place / "tokenizer.json"
    return repr(EVERY[name](file))


@kind("npy, npz and others", read_everywhere)
def foreign(draw, place, good):
    "What no reader takes, under each of them."
    out = io.BytesIO()
    ways = ("npy", "npz", "pickle", "html", "elf", "tar", "sqlite", "nothing", "a deep list", "a long line")
    way = draw.choice(ways)
    if way == "npy":
        np.save(out, np.arange(6.0))
    elif way == "npz":
        np.savez(out, x=np.arange(6), y=np.arange(6))
    elif way == "pickle":
        out.write(pickled(place, draw))
    else:
        out.write(
            {
                "html": b"<!doctype html><html><body>404 Not Found</body></html>",
                "elf": b"\x7fELF" + draw.randbytes(400),
                "tar": b"x" * 257 + b"ustar\0" + bytes(800),
                "sqlite": b"SQLite format 3\0" + bytes(600),
                "nothing": b"",
                "a deep list": b"[" * 200_000,
                "a long line": b"x" * 3_000_000,
            }[way]
        )
    what, content = way, out.getvalue()
    if draw.random() < 0.4:
        what, content = f"{way}, noised", noised(content, draw)
    (place / "tokenizer.json").write_bytes(content)
    name = draw.choice(sorted(EVERY))
    (place / "reader").write_text(name)
    return f"{what}, as {name}", REFUSED


# --- pictures ---

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(pwned) (w) file closefile\nshowpage\n%%EOF\n"


def read_picture(place):
    x = decode((place / "picture").read_bytes())
    assert x.ndim == 3 and x.shape[0] in (1, 3) and x.numel()
    return x.shape, x.flatten().tolist()


@kind("picture", read_picture)
def some_pictures(draw, place, good):
    way = draw.random()
    if way < 0.08:
        what, content, must = "PostScript", EPS, REFUSED
    elif way < 0.16:
        what, content, must = "a pickle", pickled(place, draw), REFUSED
    elif way < 0.24:
        mode = draw.choice(("L", "RGB", "P"))
        what, content, must = f"a bomb ({mode})", encoded(0, "PNG", mode, (17_000, 17_000)), REFUSED
    else:
        format = draw.choice(("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "JPEG2000"))
        what, content = damaged(encoded(7, format, "RGB", (16, 16)), draw)
        what, must = f"{format}, {what}", SOUND
    (place / "picture").write_bytes(content)
    return what, must


def read_picture_folder(place):
    return used(from_folder(place / "pets"))[:4]


def picture_folder(place):
    for i in range(8):
        (place / "pets" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (place / "pets" / "ab"[i % 2] / f"{i}.png").write_bytes(encoded(9 * i))
    return place / "pets" / "a" / "0.png"


@kind("folder of pictures", read_picture_folder)
def picture_folders(draw, place, good):
    file = picture_folder(place)
    ways = {
        "another size": lambda: file.write_bytes(encoded(1, size=(9, 9))),
        "colour": lambda: (
            file.write_bytes(encoded((1, 2, 3), mode="RGB"))
            and (place / "pets/a/2.png").write_bytes(encoded(5))
        ),
        "PostScript": lambda: file.write_bytes(EPS),
        "a pipe": lambda: (file.unlink(), os.mkfifo(file)),
        "a device": lambda: (file.unlink(), file.symlink_to("/dev/zero")),
        "a link to nothing": lambda: (file.unlink(), file.symlink_to("nothing")),
        "a class of one": lambda: shutil.rmtree(place / "pets" / "b"),
        "no class": lambda: shutil.rmtree(place / "pets"),
        "a text": lambda: file.write_text("no picture"),
    }
    what = draw.choice(sorted(ways))
    if draw.random() < 0.5:
        ways[what]()
        return what, REFUSED if what not in ("colour", "a link to nothing") else SOUND
    what, content = damaged(file.read_bytes(), draw)
    file.write_bytes(content)
    return what, SOUND


# --- words ---


@functools.cache
def wordpiece():
    "A tokenizer of a model, small."
    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "good", "bad", "book", "film", "##s"])}
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": vocab,
    }
    rules = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None}
    return json.dumps(
        rules
        | {"pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None, "model": model}
    )


def read_tokenizer_folder(place):
    vocabulary, length = tokenizer(place)
    d = from_texts([t for t, _ in ROWS], [y for _, y in ROWS]).tokenised(vocabulary, min(length, 16))
    assert int(d.train.x.min()) >= 0 and int(d.train.x.max()) < len(vocabulary)
    len(vocabulary.pieces), repr(vocabulary)
    return vocabulary.fingerprint, d.train.x.tolist()


def tokenizer_files():
    config = '{"pad_token_id": 0, "vocab_size": 7, "max_position_embeddings": 32}'
    return {"tokenizer.json": wordpiece(), "config.json": config}


@kind("tokenizer", read_tokenizer_folder)
def tokenizers(draw, place, good):
    names = tokenizer_files()
    for name, text in names.items():
        (place / name).write_text(text)
    name = draw.choice(sorted(names))
    if draw.random() < 0.15:
        (place / name).write_bytes(pickled(place, draw))
        return f"{name} is a pickle", REFUSED
    if draw.random() < 0.5:
        what, text = changed_json(names[name], draw, (*NASTY, *CODE, 2**40, -(2**40)))
        (place / name).write_text(text)
    else:
        what, content = damaged(names[name].encode(), draw)
        (place / name).write_bytes(content)
    return f"{name}, {what}", SOUND


@functools.cache
def pieces_of_words():
    return train_vocabulary([t for t, _ in ROWS] * 9, 40).model


def read_vocabulary(place):
    v = Vocabulary((place / "v.model").read_bytes())
    assert len(v) and len(v.pieces) == len(v)
    d = from_texts([t for t, _ in ROWS], [y for _, y in ROWS]).tokenised(v, 8)
    assert int(d.train.x.min()) >= 0 and int(d.train.x.max()) < len(v)
    return v.fingerprint


@kind("vocabulary", read_vocabulary)
def vocabularies(draw, place, good):
    if draw.random() < 0.1:
        what, content, must = "a pickle", pickled(place, draw), REFUSED
    else:
        (what, content), must = damaged(pieces_of_words(), draw), SOUND
    (place / "v.model").write_bytes(content)
    return what, must


# --- weights and results ---

STATE = {"0.weight": torch.arange(12.0).view(3, 4), "0.bias": torch.zeros(3), "n": torch.tensor(3)}


def read_weights_file(place):
    w = Weights.of(place / "w")
    assert all(
        t.layout == torch.strided and bool(torch.isfinite(t.double()).all()) for t in w.tensors.values()
    )
    return w.content


@kind("weights", read_weights_file)
def weights(draw, place, good):
    out, way = io.BytesIO(), draw.random()
    if way < 0.2:
        (place / "w").write_bytes(pickled(place, draw))
        return "a pickle", REFUSED
    if way < 0.4:
        odd = {
            "NaN": {"a": torch.tensor([torch.nan])},
            "complex": {"a": torch.zeros(2, dtype=torch.complex64)},
            "sparse": {"a": torch.eye(3).to_sparse()},
            "a list": [torch.zeros(2)],
            "words": {"a": "word"},
            "nothing": {},
            "numbers as names": {3: torch.zeros(2)},
            "a tensor many times": {"a": torch.zeros(1).expand(1 << 34)},
            "many tensors of one": dict.fromkeys(map(str, range(3000)), torch.zeros(1 << 16)),
        }
        what = draw.choice(sorted(odd))
        torch.save(odd[what], place / "w")
        return what, REFUSED if what != "many tensors of one" else SOUND
    if way < 0.7:
        content = safetensors.torch.save(STATE)
    else:
        torch.save({"state_dict": STATE} if way < 0.85 else STATE, out)
        content = out.getvalue()
    what, content = damaged(content, draw)
    (place / "w").write_bytes(content)
    return what, SOUND


def read_kept(place):
    found = kept("sparse-transfer", "smoke", place)
    return repr(found.about)[:4000], found.frame.to_csv()


@kind("results.csv", read_kept)
def results(draw, place, good):
    names = [p.name for p in sorted(good.glob("sparse-transfer-smoke.*"))]
    for name in names:
        shutil.copy(good / name, place)
    name = draw.choice(names)
    if draw.random() < 0.2:
        (place / name).write_bytes(pickled(place, draw))
        return f"{name} is a pickle", REFUSED
    if name.endswith("gz") and draw.random() < 0.2:
        (place / name).write_bytes(gzip.compress(b"run,source\n" + bytes(400 << 20), 1))
        return f"{name} is a bomb", REFUSED
    content = (place / name).read_bytes()
    if name.endswith("gz") and draw.random() < 0.4:
        what, content = "noised inside", gzip.compress(noised(gzip.decompress(content), draw))
    else:
        what, content = damaged(content, draw)
    (place / name).write_bytes(content)
    return f"{name}, {what}", SAME if name.endswith("gz") else SOUND


def read_measured(place):
    found = read_bench(place / "b.json")
    return bench_table(found).to_csv()


@kind("results of the benchmark", read_measured)
def benches(draw, place, good):
    text = (good / "b.json").read_text()
    if draw.random() < 0.6:
        what, text = changed_json(text, draw)
        (place / "b.json").write_text(text)
    else:
        what, content = damaged(text.encode(), draw)
        (place / "b.json").write_bytes(content)
    return what, SOUND


# --- one case ---


def make_good(good):
    "The sound files, which hostile ones are made of; trains for some seconds."
    from tiny import noise_domain, plan

    from lottery_nb.engine.recipes import Recipe
    from lottery_nb.pruning.schedules import geometric
    from lottery_nb.runs.writing import run
    from lottery_nb.sweeps.axes import SweepPlan
    from lottery_nb.sweeps.folders import Settings, write_sweep
    from lottery_nb.sweeps.working import work_on

    found = run(plan(controls=("reinit",), seeds=2), good / "run", "cpu", show=False)
    found.tickets[-1].save(good / "t.safetensors")
    few = plan(recipe=Recipe(lr=0.05, epochs=1, batch_size=64), schedule=geometric(0.4, 1))
    of_all = SweepPlan(few, {"recipe.lr": (0.05, 0.1)})
    work_on(write_sweep(of_all, good / "sweep", Settings(patience=0.2)).path, tell=str)
    arm = sorted((good / "run" / "arms").glob("*.safetensors"))[0]
    tensors, record = read_tensors(arm)
    write_tensors(good / f"arms-{arm.stem}.safetensors", tensors, record | {"file": f"arms-{arm.stem}"})
    save_domain(noise_domain(), good / "own.safetensors")
    some = [t for t, _ in ROWS] * 4, [y for _, y in ROWS] * 4
    save_domain(from_texts(*some, some), good / "texts.safetensors")
    for file in RESULTS.glob("sparse-transfer-smoke.*"):
        shutil.copy(file, good)
    if not (good / "sparse-transfer-smoke.json").exists():
        for file in RESULTS.glob("sparse-transfer-cpu.*"):
            shutil.copy(file, good / file.name.replace("-cpu", "-smoke"))
    measured = (HERE.parent / "bench" / "results").glob("*.json")
    shutil.copy(next(p for p in measured if not p.stem.startswith("on-gpu-")), good / "b.json")
    return good


WHOLE = {  # kinds whose sound file is made here, and not by a training
    "csv": lambda place: (place / "table.csv").write_bytes(csv_of(ROWS * 20)),
    "parquet": lambda place: pq.write_table(pictures(40), place / "table.parquet"),
    "parquet of texts": lambda place: pq.write_table(text_table(), place / "table.parquet"),
    "idx": lambda place: (place / "x").write_bytes(idx_bytes(CUBE)),
    "idx set": lambda place: idx_set(place),
    "matrix": lambda place: (place / "x").write_bytes(matrix_bytes(CUBE)),
    "how.json": lambda place: (place / "how.json").write_text(HOW),
    "sweep file": lambda place: sweep_file(place),
    "picture": lambda place: (place / "picture").write_bytes(encoded(7, "PNG", "RGB", (16, 16))),
    "folder of pictures": lambda place: picture_folder(place),
    "tokenizer": lambda place: [(place / name).write_text(text) for name, text in tokenizer_files().items()],
    "vocabulary": lambda place: (place / "v.model").write_bytes(pieces_of_words()),
    "weights": lambda place: (place / "w").write_bytes(safetensors.torch.save(STATE)),
}


def sound_value(name, good):
    "What a sound file of a kind gives; () for what no reader takes."
    if name == "npy, npz and others":
        return ()
    with tempfile.TemporaryDirectory() as d:
        place = Path(d)
        (place / "outside").mkdir()
        (place / "outside" / "theirs").write_text("theirs")
        if name in WHOLE:
            WHOLE[name](place)
        for part in good.iterdir() if name not in WHOLE else ():
            if name != "arms" or part.name.startswith("arms-"):
                (shutil.copytree if part.is_dir() else shutil.copy)(part, place / part.name)
        return KINDS[name].read(place)


def outcome_of(name, number, good, value):
    "Make a case, read it, and say what it came to: (what was done, outcome, why, bytes that the process grew by)."
    place = Path(tempfile.mkdtemp(prefix="hostile-"))
    os.chdir(place)
    HIT.clear()
    try:
        what, must = KINDS[name].make(random.Random(f"{name} {number}"), place, good)
        peak()
        start = peak()
        outcome, why = judged(name, place, must, value)
        grew = peak() - start
        if HIT or (place / "pwned").exists():
            outcome, why = "silent", f"it ran: {HIT or 'pwned'}"
        return what, outcome, why, grew
    finally:
        os.chdir("/")
        shutil.rmtree(place, ignore_errors=True)


def judged(name, place, must, value):
    try:
        found = KINDS[name].read(place)
    except LotteryError as e:
        lines = str(e).count("\n")
        return ("refused", "") if not lines else ("traceback", f"a refusal of {lines + 1} lines: {e}"[:400])
    except BaseException as e:
        return "traceback", f"{type(e).__name__}: {e}"[:300] + " | " + traceback.format_exc()[-900:]
    if found == ("told",):
        return "told", ""
    same = found == value and value != ()
    if must == REFUSED or (must == SAME and not same) or (must == TOLD and not same):
        return "silent", f"it must be {must} and came to {found!r:.200}"
    return ("same" if same else "sound"), ""


# --- many cases, in processes of their own ---


def peak():
    "The most memory that this process has held since the last look, in bytes."
    try:
        found = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10
        Path("/proc/self/clear_refs").write_text("5")
        return found
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def child(good):
    "Reads (kind, number) from the input, line by line, and says what each came to."
    sys.meta_path.insert(0, Trap())
    os.fsync = lambda fd: None  # nobody pulls the plug here
    values: dict = {}
    say = functools.partial(print, file=os.fdopen(os.dup(1), "w"), flush=True)
    for line in sys.stdin:
        name, number = json.loads(line)
        if name not in values:
            values[name] = sound_value(name, good)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        clock = time.monotonic()
        what, outcome, why, bytes_ = outcome_of(name, number, good, values[name])
        faulthandler.cancel_dump_traceback_later()
        if bytes_ > MOST and outcome not in FAULTS:
            outcome, why = "memory", f"{bytes_ >> 20} MB"
        seconds = round(time.monotonic() - clock, 2)
        say(
            json.dumps(
                dict(
                    kind=name,
                    number=number,
                    what=what,
                    outcome=outcome,
                    why=why,
                    mb=bytes_ >> 20,
                    seconds=seconds,
                )
            )
        )


def tried(cases, good):
    "What each of (kind, number) came to, two processes at a time."
    ordered = sorted(cases, key=lambda case: list(KINDS).index(case[0]))
    batches = [ordered[i : i + BATCH] for i in range(0, len(ordered), BATCH)]
    with ThreadPoolExecutor(2) as pool:
        for results in pool.map(functools.partial(tried_in_order, good=good), batches):
            yield from results


def tried_in_order(waiting, good):
    "The same in one process after another: one that hangs or dies is one case's, and the others go on in the next."
    done = []
    while waiting:
        config = tempfile.mkdtemp(prefix="hostile-config-")
        env = {**os.environ, "LOTTERY_CONFIG": config, "LOTTERY_DOWNLOAD": "0", "PYTHONWARNINGS": "ignore"}
        words = [sys.executable, str(HERE / "hostile.py"), "--child", str(good)]
        lines = "".join(json.dumps(case) + "\n" for case in waiting)
        ended = subprocess.run(words, env=env, input=lines, capture_output=True, text=True)
        shutil.rmtree(config, ignore_errors=True)
        done += [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
        waiting = waiting[len(ended.stdout.splitlines()) :]
        if waiting:
            (name, number), *waiting = waiting
            outcome = "hang" if "Timeout" in ended.stderr else "died"
            fault = dict(kind=name, number=number, what="", outcome=outcome, why=ended.stderr[-900:])
            done.append(fault | dict(mb=0, seconds=0.0))
    return done


def chosen(first, count):
    "So many cases from a number on, the kinds in turn."
    names = list(KINDS)
    return [(names[i % len(names)], i // len(names)) for i in range(first, first + count)]


def summary(results):
    "Counts by kind and outcome, the most memory and time, and what it was tried with."
    by_kind = {
        name: dict(sorted(Counter(r["outcome"] for r in results if r["kind"] == name).items()))
        for name in KINDS
    }
    versions = {m.__name__: m.__version__ for m in (torch, np, pd, pa)} | {
        "lottery_nb": __version__,
        "python": platform.python_version(),
    }
    return {
        "date": datetime.date.today().isoformat(),
        "versions": versions | {"pillow": Image.__version__, "zlib": zlib.ZLIB_RUNTIME_VERSION},
        "cases": len(results),
        "outcomes": dict(sorted(Counter(r["outcome"] for r in results).items())),
        "megabytes before": BEFORE >> 20,
        "most megabytes above": max(r["mb"] for r in results),
        "most seconds": max(r["seconds"] for r in results),
        "kinds": by_kind,
    }


def faults(results):
    return [r for r in results if r["outcome"] in FAULTS]


ALL = 2040


def main(words):
    if words[:1] == ["--child"]:
        return child(Path(words[1]))
    good = make_good(Path(tempfile.mkdtemp(prefix="hostile-good-")))
    cases = (
        [(words[0], int(n)) for n in words[1:]]
        if words and words[0] in KINDS
        else chosen(0, int(words[0]) if words else ALL)
    )
    results = []
    for r in tried(cases, good):
        results.append(r)
        if r["outcome"] in FAULTS or len(cases) < 20:
            print(json.dumps(r, ensure_ascii=False, indent=1), flush=True)
    said = summary(results)
    print(json.dumps(said, indent=1))
    if not words:
        STORED.write_text(json.dumps(said, indent=1) + "\n")
    shutil.rmtree(good, ignore_errors=True)
    return bool(faults(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
