// The table of what was measured to the end.

const SHOWN = ["p99_ms", "p50_ms", "memory_mb", "bundle_mb", "load_s", "qps", "cost_per_million"];
const RANKS = ["held", "undecided", "broken", "missing"];

function buildCandidates(report, state, actions) {
  const rows = report.candidates.filter(isFinished).sort(byLoss(objectiveOf(report, report.budget.objective).metric));
  const columns = candidateColumns(report, state, rows);
  const body = h("tbody");
  const sorting = { column: null, direction: 1 };
  const heads = columns.map((column) => headCell(column, () => sortBy(column)));
  const lines = new Map(rows.map((candidate) => [candidate, candidateRow(report, candidate, columns, actions)]));
  const arrange = () =>
    arrangeRows(
      body,
      sorted(rows, sorting).flatMap((c) => [lines.get(c).row, lines.get(c).detail]),
    );
  function sortBy(column) {
    sorting.direction = sorting.column === column ? -sorting.direction : column.first;
    sorting.column = column;
    heads.forEach((head, index) => markSort(head, columns[index], sorting));
    arrange();
  }
  const table = h(
    "table",
    { id: "candidate-table" },
    h("caption", { class: "hidden" }, "Candidates measured to the end"),
    h("thead", {}, h("tr", {}, heads)),
    body,
  );
  byId("candidates").replaceChildren(
    candidateNote(report),
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Candidates" }, table),
  );
  sortBy(columns[1]);
  return (result) => {
    rows.forEach((candidate) => updateRow(report, lines.get(candidate), candidate, state, result));
    arrange();
  };
}

/** Only a changed order is put in place: moving a row takes the focus off what is in it. */
function arrangeRows(body, rows) {
  if (rows.some((row, index) => row !== body.children[index])) body.replaceChildren(...rows);
}

function candidateNote(report) {
  const keys = Object.keys(report.originals);
  const against = keys.length ? ` Small figures compare with the original ${keys.join(" and ")}.` : "";
  return h(
    "p",
    { class: "lead" },
    `Quality on ${formatCount(report.data.validation_queries)} validation queries with 95 % intervals; the difference is paired.${against} Verdicts follow the limits above.`,
  );
}

/** A column: {title, key (for sorting), first (direction of the first click), cell(candidate) -> nodes, metric?} */
function candidateColumns(report, state, rows) {
  const quality = report.quality_metric;
  const has = (metric) => rows.some((candidate) => candidate.metrics[metric] != null);
  const names = new Set(rows.flatMap((candidate) => Object.keys(candidate.metrics)));
  const others = [...names].filter((metric) => metric !== quality && metricInfo(metric).fraction && has(metric)).sort();
  const scale = differenceScale(rows, quality);
  return [
    { title: "Recipe", key: (c) => c.name.toLowerCase(), first: 1, name: true },
    { title: "Verdict", key: (c) => RANKS.indexOf(worstVerdict(c, state.limits).answer), first: 1, verdict: true },
    metricColumn(report, quality),
    {
      title: "vs. original",
      key: (c) => c.difference?.[quality]?.mean,
      first: -1,
      cell: (c) => differenceCell(c, quality, scale),
    },
    ...[...new Set([...SHOWN, ...state.limits.map(({ metric }) => metric)])]
      .filter((m) => has(m) && !metricInfo(m).fraction)
      .map((metric) => metricColumn(report, metric)),
    ...others.map((metric) => metricColumn(report, metric)),
  ];
}

function metricColumn(report, metric) {
  const info = metricInfo(metric);
  const title = info.unit && info.unit !== "/s" ? `${info.short} (${info.unit})` : info.short;
  return {
    title,
    metric,
    key: (c) => c.metrics[metric],
    first: info.better === "lower" ? 1 : -1,
    cell: (c) => metricCell(report, c, metric),
  };
}

function metricCell(report, candidate, metric) {
  const value = candidate.metrics[metric];
  const interval = candidate.intervals?.[metric];
  const small = metricInfo(metric).fraction
    ? interval && formatInterval(metric, ...interval)
    : Object.entries(report.originals)
        .map(([key, original]) => timesOf(metric, value, original.metrics[metric], key))
        .filter(Boolean)
        .join(" · ");
  return [formatNumber(metric, value), small ? h("small", {}, small) : null];
}

function timesOf(metric, value, reference, key) {
  const ratio = gain(metric, value, reference);
  return ratio === null ? "" : `${formatTimes(ratio)} ${key}`;
}

/** One scale for all small interval bars, no difference included. */
function differenceScale(rows, metric) {
  const known = rows.map(({ difference }) => difference?.[metric]).filter(Boolean);
  const ends = known.flatMap(({ low, mean, high }) => [low, mean, high]).filter((end) => end !== null);
  return linearScale([Math.min(0, ...ends), Math.max(0, ...ends)], [4, 92]);
}

function differenceCell(candidate, metric, scale) {
  const difference = candidate.difference?.[metric];
  if (!difference || !candidate.steps.length) return NONE;
  const { mean, low, high } = difference;
  const kind = high !== null && high < 0 ? "worse" : low > 0 ? "better" : "same";
  return [
    s(
      "svg",
      { class: `interval ${kind}`, viewBox: "0 0 96 14", "aria-hidden": "true" },
      s("line", { class: "zero", x1: scale(0), x2: scale(0), y1: 0, y2: 14 }),
      s("line", { class: "span", x1: scale(low ?? mean), x2: scale(high ?? mean), y1: 7, y2: 7 }),
      s("circle", { cx: scale(mean), cy: 7, r: 2.5 }),
    ),
    formatSigned(metric, mean),
    h("small", {}, formatInterval(metric, low, high, formatSigned)),
  ];
}

