// Quality against p99 latency: one disc a candidate, its area is memory.

const LARGEST_DISC = 15;

function buildScatter(report, state, actions) {
  const points = scatterPoints(report, state);
  const caption = h("p", { class: "caption" });
  const holder = h("div", { class: "chart" });
  byId("scatter").replaceChildren(holder, scatterLegend(points), caption);
  byId("frontier-lead").textContent =
    `${metricInfo(report.quality_metric).label} against p99 latency on the validation queries. ` +
    "Up and to the left is better. The shaded part is inside the limits; move them to see what they would pick.";
  let last = null;
  const mark = () => last && markScatter(holder, points, state, last);
  const draw = (width) => {
    const chart = drawScatter(report, points, width, actions);
    queueMicrotask(mark);
    return chart;
  };
  responsive(holder, draw);
  return (result) => {
    last = result;
    mark();
    caption.replaceChildren(...selectionCaption(report, state));
  };
}

/** Everything that has a place in the plot, and whose interval its whiskers are: the one that judges the quality limit. */
function scatterPoints(report, state) {
  const quality = report.quality_metric;
  const candidates = report.candidates.filter(
    (c) => isFinished(c) && c.metrics.p99_ms > 0 && c.metrics[quality] != null,
  );
  const memory = Math.max(...candidates.map(({ metrics }) => metrics.memory_mb ?? 0), 1e-9);
  return { quality, candidates, memory, limit: state.limits.find(({ metric }) => metric === quality) };
}

function discRadius(points, { metrics }) {
  return Math.max(3, LARGEST_DISC * Math.sqrt((metrics.memory_mb ?? 0) / points.memory));
}

function scatterScales(report, points, width, height) {
  const frame = { left: 62, right: width - 18, top: 34, bottom: height - 52 };
  const everything = points.candidates.length ? points.candidates : [{ metrics: { p99_ms: 1, [points.quality]: 0 } }];
  const domain = padded(
    everything.map(({ metrics }) => metrics.p99_ms),
    0.08,
    true,
  );
  const whiskers = points.candidates.flatMap((candidate) => whiskerEnds(candidate, points.limit));
  const range = padded([...everything.map(({ metrics }) => metrics[points.quality]), ...whiskers], 0.05);
  range[0] = Math.max(0, range[0]);
  return {
    frame,
    domain,
    range,
    x: logScale(domain, [frame.left, frame.right]),
    y: linearScale(range, [frame.bottom, frame.top]),
  };
}

