"""Commands from the run directory, taken at step boundaries and obeyed by all ranks together."""

from __future__ import annotations

import time
from typing import Any

import torch.distributed as dist

from kdflow_lab.config import SETTABLE, DistillConfig
from kdflow_lab.errors import KDFlowLabError
from kdflow_lab.losses.names import full_name
from kdflow_lab.rundir import JsonlTail, RunDirectory
from kdflow_lab.student.group import share

HEARTBEAT_S = 0.1
"""Paused ranks meet this often, so that none of them sits long in a collective."""


class Control:
    """Reads `control.jsonl` on rank 0 and gives every rank the same commands at the same step."""

    def __init__(self, directory: RunDirectory, config: DistillConfig) -> None:
        """Obey the commands of `directory`; `set` changes `config` in place."""
        self._directory = directory
        self._config = config
        self._tail = JsonlTail(directory.control_file)
        self._leader = dist.get_rank() == 0
        self.stopped = False

    def at_boundary(self, step: int) -> None:
        """Obey everything that was asked since the last boundary; returns when not paused.

        Args:
            step: The step that comes next, named in the acknowledging events.
        """
        paused = False
        while True:
            for command in share(self._tail.read() if self._leader else None):
                paused = self._obey(command, step, paused)
            if self.stopped or not paused:
                return
            time.sleep(HEARTBEAT_S)

    def _obey(self, command: dict[str, Any], step: int, paused: bool) -> bool:
        """Obey one command; return whether the run is paused after it."""
        kind, command_id = command.get("command"), command.get("id")
        if kind == "stop":
            self.stopped = True
            self._event("stopping", step=step, id=command_id)
            return False
        if kind == "pause":
            if not paused:
                self._event("paused", step=step, id=command_id)
            return True
        if kind == "resume":
            if paused:
                self._event("resumed", step=step, id=command_id)
            return False
        if kind == "set":
            self._set(command.get("changes") or {}, step, command)
        else:
            self._event("warning", message=f"Unknown command {kind!r} ignored.", id=command_id)
        return paused

    def _set(self, changes: dict[str, Any], step: int, command: dict[str, Any]) -> None:
        """Change options from `step` on; what cannot be set is answered and changes nothing."""
        try:
            unknown = [name for name in changes if name not in SETTABLE]
            if unknown:
                raise KDFlowLabError(f"{unknown[0]!r} cannot be set")
            merged = DistillConfig.parse(**{**self._config.model_dump(), **changes})
            full_name(merged.loss)
        except KDFlowLabError as error:
            self._event("warning", message=f"set refused: {error}", id=command.get("id"))
            return
        for name in changes:
            setattr(self._config, name, getattr(merged, name))
        self._event("set", changes=changes, step=step, by=command.get("by"), id=command.get("id"))

    def _event(self, name: str, **fields: Any) -> None:
        if self._leader:
            self._directory.event(name, **fields)
