"""The benchmark: what goes to whom, what is done with an answer, and with none. Nothing here asserts a time."""

import importlib
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from lottery_nb.bench import race as bench_race
from lottery_nb.bench import measure as bench_measure
from lottery_nb.bench import pages as bench_page
from lottery_nb.bench.measure import job_for, Piece, pieces, SIZES, timed, write_pictures
from lottery_nb.bench.pages import page, read, reasons, table
from lottery_nb.bench.race import answer_of, NotMeasured
from lottery_nb.cli import main
from lottery_nb.core import expect_error, LotteryError

SCRIPTS = Path(__file__).parents[1] / "bench" / "peers"
ANSWER = """echo '{"seconds": 1.5, "kept": 1, "accuracy": 0.5, "memory_mb": 1}'"""
QUICK = ["bench", "--quick", "--quiet", "--repeats", "1", "--device", "cpu"]


def results_in(folder):
    [path] = Path(folder).glob("*.json")
    return read(path)


def script(path, text):
    "A program that a peer's Python could be."
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_without_peers_their_rows_say_so(tmp_path, capsys):
    assert main([*QUICK, "--work", "a", "--out", str(tmp_path)]) == 0
    found = results_in(tmp_path)
    told = found["pieces"]["a"]["outcomes"]
    assert (
        len(told["ours, fp32"]["seconds"]) == 1
        and found["machine"]["cores"] >= 1
        and found["machine"]["versions"]["torch"]
    )
    assert all(
        told[peer]["seconds"] == [] and told[peer]["kind"] == "not measured" for peer in bench_measure.PEERS
    )
    rows = table(found)
    assert set(rows["result"]) == {"not measured"} and set(rows["spread"]) == {""}
    assert "not measured" in capsys.readouterr().out
    html = next(tmp_path.glob("*.html")).read_text(encoding="utf-8")
    assert "these figures mean nothing" in html and "--setup" in html


def test_a_broken_peer_is_reported_and_never_filled(tmp_path):
    broken = script(tmp_path / "python", "echo '{\"seconds\": 1}'; echo 'out of luck' >&2; exit 1")
    out = tmp_path / "out"
    assert main([*QUICK, "--work", "a", "--out", str(out), "--peers", broken]) == 0
    found = results_in(out)
    rows = table(found)
    assert set(
        rows.loc[rows["against"].isin(bench_measure.PEERS) & rows["work"].str.contains("find"), "result"]
    ) == {"failed"}
    said = reasons(found)
    assert len(said) == 3 and all("status 1: out of luck" in s and "\n" not in s for s in said)
    assert len(found["pieces"]["a"]["outcomes"]["ours, fp32"]["seconds"]) == 1


@pytest.mark.parametrize(
    ("says", "kind", "why"),
    [
        ("echo nonsense", "failed", "no answer with seconds"),
        ("true", "failed", "no answer with seconds"),
        ("echo '[1]'", "failed", "no answer"),
        ('echo \'{"seconds": "1"}\'', "failed", "no answer"),
        ("echo '{\"seconds\": 1}'", "failed", "no answer with seconds, kept, accuracy"),
        (ANSWER.replace("1.5", "NaN"), "failed", "no answer"),
        (ANSWER.replace("1.5", "-1"), "failed", "no answer"),
        ('echo \'{"missing": "fasterai"}\'', "not measured", "fasterai is not installed"),
        ("exec sleep 20", "failed", "not done after 0.3 s"),
        ("kill -9 $$", "failed", "status -9"),
    ],
)
def test_answers_that_are_none(tmp_path, says, kind, why):
    with pytest.raises(NotMeasured, match=why) as e:
        answer_of("peer", [script(tmp_path / "peer", says)], {}, limit=0.3 if "sleep" in says else 60)
    assert e.value.kind == kind


def test_the_last_line_is_the_answer(tmp_path):
    assert (
        answer_of("peer", [script(tmp_path / "peer", "echo 'Sparsifying weights'; " + ANSWER)], {})["seconds"]
        == 1.5
    )


def test_a_program_that_is_not_there():
    with pytest.raises(NotMeasured, match="cannot be started"):
        answer_of("peer", ["/no/such/program"], {})
    with expect_error("it is no program"):
        bench_race.bench(("a",), peers="/no/such/program")


