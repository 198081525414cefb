"""Where the students of several runs parted, on the probe texts that they share.

Each run's newest probes are compared, token by token: the KL to the teacher and the token that the
student expects most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdflow_lab.errors import DataError, RunError
from kdflow_lab.evaluate.inspection import Inspection
from kdflow_lab.widgets._compare_data import Compared, Drawn
from kdflow_lab.widgets._divergence_data import place_of
from kdflow_lab.widgets._table import Cell, Table
from kdflow_lab.widgets._tokens import probability, visible

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_PARTED = 10
"""Tokens listed."""
NAME_CHARACTERS = 14
"""Of one token's text."""
SAME_TEACHER_NATS = 0.05
"""Mean difference of log-probabilities up to which teachers count as one: rounding differs."""


@dataclass(frozen=True, slots=True, eq=False)
class Probed:
    """A run's newest probes."""

    run: Drawn
    inspection: Inspection

    def expects(self, index: int, model: str = "student") -> str:
        """The token that a model expects most, and its probability."""
        arrays = self.inspection.arrays
        token = _name(self.inspection, int(arrays[f"{model}_topk_ids"][index, 0]))
        chance = float(np.exp(arrays[f"{model}_topk_logprobs"][index, 0]))
        return f"{token} {probability(chance)}"


@dataclass(frozen=True, slots=True, eq=False)
class Probes:
    """The probes of several runs on the same P predicted tokens.

    Attributes:
        seen: Two runs or more; or none, where the notes say why.
        kl: Float32[runs, P], KL(teacher || student) in nats; NaN where it is not known.
        apart: Float32[P], the largest less the smallest KL, in nats.
        differs: Bool[P], whether the students expect different tokens most.
        trained: Bool[P], whether the token is of an answer, in all runs; all, if none is.
        notes: Sentences: which runs are left out, and what limits the comparison.
    """

    seen: list[Probed]
    kl: NDArray[np.float32]
    apart: NDArray[np.float32]
    differs: NDArray[np.bool_]
    trained: NDArray[np.bool_]
    notes: list[str]

    def name(self, index: int) -> str:
        """The text of a predicted token, made visible."""
        named = [each.inspection for each in self.seen if each.inspection.texts]
        inspection = (named or [self.seen[0].inspection])[0]
        return _name(inspection, int(inspection.arrays["labels"][index]))


def probes(data: Compared) -> Probes | None:
    """Read the newest probes of every run; None for a single run, and where no run has any."""
    if len(data.runs) < 2:
        return None
    found, notes = [], []
    for run in data.runs:
        try:
            reader = run.run.probes
            if reader.newest is None:
                notes.append(f"{run.label} has no probes; probe_every writes them.")
            else:
                found.append(Probed(run, reader.at(reader.newest)))
        except (DataError, RunError) as error:
            notes.append(f"{run.label} is left out: {error}")
    if not found and all("has no probes" in note for note in notes):
        return None
    taught = []
    for each in found:
        if "forward_kl" not in each.inspection.arrays:
            notes.append(f"{each.run.label} is left out: it has no teacher to compare with.")
        elif taught and (reason := _unlike(taught[0], each)):
            notes.append(f"{each.run.label} is left out: {reason}")
        else:
            taught.append(each)
    return _compared(taught if len(taught) > 1 else [], notes)


def _compared(seen: list[Probed], notes: list[str]) -> Probes:
    if not seen:
        none = np.zeros(0, np.float32)
        return Probes([], none[None], none, none > 0, none > 0, notes)
    arrays = [each.inspection.arrays for each in seen]
    kl = np.stack([each.inspection.values("forward_kl") for each in seen])
    tops = np.stack([each["student_topk_ids"][:, 0] for each in arrays])
    trained = np.all([each["response"] for each in arrays], axis=0)
    apart = kl.max(axis=0) - kl.min(axis=0)
    differs = (tops != tops[0]).any(axis=0)
    if not trained.any():
        trained = np.ones_like(trained)
    return Probes(seen, kl, apart, differs, trained, [*notes, *_about_teachers(seen)])


def _unlike(first: Probed, other: Probed) -> str:
    """Why two runs' probes cannot be compared; empty if they can."""
    one, two = first.inspection, other.inspection
    rows, others = (each.arrays["row_index"] for each in (one, two))
    if not np.array_equal(rows, others):
        return f"it was probed on rows {_listed(others)}, {first.run.label} on {_listed(rows)}."
    same = all(
        np.array_equal(one.arrays[name], two.arrays[name])
        for name in ("cu_seqlens", "input_ids", "labels")
    )
    ids = np.unique(one.arrays["labels"]).tolist() if same else []
    if same and all(one.text(t) == two.text(t) for t in ids if t in one.texts and t in two.texts):
        return ""
    return (
        f"its probe rows have other tokens than those of {first.run.label} "
        "(another data set, chat template or tokenizer)."
    )


def _listed(rows: NDArray[Any]) -> str:
    shown = ", ".join(map(str, rows[:5].tolist()))
    return f"{shown} … ({len(rows)} in all)" if len(rows) > 5 else shown


def _about_teachers(seen: list[Probed]) -> list[str]:
    """What is not known of the teachers, and whether they differ."""
    notes = [f"{each.run.label}: {each.inspection.note}" for each in seen if each.inspection.note]
    if len(_teachers(seen)) > 1:
        notes.append("The teachers differ: each KL is to the run's own teacher.")
    return notes


def _teachers(seen: list[Probed]) -> list[Probed]:
    """The runs whose teachers' expectations are known; one of them, if all teachers agree."""
    known = [each for each in seen if "teacher_logprob" in each.inspection.arrays]
    values = [each.inspection.arrays["teacher_logprob"] for each in known]
    if known and len(values[0]):
        differences = [float(np.abs(each - values[0]).mean()) for each in values]
        if max(differences) > SAME_TEACHER_NATS:
            return known
    return known[:1]


def parted(found: Probes) -> Table:
    """The tokens at which the runs' KLs differ most, the widest apart first."""
    teachers = _teachers(found.seen)
    rows = []
    chosen = np.flatnonzero(found.trained & (found.apart > 0))
    for index in chosen[np.argsort(-found.apart[chosen], kind="stable")][:MOST_PARTED].tolist():
        place = place_of(found.seen[0].inspection, index)
        apart = f"{found.apart[index]:.3f}"
        texts = [str(place.row), str(place.position), found.name(index), apart]
        texts += [
            f"{kl:.3f} → {each.expects(index)}"
            for kl, each in zip(found.kl[:, index].tolist(), found.seen, strict=True)
        ]
        texts += [each.expects(index, "teacher") for each in teachers]
        rows.append(tuple(Cell(text) for text in texts))
    runs = [Cell(each.run.label, each.run.look) for each in found.seen]
    names = [f"{each.run.label}'s teacher" for each in teachers]
    if len(teachers) == 1:
        names = ["teacher"]
    return Table(
        "Where they part most (KL in nats → token expected most, its probability)",
        (*map(Cell, ("row", "no.", "token", "apart")), *runs, *map(Cell, names)),
        rows,
    )


def _name(inspection: Inspection, token_id: int) -> str:
    return visible(inspection.text(token_id)[:100], NAME_CHARACTERS)
