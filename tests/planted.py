"""Copies of the zoo's models in which something is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import kdflow_lab as kd

OTHER_END = "<|endoftext|>"
"""A special token of the zoo's tokenizer that no text holds."""


def uniform(name: str, folder: Path) -> str:
    """A model whose final norm is zero: every token is as likely as any other."""
    model = _copied(name, folder)
    model.model.norm.weight.data.zero_()
    model.save_pretrained(folder)
    return str(folder)


def with_wrong_stop_id(name: str, folder: Path) -> str:
    """A model whose files name another stop id than the one with which it ends its answers."""
    _copied(name, folder)
    _change(folder / "generation_config.json", eos_token_id=_other_end(folder))
    _change(folder / "config.json", eos_token_id=_other_end(folder))
    _change(folder / "tokenizer_config.json", eos_token=OTHER_END)
    return str(folder)


def ending_otherwise(name: str, folder: Path) -> str:
    """A model that was trained to end its answers with another token, which its files name."""
    model = _copied(name, folder)
    end, other = model.generation_config.eos_token_id, _other_end(folder)
    weight = model.get_input_embeddings().weight.data.clone()  # tied: what is read stays
    model.lm_head.weight = type(model.lm_head.weight)(weight)
    model.lm_head.weight.data[[end, other]] = weight[[other, end]]
    model.config.tie_word_embeddings = False
    model.generation_config.eos_token_id = other
    model.save_pretrained(folder)
    return str(folder)


def _copied(name: str, folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    shutil.copytree(kd.zoo.path(name), folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def _other_end(folder: Path) -> int:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(OTHER_END)


def _change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
