"""What is no lesson of 07_tickets: counts of every round under every scope, rewind points, ways to retrain, controls, failing seeds, and ticket files that were tampered with."""

import copy
import json
import pickle
import struct
from dataclasses import replace

import pytest
import safetensors.torch
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import Fragile, exactly, find, listen, of, plan, same, some_arm, trained, within

from lottery_nb.runs import writing as runs_writing
from lottery_nb.runs import reading as runs_reading
from lottery_nb.core import canonical, from_plain, LotteryError
from lottery_nb.data.domains import domain
from lottery_nb.files import read_tensors, write_tensors
from lottery_nb.pruning.masks import Mask
from lottery_nb.models.network import Network
from lottery_nb.pruning.schedules import cubic, geometric, linear, listed, one_shot
from lottery_nb.pruning.scopes import n_of_m
from lottery_nb.rewinding.snapshots import fresh, masked
from lottery_nb.rewinding.points import Beginning, head_names, refit
from lottery_nb.rewinding.controls import CONTROLS
from lottery_nb.plans.tickets import Ticket
from lottery_nb.plans.find import find_tickets, FindPlan, Search
from lottery_nb.engine.recipes import lr_factor, Recipe

# --- counts ---


@pytest.mark.parametrize(
    "fields",
    [
        dict(schedule=geometric(0.37, 4)),
        dict(schedule=geometric(0.37, 3), scope="layer"),
        dict(schedule=geometric(0.3, 3), scope="erk"),
        dict(schedule=one_shot(0.05)),
        dict(schedule=linear(0.1, 3), scope="layer"),
        dict(schedule=cubic(0.02, 3)),
        dict(schedule=listed([0.9, 0.9, 0.31])),
        dict(schedule=geometric(0.37, 4), layer_fractions={"head": 0.1}),
        dict(schedule=geometric(0.5, 3), layer_fractions={"fc1": 0.2}, scope="layer"),
        dict(schedule=geometric(0.9, 3), criterion="random"),
        dict(network="tiny:level", width=1.0, schedule=geometric(0.37, 3), score_at="start"),
        dict(schedule=one_shot(0.2), criterion="snip", score_at="start"),
        dict(schedule=one_shot(0.2), criterion="grasp"),
        dict(schedule=one_shot(0.2), criterion="synflow", score_at="start"),
    ],
    ids=lambda f: " ".join(str(getattr(v, "kind", v)) for v in f.values()),
)
def test_every_round_keeps_exactly_what_it_should(fields):
    search = plan(**{"recipe": Recipe(lr=0.02, epochs=1, batch_size=60), "seeds": 2, **fields})
    with within(20):
        tickets, events = listen(find_tickets(search, "cpu"))
    found = Search(search)
    assert [(t.round, t.seed) for t in tickets] == [
        (r, s) for r in range(1, search.schedule.rounds + 1) for s in (0, 1)
    ]
    before = {}
    for t in tickets:
        d, sizes = search.schedule.density(t.round), {n: b.numel() for n, b in t.mask.items()}
        for n, f in found.fractions.items():
            assert t.mask.kept_in[n] == round((1 - f) ** t.round * sizes.pop(n))
        if search.scope == "layer":
            assert all(t.mask.kept_in[n] == exactly(d, k) for n, k in sizes.items())
        assert search.scope == "layer" or sum(t.mask.kept_in[n] for n in sizes) == exactly(
            d, sum(sizes.values())
        )
        assert t.seed not in before or t.mask <= before[t.seed]
        before[t.seed] = t.mask
        (told,) = of("TicketFound", events, ticket=t.name)
        assert (told.kept, told.size, told.density) == (t.mask.kept, t.mask.size, t.density)
        assert told.layers == {
            n: [t.mask.kept_in[n], b.numel()] for n, b in t.mask.items()
        } and told.layers.keys() == set(found.names)
    assert [(e.round, e.density) for e in of("RoundDone", events)] == list(
        enumerate(search.schedule.densities)
    )


def test_masks_are_those_of_the_weights_that_the_last_round_ended_with(monkeypatch):
    tickets, _, made = find(
        monkeypatch,
        schedule=geometric(0.5, 3),
        rewind="step 3",
        recipe=Recipe(lr=0.2, epochs=3, batch_size=32),
    )
    for t, role in zip(tickets, ("r00/dense/s0", "r01/ticket/s0", "r02/ticket/s0"), strict=True):
        scores = torch.cat([made[role].kept.weights[n].abs().flatten() for n in t.mask])
        top = torch.zeros(len(scores), dtype=torch.bool)
        top[scores.argsort(descending=True, stable=True)[: t.mask.kept]] = True
        assert torch.equal(top, torch.cat([b.flatten() for b in t.mask.values()]))


def test_scores_at_the_start_do_not_look_at_what_was_trained():
    first, second = (
        listen(
            find_tickets(
                plan(score_at="start", schedule=one_shot(0.3), recipe=Recipe(lr=lr, epochs=1, batch_size=60)),
                "cpu",
            )
        )[0][0]
        for lr in (0.01, 0.3)
    )
    other = listen(
        find_tickets(plan(schedule=one_shot(0.3), recipe=Recipe(lr=0.3, epochs=1, batch_size=60)), "cpu")
    )[0][0]
    assert first.mask == second.mask != other.mask


