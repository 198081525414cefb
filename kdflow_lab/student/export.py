"""From a checkpoint to a Hugging Face model; needs no cluster and no other rank."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from kdflow_lab.checkpoints import check
from kdflow_lab.errors import RunError
from kdflow_lab.hub import resolve_model
from kdflow_lab.load import load_model, load_tokenizer, no_progress_bars
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.student.checkpoint import FAILED, not_read, quiet


def checkpoint_at(directory: RunDirectory, step: int | None) -> Path:
    """Return the checkpoint of a step, by default the last one.

    Raises:
        RunError: There is none, or it is damaged.
    """
    name, kept = directory.path.name, directory.checkpoint_steps()
    if not kept:
        raise RunError(
            f"{name} has no checkpoint yet; its state is {directory.state()!r}. A run writes one "
            "when it is paused, stopped or finished, and when run.checkpoint() asks for it."
        )
    if step is not None and step not in kept:
        raise RunError(
            f"{name} has no checkpoint of step {step}. There are: {', '.join(map(str, kept))}."
        )
    path = directory.checkpoints / str(kept[-1] if step is None else step)
    if problem := check(path):
        others = [str(one) for one in kept if str(one) != path.name]
        raise RunError(f"{problem} Others: {', '.join(others) or 'none'}.")
    return path


def load_hf(directory: RunDirectory, *, step: int | None = None) -> Any:
    """Load a run's student as a plain `transformers` model.

    Args:
        directory: The run's.
        step: A step that has a checkpoint; by default the last one.

    Raises:
        RunError: The run has no such checkpoint, or it is damaged.
    """
    checkpoint = checkpoint_at(directory, step)
    lab = directory.config()["lab"]
    path = resolve_model(lab["student"])
    model = load_model(path, trust_remote_code=lab["trust_remote_code"])
    state = {"model": get_model_state_dict(model)}
    try:
        with quiet():
            dcp_load(state, checkpoint_id=checkpoint, no_dist=True)
    except FAILED as error:
        raise not_read(checkpoint, error) from error
    model.load_state_dict(state["model"])
    return model.eval()


def load_tokenizer_of(directory: RunDirectory) -> Any:
    """Load the tokenizer of a run's student."""
    lab = directory.config()["lab"]
    path = resolve_model(lab["student"])
    return load_tokenizer(path, trust_remote_code=lab["trust_remote_code"])


def export_hf(directory: RunDirectory, path: Path, *, step: int | None = None) -> Path:
    """Write a run's student with its tokenizer as a Hugging Face folder.

    The folder appears whole or not at all.

    Args:
        directory: The run's.
        path: The folder.
        step: A step that has a checkpoint; by default the last one.

    Raises:
        RunError: The run has no such checkpoint, or `path` exists and is not a folder to replace.
    """
    path = path.expanduser().absolute()
    is_taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if is_taken and not (path / "config.json").exists():
        raise RunError(f"{path} exists and is not a model folder. Export to another path.")
    model, tokenizer = load_hf(directory, step=step), load_tokenizer_of(directory)
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
