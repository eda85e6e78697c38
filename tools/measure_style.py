"""Measure how the exported code is laid out, and fail where it is past the bounds of this house.

    python tools/measure_style.py [--json]

Lines are those of exported cells that hold code: no blank lines, and no sentences (docstrings, comments, strings of
refusals; tools/sentences.py decides). A cell is as long as its lines of code; one that is a single class may have 60.
A lesson is a code cell that is not exported and asserts something: an `assert`, `expect_error` or a call of a test
(`test_eq`, `assert_close`). Cells that only import, or only name constants, need no lesson. It fails past
  100 characters at the 95th percentile, 1 % of lines over 120, 5 % of exported cells over their bound,
  90 exported lines without a lesson (imports aside), two exported cells in a row without a lesson between them.
"""

import argparse
import ast
import json
import math
import re
import sys
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import median

from sentences import LIMIT, code_lines, names_in, refusals, statements

PERCENTILE = 100  # characters at the 95th percentile of lines
OVER = 0.01  # share of lines over LIMIT
CELL, CLASS = 25, 60  # lines of an exported cell; of one that is a single class
LONG_CELLS = 0.05  # share of exported cells over their bound
STRETCH, ROW = 90, 2  # lines, and cells, without a lesson
EXPORTS = {"export", "exporti", "exports"}
MAGIC = re.compile(r"^(\s*)[%!].*$", re.M)


@dataclass
class Cell:
    """A code cell: its number in the notebook counted from 1, what it is, and for an exported one its lines of code."""

    number: int
    kind: str  # 'code', 'constants', 'imports', 'lesson' or 'other'
    lines: list[str] = field(default_factory=list)
    bound: int = CELL
    long_classes: list[str] = field(default_factory=list)  # names of classes over CLASS lines
    first: str = ""  # its first line of code, to find it by

    @property
    def exported(self) -> bool:
        return self.kind in ("code", "constants", "imports")

    def __str__(self) -> str:
        return f"cell {self.number} ({self.first.strip()[:50]})"


def directives(source: str) -> set[str]:
    """Names of a cell's directives: `#| export` is one."""
    return set(re.findall(r"^\s*#\s*\|\s*(\w+)", source, re.M))


