"""The decoder writes what `transformers` would, whatever else is in the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import rollout_engine
import tiny_models as models
import torch

from kdflow_lab.errors import DataError, ModelError
from kdflow_lab.load import load_model
from kdflow_lab.losses.head import Head
from kdflow_lab.rollout import _packed, decode
from kdflow_lab.rollout.decode import Decoder
from kdflow_lab.rollout.sampling import Sample, Sampling

STOPS = (3, 7, 11, 15, 19, 23, 27, 31)
NEW = 40


class Subject(NamedTuple):
    """Attributes: a plain model and a decoder of the same weights."""

    model: Any
    decoder: Decoder


def _gpt_oss() -> Any:
    """A model whose attention sinks `_packed` cannot take."""
    from transformers import AutoModelForCausalLM, GptOssConfig

    torch.manual_seed(3)
    config = GptOssConfig(
        **{
            **models._sizes(tie_word_embeddings=False),
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 16,
        }
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma2", "gemma3", "gpt_oss"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    if request.param == "gpt_oss":
        return Subject(_gpt_oss().eval(), Decoder(_gpt_oss().eval()))
    folder = str(models.write_model(request.param, tmp_path_factory.mktemp("model")))
    return Subject(load_model(folder).eval(), Decoder(load_model(folder).eval()))


@pytest.fixture
def prompts() -> list[np.ndarray]:
    return [ids.numpy() for ids in models.sequences((5, 1, 60, 33, 2))]


def _greedy(model: Any, prompt: np.ndarray) -> list[int]:
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=list(STOPS),
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


def _check(sample: Sample) -> None:
    """A stop id is the last token, and only where it was drawn."""
    assert sample.finished == (int(sample.ids[-1]) in STOPS)
    assert not np.isin(sample.ids[:-1], STOPS).any()
    assert sample.finished or len(sample.ids) == NEW


def test_greedy_answers_are_those_of_transformers(
    subject: Subject, prompts: list[np.ndarray]
) -> None:
    samples = subject.decoder.generate(
        prompts, Sampling(temperature=0, max_new_tokens=NEW, stop_ids=STOPS)
    )
    assert [one.prompt for one in samples] == list(range(len(prompts)))
    for prompt, sample in zip(prompts, samples, strict=True):
        assert sample.ids.tolist() == _greedy(subject.model, prompt)
        _check(sample)
    assert rollout_engine.apart(subject.model, prompts, samples) < 1e-4


def test_sampled_answers_and_their_logprobs(subject: Subject, prompts: list[np.ndarray]) -> None:
    sampling = Sampling(temperature=1.2, top_p=0.95, n=3, max_new_tokens=NEW, stop_ids=STOPS)
    samples = subject.decoder.generate(prompts, sampling, version=4)
    assert [(one.prompt, one.sample) for one in samples] == [
        (prompt, sample) for prompt in range(5) for sample in range(3)
    ]
    for sample in samples:
        _check(sample)
        assert sample.version == 4
    assert rollout_engine.apart(subject.model, prompts, samples) < 1e-4


def test_a_sample_depends_on_seed_prompt_and_number_alone(
    subject: Subject, prompts: list[np.ndarray]
) -> None:
    hot = Sampling(temperature=3.0, max_new_tokens=NEW, stop_ids=STOPS)
    sampling = dataclasses.replace(hot, n=3, seed=5)
    whole = _ids(subject.decoder.generate(prompts, sampling))
    assert _ids(subject.decoder.generate(prompts, sampling)) == whole
    assert _ids(subject.decoder.generate(prompts[:2], sampling)) == whole[:6]
    fewer = dataclasses.replace(sampling, n=2)
    assert _ids(subject.decoder.generate(prompts, fewer)) == [
        one for place, one in enumerate(whole) if place % 3 < 2
    ]
    other = dataclasses.replace(sampling, seed=6)
    assert _ids(subject.decoder.generate(prompts, other)) != whole
    assert len({tuple(one) for one in whole[:3]}) == 3


def _ids(samples: list[Sample]) -> list[list[int]]:
    return [one.ids.tolist() for one in samples]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield load_model(str(models.write_model("qwen3", tmp_path_factory.mktemp("model")))).eval()


def test_small_batches_and_split_prefills_give_the_same(
    qwen: Any, prompts: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(n=2, max_new_tokens=NEW, stop_ids=STOPS)
    samples = Decoder(qwen).generate(prompts, sampling)
    assert {one.finished for one in samples} == {True, False}
    whole = _ids(samples)
    assert _ids(Decoder(qwen, max_rows=2).generate(prompts, sampling)) == whole
    assert _ids(Decoder(qwen, cache_bytes=1).generate(prompts, sampling)) == whole
    monkeypatch.setattr(_packed, "PREFILL_TOKENS", 8)
    assert _ids(Decoder(qwen).generate(prompts, sampling)) == whole


def test_ids_behind_the_vocabulary_are_never_drawn(qwen: Any, prompts: list[np.ndarray]) -> None:
    sampling = Sampling(temperature=1.5, n=4, max_new_tokens=NEW, vocab_size=40)
    samples = Decoder(qwen).generate(prompts, sampling)
    assert max(int(one.ids.max()) for one in samples) < 40


def test_progress_is_told_and_may_end_it(qwen: Any, prompts: list[np.ndarray]) -> None:
    told: list[tuple[int, int]] = []

    def on_progress(ended: int, total: int) -> None:
        told.append((ended, total))

    Decoder(qwen).generate(
        prompts, Sampling(max_new_tokens=NEW, stop_ids=STOPS), on_progress=on_progress
    )
    assert {total for _, total in told} == {5}
    assert told == sorted(told)

    def refuse(ended: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Decoder(qwen).generate(prompts, Sampling(), on_progress=refuse)


def test_prompts_that_cannot_be_read_are_refused(qwen: Any) -> None:
    with pytest.raises(DataError, match="empty"):
        Decoder(qwen).generate([np.empty(0, np.int32)], Sampling())
    with pytest.raises(DataError, match="96 ids"):
        Decoder(qwen).generate([np.array([1, 96])], Sampling())


def test_a_model_that_diverged_leaves_nothing_behind(
    tmp_path: Path, prompts: list[np.ndarray]
) -> None:
    model = load_model(str(models.write_model("qwen3", tmp_path / "model"))).eval()
    decoder, sampling = Decoder(model), Sampling(max_new_tokens=NEW, stop_ids=STOPS)
    before = _ids(decoder.generate(prompts, sampling))
    weight = model.model.layers[0].self_attn.v_proj.weight
    with torch.no_grad():
        good = weight.clone()
        weight.fill_(float("nan"))
        with pytest.raises(ModelError, match="diverged"):
            decoder.generate(prompts, sampling)
        weight.copy_(good)
    assert _ids(decoder.generate(prompts, sampling)) == before


@pytest.mark.parametrize("rows", [1, 2, decode.FEW_ROWS, decode.FEW_ROWS + 1])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_the_faster_product_is_the_heads(rows: int, soft_cap: float | None) -> None:
    torch.manual_seed(rows)
    head = Head(
        torch.randn(50, 16), torch.randn(50), logit_scale=0.5, soft_cap=soft_cap, vocab_size=47
    )
    hidden = torch.randn(rows, 16)
    found = decode.next_logits(head, hidden)
    assert found.is_contiguous()
    torch.testing.assert_close(found, head.logits(hidden))
