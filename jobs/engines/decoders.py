"""The isolated decoders of this process."""

import functools

from fcdd.images import Limits, View
from fcdd.io.isolation import IsolatedDecoder
from fcdd.spares import Spares


@functools.lru_cache(maxsize=1)
def decoders(view: View, limits: Limits, timeout_s: float) -> Spares[IsolatedDecoder]:
    """One for each thread at work; they end when this process does, since their input ends."""
    return Spares(functools.partial(IsolatedDecoder, view, limits=limits, timeout_s=timeout_s))
