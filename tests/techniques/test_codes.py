"""Item tables of trained codes: which sub-ids items get, what is trained and stored of them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import toys
from recfit import models, open_bundle
from recfit.bundle import open_files
from recfit.models._codes import CodedTable  # noqa: PLC2701
from recfit.pipeline import Pipeline, Stage
from recfit.registry import find
from recfit.techniques import Context, applied, codes, make
from recfit.types import ConfigError, Request, Unsupported

Exported = Callable[[Pipeline], Path]

SASREC, NEUMF, EASE, TOWERS = (toys.original(kind) for kind in ("sasrec", "neumf", "ease", "two_tower"))
DESCRIBED = Pipeline(Stage(toys.trained("mlp", toys.SHAPES["mlp"][1])))
DIM = 16


def coded(pipeline: Pipeline = SASREC, **settings: Any) -> Pipeline:
    step = make("codes", {"parts": 4, "codes": 16, "epochs": 0} | settings)
    return applied(step, pipeline, Context(toys.split(), pipeline, toys.FIT))


def vectors(pipeline: Pipeline) -> torch.Tensor:
    model: Any = pipeline.main.model
    found: torch.Tensor = model.item_vectors().detach()
    return found


def distance(pipeline: Pipeline, other: Pipeline) -> float:
    """Between their item vectors, however the space is turned."""
    mine, theirs = (vectors(part) @ vectors(part).T for part in (pipeline, other))
    return float((mine - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("assign", codes.ASSIGN)
def test_every_assignment_gives_each_item_a_sub_id_a_part(assign: str) -> None:
    wanted = vectors(SASREC).numpy()
    sub_ids = codes.ASSIGN[assign](wanted, toys.split(), 4, 7)
    assert (sub_ids.shape, sub_ids.dtype) == ((toys.N_ITEMS, 4), np.uint8)
    assert sub_ids.max() < 7
    assert np.array_equal(sub_ids, codes.ASSIGN[assign](wanted, toys.split(), 4, 7)), "equal seeds, equal codes"


def test_svd_parts_are_quantiles_of_what_users_chose_together() -> None:
    sub_ids = codes.ASSIGN["svd"](vectors(SASREC).numpy(), toys.split(), 3, 5)
    assert [np.bincount(part).tolist() for part in sub_ids.T] == [[8] * 5] * 3
    steps = np.abs(np.diff(sub_ids[:, 1].astype(int)))
    assert steps.mean() < 1.2, "neighbours on the ring were chosen by the same users; at random they lie 1.6 apart"


def test_quotient_and_remainder_tell_all_items_apart() -> None:
    sub_ids = codes.ASSIGN["quotient_remainder"](vectors(SASREC).numpy(), toys.split(), 2, 7)
    assert len(np.unique(sub_ids, axis=0)) == toys.N_ITEMS
    assert sub_ids[23].tolist() == [23 % 7, 23 // 7]


def test_sub_ids_start_as_the_mean_of_their_items() -> None:
    wanted = vectors(SASREC).numpy()
    sub_ids = codes.ASSIGN["random"](wanted, toys.split(), 4, 16)
    weights = codes.item_weights(toys.split())
    found = codes.means(wanted, sub_ids, 16, weights)
    members = sub_ids[:, 2] == sub_ids[0, 2]
    assert members.sum() > 1
    mean = np.average(wanted[members, 8:12], axis=0, weights=weights[members])
    np.testing.assert_allclose(found[2, sub_ids[0, 2]], mean, rtol=1e-5)


def test_frequent_items_count_for_more() -> None:
    counts = np.bincount(toys.split().train.item, minlength=toys.N_ITEMS)
    np.testing.assert_allclose(codes.item_weights(toys.split()) ** 2, counts + 1, rtol=1e-5)


def test_kmeans_starts_nearest_to_the_original() -> None:
    lost = {assign: distance(coded(assign=assign), SASREC) for assign in codes.ASSIGN}
    assert lost["kmeans"] < 0.8 * min(loss for assign, loss in lost.items() if assign != "kmeans")


def test_what_is_not_the_table_stays_as_it_was() -> None:
    before, after = (models.as_module(pipeline.main.model).state_dict() for pipeline in (SASREC, coded(assign="svd")))
    for name, values in before.items():
        assert name.startswith("items.") or torch.equal(values, after[name])


def test_fine_tuning_trains_the_vectors_of_the_sub_ids_and_keeps_the_sub_ids() -> None:
    start, end = (coded(assign="random", epochs=epochs).main.model for epochs in (0, 2))  # a start that is soon left
    (ids, weights), (same, moved) = (models.item_codes(model) for model in (start, end))  # type: ignore[misc]
    assert torch.equal(ids, same)
    used = torch.zeros(weights.shape[:2], dtype=torch.bool)
    used[torch.arange(4), ids.long()] = True
    assert (moved - weights).abs().sum(-1)[used].min() > 0


def test_the_bundle_holds_the_models_own_codes(exported: Exported) -> None:
    pipeline = coded(epochs=1)
    path = exported(pipeline)
    sub_ids, weights = models.item_codes(pipeline.main.model)  # type: ignore[misc]
    spec = dict(open_files(path).stages["retrieve"].table)
    assert spec == {"format": "pq", "dim": DIM, "parts": 4, "codes": 16, "rotate": False}
    table = find("tables", "pq").open_table(path / "retrieve" / "table", find("tables", "pq").Config(DIM, 4, 16), 1)
    assert np.array_equal(table.matrix(), vectors(pipeline).numpy())
    stored = np.fromfile(path / "retrieve" / "table" / "centroids.bin", np.float16)
    assert np.array_equal(stored.astype(np.float32), weights.detach().numpy().ravel())
    held = np.fromfile(path / "retrieve" / "table" / "codes.bin", np.uint8).reshape(-1, 2)
    assert np.array_equal(held & 15, sub_ids[:, 0::2])


@pytest.mark.parametrize("original", [SASREC, DESCRIBED], ids=["sasrec", "mlp"])
def test_narrow_vectors_are_made_of_codes_and_widened_as_before(original: Pipeline, exported: Exported) -> None:
    context = Context(toys.split(), original, toys.FIT)
    narrow = applied(make("reduce", {"axis": "table_dim", "size": 4, "epochs": 0}), original, context)
    out = applied(make("codes", {"parts": 2, "codes": 32, "epochs": 0}), narrow, context)
    model: Any = out.main.model
    assert (model.config.table_dim, model.config.parts, vectors(out).shape[1]) == (4, 2, 4)
    lost = [distance(coded, narrow) for coded in (out, coded(narrow, parts=2, codes=32, assign="random"))]
    assert lost[0] < 0.25 * lost[1]
    spec = open_files(exported(out)).stages["retrieve"].table
    assert (spec["format"], spec["dim"], spec["parts"]) == ("pq", 4, 2)
    again = toys.expected(out, -1, [3, 4, 6])
    engine = open_bundle(exported(out))
    ids = toys.around().item_ids
    asked = Request(history=tuple(ids[row] for row in (3, 4, 6)))
    np.testing.assert_allclose(engine.score(asked, ids)[again > -np.inf], again[again > -np.inf], rtol=1e-3, atol=1e-3)


def test_item_features_become_part_of_the_vectors() -> None:
    out = coded(DESCRIBED, parts=4, codes=32)
    assert not out.main.model.config.features
    assert distance(out, DESCRIBED) < 0.1, "40 items have at most 40 different parts, of which 32 are held"


def test_the_space_is_turned_without_changing_what_the_model_says() -> None:
    out = coded(codes=39)
    assert not torch.allclose(vectors(out), vectors(SASREC), atol=0.01)
    wanted, given = (toys.expected(pipeline, -1, [3, 4, 6]) for pipeline in (SASREC, out))
    alive = wanted > -np.inf
    np.testing.assert_allclose(given[alive], wanted[alive], atol=0.05 * np.ptp(wanted[alive]))


def test_two_towers_read_the_history_from_codes_too(exported: Exported) -> None:
    described = Pipeline(Stage(toys.trained("two_tower", toys.SHAPES["two_tower"][1])))
    for original in (TOWERS, described):
        out = coded(original, codes=39)
        model: Any = out.main.model
        assert isinstance(model.items, CodedTable)
        assert isinstance(model.past.items, CodedTable)
        assert not torch.equal(model.items.sub_ids, model.past.items.sub_ids), "what is read is not what is scored"
        wanted, given = (toys.expected(pipeline, 3, [3, 4, 6]) for pipeline in (original, out))
        alive = wanted > -np.inf
        np.testing.assert_allclose(given[alive], wanted[alive], atol=0.05 * np.ptp(wanted[alive]))
    assert out.main.model.config.features, "the features of users stay"
    assert "user_features" in out.main.model.inputs
    graphs = [onnx.load(exported(part) / "retrieve" / "model.onnx").graph for part in (TOWERS, coded(TOWERS))]
    rows = [[tuple(part.dims) for part in graph.initializer if toys.N_ITEMS in part.dims] for graph in graphs]
    assert rows == [[(toys.N_ITEMS, 8)], [(toys.N_ITEMS, 4)]]


def test_layers_of_low_rank_are_left_as_they_are() -> None:
    low = applied(make("low_rank", {"keep": 0.6, "epochs": 0}), SASREC, Context(toys.split(), SASREC, toys.FIT))
    before, after = (models.as_module(pipeline.main.model).state_dict() for pipeline in (low, coded(low)))
    assert "blocks.0.query.inner.weight" in before
    assert all(name.startswith("items.") or torch.equal(part, after[name]) for name, part in before.items())


def test_codes_can_be_pruned_and_quantized_further(exported: Exported) -> None:
    pipeline = coded()
    context = Context(toys.split(), SASREC, toys.FIT)
    pruned = applied(make("prune", {"axis": "layers", "epochs": 0}), pipeline, context)
    assert torch.equal(vectors(pruned), vectors(pipeline))
    whole = applied(make("quantize", {}), pipeline, context)
    assert (whole.main.graph, whole.main.table) == ("int8", "float32")
    spec = open_files(exported(whole)).stages["retrieve"].table
    assert spec["format"] == "pq"


def test_a_family_can_be_built_with_codes_and_learns() -> None:
    model: Any = toys.untrained("mlp", {"embedding_dim": 8, "hidden": 12, "parts": 2, "codes": 9})
    assert model.item_vectors().shape == (toys.N_ITEMS, 8)
    assert len(model.item_vectors().unique(dim=0)) > 9
    history = torch.tensor([[0, 3, 40]])
    rows = torch.stack((torch.zeros(8), model.item_vectors()[2], model.item_vectors()[39]))
    torch.testing.assert_close(model.items.lookup(history)[0], rows)


NARROW = applied(
    make("reduce", {"axis": "table_dim", "size": 4, "epochs": 0}), SASREC, Context(toys.split(), SASREC, toys.FIT)
)
REFUSED: list[tuple[Pipeline, str, Mapping[str, Any], str]] = [
    (NEUMF, "codes", {}, "neumf has no item table that could be made of codes"),
    (EASE, "codes", {}, "ease has no item table that could be made of codes"),
    (SASREC, "codes", {"parts": 5, "codes": 16}, "parts=5 does not divide embedding_dim=16"),
    (NARROW, "codes", {"parts": 3, "codes": 16}, "parts=3 does not divide table_dim=4"),
    (SASREC, "codes", {"parts": 4, "codes": 40}, "codes=40 for 40 items share nothing; pass fewer"),
    (SASREC, "codes", {"parts": 1, "codes": 16, "assign": "quotient_remainder"}, "tells 256 items apart by 2 parts"),
    (SASREC, "codes", {"parts": 2, "codes": 4, "assign": "quotient_remainder"}, "tells 16 items apart by 2 parts"),
    (coded(), "codes", {}, "the item table of sasrec already is trained codes"),
    (coded(), "quantize", {"graph": "float32"}, "sasrec keeps its table of trained codes; name a format"),
    (coded(), "reduce", {"size": 4}, "sasrec has no axis 'embedding_dim'"),
]


@pytest.mark.parametrize(("pipeline", "name", "settings", "sentence"), REFUSED, ids=lambda part: str(part)[:40])
def test_a_refusal_says_why(pipeline: Pipeline, name: str, settings: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(Unsupported, match=sentence):
        applied(make(name, settings), pipeline, Context(toys.split(), SASREC, toys.FIT))


def test_a_coded_space_is_not_turned() -> None:
    model: Any = coded().main.model
    with pytest.raises(Unsupported, match="can be neither cut nor turned; reduce before the codes are made"):
        model.rotated(torch.eye(DIM).flip(0))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"parts": 3}, r"model\.sasrec\.parts = 3 does not divide embedding_dim = 64"),
        ({"parts": 4, "table_dim": 6}, r"model\.sasrec\.parts = 4 does not divide table_dim = 6"),
        ({"parts": 8, "features": True}, "parts = 8 with features = True; codes hold whole vectors"),
        ({"parts": 8, "codes": 257}, "codes = 257 is outside 2 to 256"),
    ],
)
def test_a_model_of_impossible_codes_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        toys.untrained("sasrec", options)


def test_codes_take_the_features_of_users_beside_them_alone() -> None:
    bare = replace(models.catalogue_of(toys.split()), user_features=None)
    options = {"embedding_dim": 8, "parts": 2, "features": True}
    with pytest.raises(
        ConfigError, match=r"model\.two_tower\.parts = 2 with features = True, and none of users; codes"
    ):
        models.build("two_tower", options, bare)
    assert "user_features" in toys.untrained("two_tower", options).inputs
    with pytest.raises(ConfigError, match=r"parts = 2 with widths = \(4,\); codes hold whole vectors"):
        toys.untrained("two_tower", {"embedding_dim": 8, "parts": 2, "widths": [4]})


def test_a_wrong_assignment_is_answered_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match="allowed: kmeans, svd, random, quotient_remainder"):
        make("codes", {"assign": "hash"})
