"""Batches that are drawn while the ones before them are trained on."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.training import train_loop


def test_the_next_batch_is_drawn_while_the_last_one_is_used() -> None:
    drawn = [threading.Event() for _ in range(4)]

    def batches() -> Iterator[Any]:
        for number, event in enumerate(drawn):
            event.set()
            yield number

    taken = []
    for batch in train_loop.drawn_ahead(batches()):
        taken.append(batch)
        assert all(event.wait(30) for event in drawn[: batch + 2])
    assert taken == [0, 1, 2, 3]


def test_what_drawing_raises_is_raised_at_its_batch() -> None:
    def batches() -> Iterator[Any]:
        yield 0
        raise ValueError("the second one")

    ahead = train_loop.drawn_ahead(batches())
    assert next(ahead) == 0  # type: ignore[comparison-overlap]
    with pytest.raises(ValueError, match="the second one"):
        next(ahead)
