"""The supervisor of one lab: a small process that owns the engines and outlives every kernel.

`python -m kdflow_lab.supervisor FOLDER` is started by `kdflow_lab.client` in a process session of
its own. Kernels and shells connect to its socket; what they ask for is in `_Requests`. It runs one
job at a time, watches every process, and ends the lab: when asked, when no kernel is left and no
run is active, when the lease is over, or when the controller dies. A guardian process
(`kdflow_lab.reaper`) ends the lab should the supervisor itself die.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import kdflow_lab
from kdflow_lab import leftovers, processes, reaper, runtime
from kdflow_lab.cluster import CONTROLLER
from kdflow_lab.config import LabConfig
from kdflow_lab.engines import Engines
from kdflow_lab.errors import KDFlowLabError, RunError
from kdflow_lab.rundir import RunDirectory, fail_runs
from kdflow_lab.runqueue import RunQueue

TICK_S = 0.2
LINGER_S = float(os.environ.get("KDFLOW_LINGER_S", "30"))
"""How long a lab without kernels and runs stays, for a kernel that restarts and attaches again."""
_PR_SET_CHILD_SUBREAPER = 36


class Supervisor:
    """Owns the engines, the queue of runs, and the end of the lab."""

    def __init__(self, folder: Path, config: LabConfig) -> None:
        """Describe the lab; `serve` starts to listen."""
        self.folder = folder
        self.config = config
        self.engines = Engines(config, folder)
        self.queue = RunQueue(folder, self.engines)
        self.kernels: dict[int, str] = {}
        """Who is attached, by the number of the connection."""
        self._alone_since = time.monotonic()
        self._lease_said = False
        self._guardian: subprocess.Popen[bytes] | None = None
        self._ending = threading.Lock()
        self._finished = threading.Event()

    # -- life -----------------------------------------------------------------------------------

    def serve(self) -> None:
        """Listen and watch until the lab ends; never returns normally."""
        # Orphans of the lab become children of this process instead of the machine's init.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGTERM, lambda *_: self._end_soon("the supervisor was told to end"))
        for sign in (signal.SIGINT, signal.SIGHUP):
            # a handler and not SIG_IGN, which engines would inherit
            signal.signal(sign, lambda *_: None)
        listener = Listener(str(self.folder / runtime.SOCKET), family="AF_UNIX", backlog=64)
        os.chmod(self.folder / runtime.SOCKET, 0o600)
        self._guard()
        runtime.write_record(self.folder, self.config.model_dump(), kdflow_lab.__version__)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        self.queue.start()
        while not self._finished.wait(TICK_S):
            try:
                self._tick()
            except Exception as error:
                self.log(f"{type(error).__name__}: {error}")

    def _tick(self) -> None:
        """Look after the guardian, the controller, the queue, and the lease."""
        if self._guardian is None or self._guardian.poll() is not None:
            self._guard()
        if CONTROLLER in self.engines.lost:
            self.end("The cluster's controller died.", lost=[CONTROLLER])
        self.queue.tick()
        if self.kernels:
            self._alone_since, self._lease_said = time.monotonic(), False
            return
        alone_s = time.monotonic() - self._alone_since
        if alone_s > LINGER_S:
            self.queue.park()  # a paused run needs no engines
        if not self.queue.busy and alone_s > LINGER_S:
            self.end("")
        elif self.queue.busy and alone_s > self.config.lease_hours * 3600 and not self._lease_said:
            self._lease_said = True
            hours = f"{self.config.lease_hours:g}"
            self.queue.stop_all(f"the lease is over, no kernel was attached for {hours} h")

    def _guard(self) -> None:
        """Start the guardian over this process."""
        self._guardian = subprocess.Popen(
            [sys.executable, "-m", reaper.__name__, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _end_soon(self, reason: str) -> None:
        """End from a signal handler, which may not wait for locks of its own thread."""
        threading.Thread(target=self.end, args=(f"The lab was ended: {reason}.",)).start()

    def end(self, reason: str, *, lost: list[str] | None = None) -> None:
        """End everything now, the active run included; this process last.

        Args:
            reason: Why, for the runs that are active or queued.
            lost: Roles that died, where that is the reason.
        """
        if not self._ending.acquire(blocking=False):
            return
        for name in (runtime.SOCKET, runtime.RECORD):  # who comes now shall start another lab
            (self.folder / name).unlink(missing_ok=True)
        fail_runs(self.queue.close(), reason, lost=lost)
        spare = {os.getpid(), *([self._guardian.pid] if self._guardian else [])}
        processes.end(self.folder, spare=spare)
        leftovers.remove(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(0)  # the guardian sees its pipe close, and finds nothing left

    def log(self, text: str) -> None:
        """Write a line into the lab's log."""
        print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)

    # -- requests -------------------------------------------------------------------------------

    def _accept(self, listener: Listener) -> None:
        while True:
            with contextlib.suppress(OSError, EOFError):
                connection = listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: Connection) -> None:
        """Answer one request: what it says meanwhile, then its result or error."""
        with connection, contextlib.suppress(OSError, EOFError):
            name, arguments = connection.recv()
            try:
                if name.startswith("_") or not hasattr(_Requests, name):
                    raise RunError(f"There is no request {name!r}.")
                result = getattr(_Requests(self, connection), name)(**arguments)
            except (KDFlowLabError, OSError) as error:
                connection.send(("error", error))
            except Exception as error:  # a bug: the caller shall see it, the lab goes on
                self.log(f"{name}: {type(error).__name__}: {error}")
                connection.send(("error", RunError(f"{name}: {type(error).__name__}: {error}")))
            else:
                connection.send(("result", result))


