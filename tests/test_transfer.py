"""What is no lesson of 08_transfer: heads for any class count, what the arms of a pair share, bodies and statistics, and that no arm is lost or trained twice."""

from dataclasses import replace

import pytest
import tiny
import torch
from tiny import find, listen, of, plan, same, trained

from lottery_nb.core import LotteryError
from lottery_nb.data.domains import domain
from lottery_nb.pruning.schedules import geometric, one_shot
from lottery_nb.rewinding.controls import CONTROLS
from lottery_nb.plans.find import find_tickets
from lottery_nb.engine.recipes import Recipe
from lottery_nb.plans.transfer import settle, target_domain, transfer, transfer_arms, TransferPlan

ALL = tuple(CONTROLS)


@pytest.fixture(scope="module")
def tickets():
    return listen(
        find_tickets(
            plan(seeds=2, schedule=geometric(0.5, 2), rewind="step 3", layer_fractions={"head": 0.2}), "cpu"
        )
    )[0]


@pytest.fixture(scope="module")
def normed():
    return listen(find_tickets(plan(network="tiny:normed", width=1.0, schedule=one_shot(0.4)), "cpu"))[0][0]


def moves(tickets, targets=("digits[5-9]@200",), **fields):
    return TransferPlan(tickets, targets, **{"recipe": Recipe(lr=0.05, epochs=1, batch_size=32), **fields})


def head_of(arm):
    return {n: w for n, w in arm.start.weights.items() if n.startswith("head.")}


# --- heads ---


@pytest.mark.parametrize("head", ["new", "mlp"])
@pytest.mark.parametrize("classes", ["0,1", "0-4", "0-9"])
def test_a_new_head_fits_any_class_count(tickets, classes, head):
    results, _ = listen(
        transfer(moves(tickets[-1], (f"digits[{classes}]@200",), head=head, controls=ALL), "cpu")
    )
    n = domain(f"digits[{classes}]").n_classes
    for r in results:
        assert not r.failed and r.arm.network.n_classes == n and r.metrics["test"]["accuracy"] >= 0
        last = list(head_of(r.arm).values())[-1]
        assert last.shape == (n,) and len(head_of(r.arm)) == (2 if head == "new" else 4)
        assert r.arm.mask is None or not any(name.startswith("head.") for name in r.arm.mask)
    if head == "mlp":
        (more,) = (r for r in results if (r.arm.tags["role"], r.arm.tags["start"]) == ("dense", "rewind"))
        assert 40_000 < sum(w.numel() for w in head_of(more.arm).values()) < 60_000


def test_all_arms_of_a_pair_begin_with_the_same_head(tickets):
    arms = transfer_arms(
        moves(
            tickets,
            ("digits[5-9]@200", "digits[5-9]+invert@200"),
            controls=tuple(c for c in ALL if c != "small dense"),
        )
    )
    heads = {}
    for a in arms:
        heads.setdefault((a.tags["domain"], a.tags["seed"]), []).append(head_of(a))
    assert len(heads) == 4 and all(same(h, pair[0]) for pair in heads.values() for h in pair)
    firsts = [pair[0]["head.weight"] for pair in heads.values()]
    assert not any(
        torch.equal(a, b) for i, a in enumerate(firsts) for b in firsts[:i]
    )  # another target or seed, another head


def test_a_role_is_the_same_network_whatever_else_was_asked_for(tickets):
    whole = {a.name: a for a in transfer_arms(moves(tickets[-1], controls=ALL))}
    for start in ("rewind", "source-trained", "fresh"):
        for control in (*([c] for c in ALL), []):
            for a in transfer_arms(moves(tickets[-1], start=start, controls=tuple(control))):
                assert a.name in whole, a.name
                if a.tags["role"] != "reinit signs kept":  # takes its signs from the starting weights
                    assert (
                        a.start.fingerprint == whole[a.name].start.fingerprint
                        and a.mask == whole[a.name].mask
                    ), a.name


