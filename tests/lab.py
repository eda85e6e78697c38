"""A real JupyterLab in a headless Chromium, for the tests of the panel and for its pictures."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

QUIET = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
READY = """() => {
  const panel = window.jupyterapp?.shell.currentWidget, kernel = panel?.sessionContext?.session?.kernel;
  const ready = panel?.sessionContext?.isReady && panel.context?.isReady;
  return !!(ready && kernel?.status === 'idle' && kernel.connectionStatus === 'connected');
}"""
POINTS = """([chart, field]) => {
  const plot = document.querySelector(`.lottery-card[data-chart="${chart}"] .lottery-plot`);
  if (!plot?._fullData) return 0;
  const size = v => Array.isArray(v?.[0]) ? v.length * v[0].length : v?.length ?? 0;
  return plot._fullData.reduce((n, trace) => n + size(trace[field] ?? trace.z), 0);
}"""


def missing():
    """Why the browser tests cannot run here, or ''."""
    if not browser_path():
        return "chromium is not installed (on Debian: apt-get install chromium)"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed (pip install -e '.[dev]')"
    return ""


def browser_path():
    return shutil.which("chromium") or shutil.which("chromium-browser")


def quiet_settings(folder):
    """Settings that keep JupyterLab from asking the network and from covering the page."""
    for plugin, values in QUIET.items():
        package, name = plugin.split(":")
        path = folder / package / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))


@contextlib.contextmanager
def server(folder, command="jupyterlab", arguments=(), **environment):
    """A server on `folder` with private settings; gives its address, and its token."""
    private = folder / ".private"
    names = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }
    env = {**os.environ, **{name: str(private / part) for name, part in names.items()}, **environment}
    for part in names.values():
        (private / part).mkdir(parents=True, exist_ok=True)
    quiet_settings(private / "settings")
    token, port = secrets.token_hex(8), free_port()
    jupyter = [
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        f"--IdentityProvider.token={token}",
        "--allow-root",
    ]
    exposed = {
        "jupyterlab": "--LabApp.expose_app_in_browser=True",
        "notebook": "--JupyterNotebookApp.expose_app_in_browser=True",
    }
    options = [*jupyter, exposed[command]] if command in exposed else [f"--port={port}", f"--token={token}"]
    with open(private / "server.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", command, "--no-browser", *options, *arguments],
            cwd=folder,
            env=env,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 60
        while not answers(port):
            assert process.poll() is None and time.monotonic() < deadline, (
                private / "server.log"
            ).read_text()[-3000:]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/", token
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        process.kill()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def browser(width=1280, height=900):
    """A page in Chromium; what it should not have done is in `page.faults`: errors, requests to other hosts."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        options = [
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-precise-memory-info",
        ]
        chromium = play.chromium.launch(executable_path=browser_path(), args=options)
        page = chromium.new_page(viewport={"width": width, "height": height})
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(f"page error: {error}"))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "blob:", "data:"))
                else page.faults.append(f"asked {request.url}")
            ),
        )
        yield page
        chromium.close()


def open_notebook(page, address, token, path, mode="doc"):
    """Open a notebook and wait until its kernel can be used."""
    page.goto(f"{address}{mode}/tree/{path}?token={token}")
    page.wait_for_selector(".jp-Notebook", timeout=60_000)
    page.wait_for_function(READY, timeout=60_000)


def run_all(page):
    """Run all cells, as the menu does."""
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")


def run_cell(page, number):
    """Run one cell of the notebook."""
    page.evaluate(
        """async number => {
          const app = window.jupyterapp, notebook = app.shell.currentWidget.content;
          notebook.activeCellIndex = number;
          await app.commands.execute('notebook:run-cell');
        }""",
        number,
    )


def theme(page, dark):
    page.evaluate(
        "name => window.jupyterapp.commands.execute('apputils:change-theme', { theme: name })",
        f"JupyterLab {'Dark' if dark else 'Light'}",
    )
    page.wait_for_function("dark => (document.body.dataset.jpThemeLight === 'false') === dark", arg=dark)


def points(page, chart, field="x"):
    """How many points a chart shows, counted in the plot itself."""
    return page.evaluate(POINTS, [chart, field])


def until(page, what, timeout=60.0, every=0.1):
    """Wait until `what()` is true; its last value."""
    deadline = time.monotonic() + timeout
    while not (value := what()):
        if time.monotonic() >= deadline:
            bench = page.locator(".lottery-bench")
            says = bench.first.inner_text()[:1500] if bench.count() else page.title()
            raise AssertionError(f"waited {timeout:g} s in vain; the page says: {says}")
        page.wait_for_timeout(1000 * every)
    return value


def notebook(path, *cells):
    """Write a small notebook."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    code = [
        {
            "cell_type": "code",
            "id": f"cell-{i}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": source,
        }
        for i, source in enumerate(cells)
    ]
    kernel = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}}
    Path(path).write_text(json.dumps({"cells": code, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
