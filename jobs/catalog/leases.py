"""The lease on one night of a collection: of two runs at the same time, the second stops.

A lease is a numbered object, created if none of that number is there, and replaced as a heartbeat. The highest number
holds; it is taken over, by creating the next one, when its process has released it, is known to be dead, or its last
heartbeat is too old. A heartbeat replaces exactly the object that its process wrote last: one that comes late, of a
process that was stopped meanwhile, changes nothing. A released lease stays as a mark, so that its number is not used
again. Ages are differences of the store's own times, so clocks of machines do not matter. The lease saves work and
confusion; what keeps two runs from mixing is the conditional put of the commit record.
"""

import logging
import os
import re
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import NamedTuple

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from fcdd.errors import FCDDError
from fcdd.io import storage
from jobs.shell.errors import LeaseHeld

HEARTBEAT_S = 10.0
# Several heartbeats may get lost on the way before a run is taken for dead.
TTL_S = 60.0
# So long the end of a process waits for a store to take its lease back.
RELEASE_S = 10.0

# Whatever else lies among the leases is none.
_NAME = re.compile(r"([0-9]{6,12})\.json")

_JUST_BEGUN = "another process has just begun the same work; wait for it or stop it"

log = logging.getLogger(__name__)


class LeaseLost(FCDDError):
    """Another process took this run for dead and goes on with it."""


