"use strict";

// What a metric is called, which way is better, and how its numbers read.

const LATENCY = { unit: "ms", better: "lower", win: "faster", lose: "slower" };
const SIZE = { unit: "MB", better: "lower", win: "smaller", lose: "larger" };
const SHARE = { unit: "", better: "higher", fraction: true };
const KNOWN = {
  p50_ms: { label: "p50 latency", short: "p50", ...LATENCY },
  p95_ms: { label: "p95 latency", short: "p95", ...LATENCY },
  p99_ms: { label: "p99 latency", short: "p99", ...LATENCY },
  memory_mb: { label: "Memory", short: "Memory", ...SIZE },
  bundle_mb: { label: "Bundle size", short: "Bundle", ...SIZE },
  pss_mb: { label: "Proportional memory", short: "PSS", ...SIZE },
  disturbed: { label: "Share of disturbed blocks", short: "Disturbed", unit: "", better: "lower", win: "fewer", lose: "more" },
  core_hours_per_million: {
    label: "Core hours per million requests",
    short: "Core h/M",
    unit: "h",
    better: "lower",
    win: "less",
    lose: "more",
  },
  load_s: { label: "Load time", short: "Load", unit: "s", better: "lower", win: "faster", lose: "slower" },
  qps: {
    label: "Requests per second, best batch",
    short: "Req/s",
    unit: "/s",
    better: "higher",
    win: "more",
    lose: "fewer",
  },
  qps_batch: { label: "Best batch size", short: "Batch", unit: "", better: "higher", whole: true },
  recall_of_stage_one: { label: "Targets that reach stage two", short: "Stage-one recall", ...SHARE },
  overlap_with_exact: { label: "Share of the exact list served", short: "Exact overlap", ...SHARE },
  cost_per_million: {
    label: "Cost per million",
    short: "Cost/M",
    unit: "",
    better: "lower",
    win: "cheaper",
    lose: "dearer",
  },
};
for (const source of ["cache", "fallback"]) {
  const label = `From ${source}`;
  KNOWN[`${source}_share`] = { label, short: label, unit: "", better: "higher", fraction: true };
}
const ACRONYMS = ["ndcg", "hr", "mrr", "map", "auc"];
const NONE = "–";

function metricInfo(metric) {
  if (Object.hasOwn(KNOWN, metric)) return KNOWN[metric];
  const [base, rest] = metric.split(/(?=@)/);
  const head = ACRONYMS.includes(base) ? base.toUpperCase() : base.charAt(0).toUpperCase() + base.slice(1);
  const label = head + (rest ?? "");
  return { label, short: label, unit: "", better: "higher", fraction: true };
}

function significant(value, digits = 3) {
  const options = { maximumSignificantDigits: digits, minimumSignificantDigits: digits };
  return value.toLocaleString("en", Math.abs(value) >= 100 ? { maximumSignificantDigits: digits } : options);
}

/** The number alone: fractions with 4 decimals, counts as they are, everything else with 3 significant digits. */
function formatNumber(metric, value) {
  if (value === null || value === undefined) return NONE;
  const { fraction, whole } = metricInfo(metric);
  if (whole) return formatCount(value);
  return fraction ? value.toFixed(4) : significant(value);
}

function formatValue(metric, value) {
  const unit = metricInfo(metric).unit;
  const text = formatNumber(metric, value);
  return text === NONE || !unit ? text : `${text} ${unit}`;
}

function formatSigned(metric, value) {
  if (value === null) return NONE;
  const text = formatNumber(metric, Math.abs(value));
  if (!/[1-9]/.test(text)) return text;
  return value < 0 ? `−${text}` : `+${text}`;
}

function formatInterval(metric, low, high, number = formatNumber) {
  return `[${number(metric, low)}, ${number(metric, high)}]`;
}

function formatLimit(limit) {
  return `${limit.op === "<=" ? "≤" : "≥"} ${formatValue(limit.metric, limit.bound)}`;
}

/** How many times better `value` is than `reference`; below 1 it is worse, `null` when it can't be said. */
function gain(metric, value, reference) {
  if (!(value > 0) || !(reference > 0)) return null;
  return metricInfo(metric).better === "lower" ? reference / value : value / reference;
}

function formatTimes(ratio) {
  return `${significant(ratio)}×`;
}

/** ["12.3×", "faster than"], ["1.30×", "larger than"], or the share of a fraction that is left: ["99.2 %", "of"]. */
function gainWords(metric, value, reference) {
  const ratio = gain(metric, value, reference);
  const info = metricInfo(metric);
  if (ratio === null) return [NONE, "against"];
  if (info.fraction) return [formatPercent(ratio), "of"];
  return ratio >= 1 ? [formatTimes(ratio), `${info.win} than`] : [formatTimes(1 / ratio), `${info.lose} than`];
}

/** "12.3× faster" */
function formatGain(metric, value, reference) {
  return gainWords(metric, value, reference)
    .join(" ")
    .replace(/ (than|against|of)$/, "");
}

function formatPercent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function formatSeconds(seconds) {
  const whole = Math.round(seconds);
  if (seconds < 60) return `${significant(seconds, seconds < 10 ? 2 : 3)} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
}

function formatCount(value) {
  return value.toLocaleString("en");
}
