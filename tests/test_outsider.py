"""The outsider's test: a package that nothing in lottery_nb knows of (tests/outsider) adds one thing of each kind, and each goes
from plan to JSON, worker, log, frame, figure, report, form, cell and shell, by the name of its entry point and as `package.module:name`."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs
from tiny import of, within

from lottery_nb.cli import main
from lottery_nb.core import canonical, from_plain, LotteryError, Reference
from lottery_nb.events import event_from, EVENTS, Unknown
from lottery_nb.data.builtin import DOMAINS
from lottery_nb.engine.executors import EXECUTORS
from lottery_nb.workbench.forms import FIND, find_plan, refusals
from lottery_nb.workbench.cell import cell_of, code_of, imports_for
from lottery_nb.runs.listeners import LISTENERS
from lottery_nb.models.zoo import NETWORKS
from lottery_nb.workbench.fields import Form
from lottery_nb.workbench.find import find_fields
from lottery_nb.workbench.carry import transfer_fields
from lottery_nb.results.plots import accuracy_plot, layer_density_plot, training_plot, transfer_plot
from lottery_nb.pruning.schedules import Schedule, SCHEDULES
from lottery_nb.pruning.criteria import CRITERIA
from lottery_nb.pruning.scopes import SCOPES
from lottery_nb.results.words import plan_table
from lottery_nb.results.report import findings, write_report
from lottery_nb.rewinding.points import ImportedPoint, POINTS
from lottery_nb.rewinding.controls import CONTROLS, role_of
from lottery_nb.runs.reading import read_plan, Run, write_plan
from lottery_nb.runs.writing import run
from lottery_nb.results.stats import summary
from lottery_nb.plans.find import find_tickets, FindPlan
from lottery_nb.engine.recipes import Recipe
from lottery_nb.plans.formats import FORMATS
from lottery_nb.plans.transfer import TransferPlan
from lottery_nb.runs.workers import glance, start

SITE = Path(__file__).parent / "outsider"
REGISTRIES = (CRITERIA, SCOPES, SCHEDULES, CONTROLS, POINTS, NETWORKS, DOMAINS, EVENTS, LISTENERS, EXECUTORS, FORMATS)
NAMES = {  # kind of thing: (name of its entry point, name by import)
    "source": ("stripes", "outsider.parts:stripes"),
    "network": ("bowtie", "outsider.parts:bowtie"),
    "schedule": ("staircase", "outsider.parts:staircase"),
    "criterion": ("far-from-start", "outsider.parts:score"),
    "scope": ("of-four", "outsider.parts:blocks"),
    "rewind": ("percent", "outsider.parts:percent"),
    "kept": ("turned", "outsider.parts:turned"),
    "drawn": ("redrawn", "outsider.parts:redrawn"),
    "listener": ("notebook-keeper", "outsider.parts:keep"),
    "executor": ("last-first", "outsider.parts:last_first"),
    "format": ("names-only", "outsider.parts:names_only"),
}
HOW = {"entry points": 0, "by import": 1}
RECIPE = Recipe(lr=0.05, epochs=2, batch_size=60)


def names(how):
    "Kind of thing -> its name, one way or the other."
    return {kind: pair[HOW[how]] for kind, pair in NAMES.items()}


@pytest.fixture(scope="module", autouse=True)
def installed():
    "The package is on the path, of this process and of those that it starts; nobody has imported it. Forgotten afterwards."
    before = [set(registry) for registry in REGISTRIES]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SITE)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(SITE), *sys.path]))
        yield
    for module in [m for m in sys.modules if m.partition(".")[0] == "outsider"]:
        del sys.modules[module]
    for registry, known in zip(REGISTRIES, before, strict=True):
        for name in set(registry) - known:
            del registry[name]


def same(a, b):
    "Equal plans; data of one's own are equal where their content is."
    return a.hash == b.hash and replace(a, source="digits") == replace(b, source="digits")


def a_plan(how):
    "A search of a second that uses everything."
    n = names(how)
    return FindPlan(
        n["source"],
        n["network"],
        schedule=Schedule(n["schedule"], 2, (0.5, 2)),
        recipe=RECIPE,
        seeds=2,
        criterion=n["criterion"],
        scope=n["scope"],
        rewind=f"{n['rewind']} 50",
        controls=(n["kept"], n["drawn"]),
    )


@pytest.fixture(scope="module", params=HOW)
def how(request):
    return request.param


@pytest.fixture(scope="module")
def plan(how):
    return a_plan(how)


@pytest.fixture(scope="module")
def found(how, plan, tmp_path_factory):
    "The plan, run by a worker."
    n = names(how)
    folder = tmp_path_factory.mktemp("runs") / f"find-{HOW[how]}"
    started = start(plan, folder, "cpu", listeners=(n["listener"],), executor=n["executor"])
    with within(120):
        while started.status == "running":
            time.sleep(0.1)
    return started


@pytest.fixture(scope="module")
def moved(found):
    "Its tickets on another domain, with its controls."
    plan = TransferPlan(
        found.tickets, "digits[0-2]@100", ("rewind", "fresh"), controls=(*found.plan.controls, "dense")
    )
    return run(plan, found.path.parent / f"move-{found.path.name}", "cpu", show=False)


# --- plan and JSON ---


def test_entry_points_are_listed(how):
    places = {
        "criterion": CRITERIA,
        "scope": SCOPES,
        "schedule": SCHEDULES,
        "kept": CONTROLS,
        "drawn": CONTROLS,
        "rewind": POINTS,
        "network": NETWORKS,
        "source": DOMAINS,
        "listener": LISTENERS,
        "executor": EXECUTORS,
        "format": FORMATS,
    }
    for kind, registry in places.items():
        assert NAMES[kind][0] in registry.names and registry.find(NAMES[kind][HOW[how]])
    assert "GroupBegan" in EVENTS.names


def test_a_plan_goes_to_json_and_back(how, plan, tmp_path):
    write_plan(plan, tmp_path)
    bare = replace(plan, source="digits")  # data of one's own lie beside the plan
    for told, again in ((plan, read_plan(tmp_path)), (bare, from_plain(json.loads(canonical(bare))))):
        assert same(again, told)
    kept = (plan.network, plan.criterion, plan.scope, plan.schedule.kind, *plan.controls)
    assert {type(k) for k in kept} == {(str, Reference)[HOW[how]]}
    n = names(how)
    assert [str(k) for k in kept] == [
        n[kind] for kind in ("network", "criterion", "scope", "schedule", "kept", "drawn")
    ]
    assert plan.schedule.densities == (1.0, 0.75, 0.5)
    assert type(plan.rewind) is (str, ImportedPoint)[HOW[how]] and str(plan.rewind) == f"{n['rewind']} 50"


# --- worker, log, frame ---


def test_a_worker_runs_it_and_logs_it(how, found, plan):
    assert found.status == "done", found.events[-1]
    assert same(read_plan(found.path), plan) and glance(found.path)["status"] == "done"
    began = of("GroupBegan", found.events)
    assert [type(e).__module__ for e in began] == ["outsider.parts"] * len(began) and len(began) >= 3
    assert f"group 0 begins, with {' and '.join(began[0].arms)}" in {e.says() for e in began}
    assert all(e.sound() for e in began)
    heard = (found.path / "kept.txt").read_text().split()
    assert heard == [type(e).__name__ for e in found.events]


def test_an_event_is_read_back_where_its_package_was_imported():
    sys.modules.pop("outsider.parts", None)
    EVENTS.pop("GroupBegan", None)
    line = '{"t":1.5,"event":"GroupBegan","place":0,"arms":["a"]}'
    assert "GroupBegan" in EVENTS.names and event_from(line) == Unknown("GroupBegan", dict(place=0, arms=["a"]))
    assert "outsider.parts" not in sys.modules  # a log imports nothing
    assert EVENTS["GroupBegan"].__module__ == "outsider.parts"  # asking for it does
    read = event_from(line)
    assert (
        type(read).__module__ == "outsider.parts"
        and read.says() == "group 0 begins, with a"
        and EVENTS["GroupBegan"] is type(read)
    )


def test_its_frame_says_what_was_trained(found):
    tags = found.frame[["role", "start", "round", "density"]].drop_duplicates()
    assert {role: set(tags.loc[tags["role"] == role, "start"]) for role in tags["role"].unique()} == {
        "dense": {"fresh"},
        "ticket": {"rewind"},
        "turned": {"rewind"},
        "redrawn": {"fresh"},
    }
    assert {r: round(d, 2) for r, d in zip(tags["round"], tags["density"], strict=True)} == {
        0: 1.0,
        1: 0.75,
        2: 0.5,
    }
    assert {"turned", "redrawn"} <= set(summary(found)["role"])


def test_a_transfer_tags_its_controls_too(moved):
    tags = moved.frame[["role", "start"]].drop_duplicates()
    starts = {role: set(tags.loc[tags["role"] == role, "start"]) for role in ("turned", "redrawn")}
    assert starts == {"turned": {"rewind", "fresh"}, "redrawn": {"fresh"}}
    dense = moved.frame.loc[moved.frame["role"] == "dense", ["round", "density"]].drop_duplicates()
    assert dense.values.tolist() == [[0, 1.0]]


def test_its_tickets_go_back_to_the_rewind_point(found):
    assert {t.start().step for t in found.tickets} == {2}  # half of two epochs of two steps
    assert all(set(t.snapshots) == {"init", "source-trained", "rewind"} for t in found.tickets)
    assert all(t.start().fingerprint != t.start("init").fingerprint for t in found.tickets)


# --- figures, report ---


def test_figures_show_it(found, moved):
    traces = {t.name: t for t in accuracy_plot(found).data if t.name}
    assert (
        traces["turned"].line.color == "#0B7A75" == role_of("turned").colour
        and traces["turned"].marker.symbol == "star"
    )
    assert traces["redrawn"].line.color == role_of("redrawn").colour
    assert len({t.line.color for t in traces.values()}) == len(traces)
    assert training_plot(found, "turned").data and transfer_plot(moved).data
    assert layer_density_plot(found).data


def test_a_report_tells_it(how, found, moved, tmp_path):
    page = write_report(tmp_path / "report.html", [found, moved]).read_text(encoding="utf-8")
    said = dict(plan_table(found.plan).itertuples(index=False, name=None))
    n = names(how)
    fields = ("source", "network", "criterion", "scope", "sparsity", "controls", "controls")
    for field, kind in zip(
        fields, ("source", "network", "criterion", "scope", "schedule", "kept", "drawn"), strict=True
    ):
        name = "stripes" if kind == "source" else n[kind]  # data of one's own go by their name
        assert name in said[field] and name in page
    assert said["rewind to"] == f"{n['rewind']} 50" and said["rewind to"] in page
    assert f"scope {n['scope']} follow the pattern so many of every four" in page or how == "by import"
    assert "unstructured" not in page.replace(get_plotlyjs(), "")
    assert len(findings(found)) == 1 and "turned" in findings(found)[0]


# --- forms and cell ---


def test_forms_offer_it():
    form = Form(find_fields(), lambda: None)
    for field in ("source", "network", "criterion", "scope", "rewind", "kind"):
        kind = "schedule" if field == "kind" else field
        form.fields[field].control.value = NAMES[kind][0]
    for box in form.fields["controls"].control.box.children:
        box.value = box.name in (NAMES["kept"][0], NAMES["drawn"][0])
    values = form.values
    assert not refusals(values)
    plan = find_plan(values)
    assert (plan.network, plan.criterion, plan.scope, plan.schedule.kind) == (
        "bowtie",
        "far-from-start",
        "of-four",
        "staircase",
    )
    assert plan.controls == ("turned", "redrawn") and plan.rewind == "percent 1"
    assert (
        plan.schedule.numbers == (0.3, 2) and plan.recipe.steps is None
    )  # a number of the schedule has that name, too


def test_a_form_holds_it(how, plan):
    n = names(how)
    given = {field: n[field] for field in ("source", "network", "criterion", "scope", "rewind")}
    values = (
        FIND
        | given
        | dict(
            controls=(n["kept"], n["drawn"]),
            written=f"{n['schedule']}(0.5, 2, 2)",
            rewind_at=50,
            lr=0.05,
            epochs=2,
            batch_size=60,
            seeds=2,
        )
    )
    assert not refusals(values) and same(find_plan(values), plan)


def test_the_form_of_transfers_offers_it():
    assert {"turned", "redrawn"} <= {
        box.name for box in transfer_fields()["How"]["controls"].control.box.children
    }


def test_a_part_that_does_not_fit_is_refused_at_its_field(how):
    n = names(how)
    bad = [(field, n[field] + "s") for field in ("criterion", "scope", "network", "source", "rewind")]
    bad += [
        ("controls", (n["kept"] + "s",)),
        ("written", f"{n['schedule']}(0.5, 0)"),
        ("written", f"{n['schedule']}(3, 2)"),
    ]
    for field, value in bad:
        assert list(refusals(FIND | {field: value})) == [field]


def test_a_cell_makes_an_equal_plan(found, plan):
    lines = cell_of(found.path).splitlines()
    there = {}
    exec("\n".join(line for line in lines if not line.startswith(("found =", "accuracy_plot("))), there)  # noqa: S102
    assert same(there["plan"], plan)


def test_a_plan_without_data_of_its_own_is_written_out(how):
    n = names(how)
    plan = replace(a_plan(how), source="digits[0-4]@200", recipe=Recipe())
    code = code_of(plan)
    there = {}
    exec("\n".join([*imports_for(code), f"plan = {code}"]), there)  # noqa: S102
    assert there["plan"] == plan and n["criterion"] in code


# --- elsewhere ---


def test_what_is_missing_is_refused_before_anything_is_trained(tmp_path):
    write_plan(
        FindPlan(
            "digits[0-4]@200",
            criterion="magnitude",
            scope="layer",
            controls=("shuffled",),
            rewind="source-trained",
        ),
        tmp_path,
    )
    whole = (tmp_path / "plan.json").read_text()
    for name in ("lenet-300-100", "geometric", "magnitude", "layer", "shuffled", "source-trained"):
        (tmp_path / "plan.json").write_text(whole.replace(f'"{name}"', '"of somebody else"'))
        plan = read_plan(tmp_path)  # it can be looked at
        with pytest.raises(LotteryError, match="(unknown .* |rewind=)'of somebody else'"):
            next(find_tickets(plan, "cpu"))


STRANGER = """
import json, sys
from lottery_nb.runs.reading import Run
from lottery_nb.results.report import write_report
from lottery_nb.workbench.follow import Follower
out = []
for folder in sys.argv[1:]:
    found, follower = Run(folder), Follower(folder)
    follower.read()
    began = [e for e in found.events if e.says().startswith("GroupBegan")]
    write_report(folder + "/stranger.html", [found])
    kinds = sorted({type(e).__name__ for e in began})
    out.append(dict(status=found.status, whole=found.whole, kinds=kinds, says=began[0].says(),
                    events=len(found.events), rows=len(found.frame), heard=follower.events))
