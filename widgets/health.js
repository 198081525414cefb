// The foot of a run's figure: memory of its processes, and what happened to it, newest first.
//
// Traits (see kdflow_lab/widgets/health.py): memory ({role, size, bytes, count}), total, news ({kind,
// step, when, text, tokens, ids}). What models wrote is shown as text, whatever it holds.
import { make } from "./tokens.js";

const STYLE = `
.kdflow-health { font-family: var(--jp-ui-font-family, sans-serif); font-size: 12px;
  color: var(--jp-ui-font-color1, inherit); padding: 0 8px 4px 8px; }
.kdflow-health .memory { display: flex; flex-wrap: wrap; gap: 2px 14px; min-height: 1.5em;
  font-variant-numeric: tabular-nums; }
.kdflow-health .memory .title { font-weight: 600; }
.kdflow-health .role { color: var(--jp-ui-font-color2, inherit); }
.kdflow-health .news { height: 7.2em; overflow-y: auto; margin-top: 4px; padding: 2px 4px;
  border: 1px solid var(--jp-border-color2, rgba(128,128,128,.35)); border-radius: 3px; }
.kdflow-health .news:focus-visible { outline: 2px solid #0072b2; }
.kdflow-health .item { padding: 1px 0; overflow-wrap: anywhere; }
.kdflow-health .kind { display: inline-block; min-width: 5em; margin-right: 6px; padding: 0 5px;
  border-radius: 7px; text-align: center; color: #fff; background: #5f6368; }
.kdflow-health .kind[data-kind="alarm"] { background: #b34700; }
.kdflow-health .kind[data-kind="warning"] { background: #8a6100; }
.kdflow-health .kind[data-kind="set"] { background: #0072b2; }
.kdflow-health .when { color: var(--jp-ui-font-color2, inherit); margin-right: 6px;
  font-variant-numeric: tabular-nums; }
.kdflow-health .tokens { display: block; margin-left: 6.2em;
  font-family: var(--jp-code-font-family, monospace);
  background: var(--jp-layout-color2, rgba(128,128,128,.12)); padding: 0 4px; unicode-bidi: isolate; }
.kdflow-health .ids { display: block; margin-left: 6.2em; font-size: 11px;
  color: var(--jp-ui-font-color2, inherit); }
.kdflow-health .none { color: var(--jp-ui-font-color2, inherit); }
`;

function render({ model, el }) {
  const root = make("div", "kdflow-health", el);
  make("style", "", root, STYLE);
  const memory = make("div", "memory", root);
  memory.setAttribute("role", "group");
  memory.setAttribute("aria-label", "memory of the run's processes");
  const news = make("div", "news", root);
  news.setAttribute("role", "log");
  news.setAttribute("aria-label", "alarms, warnings and changes, newest first");
  news.setAttribute("tabindex", "0");

  function drawMemory() {
    memory.textContent = "";
    make("span", "title", memory, "Memory");
    const uses = model.get("memory");
    for (const { role, size, count } of uses) {
      const one = make("span", "use", memory);
      make("span", "role", one, `${role} `);
      make("span", "size", one, size);
      one.title = `${role}: ${count} ${count === 1 ? "process" : "processes"}`;
    }
    make("span", "total", memory, model.get("total") || "not known here");
  }

  function drawNews() {
    news.textContent = "";
    for (const { kind, step, when, text, tokens, ids } of model.get("news")) {
      const item = make("div", "item", news);
      make("span", "kind", item, kind).dataset.kind = kind;
      const place = step === null || step === undefined ? "" : `step ${step} · `;
      make("span", "when", item, `${place}${when}`);
      make("span", "text", item, text);
      if (tokens) make("span", "tokens", item, tokens);
      if (ids) make("span", "ids", item, `ids ${ids}`);
    }
    if (!model.get("news").length) make("div", "none", news, "No alarm, warning or change so far.");
  }
  const listeners = [
    ["change:memory", drawMemory],
    ["change:total", drawMemory],
    ["change:news", drawNews],
  ];
  for (const [event, listener] of listeners) model.on(event, listener);
  drawMemory();
  drawNews();
  return () => {
    for (const [event, listener] of listeners) model.off(event, listener);
  };
}

export default { render };
