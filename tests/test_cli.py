"""What is no lesson of 65_cli: every command from flags to files, through `main` and as a process of its own; refusals are one line and exit status 2."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
import tiny

from lottery_nb import cli as cli_module
from lottery_nb.cli import COMMANDS, main, make_parser, numbers, recipe_from, schedule_from, words
from lottery_nb.core import LotteryError
from lottery_nb.data.builtin import FILE_LAYOUTS, load_smallnorb
from lottery_nb.doctor import PARTS, place_of
from lottery_nb.pruning.schedules import cubic, geometric, linear, listed, one_shot
from lottery_nb.runs import workers
from lottery_nb.runs.reading import Run, write_plan
from lottery_nb.plans.tickets import Ticket
from lottery_nb.plans.find import FindPlan
from lottery_nb.engine.recipes import Recipe

FIND = [
    "find",
    "--source",
    tiny.NAME,
    "--width",
    "0.1",
    "--fraction",
    "0.5",
    "--rounds",
    "2",
    "--epochs",
    "1",
    "--batch-size",
    "32",
    "--lr",
    "0.05",
    "--seeds",
    "0,3",
    "--device",
    "cpu",
    "--quiet",
]


def shell(capsys, *line):
    status = main([str(w) for w in line])
    return (status, *capsys.readouterr())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "find"
    assert main([*FIND, "--controls", "reinit,random-mask", "--out", str(path)]) == 0
    return path


def refused(capsys, *line):
    status, out, err = shell(capsys, *line)
    assert (
        status == 2
        and out == ""
        and err.count("\n") == 1
        and err.startswith(f"lottery {line[0]}: ")
        and "Traceback" not in err
    )
    return err


# --- flags become plans ---


def test_every_flag_reaches_the_plan(folder):
    p = Run(folder).plan
    assert (p.source, p.network, p.width, p.schedule, p.seeds, p.controls) == (
        tiny.NAME,
        "lenet-300-100",
        0.1,
        geometric(0.5, 2),
        (0, 3),
        ("reinit", "random mask"),
    )
    assert p.recipe == Recipe(lr=0.05, epochs=1, batch_size=32)


def planned(monkeypatch, *flags):
    "The plan that a `find` line means."
    seen = []
    monkeypatch.setattr("lottery_nb.runs.writing.run", lambda plan, *rest: seen.append((plan, rest)))
    monkeypatch.setattr("lottery_nb.cli.tell", lambda found: 0)
    assert main(["find", *flags]) == 0
    return seen[0]


def test_recipe_flags(monkeypatch):
    p, _ = planned(
        monkeypatch,
        "--optimizer",
        "adamw",
        "--lr",
        "0.01",
        "--weight-decay",
        "0.1",
        "--steps",
        "50",
        "--precision",
        "bf16",
        "--keep",
        "best loss",
        "--patience",
        "3",
        "--lr-schedule",
        "cosine",
        "--augment",
        "crop,flip",
    )
    assert p.recipe == Recipe(
        "adamw",
        0.01,
        steps=50,
        weight_decay=0.1,
        precision="bf16",
        keep="best loss",
        patience=3,
        schedule="cosine",
        augment=("crop", "flip"),
    )
    assert planned(monkeypatch, "--augment", "none")[0].recipe == Recipe()


def test_search_flags(monkeypatch):
    p, (out, device, show, layout, listen, executor, trust, reuse) = planned(
        monkeypatch,
        "--network",
        "conv-2",
        "--rewind",
        "epoch 1",
        "--retrain",
        "learning-rate rewinding",
        "--criterion",
        "magnitude-increase",
        "--scope",
        "erk",
        "--prune-head",
        "0.1",
        "--seeds",
        "4",
        "--controls",
        "none",
        "--floor",
        "0.5",
        "--out",
        "x",
        "--device",
        "cpu",
        "--layout",
        "8",
        "--quiet",
        "--listen",
        "print",
        "--listen",
        "tiny:heard",
        "--executor",
        "tiny:sent",
        "--trust",
        "guild",
        "--trust",
        "mine.nets",
        "--reuse",
        "a-run",
        "--reuse",
        "runs",
    )
    assert (p.network, p.rewind, p.retrain, p.criterion, p.scope, dict(p.layer_fractions)) == (
        "conv-2",
        "epoch 1",
        "learning-rate rewinding",
        "magnitude increase",
        "erk",
        {"head": 0.1},
    )
    assert (
        p.seeds == (0, 1, 2, 3)
        and p.controls == ()
        and p.floor == 0.5
        and (str(out), device, show, layout) == ("x", "cpu", False, 8)
    )
    assert (listen, executor, trust) == (["print", "tiny:heard"], "tiny:sent", ["guild", "mine.nets"])
    assert reuse == ["a-run", "runs"]
    assert planned(monkeypatch)[1][-4:] == (None, "auto", [], None)


@pytest.mark.parametrize(
    "flags, want",
    [
        ([], geometric(0.2, 10)),
        (["--schedule", "one-shot", "--density", "0.3"], one_shot(0.3)),
        (["--schedule", "linear", "--rounds", "4"], linear(0.1, 4)),
        (["--schedule", "cubic", "--rounds", "3", "--density", "0.2"], cubic(0.2, 3)),
        (["--schedule", "0.5,0.25"], listed([0.5, 0.25])),
        (["--schedule", "0.5"], listed([0.5])),
    ],
)
def test_schedule_flags(flags, want):
    assert schedule_from(make_parser().parse_args(["find", *flags])) == want


def test_what_is_not_said_comes_from_the_tickets(folder):
    args = make_parser().parse_args(["transfer", str(folder), "--targets", "digits", "--lr", "0.3"])
    base = Recipe("adam", 0.01, epochs=7, augment=("flip",))
    assert recipe_from(args, base) == Recipe("adam", 0.3, epochs=7, augment=("flip",))


def test_lists():
    assert (
        words("a, b ,,c") == ("a", "b", "c")
        and words("none") == ()
        and words("x[a,b],y+blur(1)") == ("x[a,b]", "y+blur(1)")
        and words("random-mask", ("random mask",)) == ("random mask",)
    )
    assert numbers("0,3") == (0, 3)


# --- commands ---


def test_find_leaves_a_run_and_says_where(folder, capsys):
    status, out, _ = shell(capsys, "show", folder)
    assert (
        status == 0
        and str(folder) in out
        and "ticket" in out
        and "reinit" in out
        and "random mask" in out
        and "50 %" in out
        and "25 %" in out
    )
    again = shell(capsys, *FIND, "--controls", "reinit,random-mask", "--out", folder)
    assert again[0] == 0 and again[1].strip() == out.strip()


def test_show_writes_only_what_it_is_told(folder, capsys, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    status, _, _ = shell(
        capsys, "show", folder, "--csv", tmp_path / "new" / "r.csv", "--report", tmp_path / "r.html"
    )
    assert status == 0 and {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    table = pd.read_csv(tmp_path / "new" / "r.csv")
    pd.testing.assert_frame_equal(
        table.drop(columns=["seeds", "note"]), Run(folder).frame, check_dtype=False
    )
    assert (table["seeds"] > 0).all() and table["note"].isna().all()  # nobody failed
    assert list(table)[:11] == [
        "source",
        "domain",
        "role",
        "start",
        "round",
        "density",
        "seed",
        "epoch",
        "split",
        "metric",
        "value",
    ]
    assert "<html" in (tmp_path / "r.html").read_text()[:300].lower()


def test_export_takes_tickets_out_of_the_run(folder, capsys, tmp_path):
    status, out, _ = shell(capsys, "export", folder, tmp_path / "t", "--rounds", "2")
    names = sorted(p.name for p in (tmp_path / "t").iterdir())
    assert (
        status == 0
        and names == [f"{tiny.NAME}-r02-s{s}.safetensors" for s in (0, 3)]
        and out.count("\n") == 2
    )
    inside = {t.name: t.content for t in Run(folder).tickets}
    assert all(
        (t := Ticket.load(tmp_path / "t" / n)).content == inside[t.name] for n in names
    )  # complete without the run
    assert len(shell(capsys, "export", folder, tmp_path / "all")[1].splitlines()) == 4


def test_transfer_from_a_folder_and_from_a_file(folder, capsys, tmp_path):
    status, out, _ = shell(
        capsys,
        "transfer",
        folder,
        "--targets",
        "digits[5-9]@200,digits[0,2]@100",
        "--rounds",
        "2",
        "--start",
        "rewind,fresh",
        "--body",
        "frozen",
        "--controls",
        "dense",
        "--out",
        tmp_path / "t",
        "--device",
        "cpu",
        "--quiet",
    )
    p = Run(tmp_path / "t").plan
    assert (
        status == 0
        and "digits[0,2]@100" in out
        and p.targets == ("digits[5-9]@200", "digits[0,2]@100")
        and p.start == ("rewind", "fresh")
        and p.body == "frozen"
    )
    assert {t.round for t in p.tickets} == {2} and p.recipe == Recipe(lr=0.05, epochs=1, batch_size=32)
    main(["export", str(folder), str(tmp_path / "files"), "--rounds", "1"])
    one = next((tmp_path / "files").iterdir())
    capsys.readouterr()
    assert (
        shell(
            capsys,
            "transfer",
            one,
            "--targets",
            "digits[5-9]@200",
            "--start",
            "source-trained",
            "--controls",
            "none",
            "--out",
            tmp_path / "u",
            "--device",
            "cpu",
            "--quiet",
        )[0]
        == 0
    )
    assert [t.round for t in Run(tmp_path / "u").plan.tickets] == [1] and set(
        Run(tmp_path / "u").frame.role
    ) == {"ticket"}


def test_a_run_without_results_and_one_with_a_failed_arm_are_shown(capsys, tmp_path):
    status, out, err = shell(
        capsys, *FIND[:-3], "--lr", "1e30", "--device", "cpu", "--quiet", "--out", tmp_path / "wild"
    )
    assert status == 0 and "ended early" in err and "lower Recipe.lr" in err and "no arm" in out


# --- refusals ---


@pytest.mark.parametrize(
    "line, says",
    [
        (["find", "--source", "digitz"], "did you mean 'digits'"),
        (["find", "--network", "lenet"], "unknown network"),
        (["find", "--epochs", "0"], "Recipe.epochs=0"),
        (["find", "--fraction", "1.5"], "geometric"),
        (["find", "--rounds", "0"], "rounds"),
        (["find", "--schedule", "geometrik"], "did you mean 'geometric'"),
        (["find", "--schedule", "0.2,0.5"], "density"),
        (["find", "--seeds", "x"], "give a count"),
        (["find", "--seeds", "1,1"], "each seed once"),
        (["find", "--controls", "re-init"], "did you mean 'reinit'"),
        (["find", "--criterion", "snap"], "did you mean 'snip'"),
        (["find", "--criterion", "none"], "criterion"),
        (["find", "--rewind", "epoch 99"], "choose an earlier point"),
        (["find", "--device", "tpu"], "tpu"),
        (["find", "--source", "digits@1"], "limit"),
        (["find", "--augment", "rotate"], "Recipe.augment"),
        (["find", "--prune-head", "2"], "layer_fractions"),
        (["show", "nowhere"], "is not a run"),
        (["transfer", "nowhere", "--targets", "digits"], "is not a run"),
        (["export", "nowhere", "x"], "is not a run"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing_behind(line, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOTTERY_RUNS", str(tmp_path / "runs"))
    assert says in refused(capsys, *line)
    assert not list(tmp_path.iterdir())


def test_refusals_about_a_run(folder, capsys, tmp_path):
    assert "rounds 1 to 2" in refused(capsys, "transfer", folder, "--targets", "digits", "--rounds", "9")
    assert "rounds 1 to 2" in refused(capsys, "export", folder, tmp_path / "x", "--rounds", "0,9")
    assert "another plan" in refused(capsys, "find", "--out", folder)
    assert "did you mean 'frozen'" in refused(
        capsys, "transfer", folder, "--targets", "digits", "--body", "freeze"
    )
    assert "did you mean" in refused(
        capsys, "transfer", folder, "--targets", "digits", "--start", "source-train"
    )
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x04N.")
    assert "x.safetensors" in refused(capsys, "transfer", tmp_path / "x.safetensors", "--targets", "digits")


def test_a_file_where_a_folder_should_be_is_refused_in_one_line(capsys, tmp_path):
    (tmp_path / "f").write_text("mine")
    refused(capsys, *FIND, "--out", tmp_path / "f")
    assert (tmp_path / "f").read_text() == "mine"


def test_a_csv_that_cannot_be_written_is_refused_in_one_line(folder, capsys, tmp_path):
    refused(capsys, "show", folder, "--csv", tmp_path)


def test_the_demo_wants_seeds(capsys, tmp_path):
    assert "seeds" in refused(capsys, "demo", "--seeds", "0", "--out", tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("line", [[], ["fnd"], ["find", "--epochs", "many"], ["transfer", "x"], ["show"]])
def test_words_that_are_no_command_end_with_usage(line, capsys):
    with pytest.raises(SystemExit) as e:
        main(line)
    assert e.value.code == 2 and "usage: lottery" in capsys.readouterr().err


def test_interrupting_is_no_traceback(capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lottery_nb.runs.writing.run", stop)
    status, _, err = shell(capsys, *FIND)
    assert status == 130 and err == "lottery find: stopped\n"


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_teaches_with_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as e:
        main([*([command] if command else []), "--help"])
    text = capsys.readouterr().out
    assert e.value.code == 0 and (f"lottery {command}" if command else "lottery demo") in text
    if command:
        make_parser().parse_args(COMMANDS[command].example.split()[1:])


HEAVY = ("torch", "numpy", "pandas", "plotly", "ipywidgets")


@pytest.mark.parametrize(
    "code",
    [
        "import lottery_nb",
        "from lottery_nb.cli import main; main(['--help'])",
        *(f"from lottery_nb.cli import main; main([{name!r}, '--help'])" for name in COMMANDS),
    ],
)
def test_help_imports_nothing_that_computes(code):
    check = f"""
