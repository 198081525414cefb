// Colour scales of tokens; kdflow_lab/widgets/_divergence_scale.py is their twin and says why.

const RAMPS = {
  light: "#ffffff #faf6b0 #f4ea45 #bade28 #71cf56 #36b878 #1f9c89 #287d8e #365d8d #443a83 #471365",
  dark: "#111111 #28193a #402166 #433d84 #34608d #277f8e #1f9e89 #38b977 #73d055 #bbde28 #fde725",
};
const BELOW = {
  light: "#ffffff #bdd7ed #72b2d8 #3a86c0 #18599a #08306b",
  dark: "#111111 #123455 #1c5d97 #438dc4 #86bdde #d6e8f7",
};
const ABOVE = {
  light: "#ffffff #fdd2a6 #fd9c53 #e76419 #b83c02 #7f2704",
  dark: "#111111 #522709 #9c3a04 #e25a10 #fda25e #fde3c8",
};

function channels(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function between(ramp, place) {
  const stops = ramp.split(" ");
  const at = Math.min(Math.max(place, 0), 1) * (stops.length - 1);
  const index = Math.min(Math.floor(at), stops.length - 2);
  const [low, high] = [channels(stops[index]), channels(stops[index + 1])];
  const mixed = low.map((one, i) => Math.floor(one + (high[i] - one) * (at - index) + 0.5));
  return `#${mixed.map((one) => one.toString(16).padStart(2, "0")).join("")}`;
}

// The colour at a place: 0 to 1, signed quantities -1 to 1. `theme` is light or dark.
export function colourAt(place, kind, theme) {
  if (kind === "signed") return between((place >= 0 ? ABOVE : BELOW)[theme], Math.abs(place));
  return between(RAMPS[theme], place);
}

// Black or white, whichever is read better on a colour.
export function inkOn(ground) {
  const [r, g, b] = channels(ground).map((channel) => {
    const share = channel / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  const luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) ? "#000000" : "#ffffff";
}

// Where a value lies on the scale { kind, high } of its quantity; NaN stays NaN.
export function placeOf(value, { kind, high }) {
  if (kind === "agreement") return 1 - value;
  const share = kind === "log" ? Math.log(Math.max(value, 1)) / Math.log(high) : value / high;
  const place = Math.min(Math.max(share, kind === "signed" ? -1 : 0), 1);
  return kind === "root" ? Math.sqrt(place) : place;
}

// The value at a place, the reverse of `placeOf`.
export function valueAt(place, { kind, high }) {
  if (kind === "agreement") return 1 - place;
  if (kind === "root") return high * place * place;
  return kind === "log" ? high ** place : high * place;
}

// How much a value deserves a look: the highest first.
export function severityOf(value, kind) {
  if (kind === "agreement") return 1 - value;
  return kind === "signed" ? Math.abs(value) : value;
}

export const BITS_PER_NAT = 1 / Math.LN2;

// A number with its unit; nats as bits if asked for.
export function quantityText(value, { unit, kind }, bits, withUnit = true) {
  if (kind === "agreement") return value ? "yes" : "no";
  if (Number.isNaN(value)) return "not known";
  const shown = unit === "nats" && bits ? value * BITS_PER_NAT : value;
  const name = unit === "nats" && bits ? "bits" : unit;
  return `${numberText(shown, kind)}${withUnit && name ? ` ${name}` : ""}`;
}

// As many digits as help: 0.012, 1.230, 45.60; small ones are not called zero: 2.6e-4.
export function numberText(value, kind = "") {
  if (!Number.isFinite(value)) return String(value).replace("-", "−");
  if (kind === "log") return value.toLocaleString("en", { maximumFractionDigits: 0 });
  const size = Math.abs(value);
  if (size > 0 && size < 0.0005) return value.toExponential(1).replace(/^-/, "−");
  const digits = size < 10 ? 3 : size < 100 ? 2 : 1;
  const sign = kind === "signed" && value > 0 ? "+" : "";
  return sign + value.toFixed(digits).replace("-", "−");
}
