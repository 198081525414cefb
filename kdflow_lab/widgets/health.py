"""The foot of a run's figure: memory of every process, and what happened, newest first.

The JavaScript is `/widgets/health.js`. Text of models and of errors is shown as text, whatever it
holds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import anywidget
import traitlets

from kdflow_lab.units import size
from kdflow_lab.widgets import esm
from kdflow_lab.widgets._memory import gpu_bytes, memory
from kdflow_lab.widgets._news import news

EVERY_S = 2.0
"""How often memory is looked at."""


class RunHealth(anywidget.AnyWidget):
    """Memory and news of one run."""

    _esm = esm("health")

    memory = traitlets.List().tag(sync=True)
    """By role: `role`, `size` (text), `bytes` and `count` of processes."""
    total = traitlets.Unicode().tag(sync=True)
    """All of it, and what the GPU holds; empty where the processes are not at hand."""
    news = traitlets.List().tag(sync=True)
    """What happened, newest first: `kind`, `step`, `when`, `text`, and of an alarm `tokens` (the
    answer that shows it, nothing in it invisible) and `ids`."""

    def __init__(self, **traits: Any) -> None:
        """Make the foot; `show` fills it."""
        super().__init__(**traits)
        self._looked_at = float("-inf")

    def show(
        self, records: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]
    ) -> None:
        """Show what is new; called by the figure's thread only, for it reads `/proc`."""
        with self.hold_sync():
            self.news = news(events)
            if time.monotonic() - self._looked_at < EVERY_S:
                return
            self._looked_at = time.monotonic()
            uses = memory(events)
            self.memory = [
                {
                    "role": use.role,
                    "size": size(use.pss_bytes),
                    "bytes": use.pss_bytes,
                    "count": use.count,
                }
                for use in uses
            ]
            total = f"{size(sum(use.pss_bytes for use in uses))} in all" if uses else ""
            on_gpu = gpu_bytes(records, events)
            held = "" if on_gpu is None else f"{size(on_gpu)} at most on a student's GPU"
            self.total = ", ".join(part for part in (total, held) if part)
