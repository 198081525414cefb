"""What every lens shares: a live view in JupyterLab, and a static twin wherever there is none.

A notebook draws one form of each output only, and it prefers a live view to all others, even in a
saved notebook whose models are gone: JupyterLab then writes "Error displaying widget: model not
found" (its widget renderer, unless the notebook is not trusted: then it is not asked at all). So a
lens has two outputs, and each hides the other by a style sheet that goes away with it:

- the live view, with an empty HTML form for GitHub, nbconvert and notebooks that are not trusted.
  While it is on the page it hides its twin;
- the twin: HTML with inline styles, SVG and text. It hides the output before it as long as there is
  no live view in it: while that loads, and for ever if its model is gone.

Where neither style sheet is obeyed, both are seen, and nothing is lost.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from kdflow_lab.bars import in_notebook

if TYPE_CHECKING:
    from IPython.display import DisplayHandle

MOST_OPEN = 6
"""Live views in one kernel; the oldest becomes its twin."""
GRACE_S = 10.0
"""How long a live view without a place on a page is kept: JupyterLab may just move it."""

_open: list[Lens] = []
"""The lenses with a live view, oldest first."""


class LensWidget(anywidget.AnyWidget):
    """The live view of a lens; its JavaScript begins with `openLens` of `/widgets/lens.js`."""

    twin = traitlets.Unicode().tag(sync=True)
    """Class of the twin's HTML element, which the live view hides."""

    def __init__(self, **traits: Any) -> None:
        """Make the view; pages tell it where they show it."""
        super().__init__(twin=f"kdflow-twin-{uuid.uuid4().hex}", **traits)
        self._unseen: threading.Timer | None = None
        self._closed = threading.Event()
        self.on_msg(self._told)

    def _told(self, _: object, message: dict[str, Any], buffers: object) -> None:
        if message.get("kind") != "views":
            self.asked(message)
            return
        if self._unseen is not None:
            self._unseen.cancel()
            self._unseen = None
        if message.get("count") == 0 and not self._closed.is_set():
            self._unseen = threading.Timer(GRACE_S, self.close)
            self._unseen.daemon = True
            self._unseen.start()

    def asked(self, message: dict[str, Any]) -> None:
        """Answer a message of the page."""

    @property
    def closed(self) -> threading.Event:
        """Set when the view is closed: its cell was cleared, or other views took its place."""
        return self._closed

    def close(self) -> None:
        """Free the page's and the kernel's memory; threads of the view see `closed`."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._unseen is not None:
            self._unseen.cancel()
        super().close()


class Lens(ABC):
    """A view with a static twin; a notebook shows it when it is a cell's last value.

    A lens gives `html`, `svg` and `__repr__`, its twin, and `_live`, its live view.
    """

    def __init__(self) -> None:
        """Nothing is shown yet."""
        self.widget: LensWidget | None = None
        """The live view, once a notebook shows it; None when it is closed."""
        self._twins: list[DisplayHandle] = []
        self._shell: Any = None  # whose cells are watched
        self._places: dict[str, str] = {}  # id of a cell -> that of its run which showed this

    @abstractmethod
    def html(self) -> str:
        """The twin as HTML: inline styles, no script."""

    @abstractmethod
    def svg(self) -> str:
        """The twin as an SVG document."""

    @abstractmethod
    def _live(self) -> LensWidget:
        """Make the live view."""

    @property
    def unsettled(self) -> bool:
        """Whether what the twin shows still changes; then it is drawn anew when that ends."""
        return False

    def save(self, path: str | Path) -> Path:
        """Write the twin as a file: HTML if its name ends so, else SVG."""
        file = Path(path)
        page = file.suffix.lower() in (".html", ".htm")
        text = f'<!DOCTYPE html><meta charset="utf-8">{self.html()}' if page else self.svg()
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
        return file

    def close(self) -> None:
        """End the live view; its outputs become static."""
        if self in _open:
            _open.remove(self)
        self._places.clear()
        self._watch(False)
        widget, self.widget = self.widget, None
        if widget is not None:
            widget.close()

    def _forms(self) -> dict[str, Any]:
        forms = {"text/html": self.html(), "image/svg+xml": self.svg(), "text/plain": repr(self)}
        return {mime: _encodable(text) for mime, text in forms.items()}

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The static forms, for whoever asks without displaying."""
        return self._forms()

    def _ipython_display_(self) -> None:
        """Show the live view and its twin, or in a terminal the text."""
        from IPython.display import DisplayHandle, display

        if not in_notebook():
            display(self._forms(), raw=True)
            return
        if self.widget is None or self.widget.closed.is_set():
            self.widget = self._live()
        self._take_place()
        view = self.widget._repr_mimebundle_()
        live = view[0] if isinstance(view, tuple) else view or {}
        live = {mime: form for mime, form in live.items() if mime != "text/plain"}
        display({**live, "text/html": ""}, raw=True)
        handle = DisplayHandle()
        handle.display(self._twin(self.widget.twin), raw=True)
        self._twins.append(handle)
        self._watch(self.unsettled)

    def _twin(self, name: str) -> dict[str, Any]:
        """The static forms, HTML in an element that the live view can hide."""
        forms = self._forms()
        forms["text/html"] = (
            f"<style>.jp-OutputArea-child:has(+ .jp-OutputArea-child .{name})"
            ":not(:has(.kdflow-lens)){display:none}</style>"
            f'<div class="{name}">{forms["text/html"]}</div>'
        )
        return forms

    def _refresh_twins(self) -> None:
        """Bring the static forms of what is shown up to date; the live view stays untouched."""
        if self.widget is not None and self._twins:
            forms = self._twin(self.widget.twin)
            for handle in self._twins:
                handle.update(forms, raw=True)

    def _watch(self, on: bool) -> None:
        """Look at the end of every cell whether the twin is settled.

        A message of a thread that is sent between two cells is lost by nbclient; one that is sent
        at the end of a cell is a part of it.
        """
        if on == (self._shell is not None):
            return
        if on:
            from IPython.core.getipython import get_ipython

            self._shell = get_ipython()
            self._shell.events.register("post_run_cell", self._at_end_of_cell)
        else:
            shell, self._shell = self._shell, None
            with contextlib.suppress(ValueError):  # IPython forgot it, as at a reset
                shell.events.unregister("post_run_cell", self._at_end_of_cell)

    def _at_end_of_cell(self, *_: Any) -> None:
        if not self.unsettled:
            self._watch(False)
            self._refresh_twins()

    def _take_place(self) -> None:
        """Remember the cell that shows this; close what an earlier run of that cell showed."""
        cell, run = _running_cell()
        for other in [lens for lens in _open if lens._places.get(cell, run) != run]:
            del other._places[cell]
            if not other._places and other is not self:
                other.close()
        if self not in _open:
            _open.append(self)
            for other in _open[:-MOST_OPEN]:
                other.close()
        if cell:
            if self._places.get(cell, run) != run:
                self._twins.clear()
            self._places[cell] = run


def _running_cell() -> tuple[str, str]:
    """The id of the cell that runs, and that of its run; empty where the page does not say."""
    from IPython.core.getipython import get_ipython

    parent: dict[str, Any] = {}
    with contextlib.suppress(AttributeError):  # no kernel of this kind
        parent = get_ipython().kernel.get_parent("shell") or {}  # type: ignore[union-attr]
    cell = parent.get("metadata", {}).get("cellId", "")
    return cell, parent.get("header", {}).get("msg_id", "")


def _encodable(text: str) -> str:
    """Write lone surrogates, which UTF-8 has no form of, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
