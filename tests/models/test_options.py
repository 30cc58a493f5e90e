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
    ("sasrec", {"layers": "2"}, r"model.sasrec.layers = '2' is a str; it must be a int"),
    ("sasrec", {"layers": 2.0}, r"model.sasrec.layers = 2.0 is a float; it must be a int"),
    ("sasrec", {"layers": True}, r"model.sasrec.layers = True is a bool; it must be a int"),
    ("sasrec", {"layers": 0}, r"model.sasrec.layers = 0 is outside 1 to 64; set it within"),
    ("sasrec", {"dropout": 1.5}, r"model.sasrec.dropout = 1.5 is outside 0 to 0.95"),
    ("mlp", {"features": 1}, r"model.mlp.features = 1 is a int; it must be a bool"),
    ("mlp", {"without": "genre"}, r"model.mlp.without = 'genre' is a str; it must be a tuple"),
    ("mlp", {"without": [1]}, r"model.mlp.without = 1 is a int; it must be a str"),
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
