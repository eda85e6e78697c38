"""Draw the column of the book, wing on wing, with one room filled: the picture at the head of some chapters.

python tools/column.py            write nbs/images/column/*.svg
python tools/column.py --check    write nothing; name the drawings that are stale and exit with 1
"""

import argparse
import re
import sys
from html import escape
from pathlib import Path

HEADS = ("core", "engine/training", "plans/tickets", "runs/reading")  # chapters that open with a drawing
LINE = {
    "data": "labelled data, by name or of your own",
    "models": "networks, plain and as data",
    "pruning": "which weights stay",
    "rewinding": "where a ticket starts, and against what",
    "engine": "trains lists of arms",
    "plans": "experiments as data",
    "runs": "folders with plan, log, results",
    "sweeps": "many plans on many machines",
    "results": "statistics, figures, reports",
    "science": "measured by training",
    "workbench": "the panel",
    "papers": "two papers as plans",
    "bench": "how fast it is",
}
WIDTH, LEFT, ROW, STEP, PAD = 860, 120, 26, 30, 8
STYLE = """
  text { font: 12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #24292f }
  .wing { font-weight: 600 } .line { fill: #6e7781 } .here { fill: #fff; font-weight: 600 }
  rect { fill: #f6f8fa; stroke: #d0d7de } rect.here { fill: #0072b2; stroke: #0072b2 }
"""


def rooms(root):
    """`[(wing, [room, …]), …]` in the order of the notebooks; the ground's wing is ''."""
    found = {}
    for path in sorted((root / "nbs").rglob("[0-9]*_*.ipynb"), key=lambda path: path.name):
        wing = path.parent.relative_to(root / "nbs").as_posix().removeprefix(".")
        if re.search(r'"#\| default_exp ', path.read_text(encoding="utf-8")):
            last = next(reversed(found), None)
            key = wing if wing else "ground" if last in (None, "ground") else "shell"
            found.setdefault(key, []).append(path.stem.partition("_")[2])
    return list(found.items())


def box(x, y, width, label, here):
    """A room: a box with its name."""
    kind = ' class="here"' if here else ""
    text = f'<text{kind} x="{x + width / 2:g}" y="{y + 17}" text-anchor="middle">{escape(label)}</text>'
    return f'<rect{kind} x="{x}" y="{y}" width="{width}" height="{ROW}" rx="4"/>{text}'


def drawing(column, here):
    """The column as SVG, with the room 'wing/room' filled."""
    parts, y = [], PAD
    for wing, names in column:
        parts.append(f'<text class="wing" x="{PAD}" y="{y + 17}">{wing}</text>')
        x = LEFT
        for name in names:
            width = 14 + 7 * len(name)
            if x + width > WIDTH - PAD:
                x, y = LEFT, y + STEP
            parts.append(box(x, y, width, name, f"{wing}/{name}".removeprefix("ground/") == here))
            x += width + 6
        if wing in LINE and x + 7 * len(LINE[wing]) < WIDTH:
            parts.append(f'<text class="line" x="{x + 6}" y="{y + 17}">{LINE[wing]}</text>')
        y += STEP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + PAD}" width="{WIDTH}" role="img">'
    )
    title = (
        f"<title>The rooms of lottery_nb in reading order; here: {here}. "
        "A room imports from those above it.</title>"
    )
    return "\n".join([head, title, f"<style>{STYLE}</style>", *parts, "</svg>"]) + "\n"


def drawings(root):
    """`{path: SVG}` of all chapters that open with one."""
    column = rooms(root)
    there = {f"{wing}/{name}".removeprefix("ground/") for wing, names in column for name in names}
    folder = root / "nbs" / "images" / "column"
    return {
        folder / f"{here.rpartition('/')[2]}.svg": drawing(column, here) for here in HEADS if here in there
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 where a drawing is stale"
    )
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).parents[1], help="the repository (default: this one)"
    )
    args = parser.parse_args()
    made = drawings(args.root)
    stale = [
        path for path, svg in made.items() if not path.exists() or path.read_text(encoding="utf-8") != svg
    ]
    if args.check:
        names = [path.relative_to(args.root).as_posix() for path in stale]
        sys.exit(f"stale, to be made again with python tools/column.py: {', '.join(names)}" if names else 0)
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made[path], encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
