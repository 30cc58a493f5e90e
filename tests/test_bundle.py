"""The bundle on disk: what the manifest says, and everything that must be noticed before a request is answered."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toys
from recfit import bundle, texts
from recfit.engine import open_bundle
from recfit.export import export
from recfit.pipeline import CachePlan, Pipeline, RuntimePlan, Stage
from recfit.types import BundleError, Request

Exported = Callable[[Pipeline], Path]

# What a server must not need.
TRAINING = ("torch", "onnx", "scipy", "pyarrow", "safetensors", "implicit", "tqdm", "sklearn")


@pytest.fixture
def path(exported: Exported, tmp_path: Path) -> Path:
    """A bundle that may be broken."""
    whole = exported(replace(toys.original("sasrec"), cache=CachePlan(0.5, 10)))
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def manifest_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    return content


def reseal(path: Path, **changes: Any) -> None:
    """Change the manifest, and its digest with it, as a tool that writes bundles would."""
    manifest = {**manifest_of(path), **changes}
    content = {key: value for key, value in manifest.items() if key not in ("created", "promise", "bundle_id")}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    (path / "manifest.json").write_text(json.dumps({**manifest, "bundle_id": digest}), encoding="utf-8")


def files_of(path: Path) -> list[str]:
    return sorted(part.relative_to(path).as_posix() for part in path.rglob("*") if part.is_file())


def test_the_manifest_tells_everything(path: Path) -> None:
    manifest = manifest_of(path)
    assert manifest["format"] == 2
    assert manifest["name"] == "toy"
    assert manifest["recipe"] == {"id": "r0"}
    assert manifest["catalogue"] == {"users": toys.N_USERS, "items": toys.N_ITEMS}
    assert manifest["promise"] is None
    assert manifest["created"].endswith("+00:00")
    assert manifest["pipeline"] == {
        "retrieve": {
            "kind": "encoder",
            "runtime": "ort",
            "inputs": ["history"],
            "n_items": toys.N_ITEMS,
            "max_history": 9,
            "tied": True,
            "table": {"format": "float32", "dim": 16},
            "options": {},
            "alone": False,
            "remembers": 0,
        },
        "rank": None,
        "candidates": 0,
        "cache": {"users": 30, "length": 10, "ttl_seconds": 86400.0},
        "threads": 1,
    }


def test_every_file_is_listed_with_its_size_and_digest(path: Path) -> None:
    listed = manifest_of(path)["files"]
    assert sorted([*listed, "manifest.json"]) == files_of(path)
    for name, facts in listed.items():
        content = (path / name).read_bytes()
        assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_two_exports_have_one_id(tmp_path: Path) -> None:
    pipeline = replace(toys.original("sasrec"), cache=CachePlan(0.5, 10))
    paths = [export(pipeline, toys.around(), tmp_path / name, name="n", recipe={"id": "r"}) for name in "ab"]
    one, two = (manifest_of(path) for path in paths)
    assert one["bundle_id"] == two["bundle_id"]
    assert len(one["bundle_id"]) == 16
    other = export(replace(pipeline, candidates=3), toys.around(), tmp_path / "c", name="n", recipe={"id": "r"})
    assert manifest_of(other)["bundle_id"] != one["bundle_id"]


def test_a_promise_leaves_id_and_files_alone(path: Path) -> None:
    before, files = manifest_of(path), files_of(path)
    bundle.promise(path, {"metrics": {"ndcg@10": 0.1}})
    assert manifest_of(path) == {**before, "promise": {"metrics": {"ndcg@10": 0.1}}}
    assert files_of(path) == files
    assert open_bundle(path).manifest["promise"] == {"metrics": {"ndcg@10": 0.1}}


@pytest.mark.parametrize("promise", [{"metrics": None}, {"metrics": {"ndcg@10": "high"}}, {"metrics": [1]}, "great", 7])
def test_a_promise_that_is_none_is_noticed(path: Path, promise: object) -> None:
    (path / "manifest.json").write_text(json.dumps({**manifest_of(path), "promise": promise}))
    with pytest.raises(
        BundleError, match=r"manifest\.json has the promise .*; it must be null or a table whose metrics are"
    ):
        open_bundle(path)


def test_every_changed_byte_is_noticed(path: Path) -> None:
    for name in manifest_of(path)["files"]:
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content)
        with pytest.raises(BundleError, match=rf"{name} has sha256 \w+, the manifest says \w+: it was changed"):
            open_bundle(path)
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content)
    open_bundle(path)


def test_every_missing_file_is_noticed(path: Path) -> None:
    for name in manifest_of(path)["files"]:
        content = (path / name).read_bytes()
        (path / name).unlink()
        with pytest.raises(BundleError, match=f"{name} is missing although the manifest lists it"):
            open_bundle(path)
        (path / name).write_bytes(content)


def test_a_changed_manifest_is_noticed(path: Path) -> None:
    manifest = manifest_of(path)
    manifest["pipeline"]["threads"] = 64
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"manifest\.json was changed: its digest is not its bundle_id"):
        open_bundle(path)


def test_files_that_are_not_listed_are_ignored(path: Path) -> None:
    answer = open_bundle(path).recommend([Request("üser 1")])
    (path / "README.txt").write_text("notes")
    (path / "retrieve" / "unlisted.bin").write_bytes(b"\0")
    assert open_bundle(path).recommend([Request("üser 1")]) == answer


def test_no_directory_and_no_manifest(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json; export it again"):
            open_bundle(path)


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 2', b"\xff\xfe\x00", b"\x00" * 64])
def test_garbage_in_place_of_the_manifest(path: Path, content: bytes) -> None:
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json is not valid JSON"):
        open_bundle(path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "{}", '{"format": "2"}', '{"format": 1}'])
def test_json_that_is_no_manifest(path: Path, content: str) -> None:
    (path / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match="this recfit reads format 2; export the bundle again"):
        open_bundle(path)


def test_a_newer_format_asks_for_an_upgrade(path: Path) -> None:
    reseal(path, format=3)
    with pytest.raises(BundleError, match="has format 3, this recfit reads format 2; upgrade recfit"):
        open_bundle(path)


@pytest.mark.parametrize("key", ["files", "pipeline"])
@pytest.mark.parametrize("value", [None, [], 7, {"items.ends.npy": 1}])
def test_a_manifest_with_wrong_parts(path: Path, key: str, value: object) -> None:
    reseal(path, **{key: value})
    with pytest.raises(BundleError, match="does not hold what its manifest describes"):
        open_bundle(path)


def test_paths_out_of_the_bundle_are_refused(path: Path) -> None:
    (path.parent / "secret").write_bytes(b"x")
    facts = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    for name in ("../secret", "retrieve/../../secret", str(path.parent / "secret")):
        reseal(path, files={**manifest_of(path)["files"], name: facts})
        with pytest.raises(BundleError, match="which lies outside"):
            open_bundle(path)
        reseal(path, files={key: value for key, value in manifest_of(path)["files"].items() if key != name})
    open_bundle(path)


class Boom:
    """What a pickle can do on being read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("the pickle was run",)


