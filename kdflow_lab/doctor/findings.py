"""What the doctor found, and how it shows it."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdflow_lab.align import PairReport


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        found: What there is, in words.
        fits: Whether it can be used as it is.
        advice: What to do; empty for nothing.
    """

    name: str
    found: str
    fits: bool = True
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings; shows itself as text and as a table."""

    findings: list[Finding] = field(default_factory=list)
    tokenizers: PairReport | None = None
    """How the teacher's and the student's relate, if a lab was asked."""

    @property
    def fits(self) -> bool:
        """Whether nothing needs to be done."""
        return all(finding.fits for finding in self.findings)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Plain data, by name."""
        return {
            one.name: {"found": one.found, "fits": one.fits, "advice": one.advice}
            for one in self.findings
        }

    def __str__(self) -> str:
        """One line a finding, its advice below it."""
        width = max((len(one.name) for one in self.findings), default=0)
        lines = []
        for one in self.findings:
            lines.append(f"{'ok ' if one.fits else '!! '}{one.name:{width}}  {one.found}")
            if one.advice:
                lines.append(f"   {'':{width}}  -> {one.advice}")
        if self.tokenizers is not None:
            lines.append(repr(self.tokenizers))
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Show the same as a table."""
        rows = "".join(
            f"<tr><td>{'✓' if one.fits else '✗'}</td><th style='text-align:left'>"
            f"{html.escape(one.name)}</th><td style='text-align:left'>{html.escape(one.found)}"
            + (f"<br><em>{html.escape(one.advice)}</em>" if one.advice else "")
            + "</td></tr>"
            for one in self.findings
        )
        table = f"<table><tbody>{rows}</tbody></table>"
        if self.tokenizers is None:
            return table
        return f"{table}<pre>{html.escape(repr(self.tokenizers))}</pre>"
