"""Distillation between tokenizers by the bytes that tokens spell: the default."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from kdflow_lab.algorithms._crossing import Crossing
from kdflow_lab.algorithms._options import sizes
from kdflow_lab.algorithms._prefix_rows import PrefixRows, prefix_rows, resegmented
from kdflow_lab.algorithms._prefixes import PrefixTable
from kdflow_lab.algorithms._without_teacher import without_teacher
from kdflow_lab.losses import LossOutput, PerToken, full_name
from kdflow_lab.losses._inputs import check_paired_inputs
from kdflow_lab.losses._paired import paired_kd_loss
from kdflow_lab.losses._per_token import walked_tokens
from kdflow_lab.losses._prefix_map import Candidates, PrefixMap
from kdflow_lab.losses._side import Side
from kdflow_lab.losses._teachers import PairedRows
from kdflow_lab.losses._terms import Terms
from kdflow_lab.losses.names import check_params

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.align.pairing import Pairing
    from kdflow_lab.align.vocabulary import TokenizerPair
    from kdflow_lab.losses import Head


class BytePrefix(Crossing):
    """The teacher's distribution, moved to the student tokens that spell the same bytes.

    A student token is compared with the teacher's row of the token in which it begins: both models
    have read the same bytes there. Every teacher token's probability goes to the longest student
    token that is a prefix of its bytes, less those that are written already; special tokens go to
    the one of the same role; what goes nowhere is the residual. With one tokenizer on both sides
    this is `vanilla_kd`.

    With forward KL the loss of a token is sum over t > 0 of t (ln t - ln q), t being the moved
    distribution, which sums to 1 - residual, and q the student's. Other divergences compare
    distributions over the student's ids that the row can reach, and one outcome for all the others:
    the residual on the teacher's side, and at least 1e-6.

    `rows` says which tokens are compared at all:

    - `one_to_one`: those that are one token on both sides.
    - `exact`, the default: those that end within the teacher's token too. The target then knows
      all that the teacher's row says of them.
    - `all`: also tokens that run on beyond the teacher's token. The target is the same, but the
      student's own token cannot be in it, since no teacher token is long enough: it teaches such a
      token to be split as the teacher splits it. A lower bound by further teacher rows is published
      (arXiv:2607.22334), its details were not available to us.

    White space (`mask_whitespace`): a tokenizer that leaves the last space to the next word never
    sees the segmentation that the longest prefix demands, so tokens of white space alone count only
    where they are one token on both sides.

    Other segmentations (`mask_resegmented`): where what the teacher gives to the very token that
    came next goes to another student token than the one that stands there, the target asks for a
    segmentation that the student's tokenizer does not make. Such tokens are left out likewise.

    Measured along: shares of response tokens that had a row (`aligned`), that were `exact`, that
    were left out for `whitespace` or as `resegmented`, and `teacher_mass`, the mass that reached
    the student's ids.

    Source: byte-prefix marginalisation, arXiv:2607.22334 (from its abstract).
    """

    name = "byte_prefix"

    def meet(
        self,
        pair: TokenizerPair,
        student_head_rows: int | None = None,
        teacher_head_rows: int | None = None,
    ) -> None:
        """Take both vocabularies; with the rows of the heads, make the tables now."""
        super().meet(pair)
        if student_head_rows is not None and teacher_head_rows is not None:
            self._table(student_head_rows, teacher_head_rows)

    def loss(
        self,
        student_hidden: Tensor,
        student_head: Head,
        teacher_hidden: Tensor | None,
        teacher_head: Head | None,
        labels: Tensor,
        *,
        num_valid_tokens: int,
        pairing: Pairing,
    ) -> LossOutput:
        """See `Algorithm.loss` and `paired_kd_loss`.

        Args:
            student_hidden: Float[T, Hs].
            student_head: Cut to the student tokenizer's ids.
            teacher_hidden: Float[U, Ht].
            teacher_head: Cut to the teacher tokenizer's ids.
            labels: Int64[T], in the student's ids.
            num_valid_tokens: The student's response tokens of the whole global batch.
            pairing: Where the T and the U tokens lie.

        Raises:
            ConfigError: `meet` was not called, or the teacher is missing.
            ShapeError: Rows, hidden sizes or ids do not fit.
        """
        config = self.config
        if teacher_hidden is None or teacher_head is None:
            return without_teacher(config, student_hidden, student_head, labels, num_valid_tokens)
        sides = (student_hidden, student_head, teacher_hidden, teacher_head, labels)
        found, prefix_map = self._mapped(*sides, pairing)
        output = paired_kd_loss(
            *sides,
            teacher_rows=found.teacher,
            map_target=prefix_map,
            divergence=config.loss,
            params=config.loss_params,
            kd_ratio=config.kd_ratio,
            temperature=config.kd_temperature,
            temperature_squared=config.temperature_squared,
            num_valid_tokens=num_valid_tokens,
            chunk_tokens=config.chunk_tokens,
        )
        sums = {
            "aligned": (found.teacher >= 0).sum(),
            "exact": found.exact.sum(),
            "whitespace": found.whitespace.sum(),
            "resegmented": found.resegmented.sum(),
        }
        share = 1.0 / max(1, num_valid_tokens)
        extra = {name: output.kd.new_tensor(share * float(one)) for name, one in sums.items()}
        extra["teacher_mass"] = share * prefix_map.mass.sum()
        return output._replace(extra=extra)

    def per_token(
        self,
        student_hidden: Tensor,
        student_head: Head,
        teacher_hidden: Tensor,
        teacher_head: Head,
        labels: Tensor,
        pairing: Pairing,
    ) -> PerToken:
        """Look at every token as `loss` does, without a gradient.

        Args:
            student_hidden: As in `loss`, likewise the others.
            student_head: Likewise.
            teacher_hidden: Likewise.
            teacher_head: Likewise.
            labels: Likewise.
            pairing: Likewise.

        Returns:
            Of the T tokens; divergence and agreement are NaN where a token has no row.
        """
        sides = (student_hidden, student_head, teacher_hidden, teacher_head, labels)
        found, prefix_map = self._mapped(*sides, pairing)
        teacher = PairedRows(Side.of(teacher_hidden, teacher_head), found.teacher, prefix_map)
        config = self.config
        name = full_name(config.loss)
        terms = Terms(name, check_params(name, config.loss_params), config.kd_temperature)
        walked = walked_tokens(
            student_hidden, student_head, teacher, labels, terms, config.chunk_tokens
        )
        without = torch.from_numpy(found.teacher < 0).to(walked.kd.device)
        return walked._replace(
            kd=walked.kd.masked_fill(without, torch.nan),
            agreement=walked.agreement.masked_fill(without, torch.nan),
        )

    def _mapped(
        self,
        student_hidden: Tensor,
        student_head: Head,
        teacher_hidden: Tensor,
        teacher_head: Head,
        labels: Tensor,
        pairing: Pairing,
    ) -> tuple[PrefixRows, PrefixMap]:
        """Check the inputs, find every token's row, and how its target is made."""
        check_paired_inputs(
            student_hidden, student_head, teacher_hidden, teacher_head, labels, sizes(pairing)
        )
        tokens = labels.cpu().numpy()
        found = prefix_rows(
            self.pair, pairing, tokens, rows=self.params["rows"], blank=self._blank()
        )
        table = self._table(student_head.width, teacher_head.width)
        if self.params["mask_resegmented"]:
            elsewhere = resegmented(table, found, pairing.teacher_labels, tokens)
            teacher = np.where(elsewhere, -1, found.teacher)
            found = found._replace(
                teacher=teacher, exact=found.exact & ~elsewhere, resegmented=elsewhere
            )
        return found, PrefixMap(
            self._columns_on(student_head.width, teacher_head.width, teacher_hidden.device),
            student_head.width,
            self._inside(table, found, student_head.width, teacher_hidden.device),
            temperature=self.config.kd_temperature,
            bucket=full_name(self.config.loss) != "forward_kl",
        )

    def _table(self, student_width: int, teacher_width: int) -> PrefixTable:
        """The table for heads of these widths, made at the first call."""
        widths = student_width, teacher_width
        return self.kept(("table", *widths), lambda: PrefixTable(self.pair, *widths))

    def _blank(self) -> np.ndarray | None:
        """Bool[V], by the student's id whether it writes white space alone; None: all count."""
        if not self.params["mask_whitespace"]:
            return None
        spelled = self.pair.student.token_bytes
        return self.kept("blank", lambda: np.array([bool(s) and s.isspace() for s in spelled]))

    def _columns_on(self, student_width: int, teacher_width: int, device: torch.device) -> Tensor:
        """Where each teacher token's mass goes at depth 0, Int64[X]; V for nowhere."""
        table = self._table(student_width, teacher_width)
        key = "columns", student_width, teacher_width, device
        return self.kept(key, lambda: _to(table.student_ids, student_width, device))

    def _inside(
        self, table: PrefixTable, found: PrefixRows, student_width: int, device: torch.device
    ) -> list[Candidates | None]:
        """The candidates of every token whose teacher token has written bytes."""

        def candidates(written: bytes) -> Candidates:
            routes = table.within(written)
            return Candidates(
                torch.from_numpy(routes.teacher_ids).to(device),
                _to(routes.student_ids, student_width, device),
            )

        return [
            None
            if written is None
            else self.kept((written, student_width, device), partial(candidates, written))
            for written in found.written
        ]


def _to(student_ids: np.ndarray, student_width: int, device: torch.device) -> Tensor:
    """Ids of the student as columns: nowhere is the column behind the last."""
    columns = np.where(student_ids < 0, student_width, student_ids)
    return torch.from_numpy(columns).to(device)
