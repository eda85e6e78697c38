"""The plain loop, as tutorials teach it: torch.nn.utils.prune, torchvision transforms in a DataLoader, a loop over batches."""

import copy

import common
import torch
import torch.nn.functional as F
from torch.nn.utils import prune


def accuracy_of(job, model, loader):
    model.eval()
    hits = n = 0
    with torch.no_grad():
        for x, y in loader:
            x, y = x.to(job.device, non_blocking=True), y.to(job.device, non_blocking=True)
            hits += (model(x).argmax(1) == y).sum().item()
            n += len(y)
    return hits / n


def train(job, model, loaders):
    """Train for the job's epochs; returns the validation accuracy of the last one."""
    half = job.precision == "bf16"
    layout = torch.channels_last if half else torch.contiguous_format
    model.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), job.lr, momentum=job.momentum)
    for _ in range(job.epochs):
        model.train()
        for x, y in loaders[0]:
            x, y = (
                x.to(job.device, non_blocking=True, memory_format=layout),
                y.to(job.device, non_blocking=True),
            )
            optimizer.zero_grad()
            with torch.autocast(job.device.split(":")[0], torch.bfloat16, enabled=half):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        accuracy = accuracy_of(job, model, loaders[1])
    model.to(memory_format=torch.contiguous_format)  # what torch.nn.utils.prune takes
    return accuracy


def cut(layers, kept):
    """Prune the smallest weights of all layers together until `kept` are left; returns (kept, all)."""
    size = sum(layer.weight.numel() for layer, _ in layers)
    left = sum(int(getattr(layer, "weight_mask", torch.ones_like(layer.weight)).sum()) for layer, _ in layers)
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=left - kept)
    return sum(int(layer.weight_mask.sum()) for layer, _ in layers), size


def rewind(model, start):
    """Put the initial weights back; pruned layers keep theirs as `weight_orig`."""
    own = model.state_dict()
    model.load_state_dict({n: own[n] if n.endswith("_mask") else start[n.removesuffix("_orig")] for n in own})


def begin(job, datasets):
    model = job.network()
    return model, job.layers(model), job.loaders(datasets)


def find(job, datasets):
    """Train, then prune, rewind and train again for each round."""
    model, layers, loaders = begin(job, datasets)
    start = copy.deepcopy(model.state_dict())
    accuracy = train(job, model, loaders)
    for kept in job.kept:
        left = cut(layers, kept)
        rewind(model, start)
        accuracy = train(job, model, loaders)
    return *left, accuracy


def epoch(job, datasets):
    """Train, then prune once."""
    model, layers, loaders = begin(job, datasets)
    accuracy = train(job, model, loaders)
    return *cut(layers, job.kept[0]), accuracy


def transfer(job, datasets):
    """Train sparse networks one after the other, one for each density."""
    loaders = job.loaders(datasets)
    for kept in job.kept:
        model = job.network()
        left = cut(job.layers(model), kept)
        accuracy = train(job, model, loaders)
    return *left, accuracy


SETTINGS = {
    "loader": "torch DataLoader, persistent workers, pinned for a GPU",
    "loop": "no .item() in the training loop, cudnn.benchmark; bf16: autocast and channels-last",
}

if __name__ == "__main__":
    common.main({"find": find, "epoch": epoch, "transfer": transfer}, SETTINGS)
