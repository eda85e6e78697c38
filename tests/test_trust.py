"""What a file, a plan or a log from a stranger may not do: run code. What the user allows, and how far that reaches."""

import os
import stat
from pathlib import Path

import pytest

from lottery_nb.core import LotteryError
from lottery_nb.trust import config_home, config_path

# --- the user's own folder ---


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A config folder of this test alone."
    monkeypatch.setenv("LOTTERY_CONFIG", str(tmp_path / "own"))
    return tmp_path / "own"


def test_the_own_folder_is_for_this_user_alone(own):
    own.mkdir(mode=0o755)
    own.chmod(0o755)
    assert config_home() == own and stat.S_IMODE(own.stat().st_mode) == 0o700
    assert config_home() == own  # and stays


@pytest.mark.parametrize(
    "platform, given, place",
    [
        ("linux", {}, "~/.config/lottery_nb"),
        ("linux", {"XDG_CONFIG_HOME": "/elsewhere"}, "/elsewhere/lottery_nb"),
        ("linux", {"XDG_CONFIG_HOME": "not/absolute"}, "~/.config/lottery_nb"),
        ("linux", {"LOTTERY_CONFIG": "/mine", "XDG_CONFIG_HOME": "/elsewhere"}, "/mine"),
        ("darwin", {}, "~/Library/Application Support/lottery_nb"),
        ("win32", {"APPDATA": "/roaming"}, "/roaming/lottery_nb"),
        ("win32", {}, "~/AppData/Roaming/lottery_nb"),
    ],
)
def test_the_own_folder_is_where_the_system_keeps_such_things(platform, given, place, monkeypatch):
    for name in ("LOTTERY_CONFIG", "XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert config_path() == Path(place).expanduser()


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are of POSIX")
def test_a_folder_that_cannot_be_ones_own_is_refused(own, monkeypatch):
    own.write_text("a file")
    with pytest.raises(LotteryError, match="set LOTTERY_CONFIG to a folder of your own"):
        config_home()
    own.unlink()
    monkeypatch.setattr(os, "getuid", lambda: own.parent.stat().st_uid + 1)
    with pytest.raises(LotteryError, match="belongs to somebody else"):
        config_home()
