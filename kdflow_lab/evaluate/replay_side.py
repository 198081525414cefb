"""One side of a replay: a model that runs rows one by one and says where it stops being finite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdflow_lab.attention import decode, use_packed_attention, why_not_packed
from kdflow_lab.losses import Head

CHUNK_ELEMENTS = 1 << 24
"""Logits that are looked at at once: 64 MiB in float32."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a row is not finite for the first time.

    Attributes:
        side: `teacher embedding`, `teacher hidden`, `teacher logits`, the same of the student,
            `loss` or `gradient`.
        position: Of the token in its row, counted from 0; None for a gradient, which has no place.
        token_id: That stands there.
    """

    side: str
    position: int | None = None
    token_id: int | None = None


class Side:
    """The teacher or the student, in this process on the CPU."""

    def __init__(self, name: str, model: Any, *, packing: bool = True) -> None:
        """Take a `transformers` model.

        Args:
            name: `teacher` or `student`.
            model: On the CPU; its dropout is switched off.
            packing: Use the attention of a run that packs its rows, where the model can.
        """
        self.name = name
        self.model = model.eval()
        self._packed = packing and not why_not_packed(model)
        if self._packed:
            use_packed_attention(model)
        self._pad_id = model.config.get_text_config().pad_token_id or 0

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Run one row alone; Float[n, H] behind the final norm."""
        ends = torch.tensor([0, len(input_ids)], dtype=torch.int32)
        return decode(
            self.model.get_decoder(), input_ids, ends, packed=self._packed, pad_id=self._pad_id
        )

    @torch.no_grad()
    def first_bad(self, input_ids: Tensor) -> Spot:
        """Find the first token whose hidden state is not finite, in a row that has one.

        Attention multiplies what stands behind a query by zero, and zero times NaN is NaN: one
        token spoils the whole row. So ever shorter beginnings of the row are run.
        """
        fine, bad = 0, len(input_ids)  # tokens of a beginning that is finite, and of one that isn't
        while bad - fine > 1:
            middle = (fine + bad) // 2
            if is_finite(self.hidden(input_ids[:middle])):
                fine = middle
            else:
                bad = middle
        token = input_ids[fine : fine + 1]
        embedded = self.model.get_input_embeddings()(token)
        part = "hidden" if is_finite(embedded) else "embedding"
        return Spot(f"{self.name} {part}", fine, int(token))

    @torch.no_grad()
    def first_bad_logits(
        self, hidden: Tensor, head: Head, rows: Tensor, input_ids: Tensor
    ) -> Spot | None:
        """Find the first predicting token whose logits are not finite; None if all are.

        Args:
            hidden: Float[T, H], of the tokens that predict trained ones.
            head: Of this side.
            rows: Int64[T], their positions.
            input_ids: Int64[n], of the row.
        """
        for part in chunks(len(hidden), head.width):
            bad = ~head.logits(hidden[part]).isfinite().all(-1)
            if bad.any():
                position = int(rows[part][bad.nonzero()[0, 0]])
                return Spot(f"{self.name} logits", position, int(input_ids[position]))
        return None

    def broken_weights(self) -> list[str]:
        """Names of the weights that hold something that is not finite."""
        named = self.model.named_parameters()
        return [name for name, values in named if not is_finite(values.detach())]


def is_finite(values: Tensor) -> bool:
    """Whether no element is NaN or infinite; makes no copy of `values`."""
    # inf - inf and NaN stay NaN, so one reduction answers for most tensors
    return bool(torch.isfinite(values.sum(dtype=torch.float64))) or bool(values.isfinite().all())


def chunks(rows: int, width: int) -> Iterator[slice]:
    """Yield slices of `rows` whose logits, `width` each, may be held at once."""
    size = max(1, CHUNK_ELEMENTS // width)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
