"""Take the pictures of the workbench again: a real run in JupyterLab, in Chromium, at two widths and in two themes, and a film of it.

    python tools/screenshots.py [FOLDER]      default: nbs/images/workbench

Needs chromium and `pip install -e '.[dev]'`; takes some minutes. The run that is shown is made first, on handwritten digits, and watched while it trains.
"""

import io
import os
import re
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import lab  # noqa: E402

WIDTHS = {1280: 960, 1920: 1080}
CELL = "from lottery_nb.workbench.workbench import Workbench\nbench = Workbench()\nbench"


def shoot(page, folder, name):
    """One picture for each width and theme, in 256 colours."""
    folder.mkdir(parents=True, exist_ok=True)
    for width, height in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": height})
        for dark in (False, True):
            lab.theme(page, dark)
            page.wait_for_timeout(1500)
            page.evaluate("() => document.querySelector('.lottery-bench').scrollIntoView()")
            page.wait_for_timeout(300)
            picture = (
                Image.open(io.BytesIO(page.screenshot()))
                .convert("RGB")
                .quantize(256, dither=Image.Dither.NONE)
            )
            picture.save(folder / f"{name}-{width}-{'dark' if dark else 'light'}.png", optimize=True)
    lab.theme(page, False)


def film(page, frames, done):
    """Take a picture a second until `done()`; the page is at 1280 pixels."""
    page.set_viewport_size({"width": 1280, "height": WIDTHS[1280]})
    page.evaluate("() => document.querySelector('.lottery-bench').scrollIntoView()")
    page.wait_for_timeout(1500)
    while not done():
        frames.append(
            Image.open(io.BytesIO(page.locator(".lottery-bench").first.screenshot())).convert("RGB")
        )
        page.wait_for_timeout(1000)


def develop(frames, path, most=48):
    """One animated picture of at most so many frames; the last one stays for four seconds."""
    chosen = (
        [frames[round(k * (len(frames) - 1) / (most - 1))] for k in range(most)]
        if len(frames) > most
        else frames
    )
    first, *rest = [f.crop((0, 0, *chosen[-1].size)) for f in chosen]
    first.save(
        path,
        save_all=True,
        append_images=rest,
        duration=[250] * len(rest) + [4000],
        loop=0,
        lossless=True,
        minimize_size=True,
    )


def click(page, text):
    page.locator(".lottery-bench button", has_text=re.compile(rf"{text}\s*$")).last.click()


def fill(page, label, value):
    page.get_by_label(label, exact=True).fill(str(value))
    page.get_by_label(label, exact=True).press("Tab")


def slide(page, label, presses):
    page.locator(".lottery-field", has_text=label).get_by_role("slider").focus()
    for _ in range(abs(presses)):
        page.keyboard.press("ArrowRight" if presses > 0 else "ArrowLeft")


def pause_amid_a_round(page, standing):
    """Pause where curves have begun; a little later, where none have."""
    while True:
        click(page, "Pause")
        lab.until(page, lambda: "paused" in standing.inner_text())
        page.wait_for_timeout(1500)
        if lab.points(page, "training") > 60:
            return
        click(page, "Resume")
        page.wait_for_timeout(700)


def visit(page, folder):
    """Find, watch half way, transfer, compare."""
    page.wait_for_selector('.lottery-card[data-chart="network"] .main-svg', timeout=90_000)
    fill(page, "Learning rate", 0.05)
    fill(page, "Epochs", 25)
    slide(page, "Pruned in each round", 4)
    slide(page, "Rounds", -2)
    fill(page, "Seeds", 4)
    page.wait_for_timeout(2000)
    click(page, "Measure time and memory")
    lab.until(page, lambda: "examples/s; " in page.locator(".lottery-side").inner_text(), 120)
    shoot(page, folder, "find")
    page.locator(".lottery-bench button", has_text=re.compile(r"^\s*Run$")).first.click()
    standing, frames = page.locator(".lottery-standing"), []
    film(
        page,
        frames,
        lambda: standing.count() and int((re.search(r"(\d+) of", standing.inner_text()) or [0, 0])[1]) >= 32,
    )
    pause_amid_a_round(page, standing)
    shoot(page, folder, "watch")
    click(page, "Resume")
    lab.until(page, lambda: "running" in standing.inner_text())
    film(page, frames, lambda: "done" in standing.inner_text())
    film(page, frames, iter((False, True)).__next__)
    develop(frames, folder / "watch.webp")
    click(page, "Transfer")
    for target in ("digits+invert", "digits+blur"):
        page.get_by_label(target, exact=True).click()
    for number in ("2", "4"):
        page.get_by_label(re.compile(rf"^{number}: ")).check()
    page.locator(".lottery-bench button:has-text('Run transfer'):enabled").click()
    lab.until(page, lambda: "transfer" in standing.inner_text() and "done" in standing.inner_text(), 500)
    page.wait_for_timeout(1500)
    shoot(page, folder, "transfer")
    click(page, "Compare")
    page.get_by_label(re.compile("^find-")).first.check()
    lab.until(page, lambda: lab.points(page, "curves") > 0 and lab.points(page, "overlap") > 0)
    page.wait_for_timeout(1500)
    shoot(page, folder, "compare")


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "nbs" / "images" / "workbench").resolve()
    if lab.missing():
        sys.exit(lab.missing())
    with tempfile.TemporaryDirectory() as home:
        place = Path(home)
        lab.notebook(place / "workbench.ipynb", CELL)
        threads = os.environ.get("OMP_NUM_THREADS", "1")
        with (
            lab.server(place, LOTTERY_RUNS=str(place / "lottery-runs"), OMP_NUM_THREADS=threads) as (
                address,
                token,
            ),
            lab.browser(1280, 960) as page,
        ):
            lab.open_notebook(page, address, token, "workbench.ipynb")
            lab.run_all(page)
            visit(page, folder)


if __name__ == "__main__":
    main()
