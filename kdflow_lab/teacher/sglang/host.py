"""The dedicated process that holds SGLang's `Engine`.

Run as `python -m kdflow_lab.teacher.sglang.host FD FOLDER`: its end of the connection to the
teacher's engine, and where it notes what it leaves. SGLang installs signal handlers, starts
processes, and ends its own parent when one of them fails; here that costs nobody else.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdflow_lab import leftovers
from kdflow_lab.errors import ConfigError, KDFlowLabError
from kdflow_lab.teacher.sglang import arguments, wire
from kdflow_lab.teacher.sglang.hooks import factory

DIED = 70
"""Exit status after a process of SGLang died."""
NOTE_S = 0.5
"""How often the names of shared memory are noted while SGLang starts."""


class Guard:
    """A thread that ends this process with its parent, or with any process of SGLang's."""

    def __init__(self, parent: wire.Channel, folder: Path) -> None:
        """Watch the parent; `watch` adds processes.

        Args:
            parent: The connection to it; whatever it says is read elsewhere.
            folder: Where is noted what has to be removed.
        """
        self._folder = folder
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._parent = parent.fileno()
        self._poll.register(self._parent, 0)  # POLLHUP is always told
        self._names: set[str] = set()
        self._started = False
        threading.Thread(target=self._run, name="guard", daemon=True).start()

    def watch(self) -> list[int]:
        """Watch all children from now on; return their process ids."""
        import psutil

        pids = [child.pid for child in psutil.Process().children(recursive=True)]
        for pid in pids:
            self._poll.register(os.pidfd_open(pid), select.POLLIN)
        self._note(pids)
        self._started = True
        return pids

    def leave(self, status: int) -> None:
        """End this process now, and its children with it: SGLang asks the kernel for that."""
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        leftovers.remove(self._folder, os.getpid())
        os._exit(status)

    def _run(self) -> None:
        while True:
            events = self._poll.poll(1000 * NOTE_S)
            if any(fd == self._parent for fd, _ in events):
                self.leave(0)
            elif events:
                self.leave(DIED)
            elif not self._started:
                self._note_children()

    def _note_children(self) -> None:
        import psutil

        with contextlib.suppress(psutil.Error):
            self._note([child.pid for child in psutil.Process().children(recursive=True)])

    def _note(self, pids: list[int]) -> None:
        """Write down what lies in /dev/shm, for whoever has to remove it."""
        with self._lock:
            names = leftovers.seen([os.getpid(), *pids])
            if not names <= self._names:
                self._names |= names
                leftovers.note(self._folder, os.getpid(), self._names)


class Hooks:
    """What this process knows of the hooks in the scheduler processes."""

    def __init__(self) -> None:
        """Listen; every replica's first rank connects while SGLang starts."""
        self._listener, self.name = wire.listen()
        self._channels: list[wire.Channel] = []
        self._changed = threading.Condition()
        self._written: dict[tuple[int, int, int], int] = {}
        self._acknowledged: dict[int, int] = {}
        self._error = ""
        self.seconds = 0.0
        """Spent in hooks since the last `wait_written`."""
        threading.Thread(target=self._accept, name="hooks", daemon=True).start()

    def open(self, message: dict[str, Any], fd: int) -> None:
        """Hand a ring on to all hooks and wait until they have mapped it."""
        with self._changed:
            self._acknowledged[message["ring"]] = 0
        for channel in self._channels:
            channel.send(message, fd=fd)
        self._wait(lambda: self._acknowledged[message["ring"]] == len(self._channels))

    def close(self, message: dict[str, Any]) -> None:
        """Let all hooks give a ring back, and wait until they have if the message says `wait`."""
        with self._changed:
            self._acknowledged[message["ring"]] = 0
        for channel in self._channels:
            channel.send(message)
        if message.get("wait"):
            self._wait(lambda: self._acknowledged[message["ring"]] == len(self._channels))

    def begin(self) -> None:
        """Forget what was written before."""
        with self._changed:
            self._written.clear()
            self._error, self.seconds = "", 0.0

    def wait_written(self, wanted: dict[tuple[int, int, int], int]) -> None:
        """Wait until all rows are written: the reports may come a moment after SGLang's answer.

        Args:
            wanted: Rows by (ring, slot, sequence).

        Raises:
            ConfigError: A hook failed, or rows are missing.
        """
        # not ==: of a request that was refused, other rows may still be reported
        self._wait(lambda: all(self._written.get(key) == rows for key, rows in wanted.items()))

    def _wait(self, condition: Any, timeout_s: float = 10.0) -> None:
        with self._changed:
            done = self._changed.wait_for(lambda: self._error or condition(), timeout_s)
            if self._error:
                raise ConfigError(self._error)
            if not done:
                raise ConfigError(
                    f"SGLang's hook wrote {sum(self._written.values())} rows, fewer than asked for "
                    f"({len(self._channels)} hooks are connected). Its forward pass may have been "
                    "replayed from a graph: leave engine_args that turn graphs on."
                )

    def _accept(self) -> None:
        while True:
            if (channel := wire.accept(self._listener)) is not None:
                with self._changed:
                    self._channels.append(channel)
                # The hook waits for this: no engine is ready before its hooks are known here.
                with contextlib.suppress(wire.Gone):  # the guard sees the process end
                    channel.send(wire.WELCOME)
                threading.Thread(target=self._listen, args=(channel,), daemon=True).start()

    def _listen(self, channel: wire.Channel) -> None:
        with contextlib.suppress(wire.Gone):  # the guard sees the process end
            while True:
                message, _ = channel.receive()
                with self._changed:
                    self._error = self._error or message.get("error", "")
                    self.seconds += message.get("seconds", 0.0)
                    if "ring" in message:
                        self._acknowledged[message["ring"]] += 1
                    for ring, slot, sequence, rows in message.get("written", []):
                        key = (ring, slot, sequence)
                        self._written[key] = self._written.get(key, 0) + rows
                    self._changed.notify_all()


