"""From options to a run directory: what is asked of a new run, a resumed one, and a fork."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from kdflow_lab import algorithms, answer_metrics, checkpoints, registration, settings
from kdflow_lab.config import LORA_OPTIONS, SETTABLE, DistillConfig
from kdflow_lab.datasource import is_several
from kdflow_lab.errors import ConfigError, RunError, unknown_name
from kdflow_lab.extras import need_peft
from kdflow_lab.losses.names import check_params
from kdflow_lab.metrics import versions
from kdflow_lab.rundir import ENDED, RunDirectory


def checked(options: dict[str, Any]) -> DistillConfig:
    """Check the options of a run, its loss with its parameters and its algorithm included.

    Raises:
        ConfigError: An option is unknown or does not fit; the nearest name is offered.
    """
    config = DistillConfig.parse(**options)
    check_params(config.loss, config.loss_params)
    for name in config.eval_metrics:
        answer_metrics.find(name)
    if config.algorithm != "auto":
        algorithms.check_params(config.algorithm, config.algorithm_params)
    elif config.algorithm_params:
        raise ConfigError(
            "algorithm_params belong to one algorithm: name it, such as algorithm='byte_prefix'."
        )
    if config.lora_r is not None:
        need_peft()
    return config


def checked_settings(
    changes: dict[str, Any], directory: RunDirectory | None = None
) -> dict[str, Any]:
    """Check changes of a run's options; return them with full names and converted values.

    Args:
        changes: By option. Another `loss` begins with its own defaults unless `loss_params` come
            with it.
        directory: Of the run, whose loss takes `loss_params` that come without one.

    Raises:
        ConfigError: An option cannot be changed while a run goes on, or its value does not fit.
    """
    for name in changes:
        if name not in SETTABLE:
            raise unknown_name("setting", name, SETTABLE)
        if changes[name] is None:
            raise ConfigError(f"Option {name!r} cannot be set to None: give a value.")
    if not changes:
        raise ConfigError(f"Nothing to set. Settings: {', '.join(SETTABLE)}.")
    now: dict[str, Any] = {}
    if directory is not None and ("loss" in changes or "loss_params" in changes):
        line = settings.timeline(directory.events())
        now = directory.config() | settings.in_force(line, sys.maxsize)
    changes = _with_loss_params(changes, now.get("loss_params") != {})
    loss = {"loss": now["loss"]} if "loss_params" in changes and "loss" in now else {}
    config = checked({**loss, **changes})
    return {name: getattr(config, name) for name in changes}


def _with_loss_params(changes: dict[str, Any], had_some: bool = True) -> dict[str, Any]:
    """Another loss begins with its own defaults: its parameters are not those of the one before."""
    return {"loss_params": {}, **changes} if "loss" in changes and had_some else changes


def new_run(
    folder: Path,
    config: DistillConfig,
    lab: dict[str, Any],
    *,
    name: str | None = None,
    parent: dict[str, Any] | None = None,
) -> RunDirectory:
    """Make a run directory with everything that was asked.

    Args:
        folder: Where run directories lie.
        config: What was asked. Data that only this process holds (`held_here`) shall be written to
            the `data` that stands in the run's config.
        lab: The fields of its `LabConfig`.
        name: Of the run; made from the date and the loss if not given.
        parent: Where a fork begins: the parent's directory (`run`) and `step`.

    Raises:
        RunError: There is such a run already, or the folder cannot be written.
    """
    directory = RunDirectory(folder / (name or config.name or _new_name(folder, config)))
    asked = config.model_dump(mode="json", exclude={"data"})
    if config.eval_data is not None:
        asked["eval_data"] = _pinned(config.eval_data)
    lineage = {} if parent is None else {"parent": parent}
    directory.create(
        {"data": named(config, directory), **asked, **lineage, "lab": lab, "versions": versions()}
    )
    registration.ship(directory)
    return directory


def held_here(config: DistillConfig, directory: RunDirectory) -> list[tuple[Any, str, str]]:
    """List the data of a run that only this process holds.

    Returns:
        Of each data set its rows, the Parquet file where the run will look for them, and the split
        that is meant.
    """
    return [
        (source.data, _held_file(number, config, directory), source.split or config.split)
        for number, source in enumerate(config.sources)
        if not isinstance(source.data, str)
    ]


def _held_file(number: int, config: DistillConfig, directory: RunDirectory) -> str:
    name = f"data-{number}.parquet" if is_several(config.data) else "data.parquet"
    return str(directory.path / name)


def named(config: DistillConfig, directory: RunDirectory) -> str | list[dict[str, Any]]:
    """Return the data as it stands in the run's config: names alone."""
    names = [
        _pinned(source.data)
        if isinstance(source.data, str)
        else _held_file(number, config, directory)
        for number, source in enumerate(config.sources)
    ]
    if not is_several(config.data):
        return names[0]
    own = [source.model_dump(exclude={"data"}, exclude_none=True) for source in config.data]
    return [{"data": name, **rest} for name, rest in zip(names, own, strict=True)]


def _pinned(data: str) -> str:
    """Return the absolute path of a file or folder, since engines may stand elsewhere."""
    path = Path(data).expanduser()
    return str(path.absolute()) if path.exists() else data


