// The head of a run's figure: its state, a progress bar, buttons, knobs, and one line of advice.
//
// Traits (see kdflow_lab/widgets/status.py): name, state, headline, note, step, steps, asked; those
// of knobs.js and fork.js; advice, idle.
// A click sets `asked` on the page, which shows at once in every view: a kernel that is busy with a
// cell hears of the click only when that cell has ended. The kernel clears `asked` when the run has
// answered. The click itself goes as a message of its own: changes of traits are held back until the
// kernel is idle again, and one that awaits a run is not.
import { make } from "./tokens.js";
import { KNOB_STYLE, knobRow } from "./knobs.js";
import { FORK_STYLE, forkForm } from "./fork.js";

const BUTTONS = [
  { command: "pause", label: "Pause", states: ["running"], asked: "pausing …" },
  { command: "resume", label: "Resume", states: ["paused"], asked: "resuming …" },
  { command: "stop", label: "Stop", states: ["starting", "running", "paused"], asked: "stopping …" },
  { command: "checkpoint", label: "Checkpoint", states: ["running", "paused"], asked: "saving …" },
];

const STYLE = `
.kdflow-status { font-family: var(--jp-ui-font-family, sans-serif); font-size: 13px;
  color: var(--jp-ui-font-color1, inherit); padding: 4px 8px 0 8px; }
.kdflow-status .row { display: flex; align-items: center; gap: 4px 8px; flex-wrap: wrap; }
.kdflow-status .name { font-weight: 600; }
.kdflow-status .state { padding: 1px 8px; border-radius: 9px; color: #fff; background: #767676;
  min-width: 4.5em; text-align: center; }
.kdflow-status .state[data-state="running"] { background: #0072b2; }
.kdflow-status .state[data-state="paused"] { background: #a85b00; }
.kdflow-status .state[data-state="finished"] { background: #00795a; }
.kdflow-status .state[data-state="failed"] { background: #c02a1d; }
.kdflow-status .figures { min-height: 1.35em; padding-top: 2px; font-variant-numeric: tabular-nums;
  color: var(--jp-ui-font-color2, inherit); }
.kdflow-status .buttons { display: flex; gap: 6px; flex-wrap: wrap; margin-left: auto; }
.kdflow-status button, .kdflow-status input, .kdflow-status select { font: inherit; color: inherit;
  border-radius: 3px; background: var(--jp-layout-color2, rgba(128,128,128,.15));
  border: 1px solid var(--jp-border-color1, rgba(128,128,128,.5)); }
.kdflow-status button { padding: 2px 10px; cursor: pointer; }
.kdflow-status button:disabled { opacity: .4; cursor: default; }
.kdflow-status :is(button, input, select):focus-visible { outline: 2px solid #0072b2;
  outline-offset: 1px; }
.kdflow-status progress { width: 100%; height: 8px; margin: 5px 0 0 0; accent-color: #0072b2; }
.kdflow-status .note, .kdflow-status .answer { padding-top: 2px; min-height: 1.35em; }
.kdflow-status .note, .kdflow-status .answer[data-kind="error"] {
  color: var(--jp-warn-color0, #a85b00); }
.kdflow-status .idle { padding-top: 4px; min-height: 1.35em; font-variant-numeric: tabular-nums;
  color: var(--jp-ui-font-color2, inherit); }
.kdflow-status .advice { min-height: 2.7em; }
`;

function render({ model, el }) {
  const root = make("div", "kdflow-status", el);
  make("style", "", root, STYLE + KNOB_STYLE + FORK_STYLE);
  const row = make("div", "row", root);
  const name = make("span", "name", row);
  const state = make("span", "state", row);
  state.setAttribute("role", "status");
  const group = make("div", "buttons", row);
  const buttons = BUTTONS.map(({ command, label }) => {
    const button = make("button", command, group, label);
    button.onclick = () => {
      model.set("asked", command);
      model.send({ command });
    };
    return button;
  });
  const bar = make("progress", "", root);
  bar.setAttribute("aria-label", "steps done");
  const figures = make("div", "figures", root);
  const note = make("div", "note", root);
  const drawKnobs = knobRow(model, root);
  const drawFork = forkForm(model, root, group);
  const idle = make("div", "idle", root);
  const advice = make("div", "advice", root);
  advice.setAttribute("aria-live", "polite");

  function draw() {
    const now = model.get("state");
    const asked = BUTTONS.find((button) => button.command === model.get("asked"));
    name.textContent = model.get("name");
    state.textContent = asked ? asked.asked : now;
    state.dataset.state = now;
    figures.textContent = model.get("headline");
    note.textContent = model.get("note");
    const steps = model.get("steps");
    bar.max = steps || 1;
    if (steps) bar.value = model.get("step");
    else if (now === "starting") bar.removeAttribute("value"); // not known yet: the moving bar
    else bar.value = 0;
    buttons.forEach((button, i) => {
      button.disabled = Boolean(asked) || !BUTTONS[i].states.includes(now);
    });
    idle.textContent = model.get("idle");
    advice.textContent = model.get("advice");
    drawKnobs();
    drawFork();
  }
  model.on("change", draw);
  draw();

  const unfit = fitFigure(el);
  model.send({ command: "shown" }); // a view that nobody sees any more is freed by the kernel
  return () => {
    model.send({ command: "hidden" });
    model.off("change", draw);
    unfit();
  };
}

// The plotly figure below the header fits itself to the cell only when the window says that it was
// resized: say so when the figure arrives and when it or the cell changes its size.
function fitFigure(el) {
  const watched = new WeakSet();
  const sizes = new ResizeObserver(() => {
    watchNeighbours();
    window.dispatchEvent(new Event("resize"));
  });
  const arrivals = new MutationObserver(() => watchNeighbours());
  function watch(element) {
    if (!watched.has(element)) sizes.observe(element);
    watched.add(element);
  }
  function watchNeighbours() {
    const box = el.closest(".widget-vbox");
    if (!box) return; // not on the page yet
    for (const child of box.children) watch(child);
    if (!watched.has(box)) arrivals.observe(box, { childList: true });
    watched.add(box);
  }
  watch(el);
  return () => {
    sizes.disconnect();
    arrivals.disconnect();
  };
}

export default { render };
