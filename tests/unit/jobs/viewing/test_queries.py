"""Which images stand for others that look alike."""

from datetime import date

import numpy as np
import pyarrow as pa

from fcdd import heatmap
from jobs.viewing import queries

NIGHT, NEXT = date(2026, 11, 24), date(2026, 11, 25)


def rows(nights: list[date], seeds: list[int]) -> pa.Table:
    """Images that look alike where their seeds are the same."""
    maps = np.stack([np.random.default_rng(seed).random((8, 12), np.float32) for seed in seeds])
    hashes = [np.random.default_rng(seed).bytes(32) for seed in seeds]
    return pa.table(
        {
            "date": nights,
            "image_uri": [str(number) for number in range(len(seeds))],
            "image_hash": pa.array(hashes, pa.binary()),
            "heatmap": pa.array(heatmap.encode_each(maps), pa.binary()),
        }
    )


def test_images_of_different_nights_do_not_stand_for_each_other() -> None:
    assert queries.alike(rows([NIGHT, NEXT, NIGHT, NIGHT], [1, 1, 1, 2])).tolist() == [0, 1, 0, 3]


def test_the_worst_of_those_that_look_alike_is_shown_or_all_of_them() -> None:
    given = rows([NIGHT] * 4, [1, 2, 1, 1])
    worst = queries.with_duplicates_counted(given, 9, all_shown=False)
    assert (worst.rows["image_uri"].to_pylist(), worst.rows["num_alike"].to_pylist()) == (["0", "1"], [3, 1])
    every = queries.with_duplicates_counted(given, 3, all_shown=True)
    assert (every.rows["image_uri"].to_pylist(), every.rows["num_alike"].to_pylist()) == (["0", "1", "2"], [3, 1, 3])
    assert [(each.num_groups, each.num_images) for each in (worst, every)] == [(2, 4)] * 2
