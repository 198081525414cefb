"""The commands of `%kdflow` and of the shell's `kdflow`: each makes one call of `Lab` or `Run`.

To add a command, add a line to `COMMANDS`. A command that takes options names the code that takes
them, and gets them from there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab.commandline import Command, help_text
from kdflow_lab.errors import ConfigError, nearest
from kdflow_lab.options import Option, from_model, from_signature
from kdflow_lab.run import Run
from kdflow_lab.rundir import ENDED

if TYPE_CHECKING:
    from kdflow_lab.session import Session

NOT_FOR_SFT = (
    "algorithm",
    "loss",
    "loss_params",
    "kd_ratio",
    "kd_temperature",
    "temperature_squared",
    "depth",
)
"""Options of `distill` that say how to learn from a teacher; SFT has none."""


# -- what the commands do: values were checked by name, the Python calls check them by meaning ----


def _up(session: Session, given: dict[str, Any]) -> Any:
    return session.up(given)


def _down(session: Session, given: dict[str, Any]) -> None:
    lab = session.current_lab()
    if lab is None:
        raise ConfigError(f"There is no lab to close. {session.no_lab}")
    lab.close()


def _status(session: Session, given: dict[str, Any]) -> Any:
    lab = session.current_lab()
    if lab is not None and not given:
        return lab.status()
    from kdflow_lab.bars import in_notebook
    from kdflow_lab.widgets.report import report

    run = session.run(given.get("run"), given.get("dir"))
    if in_notebook():
        return run.plot()
    session.say(report(run))
    return None


def _doctor(session: Session, given: dict[str, Any]) -> Any:
    """Look at the lab's machine with the lab's options, or with those that are given."""
    lab = session.current_lab()
    if lab is not None and not given:
        return lab.doctor()
    from kdflow_lab.doctor import examine

    return examine(**given)


def _plan(session: Session, given: dict[str, Any]) -> Any:
    return session.lab().plan(**given)


def _align(session: Session, given: dict[str, Any]) -> Any:
    if "text" not in given:
        raise ConfigError('Nothing to align. Give a text: align "It is 14 September."')
    return session.lab().align(given["text"])


def _distill(session: Session, given: dict[str, Any]) -> Run:
    return session.lab().distill(**given)


def _sft(session: Session, given: dict[str, Any]) -> Run:
    return session.lab().sft(**given)


def _sweep(session: Session, given: dict[str, Any]) -> Any:
    """On a line an option that varies is given several times, in a cell it has a list."""
    options = {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value
        for name, value in given.items()
    }
    sweep = session.lab().sweep(**options)
    return sweep.wait() if session.is_terminal else sweep


def _capture(session: Session, given: dict[str, Any]) -> Any:
    return session.lab().capture(**given)


def _ask(command: str) -> Any:
    """Build the call of `Run.pause`, `stop` or `checkpoint`."""

    def call(session: Session, given: dict[str, Any]) -> None:
        run = session.run(given.get("run"), given.get("dir"))
        getattr(run, command)()
        session.say(f"{run.name}: {command} asked for; it takes effect before the next step.")

    return call


def _set(session: Session, given: dict[str, Any]) -> None:
    run = session.run(given.pop("run", None), given.pop("dir", None))
    run.set(**given)
    changes = ", ".join(f"{name} = {value}" for name, value in given.items())
    session.say(f"{run.name}: {changes} from the next step on.")


def _resume(session: Session, given: dict[str, Any]) -> Run | None:
    """A paused run hears of it; one that has ended, or left the engines, starts again."""
    run = session.run(given.pop("run", None), given.pop("dir", None))
    if run.state in ENDED or run.parked:
        return session.lab_of(run).resume(run, **given)
    run.resume(**given)
    session.say(f"{run.name}: resume asked for; it takes effect before the next step.")
    return None


def _fork(session: Session, given: dict[str, Any]) -> Run:
    run, step = session.run_at(given.pop("run", None), given.pop("dir", None))
    step = given.pop("step", None) or step
    return session.lab_of(run).fork(run, step=step, **given)


def _attach(session: Session, given: dict[str, Any]) -> Any:
    return session.attach(given.get("lab"))


def _compare(session: Session, given: dict[str, Any]) -> Any:
    folder = given.get("dir")
    named = [session.run(given[name], folder) for name in ("run", "other") if name in given]
    if len(named) < 2:
        first = named[0] if named else session.run(None, folder)
        parent = first.parent
        if parent is None:
            raise ConfigError(
                f"{session.prefix} compare needs two runs: compare RUN OTHER. A fork is compared "
                "with its parent where no other is given."
            )
        named = [session.run(parent["run"]), first]
    comparison = named[0].compare(*named[1:])
    if given.get("save"):
        session.say(f"Written: {comparison.save(given['save'])}")
    return comparison


def _rollouts(session: Session, given: dict[str, Any]) -> Any:
    """Browse what a run's student wrote, or let a model of the lab write now."""
    run, folder = given.pop("run", None), given.pop("dir", None)
    if not given:
        return session.run(run, folder).rollouts()
    if run is not None:
        raise ConfigError(
            f"{session.prefix} rollouts RUN shows what that run wrote and takes no other options. "
            "To let a model write now, leave RUN out: rollouts --data zoo/tasks --model RUN."
        )
    if "data" not in given:
        raise ConfigError(f"Nothing to answer. Give prompts: {session.prefix} rollouts --data …")
    model = given.get("model")
    if isinstance(model, str) and model in ("latest", *session.run_names(folder)):
        given["model"] = session.run(model, folder)
    return session.lab(like=given.get("model")).rollouts(**given)


