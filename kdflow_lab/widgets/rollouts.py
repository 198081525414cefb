"""The rollout browser: what the student wrote, where it left its teacher, and how it changed.

It reads `rollouts.jsonl` alone (`kdflow_lab.on_policy.journal` says what is in it), so it needs no
cluster and no tokenizer. Its JavaScript is `/widgets/rollouts.js`; the page asks the kernel for a
part of the list, for one answer, or for the pinned prompts at two checkpoints.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import traitlets

from kdflow_lab.errors import DataError, KDFlowLabError
from kdflow_lab.run import Run
from kdflow_lab.rundir import ENDED
from kdflow_lab.widgets import _rollouts_html, _rollouts_svg, esm
from kdflow_lab.widgets._lens import Lens, LensWidget
from kdflow_lab.widgets._rollouts_data import (
    PER_PAGE,
    THRESHOLD,
    Answer,
    answer_page,
    listing_page,
    pinned_page,
)
from kdflow_lab.widgets._rollouts_index import ORDERS, RolloutIndex, Wanted
from kdflow_lab.widgets._table import Cell, Table

if TYPE_CHECKING:
    import pandas as pd

POLL_S = 0.5
TWIN_ROWS = 8
NOTHING = "no answers yet: rollouts.jsonl gets some of every on-policy step (log_rollouts)"


class RolloutBrowser(Lens):
    """The answers of one run; a notebook shows it when it is a cell's last value."""

    def __init__(self, run: Run, *, threshold: float = THRESHOLD) -> None:
        """Read where the answers lie.

        Args:
            run: Living or ended.
            threshold: Nats from which on a token counts as diverging.
        """
        super().__init__()
        self.run = run
        self.threshold = threshold
        self.index = RolloutIndex(run.path / "rollouts.jsonl")
        self._reader = Run(run.path)  # a Run is read by one thread at a time
        self._reading = threading.Lock()
        self.index.read()

    # -- numbers --------------------------------------------------------------------------------

    @property
    def frame(self) -> pd.DataFrame:
        """One line an answer, in the order of the file.

        `step`, `attempt`, `version` of the weights, `staleness` in steps, `row` of the data,
        `length` in tokens, `finished`, `kl_mean` and `kl_max` (nats; NaN where nobody looked),
        `pinned`, and `counts`: false for what an older attempt wrote beyond the step that a later
        one began from.
        """
        import pandas as pd

        self.index.read()
        entries = self.index.entries()
        later = self.later()
        names = ("step", "attempt", "version", "staleness", "row", "length", "finished")
        names += ("kl_mean", "kl_max", "pinned")
        found = pd.DataFrame({name: [getattr(entry, name) for entry in entries] for name in names})
        found["counts"] = [
            not any(entry.attempt < one and entry.step > step for one, step in later)
            for entry in entries
        ]
        return found

    def answer(self, at: int) -> Answer:
        """Return one answer, token by token.

        Args:
            at: Its line in `frame`.

        Raises:
            DataError: There is no such answer.
        """
        self.index.read()
        return Answer.read(self.index, at)

    def later(self) -> list[tuple[int, int]]:
        """Attempts after the first, and the step that each began from."""
        with self._reading:
            begun = [event for event in self._reader.events if event["event"] == "started"]
        return [(event.get("attempt", 1), event.get("from_step", 0)) for event in begun[1:]]

    @property
    def live(self) -> bool:
        """Whether more answers may come."""
        with self._reading:
            return self._reader.state not in ENDED

    def headline(self) -> str:
        """What there is, in one line."""
        later = self.later()
        entries = self.index.entries()
        found = self.index.select(Wanted(), later=later)
        if not found:
            return f"{self.run.name}: {NOTHING}"
        known = [entries[at].kl_mean for at in found if entries[at].kl_mean >= 0]
        steps = {entries[at].step for at in found}
        ended = sum(entries[at].finished for at in found) / len(found)
        mean = f" · mean KL {sum(known) / len(known):.3f} nats" if known else ""
        return (
            f"{self.run.name}: {len(found):,} answers of {len(steps):,} steps{mean} · "
            f"{ended:.0%} ended by themselves"
        )

    # -- pictures -------------------------------------------------------------------------------

    def _chosen(self) -> Answer | None:
        """The answer that a still picture shows: the most diverging of the newest ones."""
        widget = self.widget
        if isinstance(widget, RolloutWidget) and widget.chosen is not None:
            return Answer.read(self.index, widget.chosen)
        newest = self.index.select(Wanted(), later=self.later())[: 2 * PER_PAGE]
        entries = self.index.entries()
        worst = max(
            newest, key=lambda at: (entries[at].kl_max >= 0, entries[at].kl_max), default=-1
        )
        return None if worst < 0 else Answer.read(self.index, worst)

    def html(self) -> str:
        """The most diverging answers, one of them token by token, and the pinned prompts."""
        self.index.read()
        later = self.later()
        worst = self.index.select(Wanted(), "kl_max", later=later)
        return _rollouts_html.html(
            f"{self.headline()}. The most diverging:" if worst else self.headline(),
            listing_page(self.index, worst, 0, TWIN_ROWS),
            self._chosen(),
            pinned_page(self.index, later=later),
            self.threshold,
        )

    def svg(self) -> str:
        """One answer token by token."""
        self.index.read()
        return _rollouts_svg.draw(self.headline(), self._chosen(), self.threshold)

    def __repr__(self) -> str:
        """The newest answers, as a table, and where the most diverging one left its teacher."""
        self.index.read()
        newest = self.index.select(Wanted(), later=self.later())
        rows = [
            tuple(
                Cell(text)
                for text in (
                    *(str(one[name]) for name in ("step", "row", "length")),
                    *(_rollouts_html.nats(one[name]) for name in ("kl_mean", "kl_max")),
                    "ended" if one["finished"] else "cut",
                    f"{one['prompt'][-30:]} -> {one['text'][:30]}",
                )
            )
            for one in listing_page(self.index, newest, 0)
        ]
        heads = ("step", "row", "tokens", "mean KL", "max KL", "end", "prompt and answer")
        if not rows:
            return self.headline()
        table = Table(self.headline(), tuple(map(Cell, heads)), rows, numbers_from=0).text()
        answer = self._chosen()
        if answer is None:
            return table
        return f"{table}\n\n{_rollouts_html.title(answer)}\n" + _rollouts_html.verdict(
            answer, self.threshold
        )

    def _live(self) -> RolloutWidget:
        return RolloutWidget(self)


