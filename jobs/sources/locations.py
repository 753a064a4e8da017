"""Which of the images that rows name may be opened: those below locations that the user, or the run, was given.

A row of a results table is data: whoever may write one could otherwise have any file that the reader may read, and so
put a private picture into a report.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fcdd.errors import ImageError
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from jobs.sources import moves as moving
from jobs.sources.moves import Moves
from schemas import RunRecord


@dataclass(frozen=True, slots=True)
class Locations:
    """Locations below which images may be opened, and where those lie by now that were moved."""

    places: tuple[str, ...]
    moves: Moves = moving.NONE

    @classmethod
    def of_records(
        cls, results: str, records: Sequence[RunRecord], given: Sequence[str] = (), moves: Moves = moving.NONE
    ) -> "Locations":
        """Where the runs found their images, and what the user adds by `--images` or says to have been `--moved`.

        The images of an explicit list may lie anywhere; without a location of the user's, those beside the list are
        opened. Records are data, too: results that are not local open no local image, unless the user names its place.
        """
        places = [storage.normalize(place) for place in given]
        local = storage.normalize(results).startswith("file:")
        for record in records:
            named = record.settings.get("images")
            found = [*record.images, *(named if isinstance(named, list) and all(map(_is_text, named)) else ())]
            if record.settings.get("image_list"):
                found += [place.rpartition("/")[0] for place in record.images]
            places += [place for place in map(storage.normalize, found) if local or not place.startswith("file:")]
        places += [place for pair in moves.pairs for place in pair]
        return cls(tuple(dict.fromkeys(places)), moves)

    def contains(self, uri: str) -> bool:
        """Whether an image lies below one of the locations."""
        named = storage.normalize(uri) if uri.startswith("file:") else uri  # on a disk ".." leads elsewhere
        return any(named.startswith(f"{place.rstrip('/')}/") for place in self.places)

    def find(self, info: ObjectInfo) -> ObjectInfo:
        """The object to open for a scored image. Raises ImageError as `check`, and as `Moves.image`."""
        self.check(info.uri)
        return self.moves.image(info)

    def check(self, uri: str) -> None:
        """Raises ImageError forbidden for an image that lies elsewhere."""
        if self.contains(uri):
            return
        known = ", ".join(self.places) or "none that may be opened"
        raise ImageError(
            "forbidden",
            f"it lies outside the locations of its run ({known}); to have it opened, add its location "
            "(--locations of report, review and evaluate, else --images)",
        )


def _is_text(value: object) -> bool:
    return isinstance(value, str)
