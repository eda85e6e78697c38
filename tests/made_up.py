"""Made-up results in the form of real ones, with means and scatter that a test can rely on."""

import itertools

import numpy as np
import pandas as pd

from lottery_nb.results.stats import COLUMNS

FALL = {"dense": 0.0, "ticket": 0.0005, "reinit": 0.0014, "random mask": 0.0022}


def made_up_results(seeds=5, rounds=8, targets=(), dense=0.88, noise=0.003):
    """A find run on 'made-up source', or arms on targets (each 5 points harder than the one before) from two starts; 35 % pruned a round, test at epoch 5."""
    rng, rows = np.random.default_rng(0), []
    starts = ("rewind", "source-trained") if targets else ("rewind",)
    arms = [*itertools.product(("dense", "ticket"), starts), ("reinit", "fresh"), ("random mask", "fresh")]
    for (t, domain), (role, start), seed in itertools.product(
        enumerate(targets or ("made-up source",)), arms, range(seeds)
    ):
        for r in [0] if role == "dense" else range(1, rounds + 1):
            density = 0.65**r
            lift = (0.014 if role == "ticket" else 0.003) * (1 - density) + 0.01 * (start == "source-trained")
            final = dense - 0.05 * t + lift - FALL[role] / density + noise * rng.standard_normal()
            for epoch in range(1, 6):
                now = final - 0.2 * np.exp(-epoch)
                splits = {
                    "train": now + 0.02,
                    "validation": now + 0.002,
                    **({"test": now} if epoch == 5 else {}),
                }
                for (split, share), metric in itertools.product(splits.items(), ("accuracy", "loss")):
                    value = share if metric == "accuracy" else -np.log(share)
                    rows.append(
                        ("made-up source", domain, role, start, r, density, seed, epoch, split, metric, value)
                    )
    return pd.DataFrame(rows, columns=COLUMNS)
