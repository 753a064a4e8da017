"""Things that one thread at a time may use."""

from itertools import count

from fcdd.spares import Spares


def test_who_needs_one_gets_one_that_nobody_else_has_and_a_spare_one_before_a_new_one() -> None:
    spares = Spares(count().__next__)
    with spares.one() as first:
        with spares.one() as second:
            assert first != second
        with spares.one() as again:
            assert again == second
    with spares.one() as last:
        assert last in (first, second)
