"""Tiny models of several families, made on the spot, and what transformers says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 96
LENGTHS = (1, 2, 7, 150, 33, 64)
"""Rows of a ragged batch; 150 is more than two chunks of the chunked prefill."""
CHUNK = 64
CONTEXT = 256


def _sizes(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }


def _config(family: str) -> Any:
    from transformers import Gemma2Config, Gemma3TextConfig, LlamaConfig, Qwen3Config

    match family:
        case "llama":
            return LlamaConfig(**_sizes(tie_word_embeddings=False))
        case "qwen3":
            return Qwen3Config(**_sizes(tie_word_embeddings=True))
        case "gemma2":  # scaled embeddings, tied, a soft-cap behind the head
            return Gemma2Config(
                **_sizes(
                    hidden_act="gelu_pytorch_tanh",
                    hidden_activation="gelu_pytorch_tanh",
                    final_logit_softcapping=3.0,
                    attn_logit_softcapping=None,
                    query_pre_attn_scalar=16,
                    sliding_window=CONTEXT,
                )
            )
        case "gemma3":  # a sliding window that is shorter than the rows
            return Gemma3TextConfig(
                **_sizes(
                    hidden_act="gelu_pytorch_tanh",
                    hidden_activation="gelu_pytorch_tanh",
                    query_pre_attn_scalar=16,
                    sliding_window=32,
                    layer_types=["sliding_attention", "full_attention"],
                )
            )
    raise AssertionError(family)


def write_model(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save a model with random weights; its logits are a few nats wide."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(len(family))
    # In bfloat16 every layer adds its own roundings: small ones let the last one be seen.
    gain = 1.0 if dtype == torch.float32 else 0.2
    model = AutoModelForCausalLM.from_config(_config(family), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms that do something
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "embed" in name or "lm_head" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * gain * parameter.shape[1] ** -0.5)
    model.to(dtype).save_pretrained(folder)
    return folder


@torch.inference_mode()
def expected(folder: Path, sequences: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Final-norm hidden states of each sequence alone, dtype[its tokens, H]."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    decoder = model.get_decoder().eval()
    return [decoder(ids[None].long(), use_cache=False).last_hidden_state[0] for ids in sequences]


def sequences(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Tensor]:
    """Random token ids, Int32[length] each."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(VOCABULARY, (length,), generator=generator, dtype=torch.int32)
        for length in lengths
    ]