def _replay(session: Session, given: dict[str, Any]) -> Any:
    run, step = session.run_at(given.get("run"), given.get("dir"))
    return run.replay(step)


def _runs(session: Session, given: dict[str, Any]) -> list[Run]:
    from kdflow_lab.run import runs

    return runs(given.get("dir") or session.folder())


def _eval(session: Session, given: dict[str, Any]) -> Any:
    """A model that names a run is that run; the lab knows all other models itself."""
    folder, save = given.pop("dir", None), given.pop("save", None)
    names = ["latest", *session.run_names(folder)]
    models = [
        session.run(one, folder)
        if isinstance(one, str) and (one in names or (Path(one) / "events.jsonl").is_file())
        else one
        for one in given.pop("model", [])
    ]
    if len(models) == 1 and isinstance(models[0], Run):
        run = models[0]
        if run.state in ("running", "paused"):
            if given:
                raise ConfigError(
                    "A run that is training is scored on its own eval_rows: no options."
                )
            run.evaluate()
            session.say("Asked for; the figures come as an `evaluated` event before the next step.")
            return None
    lab = session.lab(like=next((one for one in models if isinstance(one, Run)), None))
    several: Any = models or ["student"]
    if len(models) == 1 and isinstance(models[0], list | tuple | dict):
        several = models[0]  # what stood for $name
    elif len(models) < 2 and save is None:
        one: dict[str, Any] = {"model": models[0]} if models else {}
        return lab.evaluate(**one, **given)
    table = lab.evaluate(model=several, **given)
    if save is not None:
        session.say(f"Written: {table.save(save)}")
    return table


def _export(session: Session, given: dict[str, Any]) -> Path:
    name, path = given.get("run"), given.get("path")
    stem = name.partition("@")[0] if isinstance(name, str) else name
    if path is None and stem not in ("latest", *session.run_names(given.get("dir"))):
        name, path = None, name  # one word is the folder; the run is the newest
    if path is None:
        raise ConfigError(f"{session.prefix} export needs a folder: export [RUN[@STEP]] PATH.")
    run, step = session.run_at(name, given.get("dir"))
    return run.export(path, step=step, **{key: given[key] for key in ("adapter",) if key in given})


def _inspect(session: Session, given: dict[str, Any]) -> Any:
    """With a text, look at it now; without, at the probes of a run."""
    quantity = {"quantity": given["by"]} if "by" in given else {}
    if "text" in given:
        lens = _inspect_text(session, given, quantity)
        return _printed(session, lens.source, given) if session.is_terminal else lens
    if "top" in given:
        raise ConfigError("--top goes with --text: a run's probes list what they list.")
    run, step = session.run_at(given.get("run"), given.get("dir"))
    if not session.is_terminal:
        return run.inspect(step, **quantity)
    probes = run.probes
    if step is None and run.state not in ENDED and not run.parked:
        run.request("inspect")
        session.say(f"{run.name}: asked for new probes; they come before its next step.")
    if step is None and probes.newest is None:
        if run.state in ENDED:
            run.inspect()  # says what to do
        return None
    at = step if step is not None else probes.newest
    return _printed(session, probes.at(at or 0), given)


def _inspect_text(session: Session, given: dict[str, Any], quantity: dict[str, Any]) -> Any:
    texts = given["text"]
    options = {**quantity, **({"top": given["top"]} if "top" in given else {})}
    run = None
    if "run" in given:
        run, step = session.run_at(given["run"], given.get("dir"))
        if step is not None:
            raise ConfigError(
                "A text is looked at with the run's last checkpoint: leave @STEP out."
            )
        options["model"] = run
    lab = session.lab(like=run)
    return lab.inspect([texts] if isinstance(texts, str) else texts, **options)


