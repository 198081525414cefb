"""The divergence lens: where student and teacher disagree, token by token and step by step.

`DivergenceLens` shows one inspection, or those of a run's probes with a slider over its steps; its
JavaScript is `/widgets/divergence.js`. While a run trains, a thread brings its newest probes to the
page. `_lens.py` says how a lens is shown and what a saved notebook keeps of it.
"""

from __future__ import annotations

import threading
from typing import Any

import traitlets

from kdflow_lab.errors import KDFlowLabError, unknown_name
from kdflow_lab.evaluate.inspection import QUANTITIES, Inspection
from kdflow_lab.evaluate.probe_file import ids_in
from kdflow_lab.evaluate.run_probes import RunProbes
from kdflow_lab.widgets import _divergence_html, _divergence_svg, esm
from kdflow_lab.widgets._divergence_data import (
    PREFERRED,
    cut_texts,
    described,
    pack_places,
    pack_step,
    scales,
)
from kdflow_lab.widgets._lens import Lens, LensWidget

POLL_S = 0.5
"""Between two looks at the directory of a run that trains."""
NONE_YET = "No probes yet: they come before the run's next step."


class DivergenceWidget(LensWidget):
    """The live view of a divergence lens.

    A page asks for a step by `{"kind": "step", "step": 20}`. The answer, which it also gets
    unasked when a run has new probes, is `{"kind": "step", "step", "layout", "texts", "note"}` with
    one buffer, or `{"kind": "failed", "step", "why"}`.
    """

    _esm = esm("divergence")

    name = traitlets.Unicode().tag(sync=True)
    quantities = traitlets.List().tag(sync=True)
    """Of each: name, label, unit, kind of scale and its highest value."""
    quantity = traitlets.Unicode().tag(sync=True)
    """What the page colours by, now."""
    bits = traitlets.Bool(False).tag(sync=True)
    texts = traitlets.Dict().tag(sync=True)
    """Token id, as text -> its text, of the first step that was shown."""
    layout_of_places = traitlets.Dict().tag(sync=True)
    places = traitlets.Bytes().tag(sync=True)
    """Tokens and rows: see `_divergence_data.pack` and `PLACES`."""
    step = traitlets.Int(-1).tag(sync=True)
    """The step in `values`; -1 if it is no run's."""
    layout_of_values = traitlets.Dict().tag(sync=True)
    values = traitlets.Bytes().tag(sync=True)
    """What a step changes: see `_divergence_data.pack_step`."""
    note = traitlets.Unicode().tag(sync=True)
    """What is not known of the tokens, or why the page no longer follows the run."""
    steps = traitlets.List(traitlets.Int()).tag(sync=True)
    """Steps of the run that can be shown; empty for a single inspection."""
    live = traitlets.Bool(False).tag(sync=True)
    """Whether more steps may come."""

    def __init__(self, lens: DivergenceLens, first: Inspection | None) -> None:
        """Show `first`, or wait for the first probes of a run."""
        self._lens = lens
        self._shape: tuple[int, ...] = ()
        self._sent: set[int] = set()
        traits: dict[str, Any] = {"name": lens.name, "quantity": lens.quantity or ""}
        if lens.probes is not None:
            traits |= {"steps": lens.probes.steps, "live": lens.probes.live}
        if first is not None:
            traits |= self._first_traits(first)
        super().__init__(**traits)
        if self.live:
            thread = threading.Thread(
                target=self._follow, name=f"kdflow-lens-{lens.name}", daemon=True
            )
            thread.start()

    def _first_traits(self, first: Inspection) -> dict[str, Any]:
        """Texts, scales and the values of the first step that is shown."""
        self._sent = set(ids_in(first.arrays))
        self._shape = first.arrays["labels"].shape
        layout_of_places, places = pack_places(first)
        layout_of_values, values = pack_step(first)
        return {
            "texts": cut_texts(first, self._sent),
            "quantities": described(self._lens._scales(first)),
            "quantity": self._lens._chosen(first),
            "layout_of_places": layout_of_places,
            "places": places,
            "layout_of_values": layout_of_values,
            "values": values,
            "step": -1 if first.step is None else first.step,
            "note": first.note,
        }

    def asked(self, message: dict[str, Any]) -> None:
        """Send the values of a step that the page wants to show."""
        step = message.get("step")
        if message.get("kind") == "step" and type(step) is int:
            self._send_step(step)

    def _send_step(self, step: int) -> None:
        probes = self._lens.probes
        if probes is None:
            return
        try:
            found = probes.at(step)
        except (KDFlowLabError, OSError) as error:
            self.send({"kind": "failed", "step": step, "why": str(error)})
            return
        if found.arrays["labels"].shape != self._shape:
            why = f"Step {step} was probed on other texts: %kdflow inspect shows them anew."
            self.send({"kind": "failed", "step": step, "why": why})
            return
        layout, values = pack_step(found)
        texts = cut_texts(found, set(ids_in(found.arrays)) - self._sent)
        answer = {"kind": "step", "step": step, "layout": layout, "texts": texts}
        self.send({**answer, "note": found.note}, buffers=[values])

    def _follow(self) -> None:
        """Bring new probes to the page until the run has ended or the view is closed."""
        probes = self._lens.probes
        if probes is None:
            return
        try:
            while not self.closed.wait(POLL_S):
                live = probes.live  # asked first: what was written before the end is seen
                steps = probes.steps
                if steps != self.steps:
                    newest = probes.at(steps[-1]) if steps else None
                    with self.hold_sync():
                        self.steps = steps
                        if newest is not None and not self.values:
                            for name, value in self._first_traits(newest).items():
                                self.set_trait(name, value)
                    if newest is not None and self.step != steps[-1]:
                        self._send_step(steps[-1])
                if not live:
                    self.live = False
                    self._lens._refresh_twins()
                    return
        except Exception as error:  # else the thread would die without a word
            if not self.closed.is_set():
                self.live = False
                self.note = f"No longer follows the run. {type(error).__name__}: {error}"


