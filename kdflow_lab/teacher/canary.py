"""Do the rows and the students' copy of the head say what the teacher itself says?

One number answers for all that lies between: norm, rows, tied or quantised heads, scales and
soft-caps, for a model of any size. It is asked before a backend with weights of its own is used,
and after every change of a teacher's weights; a teacher that drifted is refused.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from kdflow_lab.errors import ModelError
from kdflow_lab.losses import Head

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


def prompts(vocab_size: int, longest: int | None = None) -> tuple[Tensor, Tensor]:
    """Make a few prompts of random tokens, the same each time.

    Args:
        vocab_size: Ids are below it.
        longest: Most tokens of a prompt; None for any.

    Returns:
        Int64[S], packed, and Int32[n + 1]: where each one starts, and S.
    """
    lengths = [length if longest is None else min(length, longest) for length in LENGTHS]
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(vocab_size, (sum(lengths),), generator=generator)
    return ids, torch.tensor([0, *lengths]).cumsum(0).int()


@torch.inference_mode()
def recomputed(head: Head, hidden: Tensor, ids: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Compute the tokens' log-probabilities as a student does.

    Args:
        head: The students' copy.
        hidden: Float[S, H], all rows of the prompts.
        ids: Integer[S].
        cu_seqlens: Int32[n + 1].

    Returns:
        Float32[tokens with a predecessor], in nats.
    """
    found = []
    for start, stop in pairwise(cu_seqlens.tolist()):
        logits = head.logits(hidden[start : stop - 1])
        targets = ids[start + 1 : stop].long()
        found.append(logits.log_softmax(-1).gather(1, targets[:, None])[:, 0])
    return torch.cat(found)


def judge(difference: Tensor, dtype: torch.dtype, *, whose: str, advice: str) -> dict[str, float]:
    """Refuse a teacher that drifted.

    Args:
        difference: Float[tokens]: recomputed minus the teacher's own log-probabilities, in nats.
        dtype: Of its rows.
        whose: Name of the backend, for the error.
        advice: What to do, for the error.

    Returns:
        `largest` and `mean` difference in nats, and the `tokens` that were compared.

    Raises:
        ModelError: They drifted further than the dtype's rounding explains.
    """
    drift = difference.abs()
    largest, mean = drift.max().item(), drift.mean().item()
    most_largest, most_mean = MOST[dtype]
    if not (largest <= most_largest and mean <= most_mean):  # also for nan
        raise ModelError(
            f"The {whose} teacher's hidden states do not fit its head: log-probabilities that "
            f"students would compute differ from {whose}'s own by {largest:.3g} nats at most and "
            f"{mean:.3g} on average over {len(drift)} tokens; rounding of {dtype} explains "
            f"{most_largest:g} and {most_mean:g}. {advice}"
        )
    return {"largest": largest, "mean": mean, "tokens": len(drift)}
