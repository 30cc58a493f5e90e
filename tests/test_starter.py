"""`doctor` looks at what recfit's own metadata asks for, and says what to do about what is missing."""

import importlib

import pytest

from recfit import starter
from recfit.registry import names


def test_packages_are_what_the_metadata_asks_for_always_or_with_an_extra(monkeypatch):
    asked = [
        "numpy>=1.26",
        "uvloop>=0.21; sys_platform != 'win32'",
        'faiss-cpu>=1.12; extra == "faiss"',
        'torch>=2.6; extra == "train"',
        'faiss-cpu>=1.12; extra == "train"',
        'scikit-learn; python_version < "4" and extra == "dev"',
        'recfit[train]; extra == "dev"',
    ]
    monkeypatch.setattr(starter.metadata, "requires", lambda _: asked)
    assert starter.packages(None) == ["numpy", "uvloop"]
    assert starter.packages("train") == ["torch", "faiss-cpu"]
    assert starter.packages("faiss") == ["faiss-cpu"]


def test_the_packages_of_this_installation_are_found():
    assert {"numpy", "onnxruntime", "prometheus-client"} <= set(starter.packages(None))
    assert {"torch", "onnx"} <= set(starter.packages("train"))


def test_a_module_of_another_name_than_its_package_is_found(monkeypatch):
    monkeypatch.setattr(starter.metadata, "requires", lambda _: ['faiss-cpu>=1.12; extra == "train"'])
    assert "version" in starter.doctor()["training"]["faiss-cpu"]


def test_rooms_are_listed_without_being_imported():
    for room in ("models", "techniques", "runtimes", "tables"):
        assert tuple(starter.names_on_disk(room)) == names(room)


@pytest.fixture
def without(monkeypatch):
    """`without(package)`: as if it were not installed."""

    def hidden(package):
        real = importlib.import_module

        def refused(name, *rest):
            if name == package:
                raise ImportError(f"No module named {name!r}")
            return real(name, *rest)

        monkeypatch.setattr(importlib, "import_module", refused)

    return hidden


def test_a_whole_installation_is_ready():
    found = starter.doctor()
    assert found["can_serve"]
    assert found["can_optimize"]
    text = starter.doctor_text(found)
    assert "ready to serve: yes; ready to optimize: yes" in text
    assert "MISSING" not in text
    assert text.splitlines()[-1] == "next: recfit init --data YOUR_EVENTS.csv"
    assert found["machine"]["cpu"] in text


def test_a_serving_installation_can_serve_and_is_told_how_to_optimize(without):
    without("implicit")
    found = starter.doctor()
    assert found["can_serve"]
    assert not found["can_optimize"]
    text = starter.doctor_text(found)
    assert "implicit           MISSING; pip install 'recfit[train]'" in text
    assert text.splitlines()[-1] == "next: pip install 'recfit[train]'"


def test_a_broken_installation_can_do_neither(without):
    without("prometheus_client")
    found = starter.doctor()
    assert (found["can_serve"], found["can_optimize"]) == (False, False)
    assert "prometheus-client  MISSING; pip install recfit\n" in starter.doctor_text(found)
