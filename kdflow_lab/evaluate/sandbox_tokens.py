"""What the loss sandbox finds out about every token: plain values, small enough to travel."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Push:
    """What a loss wants of one token of the vocabulary, at one place of a text.

    Attributes:
        token_id: Of the vocabulary.
        size: -d loss / d logit: above 0, a step of training raises the student's logit.
        student_p: Probability that the student gives it, at the sandbox's temperature.
        teacher_p: Likewise of the teacher.
    """

    token_id: int
    size: float
    student_p: float
    teacher_p: float


@dataclass(frozen=True, slots=True)
class Candidates:
    """Tokens that matter at one place: the likely ones, the one that comes, the most pushed ones.

    Attributes:
        ids: n of them, those first that the teacher finds likelier.
        student_p: n + 1 probabilities; the last one is that of all other tokens together.
        teacher_p: Likewise.
        pushes: Loss -> n + 1 pushes (`Push.size`), likewise.
    """

    ids: tuple[int, ...] = ()
    student_p: tuple[float, ...] = ()
    teacher_p: tuple[float, ...] = ()
    pushes: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenLook:
    """One token of a text, as both models and every loss see it.

    Attributes:
        row: Of the data, counted from 0.
        position: Of the token in its row, counted from 0.
        token_id: The token that stands there.
        student_p: Probability that the student gives it.
        teacher_p: Likewise of the teacher.
        student_entropy: Of the student's distribution, in nats.
        teacher_entropy: Likewise.
        agreement: Whether both models' likeliest token is the same.
        values: Loss -> its value, in nats.
        up: Loss -> the tokens whose logits it raises most, strongest first.
        down: Loss -> those it lowers most.
        candidates: The likely tokens, and what every loss wants of them.
        products: Float[losses, losses], inner products of the losses' gradients, in the order of
            `values`: what angles between them are computed from.
        problems: What is not finite here, in words.
    """

    row: int
    position: int
    token_id: int
    student_p: float
    teacher_p: float
    student_entropy: float
    teacher_entropy: float
    agreement: bool
    values: dict[str, float]
    up: dict[str, tuple[Push, ...]]
    down: dict[str, tuple[Push, ...]]
    candidates: Candidates
    products: tuple[tuple[float, ...], ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SandboxPart:
    """What one rank found in its share of the rows.

    Attributes:
        looks: Of the tokens that were looked at.
        rows: Row of the data -> the text of each of its tokens, prompts included.
        texts: Token id -> its text, of every id that `looks` names.
    """

    looks: list[TokenLook]
    rows: dict[int, list[str]]
    texts: dict[int, str]
