// The divergence lens: texts coloured by how much student and teacher differ at each token, with
// all that is known of the token under the pointer, and a slider over the run's probed steps.
//
// Traits and messages: see kdflow_lab/widgets/divergence.py. The page draws everything from the
// arrays it holds; it asks the kernel for other steps only, and says so while it waits, because a
// kernel that is busy with a cell answers when that cell has ended.

import { make, visible } from "./tokens.js";
import { openLens } from "./lens.js";
import { quantityText } from "./scale.js";
import { SeenSteps, rowOfToken, rowsOf, unpack, worstTokens } from "./snapshots.js";
import { FLOW_STYLE, makeFlow } from "./tokenflow.js";
import { PANEL_STYLE, makePanel } from "./tokenpanel.js";
import { HISTOGRAM_STYLE, makeHistogram } from "./histogram.js";
import { TRAVEL_STYLE, makeTravel } from "./timetravel.js";

const WORST = 24;
const HELD_BYTES = 64e6; // of steps on this page
const AHEAD_BYTES = 24e6; // of steps that are asked for before anyone wants them
const WAITING_MS = 300;

const STYLE = `
.kdflow-divergence { --kdflow-side: 372px; --kdflow-student: #0072b2; --kdflow-teacher: #8a5a00;
  font-family: var(--jp-ui-font-family, sans-serif); font-size: 13px; padding: 6px 8px;
  color: var(--jp-ui-font-color1, inherit); container-type: inline-size; max-width: 1280px; }
.kdflow-divergence[data-theme="dark"] { --kdflow-student: #56b4e9; --kdflow-teacher: #e69f00; }
.kdflow-divergence * { box-sizing: border-box; }
.kdflow-divergence .bar1 { display: flex; gap: 10px; align-items: center; flex-wrap: wrap;
  margin-bottom: 6px; }
.kdflow-divergence .title { font-weight: 600; }
.kdflow-divergence .about { flex: 1 1 12em; color: var(--jp-ui-font-color2, #616161); }
.kdflow-divergence select, .kdflow-divergence button { font: inherit; color: inherit;
  background: var(--jp-layout-color2, rgba(128,128,128,.15)); padding: 2px 8px; border-radius: 3px;
  border: 1px solid var(--jp-border-color1, rgba(128,128,128,.5)); cursor: pointer; }
.kdflow-divergence option { color: #111; background: #fff; }
.kdflow-divergence button:disabled { opacity: .4; cursor: default; }
.kdflow-divergence .bar2 { display: grid; gap: 16px; margin-bottom: 8px;
  grid-template-columns: minmax(0, 1fr) var(--kdflow-side); }
.kdflow-divergence .worst .list { display: flex; flex-wrap: wrap; gap: 3px; overflow: auto;
  height: 89px; align-content: flex-start; }
.kdflow-divergence .worst button { font: 12px var(--jp-code-font-family, monospace); padding: 0 5px;
  white-space: pre; max-width: 180px; overflow: hidden; text-overflow: ellipsis; height: 20px; }
.kdflow-divergence .worst .number { color: var(--jp-ui-font-color2, #616161); }
.kdflow-divergence .small { font-size: 11px; color: var(--jp-ui-font-color2, #616161);
  height: 16px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.kdflow-divergence .main { display: grid; gap: 12px; height: 548px;
  grid-template-columns: minmax(0, 1fr) var(--kdflow-side); }
.kdflow-divergence .kdflow-flow, .kdflow-divergence .kdflow-panel { border-radius: 3px;
  border: 1px solid var(--jp-border-color2, #e0e0e0); background: var(--jp-layout-color1, #fff); }
.kdflow-divergence .note:empty { display: none; }
.kdflow-divergence .note { padding: 2px 0 6px; color: var(--jp-warn-color0, #a85b00); }
.kdflow-divergence .spoken { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); }
@container (max-width: 760px) {
  .kdflow-divergence .bar2, .kdflow-travel { grid-template-columns: minmax(0, 1fr); }
  .kdflow-divergence .main { grid-template-columns: minmax(0, 1fr);
    grid-template-rows: 320px 548px; height: 880px; }
}
`;

// Whether the page is light or dark, as JupyterLab, VS Code or the system say.
function themeNow() {
  const body = document.body;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false" ? "dark" : "light";
  return body.classList.contains("vscode-dark") ? "dark" : "light";
}

