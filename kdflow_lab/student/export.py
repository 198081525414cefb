"""From a checkpoint to a Hugging Face model; needs no cluster and no other rank."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from kdflow_lab.checkpoints import check, read_state
from kdflow_lab.errors import RunError
from kdflow_lab.hub import resolve_model
from kdflow_lab.load import load_model, load_tokenizer, no_progress_bars
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.student.base import check_mark, mark_of
from kdflow_lab.student.checkpoint import FAILED, not_read, quiet
from kdflow_lab.student.lora import Lora, adapt
from kdflow_lab.student.merge import merge, read_adapters

MODEL_CONFIGS = ("config.json", "adapter_config.json")
"""What a folder holds that a model or an adapter was exported to."""


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
    """Load a run's student as a plain `transformers` model; LoRA adapters are merged into it.

    Args:
        directory: The run's.
        step: A step that has a checkpoint; by default the last one.

    Raises:
        RunError: The run has no such checkpoint, or it is damaged.
    """
    checkpoint = checkpoint_at(directory, step)
    lora = Lora.of(directory.config())
    model = _base_model(directory, None if lora is None else checkpoint)
    if lora is not None:
        merge(model, _adapters(checkpoint), scale=lora.scale)
        return model.eval()
    state = {"model": get_model_state_dict(model)}
    try:
        with quiet():
            dcp_load(state, checkpoint_id=checkpoint, no_dist=True)
    except FAILED as error:
        raise not_read(checkpoint, error) from error
    model.load_state_dict(state["model"])
    return model.eval()


def _base_model(directory: RunDirectory, adapters: Path | None = None) -> Any:
    """Load the model that a run's student started from.

    Args:
        directory: The run's.
        adapters: A checkpoint of adapters, which must have been trained on these very weights.
    """
    lab = directory.config()["lab"]
    path = resolve_model(lab["student"])
    model = load_model(path, trust_remote_code=lab["trust_remote_code"])
    if adapters is not None:
        check_mark(read_state(adapters).get("base"), mark_of(model), adapters)
    return model


def _adapters(checkpoint: Path) -> dict[str, Tensor]:
    """Read a checkpoint's adapters; what cannot be read is said in words."""
    try:
        return read_adapters(checkpoint)
    except RunError:
        raise
    except FAILED as error:
        raise not_read(checkpoint, error) from error


def _adapted(directory: RunDirectory, checkpoint: Path) -> Any:
    """Load a run's student as PEFT's wrapper around the model that it started from."""
    lora = Lora.of(directory.config())
    if lora is None:
        raise RunError(
            f"{directory.path.name} trained all weights of its student: it has no adapter to "
            "write. Export without adapter=True."
        )
    model = _base_model(directory, checkpoint)
    wrapper = adapt(model, lora, seed=0)  # what is drawn is overwritten
    known = {name: one for name, one in model.named_parameters() if one.requires_grad}
    found = _adapters(checkpoint)
    if {name: one.shape for name, one in known.items()} != {
        name: one.shape for name, one in found.items()
    }:
        raise RunError(
            f"The adapters in {checkpoint} do not fit the model that the run's config names. "
            "Expected the one that the run started from."
        )
    with torch.no_grad():
        for name, parameter in known.items():
            parameter.copy_(found[name])
    lab = directory.config()["lab"]["student"]
    is_local = lab.startswith("zoo/") or Path(lab).is_absolute()
    wrapper.peft_config["default"].base_model_name_or_path = resolve_model(lab) if is_local else lab
    return wrapper.eval()


def load_tokenizer_of(directory: RunDirectory) -> Any:
    """Load the tokenizer of a run's student."""
    lab = directory.config()["lab"]
    path = resolve_model(lab["student"])
    return load_tokenizer(path, trust_remote_code=lab["trust_remote_code"])


def export_hf(
    directory: RunDirectory, path: Path, *, step: int | None = None, adapter: bool = False
) -> Path:
    """Write a run's student with its tokenizer as a Hugging Face folder.

    The folder appears whole or not at all.

    Args:
        directory: The run's.
        path: The folder.
        step: A step that has a checkpoint; by default the last one.
        adapter: Write the LoRA adapter alone, as PEFT does; else a plain model.

    Raises:
        RunError: The run has no such checkpoint, or trained no adapter, or `path` exists and is not
            a folder to replace.
        ConfigError: An adapter is to be written and PEFT is missing.
    """
    path = path.expanduser().absolute()
    is_taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if is_taken and not any((path / name).exists() for name in MODEL_CONFIGS):
        raise RunError(f"{path} exists and is not a model folder. Export to another path.")
    options: dict[str, Any] = {}
    if adapter:
        model = _adapted(directory, checkpoint_at(directory, step))
        options["save_embedding_layers"] = False  # an adapted head's own weight is not trained
    else:
        model = load_hf(directory, step=step)
    tokenizer = load_tokenizer_of(directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        with no_progress_bars():
            model.save_pretrained(unfinished, **options)
        tokenizer.save_pretrained(unfinished)
        unfinished.chmod(0o755)
        # a config follows the umask; weights do not
        readable = next(unfinished.glob("*config.json")).stat().st_mode
        for file in unfinished.iterdir():
            file.chmod(readable)
        if path.exists():
            shutil.rmtree(path)
        os.replace(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return path
