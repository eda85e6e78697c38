"""Measure the panel in a real JupyterLab and Chromium, and write a table.

    python tools/measure_panel.py

A made-up log grows by 20,000 epochs of one network while the panel watches. Measured: time from an event on disk to its point on the page,
bytes of an update at the beginning and at the end, the page's memory before and after, and the kernel's share of a core while it watches.
"""

import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import lab  # noqa: E402

from lottery_nb.events import ArmStarted, EpochDone, Planned, RunStarted  # noqa: E402
from lottery_nb.runs.log import Log  # noqa: E402
from lottery_nb.runs.reading import write_plan  # noqa: E402
from lottery_nb.plans.find import FindPlan  # noqa: E402

CELL = """from lottery_nb.workbench.workbench import Workbench
sizes = []
bench = Workbench("run")
post = bench.live.post
bench.live.post = lambda message, everything: sizes.append(post(message, everything)) or sizes[-1]
bench"""
LAST = """() => {
  const plot = document.querySelector('[data-chart=training] .lottery-plot');
  const x = plot?._fullData?.[0]?.x ?? [];
  return x[x.length - 1] ?? 0;
}"""
EVAL = """async code => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const future = kernel.requestExecute({ code });
  let text = '';
  future.onIOPub = message => { text += message.content.text ?? ''; };
  await future.done;
  return text;
}"""
ARM = "r00/dense/s0"


def epoch(log, number):
    log.write(EpochDone(ARM, number, number, 0.1, 1.0, 0.5, 1.0, 0.5 + 0.4 * number / 21_000, 0.01))


def seconds_to_page(page, log, last, times, every=1):
    """Seconds from the write of an event to its point in the plot; only the last of `every` events becomes one."""
    found = []
    for _ in range(times):
        for number in range(last + 1, last + 1 + every):
            epoch(log, number)
        last += every
        clock = time.monotonic()
        while page.evaluate(LAST) < last:
            page.wait_for_timeout(5)
        found.append(time.monotonic() - clock)
        page.wait_for_timeout(137)  # not in step with the pump
    return found


def heap(page, session):
    """Bytes that the page's JavaScript holds, garbage collected."""
    session.send("HeapProfiler.collectGarbage")
    return page.evaluate("() => performance.memory.usedJSHeapSize")


def cpu(page):
    """Seconds of processor time that the kernel has used."""
    return float(re.search(r"[\d.]+", page.evaluate(EVAL, "import time; print(time.process_time())"))[0])


def sizes(page):
    return json.loads(page.evaluate(EVAL, "import json; print(json.dumps(sizes)); sizes.clear()"))


def watch(page, log, folder, number, total=20_000, rate=400):
    """Let `total` epochs come at about `rate` a second; (kernel's share of a core, sizes of early updates, of late ones)."""
    sizes(page)
    before, clock, start, early, late = cpu(page), time.monotonic(), number, [], False
    while number < total:
        for one in range(number + 1, number + 1 + rate // 10):
            epoch(log, one)
        number += rate // 10
        (folder / "heartbeat").touch()
        page.wait_for_timeout(max(0, 1000 * ((number - start) / rate - (time.monotonic() - clock))))
        if number > 1500 and not early:
            early = sizes(page)
        if number > total - 2000 and not late:
            sizes(page)
            late = True
    share = (cpu(page) - before) / (time.monotonic() - clock)
    return share, early, sizes(page), number


def main():
    if lab.missing():
        sys.exit(lab.missing())
    with tempfile.TemporaryDirectory() as home:
        place, run = Path(home), Path(home, "run")
        run.mkdir()
        write_plan(FindPlan("digits", seeds=1, controls=()), run)
        log = Log(run / "events.jsonl")
        for e in (
            RunStarted("hash", "FindPlan", "cpu", "a made-up log", {}, 1),
            Planned(11, 1e9),
            ArmStarted(
                ARM,
                dict(
                    source="digits",
                    domain="digits",
                    role="dense",
                    start="fresh",
                    round=0,
                    density=1.0,
                    seed=0,
                ),
                25_000,
                1293,
            ),
        ):
            log.write(e)
        (run / "heartbeat").write_text(str(os.getpid()))
        lab.notebook(place / "workbench.ipynb", CELL)
        with lab.server(place, OMP_NUM_THREADS="1") as (address, token), lab.browser(1280, 960) as page:
            lab.open_notebook(page, address, token, "workbench.ipynb")
            lab.run_all(page)
            for number in range(1, 21):
                epoch(log, number)
            lab.until(page, lambda: lab.points(page, "training") >= 20)
            page.wait_for_timeout(2000)
            session = page.context.new_cdp_session(page)
            delays, first = seconds_to_page(page, log, 20, 40), heap(page, session)
            share, early, late, number = watch(page, log, run, 60)
            while number % 16:
                epoch(log, number := number + 1)
            page.wait_for_timeout(3000)
            after, last = seconds_to_page(page, log, number, 40, 16), heap(page, session)
            idle, clock = cpu(page), time.monotonic()
            page.wait_for_timeout(10_000)
            idle = (cpu(page) - idle) / (time.monotonic() - clock)
            points = lab.points(page, "training")

    def ms(values, q):
        return f"{1000 * statistics.quantiles(values, n=20)[q]:.0f} ms"

    for name, value in {
        "event on disk to point on page, first epochs (median, 95 %)": f"{ms(delays, 9)}, {ms(delays, 18)}",
        "the same after 20,000 epochs (these come as one point in sixteen)": f"{ms(after, 9)}, {ms(after, 18)}",
        "memory of the page before and after 20,000 epochs": f"{first / 2**20:.0f} MiB, {last / 2**20:.0f} MiB",
        "points that the page holds of them": f"{points}",
        "bytes of an update, early and late (median)": ", ".join(
            f"{statistics.median(each):,.0f}" for each in (early, late)
        ),
        "kernel while 400 epochs a second come": f"{100 * share:.0f} % of a core",
        "kernel while nothing comes": f"{100 * idle:.1f} % of a core",
    }.items():
        print(f"{name:70s} {value}")


if __name__ == "__main__":
    main()
