"""Inspections of random models, computed by `token_statistics`, for what needs no real text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kdflow_lab.evaluate import probe_file
from kdflow_lab.evaluate.inspection import Inspection
from kdflow_lab.losses import Head, token_statistics

WORDS = ("It", " is", " 1", "4", " September", ".", "\n", " ", "<|im_end|>", " of", "a", "b")
"""Token id -> text."""


def random_arrays(
    rows: tuple[tuple[int, int], ...] = ((3, 4), (2, 5)),
    *,
    seed: int = 0,
    vocabulary: int = len(WORDS),
    k: int = 4,
    teacher: bool = True,
) -> dict[str, np.ndarray]:
    """Return the arrays of a probe file.

    Args:
        rows: Tokens of prompt and of answer of each text.
        seed: Of both models and of the tokens.
        vocabulary: Ids that there are.
        k: Most likely tokens that are listed.
        teacher: Whether there is one.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = [prompt + answer for prompt, answer in rows]
    ids = [torch.randint(vocabulary, (length,), generator=generator) for length in lengths]
    count = sum(lengths) - len(rows)

    def rows_and_head(width: int, scale: float) -> tuple[torch.Tensor, Head]:
        weight = scale * torch.randn(vocabulary, width, generator=generator)
        return torch.randn(count, width, generator=generator), Head(weight)

    student, theirs = rows_and_head(6, 1.0), rows_and_head(8, 1.5)
    labels = torch.cat([one[1:] for one in ids])
    found = token_statistics(*student, *(theirs if teacher else (None, None)), labels, k=k)
    return {
        "input_ids": torch.cat([one[:-1] for one in ids]).int().numpy(),
        "labels": labels.int().numpy(),
        "response": np.concatenate([np.arange(1, sum(row)) >= row[0] for row in rows]),
        "cu_seqlens": np.cumsum([0, *(length - 1 for length in lengths)]).astype(np.int32),
        "row_index": np.arange(10, 10 + len(rows), dtype=np.int32),
        **{
            name: values.numpy().astype(np.float32 if values.is_floating_point() else np.int32)
            for name, values in found.items()
        },
    }


def random_inspection(words: tuple[str, ...] = WORDS, **options: object) -> Inspection:
    """Return an inspection of them; options as in `random_arrays`."""
    arrays = random_arrays(**{"vocabulary": len(words), **options})  # type: ignore[arg-type]
    return Inspection(arrays, dict(enumerate(words)), name="a-run", step=5)


def write_probes(folder: Path, step: int, *, texts: bool = True, seed: int | None = None) -> Path:
    """Write the probe file of a step into a run directory."""
    path = folder / "probes" / f"{step}.safetensors"
    arrays = random_arrays(seed=step if seed is None else seed)
    named = dict(enumerate(WORDS)) if texts else None
    probe_file.save(path, arrays, step=step, k=4, texts=named)
    return path
