"""Small data, networks and arms for the tests of the engine; the networks are found by name, as a user's would be."""

import contextlib
import pickle
import signal
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from lottery_nb.plans import find as plans_find
from lottery_nb.core import generator, seed_for
from lottery_nb.data.batches import batch_images
from lottery_nb.data.domains import domain
from lottery_nb.engine.executors import in_threads
from lottery_nb.pruning.masks import Mask
from lottery_nb.models.network import Network
from lottery_nb.data.own import from_arrays
from lottery_nb.pruning.schedules import geometric
from lottery_nb.rewinding.snapshots import fresh, load
from lottery_nb.plans.find import find_tickets, FindPlan
from lottery_nb.engine.recipes import Recipe
from lottery_nb.engine.arms import Arm
from lottery_nb.engine.training import train

ATTENDING = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
HF = {
    "bert": ATTENDING,
    "gpt2": dict(n_embd=16, n_layer=2, n_head=2),
    "roberta": ATTENDING | {"num_hidden_layers": 1},
    "distilbert": dict(dim=16, n_layers=1, n_heads=2, hidden_dim=32),
    "vit": ATTENDING | dict(image_size=32),
}
"Architectures of Hugging Face in small -> the sizes that their configuration has."


def hf_sizes(kind, places, **more):
    "The sizes of a small model of Hugging Face: so many places for pieces of a text, and what else it is told."
    if kind == "vit":
        return HF[kind] | more
    return HF[kind] | {"n_positions" if kind == "gpt2" else "max_position_embeddings": places} | more


NAME = "digits[0-4]@200"  # 180 pictures to train on, 20 to validate on


def listen(stream):
    "A generator's return value, and all that it yielded."
    events = []
    while True:
        try:
            events.append(next(stream))
            if len(events) == 1:
                Watched.log.clear()  # before the first event a network is only tried
        except StopIteration as end:
            return end.value, events


@contextlib.contextmanager
def within(seconds):
    "Ends what never would."

    def late(*_):
        raise TimeoutError(f"not done after {seconds} s")

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def of(kind, events, **fields):
    "The events of one kind with these fields."
    return [
        e for e in events if type(e).__name__ == kind and all(getattr(e, k) == v for k, v in fields.items())
    ]


def some_arm(name="arm", network="lenet-300-100", on=NAME, **fields):
    "An arm on few pictures, with a narrow network."
    there = domain(on)
    if not isinstance(network, Network):
        network = Network(network, there.shape, there.n_classes, 0.1 if network == "lenet-300-100" else 1.0)
    fields = {"recipe": Recipe(epochs=2, batch_size=32), "seed": 0, **fields}
    fields.setdefault("start", fresh(network, fields["seed"]))
    return Arm(name, network, there, **fields)


def trained(*arms):
    "What training gave, and the events."
    return listen(train(arms, "cpu"))


def some_mask(network, density=0.3, seed=0):
    "A random mask over all weights of two and more dimensions."
    weights = {n: w for n, w in fresh(network, 0).weights.items() if w.ndim > 1}
    return Mask(
        {n: torch.rand(w.shape, generator=generator(seed, "mask", n)) < density for n, w in weights.items()}
    )


def plan(**fields):
    "A search of a second or less."
    return FindPlan(
        **{
            "source": NAME,
            "width": 0.1,
            "schedule": geometric(0.4, 2),
            "recipe": Recipe(lr=0.05, epochs=2, batch_size=32),
            "seeds": 1,
            "controls": (),
            **fields,
        }
    )


def find(monkeypatch, **fields):
    "Tickets, events, and every arm of a search by its name with what training it gave."
    made, real = {}, train

    def watching(arms, *args, **kwargs):
        arms = [replace(a, returns_weights=True) for a in arms]
        results = yield from real(arms, *args, **kwargs)
        made.update({r.arm.name: r for r in results})
        return results

    monkeypatch.setattr(plans_find, "train", watching)
    tickets, events = listen(find_tickets(plan(**fields), "cpu"))
    return tickets, events, made


def exactly(density, size):
    "The count that a density means."
    return int(round(density * size))


def same(a, b):
    "Two mappings of tensors are equal to the bit."
    return set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a)


def measure(network, snapshot, split, there, dtype=torch.float32):
    "Accuracy and loss without the engine: the whole split at once, in evaluation mode, as the pictures are."
    model = load(network.build(0).to(dtype), snapshot).eval()
    with torch.no_grad():
        out = model(batch_images(split.x, torch.arange(len(split)), there.mean, there.std, dtype=dtype))
    return {
        "accuracy": (out.argmax(1) == split.y).double().mean().item(),
        "loss": F.cross_entropy(out, split.y).item(),
    }


def noise_domain(name="own", n=60, classes=3, shape=(1, 8, 8), test=True, seed=0):
    "Pictures without meaning, as a user's arrays."
    g = torch.Generator().manual_seed(seed)
    pictures = [torch.randint(256, (n, *shape), generator=g, dtype=torch.uint8) for _ in range(2)]
    labels = torch.arange(n) % classes
    return from_arrays(pictures[0], labels, (pictures[1], labels) if test else None, name=name)


