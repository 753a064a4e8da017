"""What one run of scoring, or a night, is to do and may cost: plain values, built once from a command's options."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

from fcdd.images import Limits
from fcdd.runtime import Runtime
from jobs.scoring.manifests import Source

# So many unreadable images are no sign of a wrong place, however few there are.
FEW_UNREADABLE = 3
# So few alarms are never too many.
FEW_ALARMS = 10
# So far back missed nights are caught up, and notifications that did not get through are repeated.
CATCH_UP_DAYS = 60
# In a location of images: becomes the night.
DATE_PLACEHOLDER = "{date}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreOptions:
    """The options of one run, in the types that the engine works with.

    What the run is to do (rates, runtime) is fixed in its intent when it begins; an attempt that goes on with it takes
    those values from there.
    """

    bundle: str
    results: str
    collection: str
    day: date
    source: Source
    # None: the false-alarm rate that the bundle was calibrated for.
    alpha: float | None
    fdr: float
    runtime: Runtime
    limits: Limits
    # Seconds that an image may take to decode.
    image_timeout_s: float
    max_quarantine_share: float
    max_quarantine: int | None
    rescore: bool
    # Scoring processes; None: what the cluster has; 0: in this process, without Ray.
    workers: int | None
    # None: a GPU for each where the cluster has any.
    gpu: bool | None
    # Who decodes JPEGs; "auto": GPUs where the network is on them.
    decode: Literal["auto", "cpu", "gpu"]
    cluster_wait_s: float
    # What the commit record says of the options of the command, by their names.
    recorded: Mapping[str, Any]

    def quarantine_limit(self, images: int) -> int:
        """How many of so many images may be quarantined."""
        limit = max(FEW_UNREADABLE, int(self.max_quarantine_share * images))
        return limit if self.max_quarantine is None else min(limit, self.max_quarantine)


@dataclass(frozen=True, kw_only=True, slots=True)
class NightlyOptions:
    """The options of a nightly command; a run is made of the `ScoreOptions` of each night."""

    results: str
    collection: str
    day: date
    # Locations of images; DATE_PLACEHOLDER in one becomes the night.
    images: tuple[str, ...]
    of_night: Callable[[date], ScoreOptions]
    alpha: float | None
    fdr: float
    catch_up: bool
    max_alarm_share: float
    max_alarms: int | None
    # Whether drift and too many alarms have exit codes of their own.
    verdict_codes: bool
    webhook: str | None = field(repr=False)
    command: str | None = field(repr=False)

    def alarm_limit(self, images: int) -> int:
        """How many alarms of so many images are no reason for another exit code."""
        return max(FEW_ALARMS, int(self.max_alarm_share * images)) if self.max_alarms is None else self.max_alarms

    def images_of(self, night: date) -> list[str]:
        """The locations of the images of a night."""
        return [place.replace(DATE_PLACEHOLDER, night.isoformat()) for place in self.images]

    def folders_of(self, night: date) -> list[str]:
        """Those of one night alone: the cameras may have been off, so they need not be there."""
        return [
            place.replace(DATE_PLACEHOLDER, night.isoformat()) for place in self.images if DATE_PLACEHOLDER in place
        ]
