"""The panel in a real JupyterLab and a real browser: one long visit, each step judged by what the page shows."""

import csv
import io
import os
import re
import shutil
from pathlib import Path

import lab
import pytest

from lottery_nb.runs.reading import Run

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(bool(lab.missing()), reason=lab.missing() or "-")
IMPORT, CELL = 2, 3  # of the shipped notebook: the cells that import and make the workbench
EPOCHS = 300  # so many that a network trains for some seconds
BENCH = ".lottery-bench"
PICTURES = os.environ.get("LOTTERY_PICTURES")
KERNEL_ANSWERS = """async () => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  return (await kernel.requestExecute({ code: '6 * 7' }).done).content.status;
}"""
SECOND_VIEW = """cell => {
  window.jupyterapp.shell.currentWidget.content.activeCellIndex = cell;
  return window.jupyterapp.commands.execute('notebook:create-output-view');
}"""
SAVE = (
    "() => [...window.jupyterapp.shell.widgets('main')].find(widget => widget.sessionContext).context.save()"
)
VIEWS = (
    "() => [...document.querySelectorAll('[data-chart=training] .lottery-plot')]"
    ".map(plot => plot._fullData?.length)"
)
DATA = """([chart, field]) => {
  const plot = document.querySelector(`.lottery-card[data-chart="${chart}"] .lottery-plot`);
  const traces = (plot?._fullData ?? []).filter(t => t.showlegend !== false || chart === 'training');
  return traces.map(t => [t.name, Array.from(t[field])]);
}"""

IN_VIEW = """chart => {
  const plot = document.querySelector(`.lottery-card[data-chart="${chart}"] .lottery-plot`);
  const [low, high] = plot._fullLayout.yaxis.range;
  const values = plot._fullData.flatMap(trace => Array.from(trace.y ?? []));
  return values.length > 0 && values.some(v => low <= v && v <= high);
}"""


def fill(page, label, value):
    box = page.get_by_label(label, exact=True)
    box.fill(str(value))
    box.press("Tab")


def click(page, text):
    page.locator(f"{BENCH} button", has_text=re.compile(rf"{text}\s*$")).last.click()


def standing(page):
    return page.locator(".lottery-standing").inner_text()


def grows(page, chart, field="x", timeout=60):
    """Wait until a chart shows more points than now; both counts."""
    before = lab.points(page, chart, field)
    lab.until(page, lambda: lab.points(page, chart, field) > before, timeout)
    return before, lab.points(page, chart, field)


def data(page, chart, field="x"):
    """(name, values) of each curve in a chart, as it is drawn."""
    return page.evaluate(DATA, [chart, field])


def shot(page, name):
    """Pictures at both widths and in both themes, where CI asks for them."""
    if not PICTURES:
        return
    for width, height in ((1920, 1080), (1280, 960)):
        page.set_viewport_size({"width": width, "height": height})
        for dark in (True, False):
            lab.theme(page, dark)
            page.wait_for_timeout(500)
            page.screenshot(path=Path(PICTURES) / f"{name}-{width}-{'dark' if dark else 'light'}.png")


def at_rest_in(page, chart):
    """The data of a chart once nothing came for a second."""
    while True:
        before = data(page, chart)
        page.wait_for_timeout(1000)
        if data(page, chart) == before:
            return before


def results(runs, pattern):
    """The results of the first run that fits, as rows of text."""
    [found] = runs.glob(pattern)
    return list(csv.DictReader(io.StringIO(Run(found).frame.to_csv())))


def networks_done(page):
    return int(re.search(r"(\d+) of \d+ networks", standing(page))[1])


@pytest.fixture
def visit(tmp_path):
    """The shipped notebook, open in JupyterLab, with an empty folder for runs."""
    folder = tmp_path / "lab"
    folder.mkdir()
    shutil.copy(ROOT / "nbs" / "71_workbench.ipynb", folder / "workbench.ipynb")
    runs = folder / "lottery-runs"
    with (
        lab.server(folder, LOTTERY_RUNS=str(runs), OMP_NUM_THREADS="1") as (address, token),
        lab.browser(1400, 1000) as page,
    ):
        lab.open_notebook(page, address, token, "workbench.ipynb")
        lab.run_all(page)
        page.wait_for_selector('.lottery-card[data-chart="network"] .main-svg', timeout=90_000)
        yield page, runs, (address, token)


