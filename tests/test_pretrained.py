"""Weights that a network is given, and networks of torchvision, timm and Hugging Face, from a config and from a folder."""

import pickle
import time
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torch import nn

from lottery_nb.cli import main
from lottery_nb.core import canonical, expect_error, LotteryError
from lottery_nb.data.domains import domain
from lottery_nb.data.own import from_texts
from lottery_nb.engine.recipes import Recipe
from lottery_nb.files import RunFolder
from lottery_nb.models.network import Network
from lottery_nb.models.pretrained import architecture, Architecture
from lottery_nb.models.weights import Weights
from lottery_nb.plans.find import find_tickets, FindPlan
from lottery_nb.plans.tickets import Ticket
from lottery_nb.plans.transfer import TransferPlan
from lottery_nb.pruning.schedules import geometric
from lottery_nb.rewinding.snapshots import fresh
from lottery_nb.runs.reading import read_plan, Run, write_plan
from lottery_nb.runs.workers import resume
from lottery_nb.runs.writing import run
from tiny import listen, of, within

SHAPE = (1, 8, 8)
QUICK = dict(schedule=geometric(0.5, 2), recipe=Recipe(epochs=1, batch_size=16, lr=0.01), seeds=2)


class Own(nn.Module):
    "With batch norm, whose counter old files lack, and a tied weight."

    def __init__(self, n_classes):
        super().__init__()
        self.one, self.norm = nn.Linear(64, 16), nn.BatchNorm1d(16)
        self.two, self.three = nn.Linear(16, 16), nn.Linear(16, 16)
        self.three.weight, self.out = self.two.weight, nn.Linear(16, n_classes)

    def forward(self, x):
        return self.out(self.three(self.two(self.norm(self.one(x.flatten(1))))).relu())


def own(input_shape, n_classes):
    return Own(n_classes)


def plain_lenet(input_shape, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, n_classes))


def trained(network, seed=7):
    "Weights that no draw gives."
    model = network.build(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
        for name, b in model.named_buffers():
            b.add_(1 if "num" in name else 0.5)
    return model


def same(model, state):
    return all(t.equal(state[n]) for n, t in model.state_dict().items())


def forms(model, tmp_path):
    "A model's weights in every form in which people keep them."
    state, path = model.state_dict(), tmp_path
    safetensors.torch.save_model(model, path / "a.safetensors")
    torch.save(state, path / "b.pt")
    torch.save(state, path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {}}, path / "c.ckpt")
    torch.save({"model": {f"module.{n}": t for n, t in state.items()}}, path / "d.bin")
    compiled = {f"_orig_mod.{n}": t for n, t in state.items()}
    lightning = {f"net.model.{n}": t for n, t in state.items()}
    files = [path / n for n in ("a.safetensors", "b.pt", "old.pt", "c.ckpt", "d.bin")]
    return [model, state, *files, str(files[1]), compiled, lightning]


@pytest.mark.parametrize("name", ["lenet-300-100", own, plain_lenet, "logistic-regression"])
def test_given_weights_are_the_beginning_in_whatever_form_they_come(name, tmp_path):
    network = Network(name, SHAPE, 4)
    model = trained(network)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    for form in forms(model, tmp_path):
        given = network.with_(weights=form)
        assert same(given.build(0), state) and same(given.build(1), state), form
        assert given.architecture == network and not same(given.architecture.build(0), state)
    assert all(given.weights == Weights.of(state) for given in [network.with_(weights=model)])


def test_half_precision_and_old_batch_norm_are_taken_as_they_are():
    network = Network(own, SHAPE, 4)
    state = trained(network).state_dict()
    half = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    built = network.with_(weights=half).build(0).state_dict()
    assert all(built[n].equal(t.half().float()) for n, t in state.items() if t.is_floating_point())
    old = {n: t for n, t in state.items() if "num_batches" not in n}
    assert network.with_(weights=old).build(0).norm.running_mean.equal(state["norm.running_mean"])


