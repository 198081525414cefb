"""`%kdflow` in a real IPython shell; only what needs engines is replaced."""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeFigure, running, steps, write_run
from inspections import write_probes
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from kdflow_lab import magics
from kdflow_lab.config import DistillConfig
from kdflow_lab.errors import ConfigError, RunError
from kdflow_lab.lab import Lab
from kdflow_lab.run import Run
from kdflow_lab.status import LabStatus


@pytest.fixture(scope="module")
def one_shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InteractiveShell]:
    """The process's shell, without history and without the user's own profile."""
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.ipython_dir = str(tmp_path_factory.mktemp("ipython"))
    shell = InteractiveShell.instance(config=config)
    shell.run_line_magic("load_ext", "kdflow_lab")
    yield shell
    InteractiveShell.clear_instance()


@pytest.fixture
def shell(
    one_shell: InteractiveShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[InteractiveShell]:
    """A notebook that has just loaded the extension; names of runs lie in `tmp_path`."""
    monkeypatch.setenv("KDFLOW_RUNS", str(tmp_path))
    one_shell.reset(new_session=False)
    magics.load(one_shell)
    yield one_shell
    magics.unload(one_shell)


class Cell:
    """What a cell returned and showed."""

    def __init__(self, shell: InteractiveShell, code: str) -> None:
        with capture_output() as captured:
            self.result: ExecutionResult = shell.run_cell(code)
        self.out, self.err = captured.stdout, captured.stderr
        self.displayed = [str(output.data["text/plain"]) for output in captured.outputs]
        self.value: Any = self.result.result

    @property
    def error(self) -> BaseException | None:
        return self.result.error_in_exec

    def refused(self, *words: str, kind: type[BaseException] = ConfigError) -> str:
        """The one line that the cell shows of its error, which has the words."""
        assert isinstance(self.error, kind), self.error
        (line,) = (self.out + self.err).strip().splitlines()
        assert line == f"{kind.__name__}: {self.error}"
        for word in words:
            assert word in line
        return line

    def ok(self) -> Cell:
        assert self.result.success, self.out + self.err
        return self


@pytest.fixture
def run_cell(shell: InteractiveShell) -> Callable[[str], Cell]:
    return lambda code: Cell(shell, code)


RunCell = Callable[[str], Cell]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Options that reached `Lab.distill`; it checks them and writes an ended run."""
    seen: list[dict[str, Any]] = []

    def distill(self: Lab, **options: Any) -> Run:
        config = DistillConfig.parse(**options)
        seen.append(options)
        return write_run(tmp_path / (config.name or f"run-{len(seen)}"), metrics=steps(10))

    monkeypatch.setattr(Lab, "distill", distill)
    monkeypatch.setattr(Run, "plot", lambda self: FakeFigure(self))
    return seen


@pytest.fixture
def lab(shell: InteractiveShell, asked: list[dict[str, Any]], tmp_path: Path) -> Lab:
    """A lab that is not up, in the notebook's variable `lab`."""
    lab = Lab(teacher="org/teacher", student="org/student", dir=str(tmp_path))
    shell.push({"lab": lab}, interactive=False)
    return lab


def _control(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "control.jsonl").read_text().splitlines()]


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("%kdflow distil", ["%kdflow has no command 'distil'.", "Did you mean 'distill'?"]),
        ("%kdflow stop --dirr x", ["has no option 'dirr'.", "Did you mean 'dir'?"]),
        ("%kdflow help distil", ["Did you mean 'distill'?"]),
        ("x = %kdflow distil", ["Did you mean 'distill'?"]),
        ("cmd = 'distil'\n%kdflow $cmd", ["%kdflow has no command 'distil'."]),
        ("%kdflow distill --lr 1", ["There is no lab yet. Make one: %kdflow up --teacher"]),
        ("%kdflow down", ["There is no lab to close. Make one: %kdflow up"]),
        ("%kdflow up --teacher org/t", ["up needs a student. Make one"]),
        ("%kdflow runs $nothing", ["The notebook has no variable 'nothing'."]),
        ("%kdflow export", ["%kdflow export needs a folder: export [RUN[@STEP]] PATH."]),
        (
            "%%kdflow stop\nx: 1",
            ["%%kdflow stop: only distill, sweep, capture, sft, resume and fork take a cell."],
        ),
        ("%%kdflow\nsteps: 3", ["A cell needs its command: %%kdflow distill"]),
        ("%%kdflow distill\nstesp: 3", ["%kdflow distill has no option 'stesp'.", "'steps'?"]),
        ("%%kdflow distill --lr 1\nlr: 2", ["'lr' is given in the line and in the cell."]),
        ("%%kdflow distill\n- 1", ["The cell must hold options as YAML"]),
        ("%%kdflow distill\nlr: 1\na: b: c", ["The cell is no YAML in line 3"]),
    ],
)
def test_mistake_is_one_line_and_stops_run_all(
    run_cell: RunCell, cell: str, words: list[str]
) -> None:
    run_cell(cell).refused(*words)


