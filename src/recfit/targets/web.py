"""A folder that runs in a browser: ONNX Runtime Web answers on the device, any file server will do, nothing is sent.

`recommend.js` is the module to use in a page of one's own, `index.html` a page that shows it. The files of ONNX Runtime
Web come from npm (fetched once, kept in $RECFIT_CACHE, else ~/.cache/recfit) or from a folder of one's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from importlib import resources
from pathlib import Path

from recfit.bundle import Bundle
from recfit.targets import _graph
from recfit.types import ConfigError

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
# WebAssembly on the CPU, as the bundle was measured, and nothing of the package's WebGL, WebGPU and Node.js.
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
README = """# {name}, for browsers

Serve this folder as it is (`python -m http.server`) and open `index.html`, or use the module:

    import {{ open }} from "./recommend.js";
    const recommender = await open();
    const {{ items, source }} = await recommender.recommend(["id of an item", "id of the next"], 10);

`items` are `{{ id, title, score }}`, best first, without what is in the history (a third argument excludes more); `source`
is `model`, or `fallback` where no id of the history is known. Histories never leave the page. `ort/` is ONNX Runtime Web
{version} (MIT licence), WebAssembly with one thread; a server that compresses sends a third of its size.
"""


def export(bundle: Bundle, directory: Path, ort_web: Path | None = None) -> None:
    """`ort_web` is an unpacked npm package onnxruntime-web, or its `dist`."""
    model = _graph.encoder(bundle)
    dist = _runtime(ort_web)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    for page in resources.files("recfit.targets").joinpath("_web").iterdir():
        (directory / page.name).write_bytes(page.read_bytes())
    (directory / "ort").mkdir()
    for name in RUNTIME:
        shutil.copyfile(dist / name, directory / "ort" / name)
    text = README.format(name=bundle.manifest["name"], version=VERSION)
    (directory / "README.md").write_text(text, encoding="utf-8")


def _runtime(given: Path | None) -> Path:
    """The folder with the files of ONNX Runtime Web."""
    kept = Path(os.environ.get("RECFIT_CACHE") or Path.home() / ".cache" / "recfit") / f"{PACKAGE}-{VERSION}"
    if given is None and not _complete(kept):
        _fetch(kept)
    for dist in (kept,) if given is None else (given, given / "dist"):
        if _complete(dist):
            return dist
    raise ConfigError(f"{given} lacks {', '.join(RUNTIME)}; pass the unpacked npm package {PACKAGE} {VERSION}")


def _complete(dist: Path) -> bool:
    return all((dist / name).is_file() for name in RUNTIME)


def _fetch(kept: Path) -> None:
    """npm knows of proxies and mirrors, so it does the download; what is kept is complete or not there."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        npm = ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"]
        try:
            subprocess.run(npm, cwd=folder, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
            raise ConfigError(
                f"npm can't fetch {PACKAGE} {VERSION}: {reason}; unpack the package elsewhere and pass it with --ort-web"
            ) from error
        dist = Path(folder) / "dist"
        dist.mkdir()
        with tarfile.open(Path(folder) / f"{PACKAGE}-{VERSION}.tgz") as archive:
            for name in RUNTIME:
                found = archive.extractfile(f"package/dist/{name}")
                assert found is not None
                (dist / name).write_bytes(found.read())
        shutil.rmtree(kept, ignore_errors=True)
        dist.rename(kept)
