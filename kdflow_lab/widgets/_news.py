"""What people should know of a run's events: alarms, warnings, losses and changes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from kdflow_lab.widgets._series import changes_in_words
from kdflow_lab.widgets._tokens import visible

MOST = 50
"""Events that are listed."""
SHOWN_IDS = 32
SHOWN_TEXT = 300
KINDS = ("alarm", "warning", "worker_lost", "worker_stuck", "skipped", "set")


def news(events: Sequence[Mapping[str, Any]], most: int = MOST) -> list[dict[str, Any]]:
    """List what people should know of a run, newest first; of its evaluations the newest."""
    evaluated = [event for event in events if event["event"] == "evaluated"][-1:]
    found = [
        event
        for event in events
        if (event["event"] in KINDS and not event.get("replayed")) or event in evaluated
    ]
    return [_one(event) for event in found[::-1][:most]]


def _one(event: Mapping[str, Any]) -> dict[str, Any]:
    kind = event["event"]
    ids = event.get("ids") or []
    return {
        "kind": kind.replace("_", " "),
        "step": event.get("step"),
        "when": time.strftime("%H:%M:%S", time.localtime(event.get("time", 0))),
        "text": _text(event),
        "tokens": visible(str(event["text"]), SHOWN_TEXT) if kind == "alarm" else "",
        "ids": " ".join(map(str, ids[:SHOWN_IDS])) + (" …" if len(ids) > SHOWN_IDS else ""),
    }


def _text(event: Mapping[str, Any]) -> str:
    if event["event"] == "set":
        return f"{changes_in_words(event.get('changes', {}))} (by {event.get('by') or '?'})"
    if event["event"] == "evaluated":
        return evaluation_in_words(event)
    if event["event"].startswith("worker"):
        return ", ".join(event.get("roles", ()))
    if event["event"] == "skipped":
        return str(event.get("reason") or "a step whose loss or gradient is not finite")
    kind = f"{event['kind']}: " if event.get("kind") else ""
    return f"{kind}{event.get('message', '')}"


def evaluation_in_words(event: Mapping[str, Any]) -> str:
    """Say what an `evaluated` event found, such as `KL 0.404, agreement 87.7 % (64 rows)`."""
    figures = {"KL": event.get("kl"), "perplexity": event.get("perplexity")}
    shares = {"agreement": event.get("agreement"), "exact match": event.get("exact_match")}
    metrics = event.get("metrics") or {}
    parts = [f"{name} {value:.3g}" for name, value in figures.items() if value is not None]
    parts += [f"{name} {100 * value:.1f} %" for name, value in shares.items() if value is not None]
    parts += [f"{name} {value:.3g}" for name, value in metrics.items() if value is not None]
    return f"{', '.join(parts)} ({event.get('rows', '?')} held-out rows)"
