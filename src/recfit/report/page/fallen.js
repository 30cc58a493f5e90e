// What did not make it to a full measurement, and why.

function buildFallen(report) {
  const rows = report.candidates.filter((candidate) => !isFinished(candidate));
  if (!rows.length) {
    byId("fallen").replaceChildren(h("p", { class: "note" }, "Every proposed candidate was measured to the end."));
    return () => {};
  }
  const body = h("tbody");
  const count = h("span", { class: "note", role: "status" });
  const text = h("input", { type: "search", id: "fallen-text", placeholder: "recipe or reason" });
  const status = filterSelect(
    "fallen-status",
    "every status",
    rows.map((c) => c.status),
  );
  const stage = filterSelect(
    "fallen-stage",
    "every stage",
    rows.map((c) => c.stage),
  );
  const family = filterSelect(
    "fallen-family",
    "every technique",
    rows.flatMap((c) => c.families),
  );
  const show = () => {
    const wanted = {
      text: text.value.trim().toLowerCase(),
      status: status.value,
      stage: stage.value,
      family: family.value,
    };
    const shown = rows.filter((candidate) => matches(candidate, wanted));
    count.textContent = `${shown.length} of ${rows.length}`;
    body.replaceChildren(...shown.map((candidate) => fallenRow(report, candidate)));
  };
  [text, status, stage, family].forEach((control) => control.addEventListener("input", show));
  const labelled = (control, label) => [h("label", { class: "hidden", for: control.id }, label), control];
  byId("fallen").replaceChildren(
    h(
      "details",
      {},
      h("summary", {}, `The fallen: ${rows.length} candidates that never reached a full measurement`),
      h(
        "p",
        { class: "row" },
        labelled(text, "Filter by recipe or reason"),
        labelled(status, "Status"),
        labelled(stage, "Stage"),
        labelled(family, "Technique"),
        count,
      ),
      h(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": "Fallen candidates" },
        h(
          "table",
          { id: "fallen-table" },
          h("caption", { class: "hidden" }, "Fallen candidates"),
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              ["Recipe", "Status", "Stage", "Reason", "Known by then", "Time"].map((title) =>
                h("th", { scope: "col" }, title),
              ),
            ),
          ),
          body,
        ),
      ),
    ),
  );
  show();
  return () => {};
}

function filterSelect(id, all, values) {
  const options = [...new Set(values)].sort().map((value) => h("option", { value }, value));
  return h("select", { id }, h("option", { value: "" }, all), options);
}

function matches(candidate, { text, status, stage, family }) {
  const words = `${candidate.name} ${candidate.reason}`.toLowerCase();
  return (
    words.includes(text) &&
    (!status || candidate.status === status) &&
    (!stage || candidate.stage === stage) &&
    (!family || candidate.families.includes(family))
  );
}

function fallenRow(report, candidate) {
  const known = ["bundle_mb", "p99_ms", "memory_mb", report.quality_metric].filter(
    (metric) => candidate.metrics[metric] != null,
  );
  return h(
    "tr",
    { "data-id": candidate.id },
    h("th", { scope: "row" }, recipeNodes(candidate)),
    h("td", {}, badge(candidate.status)),
    h("td", {}, candidate.stage),
    h("td", { class: "reason" }, candidate.reason),
    h(
      "td",
      { class: "number" },
      known.map((metric) =>
        h("div", {}, `${metricInfo(metric).short} ${formatValue(metric, candidate.metrics[metric])}`),
      ),
    ),
    h("td", { class: "number" }, formatSeconds(candidate.seconds)),
  );
}