def is_lesson(source: str) -> bool:
    """Whether code asserts something: an `assert`, `expect_error`, or a call of what is named `test_…` or `assert…`."""
    try:
        tree = ast.parse(MAGIC.sub(r"\1pass", source))
    except SyntaxError:
        return bool(re.search(r"^\s*assert\b|\bexpect_error\(", source, re.M))
    called = [names_in(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {parts[-1] for parts in called if parts}
    asserts = any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    return asserts or any(re.match(r"expect_error$|test_|assert", name) for name in names)


def is_docstring(node: ast.stmt) -> bool:
    """Whether a statement is a string that stands alone."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def kind_of(tree: ast.Module) -> str:
    """Whether code does nothing but import, or name constants; a string that stands alone belongs to what it explains."""
    kinds = {statement(node) for node in tree.body if not is_docstring(node)}
    if kinds <= {"imports"}:
        return "imports"
    return "constants" if kinds <= {"imports", "constants"} else "code"


def statement(node: ast.stmt) -> str:
    """The kind of one statement; a condition around imports and constants is of their kind."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return "imports"
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        return "constants"
    if isinstance(node, (ast.If, ast.Try)):
        parts = [*node.body, *node.orelse, *(part for h in getattr(node, "handlers", []) for part in h.body)]
        kinds = {statement(part) for part in parts}
        if kinds <= {"imports", "constants"}:
            return "constants" if "constants" in kinds else "imports"
    return "code"


def exported_cell(number: int, source: str, tree: ast.Module, refused: frozenset[str]) -> Cell:
    """What is measured of an exported cell."""
    lines = code_lines(source, refused, tree)
    classes = {
        node.name: sum(bool(line) for line in lines[start(node) - 1 : node.end_lineno])
        for node in statements(tree)
        if isinstance(node, ast.ClassDef)
    }
    body = [node for node in tree.body if not is_docstring(node)]
    alone = len(body) == 1 and isinstance(body[0], ast.ClassDef)
    full = [line for line in lines if line]
    long_classes = [name for name, n in classes.items() if n > CLASS]
    return Cell(
        number, kind_of(tree), full, CLASS if alone else CELL, long_classes, full[0] if full else "no code"
    )


def start(node: ast.ClassDef) -> int:
    """The first line of a class, its decorators included."""
    return min([node.lineno, *(d.lineno for d in node.decorator_list)])


def read_notebooks(root: Path) -> dict[str, list[tuple[int, str, ast.Module | None]]]:
    """Of each notebook that exports something: number, source and (where it is exported) tree of its code cells."""
    books = {}
    for path in sorted((root / "nbs").glob("**/*.ipynb")):
        if path.is_symlink() or ".ipynb_checkpoints" in path.parts:
            continue
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found = []
        for number, cell in enumerate(cells, 1):
            source = "".join(cell["source"])
            if cell["cell_type"] == "code":
                try:
                    found.append(
                        (number, source, ast.parse(source) if EXPORTS & directives(source) else None)
                    )
                except SyntaxError as e:
                    sys.exit(f"{path.relative_to(root)}, cell {number}: what it exports is no Python: {e}")
        if any(tree for _, _, tree in found):
            books[path.relative_to(root / "nbs").with_suffix("").as_posix()] = found
    return books


def measured(root: Path) -> dict[str, list[Cell]]:
    """The code cells of each notebook that exports something, in order."""
    books = read_notebooks(root)
    refused = refusals(tree for cells in books.values() for _, _, tree in cells if tree)
    return {
        name: [
            exported_cell(number, source, tree, refused)
            if tree
            else Cell(number, "lesson" if is_lesson(source) else "other")
            for number, source, tree in cells
        ]
        for name, cells in books.items()
    }


def stretches(cells: list[Cell]) -> list[list[Cell]]:
    """Exported cells that stand together without a lesson between them; what imports only is no part of it."""
    kept = [cell for cell in cells if cell.kind in ("lesson", "code", "constants")]
    return [list(group) for lesson, group in groupby(kept, lambda cell: cell.kind == "lesson") if not lesson]


def percentile(lengths: list[int], share: float = 0.95) -> int:
    """The smallest length that at least this share of the lines does not exceed."""
    return sorted(lengths)[math.ceil(share * len(lengths)) - 1] if lengths else 0


def figures(books: list[list[Cell]]) -> dict[str, float]:
    """The figures of one notebook, or of several together."""
    cells = [cell for book in books for cell in book if cell.exported]
    lengths = [len(line) for cell in cells for line in cell.lines]
    sizes = [len(cell.lines) for cell in cells]
    lessons = sum(cell.kind == "lesson" for book in books for cell in book)
    together = [group for book in books for group in stretches(book)]
    return {
        "lines": len(lengths),
        "percentile_95": percentile(lengths),
        "share_over_120": sum(n > LIMIT for n in lengths) / max(1, len(lengths)),
        "exported_cells": len(cells),
        "cell_median": median(sizes) if sizes else 0,
        "cell_longest": max(sizes, default=0),
        "share_over_25_lines": sum(n > CELL for n in sizes) / max(1, len(sizes)),
        "share_over_bound": sum(len(cell.lines) > cell.bound for cell in cells) / max(1, len(cells)),
        "lessons_per_cell": lessons / max(1, len(cells)),
        "stretch_lines": max((sum(len(cell.lines) for cell in group) for group in together), default=0),
        "stretch_cells": max((sum(cell.kind == "code" for cell in group) for group in together), default=0),
        "classes_over_60": sum(len(cell.long_classes) for cell in cells),
    }


HEADS = {
    "lines": "lines",
    "percentile_95": "95 %",
    "share_over_120": ">120",
    "exported_cells": "cells",
    "cell_median": "median",
    "cell_longest": "longest",
    "share_over_25_lines": ">25",
    "share_over_bound": ">bound",
    "lessons_per_cell": "lessons",
    "stretch_lines": "stretch",
    "stretch_cells": "in a row",
    "classes_over_60": "classes>60",
}


def shown(name: str, value: float) -> str:
    """A figure as it reads in the table."""
    if name.startswith("share"):
        return f"{value:.1%}"
    return f"{value:.2f}" if name == "lessons_per_cell" else f"{value:g}"


def table(rows: dict[str, dict[str, float]]) -> str:
    """The figures of each notebook and of all, one line each."""
    width = max(len(name) for name in rows)
    text = [" " * width + "".join(f"{head:>11}" for head in HEADS.values())]
    for name, row in rows.items():
        text.append(f"{name:{width}}" + "".join(f"{shown(key, row[key]):>11}" for key in HEADS))
    return "\n".join(text)


def faults(books: dict[str, list[Cell]]) -> list[str]:
    """What is past its bound, with the notebooks and cells that bring it there."""
    return [*shares(books), *(fault for name, cells in books.items() for fault in lessonless(name, cells))]


def shares(books: dict[str, list[Cell]]) -> list[str]:
    """The faults of all notebooks together."""
    total, found = figures(list(books.values())), []
    cells = [(name, cell) for name, book in books.items() for cell in book if cell.exported]
    if total["percentile_95"] > PERCENTILE:
        found += [
            f"95 % of lines have up to {total['percentile_95']} characters: {PERCENTILE} are allowed; longest in"
        ]
        ranked = sorted(cells, key=lambda pair: -percentile([len(line) for line in pair[1].lines]))
        found += [f"  {name}, {cell}" for name, cell in ranked[:10]]
    if total["share_over_120"] > OVER:
        found += [
            f"{total['share_over_120']:.1%} of lines are over {LIMIT} characters: {OVER:.0%} is allowed"
        ]
        found += [
            f"  {name}, {cell}: {n} of them"
            for name, cell in cells
            if (n := sum(len(line) > LIMIT for line in cell.lines))
        ]
    if total["share_over_bound"] > LONG_CELLS:
        found += [
            f"{total['share_over_bound']:.1%} of exported cells are over {CELL} lines ({CLASS} for a class): "
            f"{LONG_CELLS:.0%} are allowed"
        ]
        found += [
            f"  {name}, {cell}: {len(cell.lines)}" for name, cell in cells if len(cell.lines) > cell.bound
        ]
    return found


def lessonless(name: str, cells: list[Cell]) -> list[str]:
    """Where a notebook exports too much without a lesson."""
    found = []
    for group in stretches(cells):
        lines, row = sum(len(cell.lines) for cell in group), [cell for cell in group if cell.kind == "code"]
        where = f"{name}, from {group[0]} to cell {group[-1].number}"
        if lines > STRETCH:
            found.append(f"{where}: {lines} exported lines without a lesson, {STRETCH} are allowed")
        if len(row) > ROW:
            found.append(
                f"{where}: {len(row)} exported cells without a lesson between them, {ROW} are allowed"
            )
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="figures and faults as JSON")
    here = Path(__file__).parents[1]
    parser.add_argument("--root", type=Path, default=here, help="the repository (default: this one)")
    args = parser.parse_args()
    books = measured(args.root)
    rows = {**{name: figures([cells]) for name, cells in books.items()}, "all": figures(list(books.values()))}
    found = faults(books)
    if args.json:
        print(json.dumps({"notebooks": rows, "faults": found}, indent=1, ensure_ascii=False))
    else:
        print(table(rows), *found, sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