import sys
try:
    {code}
except SystemExit as e:
    assert e.code == 0
there = [name for name in {HEAVY} if name in sys.modules]
assert not there, there
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_flags_that_are_shipped_are_those_of_fields_and_registries():
    tool = Path(__file__).parents[1] / "tools" / "flags.py"
    done = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stale", ["[]", None])
def test_flags_that_are_stale_or_lost_are_told(stale, tmp_path):
    root = Path(__file__).parents[1]
    (tmp_path / "lottery_nb").mkdir()
    for path in (root / "lottery_nb").iterdir():
        if path.name != "flags.json":
            (tmp_path / "lottery_nb" / path.name).symlink_to(path)
    if stale:
        (tmp_path / "lottery_nb" / "flags.json").write_text(stale)
    line = [sys.executable, root / "tools" / "flags.py", "--root", tmp_path]
    done = subprocess.run([*line, "--check"], capture_output=True, text=True)
    assert (
        done.returncode == 1 and done.stderr == "lottery_nb/flags.json is stale: run python tools/flags.py\n"
    )
    subprocess.run(line, check=True)
    written = (tmp_path / "lottery_nb" / "flags.json").read_text()
    assert written == (root / "lottery_nb" / "flags.json").read_text()


def test_names_with_blanks_may_be_quoted_too():
    assert words("random mask,reinit signs kept", ("random mask", "reinit signs kept")) == (
        "random mask",
        "reinit signs kept",
    )
    with pytest.raises(LotteryError):
        numbers("1.5")


