"""Downloads from a server of the test's own that breaks off, lies, is slow, is busy, or serves something else; processes that are killed, or fetch at once."""

import gzip
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest

from lottery_nb.core import LotteryError
from lottery_nb.data import builtin, downloads, readers
from lottery_nb.data.builtin import FILES, IDX, load_cifar10, load_mnist, load_smallnorb
from lottery_nb.data.downloads import fetch, NotFetched, Published, unpack

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()


class Answers(BaseHTTPRequestHandler):
    """Serves `server.content[path]`, each request as the next word of `server.ways[path]` says; the last word stays."""

    protocol_version = "HTTP/1.0"

    def do_GET(self):
        path, told = self.path, self.headers.get("Range")
        ways = self.server.ways.get(path, ["whole"])
        way = ways.pop(0) if len(ways) > 1 else ways[0]
        start = int(told[6:-1]) if told else 0
        self.server.asked.append((path, start))
        with self.server.lock:
            pass  # the test may hold answers back
        getattr(self, way.partition(" ")[0].replace("-", "_"))(
            self.server.content[path], start, way.partition(" ")[2]
        )

    def head(self, status, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def rest(self, whole, start, length=None):
        ranged = {"Content_Range": f"bytes {start}-{len(whole) - 1}/{len(whole)}"} if start else {}
        self.head(206 if start else 200, len(whole) - start if length is None else length, **ranged)
        return whole[start:]

    def whole(self, whole, start, _):
        self.wfile.write(self.rest(whole, start))

    def breaks_off(self, whole, start, after):
        self.wfile.write(self.rest(whole, start)[: int(after)])

    def resets(self, whole, start, _):
        self.connection.close()

    def no_range(self, whole, start, after):
        self.head(200, len(whole))
        self.wfile.write(whole[: int(after or len(whole))])

    def says_less(self, whole, start, _):
        self.wfile.write(self.rest(whole, start, len(whole) - start - 7))

    def says_more(self, whole, start, _):
        self.wfile.write(self.rest(whole, start, len(whole) - start + 7))

    def says_nothing(self, whole, start, extra):
        self.head(200)
        self.wfile.write(whole + b"x" * int(extra or 0))

    def page(self, whole, start, _):
        text = b"<html>log in first</html>"
        self.head(200, len(text), Content_Type="text/html")
        self.wfile.write(text)

    def long_page(self, whole, start, _):
        self.head(200, None, Content_Type="text/html; charset=utf-8")
        self.wfile.write(b"<html>" + b" " * len(whole))

    def other_part(self, whole, start, _):
        self.wfile.write(self.rest(whole, start // 2 if start else 0))

    def other_bytes(self, whole, start, _):
        self.wfile.write(self.rest(bytes(b ^ 1 for b in whole[:999]) + whole[999:], start))

    def status(self, whole, start, code):
        self.head(int(code), 0, Retry_After=0)

    def to(self, whole, start, where):
        self.head(302, 0, Location=where)

    def drips(self, whole, start, seconds):
        rest = self.rest(whole, start)
        for i in range(0, len(rest), 10):
            self.wfile.write(rest[i : i + 10])
            time.sleep(float(seconds))

    def halts(self, whole, start, after):
        self.wfile.write(self.rest(whole, start)[: int(after)])
        self.wfile.flush()
        self.server.held.wait(30)

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except OSError:
            pass  # who asked has gone


@pytest.fixture
def server(monkeypatch, tmp_path):
    found = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    found.daemon_threads = True
    found.content, found.ways, found.asked = {"/a.bin": CONTENT}, {}, []
    found.lock, found.held = threading.Lock(), threading.Event()
    found.address = f"http://127.0.0.1:{found.server_port}"
    threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (
        ("LOTTERY_CACHE", tmp_path / "cache"),
        ("LOTTERY_DATA", ""),
        ("LOTTERY_DOWNLOAD", "1"),
    ):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(downloads, "WAIT", 0.001)
    yield found
    found.held.set()
    found.shutdown()
    found.server_close()


def published(server, name="a.bin", content=CONTENT, sha=True, **more):
    server.content[f"/{name}"] = content
    sums = [hashlib.new(kind, content).hexdigest() for kind in ("md5", "sha256")]
    return Published(
        name, (f"{server.address}/{name}",), len(content), sums[0], sums[1] if sha else "", **more
    )


def left(home):
    """What lies in a cache, without locks."""
    return sorted(p.name for p in home.rglob("*") if p.is_file() and not p.name.endswith(".lock"))


# one file from a server that is not what it should be

HEALS = {
    "whole": (["whole"], 1),
    "breaks off twice, and is taken up": (["breaks-off 100000", "breaks-off 100000", "whole"], 3),
    "busy once": (["status 503", "whole"], 2),
    "too many requests, then an error of the server": (["status 429", "status 500", "whole"], 3),
    "closes without a word": (["resets", "whole"], 2),
    "says more bytes than it has, in the middle": (["breaks-off 200000", "whole"], 2),
    "no Range": (["breaks-off 200000", "no-range"], 2),
    "no Range, and breaks off again earlier": (["breaks-off 200000", "no-range 50000", "whole"], 3),
    "no length": (["says-nothing"], 1),
    "another part than was asked for": (["breaks-off 200000", "other-part", "whole"], 3),
    "the part cannot be gone on with": (["breaks-off 200000", "status 416", "whole"], 3),
    "the rest is of another version": (["breaks-off 500", "other-bytes", "whole"], 3),
    "leads elsewhere": (["to /b.bin"], 2),
    "breaks off at each percent": ([*["breaks-off 9000"] * 33, "whole"], 34),
}


@pytest.mark.parametrize("kind", HEALS)
def test_what_a_server_does_wrong_and_then_right_ends_in_the_whole_file(kind, server, tmp_path):
    file = published(server)
    server.content["/b.bin"] = CONTENT
    ways, requests = HEALS[kind]
    server.ways["/a.bin"] = list(ways)
    assert fetch(file).read_bytes() == CONTENT and left(tmp_path / "cache") == ["a.bin"]
    assert len(server.asked) == requests
    fetch(file)
    assert len(server.asked) == requests  # it is there, and is not asked for again


FAILS = {
    "not there": (["status 404"], "HTTP 404", 1),
    "forbidden": (["status 403"], "HTTP 403", 1),
    "always busy": (["status 503"], "HTTP 503", 5),
    "a page that asks for a login": (["page"], "it answers with text/html of 25 bytes", 1),
    "a page of any length": (["long-page"], "it answers with text/html where", 1),
    "says fewer bytes": (["says-less"], "of 299,993 bytes where a file of 300,000 bytes should be", 1),
    "says more bytes": (["says-more"], "of 300,007 bytes where a file of 300,000 bytes should be", 1),
    "sends more, and no length": (["says-nothing 99"], "it sends more than the 300,000 bytes", 1),
    "other bytes": (["other-bytes"], "instead of", 1),
    "always breaks off at the same byte": (["no-range 7000"], "it broke off after 7,000 of 300,000 bytes", 5),
    "never more than nothing": (["breaks-off 0"], "it broke off after 0 of 300,000 bytes", 5),
    "in a circle": (["to /a.bin"], "redirect", None),
}


@pytest.mark.parametrize("kind", FAILS)
def test_what_never_comes_right_is_one_sentence_with_folder_and_remedy(kind, server, tmp_path):
    file, (ways, says, requests) = published(server), FAILS[kind]
    server.ways["/a.bin"] = list(ways)
    with pytest.raises(NotFetched) as e:
        fetch(file)
    told = str(e.value)
    assert says in told and f"{server.address}/a.bin" in told and f"put it into {tmp_path / 'cache'}" in told
    assert "\n" not in told and requests in (None, len(server.asked))
    assert "a.bin" not in left(tmp_path / "cache")
    assert ("bytes are in" in told) == (left(tmp_path / "cache") == ["a.bin.part"])
    server.ways.clear()
    assert fetch(file).read_bytes() == CONTENT  # and another day it heals


def test_a_page_does_not_cost_what_has_come(server, tmp_path):
    file = published(server)
    server.ways["/a.bin"] = ["breaks-off 200000", "page"]
    with pytest.raises(NotFetched, match="200,000 of its 300,000 bytes are in .*a.bin.part for the next try"):
        fetch(file)
    server.ways["/a.bin"] = ["whole"]
    fetch(file)
    assert server.asked[-1] == ("/a.bin", 200_000)


def test_the_next_address_goes_on_where_the_first_broke_off(server):
    file = published(server)
    server.content["/b.bin"] = CONTENT
    server.ways["/a.bin"] = ["breaks-off 150000", "status 404"]
    both = (*file.urls, f"{server.address}/b.bin")
    assert fetch(Published("c.bin", both, file.size, file.md5)).read_bytes() == CONTENT
    assert server.asked == [("/a.bin", 0), ("/a.bin", 150_000), ("/b.bin", 150_000)]


@pytest.mark.parametrize("way", ["drips 0.02", "halts 60000"])
def test_a_slow_server_is_given_up_and_taken_up_again(way, server, monkeypatch):
    monkeypatch.setattr(downloads, "PATIENCE", 0.3)
    file = published(server)
    server.ways["/a.bin"] = [way, "whole"]
    started = time.monotonic()
    assert fetch(file).read_bytes() == CONTENT and time.monotonic() - started < 10
    assert server.asked[1][1] > 0


def test_https_never_leads_to_http(server):
    from urllib.request import Request

    secure = downloads._Secure()
    asked = Request("https://example.org/a.bin")
    with pytest.raises(downloads.Unfit, match="from https to http"):
        secure.redirect_request(asked, None, 302, "Found", {}, f"{server.address}/a.bin")
    assert (
        secure.redirect_request(asked, None, 302, "Found", {}, "https://example.org/b.bin").host
        == "example.org"
    )
    assert all(
        url.startswith("https:") for files in FILES.values() for file in files for url in file.urls[:1]
    )


# what is kept


def test_the_sum_of_a_first_download_is_kept_and_must_be_that_of_the_next(server, tmp_path):
    file = published(server, sha=False)
    target = fetch(file)
    note = target.with_name("a.bin.sha256")
    assert note.read_text() == f"{hashlib.sha256(CONTENT).hexdigest()}  a.bin\n"
    target.unlink()
    note.write_text(f"{'0' * 64}  a.bin\n")  # as if another file had the same size and MD5 sum
    with pytest.raises(NotFetched, match=f"instead of {'0' * 64}, which a.bin.sha256 keeps"):
        fetch(file)
    assert not target.exists()
    note.write_text("damaged")
    assert fetch(file) == target


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])])
def test_a_damaged_file_in_the_cache_is_fetched_again(damage, server):
    file = published(server)
    fetch(file).write_bytes(damage)
    assert fetch(file).read_bytes() == CONTENT and len(server.asked) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_part_that_is_no_file_is_refused_and_a_link_is_not_written_through(server, tmp_path):
    file = published(server)
    (tmp_path / "cache").mkdir()
    (tmp_path / "mine").write_text("mine")
    part = tmp_path / "cache" / "a.bin.part"
    part.symlink_to(tmp_path / "mine")
    with pytest.raises(LotteryError, match="symbolic link"):
        fetch(file)
    assert (tmp_path / "mine").read_text() == "mine"
    part.unlink()
    os.mkfifo(part)
    with pytest.raises(LotteryError, match="pipe"):
        fetch(file)


