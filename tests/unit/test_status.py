"""What a lab says of itself."""

from __future__ import annotations

from pathlib import Path

from fakes import FINISHED, RUNNING, steps, write_run

from kdflow_lab.config import LabConfig
from kdflow_lab.jobs import TeacherInfo
from kdflow_lab.run import Run
from kdflow_lab.status import LabStatus


def _runs(tmp_path: Path) -> list[Run]:
    done = write_run(tmp_path / "done", FINISHED, steps(10))
    new = write_run(tmp_path / "new", RUNNING[:1])
    return [done, new]


def test_lab_that_is_down_names_its_models_and_runs(tmp_path: Path) -> None:
    config = LabConfig(teacher="org/teacher", student="org/student")
    status = LabStatus.of(config, None, None, _runs(tmp_path))
    assert status.state == "down"
    assert str(status).splitlines() == [
        "state    down",
        "teacher  org/teacher",
        "student  org/student",
        "done     finished, step 10 of 10",
        "new      starting, step 0 of ?",
    ]
    assert repr(status) == str(status)


def test_lab_that_lost_an_engine_says_who_died_and_who_is_attached(tmp_path: Path) -> None:
    """As the supervisor says it, see `supervisor._Requests.status`."""
    config = LabConfig(teacher="org/teacher", student="org/student", students=2)
    teacher = TeacherInfo("/m", "transformers", "asked for", 256, "float32", 7, {})
    said = {
        "state": "broken",
        "lost": ["student 1"],
        "teacher": teacher,
        "device": "cpu",
        "threads": 3,
        "pids": {},
        "runs": [],
        "kernels": ["pid 5", "pid 6"],
    }
    status = LabStatus.of(config, tmp_path / "lab-x", said, [])
    assert status.state == "broken"
    assert dict(status.lines) == {
        "teacher": "org/teacher",
        "student": "org/student",
        "lab": "lab-x",
        "backend": "transformers (asked for)",
        "hidden states": "256 x float32",
        "students": "2 on cpu",
        "threads": "3 an engine",
        "died": "student 1",
        "attached": "pid 5, pid 6",
    }


def test_html_escapes_what_it_shows() -> None:
    status = LabStatus("up", (("<b>name</b>", "<script>alert('x')</script> & more"),))
    html = status._repr_html_()
    assert "<script>" not in html and "<b>" not in html
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; more" in html
    assert html.count("<tr>") == 2
