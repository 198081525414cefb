"""Teacher and student whose vocabularies do not quite, or not at all, fit each other."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdflow_lab as kd
from kdflow_lab.errors import RunError


def _student(folder: Path) -> tuple[Any, Any]:
    """Load the zoo's student and its tokenizer, to be changed and saved in `folder`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = kd.zoo.path("zoo/student")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(path), tokenizer


def test_padded_vocabulary_is_cut_and_that_is_said_once(tmp_path: Path) -> None:
    """As Qwen pads its heads: more rows than the tokenizer has ids."""
    folder = tmp_path / "padded"
    model, tokenizer = _student(folder)
    model.resize_token_embeddings(len(tokenizer) + 40)
    model.save_pretrained(folder)
    with kd.Lab("zoo/teacher", str(folder), threads=1, dir=str(tmp_path / "runs")) as lab:
        run = lab.distill(rows=32, steps=2, batch_size=8).wait()
        scores = lab.evaluate(rows=8, model=run, generate=False)
    said = [event["message"] for event in run.events if event["event"] == "warning"]
    assert len(said) == 1
    assert "1,064 (student)" in said[0]
    assert "1,024 ids" in said[0]
    assert scores.kl > 0
    assert run.student().get_output_embeddings().weight.shape[0] == len(tokenizer) + 40


