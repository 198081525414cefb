"""Self-distillation in one process by a plain loop: what engines, ranks and rings must come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdflow_lab import zoo
from kdflow_lab.config import DistillConfig
from kdflow_lab.data import sources
from kdflow_lab.data.table import TokenTable
from kdflow_lab.data.tokens import tokenize
from kdflow_lab.lessons import plan_of
from kdflow_lab.load import load_model, load_tokenizer


@dataclass
class Reference:
    """What the loop saw.

    Attributes:
        loss: Of each step; also `kd` and `ce`, nats a response token.
        held_out: KL(teacher || student) on the held-out rows after each step, nats a token.
        teacher: The teacher's weights in the end.
    """

    loss: list[float]
    kd: list[float]
    ce: list[float]
    held_out: list[float]
    teacher: dict[str, Tensor]


def reference(model: str, options: dict[str, Any]) -> Reference:
    """Distil a model from its own moving average, row by row, with whole logits.

    Args:
        model: Both, at the start.
        options: Of the run.
    """
    config = DistillConfig.parse(**options)
    path = str(zoo.path(model))
    student, teacher = load_model(path).train(), load_model(path).eval()
    table = _table(path, config, config.split, config.rows, config.seed)
    held_out = _table(path, config, config.eval_split, config.eval_rows, config.seed + 1)
    plan = plan_of(table, config, 1, config.batch_size)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=config.lr, betas=config.betas, weight_decay=0.0
    )
    seen = Reference([], [], [], [], {})
    for step in range(config.steps or 0):
        rows = plan.step(step).rows
        optimizer.zero_grad()
        ce, kd, tokens = _sums(student, teacher, table, rows)
        loss = ((1 - config.kd_ratio) * ce + config.kd_ratio * kd) / tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), config.max_grad_norm)
        optimizer.step()
        for name, value in (("loss", loss), ("kd", kd / tokens), ("ce", ce / tokens)):
            getattr(seen, name).append(value.item())
        if (step + 1) % (config.teacher_update_every or 1) == 0:
            with torch.no_grad():
                for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                    kept = config.teacher_ema * mine.double()
                    mine.copy_(kept + (1 - config.teacher_ema) * theirs.double())
        with torch.no_grad():
            _, kd, tokens = _sums(student, teacher, held_out, range(len(held_out)))
        seen.held_out.append(kd.item() / tokens)
    seen.teacher = {name: one.detach() for name, one in teacher.named_parameters()}
    return seen


def _table(path: str, config: DistillConfig, split: str, rows: int | None, seed: int) -> TokenTable:
    dataset = sources.load(config.data, split=split, rows=rows, seed=seed)
    if rows is not None and len(dataset) > rows:
        dataset = dataset.select(range(rows))
    table, _ = tokenize(dataset, load_tokenizer(path), max_length=config.max_length)
    return table


def _sums(student: Any, teacher: Any, table: TokenTable, rows: Any) -> tuple[Tensor, Tensor, int]:
    """Cross-entropy and KL(teacher || student) of some rows, summed, and their response tokens."""
    ce, kd, tokens = torch.zeros(()), torch.zeros(()), 0
    for row in rows:
        ids, mask = table.row(int(row))
        labels, wanted = torch.from_numpy(ids[1:]).long(), torch.from_numpy(mask[1:]).bool()
        inputs = torch.from_numpy(ids[:-1]).long()[None]
        logits = student(input_ids=inputs).logits[0][wanted]
        with torch.no_grad():
            target = teacher(input_ids=inputs).logits[0][wanted].log_softmax(-1)
        ce = ce + F.cross_entropy(logits, labels[wanted], reduction="sum")
        kd = kd + (target.exp() * (target - logits.log_softmax(-1))).sum()
        tokens += int(wanted.sum())
    return ce, kd, tokens
