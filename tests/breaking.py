"""A disk that fails or a process that dies at a chosen write, and bytes that are damaged in many ways."""

import contextlib
import errno
import functools
import json
import multiprocessing
import os
import pathlib
import pickle
import resource
import signal
import struct
import sys
import time
import types

import safetensors.torch
import torch

from lottery_nb.runs import reading as runs_reading
from lottery_nb.runs.workers import work

FOLDERS = {"arms": "arm", "tickets": "ticket", "snapshots": "snapshot", "inputs": "input"}


def kind_of(path):
    "What a file is in a run: 'plan', 'log', 'heartbeat', 'control', 'ticket', 'snapshot', 'arm' or 'input'; '' for another file."
    path = pathlib.Path(path)
    name = path.name[1:].split(".")[0] if path.name.endswith(".tmp") else path.stem
    return FOLDERS.get(path.parent.name) or {
        "plan": "plan",
        "events": "log",
        "heartbeat": "heartbeat",
        "control": "control",
    }.get(name, "")


class Disk:
    "Sees every step by which a run writes, and lets those fail that `fails` names: (kind of file, 'open' | 'write' | 'fsync' | 'replace', how often before) -> how, or None."

    def __init__(self, fails=lambda kind, step, before: None):
        self.fails, self.seen, self.count, self.files = fails, [], {}, {}

    def step(self, path, step, half=lambda: None):
        kind = kind_of(path)
        if not kind:
            return None
        before = self.count.get((kind, step), 0)
        self.count[kind, step] = before + 1
        self.seen.append((kind, step))
        how = self.fails(kind, step, before)
        if how in ("torn", "killed in the middle"):
            half()
        if how in ("killed", "killed in the middle"):
            os.kill(os.getpid(), signal.SIGKILL)
        if how in ("ENOSPC", "EIO") or (how == "torn" and step != "write"):
            raise OSError(
                getattr(errno, how, errno.EIO), os.strerror(getattr(errno, how, errno.EIO)), str(path)
            )
        return how

    def open(self, path, mode="r", *args, **kwargs):
        if isinstance(path, int) or mode in ("r", "rb"):
            return open(path, mode, *args, **kwargs)
        self.step(path, "open")
        return Watched(self, open(path, mode, *args, **kwargs), path)

    def fsync(self, fd):
        self.step(self.files.get(fd, ""), "fsync")
        os.fsync(fd)

    def replace(self, source, target, *, src_dir_fd=None, dst_dir_fd=None):
        folder = os.readlink(f"/proc/self/fd/{src_dir_fd}") if src_dir_fd is not None else ""
        self.step(pathlib.Path(folder, source), "replace")
        os.replace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def install(self, monkeypatch=None):
        "Put it between this package and the operating system, until `monkeypatch` is undone."
        put = functools.partial(monkeypatch.setattr, raising=False) if monkeypatch else setattr
        system = types.SimpleNamespace(**{**vars(os), "fsync": self.fsync, "replace": self.replace})
        for name, module in list(
            sys.modules.items()
        ):  # any room may be one that writes; a wing only holds rooms
            if (
                name.startswith("lottery_nb.")
                and "__file__" in vars(module)
                and "__path__" not in vars(module)
            ):
                put(module, "open", self.open)
                if vars(module).get("os") is os:
                    put(module, "os", system)
        write_text = pathlib.Path.write_text

        def watched(path, text, *args, **kwargs):
            def half():
                return write_text(path, text[: len(text) // 2])

            if kind_of(path) and self.step(path, "write", half) == "torn":
                raise OSError(errno.ENOSPC, "torn", str(path))
            return write_text(path, text, *args, **kwargs)

        put(pathlib.Path, "write_text", watched)
        return self


class Watched:
    "A file whose writes are seen."

    def __init__(self, disk, file, path):
        self.disk, self.file, self.path = disk, file, path
        disk.files[file.fileno()] = path

    def write(self, content):
        half = len(content) // 2
        if (
            self.disk.step(self.path, "write", lambda: (self.file.write(content[:half]), self.file.flush()))
            != "torn"
        ):
            return self.file.write(content)
        if getattr(self.file, "raw", None) is None:
            return half  # an unbuffered file tells how much it took
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.disk.files.pop(self.file.fileno(), None)  # its number may be another file's next
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


# --- processes that are killed ---


def _worker(ready, folder, source, dies_at):
    "What a worker process does, writing the plan included; dies at the `dies_at`th step of writing, in the middle of it if it is a write."
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    plan = source and runs_reading.read_plan(source)
    if dies_at is not None:
        disk = Disk()
        disk.fails = lambda *_: "killed in the middle" if len(disk.seen) > dies_at else None
        disk.install()
    ready.send(True)
    if source and not (pathlib.Path(folder) / "plan.json").exists():
        runs_reading.write_plan(plan, pathlib.Path(folder))
    work(folder, "cpu")


def worker(folder, source=None, dies_at=None, dies_after=None):
    "Work on a run (with the plan of another one) in a process of its own, killed at a step of writing or after some seconds; its exit code: 0, or -9."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lottery_nb.runs.workers", "sklearn.datasets", "sklearn.model_selection"])
    here, there = context.Pipe(False)
    process = context.Process(target=_worker, args=(there, str(folder), source and str(source), dies_at))
    process.start()
    there.close()
    assert here.recv()
    if dies_after is not None:
        process.join(dies_after)
        process.kill()
    process.join(60)
    if process.is_alive():
        process.kill()
        raise AssertionError("the worker did not end")
    return process.exitcode


# --- networks that break in another process ---


def breaks_when_made(input_shape, n_classes):
    raise ZeroDivisionError("no network today")


class Breaking(torch.nn.Module):
    "Raises at the third batch that it trains on."

    def __init__(self, shape, n_classes):
        super().__init__()
        self.first, self.out, self.left = (
            torch.nn.Linear(shape[1] * shape[2], 12),
            torch.nn.Linear(12, n_classes),
            3,
        )

    def forward(self, x):
        self.left -= self.training and len(x) > 2
        if self.left < 0:
            raise ZeroDivisionError("no third batch")
        return self.out(self.first(x.flatten(1)).relu())


def breaks_in_training(input_shape, n_classes):
    return Breaking(input_shape, n_classes)


# --- limits ---


@contextlib.contextmanager
def little_memory(more=2 << 30):
    "What takes more than `more` further bytes of address space gets a MemoryError."
    pages = pathlib.Path("/proc/self/statm")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if pages.exists():
        resource.setrlimit(
            resource.RLIMIT_AS, (int(pages.read_text().split()[0]) * resource.getpagesize() + more, hard)
        )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# --- damage ---

NASTY = (
    None,
    True,
    -1,
    0,
    10**30,
    2**63,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../x",
    "/etc/passwd",
    "a\nb",
    "\0",
    "é" * 300,
    "os:getcwd",
    [],
    {},
    [[]],
    [1, 2],
    {"type": "Popen"},
    {"type": "Reference", "name": "os:getcwd", "source": "x"},
    {"type": ["FindPlan"]},
    {"type": "dict", "items": 3},
    {"type": "float", "value": "x"},
    [{"a": {}}],
)
HUGE = struct.pack("<Q", 10 << 30)


def broken_bytes(whole, draw, flips=12):
    "(what was done, bytes): a file cut off, flipped, overwritten, or something else altogether; `whole` is left out."
    header = min(len(whole), 8 + int.from_bytes(whole[:8], "little")) if len(whole) > 8 else len(whole)
    for n in sorted(
        {0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) // 2, len(whole) - 1}
        | {draw.randrange(len(whole)) for _ in range(4)}
    ):
        if 0 <= n < len(whole):
            yield f"cut at {n}", whole[:n]
    for end in (header, len(whole)):
        for _ in range(flips // 2):
            at, bit = draw.randrange(end), draw.randrange(8)
            yield (
                f"bit {bit} of byte {at} flipped",
                whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :],
            )
    at = draw.randrange(len(whole))
    yield f"zeros from {at} on", whole[:at] + bytes(len(whole) - at)
    yield f"noise from {at} on", whole[:at] + draw.randbytes(len(whole) - at)
    yield "twice", whole + whole
    yield "a pickle", pickle.dumps({"schema": 2})
    yield "a torch.save file", b"PK\x03\x04" + whole
    yield "a header of 10 GB", HUGE + whole[8:]
    yield "a header of 10 GB and a brace", HUGE + b"{" + whole
    yield "a header of 2^64 - 1 bytes", b"\xff" * 8 + b"{" + whole
    yield "a deep header", struct.pack("<Q", 200_000) + b"{" + b"[" * 199_999
    yield "deep JSON", b"[" * 200_000
    yield "deep objects", b'{"a":' * 100_000
    yield "words", b"../../x\n/etc/passwd\n"
    yield "no UTF-8", b"\xff\xfe\xfd"
    yield "zeros", bytes(5000)


def places(value, here=()):
    "The paths to every part of a JSON value."
    yield here
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*here, key))


