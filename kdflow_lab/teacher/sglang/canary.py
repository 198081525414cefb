"""The canary of the SGLang teacher: `kdflow_lab.teacher.canary`, through the hook and a slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kdflow_lab.errors import ModelError
from kdflow_lab.losses import Head
from kdflow_lab.teacher import canary
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.messages import Kind, Message
from kdflow_lab.transport.request import Request, read_request
from kdflow_lab.transport.ring import Ring

if TYPE_CHECKING:
    from kdflow_lab.teacher.sglang.backend import SglangTeacher

ADVICE = "Use teacher_backend='transformers', and please report the model."


def check(teacher: SglangTeacher, head: Head) -> dict[str, float]:
    """Compare on every replica; see `SglangTeacher.check`."""
    ids, cu_seqlens = canary.prompts(teacher.vocab_size, teacher.longest)
    layout = SlotLayout(
        max_tokens=len(ids),
        max_sequences=len(cu_seqlens) - 1,
        max_rows=len(ids),
        hidden_size=teacher.hidden_size,
        dtype_name=str(teacher.dtype).removeprefix("torch."),
    )
    made, fd = Ring.create(layout, slots=1)
    ring = Ring.attach(fd, layout, slots=1, keep_fd=True)
    differences, said = [], []
    try:
        for replica in range(teacher.replicas):
            request = _request(ring, ids, cu_seqlens, replica + 1)
            theirs = teacher.score(request, replica)
            ours = canary.recomputed(head, request.out, request.input_ids, request.cu_seqlens)
            differences.append(ours - _flat(theirs))
            said.append(_flat(theirs))
    finally:
        ring.close()
        made.close()
    found = canary.judge(torch.cat(differences), teacher.dtype, whose="SGLang", advice=ADVICE)
    apart = max((one - said[0]).abs().max().item() for one in said)
    most, _ = canary.MOST[teacher.dtype]
    if not apart <= most:
        raise ModelError(
            f"The {teacher.replicas} replicas of the SGLang teacher differ: the same prompts get "
            f"log-probabilities that are {apart:.3g} nats apart; rounding of {teacher.dtype} "
            f"explains {most:g}. Use dp_size=1, and please report the model."
        )
    return {**found, "replicas_apart": apart}


def _request(ring: Ring, ids: torch.Tensor, cu_seqlens: torch.Tensor, sequence: int) -> Request:
    """Ask for all rows of the prompts, the same for every replica."""
    ring.write_request(
        0,
        sequence=sequence,
        step=0,
        micro_batch=0,
        rank=0,
        input_ids=ids,
        cu_seqlens=cu_seqlens,
        rows=torch.arange(len(ids)),
    )
    return read_request(0, ring, Message(Kind.REQUEST, 0, sequence))


def _flat(logprobs: list[list[float]]) -> torch.Tensor:
    """Float32[tokens with a predecessor]: those of all sequences, in nats."""
    return torch.tensor([one for sequence in logprobs for one in sequence])
