"""How far things are: one summary of a run for every place that shows it, and progress lines.

`summary` reads the run directory only. `RunProgress` is the bar of `Run.wait`; `job_progress` and
`phases` are the lines of an evaluation and of a lab that comes up.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdflow_lab.bars import Bar, make_bar
from kdflow_lab.rundir import ENDED

if TYPE_CHECKING:
    from kdflow_lab.run import Run

REFRESH_S = 0.5
"""At most one redraw of the bar in this time."""
RECENT_STEPS = 50
"""Steps whose mean duration says how long the rest will take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Where a run stands."""

    name: str
    state: str
    step: int
    steps: int | None
    """Steps asked for; None until the data was counted."""
    loss: float | None
    """Of the last step, nats a response token."""
    tokens_per_s: float | None
    """Response tokens a second, over the last steps."""
    elapsed_s: float
    """From the start to now, or to the end."""
    remaining_s: float | None
    """Estimated; None while nothing is known, the run is paused or has ended."""
    phase: str
    """What the run does before its first step; empty later."""
    note: str
    """Why the run failed, or else the newest warning; empty if there is neither."""

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ENDED

    @property
    def figures(self) -> str:
        """Loss, speed and time in one line, such as `loss 0.53 · 1,234 tokens/s · 0:34 left`."""
        parts = [self.phase] if self.phase else []
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:,.0f} tokens/s")
        parts.append(f"{clock(self.elapsed_s)} elapsed")
        if self.remaining_s is not None:
            parts.append(f"{clock(self.remaining_s)} left")
        return " · ".join(parts)

    def __str__(self) -> str:
        """The whole summary in one line."""
        total = f"/{self.steps}" if self.steps else ""
        line = f"{self.name}: {self.state} · step {self.step}{total} · {self.figures}"
        return f"{line} · {self.note}" if self.note else line


def clock(seconds: float) -> str:
    """Write a duration as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def summary(run: Run) -> Summary:
    """Read the run directory and say where the run stands."""
    # the state first: a run seen as ended has written all its metrics already
    state, events, records = run.state, run.events, run.records
    recent = records[-RECENT_STEPS:]
    step = recent[-1]["step"] if recent else run.step
    steps: int | None = None
    note = phase = ""
    start = events[0]["time"] if events else time.time()
    for event in events:
        steps = (event.get("changes") or {}).get("steps", event.get("steps", steps))
        if event["event"] == "warning":
            note = str(event.get("message", ""))
        elif event["event"] == "starting":
            note, start = "", event["time"]  # of this attempt
        elif event["event"] == "phase":
            phase = str(event.get("text", ""))
    if state == "failed":
        note = run.reason
    step_s = _mean(recent, "step_s")
    going = state in ("running", "stopping") and steps is not None and step_s is not None
    end = events[-1]["time"] if events and state in ENDED else time.time()
    return Summary(
        name=run.name,
        state=state,
        step=step,
        steps=steps,
        loss=_last(recent, "loss"),
        tokens_per_s=_mean(recent, "tokens_per_s"),
        elapsed_s=max(0.0, end - start),
        remaining_s=max(0, steps - step) * step_s if going and steps and step_s else None,
        phase=phase if state == "starting" else "",
        note=note,
    )


def _last(records: list[dict[str, Any]], key: str) -> float | None:
    value = records[-1].get(key) if records else None
    return float(value) if value is not None else None


def _mean(records: list[dict[str, Any]], key: str) -> float | None:
    values = [float(record[key]) for record in records if record.get(key) is not None]
    values = [value for value in values if math.isfinite(value)]
    return sum(values) / len(values) if values else None


class RunProgress:
    """The progress bar of one run, as a context manager."""

    def __init__(self, run: Run) -> None:
        """Nothing is shown before the context is entered."""
        self._run = run
        self._drawn_at = -math.inf
        self._bar: Bar | None = None

    def __enter__(self) -> RunProgress:
        """Show the bar."""
        self._bar = make_bar()
        self.update()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._draw(self._bar)
            self._bar.close()
            self._bar = None

    def update(self) -> bool:
        """Redraw the bar if it is time; return True when the run has ended."""
        ended = self._run.state in ENDED
        if self._bar is not None and (ended or time.monotonic() - self._drawn_at >= REFRESH_S):
            self._drawn_at = time.monotonic()
            self._draw(self._bar)
        return ended

    def _draw(self, bar: Bar) -> None:
        now = summary(self._run)
        if now.steps is None:
            bar.text(f"{now.name}: {now.state} · {now.figures}")
        else:
            before = now.name if now.state == "running" else f"{now.name} ({now.state})"
            bar.meter(f"{before} ", now.step, now.steps, now.figures)


@contextlib.contextmanager
def job_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far a job is that is waited for, such as an evaluation.

    Args:
        label: What is done.

    Yields:
        A function of the parts done and the parts in all (0 while they are not known).
    """
    bar, start = make_bar(), time.monotonic()
    drawn_at = -math.inf
    state = (0, 0)

    def draw() -> None:
        done, total = state
        elapsed_s = time.monotonic() - start
        if not total:
            bar.text(f"{label} … {clock(elapsed_s)}")
            return
        left = f" · {clock(elapsed_s / done * (total - done))} left" if 0 < done < total else ""
        bar.meter(f"{label} ", done, total, f"{clock(elapsed_s)} elapsed{left}")

    def on_progress(done: int, total: int) -> None:
        nonlocal drawn_at, state
        state = (done, total)
        if time.monotonic() - drawn_at >= REFRESH_S:
            drawn_at = time.monotonic()
            draw()

    try:
        yield on_progress
    finally:
        draw()
        bar.close()


@contextlib.contextmanager
def phases() -> Iterator[Callable[[str], None]]:
    """Show what happens while the caller waits, one phase replacing the other.

    Yields:
        A function of the phase that begins. Nothing is shown unless it is called.
    """
    bar, start = make_bar(), time.monotonic()
    phase = ""

    def say(text: str) -> None:
        nonlocal phase
        phase = text
        bar.text(f"{text} …")

    try:
        yield say
    except BaseException:
        if phase:
            bar.text(f"{phase}: failed after {time.monotonic() - start:.1f} s")
        raise
    else:
        if phase:
            bar.text(f"ready after {time.monotonic() - start:.1f} s")
    finally:
        bar.close()
