// The outcome: one sentence, the ratios against both originals, and what to be careful about.

function buildHeader(report) {
  const chosen = findCandidate(report, report.chosen);
  const outcome = chosen ? outcomeOf(report, chosen) : null;
  byId("header").replaceChildren(
    h(
      "p",
      { class: "eyebrow" },
      h("strong", {}, report.title),
      ` · ${report.data.name} · ${formatDate(report.created)}`,
    ),
    h("h1", {}, outcome ? headline(report, outcome) : "Nothing measured holds the whole budget"),
    chosen?.steps.length ? h("p", {}, recipeNodes(chosen)) : "",
    h("p", { class: "lead" }, (outcome ? report.final?.text : missText(report)) ?? ""),
    ...warnings(report),
    outcome ? tiles(report, outcome) : "",
    h("p", { class: "note" }, referenceLine(report, outcome)),
  );
}

function findCandidate(report, id) {
  return report.candidates.find((candidate) => candidate.id === id) ?? null;
}

/** "A" or "B" where the candidate is the original in one of its two forms. */
function originalKey(report, candidate) {
  return Object.keys(report.originals).find((key) => report.originals[key].id === candidate.id) ?? null;
}

/** The techniques alone, for places where the whole recipe is too long. */
function shortName(candidate) {
  return candidate.steps.map((step) => step.technique).join(" → ") || candidate.name;
}

function formatDate(iso) {
  const date = new Date(iso);
  return Number.isNaN(date.getTime()) ? iso : date.toISOString().slice(0, 16).replace("T", " ") + " UTC";
}

function missText(report) {
  const candidate = findCandidate(report, report.nearest?.id);
  return candidate && `The nearest is ${candidate.name}. What binds: ${report.nearest.text}.`;
}

/** Numbers of the chosen candidate and its references: the final test rows where they exist, else validation. */
function outcomeOf(report, chosen) {
  const row = (role) => report.final?.rows.find((candidate) => candidate.role === role);
  const measured = row("chosen");
  const references = Object.entries(report.originals).map(([key, original]) => ({
    key,
    label: original.label,
    metrics: (measured && row(key)?.metrics) || original.metrics,
  }));
  return {
    chosen,
    references,
    split: measured ? report.final.split : "validation",
    metrics: measured?.metrics ?? chosen.metrics,
    difference: (measured ? report.final.difference : chosen.difference) ?? {},
    bounds: measured && report.final.bounds,
    verdicts: measured && report.final.verdicts,
  };
}

function headline(report, outcome) {
  if (!outcome.chosen.steps.length) return "The original itself is the best that holds the budget";
  const reference = outcome.references[0];
  const against = (metric) => formatGain(metric, outcome.metrics[metric], reference?.metrics[metric]);
  const size = outcome.metrics.memory_mb ? "memory_mb" : "bundle_mb";
  const gains = [
    `${against("p99_ms")} at p99`,
    `${against(size)} in ${size === "memory_mb" ? "memory" : "bundle size"}`,
  ];
  const told = gains.filter((text) => !text.startsWith(NONE)).join(" and ");
  const quality = qualityPhrase(report.quality_metric, outcome);
  return `${shortName(outcome.chosen)}: ${told ? `${told} than ${reference.label}, ` : ""}${quality}`;
}

function qualityPhrase(metric, outcome) {
  const label = metricInfo(metric).label;
  const difference = outcome.difference[metric];
  if (!difference) return `${label} ${formatValue(metric, outcome.metrics[metric])}`;
  if (difference.low <= 0 && difference.high >= 0) return `no measurable change of ${label}`;
  const share = Math.abs(difference.mean) / (outcome.metrics[metric] - difference.mean);
  return `${label} ${formatPercent(share)} ${difference.mean < 0 ? "lower" : "higher"}`;
}