def test_a_disk_that_is_full_or_closed_is_no_fault_of_the_server(server, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(LotteryError, match="set LOTTERY_CACHE to another folder"):
        fetch(published(server))
    (tmp_path / "cache").unlink()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads, "_receive", full)
    with pytest.raises(LotteryError, match="No space left on device.*: make room there"):
        fetch(published(server))
    assert len(server.asked) == 1


CHILD = """
import sys
from pathlib import Path
from urllib.error import URLError
from lottery_nb.data import downloads
downloads.WAIT = 0.01
name, url, size, md5 = sys.argv[1:]
print(downloads.fetch(downloads.Published(name, (url,), int(size), md5)).stat().st_size)
"""


def child(file):
    words = [file.name, *file.urls, str(file.size), file.md5]
    return subprocess.Popen([sys.executable, "-c", CHILD, *words], stdout=subprocess.PIPE)


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    assert true()


def test_a_process_that_is_killed_in_the_middle_leaves_what_it_had(server, tmp_path):
    file, part = published(server), tmp_path / "cache" / "a.bin.part"
    server.ways["/a.bin"] = ["halts 200000", "whole"]
    killed = child(file)
    until(lambda: part.exists() and part.stat().st_size > 100_000)
    killed.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    killed.wait(20)
    had = part.stat().st_size
    assert not part.with_name("a.bin").exists()
    assert fetch(file).read_bytes() == CONTENT and server.asked == [("/a.bin", 0), ("/a.bin", had)]


