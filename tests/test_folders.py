"""A run's folder: every path in one place, the plan's hash from its text alone."""

import ast
import json
import shutil

import pytest
import test_golden
from test_packaging import MODULES, PACKAGE
from tiny import plan

from lottery_nb.runs import reading as runs_reading
from lottery_nb.core import LotteryError
from lottery_nb.files import folders_in, MAX_PLAN, RunFolder
from lottery_nb.runs.reading import check_begun, check_folder, read_plan, write_plan
from lottery_nb.runs.workers import resume

FILES = {"plan.json", "events.jsonl", "how.json", "heartbeat", "worker.log"}
WORDS = {"arms", "tickets", "snapshots", "inputs", "control", "lock"}  # names that are other things, too
OTHERS = {
    ("cli", "tickets"),
    ("workbench.compare", "tickets"),
}  # folders that tickets are exported to, which are no run's


@pytest.mark.parametrize("name", test_golden.plans())
def test_the_hash_follows_from_the_text(name, tmp_path):
    p = test_golden.plans()[name]
    write_plan(p, tmp_path)
    shutil.rmtree(tmp_path / "inputs", ignore_errors=True)
    assert RunFolder(tmp_path).plan_hash() == p.hash


@pytest.mark.parametrize("name", test_golden.RUNS)
def test_the_hash_of_a_folder_of_an_earlier_version_follows_from_its_text(name):
    stored = json.loads((test_golden.HOME / "runs.json").read_text())[name]["hash"]
    assert RunFolder(test_golden.HOME / "folders" / name).plan_hash() == stored


def test_own_texts_have_the_hash_of_their_text(tmp_path):
    p = plan(source=test_golden.reviews(), network="text-cnn", width=0.05)
    write_plan(p, tmp_path)
    assert RunFolder(tmp_path).plan_hash() == p.hash


def test_a_folder_is_compared_with_a_plan_without_reading_its_tickets(tmp_path, monkeypatch):
    move = test_golden.plans()["transfer"]
    write_plan(move, tmp_path)
    monkeypatch.setattr(runs_reading, "read_plan", None)
    check_folder(move, tmp_path)
    check_begun(move, tmp_path)


def test_a_plan_written_by_hand_is_known_by_what_it_says(tmp_path):
    write_plan(plan(), tmp_path)
    file = RunFolder(tmp_path).plan
    record = json.loads(file.read_text())
    del record["floor"]
    file.write_text(json.dumps(record | {"seeds": 1}))
    assert RunFolder(tmp_path).plan_hash() != plan().hash == read_plan(tmp_path).hash
    check_folder(plan(), tmp_path)
    with pytest.raises(LotteryError, match="another plan"):
        check_folder(plan(seeds=2), tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, "{}", "{" + " " * MAX_PLAN + "}"], ids=["empty", "deep", "no plan", "long"]
)
def test_what_is_no_plan_is_refused_where_it_is_compared(text, tmp_path):
    RunFolder(tmp_path).plan.write_text(text)
    for refused in (lambda: check_folder(plan(), tmp_path), lambda: resume(tmp_path)):
        with pytest.raises(LotteryError):
            refused()


def test_folders_of_runs_are_found_by_their_plans(tmp_path):
    for name in ("b", "a", "c-1"):
        write_plan(plan(), tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert [f.path.name for f in folders_in(tmp_path)] == ["a", "b", "c-1"] and [
        f.path.name for f in folders_in(tmp_path, "c-*")
    ] == ["c-1"]
    assert folders_in(tmp_path / "nowhere") == []


def paths_in(tree):
    "Literals that name a file or folder of a run, in a module: one that is also a word only where it is a part of a path."
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and (node.value in FILES or any(node.value.endswith(f"/{f}") for f in FILES))
        ):
            yield node.value
        parts = [node.right] if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) else []
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
            "Path",
            "safe_child",
            "joinpath",
            "glob",
        ):
            parts += node.args
        yield from (p.value for p in parts if isinstance(p, ast.Constant) and p.value in WORDS)


@pytest.mark.parametrize("module", [m for m in MODULES if m != "files"])
def test_no_module_but_one_knows_the_paths_in_a_run(module):
    found = paths_in(ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")))
    assert not [name for name in found if (module, name) not in OTHERS]


def test_the_search_for_paths_finds_them():
    code = 'a = p/"plan.json"; b = Path(p, "arms"); c = p/"inputs"; d = home.glob("*/events.jsonl"); e = {"arms"}'
    assert sorted(paths_in(ast.parse(code))) == ["*/events.jsonl", "arms", "inputs", "plan.json"]
