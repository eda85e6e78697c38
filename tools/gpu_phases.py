"""The work of tools/on_gpu.py: for each phase its pieces, each a function that returns what is to be kept of it.

A process of on_gpu.py runs `gpu_phases.py JOB.json`; what it finds is in the job's result file after each piece.
Nothing here draws: no plotly, no widgets.
"""

import gzip
import importlib
import json
import math
import os
import pkgutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
import torch.nn.functional as F
from on_gpu import ROOT, write
from torch import nn

import lottery_nb
from lottery_nb.bench.measure import flops_of, matmul_peak, slug, speed, waited
from lottery_nb.bench.race import bench, machine
from lottery_nb.core import generator, NotFound
from lottery_nb.data.domains import domain, vocabulary
from lottery_nb.data.own import from_arrays, from_texts
from lottery_nb.engine import training
from lottery_nb.engine.arms import Arm, precision_of
from lottery_nb.engine.recipes import Recipe
from lottery_nb.engine.training import finish, train
from lottery_nb.models.network import Network, prunable
from lottery_nb.models.zoo import text_cnn
from lottery_nb.plans.find import find_tickets, FindPlan
from lottery_nb.pruning.masks import Mask
from lottery_nb.pruning.schedules import geometric
from lottery_nb.pruning.scopes import prune
from lottery_nb.rewinding.snapshots import fresh
from lottery_nb.runs.workers import start
from lottery_nb.runs.writing import record, run
from lottery_nb.workbench.cost import gpus, worker_use

CLOSE = 1e-10  # by which weights may differ after a training in double precision on two devices
CPU = torch.device("cpu")


@dataclass
class Job:
    """What a phase is told."""

    device: torch.device
    toy: bool  # so small that figures mean nothing
    folder: Path  # for files that nobody keeps
    paper: str = ""  # which one, of on_gpu.PAPERS
    seed: int = 0  # of the paper

    def size(self, whole, toy):
        """A number for this job."""
        return toy if self.toy else whole


# --- data, networks, arms ---


def pictures(job, name, n=None):
    """A domain's pictures, the first n of them; made-up ones of CIFAR-10's size where the domain is not here."""
    if job.toy:
        return domain("digits@100")
    try:
        return domain(name if n is None else f"{name}@{n}")
    except NotFound:
        return noise(n or 45_000, (3, 32, 32) if name == "cifar10" else (1, 28, 28))


def corpus(job):
    """A domain of reviews in the pieces of the paper at the scale of a GPU; made-up texts where it is not here."""
    try:
        return reviews() if job.toy else domain("amazon-kitchen~bpe(8000,200,amazon-*)")
    except NotFound:
        return reviews()


def noise(n, shape):
    """Pictures that say nothing: for times, which they do not change."""
    drawn = generator(0, "noise")
    x = torch.randint(256, (n, *shape), generator=drawn, dtype=torch.uint8)
    return from_arrays(x, torch.arange(n) % 10, name="made-up")


def reviews(n=240):
    """A domain of made-up texts."""
    words = "plot actor scene music story film camera pan knife oven steel handle lid plug".split()
    drawn = torch.randint(len(words), (n, 9), generator=generator(0, "texts")).tolist()
    texts = [" ".join([*(words[k] for k in row), "good" if i % 2 else "bad"]) for i, row in enumerate(drawn)]
    made = from_texts(texts, [i % 2 for i in range(n)], name="made-up-texts")
    return made.tokenised(vocabulary(made, 60), 12)


def still_text_cnn(input_shape, n_classes, width=1.0, vocabulary=0):
    """The text CNN without dropout, which each kind of device draws in its own way."""
    model = text_cnn(input_shape, n_classes, width, vocabulary=vocabulary)
    model.dropout.p = 0.0
    return model


