"""What an inspection says of its tokens, against its own arrays."""

from __future__ import annotations

import numpy as np
import pytest
from inspections import WORDS, random_arrays, random_inspection

from kdflow_lab.errors import ConfigError
from kdflow_lab.evaluate.inspection import QUANTITIES, Inspection


def test_quantities_are_read_from_the_arrays() -> None:
    found, arrays = random_inspection(), random_arrays()
    assert found.quantities == list(QUANTITIES)
    gap = arrays["student_entropy"] - arrays["teacher_entropy"]
    np.testing.assert_array_equal(found.values("entropy_gap"), gap)
    np.testing.assert_array_equal(found.values("surprise"), -arrays["student_logprob"])
    agreed = arrays["student_topk_ids"][:, 0] == arrays["teacher_topk_ids"][:, 0]
    assert 0 < agreed.sum() < len(agreed)
    np.testing.assert_array_equal(found.values("agreement"), agreed)
    assert all(found.values(name).dtype == np.float32 for name in QUANTITIES)
    assert len(found) == len(arrays["labels"]) == 12


def test_without_a_teacher_nothing_compares_with_one() -> None:
    alone = random_inspection(teacher=False)
    assert alone.quantities == ["student_entropy", "surprise", "rank"]
    with pytest.raises(ConfigError, match="Unknown quantity 'forward_kl'"):
        alone.values("forward_kl")
    with pytest.raises(ConfigError, match="Did you mean 'surprise'"):
        alone.worst("surprize")


def test_rows_have_their_first_token_too() -> None:
    found = random_inspection()
    first, second = found.rows
    assert (first.row, second.row) == (10, 11)
    assert (first.places, second.places) == (slice(0, 6), slice(6, 12))
    assert len(first.ids) == len(second.ids) == 7
    np.testing.assert_array_equal(first.ids[:-1], found.arrays["input_ids"][:6])
    np.testing.assert_array_equal(second.ids[1:], found.arrays["labels"][6:])


def test_worst_are_the_answers_highest_values() -> None:
    found = random_inspection()
    response = found.arrays["response"]
    values = found.values("forward_kl")
    places = found.worst_places("forward_kl", 3)
    assert response[places].all()
    np.testing.assert_array_equal(values[places], np.sort(values[response])[::-1][:3])
    everywhere = found.worst_places("forward_kl", 12, prompts=True)
    assert len(everywhere) == 12 and values[everywhere[0]] == values.max()
    table = found.worst("forward_kl", 3)
    assert table["forward_kl"].tolist() == values[places].tolist()
    assert table.index.tolist() == places.tolist()


def test_worst_of_a_signed_quantity_and_of_a_yes_or_no() -> None:
    found = random_inspection()
    gaps = found.values("entropy_gap")[found.worst_places("entropy_gap")]
    assert (np.diff(np.abs(gaps)) <= 0).all()
    assert gaps.min() < 0 < gaps.max()
    disagreed = found.worst_places("agreement")
    assert len(disagreed) == (found.values("agreement")[found.arrays["response"]] == 0).sum()


def test_unknown_values_are_never_the_worst() -> None:
    """Across tokenizers, the forward KL of prompts is not known."""
    arrays = random_arrays()
    arrays["forward_kl"][[3, 5]] = np.nan
    arrays["forward_kl"][4] = np.inf
    places = Inspection(arrays).worst_places("forward_kl", 99, prompts=True)
    assert places[0] == 4 and len(places) == 10 and not {3, 5} & set(places.tolist())


def test_frame_has_a_line_a_token() -> None:
    found = random_inspection()
    frame = found.frame
    assert list(frame.columns) == [
        *("row", "position", "token", "token_id", "response"),
        *QUANTITIES,
        *("student_p", "teacher_p"),
    ]
    assert frame["row"].tolist() == [10] * 6 + [11] * 6
    assert frame["position"].tolist() == [1, 2, 3, 4, 5, 6] * 2
    assert frame["token"].tolist() == [WORDS[one] for one in found.arrays["labels"]]
    np.testing.assert_allclose(frame["student_p"], np.exp(found.arrays["student_logprob"]))
    assert len(random_inspection(rows=((1, 1),)).frame) == 1


def test_texts_that_are_not_known_are_numbers() -> None:
    assert Inspection(random_arrays()).text(7) == "#7"
    assert random_inspection().text(1) == " is"
