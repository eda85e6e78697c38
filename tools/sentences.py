"""What counts in a line of code, and what is a sentence: the one place that decides it, for measure_style and long_lines.

A sentence is a docstring (any string that stands alone), a comment, or a string inside `raise LotteryError(…)` or
a subclass of it. A sentence may be as long as it needs; the code around it may not.
"""

import ast
import io
import tokenize
from collections.abc import Iterable
from pathlib import Path

LIMIT = 120  # characters in a line of code
REFUSAL = "LotteryError"


def refusals(sources: Iterable[str | ast.Module]) -> frozenset[str]:
    """`LotteryError` and the names of all classes that derive from it, in texts or trees that may use each other's."""
    bases: dict[str, set[str]] = {}
    for source in sources:
        tree = ast.parse(source) if isinstance(source, str) else source
        for node in statements(tree):
            if isinstance(node, ast.ClassDef):
                bases.setdefault(node.name, set()).update(
                    name for base in node.bases for name in names_in(base)
                )
    found = {REFUSAL}
    while more := {name for name, of in bases.items() if of & found} - found:
        found |= more
    return frozenset(found)


def statements(node: ast.AST) -> Iterable[ast.AST]:
    """Every statement under a node, at any depth, without the expressions in them."""
    for part in ast.iter_child_nodes(node):
        if isinstance(part, (ast.stmt, ast.excepthandler, ast.match_case)):
            yield part
            yield from statements(part)


def names_in(node: ast.expr) -> list[str]:
    """The parts of a dotted name: `core.LotteryError.about` has three; anything else has none."""
    if isinstance(node, ast.Attribute):
        return [*names_in(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else []


def is_text(node: ast.AST) -> bool:
    """Whether a node is a string, plain or formatted."""
    return isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant) and isinstance(node.value, str)


def strings_of(node: ast.AST) -> Iterable[ast.expr]:
    """The strings in an expression, whole: what stands in the braces of a formatted one is a part of it."""
    if is_text(node):
        yield node  # type: ignore[misc]
    else:
        for part in ast.iter_child_nodes(node):
            yield from strings_of(part)


def sentence_strings(tree: ast.Module, refused: frozenset[str]) -> Iterable[ast.expr]:
    """Every docstring, and every string inside a refusal that is raised."""
    for node in statements(tree):
        if isinstance(node, ast.Expr) and is_text(node.value):
            yield node.value
        elif (
            isinstance(node, ast.Raise)
            and isinstance(node.exc, ast.Call)
            and refused & set(names_in(node.exc.func))
        ):
            yield from strings_of(node.exc)


def spans(source: str, tree: ast.Module, refused: frozenset[str]) -> Iterable[tuple[int, int, int, int]]:
    """Where sentences stand: first line, its column, last line, its column; lines from 1, columns in characters."""
    lines = source.split("\n")

    def column(line: int, byte: int) -> int:
        return len(lines[line - 1].encode()[:byte].decode())

    for node in sentence_strings(tree, refused):
        last, end = node.end_lineno or node.lineno, node.end_col_offset or 0
        yield node.lineno, column(node.lineno, node.col_offset), last, column(last, end)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield *token.start, *token.end


def code_lines(source: str, refused: frozenset[str] = frozenset({REFUSAL}), tree: ast.Module | None = None):
    """Each line of a text without its sentences and the blanks that end it; a `SyntaxError` for what is no Python.

    What stands between two strings of one sentence goes with them; an empty line is one that has no code.
    """
    lines = [list(line) for line in source.split("\n")]
    for first, start, last, end in spans(source, tree or ast.parse(source), refused):
        for number in range(first, last + 1):
            line = lines[number - 1]
            left, right = start if number == first else 0, end if number == last else len(line)
            line[left:right] = [""] * (right - left)  # the columns of what follows stay as they are
    return ["".join(line).rstrip() for line in lines]


def python_files(places: Iterable[Path]) -> list[Path]:
    """Every Python file at or under some places, in order; a generated index of names is none that a person reads."""
    found = [
        path for place in places for path in (sorted(place.rglob("*.py")) if place.is_dir() else [place])
    ]
    return [path for path in found if path.name != "_modidx.py"]