def _printed(session: Session, inspection: Any, given: dict[str, Any]) -> Any:
    from kdflow_lab.widgets._console import Printed

    return Printed(inspection, given.get("by"))


def _plot(session: Session, given: dict[str, Any]) -> Any:
    figure = session.run(given.get("run"), given.get("dir")).plot()
    if given.get("save"):
        session.say(f"Written: {figure.save(given['save'])}")
    return figure


def _help(session: Session, given: dict[str, Any]) -> None:
    session.say(overview(session.prefix) if "command" not in given else _one(session, given))


def _one(session: Session, given: dict[str, Any]) -> str:
    return help_text(find(given["command"], session.prefix), prefix=session.prefix)


# -- where their options come from ----------------------------------------------------------------


def lab_options() -> list[Option]:
    """Options that describe a lab."""
    from kdflow_lab.config import LabConfig

    return from_model(LabConfig)


def _distill_options() -> list[Option]:
    from kdflow_lab.config import DistillConfig

    return from_model(DistillConfig)


def _sweep_options() -> list[Option]:
    return [replace(option, many=True) for option in _distill_options()]


def _capture_options() -> list[Option]:
    from kdflow_lab.lab import CAPTURE_OPTIONS

    return [one for one in _distill_options() if one.name in ("data", *CAPTURE_OPTIONS)]


def _sft_options() -> list[Option]:
    from kdflow_lab.config import DistillConfig

    return from_model(DistillConfig, leave_out=NOT_FOR_SFT)


def _settings() -> list[Option]:
    from kdflow_lab.config import SETTABLE

    options = [option for option in _distill_options() if option.name in SETTABLE]
    return [DIR, *options]


def _eval_options() -> list[Option]:
    from kdflow_lab.lab import Lab

    return [*from_signature(Lab.evaluate, leave_out=("model",)), DIR, SAVE_TABLE]


def _inspect_options() -> list[Option]:
    from kdflow_lab.evaluate.inspection import QUANTITIES

    by = Option(
        name="by",
        help="What tokens are coloured by.",
        type_text="|".join(QUANTITIES),
        default="forward_kl",
        choices=tuple(QUANTITIES),
    )
    return [INSPECTED, by, TOP, DIR]


def _rollouts_options() -> list[Option]:
    from kdflow_lab.lab import Lab

    return [*from_signature(Lab.rollouts), DIR]


def _doctor_options() -> list[Option]:
    from kdflow_lab.doctor import examine

    return from_signature(examine)


def _resume_options() -> list[Option]:
    return _settings()


def _fork_options() -> list[Option]:
    return [STEP, DIR, *_distill_options()]