def test_nothing_after_a_mistake_runs(run_cell: RunCell, shell: InteractiveShell) -> None:
    run_cell("%kdflow distil\nafterwards = 1").refused("distil")
    assert "afterwards" not in shell.user_ns


def test_missing_run_is_one_line(run_cell: RunCell) -> None:
    run_cell("%kdflow stop").refused("There is no run in", "Start one with distill", kind=RunError)


def test_error_of_a_magic_is_still_an_error_to_python(run_cell: RunCell) -> None:
    cell = run_cell(
        "import kdflow_lab.errors\n"
        "try:\n    %kdflow distil\n"
        "except kdflow_lab.errors.ConfigError as error:\n    caught = str(error)\n"
        "caught"
    ).ok()
    assert "Did you mean 'distill'?" in cell.value


def test_shortened_error_survives_pickling(run_cell: RunCell) -> None:
    error = run_cell("%kdflow distil").error
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# -- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["%kdflow", "%kdflow help"])
def test_help_lists_the_commands(run_cell: RunCell, cell: str) -> None:
    shown = run_cell(cell).ok()
    assert shown.value is None
    assert "%kdflow distill    Train the student on the teacher's distributions." in shown.out


@pytest.mark.parametrize("cell", ["%kdflow help distill", "%kdflow distill --help"])
def test_help_of_a_command_lists_its_options(run_cell: RunCell, cell: str) -> None:
    shown = run_cell(cell).ok()
    assert shown.out.startswith("%kdflow distill [OPTIONS]")
    assert "--kd-ratio NUMBER" in shown.out


# -- runs and commands to them --------------------------------------------------------------------


def test_runs_are_returned_as_python_returns_them(run_cell: RunCell, tmp_path: Path) -> None:
    write_run(tmp_path / "elsewhere" / "a")
    cell = run_cell(f"found = %kdflow runs --dir {tmp_path}/elsewhere\nfound").ok()
    assert [type(run) for run in cell.value] == [Run]
    assert [run.name for run in cell.value] == ["a"]
    assert run_cell("%kdflow runs").value == []


