"""Where the modules of version 0.1 went: their import lines work for one more version, with a warning."""

import importlib
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

MOVED = {
    "anatomy": "results.anatomy science.basins",
    "bench": "bench.measure bench.pages bench.race",
    "core": "core events files",
    "data_files": "data.downloads data.readers data.batches data.builtin",
    "data_texts": "data.texts data.builtin",
    "distribution_shift": "papers.distribution_shift",
    "domains": "data.batches data.builtin data.names data.domains",
    "follow": "workbench.follow workbench.charts",
    "forms": (
        "pruning.schedules plans.find workbench.forms workbench.cost workbench.cell workbench.workbench "
        "rewinding.points doctor"
    ),
    "landmarks": "results.landmarks",
    "live": "workbench.live",
    "many_runs": "workbench.compare",
    "masks": "pruning.masks",
    "models": "models.zoo models.uses models.network",
    "own_data": "data.own",
    "panel": (
        "workbench.forms workbench.live workbench.fields workbench.jobs workbench.find workbench.watch workbench.carry "
        "workbench.compare workbench.workbench "
    ),
    "papers": "papers.papers",
    "plots": "results.verdict results.style results.plots",
    "pruning": "pruning.schedules pruning.criteria pruning.scopes",
    "report": "core results.words results.report",
    "rewinding": "rewinding.snapshots rewinding.points rewinding.controls",
    "runs": "files runs.log runs.reading runs.writing",
    "sparse_transfer": "papers.sparse_transfer",
    "stacks": "engine.stacks",
    "stats": "core data.divergence results.stats results.tables",
    "tickets": "plans.tickets plans.find",
    "training": "engine.recipes engine.arms engine.trainer engine.layout engine.training",
    "transfer": "plans.transfer",
    "verdict": "results.verdict plans.find",
    "workers": "runs.workers",
}
"Module of version 0.1 -> the rooms that hold its names now."

RENAMED: dict[str, str] = {
    "core.named": "imported",
    "data_files.DOWNLOADS": "FILES",
    "many_runs.KEPT": "CACHE_SIZE",
    "panel.SHORT": "TEXT_LENGTH",
    "panel.TEXTS": "TEXTS_SHOWN",
    "panel.SAMPLES": "PICTURES_PER_CLASS",
    "panel.UNREAD": "WAITS_FOR_SOURCE",
    "tickets.KINDS": "FIELD_KINDS",
    "tickets.STARTS": "TICKET_STARTS",
    "training.Stack": "Trainer",
    "training.SCHEDULES": "LR_SCHEDULES",
    "tickets.TicketContents": "Ticket",
    "stacks.LAYERS": "STACKED_FUNCTIONS",
    "follow.OVER": "ENDED",
    "forms.KINDS": "SCHEDULES",
    "forms.LARGEST": "MAX_PARAMETERS",
    "forms.LONG": "WARN_EXAMPLES",
    "forms.LONGEST": "MAX_EXAMPLES",
    "forms.PLACES": "FIELD_OF_PLACE",
    "forms.REWINDS": "POINTS",
    "forms.WHERE": "IMPORTS",
    "forms.devices": "device_choices",
    "forms.place_of": "field_of",
    "landmarks.WHERE": "CURVE",
    "live.plain": "to_json",
    "models.Described": "Network",
    "panel.PLACES": "TITLES",
    "panel.named": "reason_of",
    "panel.plain": "beside",
    "panel.side_by_side": "comparison",
    "plots.AWAY": "TRANSFER_LABELS",
    "plots.GAINS": "GAIN_COLOURS",
    "plots.LINE": "SUBTITLE_WIDTH",
    "report.KINDS": "PLAN_TITLES",
    "report.QUIET": "HIDDEN_AT_DEFAULT",
    "report.TOLD": "FIELD_TEXTS",
    "report.words": "value_text",
    "runs.LATEST": "MAX_TIME",
    "runs.LAYERS": "LAYER_COLUMNS",
    "runs.RESULTS": "RESULT_COLUMNS",
    "verdict.SHORT": "HEADINGS",
}
"Public name of version 0.1 (with its module, where another has the same one) -> its name now."


def served(old: str) -> Callable[[str], Any]:
    """The `__getattr__` of an old module: its names from where they are now, each with a warning."""

    def get(name: str) -> Any:
        if is_room(f"lottery_nb.{old}", name):
            return importlib.import_module(f"lottery_nb.{old}.{name}")
        now = RENAMED.get(f"{old}.{name}", RENAMED.get(name, name))
        for room in () if name.startswith("__") else MOVED[old].split():
            held = importlib.import_module(f"lottery_nb.{room}")
            if now in vars(held) or (room != old and hasattr(held, now)):
                where = f"lottery_nb.{room}" + (f" as {now}" if now != name else "")
                says = f"lottery_nb.{old}.{name} is now in {where}: the old place goes with version 0.3"
                warnings.warn(says, DeprecationWarning, stacklevel=2)
                return getattr(held, now)
        raise AttributeError(f"module 'lottery_nb.{old}' has no attribute {name!r}")

    return get


def is_room(wing: str, name: str) -> bool:
    """Whether a wing has a module of that name: `from lottery_nb.runs import reading` asks for it before it is loaded."""
    return any((Path(folder) / f"{name}.py").is_file() for folder in vars(sys.modules[wing]).get("__path__", ()))


class Finder(MetaPathFinder, Loader):
    """Finds old modules that are neither rooms nor wings now."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, old = name.rpartition(".")
        return ModuleSpec(name, self) if package == "lottery_nb" and old in MOVED else None

    def exec_module(self, module: types.ModuleType) -> None:
        module.__getattr__ = served(module.__name__.rpartition(".")[2])  # type: ignore[method-assign]


def install() -> None:
    """Let old modules be found, after everything that is really there."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
