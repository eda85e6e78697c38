"""Make README.md from index.ipynb, with the outputs that it stores: nothing is executed.

python tools/readme.py            write README.md and its pictures (index_files/)
python tools/readme.py --check    write nothing; show what differs and exit with 1
"""

import argparse
import difflib
import sys
from pathlib import Path

import nbformat
from execnb.nbio import nb2str
from nbconvert.exporters import MarkdownExporter
from nbdev import processors
from nbdev.process import NBProcessor
from traitlets.config import Config

IMAGES = "index_files"
PROCESSORS = "strip_ansi hide_line filter_stream_ rm_header_dash rm_export clean_magics hide_"
SHOWN_FIRST = ["text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]


def quarto_switches(cell):
    """The processor for `echo`, `output` and `include: false`; a cell without source is left out."""
    if cell.cell_type != "code":
        return
    off = {name.rstrip(":") for name, args in cell.directives_.items() if args == ["false"]}
    if "include" in off:
        del cell["source"]
        return
    cell.source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|"))
    if "output" in off:
        cell.outputs = []
    if "echo" in off:
        cell.metadata["transient"] = {"remove_source": True}


def convert(path):
    """The markdown text of a notebook, and its pictures as `{relative name: bytes}`."""
    chosen = [getattr(processors, name) for name in PROCESSORS.split()] + [quarto_switches]
    book = nbformat.reads(nb2str(NBProcessor(path, chosen, process=True).nb), as_version=4)
    book.metadata["language_info"] = {"name": "python"}
    settings = Config(NbConvertBase={"display_data_priority": SHOWN_FIRST})
    text, resources = MarkdownExporter(config=settings).from_notebook_node(book, {"output_files_dir": IMAGES})
    return text.strip() + "\n", dict(resources["outputs"])


def stale(root, text, images):
    """What differs between the files on disk and the fresh ones, as lines of text."""
    readme = root / "README.md"
    old = readme.read_text(encoding="utf-8") if readme.exists() else ""
    lines = list(
        difflib.unified_diff(
            old.splitlines(), text.splitlines(), "README.md", "from index.ipynb", lineterm=""
        )
    )
    present = {path.relative_to(root).as_posix(): path.read_bytes() for path in (root / IMAGES).glob("*")}
    lines += [
        f"{name}: not the picture that index.ipynb stores"
        for name in sorted(images)
        if present.get(name) != images[name]
    ]
    return lines + [f"{name}: no longer used" for name in sorted(present.keys() - images.keys())]


def write(root, text, images):
    (root / "README.md").write_text(text, encoding="utf-8", newline="\n")
    for path in (root / IMAGES).glob("*"):
        path.unlink()
    for name, data in images.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only tell whether README.md is fresh")
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).parents[1], help="the repository (default: this one)"
    )
    args = parser.parse_args()
    text, images = convert(args.root / "index.ipynb")
    if not args.check:
        return write(args.root, text, images)
    if lines := stale(args.root, text, images):
        print(*lines, "README.md is stale: run python tools/readme.py", sep="\n", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
