"""What a package of somebody else adds: found by entry point and by `package.module:name`, in plans, JSON, shell and another process."""

import importlib
import json
import os
import subprocess
import sys

import pytest
import tiny

from lottery_nb.cli import main, make_parser, schedule_from
from lottery_nb.core import from_plain, LotteryError, Reference, to_plain
from lottery_nb.data.builtin import DOMAINS
from lottery_nb.data.domains import domain
from lottery_nb.workbench.forms import FIND, schedule_of
from lottery_nb.workbench.cell import cell_of
from lottery_nb.models.zoo import NETWORKS
from lottery_nb.models.network import Network
from lottery_nb.pruning.schedules import Schedule, ScheduleKind, SCHEDULES
from lottery_nb.pruning.criteria import CRITERIA
from lottery_nb.pruning.scopes import SCOPES
from lottery_nb.runs.reading import read_plan, Run, write_plan
from lottery_nb.plans.find import FindPlan

SOURCE = """
import torch
from torch import nn
from lottery_nb.data.own import from_arrays
from lottery_nb.pruning.scopes import SCOPES


def score(scoring): return {n: w.abs() + 1 for n, w in scoring.weights.items()}


def rows(mask, names, density): return SCOPES["layer"](mask, names, density)


def net(input_shape, n_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(9), nn.Dropout(0.1), nn.ReLU(), nn.Linear(9, n_classes))


def noise():
    x = torch.randint(256, (60, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return from_arrays(x, torch.arange(60) % 3, (x, torch.arange(60) % 3), name="whatever")
"""
POINTS = {
    "criterion": "by-score = guild:score",
    "scope": "by-row = guild:rows",
    "network": "guild-net = guild:net",
    "domain": "noise = guild:noise",
}
QUICK = [
    "--width",
    "1",
    "--fraction",
    "0.5",
    "--rounds",
    "1",
    "--epochs",
    "1",
    "--batch-size",
    "20",
    "--seeds",
    "1",
    "--controls",
    "reinit",
    "--device",
    "cpu",
    "--quiet",
]
ENTRIES = ["--criterion", "by-score", "--scope", "by-row", "--network", "guild-net", "--source", "noise"]
IMPORTS = [
    "--criterion",
    "guild:score",
    "--scope",
    "guild:rows",
    "--network",
    "guild:net",
    "--source",
    "guild:noise",
]


@pytest.fixture
def guild(tmp_path, monkeypatch):
    "An installed package, known to this process and to those that it starts."
    (tmp_path / "site").mkdir()
    tiny.installed(tmp_path / "site", monkeypatch, "guild", SOURCE, **POINTS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), *sys.path]))
    yield tmp_path / "site"
    sys.modules.pop("guild", None)
    for registry, name in (
        (CRITERIA, "by-score"),
        (SCOPES, "by-row"),
        (NETWORKS, "guild-net"),
        (DOMAINS, "noise"),
    ):
        registry.pop(name, None)


def test_entry_points_are_listed_and_nothing_is_loaded(guild):
    for registry, line in (
        (CRITERIA, "criterion"),
        (SCOPES, "scope"),
        (NETWORKS, "network"),
        (DOMAINS, "domain"),
    ):
        assert POINTS[line].partition(" ")[0] in registry.names
    assert "guild" not in sys.modules


@pytest.mark.parametrize("flags", [ENTRIES, IMPORTS], ids=["entry points", "by import"])
def test_a_run_is_found_by_the_shell_and_taken_up_by_another_process(flags, guild, tmp_path):
    assert main(["find", *flags, *QUICK, "--out", str(tmp_path / "here")]) == 0
    plan, frame, names = (
        Run(tmp_path / "here").plan,
        Run(tmp_path / "here").frame,
        [flags[1], flags[3], flags[5]],
    )
    kept = [plan.criterion, plan.scope, plan.network]
    assert [str(k) for k in kept] == names and {type(k) for k in kept} == {
        str if flags is ENTRIES else Reference
    }
    assert domain(plan.source).name == "noise" and not isinstance(
        plan.source, str
    )  # data of one's own stand in the plan
    (tmp_path / "there").mkdir()
    for file in ("plan.json", "inputs"):
        (tmp_path / "here" / file).rename(tmp_path / "there" / file)
    code = "import sys; from lottery_nb.runs.workers import work; work(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there"), "cpu"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"LOTTERY_TRUST": "guild"},  # a folder that was moved may come from anyone
    )
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "there").frame.equals(frame)