class Block(nn.Module):
    """A layer of a transformer: attention, then two layers on each patch."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches of 4×4 pixels, learned places, blocks, the mean over the patches, a head."""

    def __init__(self, shape, n_classes, width=64, depth=2):
        super().__init__()
        self.patches = nn.Conv2d(shape[0], width, 4, 4)
        self.places = nn.Parameter(0.02 * torch.randn((shape[1] // 4) * (shape[2] // 4), width))
        self.blocks, self.norm = nn.Sequential(*(Block(width, 4) for _ in range(depth))), nn.LayerNorm(width)
        self.head = nn.Linear(width, n_classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(x)).mean(1))


def vit(input_shape, n_classes):
    """A small ViT."""
    return VisionTransformer(input_shape, n_classes)


def arms_on(d, network, n, recipe, width=1.0, **how):
    """Arms with seeds and random masks of their own, half of their weights pruned."""
    pieces = len(d.vocabulary) if d.vocabulary else None
    net = Network(network, d.shape, d.n_classes, width, vocabulary=pieces)
    names = prunable(net.build(0), net.input_shape)

    def arm(seed):
        begin = fresh(net, seed)
        drawn = {m: torch.rand(begin.weights[m].shape, generator=generator(seed, "gpu", m)) for m in names}
        mask = Mask({m: values < 0.5 for m, values in drawn.items()})
        return Arm(f"{seed}", net, d, recipe, seed, begin, mask, **how)

    return [arm(seed) for seed in range(n)]


def trained(arms, device, **how):
    """What training gave."""
    return finish(train(arms, device, **how))


def told(arms, device, **how):
    """What training gave, and all that was told."""
    stream, events = train(arms, device, **how), []
    while True:
        try:
            events.append(next(stream))
        except StopIteration as end:
            return end.value, events


def gap(a, b):
    """The largest difference of two snapshots: weights, buffers, optimizer state."""
    one, other = a.tensors(), b.tensors()
    assert one.keys() == other.keys()
    return max((one[n].double() - other[n].double()).abs().max().item() for n in one if one[n].numel())


def same(a, b):
    """Whether two snapshots are equal to the bit."""
    one, other = a.tensors(), b.tensors()
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


@contextmanager
def deterministic():
    """Within it torch uses deterministic algorithms alone."""
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# --- facts ---


def about(device):
    """What the figures of a process belong to."""
    told_of = machine(device, torch.get_num_threads())
    packages = (
        "numpy",
        "pandas",
        "timm",
        "transformers",
        "lightning",
        "fastai",
        "fasterai",
        "plotly",
        "triton",
    )
    there = {name: getattr(sys.modules.get(name), "__version__", version(name)) for name in packages}
    more = {"slug": slug(told_of["device"]), "cuda": torch.version.cuda, "packages": there}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        more |= {"compute capability": f"{major}.{minor}", "cudnn": torch.backends.cudnn.version()}
        more["memory_gib"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
    return told_of | more


def version(name):
    """The version of a package; '' where it is missing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def driver():
    """What the driver says of the GPUs."""
    ask = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=10).stdout.strip()
    except OSError:
        said = "no driver"
    return {"driver": said, "gpus": [vars(g) for g in gpus()]}


DRAWING = ("plotly", "anywidget", "ipywidgets", "traitlets", "IPython")


def modules():
    """Which modules do not import, and why; only what draws may be missing."""
    lost = {}
    for found in pkgutil.walk_packages(lottery_nb.__path__, "lottery_nb."):
        try:
            importlib.import_module(found.name)
        except Exception as e:
            lost[found.name] = getattr(e, "name", None) or f"{type(e).__name__}: {e}"
    return {"not imported": lost, "holds": all(why.split(".")[0] in DRAWING for why in lost.values())}


@cache
def product_rates(device, n):
    """Operations a second of square matrix products, in each precision; measured once in a process."""
    rates = {}
    for name, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}.items():
        rates[name] = matmul_peak(device, dtype, n if name != "fp64" else n // 2)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    rates["tf32"] = matmul_peak(device, torch.float32, n)
    torch.set_float32_matmul_precision(before)
    return rates


def products(job):
    """`product_rates` as a piece."""
    rates = product_rates(job.device, job.size(8192, 256))
    return {f"{name} TFLOP/s": rate / 1e12 for name, rate in rates.items()}


def copies(job):
    """Bytes a second that a copy on the device reads and writes, and that come from the host."""
    n, best = job.size(2**30, 2**20), {}
    here = torch.zeros(n, dtype=torch.uint8, pin_memory=job.device.type == "cuda")
    there, target = here.to(job.device), torch.empty(n, dtype=torch.uint8, device=job.device)
    ways = {"on the device TB/s": (there, 2), "from the host TB/s": (here, 1)}
    for name, (source, times) in ways.items():
        for _ in range(4):
            begin = waited(job.device)
            target.copy_(source)
            rate = times * n / (waited(job.device) - begin) / 1e12
            best[name] = max(best.get(name, 0.0), rate)
    return best


def facts(job):
    return {
        "driver": driver,
        "modules": modules,
        "matrix products": partial(products, job),
        "copies": partial(copies, job),
    }


# --- parity ---


def parity_of(job, network, d, width, lr):
    """Train the same arm on the CPU and on the device, in double precision."""
    steps, batch = job.size(50, 4), job.size(32, 16)
    how = dict(schedule="constant", keep="last", precision="fp64")
    recipe = Recipe("sgd", lr=lr, momentum=0.9, steps=steps, batch_size=batch, **how)
    arms = arms_on(d, network, 1, recipe, width)
    (here,), (there,) = (trained(arms, where) for where in (CPU, job.device))
    losses = [r.metrics["validation"]["loss"] for r in (here, there)]
    apart = gap(here.last, there.last)
    return {"steps": steps, "largest difference": apart, "losses": losses, "holds": apart <= CLOSE}


def timm_vit_parity(job):
    """The same with a ViT of timm, where it is there."""
    if not version("timm"):
        return {"not measured": "timm is not installed"}
    small = job.size("", ", depth=1, embed_dim=48, num_heads=3")
    d = noise(80, (3, 32, 32)) if job.toy else pictures(job, "cifar10", 2000)
    return parity_of(job, f"timm:vit_tiny_patch16_224(img_size=32{small})", d, 1.0, 0.01)


def small_plan(job, **how):
    """A search of a few seconds."""
    recipe = Recipe(lr=0.05, epochs=2, batch_size=32, schedule="constant", keep="last")
    fields = dict(width=0.5, schedule=geometric(0.5, 2), recipe=recipe, seeds=2, controls=("reinit",))
    return FindPlan(f"digits@{job.size(1000, 200)}", **{**fields, **how})


def masks(job):
    """Masks of a search on the CPU and on the device, in double precision."""
    plan = small_plan(job, controls=())
    plan = replace(plan, recipe=replace(plan.recipe, precision="fp64"))
    here, there = (finish(find_tickets(plan, where)) for where in (CPU, job.device))
    pairs = list(zip(here, there, strict=True))
    return {"masks": len(pairs), "holds": all(a.mask == b.mask for a, b in pairs)}


def pruned_zeros(job):
    """Promise 1: pruned weights and their optimizer state are exactly +0."""
    left = 0
    for network in ("lenet-300-100", "conv-2"):
        recipe = Recipe("adam", lr=1e-3, steps=6, batch_size=16, keep="last")
        for result in trained(arms_on(domain("digits@200"), network, 2, recipe, 0.25), job.device):
            mask, slots = result.arm.mask, (result.last.weights, *result.last.optimizer.values())
            for name, keep in mask.items():
                left += sum(slot[name][~keep].view(torch.int32).count_nonzero().item() for slot in slots)
    return {"pruned values that live": left, "holds": left == 0}


def exact_counts(job):
    """Promise 2: masks from scores on the device keep exactly as many, the same ones as on the CPU, ties included."""
    kept, wrong = [], 0
    for n, density in ((1000, 0.2), (job.size(5_000_000, 10_000), 0.137), (999, 0.5)):
        scores = {
            "a": (torch.rand(n, generator=generator(0, "scores", n)) * 100).floor(),
            "b": torch.zeros(7, 3),
        }
        here = prune(scores, Mask.dense(scores), density)
        with deterministic():
            there = prune({k: s.to(job.device) for k, s in scores.items()}, Mask.dense(scores), density)
        kept.append(there.kept)
        wrong += here != there or there.kept != round(density * (n + 21))
    return {"kept": kept, "holds": not wrong}


def from_a_snapshot(job, network):
    """Promise 3: a training from a snapshot ends with the same bits as the one that it was taken in."""
    recipe = Recipe("sgd", lr=0.05, steps=12, batch_size=16, augment=("crop", "flip"), keep="last")
    d = domain("digits@200")
    with deterministic():
        (arm,) = arms_on(d, network, 1, recipe, 0.25, capture=(5,))
        (whole,) = trained([arm], job.device)
        (again,) = trained([replace(arm, start=whole.captured[5], capture=())], job.device)
    return {"holds": same(whole.last, again.last), "precision": precision_of(arm, job.device)}


def begun(plan, folder, device, epochs):
    """Run a plan until some epochs are done, and leave it as a killed process would: without an end."""
    stream = record(plan, folder, device)
    for e in stream:
        epochs -= type(e).__name__ == "EpochDone"
        if epochs == 0:
            break
    stream.close()


def killed_and_resumed(job):
    """Promise 4: a run that was cut off and taken up ends with the same bits as one left alone."""
    with deterministic():
        whole = run(small_plan(job), job.folder / "whole" / "run", job.device, show=False)
        for epochs in (1, 3):
            begun(small_plan(job), job.folder / "cut" / "run", job.device, epochs)
        again = run(small_plan(job), job.folder / "cut" / "run", job.device, show=False)
    equal = [a.content == b.content for a, b in zip(whole.tickets, again.tickets, strict=True)]
    return {"tickets": len(equal), "holds": bool(equal) and all(equal)}


def moved(job):
    """A run that begins on the CPU, goes on on the device and ends on the CPU is whole, and says what it was on."""
    folder, plan = job.folder / "moved" / "run", small_plan(job)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begun(plan, folder, CPU, 3)
        begun(plan, folder, job.device, 3)
        found = run(plan, folder, CPU, show=False)
    frame = found.frame
    keys = ["arm", "epoch", "split", "metric"]
    whole = found.whole and frame["value"].notna().all() and not frame.duplicated(keys).any()
    devices = [e.device for e in found.events if type(e).__name__ == "RunStarted"]
    return {"devices": devices, "tickets": len(found.tickets), "holds": bool(whole) and len(devices) == 3}


@contextmanager
def little_memory(job, arms):
    """Memory for a few arms together and not for all of them."""
    if job.device.type != "cuda":
        real = training.Trainer

        class Small(real):
            def __init__(self, arms, *rest):
                if len(arms) > 2:
                    raise torch.OutOfMemoryError("made up")
                super().__init__(arms, *rest)

        training.Trainer = Small
        try:
            yield
        finally:
            training.Trainer = real
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(job.device)
    trained(arms[:2], job.device, layout="stacked")
    share = 1.5 * torch.cuda.max_memory_reserved(job.device) / torch.cuda.mem_get_info(job.device)[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(share, job.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, job.device)


def out_of_memory(job):
    """Arms that do not fit together are trained in halves, and none is lost."""
    recipe = Recipe("sgd", lr=0.05, steps=3, batch_size=job.size(512, 16), keep="last", precision="fp32")
    network, d = job.size("resnet-20", "lenet-300-100"), pictures(job, "cifar10", 5000)
    arms = arms_on(d, network, 8, recipe)
    with little_memory(job, arms):
        results, events = told(arms, job.device, layout="stacked")
    layouts = [e.groups for e in events if type(e).__name__ == "Layout"]
    last = max(len(group) for group in layouts[-1])
    whole = [r.arm.name for r in results] == [a.name for a in arms] and not any(r.failed for r in results)
    return {"layouts": layouts, "halved": len(layouts) - 1, "holds": whole and len(layouts) > 1 and last < 8}


def parity(job):
    small, colour, d = domain("digits@200"), pictures(job, "cifar10", 2000), reviews()
    return {
        "LeNet": partial(parity_of, job, "lenet-300-100", small, job.size(1.0, 0.2), 0.05),
        "Conv-4": partial(parity_of, job, "conv-4", colour, job.size(1.0, 0.1), 0.02),
        "ResNet-20": partial(parity_of, job, "resnet-20", colour, job.size(1.0, 0.25), 0.05),
        "text CNN": partial(parity_of, job, still_text_cnn, d, job.size(0.3, 0.1), 0.05),
        "ViT": partial(parity_of, job, vit, colour, 1.0, 0.02),
        "masks": partial(masks, job),
        "promise 1": partial(pruned_zeros, job),
        "promise 2": partial(exact_counts, job),
        "promise 3, LeNet": partial(from_a_snapshot, job, "lenet-300-100"),
        "promise 3, ResNet-20": partial(from_a_snapshot, job, "resnet-20"),
        "promise 3, Conv-2": partial(from_a_snapshot, job, "conv-2"),
        "promise 4": partial(killed_and_resumed, job),
        "moved": partial(moved, job),
        "out of memory": partial(out_of_memory, job),
        "ViT of timm": partial(timm_vit_parity, job),
    }


# --- tests ---


def marked():
    """Test files that have a test marked gpu."""
    return [
        p
        for p in sorted((ROOT / "tests").glob("test_*.py"))
        if "pytest.mark.gpu" in p.read_text(encoding="utf-8")
    ]


def tested(job):
    """Run the tests that are marked gpu."""
    report, files = job.folder / "report.xml", [str(path) for path in marked()]
    how = ["-m", "gpu", "-q", "-n", "0", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *how, *files], cwd=ROOT, capture_output=True, text=True
    )
    if not report.exists():
        return {"failed": f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}"}
    cases = list(ElementTree.parse(report).iter("testcase"))
    states = {
        case.get("name"): next((c.tag for c in case if c.tag != "system-out"), "passed") for case in cases
    }
    counts = {word: list(states.values()).count(word) for word in ("passed", "failure", "error", "skipped")}
    texts = {
        case.get("name"): (c.text or "")[-1500:]
        for case in cases
        for c in case
        if c.tag in ("failure", "error")
    }
    ran = counts["passed"] > 0 or job.device.type != "cuda"
    return {
        **counts,
        "states": states,
        "texts": texts,
        "holds": ran and not counts["failure"] + counts["error"],
    }


def tests(job):
    return {"marked gpu": partial(tested, job)}


# --- speed ---


def rate_of(job, d, network, n, recipe, layout, repeats=3):
    """Pictures a second, of all arms together: each measurement, and the median."""
    asked = {"device": str(job.device), "layout": layout}

    def arms(epochs):
        return arms_on(
            d, network, n, replace(recipe, epochs=epochs), job.size(1.0, 0.2), returns_weights=False
        )

    rates = [speed(arms, asked) for _ in range(job.size(repeats, 1))]
    return {"images/s": statistics.median(rates), "each": rates}


def stacked(job, network, name, n, precision):
    """Arms that share their steps, and how many times as fast as one by one."""
    d = corpus(job) if network == "text-cnn" else pictures(job, name, 20_000 if "lenet" in network else 6000)
    recipe = Recipe(
        "sgd", lr=0.02, batch_size=job.size(128, 32), schedule="constant", keep="last", precision=precision
    )
    together = rate_of(job, d, network, n, recipe, "stacked", 1 if n > 16 else 3)
    alone = rate_of(job, d, network, 1, recipe, "alone")
    times = together["images/s"] / alone["images/s"]
    about_it = {"arms": n, "precision": precision, "pictures": d.name, "times as fast": times}
    return about_it | {"stacked": together, "alone": alone} | {"images/s": together["images/s"]}


def stacks(job):
    asked = {
        "LeNet": ("lenet-300-100", "fashion_mnist", job.size((16, 64, 4), (2,)), ("fp32",)),
        "ResNet-20": ("resnet-20", "cifar10", job.size((8, 32), (2,)), job.size(("fp32", "bf16"), ("fp32",))),
        "text CNN": ("text-cnn", "", job.size((4,), (2,)), ("fp32",)),
    }
    return {
        f"{title}, {n} arms, {precision}": partial(stacked, job, network, name, n, precision)
        for title, (network, name, numbers, precisions) in asked.items()
        for n in numbers
        for precision in precisions
    }


def resnet_recipe(job, precision, batch):
    return Recipe("sgd", lr=0.05, batch_size=batch, schedule="constant", keep="last", precision=precision)


def shares(job, d, network, rate):
    """Operations a second, and their share of the peaks that are measured now."""
    flops = rate * flops_of(Network(network, d.shape, d.n_classes))
    peaks = product_rates(job.device, job.size(8192, 256))
    share = {f"share of {name} peak": flops / peaks[name] for name in ("bf16", "tf32")}
    return {"TFLOP/s": flops / 1e12, **share, "peaks": peaks}


def network_speed(job, network, precision, batch, repeats=3):
    """Training speed of a network on all of CIFAR-10."""
    network, d = job.size(network, "resnet-20"), replace(pictures(job, "cifar10"), held_out=0.02)
    if job.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(job.device)
    rate = rate_of(job, d, network, 1, resnet_recipe(job, precision, job.size(batch, 32)), "alone", repeats)
    memory = torch.cuda.max_memory_allocated(job.device) / 2**30 if job.device.type == "cuda" else None
    return {**rate, **shares(job, d, network, rate["images/s"]), "pictures": d.name, "memory GiB": memory}


def with_benchmark(job):
    """The same where cuDNN tries its algorithms first, which the engine does not ask for: other runs may get other bits."""
    torch.backends.cudnn.benchmark = True
    try:
        return network_speed(job, "resnet-18", "bf16", 512)
    finally:
        torch.backends.cudnn.benchmark = False


def profiled(job, network="resnet-18", batch=512, precision="bf16"):
    """Where the time of some steps goes."""
    from torch.profiler import profile, ProfilerActivity

    d, network, gpu = (
        pictures(job, "cifar10", 20_000),
        job.size(network, "resnet-20"),
        job.device.type == "cuda",
    )
    recipe = replace(resnet_recipe(job, precision, job.size(batch, 32)), steps=job.size(20, 2))
    arms = arms_on(d, network, 1, recipe, job.size(1.0, 0.2), returns_weights=False)
    trained(arms, job.device)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as seen:
        begin = waited(job.device)
        trained(arms, job.device)
        wall = waited(job.device) - begin
    told = {kind: times_in(seen.key_averages(), kind) for kind in ("kernels", "operations")}
    busy = sum(ms for _, ms, _ in told["kernels"]) / 1e3
    return {"seconds": wall, "busy": busy / wall, "steps": recipe.steps} | {
        k: v[:20] for k, v in told.items()
    }


def times_in(averages, kind):
    """Name, milliseconds and number of what ran on a GPU (kernels), or on the CPU (operations), the longest first."""
    on_cpu = kind == "operations"
    field = "self_cpu_time_total" if on_cpu else "self_device_time_total"
    chosen = [e for e in averages if (e.device_type == torch.autograd.DeviceType.CPU) == on_cpu]
    return sorted(((e.key[:110], getattr(e, field) / 1e3, e.count) for e in chosen), key=lambda row: -row[1])


def bare_step(job, how):
    """The same network in a bare loop on one batch, for what could be had: plain, as one CUDA graph, or compiled."""
    gpu = job.device.type == "cuda"
    if how != "plain" and not gpu:
        return {"not measured": "it needs a GPU"}
    try:
        return bare_rate(job, how)
    except Exception as e:  # torch.compile needs a compiler, which is no fault of ours
        return {"not measured": f"{type(e).__name__}: {e}"[:800]}


def bare_rate(job, how):
    """Pictures a second of `bare_step`."""
    network, batch = job.size("resnet-18", "resnet-20"), job.size(512, 16)
    model = Network(network, (3, 32, 32), 10, job.size(1.0, 0.2)).build(0)
    model = model.to(job.device, memory_format=torch.channels_last)
    rule = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True)
    x = torch.rand(batch, 3, 32, 32, device=job.device).contiguous(memory_format=torch.channels_last)
    y = torch.arange(batch, device=job.device) % 10
    run_model = torch.compile(model) if how == "compiled" else model

    def step():
        rule.zero_grad(set_to_none=True)
        with torch.autocast(job.device.type, torch.bfloat16):
            loss = F.cross_entropy(run_model(x).float(), y)
        loss.backward()
        rule.step()

    begin = waited(job.device)
    step()
    first = waited(job.device) - begin
    go = as_graph(step) if how == "one CUDA graph" else step
    steps = job.size(60, 2)
    rates = []
    for _ in range(3):
        begin = waited(job.device)
        for _ in range(steps):
            go()
        rates.append(batch * steps / (waited(job.device) - begin))
    return {"images/s": statistics.median(rates), "each": rates, "first step s": first}


def as_graph(step):
    """A step as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def resnet18(job):
    return {
        "ResNet-18, bf16, batch 512": partial(network_speed, job, "resnet-18", "bf16", 512),
        "profile of it": partial(profiled, job),
        "bare step, plain": partial(bare_step, job, "plain"),
        "bare step, one CUDA graph": partial(bare_step, job, "one CUDA graph"),
        "ResNet-18, bf16, batch 512, cudnn.benchmark": partial(with_benchmark, job),
        "ResNet-18, fp32, batch 512": partial(network_speed, job, "resnet-18", "fp32", 512, 1),
        "ResNet-20, bf16, batch 128": partial(network_speed, job, "resnet-20", "bf16", 128, 1),
        "profile of ResNet-20": partial(profiled, job, "resnet-20", 128),
        "bare step, compiled": partial(bare_step, job, "compiled"),
    }


# --- the benchmark, the fair test, the workbench ---


def benchmarked(job, letter):
    """A work of the benchmark, with the peers that this Python has."""
    out, peers = job.folder / "bench", None if job.toy else sys.executable
    path = bench((letter,), peers, 1, str(job.device), out, quick=job.toy, show=False)
    return {"bench": json.loads(path.read_text(encoding="utf-8"))}


def peers(job):
    return {f"work {letter}": partial(benchmarked, job, letter) for letter in job.size("bacde", "a")}


def fair_plan(job):
    """The fair test: five seeds, ten rounds, four controls, two epochs each."""
    controls = ("reinit", "shuffled", "random mask", "small dense")
    recipe = Recipe(lr=0.1, epochs=job.size(2, 1), batch_size=job.size(128, 32))
    source = pictures(job, "fashion_mnist")
    schedule, seeds = geometric(0.2, job.size(10, 2)), job.size(5, 2)
    how = dict(schedule=schedule, recipe=recipe, seeds=seeds, controls=controls, width=job.size(1.0, 0.1))
    return FindPlan(
        "digits@200" if job.toy else "fashion_mnist" if source.name != "made-up" else source, **how
    )


def fair_test(job):
    """Seconds of the whole, and accuracies."""
    plan, begin = fair_plan(job), waited(job.device)
    found = run(plan, job.folder / "fair", job.device, show=False)
    seconds = waited(job.device) - begin
    arms = sum(type(e).__name__ == "ArmDone" for e in found.events)
    return {"seconds in all": seconds, "arms": arms, **accuracies(found), "holds": found.status == "done"}


def accuracies(found):
    """Mean test accuracy of each role at each density, over seeds; and what the domains are."""
    frame = found.frame
    rows = frame[(frame["split"] == "test") & (frame["metric"] == "accuracy")]
    keys = ["domain", "role", "start", "density"]
    table = rows.groupby(keys, dropna=False)["value"].agg(["mean", "count"]).reset_index()
    return {"accuracies": json.loads(table.to_json(orient="values", double_precision=5))}


def fair(job):
    return {"fair test": partial(fair_test, job)}


def workbench_line(job):
    """The line that the workbench shows of a worker's GPU, while a worker trains."""
    plan = small_plan(job, width=1.0, seeds=job.size(8, 1))
    plan = replace(plan, recipe=replace(plan.recipe, epochs=job.size(40, 4)))
    found, lines, device = start(plan, job.folder / "worker" / "run", str(job.device)), [], str(job.device)
    deadline = time.time() + job.size(30, 20)
    while found.status in ("planned", "running") and time.time() < deadline:
        if line := worker_use(found.path, device):
            lines.append(line)
        time.sleep(0.3)
    named = [line for line in lines if job.device.type != "cuda" or "GiB" in line and "%" in line]
    shown = list(dict.fromkeys(lines))[-6:]
    return {"lines": shown, "status": found.status, "holds": bool(named) and found.status == "done"}


def workbench(job):
    return {"line": partial(workbench_line, job)}


# --- papers ---


def toy_paper(job):
    """A paper's experiment of some seconds."""
    from lottery_nb.papers.papers import Move, Paper

    find = small_plan(job, seeds=(job.seed,))
    move = Move("find", ("digits[5-9]@60",), None, dict(start=("rewind",), controls=("dense",)))
    return Paper("rehearsal", "smoke", {"find": find}, {"move": move}, "it shows that everything runs")


def paper_for(job):
    """The paper of a phase at the scale of a GPU, of one seed."""
    if job.toy:
        return toy_paper(job)
    from lottery_nb.papers.distribution_shift import distribution_shift
    from lottery_nb.papers.papers import seeded
    from lottery_nb.papers.sparse_transfer import sparse_transfer

    made = {
        "pictures": lambda: sparse_transfer("gpu"),
        "vgg": lambda: sparse_transfer("gpu", "vgg-19"),
        "texts": lambda: distribution_shift("gpu"),
    }
    return seeded(made[job.paper](), (job.seed,))


def run_part(job, paper, work, part):
    """One search or move of a paper; what was run before is only read."""
    from lottery_nb.papers.papers import run_paper

    name = paper.moves[part].find if part in paper.moves else part
    moves = {part: paper.moves[part]} if part in paper.moves else {}
    few = replace(paper, finds={name: paper.finds[name]}, moves=moves)
    done = run_paper(few, work, job.device, False, job.size("alone", "auto"))
    return {"seconds of it": done[part].info["seconds"], **accuracies(done[part])}


def whole_paper(job, paper, work):
    """All of a paper's results, as they are kept."""
    from lottery_nb.papers.papers import keep, run_paper

    done = run_paper(paper, work, job.device, False, job.size("alone", "auto"))
    path = keep(paper, done, job.folder / "kept")
    table = gzip.decompress(path.with_suffix(".csv.gz").read_bytes()).decode()
    return {
        "paper": {"name": path.stem, "about": json.loads(path.read_text(encoding="utf-8")), "table": table}
    }


def kept_paper(paper, folder):
    """Add a paper's results that came back to those that are kept; the path."""
    from lottery_nb.files import safe_child
    from lottery_nb.papers.papers import merge_kept

    with tempfile.TemporaryDirectory() as place:
        path = safe_child(place, f"{paper['name']}.json")
        path.write_text(json.dumps(paper["about"], indent=1))
        path.with_suffix(".csv.gz").write_bytes(gzip.compress(paper["table"].encode(), mtime=0))
        return merge_kept(path, folder)


def paper(job):
    """The pieces of a paper: each search and each move, then all of it. Runs stay on this machine until it is given back."""
    asked = paper_for(job)
    place = job.folder if job.toy else Path(tempfile.gettempdir(), "lottery-on-gpu")
    work = place / f"{asked.name}-{asked.hash}"
    parts = {part: partial(run_part, job, asked, work, part) for part in (*asked.finds, *asked.moves)}
    return {**parts, "all of it": partial(whole_paper, job, asked, work)}


WORK = {
    "facts": facts,
    "parity": parity,
    "tests": tests,
    "stacks": stacks,
    "resnet18": resnet18,
    "peers": peers,
    "fair": fair,
    "workbench": workbench,
    "paper": paper,
}


# --- the process ---


def sound(value: Any) -> Any:
    """A value that JSON can hold: what is no number is text."""
    if isinstance(value, dict):
        return {str(k): sound(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [sound(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def done(work):
    """What a piece gave, or why it failed."""
    try:
        return work()
    except Exception as e:
        return {"failed": f"{type(e).__name__}: {e}"[:2000], "traceback": traceback.format_exc()[-3000:]}


def main():
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    device = torch.device(asked["device"])
    job = Job(device, asked["toy"], Path(asked["folder"]), asked.get("paper", ""), asked.get("seed", 0))
    path = Path(asked["result"])
    result = json.loads(path.read_text(encoding="utf-8"))
    result["machine"] = about(device)
    write(path, result)
    for name, work in WORK[asked["phase"]](job).items():
        if name in result["pieces"]:
            continue
        begin = time.perf_counter()
        found = done(work)
        result["pieces"][name] = sound({"took": round(time.perf_counter() - begin, 2), **found})
        write(path, result)
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    os.environ.setdefault("LOTTERY_CONFIG", tempfile.mkdtemp(prefix="lottery-config-"))
    main()
