// The knobs of a run: options that change from the next step on.
//
// Traits: knobs ({name, label, value, choices}), pending (by knob: the value that was asked for),
// errors (by knob: why the last one was refused), settled (the newest change), state.
// A value that was asked for is pending on the page at once, as a click is; what somebody types is
// never overwritten by a redraw.
import { make } from "./tokens.js";

export const KNOB_STYLE = `
.kdflow-status .knobs { display: flex; flex-wrap: wrap; gap: 4px 14px; padding-top: 4px; }
.kdflow-status .knob { display: flex; align-items: center; gap: 4px; }
.kdflow-status .knob label { color: var(--jp-ui-font-color2, inherit); }
.kdflow-status .knob input { width: 6em; padding: 1px 4px; font-variant-numeric: tabular-nums; }
.kdflow-status .knob select { max-width: 13em; padding: 1px 2px; }
.kdflow-status .knob button { min-width: 5.2em; padding: 1px 6px; }
.kdflow-status [aria-invalid="true"] { border-color: #d55e00; border-style: dashed; }
.kdflow-status .answer { color: var(--jp-ui-font-color2, inherit); overflow-wrap: anywhere; }
.kdflow-status select option { color: initial; }
`;
const KNOB_ENDED = ["finished", "stopped", "failed"];
let knobCount = 0; // of this page: labels and errors are tied to their inputs by ids

// JupyterLab's keys (a, b, d d …) shall not act on a field that somebody types in.
export function keepKeys(element) {
  element.setAttribute("data-lm-suppress-shortcuts", "true");
}

// An input for a number or a text, or a menu of names.
export function makeField(choices, parent) {
  if (!choices.length) {
    const input = make("input", "field", parent);
    input.type = "text";
    input.spellcheck = false;
    input.autocomplete = "off";
    return input;
  }
  const menu = make("select", "field", parent);
  for (const choice of choices) addChoice(menu, choice, choice);
  return menu;
}

export function addChoice(menu, value, text) {
  const option = make("option", "", menu, text);
  option.value = value;
}

function makeKnob(model, knob, parent, errorId) {
  const { name, label, choices } = knob;
  const box = make("div", "knob", parent);
  box.dataset.knob = name;
  const id = `kdflow-knob-${knobCount++}`;
  const caption = make("label", "", box, label);
  caption.htmlFor = id;
  const field = makeField(choices, box);
  field.id = id;
  field.setAttribute("aria-describedby", errorId);
  const button = make("button", "apply", box, "Apply");
  button.setAttribute("aria-label", `apply ${label} from the next step on`);
  let typed = false;
  let asked = null; // the last value that was asked for, shown again if it was refused
  let shown = null; // choices of the menu as drawn

  function apply() {
    if (button.disabled) return;
    const value = field.value; // before a redraw shows another one
    typed = false;
    model.set("pending", { ...model.get("pending"), [name]: value });
    forget();
    model.send({ command: "set", name, value });
  }
  function forget() {
    const { [name]: _, ...errors } = model.get("errors");
    model.set("errors", errors);
  }
  field.oninput = () => {
    typed = true;
    draw();
  };
  field.onkeydown = (event) => {
    if (event.key === "Enter") apply();
    if (event.key === "Escape") {
      typed = false;
      asked = null;
      if (name in model.get("errors")) {
        forget();
        model.send({ command: "forget", name });
      } else draw();
    }
  };
  button.onclick = apply;

  function draw() {
    const now = model.get("knobs").find((one) => one.name === name) ?? knob;
    const waits = name in model.get("pending");
    const wrong = name in model.get("errors");
    const ended = KNOB_ENDED.includes(model.get("state"));
    if (choices.length && shown !== now.choices.join()) {
      for (const choice of now.choices) if (!choices.includes(choice)) addChoice(field, choice, choice);
      shown = now.choices.join();
    }
    if (waits) asked = model.get("pending")[name];
    if (!typed) field.value = waits || (wrong && asked !== null) ? asked : now.value;
    field.disabled = waits || ended;
    field.title = `now ${now.value}`;
    field.setAttribute("aria-invalid", String(wrong));
    box.setAttribute("aria-busy", String(waits));
    button.textContent = waits ? "asked …" : "Apply";
    button.disabled = waits || ended || field.value === now.value;
  }
  return draw;
}

// Make the row of knobs; returns what draws it.
export function knobRow(model, parent) {
  const row = make("div", "knobs", parent);
  row.setAttribute("role", "group");
  row.setAttribute("aria-label", "options of the run, changed from the next step on");
  keepKeys(row);
  const answer = make("div", "answer", parent);
  answer.setAttribute("role", "status");
  answer.id = `kdflow-answer-${knobCount++}`;
  const drawn = new Map();

  return () => {
    const knobs = model.get("knobs");
    for (const knob of knobs) {
      if (!drawn.has(knob.name)) drawn.set(knob.name, makeKnob(model, knob, row, answer.id));
    }
    for (const draw of drawn.values()) draw();
    const errors = model.get("errors");
    const refused = knobs.filter((knob) => knob.name in errors).map((knob) => errors[knob.name]);
    const settled = model.get("settled");
    answer.dataset.kind = refused.length ? "error" : "settled";
    answer.textContent = refused.join(" ") || (settled && `◆ ${settled}`);
  };
}