function render({ model, el }) {
  const style = [STYLE, FLOW_STYLE, PANEL_STYLE, HISTOGRAM_STYLE, TRAVEL_STYLE].join("");
  const { root, close } = openLens({ model, el, name: "kdflow-divergence", style });
  const seen = new SeenSteps(HELD_BYTES);
  const texts = new Map();
  const textOf = (id) => texts.get(id) ?? `#${id}`;
  let places = null;
  let rows = [];
  let flow = null;
  let shown = null; // the step that is drawn
  let wanted = null; // the one that the reader asked for and that is not here yet
  let asked = null; // the one that the kernel was asked for
  let following = model.get("live");
  let focused = 0;
  let threshold = 0;
  let worst = [];
  let waiting = null;
  const refused = new Set();

  const quantities = () => model.get("quantities");
  const quantity = () => quantities().find(({ name }) => name === model.get("quantity"));
  const bits = () => model.get("bits");
  const valuesOf = (name) =>
    seen.get(shown)?.[`q:${name}`] ?? new Float32Array(places.labels.length).fill(NaN);

  // -- parts of the page ------------------------------------------------------------------------

  const bar = make("div", "bar1", root);
  make("span", "title", bar, model.get("name"));
  const about = make("span", "about", bar);
  const menuLabel = make("label", "", bar, "coloured by ");
  const menu = make("select", "quantity", menuLabel);
  menu.setAttribute("data-lm-suppress-shortcuts", "true");
  const unit = make("button", "unit", bar);
  const note = make("div", "note", root);
  const second = make("div", "bar2", root);
  const histogram = makeHistogram({
    parent: second,
    onThreshold: (place) => {
      threshold = place;
      applyFilter();
    },
  });
  const worstBox = make("div", "worst", second);
  const worstTitle = make("div", "small", worstBox);
  const worstList = make("div", "list", worstBox);
  const main = make("div", "main", root);
  const hint = "underlined: prompt or masked, not trained · grey: the first token, which nothing "
    + "predicts · arrows, Home, End: move · n, p: next and previous of the worst";
  make("div", "small hint", root, hint);
  const travel = makeTravel({
    parent: root,
    onStep: want,
    onFollow: (on) => {
      following = on;
    },
    isThere: (step) => shown === step,
  });
  const spoken = make("div", "spoken", root);
  spoken.setAttribute("aria-live", "polite");
  let panel = null;

  // -- drawing ----------------------------------------------------------------------------------

  function where(index) {
    const row = rowOfToken(rows, index);
    const kind = places.response[index] ? "trained" : "prompt or masked, not trained";
    return `row ${row.dataRow} · token ${index - row.start + 1} · ${kind}`;
  }

  function nameOf(index, values = valuesOf(quantity().name)) {
    const apart = places.response[index] ? "" : ", not trained";
    const value = quantityText(values[index], quantity(), bits());
    return `${visible(textOf(places.labels[index]), 40)}, ${quantity().label} ${value}${apart}`;
  }

  function showToken(index) {
    const step = seen.get(shown);
    if (!step) return;
    panel.show({
      step, places, index, quantities: quantities(), chosen: quantity().name, bits: bits(),
    });
    travel.draw(seen.curve(quantity().name, index), quantity(), bits());
  }

  function select(index, how = {}) {
    focused = index;
    flow.select(index, how);
    showToken(index);
    if (how.focus) spoken.textContent = `${nameOf(index)}, ${where(index)}`;
  }

  function applyFilter() {
    const values = valuesOf(quantity().name);
    const kept = flow.filter(values, quantity(), threshold);
    histogram.mark(threshold, kept, values.length, bits());
  }

  function drawWorst(values) {
    worst = worstTokens(values, places.response, quantity().kind, WORST);
    worstTitle.textContent = `worst tokens: ${quantity().label}`;
    worstList.textContent = "";
    for (const index of worst) {
      const button = make("button", "", worstList);
      make("span", "", button, visible(textOf(places.labels[index]), 16));
      if (quantity().kind !== "agreement") {
        make("span", "number", button, ` ${quantityText(values[index], quantity(), bits(), false)}`);
      }
      button.title = where(index);
      button.onclick = () => select(index, { focus: true, scroll: true });
    }
  }

  // Draw the step that is shown, as it is now, by the chosen quantity and unit.
  function drawStep() {
    root.dataset.theme = themeNow();
    if (!flow || !quantity()) return;
    const values = valuesOf(quantity().name);
    flow.paint(values, quantity(), themeNow(), (index) => nameOf(index, values));
    histogram.draw(values, quantity(), themeNow(), bits());
    applyFilter();
    drawWorst(values);
    showToken(focused);
    root.dataset.step = shown;
  }

  function drawControls() {
    const names = quantities();
    if (menu.children.length !== names.length) {
      menu.textContent = "";
      for (const { name, label } of names) {
        const option = make("option", "", menu, label);
        option.value = name;
      }
    }
    menu.value = model.get("quantity");
    unit.textContent = bits() ? "bits" : "nats";
    unit.title = bits() ? "show nats" : "show bits";
    unit.setAttribute("aria-label", `unit: ${unit.textContent}; press to ${unit.title}`);
    note.textContent = model.get("note");
    travel.update({ known: model.get("steps"), step: shown, live: model.get("live"), following });
    if (!places) {
      about.textContent = model.get("live") ? "waiting for the first probes …" : "no probes";
      return;
    }
    const count = `${places.labels.length.toLocaleString("en")} tokens`;
    const rowCount = rows.length === 1 ? "1 text" : `${rows.length} texts`;
    const at = shown >= 0 ? `step ${shown.toLocaleString("en")} · ` : "";
    const live = model.get("live") ? " · follows the run" : "";
    about.textContent = `${at}${count} in ${rowCount}${live}`;
  }

  // Take the texts and the first step, once they are there.
  function begin() {
    if (places || !model.get("values").byteLength) return;
    for (const [id, text] of Object.entries(model.get("texts"))) texts.set(Number(id), text);
    places = unpack(model.get("layout_of_places"), model.get("places"));
    rows = rowsOf(places);
    shown = model.get("step");
    seen.set(shown, unpack(model.get("layout_of_values"), model.get("values")));
    if (model.get("steps").at(-1) !== shown) following = false;
    if (!rows.length) return;
    flow = makeFlow({ parent: main, rows, places, textOf, onHover, onFocus: select, onKey });
    panel = makePanel({ parent: main, textOf, where });
    drawStep();
    select(worst[0] ?? 0);
    askAhead();
  }

  // -- what the reader does ---------------------------------------------------------------------

  function onHover(index) {
    showToken(index ?? focused);
  }

  function vertical(index, direction) {
    const from = flow.spans[index];
    let best = index;
    let line = null;
    for (let at = index + direction; flow.spans[at]; at += direction) {
      const span = flow.spans[at];
      if (span.offsetTop === from.offsetTop) continue;
      line ??= span.offsetTop;
      if (span.offsetTop !== line) break;
      const distance = (one) => Math.abs(one.offsetLeft - from.offsetLeft);
      if (best === index || distance(span) < distance(flow.spans[best])) best = at;
    }
    return best;
  }

  function onKey(key) {
    const row = rowOfToken(rows, focused);
    const last = flow.spans.length - 1;
    const inWorst = worst.indexOf(focused);
    const moves = {
      ArrowRight: () => Math.min(focused + 1, last),
      ArrowLeft: () => Math.max(focused - 1, 0),
      ArrowDown: () => vertical(focused, 1),
      ArrowUp: () => vertical(focused, -1),
      Home: () => row.start,
      End: () => row.end - 1,
      n: () => worst[Math.min(inWorst + 1, worst.length - 1)],
      p: () => worst[Math.max(inWorst - 1, 0)],
    };
    if (!(key in moves)) return false;
    select(moves[key]() ?? focused, { focus: true, scroll: true });
    return true;
  }

  menu.addEventListener("change", () => {
    threshold = 0;
    model.set("quantity", menu.value);
    model.save_changes();
  });
  unit.onclick = () => {
    model.set("bits", !bits());
    model.save_changes();
  };

  // -- steps ------------------------------------------------------------------------------------

  function want(step) {
    wanted = step;
    if (seen.get(step)) return showStep(step);
    clearTimeout(waiting);
    waiting = setTimeout(() => travel.say(`waiting for the kernel: step ${step} …`), WAITING_MS);
    ask(step);
  }

  function ask(step) {
    asked = step;
    model.send({ kind: "step", step });
  }

  function showStep(step) {
    clearTimeout(waiting);
    travel.say("");
    wanted = null;
    if (shown === step && root.dataset.step === String(step)) return;
    shown = step;
    drawControls();
    drawStep();
  }

  // Ask for a step that is not here, one at a time, as long as there is room for all.
  function askAhead() {
    if (asked !== null || wanted !== null || !flow) return;
    const missing = model.get("steps").filter((step) => !seen.held.has(step) && !refused.has(step));
    const size = SeenSteps.size(seen.get(shown));
    if (missing.length && (seen.held.size + 1) * size <= AHEAD_BYTES) ask(missing.at(-1));
  }

  function onMessage(message, buffers) {
    if (message.kind === "failed") {
      if (asked === message.step) asked = null;
      refused.add(message.step);
      if (wanted !== message.step) return askAhead();
      clearTimeout(waiting);
      wanted = null;
      travel.say(message.why);
      drawControls();
    } else if (message.kind === "step" && flow) {
      if (asked === message.step) asked = null;
      for (const [id, text] of Object.entries(message.texts)) texts.set(Number(id), text);
      seen.set(message.step, unpack(message.layout, buffers[0]));
      const newest = following && message.step >= Math.max(...model.get("steps"), shown);
      if (wanted === message.step || newest) {
        root.dataset.step = "";
        showStep(message.step);
      } else if (message.step === shown) {
        drawStep();
      } else {
        travel.draw(seen.curve(quantity().name, focused), quantity(), bits());
      }
      askAhead();
    }
  }

  let drawn = "";
  function onChange() {
    begin();
    drawControls();
    const now = `${model.get("quantity")} ${bits()}`;
    if (now !== drawn) drawStep();
    drawn = now;
    askAhead();
  }
  const themes = new MutationObserver(() => {
    if (root.dataset.theme !== themeNow()) drawStep();
  });
  themes.observe(document.body, { attributes: true });
  model.on("change", onChange);
  model.on("msg:custom", onMessage);
  drawn = `${model.get("quantity")} ${bits()}`;
  root.dataset.theme = themeNow();
  begin();
  drawControls();

  return () => {
    themes.disconnect();
    clearTimeout(waiting);
    travel.close();
    model.off("change", onChange);
    model.off("msg:custom", onMessage);
    seen.held.clear();
    close();
  };
}

export default { render };
