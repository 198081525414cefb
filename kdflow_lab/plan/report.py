"""The plan as people see it: what needs how much memory, how long it takes, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdflow_lab.plan.devices import Room
from kdflow_lab.plan.fit import Remedy
from kdflow_lab.plan.predict import Prediction
from kdflow_lab.units import duration, size


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is expected to take; shows itself as text, and as a table with bars.

    Attributes:
        prediction: Bytes and seconds, part by part.
        rooms: What is needed and free, by device; the disk last.
        remedies: Options with which it would fit, the nearest first; empty if it fits.
        learnt_runs: Earlier runs that corrected it; 0 is a first guess.
        threads: CPU threads of each engine.
        notes: What was assumed, in words.
    """

    prediction: Prediction
    rooms: tuple[Room, ...]
    remedies: tuple[Remedy, ...]
    learnt_runs: int
    threads: int
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether it fits everywhere; a device of which nothing is known counts as fitting."""
        return all(room.fits for room in self.rooms)

    @property
    def peak_bytes(self) -> dict[str, float]:
        """Bytes at the worst moment, by device (`host`, `cuda:0` …)."""
        return {room.device: room.needed for room in self.rooms if room.device != "disk"}

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.prediction.time.step_s

    @property
    def tokens_per_s(self) -> float:
        """Trained tokens a second."""
        return self.prediction.work.responses / self.step_s

    @property
    def total_s(self) -> float:
        """Seconds of all steps."""
        return self.step_s * self.prediction.work.steps

    @property
    def basis(self) -> str:
        """First guess, or corrected by how many runs."""
        if not self.learnt_runs:
            return "a first guess: no run of this folder has corrected it yet"
        runs = "1 run" if self.learnt_runs == 1 else f"{self.learnt_runs} runs"
        return f"corrected by {runs} of this folder"

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        time = self.prediction.time
        return {
            "fits": self.fits,
            "processes": [
                {
                    "process": one.name,
                    "device": one.device,
                    "bytes": round(one.total),
                    "parts": {name: round(value) for name, value in one.parts.items()},
                    "moment": one.moment,
                }
                for one in self.prediction.processes
            ],
            "devices": {
                room.device: {
                    "needed_bytes": round(room.needed),
                    "free_bytes": None if room.free is None else round(room.free),
                    "fits": room.fits,
                }
                for room in self.rooms
            },
            "step_s": time.step_s,
            "teacher_s": time.teacher_s,
            "student_s": time.student_s,
            "rollout_s": time.rollout_s,
            "tokens_per_s": self.tokens_per_s,
            "steps": self.prediction.work.steps,
            "total_s": self.total_s,
            "learnt_runs": self.learnt_runs,
            "remedies": [{**one.lab, **one.run} for one in self.remedies],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """A block of lines for a terminal."""
        return "\n".join(self._lines())

    __repr__ = __str__

    def _lines(self) -> list[str]:
        lines = [f"{'fits' if self.fits else 'DOES NOT FIT'}: {self.basis}"]
        for one in self.prediction.processes:
            parts = sorted(one.parts.items(), key=lambda part: -part[1])
            listed = ", ".join(f"{name} {size(value)}" for name, value in parts if value >= 5e5)
            at = "" if one.device == "host" else f" on {one.device}"
            lines.append(f"  {one.name + at:<22} {size(one.total):>8}  {listed}")
        for room in self.rooms:
            mark = "ok" if room.fits else "!!"
            free = "free space unknown here" if room.free is None else f"{size(room.free)} free"
            lines.append(f"  {mark} {room.device:<19} {size(room.needed):>8}  {free}")
        lines.append(f"  {self.time_line}")
        lines += [f"  note: {note}" for note in self.notes]
        if not self.fits:
            lines += self._advice()
        return lines

    def _advice(self) -> list[str]:
        if not self.remedies:
            return [
                "  -> no change of options known here makes it fit: take smaller models, or more "
                "memory"
            ]
        tight = [room.device for room in self.rooms if not room.fits]
        return [
            f"  -> would fit: {remedy} ("
            + ", ".join(f"{one.device} {size(one.needed)}" for one in remedy.rooms_of(tight))
            + ")"
            for remedy in self.remedies
        ]

    @property
    def time_line(self) -> str:
        """How long it takes, in one line."""
        time, work = self.prediction.time, self.prediction.work
        roles = f"student {time.student_s:.3g} s"
        if time.teacher_s:
            roles = f"teacher {time.teacher_s:.3g} s, {roles}"
        if time.rollout_s:
            roles = f"rollout {time.rollout_s:.3g} s, {roles}"
        return (
            f"{time.step_s:.3g} s a step ({roles}), {self.tokens_per_s:,.0f} trained tokens/s, "
            f"{work.steps:,} steps in {duration(self.total_s)}"
        )

    def _repr_html_(self) -> str:
        """The bars and the table."""
        from kdflow_lab.plan.picture import html_of

        return html_of(self)