def test_a_whole_visit(visit):
    page, runs, (address, token) = visit

    # Find: samples, sizes, a schedule that follows the slider, a refusal next to its field
    assert page.locator(".lottery-samples img").count() == 1
    assert "50,610 parameters, 97.2% may be pruned" in page.locator(BENCH).inner_text()
    assert lab.points(page, "schedule") == 11
    slider = page.locator(".lottery-field", has_text="Rounds").get_by_role("slider")
    slider.focus()
    for _ in range(9):
        page.keyboard.press("ArrowLeft")
    lab.until(page, lambda: lab.points(page, "schedule") == 2)
    fill(page, "Learning rate", 0)
    lab.until(
        page,
        lambda: page.locator(".lottery-field", has_text="Learning rate").get_by_role("alert").count() == 1,
    )
    assert "lr=0" in page.locator(".lottery-why").inner_text()
    run = page.locator(f"{BENCH} button", has_text=re.compile(r"^\s*Run$")).first
    assert run.is_disabled()
    fill(page, "Learning rate", 0.05)
    fill(page, "Epochs", EPOCHS)
    fill(page, "Seeds", 2)
    lab.until(page, run.is_enabled)  # what was refused is gone, and nothing moves under the pointer
    for control in ("random mask", "reinit"):
        page.get_by_label(control, exact=True).first.uncheck()
    lab.until(page, lambda: run.is_enabled() and "4 networks" in page.locator(".lottery-side").inner_text())
    click(page, "Measure time and memory")
    lab.until(page, lambda: "examples/s; " in page.locator(".lottery-side").inner_text())
    assert re.search(
        r"About \d+ (s|min) for 4 networks at [\d,]+ examples/s; \d+\.\d GiB on ",
        page.locator(".lottery-side").inner_text(),
    )
    shot(page, "find")

    # Run: points come while no network is done
    run.click()
    lab.until(page, lambda: lab.points(page, "training") > 2)
    first, second = grows(page, "training"), grows(page, "accuracy")
    assert (
        first[0] < first[1]
        and second[0] < second[1]
        and networks_done(page) == 0
        and "running" in standing(page)
    )
    assert page.evaluate(KERNEL_ANSWERS) == "ok"

    # Pause: nothing more comes
    click(page, "Pause")
    lab.until(page, lambda: "paused" in standing(page))
    at_rest = at_rest_in(page, "training")
    page.wait_for_timeout(1500)
    assert data(page, "training") == at_rest and len(at_rest[0][1]) > 2

    # A second view of the cell shows the same points, and so does the page after a reload
    page.evaluate(SECOND_VIEW, CELL)
    lab.until(page, lambda: page.locator(BENCH).count() == 2 and page.evaluate(VIEWS) == [len(at_rest)] * 2)
    page.evaluate(SAVE)
    page.reload()
    page.wait_for_selector('.lottery-card[data-chart="training"] .main-svg', timeout=60_000)
    lab.until(page, lambda: page.locator(BENCH).count() == 1 and data(page, "training") == at_rest)

    # Resume: it goes on
    click(page, "Resume")
    grows(page, "training")
    assert "running" in standing(page)

    # Restart of the kernel: the view says so; the cell run again is back at the run, which never stopped
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    page.locator(".lottery-gone").wait_for(state="visible", timeout=30_000)
    page.wait_for_function(lab.READY, timeout=60_000)
    lab.run_cell(page, IMPORT)
    lab.run_cell(page, CELL)
    lab.until(
        page,
        lambda: (
            page.locator(".lottery-gone:visible").count() == 0
            and page.locator(".lottery-standing").count() == 1
            and lab.points(page, "training") > 2
        ),
    )
    assert "running" in standing(page)
    grows(page, "training")

    # Stop and take up again: heatmap and mask fill in, and the run ends
    click(page, "Stop")
    lab.until(page, lambda: "stopped" in standing(page))
    assert len(list(runs.glob("find-*/heartbeat"))) == 0
    click(page, "Resume")
    lab.until(page, lambda: lab.points(page, "layers", "z") > 0 and lab.points(page, "mask", "z") == 64, 120)
    lab.until(page, lambda: "done" in standing(page), 120)
    assert (
        networks_done(page) == 4 and page.evaluate(IN_VIEW, "training") and page.evaluate(IN_VIEW, "accuracy")
    )
    shot(page, "watch")
    shown = lab.until(
        page, lambda: {name: y for name, y in data(page, "accuracy", "y") if y and name == "ticket"}
    )
    result = [
        row
        for row in results(runs, "find-*")
        if row["split"] == "test" and row["metric"] == "accuracy" and row["role"] == "ticket"
    ]
    assert shown["ticket"] == [pytest.approx(100 * sum(float(row["value"]) for row in result) / len(result))]

    # Transfer: two targets, picked with the mouse; matrix and curves fill in
    click(page, "Transfer")
    for target in ("digits+invert", "digits+blur"):
        page.get_by_label(target, exact=True).click()
    go = page.locator(f"{BENCH} button", has_text="Run transfer")
    lab.until(page, lambda: go.is_enabled())
    go.click()
    lab.until(page, lambda: lab.points(page, "targets") > 0)
    grows(page, "targets")
    assert "running" in standing(page) and networks_done(page) < 10
    lab.until(page, lambda: lab.points(page, "matrix", "z") > 0, 120)
    shot(page, "transfer")
    click(page, "Stop")
    lab.until(page, lambda: "stopped" in standing(page))

    # Compare: curves, verdict, masks, and the ways out
    click(page, "Compare")
    lab.until(page, lambda: page.locator(".lottery-checks input").count() >= 2)
    page.get_by_label(re.compile("^find-digits-")).check()
    lab.until(page, lambda: lab.points(page, "curves") > 0 and lab.points(page, "overlap") > 0)
    assert "verdict" in page.locator(BENCH).inner_text()
    for way, pattern in (
        ("CSV file", "*.csv"),
        ("HTML report", "*.html"),
        ("Tickets", "tickets/*/*.safetensors"),
    ):
        click(page, way)
        lab.until(
            page,
            lambda p=pattern: (
                list((runs / "exports").glob(p)) and "Written to" in page.locator(BENCH).inner_text()
            ),
        )
    click(page, "Python cell")
    lab.until(page, lambda: page.locator("pre.lottery-code").count() >= 1)
    assert "FindPlan(" in page.locator(BENCH).inner_text()
    shot(page, "compare")
    assert page.faults == []


