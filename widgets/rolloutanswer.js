// One answer of the rollout browser: its tokens coloured, and what the teacher would have written.

import { colourAt, inkOn } from "./scale.js";
import { make, probability } from "./tokens.js";

export const ANSWER_STYLE = `
.kdflow-rollouts .answer { border-top: 1px solid var(--jp-border-color2, rgba(128,128,128,.3));
  margin-top: 6px; padding-top: 4px; }
.kdflow-rollouts .title { font-weight: 600; }
.kdflow-rollouts .prompt { font-family: var(--jp-code-font-family, monospace); font-size: 12px;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 84px; overflow: auto; padding: 4px 8px;
  border-left: 3px solid var(--jp-border-color1, rgba(128,128,128,.5));
  color: var(--jp-ui-font-color2, inherit); unicode-bidi: isolate; }
.kdflow-rollouts .tokens { font-family: var(--jp-code-font-family, monospace); font-size: 13px;
  line-height: 1.9; max-height: 216px; overflow: auto; padding: 6px 4px; overflow-wrap: anywhere; }
.kdflow-rollouts .token { padding: 1px 1px; margin-right: 1px; border-radius: 2px; cursor: default;
  unicode-bidi: isolate; outline-offset: 1px; }
.kdflow-rollouts .token.unknown { border-bottom: 1px dotted; }
.kdflow-rollouts .token.first { box-shadow: 0 0 0 2px #d55e00; }
.kdflow-rollouts .token.current, .kdflow-rollouts .token.current:focus {
  outline: 2px solid var(--jp-ui-font-color0, currentColor); }
.kdflow-rollouts .ramp { display: inline-flex; font-size: 11px; }
.kdflow-rollouts .ramp span { width: 52px; text-align: center; line-height: 16px; }
.kdflow-rollouts .correction { padding: 6px 10px; margin: 4px 0; border-left: 4px solid #d55e00;
  background: rgba(213,94,0,.10); display: flex; gap: 4px 10px; align-items: baseline;
  flex-wrap: wrap; }
.kdflow-rollouts .correction.calm { border-left-color: #009e73; background: rgba(0,158,115,.10); }
.kdflow-rollouts code, .kdflow-rollouts .code { font-family: var(--jp-code-font-family, monospace);
  background: none; color: inherit; font-weight: 600; unicode-bidi: isolate; }
.kdflow-rollouts .panel { display: grid; grid-template-columns: 11em 9em 1fr; gap: 1px 14px;
  height: 92px; overflow: auto; align-content: start; font-variant-numeric: tabular-nums; }
.kdflow-rollouts .panel .wide { grid-column: 1 / -1; }
.kdflow-rollouts .chance { height: 11px; align-self: center; }
`;

const COLOURINGS = {
  kl: { label: "KL(teacher ‖ student)", of: (answer, at) => answer.kl[at] },
  logprobs: { label: "student's surprise", of: (answer, at) => surprise(answer.logprobs[at]) },
  teacher_logprobs: {
    label: "teacher's surprise",
    of: (answer, at) => surprise(answer.teacher_logprobs[at]),
  },
};

const surprise = (logprob) => (logprob === null ? null : -logprob);

// The first token whose divergence reaches `threshold` nats; -1 if none does.
export function firstDiverging(answer, threshold) {
  return answer.kl.findIndex((value) => value !== null && value >= threshold);
}

// The next token, in steps of `step` and round the end, that reaches `threshold`; -1 if none does.
export function nextDiverging(answer, from, step, threshold) {
  const count = answer.kl.length;
  for (let tried = 1; tried <= count; tried += 1) {
    const at = (((from + step * tried) % count) + count) % count;
    if (answer.kl[at] !== null && answer.kl[at] >= threshold) return at;
  }
  return -1;
}

// The top of the colour scale: 1 nat, or more where a token is worse.
export function scaleTop(values) {
  return Math.max(1, ...values.filter((value) => value !== null));
}

