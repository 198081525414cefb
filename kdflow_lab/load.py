"""Loading models and tokenizers from a folder, and weights from a segment into a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdflow_lab.errors import ModelError

if TYPE_CHECKING:
    from kdflow_lab.transport.segment import WeightSegment


def load_model(
    path: str, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> Any:
    """Load a causal language model on the CPU.

    Raises:
        ModelError: There is no such model, or `transformers` cannot load it.
    """
    from transformers import AutoModelForCausalLM

    try:
        with no_progress_bars():
            return AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
            )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_sentence("model", path, error)) from None


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer that lies beside a model.

    Raises:
        ModelError: There is none, or `transformers` cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_sentence("tokenizer", path, error)) from None


def tie_again(model: Any, segment: WeightSegment) -> None:
    """Tie what a model ties, where a segment does not bring it on its own.

    Where the student of an earlier run had an adapted head, this model still has one of its own.

    Args:
        model: A `transformers` model.
        segment: Of another run.
    """
    given = {entry.name for entry in segment.entries}
    for name, source in getattr(model, "all_tied_weights_keys", {}).items():
        if name not in given:
            put_parameter(model, name, model.get_parameter(source))


def check_fit(model: torch.nn.Module, segment: WeightSegment, *, whose: str) -> None:
    """Refuse a segment whose parameters are not those of a model.

    Args:
        model: A `transformers` model.
        segment: Tied parameters may be in it once.
        whose: That holds the model, such as `rollout engine`, for the error.

    Raises:
        ModelError: One is missing, is unknown, or has another shape.
    """
    names = dict(model.named_parameters(remove_duplicate=False))
    given = {entry.name: entry for entry in segment.entries}

    def refuse(what: str) -> ModelError:
        return ModelError(
            f"The student's weights do not fit the model that the {whose} loaded: {what}."
        )

    if unknown := [name for name in given if name not in names]:
        raise refuse(f"{unknown[0]} is not a parameter of it")
    for name, entry in given.items():
        if tuple(names[name].shape) != entry.shape:
            raise refuse(f"{name} is {entry.shape}, its own is {tuple(names[name].shape)}")
    covered = {id(names[name]) for name in given}
    if missing := [name for name, one in names.items() if id(one) not in covered]:
        raise refuse(f"{missing[0]} is not among them")


def put_weights(
    model: torch.nn.Module, segment: WeightSegment, buffer: int, device: torch.device
) -> None:
    """Give a model the parameters that lie in a buffer; tied ones stay tied.

    Args:
        model: One that `check_fit` passed.
        segment: On a CPU its memory itself becomes the parameters: nothing is copied.
        buffer: Which.
        device: Of the model; on a GPU they are copied there.
    """
    names = dict(model.named_parameters(remove_duplicate=False))
    made: dict[int, torch.nn.Parameter] = {}
    for entry in segment.entries:
        weight = segment.view(entry, buffer)
        if device.type != "cpu":
            weight = weight.to(device)
        parameter = torch.nn.Parameter(weight, requires_grad=False)
        made.setdefault(id(names[entry.name]), parameter)
        put_parameter(model, entry.name, parameter)
    given = {entry.name for entry in segment.entries}
    for name, old in names.items():
        if name not in given:
            put_parameter(model, name, made[id(old)])


def put_parameter(model: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
    """Replace a parameter by its full name."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, parameter)


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Silence `transformers`' bars over the files of a model: they flash by and say nothing."""
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _sentence(what: str, path: str, error: Exception) -> str:
    """The library's reason, cut to its first line, and what to check."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    where = "It is a local folder." if Path(path).is_dir() else "There is no such local folder."
    return f"Cannot load the {what} {path!r}: {reason} {where}"
