"""Controls of a user: one that keeps the ticket's weights, one that draws them, one that keeps all of them, and two that are only functions."""

from dataclasses import replace

import torch

from lottery_nb.rewinding.snapshots import fresh
from lottery_nb.rewinding.controls import control


@control("half signs", weights="kept", mask="kept", colour="#ABCDEF", marker="hexagon2")
def half_signs(b):
    """every second weight with the other sign

    What stands further down is not for a list of choices."""
    turned = {
        n: w * (1 - 2 * (torch.arange(w.numel()) % 2)).view(w.shape) for n, w in b.start.weights.items()
    }
    return replace(b, start=replace(b.start, weights=turned))


@control("other draw", weights="drawn", mask="kept", order=1.25, rated=True)
def other_draw(b):
    "fresh weights of another draw"
    return replace(b, start=fresh(b.network, b.seed, "other draw"))


@control("late dense", weights="kept", mask="none")
def late_dense(b):
    "all weights of the rewind point"
    return replace(b, mask=None)


def turned_round(b):
    "all weights of the head turned round: registered nowhere"
    return replace(
        b,
        start=replace(
            b.start, weights={n: -w if n.startswith("head") else w for n, w in b.start.weights.items()}
        ),
    )


def drawn_anew(b):
    return replace(b, start=fresh(b.network, b.seed, "anew"))


def bare(b):
    return replace(b, mask=None)
