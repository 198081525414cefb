"""Between tokenizers, too, a step is the same however it is split; with real models and texts."""

from __future__ import annotations

import pytest
from one_step import Case, Step, assert_same, steps

from kdflow_lab import zoo
from kdflow_lab.algorithms.names import ENTRIES

pytestmark = pytest.mark.timeout(900)

CROSSING = [name for name, entry in ENTRIES.items() if entry.crosses_tokenizers]
WHOLE = {name: Case(algorithm=name) for name in CROSSING}
WHOLE["dskd cma"] = Case(algorithm="dskd", algorithm_params={"token_align": "cma"})
SPLIT = {
    name: Case(
        algorithm=one.algorithm,
        algorithm_params=one.algorithm_params,
        micro_batch_rows=2,
        chunk_tokens=7,
        ring=True,
    )
    for name, one in WHOLE.items()
}


@pytest.fixture(scope="module")
def taken() -> dict[tuple[int, str], Step]:
    """Every algorithm at once on one rank, and in small parts through the ring on two."""
    models = str(zoo.path("zoo/teacher")), str(zoo.path("zoo/student-unigram"))
    found: dict[tuple[int, str], Step] = {}
    for ranks, cases in ((1, WHOLE), (2, SPLIT)):
        found |= {
            (ranks, name): step
            for name, step in zip(cases, steps(ranks, models, list(cases.values())), strict=True)
        }
    return found


@pytest.mark.parametrize("name", WHOLE)
def test_two_ranks_with_small_parts_equal_one(
    taken: dict[tuple[int, str], Step], name: str
) -> None:
    assert_same(taken[2, name], taken[1, name])


def test_the_cases_are_what_they_say(taken: dict[tuple[int, str], Step]) -> None:
    """Ranks had unequal tokens, and the algorithms compute different things."""
    first, second = taken[2, "byte_prefix"].tokens_by_rank
    assert first != second and min(first, second) > 0
    losses = {name: round(taken[1, name].loss, 4) for name in WHOLE}
    assert len(set(losses.values())) == len(losses), losses