def test_other_tokenizer_is_refused_with_the_difference(tmp_path: Path) -> None:
    folder = tmp_path / "other"
    model, _ = _student(folder)
    model.save_pretrained(folder)
    file = folder / "tokenizer.json"
    description = json.loads(file.read_text())
    vocabulary = description["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    file.write_text(json.dumps(description))
    with kd.Lab("zoo/teacher", str(folder), threads=1, dir=str(tmp_path / "runs")) as lab:
        with pytest.raises(RunError) as caught:
            lab.distill(rows=16, steps=1, algorithm="vanilla_kd").wait(timeout=60)
        crossed = lab.distill(rows=16, steps=1, batch_size=4).wait()
        alone = lab.sft(rows=16, steps=1, batch_size=4).wait()
    assert "different tokenizers" in str(caught.value)
    assert "'A'" in str(caught.value) and "'B'" in str(caught.value)
    assert "byte_prefix" in str(caught.value)
    assert crossed.state == alone.state == "finished"
    said = [event["message"] for event in crossed.events if event["event"] == "warning"]
    assert any("different tokenizers" in message for message in said)


@pytest.fixture(scope="module")
def across(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kd.Lab]:
    """A lab whose student has another kind of tokenizer, with two workers."""
    folder = tmp_path_factory.mktemp("across")
    with kd.Lab(
        "zoo/teacher", "zoo/student-unigram", students=2, threads=1, dir=str(folder)
    ) as lab:
        yield lab


SHORT = {"rows": 48, "batch_size": 8, "lr": 2e-3, "kd_ratio": 0.9}


def test_a_run_across_tokenizers_says_what_it_compares(across: kd.Lab) -> None:
    run = across.distill(**SHORT, steps=6, eval_every=3, eval_rows=16)
    run.wait()
    started = next(event for event in run.events if event["event"] == "started")
    assert started["algorithm"] == "byte_prefix"
    aligned, mass = (run.metrics[name].to_numpy() for name in ("aligned", "teacher_mass"))
    assert ((aligned > 0.8) & (aligned < 1)).all()
    assert (mass <= aligned + 1e-6).all()
    kinds = ["one_to_one", "one_to_many", "many_to_one", "many_to_many"]
    assert np.allclose(run.metrics["coverage"], 1.0)  # every byte of these answers is in a span
    assert np.allclose(run.metrics[kinds].sum(axis=1), 1.0, atol=1e-6)
    assert (run.metrics["one_to_one"].to_numpy() < 1).all()
    # the zoo's tokenizers cut blanks differently
    assert (run.metrics["whitespace"].to_numpy() > 0).any()
    scored = [event for event in run.events if event["event"] == "evaluated"]
    assert scored[-1]["kl"] < scored[0]["kl"]
    after = across.evaluate(rows=16, seed=43, model=run, generate=False)
    for figure in ("kl", "agreement", "compared", "perplexity"):
        assert scored[-1][figure] == pytest.approx(getattr(after, figure), rel=1e-5)
    assert after.kl > 0 and 0 < after.agreement < 1 and 0.8 < after.compared < 1


def test_probes_across_tokenizers_compare_the_answers(across: kd.Lab) -> None:
    from kdflow_lab.evaluate.probe_file import read

    run = across.distill(**SHORT, steps=60, probe_rows=2)
    while run.step < 1:
        time.sleep(0.05)
    run.inspect()
    run.wait()
    arrays = read(sorted((run.path / "probes").glob("*.safetensors"))[-1])
    answers = arrays["response"]
    assert np.isnan(arrays["forward_kl"][~answers]).all()
    kl = arrays["forward_kl"][answers]
    compared = ~np.isnan(kl)
    assert (kl[compared] >= 0).all() and kl[compared].max() > 0
    assert 0 < compared.mean() < 1  # some tokens of the answers have no counterpart
    assert "teacher_logprob" not in arrays and len(arrays["student_logprob"]) == len(answers)


def test_an_inspection_across_tokenizers_compares_the_answers(across: kd.Lab) -> None:
    found = across.inspect("zoo/tasks", rows=6).inspection
    assert found is not None
    assert found.quantities == ["forward_kl", "student_entropy", "surprise", "rank"]
    assert "The teacher reads other tokens" in found.note
    answers, kl = found.arrays["response"], found.values("forward_kl")
    assert np.isnan(kl[~answers]).all() and (~answers).any()
    scored = across.evaluate("zoo/tasks", rows=6, generate=False)
    assert np.nanmean(kl[answers]) == pytest.approx(scored.kl, rel=1e-5)
    assert (~np.isnan(kl[answers])).mean() == pytest.approx(scored.compared)
    assert scored.across and scored.bits_per_byte > 0 and "bits_per_byte" in repr(scored)
    # sampled tokens have no counterparts, and that is said
    row = found.rows[0]
    sample = {"prompt_ids": row.ids[:-3], "ids": row.ids[-3:]}
    alone = across.inspect([sample]).inspection
    assert alone is not None
    assert alone.quantities == ["student_entropy", "surprise", "rank"]
    assert "the student alone" in alone.note
    np.testing.assert_allclose(
        alone.values("surprise"), found.values("surprise")[row.places], atol=1e-4
    )


def test_projectors_are_trained_saved_and_resumed(across: kd.Lab) -> None:
    """`dskd` learns projectors beside the student: two halves equal one whole run."""
    options = {**SHORT, "algorithm": "dskd", "seed": 3}
    whole = across.distill(**options, steps=6, name="whole").wait()
    half = across.distill(**options, steps=6, checkpoint_every=3, name="halves")
    half.wait()
    fork = half.fork(step=3, name="second-half")
    fork.wait()
    expected = whole.metrics.set_index("step")["loss"]
    again = fork.metrics.set_index("step")["loss"]
    assert list(again.index) == [4, 5, 6]
    assert (again == expected.loc[again.index]).all()


def test_the_teacher_may_read_a_hint(across: kd.Lab) -> None:
    rows = [
        {"prompt": f"Say {word}", "completion": word, "hint": f"Your answer is {word}. Say {word}"}
        for word in ("one", "two", "three", "four")
    ]
    hinted = across.distill(data=rows, steps=2, batch_size=4, teacher_input="hint").wait()
    plain = across.distill(data=rows, steps=2, batch_size=4).wait()
    assert hinted.metrics["kd"].iloc[0] != plain.metrics["kd"].iloc[0]
    assert hinted.metrics["ce"].iloc[0] == pytest.approx(plain.metrics["ce"].iloc[0], rel=1e-6)
