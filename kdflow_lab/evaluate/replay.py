"""Replay of a step that a run left out: which rows and tokens are not finite, and on which side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from kdflow_lab import algorithms, settings
from kdflow_lab.algorithms import make_algorithm
from kdflow_lab.align.shared_vocab import shared_vocabulary
from kdflow_lab.checkpoints import check
from kdflow_lab.config import DistillConfig
from kdflow_lab.data import kept
from kdflow_lab.errors import RunError
from kdflow_lab.evaluate.replay_report import Replay, ReplayedRow
from kdflow_lab.evaluate.replay_side import Side, Spot, chunks, is_finite
from kdflow_lab.hub import resolve_model
from kdflow_lab.load import load_model, load_tokenizer
from kdflow_lab.losses import Head, head_rows, per_token
from kdflow_lab.student.export import load_hf
from kdflow_lab.student.fsdp import computes_in_bf16
from kdflow_lab.teacher.transformers import own_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.algorithms.base import Algorithm
    from kdflow_lab.data.kept import KeptRow
    from kdflow_lab.rundir import RunDirectory


def replay(directory: RunDirectory, step: int | None = None) -> Replay:
    """Run the batch of a step that was left out again, row by row, on this process's CPU.

    The student has the weights of before the step, or the nearest older ones that were kept; loss
    and settings are those of the step. Needs no cluster. Teacher and student are held one after
    the other.

    Args:
        directory: The run's; it may be active.
        step: A step that was left out; by default the last one whose batch was kept.

    Raises:
        RunError: No such batch was kept, or its file is none that a run wrote.
        ModelError: Teacher or student cannot be loaded.
    """
    step = _which(directory, step)
    rows, missing = kept.read(directory.skipped, step)
    asked = _Asked(directory, step)
    teaching = _teach(asked, rows) if asked.algorithm.needs_teacher else None
    weights_of, taken = weights_before(directory, step)
    found, broken = _learn(asked, rows, teaching, weights_of)
    return Replay(
        run=directory.path.name,
        step=step,
        weights_of=weights_of,
        taken=taken,
        rows=found,
        tokens={number: asked.tokenizer.decode([number]) for number in _ids(found)},
        broken_teacher=() if teaching is None else tuple(teaching.broken),
        broken_student=tuple(broken),
        missing_ranks=tuple(missing),
        teacher_dtype=asked.teacher_dtype_name,
    )


def weights_before(directory: RunDirectory, step: int) -> tuple[int, int]:
    """Find the weights that come nearest to those which met a step.

    A checkpoint of a later step holds the very same ones if every step up to it was left out, as
    when a run ended after too many of them.

    Returns:
        The checkpoint's step, 0 for the start, and the updates that were made from there on.
    """
    skipped: set[int] = set()
    for event in directory.events():
        if event["event"] == "started":  # what an earlier attempt did beyond that was taken back
            skipped = {one for one in skipped if one <= event.get("from_step", 0)}
        elif event["event"] == "skipped":
            skipped.add(event["step"])
    found = {0: sum(one not in skipped for one in range(1, step))}
    for at in directory.checkpoint_steps():
        if check(directory.checkpoints / str(at)):
            continue
        if at < step:
            found[at] = sum(one not in skipped for one in range(at + 1, step))
        elif all(one in skipped for one in range(step, at + 1)):
            found[at] = 0
    return min(found.items(), key=lambda one: (one[1], -one[0]))


def _which(directory: RunDirectory, step: int | None) -> int:
    """Check the step that was asked for, or choose the last one."""
    directory.config()  # refuses what is no run directory
    name = directory.path.name
    there = kept.steps(directory.skipped)
    left_out = [event["step"] for event in directory.events() if event["event"] == "skipped"]
    if not there:
        why = "none was" if not left_out else "their batches could not be kept"
        raise RunError(
            f"{name} has no step that was left out and can be replayed: {why}. A run leaves out "
            "steps whose loss or gradient is not finite; their events are named 'skipped'."
        )
    if step is None:
        return there[-1]
    if step not in there:
        near = min(there, key=lambda one: abs(one - step))
        why = "its batch was not kept" if step in left_out else "it was not left out"
        raise RunError(
            f"{name} cannot replay step {step}: {why}. The nearest that can be is step {near}. "
            f"There are: {', '.join(map(str, there))}."
        )
    return step


class _Asked:
    """What the run was asked for at the step, and where its models are."""

    def __init__(self, directory: RunDirectory, step: int) -> None:
        self.directory = directory
        saved = directory.config()
        events = directory.events()
        known = DistillConfig.fields_in(saved)
        known |= settings.in_force(settings.timeline(events), step)
        self.config = DistillConfig.parse(**{**known, **_one_length(known)})
        self.config.algorithm = _algorithm_of(directory, self.config)
        self.algorithm: Algorithm = make_algorithm(self.config)
        self.lab: dict[str, Any] = saved["lab"]
        self.trust = {"trust_remote_code": self.lab["trust_remote_code"]}
        devices = [event["device"] for event in events if event.get("device")]
        self.device = torch.device(devices[-1] if devices else "cpu")
        self.student_path = resolve_model(self.lab["student"])
        self.tokenizer = load_tokenizer(self.student_path, **self.trust)
        self.vocab_size = head_rows(self.student_path)
        self.teacher_path, self.teacher_dtype_name = "", ""
        if self.algorithm.needs_teacher:
            self.teacher_path = resolve_model(self.lab["teacher"])
            asked = self.lab["teacher_dtype"]
            own = own_dtype(self.teacher_path, self.device)
            self.teacher_dtype_name = str(own).removeprefix("torch.") if asked == "auto" else asked
            self.vocab_size = shared_vocabulary(
                load_tokenizer(self.teacher_path, **self.trust),
                self.tokenizer,
                teacher_rows=head_rows(self.teacher_path),
                student_rows=self.vocab_size,
            ).size

    @property
    def teacher_dtype(self) -> torch.dtype:
        """Of the teacher's hidden rows and of the students' copy of its head."""
        return getattr(torch, self.teacher_dtype_name)


@dataclass(frozen=True, slots=True)
class _Teaching:
    """What the teacher said: for each row its Float[T, Ht], and where that is not finite."""

    head: Head
    hidden: list[Tensor]
    spots: list[tuple[Spot | None, Spot | None]]  # of hidden states, of logits
    broken: list[str]


@torch.no_grad()
def _teach(asked: _Asked, rows: list[KeptRow]) -> _Teaching:
    """Run the teacher on every row, and let it go."""
    model = load_model(asked.teacher_path, dtype=asked.teacher_dtype, **asked.trust)
    side = Side("teacher", model)
    head = Head.from_pretrained(asked.teacher_path, dtype=asked.teacher_dtype)
    head = head.cut(asked.vocab_size)
    hiddens, spots = [], []
    for row in rows:
        hidden = side.hidden(row.input_ids)
        bad = None if is_finite(hidden) else side.first_bad(row.input_ids)
        hidden = hidden.index_select(0, row.rows)
        spots.append((bad, side.first_bad_logits(hidden, head, row.rows, row.input_ids)))
        hiddens.append(hidden)
    return _Teaching(head, hiddens, spots, side.broken_weights())


def _learn(
    asked: _Asked, rows: list[KeptRow], teaching: _Teaching | None, weights_of: int
) -> tuple[list[ReplayedRow], list[str]]:
    """Run the student on every row, with loss and gradient; also name its broken weights."""
    if weights_of:
        model = load_hf(asked.directory, step=weights_of)
    else:
        model = load_model(asked.student_path, **asked.trust)
    if computes_in_bf16(asked.config, asked.device):
        model = model.to(torch.bfloat16)
    side = Side("student", model, packing=asked.config.packing)
    found = []
    for number, row in enumerate(rows):
        model.zero_grad(set_to_none=True)
        teacher_hidden = None if teaching is None else teaching.hidden[number]
        teacher_head = None if teaching is None else teaching.head
        hidden = side.hidden(row.input_ids)
        bad = None if is_finite(hidden.detach()) else side.first_bad(row.input_ids)
        hidden = hidden.index_select(0, row.rows)
        head = Head.of(model, asked.vocab_size)
        loss = asked.algorithm.loss(
            hidden,
            head,
            teacher_hidden,
            teacher_head,
            row.labels,
            num_valid_tokens=len(row.labels),
        ).loss
        loss.backward()
        hidden = hidden.detach()
        logits = side.first_bad_logits(hidden, head, row.rows, row.input_ids)
        taught = (None, None) if teaching is None else teaching.spots[number]
        value, grad_norm = float(loss.detach()), _grad_norm(model)
        spots = [*taught, bad, logits]
        if not any(spots) and not math.isfinite(value):
            spots.append(_first_bad_loss(asked, row, hidden, head, teacher_hidden, teacher_head))
        if not any(spots) and not math.isfinite(grad_norm):
            spots.append(Spot("gradient"))
        found.append(
            ReplayedRow(
                row=row.row,
                tokens=len(row.input_ids) + 1,  # the last one is not run
                teacher_hidden=None if teaching is None else taught[0] is None,
                teacher_logits=None if teaching is None else taught[1] is None,
                student_hidden=bad is None,
                student_logits=logits is None,
                loss=value,
                grad_norm=grad_norm,
                first=next((spot for spot in spots if spot is not None), None),
            )
        )
    return found, side.broken_weights()


def _first_bad_loss(
    asked: _Asked,
    row: KeptRow,
    hidden: Tensor,
    head: Head,
    teacher_hidden: Tensor | None,
    teacher_head: Head | None,
) -> Spot:
    """Find the first trained token whose loss is not finite though both models' logits are."""
    config, ratio = asked.config, asked.config.kd_ratio if teacher_hidden is not None else 0.0
    for part in chunks(len(hidden), head.width):
        values = per_token(
            hidden[part],
            head,
            None if teacher_hidden is None else teacher_hidden[part],
            teacher_head,
            row.labels[part],
            divergence=config.loss,
            temperature=config.kd_temperature,
            **config.loss_params,
        )
        bad = torch.zeros(len(values.ce), dtype=torch.bool)
        if ratio < 1.0:
            bad |= ~values.ce.isfinite()
        if ratio > 0.0:
            bad |= ~values.kd.isfinite()
        if bad.any():
            index = part.start + int(bad.nonzero()[0, 0])
            return Spot("loss", int(row.rows[index]) + 1, int(row.labels[index]))
    return Spot("loss")  # every token's is: their sum is beyond float32