def test_two_processes_fetch_one_file_once(server, tmp_path):
    file = published(server)
    with server.lock:  # nothing is answered until both are there
        both = [child(file), child(file)]
        until(lambda: server.asked)
        time.sleep(1)
    assert [int(c.communicate(timeout=60)[0]) for c in both] == [len(CONTENT)] * 2
    assert server.asked == [("/a.bin", 0)]


# archives


def archive(**members):
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name.replace("__", "/"))
            if isinstance(content, str):
                member.type, member.linkname = (
                    (tarfile.SYMTYPE, content) if content else (tarfile.FIFOTYPE, "")
                )
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return found.getvalue()


BAD = {
    "a way out": archive(pets__cat=b"x", **{"../out": b"x"}),
    "a link out": archive(pets__cat=b"x", pets__link="/etc/passwd"),
    "a link up": archive(pets__cat=b"x", pets__link="../../out"),
    "a pipe": archive(pets__cat=b"x", pets__pipe=""),
    "another folder": archive(birds__jay=b"x"),
    "cut off": archive(pets__cat=CONTENT)[:-99],
    "no archive": CONTENT,
    "a bomb": archive(pets__cat=bytes(300_000_000)),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_archive_unpacks_into_its_folder_or_not_at_all(kind, tmp_path):
    path = tmp_path / "in" / "pets.tar.gz"
    path.parent.mkdir()
    path.write_bytes(BAD[kind])
    with pytest.raises(LotteryError, match="pets.tar.gz"):
        unpack(path, "pets")
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "pets.tar.gz"]


