"""Notebooks as tests of the *installed* package: exported cells are left out, their names come from the module.

`nbdev_test` has run every notebook on the notebook's own copy of the code, which sync_check holds equal to the module; so
those that export something run here only with `--flags modules`, and in the gate where a processor differs."""

import configparser
import importlib
import os
import sys
from pathlib import Path

import pytest
from execnb.shell import CaptureShell
from nbdev.process import NBProcessor

NBS = Path(__file__).parents[1] / "nbs"
NOTEBOOKS = sorted(
    (path for path in NBS.rglob("*.ipynb") if path.name != "index.ipynb"), key=lambda path: path.name
) + [NBS / "index.ipynb"]
EXPORTED = {"default_exp", "export", "exporti", "exports"}
settings = configparser.ConfigParser()
settings.read(NBS.parent / "settings.ini", encoding="utf-8")
OPTIONAL = settings["DEFAULT"]["tst_flags"].split()


def code_cells(path):
    """The code cells of a notebook, each with its directives (`#| …`) as `directives_`."""
    return [cell for cell in NBProcessor(path).nb.cells if cell.cell_type == "code"]


def module_of(cells):
    """The module that a notebook exports to, imported; None for a notebook without one."""
    names = [cell.directives_["default_exp"][0] for cell in cells if "default_exp" in cell.directives_]
    return importlib.import_module(f"lottery_nb.{names[0]}") if names else None


@pytest.fixture
def skipped_flags(request):
    """The flags whose cells are left out: all of `tst_flags`, less what `--flags` asks for."""
    return set(OPTIONAL) - set(request.config.getoption("--flags").split())


@pytest.fixture
def with_modules(request):
    """Whether notebooks that export something run too."""
    return "modules" in request.config.getoption("--flags").split()


@pytest.fixture
def shell(monkeypatch, path):
    """A fresh shell in the notebook's folder; environment, module path and working directory are as before afterwards."""
    before = dict(os.environ), list(sys.path)
    monkeypatch.chdir(path.parent)
    yield CaptureShell()
    os.environ.clear()
    os.environ.update(before[0])
    sys.path[:] = before[1]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, shell, skipped_flags, with_modules):
    cells = code_cells(path)
    module = module_of(cells)
    if module and not with_modules:
        pytest.skip("nbdev_test runs it; on the installed package: pytest --flags modules")
    if module:
        shell.user_ns.update(
            {name: value for name, value in vars(module).items() if not name.startswith("__")}
        )
    for cell in cells:
        if cell.directives_.keys() & (EXPORTED | skipped_flags):
            continue
        shell.run(cell.source)
        if shell.exc:
            shell.exc.add_note(f"in {path.name}, in the cell\n{cell.source}")
            raise shell.exc


@pytest.mark.parametrize("flag", OPTIONAL)
def test_optional_cells(flag, skipped_flags):
    """Passes when nothing is left out, and otherwise says what was."""
    counts = {path.stem: sum(flag in cell.directives_ for cell in code_cells(path)) for path in NOTEBOOKS}
    left_out = [f"{count} in {name}" for name, count in counts.items() if count]
    if left_out and flag in skipped_flags:
        pytest.skip(
            f"notebook cells marked #| {flag}: {', '.join(left_out)}; to run them: pytest --flags {flag}"
        )
