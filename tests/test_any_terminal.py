"""The shell on outputs that are not as wide as ours: ASCII alone, a reader that goes away, a disk that is full; and a run without test data."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from lottery_nb import cli
from lottery_nb.cli import main, refusal_of
from lottery_nb.core import REMEDIES
from lottery_nb.results.report import has_test, report, write_report
from lottery_nb.runs.log import Log
from lottery_nb.runs.reading import Run
from lottery_nb.runs.writing import failure, run

CODE = "import sys; from lottery_nb.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def untested(tmp_path_factory):
    "A search on data of one's own without a test split."
    source = tiny.noise_domain(test=False)
    p = tiny.plan(source=source, controls=("reinit",), seeds=2)
    return run(p, tmp_path_factory.mktemp("untested") / "run", "cpu", show=False)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run(tiny.plan(), tmp_path_factory.mktemp("found") / "rün × 1", "cpu", show=False)


def shell(*line, shell="", **how):
    "A process of its own, its output through a line of sh where one is given."
    words = [sys.executable, "-c", CODE, *map(str, line)]
    if shell:
        words = ["bash", "-c", f'"$@" {shell}', "bash", *words]
    env = {**os.environ, **how.pop("env", {})}
    return subprocess.run(
        words, capture_output=True, text=True, errors="replace", env=env, timeout=300, **how
    )


@pytest.mark.parametrize(
    "line, encoding",
    [
        ("show", "ascii"),
        ("show", "latin-1"),
        ("runs", "ascii"),
        ("doctor --json", "ascii"),
        ("find --help", "ascii"),
    ],
)
def test_an_output_that_lacks_signs_is_told_all_the_same(line, encoding, found):
    words = [*line.split(), *{"show": [found.path], "runs": [found.path.parent]}.get(line, [])]
    done = shell(*words, env={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert done.returncode == 0 and "Traceback" not in done.stderr and done.stdout, done.stderr
    if line == "doctor --json":
        json.loads(done.stdout)
    if line == "show" and encoding == "ascii":
        assert r"r\xfcn x 1" in done.stdout and "ticket - dense" in done.stdout


def test_signs_are_written_by_others_and_what_is_unknown_by_its_number():
    cli.on_any_terminal()
    said = "θ0 → 97 ± 1 × 2 … 日本 \udcff"
    assert said.encode("ascii", "lottery_nb") == rb"theta0 -> 97 +/- 1 x 2 ... \u65e5\u672c \udcff"


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_a_folder_whose_name_is_no_text_is_shown(found, tmp_path):
    odd = os.fsencode(tmp_path) + b"/r\xff"
    os.symlink(found.path, odd)
    env = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, "-c", CODE, "show", odd], capture_output=True, env=env)
    assert done.returncode == 0 and b"r\\udcff" in done.stdout and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "line, reader",
    [
        ("show", "| head -n 1"),
        ("show", "| true"),
        ("show", "| (sleep 1; exit 0)"),
        ("help", "| true"),
        ("runs", "| true"),
    ],
)
def test_a_reader_that_goes_away_ends_it_without_a_word(line, reader, found):
    words = {"show": ["show", found.path], "help": ["find", "--help"], "runs": ["runs", found.path.parent]}[
        line
    ]
    done = shell(*words, shell=f"{reader}; echo status ${{PIPESTATUS[0]}} >&2")
    assert re.fullmatch(r"status (0|141)\n", done.stderr), done.stderr


def test_a_long_table_that_nobody_reads_is_status_141(found, monkeypatch):
    code = f"import lottery_nb.cli as c; c.tell = lambda found: print('x' * 100_000) or 0; {CODE}"
    words = ["bash", "-c", '"$@" | true; exit ${PIPESTATUS[0]}', "bash", sys.executable, "-c", code]
    done = subprocess.run([*words, "show", str(found.path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (cli.UNHEARD, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("line", ["show", "help"])
def test_an_output_on_a_full_disk_is_one_line_with_its_remedy(line, found):
    done = shell(*(["show", found.path] if line == "show" else ["find", "--help"]), shell="> /dev/full")
    if line == "show":
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert done.stderr.endswith("the disk is full, make room and give the command again\n")
    assert "Exception ignored" not in done.stderr


def test_a_closed_output_is_no_error(found):
    done = shell("show", found.path, shell=">&- 2>&-")
    assert done.returncode == 0


@pytest.mark.parametrize("number", sorted(REMEDIES))
def test_what_the_log_says_of_an_error_the_shell_says_too(number, monkeypatch, capsys):
    error = OSError(number, os.strerror(number), "events.jsonl")
    monkeypatch.setitem(
        cli.COMMANDS, "status", cli.Command(lambda args: (_ for _ in ()).throw(error), "try", "")
    )
    assert main(["status"]) == 2
    err = capsys.readouterr().err
    assert err == f"lottery status: {error}: {REMEDIES[number]} and give the command again\n"
    assert f": {REMEDIES[number]} and take the run up again" in failure(error).reason


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_runs_out_is_said_in_the_shell(error):
    assert refusal_of(error).endswith(f"{REMEDIES[errno.ENOMEM]} and give the command again")


def test_a_fault_of_a_users_network_keeps_its_traceback(monkeypatch):
    def broken(args):
        raise ZeroDivisionError("no network today")

    monkeypatch.setitem(cli.COMMANDS, "status", cli.Command(broken, "try", ""))
    with pytest.raises(ZeroDivisionError):
        main(["status"])


def test_a_disk_that_is_full_is_said_by_a_training_in_the_shell(tmp_path, monkeypatch, capsys):
    real = Log.write

    def full(log, e):
        if type(e).__name__ == "EpochDone":
            raise OSError(errno.ENOSPC, "No space left on device", "events.jsonl")
        return real(log, e)

    monkeypatch.setattr(Log, "write", full)
    line = [
        "find",
        "--source",
        tiny.NAME,
        "--width",
        "0.1",
        "--rounds",
        "1",
        "--epochs",
        "1",
        "--device",
        "cpu",
    ]
    assert main([*line, "--batch-size", "32", "--quiet", "--out", str(tmp_path / "run")]) == 2
    assert "the disk is full, make room and give the command again" in capsys.readouterr().err
    assert "the disk is full, make room and take the run up again" in Run(tmp_path / "run").events[-1].reason


# --- no test data ---


def test_a_run_without_test_data_is_shown_as_what_it_is(untested, capsys):
    assert main(["show", str(untested.path)]) == 0
    out = capsys.readouterr().out
    assert "there are no test data; these are validation data" in out and "validation accuracy in %" in out
    assert "no arm is trained yet" not in out and "test accuracy" not in out


def test_a_report_of_a_run_without_test_data_claims_nothing_about_it(untested, tmp_path, capsys):
    page = write_report(tmp_path / "r.html", untested).read_text()
    assert "There is no test result: its tables and verdicts are left out" in page
    assert "Test accuracy on" not in page and "Is it a winning ticket?" not in page
    assert '"text":"validation accuracy' in page or "validation accuracy, " in page
    assert main(["show", str(untested.path), "--report", str(tmp_path / "s.html")]) == 0
    assert not has_test(untested.frame) and "no test result" in report(untested.frame)


def test_a_report_of_two_runs_of_which_one_has_test_data(untested, found):
    page = report([found, untested])
    assert "There is no test result" in page and "Test accuracy on" in page
