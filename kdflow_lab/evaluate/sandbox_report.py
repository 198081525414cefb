"""What the loss sandbox found: values of every token, pushes of every loss, and their picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab.errors import ConfigError, DataError, unknown_name
from kdflow_lab.evaluate.sandbox_tokens import SandboxPart, TokenLook

if TYPE_CHECKING:
    import pandas as pd

MOST_PROBLEMS = 5
"""Tokens that the warning names."""


@dataclass(frozen=True, repr=False)
class Sandbox:
    """A few texts through several losses; a notebook shows it when it is a cell's last value.

    Attributes:
        name: Of the model.
        losses: Their names, in the order asked for.
        temperature: Of the divergences, the probabilities and the entropies.
        looks: Every token that was looked at, in the order of the texts.
        rows: Row of the data -> the text of each of its tokens, prompts included.
        texts: Token id -> its text.
    """

    name: str
    losses: tuple[str, ...]
    temperature: float
    looks: list[TokenLook]
    rows: dict[int, list[str]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)

    @classmethod
    def merge(
        cls,
        parts: Sequence[SandboxPart],
        *,
        name: str,
        losses: Sequence[str],
        temperature: float,
    ) -> Sandbox:
        """Join what the ranks found.

        Raises:
            DataError: There was no token to look at.
        """
        looks = sorted(
            (look for part in parts for look in part.looks),
            key=lambda look: (look.row, look.position),
        )
        if not looks:
            raise DataError("There is no response token to look at. Pass longer texts.")
        rows = {row: texts for part in parts for row, texts in part.rows.items()}
        texts = {token_id: text for part in parts for token_id, text in part.texts.items()}
        return cls(name, tuple(losses), temperature, looks, dict(sorted(rows.items())), texts)

    # -- numbers --------------------------------------------------------------------------------

    @property
    def frame(self) -> pd.DataFrame:
        """One line a token.

        `row`, `position` in it, `token` and `token_id`; every loss (nats); `student_entropy` and
        `teacher_entropy` (nats); `student_p` and `teacher_p` of the token; `agreement` of the top
        tokens; `disagreement` of the losses, see `disagreement`.
        """
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "row": look.row,
                    "position": look.position,
                    "token": self.texts[look.token_id],
                    "token_id": look.token_id,
                    **look.values,
                    "student_entropy": look.student_entropy,
                    "teacher_entropy": look.teacher_entropy,
                    "student_p": look.student_p,
                    "teacher_p": look.teacher_p,
                    "agreement": look.agreement,
                    "disagreement": disagreement(look),
                }
                for look in self.looks
            ]
        )

    def pushes(self, loss: str, token: int) -> pd.DataFrame:
        """What a loss wants at one token: the logits that it raises and lowers most.

        Args:
            loss: One of `losses`.
            token: Its line in `frame`.

        Returns:
            A line for each of the strongest pushes, `up` first, then `down`: `direction`, `token`,
            `token_id`, `push` (-d loss / d logit), and the two models' probabilities of the token.

        Raises:
            ConfigError: There is no such loss or token.
        """
        import pandas as pd

        if loss not in self.losses:
            raise unknown_name("loss of this sandbox", loss, self.losses)
        look = self.looks[self.index(token)]
        return pd.DataFrame(
            [
                {
                    "direction": direction,
                    "token": self.texts[push.token_id],
                    "token_id": push.token_id,
                    "push": push.size,
                    "student_p": push.student_p,
                    "teacher_p": push.teacher_p,
                }
                for direction, found in (("up", look.up[loss]), ("down", look.down[loss]))
                for push in found
            ],
            columns=["direction", "token", "token_id", "push", "student_p", "teacher_p"],
        )

    def index(self, token: int | None) -> int:
        """Return the place of a token in `looks`; by default that of the largest disagreement.

        Raises:
            ConfigError: There is no such token.
        """
        if token is None:
            scores = [disagreement(look) for look in self.looks]
            known = [-1.0 if math.isnan(score) else score for score in scores]
            return known.index(max(known))
        if isinstance(token, bool) or not isinstance(token, int):
            raise ConfigError(f"A token is {token!r}; expected its line in sandbox.frame.")
        if not -len(self.looks) <= token < len(self.looks):
            raise ConfigError(
                f"There is no token {token}: the sandbox has {len(self.looks)}, counted from 0 as "
                "in sandbox.frame."
            )
        return token % len(self.looks)

    def find(self, text: str, row: int | None = None) -> int:
        """Return the line in `frame` of the first token with this text; spaces around do not count.

        Raises:
            ConfigError: There is none.
        """
        for place, look in enumerate(self.looks):
            if row in (None, look.row) and self.texts[look.token_id].strip() == text.strip():
                return place
        known = {
            self.texts[look.token_id].strip() for look in self.looks if row in (None, look.row)
        }
        raise unknown_name("token of these texts", text, known)

    @property
    def problems(self) -> list[str]:
        """Where something is not finite, token by token."""
        return [
            f"row {look.row}, token {look.position} ({self.texts[look.token_id]!r}): {problem}"
            for look in self.looks
            for problem in look.problems
        ]

    @property
    def warning(self) -> str:
        """The first problems in a sentence; an empty string if there are none."""
        found = self.problems
        if not found:
            return ""
        more = f"; and {len(found) - MOST_PROBLEMS} more" if len(found) > MOST_PROBLEMS else ""
        return f"Not finite: {'; '.join(found[:MOST_PROBLEMS])}{more}."

    # -- pictures -------------------------------------------------------------------------------

    def show(self, token: int | None = None, *, loss: str | None = None) -> SandboxView:
        """Return the texts, shaded by a loss, and what all losses want of one token.

        Args:
            token: Its line in `frame`; by default the one where the losses disagree most.
            loss: That the texts are shaded by; the first one by default.

        Raises:
            ConfigError: There is no such token or loss.
        """
        if loss is not None and loss not in self.losses:
            raise unknown_name("loss of this sandbox", loss, self.losses)
        return SandboxView(self, self.index(token), loss or self.losses[0])

    def __repr__(self) -> str:
        """The tables, aligned."""
        return repr(self.show())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return self.show()._repr_mimebundle_()

    def _ipython_display_(self) -> None:
        self.show()._ipython_display_()


@dataclass(frozen=True, repr=False)
class SandboxView:
    """A sandbox with the eye on one token.

    Attributes:
        sandbox: What is shown.
        token: The token's place in `sandbox.looks`.
        loss: That the texts are shaded by.
    """

    sandbox: Sandbox
    token: int
    loss: str

    def svg(self) -> str:
        """What the losses want of the token, as an SVG document."""
        from kdflow_lab.widgets._sandbox_svg import draw

        return draw(self.sandbox, self.token)

    def save(self, path: str | Path) -> Path:
        """Write that drawing as an SVG file."""
        file = Path(path)
        file.write_text(self.svg(), encoding="utf-8")
        return file

    def html(self) -> str:
        """The shaded texts and the table of tokens and losses."""
        from kdflow_lab.widgets._sandbox_tables import html

        return html(self.sandbox, self.token, self.loss)

    def __repr__(self) -> str:
        """The tables, aligned."""
        from kdflow_lab.widgets._sandbox_tables import text

        return text(self.sandbox, self.token)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """All forms in one bundle, for whoever asks without displaying."""
        drawn = self.svg()
        return {
            "text/html": self.html() + drawn,
            "image/svg+xml": drawn,
            "text/plain": repr(self),
        }

    def _ipython_display_(self) -> None:
        """Show the texts with the table and, below them, the token.

        In two outputs: JupyterLab takes an SVG out of the HTML of a notebook that it does not
        trust, and would leave nothing. Alone, it stands there as its table until it is trusted.
        """
        from IPython.display import display

        from kdflow_lab.widgets._sandbox_tables import token_text

        display({"text/html": self.html(), "text/plain": repr(self)}, raw=True)
        drawn = {
            "image/svg+xml": self.svg(),
            "text/plain": token_text(self.sandbox, self.token),
        }
        display(drawn, raw=True)


def disagreement(look: TokenLook) -> float:
    """How much the losses disagree about what to push at a token; 0 for one loss.

    For two losses with gradients g and h on the student's logits, (1 - cos(g, h)) * sqrt(|g| |h|):
    large where both push, and not the same way. The size of the pushes alone, which a learning rate
    would change as well, is no disagreement. For more losses, the mean over their pairs.
    """
    products, count = look.products, len(look.products)
    scores = []
    for one in range(count):
        for other in range(one):
            squares = products[one][one], products[other][other]
            if not all(map(math.isfinite, squares)):
                return math.nan
            lengths = math.sqrt(squares[0]) * math.sqrt(squares[1])  # |g| |h|
            cosine = min(1.0, products[one][other] / lengths) if lengths > 0.0 else 1.0
            scores.append((1.0 - cosine) * math.sqrt(lengths))
    return sum(scores) / len(scores) if scores else 0.0
