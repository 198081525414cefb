"""What a replay found, as a sentence and a table, in a terminal and in a notebook."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field

from kdflow_lab.evaluate.replay_side import Spot

MOST_ROWS = 40
"""Rows of the table: those that are not finite, and finite ones as long as there is room."""
MOST_NAMED = 12
"""Rows that the sentence names."""
HEADINGS = (
    "row",
    "tokens",
    "teacher hidden",
    "teacher logits",
    "student hidden",
    "student logits",
    "loss",
    "gradient",
    "first not finite",
)


@dataclass(frozen=True, slots=True)
class ReplayedRow:
    """One row of the batch, run alone.

    Attributes:
        row: Its number in the data, counted from 0.
        tokens: Of the whole row.
        teacher_hidden: Whether every hidden state of the teacher is finite; None without a teacher.
        teacher_logits: The same of its logits for the trained tokens.
        student_hidden: The same of the student.
        student_logits: Likewise.
        loss: Mean over the row's trained tokens, in nats: what the step's loss is a mean of.
        grad_norm: Of that.
        first: Where it is not finite for the first time, the teacher looked at first; None if it
            is finite.
    """

    row: int
    tokens: int
    teacher_hidden: bool | None
    teacher_logits: bool | None
    student_hidden: bool
    student_logits: bool
    loss: float
    grad_norm: float
    first: Spot | None


@dataclass(frozen=True, slots=True)
class Replay:
    """The batch of a step that was left out, row by row.

    Attributes:
        run: Name of the run.
        step: That was left out, counted from 1.
        weights_of: The checkpoint whose weights the student had; 0: those it started from.
        taken: Updates that the run made between these weights and the step; 0: the same weights.
        rows: In the order of the data.
        tokens: Text of the tokens that `rows` name, by id.
        broken_teacher: Weights of the teacher that are not finite.
        broken_student: Likewise.
        missing_ranks: Ranks whose part of the batch was not kept.
        teacher_dtype: In which the teacher computed.
    """

    run: str
    step: int
    weights_of: int
    taken: int
    rows: list[ReplayedRow]
    tokens: dict[int, str] = field(default_factory=dict)
    broken_teacher: tuple[str, ...] = ()
    broken_student: tuple[str, ...] = ()
    missing_ranks: tuple[int, ...] = ()
    teacher_dtype: str = ""

    @property
    def bad_rows(self) -> list[ReplayedRow]:
        """The rows that are not finite."""
        return [row for row in self.rows if row.first is not None]

    @property
    def sentence(self) -> str:
        """Which rows cause it, and what to do."""
        parts = [self._verdict()]
        if self.taken:
            start = f"the checkpoint of step {self.weights_of}" if self.weights_of else "the start"
            updates = "1 update was" if self.taken == 1 else f"{self.taken} updates were"
            parts.append(f"The student's weights are those of {start}: {updates} made since.")
        if self.missing_ranks:
            ranks = ", ".join(map(str, self.missing_ranks))
            parts.append(f"The rows of rank {ranks} were not kept and are not looked at.")
        return " ".join(parts)

    def _verdict(self) -> str:
        step, bad = f"Step {self.step} of {self.run}", self.bad_rows
        if self.broken_teacher:
            spared = 0 < len(bad) < len(self.rows)
            until = " Until then, leave those rows out of the data." if spared else ""
            return (
                f"{step}: the teacher's weights are broken, {_some(self.broken_teacher)} "
                f"{_hold(self.broken_teacher)} values that are not finite; {_met(self)}. Give the "
                f"lab a whole copy of the teacher.{until}"
            )
        if self.broken_student:
            origin = (
                f"Fork an earlier checkpoint than that of step {self.weights_of} with a lower lr"
                if self.weights_of
                else "Start from a whole copy of it"
            )
            return (
                f"{step}: the student's weights are broken, {_some(self.broken_student)} "
                f"{_hold(self.broken_student)} values that are not finite; {_met(self)}. {origin}."
            )
        if not bad:
            cause = (
                "the cause grew in the weights since: resume or fork with a lower lr."
                if self.taken
                else "the values were not finite only on the run's own device or in its packing."
            )
            return f"{step}: nothing is wrong, every value of every row is finite here. " + (
                f"If the step was left out, {cause}"
            )
        caused = f"{step}: {_named(bad)} {'cause' if len(bad) > 1 else 'causes'} it"
        sides = {row.first.side.partition(" ")[0] for row in bad if row.first is not None}
        if sides == {"teacher"}:
            ways = [] if len(bad) == len(self.rows) > 1 else [f"leave {_them(bad)} out of the data"]
            if self.teacher_dtype != "float32":
                ways.append("use teacher_dtype='float32'")
            way = ", or ".join(ways) or "use another copy of the teacher"
            return (
                f"{caused}: the teacher's values overflow in {self.teacher_dtype}. "
                f"{way[0].upper()}{way[1:]}."
            )
        if len(bad) * 2 > len(self.rows):
            return (
                f"{caused}, which is most of the batch: the student has diverged. Fork an earlier "
                "checkpoint with a lower lr."
            )
        return f"{caused}. Leave {_them(bad)} out of the data, or lower lr; then resume or fork."

    # -- table ----------------------------------------------------------------------------------

    def _cells(self) -> list[list[str]]:
        """The table's rows: those that are not finite first, finite ones as there is room."""
        finite = [row for row in self.rows if row.first is None]
        bad = self.bad_rows
        return [self._line(row) for row in [*bad, *finite][: max(MOST_ROWS, len(bad))]]

    def _line(self, row: ReplayedRow) -> list[str]:
        return [
            str(row.row),
            str(row.tokens),
            _finite(row.teacher_hidden),
            _finite(row.teacher_logits),
            _finite(row.student_hidden),
            _finite(row.student_logits),
            _number(row.loss),
            _number(row.grad_norm),
            self._place(row.first),
        ]

    def _place(self, spot: Spot | None) -> str:
        if spot is None:
            return ""
        if spot.position is None or spot.token_id is None:
            return spot.side
        text = self.tokens.get(spot.token_id, "")
        return f"{spot.side}, token {spot.position}: {spot.token_id} {text!r}"

    def _rest(self) -> str:
        left = len(self.rows) - len(self._cells())
        return f"… and {left} more rows that are finite" if left else ""

    def __repr__(self) -> str:
        """The sentence above aligned columns."""
        table = [list(HEADINGS), *self._cells()]
        widths = [max(len(line[column]) for line in table) for column in range(len(HEADINGS))]
        last = len(HEADINGS) - 1
        lines = [
            "  ".join(
                cell.ljust(width) if column == last else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        return "\n".join([self.sentence, "", *lines, *filter(None, [self._rest()])])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(heading)}</th>" for heading in HEADINGS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
            for line in self._cells()
        )
        rest = f"<p>{html.escape(self._rest())}</p>" if self._rest() else ""
        return (
            f"<p>{html.escape(self.sentence)}</p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"
        )


def _finite(value: bool | None) -> str:
    return "-" if value is None else "finite" if value else "NOT finite"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}"


def _named(rows: list[ReplayedRow]) -> str:
    """`row 7`, or `rows 7, 9 and 11`; many are cut."""
    numbers = [str(row.row) for row in rows]
    if len(numbers) == 1:
        return f"row {numbers[0]}"
    if len(numbers) > MOST_NAMED:
        return f"rows {', '.join(numbers[:MOST_NAMED])} and {len(numbers) - MOST_NAMED} more"
    return f"rows {', '.join(numbers[:-1])} and {numbers[-1]}"


def _met(replay: Replay) -> str:
    """Which rows meet broken weights."""
    bad = replay.bad_rows
    if not bad:
        return "no row of this batch meets them"
    if len(bad) == len(replay.rows):
        return "every row of this batch meets them"
    return f"{_named(bad)} {'meet' if len(bad) > 1 else 'meets'} them"


def _them(rows: list[ReplayedRow]) -> str:
    return "them" if len(rows) > 1 else "it"


def _some(names: tuple[str, ...]) -> str:
    """The first names of weights."""
    return f"{names[0]}" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _hold(names: tuple[str, ...]) -> str:
    return "holds" if len(names) == 1 else "hold"