def test_a_users_criterion_takes_its_inner_steps_in_another_process_too():
    here = plan(criterion=tiny.by_row, schedule=one_shot(0.2))
    there = from_plain(json.loads(canonical(here)))
    assert there.hash == here.hash
    a, b = (listen(find_tickets(p, "cpu"))[0][0].mask for p in (here, there))
    one = listen(find_tickets(plan(criterion=lambda_free, schedule=one_shot(0.2)), "cpu"))[0][0].mask
    assert a.fingerprint != one.fingerprint
    assert a.fingerprint == b.fingerprint


def lambda_free(scoring):
    return tiny.by_row(scoring)  # the same scores, without the attribute `steps`


# --- rewind points ---


def dense_of(**fields):
    "The dense training of `plan(**fields)`, done by hand."
    return trained(some_arm("dense", recipe=fields.pop("recipe", plan().recipe), **fields))[0][0]


@pytest.mark.parametrize(
    "point, step", [("init", 0), ("step 3", 3), ("step 7", 7), ("epoch 1", 5), ("source-trained", None)]
)
def test_a_ticket_starts_from_its_rewind_point(point, step, monkeypatch):
    recipe = Recipe("adam", 0.01, epochs=2, batch_size=32)
    tickets, _, made = find(monkeypatch, rewind=point, recipe=recipe)
    alone = dense_of(recipe=recipe, capture=(3, 5, 7))
    θS = replace(alone.kept, optimizer={}, step=0, updates=0)
    want = θS if step is None else fresh(alone.arm.network, 0) if step == 0 else alone.captured[step]
    for t in tickets:
        assert t.start("init").fingerprint == fresh(alone.arm.network, 0).fingerprint
        assert t.start("source-trained").fingerprint == θS.fingerprint  # the dense one, whatever the round
        assert (
            same(t.start("rewind").weights, want.weights)
            and same(t.start().buffers, want.buffers)
            and (t.start().step, t.start().updates) == (want.step, want.updates)
        )
        start = masked(made[f"r{t.round:02d}/ticket/s0"].arm.start, t.mask)
        assert same(
            start.tensors() if step else start.weights,
            masked(want, t.mask).tensors() if step else masked(want, t.mask).weights,
        )
        assert same(dict(t.model().named_parameters()), t.mask.apply(want.weights))
    assert made["r01/ticket/s0"].last.step == 10 and made["r01/ticket/s0"].last.updates == 10


def test_a_rewind_point_after_an_early_stop_is_an_answer_and_no_crash():
    stopping = plan(
        rewind="epoch 18", recipe=Recipe(lr=0.3, epochs=20, batch_size=60, schedule="constant", patience=1)
    )
    assert len(of("EpochDone", trained(some_arm(recipe=stopping.recipe))[1])) < 18
    try:
        listen(find_tickets(stopping, "cpu"))
    except LotteryError as e:
        assert "rewind" in str(e)


# --- ways to retrain ---


@pytest.mark.parametrize("rewind", ["init", "step 3"])
def test_weight_rewinding(rewind, monkeypatch):
    tickets, _, made = find(monkeypatch, rewind=rewind)
    for start in (made[f"r{r:02d}/ticket/s0"].arm.start for r in (1, 2)):
        assert (
            same(start.weights, tickets[0].start("rewind").weights)
            and start.step == tickets[0].start("rewind").step
        )
        assert any(v.any() for v in start.optimizer.get("momentum", {}).values()) == (rewind != "init")


@pytest.mark.parametrize("rewind, step", [("init", 0), ("step 3", 3)])
def test_learning_rate_rewinding(rewind, step, monkeypatch):
    recipe = Recipe(lr=0.05, epochs=2, batch_size=32, schedule="cosine")
    _, events, made = find(
        monkeypatch,
        rewind=rewind,
        retrain="learning-rate rewinding",
        recipe=recipe,
        controls=("shuffled", "reinit"),
    )
    for r, before in ((1, "r00/dense/s0"), (2, "r01/ticket/s0")):
        start = made[f"r{r:02d}/ticket/s0"].arm.start
        assert (
            same(start.weights, made[before].kept.weights)
            and not start.optimizer
            and (start.step, start.updates) == (step, 0)
        )
        assert [e.lr for e in of("EpochDone", events, arm=f"r{r:02d}/ticket/s0")] == pytest.approx(
            [0.05 * lr_factor(recipe, t, 10) for t in (4, 9)]
        )
    assert made["r01/ticket/s0"].last.updates == 10 - step


def test_fine_tuning_goes_on_at_the_last_rate(monkeypatch):
    recipe = Recipe(lr=0.05, epochs=4, batch_size=32, schedule="step", warmup=0.1)
    _, events, made = find(monkeypatch, retrain="fine-tuning", recipe=recipe, controls=("reinit", "shuffled"))
    for r, before in ((1, "r00/dense/s0"), (2, "r01/ticket/s0")):
        for role in ("ticket", "shuffled"):
            name = f"r{r:02d}/{role}/s0"
            assert (
                same(made[name].arm.start.weights, made[before].kept.weights)
                and not made[name].arm.start.optimizer
            )
            assert [e.lr for e in of("EpochDone", events, arm=name)] == pytest.approx([0.0005] * 4)
        assert of("EpochDone", events, arm=f"r{r:02d}/reinit/s0")[0].lr == pytest.approx(
            0.05
        )  # a fresh network is trained in full


