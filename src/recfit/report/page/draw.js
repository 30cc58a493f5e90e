// Elements, scales, axes and the tooltip. Text always enters as text nodes, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

/** An HTML element; a function as attribute value listens to the event of that name. */
function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function byId(id) {
  return document.getElementById(id);
}

function linearScale([low, high], [start, end]) {
  const span = high - low || 1;
  const scale = (value) => start + ((value - low) / span) * (end - start);
  scale.invert = (position) => low + ((position - start) / (end - start)) * span;
  return scale;
}

function logScale([low, high], range) {
  const inner = linearScale([Math.log(low), Math.log(high)], range);
  const scale = (value) => inner(Math.log(value));
  scale.invert = (position) => Math.exp(inner.invert(position));
  return scale;
}

/** About `count` round values inside [low, high]. */
function linearTicks(low, high, count = 5) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, index) => (first + index) * step);
}

/** 1-2-5 ticks inside [low, high], thinned to 1-3 or to decades over wide ranges. */
function logTicks(low, high) {
  const decades = Math.log10(high / low);
  const factors = decades > 5 ? [1] : decades > 3 ? [1, 3] : [1, 2, 5];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    ticks.push(...factors.map((factor) => Number((factor * 10 ** power).toPrecision(1))));
  }
  return ticks.filter((tick) => tick >= low && tick <= high);
}

/** [low, high] widened by `share` on each side; on a log axis as a factor. */
function padded(values, share, log = false) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  if (log) {
    const factor = Math.max(high / low, 1.2) ** share;
    return [low / factor, high * factor];
  }
  const pad = (high - low || Math.abs(high) || 1) * share;
  return [low - pad, high + pad];
}

function tickLabel(value, digits = 0) {
  return Number(value.toPrecision(6)).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: 8 });
}

/** The decimals that the longest of the ticks needs, so that all show as many. */
function decimals(ticks) {
  return Math.max(0, ...ticks.map((tick) => (tickLabel(tick).split(".")[1] ?? "").length));
}

function bottomAxis(scale, ticks, frame, title) {
  const marks = ticks.map((tick) => [
    s("line", { class: "grid", x1: scale(tick), x2: scale(tick), y1: frame.top, y2: frame.bottom }),
    s("text", { class: "tick", x: scale(tick), y: frame.bottom + 18, "text-anchor": "middle" }, tickLabel(tick)),
  ]);
  const middle = (frame.left + frame.right) / 2;
  return s(
    "g",
    {},
    marks,
    s("text", { class: "axis", x: middle, y: frame.bottom + 40, "text-anchor": "middle" }, title),
  );
}

function leftAxis(scale, ticks, frame, title, label = (tick) => tickLabel(tick, decimals(ticks))) {
  const marks = ticks.map((tick) => [
    s("line", { class: "grid", x1: frame.left, x2: frame.right, y1: scale(tick), y2: scale(tick) }),
    s("text", { class: "tick", x: frame.left - 8, y: scale(tick) + 4, "text-anchor": "end" }, label(tick)),
  ]);
  return s("g", {}, marks, s("text", { class: "axis", x: 2, y: frame.top - 12 }, title));
}

/** Draws into `node` at its present width, and again whenever that width changes. */
function responsive(node, draw) {
  let width = 0;
  const redraw = () => {
    const now = Math.round(node.clientWidth);
    if (!now || now === width) return;
    width = now;
    node.replaceChildren(draw(width));
  };
  redraw();
  new ResizeObserver(redraw).observe(node);
  return () => {
    width = 0;
    redraw();
  };
}

function showTip(target, ...content) {
  const tip = byId("tip");
  tip.replaceChildren(...content);
  tip.hidden = false;
  const box = target.getBoundingClientRect();
  const left = Math.min(box.right + 10, window.innerWidth - tip.offsetWidth - 12);
  const top = Math.max(8, Math.min(box.top - 8, window.innerHeight - tip.offsetHeight - 8));
  const covers = left < box.right && top < box.bottom;
  tip.style.left = `${(covers ? Math.max(8, box.left - tip.offsetWidth - 10) : left) + window.scrollX}px`;
  tip.style.top = `${top + window.scrollY}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

/** A recipe as it is written, a step never broken in the middle while there is room. */
function recipeNodes(candidate) {
  const steps = candidate.steps.map(({ text }, index) => [index ? " → " : "", h("code", {}, text)]);
  return h("span", { class: "recipe" }, steps.length ? steps : candidate.name);
}

/** A small definition list of metrics, for tooltips and details. */
function metricList(candidate, metrics) {
  const rows = metrics
    .filter((metric) => candidate.metrics[metric] != null)
    .map((metric) => [
      h("dt", {}, metricInfo(metric).label),
      h("dd", {}, formatValue(metric, candidate.metrics[metric])),
    ]);
  return h("dl", { class: "metrics" }, rows);
}