class Owner(BaseModel):
    """Who holds a lease, so exactly that another process of the same machine can find out whether it still lives."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    host: str
    pid: int
    started: float
    # Process ids mean something only where both are the same.
    boot: float
    namespace: str
    token: str
    released: bool = False

    @classmethod
    def me(cls, run_id: str) -> "Owner":
        """The owner that this process is."""
        process = psutil.Process()
        return cls(
            run_id=run_id,
            host=socket.gethostname(),
            pid=process.pid,
            started=process.create_time(),
            boot=psutil.boot_time(),
            namespace=_namespace(),
            token=uuid.uuid4().hex,
        )

    def is_dead(self) -> bool:
        """Whether it certainly does not run any more; False when this machine cannot know."""
        if (self.host, self.boot, self.namespace) != (socket.gethostname(), psutil.boot_time(), _namespace()):
            return False
        try:
            process = psutil.Process(self.pid)
            return process.create_time() != self.started or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """A lease that is held; `check` now and then, and before anything that cannot be undone."""

    def __init__(self, folder: str, number: int, owner: Owner) -> None:
        self._folder, self._number, self._owner = folder, number, owner
        self._etag = storage.stat(_uri(folder, number)).etag
        self._lost = threading.Event()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def check_flag(self) -> None:
        """`check` without asking the store: what the last heartbeat found out."""
        if self._lost.is_set():
            self.check()

    def check(self) -> None:
        """Raises LeaseLost when another process took over."""
        if self._lost.is_set() or not self._is_ours():
            self._lost.set()
            raise LeaseLost(f"run {self._owner.run_id} is done by another process now, which took this one for dead")

    def _is_ours(self) -> bool:
        """Whether nobody took over: neither with a higher number, nor, after giving that back, with this one."""
        return _highest(self._folder) <= self._number and self._is_there()

    def _is_there(self) -> bool:
        try:
            return storage.read(_uri(self._folder, self._number)) == self._owner.model_dump_json().encode()
        except FileNotFoundError:
            return False

    def start(self) -> None:
        """Start the thread that sends heartbeats."""
        self._thread.start()

    def release(self) -> None:
        """Give the lease back, so that another process can acquire it."""
        self._released.set()
        # A store that hangs would hold the end of the process for minutes; a lease also grows old by itself.
        thread = threading.Thread(target=self._give_back, name="lease release", daemon=True)
        thread.start()
        thread.join(RELEASE_S)

    def _give_back(self) -> None:
        self._thread.join()
        with suppress(FCDDError, OSError):
            if self._is_ours():
                self._replace(self._owner.model_copy(update={"released": True}))
            elif self._is_there():  # somebody took over, and keeps the number in use
                storage.delete(_uri(self._folder, self._number))

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            try:
                if not self._is_ours():
                    self._lost.set()
                    return
                self._replace(self._owner)
            except (FileNotFoundError, FileExistsError):
                self._lost.set()
                return
            except (FCDDError, OSError) as error:
                log.warning("no heartbeat could be written: %s", error)

    def _replace(self, owner: Owner) -> None:
        """Raises FileNotFoundError or FileExistsError when the object is not the one that this process wrote last."""
        uri = _uri(self._folder, self._number)
        self._etag = storage.replace(uri, owner.model_dump_json().encode(), self._etag)


@contextmanager
def acquire(folder: str, run_id: str, *, doing: str = "scoring this night as run") -> Iterator[Lease]:
    """Hold the lease at `folder`. Raises LeaseHeld when another process does and may be alive, and is `doing` that."""
    lease = _take(folder, Owner.me(run_id), doing)
    lease.start()
    try:
        yield lease
    finally:
        lease.release()


def state(folder: str, now: datetime | None = None) -> tuple[Owner, float] | None:
    """Who holds a lease and the seconds since the last heartbeat; None if nobody does, or it was given up.

    With `now`, a time of this machine, nothing is written to ask the store for its time.
    """
    found = _look(folder, now)
    return (found.owner, found.age) if found.owner else None


class _Found(NamedTuple):
    """The lease with the highest number, 0 if there is none; its owner, if it may be alive."""

    number: int
    owner: Owner | None
    age: float
    released: bool = False


def _take(folder: str, owner: Owner, doing: str) -> Lease:
    found = _look(folder)
    if found.owner:
        raise LeaseHeld(
            f"{found.owner} is {doing} {found.owner.run_id} (last heartbeat {found.age:.0f} s "
            "ago); wait for it or stop it. If it is dead, the same command takes over "
            f"{max(0, TTL_S - found.age):.0f} s from now"
        )
    number = found.number + 1  # exactly the next one: of several that saw the same, one succeeds
    try:
        storage.create(_uri(folder, number), owner.model_dump_json().encode())
    except FileExistsError as error:
        raise LeaseHeld(_JUST_BEGUN) from error
    if _highest(folder) != number:
        # The listing fell between the moment when the next number was created and that when the one before it was
        # deleted, and saw neither.
        with suppress(FCDDError):
            storage.delete(_uri(folder, number))
        raise LeaseHeld(_JUST_BEGUN)
    if found.number:
        if not found.released:
            log.info("took over from a run that died")
        with suppress(FCDDError):
            storage.delete(_uri(folder, found.number))
    return Lease(folder, number, owner)


def _look(folder: str, now: datetime | None = None) -> _Found:
    if not (number := _highest(folder)):
        return _Found(0, None, 0.0)
    try:
        info = storage.stat(_uri(folder, number))
        owner = Owner.model_validate_json(storage.read(info.uri))
    except FileNotFoundError:
        return _look(folder, now)  # given back or taken over meanwhile
    except ValidationError:
        return _Found(number, None, 0.0)
    if owner.released:
        return _Found(number, None, 0.0, released=True)
    age = ((now or store_time(folder)) - info.last_modified).total_seconds()
    return _Found(number, None if owner.is_dead() or age > TTL_S else owner, age)


def _highest(folder: str) -> int:
    names = (info.uri.rsplit("/", 1)[1] for page in storage.pages(folder) for info in page)
    return max((int(found[1]) for name in names if (found := _NAME.fullmatch(name))), default=0)


def _uri(folder: str, number: int) -> str:
    return f"{folder}/{number:06d}.json"


def store_time(folder: str) -> datetime:
    """The store's own time, by an object that is written into `folder` and deleted again."""
    probe = storage.join(folder, f"now-{uuid.uuid4().hex}")
    storage.write(probe, b"")
    moment = storage.stat(probe).last_modified
    with suppress(FCDDError):  # a policy may allow to write and not to delete
        storage.delete(probe)
    return moment


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