def _new_name(folder: Path, config: DistillConfig) -> str:
    """Name a run by its time and loss; a number keeps runs of one second apart."""
    label = "sft" if config.algorithm == "sft" else config.loss
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{label}"
    count = 1
    while (folder / f"{stem}-{count}").exists():
        count += 1
    return f"{stem}-{count}"


def forked_run(
    parent: RunDirectory,
    folder: Path,
    lab: dict[str, Any],
    step: int | None,
    changes: dict[str, Any],
) -> tuple[RunDirectory, DistillConfig]:
    """Make the directory of a fork; see `Lab.fork`."""
    name = parent.path.name
    config = parent.config()
    registration.load(parent)
    kept = parent.checkpoint_steps()
    if not kept:
        raise RunError(
            f"{name} has no checkpoint yet. Ask for one with run.checkpoint(), or pause it, then "
            "fork."
        )
    if step is not None and step not in kept:
        near = min(kept, key=lambda one: abs(one - step))
        raise RunError(
            f"{name} has no checkpoint of step {step}; the nearest is of step {near}. There are: "
            f"{', '.join(map(str, kept))}."
        )
    step = kept[-1] if step is None else step
    if problem := checkpoints.check(parent.checkpoints / str(step)):
        others = ", ".join(str(one) for one in kept if one != step) or "none"
        raise RunError(f"{problem} Pass another step to fork from; there are: {others}.")
    asked = DistillConfig.fields_in(config)
    asked_before = dict(asked)
    events = parent.events()
    counted = [event["steps"] for event in events if event["event"] == "started"]
    if asked["steps"] is None and counted:
        asked |= {"steps": counted[0], "epochs": None}  # what the epochs came to at the start
    in_force = settings.in_force(settings.timeline(events), step + 1)
    asked |= {**in_force, "name": None, **_with_loss_params(changes)}
    if changes.get("epochs") is not None:
        asked["steps"] = changes.get("steps")
    elif asked["steps"] is not None:
        asked["epochs"] = None
    made = checked(asked)
    _check_same_weights(name, asked_before, made)
    if made.steps is not None and made.steps <= step:
        raise RunError(
            f"{name} has {step} of {made.steps} steps at that checkpoint: nothing is left to do. "
            f"Pass steps=…, more than {step}, or an earlier step."
        )
    fork, count = made.name, 1
    while fork is None or (made.name is None and (folder / fork).exists()):
        fork, count = f"{name}-fork{count}", count + 1
    lineage = {"run": str(parent.path), "step": step}
    directory = new_run(folder, made, lab, name=fork, parent=lineage)
    try:
        _adopt(parent.checkpoints / str(step), directory.checkpoints / str(step))
    except BaseException:  # else there would be a run that never starts
        shutil.rmtree(directory.path, ignore_errors=True)
        raise
    return directory, made


def _check_same_weights(name: str, before: dict[str, Any], made: DistillConfig) -> None:
    """Refuse a fork that trains other weights than its parent, whose checkpoint it goes on with."""
    for option in LORA_OPTIONS:
        was = before.get(option, DistillConfig.model_fields[option].default)
        now = getattr(made, option)
        if was != now:
            raise ConfigError(
                f"{option} is {was!r} in {name} and {now!r} in the fork. A fork goes on with its "
                "parent's weights and optimizer, so what is trained must stay. To begin other "
                f"adapters from what {name} learnt, export it, and start a run in a lab whose "
                "student is that folder."
            )


def _adopt(source: Path, target: Path) -> None:
    """Give a fork its parent's checkpoint as its own: the parent may go on and remove it.

    The files are never written again, so links to them do, where both are on one file system.
    """
    target.parent.mkdir(exist_ok=True)
    unfinished = target.with_name(f".{target.name}.tmp")
    unfinished.mkdir()
    try:
        for file in source.iterdir():
            try:
                os.link(file, unfinished / file.name)
            except OSError:
                shutil.copyfile(file, unfinished / file.name)
        os.replace(unfinished, target)
    except FileNotFoundError:
        raise RunError(
            f"The checkpoint {source} was removed meanwhile. Fork again from a later one."
        ) from None
    except OSError as error:
        raise RunError(
            f"The checkpoint {source} cannot be copied: {error.strerror}. Free some space, or fork "
            "into a folder on its own disk."
        ) from None


def prepare_resume(directory: RunDirectory, changes: dict[str, Any]) -> None:
    """Check that a run can be resumed, and write down what is to change; see `Lab.resume`."""
    name, state = directory.path.name, directory.state()
    if state not in ENDED and directory.last_word().get("event") != "parked":
        raise RunError(f"{name} is {state}: there is nothing to resume.")
    changes = checked_settings(changes, directory) if changes else {}
    newest, _ = checkpoints.newest_whole(directory)
    at = 0 if newest is None else int(newest.name)
    steps = directory.steps_asked()
    if state == "finished" and changes.get("steps", steps or 0) <= at:
        raise RunError(
            f"{name} has finished its {at} steps. Pass a larger number, such as "
            f"resume(steps={2 * (steps or at or 1)}), or fork it."
        )
    if changes:
        directory.event("set", changes=changes, step=at + 1, by=f"pid {os.getpid()}")
