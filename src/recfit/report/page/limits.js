// A slider for each limit, the objective, and the choice that follows from them.

const STEPS = 200;

/** The limits of the page: the budget's own, then those that could be set because the metric was measured. */
function startLimits(report) {
  const own = report.budget.limits.map((limit) => ({ ...limit, budget: limit.bound }));
  const measured = (metric) => report.candidates.some((c) => isFinished(c) && c.metrics[metric] != null);
  const extra = [report.quality_metric, "p99_ms", "memory_mb", "bundle_mb"]
    .filter((metric) => measured(metric) && !own.some((limit) => limit.metric === metric))
    .map((metric) => {
      const op = metricInfo(metric).better === "lower" ? "<=" : ">=";
      return { metric, op, bound: null, budget: null, text: "", relative: Boolean(metricInfo(metric).fraction) };
    });
  return [...own, ...extra];
}

function buildLimits(report, state, actions) {
  const choice = h("div", { class: "choice", role: "status", "aria-live": "polite" });
  const sliders = state.limits.map((limit) => buildSlider(report, limit, actions));
  const objective = objectiveSelect(report, state, actions);
  const tolerant = h("input", {
    type: "checkbox",
    id: "tolerant",
    change: (e) => actions.setTolerant(e.target.checked),
  });
  const reset = h("button", { type: "button", class: "plain", click: actions.reset }, "Back to the budget");
  byId("limits").replaceChildren(
    choice,
    h(
      "form",
      { class: "controls", submit: (event) => event.preventDefault() },
      h("p", { class: "row" }, h("label", { for: "objective" }, "Best means"), objective),
      sliders.map((slider) => slider.node),
      h("p", { class: "row" }, tolerant, h("label", { for: "tolerant" }, "Accept limits that are undecided")),
      h("p", { class: "row" }, reset),
    ),
  );
  return (result) => {
    choice.replaceChildren(...describeChoice(report, state, result));
    sliders.forEach((slider, index) => slider.update(state.limits[index], state));
    objective.value = state.objective;
    tolerant.checked = state.tolerant;
    reset.disabled = isAsGiven(report, state);
  };
}

function objectiveSelect(report, state, actions) {
  const words = { quality: "highest quality", latency: "lowest p99", memory: "least memory", cost: "lowest cost" };
  const known = Object.keys(words).filter((name) => {
    const { metric } = objectiveOf(report, name);
    return (
      name === report.budget.objective || report.candidates.some((c) => isFinished(c) && c.metrics[metric] != null)
    );
  });
  const options = known.map((name) => h("option", { value: name }, words[name]));
  return h("select", { id: "objective", change: (event) => actions.setObjective(event.target.value) }, options);
}

/** Position 0..STEPS of a slider <-> bound. The loosest end means no limit. */
function sliderScale(report, limit) {
  const values = report.candidates
    .filter(isFinished)
    .map((c) => c.metrics[limit.metric])
    .filter((v) => v != null);
  const all = limit.budget === null ? values : [...values, limit.budget];
  const log = Math.min(...all) > 0 && Math.max(...all) > 3 * Math.min(...all);
  const scale = (log ? logScale : linearScale)(padded(all, 0.06, log), [0, STEPS]);
  const off = limit.op === "<=" ? STEPS : 0;
  const round = (value) => Number(metricInfo(limit.metric).fraction ? value.toFixed(4) : value.toPrecision(3));
  return {
    values,
    position: (bound) => (bound === null ? off : Math.min(STEPS, Math.max(0, scale(bound)))),
    bound: (position) => (position === off ? null : round(scale.invert(position))),
  };
}

function buildSlider(report, limit, actions) {
  const scale = sliderScale(report, limit);
  const id = `limit-${limit.metric}`;
  const output = h("output", { for: id });
  const change = (event) => actions.setLimit(limit.metric, scale.bound(Number(event.target.value)));
  const input = h("input", { type: "range", id, min: 0, max: STEPS, step: 1, "data-op": limit.op, input: change });
  const rug = scale.values.map((value) => rugMark(scale.position(value)));
  const node = h(
    "div",
    { class: "limit" },
    h("label", { for: id }, metricInfo(limit.metric).label),
    output,
    h("div", { class: "track" }, h("div", { class: "rug", "aria-hidden": "true" }, rug), input),
    limit.text ? h("p", { class: "given" }, `budget: ${limit.text}`) : null,
  );
  const update = (now) => {
    const text = now.bound === null ? "no limit" : formatLimit(now);
    const position = scale.position(now.bound);
    output.textContent = text;
    input.value = position;
    input.style.setProperty("--at", `${(100 * position) / STEPS}%`);
    input.setAttribute("aria-valuetext", text);
    scale.values.forEach((value, index) =>
      rug[index].classList.toggle("out", now.bound !== null && !meets(value, now)),
    );
  };
  return { node, update };
}

/** A tick over the slider where a candidate lies; 8 px is half a thumb. */
function rugMark(position) {
  const mark = h("span");
  mark.style.left = `calc(8px + (100% - 16px) * ${position / STEPS})`;
  return mark;
}

function describeChoice(report, state, result) {
  const finished = report.candidates.filter(isFinished).length;
  const count = `${result.feasible} of ${finished} measured candidates hold every limit`;
  if (result.chosen) {
    const metrics = [report.quality_metric, "p99_ms", "memory_mb", "bundle_mb"];
    return [
      h("p", { class: "label" }, isAsGiven(report, state) ? "Chosen for the budget" : "Would be chosen"),
      h("p", { class: "name" }, recipeNodes(result.chosen)),
      metricList(result.chosen, metrics),
      h("p", { class: "note" }, count),
    ];
  }
  return [
    h("p", { class: "label" }, "No choice"),
    h("p", { class: "name nothing" }, "Nothing feasible"),
    h("p", {}, describeMiss(result)),
    h("p", { class: "note" }, count),
  ];
}

/** The search's own sentence where it stands, else the nearest miss and every limit that would have to give. */
function describeMiss({ nearest, text }) {
  if (text || !nearest) return text || "No candidate was measured to the end.";
  const { candidate, misses } = nearest;
  const told = misses.map(({ limit }) => {
    const value = formatValue(limit.metric, candidate.metrics[limit.metric]);
    return `${metricInfo(limit.metric).label} is ${value}, ${verdict(candidate, limit)} against ${formatLimit(limit)}`;
  });
  return `Nearest miss: ${candidate.name}. ${told.join("; ")}.`;
}
