"""`recfit export`: what it writes, prints and refuses."""

import json
import re

import pytest

import toys
from recfit.registry import names


@pytest.fixture
def bundle(exported):
    return exported(toys.original("sasrec"))


def test_export_writes_what_it_says(recfit, bundle, tmp_path):
    code, out, err = recfit("export", bundle, "--target", "mobile", "-o", tmp_path / "app", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    files = [path for path in (tmp_path / "app").rglob("*") if path.is_file()]
    assert (found["target"], found["output"], found["files"]) == ("mobile", str(tmp_path / "app"), len(files))
    assert found["mb"] == pytest.approx(sum(path.stat().st_size for path in files) / 1e6)
    code, out, _ = recfit("export", bundle, "--target", "triton", "-o", tmp_path / "repository")
    assert code == 0
    assert re.fullmatch(rf"triton: 5 files, \d+\.\d MB; read {tmp_path}/repository/README\.md\n", out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "ios"], "no target named 'ios'; there are: mobile, openvino, triton, web"),
        (["--target", "mobile", "--ort-web", "x"], "--ort-web is for --target web, this is mobile; leave it out"),
        (["--target", "web", "--ort-web", "x"], "x lacks ort.wasm.min.mjs"),
    ],
)
def test_export_refuses(recfit, bundle, tmp_path, arguments, message):
    code, out, err = recfit("export", bundle, *arguments, "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "out").exists()


def test_the_help_names_every_target(recfit):
    out = recfit("export", "--help")[1]
    assert all(name in out for name in names("targets"))
