"""Loading models and tokenizers from a folder, with errors in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kdflow_lab.errors import ModelError


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