def test_an_unpacked_folder_heals_and_one_that_is_sound_is_left_alone(server, tmp_path):
    content = archive(pets__cat=b"meow", pets__dog=b"woof")
    file = published(server, "pets.tar.gz", content, holds="pets")
    place = fetch(file)
    first = place.stat().st_ino
    assert fetch(file).stat().st_ino == first and (place / "cat").read_bytes() == b"meow"
    (place / "cat").write_bytes(b"?")
    assert (fetch(file) / "cat").read_bytes() == b"meow" and len(server.asked) == 1
    assert left(tmp_path / "cache") == ["cat", "dog", "pets.tar.gz"]


# the data sets


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def mnist(server, monkeypatch):
    """A small MNIST on the server: 40 pictures and 20 of the test."""
    files = []
    for name, n in zip(IDX, (40, 40, 20, 20), strict=True):
        array = np.arange(n * 64).reshape(n, 8, 8) if "images" in name else np.arange(n) % 10
        content = gzip.compress(idx(array.astype(np.uint8)), mtime=0)
        files.append(published(server, f"mnist/{name}-ubyte.gz", content))
    monkeypatch.setitem(FILES, "mnist", tuple(files))
    monkeypatch.setattr(readers, "data_folders", lambda: (Path(os.environ["LOTTERY_CACHE"]),))
    return files


