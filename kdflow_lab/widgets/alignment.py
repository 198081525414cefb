"""The alignment lens: what two tokenizers make of one text, as two strips with bridges.

It needs two tokenizers and nothing else. Its JavaScript is `/widgets/alignment.js`; what is shown
is worked out here (`_alignment_data`), so that page, HTML, SVG and terminal say the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import traitlets

from kdflow_lab.align.tables import alignment_table
from kdflow_lab.widgets import esm
from kdflow_lab.widgets._alignment_data import conversation, page, roles
from kdflow_lab.widgets._alignment_html import html
from kdflow_lab.widgets._alignment_svg import draw
from kdflow_lab.widgets._lens import Lens, LensWidget

if TYPE_CHECKING:
    from kdflow_lab.align.alignment import Alignment


class AlignmentWidget(LensWidget):
    """The live view; everything it shows is there from the start, so no kernel is asked again."""

    _esm = esm("alignment")

    strips = traitlets.List(traitlets.Dict()).tag(sync=True)
    """One or two alignments, each with its `title` and the columns of `_alignment_data.page`."""
    roles = traitlets.List(traitlets.List(traitlets.Unicode())).tag(sync=True)
    """Role, the teacher's token and the student's; empty where it has none."""


class AlignmentLens(Lens):
    """An alignment as a notebook shows it.

    Attributes:
        alignment: What is shown.
        example: A short conversation through both chat templates; None where they render none.
    """

    def __init__(self, alignment: Alignment) -> None:
        """Nothing is drawn yet."""
        super().__init__()
        self.alignment = alignment
        self.example = conversation(alignment)

    def html(self) -> str:
        """Strips, example conversation and roles; long texts are cut."""
        return html(self.alignment, self.example, roles(self.alignment))

    def svg(self) -> str:
        """The strips as a drawing."""
        return draw(self.alignment)

    def __repr__(self) -> str:
        """The tokens side by side, as a table."""
        return alignment_table(self.alignment)

    def _live(self) -> AlignmentWidget:
        strips: list[dict[str, Any]] = [{"title": "Text", **page(self.alignment)}]
        if self.example is not None:
            strips.append({"title": "Chat templates", **page(self.example)})
        found = [[role.name, role.teacher, role.student] for role in roles(self.alignment)]
        return AlignmentWidget(strips=strips, roles=found)
