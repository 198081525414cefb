// What the parts of the rollout browser share: numbers in one unit, fields, and timers that end.

import { BITS_PER_NAT, numberText } from "./scale.js";
import { make } from "./tokens.js";

const TYPING_MS = 250; // a pause in typing, before it counts

export const KIT_STYLE = `
.kdflow-rollouts { font-family: var(--jp-ui-font-family, sans-serif); font-size: 13px;
  color: var(--jp-ui-font-color1, inherit); padding: 4px 8px; direction: ltr; }
.kdflow-rollouts .row { display: flex; flex-wrap: wrap; gap: 6px 10px; align-items: center;
  padding: 3px 0; }
.kdflow-rollouts .headline { font-weight: 600; font-variant-numeric: tabular-nums; }
.kdflow-rollouts .live { padding: 0 8px; border-radius: 9px; color: #fff; background: #0072b2; }
.kdflow-rollouts .quiet { color: var(--jp-ui-font-color2, inherit); }
.kdflow-rollouts .gap { flex: 1 1 0; }
.kdflow-rollouts .note { color: var(--jp-warn-color0, #a85b00); }
.kdflow-rollouts button, .kdflow-rollouts input, .kdflow-rollouts select { font: inherit;
  color: inherit; padding: 2px 8px; border-radius: 3px;
  background: var(--jp-layout-color2, rgba(128,128,128,.15));
  border: 1px solid var(--jp-border-color1, rgba(128,128,128,.5)); }
.kdflow-rollouts option { color: initial; }
.kdflow-rollouts input, .kdflow-rollouts select, .kdflow-rollouts label button {
  color: var(--jp-ui-font-color1, inherit); }
.kdflow-rollouts button { cursor: pointer; }
.kdflow-rollouts button:disabled { opacity: .45; cursor: default; }
.kdflow-rollouts button[aria-selected="true"] { font-weight: 600; color: #fff; background: #0072b2;
  border-color: #0072b2; }
.kdflow-rollouts input[type="number"] { width: 5em; }
.kdflow-rollouts input[type="search"] { width: 15em; }
.kdflow-rollouts .hidden { display: none; }
.kdflow-rollouts .said { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); }
`;

// Numbers, fields and timers of one view; `stop` ends all timers.
export function rolloutKit() {
  const timers = new Set();
  let bits = false;
  const later = (work, ms) => {
    const timer = setTimeout(() => {
      timers.delete(timer);
      work();
    }, ms);
    timers.add(timer);
    return timer;
  };
  const forget = (timer) => {
    clearTimeout(timer);
    timers.delete(timer);
  };
  const factor = () => (bits ? BITS_PER_NAT : 1);

  // An input or a menu with its label; `change` gets its value once typing pauses.
  function field(parent, { tag = "input", type, name, label = "", spoken = label }, change) {
    const box = make("label", "quiet", parent, label ? `${label} ` : "");
    const input = make(tag, name, box);
    if (type) input.type = type;
    input.setAttribute("aria-label", spoken);
    let timer = null;
    input.oninput = () => {
      if (timer !== null) forget(timer);
      timer = later(() => change(input.value), TYPING_MS);
    };
    input.onkeydown = (event) => event.stopPropagation(); // no commands of the notebook
    return input;
  }

  return {
    field,
    later,
    forget,
    stop: () => timers.forEach(clearTimeout),
    useBits: (wanted) => (bits = wanted),
    unit: () => (bits ? "bits" : "nats"),
    // nats as text in the unit that is shown
    shown: (nats) => (nats === null ? "–" : numberText(nats * factor())),
    // nats as the value of a field, and back
    toField: (nats) => String(Number((nats * factor()).toFixed(3))),
    fromField: (value) => (Number(value) || 0) / factor(),
  };
}
