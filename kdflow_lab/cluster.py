"""The control plane: an ipyparallel cluster on loopback, one engine a role.

Start, call, stop; tensors never come this way. Engines are told what to do by functions of
`kdflow_lab.roles`; what they raise comes back as the same class of error with the engine's role.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kdflow_lab import errors, reaper
from kdflow_lab.errors import ClusterError, KDFlowLabError

START_TIMEOUT_S = 60


class Cluster:
    """Controller and engines of one lab; `teacher` and `students` are ipyparallel views."""

    def __init__(self, *, students: int, environment: dict[str, str]) -> None:
        """Describe the cluster; `start` starts it.

        Args:
            students: Number of student engines.
            environment: Set in every process of the cluster, besides `KDFLOW_LAB`, the marker that
                makes them findable.
        """
        self.num_students = students
        self.runtime_dir = Path(tempfile.mkdtemp(prefix="kdflow-"))  # mode 0700
        self.environment = {"KDFLOW_LAB": str(self.runtime_dir), **environment}
        self.roles = ["teacher", *(f"student {rank}" for rank in range(students))]
        self._cluster: Any = None
        self._client: Any = None
        self._reaper: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start controller and engines on loopback and connect to them.

        Raises:
            ClusterError: They did not come up; the message ends with the cluster's own reason.
        """
        import ipyparallel
        from traitlets.config import Config

        config = Config()
        config.LocalControllerLauncher.environment = self.environment
        config.LocalEngineSetLauncher.environment = self.environment
        self._cluster = ipyparallel.Cluster(
            n=len(self.roles),
            profile_dir=str(self.runtime_dir),
            config=config,
            # Engines count as up after two heart beats: 3 s apart by default. Schedulers in threads
            # start as fast as in processes (measured: 2.8 s either way) and are six processes less.
            controller_args=["--HeartMonitor.period=500", "--IPController.use_threads=True"],
            engine_timeout=START_TIMEOUT_S,
            log_level=50,
        )
        noise = io.StringIO()
        try:
            with contextlib.redirect_stderr(noise), contextlib.redirect_stdout(noise):
                self._cluster.start_cluster_sync(n=len(self.roles))
                self._client = self._cluster.connect_client_sync()
                # not start_and_connect: in a notebook that leaves a progress widget in the cell
                self._client.wait_for_engines(
                    len(self.roles), timeout=START_TIMEOUT_S, interactive=False
                )
        except Exception as error:
            self.close()
            raise ClusterError(
                f"The engines did not start: {error}. Check that processes may bind to 127.0.0.1 "
                f"and that {tempfile.gettempdir()} is writable."
            ) from error
        self._guard()

    def _guard(self) -> None:
        """Start the reaper over everything that was started."""
        pids = [self._cluster.controller.pid, *self._client[:].apply_sync(os.getpid)]
        for engine_set in self._cluster.engines.values():
            launchers = getattr(engine_set, "launchers", {}).values()
            pids += [launcher.pid for launcher in launchers if getattr(launcher, "pid", None)]
        self._reaper = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__, str(self.runtime_dir)]
            + [str(pid) for pid in dict.fromkeys(pids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the kernel's terminal must not reach it
            env={**os.environ, "KDFLOW_LAB": str(self.runtime_dir)},
        )

    @property
    def teacher(self) -> Any:
        """The view of the teacher's engine."""
        return self._view(0)

    @property
    def students(self) -> list[Any]:
        """The views of the student engines, by rank."""
        return [self._view(1 + rank) for rank in range(self.num_students)]

    def _view(self, engine_id: int) -> Any:
        if self._client is None:
            raise ClusterError("The lab is not up. Call lab.up(), or %kdflow up.")
        if engine_id not in self._client.ids:
            raise ClusterError(
                f"The engine {self.roles[engine_id]!r} has died. Close the lab (lab.close(), "
                "%kdflow down) and start it again; the run directories are kept."
            )
        return self._client[engine_id]

    @property
    def lost(self) -> list[str]:
        """Roles whose engine has died."""
        if self._client is None:
            return []
        return [role for number, role in enumerate(self.roles) if number not in self._client.ids]

    def call(self, view: Any, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function on one engine and return its result."""
        return self.gather([self.send(view, function, *args)])[0]

    def send(self, view: Any, function: Callable[..., Any], *args: Any) -> Any:
        """Start a function on one engine; `gather` waits for it."""
        return view.apply_async(function, *args)

    def gather(
        self, results: Sequence[Any], *, on_tick: Callable[[], None] | None = None
    ) -> list[Any]:
        """Wait for several engines; the first error ends the waiting for all.

        Args:
            results: What `send` returned.
            on_tick: Called about ten times a second while waiting.

        Raises:
            KDFlowLabError: What a function raised, as its own class, with the engine's role.
            ClusterError: An engine died, or raised something that is not ours.
        """
        waiting = list(results)
        while waiting:
            waiting[0].wait(0.1)
            for result in [result for result in waiting if result.ready()]:
                waiting.remove(result)
                if not result.successful():
                    self._raise(result)
            if on_tick is not None:
                on_tick()
        return [result.get() for result in results]

    def _raise(self, result: Any) -> None:
        """Raise an engine's error as ours."""
        import ipyparallel

        try:
            result.get()
        except ipyparallel.RemoteError as error:
            role = "an engine"
            with contextlib.suppress(Exception):
                role = self.roles[result.metadata["engine_id"]]
            kind = getattr(errors, str(error.ename), None)
            if isinstance(kind, type) and issubclass(kind, KDFlowLabError):
                raise kind(error.evalue) from None
            raise ClusterError(f"{role}: {error.ename}: {error.evalue}") from error
        except KDFlowLabError:
            raise

    def close(self) -> None:
        """End every process and remove everything; safe to call twice."""
        noise = io.StringIO()
        with contextlib.redirect_stderr(noise), contextlib.redirect_stdout(noise):
            if self._client is not None:
                with contextlib.suppress(Exception):
                    self._client.close()
            if self._cluster is not None:
                with contextlib.suppress(Exception):
                    self._cluster.stop_cluster_sync()
        self._client = self._cluster = None
        if self._reaper is not None and self._reaper.stdin is not None:
            self._reaper.stdin.close()
            self._reaper.wait()
        self._reaper = None
        shutil.rmtree(self.runtime_dir, ignore_errors=True)
