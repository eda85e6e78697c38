"""What is installed, and what its modules may import."""

import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import who_knows
import versions
import yaml
from nbdev.doclinks import nbglob
from nbdev.process import NBProcessor

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lottery_nb"
DRAWS = ("results", "workbench", "cli")  # all else must run where there is no plotly and no widget
DRAWS_NOTHING = (
    *(f"results.{room}" for room in ("stats", "tables", "verdict", "style", "landmarks", "words")),
    "workbench.cost",
)
NOT_ON_A_BARE_MACHINE = [
    "plotly",
    "anywidget",
    "ipywidgets",
    "IPython",
    "jupyterlab",
    "fastcore",
    "nbdev",
    "execnb",
]
SHIPPED = [
    "settings.ini",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "TICKETS.md",
    "CITATION.cff",
    "lottery_nb",
]


def numbered_modules():
    """`{module: number in its notebook's name}`, in the order of the notebooks; a module in a wing is 'wing.room'."""
    numbers = {}
    for path in sorted((ROOT / "nbs").rglob("[0-9]*.ipynb"), key=lambda path: path.name):
        cells = NBProcessor(path).nb.cells
        [*exports] = [
            cell.directives_["default_exp"][0] for cell in cells if "default_exp" in cell.directives_
        ]
        numbers.update({name: int(path.name[:2]) for name in exports})
        assert all(
            path.relative_to(ROOT / "nbs").parts[:-1] == tuple(name.split(".")[:-1]) for name in exports
        ), path
    return numbers


MODULES = numbered_modules()


def imports_of(module):
    """Every dotted name that a module imports anywhere, also inside its functions."""
    found = set()
    here = ["lottery_nb", *module.split(".")]
    for node in ast.walk(ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*here[: -node.level], *([node.module] if node.module else [])])
                if node.level
                else node.module
            )
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def ours_in(module):
    """The rooms that a module imports from."""
    return {name.removeprefix("lottery_nb.") for name in imports_of(module)} & MODULES.keys()


