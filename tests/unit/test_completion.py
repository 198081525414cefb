"""What Tab offers: commands, options and values, from the same tables that parse them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes import write_run

from kdflow_lab.algorithms import NAMES as ALGORITHMS
from kdflow_lab.commands import COMMANDS
from kdflow_lab.completion import complete_line, complete_yaml
from kdflow_lab.config import DistillConfig
from kdflow_lab.losses.names import NAMES as LOSSES
from kdflow_lab.session import Session


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session whose folder holds the runs `new` and `old`."""
    for age, name in ((1, "new"), (2, "old")):
        write_run(tmp_path / name)
        os.utime(tmp_path / name / "config.yaml", (1_000_000 - age, 1_000_000 - age))
    monkeypatch.setenv("KDFLOW_RUNS", str(tmp_path))
    return Session()


@pytest.mark.parametrize(
    ("line", "word", "found"),
    [
        ("dis", "dis", ["distill"]),
        ("st", "st", ["status", "stop"]),
        ("zzz", "zzz", []),
        ("help ev", "ev", ["eval"]),
        ("nothing x", "x", []),
        ("distill --kd", "--kd", ["--kd-ratio", "--kd-temperature"]),
        ("distill kd_r", "kd_r", ["kd_ratio="]),
        ("distill --scheduler ", "", ["cosine", "linear", "constant"]),
        ("distill --scheduler li", "li", ["linear"]),
        ("distill scheduler=co", "co", ["cosine", "constant"]),
        ("distill --scheduler=co", "co", ["cosine", "constant"]),
        ("distill lr=1 packing=", "", ["true", "false"]),
        ("distill --lr ", "", []),
        ("distill nothing=", "", []),
        ("stop ", "", ["latest", "new", "old", "dir="]),
        ("stop o", "o", ["old"]),
        ("eval s", "s", ["student", "split=", "seed=", "save="]),
        ("eval model=l", "l", ["latest"]),
        ("eval --metric r", "r", ["rouge_l"]),
        ("set old lr=1 k", "k", ["kd_ratio=", "kd_temperature="]),
    ],
)
def test_line(session: Session, line: str, word: str, found: list[str]) -> None:
    got_word, got = complete_line(line, session)
    assert got_word == word
    assert [one for one in got if not one.startswith("--") or word] == found


def test_empty_line_offers_every_command(session: Session) -> None:
    assert complete_line("", session) == ("", list(COMMANDS))


def test_nothing_typed_after_distill_offers_both_spellings_of_every_option(
    session: Session,
) -> None:
    _, found = complete_line("distill ", session)
    for name in DistillConfig.model_fields:
        assert f"{name}=" in found
        assert f"--{name.replace('_', '-')}" in found


@pytest.mark.parametrize("line", ["distill loss=", "distill --loss=", "distill --loss "])
def test_losses(session: Session, line: str) -> None:
    assert complete_line(line, session) == ("", list(LOSSES))


def test_algorithms(session: Session) -> None:
    assert complete_line("distill algorithm=", session) == ("", list(ALGORITHMS))


@pytest.mark.parametrize(
    ("line", "word", "found"),
    [
        ("kd_", "kd_", ["kd_ratio: ", "kd_temperature: "]),
        ("loss: re", "re", ["reverse_kl"]),
        ("scheduler: ", "", ["cosine", "linear", "constant"]),
        ("packing:", "", ["true", "false"]),
        ("lr: ", "", []),
        ("nothing: ", "", []),
    ],
)
def test_yaml(session: Session, line: str, word: str, found: list[str]) -> None:
    assert complete_yaml(line, COMMANDS["distill"], session) == (word, found)