function drawScatter(report, points, width, actions) {
  const height = Math.max(470, Math.min(540, width * 0.6));
  const scales = scatterScales(report, points, width, height);
  const { frame, x, y, domain, range } = scales;
  const label = metricInfo(points.quality).label;
  const chart = s(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${label} against p99 latency` },
    bottomAxis(x, logTicks(...domain), frame, "p99 latency (ms, log scale)"),
    leftAxis(y, linearTicks(...range, 6), frame, label),
    s("rect", { class: "inside" }),
    s("line", { class: "bound", id: "bound-x" }),
    s("line", { class: "bound", id: "bound-y" }),
    s("path", {
      class: "frontier",
      d: staircase(frontierLine(points.candidates, points.quality), points.quality, scales),
    }),
    [...points.candidates]
      .sort((a, b) => a.frontier - b.frontier)
      .map((c) => drawPoint(report, c, points, scales, actions)),
    s("circle", { class: "ring", r: 0 }),
    s("text", { class: "mark chosen-label" }),
  );
  chart.scales = scales;
  chart.addEventListener("keydown", (event) => moveFocus(event, points));
  return chart;
}

function staircase(line, quality, { x, y, frame }) {
  const corners = line.map((c, index) => {
    const [left, top] = [x(c.metrics.p99_ms), y(c.metrics[quality])];
    return index ? `H ${left} V ${top}` : `M ${left} ${top}`;
  });
  return line.length ? `${corners.join(" ")} H ${frame.right}` : "";
}

function whisker(candidate, points, { x, y }) {
  const [low, high] = whiskerEnds(candidate, points.limit);
  const at = x(candidate.metrics.p99_ms);
  return low === undefined ? null : s("line", { class: "whisker", x1: at, x2: at, y1: y(low), y2: y(high) });
}

function drawPoint(report, candidate, points, scales, actions) {
  const [cx, cy] = [scales.x(candidate.metrics.p99_ms), scales.y(candidate.metrics[points.quality])];
  const words = `${candidate.name}, ${["p99_ms", points.quality].map((m) => formatValue(m, candidate.metrics[m])).join(", ")}`;
  const original = originalKey(report, candidate);
  const kind = [candidate.frontier ? "on-frontier" : "", original ? "original" : ""].join(" ");
  const disc = s("circle", { class: "disc", cx, cy, r: discRadius(points, candidate) });
  const tip = () => showTip(disc, ...pointTip(points, candidate));
  const group = s(
    "g",
    {
      class: `point ${kind}`,
      "data-id": candidate.id,
      role: "button",
      tabindex: -1,
      "aria-label": words,
      mouseenter: tip,
      focus: tip,
      mouseleave: hideTip,
      blur: hideTip,
      click: () => actions.pick(candidate.id),
    },
    whisker(candidate, points, scales),
    disc,
  );
  if (original) group.append(s("text", { class: "mark", x: cx, y: cy + 4, "text-anchor": "middle" }, original));
  return group;
}

function tipMetrics(points) {
  return [points.quality, "p50_ms", "p99_ms", "memory_mb", "bundle_mb", "qps"];
}

function pointTip(points, candidate) {
  const difference = candidate.difference?.[points.quality];
  return [
    h("p", { class: "name" }, recipeNodes(candidate)),
    metricList(candidate, tipMetrics(points)),
    difference && candidate.steps.length
      ? h("p", { class: "note" }, `against the original ${differenceWords(points.quality, difference)}`)
      : "",
    candidate.reason ? h("p", { class: "note" }, candidate.reason) : "",
  ];
}

/** Arrow keys walk through the points from fast to slow; Enter or Space selects. */
function moveFocus(event, points) {
  const group = event.target.closest(".point[data-id]");
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!group) return;
  if (event.key === "Enter" || event.key === " ") group.dispatchEvent(new MouseEvent("click"));
  else if (step) {
    const order = [...points.candidates]
      .sort(byLoss("p99_ms", points.quality))
      .map((c) => c.id);
    const next = order[order.indexOf(group.dataset.id) + step];
    pointOf(event.currentTarget, next)?.focus();
  } else return;
  event.preventDefault();
}

function pointOf(root, id) {
  return [...root.querySelectorAll(".point[data-id]")].find((node) => node.dataset.id === id) ?? null;
}

/** Brings a drawn chart up to date: what is inside, chosen, selected. */
function markScatter(holder, points, state, result) {
  const chart = holder.firstElementChild;
  if (!chart) return;
  const target = result.chosen ?? result.nearest?.candidate ?? null;
  const entry = state.selected ?? target?.id ?? points.candidates[0]?.id;
  for (const node of chart.querySelectorAll(".point[data-id]")) {
    const candidate = points.candidates.find((c) => c.id === node.dataset.id);
    node.classList.toggle("out", !isFeasible(candidate, state.limits, state.tolerant));
    node.classList.toggle("selected", candidate.id === state.selected);
    node.classList.toggle("chosen", candidate === result.chosen);
    node.setAttribute("tabindex", candidate.id === entry ? 0 : -1);
  }
  markRegion(chart, points, state.limits);
  markTarget(chart, points, target, result.chosen !== null);
}

function markRegion(chart, points, limits) {
  const { frame, x, y } = chart.scales;
  const bound = (metric) => limits.find((limit) => limit.metric === metric)?.bound ?? null;
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const [p99, quality] = [bound("p99_ms"), bound(points.quality)];
  const right = p99 === null ? frame.right : clamp(x(p99), frame.left, frame.right);
  const bottom = quality === null ? frame.bottom : clamp(y(quality), frame.top, frame.bottom);
  const place = (node, attributes) => fill(node, attributes, []);
  place(chart.querySelector(".inside"), {
    x: frame.left,
    y: frame.top,
    width: right - frame.left,
    height: bottom - frame.top,
  });
  place(chart.querySelector("#bound-x"), {
    x1: right,
    x2: right,
    y1: frame.top,
    y2: p99 === null ? frame.top : frame.bottom,
  });
  place(chart.querySelector("#bound-y"), {
    y1: bottom,
    y2: bottom,
    x1: frame.left,
    x2: quality === null ? frame.left : frame.right,
  });
}

function markTarget(chart, points, target, isChosen) {
  const ring = chart.querySelector(".ring");
  const label = chart.querySelector(".chosen-label");
  const shown = target && points.candidates.includes(target);
  ring.setAttribute("r", shown ? discRadius(points, target) + 5 : 0);
  ring.classList.toggle("miss", !isChosen);
  label.textContent = shown ? `${isChosen ? "" : "nearest miss: "}${shortName(target)}` : "";
  if (!shown) return;
  const { frame, x, y } = chart.scales;
  const [cx, cy] = [x(target.metrics.p99_ms), y(target.metrics[points.quality])];
  fill(ring, { cx, cy }, []);
  const left = cx < (frame.left + frame.right) / 2;
  const away = discRadius(points, target) + 10;
  fill(label, { x: left ? cx + away : cx - away, y: cy + away + 6, "text-anchor": left ? "start" : "end" }, []);
}

function scatterLegend(points) {
  const item = (kind, text) => h("li", {}, h("span", { class: `key ${kind}`, "aria-hidden": "true" }), text);
  return h(
    "ul",
    { class: "legend" },
    item("on-frontier", "on the frontier"),
    item("dominated", "dominated"),
    item("out", "outside the limits"),
    item("ring", "chosen"),
    item("reference", "original"),
    h(
      "li",
      {},
      `area of a disc = memory, the largest ${formatValue("memory_mb", points.memory)}; bars = 95 % interval${points.limit?.relative ? " of the paired difference" : ""}`,
    ),
  );
}

function selectionCaption(report, state) {
  const candidate = findCandidate(report, state.selected);
  if (!candidate) return ["Click a point, or walk through them with the arrow keys."];
  const show = () => focusRow(candidate.id);
  return [
    h("strong", {}, shortName(candidate)),
    " is selected. ",
    h("button", { type: "button", class: "plain", click: show }, "Show it in the table"),
  ];
}