# --- controls ---


def test_controls_of_a_search_differ_as_they_say(monkeypatch):
    tickets, events, made = find(
        monkeypatch, seeds=(4, 9), rewind="step 3", controls=tuple(c for c in CONTROLS if c != "dense")
    )
    drawn = {}
    for t in tickets:
        arms = {
            role: made[f"r{t.round:02d}/{role}/s{t.seed}"].arm
            for role in ("ticket", *CONTROLS)
            if role != "dense"
        }
        weights = {
            role: torch.cat([a.start.weights[n].flatten() for n in t.mask])
            for role, a in arms.items()
            if role != "small dense"
        }
        assert arms["ticket"].mask == arms["reinit"].mask == arms["reinit signs kept"].mask == t.mask
        for role in ("shuffled", "random mask"):
            assert arms[role].mask.kept_in == t.mask.kept_in and all(
                not torch.equal(arms[role].mask[n], b)
                for n, b in t.mask.items()
                if 0 < t.mask.kept_in[n] < b.numel()
            )
        assert (
            arms["shuffled"].mask != arms["random mask"].mask
            and arms["shuffled"].start.fingerprint == arms["ticket"].start.fingerprint
        )
        assert (
            torch.equal(weights["reinit"], weights["random mask"])
            and not (weights["reinit"] == weights["ticket"]).any()
        )
        signs = (weights["reinit"].sign() == weights["ticket"].sign()).float().mean()
        assert 0.4 < signs < 0.6 and torch.equal(
            weights["reinit signs kept"].sign(), weights["ticket"].sign()
        )
        assert torch.equal(weights["reinit signs kept"].abs(), weights["reinit"].abs())
        assert weights["reinit"].std() == pytest.approx(
            fresh(t.network, 77).weights["fc1.weight"].std().item(), rel=0.3
        )
        full = sum(w.numel() for w in t.start().weights.values())
        assert arms["small dense"].mask is None and arms[
            "small dense"
        ].network.parameters_count == pytest.approx(full - t.mask.size + t.mask.kept, rel=0.2)
        assert all(
            a.start.step == 0 and not a.start.optimizer
            for role, a in arms.items()
            if role not in ("ticket", "shuffled")
        )
        assert all(
            a.seed == t.seed and a.recipe == arms["ticket"].recipe and a.tags["density"] == t.density
            for a in arms.values()
        )
        drawn[t.name] = (
            arms["reinit"].start.fingerprint,
            arms["shuffled"].mask.fingerprint,
            arms["random mask"].mask.fingerprint,
        )
    assert (
        len({d[0] for d in drawn.values()}) == 2
        and len({d[1] for d in drawn.values()}) == len({d[2] for d in drawn.values()}) == 4
    )
    again = find(monkeypatch, seeds=(9,), rewind="step 3", controls=("random mask", "shuffled", "reinit"))[2]
    for t in tickets:
        if t.seed == 9:  # a control is a function of its seed, not of what else was asked for
            arms = [again[f"r{t.round:02d}/{role}/s9"].arm for role in ("reinit", "shuffled", "random mask")]
            assert (arms[0].start.fingerprint, arms[1].mask.fingerprint, arms[2].mask.fingerprint) == drawn[
                t.name
            ]
    roles = {e.tags["role"]: e.tags["start"] for e in of("ArmStarted", events)}
    assert roles == {
        "dense": "fresh",
        "ticket": "rewind",
        "shuffled": "rewind",
        **dict.fromkeys(("reinit", "reinit signs kept", "random mask", "small dense"), "fresh"),
    }


def test_a_search_repeats_and_a_seed_does_not_depend_on_the_others():
    alone = listen(find_tickets(plan(seeds=(2,)), "cpu"))[0]
    among = [t for t in listen(find_tickets(plan(seeds=(0, 2)), "cpu"))[0] if t.seed == 2]
    assert [t.mask for t in alone] == [t.mask for t in among] and alone[0].start().fingerprint == among[
        0
    ].start().fingerprint
    assert alone[0].mask != listen(find_tickets(plan(seeds=(0,)), "cpu"))[0][0].mask


# --- into another head, another number of channels ---

NETS = {"lenet-300-100": 0.1, "conv-2": 0.1, "resnet-20": 0.2, "tiny:normed": 1.0}


