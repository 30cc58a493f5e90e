"""Targets that are no web page: what each writes is run as its platform runs it, and answers as the bundle's engine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from target_cases import CASES, Exported, assert_answers_as_the_engine, pipeline_of, rows_of

import toys
from recfit.engine import open_bundle
from recfit.pipeline import CachePlan, Pipeline, RuntimePlan, Stage
from recfit.registry import names
from recfit.targets import export_bundle
from recfit.targets.triton import BATCH
from recfit.types import BundleError, ConfigError, Request, Unsupported

SERVERS = ("openvino", "triton")
DOCS = Path(__file__).parents[2] / "docs" / "targets.md"


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def listed(found: Sequence[Any], line: int = 0) -> tuple[list[str], list[float]]:
    """The ten best of one line: ids and scores."""
    scores, rows = found[0][line][:10], found[1][line][:10]
    ids = toys.around().item_ids
    return [ids[row] for row in rows[scores > -np.inf]], scores[scores > -np.inf].tolist()


def padded(histories: Sequence[Sequence[str]], length: int) -> dict[str, Any]:
    """Requests of one batch: tokens padded on the left, what is gone on the right."""
    rows = [rows_of(history) for history in histories]
    gone = np.full((len(rows), 40), -1)
    history = np.zeros((len(rows), length), np.int64)
    for at, part in enumerate(rows):
        gone[at, : len(part)] = part
        kept = part[-length:]
        history[at, length - len(kept) :] = np.array(kept) + 1
    return {"history": history, "gone": gone}


def opened(target: str, folder: Path) -> Any:
    """Inputs -> outputs, in order, as the platform runs what is in `folder`."""
    if target == "openvino":
        # As its README says: by itself OpenVINO rounds to bfloat16 on processors that have it.
        model = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda inputs: [*model(inputs).values()]
    [graph] = (folder / "model_repository").glob("*/1/model.onnx")
    run = session(graph)
    return lambda inputs: run.run(None, {part.name: inputs[part.name] for part in run.get_inputs()})


@pytest.mark.parametrize("case", CASES)
def test_mobile_answers_as_the_engine_does(case: str, exported: Exported, tmp_path: Path) -> None:
    bundle = exported(pipeline_of(*CASES[case]))
    folder = export_bundle(bundle, "mobile", tmp_path / "mobile")
    model, longest = session(folder / "model.ort"), open_bundle(bundle).bundle.stages["retrieve"].max_history

    def ask(history: list[str]) -> tuple[list[str], list[float]]:
        rows = rows_of(history)
        gone = np.array([[0, row] for row in rows])
        inputs = {"history": np.array([rows[-longest:]]) + 1, "gone": gone, "k": np.array([10])}
        return listed(model.run(None, inputs))

    assert_answers_as_the_engine(ask, bundle, case)


@pytest.mark.parametrize("target", SERVERS)
@pytest.mark.parametrize("case", CASES)
def test_servers_answer_as_the_engine_does(target: str, case: str, exported: Exported, tmp_path: Path) -> None:
    bundle = exported(pipeline_of(*CASES[case]))
    longest = min(30, open_bundle(bundle).bundle.stages["retrieve"].max_history)
    run = opened(target, export_bundle(bundle, target, tmp_path / target))
    assert_answers_as_the_engine(lambda history: listed(run(padded([history], longest))), bundle, case)


@pytest.mark.parametrize("target", SERVERS)
def test_requests_together_are_answered_as_one_by_one(target: str, exported: Exported, tmp_path: Path) -> None:
    run = opened(target, export_bundle(exported(pipeline_of("sasrec", {})), target, tmp_path / target))
    ids = toys.around().item_ids
    batch = [list(ids[:3]), list(ids[5:39]), list(ids)]
    together = run(padded(batch, 9))
    for line, history in enumerate(batch):
        items, scores = listed(run(padded([history], 9)))
        assert listed(together, line)[0] == items
        np.testing.assert_allclose(listed(together, line)[1], scores, rtol=1e-4, atol=1e-6)
        assert not set(items) & set(history)
    assert listed(together, 2)[0] == []


@pytest.mark.parametrize("target", SERVERS)
def test_a_ranker_scores_what_it_is_given(target: str, exported: Exported, tmp_path: Path) -> None:
    pipeline = Pipeline(Stage(toys.trained("neumf", {"embedding_dim": 4, "hidden": 8, "top": 4})))
    folder = export_bundle(exported(pipeline), target, tmp_path / target)
    items = np.array([[7, 1, 40], [2, 3, 4]])
    [found] = opened(target, folder)({"items": items, "user": np.array([5, 0])})
    for line, user in enumerate((4, -1)):
        wanted = toys.expected(pipeline, user, [])[items[line] - 1]
        np.testing.assert_allclose(found[line], wanted, rtol=1e-4, atol=1e-5)
    assert json.loads((folder / "catalogue.json").read_text())["users"] == list(toys.around().user_ids)


# triton ------------------------------------------------------------------------------------------

FIELD = descriptor_pb2.FieldDescriptorProto
# The part of Triton's model_config.proto that is used: message -> fields, as name, type (of a message or a scalar), repeated.
MESSAGES: dict[str, list[tuple[str, str | int, bool]]] = {
    "Reshape": [("shape", FIELD.TYPE_INT64, True)],
    "Port": [
        ("name", FIELD.TYPE_STRING, False),
        ("data_type", "DataType", False),
        ("dims", FIELD.TYPE_INT64, True),
        ("reshape", "Reshape", False),
    ],
    "Batching": [("max_queue_delay_microseconds", FIELD.TYPE_UINT64, False)],
    "Instances": [("kind", "Kind", False), ("count", FIELD.TYPE_INT32, False)],
    "Parameter": [("string_value", FIELD.TYPE_STRING, False)],
    "Entry": [("key", FIELD.TYPE_STRING, False), ("value", "Parameter", False)],
    "Config": [
        ("name", FIELD.TYPE_STRING, False),
        ("backend", FIELD.TYPE_STRING, False),
        ("max_batch_size", FIELD.TYPE_INT32, False),
        ("input", "Port", True),
        ("output", "Port", True),
        ("dynamic_batching", "Batching", False),
        ("instance_group", "Instances", True),
        ("parameters", "Entry", True),
    ],
}
ENUMS = {"DataType": {"TYPE_INT64": 5, "TYPE_FP32": 11}, "Kind": {"KIND_AUTO": 0, "KIND_CPU": 2}}


def config_of(folder: Path) -> Any:
    """The configuration of the one model in `folder`, read as protobuf's text format."""
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, (label, value) in enumerate({f"{name}_NONE": 0, **values}.items()):
            if number or value not in values.values():
                enum.value.add(name=label, number=value)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind, repeated) in enumerate(fields, 1):
            label = FIELD.LABEL_REPEATED if repeated else FIELD.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label)
            if isinstance(kind, int):
                added.type = kind
            else:
                added.type, added.type_name = FIELD.TYPE_ENUM if kind in ENUMS else FIELD.TYPE_MESSAGE, f".{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("Config"))()
    [path] = (folder / "model_repository").glob("*/config.pbtxt")
    text_format.Parse(path.read_text(encoding="utf-8"), config)
    assert config.name == path.parent.name
    return config


