"""The engines of a lab, seen from the kernel: brought up once, then given one job after another."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kdflow_lab import roles
from kdflow_lab.cluster import Cluster
from kdflow_lab.config import DistillConfig, LabConfig
from kdflow_lab.errors import ClusterError
from kdflow_lab.hub import resolve_model
from kdflow_lab.jobs import StudentPlace, SubjectJob, TeacherInfo, TrainJob
from kdflow_lab.rundir import ENDED, RunDirectory

Progress = Callable[[int, int], None]
WATCH_S = 0.2


class Engines:
    """Cluster, teacher and students of one lab. One job at a time; the caller sees to that."""

    def __init__(self, config: LabConfig) -> None:
        """Describe the engines; nothing starts before `up`."""
        self.config = config
        self.cluster: Cluster | None = None
        self.teacher: TeacherInfo | None = None
        self.student_path = ""
        self._jobs = 0

    @property
    def device(self) -> str:
        """`cuda` where asked for or found, else `cpu`."""
        if self.config.device != "auto":
            return self.config.device
        return "cuda" if Path("/dev/nvidia0").exists() else "cpu"

    def threads(self, busy_engines: int) -> int:
        """CPU threads for each of `busy_engines` that compute at the same time."""
        if self.config.threads != "auto":
            return self.config.threads
        return max(1, len(os.sched_getaffinity(0)) // busy_engines)

    def up(self, on_phase: Callable[[str], None] = lambda text: None) -> None:
        """Start the cluster, load the teacher, warm the students up; nothing if that is done.

        Raises:
            ClusterError: The engines do not start.
            ModelError: The teacher or the student cannot be loaded.
        """
        if self.cluster is not None:
            return
        teacher_path = resolve_model(self.config.teacher)
        self.student_path = resolve_model(self.config.student)
        on_phase("starting the engines")
        cluster = Cluster(
            students=self.config.students,
            environment={
                "GLOO_SOCKET_IFNAME": "lo",  # ranks of one host never listen to the outside
                # Threads that wait sleep instead of spinning. On a machine that does something else
                # beside, spinning made an answer of two threads twenty times slower (measured).
                "OMP_WAIT_POLICY": "PASSIVE",
                "TOKENIZERS_PARALLELISM": "false",
                "TRANSFORMERS_VERBOSITY": "error",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            },
        )
        cluster.start()
        try:
            on_phase("loading the teacher")
            options = {
                "backend": self.config.teacher_backend,
                "dtype": self.config.teacher_dtype,
                "device": self.device,
                "threads": self.threads(1 + self.config.students),
                "trust_remote_code": self.config.trust_remote_code,
            }
            waiting = [cluster.send(cluster.teacher, roles.setup_teacher, teacher_path, options)]
            for view in cluster.students:
                waiting.append(cluster.send(view, roles.setup_student, options["threads"]))
            self.teacher = cluster.gather(waiting)[0]
        except BaseException:
            cluster.close()
            raise
        self.cluster = cluster

    def close(self) -> None:
        """End every process; safe to call twice."""
        cluster, self.cluster, self.teacher = self.cluster, None, None
        if cluster is not None:
            cluster.close()

    def scratch(self) -> Path:
        """A new private folder that goes with the lab."""
        return Path(tempfile.mkdtemp(prefix="scratch-", dir=self._cluster().runtime_dir))

    # -- jobs -----------------------------------------------------------------------------------

    def train(self, directory: RunDirectory, config: DistillConfig, *, data: str) -> None:
        """Give every engine its part in a run and watch it until it has ended.

        Args:
            directory: The run's; its state is the only thing that is waited for.
            config: What was asked.
            data: A path or name that the engines can load.
        """
        cluster = self._cluster()
        with_teacher = config.algorithm != "sft"
        with self._places(with_teacher=with_teacher) as places:
            jobs = [
                TrainJob(
                    place=place,
                    run_path=str(directory.path),
                    student_path=self.student_path,
                    teacher=self.teacher if with_teacher else None,
                    config={**config.model_dump(), "data": data},
                    trust_remote_code=self.config.trust_remote_code,
                )
                for place in places
            ]
            views = cluster.students
            cluster.gather(
                [
                    cluster.send(view, roles.start_training, job)
                    for view, job in zip(views, jobs, strict=True)
                ]
            )
            while directory.state() not in ENDED:
                self._watch(directory)
                time.sleep(WATCH_S)

    def _watch(self, directory: RunDirectory) -> None:
        """Say so if an engine has died; its peers notice by their broken connections."""
        cluster = self.cluster
        if cluster is None:  # the lab was closed under the run
            directory.event("failed", reason="The lab was closed while the run was active.")
        elif cluster.lost:
            roles_lost = ", ".join(cluster.lost)
            directory.event("worker_lost", roles=cluster.lost)
            directory.event("failed", reason=f"The process of {roles_lost} died.")

    def score(self, on_progress: Progress, **fields: Any) -> list[list[dict[str, Any]]]:
        """Run `roles.score` on every student; one result a rank."""
        return self._subject(roles.score, on_progress, with_teacher=True, **fields)

    def write(self, on_progress: Progress, **fields: Any) -> list[list[dict[str, Any]]]:
        """Run `roles.write` on every student; one list of answers a rank."""
        return self._subject(roles.write, on_progress, with_teacher=False, **fields)

    def _subject(
        self, function: Any, on_progress: Progress, *, with_teacher: bool, **fields: Any
    ) -> list[Any]:
        """Give every student its share of looking at a model, and wait."""
        cluster = self._cluster()
        with self._places(with_teacher=with_teacher) as places:
            waiting = [
                cluster.send(
                    view,
                    function,
                    SubjectJob(
                        place=place,
                        teacher=self.teacher if with_teacher else None,
                        trust_remote_code=self.config.trust_remote_code,
                        **fields,
                    ),
                )
                for view, place in zip(cluster.students, places, strict=True)
            ]

            def tick() -> None:
                said = [dict(result.data or {}) for result in waiting]
                total = sum(report.get("total", 0) for report in said)
                on_progress(sum(report.get("done", 0) for report in said), total)

            return cluster.gather(waiting, on_tick=tick)

    @contextlib.contextmanager
    def _places(self, *, with_teacher: bool) -> Iterator[list[StudentPlace]]:
        """Open one job's meeting points: the teacher's socket and the ranks' rendezvous."""
        cluster = self._cluster()
        self._jobs += 1
        students = self.config.students
        threads = self.threads(students + 1 if with_teacher else students)
        # A rendezvous file must be new: ranks that meet in an old one hang.
        folder = Path(tempfile.mkdtemp(prefix=f"job{self._jobs}-", dir=cluster.runtime_dir))
        socket = str(folder / "teacher.sock") if with_teacher else None
        if socket is not None:
            cluster.call(cluster.teacher, roles.serve, socket, students, threads)
        try:
            yield [
                StudentPlace(
                    rank=rank,
                    world_size=students,
                    device=self.device,
                    threads=threads,
                    socket=socket,
                    rendezvous=str(folder / "rendezvous"),
                )
                for rank in range(students)
            ]
        finally:
            if socket is not None and self.cluster is not None and "teacher" not in cluster.lost:
                cluster.call(cluster.teacher, roles.stop_serving)
            for path in (folder / "rendezvous", folder / "teacher.sock"):
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _cluster(self) -> Cluster:
        if self.cluster is None:
            raise ClusterError("The lab is not up. Call lab.up(), or %kdflow up.")
        return self.cluster
