"""Weights that a network is given, and networks of torchvision, timm and Hugging Face, from a config and from a folder."""

import copy
import json
import pickle
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torch import nn

from lottery_nb.cli import main
from lottery_nb.core import canonical, expect_error, LotteryError
from lottery_nb.data.builtin import DOMAINS
from lottery_nb.data.domains import domain, register_domain
from lottery_nb.data.own import from_texts
from lottery_nb.engine.recipes import Recipe
from lottery_nb.engine.training import finish
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
from tiny import HF, hf_sizes, listen, of, within

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
    averaged = torch.optim.swa_utils.AveragedModel(model).state_dict()
    return [model, state, *files, str(files[1]), compiled, lightning, averaged]


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
    refused(
        "'two.weight' is tied to 'three.weight' with other values", **{"three.weight": torch.ones(16, 16)}
    )
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

MORE = {"roberta": dict(pad_token_id=1), "vit": dict(patch_size=8)}
TEXTS = ["a thin plot", "a thick plot and a good pan", "good film", "bad film of a thin plot , bad"] * 16
LABELS = [0, 1, 1, 0] * 16
WORDS = sorted({w for t in TEXTS for w in t.split()})


def hf_config(kind, **more):
    transformers = pytest.importorskip("transformers")
    words = {} if kind == "vit" else {"vocab_size": 4 + len(WORDS)}
    sizes = words | MORE.get(kind, {}) | more
    places = 42 if kind == "roberta" else 40  # which counts them from behind its padding
    return transformers.AutoConfig.for_model(kind, **hf_sizes(kind, places, **sizes))


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


def test_a_folder_is_known_by_its_content_and_not_by_its_path(folders, tmp_path):
    def plan(folder):
        return FindPlan(reviews(folder), f"hf:{folder}", weights="pretrained", **SMALL)

    other = shutil.copytree(folders["bert"], tmp_path / "elsewhere")
    first = plan(folders["bert"])
    assert first.hash == plan(other).hash and first.network.name == "bert"
    torch.manual_seed(9)
    changed = safetensors.torch.load_file(other / "model.safetensors")
    changed["classifier.bias"] += 1
    safetensors.torch.save_file(changed, other / "model.safetensors", {"format": "pt"})
    assert plan(other).network == first.network and plan(other).hash != first.hash
    said = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(said | {"hidden_act": "relu"}))
    assert plan(other).network != first.network
    (other / "config.json").write_text(
        json.dumps(said | {"use_cache": True, "id2label": {"0": "a", "1": "b"}})
    )
    assert plan(other).network == first.network


