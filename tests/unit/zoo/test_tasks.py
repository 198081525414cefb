"""The zoo's tasks: the same for everyone, right, split by content, and not to be looked up."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from unit.zoo.solver import solve

from kdflow_lab import zoo
from kdflow_lab.errors import ConfigError
from kdflow_lab.zoo import tasks as tasks_module
from kdflow_lab.zoo.tasks import KINDS, SOFT_KINDS, SPLITS, is_correct, stream, tasks


def _rows(split: str, count: int, **options: Any) -> list[dict[str, Any]]:
    return list(islice(stream(split, **options), count))


def _question(row: dict[str, Any]) -> str:
    return row["messages"][0]["content"]


def _answer(row: dict[str, Any]) -> str:
    return row["messages"][1]["content"]


# -- what a row is --------------------------------------------------------------------------------


def test_the_same_arguments_give_the_same_rows_and_others_do_not():
    assert _rows("train", 50, seed=3) == _rows("train", 50, seed=3)
    assert _rows("train", 50, seed=3) != _rows("train", 50, seed=4)


def test_the_rows_are_what_they_were_when_the_weights_were_trained():
    """The generator is a part of the recipe: a change of it would make the weights' card untrue."""
    text = "\n".join(f"{_question(row)} {_answer(row)}" for row in _rows("test", 200))
    assert text.splitlines()[0] == FIRST_ROW
    assert hashlib.blake2b(text.encode(), digest_size=8).hexdigest() == DIGEST


FIRST_ROW = "Shift by one: g s l j Shifted: h t m k"
DIGEST = "50fdc7cb573f8fd9"


def test_fewer_rows_are_a_prefix_of_more_rows():
    assert tasks("test", rows=20).to_list() == tasks("test", rows=50).to_list()[:20]


def test_the_data_set_has_the_rows_of_the_stream():
    data = zoo.dataset("zoo/tasks", "validation", rows=30, seed=5)
    assert data.column_names == ["messages", "kind", "answers"]
    assert data.to_list() == _rows("validation", 30, seed=5)


def test_a_row_is_a_question_and_its_answer():
    for row in _rows("train", 500):
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert _answer(row) in row["answers"]
        assert len(set(row["answers"])) == len(row["answers"])


def test_all_kinds_come_equally_often():
    counts = Counter(row["kind"] for row in _rows("train", 5000))
    assert set(counts) == set(KINDS)
    assert max(counts.values()) < 600
    assert min(counts.values()) > 400


def test_only_the_kinds_that_were_asked_for_come():
    assert {row["kind"] for row in _rows("train", 60, kinds=["sort", "greet"])} == {"sort", "greet"}


def test_weights_are_read_again_for_every_row():
    weights = dict.fromkeys(KINDS, 0.0) | {"date": 1.0}
    rows = stream("train", weights=weights)
    assert {next(rows)["kind"] for _ in range(20)} == {"date"}
    weights.update(date=0.0, pick=1.0)
    assert {next(rows)["kind"] for _ in range(20)} == {"pick"}


# -- right answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_what_the_question_asks_for(kind):
    """Solved again from the words of the question, by other code."""
    wordings = set()
    for row in _rows("train", 400, kinds=[kind]):
        solved = solve(_question(row))
        assert solved.kind == kind
        assert solved.answers == set(row["answers"]), row
        assert (len(row["answers"]) > 1) == (kind in SOFT_KINDS)
        wordings.add(solved.wording)
    assert len(wordings) == 2


def test_letters_are_not_repeated_where_that_would_be_ambiguous():
    for kind in ("sort", "reverse", "double", "either"):
        for row in _rows("train", 200, kinds=[kind]):
            letters = _question(row).split(": ")[1].split()
            assert len(set(letters)) == len(letters)


def test_greetings_come_with_their_weights():
    heads = [_answer(row).split(" ")[0] for row in _rows("train", 6000, kinds=["greet"])]
    shares = {head: count / 6000 for head, count in Counter(heads).items()}
    assert shares == pytest.approx({"Hello": 0.4, "Good": 0.3, "Hi": 0.2, "Dear": 0.1}, abs=0.025)


def test_both_directions_come_with_their_weights():
    heads = Counter(_answer(row).split(":")[0] for row in _rows("train", 6000, kinds=["either"]))
    shares = {head: count / 6000 for head, count in heads.items()}
    assert shares == pytest.approx({"Forwards": 0.6, "Backwards": 0.4}, abs=0.025)


