"""Do the tutorials say only what their records say?

A cell with `claims_text(` shows findings that are made from records (lottery_nb.results.claims). It needs nothing but the
chapter's first code cell and the kept results, so it is rendered again here and held against the list that is stored.
All other prose of a tutorial may say how something is done and defined, not what came out: a sentence with a word of
results is a finding that no record carries, unless `definitions.txt` has it, word by word.

python tools/claims.py [NOTEBOOK ...]          name what parts, and exit with 1
python tools/claims.py --render NOTEBOOK ...   store the lists as they are rendered now
"""

import argparse
import ast
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEFINITIONS = Path(__file__).with_name("definitions.txt")
MAKES = "claims_text("
RESULT = re.compile(
    r"±|\d ?%|\bpoints?\b|\b(above|below|better|worse|best|worst|beats?|beaten|match\w*|wins?|won|winning|winner\w*"
    r"|los(?:es?|t|s)|outperform\w*|superior|inferior|higher|lower|exceed\w*|surpass\w*|equal(?:s|led)?|as good|as well"
    r"|improv\w*|hurts?|harm\w*|prove[sdn]?|proof|shows?|shown|confirm\w*|refut\w*|contradict\w*|significan\w*"
    r"|told|separable|fall(?:s|en)?|fell|reach(?:es|ed)?|surviv\w*|gain\w*|drops?|dropped|agree\w*|disagree\w*"
    r"|share[sd]?|more than|less than|fewer than|no worse|fail(?:s|ed)?|succe\w*|transfers? (?:well|badly|fully)"
    r"|is enough|are enough|suffic\w*|stable|unstable|only if|replicat\w*|reproduc\w*)\b",
    re.IGNORECASE,
)


def tutorials() -> list[Path]:
    """The chapters that tell what came out, and the index."""
    return [*sorted((ROOT / "nbs").glob("7[0-9]_*.ipynb")), ROOT / "index.ipynb"]


def text_of(part: Any) -> str:
    """The text of a cell's source or of an output, however the file splits it."""
    return part if isinstance(part, str) else "".join(part)


def sentences(markdown: str) -> Iterator[str]:
    """The sentences of a markdown cell, without code and rows of tables."""
    prose = re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    for line in prose.splitlines():
        if line.startswith("|"):
            continue
        bare = re.sub(r"^[#>*\-\s]+", "", line).strip()
        yield from (part.strip() for part in re.split(r"(?<=[.!?:;])\s+", bare) if part.strip())


def makers(book: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells that render claims."""
    cells = [c for c in book["cells"] if c["cell_type"] == "code"]
    return [c for c in cells if MAKES in text_of(c["source"])]


def stored(cell: dict[str, Any]) -> str:
    """The list that a cell stores, '' where it stores none."""
    texts = [
        text_of(out["data"]["text/markdown"])
        for out in cell["outputs"]
        if "text/markdown" in out.get("data", {})
    ]
    return "\n".join(texts)


def rendered(book: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Each cell of claims with its list as it is made now, after the chapter's first code cell that is no setting."""
    names: dict[str, Any] = {}
    imports = [c for c in book["cells"] if c["cell_type"] == "code" and "import " in text_of(c["source"])]
    exec(compile(text_of(imports[0]["source"]), "imports", "exec"), names)  # a chapter of this repository
    for cell in makers(book):
        body = ast.parse(text_of(cell["source"])).body
        *before, last = body
        if not isinstance(last, ast.Expr):
            raise SystemExit("a cell of claims ends in the list that it shows")
        exec(compile(ast.Module(before, []), "claims", "exec"), names)
        shown = eval(compile(ast.Expression(last.value), "claims", "eval"), names)
        yield cell, getattr(shown, "data", str(shown))


def faults(path: Path, definitions: frozenset[str]) -> list[str]:
    """What a tutorial says without a record, and lists that are not what their records say."""
    book = json.loads(path.read_text(encoding="utf-8"))
    prose = [
        s for c in book["cells"] if c["cell_type"] == "markdown" for s in sentences(text_of(c["source"]))
    ]
    free = [s for s in prose if RESULT.search(s) and s not in definitions]
    told = [f"{path.name}: no record carries the sentence {s!r}" for s in free]
    for cell, fresh in rendered(book) if makers(book) else ():
        if stored(cell) != fresh:
            told.append(
                f"{path.name}: the stored list of claims is not what its records say: {_parted(stored(cell), fresh)}"
            )
    return told


def _parted(old: str, new: str) -> str:
    """The first line that differs."""
    lines, fresh = old.splitlines(), new.splitlines()
    odd = [line for line in lines if line not in fresh] or [line for line in fresh if line not in lines]
    return repr(odd[0]) if odd else "the order of its lines"


def definitions_of(path: Path = DEFINITIONS) -> frozenset[str]:
    """Sentences that use a word of results and state none."""
    return frozenset(path.read_text(encoding="utf-8").splitlines())


def render(path: Path) -> None:
    """Store the lists of a chapter as they are made now."""
    book = json.loads(path.read_text(encoding="utf-8"))
    for cell, text in rendered(book):
        data = {
            "text/markdown": text.splitlines(keepends=True),
            "text/plain": ["<IPython.core.display.Markdown object>"],
        }
        cell["outputs"] = [
            {"data": data, "execution_count": None, "metadata": {}, "output_type": "execute_result"}
        ]
    path.write_text(json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def main(words: list[str] | None = None) -> int:
    """Name what parts; 1 where something does."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("notebooks", nargs="*", type=Path)
    asked.add_argument("--render", action="store_true")
    args = asked.parse_args(words)
    paths = [p.resolve() for p in args.notebooks] or tutorials()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.render:
        for path in paths:
            render(path)
        return 0
    told = [line for path in paths for line in faults(path, definitions_of())]
    print("\n".join(told) or f"{len(paths)} chapters say what their records say")
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main())
