"""Files of a saved model, and digests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from recfit import models
from recfit.models import Catalogue, Model
from recfit.types import ConfigError

Make = Callable[[str], Model]


def test_features_come_back(make: Make, tmp_path: Path) -> None:
    model = make("neumf-features")
    models.save(model, tmp_path)
    again = models.load(tmp_path).catalogue.item_features
    assert again is not None
    assert again.names == ("genre.0", "genre.1", "decade")
    assert again.sizes == (5, 5, 5)
    np.testing.assert_array_equal(again.codes, model.catalogue.item_features.codes)  # type: ignore[union-attr]


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no model.json, so it is not a saved model"):
        models.load(tmp_path)


def test_a_newer_format_is_refused(make: Make, tmp_path: Path) -> None:
    models.save(make("popularity"), tmp_path)
    described = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**described, "format": 99}))
    with pytest.raises(ConfigError, match="model format 99, known up to 1"):
        models.load(tmp_path)


def test_the_fingerprint_sees_every_weight_and_setting(make: Make, catalogue: Catalogue) -> None:
    model = make("sasrec")
    before = models.fingerprint(model)
    assert models.fingerprint(make("sasrec")) == before
    with torch.no_grad():
        model.leave.add_(1e-6)  # type: ignore[attr-defined]
    assert models.fingerprint(model) != before
    other = models.rebuilt(model, model.config)
    assert models.fingerprint(other) != before
    assert models.fingerprint(models.build("popularity", {}, catalogue)) != models.fingerprint(make("popularity"))