def _grad_norm(model: Any) -> float:
    """The norm of the whole gradient."""
    grads = [one.grad for one in model.parameters() if one.grad is not None]
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float32) for grad in grads]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def _algorithm_of(directory: RunDirectory, config: DistillConfig) -> str:
    """What `auto` came to; one that crosses tokenizers cannot be replayed."""
    started = [event for event in directory.events() if event["event"] == "started"]
    name = started[-1].get("algorithm", config.algorithm) if started else config.algorithm
    if name == "auto":  # the run ended before it was decided, or is an old one
        name = "vanilla_kd"
    if algorithms.crosses_tokenizers(name) or config.teacher_input is not None:
        raise RunError(
            f"{directory.path.name} was distilled by {name}, with a teacher that reads other tokens"
            " than the student. Only runs in which both read the same can be replayed; the rows of "
            "its batch stand in the folder skipped/."
        )
    return name


def _one_length(known: dict[str, Any]) -> dict[str, Any]:
    """`set(steps=…)` replaces epochs, which a config may not name beside steps."""
    return {"epochs": None} if known.get("steps") is not None else {}


def _ids(rows: list[ReplayedRow]) -> set[int]:
    """The tokens that the table names."""
    firsts = [row.first for row in rows]
    return {one.token_id for one in firsts if one is not None and one.token_id is not None}
