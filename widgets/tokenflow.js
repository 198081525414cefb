// Tokens that flow as a text: one element each, coloured, reached by mouse and keyboard.

import { make, visible } from "./tokens.js";
import { colourAt, inkOn, placeOf } from "./scale.js";

const MOST_SHOWN = 60; // characters of one token in the text
const MOST_BREAKS = 4; // line ends drawn behind one token
const PALETTE_LEVELS = 100;

export const FLOW_STYLE = `
.kdflow-flow { overflow: auto; overflow-anchor: none; position: relative; line-height: 1.75;
  padding: 6px 10px; font-family: var(--jp-code-font-family, monospace); font-size: 13px;
  white-space: pre-wrap; overflow-wrap: anywhere; direction: ltr; }
.kdflow-flow .header { font: 11px var(--jp-ui-font-family, sans-serif); padding-top: 6px;
  color: var(--jp-ui-font-color2, inherit); }
.kdflow-flow .t { unicode-bidi: isolate; cursor: pointer; border-radius: 2px; padding: 1px 0;
  border-bottom: 3px solid transparent; background-clip: padding-box;
  box-shadow: inset -1px 0 0 rgba(128,128,128,.28); }
.kdflow-flow .t.apart { color: var(--jp-ui-font-color2, #616161);
  text-decoration: underline dotted; text-underline-offset: 2px; }
.kdflow-flow .first { color: var(--jp-ui-font-color2, #616161); }
.kdflow-flow .t.below { background-color: transparent !important; box-shadow: none;
  border-bottom-color: transparent !important;
  color: var(--jp-ui-font-color3, #9e9e9e) !important; }
.kdflow-flow .t:hover { outline: 1px solid var(--jp-ui-font-color1, currentColor); }
.kdflow-flow .t[aria-selected="true"], .kdflow-flow .t:focus-visible {
  outline: 2px solid var(--jp-brand-color1, #0072b2); outline-offset: 1px; }
`;

// A token as it stands in a line: spaces stay, all else that is unseen gets a sign.
export function flowing(text, most = MOST_SHOWN) {
  const parts = Array.from(text).slice(0, most + 1).join("").split(" ");
  const shown = Array.from(parts.map((part) => (part ? visible(part) : "")).join(" ") || "∅");
  return shown.length > most ? `${shown.slice(0, most - 1).join("")}…` : shown.join("");
}

const palettes = new Map();

// Ground and ink of every place of a scale, made once: a text has thousands of tokens.
function paletteOf(kind, theme) {
  const key = `${kind} ${theme}`;
  if (!palettes.has(key)) {
    const colours = [];
    for (let level = -PALETTE_LEVELS; level <= PALETTE_LEVELS; level += 1) {
      const ground = colourAt(level / PALETTE_LEVELS, kind, theme);
      colours.push([ground, inkOn(ground)]);
    }
    palettes.set(key, colours);
  }
  return palettes.get(key);
}

// Put the texts into `parent`. Returns the element, one span a predicted token, and what acts.
export function makeFlow({ parent, rows, places, textOf, onHover, onFocus, onKey }) {
  const flow = make("div", "kdflow-flow", null);
  flow.setAttribute("role", "listbox");
  flow.setAttribute("aria-label", "tokens");
  flow.setAttribute("data-lm-suppress-shortcuts", "true"); // or arrows choose cells
  flow.tabIndex = -1;
  const spans = [];
  const shownOf = new Map();
  for (const row of rows) {
    const count = (row.end - row.start).toLocaleString("en");
    const name = `row ${row.dataRow} · ${count} tokens`;
    if (rows.length > 1) make("div", "header", flow, name);
    const line = make("div", "line", flow);
    make("span", "first", line, flowing(textOf(places.input_ids[row.start])));
    for (let index = row.start; index < row.end; index += 1) {
      const id = places.labels[index];
      if (!shownOf.has(id)) {
        const text = textOf(id);
        shownOf.set(id, [flowing(text), text.split("\n").length - 1]);
      }
      const [shown, breaks] = shownOf.get(id);
      const span = make("span", places.response[index] ? "t" : "t apart", line, shown);
      span.dataset.i = index;
      span.tabIndex = -1;
      span.setAttribute("role", "option");
      for (let at = 0; at < Math.min(breaks, MOST_BREAKS); at += 1) make("br", "", line);
      spans.push(span);
    }
  }
  const indexOf = (event) => {
    const span = event.target.closest(".t");
    return span ? Number(span.dataset.i) : null;
  };
  flow.addEventListener("mouseover", (event) => onHover(indexOf(event)));
  flow.addEventListener("mouseleave", () => onHover(null));
  flow.addEventListener("click", (event) => {
    const index = indexOf(event);
    if (index !== null) onFocus(index, { focus: true });
  });
  flow.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (onKey(event.key)) {
      event.preventDefault();
      event.stopPropagation();
    }
  });
  parent.append(flow);

  let selected = null;
  return {
    element: flow,
    spans,
    // Colour all tokens by a quantity; `nameOf` says one to a screen reader.
    paint(values, scale, theme, nameOf) {
      const palette = paletteOf(scale.kind, theme);
      spans.forEach((span, index) => {
        const place = placeOf(values[index], scale);
        const known = !Number.isNaN(place);
        const [ground, ink] = known ? palette[Math.round(place * PALETTE_LEVELS) + PALETTE_LEVELS] : ["", ""];
        const trained = places.response[index];
        span.style.backgroundColor = trained ? ground : "";
        span.style.color = trained ? ink : "";
        span.style.borderBottomColor = trained ? "" : ground;
        span.setAttribute("aria-label", nameOf(index));
      });
    },
    // Fade the tokens whose place on the scale is below a threshold; returns how many stay.
    filter(values, scale, threshold) {
      let kept = 0;
      spans.forEach((span, index) => {
        const place = Math.abs(placeOf(values[index], scale));
        const stays = threshold <= 0 || place >= threshold;
        kept += stays;
        span.classList.toggle("below", !stays);
      });
      return kept;
    },
    // Make one token the one that Tab reaches.
    select(index, { focus = false, scroll = false } = {}) {
      if (selected !== null) {
        spans[selected].tabIndex = -1;
        spans[selected].setAttribute("aria-selected", "false");
      }
      selected = index;
      const span = spans[index];
      span.tabIndex = 0;
      span.setAttribute("aria-selected", "true");
      if (focus) span.focus({ preventScroll: true });
      if (!scroll) return;
      // not scrollIntoView, which would move the notebook too
      const [box, at] = [flow.getBoundingClientRect(), span.getBoundingClientRect()];
      if (at.top < box.top + 20 || at.bottom > box.bottom - 20) {
        flow.scrollTop += at.top - box.top - box.height / 2;
      }
    },
  };
}