function chanceText(logprob) {
  return logprob === null ? "" : ` (p ${probability(Math.exp(logprob))})`;
}

function rolloutTheme() {
  return document.body?.dataset.jpThemeLight === "false" ||
    document.body?.classList?.contains("vscode-dark")
    ? "dark"
    : "light";
}

// Draw into `parent` whatever answer the model has.
export function rolloutAnswer(model, parent, kit) {
  const box = make("div", "answer", parent);
  const bar = make("div", "row", box);
  const title = make("span", "title", bar);
  make("span", "gap", bar);
  const limit = { type: "number", name: "threshold", label: "diverging from" };
  const threshold = kit.field(bar, limit, (value) => {
    model.set("threshold", kit.fromField(value));
    model.save_changes?.();
    draw();
  });
  threshold.min = 0;
  threshold.step = 0.1;
  const thresholdUnit = make("span", "quiet", bar);
  const prompt = make("div", "prompt", box);
  const tokens = make("div", "tokens", box);
  tokens.setAttribute("role", "listbox");
  tokens.setAttribute("aria-label", "tokens of the answer");
  const legend = make("div", "row", box);
  const ramp = make("span", "ramp", legend);
  const menu = { tag: "select", name: "colouring", label: "colour" };
  const colouring = kit.field(legend, menu, () => draw());
  for (const [value, { label }] of Object.entries(COLOURINGS)) {
    make("option", "", colouring, label).value = value;
  }
  colouring.value = "kl";
  const legendUnit = make("span", "quiet", legend);
  make("span", "gap", legend);
  make("span", "quiet", legend, "← → move · n p diverging");
  const correction = make("div", "correction", box);
  const panel = make("div", "panel", box);
  const said = make("div", "said", box);
  said.setAttribute("aria-live", "polite");
  let spans = [];
  let current = -1;

  function tokenLabel(answer, at) {
    const value = answer.kl[at];
    const kl = value === null ? "KL not known" : `KL ${kit.shown(value)} ${kit.unit()}`;
    return `token ${at + 1}: ${answer.tokens[at]}, ${kl}`;
  }

  function draw() {
    const answer = model.get("answer");
    box.className = answer.tokens ? "answer" : "hidden";
    if (!answer.tokens) return;
    const end = answer.finished ? "ended" : "cut";
    title.textContent =
      `step ${answer.step} · row ${answer.row} · ${answer.length} tokens, ${end} · ` +
      `mean KL ${kit.shown(answer.kl_mean)}, max ${kit.shown(answer.kl_max)} ${kit.unit()}`;
    thresholdUnit.textContent = kit.unit();
    prompt.textContent = answer.prompt;
    const { of } = COLOURINGS[colouring.value] ?? COLOURINGS.kl;
    const values = answer.tokens.map((_, at) => of(answer, at));
    const top = scaleTop(values);
    const first = firstDiverging(answer, model.get("threshold"));
    const theme = rolloutTheme();
    const breaks = new Set(answer.breaks);
    tokens.textContent = "";
    spans = answer.tokens.map((text, at) => {
      const known = values[at] !== null;
      const classes = ["token", known ? "" : "unknown", at === first ? "first" : ""];
      const span = make("span", classes.filter(Boolean).join(" "), tokens, text);
      if (known) {
        const ground = colourAt(values[at] / top, "linear", theme);
        span.style.background = ground;
        span.style.color = inkOn(ground);
      }
      span.dataset.at = at;
      span.tabIndex = -1;
      span.setAttribute("role", "option");
      span.setAttribute("aria-label", tokenLabel(answer, at));
      if (breaks.has(at)) make("br", "", tokens);
      return span;
    });
    if (answer.more) make("span", "quiet", tokens, ` … ${answer.more} more tokens`);
    ramp.textContent = "";
    for (let step = 0; step < 5; step += 1) {
      const ground = colourAt(step / 4, "linear", theme);
      const cell = make("span", "", ramp, kit.shown((top * step) / 4));
      cell.style.background = ground;
      cell.style.color = inkOn(ground);
    }
    legendUnit.textContent = `${kit.unit()}; framed: first to diverge`;
    drawCorrection(answer, first);
    current = -1;
    look(first >= 0 ? first : 0);
  }

  function drawCorrection(answer, first) {
    correction.textContent = "";
    correction.className = first < 0 ? "correction calm" : "correction";
    const least = `${kit.shown(model.get("threshold"))} ${kit.unit()}`;
    if (answer.kl.every((value) => value === null)) {
      correction.textContent = "Nobody looked at the divergence of this answer.";
      return;
    }
    if (first < 0) {
      correction.textContent = `No token reaches ${least}.`;
      return;
    }
    const words = make("span", "", correction);
    make("span", "", words, `Token ${first + 1} is the first to reach ${least} (KL ` +
      `${kit.shown(answer.kl[first])}). `);
    drawWords(answer, first, words);
    const button = make("button", "", correction, "show");
    button.setAttribute("aria-label", `go to token ${first + 1}`);
    button.onclick = () => go(first);
  }

  function drawWords(answer, at, parent) {
    const theirs = answer.teacher_tokens[at];
    if (theirs === null) {
      make("span", "", parent, "What the teacher would have written is not known.");
      return;
    }
    const same = answer.same.includes(at);
    make("span", "", parent, "The teacher would have written ");
    make("code", "", parent, theirs);
    make("span", "", parent, chanceText(answer.teacher_top_logprobs[at]));
    if (same) {
      make("span", "", parent, " too.");
      return;
    }
    make("span", "", parent, " instead of ");
    make("code", "", parent, answer.tokens[at]);
    make("span", "", parent, `${chanceText(answer.teacher_logprobs[at])}.`);
  }

  function chance(name, logprob, colour) {
    make("span", "quiet", panel, name);
    make("span", "", panel, logprob === null ? "not known" : `p ${probability(Math.exp(logprob))}`);
    const bar = make("span", "chance", panel);
    bar.style.background = colour;
    bar.style.width = logprob === null ? "0" : `${(100 * Math.exp(logprob)).toFixed(1)}%`;
  }

  function look(at) {
    const answer = model.get("answer");
    if (at === current || !spans[at]) return;
    const old = spans[current];
    if (old) {
      old.className = old.className.replace(" current", "");
      old.tabIndex = -1;
    }
    current = at;
    spans[at].className += " current";
    spans[at].tabIndex = 0;
    panel.textContent = "";
    const what = make("div", "wide", panel);
    make("span", "", what, `token ${at + 1} of ${answer.length}: `);
    make("code", "", what, answer.tokens[at]);
    make("span", "", what, ` · KL ${kit.shown(answer.kl[at])} ${answer.kl[at] === null ? "" : kit.unit()} · `);
    drawWords(answer, at, what);
    chance("student wrote it with", answer.logprobs[at], "#0072b2");
    chance("teacher gives it", answer.teacher_logprobs[at], "#e69f00");
    chance("teacher's likeliest", answer.teacher_top_logprobs[at], "#e69f00");
  }

  function go(at) {
    if (!spans[at]) return;
    look(at);
    spans[at].focus();
  }

  function jump(step) {
    const at = nextDiverging(model.get("answer"), current, step, model.get("threshold"));
    if (at < 0) said.textContent = "No token diverges that much.";
    else go(at);
  }

  tokens.onkeydown = (event) => {
    const keys = {
      ArrowRight: () => go(current + 1),
      ArrowLeft: () => go(current - 1),
      Home: () => go(0),
      End: () => go(spans.length - 1),
      n: () => jump(1),
      p: () => jump(-1),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  };
  const tokenOf = (event) => Number(event.target.closest(".token")?.dataset.at ?? -1);
  tokens.onmouseover = (event) => look(tokenOf(event));
  tokens.onclick = (event) => go(tokenOf(event));
  return { draw, showUnit: () => (threshold.value = kit.toField(model.get("threshold"))) };
}