def drawn_ticket(network, channels, keep=0.5):
    "A ticket with random weights and a random mask, the head's too, through its file's reader."
    net = Network(network, (channels, 8, 8), 5, NETS[network])
    θ0 = fresh(net, 3)
    dice = torch.Generator().manual_seed(channels)
    mask = Mask({n: torch.rand(w.shape, generator=dice) < keep for n, w in θ0.weights.items() if w.ndim > 1})
    trained = replace(
        θ0,
        weights={n: w + torch.randn(w.shape, generator=dice) * 0.1 for n, w in θ0.weights.items()},
        optimizer={"momentum": θ0.weights},
        step=9,
        updates=9,
    )
    norm = ((0.5,) * channels, (0.2,) * channels)
    return Ticket(
        mask,
        net,
        {"init": θ0, "rewind": trained, "source-trained": replace(trained, optimizer={})},
        Recipe(),
        "digits",
        "x",
        norm,
        1,
        3,
    )


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    return {
        (n, c): Ticket.load(drawn_ticket(n, c).save(folder / f"{i}-{c}.safetensors"))
        if ":" not in n
        else drawn_ticket(n, c)
        for i, n in enumerate(NETS)
        for c in (1, 3)
    }


def adapted(t, network):
    return next(n for n, b in t.mask.items() if b.shape != network.get_parameter(n).shape)


@pytest.mark.parametrize("network", NETS)
@pytest.mark.parametrize("start", ["init", "rewind", "source-trained"])
@pytest.mark.parametrize("old, new", [(3, 1), (1, 3), (1, 2), (3, 4)])
def test_another_number_of_channels_answers_grey_pictures_alike(network, start, old, new, loaded):
    t = loaded[network, old]
    before, fitted = t.model(start), t.fitted(start, channels=new)
    after, grey = t.model(start, channels=new), torch.rand(6, 1, 8, 8)
    assert torch.allclose(
        before.eval()(grey.repeat(1, old, 1, 1)), after.eval()(grey.repeat(1, new, 1, 1)), atol=1e-5
    )
    first = adapted(t, after)
    assert {n for n, p in after.named_parameters() if p.shape != before.get_parameter(n).shape} == {first}
    assert all(
        torch.equal(p, before.get_parameter(n)) for n, p in after.named_parameters() if n != first
    ) and same(dict(after.named_buffers()), dict(before.named_buffers()))
    sources = t.mask[first].reshape(len(t.mask[first]), old, -1)
    assert torch.equal(
        fitted.mask[first].reshape(len(sources), new, -1), sources.any(1, keepdim=True).expand(-1, new, -1)
    )
    assert fitted.mask.kept == t.mask.kept - t.mask[first].sum() + new * sources.any(1).sum() and set(
        fitted.mask
    ) == set(t.mask)
    for n, bits in fitted.mask.items():
        gone = after.get_parameter(n)[~bits]
        assert not gone.any() and not gone.signbit().any()
    assert (fitted.start.step, fitted.start.updates, fitted.start.optimizer) == (0, 0, {})


@pytest.mark.parametrize("network", ["lenet-300-100", "conv-2", "tiny:normed"])
@pytest.mark.parametrize(
    "fields",
    [dict(n_classes=7), dict(n_classes=5), dict(head="mlp"), dict(n_classes=2, head="mlp", channels=1)],
    ids=str,
)
def test_a_new_head_is_drawn_and_the_body_stays(network, fields, loaded):
    t = loaded[network, 3]
    fitted, model = t.fitted(**fields), t.model(**fields).eval()
    state = model.state_dict()
    assert model(torch.rand(2, fields.get("channels", 3), 8, 8)).shape == (2, fields.get("n_classes", 5))
    head = set(head_names(fitted.network))
    body = {n: w for n, w in t.model().state_dict().items() if n not in head | set(head_names(t.network))}
    assert set(fitted.mask) == set(t.mask) - head_names(t.network) - head and head < set(state) == head | set(
        body
    )
    assert all(torch.equal(state[n], w) for n, w in body.items() if state[n].shape == w.shape)
    drawn = [w for n, w in model.named_parameters() if n in head and w.ndim > 1]
    assert all((w != 0).all() for w in drawn)  # no mask of the old head covers the new one
    assert same(state, t.model(**fields).state_dict())
    other = replace(t, seed=4).model(**fields)
    assert not any(
        torch.equal(w, other.get_parameter(n))
        for n, w in model.named_parameters()
        if n in head and w.ndim > 1
    )
    assert not torch.equal(
        drawn[0],
        fresh(fitted.network, t.seed).weights[next(n for n, w in model.named_parameters() if w is drawn[0])],
    )


def test_what_nothing_is_asked_of_is_as_it_was(loaded):
    for t in loaded.values():
        fitted = t.fitted("rewind")
        assert (
            fitted.start.fingerprint == t.start("rewind").fingerprint
            and fitted.mask == t.mask
            and fitted.network == t.network
        )
        same_channels = t.fitted("rewind", channels=t.network.input_shape[0])
        assert same_channels.start.fingerprint == t.start("rewind").fingerprint


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(channels=0), "channels=0: give a whole number of at least 1"),
        (dict(channels=1.5), "channels=1.5"),
        (dict(channels=True), "channels=True"),
        (dict(channels=(1, 28, 28)), r"channels=\(1, 28, 28\)"),
        (dict(channels=-3), "channels=-3"),
        (dict(n_classes=1), "Network.n_classes=1: give a whole number of at least 2"),
        (dict(n_classes=0), "n_classes=0"),
        (dict(n_classes=2.5), "n_classes=2.5"),
        (dict(n_classes="7"), "n_classes='7'"),
        (dict(head="mpl"), "did you mean 'mlp'"),
        (dict(head=3), "Network.head=3"),
        (dict(head=""), "Network.head=''"),
        (dict(start="late"), "start='late'"),
    ],
    ids=str,
)
def test_nonsense_is_not_fitted(fields, says, loaded):
    for use in (loaded["conv-2", 3].model, loaded["conv-2", 3].fitted):
        with pytest.raises(LotteryError, match=says) as e:
            use(**fields)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "change",
    [dict(input_shape=(3, 16, 16)), dict(input_shape=(1, 8, 16)), dict(width=0.2), dict(name="conv-4")],
    ids=str,
)
def test_a_body_becomes_no_other_one(change, loaded):
    t = loaded["conv-2", 3]
    with pytest.raises(LotteryError, match="only its head, class count and number of channels may differ"):
        refit(t.fitted(), t.network.with_(**change))