def with_change(value, where, new):
    "A copy of a JSON value with another part at a place; `...` removes it."
    copy = json.loads(json.dumps(value))
    if not where:
        return new
    inner = copy
    for key in where[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[where[-1]]
    else:
        inner[where[-1]] = new
    return copy


def other_tensor(tensor, draw):
    "A tensor of another shape, type or content."
    ways = (
        lambda t: t.flatten()[:-1].clone(),
        lambda t: t.unsqueeze(0),
        lambda t: t.to(torch.int64),
        lambda t: t.to(torch.float64),
        lambda t: t.to(torch.float16),
        lambda t: t.to(torch.bool),
        lambda t: t.to(torch.complex64),
        lambda t: torch.zeros(0),
        lambda t: torch.zeros(()),
        lambda t: torch.zeros(0, 2**31, 2**31 - 1),
        lambda t: torch.full(t.shape, torch.nan),
        lambda t: torch.full(t.shape, torch.inf),
        lambda t: t.float().to(torch.float8_e5m2),
        lambda t: t.to(torch.uint8),
        lambda t: torch.zeros(t.shape, dtype=torch.float32),
    )
    return draw.choice(ways)(tensor)


def tampered(tensors, record, draw):
    "(what was done, tensors, record): one part of a file changed by someone who knows its layout."
    if draw.random() < 0.4:
        name = draw.choice(sorted(tensors))
        way = draw.choice(("other", "other", "other", "gone", "renamed"))
        rest = {n: t for n, t in tensors.items() if n != name}
        if way != "gone":
            new = (
                name
                if way == "other"
                else draw.choice(("x", "../../x", "now/weights", name + "/x", name.replace("/", ".")))
            )
            rest[new] = other_tensor(tensors[name], draw) if way == "other" else tensors[name]
        return f"{name} {way}", rest, record
    where = draw.choice([p for p in places(record) if p])
    new = draw.choice((*NASTY, ...))
    return f"{'/'.join(map(str, where))} = {new!r}", tensors, with_change(record, where, new)


def raw_file(path, tensors, metadata):
    "A safetensors file with metadata as given."
    pathlib.Path(path).write_bytes(
        safetensors.torch.save({n: t.contiguous() for n, t in tensors.items()}, metadata)
    )
    return path


def until(condition, seconds=60):
    "Wait for a state; a state that never comes is an error."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the state did not come"
        time.sleep(0.02)


def noised(content, draw, more=(), flips=False):
    "Bytes with some of them changed, taken out, doubled or put in; `flips` of single bits too."
    out = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at, n = draw.randrange(len(out) + 1), draw.choice((1, 1, 4, 40, 400))
        way = draw.randrange(4 + flips)
        if way == 0:
            out[at : at + n] = draw.randbytes(len(out[at : at + n]))
        elif way == 1:
            del out[at : at + n]
        elif way == 2:
            out[at:at] = out[at : at + n]
        elif way == 3:
            out[at:at] = draw.choice(
                (
                    b"{",
                    b"[",
                    b'"',
                    b"\\",
                    b"null",
                    b"1e999",
                    b"-",
                    b"\n",
                    b"\0",
                    b"\xff",
                    b"NaN",
                    b"9" * 5000,
                    b'\\ud800"',
                    *more,
                )
            )
        elif at < len(out):
            out[at] ^= 1 << draw.randrange(8)
    return bytes(out)
