// Where the search spent its time, the simple models, and under which protocol and on which machine all this holds.

function buildSummary(report) {
  byId("search").replaceChildren(searchFigures(report.search), stageTable(report));
  byId("baselines").replaceChildren(baselineTable(report));
  byId("footer").replaceChildren(
    h(
      "div",
      { class: "columns" },
      definitions("Protocol", protocolRows(report)),
      definitions("Budget", budgetRows(report)),
      definitions("Machine", machineRows(report.machine)),
    ),
  );
}

function searchFigures(search) {
  const figures = [
    [formatSeconds(search.seconds), "in total"],
    [formatCount(search.proposed), "proposed"],
    [formatCount(search.screened_before_training), "screened out before training"],
    [formatCount(search.failed), "failed"],
    [formatCount(search.measured), "measured to the end"],
  ];
  return h(
    "ul",
    { class: "figures" },
    figures.map(([value, label]) => h("li", {}, h("strong", {}, value), label)),
  );
}

/** Stages in the order of the search, then gates where candidates fell that took no recorded time. */
function stageRows(report) {
  const fallen = report.candidates.filter((candidate) => !isFinished(candidate));
  const names = [...new Set([...report.search.stages.map(({ stage }) => stage), ...fallen.map(({ stage }) => stage)])];
  const count = (stage, status) => fallen.filter((c) => c.stage === stage && c.status === status).length;
  return names.map((stage) => ({
    stage,
    ...report.search.stages.find((cost) => cost.stage === stage),
    screened: count(stage, "screened out"),
    failed: count(stage, "failed"),
  }));
}

function stageTable(report) {
  const rows = stageRows(report);
  const longest = Math.max(...rows.map(({ seconds }) => seconds ?? 0), 1e-9);
  const bar = (seconds) => {
    const node = h("span", { class: "time", "aria-hidden": "true" });
    node.style.width = `${(100 * (seconds ?? 0)) / longest}%`;
    return node;
  };
  return h(
    "table",
    { id: "stage-table" },
    h("caption", { class: "hidden" }, "Stages of the search"),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        ["Stage", "Went in", "Screened out", "Failed", "Time", ""].map((title) => h("th", { scope: "col" }, title)),
      ),
    ),
    h(
      "tbody",
      {},
      rows.map((row) =>
        h(
          "tr",
          { class: row.stage === report.search.slowest_stage ? "slowest" : null },
          h(
            "th",
            { scope: "row" },
            row.stage,
            row.stage === report.search.slowest_stage ? h("small", {}, "slowest") : null,
          ),
          [row.count, row.screened, row.failed].map((value) =>
            h("td", { class: "number" }, value === undefined ? NONE : formatCount(value)),
          ),
          h("td", { class: "number" }, row.seconds === undefined ? NONE : formatSeconds(row.seconds)),
          h("td", { class: "share" }, bar(row.seconds)),
        ),
      ),
    ),
  );
}

/** Baselines and the originals on one footing, best first. */
function baselineTable(report) {
  const metric = report.quality_metric;
  const originals = Object.entries(report.originals).map(([key, original]) => ({
    name: `original ${key}`,
    own: true,
    ...original,
  }));
  const rows = [...originals, ...report.baselines].sort(
    (a, b) => (b.metrics[metric] ?? -1) - (a.metrics[metric] ?? -1),
  );
  const compared = report.baselines
    .flatMap(({ metrics }) => Object.keys(metrics))
    .filter((name) => metricInfo(name).fraction);
  const names = [...new Set([metric, ...compared])];
  const cell = (row, name) => {
    const interval = row.intervals?.[name];
    return h(
      "td",
      { class: "number" },
      formatNumber(name, row.metrics[name]),
      interval ? h("small", {}, formatInterval(name, ...interval)) : null,
    );
  };
  return h(
    "table",
    { id: "baseline-table" },
    h("caption", { class: "hidden" }, "Simple models beside the original"),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", { scope: "col" }, "Model"),
        names.map((name) => h("th", { scope: "col" }, metricInfo(name).label)),
      ),
    ),
    h(
      "tbody",
      {},
      rows.map((row) =>
        h(
          "tr",
          { class: row.own ? "own" : null },
          h("th", { scope: "row" }, row.name, row.label ? h("small", {}, row.label) : null),
          names.map((name) => cell(row, name)),
        ),
      ),
    ),
  );
}

function definitions(title, rows) {
  const terms = rows.map(([term, ...value]) => [h("dt", {}, term), h("dd", {}, value)]);
  return h("section", {}, h("h2", {}, title), h("dl", {}, terms));
}

function protocolRows({ data, quality_metric: quality, recfit }) {
  return [
    [
      "Data",
      `${data.name}: ${formatCount(data.users)} users, ${formatCount(data.items)} items, ${formatCount(data.events)} events`,
    ],
    ["Split", data.protocol],
    ["Queries", `${formatCount(data.validation_queries)} validation, ${formatCount(data.test_queries)} test`],
    ["Ranking", data.masking],
    ["Quality", metricInfo(quality).label],
    ["Test targets", h("code", {}, data.target_hash)],
    ["Written by", `recfit ${recfit}`],
  ];
}

function budgetRows({ budget }) {
  return [
    ["Objective", budget.objective],
    ...budget.limits.map((limit) => [metricInfo(limit.metric).label, `${formatLimit(limit)} (${limit.text})`]),
  ];
}

function machineRows(machine) {
  const versions = Object.entries(machine.versions)
    .map(([name, version]) => `${name} ${version}`)
    .join(", ");
  return [
    ["CPU", `${machine.cpu}, ${machine.cores} cores`],
    ["Instructions", machine.isa.join(", ")],
    ["Memory", `${significant(machine.memory_gb)} GB`],
    ["Threads", `${machine.threads} while measuring`],
    ["System", machine.os],
    ["Python", machine.python],
    ["Versions", versions],
  ];
}
