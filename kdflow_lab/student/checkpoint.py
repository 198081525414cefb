"""Checkpoints of a run by torch.distributed.checkpoint, and their way to a Hugging Face folder."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from kdflow_lab.errors import RunError
from kdflow_lab.hub import resolve_model
from kdflow_lab.load import load_model, load_tokenizer, no_progress_bars
from kdflow_lab.rundir import RunDirectory


def save(directory: RunDirectory, model: Any, step: int) -> Path:
    """Save the sharded weights of a step; every rank calls it.

    The checkpoint is written under another name and renamed when it is whole, so that a
    half-written one is never found.
    """
    path = directory.checkpoints / str(step)
    unfinished = directory.checkpoints / f".{step}.tmp"
    if dist.get_rank() == 0:
        for leftover in (unfinished, path):
            shutil.rmtree(leftover, ignore_errors=True)
        unfinished.mkdir(parents=True)
    dist.barrier()
    with _quiet():
        dcp_save({"model": get_model_state_dict(model)}, checkpoint_id=unfinished)
    if dist.get_rank() == 0:
        os.replace(unfinished, path)
        directory.event("checkpoint", step=step, path=str(path))
    dist.barrier()
    return path


def latest(directory: RunDirectory) -> Path:
    """Return the newest whole checkpoint.

    Raises:
        RunError: There is none.
    """
    found = [path for path in directory.checkpoints.glob("[0-9]*") if path.name.isdigit()]
    if not found:
        raise RunError(
            f"{directory.path.name} has no checkpoint yet. A run writes one when it finishes or is "
            "stopped; its state is "
            f"{directory.state()!r}."
        )
    return max(found, key=lambda path: int(path.name))


def load_hf(directory: RunDirectory) -> Any:
    """Load a run's student as a plain `transformers` model; needs no cluster and no other rank.

    Raises:
        RunError: The run has no checkpoint yet.
    """
    checkpoint = latest(directory)
    lab = directory.config()["lab"]
    path = resolve_model(lab["student"])
    model = load_model(path, trust_remote_code=lab["trust_remote_code"])
    state = {"model": get_model_state_dict(model)}
    with _quiet():
        dcp_load(state, checkpoint_id=checkpoint, no_dist=True)
    model.load_state_dict(state["model"])
    return model.eval()


def load_tokenizer_of(directory: RunDirectory) -> Any:
    """Load the tokenizer of a run's student."""
    lab = directory.config()["lab"]
    path = resolve_model(lab["student"])
    return load_tokenizer(path, trust_remote_code=lab["trust_remote_code"])


def export_hf(directory: RunDirectory, path: Path) -> Path:
    """Write a run's student with its tokenizer as a Hugging Face folder.

    The folder appears whole or not at all.

    Raises:
        RunError: The run has no checkpoint, or `path` exists and is not a folder to replace.
    """
    path = path.expanduser().absolute()
    is_taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if is_taken and not (path / "config.json").exists():
        raise RunError(f"{path} exists and is not a model folder. Export to another path.")
    model, tokenizer = load_hf(directory), load_tokenizer_of(directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        with no_progress_bars():
            model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.chmod(0o755)
        readable = (unfinished / "config.json").stat().st_mode  # follows the umask; weights do not
        for file in unfinished.iterdir():
            file.chmod(readable)
        if path.exists():
            shutil.rmtree(path)
        os.replace(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return path


@contextlib.contextmanager
def _quiet() -> Any:
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
