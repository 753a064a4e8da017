"""Where images and bundles lie by now that were moved since they were scored: rows name them as they were."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fcdd.errors import ConfigError, ImageError
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from fcdd.io.stored import looks_like_md5, plain_etag
from schemas import RunRecord

# What the new location begins like.
_BEFORE_A_LOCATION = re.compile(r"=(?=\w+://|/|\./|\.\./|~)")


@dataclass(frozen=True, slots=True)
class Moves:
    """Old and new locations, the longest old one first: the most precise one counts."""

    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> "Moves":
        """Of texts OLD=NEW. Raises ConfigError for another form, and for an OLD that is given twice.

        Where there are several "=", it is the one before what begins like a location.
        """
        pairs: dict[str, str] = {}
        for text in texts:
            signs = [each.start() for each in _BEFORE_A_LOCATION.finditer(text)] or [text.find("=")]
            old, new = text[: signs[0]], text[signs[0] + 1 :]
            if len(signs) > 1 or signs[0] < 1 or not new:
                raise ConfigError(f"--moved: expected OLD=NEW, two locations, got {text!r}")
            place = storage.normalize(old).rstrip("/")
            if place in pairs:
                raise ConfigError(f"--moved: {old} is given twice")
            pairs[place] = storage.normalize(new).rstrip("/")
        return cls(tuple(sorted(pairs.items(), key=lambda pair: -len(pair[0]))))

    def _names(self, uri: str) -> bool:
        """Whether something was said of it, also that it lies where it did, as a copy."""
        return any(uri == old or uri.startswith(f"{old}/") for old, _ in self.pairs)

    def __call__(self, uri: str) -> str:
        """The location of what was at `uri`; the same where nothing was said of it.

        Raises ImageError for a key of a store that would lead out of a folder: rows are data.
        """
        for old, new in self.pairs:
            if uri == old or uri.startswith(f"{old}/"):
                moved = new + uri.removeprefix(old)
                if new.startswith("file:") and storage.normalize(moved) != moved:
                    raise ImageError("forbidden", f"{uri} is no name of a file below {new}")
                return moved
        return uri

    def record(self, record: RunRecord) -> RunRecord:
        """The record with its bundle where it lies by now. That it is the same bundle is checked by its digest."""
        return record.model_copy(update={"bundle": self(record.bundle)})

    def image(self, info: ObjectInfo) -> ObjectInfo:
        """The object of an image as it is now: moved, or on a disk a copy of the same size and time in its old place.

        Raises ImageError as `storage.stat_checked`, and `changed` for a file of another size or MD5: another image.
        """
        uri = self(info.uri)
        if uri.startswith("file:"):  # no other try would find it, and a restored file has another ETag
            now = _on_disk(uri)
            if not self._names(info.uri):
                same = (now.size, now.last_modified) == (info.size, info.last_modified)
                return now if same else info
        elif not self._names(info.uri):
            return info
        else:
            now = storage.stat_checked(uri)
        before, after = plain_etag(info.etag), plain_etag(now.etag)
        differs = looks_like_md5(before) and looks_like_md5(after) and before != after
        if now.size != info.size or differs:
            raise ImageError("changed", f"{uri} ({now.size} bytes) is not what was scored ({info.size} bytes)")
        return now


def _on_disk(uri: str) -> ObjectInfo:
    try:
        return storage.stat(uri)
    except FileNotFoundError as error:
        where = "it is not there any more: deleted, or moved (then --moved OLD=NEW says where to)"
        raise ImageError("vanished", where) from error
    except ConfigError as error:
        raise ImageError("forbidden", str(error)) from error


NONE = Moves()
