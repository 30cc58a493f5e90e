"""What is tried: everything once, single techniques before chains, chains only of what fits, and there is an end."""

import dataclasses
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from made_study import base_quality, costs, worse

import toys
from recfit import flow
from recfit.pipeline import Pipeline, Stage
from recfit.search import propose
from recfit.search.budget import Budget
from recfit.search.propose import SINGLES_SHARE, applies, light, proposals, singles
from recfit.search.recipe import Recipe
from recfit.search.study import Candidate, Study
from recfit.techniques import Context, applied, make

STEPS = [
    make("simplify", {"kind": "ease"}),
    make("distill", {"kind": "mlp"}),
    make("distill", {"kind": "sasrec"}),
    make("prune", {"axis": "ffn"}),
    make("quantize", {}),
    make("quantize", {"graph": "float32"}),
    make("cache", {}),
    make("runtime", {"graph": "extended"}),
]
BUDGET = Budget.of({"ndcg@10": "80%", "p99_ms": "0.5x"})
CONTEXT = SimpleNamespace()
EMPTY = SimpleNamespace(candidates={})


@pytest.fixture(autouse=True)
def _techniques(monkeypatch):
    """Variants as two techniques would give them, and no model to ask."""
    monkeypatch.setattr(propose, "available", lambda wanted: [lambda _: STEPS[:4], lambda _: STEPS[4:]])
    monkeypatch.setattr(propose, "applies", lambda recipe, context: True)
    monkeypatch.setattr(propose, "light", lambda recipe, context: False)


@pytest.fixture
def study(tmp_path):
    found = Study(tmp_path / "study")
    record(found, Recipe(), 1.0, 4.0)
    found.note(original=Recipe().id)
    return found


def record(study, recipe, share, p99, status="done"):
    users = worse(base_quality(), share)
    metrics = costs(p99) | {"ndcg@10": float(users.mean())}
    study.add(Candidate(recipe.id, recipe.name, recipe.to_json(), status, metrics=metrics), {"ndcg@10": users})


def explored(study, outcome, spent=lambda: 0.0, most=300):
    """All that is proposed, each recorded with the share of quality, the p99 and the status that `outcome` gives it."""
    tried = []
    for proposal in proposals(study, BUDGET, CONTEXT, singles(CONTEXT, ()), spent):
        recipe = proposal.recipe
        known = study.candidates.get(recipe.id)
        assert (known is None) if proposal.gated else (known.status == "screened out")
        record(study, recipe, *(outcome(recipe) if proposal.gated else (1.0, 3.0)))
        tried.append(recipe)
        assert len(tried) < most
    return tried


def anything(seed):
    rng = np.random.default_rng(seed)
    return lambda _: (rng.uniform(0.6, 1), rng.uniform(0.5, 4), rng.choice(["done", "failed", "screened out"]))


@pytest.mark.parametrize("seed", range(5))
def test_every_proposal_is_new_and_well_formed_and_they_end(study, seed):
    tried = explored(study, anything(seed))
    assert all(count <= 2 for count in Counter(recipe.id for recipe in tried).values())
    for recipe in tried:
        families = [step.family for step in recipe.steps]
        orders = [step.order for step in recipe.steps]
        assert len(set(families)) == len(families), recipe.name
        assert orders == sorted(orders), recipe.name


def test_singles_come_first_one_of_each_family_and_the_untrained_before_the_trained(study):
    tried = explored(study, lambda recipe: (1.0, 2.0 / len(recipe.steps)))
    lengths = [len(recipe.steps) for recipe in tried]
    singles = lengths.index(2)
    assert singles == len(STEPS)
    assert 1 not in lengths[singles:]
    families = {recipe.families[0] for recipe in tried[:singles]}
    heads, others = tried[: len(families)], tried[len(families) : singles]
    assert {recipe.families[0] for recipe in heads} == families
    for part in (heads, others):
        trains = [recipe.steps[0].trains for recipe in part]
        assert trains == sorted(trains)
    assert max(lengths) >= 3


def test_light_trainings_come_before_heavy_ones(monkeypatch):
    """Behind what needs no training, which has one of each family, and in their order."""
    monkeypatch.setattr(propose, "light", lambda recipe, context: recipe.families == ("distill",))
    order = [recipe.name for recipe in singles(CONTEXT, ())]
    trains = [recipe.steps[0].trains for recipe in singles(CONTEXT, ())]
    assert sorted(order) == sorted(Recipe((step,)).name for step in STEPS)
    first = trains.index(True)
    assert order[first : first + 2] == ["distill(mlp)", "distill(sasrec)"]
    assert {Recipe((step,)).families[0] for step in STEPS if not step.trains} == {
        recipe.families[0] for recipe in singles(CONTEXT, ())[:first]
    }