def test_what_does_not_fit_is_refused_in_a_sentence_that_names_the_first():
    network = Network(own, SHAPE, 4)
    state = trained(network).state_dict()

    def refused(text, **changed):
        given = {n: t for n, t in {**state, **changed}.items() if t is not None}
        with expect_error(text, "Network.weights"):
            network.with_(weights=given)

    refused("'one.bias' is missing", **{"one.bias": None})
    refused("'norm.running_var' is missing", **{"norm.running_var": None})
    refused("'out.bias' is missing", **{"out.bias": None})
    refused("'out.bias', 'out.weight' are missing", **{"out.bias": None, "out.weight": None})
    refused("'four.weight' is unknown to the network", **{"four.weight": torch.ones(2)})
    refused("('one.weight' is (16, 63) and should be (16, 64))", **{"one.weight": torch.ones(16, 63)})
    refused("('out.weight' is (4, 15) and should be (4, 16))", **{"out.weight": torch.ones(4, 15)})
    refused("'one.bias' is of another kind of number", **{"one.bias": torch.ones(16, dtype=torch.int64)})
    refused("weights['one.bias'] holds NaN or infinity", **{"one.bias": torch.full((16,), torch.inf)})
    refused("weights['one.bias'] is torch.complex64", **{"one.bias": torch.ones(16, dtype=torch.cfloat)})
    refused("'two.weight' is tied to 'three.weight' with other values", **{"three.weight": torch.ones(16, 16)})
    with expect_error("give a state_dict"):
        network.with_(weights={})
    with expect_error("'aaa.weight', 'bbb.weight', 'ccc.weight' and 1 more are unknown"):
        more = {f"{c * 3}.weight": torch.ones(1) for c in "abcd"}
        network.with_(weights={**state, **more})


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a file ran')",)


def test_a_file_that_is_no_plain_tensors_is_refused_and_nothing_in_it_runs(tmp_path):
    network = Network(own, SHAPE, 4)
    model = trained(network)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"one.weight": Evil()}))
    torch.save({"state_dict": {"one.weight": Evil()}}, tmp_path / "evil.pt")
    torch.save(model, tmp_path / "whole.pt")
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    torch.save(model.state_dict(), tmp_path / "cut.pt")
    safetensors.torch.save_model(model, tmp_path / "cut.safetensors")
    for name in ("cut.pt", "cut.safetensors"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1000])
    (tmp_path / "empty.pt").write_bytes(b"")
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(LotteryError) as refused:
            network.with_(weights=file)
        assert refused.value.place == "Network.weights" and "\n" not in str(refused.value), file
    with expect_error("is no file"):
        network.with_(weights=tmp_path)
    with expect_error("there is no file nowhere.pt"):
        network.with_(weights=tmp_path / "nowhere.pt")


def test_a_head_for_other_classes_is_drawn_by_the_seed_and_this_is_said():
    network = Network(own, SHAPE, 4)
    state = trained(network).state_dict()
    five = Network(own, SHAPE, 5, weights=state)
    built = [five.begun(seed) for seed in (0, 1)]
    assert built[0][1] == ("out.weight", "out.bias") and built[0][0].one.weight.equal(state["one.weight"])
    assert not built[0][0].out.weight.equal(built[1][0].out.weight)
    assert built[0][0].out.weight.equal(five.architecture.build(0).out.weight)
    mlp = network.with_(weights=state, head="mlp").begun(0)
    assert set(mlp[1]) == {f"out.{k}.{p}" for k in (0, 2) for p in ("weight", "bias")}
    asked = network.with_(weights=Weights.of(state, drawn=["two.*", "three.*"]))
    assert set(asked.begun(0)[1]) == {f"{n}.{p}" for n in ("two", "three") for p in ("weight", "bias")}
    with expect_error("Weights.drawn='tow.*'"):
        network.with_(weights=Weights.of(state, drawn=["tow.*"]))
    with expect_error("all of it is drawn"):
        network.with_(weights=Weights.of(state, drawn=["*"]))


