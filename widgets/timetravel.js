// A slider through the steps that were probed, with play, and a curve of one token over them.

import { make } from "./tokens.js";
import { quantityText } from "./scale.js";

const PLAY_MS = 600;
const [CURVE_WIDTH, CURVE_HEIGHT, CURVE_EDGE] = [320, 46, 4]; // of the curve

export const TRAVEL_STYLE = `
.kdflow-travel { display: grid; grid-template-columns: minmax(0, 1fr) var(--kdflow-side); gap: 12px;
  align-items: center; margin-top: 8px; min-height: 62px; }
.kdflow-travel.none { display: none; }
.kdflow-travel .row { display: flex; gap: 8px; align-items: center; }
.kdflow-travel input[type="range"] { flex: 1 1 auto; min-width: 80px; accent-color: #0072b2; }
.kdflow-travel .at { min-width: 10.5em; font-variant-numeric: tabular-nums; }
.kdflow-travel .play { min-width: 5.5em; }
.kdflow-travel .said { height: 18px; font-size: 12px; padding-top: 3px; overflow: hidden;
  white-space: nowrap; text-overflow: ellipsis; color: var(--jp-ui-font-color2, #616161); }
.kdflow-travel .curve { border-left: 2px solid var(--jp-border-color2, #e0e0e0);
  padding-left: 10px; font-size: 11px; min-width: 0; }
.kdflow-travel .curve svg { display: block; width: 100%; height: ${CURVE_HEIGHT}px; }
.kdflow-travel .curve .label span:first-child { overflow: hidden; text-overflow: ellipsis; }
.kdflow-travel .curve .label { display: flex; justify-content: space-between; height: 16px; gap: 8px;
  white-space: nowrap; overflow: hidden; color: var(--jp-ui-font-color2, #616161); }
`;

// The points of the curve as an SVG path, with the place of each; gaps where nothing is known.
export function curvePath(points) {
  const known = points.filter(([, value]) => Number.isFinite(value));
  if (!known.length) return { path: "", places: new Map() };
  const [first, last] = [points[0][0], points[points.length - 1][0]];
  const values = known.map(([, value]) => value);
  const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
  const places = new Map();
  let path = "";
  let pen = "M";
  for (const [step, value] of points) {
    if (!Number.isFinite(value)) {
      pen = "M";
      continue;
    }
    const x = last > first ? CURVE_EDGE + ((CURVE_WIDTH - 2 * CURVE_EDGE) * (step - first)) / (last - first) : CURVE_EDGE;
    const share = high > low ? (value - low) / (high - low) : 0;
    const y = CURVE_HEIGHT - CURVE_EDGE - (CURVE_HEIGHT - 2 * CURVE_EDGE) * share;
    places.set(step, [x, y]);
    path += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = "L";
  }
  return { path, places };
}

function makeSvg(tag, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent.append(element);
  return element;
}

// Put it into `parent`. `onStep(step)` hears which step is wanted, `isThere(step)` whether it came.
export function makeTravel({ parent, onStep, onFollow, isThere }) {
  const root = make("div", "kdflow-travel none", parent);
  const left = make("div", "", root);
  const row = make("div", "row", left);
  const play = make("button", "play", row, "▶ Play");
  const input = make("input", "", row);
  input.type = "range";
  input.min = 0;
  input.setAttribute("aria-label", "step of the run");
  input.setAttribute("data-lm-suppress-shortcuts", "true");
  const at = make("span", "at", row);
  const label = make("label", "follow", row);
  const follow = make("input", "", label);
  follow.type = "checkbox";
  make("span", "", label, " follow the newest");
  const said = make("div", "said", left);
  said.setAttribute("role", "status");
  const curve = make("div", "curve", root);
  const title = make("div", "label", curve);
  const titleLeft = make("span", "", title);
  const titleRight = make("span", "", title);
  const svg = makeSvg("svg", { viewBox: `0 0 ${CURVE_WIDTH} ${CURVE_HEIGHT}`, role: "img" }, curve);
  svg.setAttribute("preserveAspectRatio", "none");
  const look = { fill: "none", "vector-effect": "non-scaling-stroke" };
  makeSvg("path", { ...look, stroke: "currentColor", "stroke-opacity": 0.25,
    d: `M0 ${CURVE_HEIGHT - CURVE_EDGE}H${CURVE_WIDTH}` }, svg);
  const line = makeSvg("path", { ...look, stroke: "#0072b2", "stroke-width": 2 }, svg);
  const dots = makeSvg("path", { ...look, stroke: "#0072b2", "stroke-width": 6,
    "stroke-linecap": "round" }, svg);
  const mark = makeSvg("path", { ...look, stroke: "#d55e00", "stroke-width": 10,
    "stroke-linecap": "round" }, svg);

  let steps = [];
  let shown = null;
  let timer = null;

  function choose(index) {
    input.value = index;
    onStep(steps[index]);
  }
  function pause() {
    clearInterval(timer);
    timer = null;
    play.textContent = "▶ Play";
  }
  function tick() {
    const index = Number(input.value);
    if (!isThere(steps[index])) return; // the kernel has not answered yet
    if (index + 1 >= steps.length) pause();
    else choose(index + 1);
  }
  play.onclick = () => {
    if (timer !== null) return pause();
    onFollow(false);
    follow.checked = false;
    if (Number(input.value) + 1 >= steps.length) choose(0);
    play.textContent = "❚❚ Pause";
    timer = setInterval(tick, PLAY_MS);
  };
  input.addEventListener("input", () => {
    pause();
    onFollow(false);
    follow.checked = false;
    onStep(steps[Number(input.value)]);
  });
  follow.addEventListener("change", () => {
    pause();
    onFollow(follow.checked);
    if (follow.checked && steps.length) choose(steps.length - 1);
  });

  return {
    element: root,
    close: pause,
    // Which steps there are, which one is shown, whether more may come, and whether it follows.
    update({ known, step, live, following }) {
      steps = known;
      shown = step;
      root.className = steps.length || live ? "kdflow-travel" : "kdflow-travel none";
      input.max = Math.max(0, steps.length - 1);
      input.disabled = play.disabled = steps.length < 2;
      const index = steps.indexOf(step);
      if (timer === null && index >= 0) input.value = index;
      at.textContent = index < 0 ? "no probes yet" : `step ${step.toLocaleString("en")} (${
        index + 1} of ${steps.length})`;
      input.setAttribute("aria-valuetext", at.textContent);
      follow.checked = following;
      label.style.visibility = live ? "" : "hidden";
    },
    say(text) {
      said.textContent = text;
    },
    // The focused token's quantity over the steps that this page has seen.
    draw(points, quantity, bits) {
      const { path, places } = curvePath(points);
      line.setAttribute("d", path);
      dots.setAttribute("d", [...places.values()].map(([x, y]) => `M${x} ${y}h0`).join(""));
      const here = places.get(shown);
      mark.setAttribute("d", here ? `M${here[0]} ${here[1]}h0` : "");
      const count = points.length === 1 ? "1 step" : `${points.length} steps`;
      titleLeft.textContent = `${quantity.label} of this token, ${count}`;
      const now = points.find(([step]) => step === shown);
      titleRight.textContent = now ? quantityText(now[1], quantity, bits) : "";
      svg.setAttribute("aria-label", points
        .map(([step, value]) => `step ${step}: ${quantityText(value, quantity, bits)}`)
        .join(", "));
    },
  };
}