def test_a_reused_head_travels_with_its_mask(tickets):
    ticket = tickets[-1]
    for start in ("rewind", "source-trained"):
        arm = next(
            a for a in transfer_arms(moves(ticket, start=start, head="reuse")) if a.tags["role"] == "ticket"
        )
        assert (
            same(arm.start.weights, ticket.start(start).weights)
            and arm.mask == ticket.mask
            and "head.weight" in arm.mask
        )
        assert (arm.start.step, arm.start.updates, dict(arm.start.optimizer)) == (0, 0, {})
    with pytest.raises(LotteryError, match="has 10 classes and the ticket's head 5"):
        transfer_arms(moves(ticket, ("digits@200",), head="reuse"))


# --- starting points and controls ---


def test_what_each_arm_begins_with(tickets):
    ticket = tickets[-1]
    arms = {(a.tags["role"], a.tags["start"]): a for a in transfer_arms(moves(ticket, controls=ALL))}
    body = [n for n in ticket.start().weights if not n.startswith("head.")]
    for start in ("rewind", "source-trained"):
        for role in ("ticket", "dense", "shuffled"):
            assert same(
                {n: arms[role, start].start.weights[n] for n in body},
                {n: ticket.start(start).weights[n] for n in body},
            )
    assert not any(
        torch.equal(arms["reinit", "fresh"].start.weights[n], ticket.start(s).weights[n])
        for n in ticket.mask
        for s in ("rewind", "init", "source-trained")
    )
    assert same(
        {n: arms["dense", "fresh"].start.weights[n] for n in body},
        {n: arms["reinit", "fresh"].start.weights[n] for n in body},
    )
    masks = {k: {n: b for n, b in a.mask.items()} for k, a in arms.items() if a.mask}
    kept = {n: b for n, b in ticket.mask.items() if n != "head.weight"}
    assert (
        same(masks["ticket", "rewind"], kept)
        and same(masks["ticket", "source-trained"], kept)
        and same(masks["reinit", "fresh"], kept)
    )
    assert same(masks["shuffled", "rewind"], masks["shuffled", "source-trained"]) and not same(
        masks["shuffled", "rewind"], kept
    )
    for role, start in (("shuffled", "rewind"), ("random mask", "fresh")):
        assert {n: int(b.sum()) for n, b in masks[role, start].items()} == {
            n: int(b.sum()) for n, b in kept.items()
        }
    assert (
        all(arms["dense", s].mask is None for s in ("rewind", "source-trained", "fresh"))
        and arms["small dense", "fresh"].mask is None
    )
    assert all(
        a.start.step == a.start.updates == 0 and not a.start.optimizer and a.seed == ticket.seed
        for a in arms.values()
    )
    assert {a.tags["density"] for (role, _), a in arms.items() if role == "dense"} == {1.0} and {
        a.tags["density"] for (role, _), a in arms.items() if role != "dense"
    } == {ticket.density}


def test_no_arm_stands_twice_and_none_is_lost(tickets):
    arms = transfer_arms(
        moves(
            tickets,
            ("digits[5-9]@200", "digits[0-2]@200"),
            start=("rewind", "source-trained"),
            controls=("dense", "random mask"),
        )
    )
    count = {}
    for a in arms:
        key = (a.tags["domain"], a.tags["role"])
        count[key] = count.get(key, 0) + 1
    for d in ("digits[5-9]@200", "digits[0-2]@200"):
        assert (count[d, "ticket"], count[d, "dense"], count[d, "random mask"]) == (4 * 2, 2 * 2, 4)
    assert (
        len({a.name for a in arms})
        == len(arms)
        == len(
            {(a.start.fingerprint, a.mask.fingerprint if a.mask else "", a.domain.name, a.seed) for a in arms}
        )
    )


