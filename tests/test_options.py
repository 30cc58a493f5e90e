"""Settings from TOML become configs; every mistake is named."""

from __future__ import annotations

from typing import Any

import pytest

from recfit import models
from recfit.models import Catalogue
from recfit.types import ConfigError

CATALOGUE = Catalogue(3, 4)

WRONG: list[tuple[str, dict[str, Any], str]] = [
    (
        "sasrec",
        {"layer": 2},
        r"model.sasrec has no setting 'layer' \(did you mean 'layers'\?\); allowed: layers, embedding",
    ),
    ("sasrec", {"layers": "2"}, r"model.sasrec.layers = '2'; it must be a whole number"),
    ("sasrec", {"layers": 2.0}, r"model.sasrec.layers = 2.0; it must be a whole number"),
    ("sasrec", {"layers": True}, r"model.sasrec.layers = True; it must be a whole number"),
    ("sasrec", {"layers": 0}, r"model.sasrec.layers = 0 is outside 1 to 64; set it within"),
    ("sasrec", {"dropout": 1.5}, r"model.sasrec.dropout = 1.5 is outside 0 to 0.95"),
    ("sasrec", {"ffn": [8, 0]}, r"model.sasrec.ffn = \(8, 0\) is outside 1 to 65536"),
    ("sasrec", {"ffn": [8, 1.5]}, r"model.sasrec.ffn\[1\] = 1.5; it must be a whole number"),
    ("sasrec", {"ffn": "wide"}, r"model.sasrec.ffn = 'wide'; it must be a whole number"),
    (
        "sasrec",
        {"layers": 3, "heads": [2, 1]},
        r"heads = \[2, 1\] for 3 layers; give one number, or one for each layer",
    ),
    ("mlp", {"features": 1}, r"model.mlp.features = 1; it must be true or false"),
    ("mlp", {"without": "genre"}, r"model.mlp.without = 'genre'; it must be a list"),
    ("mlp", {"without": [1]}, r"model.mlp.without\[0\] = 1; it must be a text in quotes"),
    ("itemknn", {"similarity": "cosin"}, r"similarity = 'cosin' \(did you mean 'cosine'\?\); allowed: cosine, tfidf"),
    ("ease", {"l2": 0}, r"model.ease.l2 = 0.0 is outside 0.001 to"),
    ("als", {"factors": 3}, r"model.als has no setting 'factors'.*; allowed: embedding_dim, alpha"),
    ("popularity", {"k": 3}, r"model.popularity has no setting 'k'; allowed: none"),
    ("custom", {}, r"model.custom needs the setting 'factory'; add it"),
    ("sasrek", {}, r"no model named 'sasrek'; did you mean 'sasrec'\?"),
]


@pytest.mark.parametrize(("kind", "options", "message"), WRONG)
def test_a_wrong_setting_is_named(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        models.build(kind, options, CATALOGUE)


def test_ints_count_as_floats_and_lists_as_tuples() -> None:
    config = models.build("mlp", {"dropout": 0, "without": ["a", "b"]}, CATALOGUE).config
    assert config.dropout == 0.0
    assert isinstance(config.dropout, float)
    assert config.without == ("a", "b")
