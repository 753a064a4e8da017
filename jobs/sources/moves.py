"""Where images and bundles lie by now that were moved since they were scored: rows name them as they were."""

from collections.abc import Iterable
from dataclasses import dataclass

from fcdd.errors import ConfigError, ImageError
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from fcdd.io.stored import looks_like_md5, plain_etag
from schemas import RunRecord


@dataclass(frozen=True, slots=True)
class Moves:
    """Old and new locations, the longest old one first: the most precise one counts."""

    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> "Moves":
        """Of texts OLD=NEW, where OLD has no "=". Raises ConfigError for another form, and for an OLD given twice."""
        pairs: dict[str, str] = {}
        for text in texts:
            old, sign, new = text.partition("=")
            if not (old and sign and new):
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
        """The location of what was at `uri`; the same where nothing was said of it."""
        for old, new in self.pairs:
            if uri == old or uri.startswith(f"{old}/"):
                return new + uri.removeprefix(old)
        return uri

    def record(self, record: RunRecord) -> RunRecord:
        """The record with its bundle where it lies by now; whether it is the same one its digest says."""
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
