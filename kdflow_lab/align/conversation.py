"""The same conversation through both chat templates, aligned as both models would read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdflow_lab.align.alignment import Alignment
from kdflow_lab.align.roles import CONVERSATION, render
from kdflow_lab.align.texts import align_response
from kdflow_lab.errors import DataError


def align_conversation(
    teacher_tokenizer: Any,
    student_tokenizer: Any,
    messages: Sequence[dict[str, str]] = CONVERSATION,
) -> Alignment:
    """Align a conversation, rendered by the chat template of each side.

    What the messages say is aligned by its bytes, special tokens by what they are for; what only
    one template writes is in no span.

    Args:
        teacher_tokenizer: From `transformers`, with a `tokenizers` backend.
        student_tokenizer: Likewise.
        messages: Dicts with `role` and `content`; by default a short example.

    Raises:
        DataError: A tokenizer has no chat template, or it refuses this conversation.
        ModelError: The bytes of a tokenizer's tokens are not known.
    """
    ids: list[list[int]] = []
    for side, tokenizer in zip(
        ("teacher", "student"), (teacher_tokenizer, student_tokenizer), strict=True
    ):
        rendered = render(tokenizer, messages)
        if rendered is None:
            raise DataError(
                f"The {side}'s tokenizer has no chat template that renders these {len(messages)} "
                "messages. Expected dicts with role and content, and a template that knows the "
                "roles. Align a text instead."
            )
        ids.append(list(tokenizer(rendered, add_special_tokens=False)["input_ids"]))
    return align_response(teacher_tokenizer, student_tokenizer, *ids)