@pytest.mark.parametrize(
    "line, folder, rest",
    [
        (["lab"], ".", []),
        (["lab", "here", "--no-browser"], "here", ["--no-browser"]),
        (["lab", "--no-browser", "--port=9"], ".", ["--no-browser", "--port=9"]),
        (["lab", "--", "--no-browser"], ".", ["--no-browser"]),
        (["app", "here", "--port", "9", "--debug"], "here", ["--port", "9", "--debug"]),
    ],
)
def test_flags_of_the_server_are_passed_on(line, folder, rest, tmp_path, monkeypatch):
    pytest.importorskip("voila")
    monkeypatch.chdir(tmp_path)
    served = []
    monkeypatch.setattr(cli_module, "serve", lambda line, folder=".", _=0: served.append((line, folder)) or 0)
    assert main(line) == 0 and [p.name for p in Path(folder).iterdir() if p.suffix] == ["workbench.ipynb"]
    ((command, _),) = served
    assert command[len(command) - len(rest) :] == rest and not any(
        word in rest for word in command[: len(command) - len(rest)]
    )


def answered(address, **headers):
    """Status, body and cookies of an answer; nothing is followed."""
    opener = urllib.request.build_opener(
        type("Stays", (urllib.request.HTTPRedirectHandler,), {"redirect_request": lambda *_: None})
    )
    try:
        with opener.open(urllib.request.Request(address, headers=headers), timeout=120) as answer:
            return answer.status, answer.read(), answer.headers.get_all("Set-Cookie", [])
    except urllib.error.HTTPError as e:
        return e.code, e.read(), e.headers.get_all("Set-Cookie", [])