def test_the_same_panel_as_a_page_of_its_own(tmp_path):
    """Through Voilà: no code, the same charts, and a press of a button that moves the plot."""
    pytest.importorskip("voila")
    lab.notebook(
        tmp_path / "workbench.ipynb", "from lottery_nb.workbench.workbench import Workbench\nWorkbench()"
    )
    with (
        lab.server(
            tmp_path, "voila", ["workbench.ipynb"], LOTTERY_RUNS=str(tmp_path / "runs"), OMP_NUM_THREADS="1"
        ) as (address, token),
        lab.browser() as page,
    ):
        page.goto(f"{address}?token={token}")
        page.wait_for_selector('.lottery-card[data-chart="network"] .main-svg', timeout=90_000)
        assert lab.points(page, "schedule") == 11 and "Workbench()" not in page.inner_text("body")
        page.locator(".lottery-field", has_text="Rounds").get_by_role("slider").focus()
        page.keyboard.press("ArrowLeft")
        lab.until(page, lambda: lab.points(page, "schedule") == 10)


def test_in_notebook_7(tmp_path):
    """The shipped notebook outside JupyterLab: samples, charts, and a run whose points come in."""
    pytest.importorskip("notebook")
    runs = tmp_path / "lottery-runs"
    shutil.copy(ROOT / "nbs" / "71_workbench.ipynb", tmp_path / "workbench.ipynb")
    with (
        lab.server(tmp_path, "notebook", LOTTERY_RUNS=str(runs), OMP_NUM_THREADS="1") as (address, token),
        lab.browser(1400, 1000) as page,
    ):
        page.goto(f"{address}notebooks/workbench.ipynb?token={token}")
        page.wait_for_selector(".jp-Notebook", timeout=60_000)
        page.wait_for_function(lab.READY, timeout=60_000)
        its_own = len(page.faults)  # Notebook 7 may have an error of its own while it opens
        lab.run_all(page)
        page.wait_for_selector('.lottery-card[data-chart="network"] .main-svg', timeout=90_000)
        fill(page, "Epochs", EPOCHS)
        run = page.locator(f"{BENCH} button", has_text=re.compile(r"^\s*Run$")).first
        lab.until(page, run.is_enabled)
        run.click()
        lab.until(page, lambda: lab.points(page, "training") > 2)
        grows(page, "training")
        click(page, "Stop")
        lab.until(page, lambda: "stopped" in standing(page))
        assert page.faults[its_own:] == []