def test_tickets_of_two_searches_are_both_carried_or_refused(tickets):
    other = listen(find_tickets(plan(seeds=2, schedule=geometric(0.5, 2), criterion="random"), "cpu"))[0]
    assert other[-1].name == tickets[-1].name and other[-1].mask != tickets[-1].mask
    try:
        arms = transfer_arms(moves((tickets[-1], other[-1]), start="rewind", controls=()))
    except LotteryError:
        return
    assert {a.mask.fingerprint for a in arms} == {
        settle(t, arms[0].domain, "rewind")[0].mask.fingerprint for t in (tickets[-1], other[-1])
    }


def test_two_own_targets_of_one_name_are_both_trained_on_or_refused(tickets):
    one, two = tiny.noise_domain(seed=1), tiny.noise_domain(seed=2)
    try:
        arms = transfer_arms(moves(tickets[-1], (one, two), start="rewind", controls=()))
    except LotteryError:
        return
    assert {a.domain.fingerprint for a in arms} == {one.fingerprint, two.fingerprint}


def test_arms_repeat(tickets):
    one, two = (transfer_arms(moves(tickets, controls=ALL)) for _ in range(2))
    assert [(a.name, a.start.fingerprint, a.mask) for a in one] == [
        (a.name, a.start.fingerprint, a.mask) for a in two
    ]


# --- the target's pictures ---


def test_normalising_by_the_target_or_by_the_source(tickets):
    source = domain(tiny.NAME)
    own, theirs = (target_domain(tickets[0], "digits[5-9]+invert@200", n) for n in ("target", "source"))
    assert torch.equal(own.mean, domain("digits[5-9]+invert@200").mean) and not torch.allclose(
        own.mean, source.mean
    )
    assert (
        torch.equal(theirs.mean, source.mean)
        and torch.equal(theirs.std, source.std)
        and torch.equal(own.train.x, theirs.train.x)
    )
    arms = {
        n: transfer_arms(
            moves(tickets[0], ("digits[5-9]+invert@200",), normalise=n, start="rewind", controls=())
        )
        for n in ("target", "source")
    }
    assert (
        torch.equal(arms["source"][0].domain.mean, source.mean)
        and trained(arms["source"][0])[0][0].metrics != trained(arms["target"][0])[0][0].metrics
    )


def test_grey_pictures_for_a_network_that_takes_colour():
    colours = tiny.noise_domain("colours", shape=(3, 10, 10), classes=3)
    ticket = listen(
        find_tickets(
            plan(source=colours, schedule=one_shot(0.4), recipe=Recipe(epochs=1, batch_size=9)), "cpu"
        )
    )[0][0]
    there, grey = target_domain(ticket, "digits[5-9]@200"), domain("digits[5-9]@200").adapt((1, 10, 10))
    assert there.shape == (3, 10, 10)
    for split in ("train", "validation", "test"):
        assert all(torch.equal(getattr(there, split).x[:, c], getattr(grey, split).x[:, 0]) for c in range(3))
    results, _ = listen(transfer(moves(ticket), "cpu"))
    assert results and not any(r.failed for r in results)


# --- bodies ---


@pytest.mark.parametrize("head", ["new", "mlp"])
def test_a_frozen_body_does_not_move(tickets, head):
    results = trained(
        *(
            replace(a, returns_weights=True)
            for a in transfer_arms(moves(tickets[-1], body="frozen", head=head, controls=ALL))
        )
    )[0]
    for r in results:
        before = r.arm.mask.apply(r.arm.start.weights) if r.arm.mask else r.arm.start.weights
        moved = {n for n, w in r.last.weights.items() if not torch.equal(w, before[n])}
        assert moved == set(head_of(r.arm)) == set(r.arm.start.weights) - r.arm.frozen, r.arm.name
    free = trained(
        replace(transfer_arms(moves(tickets[-1], start="rewind", controls=()))[0], returns_weights=True)
    )[0][0]
    assert not free.arm.frozen and not torch.equal(
        free.last.weights["fc1.weight"], free.arm.start.weights["fc1.weight"]
    )