def test_a_network_that_is_built_around_its_channels_is_refused():
    net = Network("tiny:channelled", (3, 8, 8), 5)
    begin = Beginning(net, Mask.dense({"0.weight": fresh(net, 0).weights["0.weight"]}), fresh(net, 0), 0)
    with pytest.raises(LotteryError, match="'0.weight' is .* only layers that read the picture can adapt"):
        refit(begin, net.with_(input_shape=(1, 8, 8)))
    with pytest.raises(LotteryError, match="use the network that it was taken from"):
        refit(
            replace(
                begin, start=replace(begin.start, buffers={"x": torch.zeros(1)}, weights=begin.start.weights)
            ),
            net.with_(n_classes=5),
        )


# --- seeds that fail ---


def test_a_seed_whose_ticket_fails_drops_out_and_the_others_go_on():
    tickets, events = listen(
        find_tickets(
            plan(
                network="tiny:fragile", width=1.0, seeds=3, schedule=geometric(0.4, 3), controls=("reinit",)
            ),
            "cpu",
        )
    )
    assert [(t.round, t.seed) for t in tickets] == [
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
        (2, 1),
        (2, 2),
        (3, 0),
        (3, 2),
    ]
    assert [e.arm for e in of("ArmFailed", events)] == ["r02/ticket/s1"]
    assert len(of("RoundDone", events)) == 4 and not of("RunFailed", events)
    assert isinstance(tickets[0].model(), Fragile)


def test_when_every_seed_fails_there_are_no_tickets():
    tickets, events = listen(
        find_tickets(
            plan(recipe=Recipe(lr=1e9, epochs=2, batch_size=32, schedule="constant"), seeds=2), "cpu"
        )
    )
    assert tickets == [] and len(of("ArmFailed", events)) == 2 and not of("TicketFound", events)


# --- what runs in this process only ---


def test_a_criterion_without_a_name_runs_in_this_process():
    tickets, _ = listen(
        find_tickets(plan(criterion=lambda s: {n: w.abs() for n, w in s.weights.items()}), "cpu")
    )
    assert [t.mask for t in tickets] == [t.mask for t in listen(find_tickets(plan(), "cpu"))[0]]


def test_tickets_are_found_on_a_users_own_arrays():
    own = tiny.noise_domain()
    tickets, _ = listen(find_tickets(plan(source=own, recipe=Recipe(epochs=1, batch_size=9)), "cpu"))
    assert (
        [t.source for t in tickets] == ["own"] * 2
        and tickets[0].domain == own.fingerprint
        and tickets[0].network.n_classes == 3
    )


# --- plans that are refused ---


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(schedule="geometric"), "FindPlan.schedule"),
        (dict(scope="globl"), "did you mean 'global'"),
        (dict(retrain="finetune"), "did you mean 'fine-tuning'"),
        (dict(rewind="step -1"), "rewind"),
        (dict(rewind="step 1.5"), "rewind"),
        (dict(seeds=(1, 1)), "each seed once"),
        (dict(seeds=-1), "FindPlan.seeds"),
        (dict(seeds=()), "FindPlan.seeds"),
        (dict(seeds=2.5), "FindPlan.seeds"),
        (dict(width=0), "FindPlan.width"),
        (dict(floor=1.5), "FindPlan.floor"),
        (dict(score_at="end"), "FindPlan.score_at"),
        (dict(layer_fractions={"head": -0.1}), "layer_fractions"),
        (dict(schedule=one_shot(0.5), layer_fractions={"head": 0.1}), "one-shot|one_shot"),
        (dict(controls="reinit "), "control"),
        (dict(source="digits[0-4]+blr"), "did you mean 'blur'"),
        (dict(recipe={"lr": 1}), "FindPlan.recipe"),
        (dict(source=3), "domain 3"),
        (dict(network=3), "FindPlan.network"),
        (dict(criterion=3), "FindPlan.criterion"),
    ],
)
def test_nonsense_is_refused_when_the_plan_is_made(fields, says):
    with pytest.raises(LotteryError, match=says) as e:
        plan(**fields)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(rewind="epoch 2"), "choose an earlier point"),
        (dict(rewind="step 10"), "choose an earlier point"),
        (dict(layer_fractions={"fc9": 0.1}), "did you mean"),
        (dict(prunable=("fc9.weight",)), "fc"),
        (dict(prunable=("head.weight",)), "belongs to the head: give the head a rate"),
        (dict(network="tiny:nowhere"), "cannot be imported"),
        (dict(source="digits[0-4]@9999"), "limit"),
        (dict(source="nowhere"), "unknown domain"),
    ],
)
def test_nonsense_is_refused_before_anything_is_trained(fields, says):
    events = []
    with pytest.raises(LotteryError, match=says):
        for e in find_tickets(plan(**fields), "cpu"):
            events.append(e)
    assert not events


