// The rollout browser: what the student of an on-policy run wrote, and where it left its teacher.
//
// Traits and messages: see kdflow_lab/widgets/rollouts.py. The page holds one part of the list and one
// answer; it asks the kernel for others, and says so where a busy kernel lets it wait.

import { openLens } from "./lens.js";
import { ANSWER_STYLE, rolloutAnswer } from "./rolloutanswer.js";
import { KIT_STYLE, rolloutKit } from "./rolloutkit.js";
import { LIST_STYLE, rolloutList } from "./rolloutlist.js";
import { PINNED_STYLE, rolloutPinned } from "./rolloutpinned.js";
import { make } from "./tokens.js";

const PATIENCE_MS = 400; // before the page says that it waits for the kernel

function render({ model, el }) {
  const style = [KIT_STYLE, LIST_STYLE, ANSWER_STYLE, PINNED_STYLE].join("");
  const { root, close } = openLens({ model, el, name: "kdflow-rollouts", style });
  const kit = rolloutKit();

  const head = make("div", "row", root);
  const headline = make("span", "headline", head);
  const live = make("span", "live", head, "live");
  const tabs = make("div", "row", root);
  tabs.setAttribute("role", "tablist");
  const panels = ["Answers", "Pinned prompts"].map((title) => {
    const button = make("button", "tab", tabs, title);
    button.setAttribute("role", "tab");
    const panel = make("div", "", root);
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-label", title);
    return { button, panel };
  });
  const showTab = (chosen) =>
    panels.forEach(({ button, panel }, at) => {
      button.setAttribute("aria-selected", String(at === chosen));
      panel.className = at === chosen ? "" : "hidden";
    });
  panels.forEach(({ button }, at) => (button.onclick = () => showTab(at)));
  const note = make("span", "note", tabs);
  note.setAttribute("role", "status");
  make("span", "gap", tabs);
  const bitsLabel = make("label", "", tabs);
  const bitsBox = make("input", "bits", bitsLabel);
  bitsBox.type = "checkbox";
  make("span", "", bitsLabel, " bits instead of nats");
  showTab(0);

  let waiting = null;
  function ask(message) {
    model.send(message);
    if (waiting !== null) kit.forget(waiting);
    waiting = kit.later(() => (note.textContent = "waiting for the kernel …"), PATIENCE_MS);
  }
  function answered() {
    if (waiting !== null) kit.forget(waiting);
    waiting = null;
    note.textContent = model.get("note");
  }
  const list = rolloutList(model, panels[0].panel, kit, ask);
  const answer = rolloutAnswer(model, panels[0].panel, kit);
  const pinned = rolloutPinned(model, panels[1].panel, ask);

  let drawn = {};
  function draw() {
    headline.textContent = model.get("headline");
    live.className = model.get("live") ? "live" : "hidden";
    const names = ["listing", "answer", "pinned", "note"];
    const now = Object.fromEntries(names.map((name) => [name, model.get(name)]));
    if (now.listing !== drawn.listing) list.draw();
    if (now.answer !== drawn.answer) {
      answer.draw();
      list.mark(now.answer.at);
    }
    if (now.pinned !== drawn.pinned) pinned.draw();
    if (names.some((name) => now[name] !== drawn[name])) answered();
    drawn = now;
  }
  function drawAll() {
    kit.useBits(Boolean(bitsBox.checked));
    answer.showUnit();
    list.showUnit();
    drawn = {};
    draw();
  }
  bitsBox.onchange = drawAll;
  model.on("change", draw);
  drawAll();
  const themes = new MutationObserver(() => answer.draw());
  if (document.body) {
    themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  }
  return () => {
    model.off("change", draw);
    themes.disconnect();
    kit.stop();
    close();
  };
}

export default { render };
