"""Do the transferred rows and the students' copy of the head say what the engine itself says?

One number answers for all that lies between: norm, hook, slot, tied or quantised heads, scales and
soft-caps, for a model of any size. It is asked before a teacher is used and after every change of
its weights; a teacher that drifted is refused.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from kdflow_lab.errors import ModelError
from kdflow_lab.losses.head import Head
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.messages import Kind, Message
from kdflow_lab.transport.request import Request, read_request
from kdflow_lab.transport.ring import Ring

if TYPE_CHECKING:
    from kdflow_lab.teacher.sglang.backend import SglangTeacher

LENGTHS = (2, 9, 40, 77)
"""Tokens of the prompts."""
SEED = 20
MOST = {
    torch.float32: (1e-3, 1e-4),
    torch.float16: (6e-2, 1e-2),
    torch.bfloat16: (5e-1, 6e-2),
}
"""Largest and mean difference in nats that rounding explains, by dtype. A logit of 20 has steps of
0.125 in bfloat16; a forgotten soft-cap, scale or norm is off by more on average."""


def check(teacher: SglangTeacher, path: str) -> dict[str, float]:
    """Compare on every replica; see `SglangTeacher.check`."""
    head = Head.from_pretrained(path, dtype=teacher.dtype)
    lengths = [min(length, teacher.longest) for length in LENGTHS]
    tokens = sum(lengths)
    layout = SlotLayout(
        max_tokens=tokens,
        max_sequences=len(lengths),
        max_rows=tokens,
        hidden_size=teacher.hidden_size,
        dtype_name=str(teacher.dtype).removeprefix("torch."),
    )
    made, fd = Ring.create(layout, slots=1)
    ring = Ring.attach(fd, layout, slots=1, keep_fd=True)
    differences, said = [], []
    try:
        for replica in range(teacher.replicas):
            request = _request(ring, lengths, replica + 1, teacher)
            theirs = teacher.score(request, replica)
            differences.append(_ours(head, request) - _flat(theirs))
            said.append(_flat(theirs))
    finally:
        ring.close()
        made.close()
    drift = torch.cat(differences).abs()
    largest, mean = drift.max().item(), drift.mean().item()
    apart = max((one - said[0]).abs().max().item() for one in said)
    most_largest, most_mean = MOST[teacher.dtype]
    if not (largest <= most_largest and mean <= most_mean):  # also for nan
        raise ModelError(
            f"The SGLang teacher's hidden states do not fit its head: log-probabilities that "
            f"students would compute differ from SGLang's own by {largest:.3g} nats at most and "
            f"{mean:.3g} on average over {len(drift)} tokens; rounding of {teacher.dtype} "
            f"explains {most_largest:g} and {most_mean:g}. Use teacher_backend='transformers', and "
            "please report the model."
        )
    if not apart <= most_largest:
        raise ModelError(
            f"The {teacher.replicas} replicas of the SGLang teacher differ: the same prompts get "
            f"log-probabilities that are {apart:.3g} nats apart; rounding of {teacher.dtype} "
            f"explains {most_largest:g}. Use dp_size=1, and please report the model."
        )
    return {"largest": largest, "mean": mean, "tokens": len(drift), "replicas_apart": apart}


def _request(ring: Ring, lengths: list[int], sequence: int, teacher: SglangTeacher) -> Request:
    """Ask for all rows of a few prompts of random tokens, the same for every replica."""
    generator = torch.Generator().manual_seed(SEED)
    total = sum(lengths)
    ring.write_request(
        0,
        sequence=sequence,
        step=0,
        micro_batch=0,
        rank=0,
        input_ids=torch.randint(teacher.vocab_size, (total,), generator=generator),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0),
        rows=torch.arange(total),
    )
    return read_request(0, ring, Message(Kind.REQUEST, 0, sequence))


@torch.inference_mode()
def _ours(head: Head, request: Request) -> torch.Tensor:
    """Float32[tokens with a predecessor]: log-probabilities as a student computes them, in nats."""
    found = []
    for start, stop in pairwise(request.cu_seqlens.tolist()):
        logits = head.logits(request.out[start : stop - 1])
        targets = request.input_ids[start + 1 : stop].long()
        found.append(logits.log_softmax(-1).gather(1, targets[:, None])[:, 0])
    return torch.cat(found)


def _flat(logprobs: list[list[float]]) -> torch.Tensor:
    """Float32[tokens with a predecessor]: those of all sequences, in nats."""
    return torch.tensor([one for sequence in logprobs for one in sequence])