def find_of(state, **more):
    return FindPlan("digits[0-3]@120", own, weights=state, **QUICK | more)


def test_a_search_starts_all_seeds_from_given_weights_and_draws_controls_from_the_architecture(tmp_path):
    network = Network(own, SHAPE, 4)
    state = trained(network).state_dict()
    controls = ("reinit", "random mask", "shuffled")
    found = run(find_of(state, controls=controls), tmp_path / "run", "cpu", show=False)
    given = of("WeightsGiven", found.events)
    assert len(given) == 1 and given[0].content == Weights.of(state).content and not given[0].drawn
    for t in found.tickets:
        init = t.snapshots["init"]
        assert all(w.equal(state[n]) for n, w in (*init.weights.items(), *init.buffers.items()))
        assert canonical(t.network) == canonical(network) and t.network.weights is None
        assert same(
            t.model("init"), {**state, **t.mask.apply({n: state[n] for n in t.mask})} | tied(t, state)
        )
    plan = TransferPlan(
        [t for t in found.tickets if t.round == 2],
        ["digits[4-7]@120"],
        start=("rewind", "fresh"),
        controls=("reinit", "dense"),
    )
    arms = {a.name: a for a in arms_of(plan)}
    for seed in (0, 1):
        drawn = fresh(network, seed, "reinit").weights["one.weight"]
        assert (
            arms[f"digits[0-3]@120/digits[4-7]@120/reinit/fresh/r02/s{seed}"]
            .start.weights["one.weight"]
            .equal(drawn)
        )
        dense = arms[f"digits[0-3]@120/digits[4-7]@120/dense/rewind/s{seed}"].start.weights["one.weight"]
        assert dense.equal(state["one.weight"]) and not drawn.equal(dense)


def tied(t, state):
    "What the second name of the tied weight holds."
    return {
        "three.weight": t.mask.apply({n: state[n] for n in t.mask}).get("two.weight", state["two.weight"])
    }


def arms_of(plan):
    from lottery_nb.plans.transfer import transfer_arms

    return transfer_arms(plan)


def test_controls_of_a_search_are_drawn_as_if_no_weights_were_given(monkeypatch):
    from lottery_nb.plans import find as room

    starts = []

    def spy(arms, *rest):
        starts.append({a.name: a.start for a in arms})
        return train(arms, *rest)

    train = room.train
    monkeypatch.setattr(room, "train", spy)
    network = Network(own, SHAPE, 4)
    state = trained(network).state_dict()
    listen(find_tickets(find_of(state, controls=("reinit", "random mask")), "cpu"))
    for seed in (0, 1):
        drawn = fresh(network, seed, "reinit").weights
        for role in ("reinit", "random mask"):
            assert all(w.equal(drawn[n]) for n, w in starts[1][f"r01/{role}/s{seed}"].weights.items())
        assert all(w.equal(state[n]) for n, w in starts[0][f"r00/dense/s{seed}"].weights.items())
        assert all(w.equal(state[n]) for n, w in starts[1][f"r01/ticket/s{seed}"].weights.items())


def test_a_plan_knows_weights_by_content_and_a_run_keeps_them_once(tmp_path):
    network = Network(own, SHAPE, 4)
    model = trained(network)
    for name in ("a.pt", "b.pt"):
        torch.save(model.state_dict(), tmp_path / name)
    a, b = (find_of(tmp_path / name, controls=(), seeds=1) for name in ("a.pt", "b.pt"))
    other = find_of(trained(network, 8).state_dict(), controls=(), seeds=1)
    assert a.hash == b.hash == find_of(model, controls=(), seeds=1).hash
    assert (
        len({a.hash, other.hash, FindPlan("digits[0-3]@120", own, **QUICK | dict(controls=(), seeds=1)).hash})
        == 3
    )
    assert str(tmp_path) not in canonical(a)
    torch.save(trained(network, 8).state_dict(), tmp_path / "a.pt")
    assert find_of(tmp_path / "a.pt", controls=(), seeds=1).hash == other.hash
    first = run(a, tmp_path / "run", "cpu", show=False)
    (tmp_path / "b.pt").unlink()
    kept = [f for f in (tmp_path / "run" / "inputs").iterdir()]
    assert [f.stem for f in kept] == [Weights.of(model).content]
    assert read_plan(tmp_path / "run").hash == a.hash and first.whole
    with expect_error("holds the run of another plan"):
        run(other, tmp_path / "run", "cpu", show=False)


