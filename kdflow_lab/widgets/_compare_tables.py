"""The tables of a comparison: what the runs reached, how they scored, what differs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kdflow_lab.progress import clock, summary
from kdflow_lab.widgets._compare_data import Compared, Drawn, held_out
from kdflow_lab.widgets._table import Cell, Table

LAST_SHARE = 0.05
"""Steps that the last values are the mean of, as a share of the run's own."""
LEFT_OUT = ("versions", "name", "schema", "parent")
"""Entries of `config.yaml` that are no options."""
NONE = "–"
_MISSING = object()


def results(data: Compared) -> Table:
    """Where each run stands: one line a run."""
    headings = ("run", "state", "steps", "loss", "KD", "agreement", "best held-out KL")
    return Table(
        f"Results (loss, KD and agreement: mean of the last {100 * LAST_SHARE:.0f} % of the steps)",
        tuple(Cell(heading) for heading in (*headings, "tokens/s", "time")),
        [_result(run) for run in data.runs],
        numbers_from=2,
    )


def _result(run: Drawn) -> tuple[Cell, ...]:
    now, records = summary(run.run), run.run.records
    last = records[-max(1, round(LAST_SHARE * len(records))) :]
    seconds = sum(_number(record, "step_s", 0.0) for record in records)
    tokens = sum(
        _number(record, "step_s", 0.0) * _number(record, "tokens_per_s", 0.0) for record in records
    )
    best = held_out(run.run.events)
    at = int(best.raw.argmin()) if len(best.raw) else 0
    texts = (
        now.state,
        f"{now.step:,}/{now.steps:,}" if now.steps else f"{now.step:,}",
        _shown(_mean(last, "loss")),
        _shown(_mean(last, "kd")),
        _shown(100 * _mean(last, "agreement"), ".1f", " %"),
        f"{best.raw[at]:.4g} at {best.raw_steps[at]:,}" if len(best.raw) else NONE,
        _shown(tokens / seconds if seconds and tokens else math.nan, ",.0f"),
        clock(now.elapsed_s),
    )
    return (Cell(run.label, run.look), *(Cell(text) for text in texts))


def evaluations(data: Compared) -> Table:
    """The newest evaluation of each run on its held-out rows; no rows if there was none."""
    newest = [
        next((event for event in reversed(run.run.events) if event["event"] == "evaluated"), {})
        for run in data.runs
    ]
    headings = ["run", "at step", "KL [nats]", "agreement", "CE [nats]", "perplexity", "rows"]
    answered = any(event.get("exact_match") is not None for event in newest)
    headings += ["exact match"] if answered else []
    rows = [
        (
            Cell(run.label, run.look),
            Cell(_shown(_number(event, "step", math.nan), ",.0f")),
            Cell(_shown(_number(event, "kl", math.nan))),
            Cell(_share(event, "agreement")),
            Cell(_shown(_number(event, "ce", math.nan))),
            Cell(_shown(_number(event, "perplexity", math.nan))),
            Cell(_shown(_number(event, "rows", math.nan), ",.0f")),
            *([Cell(_share(event, "exact_match"))] if answered else []),
        )
        for run, event in zip(data.runs, newest, strict=True)
    ]
    return Table(
        "Newest evaluation on held-out rows",
        tuple(map(Cell, headings)),
        rows if any(newest) else [],
        numbers_from=1,
    )


def _share(record: Mapping[str, Any], key: str) -> str:
    return _shown(100 * _number(record, key, math.nan), ".1f", " %")


def _number(record: Mapping[str, Any], key: str, otherwise: float) -> float:
    value = record.get(key)
    return otherwise if value is None or not math.isfinite(value) else float(value)


def _mean(records: list[dict[str, Any]], key: str) -> float:
    """The mean of what was measured; NaN if nothing was."""
    values = [_number(record, key, math.nan) for record in records]
    values = [value for value in values if math.isfinite(value)]
    return sum(values) / len(values) if values else math.nan


def _shown(value: float, form: str = ".4g", unit: str = "") -> str:
    return NONE if math.isnan(value) else f"{value:{form}}{unit}"


def differences(data: Compared) -> Table:
    """Options that differ between the runs, what was changed while they ran, and their lineage.

    There is no row for a single run that was neither changed nor forked.
    """
    configs = [flat(run.run.config) for run in data.runs]
    names = list(dict.fromkeys(name for config in configs for name in config))
    rows = []
    for name in names:
        values = [config.get(name, _MISSING) for config in configs]
        if any(value != values[0] for value in values):
            rows.append((Cell(name), *(Cell(_value(value)) for value in values)))
    changes = [_changes(run) for run in data.runs]
    if any(changes):
        rows.append((Cell("changed"), *(Cell(change or NONE) for change in changes)))
    if len(data.runs) > 1 or data.fork_steps:
        rows.append((Cell("forked from"), *(Cell(_lineage(run)) for run in data.runs)))
    return Table(
        "What differs" if len(data.runs) > 1 else "What happened",
        (Cell("option"), *(Cell(run.label, run.look) for run in data.runs)),
        rows,
    )


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config's options, those of a mapping as `mapping.option`."""
    options: dict[str, Any] = {}
    for name, value in config.items():
        if name in LEFT_OUT:
            continue
        if isinstance(value, Mapping):
            options |= {f"{name}.{inner}": each for inner, each in value.items()}
        else:
            options[name] = value
    return options


def _value(value: object) -> str:
    if value is _MISSING:
        return NONE
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()  # as config.yaml writes it
    if isinstance(value, list | tuple):
        return ", ".join(_value(each) for each in value)
    return str(value)


def _changes(run: Drawn) -> str:
    """What `Run.set` changed: the run's config does not know it."""
    changes = []
    for event in run.run.events:
        if event["event"] == "set":
            values = [f"{name} = {value}" for name, value in (event.get("changes") or {}).items()]
            changes.append(f"step {event.get('step', '?')}: {', '.join(values)}")
    return "; ".join(changes)


def _lineage(run: Drawn) -> str:
    return " ← ".join(str(fork) for fork in run.forks) or NONE
