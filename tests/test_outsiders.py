"""What a package of somebody else adds: found by entry point and by `package.module:name`, in plans, JSON, shell and another process."""
import json
import os
import subprocess
import sys

import pytest
import tiny

from lottery_nb.cli import main
from lottery_nb.core import LotteryError, Reference
from lottery_nb.domains import DOMAINS, domain
from lottery_nb.models import NETWORKS, Network
from lottery_nb.pruning import CRITERIA, SCOPES
from lottery_nb.runs import Run, read_plan, write_plan
from lottery_nb.tickets import FindPlan

SOURCE = """
import torch
from torch import nn
from lottery_nb.own_data import from_arrays
from lottery_nb.pruning import SCOPES


def score(scoring): return {n: w.abs() + 1 for n, w in scoring.weights.items()}


def rows(mask, names, density): return SCOPES["layer"](mask, names, density)


def net(input_shape, n_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(9), nn.Dropout(0.1), nn.ReLU(), nn.Linear(9, n_classes))


def noise():
    x = torch.randint(256, (60, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return from_arrays(x, torch.arange(60) % 3, (x, torch.arange(60) % 3), name="whatever")
"""
POINTS = {"criterion": "by-score = guild:score", "scope": "by-row = guild:rows", "network": "guild-net = guild:net", "domain": "noise = guild:noise"}
QUICK = ["--width", "1", "--fraction", "0.5", "--rounds", "1", "--epochs", "1", "--batch-size", "20", "--seeds", "1", "--controls", "reinit", "--device", "cpu", "--quiet"]
ENTRIES = ["--criterion", "by-score", "--scope", "by-row", "--network", "guild-net", "--source", "noise"]
IMPORTS = ["--criterion", "guild:score", "--scope", "guild:rows", "--network", "guild:net", "--source", "guild:noise"]


@pytest.fixture
def guild(tmp_path, monkeypatch):
    "An installed package, known to this process and to those that it starts."
    (tmp_path/"site").mkdir()
    tiny.installed(tmp_path/"site", monkeypatch, "guild", SOURCE, **POINTS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path/"site"), *sys.path]))
    yield tmp_path/"site"
    sys.modules.pop("guild", None)
    for registry, name in ((CRITERIA, "by-score"), (SCOPES, "by-row"), (NETWORKS, "guild-net"), (DOMAINS, "noise")):
        registry.pop(name, None)


def test_entry_points_are_listed_and_nothing_is_loaded(guild):
    for registry, line in ((CRITERIA, "criterion"), (SCOPES, "scope"), (NETWORKS, "network"), (DOMAINS, "domain")):
        assert POINTS[line].partition(" ")[0] in registry.names
    assert "guild" not in sys.modules


@pytest.mark.parametrize("flags", [ENTRIES, IMPORTS], ids=["entry points", "by import"])
def test_a_run_is_found_by_the_shell_and_taken_up_by_another_process(flags, guild, tmp_path):
    assert main(["find", *flags, *QUICK, "--out", str(tmp_path/"here")]) == 0
    plan, frame, names = Run(tmp_path/"here").plan, Run(tmp_path/"here").frame, [flags[1], flags[3], flags[5]]
    kept = [plan.criterion, plan.scope, plan.network]
    assert [str(k) for k in kept] == names and {type(k) for k in kept} == {str if flags is ENTRIES else Reference}
    assert domain(plan.source).name == "noise" and not isinstance(plan.source, str)  # data of one's own stand in the plan
    (tmp_path/"there").mkdir()
    for file in ("plan.json", "inputs"):
        (tmp_path/"here"/file).rename(tmp_path/"there"/file)
    code = "import sys; from lottery_nb.workers import work; work(*sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path/"there"), "cpu"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path/"there").frame.equals(frame)


def test_what_came_by_import_is_refused_where_its_source_has_changed(guild, tmp_path):
    plan = FindPlan("digits[0-4]@200", "guild:net", 1.0, criterion="guild:score", scope="guild:rows")
    assert FindPlan("digits[0-4]@200", plan.network, 1.0, criterion=plan.criterion, scope=plan.scope).hash == plan.hash
    with pytest.raises(LotteryError, match="its source has changed"):
        CRITERIA.find(Reference("guild:score", "0"*16))


def test_a_plan_is_read_without_the_package(guild, tmp_path):
    assert main(["find", *IMPORTS, *QUICK, "--out", str(tmp_path/"r")]) == 0
    (guild/"guild.py").unlink()
    sys.modules.pop("guild")
    assert str(read_plan(tmp_path/"r").criterion) == "guild:score"
    text = json.loads((tmp_path/"r"/"plan.json").read_text())
    assert "guild:score" in json.dumps(text)


def test_a_plan_of_a_stranger_imports_nothing(guild, tmp_path):
    (guild/"trap.py").write_text("raise SystemExit('imported')\n")
    write_plan(FindPlan("digits[0-4]@200"), tmp_path/"r")
    whole = (tmp_path/"r"/"plan.json").read_text()
    for old in ('"magnitude"', '"global"', '"lenet-300-100"', '"reinit"', '"digits[0-4]@200"'):
        assert old in whole
        (tmp_path/"r"/"plan.json").write_text(whole.replace(old, '"trap:f"'))
        with pytest.raises(LotteryError, match="without the hash"):
            read_plan(tmp_path/"r")
    (tmp_path/"r"/"plan.json").write_text(whole.replace('"digits[0-4]@200"', '"trap:f[0-4]@200"'))
    with pytest.raises(LotteryError, match="without the hash"):
        read_plan(tmp_path/"r")


def test_a_network_by_entry_point_is_one_of_the_users(guild):
    network = Network("guild-net", (1, 8, 8), 3)
    assert not network.built_in and network.with_(head="mlp").parameters_count > network.parameters_count == 64*9 + 9 + 27 + 3
    with pytest.raises(LotteryError, match="takes no width"):
        Network("guild-net", (1, 8, 8), 3, width=0.5).build(0)


@pytest.mark.parametrize("flag", ["--criterion", "--scope", "--network", "--source"])
def test_a_name_that_cannot_be_imported_is_one_line(flag, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, says in (("nowhere:f", "put the module on the path"), ("tiny:nothing", "holds no 'nothing'"), ("tiny: f", "without blanks")):
        assert main(["find", flag, name, *QUICK]) == 2
        assert (err := capsys.readouterr().err).count("\n") == 1 and (says in err or flag == "--source" and "domain" in err)
    assert not list(tmp_path.iterdir())
