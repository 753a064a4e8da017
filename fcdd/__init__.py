"""Fully Convolutional Data Description: a pure library of bytes, arrays and tensors.

What is needed most can be imported from here, and is loaded when it is asked for, so that reading results does not
import torch:

    from fcdd import Detector
    prediction = Detector.load("data/bundle").predict("photo.png")

Results of runs are read by `jobs.results`. Read in this order: objective, networks, upsampling, outliers, training,
detector.
"""

from typing import TYPE_CHECKING

__all__ = [
    "BundleError",
    "BundleSpec",
    "ConfigError",
    "Detector",
    "FCDDError",
    "FCDDNetwork",
    "ImageError",
    "Prediction",
    "Region",
    "Runtime",
    "Scored",
    "__version__",
    "build",
]

if TYPE_CHECKING:
    from fcdd.bundle import BundleSpec
    from fcdd.detector import Detector, Prediction
    from fcdd.errors import BundleError, ConfigError, FCDDError, ImageError
    from fcdd.networks import FCDDNetwork, build
    from fcdd.regions import Region
    from fcdd.runtime import Runtime
    from fcdd.scores import Scored

    __version__: str
else:
    _HOMES = {
        "bundle": ("BundleSpec",),
        "detector": ("Detector", "Prediction"),
        "errors": ("BundleError", "ConfigError", "FCDDError", "ImageError"),
        "networks": ("FCDDNetwork", "build"),
        "regions": ("Region",),
        "runtime": ("Runtime",),
        "scores": ("Scored",),
    }

    def __getattr__(name):
        """Load what is asked for, once."""
        import importlib

        home = next((module for module, names in _HOMES.items() if name in names), None)
        if name == "__version__":
            from importlib import metadata

            try:
                value = metadata.version("fcdd-at-scale")
            except metadata.PackageNotFoundError:  # files of a job on a cluster, never installed
                value = "not installed"
        elif home:
            value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