@pytest.mark.parametrize("norm", ["kept", "recalibrated", "updated"])
def test_statistics_of_a_frozen_body(normed, norm):
    arm = next(
        a
        for a in transfer_arms(
            moves(
                normed,
                ("digits[5-9]+invert@200",),
                body="frozen",
                norm=norm,
                start="source-trained",
                controls=(),
            )
        )
    )
    (result,), _ = trained(replace(arm, returns_weights=True))
    source = normed.start("source-trained").buffers["1.running_mean"]
    assert torch.equal(arm.start.buffers["1.running_mean"], source) and torch.equal(
        result.last.buffers["1.running_mean"], source
    ) == (norm == "kept")
    assert torch.equal(result.last.weights["1.weight"], normed.start("source-trained").weights["1.weight"])


def test_fresh_weights_have_fresh_statistics(normed):
    arms = {a.tags["start"]: a for a in transfer_arms(moves(normed, controls=()))}
    assert (
        not arms["fresh"].start.buffers["1.running_mean"].any()
        and arms["source-trained"].start.buffers["1.running_mean"].any()
    )


# --- the plan and its events ---


def test_a_ticket_carried_to_its_own_source_with_its_head_is_the_ticket_again(monkeypatch):
    tickets, events, _ = find(monkeypatch, schedule=one_shot(0.4))
    arm = next(
        a
        for a in transfer_arms(TransferPlan(tickets, (tiny.NAME,), head="reuse", start="rewind", controls=()))
    )
    _, again = trained(arm)
    assert of("ArmDone", again)[0].metrics == of("ArmDone", events, arm="r01/ticket/s0")[0].metrics


def test_what_is_planned_is_what_is_trained(tickets):
    results, events = listen(transfer(moves(tickets, start=("rewind",)), "cpu"))
    planned, started = events[0], of("ArmStarted", events)
    assert planned.arms == len(started) == len(results) == len(of("ArmDone", events))
    assert planned.images == sum(r.arm.recipe.batch_size * 5 for r in results)
    assert {e.arm: e.tags for e in started} == {r.arm.name: r.arm.tags for r in results} and {
        e.tags["source"] for e in started
    } == {tiny.NAME}


def test_without_a_recipe_each_ticket_brings_its_own(tickets):
    other = listen(
        find_tickets(
            plan(seeds=(7,), schedule=one_shot(0.5), recipe=Recipe("adam", 0.01, epochs=1, batch_size=50)),
            "cpu",
        )
    )[0][0]
    arms = transfer_arms(TransferPlan((tickets[0], other), ("digits[5-9]@200",), start="rewind", controls=()))
    assert [a.recipe for a in arms] == [tickets[0].recipe, other.recipe]


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(body="froze"), "did you mean 'frozen'"),
        (dict(norm="keep"), "did you mean 'kept'"),
        (dict(head="old"), "TransferPlan.head"),
        (dict(normalise="none"), "TransferPlan.normalise"),
        (dict(start=()), "TransferPlan.start"),
        (dict(start="init"), "TransferPlan.start"),
        (dict(controls=("shufled",)), "did you mean 'shuffled'"),
        (dict(floor=-0.1), "TransferPlan.floor"),
        (dict(targets=("digits[5-9]+blurr",)), "did you mean 'blur'"),
        (dict(targets=(3,)), "domain 3"),
    ],
)
def test_nonsense_is_refused_when_the_plan_is_made(tickets, fields, says):
    with pytest.raises(LotteryError, match=says) as e:
        moves(tickets[:1], **fields)
    assert "\n" not in str(e.value)


def test_what_does_not_fit_is_refused_before_anything_is_trained(tickets):
    two = tiny.noise_domain("two", shape=(2, 8, 8))
    for targets, says in (
        (("digits[5-9]@200", two), "channels"),
        (("digits[5-9]@200", "digits@99999"), "limit"),
    ):
        events = []
        with pytest.raises(LotteryError, match=says):
            for e in transfer(moves(tickets[-1], targets), "cpu"):
                events.append(e)
        assert not events
