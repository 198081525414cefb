"""The options of a run that a figure lets its reader change, and what a fork may begin with."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from kdflow_lab import settings
from kdflow_lab.config import SETTABLE
from kdflow_lab.losses.names import names

LABELS = {"lr": "lr", "kd_temperature": "temperature", "kd_ratio": "kd_ratio", "loss": "loss"}
"""Knobs of every run with a teacher, and what they are called."""
OF_TEACHER = ("loss", "loss_params", "kd_ratio", "kd_temperature", "hidden_weight")
"""Options that say how to learn from a teacher; SFT has none."""

Knob = dict[str, Any]
"""`name`, `label`, `value` (text, as now in force) and `choices` (empty for a number)."""


def in_force(config: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settable options of a run as they hold for its next step."""
    line = settings.timeline(dict(event) for event in events)
    now = {**config, **settings.in_force(line, sys.maxsize)}
    for event in events:
        if event["event"] == "started" and now.get("steps") is None:
            now["steps"] = event.get("steps")  # what the epochs came to
    return {name: now.get(name) for name in settable(config)}


def settable(config: Mapping[str, Any]) -> list[str]:
    """Name the options that have a meaning in a run."""
    left_out: tuple[str, ...] = ()
    if config.get("algorithm") == "sft":
        left_out += OF_TEACHER
    if not config.get("on_policy"):
        left_out += ("lmbda",)
    if config.get("hidden_loss", "none") == "none":
        left_out += ("hidden_weight",)
    return [name for name in SETTABLE if name not in left_out]


def knobs(now: Mapping[str, Any]) -> list[Knob]:
    """Build the knobs of a run from its options in force."""
    labels = {**LABELS, "lmbda": "lmbda"}
    return [_knob(name, label, now[name]) for name, label in labels.items() if name in now]


def fork_fields(now: Mapping[str, Any]) -> list[Knob]:
    """Build the fields of the form of a fork: every settable option, `steps` first."""
    order = ["steps", *(name for name in now if name != "steps")]
    return [_knob(name, name, now[name]) for name in order if name in now]


def parsed(name: str, text: str) -> Any:
    """Read a value that was typed; the options' own check says what does not fit."""
    if name != "loss_params":
        return text.strip()
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _knob(name: str, label: str, value: Any) -> Knob:
    text = _text(value)
    choices: list[str] = []
    if name == "loss":
        known = names()
        choices = [*known, *([text] if text not in known else [])]  # registered elsewhere
    return {"name": name, "label": label, "value": text, "choices": choices}


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return yaml.safe_dump(dict(value), default_flow_style=True, width=sys.maxsize).strip()
    return "" if value is None else str(value)