# --- networks of a user ---


class Watched(nn.Module):
    "Notes at every forward pass whether gradients are on, which of its modules are in training mode, and what it was shown."

    log: list = []  # noqa: RUF012

    def __init__(self, shape, n_classes):
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(),
            nn.Linear(shape[0] * shape[1] * shape[2], 12),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.Dropout(0.2),
        )
        self.out = nn.Linear(12, n_classes)

    def forward(self, x):
        if x.dtype == torch.float32 and len(x) > 8:  # else a network is only tried
            Watched.log.append(
                (torch.is_grad_enabled(), {m.training for m in self.modules()}, x.detach().clone())
            )
        return self.out(self.body(x))


def watched(input_shape, n_classes):
    return Watched(input_shape, n_classes)


class Dropping(nn.Module):
    "Draws from torch's global generator with a function, which no module shows."

    def __init__(self, shape, n_classes):
        super().__init__()
        self.first, self.out = nn.Linear(shape[0] * shape[1] * shape[2], 12), nn.Linear(12, n_classes)
        self.drawn: list = []

    def forward(self, x):
        return self.out(F.dropout(self.first(x.flatten(1)).relu(), 0.5, self.training))


def dropping(input_shape, n_classes):
    return Dropping(input_shape, n_classes)


def normed(input_shape, n_classes):
    "A body with batch norm and a linear head."
    c, h, w = input_shape
    return nn.Sequential(
        nn.Conv2d(c, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * h * w, n_classes),
    )


def channelled(input_shape, n_classes):
    "As many maps as the picture has channels, four times over."
    c, h, w = input_shape
    return nn.Sequential(
        nn.Conv2d(c, 4 * c, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * c * h * w, n_classes)
    )


def level(input_shape, n_classes):
    "All weights of a layer are equal: nothing but ties."
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(input_shape[1] * input_shape[2], 7),
        nn.ReLU(),
        nn.Linear(7, 5),
        nn.ReLU(),
        nn.Linear(5, n_classes),
    )
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(0.1)
    return net


class Rooted(nn.Module):
    "The gradient of a weight that is 0 is NaN."

    def __init__(self, shape, n_classes):
        super().__init__()
        self.first, self.out = nn.Linear(shape[1] * shape[2], 12), nn.Linear(12, n_classes)

    def forward(self, x):
        return self.out(F.linear(x.flatten(1), self.first.weight.abs().sqrt()).relu())


def rooted(input_shape, n_classes):
    return Rooted(input_shape, n_classes)


class Fragile(nn.Module):
    "With seed 1 it gives NaN as soon as half of its weights are pruned."

    def __init__(self, shape, n_classes):
        super().__init__()
        self.first, self.out = nn.Linear(shape[1] * shape[2], 12), nn.Linear(12, n_classes)
        self.register_buffer("breaks", torch.tensor(torch.initial_seed() == seed_for(1, "init")))

    def forward(self, x):
        broken = self.breaks & ((self.first.weight != 0).float().mean() < 0.5) & self.training
        return torch.where(broken, torch.nan, self.out(self.first(x.flatten(1)).relu()))


def fragile(input_shape, n_classes):
    return Fragile(input_shape, n_classes)


def explosive(input_shape, n_classes):
    "With seed 1 its weights are so large that no loss is a number."
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], 12), nn.ReLU(), nn.Linear(12, n_classes)
    )
    if torch.initial_seed() == seed_for(1, "init"):
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(1e20)
    return net


def gives_way(scoring):
    "A criterion of a user that fails as soon as something is pruned."
    if scoring.mask.density < 1:
        raise RuntimeError("not today")
    return {n: w.abs() for n, w in scoring.weights.items()}


def by_row(scoring):
    "A criterion of a user that wants several inner steps: each looks at what the last one left."
    return {n: w.abs() * scoring.mask[n].sum(1, keepdim=True) for n, w in scoring.weights.items()}


by_row.steps = 5


def installed(folder, monkeypatch, name, source, **points):
    'A package on the path, as pip would leave it: a module of that name, and entry points `kind="name = module:thing"` (blanks of the kind as underscores).'
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "".join(f"[lottery_nb.{kind}]\n{line}\n" for kind, line in points.items())
    )
    monkeypatch.syspath_prepend(folder)


SENT = []  # the jobs of the last training with this executor


def sent(jobs, lanes):
    "An executor that runs copies of its jobs, as another process would."
    SENT[:] = [pickle.loads(pickle.dumps(job)) for job in jobs]
    return in_threads(SENT, lanes)


def heard(event, folder):
    "A listener that keeps what it hears in a file beside the log."
    with open(folder.path / "heard.txt", "a") as file:
        file.write(f"{type(event).__name__}\n")


def broken(event, folder):
    "A listener whose server is away."
    raise ConnectionError("no route to the server")
