// The pinned prompts of the rollout browser: their answers at two checkpoints, side by side.

import { make } from "./tokens.js";

export const PINNED_STYLE = `
.kdflow-rollouts .pinned td { height: auto; white-space: pre-wrap; vertical-align: top;
  padding: 4px 8px; text-align: left; overflow-wrap: anywhere; unicode-bidi: isolate; }
.kdflow-rollouts .pinned th { text-align: left; }
.kdflow-rollouts .pinned td.code { font-weight: normal; white-space: pre-wrap; }
.kdflow-rollouts .changed { font-weight: 700; text-decoration: underline;
  text-decoration-color: #d55e00; text-decoration-thickness: 2px; text-underline-offset: 3px; }
`;

// Draw into `parent`; `ask` sends a message to the kernel.
export function rolloutPinned(model, parent, ask) {
  const choice = make("div", "row", parent);
  const pinnedTable = make("table", "pinned", parent);
  function draw() {
    const found = model.get("pinned");
    choice.textContent = "";
    pinnedTable.textContent = "";
    if (!found.rows?.length) {
      make("span", "quiet", choice, "Pinned prompts are answered at every checkpoint; there is none yet.");
      return;
    }
    const menus = ["before", "after"].map((name) => {
      const label = make("label", "quiet", choice, `${name}: step `);
      const menu = make("select", name, label);
      menu.setAttribute("aria-label", `${name}: step`);
      for (const step of found.steps) make("option", "", menu, String(step)).value = String(step);
      menu.value = String(found[name]);
      menu.onchange = () =>
        ask({ kind: "pinned", before: Number(menus[0].value), after: Number(menus[1].value) });
      return menu;
    });
    make("span", "quiet", choice, "underlined: from the first token on that differs");
    const head = make("tr", "", make("thead", "", pinnedTable));
    for (const name of ["prompt", `step ${found.before}`, `step ${found.after}`]) {
      make("th", "", head, name);
    }
    const rows = make("tbody", "", pinnedTable);
    for (const one of found.rows) {
      const row = make("tr", "", rows);
      make("td", "", row, one.prompt);
      for (const name of ["before", "after"]) {
        const cell = make("td", "code", row);
        make("span", "", cell, one[name].slice(0, one.shared).join(""));
        const rest = one[name].slice(one.shared).join("");
        if (rest) make("span", "changed", cell, rest);
        if (!one[name].length) make("span", "quiet", cell, "no answer");
      }
    }
  }
  return { draw };
}
