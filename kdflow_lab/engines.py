"""The engines of a lab, seen from its supervisor: brought up, healed, given job after job."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kdflow_lab import roles
from kdflow_lab.beats import silent
from kdflow_lab.cluster import CONTROLLER, ROLLOUT, Call, Cluster
from kdflow_lab.config import LabConfig
from kdflow_lab.engine_looks import EngineLooks
from kdflow_lab.errors import ClusterError, ConfigError, KDFlowLabError
from kdflow_lab.hub import resolve_model
from kdflow_lab.jobs import RolloutInfo, StudentPlace, TeacherInfo, TrainJob
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.usage import Usage

WATCH_S = 0.1
SETTLE_S = 15.0
"""How long a student may take to leave a run that has ended; then its engine is replaced."""
REVIVALS = 3
"""How often a run's rollout engine is started again before the run fails."""
SGLANG_OPTIONS = (
    "tp_size",
    "pp_size",
    "ep_size",
    "dp_size",
    "mem_fraction",
    "quantization",
    "context_length",
    "engine_args",
)
"""Options of the lab that only the SGLang teacher has."""
ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",  # ranks of one host never listen to the outside
    # Threads that wait spin for some ten microseconds, then sleep. Where they slept at once, a step
    # of two threads took a tenth longer; where they span for long, an answer beside other work took
    # twenty times as long (measured).
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "20000",
    # Memory that a step gave back is kept for the next one: giving it to the system and touching it
    # anew took a tenth of a step's CPU time (measured). One arena, since a thread of its own for
    # every run would else keep what the last run's thread has left.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