def test_the_triton_configuration_fits_the_graph(exported: Exported, tmp_path: Path) -> None:
    plan = RuntimePlan("ort", threads=2)
    folder = export_bundle(exported(Pipeline(toys.original("sasrec").retrieve, runtime=plan)), "triton", tmp_path / "t")
    config = config_of(folder)
    graph = session(next(folder.rglob("model.onnx")))
    assert (config.backend, config.max_batch_size) == ("onnxruntime", BATCH)
    kinds = {"tensor(int64)": 5, "tensor(float)": 11}
    for ports, given in ((config.input, graph.get_inputs()), (config.output, graph.get_outputs())):
        assert [port.name for port in ports] == [part.name for part in given]
        for port, part in zip(ports, given, strict=True):
            assert port.data_type == kinds[part.type]
            assert list(port.dims) == [size if isinstance(size, int) else -1 for size in part.shape[1:]]
            assert part.shape[0] == "batch"
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    assert [(group.kind, group.count) for group in config.instance_group] == [(2, 1)]
    assert {entry.key: entry.value.string_value for entry in config.parameters} == {
        "intra_op_thread_count": "2",
        "inter_op_thread_count": "1",
    }


def test_one_number_a_request_is_reshaped_for_triton(exported: Exported, tmp_path: Path) -> None:
    bundle = exported(Pipeline(Stage(toys.trained("neumf", {"embedding_dim": 4, "hidden": 8, "top": 4}))))
    [user] = [port for port in config_of(export_bundle(bundle, "triton", tmp_path / "t")).input if port.name == "user"]
    assert (list(user.dims), user.HasField("reshape"), list(user.reshape.shape)) == ([1], True, [])


# mobile ------------------------------------------------------------------------------------------


