"""Metrics of answers by hand, and what a wrong one is told."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kdflow_lab as kd
from kdflow_lab import answer_metrics
from kdflow_lab.config import DistillConfig
from kdflow_lab.errors import ConfigError, DataError, MetricError
from kdflow_lab.launch import checked

ROW = {"messages": [{"role": "user", "content": "?"}], "answers": ["The cat sat", "a dog"]}
WORDS = st.lists(st.sampled_from(["a", "cat", "sat", "dog", "Cat", "the"]), max_size=8)


@pytest.mark.parametrize(
    ("name", "answer", "value"),
    [
        ("exact_match", " a dog\n", True),
        ("exact_match", "dog", False),
        ("contains", "I see a dog.", True),
        ("contains", "I see a Dog.", False),
        ("token_f1", "Dog!", 1.0),  # no case, no punctuation, no articles
        ("token_f1", "cat cat", 2 * 1 / (2 + 2)),  # cat sat
        ("token_f1", "", 0.0),
        ("rouge_l", "the cat sat", 1.0),
        ("rouge_l", "sat the cat", 2 * 2 / (3 + 3)),  # the cat
        ("rouge_l", "cat on the sat", 2 * 2 / (4 + 3)),
        ("rouge_l", "bird", 0.0),
    ],
)
def test_values_by_hand(name: str, answer: str, value: float) -> None:
    assert answer_metrics.find(name)(answer, ROW) == pytest.approx(value)


@given(WORDS, WORDS)
def test_rouge_l_is_the_longest_common_subsequence(ours: list[str], theirs: list[str]) -> None:
    """Against the definition by all subsequences of the shorter side."""
    from itertools import combinations

    def is_within(part: tuple[str, ...], whole: list[str]) -> bool:
        rest = iter(whole)
        return all(word in rest for word in part)

    a, b = [w.lower() for w in ours], [w.lower() for w in theirs]
    longest = max(
        size for size in range(len(a) + 1) for part in combinations(a, size) if is_within(part, b)
    )
    expected = 2 * longest / (len(a) + len(b)) if a and b else float(a == b)
    row = {"messages": [], "answers": [" ".join(theirs)]}
    if theirs:
        assert answer_metrics.rouge_l(" ".join(ours), row) == pytest.approx(expected)
        assert 0.0 <= answer_metrics.token_f1(" ".join(ours), row) <= 1.0


def test_a_row_without_a_right_answer_is_said() -> None:
    row = {"messages": [{"role": "user", "content": "?"}]}
    with pytest.raises(DataError, match="no right answer"):
        answer_metrics.find("contains")("x", row)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda answer, row: row["nothing"], r"KeyError: 'nothing'\. The row has the columns m"),
        (lambda answer, row: None, "returned None, a NoneType; expected a finite number"),
        (lambda answer, row: "0.5", "returned '0.5', a str"),
        (lambda answer, row: float("nan"), "returned nan, a float"),
        (lambda answer, row: float("inf"), "returned inf"),
        (lambda answer, row: [1], r"returned \[1\], a list"),
    ],
)
def test_a_wrong_metric_is_told_row_value_and_what_was_expected(function: Any, words: str) -> None:
    with pytest.raises(MetricError, match=rf"'mine' failed on row 7 \(answer 'x'\).*{words}"):
        answer_metrics.apply("mine", function, ["x"], [ROW], [7])


def test_numbers_of_all_kinds_are_taken() -> None:
    values = [True, 2, 0.5, np.float32(0.25), np.bool_(True), torch.tensor(3.0)]
    for value in values:
        (got,) = answer_metrics.apply("m", lambda answer, row, v=value: v, ["x"], [ROW], [0])
        assert got == float(value)


def test_a_metric_may_not_change_the_data() -> None:
    def greedy(answer: str, row: dict[str, Any]) -> int:
        row.clear()
        return 1

    kept = dict(ROW)
    answer_metrics.apply("m", greedy, ["x"], [kept], [0])
    assert kept == ROW


def own(answer: str, row: dict[str, Any]) -> int:
    return len(answer)


def test_what_may_be_asked_for() -> None:
    assert answer_metrics.asked_for(None) == {}
    assert list(answer_metrics.asked_for("contains, rouge_l")) == ["contains", "rouge_l"]
    assert answer_metrics.asked_for(own) == {"own": own}
    assert list(answer_metrics.asked_for(lambda answer, row: 1)) == ["metric"]
    assert list(answer_metrics.asked_for([own, "contains"])) == ["own", "contains"]
    assert answer_metrics.asked_for({"mine": own}) == {"mine": own}
    assert answer_metrics.asked_for("exact_match") == {}  # it is always there
    assert answer_metrics.asked_for(answer_metrics.contains) == {
        "contains": answer_metrics.contains
    }


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("rouge", "Unknown metric 'rouge'. Did you mean 'rouge_l'"),
        (lambda answer: 1, r"'metric' takes \(answer\); expected two arguments"),
        (lambda answer, row, extra: 1, r"takes \(answer, row, extra\)"),
        ({"kl": own}, "'kl' cannot name a metric"),
        ({"contains": own}, "cannot name a metric"),
        ({"mine": 3}, "'mine' is a int; expected a function"),
        (3, "is a int; expected a function"),
        ([own, {"own": len}], "Two metrics are called 'own'|takes"),
    ],
)
def test_what_cannot_be_a_metric_is_refused_before_anything_is_computed(
    metric: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        answer_metrics.asked_for(metric)


def test_registered_metrics_can_be_named() -> None:
    try:
        assert kd.register_metric("mine")(own) is own
        assert answer_metrics.asked_for("mine") == {"mine": own}
        assert checked({"eval_metrics": ["mine", "rouge_l"]}).eval_generate
        with pytest.raises(ConfigError, match="two arguments"):
            kd.register_metric("mine")(lambda answer: 1)  # type: ignore[arg-type]
        assert answer_metrics.registered() == {"mine": own}
        with pytest.raises(ConfigError, match="cannot name a metric"):
            kd.register_metric("rouge_l")(own)
    finally:
        answer_metrics.unregister("mine")
    with pytest.raises(ConfigError, match="Unknown metric 'mine'"):
        checked({"eval_metrics": ["mine"]})


def test_metrics_of_a_run_turn_generation_on() -> None:
    assert not DistillConfig.parse().eval_generate
    assert DistillConfig.parse(eval_metrics=["contains"]).eval_generate
    with pytest.raises(ConfigError, match="eval_generate=False lets none be written"):
        DistillConfig.parse(eval_metrics=["contains"], eval_generate=False)


def test_the_error_travels_with_what_it_carries() -> None:
    error = MetricError("wrong")
    error.evaluation = {"kept": 1}
    assert pickle.loads(pickle.dumps(error)).evaluation == {"kept": 1}