# --- the file ---


@pytest.fixture(scope="module")
def ticket():
    recipe = Recipe("adam", 0.01, epochs=1, batch_size=60)
    return listen(
        find_tickets(
            plan(network="resnet-20", width=0.15, rewind="step 2", recipe=recipe, schedule=geometric(0.6, 1)),
            "cpu",
        )
    )[0][0]


@pytest.fixture(scope="module")
def saved(ticket, tmp_path_factory):
    return ticket.save(tmp_path_factory.mktemp("ticket") / "t.safetensors").read_bytes()


def test_a_ticket_file_brings_everything_back(ticket, saved, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(saved)
    again = Ticket.load(tmp_path / "x.safetensors")
    assert (
        again.content == ticket.content
        and again.mask == ticket.mask
        and list(again.mask) == list(ticket.mask)
    )
    assert (
        again.network,
        again.recipe,
        again.source,
        again.domain,
        again.norm,
        again.round,
        again.seed,
        again.plan,
    ) == (
        ticket.network,
        ticket.recipe,
        ticket.source,
        ticket.domain,
        ticket.norm,
        ticket.round,
        ticket.seed,
        ticket.plan,
    )
    for point in ("init", "rewind", "source-trained"):
        assert (
            same(again.start(point).tensors(), ticket.start(point).tensors())
            and again.start(point).updates == ticket.start(point).updates
        )
    assert again.start().optimizer["mean"] and again.start().step == 2
    entered = [
        trained(some_arm(network=t.network, start=t.start(), mask=t.mask, recipe=t.recipe))[0][
            0
        ].last.fingerprint
        for t in (ticket, again)
    ]
    assert entered[0] == entered[1]


def test_the_mask_comes_from_the_file_and_not_from_which_weights_are_zero(ticket, tmp_path):
    zeros = {
        k: replace(s, weights={n: torch.zeros_like(w) for n, w in s.weights.items()})
        for k, s in ticket.snapshots.items()
    }
    assert Ticket.load(replace(ticket, snapshots=zeros).save(tmp_path / "z.safetensors")).mask == ticket.mask


def test_a_ticket_of_a_users_network_finds_it_again(tmp_path):
    found = listen(find_tickets(plan(network="tiny:normed", width=1.0), "cpu"))[0][-1]
    again = Ticket.load(found.save(tmp_path / "t.safetensors"))
    assert again.content == found.content and same(again.model().state_dict(), found.model().state_dict())


def test_a_ticket_gives_a_plain_module(ticket):
    for start in ("rewind", "init", "source-trained"):
        net = ticket.model(start)
        assert list(net.state_dict()) == list(ticket.network.build(0).state_dict())
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert same(other.state_dict(), net.state_dict())
        assert not any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or hasattr(m, "parametrizations")
            for m in net.modules()
        )
        for n, bits in ticket.mask.items():
            assert (net.get_parameter(n)[~bits].view(torch.int32) == 0).all() and net.get_parameter(n)[
                bits
            ].ne(0).any()


def test_a_wrong_start_is_refused(ticket):
    with pytest.raises(LotteryError, match="did you mean 'source-trained'"):
        ticket.model("source trained")


def rewritten(saved, path, change):
    "The file after a change of its tensors and its record, written as by someone who knows how: its checksum is right."
    path.write_bytes(saved)
    tensors, record = read_tensors(path)
    change(tensors, record)
    return write_tensors(path, tensors, record)


def weight(tensors):
    return next(n for n in tensors if n.startswith("snapshot/init/weights/") and tensors[n].ndim > 1)


def test_a_file_of_the_first_version_is_read(ticket, saved, tmp_path):
    "It had no checksum: the record stood there by itself."
    (tmp_path / "t").write_bytes(saved)
    tensors, record = read_tensors(tmp_path / "t")
    (tmp_path / "old").write_bytes(
        safetensors.torch.save(tensors, {"lottery": json.dumps({**record, "schema": 1})})
    )
    assert Ticket.load(tmp_path / "old").content == ticket.content


