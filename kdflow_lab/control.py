"""Commands from the run directory, taken at step boundaries and obeyed by all ranks together."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from kdflow_lab import registration, settings
from kdflow_lab.config import SETTABLE, DistillConfig
from kdflow_lab.errors import KDFlowLabError, RunError
from kdflow_lab.jsonl import JsonlTail
from kdflow_lab.losses.names import check_params
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.student.group import share

HEARTBEAT_S = 0.1
"""Paused ranks meet this often, so that none of them sits long in a collective."""
Action = Callable[[str], None]


class Control:
    """Reads `control.jsonl` on rank 0 and gives every rank the same commands at the same step."""

    def __init__(
        self,
        directory: RunDirectory,
        config: DistillConfig,
        *,
        actions: dict[str, Action],
        since: int = 0,
        line: settings.Timeline | None = None,
        check: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Obey the commands of `directory`.

        Args:
            directory: The run's.
            config: `set` changes it in place.
            actions: What `checkpoint`, `evaluate` and `inspect` do; called on every rank, with who
                asked.
            since: Byte of `control.jsonl` where this attempt's commands begin.
            line: Changes of earlier attempts, each to be made again at its step.
            check: Refuses changes that have no effect in this run, by a `KDFlowLabError`.
        """
        self._directory = directory
        self._config = config
        self._actions = actions
        self._tail = JsonlTail(directory.control_file, position=since)
        self._line = line or []
        self._check = check
        self._leader = dist.get_rank() == 0
        self._attempt = directory.attempts
        self.ended = ""
        """`stopped`, or `parked` (told, while paused, to leave the engines to others)."""

    def at_boundary(self, step: int, due: list[str]) -> None:
        """Obey everything that was asked since the last boundary; returns when not paused.

        Args:
            step: The step that comes next, named in the acknowledging events.
            due: Actions that rank 0 finds due by itself; ignored on the others.

        Raises:
            RunError: While it was paused, the run failed: the teacher died, for one.
        """
        self._replay(step)
        commands = [{"command": "due", "actions": due}] if due else []
        paused = False
        while True:
            if paused and self._leader and self._directory.outcome(self._attempt) == "failed":
                commands = [{"command": "failed"}]  # of another process: nothing will come of it
            asked = share([*commands, *self._tail.read()] if self._leader else None)
            commands = []
            for command in asked:
                paused = self._obey(command, step, paused)
            if self.ended or not paused:
                return
            time.sleep(HEARTBEAT_S)

    def _replay(self, step: int) -> None:
        """Make the changes again that an earlier attempt made at this step."""
        for changes in [changes for at, changes in self._line if at == step]:
            self._apply(changes)
            self._event("set", changes=changes, step=step, replayed=True)
        self._line = [(at, changes) for at, changes in self._line if at > step]

    def _obey(self, command: dict[str, Any], step: int, paused: bool) -> bool:
        """Obey one command; return whether the run is paused after it."""
        kind = command.get("command")
        said = {"step": step, "id": command.get("id"), "by": command.get("by")}
        if kind == "failed":
            raise RunError("The run failed while it was paused.")
        if kind == "stop":
            self.ended = "stopped"
            self._event("stopping", **said)
            return False
        if kind == "pause":
            if not paused:
                self._actions["checkpoint"]("pause")
                self._event("paused", **said)  # it can be forked, and leave the engines
            else:
                self._event("done", command=kind, **said)
            return True
        if kind == "resume":
            if self.ended == "parked":
                self.ended = ""  # it was just told to leave the engines, and need not
            self._event("resumed" if paused else "done", command=kind, **said)
            return False
        if kind == "park":
            self.ended = self.ended or ("parked" if paused else "")
        elif kind == "due":
            for action in command["actions"]:
                self._actions[action]("schedule")
        elif kind in self._actions:
            self._act(kind, said)
        elif kind == "set":
            self._set(command.get("changes") or {}, said)
        else:
            self._event("warning", message=f"Unknown command {kind!r} ignored.", **said)
        return paused

    def _act(self, kind: str, said: dict[str, Any]) -> None:
        """Do what was asked; a failure is answered and does not end the run."""
        try:
            self._actions[kind](said["by"] or "command")
        except KDFlowLabError as error:
            self._event("warning", message=f"{kind} failed: {error}", **said)
        else:
            self._event("done", command=kind, **said)

    def _set(self, changes: dict[str, Any], said: dict[str, Any]) -> None:
        """Change options from this step on; what cannot be set is answered and changes nothing."""
        try:
            if "loss" in changes:
                registration.load(self._directory)
            self._apply(changes)
        except KDFlowLabError as error:
            self._event("warning", message=f"set refused: {error}", **said)
            return
        self._line = settings.replaced(self._line, said["step"], changes)
        self._event("set", changes=changes, **said)

    def _apply(self, changes: dict[str, Any]) -> None:
        unknown = [name for name in changes if name not in SETTABLE]
        if unknown:
            raise KDFlowLabError(f"{unknown[0]!r} cannot be set")
        merged = DistillConfig.parse(**{**self._config.model_dump(), **changes})
        check_params(merged.loss, merged.loss_params)
        if self._check is not None:
            self._check(changes)
        for name in changes:
            setattr(self._config, name, getattr(merged, name))

    def _event(self, name: str, **fields: Any) -> None:
        if self._leader:
            self._directory.event(name, **fields)
