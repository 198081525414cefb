"""Checkpoints of a run by torch.distributed.checkpoint: all that the next step depends on.

`checkpoints/<step>/` holds the sharded weights that are trained (of a LoRA student its adapters),
the optimizer's state, the random state of every rank, what the algorithm keeps, the weights of a
teacher that follows, and `state.json`: the step (which is the place in the data, since the data
plan is a function of it) and the size of every file. The folder is written under another name,
brought to the disk, and renamed when it is whole. A file that is missing or shorter than
`state.json` says marks a damaged checkpoint, which is not taken (`kdflow_lab.checkpoints`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from kdflow_lab.checkpoints import STATE, read_state
from kdflow_lab.errors import RunError
from kdflow_lab.student.base import check_mark
from kdflow_lab.student.group import is_broken, share

if TYPE_CHECKING:
    from kdflow_lab.rundir import RunDirectory

FAILED = (Exception, CheckpointException)
"""What DCP raises: its own error is no `Exception`."""
FULL_BYTES = 1 << 20
"""A disk with less room than this was full when a checkpoint failed."""


def save(
    directory: RunDirectory,
    step: int,
    model: Any,
    optimizer: torch.optim.Optimizer,
    *,
    algorithm: dict[str, Any] | None = None,
    teacher: dict[str, torch.Tensor] | None = None,
    **fields: Any,
) -> Path:
    """Write the checkpoint of a step; every rank calls it.

    Args:
        directory: The run's.
        step: Steps done.
        model: The sharded student.
        optimizer: Its optimizer.
        algorithm: Tensors that the algorithm keeps, the same on every rank or sharded.
        teacher: Weights of a teacher that follows the student, sharded; `teacher_version` must be
            among the fields then.
        **fields: Put into `state.json` and into the `checkpoint` event.

    Raises:
        RunError: It cannot be written, on whichever rank; earlier checkpoints are untouched.
    """
    start = time.monotonic()
    path = directory.checkpoints / str(step)
    unfinished = directory.checkpoints / f".{step}.tmp"
    leader = dist.get_rank() == 0
    problem = None
    if leader:
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        except OSError as error:
            problem = error
    try:
        _raise(share(problem), step)
        moments = bool(optimizer.state)
        state = _state_of(model, optimizer if moments else None, algorithm, teacher)
        device = _device_of(model)
        state[f"rng/{dist.get_rank()}"] = _random_state(device)
        with quiet():
            dcp_save(state, checkpoint_id=unfinished)
        if leader:
            known = {"step": step, "ranks": _world(), "device": device, "moments": moments}
            if base := getattr(model, "base_mark", None):
                known["base"] = base
            known |= fields
            problem = _finish(unfinished, path, known)
        _raise(share(problem), step)
    except RunError:
        raise
    except FAILED as error:  # DCP gathers the ranks' errors and raises them on all
        if is_broken(error):  # it is not the disk
            raise
        raise RunError(_not_written(step, _cause(error, unfinished))) from error
    finally:
        if leader:
            shutil.rmtree(unfinished, ignore_errors=True)
    if leader:
        size = sum(file.stat().st_size for file in path.iterdir())
        directory.event(
            "checkpoint",
            step=step,
            path=str(path),
            bytes=size,
            seconds=round(time.monotonic() - start, 3),
            **fields,
        )
    return path


def load(
    path: Path,
    model: Any,
    optimizer: torch.optim.Optimizer,
    *,
    algorithm: dict[str, Any] | None = None,
    teacher: dict[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Read a checkpoint into a student and its optimizer; every rank calls it.

    The number of ranks may differ from that of the writer: weights and optimizer state are dealt
    out anew, and the random state is restored only where it means the same.

    Args:
        path: A checkpoint that `checkpoints.check` passed.
        model: The sharded student.
        optimizer: Its optimizer.
        algorithm: Tensors to be filled in place.
        teacher: Likewise; left as they are where no `teacher_version` was saved.

    Returns:
        What `state.json` says.

    Raises:
        RunError: It cannot be read, or is of another model, or its adapters are for other weights.
    """
    saved = read_state(path)
    check_mark(saved.get("base"), getattr(model, "base_mark", None), path)
    moments = saved.get("moments", True)
    if "teacher_version" not in saved:
        teacher = None
    state = _state_of(model, optimizer if moments else None, algorithm, teacher)
    device = _device_of(model)
    same_place = (saved["ranks"], saved["device"]) == (_world(), device)
    mine = f"rng/{dist.get_rank()}"
    if same_place:
        state[mine] = _random_state(device)
    try:
        with quiet():
            dcp_load(state, checkpoint_id=path)
    except FAILED as error:
        if is_broken(error):
            raise
        raise not_read(path, error) from error
    without_frozen = StateDictOptions(strict=False)
    if moments:
        set_state_dict(
            model,
            optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=without_frozen,
        )
    else:
        set_model_state_dict(model, state["model"], options=without_frozen)
    if same_place:
        _restore_random_state(state[mine])
    else:
        torch.manual_seed(saved["step"] * saved["ranks"] + dist.get_rank())
    return saved


