"""What Windows lacks is not needed: a process that has none of it imports the package, trains, takes up and reads a run."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lottery_nb import core

LACKS = """
import os, signal, sys
import anywidget, filelock, ipywidgets, pandas, plotly.graph_objects, psutil, pyarrow.parquet, scipy.stats
import sklearn.datasets, torch, torch._dynamo, torchvision.datasets, torchvision.transforms.v2, tqdm.auto

GONE = "resource fcntl pwd grp termios tty pty syslog crypt posix".split()
FUNCTIONS = '''sysconf getuid geteuid getgid fork forkpty setsid getpgid killpg getpgrp
 mkfifo mknod statvfs fchmod fchown chown
 lchown sched_getaffinity getloadavg uname nice wait3 wait4 O_NOFOLLOW O_NONBLOCK O_DIRECTORY O_CLOEXEC pread pwrite
 posix_spawn posix_fadvise getpriority WNOHANG confstr ttyname openpty getresuid setuid ctermid initgroups'''.split()
SIGNALS = "SIGKILL SIGSTOP SIGCONT SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGPIPE alarm setitimer pause".split()


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in GONE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


for name in GONE:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Absent())
for module, names in ((os, FUNCTIONS), (signal, SIGNALS)):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
os.supports_dir_fd = os.supports_fd = set()
filelock.FileLock = filelock.SoftFileLock  # this system's own lock is made of what Windows lacks
"""

TRAINS = """
import lottery_nb as lt
from lottery_nb.cli import main
from lottery_nb.core import cores, free_memory, processor_name
from lottery_nb.workbench.workbench import Workbench

home = sys.argv[1]
plan = lt.FindPlan(
    "digits[0-4]@200", network="lenet-300-100", width=0.1, schedule=lt.geometric(0.5, 2),
    recipe=lt.Recipe(epochs=2), seeds=(0, 1), controls=("reinit",),
)
found = lt.run(plan, home + "/run", "cpu", show=False)
again = lt.run(plan, home + "/run", "cpu", show=False)
assert found.status == again.status == "done" and len(found.tickets) == 4
ticket = lt.Ticket.load(found.tickets[0].save(home + "/ticket.safetensors"))
assert main(["show", home + "/run", "--csv", home + "/r.csv", "--report", home + "/r.html"]) == 0
assert main(["status", home + "/run"]) == 0
carried = ["transfer", home + "/run", "--targets", "digits[5-9]@200", "--epochs", "1", "--quiet"]
assert main([*carried, "--out", home + "/t"]) == 0
assert main(["doctor"]) == 0 and cores() > 0 and free_memory(torch.device("cpu")) > 0 and processor_name()
assert len(lt.list_runs(home)) == 2 and Workbench(home=home).home
print("trained", len(found.frame))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="this is Windows")
def test_the_package_trains_without_what_windows_lacks(tmp_path):
    env = {**os.environ, "LOTTERY_RUNS": str(tmp_path / "runs"), "LOTTERY_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", LACKS + TRAINS, str(tmp_path)],
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "trained" in done.stdout


def test_memory_is_measured_without_the_module_that_windows_lacks(monkeypatch):
    assert core.most_memory() > 1 << 20
    memory = SimpleNamespace(peak_wset=123)
    process = SimpleNamespace(memory_info=lambda: memory)
    told = SimpleNamespace(Process=lambda: process, virtual_memory=lambda: SimpleNamespace(available=7))

    def imported(name):
        if name == "resource":
            raise ModuleNotFoundError("No module named 'resource'")
        return told

    monkeypatch.setattr(core.importlib, "import_module", imported)
    assert core.most_memory() == 123
