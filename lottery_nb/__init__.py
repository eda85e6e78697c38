"""Find winning tickets of neural networks, rewind them, transfer them, and see with honest intervals whether they win.

What most people need is here: `import lottery_nb as lt`. Nothing is imported before it is used."""

import importlib
from typing import TYPE_CHECKING, Any

from lottery_nb import _moved

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .core import LotteryError as LotteryError
    from .events import EVENTS as EVENTS
    from .data.builtin import DOMAINS as DOMAINS
    from .data.domains import domain as domain, register_domain as register_domain
    from .data.own import (
        from_arrays as from_arrays,
        from_csv as from_csv,
        from_dataset as from_dataset,
        from_folder as from_folder,
        from_frame as from_frame,
        from_parquet as from_parquet,
        from_texts as from_texts,
    )
    from .models.zoo import NETWORKS as NETWORKS
    from .models.network import Network as Network
    from .pruning.masks import Mask as Mask
    from .pruning.schedules import (
        cubic as cubic,
        geometric as geometric,
        linear as linear,
        listed as listed,
        one_shot as one_shot,
        SCHEDULES as SCHEDULES,
    )
    from .pruning.criteria import CRITERIA as CRITERIA
    from .pruning.scopes import SCOPES as SCOPES
    from .rewinding.controls import CONTROLS as CONTROLS
    from .engine.recipes import Recipe as Recipe
    from .engine.executors import EXECUTORS as EXECUTORS
    from .plans.tickets import Ticket as Ticket
    from .plans.find import FindPlan as FindPlan
    from .plans.transfer import TransferPlan as TransferPlan
    from .runs.listeners import LISTENERS as LISTENERS
    from .runs.reading import Run as Run
    from .runs.writing import run as run
    from .runs import workers as _workers
    from .runs.workers import start as start
    from .sweeps.axes import SweepPlan as SweepPlan
    from .sweeps.folders import Sweep as Sweep
    from .sweeps.running import sweep as sweep
    from .results.stats import compare as compare, ranking as ranking, summary as summary
    from .results.verdict import conditions as conditions
    from .results.plots import (
        accuracy_plot as accuracy_plot,
        layer_density_plot as layer_density_plot,
        training_plot as training_plot,
        transfer_curves as transfer_curves,
        transfer_plot as transfer_plot,
    )
    from .results.report import write_report as write_report
    from .workbench.workbench import Workbench as Workbench

    list_runs = _workers.runs  # a name of the face is never the name of a wing

FACE = {
    "core": "LotteryError",
    "events": "EVENTS",
    "data.builtin": "DOMAINS",
    "data.domains": "domain register_domain",
    "data.own": "from_arrays from_frame from_folder from_parquet from_csv from_texts from_dataset",
    "models.zoo": "NETWORKS",
    "models.network": "Network",
    "pruning.masks": "Mask",
    "pruning.schedules": "geometric one_shot linear cubic listed SCHEDULES",
    "pruning.criteria": "CRITERIA",
    "pruning.scopes": "SCOPES",
    "rewinding.controls": "CONTROLS",
    "engine.recipes": "Recipe",
    "engine.executors": "EXECUTORS",
    "plans.tickets": "Ticket",
    "plans.find": "FindPlan",
    "plans.transfer": "TransferPlan",
    "runs.listeners": "LISTENERS",
    "runs.reading": "Run",
    "runs.writing": "run",
    "runs.workers": "start list_runs",
    "sweeps.axes": "SweepPlan",
    "sweeps.folders": "Sweep",
    "sweeps.running": "sweep",
    "results.stats": "summary compare ranking",
    "results.verdict": "conditions",
    "results.plots": "accuracy_plot training_plot layer_density_plot transfer_plot transfer_curves",
    "results.report": "write_report",
    "workbench.workbench": "Workbench",
}
"Room -> the names that it lends to the face."

_ROOMS = {name: room for room, names in FACE.items() for name in names.split()}
_OTHERWISE = {"list_runs": "runs"}
__all__ = sorted(_ROOMS)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), _OTHERWISE.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_moved.install()
