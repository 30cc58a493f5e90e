"""Torch-Pruning: half of every width leaves (DepGraph; Fang et al., arXiv 2301.12900), fine-tuned by recfit's loop as long as
recfit's own `prune`, served by ONNX Runtime. Twice as long at twice the learning rate was worse."""

from __future__ import annotations

from benchmarks.peers.given import Given, Scores, export

SHOWN = "Torch-Pruning, half of every width"
NEEDS = ("torch", "torch_pruning")
RUNTIME = "ort"
CANNOT = (
    "drop layers or history; see parameters outside of torch's modules (named by hand here); rebuild the module from "
    "its new sizes; keep the scale of a norm over fewer dimensions; fine-tune; quantize; measure time on a CPU"
)


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
    blocks = model.blocks
    pruner = torch_pruning.pruner.BasePruner(
        Traced(model),
        torch.ones(2, model.max_history, dtype=torch.long),
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        round_to=8,
        num_heads={part: block.heads for block in blocks for part in (block.query, block.key, block.value)},
        ignored_layers=[model.enter, model.leave, *(block.distance for block in blocks)],  # scalars crash it
    )
    pruner.step()
    sizes = {
        "embedding_dim": model.items.weight.shape[1],
        "head_dim": blocks[0].query.out_features // blocks[0].heads,
        "ffn": blocks[0].up.out_features,
    }
    small = rebuilt(model, replace(model.config, **sizes))
    small.load_state_dict(model.state_dict())
    export(Scores(given.fine_tune(small, epochs=20, learning_rate=1e-3)), given.output / "model.onnx")
    # end of user code