def test_folder_is_that_of_the_notebooks_lab(
    run_cell: RunCell, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDFLOW_RUNS", str(tmp_path / "nothing"))
    write_run(tmp_path / "a")
    assert [run.name for run in run_cell("%kdflow runs").value] == ["a"]


@pytest.mark.parametrize("command", ["pause", "resume", "stop"])
def test_running_run_gets_the_command(run_cell: RunCell, tmp_path: Path, command: str) -> None:
    with running(tmp_path / "a") as run:
        cell = run_cell(f"%kdflow {command} a").ok()
        assert cell.out == f"a: {command} asked for; it takes effect before the next step.\n"
        assert [line["command"] for line in _control(run)] == [command]


def test_set_passes_numbers_and_names(run_cell: RunCell, tmp_path: Path) -> None:
    with running(tmp_path / "a") as run:
        cell = run_cell("rate = 2e-4\n%kdflow set --lr $rate loss=rkl").ok()
        assert cell.out == "a: lr = 0.0002, loss = rkl from the next step on.\n"
        assert _control(run)[0]["changes"] == {"lr": 2e-4, "loss": "reverse_kl", "loss_params": {}}


def test_set_refuses_a_wrong_value(run_cell: RunCell, tmp_path: Path) -> None:
    with running(tmp_path / "a") as run:
        run_cell("%kdflow set lr=fast").refused("Option 'lr' = 'fast' cannot be used")
        assert not (run.path / "control.jsonl").exists()


def test_ended_run_refuses_a_command(run_cell: RunCell, tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    run_cell("%kdflow pause a").refused("Cannot pause a: it is finished already", kind=RunError)


def test_run_of_a_variable_is_meant_wherever_it_lies(run_cell: RunCell, tmp_path: Path) -> None:
    with running(tmp_path / "far" / "a") as run:
        run_cell(f"import kdflow_lab.run\nmine = kdflow_lab.run.open_run({str(run.path)!r})")
        run_cell("%kdflow stop $mine").ok()
        assert [line["command"] for line in _control(run)] == ["stop"]


def test_status_without_a_lab_is_that_of_the_newest_run(run_cell: RunCell, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", metrics=steps(10))
    lines = run_cell("%kdflow status").ok().out.splitlines()
    assert lines[0].startswith("a: finished · step 10/10 · loss 0.1")
    assert lines[1] == str(run.path)


def test_status_of_a_lab_is_returned(run_cell: RunCell, lab: Lab) -> None:
    status = run_cell("%kdflow status").ok().value
    assert isinstance(status, LabStatus)
    assert status.state == "down"


def test_plot_returns_the_figure_and_saves_it(
    run_cell: RunCell, asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_run(tmp_path / "a")
    cell = run_cell(f"figure = %kdflow plot a --save {tmp_path}/a.svg\nfigure").ok()
    assert isinstance(cell.value, FakeFigure)
    assert (tmp_path / "a.svg").exists()
    assert cell.out.startswith("Written: ")


# -- distill --------------------------------------------------------------------------------------


def test_line_reaches_the_lab_with_pythons_types(
    run_cell: RunCell, lab: Lab, asked: list[dict[str, Any]]
) -> None:
    cell = run_cell("run = %kdflow distill --loss rkl lr=1e-4 --no-packing --steps 3 name=2024")
    assert cell.ok().displayed == ["figure of 2024"]
    assert asked == [{"loss": "rkl", "lr": 1e-4, "packing": False, "steps": 3, "name": "2024"}]
    assert isinstance(run_cell("run").value, Run)


def test_cell_reaches_the_lab_with_yamls_types(
    run_cell: RunCell, lab: Lab, asked: list[dict[str, Any]]
) -> None:
    cell = run_cell(
        "%%kdflow distill --steps 3\n"
        "loss: reverse_kl   # the student decides\n"
        "betas: [0.9, 0.95]\n"
        "packing: false\n"
        "lr: 1e-4\n"
    ).ok()
    assert asked == [
        {
            "steps": 3,
            "loss": "reverse_kl",
            "betas": [0.9, 0.95],
            "packing": False,
            "lr": "1e-4",  # YAML 1.1 has no such number; DistillConfig takes it for one
        }
    ]
    assert DistillConfig.parse(**asked[0]).lr == 1e-4
    assert cell.value.name == "run-1"


@pytest.mark.parametrize(
    "cell",
    [
        "%kdflow distill data=$rows steps=1",
        "%kdflow distill --data $rows --steps 1",
        "%kdflow distill --data {rows} --steps 1",
        "%%kdflow distill --steps 1\ndata: $rows",
        "%%kdflow distill --data $rows\nsteps: 1",
    ],
)
def test_rows_of_the_notebook_are_passed_as_they_are(
    run_cell: RunCell, lab: Lab, asked: list[dict[str, Any]], shell: InteractiveShell, cell: str
) -> None:
    rows = [{"text": "a"}]
    shell.push({"rows": rows})
    run_cell(cell).ok()
    assert asked[0]["data"] is rows


def test_local_variable_of_a_function_is_known(
    run_cell: RunCell, lab: Lab, asked: list[dict[str, Any]]
) -> None:
    run_cell("def scan(rate):\n    %kdflow distill lr=$rate\nscan(0.25)").ok()
    assert asked[0]["lr"] == 0.25


def test_value_that_the_config_refuses_is_one_line(run_cell: RunCell, lab: Lab) -> None:
    run_cell("%kdflow distill --lr -1").refused("Option 'lr' = -1 cannot be used")


def test_sft_is_a_distillation_without_a_teacher(
    run_cell: RunCell, lab: Lab, asked: list[dict[str, Any]]
) -> None:
    run_cell("%kdflow sft steps=3").ok()
    assert asked == [{"steps": 3, "algorithm": "sft", "kd_ratio": 0.0}]
    run_cell("%kdflow sft loss=rkl").refused("%kdflow sft has no option 'loss'.")


# -- the lab --------------------------------------------------------------------------------------


@pytest.fixture
def ups(monkeypatch: pytest.MonkeyPatch) -> list[Lab]:
    """Labs that were brought up, without their engines."""
    seen: list[Lab] = []

    def up(self: Lab) -> Lab:
        seen.append(self)
        return self

    monkeypatch.setattr(Lab, "up", up)
    return seen


def test_up_makes_the_notebooks_lab_once(
    run_cell: RunCell, ups: list[Lab], shell: InteractiveShell
) -> None:
    run_cell("%kdflow up --teacher org/t --student org/s --students 2").ok()
    lab = shell.user_ns["lab"]
    assert (lab.config.teacher, lab.config.students) == ("org/t", 2)
    run_cell("%kdflow up").ok()
    run_cell("%kdflow up --students 2").ok()
    assert ups == [lab, lab, lab]
    run_cell("%kdflow up --students 3").ok()  # nothing lives in the first one: it may be replaced
    assert shell.user_ns["lab"].config.students == 3
    assert shell.user_ns["lab"].config.teacher == "org/t"


def test_up_keeps_a_variable_that_means_something_else(
    run_cell: RunCell, ups: list[Lab], shell: InteractiveShell
) -> None:
    cell = run_cell("lab = 'my bench'\n%kdflow up --teacher org/t --student org/s").ok()
    assert "Your variable 'lab' is kept" in cell.out
    assert shell.user_ns["lab"] == "my bench"
    run_cell("%kdflow up").ok()
    assert ups[0] is ups[1]


def test_up_refuses_another_lab_while_one_lives(
    run_cell: RunCell, lab: Lab, ups: list[Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lab, "status", lambda self: LabStatus("up", ()))
    run_cell("%kdflow up --students 3").refused("Another lab is up", "%kdflow down")
    assert ups == []


def test_down_closes_the_lab(run_cell: RunCell, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Lab] = []
    monkeypatch.setattr(Lab, "close", lambda self: closed.append(self))
    run_cell("%kdflow down").ok()
    assert closed == [lab]


def test_eval_takes_a_run_by_its_name(
    run_cell: RunCell, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "a")
    seen: list[Any] = []
    monkeypatch.setattr(Lab, "evaluate", lambda self, **options: seen.append(options))
    run_cell("%kdflow eval a").ok()
    run_cell("%kdflow eval teacher").ok()
    run_cell("%kdflow eval").ok()
    assert isinstance(seen[0]["model"], Run) and seen[0]["model"].name == "a"
    assert seen[1:] == [{"model": "teacher"}, {}]


def test_eval_of_several_models_is_one_call(
    run_cell: RunCell, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "a")
    seen: list[Any] = []

    @functools.wraps(Lab.evaluate)  # its signature gives the command's options
    def evaluate(self: Lab, **options: Any) -> None:
        seen.append(options)

    monkeypatch.setattr(Lab, "evaluate", evaluate)
    run_cell("%kdflow eval student a --rows 5 teacher metric=rouge_l").ok()
    (asked,) = seen
    assert [getattr(one, "name", one) for one in asked.pop("model")] == ["student", "a", "teacher"]
    assert asked == {"rows": 5, "metric": "rouge_l"}
    run_cell("named = {'before': 'student'}").ok()
    run_cell("%kdflow eval $named").ok()
    assert seen[1] == {"model": {"before": "student"}}


# -- completion -----------------------------------------------------------------------------------


def _complete(shell: InteractiveShell, text: str) -> list[str]:
    """Lines that Tab at the end of `text` may make of its last line."""
    with capture_output():
        found = list(shell.Completer.completions(text, len(text)))
    return [
        (text[: one.start] + one.text + text[one.end :]).split("\n")[-1]
        for one in found
        if one.type == "kdflow"
    ]


@pytest.mark.filterwarnings("ignore::IPython.core.completer.ProvisionalCompleterWarning")
@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("%kdflow dist", ["%kdflow distill"]),
        ("run = %kdflow dist", ["run = %kdflow distill"]),
        ("%kdflow distill --kd-t", ["%kdflow distill --kd-temperature"]),
        ("%kdflow distill loss=rev", ["%kdflow distill loss=reverse_kl"]),
        ("%kdflow distill --scheduler=lin", ["%kdflow distill --scheduler=linear"]),
        ("%kdflow stop my-", ["%kdflow stop my-run"]),
        ("%%kdflow sf", ["%%kdflow sft"]),
        ("%%kdflow distill\nkd_t", ["kd_temperature: "]),
        ("%%kdflow distill\nsteps: 3\nloss: rev", ["loss: reverse_kl"]),
        ("%%kdflow stop\nkd_t", []),
        ("text = 'a %kdflow dist", []),
        ("dist", []),
    ],
)
def test_tab(shell: InteractiveShell, tmp_path: Path, text: str, lines: list[str]) -> None:
    write_run(tmp_path / "my-run")
    assert _complete(shell, text) == lines


def test_loading_twice_registers_once(shell: InteractiveShell) -> None:
    magics.load(shell)
    magics.load(shell)
    tags = [getattr(one, "matcher_identifier", "") for one in shell.Completer.custom_matchers]
    assert tags.count("kdflow_lab") == 1


def test_unloading_takes_everything_away(shell: InteractiveShell, run_cell: RunCell) -> None:
    magics.unload(shell)
    assert "kdflow" not in shell.magics_manager.lsmagic()["line"]
    assert "kdflow" not in shell.magics_manager.lsmagic()["cell"]
    assert not shell.Completer.custom_matchers
    magics.unload(shell)  # twice is no error


def test_inspect_returns_the_lens(
    shell: InteractiveShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "a")
    for step in (0, 4):
        write_probes(run.path, step)
    cell = Cell(shell, "lens = %kdflow inspect a@0 --by surprise")
    assert cell.error is None
    lens = shell.user_ns["lens"]
    assert (lens.source.start, lens.source.steps, lens.quantity) == (0, [0, 4], "surprise")
    Cell(shell, "%kdflow inspect a@3").refused("There are: 0, 4", kind=RunError)
    Cell(shell, "%kdflow inspect a --by surprize").refused("Did you mean 'surprise'")
    Cell(shell, "%kdflow inspect --text x").refused("There is no lab yet")

    asked: list[Any] = []
    monkeypatch.setattr(Lab, "inspect", lambda self, texts, **options: asked.append(texts))
    shell.user_ns["lab"] = Lab("org/t", "org/s")
    shell.user_ns["rows"] = [{"prompt": "a", "completion": "b"}]
    Cell(shell, "%kdflow inspect --text 'a text'")
    Cell(shell, "%kdflow inspect --text $rows")
    assert asked == [["a text"], shell.user_ns["rows"]]