@pytest.mark.parametrize("kind", ["find", "epoch", "transfer"])
def test_plain_loop_prunes_to_the_same_count(tmp_path, monkeypatch, kind):
    piece = Piece(
        "a",
        "few pictures",
        kind,
        "digits@200",
        "lenet-300-100",
        (("ours", "plain loop"),),
        (0.8, 0.5)[: 1 if kind == "epoch" else 2],
        width=0.1,
        batch_size=32,
    )
    job = job_for(piece, write_pictures(piece.source, tmp_path), "cpu", 1) | {"precision": "fp32"}
    monkeypatch.syspath_prepend(SCRIPTS)
    common, plain = importlib.import_module("common"), importlib.import_module("plain")
    theirs = common.Job(job).timed(getattr(plain, kind))
    if kind == "transfer":
        job["tickets"] = bench_measure.make_tickets(piece, "digits@200", tmp_path)
    ours = timed(job)
    assert theirs["kept"] == ours["kept"] == round(piece.densities[-1] * theirs["size"])
    assert 0 < theirs["accuracy"] <= 1 and 0 < ours["accuracy"] <= 1 and theirs["memory_mb"] > 0


def test_peers_look_for_their_best_settings(tmp_path):
    piece = Piece(
        "b",
        "few pictures",
        "epoch",
        "digits@200",
        "lenet-300-100",
        (("ours", "plain loop"),),
        (0.8,),
        width=0.1,
        batch_size=32,
        tune=64,
    )
    data = write_pictures(piece.source, tmp_path)
    job = job_for(piece, data, "cpu", 1) | {
        "package": str(bench_race.PACKAGE.parent),
        "precision": "fp32",
        "tune": 64,
        "worker_choices": [0, 1],
        "thread_choices": [1],
    }
    found = answer_of("plain loop", [sys.executable, str(SCRIPTS / "plain.py")], job, ("workers", "threads"))
    assert [(t["workers"], t["threads"]) for t in found["tried"]] == [(0, 1), (1, 1)]
    assert found["workers"] == min(found["tried"], key=lambda t: t["seconds"])["workers"]


def test_a_missing_library_is_told_apart_from_a_failure():
    block = (
        f"import sys, runpy; sys.modules.update(fastai=None); sys.path.insert(0, {str(SCRIPTS)!r}); "
        f"runpy.run_path({str(SCRIPTS / 'with_fasterai.py')!r})"
    )
    with pytest.raises(NotMeasured, match="fastai is not installed") as e:
        answer_of("fasterai", [sys.executable, "-c", block], {})
    assert e.value.kind == "not measured"


def made_up(ours, theirs):
    piece = pieces("quick")["a"][0]
    more = {"kept": 10, "accuracy": 0.5, "memory_mb": 1.0}
    told = {
        "ours, fp32": {"seconds": ours, **more},
        "plain loop": {"seconds": theirs, **more},
        **{n: {"seconds": [], "kind": "failed", "why": f"{n} broke"} for n in ("Lightning", "fasterai")},
    }
    return {
        "machine": {
            "sizes": "quick",
            "device": "d<1>",
            "threads": 1,
            "date": "2025-01-01",
            "versions": {"torch": "2"},
        },
        "alone": {},
        "pieces": {"a": {"about": vars(piece) | {"compare": piece.compare}, "outcomes": told}},
    }


def test_ratios_are_taken_within_a_repeat():
    row = table(made_up([1.0, 4.0, 2.0], [8.0, 8.0, 20.0])).iloc[0]
    assert (row["result"], row["spread"], row["repeats"]) == (
        "8 × as fast",
        "2 to 10",
        "3",
    )  # 4 between the medians


def test_works_are_measured_one_after_another(tmp_path, monkeypatch):
    monkeypatch.setattr(
        bench_race.Stand,
        "turn",
        lambda self, name: self.outcomes[name].update(seconds=[2.0], kept=1, accuracy=0.5, memory_mb=1.0) or "",
    )
    monkeypatch.setattr(bench_race, "make_tickets", lambda *_: [])
    for letter in ("a", "c"):
        bench_race.bench((letter,), device="cpu", out=tmp_path, quick=True, show=False)
    assert set(results_in(tmp_path)["pieces"]) == {"a", "c LeNet", "c ResNet"}


def test_contenders_take_turns(tmp_path, monkeypatch):
    turns = []
    monkeypatch.setattr(bench_race.Stand, "turn", lambda self, name: turns.append(name) or "")
    bench_race.bench(("a",), device="cpu", out=tmp_path, repeats=2, quick=True, show=False)
    assert turns == 2 * list(pieces("quick")["a"][0].contenders)


def test_a_figure_that_was_not_taken_is_not_drawn():
    html = page(made_up([], []))
    assert (
        "not measured" in html and "times as fast" not in html and "d&lt;1&gt;" in html and "d<1>" not in html
    )