def start(asked: dict[str, Any], hooks: Hooks) -> Any:
    """Start the engine.

    Args:
        asked: `arguments` of SGLang and `threads` of a scheduler process, or None.
        hooks: Where the hooks will report.

    Raises:
        ConfigError: SGLang has no argument of that name.
        Exception: SGLang cannot start.
    """
    hook = {
        "name": "kdflow",
        "target_modules": ["logits_processor", "*.logits_processor"],
        "hook_factory": f"{factory.__module__}:{factory.__name__}",
        "config": {"socket": hooks.name, "threads": asked["threads"]},
    }
    return make_engine(asked["arguments"], forward_hooks=[hook])


def make_engine(asked: dict[str, Any], **ours: Any) -> Any:
    """Make SGLang's engine.

    Args:
        asked: Of its `ServerArgs`, some by a user.
        **ours: More of them.

    Raises:
        ConfigError: SGLang has no argument of that name.
        Exception: SGLang cannot start.
    """
    from sglang.srt.entrypoints.engine import Engine  # type: ignore[import-not-found]
    from sglang.srt.server_args import ServerArgs  # type: ignore[import-not-found]

    fields = list(getattr(ServerArgs, "__struct_fields__", ()))
    fields = fields or list(getattr(ServerArgs, "__dataclass_fields__", ()))
    arguments.check_names(asked, fields)
    return Engine(**asked, **ours, custom_sigquit_handler=a_child_failed)


def a_child_failed(*_: Any) -> None:
    """Take SIGQUIT while SGLang starts: `Engine` raises then; SGLang's handler would kill us."""


def begin(
    asked: dict[str, Any], parent: wire.Channel, guard: Guard
) -> tuple[dict[str, Any], Callable[[], None]]:
    """Start the engine, and its desk; see `serve`."""
    hooks = Hooks()
    engine = start(asked, hooks)
    children = guard.watch()
    # SGLang's code is imported by the scheduler too; here it was imported by `start`.
    from kdflow_lab.teacher.sglang.desk import Desk

    desk = Desk(engine, hooks)

    def obey() -> None:
        while True:
            message, fd_beside = parent.receive()
            if message["do"] == "stop":
                return
            if (answer := desk.do(message, fd_beside)) is not None:
                parent.send(answer)

    return {"children": children, **desk.describe()}, obey


def serve(
    fd: int,
    folder: Path,
    begin: Callable[
        [dict[str, Any], wire.Channel, Guard], tuple[dict[str, Any], Callable[[], None]]
    ],
) -> None:
    """Start SGLang, say so, and obey until the parent goes or says stop.

    Args:
        fd: Of the connection to the parent.
        folder: Where is noted what has to be removed.
        begin: Gets the parent's first message, the connection and the guard, which it lets watch
            the engine; returns what is to be said of the engine, and what obeys the parent.
    """
    parent = wire.Channel(socket.socket(fileno=fd))
    leftovers.note(folder, os.getpid(), [])
    # Semaphores get their names from this; children inherit it.
    multiprocessing.current_process()._config["semprefix"] = (  # type: ignore[attr-defined]
        leftovers.semaphore_prefix(os.getpid())
    )
    guard = Guard(parent, folder)
    asked, _ = parent.receive()
    try:
        about, obey = begin(asked, parent, guard)
        parent.send({"ready": True, **about})
    except KDFlowLabError as error:
        parent.send({"error": str(error), "kind": type(error).__name__})
        time.sleep(0.1)
        guard.leave(1)
    except BaseException as error:
        parent.send({"error": f"{type(error).__name__}: {error}", "kind": ""})
        guard.leave(1)
    else:
        with contextlib.suppress(wire.Gone):
            obey()
        guard.leave(0)


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), begin)