TEXT = Option(name="text", help="Any text, in quotes.")
RUN = Option(name="run", help="Name or directory of a run; the newest if left out.")
RUN_AT = Option(name="run", help="A run, or RUN@STEP for one of its steps.")
OTHER = Option(name="other", help="The run to compare it with.")
INSPECTED = Option(name="text", help="Any text, in quotes, to look at now, with the lab's models.")
TOP = Option(
    name="top",
    help="With --text: how many of either model's likeliest tokens are listed.",
    type_text="INT",
    default="20",
    kind="value",
    check=int,
)
LAB = Option(name="lab", help="Name of a lab, its folder of runs, or one of its runs.")
STEP = Option(
    name="step",
    help="A step that has a checkpoint; by default the last one.",
    type_text="INT",
    kind="value",
    check=int,
)
DIR = Option(name="dir", help="Folder with the run directories.", type_text="FOLDER")
MODEL = Option(
    name="model",
    help="student, teacher, a run, or a model folder; several make a table.",
    default="student",
    many=True,
)
SAVE_TABLE = Option(
    name="save",
    help="Also write the table to this file: .csv, .json or .html.",
    type_text="FILE",
)
PATH = Option(name="path", help="Folder to write.")
ADAPTER = Option(
    name="adapter",
    help="Write only the adapter of a LoRA run, as PEFT does.",
    type_text="",
    kind="flag",
)
SAVE = Option(name="save", help="Also write the figure to this SVG file.", type_text="FILE")
COMMAND = Option(name="command", help="The command to explain.")

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command(
            name="up",
            summary="Start the engines and load the teacher.",
            call=_up,
            options=lab_options,
        ),
        Command(name="down", summary="End every process of the lab.", call=_down),
        Command(
            name="status",
            summary="Show what the lab or a run does: who waits, memory, alarms.",
            call=_status,
            arguments=(RUN,),
            options=lambda: [DIR],
        ),
        Command(
            name="doctor",
            summary="Say what is installed here, whether it fits together, and what to do.",
            call=_doctor,
            options=_doctor_options,
        ),
        Command(
            name="plan",
            summary="Predict memory, time and disk of a run before it starts.",
            call=_plan,
            options=_distill_options,
            needs_lab=True,
        ),
        Command(
            name="distill",
            summary="Train the student on the teacher's distributions.",
            call=_distill,
            options=_distill_options,
            needs_lab=True,
            starts_run=True,
            takes_cell=True,
        ),
        Command(
            name="sweep",
            summary="Start runs that differ in some options, on one cache, and compare them.",
            call=_sweep,
            options=_sweep_options,
            needs_lab=True,
            takes_cell=True,
        ),
        Command(
            name="capture",
            summary="Keep the teacher's hidden states of some data on the disk.",
            call=_capture,
            options=_capture_options,
            needs_lab=True,
            takes_cell=True,
        ),
        Command(
            name="sft",
            summary="Train the student on the answers in the data alone.",
            call=_sft,
            options=_sft_options,
            needs_lab=True,
            starts_run=True,
            takes_cell=True,
        ),
        *(
            Command(
                name=name,
                summary=text,
                call=_ask(name),
                arguments=(RUN,),
                options=lambda: [DIR],
            )
            for name, text in (
                ("pause", "Pause a run before its next step, with a checkpoint."),
                ("stop", "Stop a run before its next step, with a checkpoint."),
                ("checkpoint", "Write a checkpoint before the next step."),
            )
        ),
        Command(
            name="inspect",
            summary="Show how student and teacher see every token of a run's probes, or of a text.",
            call=_inspect,
            arguments=(RUN_AT,),
            options=_inspect_options,
            needs_lab=True,
        ),
        Command(
            name="resume",
            summary="Let a paused run go on, or one that has ended from its last checkpoint.",
            call=_resume,
            arguments=(RUN,),
            options=_resume_options,
            needs_lab=True,
            starts_run=True,
            takes_cell=True,
        ),
        Command(
            name="fork",
            summary="Start another run from a checkpoint of a run, with options changed.",
            call=_fork,
            arguments=(RUN_AT,),
            options=_fork_options,
            needs_lab=True,
            starts_run=True,
            takes_cell=True,
        ),
        Command(
            name="set",
            summary="Change options of a run from its next step on.",
            call=_set,
            arguments=(RUN,),
            options=_settings,
        ),
        Command(
            name="attach",
            summary="Take hold of a living lab, such as after a kernel restart.",
            call=_attach,
            arguments=(LAB,),
        ),
        Command(
            name="runs", summary="List the runs, living or not.", call=_runs, options=lambda: [DIR]
        ),
        Command(
            name="eval",
            summary="Compare models with the teacher on held-out rows.",
            call=_eval,
            arguments=(MODEL,),
            options=_eval_options,
            needs_lab=True,
        ),
        Command(
            name="align",
            summary="Show how the tokenizers of teacher and student cut a text.",
            call=_align,
            arguments=(TEXT,),
            needs_lab=True,
        ),
        Command(
            name="rollouts",
            summary="Browse what the student of a run wrote, or let a model answer --data.",
            call=_rollouts,
            arguments=(RUN,),
            options=_rollouts_options,
        ),
        Command(
            name="export",
            summary="Write a run's student as a Hugging Face folder.",
            call=_export,
            arguments=(RUN_AT, PATH),
            options=lambda: [ADAPTER, DIR],
        ),
        Command(
            name="compare",
            summary="Show the curves and differences of two runs, or of a fork and its parent.",
            call=_compare,
            arguments=(RUN, OTHER),
            options=lambda: [DIR, SAVE],
        ),
        Command(
            name="replay",
            summary="Find the rows and tokens for which a step was left out.",
            call=_replay,
            arguments=(RUN_AT,),
            options=lambda: [DIR],
        ),
        Command(
            name="plot",
            summary="Show the curves of a run.",
            call=_plot,
            arguments=(RUN,),
            options=lambda: [DIR, SAVE],
        ),
        Command(name="help", summary="Explain the commands.", call=_help, arguments=(COMMAND,)),
    )
}
"""Every command, in the order of `help`."""


def find(name: str, prefix: str) -> Command:
    """Return a command by name.

    Raises:
        ConfigError: There is no such command; the nearest is offered.
    """
    if name not in COMMANDS:
        raise ConfigError(
            f"{prefix} has no command {name!r}.{nearest(name, COMMANDS)} "
            f"Commands: {', '.join(COMMANDS)}."
        )
    return COMMANDS[name]


def overview(prefix: str) -> str:
    """List the commands with a line each."""
    lines = [f"{prefix} {command.name:<10} {command.summary}" for command in COMMANDS.values()]
    return "\n".join([*lines, "", f"{prefix} help distill explains one of them with its options."])
