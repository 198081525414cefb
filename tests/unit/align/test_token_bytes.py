"""The bytes of every id, for each way to spell them."""

from __future__ import annotations

from typing import Any

import pytest
from small_tokenizers import KINDS, LOSSLESS, tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kdflow_lab.align import Vocabulary, vocabulary_of
from kdflow_lab.errors import ModelError

TEXT = "The naïve café\r\n\n  東京 🚀 e\u0301 ﬁ <0x41>?"


def _written(kind: str, text: str) -> bytes:
    vocabulary = vocabulary_of(tokenizer(kind))
    ids = tokenizer(kind).encode(text, add_special_tokens=False)
    return b"".join(vocabulary.token_bytes[one] or b"" for one in ids)


def _bytes_of(kind: str, piece: str) -> bytes | None:
    return vocabulary_of(tokenizer(kind)).token_bytes[tokenizer(kind).convert_tokens_to_ids(piece)]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_the_tokens_of_a_text_write_its_bytes(kind: str):
    blank = b" " if vocabulary_of(tokenizer(kind)).blank == "first" else b""
    text = TEXT if kind != "unigram" else TEXT.replace("<0x41>", "A")  # its own piece, see below
    assert _written(kind, text) == blank + text.encode()
    assert vocabulary_of(tokenizer(kind)).changes == ""


@pytest.mark.parametrize("kind", KINDS)
def test_every_id_has_an_entry(kind: str):
    vocabulary = vocabulary_of(tokenizer(kind))
    assert len(vocabulary) == len(tokenizer(kind))
    silent = {n for n, one in enumerate(vocabulary.token_bytes) if one is None}
    assert silent <= set(vocabulary.roles.values())
    assert vocabulary.widths.tolist() == [len(one or b"") for one in vocabulary.token_bytes]


def test_each_kind_spells_bytes_in_its_own_way():
    assert _bytes_of("byte_large", "Ġthe") == b" the"
    assert _bytes_of("byte_large", "Ã") == b"\xc3"
    assert _bytes_of("tiktoken", "<think>") == b"<think>"  # added, but no special token
    assert _bytes_of("metaspace", "▁the") == b" the"
    assert _bytes_of("unigram", "<0x0A>") == b"\n"
    assert _bytes_of("word_piece", "##ing") == b"ing"
    assert _bytes_of("word_piece", "the") == b" the"
    assert _bytes_of("word_piece", ".") == b"."
    assert _bytes_of("word_level", "the") == b"the"


@pytest.mark.parametrize("kind", ["metaspace", "llama", "unigram"])
def test_byte_fallback_is_told_from_other_tokens(kind: str):
    vocabulary = vocabulary_of(tokenizer(kind))
    assert sorted(vocabulary.token_bytes[one] or b"" for one in vocabulary.byte_fallback) == [
        bytes([byte]) for byte in range(256)
    ]
    listed = [token for token, _ in vocabulary.writing()]
    assert set(listed[-256:]) == vocabulary.byte_fallback


def test_whose_blank_may_be_missing_in_the_text():
    found = {kind: vocabulary_of(tokenizer(kind)).blank for kind in KINDS}
    first = dict.fromkeys(["metaspace", "llama", "unigram"], "first")
    assert found == dict.fromkeys(KINDS, "text") | first | {"word_piece": "any"}


def test_what_a_tokenizer_changes_is_said():
    changes = vocabulary_of(tokenizer("nfkc")).changes
    assert "'The answer is 42.' becomes 'the answer is 42.'" in changes
    assert vocabulary_of(tokenizer("word_piece")).changes


def test_a_vocabulary_is_read_once_and_again_after_a_change():
    made = _bare()
    first = vocabulary_of(made)
    assert vocabulary_of(made) is first
    made.add_tokens(["<tool>"])
    assert vocabulary_of(made).token_bytes[-1] == b"<tool>"
    assert len(vocabulary_of(made)) == len(first) + 1


def test_byte_pieces_that_are_listed_as_special_write_bytes_all_the_same():
    pieces = {f"<0x{byte:02X}>": byte for byte in range(256)}
    made = Tokenizer(
        models.BPE({**pieces, "<unk>": 256}, [], unk_token="<unk>", byte_fallback=True)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.add_special_tokens([AddedToken(one, special=True) for one in pieces])
    vocabulary = vocabulary_of(PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>"))
    assert vocabulary.token_bytes[0x41] == b"A"
    assert vocabulary.roles == {"unk": 256}


def _bare(decoder: Any = None) -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({one: n for n, one in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoder or decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_an_unknown_way_to_spell_tokens_is_refused():
    with pytest.raises(ModelError, match=r"through CTC, .* Expected ByteLevel, Metaspace"):
        vocabulary_of(_bare(decoders.CTC()))


def test_bytes_that_do_not_give_the_text_back_are_refused():
    """A decoder that undoes what the tokens alone do not show."""
    made = Tokenizer(models.WordLevel({"ab": 0, "<unk>": 1}, unk_token="<unk>"))
    alphabet = {chr(n): n for n in range(32, 0x3000)}
    made = Tokenizer(models.BPE({**alphabet, "_": alphabet["_"]}, []))
    from tokenizers import normalizers

    made.normalizer = normalizers.Replace("e", "ꙮ")
    made.add_tokens(["ꙮ"])
    made.decoder = decoders.Sequence([decoders.Replace("ꙮ", "e"), decoders.Fuse()])
    with pytest.raises(ModelError, match="gives back unchanged"):
        vocabulary_of(PreTrainedTokenizerFast(tokenizer_object=made))


def test_a_tokenizer_without_a_backend_is_refused():
    class Slow:
        special_tokens_map: dict[str, str] = {}  # noqa: RUF012

        def __len__(self) -> int:
            return 3

    with pytest.raises(ModelError, match="Slow has no `tokenizers` backend"):
        vocabulary_of(Slow())


def test_a_vocabulary_can_be_made_by_hand():
    vocabulary = Vocabulary((b"a", None, b"bc"), {"eos": 1})
    assert len(vocabulary) == 3
    assert list(vocabulary.writing()) == [(0, b"a"), (2, b"bc")]
