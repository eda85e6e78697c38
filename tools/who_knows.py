"""Who knows of a built-in thing by name: for one member of each kind, the modules of the package that hold its name, as a text or as a name in the code.

python tools/who_knows.py            prints kind, member, number of modules, modules
python tools/who_knows.py control    only rows of that kind
"""

import ast
import sys
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "lottery_nb"

MEMBERS = {
    "criterion": ("snip", "grasp"),
    "kind of schedule": ("cubic",),
    "scope": ("erk", "2:4"),
    "domain": ("mnist",),
    "shift": ("rotate",),
    "network": ("vgg-19",),
    "control": ("reinit signs kept",),
    "rewind point": ("source-trained",),
    "recipe field": ("nesterov",),
    "executor": ("in_threads",),
    "event": ("NotSaved",),
    "listener": ("print_event",),
    "plot": ("training_plot", "divergence_plot"),
    "tab of the workbench": ("WatchTab",),
}
"Kind -> members; the ones that are nobody's default, where there are such."


@cache
def words_of(code: str) -> frozenset[str]:
    "Every text and every name in a module's code."
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        for field in ("id", "attr", "name", "arg"):
            if isinstance(word := getattr(node, field, None), str):
                found.add(word)
    return frozenset(found)


def spellings(member: str) -> set[str]:
    "A member as it may stand in code: 'reinit signs kept', 'reinit-signs-kept', reinit_signs_kept, _reinit_signs_kept."
    name = member.replace(" ", "_").replace("-", "_")
    return {member, member.replace(" ", "-"), name, f"_{name}"}


def who_knows(member: str, package: Path = PACKAGE) -> list[str]:
    "The modules that hold a member's name, as 'room' or 'wing.room'."
    modules = []
    for path in sorted(package.rglob("*.py")):
        if path.stem.startswith("_"):
            continue
        words = words_of(path.read_text(encoding="utf-8"))
        listed = {
            word for text in words if "," in text and len(text) < 200 for word in text.split(",")
        }  # a flag's default: 'reinit,shuffled'
        if spellings(member) & (words | {word.strip() for word in listed}):
            modules.append(".".join(path.relative_to(package).with_suffix("").parts))
    return modules


def rows(package: Path = PACKAGE) -> list[tuple[str, str, list[str]]]:
    "(kind, member, modules) for every member of the table."
    return [
        (kind, member, who_knows(member, package)) for kind, members in MEMBERS.items() for member in members
    ]


def main(kinds: list[str]) -> int:
    "Print the rows; exit status 1 where a member is known nowhere, which says that the table here is out of date."
    wanted = [row for row in rows() if not kinds or row[0] in kinds]
    for kind, member, modules in wanted:
        print(f"{kind:<22}{member:<22}{len(modules):>3}  {', '.join(modules)}")
    return int(not wanted or not all(modules for _, _, modules in wanted))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
