"""What a lab's engines do between runs: look at models, and fill the cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kdflow_lab import roles
from kdflow_lab.cache.report import announcement
from kdflow_lab.cluster import Call, Cluster
from kdflow_lab.config import LabConfig
from kdflow_lab.jobs import StudentPlace, SubjectJob, TeacherInfo, TrainJob

Progress = Callable[[int, int], None]


class EngineLooks(ABC):
    """The part of `Engines` that trains nothing; one job at a time, the caller sees to that."""

    config: LabConfig
    teacher: TeacherInfo | None
    student_path: str

    @abstractmethod
    def _cluster(self) -> Cluster:
        """See `Engines._cluster`."""

    @abstractmethod
    def _places(
        self, *, with_teacher: bool, students_rest: bool = False
    ) -> AbstractContextManager[list[StudentPlace]]:
        """See `Engines._places`."""

    def score(self, on_progress: Progress, **fields: Any) -> list[list[dict[str, Any]]]:
        """Run `roles.score` on every student; one result a rank."""
        return self._subject(roles.score, on_progress, with_teacher=True, **fields)

    def write(self, on_progress: Progress, **fields: Any) -> list[list[dict[str, Any]]]:
        """Run `roles.write` on every student; one list of answers a rank."""
        return self._subject(roles.write, on_progress, with_teacher=False, **fields)

    def sandbox(self, on_progress: Progress, **fields: Any) -> list[Any]:
        """Run `roles.sandbox` on every student; one `SandboxPart` a rank.

        The teacher is asked only where a student does not hold the texts' hidden states any more.
        """
        cluster, key = self._cluster(), fields["options"]["key"]
        held = [cluster.send(role, roles.has_capture, key) for role in cluster.students]
        missing = not all(cluster.gather(held))
        return self._subject(roles.sandbox, on_progress, with_teacher=missing, **fields)

    def inspect(self, on_progress: Progress, **fields: Any) -> list[Any]:
        """Run `roles.inspect` on every student; one `InspectPart` a rank."""
        return self._subject(roles.inspect, on_progress, with_teacher=True, **fields)

    def capture(
        self, on_progress: Progress, say: Callable[[str], None], config: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Run `roles.capture` on every student; one part of `Captured` a rank.

        Args:
            on_progress: Called with parts done and parts in all.
            say: Called with what it will take, before the teacher is asked.
            config: As in a run's `config.yaml`.
        """
        cluster = self._cluster()
        announced = False

        def look(said: list[dict[str, Any]]) -> None:
            nonlocal announced
            sizes = [report["sizes"] for report in said if "sizes" in report]
            if not announced and len(sizes) == len(said):
                announced = True
                say(announcement(sizes))

        with self._places(with_teacher=True, students_rest=True) as places:
            calls = [
                cluster.send(
                    role,
                    roles.capture,
                    TrainJob(
                        place=place,
                        # only its folder counts: caches lie beside the runs
                        run_path=str(Path(self.config.dir) / "capture"),
                        student_path=self.student_path,
                        teacher=self.teacher,
                        config=config,
                        trust_remote_code=self.config.trust_remote_code,
                    ),
                )
                for role, place in zip(cluster.students, places, strict=True)
            ]
            parts = self._gather(cluster, calls, on_progress, look)
            look([dict(call.result.data or {}) for call in calls])  # if it was over at once
            return parts

    def _subject(
        self, function: Any, on_progress: Progress, *, with_teacher: bool, **fields: Any
    ) -> list[Any]:
        """Give every student its share of looking at a model, and wait."""
        cluster = self._cluster()
        with self._places(with_teacher=with_teacher) as places:
            calls = [
                cluster.send(
                    role,
                    function,
                    SubjectJob(
                        place=place,
                        teacher=self.teacher if with_teacher else None,
                        trust_remote_code=self.config.trust_remote_code,
                        **fields,
                    ),
                )
                for role, place in zip(cluster.students, places, strict=True)
            ]
            return self._gather(cluster, calls, on_progress)

    def _gather(
        self,
        cluster: Cluster,
        calls: list[Call],
        on_progress: Progress,
        look: Callable[[list[dict[str, Any]]], None] = lambda said: None,
    ) -> list[Any]:
        """Wait for all students; `look` gets what they have published meanwhile."""

        def tick() -> None:
            said = [dict(call.result.data or {}) for call in calls]
            look(said)
            total = sum(report.get("total", 0) for report in said)
            on_progress(sum(report.get("done", 0) for report in said), total)

        try:
            return cluster.gather(calls, on_tick=tick)
        except BaseException:
            # one failed, or nobody waits any more: the others must not go on for nothing
            cluster.interrupt([call.role for call in calls if not call.result.ready()])
            raise