class _Requests:
    """What a kernel may ask for; each method answers one connection."""

    def __init__(self, supervisor: Supervisor, connection: Connection) -> None:
        self._supervisor = supervisor
        self._connection = connection
        self._engines, self._queue = supervisor.engines, supervisor.queue

    def attach(self, who: str) -> None:
        """Stay connected: as long as somebody is, the lab stays."""
        kernels = self._supervisor.kernels
        number = id(self)
        kernels[number] = who
        try:
            self._connection.send(("attached", None))
            with contextlib.suppress(EOFError):
                self._connection.recv()  # returns when the kernel is gone
        finally:
            del kernels[number]

    def status(self) -> dict[str, Any]:
        """Say what lives and what is done."""
        engines = self._engines
        lost = engines.lost
        return {
            "state": "broken" if lost else "up" if engines.teacher else "down",
            "lost": lost,
            "teacher": engines.teacher,
            "rollout": engines.rollout,
            "device": engines.device,
            "threads": engines.threads(1 + engines.config.students),
            "pids": dict(engines.cluster.pids) if engines.cluster else {},
            "runs": self._queue.runs,
            "kernels": list(self._supervisor.kernels.values()),
        }

    def up(self) -> None:
        """Start what is missing."""
        self._queue.up(lambda text: self._connection.send(("phase", text)))

    def train(self, run: str) -> None:
        """Put a run into the queue; its directory says what it is."""
        self._queue.add(RunDirectory(run))

    def scratch(self) -> str:
        """Make a folder for what a job needs; the lab removes it."""
        return str(self._engines.scratch())

    def score(self, **fields: Any) -> Any:
        """Compare a model with the teacher."""
        return self._look(self._engines.score, fields)

    def write(self, **fields: Any) -> Any:
        """Let a model answer prompts."""
        return self._look(self._engines.write, fields)

    def sandbox(self, **fields: Any) -> Any:
        """Look at texts through several losses."""
        return self._look(self._engines.sandbox, fields)

    def inspect(self, **fields: Any) -> Any:
        """Look at every token of some texts."""
        return self._look(self._engines.inspect, fields)

    def capture(self, config: dict[str, Any]) -> Any:
        """Fill the cache of the teacher's hidden states."""

        def say(text: str) -> None:
            self._connection.send(("phase", text))

        return self._look(self._engines.capture, {"say": say, "config": config})

    def close(self) -> None:
        """End the lab now."""
        self._supervisor.end(
            "The lab was closed while the run was active. run.resume(), or %kdflow resume, goes on "
            "from its last checkpoint."
        )

    def _look(self, function: Any, fields: dict[str, Any]) -> Any:
        """Use the engines for looking at a model; ends when nobody waits any more."""

        def on_progress(done: int, total: int) -> None:
            self._connection.send(("progress", (done, total)))

        with self._queue.turn(lambda text: self._connection.send(("phase", text))):
            return function(on_progress, **fields)


def main(folder: Path) -> None:
    """Serve the lab that `config.json` in `folder` describes."""
    config = LabConfig.parse(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    Supervisor(folder, config).serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