def test_what_came_by_import_is_refused_where_its_source_has_changed(guild, tmp_path):
    plan = FindPlan("digits[0-4]@200", "guild:net", 1.0, criterion="guild:score", scope="guild:rows")
    assert (
        FindPlan("digits[0-4]@200", plan.network, 1.0, criterion=plan.criterion, scope=plan.scope).hash
        == plan.hash
    )
    with pytest.raises(LotteryError, match="its source has changed"):
        CRITERIA.find(Reference("guild:score", "0" * 16))


def test_a_plan_is_read_without_the_package(guild, tmp_path):
    assert main(["find", *IMPORTS, *QUICK, "--out", str(tmp_path / "r")]) == 0
    (guild / "guild.py").unlink()
    sys.modules.pop("guild")
    assert str(read_plan(tmp_path / "r").criterion) == "guild:score"
    text = json.loads((tmp_path / "r" / "plan.json").read_text())
    assert "guild:score" in json.dumps(text)


def test_a_plan_of_a_stranger_imports_nothing(guild, tmp_path):
    (guild / "trap.py").write_text("raise SystemExit('imported')\n")
    write_plan(FindPlan("digits[0-4]@200"), tmp_path / "r")
    whole = (tmp_path / "r" / "plan.json").read_text()
    for old in ('"magnitude"', '"global"', '"lenet-300-100"', '"reinit"', '"digits[0-4]@200"'):
        assert old in whole
        (tmp_path / "r" / "plan.json").write_text(whole.replace(old, '"trap:f"'))
        with pytest.raises(LotteryError, match="without the hash"):
            read_plan(tmp_path / "r")
    (tmp_path / "r" / "plan.json").write_text(whole.replace('"digits[0-4]@200"', '"trap:f[0-4]@200"'))
    with pytest.raises(LotteryError, match="without the hash"):
        read_plan(tmp_path / "r")


def test_a_network_by_entry_point_is_one_of_the_users(guild):
    network = Network("guild-net", (1, 8, 8), 3)
    assert (
        not network.built_in
        and network.with_(head="mlp").parameters_count > network.parameters_count == 64 * 9 + 9 + 27 + 3
    )
    with pytest.raises(LotteryError, match="takes no width"):
        Network("guild-net", (1, 8, 8), 3, width=0.5).build(0)


@pytest.mark.parametrize("flag", ["--criterion", "--scope", "--network", "--source"])
def test_a_name_that_cannot_be_imported_is_one_line(flag, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, says in (
        ("nowhere:f", "put the module on the path"),
        ("tiny:nothing", "holds no 'nothing'"),
        ("tiny: f", "without blanks"),
    ):
        assert main(["find", flag, name, *QUICK]) == 2
        assert (err := capsys.readouterr().err).count("\n") == 1 and (
            says in err or flag == "--source" and "domain" in err
        )
    assert not list(tmp_path.iterdir())


# --- schedules ---

HALVING = """
from lottery_nb.pruning.schedules import Parameter, schedule_kind


@schedule_kind(
    "halving",
    Parameter("fraction", 0.5, 0.0, 1.0, help="share pruned at a time"),
    Parameter("every", 2, 1, 100, whole=True, help="rounds between"),
)
def halving(round, rounds, fraction, every):
    return (1 - fraction) ** (1 + (round - 1) // every)


def plain(round, rounds, step=0.1): return 1 - step * round
"""


@pytest.fixture
def halver(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    tiny.installed(tmp_path / "site", monkeypatch, "halver", HALVING, schedule="halving = halver:halving")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), *sys.path]))
    yield tmp_path / "site"
    sys.modules.pop("halver", None)
    SCHEDULES.pop("halving", None)