def test_what_is_made_ahead_is_nothing_for_a_device(exported: Exported, tmp_path: Path) -> None:
    runtime = RuntimePlan("fused", options={"ahead": True})
    bundle = exported(replace(pipeline_of("sasrec", {}), runtime=runtime))
    with pytest.raises(Unsupported, match="keys and values of all items ahead"):
        export_bundle(bundle, "mobile", tmp_path / "mobile")


def test_the_operators_of_the_mobile_model_are_listed(exported: Exported, tmp_path: Path) -> None:
    folder = export_bundle(exported(pipeline_of("sasrec", {})), "mobile", tmp_path / "mobile")
    text = (folder / "required_operators.config").read_text()
    assert str(tmp_path) not in text
    assert {"TopK", "ScatterND", "MultiHeadAttention"} <= {
        name for line in text.splitlines() if ";" in line for name in line.split(";")[2].split(",")
    }


# all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", set(names("targets")) - {"web"})
def test_every_export_says_what_it_is(target: str, exported: Exported, tmp_path: Path) -> None:
    bundle = exported(pipeline_of("sasrec", {}))
    folder = export_bundle(bundle, target, tmp_path / "new" / "out")
    catalogue, source = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("catalogue", "source"))
    around = toys.around()
    assert catalogue == {
        "items": list(around.item_ids),
        "titles": list(around.titles or ()),
        "fallback": around.fallback.tolist(),
        "max_history": 9,
    }
    assert (source["target"], source["bundle_id"]) == (target, open_bundle(bundle).bundle.id)
    text = (folder / "README.md").read_text()
    assert text.startswith("# toy, for ")
    assert not re.search(r"\{\w+[}\[]", text)


@pytest.mark.parametrize("runtime", ["ort", "fused"])
def test_a_fused_bundle_gives_the_same_model(runtime: str, exported: Exported, tmp_path: Path) -> None:
    folder = export_bundle(exported(pipeline_of("sasrec", {}, runtime)), "triton", tmp_path / "t")
    history = list(toys.around().item_ids[:4])
    wanted = open_bundle(exported(pipeline_of("sasrec", {}))).recommend([Request(history=tuple(history))])[0]
    assert listed(opened("triton", folder)(padded([history], 9)))[0] == list(wanted.items)


@pytest.mark.parametrize(
    ("pipeline", "target", "told"),
    [
        (
            lambda: Pipeline(toys.original("ease").retrieve, toys.original("sasrec").retrieve, candidates=9),
            "triton",
            "bundle 'toy' has two stages and a target runs one; export a recipe without two_stage",
        ),
        (
            lambda: Pipeline(toys.original("sasrec").retrieve, cache=CachePlan(0.1)),
            "web",
            "holds lists of users, made to be served; export its recipe without cache",
        ),
        (lambda: pipeline_of("sasrec", {}, "numpy"), "web", r"runs on numpy and has no ONNX graph.*runtime name='ort'"),
        (
            lambda: toys.original("neumf"),
            "web",
            "is a ranker, which scores given items; export it to openvino or triton",
        ),
        (lambda: toys.original("neumf"), "mobile", "is a ranker"),
        (
            lambda: Pipeline(Stage(toys.trained("neumf", toys.SHAPES["neumf"][1]))),
            "triton",
            "takes user_features, which are not there; export a model of histories",
        ),
    ],
)
def test_what_a_target_cannot_run_is_refused(
    pipeline: Any, target: str, told: str, exported: Exported, tmp_path: Path
) -> None:
    with pytest.raises(Unsupported, match=told):
        export_bundle(exported(pipeline()), target, tmp_path / "out")
    assert [*tmp_path.iterdir()] == []


def test_a_folder_in_use_an_unknown_target_and_a_damaged_bundle_are_refused(exported: Exported, tmp_path: Path) -> None:
    bundle = exported(pipeline_of("sasrec", {}))
    with pytest.raises(ConfigError, match=r"no target named 'wbe'; did you mean 'web'\?"):
        export_bundle(bundle, "wbe", tmp_path / "out")
    (tmp_path / "mine").touch()
    for taken in (tmp_path, tmp_path / "mine"):
        with pytest.raises(ConfigError, match="exists and is no empty directory; give another with -o"):
            export_bundle(bundle, "mobile", taken)
    with pytest.raises(BundleError, match="is not a bundle"):
        export_bundle(tmp_path, "mobile", tmp_path / "out")


def test_the_page_has_every_target() -> None:
    page = DOCS.read_text()
    assert all(f"## {name}" in page for name in names("targets"))
