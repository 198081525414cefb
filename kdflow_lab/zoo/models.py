"""The shapes of the zoo's models: a teacher, and a student more than five times smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from kdflow_lab.errors import unknown_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

SHAPES: dict[str, dict[str, Any]] = {
    # 3.48 M parameters
    "teacher": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "intermediate_size": 704,
        "head_dim": 64,
    },
    # 0.66 M parameters
    "student": {
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "intermediate_size": 288,
        "head_dim": 32,
    },
}
# The same student with another tokenizer: 0.63 M parameters
SHAPES["student-unigram"] = SHAPES["student"]


def model_config(name: str, tokenizer: PreTrainedTokenizerBase) -> Qwen3Config:
    """Return the configuration of a zoo model.

    Args:
        name: As in `SHAPES`.
        tokenizer: Gives the vocabulary and the ids of the special tokens.

    Raises:
        ConfigError: An unknown name.
    """
    from transformers import Qwen3Config

    if name not in SHAPES:
        raise unknown_name("zoo model", name, SHAPES)
    shape = SHAPES[name]
    return Qwen3Config(
        **shape,
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        # About 1/sqrt(hidden). With the library's 0.02 a model this narrow stays for minutes on the
        # plateau before it learns to copy; no other setting had a larger effect.
        initializer_range=shape["hidden_size"] ** -0.5,
        bos_token_id=cast("int | None", tokenizer.bos_token_id),
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
        attention_dropout=0.0,
        use_cache=True,
    )


def new_model(name: str, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> Qwen3ForCausalLM:
    """Return an untrained zoo model in float32.

    Args:
        name: As in `SHAPES`.
        tokenizer: The model's.
        seed: Seeds torch's global generator, which draws the weights.

    Raises:
        ConfigError: An unknown name.
    """
    import torch
    from transformers import GenerationConfig, Qwen3ForCausalLM

    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(model_config(name, tokenizer))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=32,
    )
    return model
