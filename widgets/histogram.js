// How a quantity is distributed over the tokens: at once the legend of its colours, and a threshold.

import { make } from "./tokens.js";
import { colourAt, quantityText, valueAt } from "./scale.js";
import { binsOf } from "./snapshots.js";

const HISTOGRAM_BINS = 40;
const HISTOGRAM_HEIGHT = 54; // pixels of the highest bar

export const HISTOGRAM_STYLE = `
.kdflow-histogram { font-size: 11px; font-variant-numeric: tabular-nums; }
.kdflow-histogram .plot { display: flex; align-items: flex-end; height: ${HISTOGRAM_HEIGHT}px; gap: 1px; }
.kdflow-histogram .plot div { flex: 1 1 0; background: var(--jp-ui-font-color3, #8c8c8c); }
.kdflow-histogram .plot .below { opacity: .3; }
.kdflow-histogram .ramp { display: flex; height: 10px; border: 1px solid
  var(--jp-border-color1, #bdbdbd); box-sizing: border-box; }
.kdflow-histogram .ramp div { flex: 1 1 0; }
.kdflow-histogram .ticks { display: flex; justify-content: space-between; height: 16px; }
.kdflow-histogram input { width: 100%; margin: 2px 0; height: 16px; accent-color: #0072b2; }
.kdflow-histogram .kept { height: 16px; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
`;

// Put it into `parent`; `onThreshold` hears where on the scale the reader draws the line, 0 to 1.
export function makeHistogram({ parent, onThreshold }) {
  const root = make("div", "kdflow-histogram", parent);
  const plot = make("div", "plot", root);
  plot.setAttribute("aria-hidden", "true");
  const bars = Array.from({ length: HISTOGRAM_BINS }, () => make("div", "", plot));
  const ramp = make("div", "ramp", root);
  ramp.setAttribute("aria-hidden", "true");
  const cells = Array.from({ length: HISTOGRAM_BINS }, () => make("div", "", ramp));
  const ticks = make("div", "ticks", root);
  const input = make("input", "", root);
  input.type = "range";
  input.min = 0;
  input.max = 1;
  input.step = 0.01;
  input.value = 0;
  input.setAttribute("aria-label", "hide tokens below");
  input.setAttribute("data-lm-suppress-shortcuts", "true");
  const kept = make("div", "kept", root);
  kept.setAttribute("role", "status");
  input.addEventListener("input", () => onThreshold(Number(input.value)));
  let scaleNow = null;
  const low = () => (scaleNow.kind === "signed" ? -1 : 0);
  const middle = (at) => low() + ((1 - low()) * (at + 0.5)) / HISTOGRAM_BINS;

  return {
    element: root,
    input,
    // Draw the values of all tokens on a scale.
    draw(values, scale, theme, bits) {
      scaleNow = scale;
      const { bins, unknown } = binsOf(values, scale, HISTOGRAM_BINS);
      const highest = Math.sqrt(Math.max(1, ...bins));
      bars.forEach((bar, at) => {
        // square roots: the few tokens at the end are those that matter
        const high = (HISTOGRAM_HEIGHT * Math.sqrt(bins[at])) / highest;
        bar.style.height = `${bins[at] ? Math.max(2, high) : 0}px`;
        bar.title = `${bins[at].toLocaleString("en")} tokens`;
        cells[at].style.backgroundColor = colourAt(middle(at), scale.kind, theme);
      });
      ticks.textContent = "";
      const places = scale.kind === "agreement" ? [0, 1] : [0, 0.25, 0.5, 0.75, 1];
      for (const share of places) {
        const place = low() + (1 - low()) * share;
        const last = share === 1 && scale.kind !== "agreement";
        const shown = quantityText(valueAt(place, scale), scale, bits, last);
        make("span", "", ticks, last ? `≥ ${shown}` : shown);
      }
      root.title = unknown ? `not known of ${unknown.toLocaleString("en")} tokens` : "";
    },
    // Show how many tokens stay at a threshold.
    mark(threshold, count, all, bits) {
      if (Number(input.value) !== threshold) input.value = threshold;
      bars.forEach((bar, at) => {
        bar.className = Math.abs(middle(at)) < threshold ? "below" : "";
      });
      const absolute = scaleNow.kind === "signed" ? "±" : "≥ ";
      const value = quantityText(valueAt(threshold, scaleNow), scaleNow, bits).replace("+", "");
      const of = `${count.toLocaleString("en")} of ${all.toLocaleString("en")} tokens`;
      const what = scaleNow.kind === "agreement" ? "where they disagree" : `${absolute}${value}`;
      kept.textContent = threshold > 0 ? `${of} ${what}` : `${of}: move to hide low ones`;
      input.setAttribute("aria-valuetext", kept.textContent);
    },
  };
}
