"""What an inspection found: how student and teacher see every token of a few texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kdflow_lab.errors import unknown_name

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

Arrays = Mapping[str, "NDArray[Any]"]


@dataclass(frozen=True, slots=True)
class Quantity:
    """One thing that tokens can be coloured by.

    Attributes:
        label: What it is called.
        unit: `nats`, or empty.
        signed: Whether 0 lies in the middle of its scale, and not at its end.
        read: From the arrays of `kdflow_lab.evaluate.probe_file` to Float32[P].
        needs: The arrays without which it is not known.
        low_is_worse: Whether it is a yes or a no, 1 or 0, and the noes are to be looked at.
    """

    label: str
    unit: str
    read: Callable[[Arrays], NDArray[Any]]
    needs: tuple[str, ...]
    signed: bool = False
    low_is_worse: bool = False


def _plain(label: str, name: str, unit: str = "nats") -> Quantity:
    return Quantity(label, unit, lambda arrays: arrays[name], (name,))


QUANTITIES: dict[str, Quantity] = {
    "forward_kl": _plain("forward KL", "forward_kl"),
    "reverse_kl": _plain("reverse KL", "reverse_kl"),
    "jsd": _plain("Jensen-Shannon divergence", "jsd"),
    "student_entropy": _plain("student's entropy", "student_entropy"),
    "teacher_entropy": _plain("teacher's entropy", "teacher_entropy"),
    "entropy_gap": Quantity(
        "entropy gap, student - teacher",
        "nats",
        lambda arrays: arrays["student_entropy"] - arrays["teacher_entropy"],
        ("student_entropy", "teacher_entropy"),
        signed=True,
    ),
    "surprise": Quantity(
        "student's surprise",
        "nats",
        lambda arrays: -arrays["student_logprob"],
        ("student_logprob",),
    ),
    "rank": _plain("student's rank of the token", "student_rank", unit=""),
    "agreement": Quantity(
        "both expect the same token most",
        "",
        lambda arrays: arrays["student_topk_ids"][:, 0] == arrays["teacher_topk_ids"][:, 0],
        ("student_topk_ids", "teacher_topk_ids"),
        low_is_worse=True,
    ),
}
"""Name -> what tokens can be coloured by, in the order of a menu."""


def check_quantity(name: str | None) -> None:
    """Refuse a quantity that no inspection has; None stands for a default.

    Raises:
        ConfigError: There is none of that name; the nearest is offered.
    """
    if name is not None and name not in QUANTITIES:
        raise unknown_name("quantity", name, QUANTITIES)


@dataclass(frozen=True, slots=True, eq=False)
class InspectedRow:
    """One text.

    Attributes:
        row: Of the data, counted from 0.
        places: Where its predicted tokens stand among the P of all.
        ids: Int32[tokens], all of its tokens: the first one, which nothing predicts, and those.
    """

    row: int
    places: slice
    ids: NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Inspection:
    """How both models see every token of some texts, at temperature 1.

    Attributes:
        arrays: Those of `kdflow_lab.evaluate.probe_file`: P predicted tokens over n rows.
        texts: Token id -> its text, of every id in the arrays; special tokens by their names.
            Empty for probes of an earlier version.
        name: Of the model.
        step: Steps that it had learnt; None for a model that is no run's.
        note: What is not known of the tokens and why, in a sentence; mostly empty.
    """

    arrays: dict[str, NDArray[Any]]
    texts: dict[int, str] = field(default_factory=dict)
    name: str = ""
    step: int | None = None
    note: str = ""

    def __len__(self) -> int:
        """Number of predicted tokens, P."""
        return len(self.arrays["labels"])

    @property
    def rows(self) -> list[InspectedRow]:
        """The texts, in order."""
        ends = self.arrays["cu_seqlens"].tolist()
        return [
            InspectedRow(
                int(row),
                slice(start, end),
                np.concatenate(
                    [self.arrays["input_ids"][start : start + 1], self.arrays["labels"][start:end]]
                ),
            )
            for row, start, end in zip(self.arrays["row_index"], ends, ends[1:], strict=False)
        ]

    def text(self, token_id: int) -> str:
        """Return the text of a token; where it is not known, its id behind a number sign."""
        return self.texts.get(int(token_id), f"#{int(token_id)}")

    @property
    def quantities(self) -> list[str]:
        """Names of what is known of the tokens; without a teacher nothing compares with one."""
        return [
            name
            for name, quantity in QUANTITIES.items()
            if all(needed in self.arrays for needed in quantity.needs)
        ]

    def values(self, quantity: str) -> NDArray[np.float32]:
        """Return one quantity of every token, Float32[P].

        Raises:
            ConfigError: There is no such quantity here; the nearest is offered.
        """
        if quantity not in self.quantities:
            raise unknown_name("quantity", quantity, self.quantities)
        return QUANTITIES[quantity].read(self.arrays).astype(np.float32)

    def worst_places(
        self, quantity: str, n: int = 20, *, prompts: bool = False
    ) -> NDArray[np.int64]:
        """Return the places of the tokens to look at first, Int64[at most n], the worst one first.

        Args:
            quantity: A name in `quantities`. Where it is signed, both directions count; what is
                0, as good as can be, or unknown is left out.
            n: At most so many.
            prompts: Whether the tokens of prompts count, too; where there are no others, they do.

        Raises:
            ConfigError: There is no such quantity here.
        """
        values = self.values(quantity)
        kind = QUANTITIES[quantity]
        badness = np.abs(values) if kind.signed else 1 - values if kind.low_is_worse else values
        response = self.arrays["response"]
        counted = (badness > 0) & (response if response.any() and not prompts else True)
        chosen = np.flatnonzero(counted)
        # of tokens that are equally bad, those first that the text has first
        return chosen[np.argsort(-badness[chosen], kind="stable")[:n]]

    def worst(
        self, quantity: str = "forward_kl", n: int = 20, *, prompts: bool = False
    ) -> pd.DataFrame:
        """Return the lines of `frame` to look at first, the worst one first.

        Args:
            quantity: A name in `quantities`. Where it is signed, both directions count.
            n: At most so many.
            prompts: Whether the tokens of prompts count, too; where there are no others, they do.

        Raises:
            ConfigError: There is no such quantity here.
        """
        return self.frame.iloc[self.worst_places(quantity, n, prompts=prompts)]

    @property
    def frame(self) -> pd.DataFrame:
        """A line for each predicted token.

        `row` of the data, `position` in the row, `token`, `token_id`, `response` (whether it is of
        an answer), every quantity that is known, and `student_p` and `teacher_p`, the
        probabilities of the token.
        """
        import pandas as pd

        rows, labels = self.rows, self.arrays["labels"]
        lengths = [len(one.ids) - 1 for one in rows]
        columns: dict[str, Any] = {
            "row": np.repeat([one.row for one in rows], lengths),
            "position": np.concatenate(
                [np.zeros(0, np.int64), *(np.arange(1, length + 1) for length in lengths)]
            ),
            "token": [self.text(token_id) for token_id in labels.tolist()],
            "token_id": labels,
            "response": self.arrays["response"],
        }
        columns |= {name: self.values(name) for name in self.quantities}
        for model in ("student", "teacher"):
            if f"{model}_logprob" in self.arrays:
                columns[f"{model}_p"] = np.exp(self.arrays[f"{model}_logprob"])
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        """The texts with their worst tokens marked, and a table of those."""
        from kdflow_lab.widgets._console import text

        return text(self)
