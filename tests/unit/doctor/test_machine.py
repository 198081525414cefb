"""The doctor: what it finds, what it advises, and the ways to ask it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from kdflow_lab import cli, doctor
from kdflow_lab.commands import COMMANDS
from kdflow_lab.errors import ConfigError
from kdflow_lab.lab import Lab
from kdflow_lab.session import Session
from kdflow_lab.teacher.sglang import versions

HERE = versions.Installed(
    version="0.5.20",
    wanted={"torch": "2.13.0"},
    found={"torch": "2.13.0+cpu", "transformers": "5.12.1"},
    missing=(),
)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Change what is found of SGLang."""

    def change(**changes: Any) -> None:
        monkeypatch.setattr(versions, "installed", lambda: dataclasses.replace(HERE, **changes))

    return change


def test_it_says_what_to_do_about_a_wrong_torch(installed: Any) -> None:
    installed(wanted={"torch": "2.11.0"})
    diagnosis = doctor.examine("cpu")
    assert not diagnosis.fits
    finding = diagnosis.as_dict()["sglang"]
    assert "torch==2.11.0 (found 2.13.0+cpu)" in finding["advice"]
    assert "!! sglang" in str(diagnosis)
    assert "torch==2.11.0" in diagnosis._repr_html_()


@pytest.mark.parametrize(("backend", "fits"), [("auto", True), ("sglang", False)])
def test_a_missing_sglang_matters_where_it_is_named(
    installed: Any, backend: Any, fits: bool
) -> None:
    installed(version=None)
    diagnosis = doctor.examine("cpu", backend)
    assert diagnosis.fits is fits
    assert "requirements-cpu.txt" in diagnosis.as_dict()["sglang"]["advice"]
    assert diagnosis.as_dict()[f"teacher_backend={backend!r}"]["fits"] is fits


def test_stand_ins_and_untested_versions_are_said(installed: Any) -> None:
    installed(missing=("triton",), version="0.5.99")
    finding = doctor.examine("cpu").as_dict()["sglang"]
    assert "stand-ins for triton" in finding["found"]
    assert "sglang==0.5.20" in finding["advice"]
    assert finding["fits"]


def test_stand_ins_do_not_do_for_a_gpu(installed: Any) -> None:
    installed(missing=("triton",))
    finding = doctor.examine("cuda").as_dict()["sglang"]
    assert not finding["fits"]
    assert "kdflow-lab[sglang]" in finding["advice"]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"device": "cud"}, "'cuda'"), ({"teacher_backend": "sglan"}, "'sglang'")],
)
def test_a_wrong_word_is_refused_with_the_nearest(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        doctor.examine(**options)


def test_this_machine_is_looked_at() -> None:
    found = doctor.examine("cpu").as_dict()
    for name in ("python", "torch", "transformers", "ipyparallel", "memory", "/dev/shm"):
        assert found[name]["fits"], found[name]
        assert any(letter.isdigit() for letter in found[name]["found"])


def test_what_is_to_be_installed_is_in_the_package() -> None:
    text = versions.REQUIREMENTS_CPU.read_text()
    assert f"sglang=={versions.LAST_TESTED}" in text.splitlines()
    for package in versions.STANDINS:
        assert (Path(versions.standin_path(package)) / package / "__init__.py").is_file()


def test_a_lab_asks_for_its_own_backend(installed: Any, tmp_path: Path) -> None:
    installed(version=None)
    lab = Lab(
        "zoo/teacher", "zoo/student", teacher_backend="sglang", device="cpu", dir=str(tmp_path)
    )
    assert "teacher_backend='sglang'" in lab.doctor().as_dict()

    class WithLab(Session):
        def current_lab(self) -> Lab:
            return lab

    command = COMMANDS["doctor"]
    assert not command.call(WithLab(), {}).fits
    assert command.call(WithLab(), {"device": "cpu"}).fits


def test_the_shell_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--device", "cpu"]) == 0
    assert "ok torch" in capsys.readouterr().out
    assert cli.main(["doctor", "--device", "cpi"]) == 2
    assert "Did you mean 'cpu'" in capsys.readouterr().err
    assert cli.main(["help", "doctor"]) == 0
    assert "--teacher-backend auto|sglang|transformers" in capsys.readouterr().out
