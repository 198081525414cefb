// The form that forks a run: which checkpoint it begins from, and what is other than in the run.
//
// Traits: fork_fields ({name, label, value, choices}), checkpoints (steps), pending.fork, errors.fork,
// forked ({name, step, code}).
import { make } from "./tokens.js";
import { addChoice, keepKeys, makeField } from "./knobs.js";

export const FORK_STYLE = `
.kdflow-status .fork-form { margin: 4px 0; padding: 6px 8px; border-radius: 3px;
  border: 1px solid var(--jp-border-color1, rgba(128,128,128,.5)); }
.kdflow-status .fork-form[hidden] { display: none; }
.kdflow-status .fork-fields { display: flex; flex-wrap: wrap; gap: 4px 14px; padding: 4px 0; }
.kdflow-status .fork-fields label { display: flex; align-items: center; gap: 4px;
  color: var(--jp-ui-font-color2, inherit); }
.kdflow-status .fork-fields input { width: 7em; padding: 1px 4px; }
.kdflow-status .fork-answer { min-height: 1.35em; padding-top: 3px; overflow-wrap: anywhere; }
.kdflow-status .fork-answer[data-kind="error"] { color: var(--jp-warn-color0, #a85b00); }
.kdflow-status .close-fork { margin-left: 6px; }
.kdflow-status code { font-family: var(--jp-code-font-family, monospace); user-select: all;
  background: var(--jp-layout-color2, rgba(128,128,128,.15)); padding: 0 4px; }
`;

// Make the form in `parent`, closed, with its button among `buttons`; returns what draws it.
export function forkForm(model, parent, buttons) {
  const opener = make("button", "fork", buttons, "Fork …");
  const form = make("div", "fork-form", parent);
  form.setAttribute("role", "group");
  form.setAttribute("aria-label", "fork this run");
  keepKeys(form);
  make("div", "fork-title", form, "A run of its own from a checkpoint of this one. Empty fields stay as they are.");
  const fields = make("div", "fork-fields", form);
  const from = makeLabelled("from step", fields);
  const steps = make("select", "from", from);
  const go = make("button", "make-fork", form, "Make the fork");
  const cancel = make("button", "close-fork", form, "Close");
  const answer = make("div", "fork-answer", form);
  answer.setAttribute("role", "status");
  const said = make("span", "said", answer);
  const code = make("code", "", answer);
  const inputs = new Map();
  let kept = null; // checkpoints as drawn

  function open(wanted) {
    form.hidden = !wanted;
    opener.setAttribute("aria-expanded", String(wanted));
  }
  opener.onclick = () => open(form.hidden);
  cancel.onclick = () => {
    open(false);
    opener.focus();
  };
  go.onclick = () => {
    if (go.disabled) return;
    const changes = {};
    for (const [name, input] of inputs) if (input.value) changes[name] = input.value;
    const { fork: _, ...errors } = model.get("errors");
    model.set("errors", errors);
    model.set("pending", { ...model.get("pending"), fork: "…" });
    model.send({ command: "fork", step: steps.value ? Number(steps.value) : null, changes });
  };
  form.onkeydown = (event) => {
    if (event.key === "Escape") cancel.onclick();
  };
  open(false);

  function draw() {
    for (const { name, label, value, choices } of model.get("fork_fields")) {
      if (!inputs.has(name)) {
        const caption = makeLabelled(label, fields);
        const input = makeField(choices.length ? ["", ...choices] : [], caption);
        input.dataset.field = name;
        inputs.set(name, input);
      }
      const input = inputs.get(name);
      if (choices.length) input.children[0].textContent = `as now: ${value}`;
      else input.placeholder = value;
    }
    const checkpoints = model.get("checkpoints");
    if (kept !== checkpoints.join()) {
      const chosen = steps.value;
      steps.textContent = "";
      const newest = checkpoints.at(-1);
      addChoice(steps, "", newest === undefined ? "no checkpoint yet" : `newest (${newest})`);
      for (const step of checkpoints) addChoice(steps, String(step), String(step));
      steps.value = checkpoints.map(String).includes(chosen) ? chosen : "";
      kept = checkpoints.join();
    }
    const waits = "fork" in model.get("pending");
    const wrong = model.get("errors").fork;
    const made = model.get("forked");
    go.disabled = waits;
    go.textContent = waits ? "asked …" : "Make the fork";
    answer.dataset.kind = wrong ? "error" : "made";
    said.textContent =
      wrong ?? (made.name ? `${made.name} begins from step ${made.step} when the engines are free: ` : "");
    code.textContent = wrong ? "" : made.code ?? "";
    code.hidden = !code.textContent;
  }
  return draw;
}

function makeLabelled(text, parent) {
  const label = make("label", "", parent);
  make("span", "", label, text);
  return label;
}