def test_a_student_is_light_beside_a_large_original_and_a_cut_of_the_original_is_not():
    original = toys.untrained("sasrec", {**toys.SHAPES["sasrec"][0], "layers": 6, "embedding_dim": 64, "ffn": 256})
    context = Context(toys.split(), Pipeline(Stage(original)), toys.FIT)
    small = {"layers": 1, "embedding_dim": 16, "heads": 1, "ffn": 16, "max_history": 6}
    student, cut = make("distill", {"kind": "sasrec", "options": small}), make("prune", {"axis": "ffn", "keep": 0.5})
    assert light(Recipe((student,)), context)
    assert not light(Recipe((cut,)), context)


def test_singles_leave_room_for_chains(study):
    """With the share of singles used up, each family has one still, and what is left goes to chains of what there is."""
    tried = explored(study, lambda _: (1.0, 2.0), spent=lambda: SINGLES_SHARE)
    alone = [recipe.families[0] for recipe in tried if len(recipe.steps) == 1]
    assert sorted(alone) == sorted({step.family for step in STEPS})
    assert any(len(recipe.steps) > 1 for recipe in tried)


def test_what_the_budget_lets_go_of_quality_reaches_what_is_proposed(study, monkeypatch):
    seen = []
    monkeypatch.setattr(flow, "singles", lambda context, wanted: seen.append(context.tolerance))
    monkeypatch.setattr(flow, "proposals", lambda *_: [])
    bench = SimpleNamespace(
        settings=SimpleNamespace(search=SimpleNamespace(techniques=(), max_minutes=1)),
        study=study,
        budget=BUDGET,
        split=toys.split(),
        workshop=SimpleNamespace(served=lambda: None, fit=toys.FIT),
        minutes_of=lambda ids: 0.0,
    )
    flow.explore(bench)
    assert seen == [0.2]


def test_a_second_run_goes_on_where_the_first_stopped(study):
    first = []
    for proposal in proposals(study, BUDGET, CONTEXT, singles(CONTEXT, ()), lambda: 0.0):
        if len(first) == 5:
            break
        record(study, proposal.recipe, 1.0, 2.0)
        first.append(proposal.recipe.id)
    rest = explored(Study(study.directory), lambda _: (1.0, 2.0))
    assert not set(first) & {recipe.id for recipe in rest}
    assert explored(Study(study.directory), lambda _: (1.0, 2.0)) == []


def test_every_family_is_measured_once_whatever_the_budget(study):
    """The fastest of a family whose singles all fell at the screen is measured before any chain; others stay fallen."""

    def outcome(recipe):
        slow = {"distill": 3.0, "quantize": 2.5}.get(recipe.families[0])
        p99 = 9.0 if recipe.name == "distill(sasrec)" else slow
        return (1.0, 1.0) if slow is None or len(recipe.steps) > 1 else (1.0, p99, "screened out")

    tried = explored(study, outcome)
    twice = {recipe.name for recipe in tried if tried.count(recipe) == 2}
    assert twice == {"distill(mlp)", "quantize()"}
    assert max(at for at, recipe in enumerate(tried) if len(recipe.steps) == 1) < len(STEPS) + 2
    assert {family for found in study.done() for family in found.families} == {step.family for step in STEPS}


def test_a_technique_that_failed_alone_is_in_no_chain(study):
    tried = explored(study, lambda recipe: (1.0, 2.0, "failed" if recipe.families == ("quantize",) else "done"))
    chains = [recipe for recipe in tried if len(recipe.steps) > 1]
    assert chains
    assert not any("quantize" in recipe.families for recipe in chains)


def test_chains_grow_from_what_keeps_quality_first(study):
    """A fast single that lost its quality is no parent while slower ones that kept it are there."""

    def outcome(recipe):
        lost = recipe.families[0] == "simplify"
        return (0.3, 0.1) if lost else (1.0, 2.0)

    tried = explored(study, outcome)
    chains = [recipe for recipe in tried if len(recipe.steps) > 1]
    assert chains[0].families[0] != "simplify"


REAL = Context(toys.split(), toys.original("sasrec"), toys.FIT)
EASE, NUMPY, GRAPH = make("simplify", {"kind": "ease"}), make("runtime", {"name": "numpy"}), make("quantize", {})
CUT = [
    make("prune", {"axis": "ffn"}),
    make("reduce", {"size": 8}),
    make("quantize", {"graph": "float32", "table": "int4"}),
]


