"""Torch-Pruning: half of the feed-forward units leave (DepGraph; Fang et al., arXiv 2301.12900), fine-tuned by recfit's loop
as long as recfit's own `prune`, served by ONNX Runtime."""

from __future__ import annotations

from benchmarks.peers.given import Given, Scores, export

SHOWN = "Torch-Pruning, half of ffn"
NEEDS = ("torch", "torch_pruning")
RUNTIME = "ort"
CANNOT = "what the row of every width cannot"


def make(given: Given) -> None:
    # user code
    from dataclasses import replace

    import torch
    import torch_pruning
    from torch import nn

    from recfit.models import rebuilt

    class Traced(nn.Module):
        """All positions through all layers: the shortcuts of `encode` use weights outside of their modules."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, history: torch.Tensor) -> torch.Tensor:
            return self.model.states(history)[:, -1] @ self.model.item_vectors().T

    model = given.model.model
    graph = torch_pruning.DependencyGraph().build_dependency(
        Traced(model),
        torch.ones(2, model.max_history, dtype=torch.long),
        ignored_params=[model.enter, model.leave, *(block.distance for block in model.blocks)],
    )
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    cut = torch_pruning.prune_linear_out_channels
    for block in model.blocks:
        units = list(range(block.up.out_features))
        weakest = importance(graph.get_pruning_group(block.up, cut, idxs=units)).argsort()[: len(units) // 2]
        graph.get_pruning_group(block.up, cut, idxs=weakest.tolist()).prune()
    small = rebuilt(model, replace(model.config, ffn=model.blocks[0].up.out_features))
    small.load_state_dict(model.state_dict())
    export(Scores(given.fine_tune(small, epochs=20, learning_rate=1e-3)), given.output / "model.onnx")
    # end of user code
