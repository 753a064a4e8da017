"""Which objects of a location are images, page by page; what is left out is counted by the rule that it fell under.

An image is an object with an image extension that is not hidden, that the selection does not leave out, and that we did
not write ourselves. Shared by training (whole lists in memory) and scoring (streams). Explicit lists: `_lists`.
"""

import fnmatch
import functools
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from fcdd import bundle, images
from fcdd.errors import ConfigError
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo, Unreadable
from schemas import Layout

# The rule for images that were written too late for the run.
NEWER = "newer"
# Not a rule of names: what an incremental listing found done.
SCORED_BEFORE = "scored before"
# What falls under these rules is an image all the same: its place is not empty.
_BY_TIME = ("older", NEWER)
# So many names that cannot be read are logged; all are counted.
_LOGGED = 20

log = logging.getLogger(__name__)


class Selection(BaseModel):
    """Which objects below a location are images of a run. In globs `*` also matches "/"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    include: tuple[str, ...] = Field((), description="globs of paths below the location; empty: all")
    exclude: tuple[str, ...] = ()
    extensions: tuple[str, ...] = images.EXTENSIONS
    modified_since: datetime | None = None
    modified_before: datetime | None = None

    @property
    def by_time(self) -> bool:
        """Whether it needs to know when an object was written."""
        return self.modified_since is not None or self.modified_before is not None

    def leaves_out(self, key: str, info: ObjectInfo, *, named: bool = False) -> str | None:
        """The rule by which an object, at `key` below its location, is no image of the run; None if it is one.

        What a list has `named` is never hidden, nor is what a glob of `include` spells out.
        """
        if isinstance(info, Unreadable):
            return "unreadable name"
        if not key.lower().endswith(self.extensions):
            return "extension"
        if not named and _HIDDEN.search(key) and not _matches(tuple(filter(_SPELLS_OUT.search, self.include)), key):
            return "hidden"
        if self.include and not _matches(self.include, key):
            return "not included"
        if self.exclude and _matches(self.exclude, key):
            return "excluded"
        if self.modified_since and info.last_modified < self.modified_since:
            return "older"
        if self.modified_before and info.last_modified >= self.modified_before:
            return NEWER
        return None


# Folders that start with "_" are those of engines and ours; cameras name files so: _MG_0001.JPG. In a key "." and ".."
# are names like any other.
_HIDDEN = re.compile(r"(?:^|/)(?:\.(?!\.?(?:/|$))|_[^/]*/)")
_SPELLS_OUT = re.compile(r"(?:^|/)[_.]")
# A mask that somebody drew in a review, and the picture that `fcdd train` leaves in a bundle.
_MASK = re.compile(r"/labels/collection=[^/]+/masks/[^/]+$")
_SHEET = re.compile(r"/calibration\.png$")


def _matches(globs: tuple[str, ...], key: str) -> bool:
    return any(_compiled(glob).match(key) for glob in globs)


@functools.cache
def _compiled(glob: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(glob))


class OwnFiles:
    """Which objects with an image's extension are ours: review masks in results, pictures in bundles.

    The store is asked only about places where a name looks like one of ours, once each.
    """

    def __init__(self) -> None:
        self._are_results = functools.lru_cache(4096)(_are_results)
        self._is_bundle = functools.lru_cache(4096)(_is_bundle)

    def contain(self, uri: str, prefix: str) -> bool:
        """Whether this object is of a bundle or results at `prefix` or below. Raises ConfigError without an answer."""
        for name, is_ours in ((_MASK, self._are_results), (_SHEET, self._is_bundle)):
            if found := name.search(uri):
                place = uri[: found.start()]
                return f"{place}/".startswith(f"{prefix}/") and is_ours(place)
        return False


def _are_results(location: str) -> bool:
    return any(info.uri.endswith(".json") for info in next(storage.pages(Layout(location).runs()), []))


def _is_bundle(location: str) -> bool:
    return all(storage.exists(storage.join(location, name)) for name in (bundle.SPEC_FILE, bundle.WEIGHTS_FILE))


def selected(
    prefix: str,
    page: Iterable[ObjectInfo],
    selection: Selection,
    skipped: Counter[str],
    own: OwnFiles | None = None,
) -> list[ObjectInfo]:
    """The images of a page; the others are counted in `skipped` by rule. Without `own` a list says what is an image.

    Paths are those below `prefix`; whole ones where a list names something elsewhere.
    """
    below, chosen = f"{prefix}/", []
    for info in page:
        rule = selection.leaves_out(info.uri.removeprefix(below), info, named=own is None)
        if rule is None and own is not None and own.contain(info.uri, prefix):
            rule = "our own files"
        if rule is None:
            chosen.append(info)
            continue
        skipped[rule] += 1
        if rule == "unreadable name" and skipped[rule] <= _LOGGED:
            log.warning("left out %s: no client can name or open it", storage.spelled(info.uri))
    return chosen


def of_another_time(skipped: Counter[str]) -> int:
    """How many of those left out are images all the same."""
    return sum(skipped[rule] for rule in _BY_TIME)


def list_images(prefix: str, selection: Selection = Selection()) -> list[ObjectInfo]:  # noqa: B008
    """All images under one location, sorted by URI, each once, in memory: for training.

    Raises ConfigError when there is none, or the location cannot be listed.
    """
    skipped: Counter[str] = Counter()
    own = OwnFiles()
    pages = (selected(prefix, page, selection, skipped, own) for page in storage.pages(prefix))
    found = {info.uri: info for page in pages for info in page}
    if not found:
        raise nothing_found((prefix,), skipped, selection)
    if skipped:
        log.info("skipped %s under %s", describe_counts(skipped), prefix)
    return [found[uri] for uri in sorted(found)]


def nothing_found(locations: Iterable[str], skipped: dict[str, int], selection: Selection) -> ConfigError:
    """The error of a listing without an image: what is there instead, and what to do."""
    locations = list(locations)
    advice = [_advice(location) for location in locations]
    if "hidden" in skipped:
        advice.append(
            'hidden is what starts with "." or lies in a folder that starts with "_"; `--include` with a glob that '
            "spells it out takes it"
        )
    if not skipped and not any(advice):
        advice.append("nothing at all is there: is the location right?")
    if set(skipped) <= {"extension"}:
        advice.append(f"expected files ending in {', '.join(selection.extensions)}")
    there = f"{sum(skipped.values())} other objects: {describe_counts(skipped)}"
    said = "".join(f"; {each}" for each in advice if each)
    return ConfigError(f"no images under {', '.join(map(storage.spelled, locations))} ({there}){said}")


def _advice(location: str) -> str:
    """What to give instead of a location that is a file, or looks like a pattern; "" for any other."""
    with suppress(ConfigError):
        if storage.exists(location):
            folder, _, name = location.rpartition("/")
            return f"{name!r} is a file: give its folder {folder} and `--include`, or `--image-list` with names in it"
    if wild := re.search(r"[*?\[]", location):
        folder = location[: wild.start()].rpartition("/")[0]
        return f"locations are not patterns: give {folder} and `--include` with the pattern"
    return ""


def describe_counts(skipped: dict[str, int]) -> str:
    """What was left out and how often, as text."""
    return ", ".join(f"{count} by rule {rule!r}" for rule, count in sorted(skipped.items())) or "nothing"


def digest(infos: Iterable[ObjectInfo]) -> str:
    """sha256 over (uri, etag, size) of every image, in order."""
    sha = hashlib.sha256()
    for info in infos:
        sha.update(digested(info.uri, info.etag, info.size))
    return sha.hexdigest()


def digested(uri: str, etag: str, size: int) -> bytes:
    """What `digest` sees of one image."""
    return f"{uri}\0{etag}\0{size}\n".encode()


def outermost(prefixes: Iterable[str]) -> list[str]:
    """The locations, sorted, without those below another one: nothing is listed twice."""
    kept: list[str] = []
    for prefix in sorted({storage.normalize(each) for each in prefixes}):
        if any(prefix.startswith(f"{outer}/") for outer in kept):
            log.info("left out %s: another location holds it", prefix)
        else:
            kept.append(prefix)
    return kept


def to_look_up(info: ObjectInfo) -> ObjectInfo:
    """The image, to be looked up when it is fetched, with what is known of it until then."""
    return info._replace(size=-1 - info.size)


def is_to_look_up(size: int) -> bool:
    """Whether a listed size says that the image is to be looked up."""
    return size < 0


def last_known(size: int) -> int:
    """The size that was known before; 0 if none was."""
    return -1 - size if size < 0 else size
