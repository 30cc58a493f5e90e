// One line chart for all strategies: quality, latency and memory as shares of the original.

function buildStrategies(report) {
  const points = strategyPoints(report);
  const series = strategySeries(report, points);
  if (!series.length) {
    byId("strategies").replaceChildren(h("p", {}, "There are no measured strategies to compare."));
    return () => {};
  }
  const hidden = new Set();
  const shares = series.flatMap(({ shares: values }) => values.filter((value) => value !== null));
  const log = h("input", { type: "checkbox", id: "strategies-log", change: () => redraw() });
  log.checked = Math.max(...shares) > 8 * Math.min(...shares);
  const holder = h("div", { class: "chart" });
  const keys = series.map((line) => seriesKey(line, hidden, () => redraw()));
  byId("strategies").replaceChildren(
    h(
      "div",
      { class: "row" },
      h(
        "ul",
        { class: "legend keys" },
        keys.map((key) => h("li", {}, key)),
      ),
      h("label", { for: "strategies-log" }, log, " log scale"),
    ),
    holder,
  );
  const redraw = responsive(holder, (width) =>
    drawStrategies(report, points, series, width, { log: log.checked, hidden }),
  );
  return () => {};
}

function strategyPoints(report) {
  return report.strategies
    .map(({ label, id }) => ({ label, candidate: findCandidate(report, id) }))
    .filter(({ candidate }) => candidate && isFinished(candidate));
}

/** {metric, name, shares}: each strategy's value over the first one's (the original), `null` where it was not measured. */
function strategySeries(report, points) {
  const original = points[0]?.candidate;
  return [report.quality_metric, "p99_ms", "memory_mb"]
    .filter(
      (metric) => original?.metrics[metric] > 0 && points.some(({ candidate }) => candidate.metrics[metric] != null),
    )
    .map((metric, index) => ({
      metric,
      name: metricInfo(metric).label,
      style: `series-${index}`,
      shares: points.map(({ candidate }) => {
        const value = candidate.metrics[metric];
        return value == null ? null : value / original.metrics[metric];
      }),
    }));
}

function seriesKey(line, hidden, redraw) {
  const toggle = (event) => {
    if (!hidden.delete(line.metric)) hidden.add(line.metric);
    event.currentTarget.setAttribute("aria-pressed", String(!hidden.has(line.metric)));
    redraw();
  };
  return h(
    "button",
    { type: "button", class: `key-button ${line.style}`, "aria-pressed": "true", click: toggle },
    h("span", { class: "dot", "aria-hidden": "true" }),
    line.name,
  );
}

function drawStrategies(report, points, series, width, { log, hidden }) {
  const shown = series.filter((line) => !hidden.has(line.metric));
  const frame = { left: 58, right: width - 24, top: 34, bottom: 320 };
  const values = shown.flatMap(({ shares }) => shares.filter((value) => value !== null && (!log || value > 0)));
  const domain = log ? padded([1, ...values], 0.06, true) : [0, Math.max(1, ...values) * 1.06];
  const y = (log ? logScale : linearScale)(domain, [frame.bottom, frame.top]);
  const inset = Math.min(60, (frame.right - frame.left) / (2 * points.length));
  const x = linearScale([0, Math.max(1, points.length - 1)], [frame.left + inset, frame.right - inset]);
  const ticks = log ? logTicks(...domain) : linearTicks(...domain);
  const percent = (value) => `${tickLabel(100 * value)} %`;
  const room = (frame.right - frame.left) / points.length;
  const labels = points.map((point, index) => strategyLabel(report, point, x(index), frame, room));
  const lines = Math.max(...labels.map(({ height }) => height));
  return s(
    "svg",
    {
      viewBox: `0 0 ${width} ${frame.bottom + 14 + 15 * lines}`,
      role: "img",
      "aria-label": strategyWords(shown, points),
    },
    leftAxis(y, ticks, frame, `share of ${points[0].label}`, percent),
    s("line", { class: "whole", x1: frame.left, x2: frame.right, y1: y(1), y2: y(1) }),
    labels.map(({ nodes }) => nodes),
    shown.map((line) => drawSeries(line, points, x, y)),
  );
}

function strategyWords(series, points) {
  const told = series.map(
    ({ name, shares }) =>
      `${name}: ${shares.map((v, i) => `${points[i].label} ${v === null ? NONE : formatPercent(v)}`).join(", ")}`,
  );
  return `Share of ${points[0].label} by strategy. ${told.join(". ")}`;
}

/** The label under a point, in up to three lines that fit its share of the width. */
function strategyLabel(report, { label, candidate }, at, frame, room) {
  const lines = wrapWords(label, Math.max(6, Math.floor(room / 6.6)), 3);
  const kind = candidate.id === report.chosen ? "tick chosen" : "tick";
  const text = lines.map((line, index) => s("tspan", { x: at, dy: index ? 15 : 0 }, line));
  const nodes = [
    s("line", { class: "grid", x1: at, x2: at, y1: frame.top, y2: frame.bottom }),
    s("text", { class: kind, x: at, y: frame.bottom + 20, "text-anchor": "middle" }, text, s("title", {}, label)),
  ];
  return { nodes, height: lines.length };
}

function wrapWords(text, room, most) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const joined = lines.at(-1) ? `${lines.at(-1)} ${word}` : word;
    if (joined.length <= room || !lines.at(-1)) lines[lines.length - 1] = joined;
    else lines.push(word);
  }
  const cut = (line) => (line.length > room ? `${line.slice(0, room - 1)}…` : line);
  const kept = lines.slice(0, most).map(cut);
  if (lines.length > most) kept[most - 1] = `${kept[most - 1].slice(0, room - 1)}…`;
  return kept;
}

function drawSeries(line, points, x, y) {
  const present = line.shares.map((value, index) => ({ value, index })).filter(({ value }) => value > 0);
  const path = present.map(({ value, index }, order) => `${order ? "L" : "M"} ${x(index)} ${y(value)}`).join(" ");
  const dots = present.map(({ value, index }) => {
    const { label, candidate } = points[index];
    const dot = s("circle", { cx: x(index), cy: y(value), r: 4 });
    const text = `${line.name} ${formatValue(line.metric, candidate.metrics[line.metric])}, ${formatPercent(value)} of ${points[0].label}`;
    dot.addEventListener("mouseenter", () => showTip(dot, h("p", { class: "name" }, label), h("p", {}, text)));
    dot.addEventListener("mouseleave", hideTip);
    return dot;
  });
  return s("g", { class: line.style }, s("path", { d: path }), dots);
}