def not_read(path: Path, error: BaseException) -> RunError:
    """Say that a checkpoint cannot be read, and why."""
    return RunError(
        f"The checkpoint {path} cannot be read: {_last_line(error)} Expected one of the same "
        "student; look whether its files are whole."
    )


def _state_of(
    model: Any,
    optimizer: torch.optim.Optimizer | None,
    algorithm: dict[str, Any] | None,
    teacher: dict[str, torch.Tensor] | None,
) -> dict[str, Any]:
    """What DCP writes and reads; without the optimizer where it has made no update.

    It would be given a state then, by an update with gradients of zero. That counts as one, so that
    a run which was paused before its first step would take other steps than one that was not.
    """
    if optimizer is None:
        state: dict[str, Any] = {"model": get_model_state_dict(model)}
    else:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
    # What is frozen is the model that the run started from, under each of its names.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            state["model"].pop(name, None)
    if algorithm:
        state["algorithm"] = algorithm
    if teacher:
        state["teacher"] = teacher
    return state


def _finish(unfinished: Path, path: Path, fields: dict[str, Any]) -> OSError | None:
    """Bring a written checkpoint to the disk and give it its name; return what went wrong."""
    try:
        sizes = {}
        for file in sorted(unfinished.iterdir()):
            sizes[file.name] = file.stat().st_size
            _sync(file)
        state = unfinished / STATE
        state.write_text(json.dumps({**fields, "time": time.time(), "files": sizes}))
        _sync(state)
        _sync(unfinished)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(unfinished, path)
        _sync(path.parent)
    except OSError as error:
        return error
    return None


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _device_of(model: Any) -> str:
    """Where the student is: `cpu` or `cuda`."""
    return next(model.parameters()).device.type


def _random_state(device: str) -> torch.Tensor:
    """The state of the CPU's and, for a student on a GPU, that GPU's generator, as bytes.

    By the student's device and not by whether CUDA was touched: a rank on a machine with a GPU that
    trains on the CPU may touch it at any time.
    """
    states = [torch.get_rng_state()]
    if device == "cuda":
        states.append(torch.cuda.get_rng_state())
    return torch.cat(states)


def _restore_random_state(state: torch.Tensor) -> None:
    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[:size].clone())
    if state.numel() > size:
        torch.cuda.set_rng_state(state[size:].clone())


def _world() -> int:
    return dist.get_world_size()


def _raise(problem: OSError | None, step: int) -> None:
    if problem is not None:
        raise RunError(_not_written(step, problem))


def _cause(error: BaseException, folder: Path) -> BaseException:
    """Say that a disk is full where it is: the writer of tensors only says that it failed."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < FULL_BYTES:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return error


def _not_written(step: int, error: BaseException) -> str:
    return (
        f"The checkpoint of step {step} cannot be written: {_last_line(error)} Earlier ones are "
        "untouched. Free some space or make the folder writable."
    )


def _last_line(error: BaseException) -> str:
    """The last line of an error, which is what DCP's long ones come to."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[-1].strip().rstrip('.')}."


@contextlib.contextmanager
def quiet() -> Any:
    """Silence DCP's remarks on single-process use, which say nothing to a user."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
