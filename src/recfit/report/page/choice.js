// Which candidate a budget picks. Pure functions of their arguments: no page, no state.
//
// A limit is {metric, op, bound, budget, relative}: `bound` null means off, `budget` is what the search was given (or
// null). An objective is {metric, quality, bands}: the metric to make best, the quality metric that decides between equals,
// and by which share a metric may differ where noise makes the difference.

function objectiveOf(report, name) {
  const metrics = { quality: report.quality_metric, latency: "p99_ms", memory: "memory_mb", cost: "cost_per_million" };
  return { metric: metrics[name], quality: report.quality_metric, bands: report.bands };
}

function isFinished(candidate) {
  return candidate.status === "done" || candidate.status === "undecided";
}

/**
 * The 95% range [low, high] a value may truly have. Relative to the original it is that of the paired difference, which
 * leaves out what both share; `null` where nothing was measured, [value, value] where no interval was.
 */
function plausible(candidate, { metric, relative }) {
  const value = candidate.metrics[metric];
  const difference = relative ? candidate.difference?.[metric] : null;
  if (value === null || value === undefined) return null;
  const [low, high] = difference
    ? [difference.low, difference.high].map((end) => (end === null ? null : value - difference.mean + end))
    : (candidate.intervals?.[metric] ?? [value, value]);
  return [low ?? -Infinity, high ?? Infinity];
}

/** The same for drawing: nothing where there is no range, or no end to it. */
function whiskerEnds(candidate, limit) {
  const range = plausible(candidate, limit) ?? [];
  return range.every(Number.isFinite) && range[0] < range[1] ? range : [];
}

/** "held", "broken", "undecided" or "missing". At the budget's own bound the search's verdict stands. */
function verdict(candidate, limit) {
  const given = candidate.verdicts?.[limit.metric];
  if (given && limit.bound === limit.budget) return given;
  const range = plausible(candidate, limit);
  if (range === null) return "missing";
  const met = range.filter((end) => meets(end, limit)).length;
  return ["broken", "undecided", "held"][met];
}

function meets(value, limit) {
  return limit.op === "<=" ? value <= limit.bound : value >= limit.bound;
}

/** A limit counts as met when it is held, or, with `tolerant`, when it is undecided. */
function isMet(candidate, limit, tolerant) {
  const answer = verdict(candidate, limit);
  return answer === "held" || (tolerant && answer === "undecided");
}

function active(limits) {
  return limits.filter((limit) => limit.bound !== null);
}

function isFeasible(candidate, limits, tolerant = false) {
  return isFinished(candidate) && active(limits).every((limit) => isMet(candidate, limit, tolerant));
}

/** Smaller is better; a missing value is worst. */
function loss(candidate, metric) {
  const value = candidate.metrics[metric];
  if (value === null || value === undefined) return Infinity;
  return metricInfo(metric).better === "lower" ? value : -value;
}

/** Orders candidates best first, by the first of the metrics that they differ in. */
function byLoss(...metrics) {
  return (a, b) => metrics.map((metric) => compare(loss(a, metric), loss(b, metric))).find(Boolean) ?? 0;
}

/**
 * The best in the objective; of those tied with it the best quality, of equal quality the smallest bundle, and of these the
 * lowest p99, then the shortest recipe. `best` in `search/select.py` is the same rule.
 */
function best(candidates, { metric, quality, bands }) {
  const left = [metric, quality, "bundle_mb"].reduce((some, name) => tied(some, name, bands[name]), candidates);
  const faster = byLoss("p99_ms");
  return [...left].sort((a, b) => faster(a, b) || compare(a.steps.length, b.steps.length))[0];
}

/** Those that cannot be told from the best in the metric: within its 95% range, and no further off than the band. */
function tied(candidates, metric, band) {
  const leader = [...candidates].sort(byLoss(metric))[0];
  const least = loss(leader, metric);
  const high = leader.intervals?.[metric]?.[1] ?? Infinity;
  const bound = band === undefined ? least : Math.max(least, Math.min(high, least * (1 + band)));
  return candidates.filter((candidate) => loss(candidate, metric) <= bound);
}

/** By which share of the bound the measured value misses it; 0 where only its interval does. */
function shortfall(candidate, limit) {
  const value = candidate.metrics[limit.metric];
  if (value === null || value === undefined) return Infinity;
  const gap = limit.op === "<=" ? value - limit.bound : limit.bound - value;
  return Math.max(0, gap / (Math.abs(limit.bound) || 1));
}

/** The limits a candidate misses, [{limit, share}], the one that binds first. */
function missesOf(candidate, limits, tolerant) {
  const missed = active(limits).filter((limit) => !isMet(candidate, limit, tolerant));
  const misses = missed.map((limit) => ({ limit, share: shortfall(candidate, limit) }));
  return misses.sort((a, b) => compare(b.share, a.share));
}

/** Orders candidates by how near they come: the worst shortfall, the number of limits missed, the objective. */
function byDistance({ metric }) {
  const better = byLoss(metric);
  return (a, b) =>
    compare(a.misses[0].share, b.misses[0].share) ||
    compare(a.misses.length, b.misses.length) ||
    better(a.candidate, b.candidate);
}

function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}

/**
 * The best candidate that meets every limit, or the nearest miss.
 * {chosen: candidate | null, feasible: count, nearest: {candidate, misses} | null}
 */
function select(candidates, limits, objective, tolerant = false) {
  const finished = candidates.filter(isFinished);
  const feasible = finished.filter((candidate) => isFeasible(candidate, limits, tolerant));
  if (feasible.length) return { chosen: best(feasible, objective), feasible: feasible.length, nearest: null };
  const near = finished.map((candidate) => ({ candidate, misses: missesOf(candidate, limits, tolerant) }));
  const nearest = near.sort(byDistance(objective))[0] ?? null;
  return { chosen: null, feasible: 0, nearest };
}

/** The staircase of best quality for each latency: candidates that no faster one beats, fastest first. */
function frontierLine(candidates, quality) {
  const line = [];
  const measured = candidates.filter((c) => isFinished(c) && c.metrics.p99_ms > 0 && c.metrics[quality] != null);
  for (const candidate of measured.sort(byLoss("p99_ms", quality))) {
    if (!line.length || candidate.metrics[quality] > line.at(-1).metrics[quality]) line.push(candidate);
  }
  return line;
}

/** A step's identity: the technique and its settings, whatever their order. */
function stepKey(step) {
  const settings = Object.entries(step.settings).sort(([a], [b]) => (a < b ? -1 : 1));
  return JSON.stringify([step.technique, settings]);
}

function recipeKey(steps) {
  return steps.map(stepKey).join("|");
}

/**
 * The metric along a recipe: [{steps, candidate, value}], the original first. Steps whose prefix was never measured
 * are told together with the next one that was.
 */
function ladder(candidates, recipe, metric) {
  const fit = (c) => c.metrics[metric] != null && (isFinished(c) || !metricInfo(metric).fraction);
  const measured = new Map(candidates.filter(fit).map((c) => [recipeKey(c.steps), c]));
  const rungs = [];
  let pending = [];
  for (let length = 0; length <= recipe.steps.length; length++) {
    if (length) pending = [...pending, recipe.steps[length - 1]];
    const candidate = measured.get(recipeKey(recipe.steps.slice(0, length)));
    if (!candidate) continue;
    rungs.push({ steps: pending, candidate, value: candidate.metrics[metric] });
    pending = [];
  }
  return rungs;
}
