"""The commands of `%kdflow` and of the shell's `kdflow`: each makes one call of `Lab` or `Run`.

To add a command, add a line to `COMMANDS`. A command that takes options names the code that takes
them, and gets them from there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kdflow_lab import command_calls
from kdflow_lab.commandline import Command, help_text
from kdflow_lab.errors import ConfigError, nearest
from kdflow_lab.options import Option, from_model, from_signature

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
    "cache",
    "cache_dir",
)
"""Options of `distill` that say how to learn from a teacher; SFT has none."""


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
            call=command_calls.up,
            options=lab_options,
        ),
        Command(name="down", summary="End every process of the lab.", call=command_calls.down),
        Command(
            name="status",
            summary="Show what the lab or a run does: who waits, memory, alarms.",
            call=command_calls.status,
            arguments=(RUN,),
            options=lambda: [DIR],
        ),
        Command(
            name="doctor",
            summary="Say what is installed here, whether it fits together, and what to do.",
            call=command_calls.doctor,
            options=_doctor_options,
        ),
        Command(
            name="plan",
            summary="Predict memory, time and disk of a run before it starts.",
            call=command_calls.plan,
            options=_distill_options,
            needs_lab=True,
        ),
        Command(
            name="distill",
            summary="Train the student on the teacher's distributions.",
            call=command_calls.distill,
            options=_distill_options,
            needs_lab=True,
            starts_run=True,
            takes_cell=True,
        ),
        Command(
            name="sweep",
            summary="Start runs that differ in some options, on one cache, and compare them.",
            call=command_calls.sweep,
            options=_sweep_options,
            needs_lab=True,
            takes_cell=True,
        ),
        Command(
            name="capture",
            summary="Keep the teacher's hidden states of some data on the disk.",
            call=command_calls.capture,
            options=_capture_options,
            needs_lab=True,
            takes_cell=True,
        ),
        Command(
            name="sft",
            summary="Train the student on the answers in the data alone.",
            call=command_calls.sft,
            options=_sft_options,
            needs_lab=True,
            starts_run=True,
            takes_cell=True,
        ),
        *(
            Command(
                name=name,
                summary=text,
                call=command_calls.ask(name),
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
            call=command_calls.inspect,
            arguments=(RUN_AT,),
            options=_inspect_options,
            needs_lab=True,
        ),
        Command(
            name="resume",
            summary="Let a paused run go on, or one that has ended from its last checkpoint.",
            call=command_calls.resume,
            arguments=(RUN,),
            options=_resume_options,
            needs_lab=True,
            starts_run=True,
            takes_cell=True,
        ),
        Command(
            name="fork",
            summary="Start another run from a checkpoint of a run, with options changed.",
            call=command_calls.fork,
            arguments=(RUN_AT,),
            options=_fork_options,
            needs_lab=True,
            starts_run=True,
            takes_cell=True,
        ),
        Command(
            name="set",
            summary="Change options of a run from its next step on.",
            call=command_calls.set_options,
            arguments=(RUN,),
            options=_settings,
        ),
        Command(
            name="attach",
            summary="Take hold of a living lab, such as after a kernel restart.",
            call=command_calls.attach,
            arguments=(LAB,),
        ),
        Command(
            name="runs",
            summary="List the runs, living or not.",
            call=command_calls.runs,
            options=lambda: [DIR],
        ),
        Command(
            name="eval",
            summary="Compare models with the teacher on held-out rows.",
            call=command_calls.evaluate,
            arguments=(MODEL,),
            options=_eval_options,
            needs_lab=True,
        ),
        Command(
            name="align",
            summary="Show how the tokenizers of teacher and student cut a text.",
            call=command_calls.align,
            arguments=(TEXT,),
            needs_lab=True,
        ),
        Command(
            name="rollouts",
            summary="Browse what the student of a run wrote, or let a model answer --data.",
            call=command_calls.rollouts,
            arguments=(RUN,),
            options=_rollouts_options,
        ),
        Command(
            name="export",
            summary="Write a run's student as a Hugging Face folder.",
            call=command_calls.export,
            arguments=(RUN_AT, PATH),
            options=lambda: [ADAPTER, DIR],
        ),
        Command(
            name="compare",
            summary="Show the curves and differences of two runs, or of a fork and its parent.",
            call=command_calls.compare,
            arguments=(RUN, OTHER),
            options=lambda: [DIR, SAVE],
        ),
        Command(
            name="replay",
            summary="Find the rows and tokens for which a step was left out.",
            call=command_calls.replay,
            arguments=(RUN_AT,),
            options=lambda: [DIR],
        ),
        Command(
            name="plot",
            summary="Show the curves of a run.",
            call=command_calls.plot,
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
