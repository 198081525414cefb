"""The zoo's two tokenizers, trained on docstrings and tasks.

One is byte-level BPE of 1,024 tokens with ChatML turns. The other is made as differently as models
of another family are: unigram pieces with `▁` for a space and bytes to fall back on, 768 tokens, a
beginning of the text, and other turns. In both, digits are split one by one and single letters are
tokens, so that a tiny model can count and spell; and padding is a token of its own, so that a
collator which masks padding never masks the end of an answer.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, cast

from kdflow_lab.zoo import prose, words
from kdflow_lab.zoo.tasks import stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

VOCAB_SIZE = 1024
START, END, TEXT_END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|pad|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML. The generation block, and so the loss, holds the answer and its `<|im_end|>`."""


UNIGRAM_SIZE = 768
UNIGRAM_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>")

UNIGRAM_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""Zephyr's turns: a role token before each, `</s>` behind it."""


def tokenizer_for(name: str) -> PreTrainedTokenizerFast:
    """Train the tokenizer of a zoo model.

    Args:
        name: As in `models.SHAPES`.
    """
    return train_unigram_tokenizer() if name == "student-unigram" else train_tokenizer()


def text_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that stands between two texts which are read one after the other."""
    token = TEXT_END if tokenizer.bos_token is None else str(tokenizer.bos_token)
    return cast(int, tokenizer.convert_tokens_to_ids(token))


def _lines(task_rows: int, seed: int) -> list[str]:
    """All docstrings, and so many rows of the tasks' train split."""
    rows = itertools.islice(stream("train", seed=seed), task_rows)
    lines = [text for _, text in prose.texts("train")]
    return lines + [message["content"] for row in rows for message in row["messages"]]


def train_tokenizer(*, task_rows: int = 40_000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Train the tokenizer on docstrings and on rows of the tasks' train split.

    Args:
        task_rows: How many task rows to read, beside all docstrings.
        seed: The seed of those rows.

    Returns:
        A fast tokenizer with the chat template set.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, TEXT_END, START, END]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = _lines(task_rows, seed)
    # Often enough that every word of the tasks, with its space, is worth one token.
    single = (
        *words.LETTERS,
        *words.NAMES,
        *words.CITIES,
        *words.THINGS,
        *words.MONTHS,
        *words.ORDINALS,
    )
    lines += [f"Repeat: {' '.join(single)}", "user", "assistant"] * 1_000
    tokenizer.train_from_iterator(lines, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START, TEXT_END],
        model_max_length=256,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def train_unigram_tokenizer(*, task_rows: int = 20_000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Train the other tokenizer, likewise.

    Many words of the tasks are several of its tokens, and some of its tokens run across two of the
    first tokenizer's (`d:`).
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never"),
        ]
    )
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = cut
    trainer = trainers.UnigramTrainer(
        vocab_size=UNIGRAM_SIZE - 256,
        special_tokens=list(UNIGRAM_SPECIAL),
        unk_token="<unk>",
        initial_alphabet=[*map(chr, range(ord("!"), ord("~") + 1)), "▁", "\n", "\t"],
        max_piece_length=8,
        show_progress=False,
    )
    trained.train_from_iterator(_lines(task_rows, seed), trainer)
    pieces = json.loads(trained.to_str())["model"]["vocab"]
    # The trainer knows no bytes to fall back on: they stand behind the special tokens, less likely
    # than any piece.
    least = min(score for _, score in pieces) - 10.0
    known = len(UNIGRAM_SPECIAL)
    fallback = [(f"<0x{byte:02X}>", least) for byte in range(256)]
    vocabulary = [*map(tuple, pieces[:known]), *fallback, *map(tuple, pieces[known:])]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=1, byte_fallback=True))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in UNIGRAM_SPECIAL]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(UNIGRAM_SPECIAL[4:]),
        model_max_length=256,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = UNIGRAM_TEMPLATE
    return wrapped
