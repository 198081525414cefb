"""SGLang as the rollout engine: the same weights, the same words for what came back."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import leftovers
import numpy as np
import psutil
import pytest
import rollout_engine
import rollout_ranks
import tiny_models as models
import torch
from faults import wait_for
from ranks import on_ranks

from kdflow_lab.errors import DataError, ModelError, TransportError
from kdflow_lab.load import load_model
from kdflow_lab.rollout import make_rollout
from kdflow_lab.rollout.client import RolloutEnd
from kdflow_lab.rollout.sampling import Sampling
from kdflow_lab.rollout.sglang.backend import SglangRollout
from kdflow_lab.teacher.sglang.loader import check_names

pytestmark = pytest.mark.timeout(600)

SEEN_S = 3.0


@pytest.fixture
def socket() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kdf-") as folder:
        yield Path(folder) / "rollout.sock"


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_what_two_ranks_hand_over_is_what_answers(
    family: str, tmp_path: Path, socket: Path
) -> None:
    folder = models.write_model(family, tmp_path / "model")
    before = leftovers.shared_memory()
    with rollout_engine.rollout_engine("sglang", folder, socket):
        first, other = on_ranks(2, rollout_ranks.hand_over, str(folder), str(socket), [3, 4])
    assert other == []
    assert [one.version for one in first] == [3, 4]
    for synced in first:
        assert synced.apart < 1e-4
        assert synced.right
    assert leftovers.left_in_shared_memory(before) == set()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that often draws its own end-of-sequence id, 2."""
    path = models.write_model("llama", tmp_path_factory.mktemp("model"))
    model: Any = load_model(str(path))
    with torch.no_grad():
        model.lm_head.weight.mul_(0.05)
        model.lm_head.weight[2] = model.lm_head.weight.mean(0)
    model.save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    return path


@pytest.fixture(scope="module")
def backend(folder: Path) -> Iterator[SglangRollout]:
    made, why = make_rollout("sglang", str(folder), threads=1)
    assert isinstance(made, SglangRollout)
    assert "without a seed" in why
    yield made
    made.close()


@pytest.fixture
def prompts() -> list[np.ndarray]:
    return [ids.numpy() for ids in models.sequences((5, 1, 60, 33))]


@pytest.mark.parametrize(
    "filters", [{}, {"top_k": 7}, {"top_p": 0.5}, {"min_p": 0.9}], ids=lambda one: str(list(one))
)
def test_logprobs_are_the_models_own_whatever_was_filtered(
    backend: SglangRollout, folder: Path, prompts: list[np.ndarray], filters: dict[str, Any]
) -> None:
    sampling = Sampling(temperature=0.7, n=3, max_new_tokens=20, stop_ids=(3, 4), **filters)
    samples = backend.generate(prompts, sampling)
    assert [(one.prompt, one.sample) for one in samples] == [
        (prompt, number) for prompt in range(4) for number in range(3)
    ]
    assert rollout_engine.apart(load_model(str(folder)).eval(), prompts, samples) < 1e-4
    assert {one.version for one in samples} == {-1}


def test_only_the_stop_ids_that_were_asked_for_end_an_answer(
    backend: SglangRollout, prompts: list[np.ndarray]
) -> None:
    free = backend.generate(prompts, Sampling(n=8, max_new_tokens=60))
    assert all(len(one.ids) == 60 and not one.finished for one in free)
    drawn = np.concatenate([one.ids for one in free])
    assert {2, 5} <= set(drawn.tolist())  # the model's own, which ended nothing
    stops = (7, 2)
    samples = backend.generate(prompts, Sampling(n=8, max_new_tokens=60, stop_ids=stops))
    for one in samples:
        assert one.finished == (int(one.ids[-1]) in stops)
        assert not np.isin(one.ids[:-1], stops).any()
    assert {one.finished for one in samples} == {True, False}


def test_greedy_answers_are_those_of_the_other_backend(
    backend: SglangRollout, folder: Path, prompts: list[np.ndarray]
) -> None:
    sampling = Sampling(temperature=0, max_new_tokens=20)
    other, _ = make_rollout("transformers", str(folder))
    for one, two in zip(
        backend.generate(prompts, sampling), other.generate(prompts, sampling), strict=True
    ):
        assert one.ids.tolist() == two.ids.tolist()
        np.testing.assert_allclose(one.logprobs, two.logprobs, atol=1e-4)


def test_answers_can_be_given_up_and_errors_do_not_end_it(
    backend: SglangRollout, prompts: list[np.ndarray]
) -> None:
    def enough(ended: int, total: int) -> None:
        raise InterruptedError(f"{ended} of {total}")

    with pytest.raises(InterruptedError):
        backend.generate(prompts, Sampling(n=8, max_new_tokens=190), on_progress=enough)
    with pytest.raises(DataError, match="refused"):
        backend.generate([np.arange(models.CONTEXT + 9) % 90], Sampling(max_new_tokens=5))
    with pytest.raises(ModelError, match="padding"):
        backend.generate(prompts, Sampling(n=8, max_new_tokens=30, vocab_size=10))
    assert backend.generate([], Sampling()) == []
    assert len(backend.generate(prompts, Sampling(max_new_tokens=5))) == 4


def test_names_that_sglang_would_pass_over_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.experts is not"):
        check_names(["model.norm.weight", "model.experts"], folder, instead="another")
    tied = models.write_model("qwen3", tmp_path / "tied")
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        check_names(["lm_head.weight"], tied, instead="another")


def test_a_killed_scheduler_is_noticed_and_leaves_nothing(tmp_path: Path, socket: Path) -> None:
    folder = models.write_model("qwen3", tmp_path / "model")
    before = leftovers.shared_memory()
    with (
        rollout_engine.rollout_engine("sglang", folder, socket) as engine,
        RolloutEnd(str(socket)) as end,
    ):
        children = psutil.Process(engine.pid).children(recursive=True)
        scheduler = next(one for one in children if "sglang::scheduler" in " ".join(one.cmdline()))
        end.submit([np.array([5, 6, 7])], Sampling(n=16, max_new_tokens=200))
        wait_for(lambda: scheduler.status() == psutil.STATUS_RUNNING, what="a pass")
        scheduler.kill()
        with pytest.raises(TransportError, match=r"could not answer.*has died"):
            end.receive(SEEN_S)
        psutil.wait_procs(children, timeout=5)
    alive = [one for one in children if one.is_running() and one.status() != "zombie"]
    assert alive == []
    assert leftovers.left_in_shared_memory(before) == set()
