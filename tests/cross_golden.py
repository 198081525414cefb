"""Golden values of two tokenizers as the algorithms take them: hidden rows, heads and a pairing."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from kdflow_lab.align.pairing import Pairing
from kdflow_lab.align.vocabulary import TokenizerPair, Vocabulary
from kdflow_lab.losses import Head

GOLDEN = Path(__file__).parent / "unit" / "losses" / "golden"
GOLD: dict[str, Any] = json.loads((GOLDEN / "gold.json").read_text())
CASES: dict[str, dict[str, Any]] = {case["id"]: case for case in GOLD["cases"]}
STEPS: dict[str, dict[str, Any]] = {
    case["id"]: case for case in json.loads((GOLDEN / "cross_steps.json").read_text())["cases"]
}


@cache
def tensors() -> dict[str, Tensor]:
    """All stored tensors by name."""
    files = ("gold.safetensors", "gold_full.safetensors", "cross_steps.safetensors")
    return {name: one for file in files for name, one in load_file(GOLDEN / file).items()}


def _byte_of_character() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones as they are, the others from U+0100 on."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [one for one in range(256) if one not in kept]
    return {chr(one): one for one in kept} | {chr(256 + n): one for n, one in enumerate(others)}


BYTES = _byte_of_character()


def token_bytes(spelling: str, kind: str, special: bool) -> bytes | None:
    """What a token writes; None for a special one."""
    if special or (spelling.startswith("<") and spelling.endswith(">") and "|" in spelling):
        return None
    if kind != "metaspace_bpe":
        return bytes(BYTES[one] for one in spelling)
    if spelling.startswith("<0x"):
        return bytes([int(spelling[3:5], 16)])
    if spelling in ("<s>", "</s>", "<unk>"):
        return None
    return spelling.replace("▁", " ").encode()


def vocabulary(spellings: list[str], kind: str, eos: int) -> Vocabulary:
    """A vocabulary from spellings by id."""
    spelled = (token_bytes(one, kind, token == eos) for token, one in enumerate(spellings))
    return Vocabulary(tuple(spelled), {"eos": eos})


def pair_of(case: dict[str, Any]) -> TokenizerPair:
    """The vocabularies of a case with texts."""
    sides = []
    for side in ("teacher", "student"):
        kind = case[side]
        spellings = case.get(f"{side}_vocab") or GOLD["vocabularies"][kind]
        eos = case[f"{side}_eos"]
        sides.append(vocabulary(spellings, kind, eos))
    return TokenizerPair(*sides)


class Rows(NamedTuple):
    """A case with logits as hidden states: heads are unit matrices.

    Attributes:
        student: Float64[T, V], a leaf; the rows that predict the labels.
        labels: Int64[T].
        teacher: Float64[U, X].
        pairing: Of all T and U tokens.
        student_rows: By token: (sample, position) of the row in the stored logits.
        teacher_rows: The same of the teacher.
    """

    student: Tensor
    labels: Tensor
    teacher: Tensor
    pairing: Pairing
    student_rows: list[tuple[int, int]]
    teacher_rows: list[tuple[int, int]]

    @property
    def heads(self) -> tuple[Head, Head]:
        """Unit matrices: hidden states are logits."""
        return (
            Head(torch.eye(self.student.shape[1], dtype=self.student.dtype)),
            Head(torch.eye(self.teacher.shape[1], dtype=self.teacher.dtype)),
        )

    def scattered(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """Put the rows' gradient where the stored logits have it."""
        full = torch.zeros(shape, dtype=gradient.dtype)
        for row, (sample, position) in zip(gradient, self.student_rows, strict=True):
            full[sample, position] = row
        return full


