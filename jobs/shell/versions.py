"""What a run or a bundle was made with, for its record."""

import platform
from importlib import metadata

import fcdd

OWN = "fcdd-at-scale"


# What makes images as small decides about every pixel.
_WHERE_THERE_IS_ONE = ("cykooz-resizer",)


def versions(*packages: str) -> dict[str, str]:
    """Versions of this software, of Python, and of these packages."""
    return {
        OWN: fcdd.__version__,
        **{name: metadata.version(name) for name in packages},
        **{name: metadata.version(name) for name in _WHERE_THERE_IS_ONE if _is_installed(name)},
        "python": platform.python_version(),
    }


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