assert "outsider.parts" not in sys.modules
print(json.dumps(out))
"""


def test_a_process_without_the_package_reads_the_run(found):
    bare = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p != str(SITE))}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(found.path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=bare,
    )
    assert done.returncode == 0, done.stderr
    (said,) = json.loads(done.stdout.splitlines()[-1])
    assert said.pop("says").startswith("GroupBegan: place 0, arms ['r00/dense/s0'")
    events = len(found.events)
    assert said == dict(
        status="done", whole=True, kinds=["Unknown"], events=events, heard=events, rows=len(found.frame)
    )
    assert "damage" not in done.stderr


# --- shell ---


def flags(how, folder):
    n = names(how)
    given = [
        word
        for field in ("source", "network", "criterion", "scope", "executor")
        for word in (f"--{field}", n[field])
    ]
    schedule = [
        "--schedule",
        f"{n['schedule']}(landing=0.5, steps=2, rounds=2)",
        "--rewind",
        f"{n['rewind']} 50",
    ]
    recipe = ["--lr", "0.05", "--epochs", "2", "--batch-size", "60", "--seeds", "2"]
    return [
        "find",
        *given,
        *schedule,
        *recipe,
        "--controls",
        f"{n['kept']},{n['drawn']}",
        "--listen",
        n["listener"],
        "--device",
        "cpu",
        "--quiet",
        "--out",
        str(folder),
    ]


def test_a_ticket_leaves_in_its_format(how, found, tmp_path, capsys):
    ticket, name = found.tickets[0], names(how)["format"]
    assert ticket.export(tmp_path / "names", name).read_text().splitlines() == list(ticket.mask)
    assert main(["convert", str(found.path), str(tmp_path / "out"), "--format", name, "--trust", "outsider"]) == 0
    assert all(Path(line).read_text().splitlines() == list(ticket.mask) for line in capsys.readouterr().out.split())


def test_the_shell_runs_it(how, found, plan, tmp_path, capsys):
    assert main(flags(how, tmp_path / "run")) == 0
    here = Run(tmp_path / "run")
    assert same(here.plan, plan) and here.frame.equals(found.frame)
    said = capsys.readouterr().out
    assert "turned" in said and "redrawn" in said
    assert (here.path / "kept.txt").read_text() == (found.path / "kept.txt").read_text()


def test_the_shell_of_another_process_runs_it(how, found, tmp_path):
    code = "import sys; from lottery_nb.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *flags(how, tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "run").frame.equals(found.frame) and "turned" in done.stdout


HELP = """
import sys
from lottery_nb.cli import main
try:
    main([sys.argv[1], "--help"])
except SystemExit:
    assert not {"torch", "outsider", "outsider.parts"} & set(sys.modules)
"""


@pytest.mark.parametrize(
    "command, kinds",
    [
        (
            "find",
            ("network", "schedule", "criterion", "scope", "rewind", "kept", "drawn", "listener", "executor"),
        ),
        ("transfer", ("kept", "drawn", "listener", "executor")),
    ],
)
def test_help_says_where_its_names_come_from_and_loads_nothing(command, kinds):
    done = subprocess.run(
        [sys.executable, "-c", HELP, command],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"COLUMNS": "150"},
    )
    assert done.returncode == 0, done.stderr
    for name, place in (NAMES[kind] for kind in kinds):
        assert any(
            row.split() == [name, *f"of an installed package ({place})".split()]
            for row in done.stdout.splitlines()
        )


def test_another_process_may_take_its_tickets(how, found, moved):
    assert main(["show", str(moved.path)]) == 0 and moved.status == "done"
    assert len(found.tickets) == 4 and {t.network.name for t in found.tickets} == {found.plan.network}