@pytest.mark.parametrize(
    ("steps", "possible"),
    [
        *(((EASE, step), False) for step in CUT),
        *(((step,), True) for step in CUT),
        ((GRAPH, NUMPY), False),
        ((EASE, GRAPH), True),
        ((EASE, NUMPY), True),
        ((make("runtime", {}),), False),
        ((make("reduce", {"size": 8}), make("reduce", {"size": 12})), False),
    ],
    ids=str,
)
def test_a_refusal_is_known_from_the_structure(steps, possible):
    assert applies(Recipe(steps), REAL) == possible


def test_what_is_refused_takes_no_row(study, monkeypatch):
    monkeypatch.setattr(propose, "applies", applies)
    first = [Recipe((step,)) for step in (EASE, *CUT, GRAPH, NUMPY, make("runtime", {}))]
    tried = []
    for proposal in proposals(study, BUDGET, REAL, first, lambda: len(tried) / 99 * SINGLES_SHARE):
        record(study, proposal.recipe, 1.0, 2.0)
        tried.append(proposal.recipe)
    assert {recipe.id for recipe in first[:-1]} <= {recipe.id for recipe in tried}
    assert Recipe((EASE, GRAPH)) in tried
    assert Recipe((EASE, NUMPY)) in tried
    for recipe in tried:
        pipeline = REAL.original
        for step in recipe.steps:
            pipeline = applied(step, pipeline, dataclasses.replace(REAL, structure_only=True))


def test_a_defect_is_left_for_the_study_to_record(monkeypatch):
    monkeypatch.setattr(propose, "applied", lambda *_: 1 / 0)
    assert applies(Recipe((EASE,)), REAL)


def test_what_a_step_does_is_learned_from_all_pairs_that_differ_by_it(study):
    """Behind `quantize` and `distill` a cache makes nothing faster, whatever it did alone; what has no pair changes nothing."""
    quantize, student, cache = (Recipe((STEPS[at],)) for at in (4, 1, 6))
    for recipe, p99 in ((cache, 1.0), (quantize, 2.0), (student, 1.0)):
        record(study, recipe, 1.0, p99)
    first = singles(CONTEXT, ())

    def promised(recipe, metric="p50_ms"):
        promises = {found.id: metrics for found, metrics in propose._promises(study, first, {}, ())}
        return promises[recipe.id][metric]

    three = quantize.then(STEPS[1]).then(STEPS[6])
    record(study, quantize.then(STEPS[1]), 1.0, 0.5)
    assert promised(three) == pytest.approx(0.25 / 4)
    record(study, quantize.then(STEPS[6]), 1.0, 2.0)
    record(study, student.then(STEPS[6]), 1.0, 1.0)
    assert promised(three) == pytest.approx(0.25)
    assert promised(quantize.then(STEPS[7])) == pytest.approx(1.0)
    record(study, student.then(STEPS[7]), 1.0, 1.0, status="failed")
    assert promised(quantize.then(STEPS[7])) == pytest.approx(1.0)


def test_a_broad_proposal_widens_the_frontier_where_another_serves_the_budget(study):
    record(study, Recipe((STEPS[0],)), 1.0, 1.0)
    known = study.candidates[Recipe((STEPS[0],)).id].metrics
    fast, lean = Recipe((STEPS[0], STEPS[6])), Recipe((STEPS[0], STEPS[7]))
    promises = [(fast, {**known, "p50_ms": 0.49}), (lean, {**known, "p50_ms": 0.6, "memory_mb": 40.0})]
    budget = Budget.of(objective="latency")
    assert propose._best(study, budget, promises, broad=False) == fast
    assert propose._best(study, budget, promises, broad=True) == lean


def test_a_promise_gains_what_nothing_measured_beats(study):
    half = {"ndcg@10": study.candidates[Recipe().id].metrics["ndcg@10"], "p50_ms": 1.0, "memory_mb": 50.0}
    poor = half | {"ndcg@10": 0.4 * half["ndcg@10"]}
    quarter, better = half | {"p50_ms": 0.5}, half | {"p50_ms": 0.5, "memory_mb": 25.0}
    gains = propose._gains(study, BUDGET, [half, quarter, better, poor])
    assert 0 < gains[0] < gains[1] < gains[2]
    assert gains[3] == 0
    record(study, Recipe((STEPS[0],)), 1.0, 2.0)
    study.candidates[Recipe((STEPS[0],)).id].metrics.update(half)
    assert propose._gains(study, BUDGET, [half, quarter])[0] == 0
    assert propose._gains(study, BUDGET, [half, quarter])[1] > 0


