"""From pieces of text to token ids, each of which is trained or not by its place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdflow_lab.errors import DataError

if TYPE_CHECKING:
    from kdflow_lab.data.template import Piece

Encoded = tuple[list[int], list[int]]
"""Token ids, and 1 for each that is trained."""

_SPACE_SIGNS = ("▁", "Ġ")
"""How SentencePiece and byte-level tokenizers write a space."""


class Encoder:
    """A tokenizer as this package uses it: many texts at once, special tokens only where asked."""

    def __init__(self, tokenizer: Any) -> None:
        """Take a Hugging Face tokenizer."""
        self._tokenizer = tokenizer

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    @cached_property
    def opening(self) -> list[int]:
        """Ids that the tokenizer puts before a plain text by itself: BOS, mostly."""
        bare, full = self.ids(["a"])[0], self.ids(["a"], special=True)[0]
        places = range(len(full) - len(bare) + 1)
        return full[: next((i for i in places if full[i : i + len(bare)] == bare), 0)]

    @cached_property
    def prefixes_space(self) -> bool:
        """Whether every text is tokenized as if a space stood before it."""
        first = self._tokenizer.convert_ids_to_tokens(self.ids(["a"])[0][:1])[0]
        return str(first).startswith(_SPACE_SIGNS)

    def ids(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Tokenize texts apart from each other; `special` adds what the tokenizer adds itself."""
        if not texts:
            return []
        return self._call(texts, add_special_tokens=special)["input_ids"]

    def pieces(self, rows: Sequence[list[Piece]]) -> list[Encoded]:
        """Tokenize rows of pieces; a token is trained if its piece is.

        The pieces are tokenized apart and their ids joined, as in use: there the prompt is
        tokenized, and the answer comes token by token.
        """
        if self.prefixes_space:
            return self._by_offset(rows)
        ids = iter(self.ids([text for pieces in rows for text, _ in pieces]))
        encoded = []
        for pieces in rows:
            row: list[int] = []
            mask: list[int] = []
            for _, trained in pieces:
                piece = next(ids)
                row += piece
                mask += [int(trained)] * len(piece)
            encoded.append((row, mask))
        return encoded

    def _by_offset(self, rows: Sequence[list[Piece]]) -> list[Encoded]:
        """Tokenize whole rows; a token is trained if its last character lies in a trained piece.

        Apart, each piece would get a space of its own in front, which no answer has.
        """
        if not rows:
            return []
        if not getattr(self._tokenizer, "is_fast", False):
            raise DataError(
                f"{type(self._tokenizer).__name__} puts a space before every text and cannot "
                "tell offsets of tokens. Load the fast one: AutoTokenizer.from_pretrained(path)."
            )
        texts = ["".join(text for text, _ in pieces) for pieces in rows]
        output = self._call(texts, add_special_tokens=False, return_offsets_mapping=True)
        encoded = []
        for pieces, ids, offsets in zip(
            rows, output["input_ids"], output["offset_mapping"], strict=True
        ):
            by_character = [int(trained) for text, trained in pieces for _ in text]
            mask = [by_character[max(start, end - 1)] for start, end in offsets]
            encoded.append((ids, mask))
        return encoded

    def _call(self, texts: Sequence[str], **options: Any) -> Any:
        # verbose=False: rows longer than model_max_length are this package's business.
        return self._tokenizer(
            list(texts),
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **options,
        )
