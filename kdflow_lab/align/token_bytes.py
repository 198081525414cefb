"""The exact bytes that every id of a tokenizer writes, read from the tokenizer's own description.

A tokenizer spells bytes in its own way: byte-level BPE (GPT-2, tiktoken) as printable characters,
Metaspace (SentencePiece) with ▁ for a blank and `<0x0A>` for a byte, WordPiece with ## for a token
that continues a word. What was read is checked on probe texts before it is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from kdflow_lab.align.roles import roles_of
from kdflow_lab.align.shared_vocab import PROBES as SPLIT_PROBES
from kdflow_lab.align.vocabulary import Blank, Vocabulary
from kdflow_lab.errors import ModelError

PROBES = (
    *SPLIT_PROBES,
    " leading blank, Capital Letters",
    "cafe\u0301 ﬁne ½ Ａ",  # what NFC and NFKC change
    "東京 🚀👍🏽 Привет мир",
    "line\r\nline\n\n\n  x\u00a0y\t",
    "don't stop (now) — a.b.c",
)
"""Texts that tokenizers change in one of the usual ways, if they change any."""

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_CLEANED = frozenset({".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re"})
"""Before these the WordPiece decoder takes the blank away again."""

_known: WeakKeyDictionary[Any, tuple[Any, Vocabulary]] = WeakKeyDictionary()


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Read what every id of a tokenizer writes, and check it on probe texts.

    The result is kept for the next call with the same tokenizer.

    Args:
        tokenizer: From `transformers`, with a `tokenizers` backend ("fast").

    Raises:
        ModelError: The tokenizer has no such backend, or spells its tokens in an unknown way.
    """
    state = _state(tokenizer)
    kept = _known.get(tokenizer)
    if kept is None or kept[0] != state:
        kept = (state, _read(tokenizer))
        _known[tokenizer] = kept
    return kept[1]


def _state(tokenizer: Any) -> Any:
    """What a vocabulary depends on and a notebook may change on a loaded tokenizer."""
    specials = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    return len(tokenizer), specials, str(getattr(tokenizer, "chat_template", None))


def _read(tokenizer: Any) -> Vocabulary:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"{type(tokenizer).__name__} has no `tokenizers` backend, so that the bytes of its "
            "tokens are not known. Expected a fast tokenizer. Load "
            "AutoTokenizer.from_pretrained(path, use_fast=True), or convert it and save "
            "tokenizer.json."
        )
    description: dict[str, Any] = json.loads(backend.to_str())
    spelling = _Spelling(description, type(tokenizer).__name__)
    by_id: dict[int, str] = {token: piece for piece, token in tokenizer.get_vocab().items()}
    fallback = {token for token, piece in by_id.items() if spelling.is_byte(piece)}
    # Some conversions list the byte pieces as special tokens; they write bytes all the same.
    roles = {role: token for role, token in roles_of(tokenizer).items() if token not in fallback}
    added: dict[int, tuple[str, bool]] = {
        one["id"]: (one["content"], bool(one["special"])) for one in description["added_tokens"]
    }
    silent = {token for token, (_, special) in added.items() if special}
    unknown = description["model"].get("unk_token")
    silent |= {token for token, piece in by_id.items() if piece == unknown}
    if description["model"].get("unk_id") is not None:  # Unigram names its by number
        silent.add(description["model"]["unk_id"])
    silent |= {roles[name] for name in ("eos", "bos", "pad", "unk") if name in roles}
    token_bytes: list[bytes | None] = [None] * (1 + max(by_id, default=-1))
    for token, piece in by_id.items():
        if token not in silent - fallback:
            token_bytes[token] = spelling(piece, added=token in added)
    blank, changes = _check(tokenizer, token_bytes, spelling.blank)
    return Vocabulary(tuple(token_bytes), roles, blank, frozenset(fallback), changes)