def test_a_step_joins_wherever_nothing_that_trains_comes_after_it(study):
    first = [Recipe((step,)) for step in STEPS]
    prune, quantize, cache, runtime = STEPS[3], STEPS[4], STEPS[6], STEPS[7]

    def children(*steps):
        return [child for child, _ in propose._children(Recipe(steps), first, study)]

    assert Recipe((prune, quantize, cache, runtime)) in children(prune, cache, runtime)
    assert Recipe((cache, runtime)) in children(runtime)
    assert Recipe((prune, cache)) in children(cache)
    assert all(child.steps[0] == prune for child in children(prune, cache)), "prune would be trained anew"


def test_cuts_along_different_axes_join_in_either_order_and_are_one_recipe(study):
    narrow, short, coded = (
        make("reduce", {"axis": "table_dim", "size": 8}),
        make("reduce", {"axis": "history_length", "size": 10}),
        make("codes", {}),
    )
    first = [Recipe((step,)) for step in (narrow, short, coded)]

    def children(*steps):
        return [child for child, _ in propose._children(Recipe(steps), first, study)]

    assert Recipe((narrow, coded)) in children(narrow)
    assert Recipe((short, narrow)) in children(short)
    assert Recipe((short, narrow)).id == Recipe((narrow,)).then(short).id
    assert short not in [step for child in children(narrow) for step in child.steps], "narrow would be trained anew"
    other = make("reduce", {"axis": "table_dim", "size": 4})
    first.append(Recipe((other,)))
    assert not [child for child in children(narrow) if other in child.steps], "one axis is cut once"


def test_one_chain_has_one_student(study):
    taught, alone = make("distill", {"kind": "mlp"}), make("simplify", {"kind": "sasrec"})
    first = [Recipe((step,)) for step in (taught, alone, STEPS[4])]
    for student in (taught, alone):
        assert [child for child, _ in propose._children(Recipe((student,)), first, study)] == [
            Recipe((student, STEPS[4]))
        ]


@pytest.mark.parametrize(
    ("one", "other", "room"),
    [
        (make("codes", {}), make("sparsify", {}), True),
        (make("codes", {}), make("low_rank", {}), True),
        (make("low_rank", {}), make("sparsify", {}), True),
        (make("sparsify", {}), make("prune_items", {}), True),
        (make("distill", {"kind": "mlp"}), make("matryoshka", {}), True),
        (make("prune", {"axis": "ffn"}), make("prune", {"axis": "heads"}), True),
        (make("prune", {"axis": "ffn"}), make("sparsify", {}), True),
        (make("prune", {"axis": "embedding_dim"}), make("reduce", {}), False),
        (make("distill", {"kind": "mlp"}), make("simplify", {"kind": "ease"}), False),
        (make("quantize", {}), make("qat", {}), False),
        (make("sparsify", {}), make("qat", {}), False),
        (make("sparsify", {}), make("quantize", {}), True),
        (make("cache", {}), make("cache", {"key": "state"}), False),
    ],
    ids=str,
)
def test_a_chain_has_room_for_what_works_on_different_things(one, other, room):
    first = [Recipe((one,)), Recipe((other,))]
    found = [child for step in (one, other) for child, _ in propose._children(Recipe((step,)), first, EMPTY)]
    assert {child.id for child in found} == ({Recipe((one,)).then(other).id} if room else set())


def test_zeros_come_after_what_would_fill_them_and_codes_before_what_cannot_be_turned():
    steps = [make(name, {}) for name in ("sparsify", "low_rank", "codes")]
    chain = Recipe()
    for step in steps:
        chain = chain.then(step)
    assert [*chain.steps] == steps[::-1]


def test_without_a_limit_on_quality_chains_are_steered_to_keep_it(study):
    """The fastest step gives up all of it; the first chain has the other, and a budget that allows that is steered as told."""
    for step, share, p99 in ((STEPS[0], 0.3, 0.4), (STEPS[3], 0.99, 3.0), (STEPS[4], 0.99, 2.0), (STEPS[7], 0.99, 3.0)):
        record(study, Recipe((step,)), share, p99)
    first = [Recipe((STEPS[at],)) for at in (0, 3, 4, 7)]

    def next_chain(budget):
        return next(iter(proposals(study, budget, CONTEXT, first, lambda: 1.0))).recipe

    assert STEPS[0] not in next_chain(Budget.of(objective="latency")).steps
    assert STEPS[0] in next_chain(Budget.of({"ndcg@10": "20%"}, objective="latency")).steps
