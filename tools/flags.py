"""Write lottery_nb/flags.json: the flags of the shell that follow from the fields of recipe and plans and from registries.

    python tools/flags.py            write it
    python tools/flags.py --check    write nothing; exit with 1 where it is stale

The shell reads that file, so `lottery --help` imports nothing that computes. Names that other packages register are no
part of it: the shell asks for them when it shows them.
"""

import argparse
import json
import sys
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

NAME = "lottery_nb/flags.json"
ALLOWED = (
    "a module or package whose functions a plan, ticket or run folder from elsewhere may name, may be given "
    "again (default: those in LOTTERY_TRUST)"
)
ELSEWHERE = {"schedule", "recipe", "tickets"}  # fields whose parts have flags, or that are a command's folder


def escaped(text: str) -> str:
    """A text with a per cent sign, as argparse takes it."""
    return text.replace("%", "%%")


def default_of(f: Field) -> Any:
    """The default of a field; MISSING where there is none."""
    return f.default_factory() if callable(f.default_factory) else f.default


def lines_of(registry: Any, *leave: str) -> dict[str, str]:
    """What each name of a registry means, in a line."""
    return {name: registry.line(name) for name in registry if name not in leave}


def field_flag(f: Field) -> dict[str, Any]:
    """The flag of a field of a recipe or plan."""
    from lottery_nb.cli import flag, flag_of, many, text_from
    from lottery_nb.core import choices_in

    kinds = get_args(f.type) if get_origin(f.type) is UnionType else (f.type,)
    kind = next((k for k in (bool, int, float) if k in kinds), str)
    registry, default = f.metadata["registry"], default_of(f)
    names: Any = choices_in(f.type) if registry is None else lines_of(registry)
    help = escaped(f.metadata["help"]) + (": %(names)s" if names else "")
    how: dict[str, Any] = {"names": names} if names else {}
    if registry is not None:
        how["kind"] = registry.kind
    if default is MISSING:
        how["required"] = True
    else:
        help += escaped(f" (default {text_from(default)})")
    if kind is bool:
        how["action"] = "yes or no"
    else:
        how |= {"type": kind.__name__, "metavar": "LIST" if many(f) else kind.__name__.upper()}
    return flag(f"--{flag_of(f)}", help, **how)


def field_flags(cls: type, *leave: str) -> list[dict[str, Any]]:
    """A flag for every field of a recipe or plan but those that are to be left out."""
    return [field_flag(f) for f in fields(cls) if f.name not in leave]


def schedule_flags() -> list[dict[str, Any]]:
    """Flags for a schedule, and for every number that a registered kind takes."""
    from lottery_nb.cli import flag
    from lottery_nb.pruning.schedules import ROUNDS, SCHEDULES, schedule_parameters

    help = (
        "%(names)s, or package.module:name of your own; densities with commas; "
        "or a call with its numbers, such as 'cubic(density=0.05, rounds=8)' (default %(default)s)"
    )
    names = lines_of(SCHEDULES, "listed")
    found = [flag("--schedule", help, default="geometric", metavar="KIND", names=names, kind="schedule")]
    for name, p in schedule_parameters().items():
        takers = ", ".join(kind for kind, record in SCHEDULES.items() if name in record.asked)
        words = p.help if p is ROUNDS else f"{takers}: {p.help}"
        how = {"type": "int", "metavar": "N"} if p.whole else {"type": "float", "metavar": "SHARE"}
        default = "" if p.default is None else f" (default {p.default})"
        if not p.each:
            flag_name, dest = f"--{name.replace('_', '-')}", f"schedule_{name}"
            found.append(flag(flag_name, escaped(words + default), dest=dest, **how))
    return found


def run_flags() -> list[dict[str, Any]]:
    """Flags for what listens to a run and what runs its networks."""
    from lottery_nb.cli import flag
    from lottery_nb.engine.executors import EXECUTORS
    from lottery_nb.runs.listeners import LISTENERS
    from lottery_nb.runs.trackers import Tracker

    heard = (
        "call this with each event that is logged, may be given again: %(names)s or package.module:name "
        "(default: what the run's folder names)"
    )
    tracked = "a listener that shows the networks in another tool, may be given again: %(names)s"
    sent = (
        "what runs groups of networks: %(names)s or package.module:name "
        "(default: what the run's folder names, else threads)"
    )
    listen = {"action": "append", "names": lines_of(LISTENERS), "kind": LISTENERS.kind}
    others = [name for name, made in LISTENERS.items() if not (isinstance(made, type) and issubclass(made, Tracker))]
    track = listen | {"names": lines_of(LISTENERS, *others), "dest": "listen"}
    executor = {"default": "auto", "names": lines_of(EXECUTORS), "kind": EXECUTORS.kind}
    taken = (
        "another run, or a folder of runs, whose finished networks are taken as they are, may be given again "
        "(default: what the run's folder names; of runs beside this one, what your own key signed)"
    )
    return [
        flag("--listen", heard, metavar="NAME", **listen),
        flag("--track", tracked, metavar="TOOL", **track),
        flag("--executor", sent, metavar="NAME", **executor),
        flag("--trust", ALLOWED, metavar="MODULE", action="append", default=[]),
        flag("--reuse", taken, metavar="DIR", action="append"),
    ]