@pytest.mark.parametrize("kind", ["growth", "peak", "cost"])
def test_what_only_we_are_asked(tmp_path, capsys, kind):
    size = SIZES["quick"] | {
        "arms": (1, 2),
        "resnet_arms": (1,),
        "peak": "digits@60",
        "cost": ("digits@60", 1),
    }
    data = str(write_pictures("digits@60", tmp_path))
    job = {
        "work": kind,
        "device": "cpu",
        "threads": 1,
        "sizes": size,
        "seeds": 2,
        "domains": dict.fromkeys(("lenet-300-100", "resnet-20", "peak", "cost"), data),
        "batch": {"lenet-300-100": 16, "resnet-20": 16},
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    bench_measure.work(str(tmp_path / "job.json"))
    told = json.loads(capsys.readouterr().out)
    if kind == "growth":
        assert [(p["what"], p["x"]) for p in told["points"]] == [
            ("arms", 1),
            ("arms", 2),
            ("arms", 1),
            *(("width", w) for w in (0.5, 1, 2, 4)),
            *(("rounds", r) for r in (1, 2, 4, 8)),
        ]
    if kind == "peak":
        assert [r["row"] for r in told["rows"]] == [
            row for row, network, *_ in bench_measure.SPEEDS if network != "resnet-18"
        ] and min(told["peaks"].values()) > 0
    if kind == "cost":
        assert {len(a) for a in told["accuracy"].values()} == {2} and told["validation pictures"] == 30


def test_the_cost_of_a_precision_is_an_interval_over_seeds():
    told = {
        "repeats": [
            {"default": "bf16", "accuracy": {"default": [0.50, 0.52, 0.51], "fp32": [0.51, 0.51, 0.51]}}
        ]
    }
    row = bench_page.cost_row(told)
    assert row["result"].startswith("0.0 ± ") and "3 seeds" in row["spread"]
    assert bench_page.cost_row({"kind": "failed", "repeats": []})["result"] == "failed"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda d: bench_race.bench(("a", "z")), "work 'z'"),
        (lambda d: bench_race.bench(("a",), repeats=0), "repeats"),
        (lambda d: read(d / "none.json"), "there is no file none.json"),
        (lambda d: bench_race.setup(d), "is not empty"),
    ],
)
def test_refusals(tmp_path, call, text):
    (tmp_path / "file").write_text("")
    with pytest.raises(LotteryError, match=text):
        call(tmp_path)


def test_other_files_are_no_results(tmp_path):
    (tmp_path / "r.json").write_text('{"machine": {}}')
    with pytest.raises(LotteryError, match="has no results"):
        table(tmp_path / "r.json")


def test_it_measures_on_a_bare_machine():
    blocked = ["plotly", "ipywidgets", "anywidget", "scipy", "sklearn", "pyarrow", "tqdm"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked})); "
        "from lottery_nb.bench.pages import table, page; "
        f"import json; r = json.loads({json.dumps(made_up([1.0], [2.0]), default=str)!r}); "
        "assert 'as fast' in page(r)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_sizes_have_the_same_fields_for_every_device():
    assert len({frozenset(s) for s in SIZES.values()}) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(
            replace(p, seeds=1).contenders == p.contenders
            for s in SIZES
            for group in pieces(s).values()
            for p in group
        )


def test_a_results_file_of_version_0_1_is_read(tmp_path):
    outcomes = {"ours": {"seconds": [1.0]}, "peer": {"seconds": [3.0]}}
    before = {"machine": {}, "pieces": {"a": {"about": {}, "told": outcomes}}, "alone": {}}
    (tmp_path / "old.json").write_text(json.dumps(before))
    (tmp_path / "new.json").write_text(json.dumps(before).replace('"told"', '"outcomes"'))
    old, new = (bench_page.read(tmp_path / name) for name in ("old.json", "new.json"))
    assert old == new and bench_page.ratios(old["pieces"]["a"]["outcomes"], "ours", "peer") == [3.0]


@pytest.mark.parametrize(
    "text",
    [
        '{"machine": {}, "pieces": [1], "alone": {}}',
        '{"machine": {}, "pieces": {"a": 1}, "alone": {}}',
        '{"machine": {}, "pieces": null, "alone": {}}',
        "[" * 100_000,
        "[1]",
        '{"machine": {}, "pieces": {}, "alone": {}}' + " " * (1 << 24),
    ],
)
def test_a_results_file_that_is_none_is_refused_in_a_sentence(text, tmp_path):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(LotteryError, match="give the .json file that it wrote"):
        read(tmp_path / "b.json")


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_a_results_file_is_a_file(make, tmp_path):
    make(tmp_path / "b.json")
    with pytest.raises(LotteryError, match="is no file"):
        read(tmp_path / "b.json")
