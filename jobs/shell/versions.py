"""What a run or a bundle was made with, for its record."""

import platform
from importlib import metadata

OWN = "fcdd-at-scale"


def versions(*packages: str) -> dict[str, str]:
    """Versions of this software, of Python, and of these packages.

    On a cluster this software may be there as the files of a job, without having been installed.
    """
    try:
        own = metadata.version(OWN)
    except metadata.PackageNotFoundError:
        own = "not installed"
    return {OWN: own, **{name: metadata.version(name) for name in packages}, "python": platform.python_version()}
