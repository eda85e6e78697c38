"""Tell whether every place that names the version names the same one.

python tools/versions.py               settings.ini, CITATION.cff and the package agree
python tools/versions.py --tag v0.1.0  the tag too, and CHANGELOG.md has that version, dated, below "Unreleased"
"""

import argparse
import re
import sys
from configparser import ConfigParser
from pathlib import Path

PLACES = {
    "CITATION.cff": r"^version: *[\"']?([^\s\"']+)",
    "lottery_nb/__init__.py": r"^__version__ *= *[\"']([^\"']+)",
}


def faults(root, tag=None):
    """Every disagreement, each as a text that names its file; settings.ini is right."""
    settings = ConfigParser(delimiters=["="])
    settings.read(root / "settings.ini", encoding="utf-8")
    version = settings["DEFAULT"]["version"]
    for name, pattern in PLACES.items():
        found = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.M)
        if not found or found[1] != version:
            yield f"{name} names version {found and found[1]}, settings.ini {version}"
    heads = re.findall(r"^## (.*)", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    if heads[:1] != ["Unreleased"]:
        yield f"CHANGELOG.md begins with {heads[:1]}: its first section is 'Unreleased'"
    for head in heads[1:]:
        if not re.fullmatch(r"\d+\.\d+\.\d+\w* - \d{4}-\d\d-\d\d", head):
            yield f"CHANGELOG.md has the section {head!r}: write VERSION - YEAR-MONTH-DAY"
    if tag and tag != f"v{version}":
        yield f"the tag is {tag}, settings.ini names version {version}"
    if tag and (len(heads) < 2 or heads[1].split(" - ")[0] != version):
        yield f"CHANGELOG.md has no section of version {version} right below 'Unreleased'"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tag", help="the tag that is about to be released")
    here = Path(__file__).parents[1]
    parser.add_argument("--root", type=Path, default=here, help="the repository (default: this one)")
    args = parser.parse_args()
    found = list(faults(args.root, args.tag))
    if found:
        print(*found, sep="\n", file=sys.stderr)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