def paper_flags() -> list[dict[str, Any]]:
    """Flags for what a paper leaves open."""
    from lottery_nb.cli import flag
    from lottery_nb.papers.papers import RESULTS
    from lottery_nb.papers.sparse_transfer import SWITCHES

    network = "sparse-transfer with another network, such as vgg-19 (default: the scale's own)"
    switch = "sparse-transfer with habits of the published scripts: %(names)s"
    where = "/".join(RESULTS.parts[-2:])
    keep = (
        f"write the results to a table that figures are drawn from (default folder: {where} of the checkout)"
    )
    check = "train a part of the paper again, picked by N (default 0), and hold it against the kept results"
    return [
        flag("--network", network),
        flag("--switch", switch, default="", names=list(SWITCHES)),
        flag("--keep", keep, nargs="?", const="", metavar="DIR"),
        flag("--check", check, nargs="?", const=0, type="int", metavar="N"),
    ]


def bench_flags() -> list[dict[str, Any]]:
    """Flags for what is measured, and against whom."""
    from lottery_nb.bench.race import WORKS
    from lottery_nb.cli import flag

    work = (
        "a: find, b: one epoch and one prune, c: transfer, d: growth with arms, width and rounds, "
        "e: share of the peak and cost of the default precision (default %(default)s)"
    )
    peers = "python of the peers' environment (default: their rows say 'not measured')"
    quick = "next to no work, to see that everything runs: the figures mean nothing"
    return [
        flag("--work", work, default=",".join(WORKS)),
        flag("--peers", peers, metavar="PYTHON"),
        flag("--repeats", "turns of each contender (default %(default)s)", type="int", default=5),
        flag("--quick", quick, action="store_true"),
        flag("--setup", "only make the peers' environment in a new folder", metavar="FOLDER"),
    ]


def convert_flags() -> list[dict[str, Any]]:
    """Flags for how a ticket leaves this package."""
    from lottery_nb.cli import flag
    from lottery_nb.plans.formats import FORMATS
    from lottery_nb.plans.tickets import TICKET_STARTS

    held = "of the files, in which pruned weights are 0: %(names)s or package.module:name (default %(default)s)"
    start = "weights of the network: %(names)s (default %(default)s)"
    return [
        flag("--format", held, default="safetensors", metavar="NAME", names=lines_of(FORMATS), kind=FORMATS.kind),
        flag("--trust", ALLOWED, metavar="MODULE", action="append", default=[]),
        flag("--start", start, default="rewind", names=list(TICKET_STARTS)),
    ]


def described() -> dict[str, dict[str, Any]]:
    """Every flag that follows from fields and registries, in groups that a command names."""
    from lottery_nb.engine.recipes import Recipe
    from lottery_nb.plans.find import FindPlan
    from lottery_nb.plans.transfer import TransferPlan

    return {
        "schedule": {"flags": schedule_flags()},
        "FindPlan": {"flags": field_flags(FindPlan, *ELSEWHERE)},
        "TransferPlan": {"flags": field_flags(TransferPlan, *ELSEWHERE)},
        "Recipe": {"title": "training", "flags": field_flags(Recipe)},
        "how": {"flags": run_flags()},
        "paper": {"flags": paper_flags()},
        "bench": {"flags": bench_flags()},
        "convert": {"flags": convert_flags()},
    }


def text() -> str:
    """The file as it has to be."""
    return json.dumps(described(), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only tell whether the file is fresh")
    here = Path(__file__).parents[1]
    parser.add_argument("--root", type=Path, default=here, help="the repository (default: this one)")
    args = parser.parse_args()
    sys.path.insert(0, str(args.root))
    path, fresh = args.root / NAME, text()
    if not args.check:
        path.write_text(fresh, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != fresh:
        sys.exit(f"{NAME} is stale: run python tools/flags.py")


if __name__ == "__main__":
    main()
