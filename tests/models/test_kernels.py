"""Operators that PyTorch computes and a graph names: what they mean, and what a graph pays for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from recfit import models
from recfit.export.tracing import write_graph
from recfit.models import Catalogue
from recfit.pipeline import Stage


@pytest.mark.parametrize("laid_out", [True, False])
@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("length", [1, 3, 11, 12])
def test_a_graph_has_the_bias_of_every_length(
    laid_out: bool, window: int, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One graph of a history of 12 answers shorter ones as the module does, which makes the bias anew for each; so does a
    graph of histories that are too long to lay it out."""
    if not laid_out:
        monkeypatch.setattr("recfit.models.sasrec.LAID_OUT", 0)
    model = _model(max_history=12, window=window)
    history = torch.randint(1, 21, (3, length))
    with torch.inference_mode():
        vectors = model.items.lookup(history)
        expected = model.encode(history)
    answer = _session(model, tmp_path).run(None, {"history": history.numpy(), "vectors": vectors.numpy()})[0]
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)


def test_a_long_history_costs_no_bytes(tmp_path: Path) -> None:
    """What a distance counts is stored once for each distance, not once for each pair of positions, which would be 1.3 MB."""
    short, long = (_model(max_history=length) for length in (20, 400))
    sizes = []
    for model in (short, long):
        write_graph(Stage(model), tmp_path / "model.onnx")
        sizes.append((tmp_path / "model.onnx").stat().st_size)
    assert sizes[1] - sizes[0] < 20_000


def test_no_node_of_an_open_graph_works_out_distances(tmp_path: Path) -> None:
    """They are the same for every request: what depends on none of its inputs is folded when the graph is opened."""
    _session(_model(max_history=50), tmp_path, optimized := tmp_path / "optimized.onnx")
    import onnx

    nodes = [node.op_type for node in onnx.load(optimized).graph.node]
    assert "MultiHeadAttention" in nodes
    assert not {"Range", "Sub", "Clip", "Less", "Abs", "Gather"} & set(nodes[:-2])


def _model(**options: int) -> Any:
    torch.manual_seed(0)
    sizes = {"layers": 3, "embedding_dim": 8, "heads": 2, "ffn": 12}
    model: Any = models.build("sasrec", {**sizes, **options}, Catalogue(3, 20))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def _session(model: Any, folder: Path, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    write_graph(Stage(model), folder / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
