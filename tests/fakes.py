"""Small stand-ins for what a test would otherwise train or start.

A run directory is written through `RunDirectory`, as engines write it; the process that holds its
lock is a real one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdflow_lab.run import Run
from kdflow_lab.rundir import RunDirectory

Event = tuple[str, Mapping[str, Any]]
RUNNING: tuple[Event, ...] = (("starting", {}), ("started", {"steps": 10}))
FINISHED: tuple[Event, ...] = (*RUNNING, ("finished", {"step": 10}))
FAILED: tuple[Event, ...] = (*RUNNING, ("failed", {"reason": "the loss is not a number."}))

_HOLDER = """
import sys
from kdflow_lab.rundir import RunDirectory
directory = RunDirectory(sys.argv[1])
directory.lock()
print("locked", flush=True)
sys.stdin.read()
"""


def write_run(
    path: Path,
    events: Sequence[Event] = FINISHED,
    metrics: Sequence[Mapping[str, Any]] = (),
    config: Mapping[str, Any] | None = None,
) -> Run:
    """Write a run directory.

    Args:
        path: The directory; it must not exist.
        events: (name, fields) in order. A `starting` event gets this process's id.
        metrics: Records in order.
        config: What `config.yaml` holds besides the schema.
    """
    directory = RunDirectory(path)
    directory.create({"loss": "forward_kl", **(config or {})})
    for name, fields in events:
        directory.event(name, **({"pid": os.getpid()} if name == "starting" else {}), **fields)
    for record in metrics:
        directory.metrics(dict(record))
    return Run(path)


def steps(count: int, **fields: Any) -> list[dict[str, Any]]:
    """Metrics of `count` steps whose loss falls from 1."""
    return [
        {"step": step, "attempt": 1, "loss": 1 / step, "tokens_per_s": 100.0, "step_s": 2.0}
        | fields
        for step in range(1, count + 1)
    ]


@contextlib.contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold a run directory's lock, as rank 0 does while it trains."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "locked\n"
        yield process
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def running(
    path: Path, *, count: int = 3, events: Sequence[Event] = RUNNING, **config: Any
) -> Iterator[Run]:
    """A run that trains: its events say so and a process holds its lock."""
    run = write_run(path, events, steps(count), config)
    with held(path):
        yield run


class FakeFigure:
    """What `Run.plot` returns where no figure is wanted."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": f"figure of {self.run.name}"}

    def save(self, path: str) -> str:
        """Write something, as the real figure does."""
        Path(path).write_text("<svg/>")
        return path