def rows_of(case: dict[str, Any], dtype: torch.dtype = torch.float64) -> Rows:
    """Read a case of `gold.json`; a token at position 0 has no row and is left out."""
    golden, name = tensors(), case["id"]
    found: dict[str, Any] = {}
    for side in ("student", "teacher"):
        logits, ids = golden[f"{name}.{side}_logits"], golden[f"{name}.{side}_input_ids"].long()
        labels = golden[f"{name}.{side}_labels"].long()
        spans = case.get(f"{side}_offsets")
        rows, tokens, starts, ends, samples = [], [], [], [], []
        base = 0
        for sample in range(len(labels)):
            last = base
            for number, position in enumerate((labels[sample] != -100).nonzero()[:, 0].tolist()):
                token = int(ids[sample, position])
                # without offsets every token is as wide as the other side's
                start, end = (number, number + 1) if spans is None else spans[sample][position]
                if spans is not None and token == case[f"{side}_eos"]:
                    end = start + 1
                last = max(last, base + end)
                if position == 0:
                    continue
                rows.append((sample, position - 1))
                tokens.append(token)
                starts.append(base + start)
                ends.append(base + end)
                samples.append(sample)
            base = 1000 * (sample + 1)
        at = torch.tensor(rows).reshape(-1, 2)
        found[side] = logits[at[:, 0], at[:, 1]].to(dtype)
        found[f"{side}_rows"] = rows
        found[f"{side}_labels"] = torch.tensor(tokens, dtype=torch.long)
        found[f"{side}_places"] = [np.array(one, np.int64) for one in (starts, ends, samples)]
    ours, theirs = found["student_places"], found["teacher_places"]
    pairing = Pairing(
        ours[0], ours[1], theirs[0], theirs[1], ours[2], theirs[2],
        found["teacher_labels"].numpy(),
    )  # fmt: skip
    return Rows(
        found["student"].requires_grad_(), found["student_labels"], found["teacher"], pairing,
        found["student_rows"], found["teacher_rows"],
    )  # fmt: skip


class Step(NamedTuple):
    """A training step of KDFlow as an algorithm takes it.

    Attributes:
        student: Float32[T, d], a leaf.
        student_head: Its weight is a leaf.
        teacher: Float32[U, D].
        teacher_head: The teacher's.
        labels: Int64[T].
        pairing: Of all T and U tokens.
        mask: Bool[B, S], where the rows are in the stored hidden states.
    """

    student: Tensor
    student_head: Head
    teacher: Tensor
    teacher_head: Head
    labels: Tensor
    pairing: Pairing
    mask: Tensor


def step_pair(name: str) -> TokenizerPair:
    """The vocabularies of a case of `cross_steps.json`."""
    kinds = STEPS[name]["teacher_tokenizer"], STEPS[name]["student_tokenizer"]
    sides = []
    for kind in kinds:
        spellings = GOLD["vocabularies"][kind]
        eos = next(n for n, one in enumerate(spellings) if one in ("<|endoftext|>", "<|im_end|>"))
        sides.append(vocabulary(spellings, kind, eos))
    return TokenizerPair(*sides, same=kinds[0] == kinds[1])


def step_of(name: str, dtype: torch.dtype = torch.float32) -> Step:
    """Read a case of `cross_steps.json`."""
    golden, pair = tensors(), step_pair(name)
    labels, places = [], []
    for side, prefix in ((pair.student, "stu"), (pair.teacher, "tea")):
        mask = golden[f"{name}.{prefix}_loss_mask"].bool()
        ids = golden[f"{name}.{prefix}_input_ids"].roll(-1, 1)[mask]
        samples = mask.nonzero()[:, 0].numpy()
        starts, ends, at = [], [], 0
        for token, sample in zip(ids.tolist(), samples, strict=True):
            at = at if at >= 1000 * sample else 1000 * int(sample)
            starts.append(at)
            at += len(side.token_bytes[token] or b"x")
            ends.append(at)
        labels.append(ids)
        places.append((np.array(starts), np.array(ends), samples))
    (start, end, sample), (other_start, other_end, other_sample) = places
    pairing = Pairing(start, end, other_start, other_end, sample, other_sample, labels[1].numpy())
    mask = golden[f"{name}.stu_loss_mask"].bool()
    hidden = golden[f"{name}.student_hidden"][mask].to(dtype).requires_grad_()
    head = golden[f"{name}.student_lm_head"].to(dtype).clone().requires_grad_()
    return Step(
        hidden, Head(head), golden[f"{name}.teacher_hiddens"].to(dtype),
        Head(golden[f"{name}.teacher_lm_head"].to(dtype)), labels[0], pairing, mask,
    )  # fmt: skip