function headCell(column, click) {
  return h("th", { scope: "col" }, h("button", { type: "button", click }, column.title));
}

function markSort(head, column, sorting) {
  if (sorting.column === column) head.setAttribute("aria-sort", sorting.direction === 1 ? "ascending" : "descending");
  else head.removeAttribute("aria-sort");
}

/** Rows by the column's key; what has none stays at the end whichever way. */
function sorted(rows, { column, direction }) {
  const missing = (value) => value === null || value === undefined;
  return [...rows].sort((a, b) => {
    const [left, right] = [column.key(a), column.key(b)];
    if (missing(left) || missing(right)) return missing(left) - missing(right);
    return left < right ? -direction : left > right ? direction : 0;
  });
}

function candidateRow(report, candidate, columns, actions) {
  const detail = h(
    "tr",
    { class: "detail", hidden: true },
    h("td", { colspan: columns.length }, detailOf(report, candidate)),
  );
  const button = h("button", { type: "button", "aria-expanded": "false" }, recipeNodes(candidate));
  const cells = columns.map((column) => {
    if (column.name) return h("th", { scope: "row" }, button, h("span", { class: "marks" }));
    return h(
      "td",
      { "data-metric": column.metric, class: column.verdict ? "verdict" : "number" },
      column.cell?.(candidate) ?? null,
    );
  });
  const row = h("tr", { class: "candidate", "data-id": candidate.id, click: () => actions.pick(candidate.id) }, cells);
  return { row, detail, button };
}

function cacheText(share) {
  return `${formatPercent(share)} of the requests were answered from lists computed ahead. A user's list knows nothing of the last event or events before the request; what that costs is part of the measured quality.`;
}

function detailOf(report, candidate) {
  const steps = candidate.steps.map((step) => h("li", {}, h("code", {}, step.text)));
  return h(
    "div",
    { class: "columns" },
    h(
      "div",
      {},
      h("h3", {}, "Recipe"),
      steps.length ? h("ol", {}, steps) : h("p", {}, "The original, exported as a bundle."),
      candidate.metrics.cache_share ? h("p", {}, cacheText(candidate.metrics.cache_share)) : null,
    ),
    h("div", {}, h("h3", {}, "Measured"), metricList(candidate, Object.keys(candidate.metrics))),
    h(
      "div",
      {},
      h("h3", {}, "Search"),
      h(
        "dl",
        { class: "metrics" },
        h("dt", {}, "Status"),
        h("dd", {}, candidate.status),
        h("dt", {}, "Last stage"),
        h("dd", {}, candidate.stage),
        h("dt", {}, "Time spent"),
        h("dd", {}, formatSeconds(candidate.seconds)),
        h("dt", {}, "Id"),
        h("dd", {}, h("code", {}, candidate.id)),
      ),
      candidate.reason ? h("p", {}, candidate.reason) : null,
    ),
  );
}

/** The worst answer over the limits that are on, and the metrics that gave it. */
function worstVerdict(candidate, limits) {
  const answers = active(limits).map((limit) => [verdict(candidate, limit), metricInfo(limit.metric).short]);
  const rank = Math.max(0, ...answers.map(([answer]) => RANKS.indexOf(answer)));
  return {
    answer: RANKS[rank],
    metrics: rank ? answers.filter(([answer]) => answer === RANKS[rank]).map(([, short]) => short) : [],
  };
}

function updateRow(report, { row, detail, button }, candidate, state, result) {
  const selected = candidate.id === state.selected;
  row.classList.toggle("selected", selected);
  row.classList.toggle("chosen", candidate === result.chosen);
  row.classList.toggle("out", !isFeasible(candidate, state.limits, state.tolerant));
  row.setAttribute("aria-current", candidate === result.chosen ? "true" : "false");
  detail.hidden = !selected;
  button.setAttribute("aria-expanded", String(selected));
  row.querySelector(".marks").replaceChildren(...marksOf(report, candidate, result));
  const { answer, metrics } = worstVerdict(candidate, state.limits);
  row.querySelector(".verdict").replaceChildren(badge(answer, metrics.join(", ")));
  for (const cell of row.querySelectorAll("[data-metric]")) markCell(cell, candidate, state.limits);
}

function marksOf(report, candidate, result) {
  const original = originalKey(report, candidate);
  const marks = [
    candidate === result.chosen && "chosen",
    candidate.frontier && "frontier",
    original && `original ${original}`,
  ];
  return marks.filter(Boolean).map((text) => badge(text));
}

function markCell(cell, candidate, limits) {
  const limit = active(limits).find(({ metric }) => metric === cell.dataset.metric);
  cell.classList.toggle("broken", Boolean(limit) && verdict(candidate, limit) === "broken");
}

function focusRow(id) {
  const row = [...document.querySelectorAll("tr.candidate")].find((node) => node.dataset.id === id);
  row?.scrollIntoView({ block: "center" });
  row?.querySelector("button").focus();
}
