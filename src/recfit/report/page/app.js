// The page: one state, and views that are built once and then told of every change.

/** What the search itself answered; the page repeats it as long as nothing was moved. */
function givenChoice(report, state) {
  const computed = select(report.candidates, state.limits, objectiveOf(report, state.objective), state.tolerant);
  if (!isAsGiven(report, state)) return computed;
  const chosen = findCandidate(report, report.chosen);
  if (chosen) return { ...computed, chosen, nearest: null };
  return { ...computed, chosen: null, nearest: givenMiss(report, state) ?? computed.nearest, text: missText(report) };
}

function givenMiss(report, state) {
  const candidate = findCandidate(report, report.nearest?.id);
  return candidate && { candidate, misses: missesOf(candidate, state.limits, state.tolerant) };
}

function isAsGiven(report, state) {
  const given = startState(report);
  return (
    state.objective === given.objective &&
    state.tolerant === given.tolerant &&
    state.limits.every((limit) => limit.bound === limit.budget)
  );
}

function startState(report) {
  const { objective, accept_undecided: tolerant } = report.budget;
  return { limits: startLimits(report), objective, tolerant, selected: null };
}

function main() {
  const report = JSON.parse(byId("report").textContent);
  const state = startState(report);
  const views = [];
  const refresh = () => {
    const result = givenChoice(report, state);
    views.forEach((update) => update(result));
  };
  const change = (values) => {
    Object.assign(state, values);
    refresh();
  };
  const actions = {
    setLimit: (metric, bound) =>
      change({ limits: state.limits.map((limit) => (limit.metric === metric ? { ...limit, bound } : limit)) }),
    setObjective: (objective) => change({ objective }),
    setTolerant: (tolerant) => change({ tolerant }),
    pick: (id) => change({ selected: state.selected === id ? null : id }),
    reset: () => change({ ...startState(report), selected: state.selected }),
  };
  buildHeader(report);
  for (const build of [buildLimits, buildScatter, buildCandidates, buildFallen, buildWaterfall, buildStrategies]) {
    views.push(build(report, state, actions));
  }
  buildSummary(report);
  refresh();
  window.addEventListener("beforeprint", () =>
    document.querySelectorAll("details").forEach((node) => (node.open = true)),
  );
}

main();
