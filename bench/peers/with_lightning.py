"""PyTorch Lightning with its ModelPruning callback, which prunes at the end of an epoch and puts the initial weights back."""

import logging
import warnings

import common
import torch
import torch.nn.functional as F
from torch.nn.utils import prune

lightning = common.needs("lightning")
callbacks = common.needs("lightning.pytorch.callbacks")


class Classifier(lightning.LightningModule):
    def __init__(self, model, job):
        super().__init__()
        self.model, self.job, self.hits, self.n = model, job, 0, 0

    def training_step(self, batch, _):
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def on_validation_epoch_start(self):
        self.hits = self.n = 0

    def validation_step(self, batch, _):
        x, y = batch
        self.hits += (self.model(x).argmax(1) == y).sum()
        self.n += len(y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.job.lr, momentum=self.job.momentum)


def fit(job, module, loaders, epochs, *hooks):
    """Train without logger, checkpoints, progress bar or sanity check; returns the validation accuracy of the last epoch."""
    gpu = job.device.startswith("cuda")
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="gpu" if gpu else "cpu",
        devices=1,
        callbacks=list(hooks),
        precision="bf16-mixed" if job.precision == "bf16" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        benchmark=True,
    )
    trainer.fit(module, *loaders)
    return int(module.hits) / module.n


def pruned_fit(job, datasets, epochs, rewinds):
    """One fit; every `job.epochs` epochs the callback prunes to the next count, and rewinds if it should."""
    model = job.network()
    layers, left = job.layers(model), {}
    size = sum(layer.weight.numel() for layer, _ in layers)
    counts = [size, *job.kept]
    at = {(r + 1) * job.epochs - 1: counts[r] - counts[r + 1] for r in range(len(job.kept))}

    class Counting(callbacks.ModelPruning):
        def on_train_end(self, trainer, module):
            left["kept"] = sum(int(layer.weight_mask.sum()) for layer, _ in layers)

    callback = Counting(
        "l1_unstructured", layers, amount=lambda e: at.get(e, 0), use_lottery_ticket_hypothesis=rewinds
    )
    accuracy = fit(job, Classifier(model, job), job.loaders(datasets), epochs, callback)
    return left["kept"], size, accuracy


def find(job, datasets):
    return pruned_fit(job, datasets, job.epochs * (1 + len(job.kept)), True)


def epoch(job, datasets):
    return pruned_fit(job, datasets, job.epochs, False)


def transfer(job, datasets):
    """Train sparse networks one after the other, one for each density."""
    loaders = job.loaders(datasets)
    for kept in job.kept:
        model = job.network()
        layers = job.layers(model)
        size = sum(layer.weight.numel() for layer, _ in layers)
        prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=size - kept)
        left = sum(int(layer.weight_mask.sum()) for layer, _ in layers)
        accuracy = fit(job, Classifier(model, job), loaders, job.epochs)
    return left, size, accuracy


SETTINGS = {
    "loader": "torch DataLoader, persistent workers, pinned for a GPU",
    "loop": "one Trainer.fit for all rounds (the callback rewinds what it prunes, and nothing else); "
    "no logger, checkpoints, progress bar or sanity check; benchmark=True",
}

if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    common.main({"find": find, "epoch": epoch, "transfer": transfer}, SETTINGS, lightning)