def test_code_in_a_folder_never_runs(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = shutil.copytree(folders["bert"], tmp_path / "evil")
    for name in ("configuration_evil.py", "modeling_evil.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    said = json.loads((folder / "config.json").read_text())
    asks = {
        "AutoConfig": "configuration_evil.Evil",
        "AutoModelForSequenceClassification": "modeling_evil.Evil",
    }
    (folder / "config.json").write_text(
        json.dumps(said | {"auto_map": asks, "attn_implementation": "evil/kernel"})
    )
    known = Network(f"hf:{folders['bert']}", (12,), 2, weights="pretrained")
    assert Network(f"hf:{folder}", (12,), 2, weights="pretrained") == known
    (folder / "config.json").write_text(json.dumps(said | {"auto_map": asks, "model_type": "evil"}))
    with expect_error("hf has no network 'evil'", "Network.name"):
        Network(f"hf:{folder}", (12,), 2).build(0)
    (folder / "model.safetensors").unlink()
    torch.save({"bert.pooler.dense.bias": Evil()}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(said))
    with expect_error("hf:bert cannot be had", "Network.weights"):
        Network(f"hf:{folder}", (12,), 2, weights="pretrained")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", [k for k in HF if k != "vit"])
def test_texts_and_their_mask_are_what_transformers_itself_makes_of_them(kind, folders):
    transformers = pytest.importorskip("transformers")
    folder, padding = folders[kind], hf_config(kind).pad_token_id or 0
    data = reviews(folder, 8)
    made = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    made.pad_token = made.convert_ids_to_tokens(padding)
    texts = list(data.found.train.x.rows)
    theirs = made(texts, padding="max_length", truncation=True, max_length=8, return_tensors="pt")
    ours = data.inputs(data.train.x, torch.arange(len(texts)))
    assert (
        ours.equal(theirs["input_ids"]) and (ours[:, -1] == padding).any() and (ours[:, -1] != padding).any()
    )
    model = (
        Network(f"hf:{folder}", (8,), 2, vocabulary=len(data.vocabulary), weights="pretrained")
        .build(0)
        .eval()
    )
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager"
    ).eval()
    loaded.config.pad_token_id = padding
    known = loaded(theirs["input_ids"], attention_mask=theirs["attention_mask"]).logits
    torch.testing.assert_close(model(ours), known, rtol=0, atol=0)
    assert model.state_dict().keys() == loaded.state_dict().keys()
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert twin(ours).equal(model(ours)) and isinstance(twin, type(loaded))
    assert model(input_ids=ours, attention_mask=theirs["attention_mask"]).logits.equal(model(ours))


def test_a_text_that_holds_the_padding_is_masked_behind_its_end_only(folders):
    config = hf_config("gpt2")
    model = architecture(config)((6,), 2, config.vocab_size).eval()
    tokens = torch.tensor([[3, 0, 4, 0, 0, 0]])
    known = model(input_ids=tokens, attention_mask=torch.tensor([[1, 1, 1, 0, 0, 0]])).logits
    assert model(tokens).equal(known)
    assert model(torch.zeros(1, 6, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize(
    "kind, cls, drawn",
    [
        ("bert", "BertForMaskedLM", {"bert.pooler.dense.weight", "classifier.weight"}),
        ("gpt2", "GPT2LMHeadModel", {"score.weight"}),
        ("distilbert", "DistilBertModel", {"pre_classifier.weight", "classifier.weight"}),
        ("vit", "ViTModel", {"classifier.weight"}),
    ],
)
def test_what_a_checkpoint_of_pre_training_lacks_is_drawn_and_told(kind, cls, drawn, tmp_path, capfd):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    made = getattr(transformers, cls)(hf_config(kind))
    made.save_pretrained(tmp_path)
    shape = (3, 32, 32) if kind == "vit" else (12,)
    capfd.readouterr()
    network = Network(f"hf:{tmp_path}", shape, 3, weights="pretrained")
    assert capfd.readouterr() == ("", "")
    (first, names), (second, _) = network.begun(0), network.begun(1)
    assert {n for n in names if n.endswith("weight")} == drawn
    body = {n.removeprefix(f"{first.base_model_prefix}."): t for n, t in made.state_dict().items()}
    taken = {n.removeprefix(f"{first.base_model_prefix}."): n for n in first.state_dict() if n not in names}
    assert len(taken) > 10
    for name, own_name in taken.items():
        assert first.state_dict()[own_name].equal(body[name]) and second.state_dict()[own_name].equal(
            body[name]
        )
    for name in drawn:
        assert not first.state_dict()[name].equal(second.state_dict()[name])
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    lost = next(n for n in saved if "attention" in n or "attn" in n)
    safetensors.torch.save_file(
        {n: t for n, t in saved.items() if n != lost}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with expect_error(f"lacks '{first.base_model_prefix}", "Network.weights"):
        Network(f"hf:{tmp_path}", shape, 3, weights="pretrained")


def refused(text, place, *network, **more):
    with expect_error(text, place):
        Network(*network, **more).build(0)


def test_what_a_network_of_a_library_cannot_take_is_one_sentence(folders):
    for library in ("torchvision", "timm", "transformers"):
        pytest.importorskip(library)
    shape = "Network.input_shape"
    refused("reads 3 channels and the pictures have 1", shape, "torchvision:resnet18", (1, 28, 28), 10)
    refused(
        "reads 224×224 pixels and the pictures have 32×32: name the size, torchvision:vit_b_16(image_size=32)",
        shape,
        "torchvision:vit_b_16",
        (3, 32, 32),
        10,
    )
    refused(
        "name the size, timm:vit_tiny_patch16_224(img_size=32)",
        shape,
        "timm:vit_tiny_patch16_224",
        (1, 32, 32),
        10,
    )
    refused("reads 3 channels and the pictures have 1", shape, f"hf:{folders['vit']}", (1, 32, 32), 10)
    refused("reads 32×32 pixels and the pictures have 28×28", shape, f"hf:{folders['vit']}", (3, 28, 28), 10)
    refused("reads 40 pieces of a text at most and was given 41", shape, f"hf:{folders['bert']}", (41,), 2)
    refused(
        f"knows {4 + len(WORDS)} pieces and the texts have 99",
        "Network.vocabulary",
        f"hf:{folders['bert']}",
        (9,),
        2,
        vocabulary=99,
    )
    refused("hf:vit classifies pictures and was given texts", "Network.name", f"hf:{folders['vit']}", (9,), 2)
    refused(
        "hf:bert classifies texts and was given pictures",
        "Network.name",
        f"hf:{folders['bert']}",
        (3, 32, 32),
        2,
    )
    refused("timm:resnet18 reads pictures and was given texts", "Network.name", "timm:resnet18", (9,), 2)
    refused("did you mean 'timm:resnet18'?", "Network.name", "timm:resnet_18", (3, 32, 32), 10)
    refused("cannot be had (TypeError", "Network.name", "timm:resnet18(colour=3)", (3, 32, 32), 10)
    refused("it takes no width", "Network.width", "timm:resnet18", (3, 32, 32), 10, width=0.5)
    refused(
        "hf:bert has no pre-trained weights here",
        "Network.weights",
        "hf:bert(hidden_size=16)",
        (9,),
        2,
        weights="pretrained",
    )
    with expect_error("did you mean 'timm'"):
        Architecture("timn", "resnet18")


def test_a_library_that_is_not_there_is_one_sentence_with_its_extra(folders, monkeypatch):
    names = {"timm": "timm:resnet18", "transformers": f"hf:{folders['bert']}"}
    for package, name in names.items():
        with monkeypatch.context() as m:
            for module in [n for n in sys.modules if n.partition(".")[0] == package]:
                m.setitem(sys.modules, module, None)
            m.setitem(sys.modules, package, None)
            shape = (9,) if package == "transformers" else (3, 32, 32)
            extra = {"transformers": "hf"}.get(package, package)
            refused(f"pip install 'lottery_nb[{extra}]'", "Network.name", name, shape, 2)
    with monkeypatch.context() as m:
        m.setitem(sys.modules, "tokenizers", None)
        with expect_error("pip install 'lottery_nb[hf]'"):
            reviews(folders["bert"])


def test_a_plan_of_such_a_network_is_read_without_its_library(folders, tmp_path):
    plan = FindPlan(pictures(), "timm:resnet18", **SMALL)
    write_plan(plan, tmp_path / "timm")
    write_plan(FindPlan(reviews(), f"hf:{folders['bert']}", weights="pretrained", **SMALL), tmp_path / "hf")
    code = f"""
        import sys
        from lottery_nb.runs.reading import read_plan
        plans = [read_plan(folder) for folder in ({str(tmp_path / "timm")!r}, {str(tmp_path / "hf")!r})]
        print([str(p.network) for p in plans], [m for m in ("timm", "transformers", "tokenizers") if m in sys.modules])
    """
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "['timm:resnet18', 'hf:bert'] []"


def test_weights_of_torchvision_and_their_head_for_thousand_classes(monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(1)
    state = torchvision.models.mobilenet_v3_small().state_dict()
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: state)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    network = Network("torchvision:mobilenet_v3_small", (3, 32, 32), 5, weights="pretrained")
    model, drawn = network.begun(0)
    assert drawn == ("classifier.3.weight", "classifier.3.bias")
    assert all(t.equal(state[n]) for n, t in model.state_dict().items() if n not in drawn)

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with expect_error(
        "cannot be had (OSError: no route to host): give a file as weights=", "Network.weights"
    ):
        Network("torchvision:mobilenet_v3_small", (3, 32, 32), 5, weights="pretrained")
    with expect_error("lenet-300-100 has no pre-trained weights", "FindPlan.weights"):
        FindPlan(weights="pretrained")


def test_a_folder_of_timm_is_its_name_and_its_weights(tmp_path):
    timm = pytest.importorskip("timm")
    sizes = dict(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    torch.manual_seed(1)
    made = timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes)
    timm.models.save_for_hf(made, tmp_path, model_args=sizes)
    network = Network(f"timm:{tmp_path}", (3, 32, 32), 3, weights="pretrained")
    assert network.name.name == "vit_tiny_patch16_224" and same(network.build(1), made.state_dict())
    assert network.with_(n_classes=4).begun(0)[1] == ("head.weight", "head.bias")
    for file in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / file).unlink(missing_ok=True)
    with expect_error("there is no file model.safetensors", "Network.weights"):
        Network(f"timm:{tmp_path}", (3, 32, 32), 3, weights="pretrained")
    drawn = next(n for n in timm.list_models() if not timm.models.get_pretrained_cfg(n).has_weights)
    with expect_error(f"timm has no pre-trained weights of {drawn!r}", "Network.weights"):
        Network(f"timm:{drawn}", (3, 224, 224), 3, weights="pretrained")


def test_weights_of_a_network_in_a_plan_are_those_of_the_plan(folders):
    state = Network(own, SHAPE, 4).build(3).state_dict()
    inside = FindPlan("digits[0-3]@120", Network(own, SHAPE, 4, weights=state))
    beside = FindPlan("digits[0-3]@120", Network(own, SHAPE, 4), weights=state)
    assert inside.hash == beside.hash and beside.weights is None
    assert replace(beside, seeds=2).network.weights == Weights.of(state)


def test_a_target_without_a_tokenizer_is_cut_by_that_of_the_ticket(folders, tmp_path):
    plan = FindPlan(
        reviews(folders["bert"]), f"hf:{folders['bert']}", weights="pretrained", **SMALL | dict(controls=())
    )
    found = run(plan, tmp_path / "find", "cpu", show=False)
    (arm, *_) = arms_of(TransferPlan(found.tickets[-1:], [reviews()], start=("rewind",), controls=()))
    assert arm.domain.vocabulary == reviews(folders["bert"]).vocabulary and arm.domain.vocabulary.borrowed
    assert arm.domain.train.x.shape[1:] == (12,)
    with expect_error("fills texts up with piece 1 and hf:bert"):
        finish(find_tickets(replace(plan, source=reviews(folders["roberta"])), "cpu"))


def test_a_domain_by_name_takes_a_tokenizer(folders, monkeypatch):
    register_domain("films", reviews)
    there = domain(f"films~hf({folders['bert']}, 9)")
    assert (
        there.vocabulary == reviews(folders["bert"]).vocabulary and there.shape == (9,) and not there.portable
    )
    assert domain(f"films~hf({folders['bert']})").shape == (40,)
    with expect_error("has no tokenizer.json"):
        domain("films~hf(nowhere)")
    with expect_error("the length of texts=41"):
        domain(f"films~hf({folders['bert']},41)")
    DOMAINS.pop("films")


def test_a_name_on_the_hub_brings_config_and_head(folders, monkeypatch):
    asked = []

    def cached(name, file, **_):
        asked.append(name)
        return str(folders["bert"] / file)

    monkeypatch.setattr("transformers.utils.cached_file", cached)
    network = Network("hf:somebody/some-bert", (9,), 2)
    assert (
        network == Network(f"hf:{folders['bert']}", (9,), 2) and network.name.origin == "somebody/some-bert"
    )
    assert set(asked) == {"somebody/some-bert"}

    def offline(name, file, **_):
        raise OSError("no connection")

    monkeypatch.setattr("transformers.utils.cached_file", offline)
    with expect_error("hf:somebody/some-bert is no folder, and not to be had from the hub (no connection)"):
        Network("hf:somebody/some-bert", (9,), 2)
    with expect_error("cannot be read: write its name"):
        Network("hf:some bert", (9,), 2)


def test_a_head_of_a_saved_classifier_is_taken_with_its_classes(folders):
    vit = Network(f"hf:{folders['vit']}", (3, 32, 32), 2, weights="pretrained")
    state = safetensors.torch.load_file(folders["vit"] / "model.safetensors")
    assert not vit.begun(0)[1] and vit.build(0).classifier.weight.equal(state["classifier.weight"])
    assert set(vit.with_(n_classes=3).begun(0)[1]) == {"classifier.weight", "classifier.bias"}
