"""SECURITY.md says what the code does: its settings, flags, files and numbers are there."""

import re
from pathlib import Path

import hostile
import pytest

from lottery_nb import cli, files
from lottery_nb.runs import log, workers

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
SOURCE = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "lottery_nb").rglob("*.py"))
FLAGS = SOURCE + (ROOT / "lottery_nb" / "flags.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted({*re.findall(r"LOTTERY_[A-Z]+", PAGE)}))
def test_a_setting_that_it_names_is_one(name):
    assert f'"{name}"' in SOURCE


@pytest.mark.parametrize("flag", sorted({*re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)}))
def test_a_flag_that_it_names_is_one(flag):
    assert f'"{flag}"' in FLAGS


@pytest.mark.parametrize("command", sorted({*re.findall(r"`lottery (\w+)", PAGE)}))
def test_a_command_that_it_names_is_one(command):
    assert command in cli.COMMANDS


@pytest.mark.parametrize("file", sorted({*re.findall(r"tests/\w+\.\w+", PAGE)}))
def test_a_file_that_it_names_is_there(file):
    assert (ROOT / file).is_file()


@pytest.mark.parametrize(
    "name",
    ["load_domain", "from_csv", "from_parquet", "from_folder", "from_texts", "Weights", "Ticket", "Run"],
)
def test_a_reader_that_it_names_is_one_that_hostile_files_are_given_to(name):
    assert re.search(rf"\b{name}\b", PAGE) and re.search(
        rf"\b{name}\(|\b{name}\.\w+\(", Path(hostile.__file__).read_text()
    )


def test_its_numbers_are_those_of_the_code():
    said = {
        f"room for {files.LEAST_ROOM >> 20} MiB or a hundred times its own size": files.TIMES == 100,
        f"A plan has at most {files.MAX_PLAN >> 20} MiB, a line of a log {log.CHUNK >> 20} MiB": True,
        f"is status {workers.BUSY}": True,
        f"one whose reader went away {cli.UNHEARD}": True,
    }
    assert all(words in " ".join(PAGE.split()) and true for words, true in said.items()), said


def test_commands_that_it_calls_reading_are_reading():
    row = next(line for line in PAGE.splitlines() if "a run's folder" in line.lower())
    named = {word for word in re.findall(r"`(?:lottery )?(\w+)`?", row) if word in cli.COMMANDS}
    assert {"show", "status", "runs", "export"} <= named and all(cli.COMMANDS[name].reads for name in named)


def test_it_is_linked_and_shipped():
    for page in ("README.md", "index.ipynb"):
        assert "(SECURITY.md)" in (ROOT / page).read_text(encoding="utf-8")
    assert "SECURITY.md" in (ROOT / "MANIFEST.in").read_text()
