"""What an algorithm is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.config import DistillConfig
    from kdflow_lab.losses import Head, LossOutput


class Algorithm(Protocol):
    """Turns the student's and the teacher's hidden states of a micro-batch into a loss.

    One with parameters of its own has a method `beside(student_width, teacher_width)`, called once
    before the student is sharded. The `torch.nn.Module` that it returns (or None) becomes a part of
    the student: its parameters are sharded, reduced, clipped, trained and saved in checkpoints with
    the student's, are whole inside `loss`, and are in no export.

    If those parameters start from the heads' weights, it has `init_beside(student_head,
    teacher_head)`, called once on every rank with both heads whole, before the optimizer is made;
    and if they have a learning rate of their own, it is the attribute `beside_lr`.

    One that crosses tokenizers has `crosses_tokenizers = True` and `meet(pair)`, called once after
    it is made and before `beside`, with the vocabularies of both sides. Its `loss` gets one keyword
    more, `pairing`: where the tokens of both sides lie in their common text. The teacher's rows are
    then U in number, and each head is cut to its own tokenizer's ids.

    One that weighs sampled tokens has `needs_logprobs = True`. Its `loss` gets one keyword more,
    `logprobs`: Float32[T], log-probabilities of the labels under the weights that sampled them, or
    None where the student did not sample them.

    The teacher's rows are the ring's: an algorithm that needs them in backward copies them.

    Attributes:
        needs_teacher: Whether micro-batches go to the teacher at all.
        config: Read at every call, so that `Run.set` takes effect from the next step.
    """

    needs_teacher: bool
    config: DistillConfig

    def loss(
        self,
        student_hidden: Tensor,
        student_head: Head,
        teacher_hidden: Tensor | None,
        teacher_head: Head | None,
        labels: Tensor,
        *,
        num_valid_tokens: int,
    ) -> LossOutput:
        """Compute the loss.

        Args:
            student_hidden: Float[T, Hs], rows that predict the response tokens.
            student_head: The student's head, cut to the shared ids.
            teacher_hidden: Float[T, Ht], the same rows of the teacher; valid during this call only.
            teacher_head: The teacher's head, cut to the shared ids.
            labels: Int64[T], the response tokens.
            num_valid_tokens: Response tokens of the whole global batch.
        """
        ...
