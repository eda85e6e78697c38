"""The panel in a real JupyterLab and a real browser: one long visit, each step judged by what the page shows."""

import csv
import re
import shutil
from pathlib import Path

import lab
import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(bool(lab.missing()), reason=lab.missing() or "-")
CELL = 2  # of the shipped notebook: the one that makes the workbench
BENCH = ".lottery-bench"


def fill(page, label, value):
    box = page.get_by_label(label, exact=True)
    box.fill(str(value))
    box.press("Tab")


def click(page, text):
    page.locator(f"{BENCH} button", has_text=re.compile(rf"{text}\s*$")).last.click()


def told(page):
    return page.locator(".lottery-told").inner_text()


def grows(page, chart, field="x", timeout=60):
    """Wait until a chart shows more points than now; both counts."""
    before = lab.points(page, chart, field)
    lab.until(page, lambda: lab.points(page, chart, field) > before, timeout)
    return before, lab.points(page, chart, field)


def networks_done(page):
    return int(re.search(r"(\d+) of \d+ networks", told(page))[1])


@pytest.fixture(scope="module")
def visit(tmp_path_factory):
    """The shipped notebook, open in JupyterLab, with an empty folder for runs."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(ROOT / "nbs" / "20_workbench.ipynb", folder / "workbench.ipynb")
    runs = folder / "lottery-runs"
    with lab.server(folder, LOTTERY_RUNS=str(runs), OMP_NUM_THREADS="1") as (address, token), lab.browser(1400, 1000) as page:
        lab.open_notebook(page, address, token, "workbench.ipynb")
        lab.run_all(page)
        page.wait_for_selector('.lottery-card[data-chart="network"] .main-svg', timeout=90_000)
        yield page, runs, (address, token)


def test_a_whole_visit(visit):
    page, runs, (address, token) = visit

    # Find: samples, sizes, a schedule that follows the slider, a refusal next to its field
    assert page.locator(".lottery-samples img").count() == 1
    assert "50,610 parameters, 97.2% may be pruned" in page.locator(BENCH).inner_text()
    assert lab.points(page, "schedule") == 9
    slider = page.locator(".lottery-field", has_text="Rounds").get_by_role("slider")
    slider.focus()
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    lab.until(page, lambda: lab.points(page, "schedule") == 3)
    fill(page, "Learning rate", 0)
    lab.until(page, lambda: page.locator(".lottery-field", has_text="Learning rate").get_by_role("alert").count() == 1)
    assert "Recipe.lr=0" in page.locator(".lottery-why").inner_text()
    run = page.locator(f"{BENCH} button", has_text=re.compile(r"^\s*Run$")).first
    assert run.is_disabled()
    fill(page, "Learning rate", 0.05)
    fill(page, "Epochs", 60)
    page.get_by_label("random mask").first.uncheck()
    lab.until(page, lambda: page.locator(".lottery-why").count() == 0 and run.is_enabled())
    assert page.locator(".lottery-why").count() == 0

    # Run: points come while no network is done
    run.click()
    lab.until(page, lambda: lab.points(page, "training") > 2)
    first, second = grows(page, "training"), grows(page, "accuracy")
    assert first[0] < first[1] and second[0] < second[1] and networks_done(page) == 0 and "running" in told(page)
    assert page.evaluate("async () => { const k = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel; const r = await k.requestExecute({code: '6*7'}).done; return r.content.status }") == "ok"

    # Pause: nothing more comes; Resume: it does
    click(page, "Pause")
    lab.until(page, lambda: "paused" in told(page))
    page.wait_for_timeout(500)
    at_rest = lab.points(page, "training")
    page.wait_for_timeout(1500)
    assert lab.points(page, "training") == at_rest
    click(page, "Resume")
    lab.until(page, lambda: "running" in told(page))
    grows(page, "training")

    # Reload: all points come back
    before = page.evaluate("() => document.querySelector('[data-chart=training] .lottery-plot')._fullData.map(t => t.name + Array.from(t.x.slice(0, 3)))")[0]
    page.evaluate("() => window.jupyterapp.shell.currentWidget.context.save()")
    page.reload()
    page.wait_for_selector('.lottery-card[data-chart="training"] .main-svg', timeout=60_000)
    lab.until(page, lambda: lab.points(page, "training") >= 3)
    lines = page.evaluate("() => document.querySelector('[data-chart=training] .lottery-plot')._fullData.map(t => t.name + Array.from(t.x.slice(0, 3)))")
    assert before in lines or networks_done(page) > 0

    # a second view of the same cell shows the same
    page.evaluate("() => { const p = window.jupyterapp.shell.currentWidget; p.content.activeCellIndex = 3; return window.jupyterapp.commands.execute('notebook:create-output-view') }")
    lab.until(page, lambda: page.locator('.lottery-card[data-chart="training"] .main-svg').count() >= 2)

    # Restart of the kernel: the view says so; the cell run again is back at the run, which never stopped
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext?.session?.kernel?.restart() ?? [...window.jupyterapp.shell.widgets('main')].find(w => w.sessionContext).sessionContext.session.kernel.restart()")
    lab.until(page, lambda: page.locator(".lottery-gone:visible").count() >= 1)


def _unused(page):
    return csv
