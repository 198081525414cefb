"""What a lab says of itself."""

from __future__ import annotations

from pathlib import Path

from fakes import FINISHED, RUNNING, steps, write_run

from kdflow_lab.config import LabConfig
from kdflow_lab.engines import Engines
from kdflow_lab.status import LabStatus


def test_lab_that_is_down_names_its_models_and_runs(tmp_path: Path) -> None:
    config = LabConfig(teacher="org/teacher", student="org/student")
    done = write_run(tmp_path / "done", FINISHED, steps(10))
    new = write_run(tmp_path / "new", RUNNING[:1])
    status = LabStatus.of(config, Engines(config), [done, new])
    assert status.state == "down"
    assert str(status).splitlines() == [
        "lab      down",
        "teacher  org/teacher",
        "student  org/student",
        "done     finished, step 10 of 10",
        "new      starting, step 0 of ?",
    ]
    assert repr(status) == str(status)


def test_html_escapes_what_it_shows() -> None:
    status = LabStatus("up", (("<b>name</b>", "<script>alert('x')</script> & more"),))
    html = status._repr_html_()
    assert "<script>" not in html and "<b>" not in html
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; more" in html
    assert html.count("<tr>") == 2