@pytest.mark.parametrize("text", ["halving", "halver:halving"])
def test_a_kind_of_schedule_works_in_plan_json_form_and_shell(text, halver):
    assert "halving" in SCHEDULES.names and "halver" not in sys.modules
    made = Schedule(text, 4, (0.5, 2.0))
    assert made.densities == (1.0, 0.5, 0.5, 0.25, 0.25) and isinstance(
        made.kind, Reference if ":" in text else str
    )
    assert (
        Schedule.of(text, rounds=4) == made == from_plain(to_plain(made))
        and from_plain(to_plain(made)).densities == made.densities
    )
    assert schedule_of(FIND | {"kind": text, "rounds": 4, "fraction": 0.5}) == made
    assert schedule_of(FIND | {"written": f"{text}(fraction=0.5, every=2)", "rounds": 4}) == made

    def read(*flags):
        return schedule_from(make_parser().parse_args(["find", *flags]))

    assert (
        read("--schedule", f"{text}(fraction=0.5, every=2)", "--rounds", "4")
        == read("--schedule", f"{text}(0.5, 2, 4)")
        == read("--schedule", f"{text}(every=2)", "--fraction", "0.5", "--rounds", "4")
        == made
    )


@pytest.mark.parametrize("text", ["halving", "halver:halving", "halver:plain"])
def test_the_written_python_makes_the_same_plan_in_another_process(text, halver, tmp_path):
    plan = FindPlan("digits[0-4]@200", schedule=Schedule.of(text, rounds=4), seeds=2)
    write_plan(plan, tmp_path / "run")
    cell = cell_of(tmp_path / "run")
    lines = [line for line in cell.splitlines() if line.startswith(("import", "from", "plan ="))]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*lines, "print(plan.hash)"])],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == plan.hash and "read_plan" not in cell


def test_a_registered_schedule_is_written_with_the_import_that_registers_it(halver, tmp_path, monkeypatch):
    monkeypatch.setattr("lottery_nb.core.entries_of", lambda kind: {})
    importlib.import_module("halver")
    write_plan(FindPlan("digits[0-4]@200", schedule=Schedule.of("halving", rounds=4)), tmp_path / "run")
    assert "import halver" in cell_of(
        tmp_path / "run"
    ).splitlines() and "Schedule('halving', 4, (0.5, 2))" in cell_of(tmp_path / "run")


def test_a_schedule_read_from_a_file_imports_nothing_until_it_is_used(halver):
    kept = to_plain(Schedule("halver:halving", 4, (0.5, 2)))
    sys.modules.pop("halver")
    read = from_plain(kept)
    assert "4 rounds" in str(read) and "halver:halving" in str(read) and "halver" not in sys.modules
    (halver / "halver.py").write_text(HALVING.replace("1 + (round - 1)", "2 + (round - 1)"))
    with pytest.raises(LotteryError, match="its source has changed"):
        read.density(1)
    with pytest.raises(LotteryError, match="without the hash"):
        from_plain(kept | {"kind": "halver:halving"})


@pytest.mark.parametrize(
    "text, says, place",
    [
        ("halving(fraction=2)", "fraction=2.0: give a number of at least 0 and at most 1", "fraction"),
        ("halving(every=1.5)", "every=1.5", "every"),
        ("halving(evry=1)", "did you mean 'every'", "kind"),
        ("halving(0.5, 2, 4, 9)", "choose one of", "kind"),
        ("halving(0.5", "cannot be read", "kind"),
        ("halvin", "did you mean 'halving'", "kind"),
        ("halving(half)", "no number", "densities"),
        ("geometric(rounds=0)", "rounds=0", "rounds"),
        ("halver:none", "holds no 'none'", "kind"),
        ("0.5, x", "no number", "densities"),
    ],
)
def test_a_schedule_that_is_written_wrongly_is_refused_at_its_place(text, says, place, halver):
    with pytest.raises(LotteryError) as e:
        Schedule.read(text)
    assert says in str(e.value) and e.value.place == f"Schedule.{place}"


def test_a_formula_that_fails_is_refused(halver):
    for formula in (lambda r, n: 1 / 0, lambda r, n: None, lambda r, n: float("nan"), lambda r, n: [][r]):
        SCHEDULES["bad"] = ScheduleKind(formula)
        try:
            with pytest.raises(LotteryError, match="bad schedule"):
                Schedule("bad", 2)
        finally:
            del SCHEDULES["bad"]
