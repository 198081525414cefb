"""The zoo's tokenizer: byte-level BPE of 1,024 tokens, trained on docstrings and tasks.

Digits are split one by one and single letters are tokens, so that a tiny model can count and
spell. `<|im_end|>` ends every turn and is the end-of-sequence token; padding is a token of its own,
so that a collator which masks padding never masks the end of an answer.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from kdflow_lab.zoo import prose, words
from kdflow_lab.zoo.tasks import stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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
    rows = itertools.islice(stream("train", seed=seed), task_rows)
    lines = [text for _, text in prose.texts("train")]
    lines += [message["content"] for row in rows for message in row["messages"]]
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
