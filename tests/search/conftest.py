from collections.abc import Callable

import pytest
from made_study import BUDGET, Quality, base_quality, started

from recfit.search.study import Candidate, Study


@pytest.fixture
def base() -> Quality:
    return base_quality()


@pytest.fixture
def make(tmp_path) -> Callable[..., Study]:
    """`make(done(...), done(...))`: a study with the original `o` (p99 4 ms, 200 MB), `a` in PyTorch, and these."""

    def made(*found: tuple[Candidate, dict[str, Quality]], budget: dict = BUDGET, folder: str = "study") -> Study:
        study = started(tmp_path / folder, budget)
        for candidate, users in found:
            study.add(candidate, users)
        return study

    return made