@pytest.mark.parametrize("name", ["items.texts.npy", "histories.values.npy", "fallback.npy", "cache/items.npy"])
def test_pickled_arrays_are_refused(path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    np.save(path / name, np.array([Boom()], dtype=object), allow_pickle=True)
    bundle.seal(path, {key: value for key, value in manifest_of(path).items() if key != "files"})
    with pytest.raises(BundleError, match="does not hold what its manifest describes"):
        open_bundle(path)
    assert "the pickle was run" not in capfd.readouterr().out


def test_a_stage_that_cannot_run_is_named(path: Path) -> None:
    manifest = manifest_of(path)
    manifest["pipeline"]["retrieve"]["table"] = {"format": "float32", "dim": 16, "color": "red"}
    reseal(path, pipeline=manifest["pipeline"])
    with pytest.raises(BundleError, match=r"stage 'retrieve' of .* can't be opened: .*color"):
        open_bundle(path)


def test_a_ranker_without_its_features_is_refused(exported: Exported, tmp_path: Path) -> None:
    ranker = Stage(toys.trained("neumf", toys.SHAPES["neumf"][1]))
    path = export(Pipeline(ranker), replace(toys.around(), user_features=None), tmp_path / "b", name="n", recipe={})
    with pytest.raises(BundleError, match="takes user features and the bundle has none"):
        open_bundle(path)


@pytest.mark.parametrize("values", [[["a", "b", "c"]], [["a", "b"]] * 2, [[0.5]] * 2, [[], []], [7, 7], 3, {"age": 1}])
def test_values_that_are_not_those_of_the_features_are_noticed(
    exported: Exported, tmp_path: Path, values: object
) -> None:
    whole = exported(Pipeline(Stage(toys.trained("neumf", toys.SHAPES["neumf"][1]))))
    path = Path(shutil.copytree(whole, tmp_path / "bundle"))
    told = json.loads((path / "user_features.json").read_text(encoding="utf-8"))
    (path / "user_features.json").write_text(json.dumps({**told, "values": values}), encoding="utf-8")
    bundle.seal(path, {key: value for key, value in manifest_of(path).items() if key != "files"})
    with pytest.raises(BundleError, match="does not hold what its manifest describes"):
        open_bundle(path)


@pytest.mark.parametrize("few", [0, 100_000])
def test_ids_that_cannot_be_read_are_noticed_when_a_bundle_is_opened(
    path: Path, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "FEW", few)
    ids = np.load(path / "items.texts.npy")
    ids[3] = 0xFF
    np.save(path / "items.texts.npy", ids)
    bundle.seal(path, {key: value for key, value in manifest_of(path).items() if key != "files"})
    with pytest.raises(BundleError, match="export it again"):
        open_bundle(path)


def test_titles_belong_to_items(path: Path) -> None:
    texts.write_texts(["one"], path / "titles")
    bundle.seal(path, {key: value for key, value in manifest_of(path).items() if key != "files"})
    with pytest.raises(BundleError, match="an id and a title for each item"):
        open_bundle(path)


def test_a_bundle_can_be_moved_and_only_read(path: Path, tmp_path: Path) -> None:
    answer = open_bundle(path).recommend([Request("üser 1")])
    moved = path.rename(tmp_path / "moved elsewhere")
    for part in [moved, *moved.rglob("*")]:
        part.chmod(0o555 if part.is_dir() else 0o444)
    assert open_bundle(moved).recommend([Request("üser 1")]) == answer
    for part in [moved, *moved.rglob("*")]:
        part.chmod(0o755)


WITHOUT_TRAINING = f"""
import sys
for name in {TRAINING!r}:
    sys.modules[name] = None
from recfit.engine import open_bundle
from recfit.types import BundleError, Request
for path in sys.argv[2:]:
    answers = open_bundle(path).recommend([Request("üser 1"), Request(history=("item № 3",)), Request()])
    print([answer.source for answer in answers])
try:
    open_bundle(sys.argv[1])
except BundleError as error:
    print(error)
"""


def test_serving_needs_nothing_of_training(exported: Exported) -> None:
    sasrec, neumf, ease = (toys.original(kind) for kind in ("sasrec", "neumf", "ease"))
    quantized = replace(sasrec.main, graph="int8", table="int8")
    pipelines = [
        sasrec,
        ease,
        Pipeline(quantized),
        Pipeline(quantized, neumf.main, candidates=12),
        replace(sasrec, cache=CachePlan(1.0)),
        replace(sasrec, cache=CachePlan(1.0, key="state")),
    ]
    eager = exported(replace(sasrec, runtime=RuntimePlan("torch")))
    paths = [str(path) for path in (eager, *map(exported, pipelines))]
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRAINING, *paths], capture_output=True, text=True, encoding="utf-8"
    )
    assert found.stderr == ""
    *sources, refusal = found.stdout.splitlines()
    assert sources[:4] == ["['model', 'model', 'fallback']"] * 4
    assert sources[4:] == ["['cache', 'model', 'fallback']", "['cache', 'cache', 'fallback']"]
    assert refusal == "this bundle runs on PyTorch, which is not installed; pip install 'recfit[train]'"
