"""What the divergence lens draws: places of the tokens, scales, and arrays as bytes for a page."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdflow_lab.evaluate.inspection import QUANTITIES, Inspection
from kdflow_lab.widgets._divergence_scale import Scale, fit
from kdflow_lab.widgets._tokens import visible

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Layout = dict[str, list[Any]]

MOST_CHARACTERS = 120
"""Of one token's text, for a page; it shows fewer."""
PLACES = ("input_ids", "labels", "response", "cu_seqlens", "row_index")
"""What all inspections of the same texts share."""
OF_A_MODEL = ("logprob", "logit", "entropy", "rank", "topk_ids", "topk_logprobs")
OF_MODELS = (
    *(f"student_{what}" for what in OF_A_MODEL),
    *(f"teacher_{what}" for what in OF_A_MODEL),
    "student_logprobs_of_teacher_topk",
    "teacher_logprobs_of_student_topk",
)
"""What a step changes, beside the quantities; a page does without what is not known."""
KINDS = dict.fromkeys(("forward_kl", "reverse_kl", "jsd", "surprise"), "root") | {
    "rank": "log",
    "agreement": "agreement",
}
PREFERRED = ("forward_kl", "surprise")
"""Quantities to begin with, the first that is known."""


@dataclass(frozen=True, slots=True)
class Place:
    """A predicted token."""

    index: int
    """Among the P predicted ones."""
    row: int
    """Of the data, as in `Inspection.frame`."""
    position: int
    """In its row, prompt included, from 0."""


def scales(inspections: Sequence[Inspection]) -> dict[str, Scale]:
    """Return the scale of every quantity, the same for all the inspections.

    Fitted to the trained tokens, if there are some: prompts would need longer scales.
    """
    response = inspections[0].arrays["response"]
    trained = response if response.any() else np.ones_like(response)
    found = {}
    for name in inspections[0].quantities:
        kind = KINDS.get(name, "signed" if QUANTITIES[name].signed else "linear")
        known = [each.values(name)[trained] for each in inspections if name in each.quantities]
        found[name] = max((fit(kind, values) for values in known), key=lambda one: one.high)
    return found


def described(found: Mapping[str, Scale]) -> list[dict[str, Any]]:
    """Say of every quantity what a page's menu and legend need."""
    return [
        {
            "name": name,
            "label": QUANTITIES[name].label,
            "unit": QUANTITIES[name].unit,
            "kind": scale.kind,
            "high": scale.high,
        }
        for name, scale in found.items()
    ]


def place_of(inspection: Inspection, index: int) -> Place:
    """Return row and position of a predicted token."""
    starts = inspection.arrays["cu_seqlens"]
    row = int(np.searchsorted(starts, index, side="right")) - 1
    data_row = int(inspection.arrays["row_index"][row])
    return Place(index, data_row, index - int(starts[row]) + 1)


def lines(inspection: Inspection) -> Iterator[tuple[int, int, int]]:
    """Yield row, first and one past the last predicted token of every row that has some."""
    starts = inspection.arrays["cu_seqlens"].tolist()
    for row, (start, end) in enumerate(itertools.pairwise(starts)):
        if end > start:
            yield row, start, end


def flowing(text: str, most: int) -> str:
    """Return a token's text as it stands in a line: spaces stay, all else that is unseen shows."""
    shown = " ".join(visible(part) if part else "" for part in text[: most + 1].split(" ")) or "∅"
    return f"{shown[: most - 1]}…" if len(shown) > most else shown


def cut_texts(inspection: Inspection, ids: Iterable[int]) -> dict[str, str]:
    """Return the texts of some ids for a page, long ones cut."""
    found = {}
    for token_id in ids:
        text = inspection.text(token_id)
        if len(text) > MOST_CHARACTERS:
            text = f"{text[:MOST_CHARACTERS]}… ({len(text):,} characters)"
        # JSON of a lone surrogate is refused on its way to the page
        found[str(token_id)] = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return found


def pack(arrays: Mapping[str, NDArray[Any]]) -> tuple[Layout, bytes]:
    """Put arrays into one buffer for a page.

    Returns:
        Name -> `[dtype, shape, offset in bytes]`, dtype `float32`, `int32` or `uint8`; the bytes,
        little-endian, every array at a multiple of 8.
    """
    layout: Layout = {}
    parts: list[bytes] = []
    offset = 0
    for name, array in arrays.items():
        kind = {"f": "<f4", "b": "u1"}.get(array.dtype.kind, "<i4")
        raw = np.ascontiguousarray(array, dtype=kind).tobytes()
        layout[name] = [np.dtype(kind).name, list(array.shape), offset]
        raw += b"\0" * (-len(raw) % 8)
        parts.append(raw)
        offset += len(raw)
    return layout, b"".join(parts)


def pack_places(inspection: Inspection) -> tuple[Layout, bytes]:
    """Pack what all steps share."""
    return pack({name: inspection.arrays[name] for name in PLACES})


def pack_step(inspection: Inspection) -> tuple[Layout, bytes]:
    """Pack what a step changes: the quantities under `q:<name>`, and both models' lists."""
    quantities = {f"q:{name}": inspection.values(name) for name in inspection.quantities}
    models = {name: inspection.arrays[name] for name in OF_MODELS if name in inspection.arrays}
    return pack(quantities | models)
