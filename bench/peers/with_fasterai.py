"""fasterai on fastai: its SparsifyCallback, which prunes on a schedule, rewinds, and masks the weights after each step."""

from functools import partial

import common
import torch
import torch.nn.functional as F
from torch import nn

fastai = common.needs("fastai")
basics = common.needs("fastai.basics")
metrics = common.needs("fastai.metrics")
fasterai = common.needs("fasterai")
sparse = common.needs("fasterai.sparse.all")
schedules = common.needs("fasterai.core.schedule")
criteria = common.needs("fasterai.core.criteria")


def body(job, model):
    """What is pruned, as a module of its own: fasterai prunes every layer of a type in the module that it is given."""
    return nn.ModuleList([layer for layer, _ in job.layers(model)])


def learner(job, model, loaders):
    dls = basics.DataLoaders(*loaders, device=torch.device(job.device))
    sgd = partial(basics.OptimWrapper, opt=torch.optim.SGD, momentum=job.momentum)
    return basics.Learner(
        dls,
        model,
        loss_func=F.cross_entropy,
        opt_func=sgd,
        lr=job.lr,
        metrics=metrics.accuracy,
        train_bn=True,
    )


def fit(job, learn, epochs, *hooks):
    """Train at a constant rate without progress bar or log; returns the validation accuracy of the last epoch."""
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, job.lr, cbs=list(hooks))
    return learn.recorder.values[-1][-1]


def sparsify(job, part, kept, schedule, lth=False):
    size = sum(layer.weight.numel() for layer in part)
    kind = type(part[0])
    return sparse.SparsifyCallback(
        1 - kept / size,
        "weight",
        "global",
        criteria.large_final,
        schedule,
        lth=lth,
        model=part,
        layer_type=kind,
    )


def left_in(part):
    return sum(int((layer.weight != 0).sum()) for layer in part), sum(layer.weight.numel() for layer in part)


def find(job, datasets):
    """One fit; the schedule rises by a step when a round begins."""
    model = job.network()
    part, rounds = body(job, model), len(job.kept)
    size = sum(layer.weight.numel() for layer in part)
    reached = [0.0, *((1 - kept / size) / (1 - job.kept[-1] / size) for kept in job.kept)]

    def steps(start, end, share):  # fasterai rounds the share to three digits
        return start + (end - start) * reached[min(int((share + 5e-4) * (rounds + 1)), rounds)]

    callback = sparsify(job, part, job.kept[-1], schedules.Schedule(steps), lth=True)
    accuracy = fit(job, learner(job, model, job.loaders(datasets)), job.epochs * (rounds + 1), callback)
    return *left_in(part), accuracy


def epoch(job, datasets):
    """Train, then prune once."""
    model = job.network()
    part = body(job, model)
    accuracy = fit(job, learner(job, model, job.loaders(datasets)), job.epochs)
    sparse.Sparsifier(
        part, "weight", "global", criteria.large_final, layer_type=type(part[0])
    ).sparsify_model(1 - job.kept[0] / left_in(part)[1])
    return *left_in(part), accuracy


def transfer(job, datasets):
    """Train sparse networks one after the other, one for each density; each is pruned at its first batch."""
    loaders = job.loaders(datasets)
    for kept in job.kept:
        model = job.network()
        part = body(job, model)
        accuracy = fit(
            job,
            learner(job, model, loaders),
            job.epochs,
            sparsify(job, part, kept, schedules.Schedule(schedules.sched_oneshot, start_pct=0.0)),
        )
    return *left_in(part), accuracy


SETTINGS = {
    "loader": "torch DataLoader in fastai DataLoaders, persistent workers, pinned for a GPU",
    "loop": "torch's SGD, one Learner.fit for all rounds; no progress bar, no log",
}

if __name__ == "__main__":
    common.main({"find": find, "epoch": epoch, "transfer": transfer}, SETTINGS, fastai, fasterai)
