"""Do two tokenizers fit: one tokenizer, or two that must be crossed? Looked at before training.

Nothing is ever paired by position because two numbers happen to be equal: ids are compared one by
one, texts are split by both, and what ends an answer is compared by what it is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kdflow_lab.align.roles import CONVERSATION, render, special_tokens
from kdflow_lab.align.shared_vocab import PROBES, difference
from kdflow_lab.align.texts import align
from kdflow_lab.align.vocabulary import TokenizerPair, Vocabulary

Verdict = Literal["one tokenizer", "cross-tokenizer"]
SAMPLE = (*PROBES, "東京 🚀 Привет", "line\r\n\n  x\t", "don't stop (now) — a.b.c")
"""What both tokenizers split to see how well they fit."""
EASILY_ALIGNED = 0.999


@dataclass(frozen=True, slots=True)
class VocabularyMap:
    """How much of two vocabularies writes the same bytes or has the same role.

    Attributes:
        shared: Pairs of ids.
        teacher_share: `shared` over the teacher's ids that write something or have a role.
        student_share: Likewise.
    """

    shared: int
    teacher_share: float
    student_share: float

    @classmethod
    def of(cls, pair: TokenizerPair) -> VocabularyMap:
        """Count."""
        shared = len(pair.shared[0])
        teacher, student = (
            shared / max(1, _meaningful(one)) for one in (pair.teacher, pair.student)
        )
        return cls(shared, teacher, student)

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.shared:,} tokens write the same bytes or have the same role: "
            f"{self.teacher_share:.1%} of the teacher's, {self.student_share:.1%} of the student's"
        )


def shared_mass(
    pair: TokenizerPair, probabilities: Any, side: Literal["teacher", "student"] = "teacher"
) -> Any:
    """Sum the probability that lies on ids which the other side has too.

    Args:
        pair: Both tokenizers.
        probabilities: Float[..., V], an array or a tensor; V may be wider than the tokenizer.
        side: Whose ids the columns are.

    Returns:
        Float[...], 0 to 1, of the same kind.
    """
    ids = pair.shared[0 if side == "teacher" else 1]
    return probabilities[..., ids[ids < probabilities.shape[-1]]].sum(-1)


@dataclass(frozen=True, slots=True)
class PairFinding:
    """One thing that was compared.

    Attributes:
        name: What it is.
        teacher: The teacher's, in words.
        student: The student's.
        fits: Whether distillation works with it as it is.
        advice: What it means or what to do; empty for nothing.
    """

    name: str
    teacher: str
    student: str
    fits: bool = True
    advice: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class PairReport:
    """How the tokenizers of teacher and student relate.

    Attributes:
        verdict: `one tokenizer` (their ids mean the same) or `cross-tokenizer`.
        why: The reason, in words.
        findings: What was compared.
        vocabulary: How much of the vocabularies is shared.
        coverage: Bytes of the probe texts that are aligned, 0 to 1.
        one_to_one: The share of the student's probe tokens that are one token of the teacher's.
        templates: The same conversation as each template renders it; None without one.
    """

    verdict: Verdict
    why: str
    findings: list[PairFinding]
    vocabulary: VocabularyMap
    coverage: float
    one_to_one: float
    templates: tuple[str | None, str | None]

    @property
    def fits(self) -> bool:
        """Whether nothing needs to be looked at."""
        return all(one.fits for one in self.findings)

    def __repr__(self) -> str:
        """The findings side by side, and both templates."""
        lines = [f"{self.verdict}: {self.why}", f"   {self.vocabulary}"]
        lines.append(
            f"   probe texts: {self.coverage:.1%} of the bytes aligned, {self.one_to_one:.1%} of "
            "the student's tokens one-to-one"
        )
        width = max(len(one.name) for one in self.findings)
        column = min(40, max(len(one.teacher) for one in self.findings))
        lines.append(f"   {'':{width}}  {'teacher':{column}}  student")
        for one in self.findings:
            mark = "ok " if one.fits else "!! "
            lines.append(f"{mark}{one.name:{width}}  {one.teacher:{column}}  {one.student}")
            if one.advice:
                lines.append(f"   {'':{width}}  -> {one.advice}")
        for name, text in zip(("teacher", "student"), self.templates, strict=True):
            lines.append(f"   the {name}'s template: {'none' if text is None else repr(text)}")
        return "\n".join(lines)


def examine_pair(teacher_tokenizer: Any, student_tokenizer: Any) -> PairReport:
    """Compare two tokenizers in everything that distillation depends on.

    Args:
        teacher_tokenizer: From `transformers`, with a `tokenizers` backend.
        student_tokenizer: Likewise.

    Raises:
        ModelError: The bytes of a tokenizer's tokens are not known.
    """
    both = (teacher_tokenizer, student_tokenizer)
    pair = TokenizerPair.of(*both)
    differs = "" if pair.same else difference(*both)
    aligned = [align(*both, text) for text in SAMPLE]
    total = sum(len(one.data) for one in aligned)
    covered = sum(one.coverage * len(one.data) for one in aligned) / total
    tokens = sum(len(one.student.ids) for one in aligned)
    single = sum(len(one.pairs) for one in aligned) / max(1, tokens)
    templates = render(teacher_tokenizer), render(student_tokenizer)
    if pair.same:
        why = "every id means the same to both, and they split the probe texts alike"
    else:
        why = f"{differs}; rows are paired by the bytes that their tokens write"
    findings = [
        _sizes(pair),
        PairFinding(
            "bytes",
            _kind(pair.teacher),
            _kind(pair.student),
            covered >= EASILY_ALIGNED,
            ""
            if covered >= EASILY_ALIGNED
            else f"{1 - covered:.1%} of the probe texts' bytes cannot be aligned and teach nothing",
        ),
        _ends(both, pair),
        _padding(both),
        _opening(both),
        _templates(both, pair, templates),
    ]
    return PairReport(
        "one tokenizer" if pair.same else "cross-tokenizer",
        why,
        findings,
        VocabularyMap.of(pair),
        covered,
        single,
        templates,
    )


def _meaningful(vocabulary: Vocabulary) -> int:
    silent = {token for token in vocabulary.roles.values() if vocabulary.token_bytes[token] is None}
    return sum(one is not None for one in vocabulary.token_bytes) + len(silent)


def _sizes(pair: TokenizerPair) -> PairFinding:
    teacher, student = len(pair.teacher), len(pair.student)
    advice = ""
    if teacher == student and not pair.same:
        advice = "equal size is not equal tokenizer: these ids mean different tokens"
    elif teacher != student and pair.same:
        advice = f"both heads are cut to the {min(teacher, student):,} ids that both have"
    return PairFinding("ids", f"{teacher:,}", f"{student:,}", True, advice)


def _kind(vocabulary: Vocabulary) -> str:
    blank = {
        "text": "bytes as in the text",
        "first": "a blank before every text",
        "any": "blanks are guessed",
    }[vocabulary.blank]
    return f"{blank}, changes texts" if vocabulary.changes else blank


def _name(tokenizer: Any, token: int | None) -> str:
    return "none" if token is None else str(tokenizer.convert_ids_to_tokens(token))


def _ends(both: tuple[Any, Any], pair: TokenizerPair) -> PairFinding:
    """What ends an answer."""
    words: list[str] = []
    advice: list[str] = []
    for side, tokenizer, vocabulary in zip(
        ("teacher", "student"), both, (pair.teacher, pair.student), strict=True
    ):
        end, eos = vocabulary.roles.get("turn_end"), tokenizer.eos_token_id
        words.append(f"{_name(tokenizer, end)} (eos {_name(tokenizer, eos)})")
        if eos is None:
            advice.append(f"the {side} has no end-of-sequence token, so that no answer could end")
        elif end != eos:
            advice.append(
                f"the {side}'s template ends an answer with another token than eos: generation "
                "must stop at both"
            )
    return PairFinding("end of answer", words[0], words[1], not advice, "; ".join(advice))


def _padding(both: tuple[Any, Any]) -> PairFinding:
    """A collator that masks padding masks the end of every answer too where pad is eos."""
    words: list[str] = []
    advice: list[str] = []
    for side, tokenizer in zip(("teacher", "student"), both, strict=True):
        words.append(_name(tokenizer, tokenizer.pad_token_id))
        if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
            advice.append(
                f"the {side} pads with its end-of-sequence token; lengths and masks are kept here, "
                "but tools that mask the padding id never teach it to stop"
            )
    return PairFinding("padding", words[0], words[1], not advice, "; ".join(advice))


def _opening(both: tuple[Any, Any]) -> PairFinding:
    """What encode() puts before a text by itself."""
    opens: list[str] = []
    for tokenizer in both:
        bare = list(tokenizer.encode("a", add_special_tokens=False))
        full = list(tokenizer.encode("a"))
        count = next(
            (n for n in range(len(full) + 1) if full[n : n + len(bare)] == bare), len(full)
        )
        added = ", ".join(_name(tokenizer, one) for one in full[:count])
        rendered = render(tokenizer)
        twice = bool(added and rendered and full[0] in _opening_specials(tokenizer, rendered))
        opens.append(f"{added or 'nothing'}{', and so does the template' if twice else ''}")
    advice = (
        ""
        if opens[0] == opens[1]
        else "only the response is aligned; each side's prompt keeps its own beginning"
    )
    return PairFinding("encode() adds", opens[0], opens[1], True, advice)


def _opening_specials(tokenizer: Any, text: str) -> set[int]:
    return {token for one, token in special_tokens(tokenizer).items() if text.startswith(one)}


def _templates(
    both: tuple[Any, Any], pair: TokenizerPair, templates: tuple[str | None, str | None]
) -> PairFinding:
    """Whether each side can render a conversation, and with which marks."""
    words: list[str] = []
    for tokenizer, vocabulary, text in zip(
        both, (pair.teacher, pair.student), templates, strict=True
    ):
        marks = ("turn_start", "user_start", "assistant_start", "header_end", "turn_end")
        shown = [
            _name(tokenizer, vocabulary.roles[one]) for one in marks if one in vocabulary.roles
        ]
        words.append("none" if text is None else " ".join(shown) or "no special tokens")
    missing = [
        side for side, text in zip(("teacher", "student"), templates, strict=True) if text is None
    ]
    if missing:
        advice = (
            f"no template of the {' and the '.join(missing)} renders "
            f"{len(CONVERSATION)} turns: give rows with prompt and completion"
        )
        return PairFinding("chat template", words[0], words[1], False, advice)
    advice = ""
    if templates[0] != templates[1]:
        advice = "they differ: each side's prompt is rendered by its own, the response is common"
    return PairFinding("chat template", words[0], words[1], True, advice)
