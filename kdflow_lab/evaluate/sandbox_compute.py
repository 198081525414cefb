"""Every loss and its gradient on the student's logits, token by token, from hidden states.

Shape suffixes: T tokens, C tokens of a chunk, V vocabulary, K likely tokens, L losses. Logits and
gradients exist for one chunk at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdflow_lab.errors import ConfigError
from kdflow_lab.evaluate.sandbox_ask import CROSS_ENTROPY
from kdflow_lab.evaluate.sandbox_tokens import Candidates, Push, TokenLook
from kdflow_lab.losses import Head, divergence

CHUNK_ELEMENTS = 1 << 26
"""Elements of a chunk's tensors [C, V] when `chunk_tokens="auto"`: 256 MiB in float32."""
HELD = 12
"""Tensors [C, V] that exist beside the losses' gradients: both sides' logits, log-probabilities and
probabilities, and what one divergence and its gradient need."""
PUSHED = 2
"""Tokens that each loss pushes most, of either direction, that are candidates as well."""

Losses = Sequence[tuple[str, dict[str, Any]]]


def look(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    labels: Tensor,
    *,
    places: Sequence[tuple[int, int]],
    losses: Losses,
    temperature: float = 1.0,
    top: int = 5,
    chunk_tokens: int | Literal["auto"] = "auto",
) -> Iterator[TokenLook]:
    """Look at tokens through several losses.

    Args:
        student_hidden: Float[T, Hs], final-norm rows, detached.
        student_head: Of the student.
        teacher_hidden: Float[T, Ht].
        teacher_head: Cut to the same width as the student's.
        labels: Int64[T], the tokens that really come.
        places: T times row and position of those tokens.
        losses: Names, each once, with their parameters; `cross_entropy` may be one.
        temperature: Divides both logits in the divergences, and in the probabilities and entropies
            that are told; cross-entropy is at temperature 1, as in training.
        top: Tokens listed, of either model and of either direction of a push.
        chunk_tokens: Rows whose logits are held at once.

    Yields:
        The tokens in order. One whose logits are no distribution has NaN for all values, and says
        so in `problems`; so has one where a loss or its gradient is not finite.

    Raises:
        ConfigError: A loss does not depend on the student's logits.
        ShapeError: What a registered loss returns is not one value a token.
    """
    width = student_head.width
    if chunk_tokens == "auto":
        chunk_tokens = max(1, CHUNK_ELEMENTS // (width * (HELD + 2 * len(losses))))
    for start in range(0, len(places), chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        with torch.no_grad():
            student_CV = student_head.logits(student_hidden[rows])
            teacher_CV = teacher_head.logits(teacher_hidden[rows]).to(student_CV.dtype)
        sides = (_problems("student", student_CV), _problems("teacher", teacher_CV))
        problems = [tuple(filter(None, both)) for both in zip(*sides, strict=True)]
        fine = torch.tensor([not problem for problem in problems], device=student_CV.device)
        looks = iter(
            _looks(student_CV[fine], teacher_CV[fine], labels[rows][fine], losses, temperature, top)
        )
        where = zip(places[rows], labels[rows].tolist(), problems, strict=True)
        for (row, position), token_id, problem in where:
            if problem:
                yield _broken(row, position, token_id, losses, problem)
            else:
                yield TokenLook(row=row, position=position, token_id=token_id, **next(looks))


def value_and_push(
    name: str,
    params: dict[str, Any],
    student_CV: Tensor,
    teacher_CV: Tensor,
    labels_C: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """A loss of every token, Float[C], and -d loss / d logits, Float[C, V], by autograd."""
    leaf_CV = student_CV.detach().requires_grad_()
    with torch.enable_grad():
        if name == CROSS_ENTROPY:
            value_C = F.cross_entropy(leaf_CV, labels_C, reduction="none")
        else:
            value_C = divergence(name, leaf_CV, teacher_CV, temperature=temperature, **params)
        if not value_C.requires_grad:
            raise ConfigError(
                f"The loss {name!r} has no gradient: it does not depend on the student's logits. "
                "Compute it with differentiable functions of its first argument."
            )
        (gradient_CV,) = torch.autograd.grad(value_C.sum(), leaf_CV)
    return value_C.detach(), gradient_CV.neg_()


class _Tops(NamedTuple):
    """Chosen tokens of every row: ids, both probabilities and some sizes, as nested lists."""

    ids: list[list[int]]
    student_p: list[list[float]]
    teacher_p: list[list[float]]
    sizes: list[list[float]]

    def pushes(self, token: int) -> tuple[Push, ...]:
        """What is pushed at one token of the text, without what is not pushed at all."""
        columns = (self.ids, self.sizes, self.student_p, self.teacher_p)
        found = zip(*(column[token] for column in columns), strict=True)
        return tuple(Push(*each) for each in found if each[1] != 0.0 and math.isfinite(each[1]))


def _looks(
    student_CV: Tensor,
    teacher_CV: Tensor,
    labels_C: Tensor,
    losses: Losses,
    temperature: float,
    top: int,
) -> list[dict[str, Any]]:
    """The fields of every token's `TokenLook` but its place."""
    if not len(labels_C):
        return []
    with torch.no_grad():
        student_logp_CV = torch.log_softmax(student_CV / temperature, dim=-1)
        teacher_logp_CV = torch.log_softmax(teacher_CV / temperature, dim=-1)
        student_p_CV, teacher_p_CV = student_logp_CV.exp(), teacher_logp_CV.exp()
    values: dict[str, list[float]] = {}
    pushes: dict[str, Tensor] = {}
    for name, params in losses:
        value_C, pushes[name] = value_and_push(
            name, params, student_CV, teacher_CV, labels_C, temperature
        )
        values[name] = value_C.tolist()
    k = min(top, student_CV.shape[1])

    def chosen(ids_CK: Tensor, sizes_CK: Tensor | None = None) -> _Tops:
        return _Tops(
            ids_CK.tolist(),
            student_p_CV.gather(1, ids_CK).tolist(),
            teacher_p_CV.gather(1, ids_CK).tolist(),
            [] if sizes_CK is None else sizes_CK.tolist(),
        )

    tops = [each.topk(k, dim=1).indices for each in (teacher_p_CV, student_p_CV)]
    named = [*tops]
    up, down = {}, {}
    for name, push_CV in pushes.items():
        known_CV = push_CV.nan_to_num(0.0, 0.0, 0.0)  # what is not finite is said, not listed
        for found, signed_CV in ((up, known_CV), (down, -known_CV)):
            best = signed_CV.topk(k, dim=1)
            found[name] = chosen(best.indices, known_CV.gather(1, best.indices))
            named.append(best.indices[:, :PUSHED])
    ids_CK = torch.cat([*named, labels_C[:, None]], dim=1)
    likely = chosen(ids_CK)
    wanted = {name: push_CV.gather(1, ids_CK).tolist() for name, push_CV in pushes.items()}
    sums = {name: push_CV.sum(dim=1).tolist() for name, push_CV in pushes.items()}
    products = _products(list(pushes.values()))
    entropies = [_entropy(each).tolist() for each in (student_logp_CV, teacher_logp_CV)]
    agreed = (tops[0][:, 0] == tops[1][:, 0]).tolist()
    looks = []
    for token in range(len(labels_C)):
        bad = [
            *(_not_finite(name, values[name][token]) for name in pushes),
            *(_not_finite(f"the gradient of {name}", sums[name][token]) for name in pushes),
        ]
        looks.append(
            {
                "student_p": likely.student_p[token][-1],
                "teacher_p": likely.teacher_p[token][-1],
                "student_entropy": entropies[0][token],
                "teacher_entropy": entropies[1][token],
                "agreement": agreed[token],
                "values": {name: values[name][token] for name in pushes},
                "up": {n: tuple(p for p in up[n].pushes(token) if p.size > 0) for n in pushes},
                "down": {n: tuple(p for p in down[n].pushes(token) if p.size < 0) for n in pushes},
                "candidates": _candidates(likely, wanted, sums, token),
                "products": products[token],
                "problems": tuple(filter(None, bad)),
            }
        )
    return looks


def _candidates(
    likely: _Tops, wanted: dict[str, list[list[float]]], sums: dict[str, list[float]], token: int
) -> Candidates:
    """Each likely token once, those first that the teacher prefers, and what is left over."""
    ids, student_p, teacher_p = (
        likely.ids[token],
        likely.student_p[token],
        likely.teacher_p[token],
    )
    first = {token_id: place for place, token_id in reversed([*enumerate(ids)])}
    order = sorted(first.values(), key=lambda place: (-teacher_p[place], -student_p[place]))

    def with_rest(values: list[float], total: float) -> tuple[float, ...]:
        picked = [values[place] for place in order]
        return (*picked, total - sum(picked))

    return Candidates(
        ids=tuple(ids[place] for place in order),
        student_p=with_rest(student_p, 1.0),
        teacher_p=with_rest(teacher_p, 1.0),
        pushes={name: with_rest(wanted[name][token], sums[name][token]) for name in wanted},
    )


def _products(pushes: list[Tensor]) -> list[tuple[tuple[float, ...], ...]]:
    """Inner products of every two losses' gradients, Float[C, L, L] as tuples."""
    stacked_CLV = torch.stack(pushes, dim=1)
    products_CLL = stacked_CLV @ stacked_CLV.transpose(1, 2)
    return [tuple(map(tuple, products)) for products in products_CLL.tolist()]


def _entropy(logp_CV: Tensor) -> Tensor:
    """In nats; a token with probability zero adds nothing, instead of 0 * inf = NaN."""
    return -(logp_CV.exp() * logp_CV.masked_fill(logp_CV.isneginf(), 0.0)).sum(dim=-1)


def _problems(side: str, logits_CV: Tensor) -> list[str]:
    """Why a token's logits are no distribution; an empty string where they are one."""
    found = []
    # the largest of a row is NaN if any is, inf if any is, -inf if all are
    for highest in logits_CV.amax(dim=-1).tolist():
        what = "NaN" if math.isnan(highest) else "+inf" if highest > 0 else "only -inf"
        found.append("" if math.isfinite(highest) else f"the {side}'s logits hold {what}")
    return found


def _not_finite(what: str, value: float) -> str:
    if math.isfinite(value):
        return ""
    return f"{what} is {'NaN' if math.isnan(value) else 'infinite'}"


def _broken(
    row: int, position: int, token_id: int, losses: Losses, problems: tuple[str, ...]
) -> TokenLook:
    """A token of which nothing can be computed."""
    nothing: dict[str, tuple[Push, ...]] = {name: () for name, _ in losses}
    return TokenLook(
        row=row,
        position=position,
        token_id=token_id,
        student_p=math.nan,
        teacher_p=math.nan,
        student_entropy=math.nan,
        teacher_entropy=math.nan,
        agreement=False,
        values={name: math.nan for name, _ in losses},
        up=nothing,
        down=nothing,
        candidates=Candidates(),
        products=tuple((math.nan,) * len(losses) for _ in losses),
        problems=problems,
    )
