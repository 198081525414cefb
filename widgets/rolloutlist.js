// The list of the rollout browser: filters, a table that is sorted by its headings, pages.

import { scaleTop } from "./rolloutanswer.js";
import { make } from "./tokens.js";

export const LIST_STYLE = `
.kdflow-rollouts .list { min-height: 263px; overflow-x: auto; }
.kdflow-rollouts table { border-collapse: collapse; width: 100%; font-size: 12px; background: none;
  table-layout: fixed; }
.kdflow-rollouts th, .kdflow-rollouts td { text-align: right; padding: 0 7px; height: 23px;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; font-weight: normal;
  font-variant-numeric: tabular-nums; }
.kdflow-rollouts th.text, .kdflow-rollouts td.text { text-align: left; unicode-bidi: isolate; }
.kdflow-rollouts th { border-bottom: 1px solid var(--jp-border-color1, rgba(128,128,128,.5)); }
.kdflow-rollouts th button { padding: 0; background: none; border: none; }
.kdflow-rollouts th button.sorted { font-weight: 700; }
.kdflow-rollouts tbody tr { cursor: pointer; }
.kdflow-rollouts tbody tr:hover { background: var(--jp-layout-color2, rgba(128,128,128,.15)); }
.kdflow-rollouts tbody tr[aria-selected="true"] { background: rgba(0,114,178,.38); }
.kdflow-rollouts tbody tr:focus, .kdflow-rollouts .token:focus { outline: none; }
.kdflow-rollouts tbody tr:focus-visible { outline: 2px solid var(--jp-ui-font-color0, currentColor);
  outline-offset: -2px; }
.kdflow-rollouts .bar { display: inline-block; height: 9px; margin-left: 6px; background: #d55e00;
  vertical-align: 0; }
`;

const COLUMNS = [
  // name, heading, width, whether one can sort by it
  ["step", "step", "4.6em", true],
  ["row", "row", "4.6em", true],
  ["length", "tokens", "5em", true],
  ["kl_mean", "mean KL", "5.6em", true],
  ["kl_max", "max KL", "8.4em", true],
  ["staleness", "stale", "4.4em", true],
  ["finished", "end", "4.4em", false],
  ["prompt", "prompt", "", false],
  ["text", "answer", "", false],
];
const BAR_PX = 36;

// Draw filters, table and pager into `parent`; `ask` sends a message to the kernel.
export function rolloutList(model, parent, kit, ask) {
  const query = {
    kind: "list", asked: 0, order: "step", descending: true, start: 0,
    text: "", finished: null, kl: 0, first_step: 0, last_step: null,
  };
  function list(changes) {
    Object.assign(query, { start: 0 }, changes);
    query.asked += 1;
    ask({ ...query });
  }
  const filters = make("div", "row", parent);
  const words = "search prompt and answer";
  const search = kit.field(filters, { type: "search", name: "search", spoken: words }, (text) =>
    list({ text }));
  search.placeholder = words;
  const ends = kit.field(filters, { tag: "select", name: "ends", label: "end" }, (value) =>
    list({ finished: { ended: true, cut: false }[value] ?? null }));
  for (const value of ["any", "ended", "cut"]) make("option", "", ends, value).value = value;
  const number = (name, label, change) => {
    const input = kit.field(filters, { type: "number", name, label }, change);
    input.min = 0;
    return input;
  };
  const least = number("least", "some token's KL ≥", (value) => list({ kl: kit.fromField(value) }));
  least.step = 0.1;
  number("from", "steps", (value) => list({ first_step: Number(value) || 0 }));
  number("until", "to", (value) => list({ last_step: value === "" ? null : Number(value) }));

  const table = make("table", "", make("div", "list", parent));
  table.setAttribute("role", "grid");
  table.setAttribute("aria-label", "answers");
  const heads = make("tr", "", make("thead", "", table));
  const sorters = COLUMNS.map(([name, heading, width, sortable]) => {
    const cell = make("th", width ? "" : "text", heads);
    if (width) cell.style.width = width;
    if (!sortable) {
      cell.textContent = heading;
      return null;
    }
    const button = make("button", "", cell);
    button.onclick = () => {
      const now = model.get("listing");
      list({ order: name, descending: now.order === name ? !now.descending : true });
    };
    return { name, heading, cell, button };
  });
  const body = make("tbody", "", table);
  const pager = make("div", "row", parent);
  const earlier = make("button", "earlier", pager, "‹");
  earlier.setAttribute("aria-label", "previous page");
  const where = make("span", "quiet where", pager);
  const further = make("button", "further", pager, "›");
  further.setAttribute("aria-label", "next page");
  const page = (step) => {
    const { start, per_page: size } = model.get("listing");
    list({ ...query, start: Math.max(0, start + step * size) });
  };
  earlier.onclick = () => page(-1);
  further.onclick = () => page(1);

  let lines = [];
  function mark(at) {
    lines.forEach(({ row, line }) => row.setAttribute("aria-selected", String(line.at === at)));
  }
  function choose(at) {
    mark(at);
    if (model.get("answer").at !== at) ask({ kind: "answer", at });
  }
  function draw() {
    const found = model.get("listing");
    const worst = scaleTop(found.rows.map((one) => one.kl_max));
    for (const sorter of sorters.filter(Boolean)) {
      const sorted = sorter.name === found.order;
      sorter.button.className = sorted ? "sorted" : "";
      sorter.button.textContent =
        `${sorter.heading}${sorted ? (found.descending ? " ▾" : " ▴") : ""}`;
      const direction = found.descending ? "descending" : "ascending";
      sorter.cell.setAttribute("aria-sort", sorted ? direction : "none");
    }
    const focused = lines.findIndex(({ row }) => row === document.activeElement);
    body.textContent = "";
    lines = found.rows.map((line) => {
      const row = make("tr", "", body);
      row.tabIndex = 0;
      row.setAttribute("aria-selected", String(line.at === model.get("answer").at));
      for (const [name] of COLUMNS) {
        const text = name === "prompt" || name === "text";
        const cell = make("td", text ? "text" : "", row);
        if (name === "kl_mean") cell.textContent = kit.shown(line.kl_mean);
        else if (name === "finished") cell.textContent = line.finished ? "ended" : "cut";
        else cell.textContent = name === "kl_max" ? kit.shown(line.kl_max) : String(line[name]);
        if (text) cell.title = line[name];
        if (name === "kl_max" && line.kl_max !== null) {
          const bar = make("span", "bar", cell);
          const long = Math.round((BAR_PX * line.kl_max) / worst);
          bar.style.width = `${long}px`;
          bar.style.marginRight = `${BAR_PX - long}px`;
        }
      }
      row.onclick = () => choose(line.at);
      return { row, line };
    });
    if (!lines.length) {
      const cell = make("td", "text", make("tr", "", body), "no such answers");
      cell.colSpan = COLUMNS.length;
    }
    if (focused >= 0 && lines[focused]) lines[focused].row.focus();
    const last = Math.min(found.count, found.start + found.rows.length);
    const range = found.count ? `${found.start + 1}–${last} of ` : "";
    where.textContent = `${range}${found.count.toLocaleString("en")} answers`;
    earlier.disabled = !found.start;
    further.disabled = last >= found.count;
  }
  body.onkeydown = (event) => {
    const at = lines.findIndex(({ row }) => row === event.target);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Enter: at, " ": at }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    if (!lines[to]) return;
    lines[to].row.focus();
    choose(lines[to].line.at);
  };
  return {
    draw,
    mark,
    showUnit: () => (least.value = query.kl ? kit.toField(query.kl) : ""),
  };
}