def test_a_worker_of_its_own_finds_the_weights_and_a_changed_file_is_refused(tmp_path):
    state = Network("lenet-300-100", SHAPE, 4, 0.1).build(5).state_dict()
    plan = FindPlan("digits[0-3]@120", width=0.1, weights=state, **QUICK | dict(controls=(), seeds=1))
    whole = run(plan, tmp_path / "whole", "cpu", show=False)
    write_plan(plan, tmp_path / "run")
    resume(tmp_path / "run", "cpu")
    with within(300):
        while Run(tmp_path / "run").status != "done":
            time.sleep(0.2)
    assert [t.content for t in Run(tmp_path / "run").tickets] == [t.content for t in whole.tickets]
    write_plan(plan, tmp_path / "third")
    file = RunFolder(tmp_path / "third").input(plan.weights.content)
    Weights.of({n: t + 1 for n, t in state.items()}).save(file)
    with expect_error("holds other weights than the plan began with"):
        run(read_plan(tmp_path / "third"), tmp_path / "third", "cpu", show=False)
    file.unlink()
    with expect_error(f"there is no file {file.name}"):
        run(read_plan(tmp_path / "third"), tmp_path / "third", "cpu", show=False)
    assert not (tmp_path / "third" / "events.jsonl").exists()


def test_the_shell_takes_weights(tmp_path, capsys):
    torch.save(Network("lenet-300-100", SHAPE, 4, 0.1).build(5).state_dict(), tmp_path / "w.pt")
    words = ["find", "--source", "digits[0-3]@120", "--width", "0.1", "--seeds", "1", "--controls", "none"]
    words += ["--rounds", "1", "--epochs", "1", "--device", "cpu", "--quiet", "--weights"]
    assert main([*words, str(tmp_path / "w.pt"), "--out", str(tmp_path / "run")]) == 0
    assert of("WeightsGiven", Run(tmp_path / "run").events)
    assert main([*words, str(tmp_path / "v.pt"), "--out", str(tmp_path / "no")]) == 2
    assert "there is no file v.pt" in capsys.readouterr().err and not (tmp_path / "no").exists()
    assert main([*words, "none", "--out", str(tmp_path / "drawn")]) == 0
    assert not of("WeightsGiven", Run(tmp_path / "drawn").events)


# Networks of libraries

HF = {
    "bert": dict(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    ),
    "gpt2": dict(n_embd=16, n_layer=2, n_head=2, n_positions=40),
    "roberta": dict(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=42,
        pad_token_id=1,
    ),
    "distilbert": dict(dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=40),
    "vit": dict(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    ),
}
TEXTS = ["a thin plot", "a thick plot and a good pan", "good film", "bad film of a thin plot , bad"] * 16
LABELS = [0, 1, 1, 0] * 16
WORDS = sorted({w for t in TEXTS for w in t.split()})


def hf_config(kind, **more):
    transformers = pytest.importorskip("transformers")
    sizes = HF[kind] | ({} if kind == "vit" else {"vocab_size": 4 + len(WORDS)}) | more
    return transformers.AutoConfig.for_model(kind, **sizes)


