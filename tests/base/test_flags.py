"""Environment variables: read when asked for, with defaults, and errors that name the variable."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import twofold
from twofold.base import flags
from twofold.base.errors import TwofoldError


@pytest.mark.parametrize("name", flags.FLAGS)
def test_defaults_when_unset_or_empty(monkeypatch, name):
    monkeypatch.delenv(name, raising=False)
    assert flags.get(name) == flags.FLAGS[name].default
    monkeypatch.setenv(name, "")
    assert flags.get(name) == flags.FLAGS[name].default


READ = [
    ("TWOFOLD_DEBUG", "4", 4),
    ("TWOFOLD_VERIFY", "1", True),
    ("TWOFOLD_VERIFY", "no", False),
    ("TWOFOLD_VERIFY", " OFF ", False),
    ("TWOFOLD_CACHE", "0", False),
    ("TWOFOLD_NUM_THREADS", "2", 2),
    ("TWOFOLD_HOME", "~/there", Path("~/there").expanduser()),
]


@pytest.mark.parametrize("name, text, value", READ)
def test_values_are_read_now(monkeypatch, name, text, value):
    monkeypatch.setenv(name, text)
    assert flags.get(name) == value


@pytest.mark.parametrize("name", ["TWOFOLD_DEBUG", "TWOFOLD_NUM_THREADS"])
def test_unreadable_text_names_the_variable_and_its_meaning(monkeypatch, name):
    monkeypatch.setenv(name, "many")
    with pytest.raises(TwofoldError, match=f"(?s){name}='many'.*{re.escape(flags.FLAGS[name].help)}"):
        flags.get(name)


def test_every_variable_the_package_names_is_in_the_table():
    root = Path(twofold.__file__).parent
    named = {n for file in root.rglob("*.py") for n in re.findall(r"\bTWOFOLD_[A-Z_]*[A-Z]\b", file.read_text("utf-8"))}
    assert named <= set(flags.FLAGS)


def test_the_environment_is_read_in_one_place():
    root = Path(twofold.__file__).parent
    readers = {
        file.relative_to(root).as_posix() for file in root.rglob("*.py") if "TWOFOLD_" in file.read_text("utf-8")
    }
    direct = {n for n in readers if re.search(r"(environ|getenv)\b[^\n]*TWOFOLD_", (root / n).read_text("utf-8"))}
    assert direct == set()  # flags.py reads by the names of its table


def test_a_user_without_a_home_has_a_folder_of_its_own(monkeypatch):
    def nowhere(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nowhere)
    assert str(os.getuid()) in flags._home().name and flags._home().is_absolute()


def test_less_than_no_threads_is_an_error(monkeypatch):
    monkeypatch.setenv("TWOFOLD_NUM_THREADS", "-2")
    with pytest.raises(TwofoldError, match="TWOFOLD_NUM_THREADS='-2'.*from 0"):
        flags.get("TWOFOLD_NUM_THREADS")
