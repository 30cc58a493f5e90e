"""The last measurement, in words."""

import pytest

from recfit.search.final import gain


@pytest.mark.parametrize(("ratio", "said"), [(24.51, "24.5x lower"), (1.0, "1.0x lower"), (0.4, "2.5x higher")])
def test_a_ratio_says_which_way_it_goes(ratio, said):
    assert gain(ratio, "lower", "higher") == said