def save_tokenizer(folder, pad=0):
    tokenizers = pytest.importorskip("tokenizers")
    marks = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    if pad:
        marks[0], marks[pad] = marks[pad], marks[0]
    vocabulary = {w: i for i, w in enumerate([*marks, *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    made.save(str(folder / "tokenizer.json"))
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "A saved model of each kind, with two classes and its tokenizer."
    transformers = pytest.importorskip("transformers")
    auto = {"vit": transformers.AutoModelForImageClassification}
    made = {}
    for kind in HF:
        made[kind] = tmp_path_factory.mktemp(kind)
        torch.manual_seed(3)
        auto.get(kind, transformers.AutoModelForSequenceClassification).from_config(
            hf_config(kind)
        ).save_pretrained(made[kind])
        if kind != "vit":
            save_tokenizer(made[kind], hf_config(kind).pad_token_id or 0)
    return made


def pictures(classes="0-2"):
    return domain(f"digits[{classes}]@60").adapt((3, 32, 32))


def reviews(folder=None, length=12):
    test = (TEXTS[:16], LABELS[:16])
    return from_texts(TEXTS, LABELS, test, name="films", tokenizer=folder, length=length if folder else None)


def end_to_end(plan, target, tmp_path, **how):
    "Two rounds and a transfer; gives the tickets."
    found = run(plan, tmp_path / "find", "cpu", show=False)
    assert found.status == "done" and not found.info["failed"] and {t.round for t in found.tickets} == {1, 2}
    t = found.tickets[-1]
    assert t.density == pytest.approx(0.25, abs=0.01)
    carried = TransferPlan([t], [target], **{"start": ("rewind", "fresh"), "controls": ("dense",)} | how)
    moved = run(carried, tmp_path / "transfer", "cpu", show=False)
    assert moved.status == "done" and not moved.info["failed"]
    again = Ticket.load(t.save(tmp_path / "t.safetensors"))
    assert again.content == t.content
    for name, bits in t.mask.items():
        assert not again.model().get_parameter(name)[~bits].any()
    return found.tickets


SMALL = dict(
    schedule=geometric(0.5, 2), recipe=Recipe(epochs=1, batch_size=20, lr=0.01), seeds=1, controls=("reinit",)
)
VIT = "image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32"
PICTURES = {
    "torchvision:resnet18": "torchvision",
    "torchvision:mobilenet_v3_small(width_mult=0.25)": "torchvision",
    f"torchvision:VisionTransformer({VIT})": "torchvision",
    "timm:vit_tiny_patch16_224(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)": "timm",
    "timm:convnext_atto(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16))": "timm",
}


@pytest.mark.parametrize("name", PICTURES, ids=lambda name: name.partition("(")[0])
def test_networks_of_pictures_go_from_search_to_transfer(name, tmp_path):
    pytest.importorskip(PICTURES[name])
    plan, target = FindPlan(pictures(), name, **SMALL), pictures("3-6")
    if name == "torchvision:resnet18":  # eleven million weights
        plan, few = replace(plan, controls=()), {"start": ("rewind",), "controls": ()}
    else:
        few = {}
    tickets = end_to_end(plan, target, tmp_path, **few)
    assert isinstance(tickets[0].network.name, Architecture)


@pytest.mark.parametrize("kind", HF)
@pytest.mark.parametrize("way", ["config", "folder", "pretrained"])
def test_networks_of_hugging_face_go_from_search_to_transfer(kind, way, folders, tmp_path):
    data = pictures() if kind == "vit" else reviews(folders[kind])
    name = architecture(hf_config(kind)) if way == "config" else f"hf:{folders[kind]}"
    plan = FindPlan(data, name, weights="pretrained" if way == "pretrained" else None, **SMALL)
    assert str(folders[kind]) not in canonical(plan)
    tickets = end_to_end(plan, data, tmp_path)
    if way == "pretrained":
        state = safetensors.torch.load_file(folders[kind] / "model.safetensors")
        init, classes = tickets[0].snapshots["init"].weights, {"vit": 3}.get(kind, 2)
        drawn = of("WeightsGiven", Run(tmp_path / "find").events)[0].drawn
        assert all(init[n].equal(t) for n, t in state.items() if n in init and n not in drawn)
        assert bool(drawn) == (classes != 2)