CHANGES = {
    "newer": (lambda t, r: r.update(schema=99), "newer lottery_nb"),
    "no schema": (lambda t, r: r.update(schema=None), "cannot be read"),
    "schema a word": (lambda t, r: r.update(schema="1"), "cannot be read"),
    "NaN": (lambda t, r: t[weight(t)].view(-1)[0:1].fill_(torch.nan), "NaN"),
    "infinite": (lambda t, r: t[weight(t)].view(-1)[0:1].fill_(torch.inf), "NaN or infinity"),
    "weight lost": (lambda t, r: t.pop(weight(t)), "missing"),
    "other shape": (lambda t, r: t.update({weight(t): t[weight(t)].flatten().clone()}), "is"),
    "weight more": (lambda t, r: t.update({"snapshot/init/weights/x": torch.zeros(2)}), "only in"),
    "unknown kind": (
        lambda t, r: t.update({"snapshot/init/things/x": torch.zeros(2)}),
        "no part of a snapshot",
    ),
    "mask cut": (
        lambda t, r: t.update({n: t[n][:-1].clone() for n in list(t) if n.startswith("mask/")}),
        "damaged",
    ),
    "mask lost": (
        lambda t, r: t.pop(next(n for n in t if n.startswith("mask/"))),
        "cannot be read as a ticket",
    ),
    "no mask": (lambda t, r: r.update(mask=[]), "no parameters"),
    "mask shape": (lambda t, r: r["mask"][0].__setitem__(1, [1, -1]), "damaged"),
    "mask of floats": (
        lambda t, r: t.update({n: t[n].float() for n in list(t) if n.startswith("mask/")}),
        "uint8",
    ),
    "no snapshots": (lambda t, r: r.update(snapshots={}), ""),
    "no init": (lambda t, r: r["snapshots"].pop("init"), ""),
    "other width": (lambda t, r: r["network"].update(width=0.3), "in the network"),
    "no recipe": (lambda t, r: r["recipe"].update(lr=-1), "Recipe.lr"),
    "recipe of tomorrow": (lambda t, r: r["recipe"].update(rho=1), "does not fit"),
    "record of what it likes": (lambda t, r: r.update(recipe={"type": "Popen", "args": "ls"}), "Popen"),
    "recipe a word": (lambda t, r: r.update(recipe="sgd"), ""),
    "step infinite": (lambda t, r: r["snapshots"]["init"].update(step=float("inf")), ""),
    "step negative": (lambda t, r: r["snapshots"]["init"].update(step=-3), ""),
    "outside": (lambda t, r: r["snapshots"]["init"].update(stored="../../x"), "plain name"),
    "outside, absolute": (lambda t, r: r["snapshots"]["init"].update(stored="/etc/passwd"), "plain name"),
    "not there": (lambda t, r: r["snapshots"]["init"].update(stored="0123"), "lottery export"),
    "a list": (lambda t, r: r.update(snapshots=[1]), "not a ticket"),
    "round a word": (lambda t, r: r.update(round="../../x"), ""),
    "seed a word": (lambda t, r: r.update(seed="x"), ""),
    "source a number": (lambda t, r: r.update(source=3), ""),
}


def test_a_network_that_nobody_has_is_read_and_refused_when_it_is_built(saved, tmp_path):
    "It may be of a package that is not installed here."
    path = rewritten(saved, tmp_path / "changed.safetensors", lambda t, r: r["network"].update(name="resnet-19"))
    ticket = Ticket.load(path)
    assert "resnet-19" in repr(ticket)
    with pytest.raises(LotteryError, match="did you mean 'resnet-1|did you mean 'resnet-2"):
        ticket.model()


@pytest.mark.parametrize("kind", CHANGES)
def test_a_file_that_was_tampered_with_is_refused_in_one_sentence(kind, saved, tmp_path):
    change, says = CHANGES[kind]
    path = rewritten(saved, tmp_path / "changed.safetensors", change)
    with pytest.raises(LotteryError) as e:
        Ticket.load(path)
    assert (
        says in str(e.value)
        and str(e.value).startswith("changed.safetensors")
        and "\n" not in str(e.value)
        and len(str(e.value)) < 400
    )


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_cut_or_flipped_file_is_refused_or_noticed(data, ticket, saved, tmp_path):
    size = 8 + struct.unpack("<Q", saved[:8])[0]
    damaged = bytearray(saved)
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(saved) - 1)) :]
    else:
        damaged[data.draw(st.integers(0, size - 1) | st.integers(0, len(saved) - 1))] ^= 1 << data.draw(
            st.integers(0, 7)
        )
    (tmp_path / "d.safetensors").write_bytes(damaged)
    try:
        found = Ticket.load(tmp_path / "d.safetensors")
    except LotteryError as e:
        assert "\n" not in str(e)
        return
    assert (
        len(damaged) == len(saved) and found.content == ticket.content
    )  # no more than the blanks between header and data


def test_a_flipped_bit_of_the_data_is_noticed_wherever_it_is(saved, tmp_path):
    begin = 8 + struct.unpack("<Q", saved[:8])[0]
    for k, at in enumerate(range(begin, len(saved), (len(saved) - begin) // 40)):
        damaged = bytearray(saved)
        damaged[at] ^= 1 << k % 8
        (tmp_path / "d.safetensors").write_bytes(damaged)
        with pytest.raises(LotteryError, match="damaged"):
            Ticket.load(tmp_path / "d.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        pickle.dumps({"a": 1}),
        b"PK\x03\x04" + b"\0" * 100,
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 99_000) + b"{" + b"[" * 99_000,
    ],
    ids=["empty", "short", "pickle", "zip", "huge header", "no tensors", "deep"],
)
def test_what_is_no_ticket_is_refused_unread(content, tmp_path, monkeypatch):
    monkeypatch.setattr(pickle, "Unpickler", None)
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(LotteryError, match="x.safetensors"):
        Ticket.load(tmp_path / "x.safetensors")


