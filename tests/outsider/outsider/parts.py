"""What this package adds: two controls, a rewind point, a schedule, a criterion, a scope, a domain, a network, an event, a listener, an executor, an export format."""

from dataclasses import replace

import torch
from torch import nn

from lottery_nb.events import Event, event
from lottery_nb.data.own import from_arrays
from lottery_nb.pruning.schedules import Parameter, schedule_kind
from lottery_nb.pruning.scopes import Group
from lottery_nb.rewinding.snapshots import fresh
from lottery_nb.rewinding.points import rewind_point
from lottery_nb.rewinding.controls import control


# --- controls ---


@control("turned", weights="kept", mask="kept", colour="#0B7A75", marker="star")
def turned(b):
    "the ticket with the sign of every weight turned"
    return replace(
        b, start=replace(b.start, weights={n: -w if w.ndim > 1 else w for n, w in b.start.weights.items()})
    )


@control("redrawn", weights="drawn", mask="kept")
def redrawn(b):
    "the ticket's mask on weights of a draw of its own"
    return replace(b, start=fresh(b.network, b.seed, "redrawn"))


# --- where they go back to ---


@rewind_point("percent")
def percent(length, number=10):
    "a share of the dense training, in per cent"
    return length.steps * number // 100


# --- how much, which, with whom ---


@schedule_kind(
    "staircase",
    Parameter("landing", 0.3, 0, 1, "density after the last round", above=True),
    Parameter("steps", 2, 1, 100, "steps on the way down", whole=True),
)
def staircase(r, rounds, landing, steps):
    "Density falls in equal steps, as many as are asked for, and stays in between."
    gone = -(-r * steps // rounds) / steps
    return 1 - (1 - landing) * gone


def score(scoring):
    "How far a weight has moved, and a little for its size."
    return {n: (w - scoring.start[n]).abs() + 0.1 * w.abs() for n, w in scoring.weights.items()}


def fours(bits):
    "Which four a weight belongs to: those beside each other."
    return torch.arange(bits.numel(), device=bits.device).view(bits.shape) // 4


def blocks(mask, names, density):
    "As many of every four weights as the density says."
    return [Group(names, round(4 * density), fours)]


blocks.pattern = "so many of every four beside each other"


# --- data and network ---


def stripes():
    "Pictures of stripes that run one of three ways, with noise."
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 3
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    ways = torch.stack([x % 2, y % 2, (x + y) // 2 % 2])
    pictures = (ways[labels] * 120 + torch.randint(120, (240, 8, 8), generator=g)).to(torch.uint8)[:, None]
    return from_arrays(pictures[:180], labels[:180], (pictures[180:], labels[180:]), name="stripes")


class Bowtie(nn.Module):
    "Wide, narrow, wide again."

    def __init__(self, pixels, n_classes):
        super().__init__()
        self.narrow, self.wide, self.out = nn.Linear(pixels, 8), nn.Linear(8, 12), nn.Linear(12, n_classes)

    def forward(self, x):
        return self.out(self.wide(self.narrow(x.flatten(1)).relu()).relu())


def bowtie(input_shape, n_classes):
    "A network of three layers with a narrow middle."
    return Bowtie(input_shape[0] * input_shape[1] * input_shape[2], n_classes)


# --- events, who hears them, who runs the arms ---


@event
class GroupBegan(Event):
    "A group of arms is trained next."

    place: int  # among the groups, as they came
    arms: list  # their names

    def sound(self):
        return super().sound() and all(isinstance(name, str) for name in self.arms)

    def says(self):
        return f"group {self.place} begins, with {' and '.join(self.arms)}"


def keep(event, folder):
    "A listener: writes the names of events to a file in the run's folder."
    with open(folder.path / "kept.txt", "a", encoding="utf-8") as f:
        f.write(f"{type(event).__name__}\n")


def last_first(jobs, lanes):
    "An executor: one group after the other, the last one first, with an event before each."
    results = {}
    for place in reversed(range(len(jobs))):
        yield GroupBegan(place, [arm.name for arm in jobs[place].arms])
        results[place] = yield from jobs[place]()
    return [results[place] for place in range(len(jobs))]


def names_only(leaving):
    "An export format: names of the pruned weights, a line each."
    return "\n".join(leaving.mask).encode()
