// What each technique of a recipe cost and gained, as far as its prefixes were measured.

function buildWaterfall(report, state) {
  const recipes = report.candidates.filter((candidate) => isFinished(candidate) && candidate.steps.length);
  const metrics = [report.quality_metric, ...SHOWN].filter((metric) => recipes.some((c) => c.metrics[metric] != null));
  const recipe = h(
    "select",
    { id: "waterfall-recipe" },
    recipes.map((c) => h("option", { value: c.id }, c.name)),
  );
  const metric = h(
    "select",
    { id: "waterfall-metric" },
    metrics.map((name) => h("option", { value: name }, metricInfo(name).label)),
  );
  const chart = h("div");
  if (!recipes.length) {
    byId("waterfall").replaceChildren(h("p", {}, "No recipe was measured to the end."));
    return () => {};
  }
  metric.value = metrics.includes("p99_ms") ? "p99_ms" : metrics[0];
  const draw = () => chart.replaceChildren(waterfallTable(report, findCandidate(report, recipe.value), metric.value));
  [recipe, metric].forEach((control) => control.addEventListener("input", draw));
  byId("waterfall").replaceChildren(
    h(
      "p",
      { class: "row" },
      h("label", { for: "waterfall-recipe" }, "Recipe"),
      recipe,
      h("label", { for: "waterfall-metric" }, "Metric"),
      metric,
    ),
    chart,
  );
  let followed = null;
  return (result) => {
    const follow = [state.selected, result.chosen?.id, followed].find((id) => recipes.some((c) => c.id === id));
    if (follow !== followed || !chart.firstChild) recipe.value = follow ?? recipes[0].id;
    followed = follow ?? null;
    draw();
  };
}

function waterfallTable(report, candidate, metric) {
  const rungs = ladder(report.candidates, candidate, metric);
  if (!rungs.length) return h("p", {}, `${metricInfo(metric).label} of this recipe was not measured.`);
  const ends = rungs.flatMap((rung) => [rung.value, ...whiskerEnds(rung.candidate, { metric, relative: true })]);
  const domain = waterfallDomain(ends, metric);
  const info = metricInfo(metric);
  const title = info.unit ? `${info.label} (${info.unit})` : info.label;
  const starts = domain[0] > 0 ? `, axis from ${formatNumber(metric, domain[0])}` : "";
  return h(
    "table",
    { class: "waterfall", id: "waterfall-table" },
    h("caption", { class: "hidden" }, `${title} after each step of ${candidate.name}`),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        ["After", `${title}${starts}`, "Value", "This step", "Since the start"].map((text) =>
          h("th", { scope: "col" }, text),
        ),
      ),
    ),
    h(
      "tbody",
      {},
      rungs.map((rung, index) => waterfallRow(rungs, index, metric, domain)),
    ),
  );
}

/** From 0, unless the steps are so small beside the values that they would vanish. */
function waterfallDomain(values, metric) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (high - low > 0.3 * high || !metricInfo(metric).fraction) return [0, high * 1.02];
  return [Math.max(0, low - 0.3 * (high - low)), high + 0.1 * (high - low)];
}

function waterfallRow(rungs, index, metric, domain) {
  const rung = rungs[index];
  const before = index ? rungs[index - 1] : null;
  const change = (from) => (from ? stepChange(metric, from.value, rung.value) : "");
  const apart = rung.steps.length > 1 ? h("small", {}, "not measured apart") : null;
  return h(
    "tr",
    {},
    h(
      "th",
      { scope: "row" },
      rung.steps.length ? rung.steps.map((step) => h("code", {}, step.text)) : "original",
      apart,
    ),
    h("td", { class: "bar" }, waterfallBar(rungs, index, metric, domain)),
    h("td", { class: "number" }, formatNumber(metric, rung.value)),
    h("td", { class: "number" }, change(before)),
    h("td", { class: "number" }, index > 1 ? change(rungs[0]) : ""),
  );
}

function stepChange(metric, from, to) {
  if (metricInfo(metric).fraction) return formatSigned(metric, to - from);
  return Math.abs(to / from - 1) < 0.005 ? "unchanged" : formatGain(metric, to, from);
}

function waterfallBar(rungs, index, metric, domain) {
  const scale = linearScale(domain, [0, 1000]);
  const { value } = rungs[index];
  const from = index ? rungs[index - 1].value : domain[0];
  const better = metricInfo(metric).better === "lower" ? value < from : value > from;
  const kind = index === 0 ? "start" : better ? "better" : "worse";
  const [left, right] = [Math.min(scale(from), scale(value)), Math.max(scale(from), scale(value))];
  const [low, high] = whiskerEnds(rungs[index].candidate, { metric, relative: true });
  const next = index < rungs.length - 1;
  return s(
    "svg",
    { viewBox: "0 0 1000 32", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("rect", { class: kind, x: left, y: 7, width: Math.max(right - left, 1.5), height: 18 }),
    s("line", { class: "level", x1: scale(value), x2: scale(value), y1: 7, y2: next ? 32 : 25 }),
    index ? s("line", { class: "level", x1: scale(from), x2: scale(from), y1: 0, y2: 25 }) : null,
    low === undefined ? null : s("line", { class: "whisker", x1: scale(low), x2: scale(high), y1: 16, y2: 16 }),
  );
}
