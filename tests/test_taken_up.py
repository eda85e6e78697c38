"""Runs that are taken up again after someone changed something: the plan, the code, a file, the layout, or the worker itself."""
import importlib
import os
import signal
import sys
import time

import pytest
from tiny import of, plan

from lottery_nb.cli import main
from lottery_nb.core import LotteryError
from lottery_nb.runs import Run, record, run, write_plan
from lottery_nb.training import Recipe
from lottery_nb.workers import pause, resume, start, stop


def until(folder, kind, count, **how):
    "Run a plan up to the nth event of a kind, and close it there."
    stream = record(plan(seeds=3, controls=("reinit",)), folder, "cpu", **how)
    for e in stream:
        count -= type(e).__name__ == kind
        if count == 0:
            break
    stream.close()


def frames(found): return found.frame.sort_values(["arm", "epoch", "split", "metric"]).reset_index(drop=True)


@pytest.mark.parametrize("asked, other", [("alone", "stacked"), ("stacked", "alone"), (2, "auto")])
def test_a_run_keeps_the_layout_that_it_began_with(asked, other, tmp_path):
    whole = run(plan(seeds=3, controls=("reinit",)), tmp_path/"whole"/"run", "cpu", show=False, layout=asked)
    until(tmp_path/"cut"/"run", "ArmDone", 4, layout=asked)
    again = run(plan(seeds=3, controls=("reinit",)), tmp_path/"cut"/"run", "cpu", show=False, layout=other)
    groups = lambda r: sorted({tuple(sorted(g)) for e in of("Layout", r.events) for g in e.groups})
    assert groups(again) == groups(whole) and frames(again).equals(frames(whole))
    assert max(len(g) for g in groups(whole)) == {"alone": 1, "stacked": 6, 2: 2}[asked]


def test_one_by_one_is_not_taken_from_a_stack(tmp_path):
    run(plan(seeds=3), tmp_path/"a", "cpu", show=False, layout="stacked")
    alone = run(plan(seeds=3), tmp_path/"b", "cpu", show=False, layout="alone")
    assert not of("ArmTaken", alone.events) and {len(g) for e in of("Layout", alone.events) for g in e.groups} == {1}


@pytest.mark.parametrize("harm", ["cut", "pickle", "snapshot"])
def test_a_damaged_ticket_is_written_again(harm, tmp_path):
    whole = run(plan(seeds=3, controls=("reinit",)), tmp_path/"whole"/"run", "cpu", show=False)
    until(tmp_path/"cut"/"run", "TicketFound", 4)
    ticket = sorted((tmp_path/"cut"/"run"/"tickets").iterdir())[0]
    target = max((tmp_path/"cut"/"run"/"snapshots").iterdir(), key=lambda p: p.stat().st_size) if harm == "snapshot" else ticket
    target.write_bytes(b"\x80\x04." if harm == "pickle" else target.read_bytes()[:200])
    again = run(plan(seeds=3, controls=("reinit",)), tmp_path/"cut"/"run", "cpu", show=False)
    assert [t.content for t in again.tickets] == [t.content for t in whole.tickets]


def test_a_finished_run_whose_plan_was_changed_is_refused(tmp_path, capsys):
    found = run(plan(), tmp_path/"run", "cpu", show=False)
    file = found.path/"plan.json"
    file.write_text(file.read_text().replace('"epochs": 2', '"epochs": 3'))
    assert main(["run", str(found.path), "--quiet"]) == 2 and "not the plan that this run began with" in capsys.readouterr().err


def test_a_run_whose_plan_was_changed_is_not_taken_up(tmp_path, capsys):
    until(tmp_path/"run", "ArmDone", 1)
    file, before = tmp_path/"run"/"plan.json", (tmp_path/"run"/"events.jsonl").read_bytes()
    file.write_text(file.read_text().replace('"epochs": 2', '"epochs": 3'))
    assert main(["resume", str(tmp_path/"run")]) == 2 and "not the plan that this run began with" in capsys.readouterr().err
    assert (tmp_path/"run"/"events.jsonl").read_bytes() == before and Run(tmp_path/"run").status == "stopped"


def test_a_network_whose_code_was_changed_is_trained_again(tmp_path, monkeypatch):
    code = ("import torch\nfrom torch import nn\n\nclass Net(nn.Module):\n    def __init__(self, shape, n):\n        super().__init__()\n        self.a, self.b = nn.Linear(64, 8), nn.Linear(8, n)\n"
            "    def forward(self, x): return self.b(torch.relu(self.a(x.flatten(1))))\n\ndef make(input_shape, n_classes): return Net(input_shape, n_classes)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path/"somenet.py").write_text(code)
    importlib.invalidate_caches()
    first = run(plan(network="somenet:make", width=1.0), tmp_path/"runs"/"a", "cpu", show=False)
    (tmp_path/"somenet.py").write_text(code.replace("torch.relu", "torch.tanh") + "\n# changed\n")
    importlib.reload(sys.modules["somenet"])
    second = run(plan(network="somenet:make", width=1.0), tmp_path/"runs"/"b", "cpu", show=False)
    assert not of("ArmTaken", second.events) and first.plan.hash != second.plan.hash
    assert not frames(first)["value"].equals(frames(second)["value"])


def test_a_worker_is_told_the_layout(tmp_path):
    found = start(plan(seeds=3), tmp_path/"run", "cpu", layout="alone")
    deadline = time.monotonic() + 60
    while found.status != "done" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found.status == "done" and {len(g) for e in of("Layout", found.events) for g in e.groups} == {1}
    with pytest.raises(LotteryError, match="layout"):
        start(plan(seeds=2), tmp_path/"other", "cpu", layout="foo")
    assert not (tmp_path/"other").exists()


def test_a_worker_that_is_suspended_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("lottery_nb.runs.DEAD_AFTER", 1.5)
    found = start(plan(recipe=Recipe(epochs=5000, batch_size=32)), tmp_path/"run", "cpu")
    pid = int((found.path/"heartbeat").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        while found.status == "running":
            time.sleep(0.1)
        assert found.status == "interrupted"
        for act in (resume, stop, pause):
            with pytest.raises(LotteryError, match=f"process {pid} holds .*kill -CONT {pid}"):
                act(found.path)
    finally:
        os.kill(pid, signal.SIGCONT)
    while found.status != "running":
        time.sleep(0.1)
    assert stop(found.path).status == "stopped"


def test_a_worker_that_fails_at_once_says_why_in_the_shell(tmp_path, capsys):
    write_plan(plan(), tmp_path/"run")
    file = tmp_path/"run"/"plan.json"
    file.write_text(file.read_text().replace("digits[0-4]@200", "digits[0-4]+no_such_shift@200"))
    assert main(["resume", str(tmp_path/"run")]) == 2 and "no_such_shift" in capsys.readouterr().err
