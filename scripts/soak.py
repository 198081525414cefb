"""`make soak`: disturb short runs at random, resume them, and count what was lost.

Every run must reach its end equal, bit for bit, to the one that nobody disturbed: metrics of every
step, weights, optimizer and random state. After each fault the run must have said what died within
five seconds, and nothing of it may be missing, torn or left over. The last line says
`N faults, M lost`; the exit code is 1 unless M is 0. The same seed draws the same faults.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import process_watch
import run_audit

STEPS = 60
RUN: dict[str, Any] = {
    "steps": STEPS,
    "rows": 128,
    "batch_size": 8,
    "max_length": 256,
    "micro_batch_tokens": 1024,
    "lr": 1e-3,
    "checkpoint_every": 5,
    "timeout_s": 8.0,
}
MOST_STEPS = 12
"""Between two faults; more than lie between two checkpoints."""
NEAR_END = 8
"""A run with less to go is let to its end before the next fault."""
SOON_S = 5.0
PATIENCE_S = 120.0
DISK_MB = 160
"""Of the disk that is made for the runs, where mounting is permitted: it can be filled quickly."""


class Soak:
    """One lab, one undisturbed run, and as many disturbed ones as the faults need."""

    def __init__(self, folder: Path, *, seed: int, students: int, has_own_disk: bool) -> None:
        """Start the lab and take the undisturbed run."""
        import kdflow_lab as kd

        self.kd = kd
        self.folder = folder
        self.random = random.Random(seed)
        self.lost: list[str] = []
        self.compared = -1  # the undisturbed run is compared with itself
        self._read: dict[Path, bytes] = {}
        self.lab = kd.Lab(
            "zoo/teacher", "zoo/student", students=students, threads=1, dir=str(folder)
        ).up()
        self.run = self.undisturbed = self.lab.distill(**RUN, name="undisturbed")
        self.wait_for(lambda: self.run.state == "finished", "the undisturbed run")
        self.processes = len(self.of_lab())
        killable = ["teacher", *(f"student {rank}" for rank in range(students))]
        self.kinds: dict[str, Callable[[], None]] = {
            **{f"kill {role}": lambda role=role: self.kill(role) for role in killable},
            "hang": lambda: self.hang(self.random.choice(killable)),
            "kill all engines": lambda: self.kill(*killable),
            "kill controller": lambda: self.end_lab("controller", signal.SIGKILL),
            "kill supervisor": lambda: self.end_lab("supervisor", signal.SIGKILL),
            "end supervisor": lambda: self.end_lab("supervisor", signal.SIGTERM),
            "kill guardian": self.kill_guardian,
            "leave and attach": self.reattach,
            "torn checkpoint": self.tear,
            "pause": self.pause,
            "park": self.park,
            "stop": self.stop,
            **({"full disk": self.fill_disk} if has_own_disk else {}),
        }

    # -- the faults -----------------------------------------------------------------------------

    def kill(self, *roles: str) -> None:
        """Kill engines; the run fails and is resumed."""
        pids = self.pids()
        for role in roles:
            os.kill(pids[role], signal.SIGKILL)
        self.failed_soon(*roles)
        self.run.resume()

    def hang(self, role: str) -> None:
        """Stop an engine as a debugger does; it is found out and ended."""
        os.kill(self.pids()[role], signal.SIGSTOP)
        self.failed_soon(role, seconds=RUN["timeout_s"] + SOON_S)
        self.run.resume()

    def end_lab(self, role: str, sign: signal.Signals) -> None:
        """End what the whole lab hangs on; nothing of it may stay."""
        folder = self.lab.runtime_dir
        os.kill(self.pids()[role], sign)
        self.failed_soon(role)
        self.wait_for(lambda: not self.of_lab(), "the end of all processes", seconds=SOON_S)
        if folder is not None and folder.exists():
            self.lose(f"{folder} stayed behind")
        self.run.resume()

    def kill_guardian(self) -> None:
        """Kill the process that watches the supervisor; another one comes, the run goes on."""
        first = self.guardian()
        assert first is not None
        os.kill(first, signal.SIGKILL)
        self.wait_for(lambda: self.guardian() not in (None, first), "a guardian", seconds=SOON_S)

    def reattach(self) -> None:
        """Leave the lab and attach to it again, as a restarted kernel does."""
        self.lab.detach()
        self.lab = self.kd.Lab.attach(self.folder)
        (self.run,) = (run for run in self.lab.runs if run.path == self.run.path)

    def tear(self) -> None:
        """Cut a file of the newest checkpoint; the one before it is taken."""
        self.stop(resume=False)
        newest = self.run.path / "checkpoints" / str(self.run.checkpoints[-1])
        file = self.random.choice(sorted(newest.glob("*.distcp")))
        os.truncate(file, self.random.randrange(file.stat().st_size))
        self.run.resume()

    def pause(self) -> None:
        """Pause and go on."""
        self.run.pause()
        self.wait_for(lambda: self.run.state in ("paused", "finished"), "the pause")
        if self.run.state == "paused":
            self.run.resume()

    def park(self) -> None:
        """Pause, let another run have the engines, and come back."""
        self.run.pause()
        self.wait_for(lambda: self.run.state in ("paused", "finished"), "the pause")
        other = self.lab.sft(rows=16, batch_size=8, steps=1, max_length=256)
        self.wait_for(lambda: other.state == "finished", "the other run")
        self.wait_for(lambda: not other.directory.locked(), "its lock")
        if self.run.state == "paused":
            self.run.resume()
        shutil.rmtree(other.path)

    def stop(self, *, resume: bool = True) -> None:
        """Stop, and take the run up again."""
        with contextlib.suppress(self.kd.errors.RunError):  # it has just finished
            self.run.stop()
        self.wait_for(lambda: self.run.state in ("stopped", "finished"), "the stop")
        if resume and self.run.state == "stopped":
            self.run.resume()

    def fill_disk(self) -> None:
        """Fill the disk until the run fails, or ends without noticing; then free it."""
        filler = self.folder / "filler"
        with filler.open("wb") as file:
            for share in (1.0, 0.9, 0.5):  # the run takes some of it meanwhile
                free = int(shutil.disk_usage(self.folder).free * share)
                with contextlib.suppress(OSError):
                    size = file.seek(0, os.SEEK_END)
                    os.posix_fallocate(file.fileno(), size, max(1, free))
        self.wait_for(lambda: self.run.state in ("failed", "finished"), "the full disk")
        filler.unlink()
        if self.run.state == "failed":
            if "cannot be written" not in self.run.reason + self.last_warning():
                self.lose(f"the full disk was not named: {self.run.reason!r}")
            self.run.resume()

    # -- one round ------------------------------------------------------------------------------

    def strike(self, kind: str) -> str:
        """Disturb the current run at a random moment, see it go on, and say where it was hit."""
        if self.run.step > STEPS - NEAR_END:
            self.finish()
            self.run = self.lab.distill(**RUN)
            self.trains()
        target = min(self.run.step + self.random.randint(1, MOST_STEPS), STEPS - 2)
        self.wait_for(lambda: self.run.step >= target, f"step {target}")
        time.sleep(self.random.uniform(0, 0.1))  # somewhere within a step, or a checkpoint
        where = f"at step {self.run.step}"
        self.kinds[kind]()
        self.trains()
        self.check()
        self.no_more_processes()
        return where

    def trains(self) -> None:
        """Wait until the current run takes steps again, or has finished."""
        self.wait_for(
            lambda: self.run.state in ("running", "finished", "failed"), "a run that goes on"
        )
        if self.run.state == "failed":
            raise TimeoutError(f"{self.run.name} does not go on: {self.run.reason}")

    def finish(self) -> None:
        """Let the current run end, and compare it."""
        self.wait_for(lambda: self.run.state == "finished", "its end")
        self.wait_for(lambda: not self.run.directory.locked(), "its lock")
        self.check()
        self.compared += 1
        for difference in run_audit.differences(self.run, self.undisturbed):
            self.lose(f"{self.run.name}: {difference}")
        if self.run is not self.undisturbed and not self.lost:
            shutil.rmtree(self.run.path)
        self._read.clear()

    def check(self) -> None:
        """Look whether the run's files are whole, and only grew."""
        directory = self.run.directory
        for file in (directory.metrics_file, directory.events_file, directory.control_file):
            content = file.read_bytes() if file.exists() else b""
            if not content.startswith(self._read.get(file, b"")):
                self.lose(f"lines of {file} are gone")
            self._read[file] = content
        for problem in run_audit.problems(self.run.path):
            self.lose(f"{self.run.name}: {problem}")

    def no_more_processes(self) -> None:
        """Hold that faults and resumes do not pile up processes."""
        self.wait_for(lambda: len(self.of_lab()) <= self.processes, "the end of a process")

    def close(self) -> None:
        """End the lab and look for what it left."""
        folder = self.lab.runtime_dir
        self.lab.close()
        deadline = time.monotonic() + SOON_S
        while (left := self.of_lab()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in left:
            self.lose(f"a process was left: {process_watch.describe(process)}")
        if folder is not None and folder.exists():
            self.lose(f"{folder} was left")

    # -- small things ---------------------------------------------------------------------------

    def failed_soon(self, *roles: str, seconds: float = SOON_S) -> None:
        """Wait until the run has failed and named one of `roles`, or has finished before."""
        self.wait_for(
            lambda: self.run.state in ("failed", "finished"), f"the end of {roles}", seconds=seconds
        )
        state, reason = self.run.state, self.run.reason
        if state == "failed" and not any(role in reason for role in roles):
            self.lose(f"{roles} died, and the run says {reason!r}")

    def wait_for(
        self, condition: Callable[[], Any], what: str, *, seconds: float = PATIENCE_S
    ) -> None:
        """Wait; too long is a loss that ends the soak."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                said = f"{self.run!r} {self.run.reason}" if hasattr(self, "run") else ""
                raise TimeoutError(f"{what} did not come within {seconds:g} s: {said}")
            time.sleep(0.02)

    def lose(self, what: str) -> None:
        """Count a loss."""
        if what not in self.lost:
            self.lost.append(what)
            print(f"LOST: {what}", flush=True)

    def tell(self) -> None:
        """Show what the run and the lab said last."""
        for event in self.run.events[-12:]:
            print("  ", str(event)[:300])
        if (folder := self.lab.runtime_dir) is not None:
            print((folder / "supervisor.log").read_text(errors="replace")[-2000:])

    def pids(self) -> dict[str, int]:
        """Processes of the lab by role."""
        client = self.lab._client
        assert client is not None
        return {**client.ask("status")["pids"], "supervisor": client.record.pid}

    def guardian(self) -> int | None:
        """The guardian's process."""
        for process in self.of_lab():
            with contextlib.suppress(process_watch.psutil.Error):
                if "kdflow_lab.reaper" in process.cmdline():
                    return process.pid
        return None

    def of_lab(self) -> list[Any]:
        """All processes that this one brought into the world."""
        found = process_watch.marked(os.environ[process_watch.MARK])
        return [process for process in found if process.pid != os.getpid()]

    def last_warning(self) -> str:
        """What the run warned of last."""
        said = [event["message"] for event in self.run.events if event["event"] == "warning"]
        return said[-1] if said else ""


@contextlib.contextmanager
def runs_folder() -> Iterator[tuple[Path, bool]]:
    """A folder for the runs, on a small disk of its own where that is permitted."""
    folder = Path(tempfile.mkdtemp(prefix="kdflow-soak-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield folder, mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def in_shared_memory() -> set[str]:
    """Names of the files in shared memory."""
    return {path.name for path in Path("/dev/shm").glob("*")}


def drawn(rng: random.Random, kinds: list[str], count: int) -> list[str]:
    """Draw `count` faults: every kind comes before one comes again."""
    order: list[str] = []
    while len(order) < count:
        order += rng.sample(kinds, len(kinds))
    return order[:count]


def soak(faults: int, seed: int, students: int, only: str) -> list[str]:
    """Strike `faults` times and return what was lost."""
    start = time.monotonic()
    before = in_shared_memory()
    with runs_folder() as (folder, has_own_disk):
        subject = Soak(folder, seed=seed, students=students, has_own_disk=has_own_disk)
        print(f"undisturbed: {STEPS} steps, {time.monotonic() - start:.0f} s with the start")
        if not has_own_disk:
            print("no disk can be mounted here: none is filled")
        begun = time.monotonic()
        try:
            known = [kind for kind in subject.kinds if only in kind]
            kinds = drawn(subject.random, known, faults)
            for number, kind in enumerate(kinds, 1):
                at = time.monotonic()
                where = subject.strike(kind)
                each = (time.monotonic() - begun) / number
                left = each * (faults - number)
                print(
                    f"[{number}/{faults}] {kind} {where}: {time.monotonic() - at:.1f} s, "
                    f"{each:.1f} s a fault, {left // 60:.0f}:{left % 60:02.0f} left",
                    flush=True,
                )
            subject.finish()
        except (TimeoutError, AssertionError, subject.kd.errors.KDFlowLabError) as error:
            subject.lose(f"{type(error).__name__}: {error}")
            subject.tell()
        finally:
            subject.close()
    for name in sorted(in_shared_memory() - before):
        print(f"new in /dev/shm, perhaps another program's: {name}")
    print(f"{subject.compared} disturbed runs compared in {time.monotonic() - start:.0f} s")
    return subject.lost


def main(arguments: list[str]) -> int:
    """Read the arguments, soak, and say what came of it."""
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--students", type=int, default=2)
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    options = parser.parse_args(arguments)
    os.environ[process_watch.MARK] = uuid.uuid4().hex
    lost = soak(options.faults, options.seed, options.students, options.only)
    print(f"{options.faults} faults, {len(lost)} lost")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
