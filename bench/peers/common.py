"""What the peers share: the job, pictures through torchvision transforms, the clock, and the one line of JSON that answers.

`lottery bench` calls a peer as `python with_….py JOB.json`. The job says what to do, on which pictures, with which numbers; the
answer gives the seconds of the work alone: no imports, no reading of data.
"""

import contextlib
import importlib
import itertools
import json
import resource
import sys
import time
from pathlib import Path


def needs(name):
    """A library by its name; where it is missing the answer says so."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        print(json.dumps({"missing": e.name}))
        sys.exit(0)


np, torch = needs("numpy"), needs("torch")
image, transforms = needs("PIL.Image"), needs("torchvision.transforms")
needs("torch._dynamo")  # torch.optim does so when it is first used: an import, which nobody's clock counts


class Pictures(torch.utils.data.Dataset):
    """Pictures in memory, each opened by Pillow and transformed when asked for, as `torchvision.datasets.CIFAR10` does it."""

    def __init__(self, x, y, transform):
        self.x, self.y, self.transform = x, y.tolist(), transform

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.transform(image.fromarray(self.x[i])), self.y[i]


class Job(dict):
    """The job, its numbers as attributes."""

    def __getattr__(self, name):
        return self[name]

    def network(self):
        """The benchmark's own network with its initial weights, on the device."""
        from lottery_nb.models.network import Network

        model = Network(
            self.net["name"], tuple(self.net["input_shape"]), self.net["n_classes"], self.net["width"]
        ).build(self.seed)
        return model.to(self.device)

    def layers(self, model):
        """(layer, 'weight') for each weight that is pruned: all but the head's."""
        return [(model.get_submodule(name.rpartition(".")[0]), "weight") for name in self.prunable]

    def datasets(self):
        """Training and validation pictures."""
        with np.load(self.data) as f:
            part = {name: f[name] for name in f.files}
        if self.tune:
            part.update({name: part[name][: self.tune] for name in ("train_x", "train_y")})
        usual = [transforms.ToTensor(), transforms.Normalize(part["mean"].tolist(), part["std"].tolist())]
        side = part["train_x"].shape[1]
        shown = (
            [transforms.RandomCrop(side, padding=4), transforms.RandomHorizontalFlip()]
            if self.augment
            else []
        )
        return (
            Pictures(part["train_x"], part["train_y"], transforms.Compose([*shown, *usual])),
            Pictures(part["validation_x"], part["validation_y"], transforms.Compose(usual)),
        )

    def loaders(self, datasets):
        """A loader each, made once for the whole work: workers stay alive, memory is pinned for a GPU."""
        usual = {
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "pin_memory": self.device.startswith("cuda"),
        }
        train, validation = datasets
        return (
            torch.utils.data.DataLoader(
                train, self.batch_size, shuffle=True, drop_last=len(train) >= self.batch_size, **usual
            ),
            torch.utils.data.DataLoader(validation, 1000, **usual),
        )

    def timed(self, work):
        """One piece of work, timed: `work(job, datasets)` returns (kept weights, weights, validation accuracy)."""
        datasets = self.datasets()
        torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed)
        torch.zeros(1, device=self.device)
        begin = time.perf_counter()
        kept, size, accuracy = work(self, datasets)
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        return {
            "seconds": seconds,
            "kept": int(kept),
            "size": int(size),
            "accuracy": float(accuracy),
            "memory_mb": self.memory(),
        }

    def memory(self):
        """Peak memory in MB: of the device where that is a GPU, else of this process (its loader workers not counted)."""
        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated() / 1e6
        return (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * (1 if sys.platform == "darwin" else 1024)
            / 1e6
        )

    def tuned(self, work):
        """The loader workers and threads with which the work is fastest on the first pictures, of every pair of choices."""
        tried = []
        for threads, workers in itertools.product(self.thread_choices, self.worker_choices):
            self.update(threads=threads, workers=workers)
            if not tried:
                self.timed(work)  # the first use of a library is slow
            tried.append({"workers": workers, "threads": threads, "seconds": self.timed(work)["seconds"]})
        best = min(tried, key=lambda t: t["seconds"])
        self.update(workers=best["workers"], threads=best["threads"])
        return {"workers": self.workers, "threads": self.threads, "tried": tried}


def main(works, settings, *libraries):
    """Do the job in the file that is named on the command line and print the answer; what the work prints goes to standard error."""
    job = Job(json.loads(Path(sys.argv[1]).read_text()))
    sys.path.insert(0, job.package)
    with contextlib.redirect_stdout(sys.stderr):
        torch.backends.cudnn.benchmark = True
        answer = (job.tuned if job.tune else job.timed)(works[job.work])
    versions = {
        m.__name__: m.__version__ for m in (torch, importlib.import_module("torchvision"), *libraries)
    }
    print(
        json.dumps(
            answer
            | {"versions": versions, "settings": settings | {"workers": job.workers, "threads": job.threads}}
        )
    )