def run(*command, **options):
    """A child process that must succeed; what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("module", MODULES)
def test_imports_stay_in_order(module):
    names = imports_of(module)
    assert not {name.split(".")[0] for name in names} & {"fastcore", "nbdev", "execnb"}
    order = list(MODULES)
    later = {other for other in ours_in(module) if order.index(other) >= order.index(module)}
    assert not later, f"{module} imports from a later notebook: {later}"


WINGS = {  # wing -> what it may import beside itself and the ground
    "data": "",
    "models": "",
    "pruning": "models",
    "rewinding": "models pruning",
    "engine": "data models pruning rewinding",
    "plans": "data models pruning rewinding engine",
    "runs": "data models pruning rewinding engine plans",
    "sweeps": "pruning engine plans runs",
    "results": "data models pruning rewinding plans runs",
    "science": "data models pruning rewinding engine plans runs results",
    "workbench": "data models pruning rewinding engine plans runs results science",
    "papers": "data models pruning rewinding engine plans runs results science",
    "bench": "data models pruning rewinding engine plans runs results",
}
GROUND = {"code", "core", "events", "files", "trust", "keys", "functions"}


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_imports_what_stands_below_it(wing):
    rooms = [module for module in MODULES if module.startswith(wing + ".")]
    wings = {other.split(".")[0] for room in rooms for other in ours_in(room)}
    assert rooms and wings <= {wing, *GROUND, *WINGS[wing].split()}, wings


OLD = json.loads((ROOT / "tests" / "golden" / "names.json").read_text())  # names of version 0.1, by module


def test_no_room_hides_a_name_that_its_wing_lends():
    code = f"""
        import importlib, warnings
        warnings.simplefilter("ignore")
        OLD = {OLD!r}
        for name in {list(MODULES)}:
            importlib.import_module("lottery_nb." + name)
        for wing in {list(WINGS)}:
            module = importlib.import_module("lottery_nb." + wing)
            rooms = {{
                name
                for name, value in vars(module).items()
                if hasattr(value, "__path__") or hasattr(value, "__spec__")
            }}
            assert not rooms & set(OLD.get(wing, ())), (wing, rooms & set(OLD[wing]))
        import lottery_nb
        assert not set(lottery_nb.__all__) & {set(WINGS) | GROUND!r}"""
    run(sys.executable, "-c", textwrap.dedent(code))


def test_engine_runs_on_a_bare_machine():
    engine = [
        f"lottery_nb.{module}"
        for module in MODULES
        if module.split(".")[0] not in DRAWS or module in DRAWS_NOTHING
    ]
    assert len(DRAWS_NOTHING) < len(engine)
    code = (
        "import sys, importlib\n"
        f"sys.modules.update(dict.fromkeys({NOT_ON_A_BARE_MACHINE}))\n"
        f"for name in {engine}: importlib.import_module(name)"
    )
    run(sys.executable, "-c", code, cwd=ROOT.parent)


def test_modules_come_from_notebooks():
    there = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    assert there == MODULES.keys() | {"__init__", "_modidx", "_moved"} | {
        f"{wing}.__init__" for wing in WINGS
    }
    for module in MODULES:
        text = (PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        assert "AUTOGENERATED" in text[:500], module


def test_nbdev_sees_every_notebook(monkeypatch):
    """nbdev_test prints no count, and takes a notebook that it does not see for one that passed."""
    monkeypatch.chdir(ROOT)
    seen = {path.absolute().relative_to(ROOT / "nbs") for path in nbglob(as_path=True)}
    there = {
        path.relative_to(ROOT / "nbs")
        for path in (ROOT / "nbs").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in path.parts
    }
    assert seen == there and len([path for path in seen if len(path.parts) == 2]) > 40


def test_index_is_a_link():
    link = ROOT / "nbs" / "index.ipynb"
    assert link.is_symlink() and os.readlink(link) == "../index.ipynb"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_pages_name_files_that_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"\]\((?!https?:)([^)#]+)", text) + re.findall(
        r"`((?:nbs|tests|tools)/[\w/]+\.\w+)`", text
    )
    assert named and not [name for name in named if not (ROOT / name).exists()]


USERS = {"papers", "bench"}  # wings that use built-in names as anybody does


def test_the_table_of_changes_names_every_module_that_knows_of_one():
    """For each kind in CONTRIBUTING.md: modules that hold a built-in member's name are those of the notebooks in its row."""
    rows = [
        line.split("|")[1:3]
        for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    by_kind = {
        kind.strip(): re.findall(r"`nbs/(?:(\w+)/)?\d+_(\w+)\.ipynb`", files)
        for what, files in rows
        for kind in what.split(",")
    }
    for kind, member, modules in who_knows.rows():
        named = {".".join(filter(None, pair)) for pair in by_kind[kind]}
        known = {module for module in modules if module.split(".")[0] not in USERS}
        assert known and known <= named, (
            f"{kind} {member!r} is known in {sorted(known - named)}, which its row does not name"
        )
    touched = [len({".".join(filter(None, pair)) for pair in by_kind[kind]}) for kind in who_knows.MEMBERS]
    assert sum(n == 1 for n in touched) >= 8


def test_pyproject_leaves_the_package_to_settings():
    tables = re.findall(r"^\[([\w-]+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert set(tables) == {"build-system", "tool"}
    assert "pkg_resources" not in (ROOT / "setup.py").read_text(encoding="utf-8")


# --- what people of the field expect beside good code ---

FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
YAML = [*FORMS, *WORKFLOWS, ROOT / "CITATION.cff", ROOT / ".pre-commit-config.yaml"]


def parsed(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_parses(path):
    assert isinstance(parsed(path), dict)


def test_versions_agree():
    assert list(versions.faults(ROOT)) == []


@pytest.mark.parametrize(
    "name, old, new, tag, says",
    [
        (
            "CITATION.cff",
            "version: 1.2.0",
            "version: 1.1.0",
            None,
            "CITATION.cff names version 1.1.0, settings.ini 1.2.0",
        ),
        ("CITATION.cff", "version: 1.2.0", "", None, "CITATION.cff names version None"),
        ("lottery_nb/__init__.py", "1.2.0", "1.3.0", None, "lottery_nb/__init__.py names version 1.3.0"),
        ("CHANGELOG.md", "## Unreleased", "## New", None, "its first section is 'Unreleased'"),
        ("CHANGELOG.md", "2026-01-31", "January", None, "1.2.0 - January"),
        ("CHANGELOG.md", "1.2.0 -", "1.1.0 -", "v1.2.0", "no section of version 1.2.0"),
        ("CHANGELOG.md", "1.2.0 -", "1.2.0 -", "v1.3.0", "the tag is v1.3.0"),
        ("CHANGELOG.md", "1.2.0 -", "1.2.0 -", "v1.2.0", ""),
    ],
)
def test_versions_that_differ_are_named(name, old, new, tag, says, tmp_path):
    (tmp_path / "lottery_nb").mkdir()
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nversion = 1.2.0\n")
    (tmp_path / "CITATION.cff").write_text("cff-version: 9\nversion: 1.2.0\n")
    (tmp_path / "lottery_nb/__init__.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n## Unreleased\n## 1.2.0 - 2026-01-31\n")
    (tmp_path / name).write_text((tmp_path / name).read_text().replace(old, new))
    found = list(versions.faults(tmp_path, tag))
    assert (found == []) if not says else any(says in fault for fault in found)


def test_the_citation_names_the_papers():
    cited, setup = parsed(ROOT / "CITATION.cff"), (ROOT / "settings.ini").read_text(encoding="utf-8")
    assert f"license = {cited['license']}\n" in setup and f"author = {cited['authors'][0]['name']}\n" in setup
    named = {reference["identifiers"][0]["value"]: reference["url"] for reference in cited["references"]}
    papers = ("1905.07785", "1910.12708", "1803.03635")
    assert named == {f"arXiv:{number}": f"https://arxiv.org/abs/{number}" for number in papers}


def test_forms_ask_for_what_is_needed():
    forms = {path.stem: parsed(path) for path in FORMS if path.stem != "config"}
    assert forms.keys() == {"bug", "feature", "question"}
    for form in forms.values():
        assert {"name", "description", "body"} <= form.keys() and any(
            part.get("validations") for part in form["body"]
        )
        ids = [part["id"] for part in form["body"]]
        assert len(ids) == len(set(ids))
    [doctor] = [part for part in forms["bug"]["body"] if part["id"] == "doctor"]
    assert "`lottery doctor`" in doctor["attributes"]["label"] and doctor["validations"]["required"]


def test_hooks_are_commands_of_ones_own_environment():
    [local] = parsed(ROOT / ".pre-commit-config.yaml")["repos"]
    entries = {hook["id"]: hook["entry"].split() for hook in local["hooks"]}
    assert local["repo"] == "local" and list(entries) == ["clean", "export", "flags", "readme", "ruff"]
    for hook in local["hooks"]:
        assert (
            hook["language"] == "system" and not hook["pass_filenames"] and re.compile(hook.get("files", ""))
        )
        assert (Path(sys.executable).parent / entries[hook["id"]][0]).exists() or entries[hook["id"]][
            0
        ] == "python"
    assert all((ROOT / entries[hook][1]).exists() for hook in ("flags", "readme"))
    gate = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert " ".join(entries["ruff"]) in gate  # the hook asks what the gate asks
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "`pre-commit install`" in text and "`.ci/run --fast`" in text
    assert (
        "pre-commit" in (ROOT / "settings.ini").read_text(encoding="utf-8").partition("dev_requirements")[2]
    )


def test_a_release_is_built_then_tried_then_published_without_a_password():
    text = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    release = yaml.safe_load(text)
    jobs = release["jobs"]
    assert release[True] == {"push": {"tags": ["v*"]}} and "secrets." not in text and "password:" not in text
    assert list(jobs) == ["build", "check", "publish"]
    assert jobs["check"]["needs"] == "build" and jobs["publish"]["needs"] == "check"
    assert jobs["publish"]["permissions"] == {"id-token": "write"} and release["permissions"] == {
        "contents": "read"
    }
    assert not any(
        "checkout" in step.get("uses", "") for step in jobs["check"]["steps"]
    )  # only what was built
    lowest = re.search(r"min_python = (.*)", (ROOT / "settings.ini").read_text(encoding="utf-8"))[1]
    tested = parsed(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert jobs["check"]["strategy"]["matrix"]["python"] == tested and tested[0] == lowest
    everything = "".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    named = re.findall(r"(?:\btools|\.ci)/[\w.]+", everything)
    assert named and all((ROOT / name).exists() for name in named)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the source archive, and the wheel made from that archive."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    names = [path.relative_to(ROOT) for part in SHIPPED for path in [ROOT / part, *(ROOT / part).rglob("*")]]
    for name in names:
        if (ROOT / name).is_file() and "__pycache__" not in name.parts:
            (source / name).parent.mkdir(exist_ok=True, parents=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source)
    return folder


def test_wheel_from_the_source_archive(built, tmp_path):
    [sdist], [wheel] = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(sdist) as archive:
        packed = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {name for name in SHIPPED if name != "lottery_nb"} <= packed
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = {Path(name).name: archive.read(name).decode() for name in names if ".dist-info/" in name}
        archive.extractall(tmp_path)
    assert {name for name in names if ".dist-info/" not in name} == {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "License-Expression: Apache-2.0" in info["METADATA"] and "LICENSE" in info
    assert "lottery = lottery_nb.cli:main" in info["entry_points.txt"]
    assert {"lottery_nb/workbench/static/live.js", "lottery_nb/workbench/static/live.css"} <= names
    code = (
        "import lottery_nb, importlib; "
        f"[importlib.import_module('lottery_nb.' + name) for name in {list(MODULES)}]; "
        "print(lottery_nb.__file__)"
    )
    where = run(
        sys.executable, "-c", code, cwd=tmp_path.parent, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert where.startswith(str(tmp_path))


# --- what a type checker sees after `pip install -e .` ---

USES = """
import lottery_nb as lt

recipe = lt.Recipe(optimizer="{optimizer}")
plan = lt.TransferPlan(tickets=(), targets=("digits",), body="{body}")
"""
CHECKERS = {
    "mypy": ["-m", "mypy", "--config-file=", "--ignore-missing-imports", "--python-executable"],
    "basedpyright": ["-m", "basedpyright", "--level", "error", "--pythonpath"],
}


@pytest.fixture(scope="module")
def editable(tmp_path_factory):
    """The interpreter of a bare environment that has this checkout as `pip install -e .` leaves it, and nothing else."""
    place = tmp_path_factory.mktemp("editable") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", place)
    how = ["--ignore-installed", "--no-deps", "--no-build-isolation", "--prefix", place]
    run(sys.executable, "-m", "pip", "install", "-q", *how, "-e", ROOT)
    return place / "bin" / "python"


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_finds_a_wrong_word_through_the_face(checker, editable, tmp_path):
    if checker not in {distribution.name for distribution in metadata.distributions()}:
        pytest.skip(f"{checker} is not installed: pip install {checker}")
    said = {}
    for name, words in {"right": ("adam", "frozen"), "wrong": ("adamm", "frzen")}.items():
        path = tmp_path / f"{name}.py"
        path.write_text(USES.format(optimizer=words[0], body=words[1]))
        line = [sys.executable, *CHECKERS[checker], editable, path]
        env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MYPYPATH")}
        said[name] = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert said["right"].returncode == 0, said["right"].stdout
    assert said["wrong"].returncode == 1
    assert all(word in said["wrong"].stdout for word in ("wrong.py:4:", "adamm", "wrong.py:5:", "frzen"))