def test_a_data_set_arrives_whole_or_not_at_all(server, mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("LOTTERY_DOWNLOAD", "0")
    with pytest.raises(LotteryError, match="let it be downloaded .LOTTERY_DOWNLOAD is 0"):
        load_mnist()
    monkeypatch.setenv("LOTTERY_DOWNLOAD", "1")
    server.ways[f"/{mnist[2].name}"] = ["status 404"]
    with pytest.raises(LotteryError) as e:
        load_mnist()
    told = str(e.value)
    assert (
        told.startswith("mnist was not found in ")
        and "t10k-images-idx3-ubyte.gz could not be downloaded" in told
    )
    assert str(tmp_path / "cache") in told and "LOTTERY_DATA" in told
    server.ways.clear()
    server.asked.clear()
    assert len(load_mnist().x) == 40 and len(server.asked) == 2  # the two that were missing
    load_mnist()
    assert len(server.asked) == 2


@pytest.mark.parametrize("which", range(4))
def test_a_damaged_data_set_in_the_cache_heals(which, server, mnist, tmp_path, monkeypatch):
    load_mnist()
    broken = tmp_path / "cache" / mnist[which].name
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    monkeypatch.setenv("LOTTERY_DOWNLOAD", "0")
    with pytest.raises(LotteryError, match=f"{broken.name}.*it lies in {broken.parent}"):
        load_mnist()
    monkeypatch.setenv("LOTTERY_DOWNLOAD", "1")
    server.ways[f"/{mnist[which].name}"] = ["status 404"]
    with pytest.raises(LotteryError, match=f"it lies in {broken.parent}.*could not be downloaded.*HTTP 404"):
        load_mnist()
    server.ways.clear()
    server.asked.clear()
    assert len(load_mnist().x) == 40 and server.asked == [(f"/{mnist[which].name}", 0)]
    assert broken.read_bytes() == whole


def test_a_damaged_data_set_of_the_users_own_is_named_and_left_alone(server, mnist, tmp_path, monkeypatch):
    load_mnist()
    mine = tmp_path / "mine"
    (tmp_path / "cache").rename(mine)
    (mine / mnist[0].name).write_bytes(b"damaged")
    monkeypatch.setattr(readers, "data_folders", lambda: (mine, tmp_path / "cache"))
    server.asked.clear()
    with pytest.raises(LotteryError, match=f"it lies in {mine / 'mnist'}"):
        load_mnist()
    assert not server.asked and (mine / mnist[0].name).read_bytes() == b"damaged"


def test_what_torchvision_left_broken_in_the_cache_heals_too(server, mnist, tmp_path):
    old = tmp_path / "cache" / "MNIST" / "raw"
    old.mkdir(parents=True)
    for name in IDX:
        (old / f"{name}-ubyte").write_bytes(b"cut off")
    assert len(load_mnist().x) == 40


def test_a_broken_smallnorb_heals(server, tmp_path, monkeypatch):
    files, sums = [], {}
    for file, key in zip(FILES["smallnorb"], builtin.SMALLNORB_MD5, strict=True):
        n, kind = 50, key.partition("-")[2]
        magic = 0x1E3D4C55 if kind == "dat" else 0x1E3D4C54
        shape = {"dat": (n, 2, 4, 4), "cat": (n,), "info": (n, 4)}[kind]
        array = np.arange(np.prod(shape)).reshape(shape) % 5
        dims = np.array([magic, len(shape), *shape, *[1] * (3 - len(shape))], "<u4").tobytes()
        content = gzip.compress(dims + array.astype("u1" if kind == "dat" else "<i4").tobytes(), mtime=0)
        files.append(published(server, file.name, content, sha=False))
        sums[key] = (files[-1].md5, "")
    monkeypatch.setitem(FILES, "smallnorb", tuple(files))
    monkeypatch.setattr(builtin, "SMALLNORB_MD5", sums)
    place = tmp_path / "cache" / "smallnorb"
    place.mkdir(parents=True)
    for file in files:  # as a connection that broke off left them
        (tmp_path / "cache" / file.name).write_bytes(server.content[f"/{file.name}"][:30])
    monkeypatch.setenv("LOTTERY_DOWNLOAD", "0")
    with pytest.raises(LotteryError, match=f"it lies in {place}"):
        load_smallnorb()
    monkeypatch.setenv("LOTTERY_DOWNLOAD", "1")
    assert len(load_smallnorb().y) == 50
    assert len([name for name in left(place) if name.endswith(".sha256")]) == 6


def test_a_data_set_is_fetched_beforehand(server, mnist, tmp_path):
    assert [p.name for p in builtin.download("MNIST")] == [Path(file.name).name for file in mnist]
    assert len(server.asked) == 4 and builtin.download("mnist") and len(server.asked) == 4
    with pytest.raises(LotteryError, match="domain to download"):
        builtin.download("digits")


def test_files_that_are_published_are_those_that_are_looked_for():
    assert {"mnist", "fashion_mnist", "cifar10", "smallnorb"} == set(FILES)
    for name, files in FILES.items():
        lying = [file.holds or file.name for file in files]
        orders = [sorted(patterns) for layouts in builtin.FILE_LAYOUTS[name] for patterns, _ in layouts]
        assert sorted(lying) in orders
        assert all(len(file.md5) == 32 and len(file.sha256) in (0, 64) and file.size > 0 for file in files)


def test_published_sums_are_those_that_torchvision_keeps():
    from torchvision.datasets import CIFAR10, FashionMNIST, MNIST

    for name, theirs in (("mnist", MNIST), ("fashion_mnist", FashionMNIST)):
        assert [(Path(f.name).name, f.md5) for f in FILES[name]] == list(theirs.resources)
    (file,) = FILES["cifar10"]
    assert (file.urls[0], file.md5, file.holds) == (CIFAR10.url, CIFAR10.tgz_md5, CIFAR10.base_folder)
    assert [f.md5 for f in FILES["smallnorb"]] == [packed for packed, _ in builtin.SMALLNORB_MD5.values()]


@pytest.mark.data
def test_the_official_fashion_mnist_has_the_published_sums():
    for folder in os.environ["LOTTERY_DATA"].split(os.pathsep):
        for file in FILES["fashion_mnist"]:
            if (path := Path(folder, file.name)).exists():
                assert downloads.fault_of(path, file, path) == ""


def test_an_archive_from_another_maker_is_unpacked_and_not_opened(server, tmp_path, monkeypatch):
    content = archive(**{"cifar-10-batches-py__data_batch_1": b"foreign"})
    file = published(server, "cifar-10-python.tar.gz", content, holds="cifar-10-batches-py")
    monkeypatch.setitem(FILES, "cifar10", (file,))
    with pytest.raises(
        LotteryError, match="makers' MD5 sums.*it lies in"
    ):  # torchvision refuses what is not theirs
        load_cifar10()
    assert (tmp_path / "cache" / "cifar-10-batches-py" / "data_batch_1").read_bytes() == b"foreign"


# weights, which come through the libraries that know them


def test_weights_that_do_not_come_name_the_folder_and_the_remedy(tmp_path, monkeypatch):
    import torch
    from torchvision.models import get_model_weights

    from lottery_nb.models.pretrained import Architecture

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    net, place = Architecture("torchvision", "squeezenet1_1"), tmp_path / "checkpoints"

    def lost(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", lost)
    with pytest.raises(LotteryError, match=f"no route to host.*try again.*lies in {place}") as e:
        net.pretrained()
    assert e.value.place == "Network.weights" and "\n" not in str(e.value)
    place.mkdir(exist_ok=True)
    broken = place / get_model_weights("squeezenet1_1").DEFAULT.url.rpartition("/")[2]
    broken.write_bytes(b"PK\3\4 cut off")  # a copy that broke off
    with pytest.raises(
        LotteryError, match=f"lies in {place}, and a broken file there is fetched anew when it is removed"
    ):
        net.pretrained()


@pytest.mark.parametrize("family, name", [("timm", "resnet10t"), ("hf", "bert")])
def test_weights_from_the_hub_too(family, name, tmp_path, monkeypatch):
    pytest.importorskip({"hf": "transformers"}.get(family, family))
    from lottery_nb.models import pretrained

    def lost(*_):
        raise OSError("the hub is away")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(pretrained.FAMILIES, family, replace(pretrained.FAMILIES[family], weights=lost))
    with pytest.raises(LotteryError, match=f"the hub is away.*lies in {tmp_path / 'hub'}"):
        pretrained.Architecture(family, name).pretrained()
