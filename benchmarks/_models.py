"""Models and rows of the size that peers are compared at: random weights, words that mean nothing.

Teacher 12 layers x 512, student 4 x 256, one vocabulary of 32,000 words, tied heads, float32.
Speed does not depend on what the models know. Nothing ends an answer early but its length: of
random weights the end of a turn has one chance in 32,000.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 32_000
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|> ' + message['role'] + ' ' + message['content'] "
    "+ ' <|im_end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|> assistant ' }}{% endif %}"
)
SPECIAL = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "user", "assistant")


def make_tokenizer() -> Any:
    """A tokenizer of whole words: what is written is as many tokens as it has words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{number}" for number in range(VOCABULARY - len(SPECIAL)))]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=TEMPLATE,
    )


def save_models(folder: Path) -> tuple[Path, Path]:
    """Write teacher and student with their tokenizer; return the two folders."""
    return (
        save_model(folder / "teacher", layers=12, width=512, heads=8, inner=2048),
        save_model(folder / "student", layers=4, width=256, heads=4, inner=1024),
    )


def save_model(path: Path, *, layers: int, width: int, heads: int, inner: int) -> Path:
    """Write a model of random weights with the tokenizer; return its folder."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(layers)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=3,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def make_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Conversations of one turn: prompts of 70 and answers of 100 words on average, log-normal."""
    rng = np.random.default_rng(seed)

    def words(mean: float) -> str:
        sigma = 0.4
        length = int(np.clip(rng.lognormal(np.log(mean) - sigma**2 / 2, sigma), 8, 250))
        return " ".join(f"w{number}" for number in rng.integers(0, VOCABULARY - 10, length))

    return [
        {
            "messages": [
                {"role": "user", "content": words(70)},
                {"role": "assistant", "content": words(100)},
            ]
        }
        for _ in range(count)
    ]
