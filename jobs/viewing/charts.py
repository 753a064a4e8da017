"""What charts are made of, in units of their drawing: bars, lines, and axes whose ticks are round numbers."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Points of a line; more are not seen.
_POINTS = 400
# Units that a number beside an axis takes.
_ROOM = 36


class Bar(NamedTuple):
    """A bar of a chart; `title` is what it says."""

    x: float
    y: float
    width: float
    height: float
    title: str
    kind: str = ""


class Tick(NamedTuple):
    """A mark of an axis: where it is along the axis, and the number beside it."""

    at: float
    text: str


def round_values(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def ticks(low: float, high: float, length: float, *, count: int = 5, unit: str = "") -> list[Tick]:
    """Ticks of a linear axis from `low` at 0 to `high` at `length`, at most that many units long."""
    span = high - low or 1.0
    return [Tick(length * (value - low) / span, _text(value) + unit) for value in round_values(low, high, count)]


def ticks_and_ends(low: float, high: float, length: float, *, count: int) -> list[Tick]:
    """`ticks`, and numbers at both ends, from which the others keep away."""
    between = [tick for tick in ticks(low, high, length, count=count) if _ROOM <= tick.at <= length - _ROOM]
    return [Tick(0, f"{low:.3g}"), *between, Tick(length, f"{high:.3g}")]


def share_ticks(top: float, length: float) -> list[Tick]:
    """Ticks of an upright axis of shares, from 0 at `length` to `top` at 0, in per cent."""
    return [Tick(length - at, text) for at, text in ticks(0, 100 * top, length, count=4, unit=" %")]


def log_share_ticks(smallest: float, length: float) -> list[Tick]:
    """Ticks of an upright axis of shares, from `smallest` at `length` to all at 0, each a tenth of the one above."""
    powers = range(math.floor(-math.log10(smallest) + 1e-9) + 1)
    return [Tick(length * power / -math.log10(smallest), f"{_text(100 / 10**power)} %") for power in powers]


def line(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], size: float) -> str:
    """The points of a line in a square of `size`, from shares (0 to 1) to the right and up."""
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS)).round().astype(np.int64))
    return " ".join(f"{size * a:.1f},{size * (1 - b):.1f}" for a, b in zip(x[kept], y[kept], strict=True))


def name_ticks(names: Sequence[str], width: float, *, room: float) -> list[Tick]:
    """The names of bars of `width` under their middles; where one needs more `room`, only some, the last among them."""
    every = max(1, math.ceil(room / width))
    shown: Iterable[int] = range(len(names) - 1, -1, -every)
    return [Tick((index + 0.5) * width, names[index]) for index in shown]


def _text(value: float) -> str:
    """A round number without digits that arithmetic left behind."""
    return f"{value:.6g}" if value else "0"
