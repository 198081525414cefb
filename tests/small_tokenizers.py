"""Small tokenizers of every kind, trained on the spot on text that ships with Python.

All hold real merges and real specials, so that they split texts as large ones do, only finer.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import textwrap
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kdflow_lab import zoo

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}"
)
INSTRUCT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
TIKTOKEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LOSSLESS = ("byte_small", "byte_large", "tiktoken", "metaspace", "llama", "unigram", "zoo")
"""These write every text as it is, but for a blank in front."""
LOSSY = ("word_piece", "nfkc", "word_level")
KINDS = (*LOSSLESS, *LOSSY)
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@cache
def lines() -> tuple[str, ...]:
    """What they are trained on: sources of the standard library, a few words in other scripts."""
    sources = [inspect.getsource(module) for module in (argparse, statistics, textwrap)]
    other = "naïve café Zażółć 東京は日本の首都です Привет мир 🚀🔥 über"
    return (*"\n\n".join(sources).split("\n\n"), *[other] * 5)


@cache
def tokenizer(kind: str) -> Any:
    """Return one of `KINDS`; the same object each time."""
    return _MAKERS[kind]()


def _train(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(lines(), trainer)
    return tokenizer


def _specials(*tokens: str) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def _byte_level(size: int, specials: list[str], before: Any = None, normalizer: Any = None) -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = before or pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    return _train(
        made,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=_specials(*specials),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )


def _byte_small() -> Any:
    made = _byte_level(400, ["<|endoftext|>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")


def _byte_large() -> Any:
    made = _byte_level(1500, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    wrapped.chat_template = CHATML
    return wrapped


def _tiktoken() -> Any:
    before = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TIKTOKEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made = _byte_level(900, ["<|endoftext|>"], before)
    made.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")


def _bpe_with_fallback(before: Any, normalizer: Any, decoder: Any) -> Any:
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if before is not None:
        made.pre_tokenizer = before
    if normalizer is not None:
        made.normalizer = normalizer
    _train(
        made,
        trainers.BpeTrainer(
            vocab_size=1100,
            special_tokens=["<unk>", "<s>", "</s>", *_BYTES],
            limit_alphabet=80,
            show_progress=False,
        ),
    )
    description = json.loads(made.to_str())
    description["added_tokens"] = description["added_tokens"][:3]  # the bytes are no specials
    made = Tokenizer.from_str(json.dumps(description))
    made.decoder = decoder
    return made


def _metaspace_decoder() -> Any:
    return decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def _metaspace() -> Any:
    made = _bpe_with_fallback(
        pre_tokenizers.Metaspace(prepend_scheme="first"), None, _metaspace_decoder()
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    wrapped.chat_template = INSTRUCT
    return wrapped


def _llama() -> Any:
    """As Llama 2: the blanks are written by a normaliser, one more in front of every text."""
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made = _bpe_with_fallback(pre_tokenizers.Split("▁", "merged_with_next"), normalizer, None)
    made.pre_tokenizer = None  # type: ignore[assignment]
    made.decoder = _metaspace_decoder()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _unigram() -> Any:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    _train(
        made,
        trainers.UnigramTrainer(
            vocab_size=700, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    description = json.loads(made.to_str())
    model, least = description["model"], min(score for _, score in description["model"]["vocab"])
    pieces = [(piece, score) for piece, score in model["vocab"] if piece.isascii() or "▁" in piece]
    rebuilt = Tokenizer(
        models.Unigram(
            [*pieces, *((one, least - 10) for one in _BYTES), ("</s>", 0.0)],
            unk_id=0,
            byte_fallback=True,
        )
    )
    rebuilt.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    rebuilt.decoder = _metaspace_decoder()
    rebuilt.add_special_tokens(_specials("<unk>", "</s>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=rebuilt, eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def _word_piece() -> Any:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    _train(
        made,
        trainers.WordPieceTrainer(
            vocab_size=800,
            special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
            limit_alphabet=70,
            show_progress=False,
        ),
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]",
        bos_token="[CLS]",
    )  # fmt: skip


def _nfkc() -> Any:
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made = _byte_level(700, ["<|endoftext|>"], normalizer=normalizer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")


def _word_level() -> Any:
    """Whole words, everything else unknown, blanks left out."""
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    _train(
        made,
        trainers.WordLevelTrainer(
            vocab_size=500, special_tokens=["<unk>", "</s>"], show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")


_MAKERS: dict[str, Callable[[], Any]] = {
    "byte_small": _byte_small,
    "byte_large": _byte_large,
    "tiktoken": _tiktoken,
    "metaspace": _metaspace,
    "llama": _llama,
    "unigram": _unigram,
    "zoo": lambda: AutoTokenizer.from_pretrained(zoo.path("zoo/teacher")),
    "word_piece": _word_piece,
    "nfkc": _nfkc,
    "word_level": _word_level,
}
