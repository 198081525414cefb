"""SGLang engines, shared by the tests: starting one takes 10 to 20 seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from kdflow_lab.teacher import make_teacher
from kdflow_lab.teacher.sglang import versions


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip this folder where SGLang cannot run."""
    reason = versions.why_not("cpu")
    for item in items:
        if reason and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"{reason}; see kdflow doctor"))


class Case(NamedTuple):
    """A model and the teacher that runs it."""

    backend: str
    family: str
    dtype: torch.dtype
    ranks: str = ""
    """`tp_size` or `dp_size` if that is 2."""

    def __str__(self) -> str:
        """The test's name."""
        words = (self.backend, self.family, str(self.dtype)[6:], self.ranks)
        return "-".join(word for word in words if word)


# A case's engine lives until the next one's starts, the last one's until all tests have ended. So
# the last one has no process: the dispatcher of dp_size=2 keeps a core busy.
CASES = [
    Case("sglang", "llama", torch.float32, "tp_size"),
    Case("sglang", "qwen3", torch.float32, "dp_size"),
    *(
        Case(backend, family, dtype)
        for family, dtype in (
            ("llama", torch.float32),
            ("qwen3", torch.float32),
            ("gemma2", torch.float32),
            ("gemma3", torch.float32),
            ("qwen3", torch.bfloat16),
        )
        for backend in ("sglang", "transformers")
    ),
]


class Subject(NamedTuple):
    """A teacher under test.

    Attributes:
        teacher: The backend.
        folder: Its model.
        dtype: Of its rows.
        ranks: `tp_size` or `dp_size` if that is 2.
    """

    teacher: Any
    folder: Path
    dtype: torch.dtype
    ranks: str


@pytest.fixture(scope="session", params=CASES, ids=str)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Every family on every backend; SGLang with chunks that are shorter than the rows."""
    import tiny_models as models

    case: Case = request.param
    folder = models.write_model(case.family, tmp_path_factory.mktemp("model"), case.dtype)
    options: dict[str, Any] = {
        "engine_args": {"chunked_prefill_size": models.CHUNK, "max_total_tokens": 2048}
    }
    if case.ranks:
        options[case.ranks] = 2
    teacher, _ = make_teacher(
        case.backend,
        str(folder),
        dtype=str(case.dtype).removeprefix("torch."),
        threads=1 if case.ranks else 2,
        sglang=options if case.backend == "sglang" else None,
    )
    yield Subject(teacher, folder, case.dtype, case.ranks)
    teacher.close()


@pytest.fixture
def slots(subject: Subject) -> Iterator[Any]:
    """A ring for the subject."""
    from slots import Slots

    made = Slots(subject.teacher)
    yield made
    made.close()
