"""Texts as a modality: what is no lesson of data_texts, domains, models, tickets and transfer. Made-up sentences; the review domains where LOTTERY_DATA has them."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from tiny import listen, same, trained

from lottery_nb.data import builtin as data_builtin
from lottery_nb.data import domains as data_domains
from lottery_nb.core import canonical, fingerprint, from_plain, LotteryError, to_plain
from lottery_nb.data.readers import Texts
from lottery_nb.data.texts import cut, encode, PAD, shared_pieces, train_vocabulary, UNKNOWN, Vocabulary
from lottery_nb.data.domains import domain, for_plan, register_domain, vocabulary
from lottery_nb.pruning.masks import Mask
from lottery_nb.models.network import head_of, Network, prunable, small_network, summary
from lottery_nb.data.own import from_csv, from_frame, from_texts, load_domain, save_domain
from lottery_nb.pruning.schedules import geometric
from lottery_nb.pruning.criteria import CRITERIA
from lottery_nb.rewinding.snapshots import fresh, load, masked
from lottery_nb.rewinding.points import TRAINED
from lottery_nb.runs.reading import Run
from lottery_nb.runs.writing import run
from lottery_nb.data.divergence import divergence, frequencies
from lottery_nb.plans.tickets import Ticket
from lottery_nb.plans.find import find_tickets, FindPlan
from lottery_nb.engine.recipes import Recipe
from lottery_nb.engine.arms import Arm
from lottery_nb.engine.trainer import SLOTS
from lottery_nb.engine.training import train
from lottery_nb.plans.transfer import in_vocabulary, settle, target_domain, transfer_arms, TransferPlan

WORDS = {
    "films": "the film and an actor in one long scene of a dull plot",
    "pans": "the pan and a lid in one wide handle of hot steel",
}
FILM_PIECES = train_vocabulary([" ".join(WORDS["films"].split()[::step]) for step in (1, 2, 3)] * 9, 60)
RECIPE = Recipe("adam", lr=0.01, epochs=2, batch_size=20, schedule="constant")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    "An empty cache, and the registry of domains as it was."
    monkeypatch.setenv("LOTTERY_CACHE", str(tmp_path / "cache"))
    before = dict(data_builtin.DOMAINS)
    yield
    data_builtin.DOMAINS.clear()
    data_builtin.DOMAINS.update(before)
    for cache in (
        data_domains.read_raw,
        data_domains.found_of,
        data_domains.content_of,
        data_domains.joint_vocabulary,
    ):
        cache.cache_clear()


def sentences(kind, n=160, seed=0):
    "Made-up reviews: one word says the label, the others what it is about."
    drawn = np.random.default_rng(seed).choice(WORDS[kind].split(), (n, 8))
    return [
        f"{' '.join(some[:4])} {'good' if i % 2 else 'bad'} {' '.join(some[4:])}"
        for i, some in enumerate(drawn)
    ]


def reviews(kind, n=160, length=12, pieces=None):
    "A domain of them, cut by a vocabulary of its own or the one given."
    made = from_texts(
        sentences(kind, n),
        np.arange(n) % 2,
        (sentences(kind, 40, seed=1), np.arange(40) % 2),
        ("negative", "positive"),
        kind,
    )
    return made.tokenised(pieces or vocabulary(made, 70), length)


def net_for(d, width=0.05):
    return Network("text-cnn", d.shape, d.n_classes, width, vocabulary=len(d.vocabulary))


def arm(d, name="arm", mask=None, **fields):
    network = net_for(d)
    return Arm(
        name,
        network,
        d,
        **{
            "recipe": RECIPE,
            "seed": 0,
            "start": fresh(network, fields.get("seed", 0)),
            "mask": mask,
            **fields,
        },
    )


def half(network, seed=0):
    "A random mask of the embedding and the convolutions."
    weights = {n: w for n, w in fresh(network, 0).weights.items() if w.ndim > 1 and not n.startswith("head")}
    return Mask(
        {
            n: torch.rand(w.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
            for n, w in weights.items()
        }
    )


@pytest.fixture(scope="module")
def ticket():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOTTERY_DOWNLOAD", "0")
        plan = FindPlan(
            reviews("films"),
            "text-cnn",
            0.05,
            geometric(0.5, 2),
            rewind="step 3",
            recipe=RECIPE,
            seeds=1,
            scope="layer",
            controls=(),
        )
        return listen(find_tickets(plan, "cpu"))[0][-1]


# --- the vocabulary ---

CHILD = """
import hashlib, random, sys
from lottery_nb.data.texts import train_vocabulary
rows = open(sys.argv[1], encoding="utf-8").read().splitlines()
random.shuffle(rows)
print(hashlib.sha256(train_vocabulary(rows, 90).model).hexdigest())
"""


def test_two_processes_make_the_same_bytes(tmp_path):
    (tmp_path / "rows").write_text(
        "\n".join(sentences("films") + sentences("pans") + ["naïve 日本"]), encoding="utf-8"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", CHILD, tmp_path / "rows"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
        ).stdout
        for threads in ("1", "2")
    }
    assert len(said) == 1 and len(said.pop()) == 65


def test_only_training_texts_make_a_vocabulary():
    said, y = sentences("films"), np.arange(160) % 2
    plain = from_texts(said, y)
    held = {row for row in plain.found.validation.x.rows}
    marked = from_texts(
        [row + " zzzz" if row in held else row for row in said], y, (["zzzz"] * 4, [0, 1] * 2)
    )
    assert (
        len(held) > 10
        and marked.vocabulary == plain.vocabulary
        and not any("z" in piece for piece in marked.vocabulary.pieces)
    )
    assert any("zzzz" in row for row in marked.found.validation.x.rows)


def test_the_number_of_pieces_is_a_limit_and_names_say_the_same_vocabulary():
    for kind in WORDS:
        register_domain(kind, lambda kind=kind: reviews(kind))
    few, many = domain("films~bpe(50,9)"), domain("films~bpe(5000,9)")
    assert (
        len(few.vocabulary) == 50 < len(many.vocabulary) < 200
        and few.fingerprint == many.fingerprint
        and few.adapters != many.adapters
    )
    joint = [domain(f"{kind}~bpe(90,9,pans,films)") for kind in WORDS]
    assert joint[0].vocabulary == joint[1].vocabulary == vocabulary(["pans", "films"], 90) != few.vocabulary
    assert domain("films[positive,negative]@40~bpe(50,9)").classes == ("positive", "negative")


def test_a_damaged_or_read_only_cache_is_no_obstacle(tmp_path, monkeypatch):
    films = from_texts(sentences("films"), np.arange(160) % 2)
    made = vocabulary(films, 60)
    (file,) = (tmp_path / "cache" / "vocabularies").iterdir()
    content = file.read_bytes()
    for blob in (content[:-20], content[:300] + bytes([content[300] ^ 1]) + content[301:], b""):
        file.write_bytes(blob)
        data_domains.joint_vocabulary.cache_clear()
        assert vocabulary(films, 60) == made and file.read_bytes() == content
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("LOTTERY_CACHE", str(tmp_path / "a file"))
    data_domains.joint_vocabulary.cache_clear()
    assert vocabulary(films, 60) == made


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=5), st.integers(1, 20))
def test_any_text_becomes_pieces(rows, length):
    words = FILM_PIECES
    rows = [row.encode("utf-8", "ignore").decode() for row in rows]
    tokens = encode(words, Texts(rows), length)
    assert (
        tokens.shape == (len(rows), length)
        and tokens.dtype == torch.int32
        and tokens.min() >= 0
        and tokens.max() < len(words)
    )
    for row, ids in zip(tokens.tolist(), cut(words, Texts(rows)), strict=True):
        assert PAD not in ids and row == ids[:length] + [PAD] * (length - len(ids))
    assert Texts.unpacked(*Texts(rows).packed()).rows == tuple(rows)


# --- the network ---


def by_hand(model, tokens):
    "The logits of one text without padding, window by window."
    ids = [t for t in tokens if t != PAD]
    rows = model.embedding.weight[torch.tensor(ids + [PAD] * max(0, 5 - len(ids)))]
    features = []
    for conv in model.windows.convs.values():
        high = conv.kernel_size[0]
        starts = range(max(1, len(ids) - high + 1))
        answers = torch.stack(
            [torch.einsum("hf,ofh->o", rows[t : t + high], conv.weight) + conv.bias for t in starts]
        )
        features.append(answers.amax(0).relu())
    return model.head(model.hidden(torch.cat(features)).relu())


MODELS = [Network("text-cnn", (14,), 3, 0.03, vocabulary=30).build(seed).eval() for seed in range(4)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 29), max_size=14), st.integers(0, 40), st.integers(0, 3))
def test_padding_changes_nothing_and_every_text_has_a_window(ids, more, seed):
    model = MODELS[seed]
    with torch.no_grad():
        model.embedding.weight[PAD] = (
            100.0 if len(ids) >= 5 else 0.5
        )  # whatever padding is, no window of a longer text sees it
        short, long = (
            torch.tensor([ids + [PAD] * (n - len(ids))]) for n in (max(5, len(ids)), max(5, len(ids)) + more)
        )
        said = model(long)[0]
        assert torch.allclose(model(short)[0], said, atol=1e-4) and torch.allclose(
            by_hand(model, ids), said, atol=1e-4, rtol=1e-4
        )


EDGE = [
    "",
    "good",
    "bad actor in one scene",
    "good film " * 5000,
    "日本語のレビュー",
    "🙂🙃 good",
    "\n\t ",
    "<pad> <unk> bad",
]


def test_texts_of_no_word_and_of_ten_thousand_train_and_are_read(recwarn):
    made = from_texts(EDGE * 5, [0, 1] * 20, (EDGE, [0, 1] * 4), name="edges")
    d = made.tokenised(train_vocabulary(sentences("films"), 60), 12)
    assert not d.test.x[0].any() and d.test.x[3].all() and UNKNOWN in d.test.x[4] and not d.test.x[6].any()
    (result,), _ = trained(arm(d, recipe=replace(RECIPE, batch_size=8)))
    model = load(net_for(d).build(0), result.weights).eval()
    with torch.no_grad():
        said, wide = (
            model(x)
            for x in (
                d.inputs(d.test.x, torch.arange(8)),
                d.adapt((30,)).inputs(d.adapt((30,)).test.x, torch.arange(8)),
            )
        )
    fits = d.test.x[:, -1] == PAD
    assert said.isfinite().all() and fits.sum() >= 5 and torch.allclose(said[fits], wide[fits], atol=1e-5)


def test_questions_about_a_text_network_are_answered():
    network = Network("text-cnn", (20,), 2, 0.1, vocabulary=100)
    model = network.build(0)
    assert (
        head_of(model, (20,), 2) == "head"
        and "embedding.weight" in prunable(model, (20,))
        and not model.embedding.weight[PAD].any()
    )
    assert set(model.state_dict()) == {n for n, _ in model.named_parameters()}
    assert (
        from_plain(to_plain(network)) == network
        and network.parameters_count == summary(network)["size"].sum()
    )
    assert (
        small_network(network, network.parameters_count // 2).parameters_count
        < 0.7 * network.parameters_count
    )
    assert network.with_(n_classes=5).build(3).hidden.weight.equal(network.build(3).hidden.weight)
    assert "vocabulary" not in canonical(
        Network("lenet-300-100", (1, 8, 8), 2)
    ) and "reading" not in canonical(domain("digits"))


def test_several_networks_run_in_one_batch():
    models = [Network("text-cnn", (9,), 2, 0.05, vocabulary=40).build(seed).eval() for seed in range(3)]
    x = torch.randint(40, (3, 4, 9))
    stacked, _ = torch.func.stack_module_state(models)
    said = torch.func.vmap(lambda weights, tokens: torch.func.functional_call(models[0], weights, (tokens,)))(
        stacked, x
    )
    assert torch.allclose(said, torch.stack([m(t) for m, t in zip(models, x, strict=True)]), atol=1e-5)


# --- the promises, in the real engine ---


def dead(tensors, mask):
    return all((tensors[n][~bits].view(torch.int32) == 0).all() for n, bits in mask.items())


@pytest.mark.parametrize("rule", ["adam", "adamw", "sgd"])
def test_pruned_rows_of_an_embedding_stay_zero_with_their_state(rule):
    d = reviews("films", 120)
    mask = half(net_for(d))
    (result,), _ = trained(
        arm(d, mask=mask, recipe=replace(RECIPE, optimizer=rule, weight_decay=0.1), capture=tuple(range(10)))
    )
    assert len(result.captured) == 10
    for s in (*result.captured.values(), result.last):
        assert (
            dead(s.weights, mask)
            and s.optimizer.keys() == SLOTS[rule].keys()
            and all(dead(slot, mask) for slot in s.optimizer.values())
        )
        assert not s.weights["embedding.weight"][PAD].any()
    seen = d.train.x.unique().long()
    moved = result.last.weights["embedding.weight"] - arm(d).start.weights["embedding.weight"]
    assert (moved[seen[seen != PAD]][mask["embedding.weight"][seen[seen != PAD]]] != 0).float().mean() > 0.9


def test_a_training_goes_on_from_a_snapshot_bit_for_bit():
    d = reviews("films", 120)
    whole = arm(d, mask=half(net_for(d)), capture=(0, 3, 5))
    (first,), _ = trained(whole)
    for step in (0, 3):
        (again,), _ = trained(replace(whole, start=first.captured[step]))
        assert again.last.fingerprint == first.last.fingerprint and again.metrics == first.metrics
        assert same(again.captured[5].optimizer["mean"], first.captured[5].optimizer["mean"])


def test_stacked_arms_train_as_each_alone():
    d = reviews("films", 120)
    arms = [arm(d, f"s{seed}", mask=half(net_for(d), seed), seed=seed) for seed in range(3)]
    alone, together = (listen(train(arms, "cpu", layout=layout))[0] for layout in ("alone", "stacked"))
    for a, b in zip(alone, together, strict=True):
        assert all(torch.allclose(w, b.last.weights[n], atol=1e-4) for n, w in a.last.weights.items())
        assert dead(b.last.weights, b.arm.mask) and not b.last.weights["embedding.weight"][PAD].any()


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
def test_kept_counts_are_exact(scope):
    plan = FindPlan(
        reviews("films", 60),
        "text-cnn",
        0.05,
        geometric(0.35, 2),
        recipe=replace(RECIPE, epochs=1),
        seeds=1,
        scope=scope,
        controls=(),
    )
    for t in listen(find_tickets(plan, "cpu"))[0]:
        density = 0.65**t.round
        assert t.mask.kept == (
            sum(round(density * b.numel()) for b in t.mask.values())
            if scope == "layer"
            else round(density * t.mask.size)
        )


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if c != "synflow"])
def test_criteria_score_embeddings(criterion):
    plan = FindPlan(
        reviews("films", 60),
        "text-cnn",
        0.05,
        geometric(0.5, 1),
        recipe=replace(RECIPE, epochs=1),
        seeds=1,
        criterion=criterion,
        controls=(),
    )
    assert 0 < listen(find_tickets(plan, "cpu"))[0][0].mask["embedding.weight"].double().mean() < 1


# --- runs, files, transfers ---


def test_a_run_finds_and_moves_text_tickets_and_its_folder_needs_nothing_else(tmp_path, monkeypatch):
    joint = vocabulary([reviews("films"), reviews("pans")], 100)
    plan = FindPlan(
        reviews("films", pieces=joint),
        "text-cnn",
        0.05,
        geometric(0.5, 1),
        recipe=RECIPE,
        seeds=2,
        controls=("shuffled",),
    )
    found = run(plan, tmp_path / "find", device="cpu", show=False)
    assert found.status == "done" and all(t.vocabulary == joint for t in found.tickets)
    moves = TransferPlan(
        found.tickets,
        (reviews("pans"), from_texts(sentences("pans"), np.arange(160) % 2, name="bare")),
        controls=("dense", "random mask", "small dense"),
        recipe=RECIPE,
    )
    moved = run(moves, tmp_path / "move", device="cpu", show=False)
    assert (
        moved.status == "done"
        and set(moved.frame["domain"]) == {"pans", "bare"}
        and moved.frame["value"].notna().all()
    )
    monkeypatch.setenv("LOTTERY_CACHE", str(tmp_path / "nothing here"))
    for cache in (
        data_domains.read_raw,
        data_domains.found_of,
        data_domains.content_of,
        data_domains.joint_vocabulary,
    ):
        cache.cache_clear()
    for folder, made in (("find", plan), ("move", moves)):
        again = Run(tmp_path / folder)
        assert again.plan.hash == made.hash and [t.vocabulary for t in again.tickets] == [joint] * len(
            again.tickets
        )
    assert Run(tmp_path / "find").plan.source.vocabulary == joint
    more = run(moves, tmp_path / "move", device="cpu", show=False)
    assert more.frame.equals(moved.frame)


def test_a_ticket_file_brings_its_vocabulary(ticket, tmp_path, monkeypatch):
    back = Ticket.load(ticket.save(tmp_path / "t.safetensors"))
    assert (
        back.content == ticket.content
        and back.vocabulary == ticket.vocabulary
        and same(back.model().state_dict(), ticket.model().state_dict())
    )
    assert replace(ticket, vocabulary=train_vocabulary(sentences("pans"), 70)).content != ticket.content
    said = encode(back.vocabulary, Texts(["a good film"]), 12).long()
    assert torch.equal(back.model().eval()(said), ticket.model().eval()(said))


@pytest.mark.parametrize("fault", ["missing", "another", "garbage"])
def test_a_ticket_without_its_vocabulary_is_refused(ticket, fault, tmp_path, monkeypatch):
    other = {
        "missing": None,
        "another": train_vocabulary(sentences("pans"), 40),
        "garbage": ticket.vocabulary,
    }[fault]
    broken = replace(ticket, vocabulary=other)
    if fault == "garbage":
        monkeypatch.setattr(Vocabulary, "tensor", lambda self: torch.zeros(9, dtype=torch.uint8))
    with pytest.raises(LotteryError, match="vocabulary|SentencePiece") as e:
        Ticket.load(broken.save(tmp_path / "t.safetensors"))
    assert "\n" not in str(e.value)


def test_shared_pieces_keep_rows_and_masks_and_others_are_fresh(ticket):
    theirs = vocabulary(reviews("pans"), 70)
    here, there = shared_pieces(ticket.vocabulary, theirs)
    new = sorted(set(range(len(theirs))) - set(there.tolist()))
    moved, again = in_vocabulary(ticket, theirs), in_vocabulary(ticket, theirs)
    assert (
        len(there) > 10
        and len(new) > 10
        and moved.content == again.content != in_vocabulary(replace(ticket, seed=1), theirs).content
    )
    name = "embedding.weight"
    assert torch.equal(moved.mask[name][there], ticket.mask[name][here]) and moved.mask[name].shape[0] == len(
        theirs
    )
    assert abs(moved.mask[name][new].double().mean() - ticket.mask[name].double().mean()) < 0.1
    for point in ("init", "rewind", TRAINED):
        old, now = ticket.start(point).weights, moved.start(point).weights
        assert torch.equal(now[name][there], old[name][here]) and all(
            torch.equal(now[n], w) for n, w in old.items() if n != name
        )
        assert 0.7 < now[name][new].std() < 1.3
    b, _ = settle(ticket, target_domain(ticket, reviews("pans", pieces=theirs)), "rewind")
    assert torch.equal(b.mask[name][there], ticket.mask[name][here]) and torch.equal(
        b.start.weights[name][there], ticket.start().weights[name][here]
    )
    assert dead(masked(b.start, b.mask).weights, b.mask) and b.network.vocabulary == len(theirs)


def test_one_text_in_two_vocabularies_is_two_targets(ticket):
    wide = vocabulary(reviews("pans"), 200)
    plan = TransferPlan(
        [ticket],
        (reviews("pans"), reviews("pans", pieces=wide)),
        start=("rewind",),
        controls=("dense",),
        recipe=RECIPE,
    )
    arms = transfer_arms(plan)
    assert (
        len(arms) == 4
        and len({a.network.vocabulary for a in arms}) == 2
        and len({a.tags["domain"] for a in arms}) == 2
    )
    assert not any(r.failed for r in trained(*arms)[0])


def test_own_texts_are_one_domain_whatever_they_come_in(tmp_path):
    frame = pd.DataFrame({"said": sentences("films"), "kind": ["negative", "positive"] * 80})
    frame.to_csv(tmp_path / "a.csv", index=False)
    (
        frame.iloc[:90].to_csv(tmp_path / "1.csv.gz", index=False),
        frame.iloc[90:].to_csv(tmp_path / "2.csv.gz", index=False),
    )
    made = [
        from_frame(frame, text="said", label="kind"),
        from_csv(tmp_path / "a.csv", text="said", label="kind"),
        from_csv([tmp_path / "1.csv.gz", tmp_path / "2.csv.gz"], text="said", label="kind"),
    ]
    made.append(load_domain(save_domain(made[0], tmp_path / "d.safetensors")))
    assert len({d.fingerprint for d in made}) == 1 and made[0].classes == ("negative", "positive")
    assert (
        from_texts(["x " + s for s in sentences("films")], frame["kind"]).fingerprint != made[0].fingerprint
    )


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda: domain("films+blur(1)").train, "for pictures and films holds texts"),
        (lambda: domain("amazon-books+invert"), "for pictures and amazon-books holds texts"),
        (lambda: domain("digits~bpe(100)"), "for texts and digits holds pictures"),
        (lambda: domain("films~bpe(100,8,flms)"), "did you mean 'films'"),
        (lambda: domain("films~bpe(100,8,9)"), "cannot be read"),
        (lambda: domain("films~wordpiece"), "cannot be read"),
        (lambda: domain("films~bpe(4)"), "the pieces in"),
        (lambda: domain("films[great]").train, "unknown class"),
        (lambda: domain("films@9000").train, "training texts"),
        (lambda: domain("films").normalised_by([0], [1]), "no pixels"),
        (lambda: target_domain(Ticket(*[None] * 4, "films", "", (), 1, 0), "films"), "reads pictures"),
        (lambda: from_texts(["a", None] * 4, [0, 1] * 4), "text 1 of own is None"),
        (lambda: from_texts([1.5] * 4, [0, 1] * 2), "text 0 of own is 1.5"),
        (lambda: from_texts(["a"] * 3, [0, 0, 1]), "fewer than two training texts"),
        (lambda: from_texts([], []), "holds no texts"),
        (lambda: from_texts(["a"] * 4, [0, 1]), "for 4 rows"),
        (lambda: from_texts(["a"] * 4, [0, 1] * 2, (["a"], [7])), "label 7"),
        (
            lambda: listen(find_tickets(FindPlan("films", "lenet-300-100", recipe=RECIPE), "cpu")),
            "reads pictures",
        ),
        (lambda: listen(find_tickets(FindPlan("digits", "text-cnn"), "cpu")), "text-cnn needs"),
        (lambda: listen(find_tickets(FindPlan("films~bpe(60,3)", "text-cnn"), "cpu")), "at least 5"),
        (
            lambda: listen(train([arm(reviews("films"), recipe=replace(RECIPE, augment=("flip",)))], "cpu")),
            "only pictures are augmented",
        ),
        (
            lambda: listen(
                train(
                    [
                        replace(
                            arm(reviews("films")),
                            domain=reviews("films", pieces=train_vocabulary(sentences("films"), 40)),
                        )
                    ],
                    "cpu",
                )
            ),
            "use domain.tokenised",
        ),
        (
            lambda: listen(find_tickets(FindPlan("films", "text-cnn", criterion="synflow"), "cpu")),
            "sends ones through",
        ),
        (lambda: Vocabulary(b""), "no SentencePiece model"),
        (lambda: vocabulary([]), "nothing holds no texts"),
        (lambda: divergence(["films", "digits"]), "cannot be compared"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(wrong, says):
    register_domain(
        "films", lambda: from_texts(sentences("films"), np.arange(160) % 2, classes=("negative", "positive"))
    )
    with pytest.raises(LotteryError) as e:
        wrong()
    assert says in str(e.value) and "\n" not in str(e.value)


# --- how far apart ---


def test_divergence_is_what_a_direct_computation_says():
    d = [
        from_texts(sentences(kind), np.arange(160) % 2, name=name)
        for kind, name in (("films", "a"), ("films", "b"), ("pans", "c"))
    ]
    words = vocabulary(d, 100)
    table = divergence(d, words)
    counts = [
        np.bincount([i for row in cut(words, x.found.train.x) for i in row], minlength=len(words)) for x in d
    ]
    for i, p in enumerate(counts):
        for j, q in enumerate(counts):
            p1, q1 = p / p.sum(), q / q.sum()
            middle = (p1 + q1) / 2
            assert table.iloc[i, j] == pytest.approx(
                (entropy(p1, middle, base=2) + entropy(q1, middle, base=2)) / 2, abs=1e-12
            )
    assert (
        table.iloc[0, 0] == table.iloc[0, 1] == 0 < table.iloc[0, 2] < 1
        and "pieces" not in table.attrs["measured"][:3]
    )


def test_divergence_of_pictures():
    table = divergence(["digits", "digits+rotate(180)", "digits+invert"])
    grey = domain("digits").train.x.flatten().numpy() // 16
    p, q = (np.bincount(g, minlength=16) / grey.size for g in (grey, 15 - grey))
    middle = (p + q) / 2
    assert table.loc["digits", "digits+invert"] == pytest.approx(
        (entropy(p, middle, base=2) + entropy(q, middle, base=2)) / 2, abs=1e-3
    )
    assert table.loc["digits", "digits+rotate(180)"] < 0.01 and frequencies(
        domain("digits"), None
    ).sum() == pytest.approx(1)


# --- real reviews ---


@pytest.fixture
def real():
    try:
        return domain("amazon-kitchen").found
    except LotteryError as e:
        pytest.skip(str(e))


@pytest.mark.data
def test_reviews_are_balanced_and_split_once_and_for_all(real):
    splits = [real.train, real.validation, real.test]
    total = sum(map(len, splits))
    assert [round(len(s) / total, 2) for s in splits] == [0.7, 0.1, 0.2] and all(
        abs(s.y.double().mean() - 0.5) < 0.01 for s in splits
    )
    rows = [set(s.x.rows) for s in splits]
    assert (
        len(set.union(*rows)) == sum(map(len, rows)) == total
        and for_plan("amazon-kitchen~bpe(2000,60)") == "amazon-kitchen~bpe(2000,60)"
    )
    assert not set(domain("amazon-kitchen@400").found.train.x.rows) & (rows[1] | rows[2])


@pytest.mark.data
def test_a_text_network_learns_what_reviews_say(real):
    d = domain("amazon-kitchen@2000~bpe(2000,80)")
    network = net_for(d, 0.2)
    (result,), _ = trained(
        replace(
            arm(d),
            network=network,
            start=fresh(network, 0),
            recipe=Recipe("adam", lr=5e-3, epochs=5, batch_size=32, schedule="constant"),
        )
    )
    assert len(d.vocabulary) == 2000 and result.metrics["test"]["accuracy"] > 0.65
    assert fingerprint(d.vocabulary.model) == d.vocabulary.fingerprint
