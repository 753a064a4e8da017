"""What a run or a bundle was made with, for its record."""

import platform
from importlib import metadata

import fcdd

OWN = "fcdd-at-scale"


def versions(*packages: str) -> dict[str, str]:
    """Versions of this software, of Python, and of these packages."""
    return {
        OWN: fcdd.__version__,
        **{name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
    }