def test_the_app_lets_in_who_has_the_token_under_the_name_of_this_machine(tmp_path):
    pytest.importorskip("voila")
    (tmp_path / "secret.png").write_bytes(b"picture")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    call = "import sys; from lottery_nb.cli import main; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", call, "app", tmp_path, "--no-browser", f"--port={port}"]
    with open(tmp_path / "said", "w") as said:
        app = subprocess.Popen(line, stderr=said)
    try:
        deadline, found = time.monotonic() + 120, None
        while not found and time.monotonic() < deadline:
            time.sleep(0.1)
            found = re.search(r"token=(\w{20,})", (tmp_path / "said").read_text())
        home, token = f"http://127.0.0.1:{port}", found[1]
        for path in ("/", "/?token=", "/?token=wrong", f"/?token={token[:-1]}"):
            assert answered(home + path)[0] == 302  # to the page that asks for it
        assert answered(f"{home}/voila/files/secret.png")[0] == 403
        kernel = f"{home}/api/kernels/12345678-1234-1234-1234-123456789abc"
        assert answered(kernel)[0] == 403
        for host in ("evil.example", f"evil.example:{port}", "10.0.0.7", "localhost.evil.example"):
            assert answered(f"{home}/?token={token}", Host=host)[0] == 403
            assert answered(f"{home}/login", Host=host)[0] == 403
        status, page, cookies = answered(f"{home}/?token={token}", Host=f"localhost:{port}")
        assert status == 200 and b"oil" in page
        pass_on = "; ".join(c.partition(";")[0] for c in cookies)
        assert answered(f"{home}/login", Host=f"localhost:{port}", Cookie=pass_on)[0] in (200, 302)
        assert answered(kernel, Host=f"localhost:{port}", Cookie=pass_on)[0] == 404  # let in; there is none
    finally:
        app.terminate()
        app.wait(30)


