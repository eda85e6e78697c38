"""The two papers at the scale that shows that everything runs, on real data, and what their plans promise."""
import os

import pytest

from lottery_nb.core import LotteryError
from lottery_nb.cli import main
from lottery_nb.distribution_shift import ARMS, arms_of, distribution_shift, pair_table
from lottery_nb.papers import Move, Paper, results_by, run_paper
from lottery_nb.runs import Run
from lottery_nb.sparse_transfer import STEPS, TARGETS, sparse_transfer
from lottery_nb.training import lr_factor

needs_data = pytest.mark.skipif(not os.environ.get("LOTTERY_DATA"), reason="LOTTERY_DATA is unset: it names the folders of the real data")


def test_the_learning_rate_falls_as_the_paper_says():
    assert [round(STEPS.lr*lr_factor(STEPS, t, 30_000), 7) for t in (0, 14_999, 15_000, 22_499, 22_500, 29_999)] == [5e-3, 5e-3, 1e-3, 1e-3, 1e-4, 1e-4]


def test_the_full_scale_is_the_papers_own():
    images, texts = sparse_transfer("full"), distribution_shift("full")
    assert {p.network for p in images.finds.values()} == {"resnet-18"} and images.moves["frozen, 2-layer head"].how["head"] == "mlp" and images.moves["frozen, linear head"].how["body"] == "frozen"
    assert all(m.targets == TARGETS and m.how["start"] == ("rewind", "source-trained", "fresh") or set(m.how["start"]) == {"rewind", "source-trained", "fresh"} for m in images.moves.values())
    assert sparse_transfer("full", "vgg-19").finds["iterative"].network == "vgg-19"
    plan = texts.finds["books"]
    assert plan.scope == "layer" and plan.recipe.batch_size == 32 and plan.recipe.weight_decay == 1e-5 and plan.recipe.epochs == 15 and "8000,500" in plan.source
    for after, sparsity in ((2, 0.578), (5, 0.884), (8, 0.968), (10, 0.987), (20, 0.9998)):
        assert 1 - plan.schedule.density(after) == pytest.approx(sparsity, abs=1e-3)  # PAPER, section 4


@pytest.mark.parametrize("make", [sparse_transfer, distribution_shift])
def test_a_paper_names_what_it_carries(make):
    paper = make("smoke")
    assert paper.note and paper.hash != make("cpu").hash == make("cpu").hash
    with pytest.raises(LotteryError, match="does not search for"):
        Paper("x", "smoke", paper.finds, {"m": Move("nowhere", ("digits",))})
    with pytest.raises(LotteryError, match="scale"):
        make("huge")


@needs_data
def test_distribution_shift_runs_on_real_reviews(tmp_path, capsys):
    assert main(["paper", "distribution-shift", "--scale", "smoke", "--out", str(tmp_path), "--device", "cpu", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "it shows that everything runs, and nothing else" in shown and "undertrained" in shown.lower()
    done = {p.name.split("-", 1)[1]: Run(p) for p in tmp_path.iterdir()}
    arms = arms_of(results_by(done))
    assert set(arms["arm"]) == set(ARMS) and arms["value"].between(0, 1).all()
    keys = ["target", "density", "seed"]
    own = arms[arms["arm"] == "TICKET-RESET"].set_index(keys)["value"]
    aimed = arms[arms["arm"] == "TICKET-TARGET"].set_index(keys)["value"]
    assert len(aimed) and (own.loc[aimed.index] == aimed).all()  # TICKET-TARGET is the target's own TICKET-RESET
    a, b = arms["source"].dropna().unique()[:2]
    assert list(pair_table(arms, a, b).columns) == list(ARMS)
    masks = {t.seed: t.mask for t in done["kitchen"].tickets if t.round == 1}
    layers = {n.rpartition(".")[0] for n in masks[0]}
    for layer in layers:  # each layer by itself, its bias with its weights
        parts = [bits for n, bits in masks[0].items() if n.rpartition(".")[0] == layer]
        assert sum(int(p.sum()) for p in parts) == pytest.approx(0.65*sum(p.numel() for p in parts), abs=1)


@needs_data
def test_sparse_transfer_runs_on_real_pictures(tmp_path):
    done = run_paper(sparse_transfer("smoke"), tmp_path, "cpu", show=False)
    assert all(r.status == "done" and not r.info["failed"] for r in done.values())
    frame = results_by(done)
    tests = frame[(frame["split"] == "test") & (frame["metric"] == "accuracy")]
    assert {d.split("@")[0] for d in tests[tests["run"] == "fine-tune all"]["domain"]} == set(TARGETS) and tests["value"].between(0, 1).all()
    assert set(tests[tests["run"] == "fine-tune all"]["start"]) == {"source-trained", "rewind"}
    for ticket in done["iterative"].tickets:
        assert not any(n.startswith("head") for n in ticket.mask)  # the head is never pruned