function tiles(report, outcome) {
  const metrics = [report.quality_metric, "p99_ms", "memory_mb", "bundle_mb"];
  const shown = metrics.filter((metric) => outcome.metrics[metric] != null);
  return h(
    "ul",
    { class: "tiles" },
    shown.map((metric) => tile(report, outcome, metric)),
  );
}

function tile(report, outcome, metric) {
  const lines = outcome.references
    .map(({ key, metrics }) => [key, metrics[metric]])
    .filter(([, value]) => value != null)
    .map(([key, value]) => [...gainWords(metric, outcome.metrics[metric], value), key]);
  const [big, ...small] = lines;
  return h(
    "li",
    { class: "tile" },
    h("p", { class: "label" }, metricInfo(metric).label),
    big ? h("p", { class: "big" }, big[0], h("span", { class: "against" }, ` ${big[1]} ${big[2]}`)) : null,
    small.map((words) => h("p", { class: "second" }, words.join(" "))),
    h("p", { class: "value" }, formatValue(metric, outcome.metrics[metric]), differenceText(metric, outcome)),
    limitLine(report, outcome, metric),
  );
}

function differenceText(metric, outcome) {
  const difference = outcome.difference[metric];
  return difference ? `, difference ${differenceWords(metric, difference)}` : "";
}

function differenceWords(metric, { mean, low, high }) {
  return `${formatSigned(metric, mean)} ${formatInterval(metric, low, high, formatSigned)}`;
}

function limitLine(report, outcome, metric) {
  const limit = report.budget.limits.find((candidate) => candidate.metric === metric);
  if (!limit) return h("p", { class: "budget" }, "no limit");
  const found =
    metricInfo(metric).fraction && outcome.split !== "validation"
      ? `, validation ${formatValue(metric, outcome.chosen.metrics[metric])}`
      : "";
  const bound = metricInfo(metric).fraction ? undefined : outcome.bounds?.[metric];
  const here = { ...limit, bound: bound ?? limit.bound };
  return h("p", { class: "budget" }, `budget ${formatLimit(here)}${found} `, badge(outcomeVerdict(outcome, limit)));
}

/** Quality limits were judged on validation; costs by the last run, where it was, beside the original of that run. */
function outcomeVerdict(outcome, limit) {
  const again = metricInfo(limit.metric).fraction ? undefined : outcome.verdicts?.[limit.metric];
  return again ?? verdict(outcome.chosen, { ...limit, budget: limit.bound });
}

function badge(text, detail = "") {
  return h("span", { class: `badge ${text.replaceAll(" ", "-")}` }, detail ? `${text}: ${detail}` : text);
}

function referenceLine(report, outcome) {
  const names = Object.entries(report.originals)
    .map(([key, { label }]) => `${key} is the original as ${label}`)
    .join("; ");
  const split = outcome ? `; quality on the ${outcome.split} split, where brackets hold the paired 95 % interval` : "";
  return `${names}${split}. ${detectable(report)}`;
}

function detectable(report) {
  const drop = report.smallest_detectable_drop;
  if (drop === null) return "";
  const label = metricInfo(report.quality_metric).label;
  return `The smallest drop of ${label} that this set of queries can detect is ${formatNumber(report.quality_metric, drop)}.`;
}

/** A simple model that is at least as good as the original is said before anything else. */
function warnings(report) {
  const metric = report.quality_metric;
  const original = Object.values(report.originals)
    .map(({ metrics }) => metrics[metric])
    .find((value) => value != null);
  const better = report.baselines.filter(({ metrics }) => original != null && metrics[metric] >= original);
  if (!better.length) return [];
  const told = better.map(({ name, metrics }) => `${name} (${formatValue(metric, metrics[metric])})`).join(", ");
  const text =
    `The original does not beat ${told}: its ${metricInfo(metric).label} is ${formatValue(metric, original)}. ` +
    "Improve it, or serve the simpler model, before compressing it.";
  return [h("p", { class: "warning", role: "note" }, text)];
}