class _Spelling:
    """How a tokenizer spells bytes in its tokens."""

    def __init__(self, description: dict[str, Any], name: str) -> None:
        """Read a `tokenizer.json`.

        Raises:
            ModelError: Its decoder is of an unknown kind.
        """
        decoders = _flat(description.get("decoder"), "decoders")
        kinds = {one["type"] for one in decoders}
        before = {one["type"] for one in _flat(description.get("pre_tokenizer"), "pretokenizers")}
        model = description["model"]
        self.blank: Blank = "text"
        self.byte_fallback = bool(model.get("byte_fallback")) or "ByteFallback" in kinds
        self._spell: Callable[[str], bytes]
        if "ByteLevel" in kinds or (not kinds and "ByteLevel" in before):
            self._spell = _byte_level
            self.byte_fallback = False
        elif model["type"] == "WordPiece" or "WordPiece" in kinds:
            decoder = next(
                (one for one in decoders if one["type"] == "WordPiece"), dict[str, Any]()
            )
            prefix = decoder.get("prefix") or model.get("continuing_subword_prefix") or "##"
            cleaned = _CLEANED if decoder.get("cleanup", True) else frozenset[str]()
            self._spell = lambda piece: _word_piece(piece, prefix, cleaned)
            self.blank = "any"
        elif kinds <= {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}:
            marks = {one["replacement"] for one in decoders if one["type"] == "Metaspace"}
            marks |= {
                one["pattern"].get("String", "")
                for one in decoders
                if one["type"] == "Replace" and one.get("content") == " "
            }
            self._spell = lambda piece: self._metaspace(piece, marks)
        else:
            raise ModelError(
                f"{name} writes its tokens through {', '.join(sorted(kinds))}, which is not known "
                "here. Expected ByteLevel, Metaspace or WordPiece. Choose a model with one of "
                "those, or distil with the teacher's own tokenizer."
            )

    def __call__(self, piece: str, *, added: bool) -> bytes:
        """Return the bytes of a token; an added one stands in texts as it is spelled."""
        if added and self._spell is _byte_level:
            return piece.encode()
        if added and self.blank == "any":
            return piece.encode()
        return self._spell(piece)

    def is_byte(self, piece: str) -> bool:
        """Whether a token such as `<0x0A>` stands for one byte."""
        return self.byte_fallback and _BYTE_PIECE.fullmatch(piece) is not None

    def _metaspace(self, piece: str, marks: set[str]) -> bytes:
        if self.is_byte(piece):
            return bytes([int(piece[3:5], 16)])
        for mark in marks:
            piece = piece.replace(mark, " ") if mark else piece
        return piece.encode()


def _flat(part: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """List the steps of a decoder or a pre-tokenizer, sequences opened."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for member in part[members] for step in _flat(member, members)]


@cache
def _byte_alphabet() -> dict[str, int]:
    """The printable character for each byte, as in GPT-2's encoder: byte by character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + number): byte for number, byte in enumerate(hidden)
    }


def _byte_level(piece: str) -> bytes:
    alphabet = _byte_alphabet()
    try:
        return bytes([alphabet[character] for character in piece])
    except KeyError:  # a token that was put in by hand
        return piece.encode()


def _word_piece(piece: str, prefix: str, cleaned: frozenset[str]) -> bytes:
    if piece.startswith(prefix) and piece != prefix:
        return piece[len(prefix) :].encode()
    return piece.encode() if piece in cleaned else b" " + piece.encode()


def _check(tokenizer: Any, token_bytes: list[bytes | None], blank: Blank) -> tuple[Blank, str]:
    """Compare what probe texts are encoded to with the texts.

    Returns:
        Whose leading blanks may be invented, and how texts are changed, in words.

    Raises:
        ModelError: The tokenizer gives a text back and these bytes do not.
    """

    def written(text: str) -> bytes:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return b"".join(token_bytes[token] or b"" for token in ids)

    if blank == "text" and written("a").startswith(b" "):
        blank = "first"
    changed: list[str] = []
    for text in PROBES:
        got, wanted = written(text), text.encode()
        if got == wanted or (blank != "text" and got == b" " + wanted):
            continue
        back: str = tokenizer.decode(
            tokenizer.encode(text, add_special_tokens=False), clean_up_tokenization_spaces=False
        )
        if blank != "any" and back == text:
            raise ModelError(
                f"{type(tokenizer).__name__}: the bytes read from its tokens give {got!r} for "
                f"{text!r}, which it gives back unchanged. Its way to spell tokens is not known "
                "here; expected byte-level, Metaspace or WordPiece."
            )
        changed.append(f"{text!r} becomes {got.decode(errors='backslashreplace')!r}")
    return blank, "; ".join(changed)