def test_a_folder_is_no_ticket(tmp_path):
    with pytest.raises(LotteryError):
        Ticket.load(tmp_path)


def test_a_store_keeps_each_snapshot_once_and_notices_another_content(ticket, tmp_path):
    file = ticket.save(tmp_path / "tickets" / "a.safetensors", store=tmp_path / "snapshots")
    again = Ticket.load(file)
    assert again.content == ticket.content and len(list((tmp_path / "snapshots").iterdir())) == 3
    ticket.save(tmp_path / "tickets" / "b.safetensors", store=tmp_path / "snapshots")
    assert len(list((tmp_path / "snapshots").iterdir())) == 3
    kept = tmp_path / "snapshots" / f"{ticket.start('init').fingerprint}.safetensors"
    kept.write_bytes(
        (tmp_path / "snapshots" / f"{ticket.start('rewind').fingerprint}.safetensors").read_bytes()
    )
    with pytest.raises(LotteryError, match="other content"):
        Ticket.load(file)
    kept.unlink()
    with pytest.raises(LotteryError, match="lottery export"):
        Ticket.load(file)


def test_the_test_split_is_not_needed_to_find(monkeypatch):
    there = domain(tiny.NAME)
    blind = replace(there, spec=there.spec)
    with_test, without = (listen(find_tickets(plan(source=d), "cpu"))[0] for d in (there, blind))
    assert [t.mask for t in with_test] == [t.mask for t in without] and isinstance(with_test[0].mask, Mask)


def test_plans_with_everything_in_them_come_back_from_json():
    whole = FindPlan(
        "digits[0-4]+blur(1)@200",
        tiny.normed,
        1.0,
        listed([0.5, 0.1]),
        "step 3",
        "fine-tuning",
        Recipe("adamw", 1e-3, steps=9, schedule="step", augment=("flip",), drops=((0.1, 0.2),)),
        (5, 2),
        tiny.by_row,
        "erk",
        "start",
        ("0.weight", "4.weight"),
        {},
        ("small dense",),
        0.5,
    )
    again = from_plain(json.loads(canonical(whole)))
    assert (
        canonical(again) == canonical(whole)
        and again.hash == whole.hash
        and again.seeds == (5, 2)
        and again.recipe == whole.recipe
    )
    hashes = {
        replace(whole, **c).hash
        for c in (
            dict(seeds=(2, 5)),
            dict(floor=0.4),
            dict(scope="layer"),
            dict(criterion="magnitude"),
            dict(recipe=Recipe(schedule="step")),
            dict(rewind="init"),
        )
    }
    assert len(hashes) == 6 and whole.hash not in hashes


# --- N of M ---


def test_a_find_with_a_pattern_from_plan_to_ticket(tmp_path):
    plan = FindPlan(
        "digits[0-4]",
        schedule=listed([0.75, 0.5]),
        recipe=Recipe(epochs=1, batch_size=64),
        seeds=1,
        controls=("random mask",),
        scope="2:4",
    )
    assert from_plain(json.loads(canonical(plan))) == plan
    found = runs_writing.run(plan, tmp_path / "run", device="cpu", show=False)
    first, last = found.tickets
    for ticket, kept in ((first, 3), (last, 2)):
        assert all(
            set(bits.view(len(bits), -1, 4).sum(2).flatten().tolist()) == {kept}
            for bits in ticket.mask.values()
        )
    assert (
        last.mask <= first.mask
        and last.density == 0.5
        and runs_reading.read_plan(tmp_path / "run").hash == plan.hash
    )
    with torch.no_grad():
        assert all(not p[~last.mask[n]].any() for n, p in last.model().named_parameters() if n in last.mask)


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(schedule=geometric(0.2, 3)), "cannot give 0.8"),
        (dict(scope="3:4"), "cannot give 0.5"),
        (dict(scope="1:7", schedule=one_shot(1 / 7)), "has 64 inputs, which are no multiple of 7"),
        (dict(network="resnet-20"), "'stem.0.weight' has 1 inputs"),
    ],
)
def test_what_a_pattern_cannot_give_is_refused_before_anything_is_trained(changes, says):
    with pytest.raises(LotteryError) as e:
        next(
            find_tickets(
                FindPlan(**{"source": "digits[0-4]", "scope": "2:4", "schedule": one_shot(0.5), **changes}),
                "cpu",
            )
        )
    assert says in str(e.value) and e.value.place == "FindPlan.scope"


def test_a_pattern_that_no_list_has_goes_through_a_plan():
    plan = FindPlan("digits", schedule=one_shot(0.125), scope="1:8")
    assert (
        from_plain(json.loads(canonical(plan))).scope == "1:8"
        and FindPlan("digits", schedule=one_shot(0.125), scope=n_of_m(1, 8)).hash != plan.hash
    )
    assert from_plain(
        json.loads(canonical(FindPlan("digits", schedule=one_shot(0.125), scope=n_of_m(1, 8))))
    ).scope == n_of_m(1, 8)