class RolloutWidget(LensWidget):
    """The live view.

    A page sends `{"kind": "list", "asked", "order", "descending", "start", …}` with the fields of
    `Wanted`, `{"kind": "answer", "at"}`, or `{"kind": "pinned", "before", "after"}`; what it asked
    for comes as the trait of that name.
    """

    _esm = esm("rollouts")

    name = traitlets.Unicode().tag(sync=True)
    headline = traitlets.Unicode().tag(sync=True)
    note = traitlets.Unicode().tag(sync=True)
    """Why something that was asked for cannot be shown."""
    live = traitlets.Bool(False).tag(sync=True)
    threshold = traitlets.Float(THRESHOLD).tag(sync=True)
    """Nats from which on a token counts as diverging."""
    listing = traitlets.Dict().tag(sync=True)
    """`asked`, `order`, `descending`, `start`, `count` of the selection, and the `rows` shown."""
    answer = traitlets.Dict().tag(sync=True)
    """See `_rollouts_data.answer_page`; empty if there is none."""
    pinned = traitlets.Dict().tag(sync=True)
    """See `_rollouts_data.pinned_page`."""

    def __init__(self, browser: RolloutBrowser) -> None:
        """Show the newest answers, and follow the run while it lives."""
        self._browser = browser
        self._query: dict[str, Any] = {}
        self._pair: tuple[int | None, int | None] = (None, None)
        self._changing = threading.RLock()  # over what both threads answer with
        super().__init__(
            name=browser.run.name, threshold=browser.threshold, live=browser.live, note=""
        )
        self.observe(self._moved_threshold, names="threshold")
        self._refresh()
        rows = self.listing["rows"]
        if rows:
            worst = max(rows, key=lambda one: one["kl_max"] or 0.0)
            self.answer = answer_page(browser.answer(worst["at"]))
        if self.live:
            threading.Thread(
                target=self._follow, name=f"kdflow-rollouts-{self.name}", daemon=True
            ).start()

    @property
    def chosen(self) -> int | None:
        """The answer that the page shows."""
        return self.answer.get("at")

    def _moved_threshold(self, change: Any) -> None:
        """The page's threshold is the twin's, too."""
        self._browser.threshold = change["new"]

    def asked(self, message: dict[str, Any]) -> None:
        """Answer a message of the page."""
        try:
            with self._changing:
                self.note = ""
                if message["kind"] == "list":
                    self._query = message
                    self._list()
                elif message["kind"] == "answer":
                    self.answer = answer_page(self._browser.answer(int(message["at"])))
                elif message["kind"] == "pinned":
                    self._pair = message.get("before"), message.get("after")
                    self._show_pinned()
        except (KDFlowLabError, KeyError, TypeError, ValueError) as error:
            self.note = str(error)

    def _list(self) -> None:
        """Show the part of the list that the page asked for last."""
        query = self._query
        index = self._browser.index
        wanted = Wanted(
            text=str(query.get("text", "")),
            finished=query.get("finished"),
            kl=float(query.get("kl") or 0.0),
            first_step=int(query.get("first_step") or 0),
            last_step=query.get("last_step"),
        )
        order = query.get("order", ORDERS[0])
        descending = bool(query.get("descending", True))
        found = index.select(wanted, order, descending=descending, later=self._browser.later())
        start = min(int(query.get("start", 0)), max(0, (len(found) - 1) // PER_PAGE * PER_PAGE))
        self.listing = {
            "asked": query.get("asked", 0),
            "order": order,
            "descending": descending,
            "start": start,
            "per_page": PER_PAGE,
            "count": len(found),
            "rows": listing_page(index, found, start),
        }

    def _show_pinned(self) -> None:
        self.pinned = pinned_page(self._browser.index, *self._pair, self._browser.later())

    def _refresh(self) -> None:
        """Show what is there now."""
        with self._changing, self.hold_sync():
            self.headline = self._browser.headline()
            self._list()
            self._show_pinned()

    def _follow(self) -> None:
        """Bring new answers to the page until the run has ended or the view is closed."""
        browser = self._browser
        try:
            while not self.closed.wait(POLL_S):
                live = browser.live  # asked first: what was written before the end is seen
                if browser.index.read():
                    self._refresh()
                    if not self.answer and self.listing["rows"]:
                        first = self.listing["rows"][0]["at"]
                        self.answer = answer_page(browser.answer(first))
                if not live:
                    self.live = False
                    browser._refresh_twins()
                    return
        except Exception as error:  # else the thread would die without a word
            if not self.closed.is_set():
                with contextlib.suppress(Exception):
                    self.live = False
                    self.note = f"No longer follows the run. {type(error).__name__}: {error}"


def browse(run: Run, *, threshold: float = THRESHOLD) -> RolloutBrowser:
    """Open the answers of a run.

    Raises:
        DataError: The run is not on-policy, so that it never writes any.
    """
    browser = RolloutBrowser(run, threshold=threshold)
    if not browser.index and not run.config.get("on_policy"):
        raise DataError(
            f"{run.name} has no rollouts: its student learnt from the answers of the data. Run "
            "lab.distill(…, on_policy=True), or let a model write: lab.rollouts(data)."
        )
    return browser
