"""Starts the dedicated process of SGLang, speaks with it, and notices its end."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from kdflow_lab import errors, leftovers
from kdflow_lab.errors import ConfigError, KDFlowLabError, ModelError
from kdflow_lab.processes import MARKER
from kdflow_lab.teacher.sglang import versions, wire
from kdflow_lab.teacher.sglang.reasons import reason_in, tail

STOP_S = 5.0


class EngineProcess:
    """SGLang, in a process group of its own inside the lab.

    It inherits the lab's marker, so that whoever ends the lab finds it and all its children. When
    this process ends in whatever way, its connection breaks and it ends itself.

    Attributes:
        host: The module that runs in it.
        log: Name of its log.
        what: That SGLang is there for, in errors.
        option: Of the lab, that names another backend.
        environment: What its environment has more than `environment_of` says.
    """

    host = "kdflow_lab.teacher.sglang.host"
    log = "sglang.log"
    what = "this teacher"
    option = "teacher_backend"
    environment: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        asked: dict[str, Any],
        *,
        device: str,
        threads: int | None,
        gpus: list[int] | None = None,
        on_death: Callable[[str], None],
    ) -> None:
        """Start it, and wait until the model is loaded.

        Args:
            asked: The first message: what `host.start` takes.
            device: `cpu` or `cuda`.
            threads: CPU threads of its matrix products; None leaves it to SGLang.
            gpus: The only CUDA devices that it sees; None for all.
            on_death: Called with the reason, from a thread, if it ends without being told to.

        Raises:
            ConfigError: SGLang has no such argument.
            ModelError: It cannot load the model or start, with its reason in one sentence.
        """
        self._on_death = on_death
        self._stopping = False
        self._lock = threading.Lock()
        lab = os.environ.get(MARKER)
        self._own_folder = lab is None or not Path(lab).is_dir()
        self._folder = Path(
            tempfile.mkdtemp(prefix="kdflow-sglang-") if self._own_folder else str(lab)
        )
        self._log = self._folder / self.log
        self._before_start(asked)
        environment = environment_of(asked["arguments"], device=device, threads=threads, gpus=gpus)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self.host, str(theirs.fileno()), str(self._folder)],
                pass_fds=[theirs.fileno()],
                env=environment | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._channel = wire.Channel(ours)
        try:
            self._channel.send({**asked, "threads": threads})
            self.about = self._ready()
        except BaseException:
            self.stop()
            raise
        threading.Thread(target=self._watch, name="sglang", daemon=True).start()

    def _before_start(self, asked: dict[str, Any]) -> None:
        """Change what is asked, once there is a folder for files."""

    def call(self, message: dict[str, Any], *, fd: int | None = None) -> dict[str, Any]:
        """Send a message and wait for its answer.

        Raises:
            ModelError: SGLang could not do it, or has died.
        """
        try:
            with self._lock:
                self._channel.send(message, fd=fd)
                answer, _ = self._channel.receive()
        except wire.Gone:
            raise ModelError(self._why_dead()) from None
        if "error" in answer:
            raise ModelError(answer["error"])
        return answer

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message that has no answer; nothing happens if nobody is there any more."""
        with contextlib.suppress(wire.Gone):
            self._channel.send(message)

    def stop(self) -> None:
        """End it and what it started; a second call does nothing."""
        self._stopping = True
        self._channel.close()  # it ends itself
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        self._clean()
        if self._own_folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _ready(self) -> dict[str, Any]:
        """Wait for the word that the model is loaded.

        Raises:
            ConfigError: SGLang has no such argument.
            ModelError: It does not start.
        """
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.register(self._channel, select.POLLIN)
        poll.poll()
        try:
            answer, _ = self._channel.receive(timeout_s=1.0)
        except (wire.Gone, TimeoutError):
            answer = {"error": f"its process ended ({self._process.poll()})"}
        if "error" not in answer:
            return answer
        kind = getattr(errors, answer.get("kind") or "", None)
        if isinstance(kind, type) and issubclass(kind, KDFlowLabError):
            raise kind(answer["error"])
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)  # so that all is in the log
        why = reason_in(tail(self._log)) or answer["error"]
        where = "" if self._own_folder else f" SGLang's log: {self._log}."
        raise ModelError(
            f"SGLang cannot start {self.what}: {why.rstrip('.')}. "
            f"{self.option}='transformers' does not need it.{where}"
        )

    def _watch(self) -> None:
        """Wait for the end of the process; say so if nobody asked for it."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll()
        if not self._stopping:
            self._clean()
            self._on_death(self._why_dead())

    def _clean(self) -> None:
        """Kill what is left of the process group, and remove what it left."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        leftovers.remove(self._folder, self.pid)

    def _why_dead(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        why = reason_in(tail(self._log))
        return "SGLang's process has died" + (f": {why}" if why else ".")


def environment_of(
    arguments: dict[str, Any],
    *,
    device: str,
    threads: int | None,
    gpus: list[int] | None = None,
) -> dict[str, str]:
    """Build the environment of SGLang's processes; ours stays as it is.

    Args:
        arguments: Of its `ServerArgs`.
        device: `cpu` or `cuda`.
        threads: CPU threads of its matrix products; None leaves it to SGLang.
        gpus: The only CUDA devices that it sees, by this process's numbers; None for all.

    Raises:
        ConfigError: This process does not see these devices itself.
    """
    environment = dict(os.environ)
    # Else their titles would overwrite the lab's marker, by which they are found.
    environment["SPT_NOENV"] = "1"
    if gpus:
        ours = environment.get("CUDA_VISIBLE_DEVICES")
        names = ours.split(",") if ours else list(map(str, range(max(gpus) + 1)))
        if max(gpus) >= len(names):
            raise ConfigError(
                f"teacher_devices={gpus}, but CUDA_VISIBLE_DEVICES={ours!r} shows {len(names)} "
                "GPU(s), counted from 0."
            )
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(names[number] for number in gpus)
    if device != "cpu":
        return environment
    paths = [versions.standin_path(package) for package in versions.installed().missing]
    if old := environment.get("PYTHONPATH"):
        paths.append(old)
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    environment["SGLANG_USE_CPU_ENGINE"] = "1"
    # torch.compile would ask triton, and a C++ compiler, for what runs as well without.
    environment["TORCHDYNAMO_DISABLE"] = "1"
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    sizes = [int(arguments.get(name, 1)) for name in ("tp_size", "pp_size", "dp_size")]
    if (ranks := sizes[0] * sizes[1] * sizes[2]) > 1:
        # Else SGLang wants a NUMA node for each rank.
        cores = sorted(os.sched_getaffinity(0))
        groups = [cores[rank::ranks] or [cores[rank % len(cores)]] for rank in range(ranks)]
        bound = "|".join(",".join(map(str, group)) for group in groups)
        environment.setdefault("SGLANG_CPU_OMP_THREADS_BIND", bound)
    return environment
