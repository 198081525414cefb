"""The control plane: an ipyparallel cluster on loopback, one engine a role.

Start, call, stop; tensors never come this way. Engines are told what to do by functions of
`kdflow_lab.roles`; what they raise comes back as the same class of error with the engine's role.
It lives in the lab's supervisor, which ends its processes when the lab ends.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdflow_lab import errors, processes
from kdflow_lab.errors import ClusterError, KDFlowLabError

START_TIMEOUT_S = 60.0
START_TRIES = 3
ANSWER_S = 20.0
"""How long an engine may take to answer a call that only starts something."""
CONTROLLER = "controller"
ROLLOUT = "rollout"


@dataclass(frozen=True, slots=True)
class Call:
    """A function that runs on an engine.

    Attributes:
        role: The engine's.
        result: ipyparallel's `AsyncResult`.
    """

    role: str
    result: Any


class Cluster:
    """Controller and engines of one lab; an engine that died can be replaced."""

    def __init__(self, *, students: int, folder: Path, environment: dict[str, str]) -> None:
        """Describe the cluster; `start` starts it.

        Args:
            students: Number of student engines.
            folder: The lab's runtime folder.
            environment: Set in every process of the cluster.
        """
        self.students = [f"student {rank}" for rank in range(students)]
        self.roles = ["teacher", *self.students]
        self.folder = folder
        self.environment = environment
        self.pids: dict[str, int] = {}
        """Process of each role that was started and not replaced, and of the controller."""
        self._pidfds: dict[str, int] = {}
        self._engine_ids: dict[str, int] = {}
        self._cluster: Any = None
        self._client: Any = None

    # -- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start controller and engines on loopback and connect to them.

        Raises:
            ClusterError: They did not come up; the message ends with the cluster's own reason.
        """
        with self._starting():
            for left in reversed(range(START_TRIES)):
                try:
                    self._start_controller()
                    break
                except Exception:
                    if not left:
                        raise
        self.heal()

    def _start_controller(self) -> None:
        """Start the controller and connect to it.

        It chooses free ports first and binds them later: a lab that starts at the same moment can
        take one of them, and then the controller ends.
        """
        import ipyparallel
        from traitlets.config import Config

        config = Config()
        config.LocalControllerLauncher.environment = self.environment
        config.LocalEngineSetLauncher.environment = self.environment
        self._cluster = ipyparallel.Cluster(
            profile_dir=str(self.folder),
            config=config,
            # Engines count as up after two heart beats: 3 s apart by default. Schedulers in threads
            # start as fast as in processes (measured: 2.8 s either way) and are six processes less.
            controller_args=[
                "--HeartMonitor.period=500",
                # Nobody is given up for a pause of 5 s, as by default: pidfds tell who is dead, and
                # a run's `timeout_s` says who hangs.
                "--HeartMonitor.max_heartmonitor_misses=1000000",
                "--IPController.use_threads=True",
            ],
            shutdown_atexit=False,  # the supervisor ends its processes itself
            log_level=50,
        )
        with _silence():
            self._cluster.start_controller_sync()
            pid = self._cluster.controller.pid
            try:
                self._client = self._cluster.connect_client_sync()
                self._hold(CONTROLLER, pid)
            except Exception:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                raise

    def heal(self) -> list[str]:
        """Start an engine for every role that has none alive; return these roles.

        Raises:
            ClusterError: They did not come up, or the controller is dead.
        """
        if CONTROLLER in self.lost:
            raise ClusterError(
                "The cluster's controller has died. Close the lab and start it again."
            )
        lost = self.lost
        missing = [role for role in self.roles if role not in self._pidfds or role in lost]
        if not missing:
            return []
        for role in missing:  # the dead one of a role must not be taken for the new one
            if role in self._pidfds:
                os.close(self._pidfds.pop(role))
        known = set(self._client.ids) | set(self._engine_ids.values())
        with self._starting():
            with _silence():
                self._cluster.start_engines_sync(n=len(missing))
            deadline = time.monotonic() + START_TIMEOUT_S
            while len(new := sorted(set(self._client.ids) - known)) < len(missing):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{len(new)} of {len(missing)} engines came up in time")
                time.sleep(0.02)
        for role, engine_id in zip(missing, new, strict=True):
            self._engine_ids[role] = engine_id
        for role in missing:
            call = Call(role, self._client[self._engine_ids[role]].apply_async(os.getpid))
            self._hold(role, self.gather([call], timeout_s=ANSWER_S)[0])
        return missing

    def add(self, role: str) -> None:
        """Take a role in that was not needed so far; `heal` starts its engine."""
        if role not in self.roles:
            self.roles.append(role)

    def _hold(self, role: str, pid: int) -> None:
        """Watch a process."""
        old = self._pidfds.pop(role, None)
        if old is not None:
            os.close(old)
        self.pids[role] = pid
        self._pidfds[role] = os.pidfd_open(pid)

    @contextlib.contextmanager
    def _starting(self) -> Any:
        """Say what to look at when processes do not come up."""
        try:
            yield
        except Exception as error:
            raise ClusterError(
                f"The engines did not start: {error}. Check that processes may bind to 127.0.0.1 "
                f"and that {tempfile.gettempdir()} is writable."
            ) from error

    @property
    def lost(self) -> list[str]:
        """Roles whose process has died, the controller's included."""
        gone = processes.ended(self._pidfds.values())
        return [role for role, pidfd in self._pidfds.items() if pidfd in gone]

    def kill(self, role: str) -> None:
        """End an engine that does not answer any more; `heal` replaces it."""
        if role in self.lost:
            return
        processes.send(self._pidfds[role], signal.SIGKILL)
        processes.wait([self._pidfds[role]], 2.0)

    def interrupt(self, roles: Sequence[str]) -> None:
        """Interrupt what engines compute in their main thread, as Ctrl-C does."""
        for role in roles:
            processes.send(self._pidfds[role], signal.SIGINT)

    # -- calls ----------------------------------------------------------------------------------

    def send(self, role: str, function: Callable[..., Any], *args: Any) -> Call:
        """Start a function on one engine; `gather` waits for it.

        Raises:
            ClusterError: The engine has died, or the controller knows it no more.
        """
        if role in self.lost:
            raise ClusterError(_died(role))
        try:
            engine = self._client[self._engine_ids[role]]
        except IndexError:
            self.kill(role)  # so that `heal` replaces it
            raise ClusterError(_died(role)) from None
        return Call(role, engine.apply_async(function, *args))

    def call(self, role: str, function: Callable[..., Any], *args: Any) -> Any:
        """Run a short function on one engine and return its result."""
        return self.gather([self.send(role, function, *args)], timeout_s=ANSWER_S)[0]

    def gather(
        self,
        calls: Sequence[Call],
        *,
        timeout_s: float | None = None,
        on_tick: Callable[[], None] | None = None,
    ) -> list[Any]:
        """Wait for several engines; the first error ends the waiting for all.

        Args:
            calls: What `send` returned.
            timeout_s: Seconds to wait at most; None waits as long as the engines live.
            on_tick: Called about ten times a second while waiting.

        Raises:
            KDFlowLabError: What a function raised, as its own class.
            ClusterError: An engine died or does not answer, or raised something that is not ours.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        waiting = list(calls)
        while waiting:
            waiting[0].result.wait(0.1)
            lost = self.lost  # before the results: what a dead engine said last still counts
            for call in list(waiting):
                if call.result.ready():
                    waiting.remove(call)
                    _raise_error_of(call)
                elif call.role in lost:
                    raise ClusterError(_died(call.role))
            if waiting and deadline is not None and time.monotonic() > deadline:
                raise ClusterError(
                    f"The engine {waiting[0].role!r} (pid {self.pids.get(waiting[0].role)}) has "
                    f"not answered within {timeout_s:g} s: it is stopped or hangs."
                )
            if on_tick is not None:
                on_tick()
        return [call.result.get() for call in calls]


def _died(role: str) -> str:
    return (
        f"The engine {role!r} has died. lab.up(), or %kdflow up, starts it again; the run "
        "directories are kept."
    )


def _raise_error_of(call: Call) -> None:
    """Raise what an engine's function raised, as ours; nothing if it returned."""
    import ipyparallel

    if call.result.successful():
        return
    try:
        call.result.get()
    except ipyparallel.RemoteError as error:
        if error.ename == "EngineError":  # the engine's nanny says that it died
            raise ClusterError(_died(call.role)) from None
        kind = getattr(errors, str(error.ename), None)
        if isinstance(kind, type) and issubclass(kind, KDFlowLabError):
            raise kind(error.evalue) from None
        raise ClusterError(f"{call.role}: {error.ename}: {error.evalue}") from error


@contextlib.contextmanager
def _silence() -> Any:
    """Keep ipyparallel's remarks out of the log."""
    noise = io.StringIO()
    with contextlib.redirect_stderr(noise), contextlib.redirect_stdout(noise):
        yield
