"""What `import lottery_nb as lt` offers, and the import lines of version 0.1."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import lottery_nb as lt

OLD = json.loads(
    (Path(__file__).parent / "golden" / "names.json").read_text()
)  # what the modules of version 0.1 offered
FACE = """
    FindPlan TransferPlan Recipe Network Ticket Mask Run run start list_runs geometric one_shot linear cubic listed
    domain register_domain from_arrays from_frame from_folder from_parquet from_csv from_texts from_dataset
    accuracy_plot training_plot layer_density_plot transfer_plot transfer_curves
    summary compare ranking conditions write_report Workbench LotteryError SweepPlan Sweep sweep
    NETWORKS CRITERIA SCOPES SCHEDULES CONTROLS DOMAINS EVENTS LISTENERS EXECUTORS""".split()


def test_the_face_is_pinned():
    assert sorted(FACE) == lt.__all__ and set(FACE) <= set(dir(lt))
    for name in FACE:
        assert getattr(lt, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        lt.no_such_name  # noqa: B018


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import sys, lottery_nb; "
        "assert not {'torch', 'pandas', 'plotly', 'ipywidgets'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_errors_names_and_events_need_neither_torch_nor_pandas():
    code = "import sys, lottery_nb.core, lottery_nb.events; assert not {'torch', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


GONE = {  # what had no use outside the package: tables and steps that are methods, fields or records now
    "core": ("StackState", "source_of"),
    "domains": ("Loaded", "Served", "Shown", "Adaptable", "Planned", "Kind"),
    "runs": ("TYPES", "WORDS", "sound", "plan_text"),
    "follow": ("images_done", "told"),
    "forms": ("SIMPLE",),
    "panel": (
        *("FOLDED_BY", "training_fields", "more_training_fields", "pruning_fields"),
        *("more_pruning_fields", "repeat_fields"),
    ),
    "plots": ("WHOLE",),
    "rewinding": ("RATED",),
    "cli": ("TRAINS", "OUT", "add_recipe", "add_find", "add_transfer", "add_run", "add_bench", "add_paper"),
    "stacks": ("side_by_side",),
}


@pytest.mark.parametrize("module", OLD)
def test_import_lines_of_version_0_1_work_for_one_version_more(module):
    place = importlib.import_module(f"lottery_nb.{module}")
    stays = set(vars(place))
    for name in OLD[module]:
        if name in stays or name in GONE.get(module, ()):
            continue
        with pytest.warns(DeprecationWarning, match=f"{module}.{name}"):
            assert getattr(place, name) is not None
    with pytest.raises(AttributeError):
        place.no_such_name  # noqa: B018


def test_a_room_is_found_in_its_wing_before_any_old_name():
    code = (
        "from lottery_nb.runs import reading; assert reading.__name__ == 'lottery_nb.runs.reading', reading"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize(
    "module, name, place",
    [
        ("live", "plain", "workbench.live.to_json"),
        ("follow", "OVER", "workbench.charts.ENDED"),
        ("panel", "plain", "workbench.forms.beside"),
        ("forms", "KINDS", "pruning.schedules.SCHEDULES"),
        ("forms", "devices", "workbench.cost.device_choices"),
        ("forms", "LONG", "workbench.cost.WARN_EXAMPLES"),
        ("forms", "PLACES", "workbench.forms.FIELD_OF_PLACE"),
    ],
)
def test_a_renamed_name_is_what_it_was_in_its_module(module, name, place):
    room, _, now = place.rpartition(".")
    with pytest.warns(DeprecationWarning, match=f"{module}.{name}"):
        held = getattr(importlib.import_module(f"lottery_nb.{module}"), name)
    assert held is getattr(importlib.import_module(f"lottery_nb.{room}"), now)
