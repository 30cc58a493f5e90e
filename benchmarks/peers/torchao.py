"""torchao: int8 weights of the linear layers and int8 item rows, compiled ahead of time by AOTInductor.

Of what it offers for int8 on a CPU this is the fastest. Eager, the same weights took ten times as long; with activations
quantized per request (`Int8DynamicActivationInt8WeightConfig`) the compiled model was slower than the float one.
"""

from __future__ import annotations

from benchmarks.peers.given import Given

SHOWN = "torchao, int8 weights, compiled"
NEEDS = ("torch", "torchao")
RUNTIME = "aoti_scores"
CANNOT = (
    "leave PyTorch; shrink a model; quantize a weight that the model reshapes (two layers stay float) or, without a "
    "filter that names it, an item table; do without a C++ compiler"
)


def make(given: Given) -> None:
    # user code
    import torch
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerAxis, quantize_

    model = given.model
    last = model.model.blocks[-1]

    def products(module: torch.nn.Module, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and module not in (last.key, last.value)

    quantize_(model, Int8WeightOnlyConfig(), products)
    rows = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
    quantize_(model, rows, lambda module, name: name == "model.items")
    example = torch.ones(2, model.model.max_history, dtype=torch.long)
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
        torch._inductor.aoti_compile_and_package(program, package_path=str(given.output / "model.pt2"))
    # end of user code
