"""ONNX Runtime Mobile: the encoder's whole request as one model in ORT format, which loads without an ONNX parser.

Android, iOS and React Native packages run it as it is; `required_operators.config` is what a custom, smaller build of
ONNX Runtime needs (`--include_ops_by_config`).
"""

from __future__ import annotations

import warnings
from pathlib import Path

from recfit.bundle import Bundle
from recfit.targets import _graph
from recfit.types import Unsupported

MODEL = "model.ort"
OPERATORS = "required_operators.config"
README = """# {name}, for ONNX Runtime Mobile

`model.ort` answers a request on the device: the newest {max_history} events of a history in, the best items out.

| | name | type and shape | |
| --- | --- | --- | --- |
| in | `history` | int64 [1, L] | position in `items` of `catalogue.json` + 1, oldest first, 1 <= L <= {max_history} |
| in | `gone` | int64 [g, 2] | pairs (0, position) of what must not be shown: the whole history, and more |
| in | `k` | int64 [1] | how many, at most {n_items} |
| out | `{values}` | float32 [1, k] | scores, best first; -infinity stands for nothing left to show |
| out | `{rows}` | int64 [1, k] | positions in `items` |

Leave out ids that are not in `items`. Without any event show `fallback` of `catalogue.json`, from its start.

```kotlin
val env = OrtEnvironment.getEnvironment()
val session = env.createSession(assets.open("model.ort").readBytes())
val seen = history.mapNotNull {{ rowOf[it] }}                      // rowOf: id -> position in items
val tokens = seen.takeLast({max_history}).map {{ it + 1L }}.toLongArray()
val pairs = seen.flatMap {{ listOf(0L, it.toLong()) }}.toLongArray()
fun tensor(values: LongArray, vararg shape: Long) = OnnxTensor.createTensor(env, LongBuffer.wrap(values), shape)
val found = session.run(mapOf(
    "history" to tensor(tokens, 1, tokens.size.toLong()),
    "gone" to tensor(pairs, seen.size.toLong(), 2),
    "k" to tensor(longArrayOf(10), 1)))
val rows = (found["{rows}"].get().value as Array<LongArray>)[0]
```

The packages `onnxruntime-android` and `onnxruntime-objc` hold every operator that it needs. `required_operators.config`
lists them for a build of your own: `build.sh --minimal_build --include_ops_by_config required_operators.config`.
"""


def export(bundle: Bundle, directory: Path) -> None:
    if bundle.stages["retrieve"].options.get("ahead"):
        raise Unsupported(
            f"bundle {bundle.manifest['name']!r} makes keys and values of all items ahead, which the file would hold; "
            "export its recipe without ahead"
        )
    model = _graph.encoder(bundle)
    _save(model.SerializeToString(), directory / MODEL)
    _list_operators(directory / MODEL, directory / OPERATORS)
    values, rows = (part.name for part in model.graph.output)
    sizes = {"max_history": bundle.stages["retrieve"].max_history, "n_items": bundle.n_items}
    text = README.format(name=bundle.manifest["name"], values=values, rows=rows, **sizes)
    (directory / "README.md").write_text(text, encoding="utf-8")


def _save(model: bytes, path: Path) -> None:
    """Optimized as far as holds on every processor: what only this one has must not be written down."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _list_operators(model: Path, path: Path) -> None:
    from onnxruntime.tools.ort_format_model import create_config_from_models

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the model to the garbage collector to close
        create_config_from_models([model], path, enable_type_reduction=False)
    path.write_text(path.read_text(encoding="utf-8").replace(str(model), model.name), encoding="utf-8")