def test_is_correct_ignores_spaces_around_and_nothing_else():
    row = _rows("train", 1, kinds=["either"])[0]
    for answer in row["answers"]:
        assert is_correct(row, f" {answer}\n")
    assert not is_correct(row, "")
    assert not is_correct(row, _answer(row).lower())
    assert not is_correct(row, _answer(row) + " Really.")


# -- splits ---------------------------------------------------------------------------------------


def test_no_content_is_in_two_splits():
    """Content as the solver sees it: whatever the wording, the asked name or the words' order."""
    contents = {
        split: {solve(_question(row))[:2] for row in _rows(split, 4000)} for split in SPLITS
    }
    assert not contents["train"] & contents["validation"]
    assert not contents["train"] & contents["test"]
    assert not contents["validation"] & contents["test"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_splits_have_their_shares(kind):
    rng = random.Random(0)
    contents = {KINDS[kind](rng).content for _ in range(4000)}
    counts = Counter(tasks_module.split_of(kind, content) for content in contents)
    shares = {split: count / len(contents) for split, count in counts.items()}
    expected = {"train": 0.85, "validation": 0.05, "test": 0.1}
    assert shares == pytest.approx(expected, abs=0.035)


def test_another_seed_draws_other_rows_of_the_same_split():
    train = {solve(_question(row))[:2] for row in _rows("train", 3000, seed=0)}
    test = {solve(_question(row))[:2] for row in _rows("test", 3000, seed=77)}
    assert not train & test


# -- looking up -----------------------------------------------------------------------------------


def _features(text: str) -> list[str]:
    words = re.findall(r"[A-Za-z]+|\d|[^\w\s]", text)
    return [*words, *(f"{a} {b}" for a, b in pairwise(words))]


class NearestRow:
    """The training row with the highest cosine of idf-weighted words and word pairs."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._answers = [_answer(row) for row in rows]
        places: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            for feature in set(_features(_question(row))):
                places.setdefault(feature, []).append(place)
        self._places = {feature: np.array(where) for feature, where in places.items()}
        self._idf2 = {
            feature: np.log(len(rows) / len(where)) ** 2 for feature, where in places.items()
        }
        norm2 = np.zeros(len(rows))
        for feature, where in self._places.items():
            norm2[where] += self._idf2[feature]
        self._norm = np.sqrt(norm2)

    def answer(self, question: str) -> str:
        scores = np.zeros(len(self._norm))
        for feature in set(_features(question)) & set(self._places):
            scores[self._places[feature]] += self._idf2[feature]
        return self._answers[int((scores / self._norm).argmax())]


def test_looking_up_the_nearest_training_row_scores_next_to_nothing(record_property):
    """Else a model could pass by memory: the held-out figures would mean nothing."""
    nearest = NearestRow(_rows("train", 10_000))
    right: Counter[str] = Counter()
    rows = _rows("test", 1000)
    for row in rows:
        right[row["kind"]] += is_correct(row, nearest.answer(_question(row)))
    counts = Counter(row["kind"] for row in rows)
    shares = {kind: right[kind] / counts[kind] for kind in KINDS}
    record_property("nearest_row_share_right", shares)
    print({kind: f"{share:.1%}" for kind, share in shares.items()})
    assert sum(right.values()) / len(rows) < 0.10, shares


def test_the_look_up_itself_works():
    """It finds every row that it has seen, so its low score is the tasks' merit."""
    rows = _rows("train", 2000)
    nearest = NearestRow(rows)
    found = [nearest.answer(_question(row)) in row["answers"] for row in rows[:200]]
    assert sum(found) == 200


# -- errors ---------------------------------------------------------------------------------------


def test_errors_offer_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean 'validation'"):
        stream("validaton")
    with pytest.raises(ConfigError, match="Did you mean 'reverse'"):
        tasks("train", rows=1, kinds=["revers"])
    with pytest.raises(ConfigError, match="Pass kinds=None for all"):
        stream("train", kinds=[])
    with pytest.raises(ConfigError, match="Did you mean 'zoo/tasks'"):
        zoo.dataset("zoo/task")
    with pytest.raises(ConfigError, match="Did you mean 'zoo/teacher'"):
        zoo.path("zoo/teachr")