class Engines(EngineLooks):
    """Cluster, teacher and students of one lab. One job at a time; the caller sees to that."""

    def __init__(self, config: LabConfig, folder: Path) -> None:
        """Describe the engines; nothing starts before `up`.

        Args:
            config: The lab's.
            folder: Its runtime folder.
        """
        self.config = config
        self.folder = folder
        self.cluster: Cluster | None = None
        self.teacher: TeacherInfo | None = None
        self.rollout: RolloutInfo | None = None
        self.student_path = ""
        self._ready: set[str] = set()  # roles whose engine is set up
        self._jobs = 0

    @property
    def device(self) -> str:
        """`cuda` where asked for or found, else `cpu`."""
        return self.config.placed_on

    @property
    def colocated(self) -> bool:
        """Whether a student uses a GPU of the teacher."""
        config = self.config
        ranks = config.tp_size * config.pp_size * config.dp_size
        teachers = config.teacher_devices or range(ranks)
        students = config.student_devices or range(config.students)
        return self.device == "cuda" and not set(teachers).isdisjoint(students)

    def threads(self, busy_engines: int) -> int:
        """CPU threads for each of `busy_engines` that compute at the same time."""
        return self.config.threads_among(busy_engines)

    @property
    def lost(self) -> list[str]:
        """Roles whose process has died."""
        return [] if self.cluster is None else self.cluster.lost

    # -- up -------------------------------------------------------------------------------------

    def up(self, on_phase: Callable[[str], None] = lambda text: None) -> None:
        """Start what is missing: the cluster, engines that died, the teacher; nothing if all is up.

        Raises:
            ClusterError: The engines do not start.
            ModelError: The teacher or the student cannot be loaded.
        """
        if self.cluster is None:
            self._check_placement()
            resolve_model(self.config.teacher)  # a wrong name is said before anything starts
            self.student_path = resolve_model(self.config.student)
            on_phase("starting the engines")
            cluster = Cluster(
                students=self.config.students, folder=self.folder, environment=ENVIRONMENT
            )
            self.cluster = cluster
            cluster.start()
        elif lost := [role for role in self.cluster.lost if role != CONTROLLER]:
            on_phase(f"starting {', '.join(lost)} again")
            self._ready -= set(lost)
            self.cluster.heal()
        self._set_up(self.cluster, on_phase)

    def _check_placement(self) -> None:
        """Refuse GPUs for a lab that `device="auto"` has put on the CPU."""
        asked = self.config.teacher_devices or self.config.student_devices
        if asked and self.device == "cpu":
            raise ConfigError(
                f"teacher_devices or student_devices names the GPUs {asked}, but this machine has "
                "none. Leave them out."
            )

    def _set_up(
        self, cluster: Cluster, on_phase: Callable[[str], None], *, rollout: bool = False
    ) -> None:
        """Load the teacher and warm the students up, where that is not done.

        The rollout engine is loaded if `rollout` asks for it, or if it was before.
        """
        rollout = rollout or self.rollout is not None
        threads = self.threads(1 + self.config.students)
        calls = [
            cluster.send(role, roles.setup_student, threads)
            for role in cluster.students
            if role not in self._ready
        ]
        if "teacher" not in self._ready:
            on_phase("loading the teacher")
            options = {
                "backend": self.config.teacher_backend,
                "dtype": self.config.teacher_dtype,
                "device": self.device,
                "threads": threads,
                "trust_remote_code": self.config.trust_remote_code,
                "gpus": self.config.teacher_devices,
                "sglang": {
                    **{name: getattr(self.config, name) for name in SGLANG_OPTIONS},
                    "colocated": self.colocated,
                },
            }
            path = resolve_model(self.config.teacher)
            calls.insert(0, cluster.send("teacher", roles.setup_teacher, path, options))
        if rollout and ROLLOUT not in self._ready:
            on_phase("loading the rollout engine")
            options = {
                "backend": self.config.rollout_backend,
                "device": self.device,
                "threads": threads,
                "trust_remote_code": self.config.trust_remote_code,
            }
            calls.append(cluster.send(ROLLOUT, roles.setup_rollout, self.student_path, options))
        answers = cluster.gather(calls)
        for call, answer in zip(calls, answers, strict=True):
            self._ready.add(call.role)
            if call.role == "teacher":
                self.teacher = answer
            elif call.role == ROLLOUT:
                self.rollout = answer

    def _up_rollout(self, on_phase: Callable[[str], None]) -> None:
        """Start the rollout engine, if there is none alive; later `up` looks after it, too."""
        cluster = self._cluster()
        if ROLLOUT in cluster.lost:
            self._ready.discard(ROLLOUT)
        cluster.add(ROLLOUT)
        cluster.heal()
        self._set_up(cluster, on_phase, rollout=True)

    def scratch(self) -> Path:
        """A new private folder that goes with the lab."""
        return Path(tempfile.mkdtemp(prefix="scratch-", dir=self.folder))

    # -- jobs -----------------------------------------------------------------------------------

    def train(self, directory: RunDirectory) -> None:
        """Give every engine its part in a run and watch it until it has ended or is parked.

        Args:
            directory: The run's: what was asked stands in it, and its state is what is waited for.
        """
        cluster = self._cluster()
        config = directory.config()
        with_teacher = config["algorithm"] != "sft"
        attempt = directory.attempts
        rollout_threads = None
        if config.get("on_policy"):
            self._up_rollout(lambda text: directory.event("phase", text=text))
            # nobody else computes while answers are written that must be of the newest weights
            stale = config.get("max_staleness", 0)
            rollout_threads = self.threads(self.config.students + 2 if stale else 1)
        follows = config.get("teacher_update_every") is not None
        with self._places(
            with_teacher=with_teacher, rollout_threads=rollout_threads, follows=follows
        ) as places:
            jobs = [
                TrainJob(
                    place=place,
                    run_path=str(directory.path),
                    student_path=self.student_path,
                    teacher=self.teacher if with_teacher else None,
                    config=config,
                    attempt=attempt,
                    trust_remote_code=self.config.trust_remote_code,
                )
                for place in places
            ]
            try:
                calls = [
                    cluster.send(role, roles.start_training, job)
                    for role, job in zip(cluster.students, jobs, strict=True)
                ]
                cluster.gather(calls, timeout_s=SETTLE_S)
                folder, timeout_s = Path(places[0].rendezvous).parent, config["timeout_s"]
                watched = ["teacher", *cluster.students] if with_teacher else cluster.students
                revive = None
                if rollout_threads is not None:
                    watched = [*watched, ROLLOUT]
                    revive = functools.partial(self._revive, places[0], rollout_threads)
                self._watch(cluster, directory, attempt, watched, folder, timeout_s, revive)
            finally:
                self._settle(cluster)

    def _watch(
        self,
        cluster: Cluster,
        directory: RunDirectory,
        attempt: int,
        watched: list[str],
        folder: Path,
        timeout_s: float,
        revive: Callable[[], None] | None,
    ) -> None:
        """Return when the run has ended; say so if an engine has died, or gives no sign of life.

        An engine of `watched` that has not beaten in `folder` for `timeout_s` is ended.
        The peers of a rank that died notice by their broken connections. A rollout engine that died
        is started again by `revive`, a few times, and the students go on with it.
        """
        asked: list[Call] = []
        revivals = REVIVALS
        usage = Usage(directory)
        while True:
            ended, lost = directory.outcome(attempt), cluster.lost
            if ROLLOUT not in watched:
                lost = [role for role in lost if role != ROLLOUT]  # this run does not need it
            if lost:
                directory.event("worker_lost", roles=lost, pids=[cluster.pids[r] for r in lost])
            if lost == [ROLLOUT] and not ended and revive is not None and revivals:
                revivals -= 1
                revive()
                directory.event("worker_back", roles=lost, pids=[cluster.pids[ROLLOUT]])
                continue
            if lost and not ended:
                directory.event("failed", reason=_why_lost(lost, directory))
            if lost or ended:
                return
            usage.look(cluster.pids)
            if stuck := silent(folder, watched, seconds=timeout_s):
                pids = [cluster.pids[role] for role in stuck]
                directory.event("worker_stuck", roles=stuck, pids=pids)
                directory.event("failed", reason=_why_stuck(stuck, pids, timeout_s))
                for role in stuck:
                    cluster.kill(role)
                return
            if not asked:
                asked = [cluster.send(role, roles.training) for role in cluster.students]
            elif all(call.result.ready() for call in asked):
                working = any(call.result.get() for call in asked)
                asked = []
                if not working and not directory.outcome(attempt):
                    directory.event("failed", reason="Its workers ended without a word.")
                    return
            time.sleep(WATCH_S)

    def _revive(self, place: StudentPlace, threads: int) -> None:
        """Let a new rollout engine serve a job whose old one died.

        Raises:
            ClusterError: It does not start.
            ModelError: It cannot load the student.
        """
        assert place.rollouts is not None
        self._up_rollout(lambda _: None)
        Path(place.rollouts).unlink(missing_ok=True)
        self._cluster().call(ROLLOUT, roles.serve_rollouts, place.rollouts, threads)

    def _settle(self, cluster: Cluster) -> None:
        """Wait until every student has left the run; end those that cannot."""
        deadline = time.monotonic() + SETTLE_S
        for role in cluster.students:
            while role not in cluster.lost:
                try:
                    left = max(1.0, deadline - time.monotonic())
                    if not cluster.gather([cluster.send(role, roles.training)], timeout_s=left)[0]:
                        break
                    if time.monotonic() > deadline:
                        raise ClusterError(f"{role} does not leave the run")
                except Exception:  # it has died, does not answer, or not in a way that is known
                    cluster.kill(role)
                time.sleep(WATCH_S / 5)

    @contextlib.contextmanager
    def _places(
        self,
        *,
        with_teacher: bool,
        rollout_threads: int | None = None,
        follows: bool = False,
        students_rest: bool = False,
    ) -> Iterator[list[StudentPlace]]:
        """Open one job's meeting points: the teacher's socket and the ranks' rendezvous.

        With `rollout_threads`, the rollout engine's socket, too; with `follows`, the one where the
        teacher takes the students' weights. It has its own again behind the job. Where the
        `students_rest`, the teacher gets their cores.
        """
        cluster = self._cluster()
        self._jobs += 1
        students = self.config.students
        threads = self.threads(students + 1 if with_teacher else students)
        # A rendezvous file must be new: ranks that meet in an old one hang.
        folder = Path(tempfile.mkdtemp(prefix=f"job{self._jobs}-", dir=self.folder))
        socket = str(folder / "teacher.sock") if with_teacher else None
        aside = str(folder / "aside.sock") if with_teacher else None
        weights = str(folder / "weights.sock") if follows else None
        if socket is not None:
            theirs = self.threads(1) if students_rest else threads
            cluster.call("teacher", roles.serve, socket, students, theirs, aside, weights)
        rollouts = None
        if rollout_threads is not None:
            rollouts = str(folder / "rollout.sock")
            cluster.call(ROLLOUT, roles.serve_rollouts, rollouts, rollout_threads)
        placed = self.config.student_devices
        try:
            yield [
                StudentPlace(
                    rank=rank,
                    world_size=students,
                    device=self.device,
                    threads=threads,
                    threads_alone=self.threads(students),
                    socket=socket,
                    rendezvous=str(folder / "rendezvous"),
                    aside=aside,
                    rollouts=rollouts,
                    weights=weights,
                    gpu=None if placed is None else placed[rank],
                    transport=self.config.transport,
                )
                for rank in range(students)
            ]
        finally:
            if socket is not None and "teacher" not in cluster.lost:
                try:
                    if cluster.call("teacher", roles.stop_serving):
                        # reading a large model takes longer than an answer may
                        cluster.gather([cluster.send("teacher", roles.restore_teacher)])
                except KDFlowLabError:  # it died just now, or hangs: `up` starts another
                    cluster.kill("teacher")
            if rollouts is not None and ROLLOUT not in cluster.lost:
                try:
                    cluster.call(ROLLOUT, roles.stop_rollouts)
                except ClusterError:
                    cluster.kill(ROLLOUT)
            for file in folder.iterdir():
                file.unlink(missing_ok=True)
            folder.rmdir()

    def _cluster(self) -> Cluster:
        if self.cluster is None:
            raise ClusterError("The lab is not up. Call lab.up(), or %kdflow up.")
        return self.cluster


def _why_stuck(roles: list[str], pids: list[int], seconds: float) -> str:
    """Say which process hangs and what happens to it."""
    named = ", ".join(f"{role} (pid {pid})" for role, pid in zip(roles, pids, strict=True))
    return (
        f"The process of {named} has given no sign of life for {seconds:g} s: it is stopped or "
        "hangs, and is ended now. run.resume(), or %kdflow resume, starts it again and goes on."
    )


def _why_lost(lost: list[str], directory: RunDirectory) -> str:
    """Say which process died and what to do."""
    kept = directory.checkpoint_steps()
    then = f"from its checkpoint of step {kept[-1]}" if kept else "from the start"
    return (
        f"The process of {', '.join(lost)} died: it was killed, perhaps for want of memory, or "
        f"crashed. run.resume(), or %kdflow resume, goes on {then}."
    )
