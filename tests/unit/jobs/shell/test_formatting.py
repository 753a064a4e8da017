"""Numbers as people read them."""

import math

import pytest

from jobs.shell import formatting


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0%"), (0.001, "1%"), (0.5, "50%"), (0.995, "99%"), (0.9999, "99%"), (1, "100%"), (math.nan, "nan%")],
)
def test_a_share_is_all_or_none_only_where_it_is(value: float, shown: str) -> None:
    assert formatting.share(value) == shown