def test_a_server_ends_with_the_process_that_started_it(tmp_path):
    child = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(99)"
    ours = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from lottery_nb.cli import serve; raise SystemExit(serve(['-c', {child!r}]) != 0)",
        ],
        cwd=tmp_path,
    )
    deadline = time.monotonic() + 60
    while (
        not ((tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()) and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    ours.terminate()
    assert ours.wait(20) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_run_is_resumed_on_the_device_that_is_asked_for(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        workers, "resume", lambda run, device, **how: asked.append((run, device)) or Run(tmp_path / "run")
    )
    write_plan(FindPlan(), tmp_path / "run")
    assert (
        main(["resume", "r", "--device", "cpu"]) == 0
        and main(["resume", "r"]) == 0
        and asked == [("r", "cpu"), ("r", "auto")]
    )


# --- lottery doctor ---


def doctor(home, *line, **env):
    "What `lottery doctor` prints as a process of a user called mia, in a folder of hers."
    place = {
        "HOME": str(home),
        "LOGNAME": "mia",
        "USER": "mia",
        "LOTTERY_CACHE": str(home / "cache"),
        "LOTTERY_RUNS": str(home / "runs"),
    }
    code = "import sys; from lottery_nb.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", *line],
        cwd=home,
        capture_output=True,
        text=True,
        env={**os.environ, **place, **env},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def home(tmp_path):
    "A home folder with MNIST, in files that are not to be read, and another set below a folder named after its user."
    path = tmp_path / "mia"
    (path / "sets" / "mnist").mkdir(parents=True)
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (path / "sets" / "mnist" / f"{part}-ubyte.gz").write_bytes(b"x" * 250_000)
    (tmp_path / "scratch" / "mia-sets" / "amazon").mkdir(parents=True)
    (tmp_path / "scratch" / "mia-sets" / "amazon" / "books.parquet").write_bytes(b"x")
    (path / "runs" / "one").mkdir(parents=True)
    (path / "runs" / "one" / "plan.json").write_text("{}")
    return path


def test_the_doctor_tells_what_a_report_needs_and_nothing_about_the_person(home):
    sets = os.pathsep.join(
        [str(home / "sets"), str(home.parent / "scratch" / "mia-sets"), "/home/max/sets", "/nowhere"]
    )
    out = doctor(home, LOTTERY_DATA=sets, ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2")
    assert "mia" not in out and "max" not in out and str(home) not in out
    lines = {" ".join(line.split()) for line in out.splitlines()}
    assert {
        "mnist ~/sets/mnist, 4 files, 1.0 MB",
        "cifar10 not found",
        "digits comes with the install",
        "cache ~/cache (not there)",
        "runs ~/runs, 1 run",
        "ONEDNN_MAX_CPU_ISA AVX2",
        "ATEN_CPU_CAPABILITY avx2",
        "required all there",
    } <= lines
    assert "USER-sets/amazon, 1 file, 0.0 MB" in out and "~other/sets (not there)" in out
    assert f"lottery_nb {cli_module.__version__}" in lines and any(
        line.startswith("torch 2") for line in lines
    )
    assert any(line.startswith("memory ") and line.endswith(" free") for line in lines)


def test_the_doctor_speaks_json(home):
    found = json.loads(doctor(home, "--json"))
    assert {
        "versions",
        "devices",
        "instruction sets",
        "threads",
        "data",
        "folders",
        "free",
        "installed",
    } == found.keys()
    assert (
        found["data"]["mnist"] == "not found"
        and found["devices"]["cpu"]
        and found["instruction sets"]["torch"]
    )


def test_the_doctor_finds_the_files_that_would_be_read(home, monkeypatch):
    for name in ("LOTTERY_CACHE", "LOTTERY_DATA"):
        monkeypatch.setenv(name, str(home))
    (home / "smallnorb-subset").mkdir()
    for split in ("train", "test"):
        (home / "smallnorb-subset" / f"a-{split}.parquet").write_bytes(b"")
    assert place_of("smallnorb").endswith("smallnorb-subset, 2 files, 0.0 MB")
    for part in FILE_LAYOUTS["smallnorb"][0][0][0]:  # the makers' files come first, wherever they lie
        (home / part).parent.mkdir(exist_ok=True)
        (home / part).write_bytes(b"")
    assert place_of("smallnorb").endswith("smallnorb, 6 files, 0.0 MB")
    (home / "cifar-10-batches-py").mkdir()
    (home / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"")
    assert place_of("cifar10").endswith("cifar-10-batches-py, 1 file, 0.0 MB")
    (home / "cifar-10-batches-py" / "data_batch_1").unlink()
    assert place_of("cifar10").endswith("cifar-10-batches-py, no files")
    with pytest.raises(LotteryError):  # and the loader would have read them
        load_smallnorb()


def test_what_is_broken_is_told_and_the_rest_is_shown(monkeypatch, capsys):
    def broken():
        raise RuntimeError("the driver\nis too old")

    monkeypatch.setitem(PARTS, "devices", broken)
    status, out, _ = shell(capsys, "doctor")
    assert status == 0 and "RuntimeError: the driver is too old" in out and "installed" in out


def test_the_doctor_comes_where_the_command_does_not_start():
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(['plotly', 'ipywidgets', 'anywidget']))\n"
        "runpy.run_module('lottery_nb.doctor', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        done.returncode == 0 and done.stdout.startswith("versions\n") and "not installed" not in done.stderr
    )


# --- a process of its own ---


def test_as_a_process(tmp_path, folder):
    code = (
        "import sys; from lottery_nb.cli import main; assert main() == 0; sys.exit(main(['show', 'nothing']))"
    )
    line = [sys.executable, "-c", code, *FIND, "--controls", "reinit,random-mask", "--out", "here"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and done.stderr.startswith("lottery show: ")
        and done.stdout.count("ticket") > 0
    ), done.stderr
    here, there = Run(tmp_path / "here"), Run(folder)
    assert here.frame.equals(there.frame) and [t.content for t in here.tickets] == [
        t.content for t in there.tickets
    ]  # another process, the same bits
    assert json.loads((tmp_path / "here" / "plan.json").read_text()) == json.loads(
        (folder / "plan.json").read_text()
    )
