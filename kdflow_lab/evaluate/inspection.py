"""What an inspection found: how student and teacher see every token of a few texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kdflow_lab.errors import unknown_name

if TYPE_CHECKING:
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
    """

    label: str
    unit: str
    read: Callable[[Arrays], NDArray[Any]]
    needs: tuple[str, ...]
    signed: bool = False


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
    ),
}
"""Name -> what tokens can be coloured by, in the order of a menu."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """How both models see every token of some texts, at temperature 1.

    Attributes:
        arrays: Those of `kdflow_lab.evaluate.probe_file`: P predicted tokens over n rows.
        texts: Token id -> its text, of every id in the arrays; special tokens by their names.
        name: Of the model.
        step: Steps that it had learnt; None for a model that is no run's.
    """

    arrays: dict[str, NDArray[Any]]
    texts: dict[int, str] = field(default_factory=dict)
    name: str = ""
    step: int | None = None

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
