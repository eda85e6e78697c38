"""The two papers at the scale that shows that everything runs, on real data, and what their plans promise."""

import gzip
import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from lottery_nb.core import fingerprint, LotteryError
from lottery_nb.cli import main
from lottery_nb.papers.distribution_shift import ARMS, arms_of, distribution_shift, pair_table
from lottery_nb.data.domains import domain
from lottery_nb.results.landmarks import matches_down_to, speed, transition
from lottery_nb.models.network import Network
from lottery_nb.papers.papers import check_paper, keep, kept, Move, Paper, results_by, run_paper
from lottery_nb.pruning.schedules import geometric
from lottery_nb.rewinding.snapshots import fresh
from lottery_nb.runs.reading import Run
from lottery_nb.papers.sparse_transfer import sparse_transfer, STEPS, SWITCHES, TARGETS
from lottery_nb.plans.find import FindPlan
from lottery_nb.engine.recipes import lr_factor, Recipe
from lottery_nb.engine.arms import Arm
from lottery_nb.engine.training import epoch_order, finish, train
from lottery_nb.results.verdict import conditions


def test_the_learning_rate_falls_as_the_paper_says():
    assert [
        round(STEPS.lr * lr_factor(STEPS, t, 30_000), 7) for t in (0, 14_999, 15_000, 22_499, 22_500, 29_999)
    ] == [5e-3, 5e-3, 1e-3, 1e-3, 1e-4, 1e-4]


def test_the_full_scale_is_the_papers_own():
    images, texts = sparse_transfer("full"), distribution_shift("full")
    assert (
        {p.network for n, p in images.finds.items() if "," not in n} == {"resnet-18"}
        and images.moves["frozen, 2-layer head"].how["head"] == "mlp"
        and images.moves["frozen, linear head"].how["body"] == "frozen"
    )
    assert all(
        m.targets == TARGETS
        and m.how["start"] == ("rewind", "source-trained", "fresh")
        or set(m.how["start"]) == {"rewind", "source-trained", "fresh"}
        for m in images.moves.values()
    )
    assert sparse_transfer("full", "vgg-19").finds["iterative"].network == "vgg-19" and {
        p.network.head for n, p in images.finds.items() if "," in n
    } == {"linear", "mlp"}
    plan = texts.finds["books"]
    assert (
        plan.scope == "layer"
        and plan.recipe.batch_size == 32
        and plan.recipe.weight_decay == 1e-5
        and plan.recipe.epochs == 15
        and "8000,500" in plan.source
    )
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


