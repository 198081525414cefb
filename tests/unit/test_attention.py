"""Packed and padded rows give what each row gives alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdflow_lab.attention import (
    SMALLEST_WIDTH,
    PackedIndex,
    decode,
    use_packed_attention,
    why_not_packed,
)

LENGTHS = (5, 1, 70, 33, 2, 64)


def _model(kind: str, **options):
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    shape = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        **options,
    }
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shape)).eval()
    # both soft-caps, and every other layer looks 8 positions back only
    config = Gemma2Config(**shape, sliding_window=8, query_pre_attn_scalar=8)
    return Gemma2ForCausalLM(config).eval()


def _rows() -> tuple[Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 50, (length,), generator=generator) for length in LENGTHS]
    ends = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32)
    return torch.cat(rows), ends, rows


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("packed", [True, False])
def test_decode_equals_each_row_alone(kind: str, packed: bool) -> None:
    """Hidden states and the gradients of all parameters, against eager attention row by row."""
    ids, ends, rows = _rows()
    model, alone = _model(kind), _model(kind)
    alone.set_attn_implementation("eager")
    assert why_not_packed(model) == ""
    if packed:
        use_packed_attention(model)
    elif kind == "gemma2":
        model.set_attn_implementation("eager")  # sdpa leaves Gemma 2's soft-cap out

    hidden = decode(model.get_decoder(), ids, ends, packed=packed, pad_id=0)
    expected = torch.cat([alone.get_decoder()(row[None]).last_hidden_state[0] for row in rows])
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)

    weights = torch.linspace(-1, 1, hidden.numel()).view_as(hidden)
    (hidden * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4, msg=name)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=30), st.booleans())
@settings(deadline=None, max_examples=60)
def test_index_holds_every_token_once_and_little_padding(
    lengths: list[int], one_group: bool
) -> None:
    ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    index = PackedIndex.of(ends, one_group=one_group)
    joined = torch.cat([group.tokens for group in index.groups])
    assert torch.equal(joined[index.places], torch.arange(sum(lengths)))
    assert len(set(index.places.tolist())) == sum(lengths)
    assert torch.equal(index.positions, torch.cat([torch.arange(length) for length in lengths]))
    assert len(joined) == sum(group.count * group.width for group in index.groups)
    longest_before = 0
    for group in index.groups if not one_group else ():
        inside = [length for length in lengths if longest_before < length <= group.width]
        assert group.count == len(inside)
        assert group.width <= SMALLEST_WIDTH or group.width < 1.5 * min(inside)
        longest_before = group.width


@pytest.mark.parametrize("threads", [1, 2])
def test_hidden_states_do_not_depend_on_what_a_row_is_packed_with(threads: int) -> None:
    """Bit for bit: a cache keeps what the teacher would compute again in another batch."""
    model = _model("qwen3", hidden_size=128, intermediate_size=512, head_dim=32)
    use_packed_attention(model)
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, 150, (16,), generator=generator).tolist()
    rows = [torch.randint(1, 50, (length,), generator=generator) for length in lengths]

    def run(chosen: list[int]) -> dict[int, Tensor]:
        ends = torch.tensor([0, *torch.tensor([lengths[one] for one in chosen]).cumsum(0)])
        ids = torch.cat([rows[one] for one in chosen])
        with torch.inference_mode():
            hidden = decode(model.get_decoder(), ids, ends.int(), packed=True, pad_id=0)
        return dict(zip(chosen, hidden.split([lengths[one] for one in chosen]), strict=True))

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = run(list(range(16)))
        for count in (1, 2, 5, 11, 16):
            chosen = torch.randperm(16, generator=generator)[:count].tolist()
            for row, hidden in run(chosen).items():
                assert torch.equal(hidden, together[row])
    finally:
        torch.set_num_threads(before)


def test_models_that_cannot_be_packed_say_why() -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
    )
    assert "attention sinks" in why_not_packed(GptOssForCausalLM(config))
    model = _model("qwen3")
    model.config.layer_types = ["linear_attention", "full_attention"]
    assert "linear_attention" in why_not_packed(model)
    assert "does not let" in why_not_packed(torch.nn.Linear(1, 1))
