"""One line of progress: tqdm in a terminal, an output updated in place in a notebook.

tqdm's own notebook bar is a widget, and a widget is saved as the 0 % it began with. Here a saved
notebook shows how it ended.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol

FORMAT = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
COLUMNS = 100


class Bar(Protocol):
    """A line that is drawn again and again."""

    def text(self, text: str) -> None:
        """Show words only."""
        ...

    def meter(self, before: str, done: int, total: int, behind: str) -> None:
        """Show `done` of `total` as a bar with words before and behind it."""
        ...

    def close(self) -> None:
        """Leave the line as it is."""
        ...


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this code; IPython is asked only if it is loaded already."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


def make_bar() -> Bar:
    """Make the bar that suits the place this runs in; nothing is shown yet."""
    return _NotebookBar() if in_notebook() else _TerminalBar()


class _TerminalBar:
    """A tqdm bar on stderr, made at its first use."""

    def __init__(self) -> None:
        self._made: Any = None

    @property
    def _bar(self) -> Any:
        if self._made is None:
            import tqdm

            self._made = tqdm.tqdm(bar_format="{desc}", dynamic_ncols=True)
        return self._made

    def text(self, text: str) -> None:
        self._bar.bar_format = "{desc}"
        self._bar.set_description_str(text)

    def meter(self, before: str, done: int, total: int, behind: str) -> None:
        self._bar.bar_format = FORMAT
        self._bar.total, self._bar.n = total, done
        self._bar.set_postfix_str(behind, refresh=False)
        self._bar.set_description_str(before)

    def close(self) -> None:
        if self._made is not None:
            self._made.close()


class _NotebookBar:
    """Plain text in an output of the running cell."""

    def __init__(self) -> None:
        self._handle = None
        self._shown = ""

    def text(self, text: str) -> None:
        if text == self._shown:
            return
        self._shown = text
        if self._handle is None:
            from IPython.display import DisplayHandle

            self._handle = DisplayHandle()
            self._handle.display({"text/plain": text}, raw=True)
        else:
            self._handle.update({"text/plain": text}, raw=True)

    def meter(self, before: str, done: int, total: int, behind: str) -> None:
        import tqdm

        self.text(
            tqdm.tqdm.format_meter(
                done, total, 0, ncols=COLUMNS, prefix=before, postfix=behind, bar_format=FORMAT
            )
        )

    def close(self) -> None:
        """Nothing to free: the output stays."""