class DivergenceLens(Lens):
    """Texts, coloured by how much student and teacher differ at each token."""

    def __init__(self, source: Inspection | RunProbes, *, quantity: str | None = None) -> None:
        """Take what is to be shown; nothing is drawn yet.

        Args:
            source: One inspection, or all those of a run, which may still train.
            quantity: What tokens are coloured by at first, one of
                `kdflow_lab.evaluate.inspection.QUANTITIES`; by default `forward_kl` if it is known.

        Raises:
            ConfigError: There is no such quantity, or it is not known of these tokens.
        """
        super().__init__()
        self.source = source
        self.quantity = quantity
        shown = self.inspection
        known = list(QUANTITIES) if shown is None else shown.quantities
        if quantity is not None and quantity not in known:
            raise unknown_name("quantity", quantity, known)
        self._first_scales: dict[str, Any] = {}

    @property
    def probes(self) -> RunProbes | None:
        """The run's probes; None for a single inspection."""
        return None if isinstance(self.source, Inspection) else self.source

    @property
    def name(self) -> str:
        """Of the model or the run."""
        return self.source.name

    @property
    def inspection(self) -> Inspection | None:
        """What is shown first, and what the twin shows; None if there are no probes yet."""
        if isinstance(self.source, Inspection):
            return self.source
        start = self.source.start
        step = self.source.newest if start is None else start
        return None if step is None else self.source.at(step)

    @property
    def unsettled(self) -> bool:
        """Whether more probes may come that the twin should show."""
        return self.probes is not None and self.probes.start is None and self.probes.live

    def html(self) -> str:
        """Texts, legend and worst tokens as HTML with inline styles."""
        shown = self.inspection
        if shown is None:
            return f"<p>{NONE_YET}</p>"
        quantity = self._chosen(shown)
        return _divergence_html.html(shown, quantity, self._scales(shown)[quantity])

    def svg(self) -> str:
        """Texts, legend and worst tokens as an SVG document."""
        shown = self.inspection
        if shown is None:
            return (
                '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 40" width="960">'
                f'<text x="4" y="24" font-family="sans-serif">{NONE_YET}</text></svg>'
            )
        quantity = self._chosen(shown)
        return _divergence_svg.draw(shown, quantity, self._scales(shown)[quantity])

    def __repr__(self) -> str:
        """The texts with their worst tokens, for a terminal."""
        shown = self.inspection
        return NONE_YET if shown is None else repr(shown)

    def _live(self) -> DivergenceWidget:
        return DivergenceWidget(self, self.inspection)

    def _chosen(self, shown: Inspection) -> str:
        """What tokens are coloured by."""
        widget = self.widget
        chosen = widget.quantity if isinstance(widget, DivergenceWidget) else self.quantity
        if chosen in shown.quantities:
            return chosen or ""
        return next(name for name in (*PREFERRED, *QUANTITIES) if name in shown.quantities)

    def _scales(self, shown: Inspection) -> dict[str, Any]:
        """The scales of all steps: fitted to the run's first probes and to those shown first."""
        if not self._first_scales:
            fitted = [shown]
            if self.probes is not None and self.probes.steps:
                fitted.append(self.probes.at(self.probes.steps[0]))
            self._first_scales = scales(fitted)
        return self._first_scales