@pytest.mark.data
def test_distribution_shift_runs_on_real_reviews(tmp_path, capsys):
    words = [
        "paper",
        "distribution-shift",
        "--scale",
        "smoke",
        "--device",
        "cpu",
        "--quiet",
        "--keep",
        str(tmp_path / "kept"),
    ]
    assert main([*words, "--out", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr().out
    assert "it shows that everything runs, and nothing else" in shown and "undertrained" in shown.lower()
    done = {p.name.split("-", 1)[1]: Run(p) for p in (tmp_path / "runs").iterdir()}
    arms = arms_of(results_by(done))
    assert set(arms["arm"]) == set(ARMS) and arms["value"].between(0, 1).all()
    keys = ["target", "density", "seed"]
    own = arms[arms["arm"] == "TICKET-RESET"].set_index(keys)["value"]
    aimed = arms[arms["arm"] == "TICKET-TARGET"].set_index(keys)["value"]
    assert (
        len(aimed) and (own.loc[aimed.index] == aimed).all()
    )  # TICKET-TARGET is the target's own TICKET-RESET
    a, b = arms["source"].dropna().unique()[:2]
    assert list(pair_table(arms, a, b).columns) == list(ARMS)
    masks = {t.seed: t.mask for t in done["kitchen"].tickets if t.round == 1}
    layers = {n.rpartition(".")[0] for n in masks[0]}
    for layer in layers:  # each layer by itself, its bias with its weights
        parts = [bits for n, bits in masks[0].items() if n.rpartition(".")[0] == layer]
        assert sum(int(p.sum()) for p in parts) == pytest.approx(0.65 * sum(p.numel() for p in parts), abs=1)
    assert main([*words, "--check", "1"]) == 0
    assert "to the digit" in capsys.readouterr().out
    table = tmp_path / "kept" / "distribution-shift-smoke.csv.gz"
    rows = pd.read_csv(table)
    text = rows.assign(value=rows["value"].where(rows["split"] != "test", 0.99)).to_csv(index=False)
    table.write_bytes(gzip.compress(text.encode()))
    about = tmp_path / "kept" / "distribution-shift-smoke.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"table": fingerprint(text)}))
    assert main([*words, "--check", "1"]) == 1  # a kept result that nobody can repeat is found out
    capsys.readouterr()
    assert (
        main(
            [
                "paper",
                "distribution-shift",
                "--scale",
                "smoke",
                "--check",
                "--keep",
                str(tmp_path / "nothing"),
            ]
        )
        == 2
    )
    assert "no kept results" in capsys.readouterr().err


@pytest.mark.data
def test_sparse_transfer_runs_on_real_pictures(tmp_path):
    done = run_paper(sparse_transfer("smoke"), tmp_path, "cpu", show=False)
    assert all(r.status == "done" and not r.info["failed"] for r in done.values())
    frame = results_by(done)
    tests = frame[(frame["split"] == "test") & (frame["metric"] == "accuracy")]
    assert {d.split("@")[0] for d in tests[tests["run"] == "fine-tune all"]["domain"]} == set(
        TARGETS
    ) and tests["value"].between(0, 1).all()
    assert set(tests[tests["run"] == "fine-tune all"]["start"]) == {"source-trained", "rewind"}
    for ticket in done["iterative"].tickets:
        assert not any(n.startswith("head") for n in ticket.mask)  # the head is never pruned


def arm_of(network, **recipe):
    digits = domain("digits[0-4]@128")
    net = Network(network, digits.shape, digits.n_classes, 0.25)
    return Arm(
        "a",
        net,
        digits,
        Recipe(precision="fp32", schedule="constant", keep="last", **recipe),
        0,
        fresh(net, 0),
    )


def test_evaluation_mode_from_half_of_each_epoch_on():
    counts = {}
    for quirks in ((), ("evaluation mode",)):
        arm = arm_of("resnet-20", epochs=2, batch_size=16, lr=0.01, quirks=quirks)
        done = finish(train([arm], "cpu"))[0]
        counts[quirks] = [int(v) for n, v in done.last.buffers.items() if n.endswith("num_batches_tracked")][
            0
        ]
    steps = 2 * (len(arm.domain.train.y) // 16)
    assert counts[()] == steps and counts[("evaluation mode",)] == 2 * -(-steps // 4)


def test_a_rebuilt_optimizer_forgets_its_momentum_at_each_epoch():
    arm = arm_of("lenet-300-100", epochs=3, batch_size=32, lr=0.05, quirks=("rebuilt optimizer",))
    kept = {
        quirks: finish(train([replace(arm, recipe=replace(arm.recipe, quirks=quirks))], "cpu"))[
            0
        ].last.weights
        for quirks in ((), arm.recipe.quirks)
    }
    net, d = arm.network.build(0), arm.domain
    for epoch in range(3):
        optimizer = torch.optim.SGD(net.parameters(), 0.05, 0.9)
        order = epoch_order(len(d.train.y), 0, epoch)
        for at in range(0, len(order) - 31, 32):
            index = order[at : at + 32]
            optimizer.zero_grad()
            F.cross_entropy(net(d.inputs(d.train.x, index)), d.train.y[index]).backward()
            optimizer.step()
    by_hand = {n: p.detach() for n, p in net.named_parameters()}
    gap = {
        quirks: max(float((weights[n] - by_hand[n]).abs().max()) for n in by_hand)
        for quirks, weights in kept.items()
    }
    assert gap[arm.recipe.quirks] < 1e-4 < 1e-2 < gap[()]
    with pytest.raises(LotteryError, match="only the momentum of sgd"):
        replace(arm.recipe, optimizer="adam")


def test_every_switch_gives_a_plan_of_its_own():
    plain = sparse_transfer("full")
    hashes = {name: sparse_transfer("full", switches=(name,)).hash for name in SWITCHES}
    assert len({plain.hash, *hashes.values()}) == len(SWITCHES) + 1 and all(
        name in sparse_transfer("full", switches=(name,)).note for name in SWITCHES
    )
    both = sparse_transfer("full", switches=("banded", "rounds go on"))
    assert (
        both.finds["iterative"].retrain == "learning-rate rewinding"
        and "+banded" in both.moves["fine-tune all"].targets[0]
    )
    assert (
        both.finds["two layers, smallnorb"] == plain.finds["two layers, smallnorb"]
    )  # baselines are nobody's habit


def test_the_command_refuses_what_a_paper_does_not_have(capsys):
    for words, says in (
        (["distribution-shift", "--switch", "banded"], "are for sparse-transfer"),
        (["sparse-transfer", "--switch", "bandet"], "did you mean 'banded'"),
        (["sparse-transfer", "--network", "vgg-91"], "vgg-91"),
    ):
        assert main(["paper", *words]) == 2
        assert says in capsys.readouterr().err


def test_a_better_rate_can_take_a_ticket_its_win():
    def rows(role, lr, value, density):
        return [
            dict(
                source="d",
                domain="d",
                role=role,
                start="rewind",
                round=1,
                density=density,
                seed=s,
                epoch=1,
                split=split,
                metric="accuracy",
                value=value + s * (len(role) + role.startswith("reinit")) / 10_000,
            )
            for s in range(4)
            for split in ("validation", "test")
        ]

    own = rows("dense", 0, 0.80, 1.0) + rows("ticket", 0, 0.82, 0.1) + rows("reinit", 0, 0.75, 0.1)
    higher = rows("dense at rate 0.3", 0, 0.90, 1.0) + rows("reinit at rate 0.3", 0, 0.76, 0.1)

    def words(found):
        return conditions(pd.DataFrame(found), 0.5).set_index("condition")["verdict"].to_dict()

    assert words(own)["matches tuned dense"] == words(own)["beats reinit"] == "not enough evidence"
    uneven = words(own + higher)  # two rates, and tickets at one of them
    assert uneven["matches dense"] == "pass"
    assert uneven["matches tuned dense"] == uneven["beats reinit"] == "not enough evidence"
    best = {"dense": 0.81, "ticket": 0.83, "reinit": 0.76}
    three = [
        row
        for rate, less in (("0.3", 0.0), ("1", 0.1), ("0.01", 0.1))
        for role, level in best.items()
        for row in rows(f"{role} at rate {rate}", 0, level - less, 1.0 if role == "dense" else 0.1)
    ]
    tried = words(own + three)
    assert tried["matches tuned dense"] == tried["beats reinit"] == "pass"
    table = conditions(pd.DataFrame(own + three), 0.5).set_index("condition")
    assert "tickets at 0.3, reinit at 0.3" in table.loc["beats reinit", "evidence"]
    lost = words([r | dict(value=r["value"] - 0.05 * r["role"].startswith("ticket")) for r in own + three])
    assert lost["matches tuned dense"] == "fail"
    edge = [row for row in three if not row["role"].endswith(" 1")]
    assert words(own + edge)["beats reinit"] == "not enough evidence"  # the best rate is the highest


def test_a_paper_that_was_stopped_says_so_and_goes_on(tmp_path, monkeypatch):
    from lottery_nb.papers import papers as papers_papers

    quick = Recipe(lr=0.1, epochs=1, batch_size=64)
    plan = FindPlan(
        "digits[0-4]@200", width=0.2, schedule=geometric(0.5, 2), recipe=quick, seeds=1, controls=()
    )
    paper = Paper("toy", "smoke", {"f": plan}, {"m": Move("f", ("digits[5-9]@200",), None, {"controls": ()})})
    real = papers_papers.run

    def stopped(plan, folder, *rest):
        real(plan, folder, *rest)
        log = folder / "events.jsonl"
        lines = log.read_text().splitlines()
        log.write_text("\n".join(lines[: len(lines) // 2]) + "\n")
        return Run(folder)

    monkeypatch.setattr(papers_papers, "run", stopped)
    with pytest.raises(LotteryError, match="f of toy is .*: run the paper again to go on"):
        run_paper(paper, tmp_path, "cpu", show=False)
    assert not (tmp_path / "move-m").exists()
    monkeypatch.setattr(papers_papers, "run", real)
    assert all(r.status == "done" for r in run_paper(paper, tmp_path, "cpu", show=False).values())


def test_names_of_a_paper_stay_in_its_folder(tmp_path):
    plan = FindPlan(
        "digits[0-4]@200",
        width=0.2,
        schedule=geometric(0.5, 1),
        recipe=Recipe(epochs=1),
        seeds=1,
        controls=(),
    )
    with pytest.raises(LotteryError):
        run_paper(Paper("toy", "smoke", {"../../out": plan}, {}), tmp_path / "a" / "b", "cpu", show=False)
    assert list(tmp_path.rglob("plan.json")) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda j, z: z.write_bytes(z.read_bytes()[:-9]),
        lambda j, z: z.write_bytes(b""),
        lambda j, z: j.write_text(j.read_text()[:40]),
        lambda j, z: j.write_text("{}"),
        lambda j, z: j.write_text("[]"),
        lambda j, z: z.write_bytes(gzip.compress(b"a,b\n1,2\n")),
        lambda j, z: z.unlink(),
        lambda j, z: z.write_bytes(
            gzip.compress(gzip.decompress(z.read_bytes()).replace(b"accuracy,0.", b"accuracy,0.9", 1))
        ),
    ],
)
def test_damaged_kept_results_are_one_sentence(tmp_path, damage):
    plan = FindPlan(
        "digits[0-4]@200",
        width=0.2,
        schedule=geometric(0.5, 1),
        recipe=Recipe(epochs=1),
        seeds=1,
        controls=(),
    )
    paper = Paper("toy", "smoke", {"f": plan}, {})
    path = keep(paper, run_paper(paper, tmp_path / "runs", "cpu", show=False), tmp_path)
    assert len(kept("toy", "smoke", tmp_path)["f"].frame)
    damage(path, path.with_suffix(".csv.gz"))
    with pytest.raises(LotteryError, match="toy-smoke") as told:
        kept("toy", "smoke", tmp_path)
    assert "\n" not in str(told.value)


def test_a_network_that_fails_now_is_a_difference(tmp_path, monkeypatch):
    from lottery_nb.papers import papers as papers_papers

    quick = Recipe(lr=0.1, epochs=1, batch_size=64)
    paper = Paper(
        "toy",
        "smoke",
        {
            "f": FindPlan(
                "digits[0-4]@200", width=0.2, schedule=geometric(0.5, 1), recipe=quick, seeds=1, controls=()
            )
        },
        {"m": Move("f", ("digits[5-9]@200",), None, {"start": ("rewind",), "controls": ("dense",)})},
    )
    keep(paper, run_paper(paper, tmp_path / "runs", "cpu", show=False), tmp_path)
    found = kept("toy", "smoke", tmp_path)
    assert set(check_paper(paper, found, 0, "cpu", show=False)["same"]) <= {
        "to the digit",
        "as the seeds say",
    }
    whole = papers_papers.results_by
    monkeypatch.setattr(
        papers_papers, "results_by", lambda done: whole(done).query("role != 'ticket' or split != 'test'")
    )
    table = check_paper(paper, found, 0, "cpu", show=False)
    assert set(table[table["role"] == "ticket"]["same"]) == {"no"} and "no" not in set(
        table[table["role"] == "dense"]["same"]
    )


def test_a_yardstick_has_the_start_of_what_is_measured():
    """Dense networks of two starts: each ticket is held against that of its own."""

    def rows(role, start, density, values):
        return [
            dict(
                source="a",
                domain="b",
                role=role,
                start=start,
                round=1,
                density=density,
                seed=s,
                epoch=e,
                split=split,
                metric="accuracy",
                value=v + s / 1000,
            )
            for s in range(3)
            for split in ("validation", "test")
            for e, v in enumerate(values, 1)
        ]

    frame = pd.DataFrame(
        rows("dense", "source-trained", 1.0, (0.7, 0.9))
        + rows("dense", "rewind", 1.0, (0.3, 0.5))
        + rows("ticket", "source-trained", 0.5, (0.8, 0.9))
        + rows("ticket", "source-trained", 0.1, (0.5, 0.6))
    )
    frame = frame[(frame["split"] == "validation") | (frame["epoch"] == 2)]
    when = speed(frame).set_index(["role", "start", "density"])
    assert (
        when.loc[("ticket", "source-trained", 0.5), "mean"] == 2
        and when.loc[("ticket", "source-trained", 0.1), "reached"] == 0
    )
    assert when.loc[("dense", "rewind", 1.0), "mean"] == 2
    level = 0.9 - 0.5 * 0.8
    found = transition(frame, 0.1)
    assert found["text"].item().startswith("below 10 %") and level == 0.5


def test_single_runs_and_missing_dense_networks_are_said():
    def rows(role, density, value, seeds):
        return [
            dict(
                source="a",
                domain="a",
                role=role,
                start="rewind",
                round=1,
                density=density,
                seed=s,
                epoch=1,
                split=split,
                metric="accuracy",
                value=value + s * density / 1000,
            )
            for s in range(seeds)
            for split in ("validation", "test")
        ]

    frame = pd.DataFrame(
        rows("dense", 1.0, 0.9, 3)
        + rows("ticket", 0.5, 0.9, 3)
        + rows("ticket", 0.2, 0.9, 3)
        + rows("ticket", 0.1, 0.6, 1)
    )
    assert (
        matches_down_to(frame)["text"].item() == "20 %"
    )  # one seed at 10 % says nothing, least of all a match
    with pytest.raises(LotteryError, match="no dense network to reach"):
        speed(frame[frame["role"] == "ticket"])
    found = transition(pd.concat([frame, frame[frame["role"] == "ticket"].assign(source="c")]), 0.1)
    said = dict(zip(found["source"], found["text"], strict=True))
    assert said["a"].startswith("below 10 %") and said["c"].startswith("no yardstick: dense (rewind)")


def small_paper(seeds=3):
    """A paper of a few small networks on digits."""
    quick = Recipe(lr=0.1, epochs=1, batch_size=64)
    plan = FindPlan(
        "digits[0-4]@200", width=0.2, schedule=geometric(0.5, 1), recipe=quick, seeds=seeds, controls=()
    )
    how = {"start": ("rewind",), "controls": ("dense",)}
    return Paper("toy", "smoke", {"f": plan}, {"m": Move("f", ("digits[5-9]@200",), None, how)})


def test_a_check_asks_what_the_seeds_say_and_names_versions(tmp_path, monkeypatch):
    from lottery_nb.papers import papers as room

    paper = small_paper()
    keep(paper, run_paper(paper, tmp_path / "runs", "cpu", show=False), tmp_path)
    found, part = kept("toy", "smoke", tmp_path), room._part_of(paper, 0)
    done = run_paper(part, tmp_path / "again", "cpu", show=False)
    monkeypatch.setattr(room, "run_paper", lambda *given: done)  # trained once, held against several
    assert room.check_cost(paper, found)[0] == 4

    def held(frame):
        return check_paper(paper, room.Kept(about, frame), 0, "cpu", show=False)

    frame, values = found.frame, found.frame["value"]
    about = json.loads(json.dumps(found.about))
    for info in about["runs"].values():
        info["versions"]["torch"] = "1.0"
    assert set(held(frame)["same"]) == {"to the digit"}
    spread = frame[frame["split"] == "test"].groupby(["run", "role"])["value"].std().max()
    for shift, same in ((spread / 3, "as the seeds say"), (-spread / 3, "as the seeds say"), (0.9, "no")):
        table = held(frame.assign(value=values + shift))
        assert set(table["same"]) == {same} and table.attrs["versions"].startswith("torch 1.0 then, ")
        assert (table["seeds"] == 3).all() and (table["low"] < table["kept"]).all()
    for few in (frame.assign(value=0.5), frame[frame["seed"] == part.finds["f"].seeds[0]]):
        assert held(few)["low"].isna().all()  # no spread, so three points it is
    assert "no" in set(held(frame.assign(value=0.99))["same"])


def test_a_check_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    from lottery_nb.papers import papers as room

    paper, mine = small_paper(2), tmp_path / "mine"
    keep(paper, run_paper(paper, tmp_path / "runs", "cpu", show=False), tmp_path)
    found, real, seen = kept("toy", "smoke", tmp_path), room.run, []
    mine.mkdir()
    (mine / "notes.txt").write_text("of the user")

    def cut(plan, folder, *rest):
        if folder.name == "move-m":
            raise LotteryError("cut off")
        return real(plan, folder, *rest)

    monkeypatch.setattr(room, "run", cut)
    with pytest.raises(LotteryError, match="cut off"):
        check_paper(paper, found, 0, "cpu", show=False, folder=mine)
    log = mine / "check-toy-smoke-0" / "find-f" / "events.jsonl"
    before = log.read_bytes()

    def watched(plan, folder, *rest):
        done = real(plan, folder, *rest)
        seen.append(log.read_bytes())
        return done

    monkeypatch.setattr(room, "run", watched)
    assert "no" not in set(check_paper(paper, found, 0, "cpu", show=False, folder=mine)["same"])
    assert seen[0] == before  # the search was read, not trained again
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]
