"""One night is scored by one process: who holds it, who may take it over, and who must stop."""

import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cluster.local_s3 import LocalS3
from fcdd.io import storage
from jobs.catalog import leases
from jobs.catalog.leases import LeaseLost, Owner
from jobs.shell.errors import LeaseHeld


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/lease" if request.param == "local" else request.getfixturevalue("prefix") + "/lease"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Owner:
    """A process of another machine."""
    return Owner.me("other").model_copy(update={"host": "far-away", "token": "x"})


def put(folder: str, number: int, owner: Owner) -> None:
    storage.write(f"{folder}/{number:06d}.json", owner.model_dump_json().encode())


def test_a_lease_that_was_released_is_nobodys_and_its_number_is_not_used_again(folder: str) -> None:
    for number in (1, 2):
        with leases.acquire(folder, "r") as lease:
            lease.check()
            holder = leases.state(folder)
            assert holder is not None
            assert (holder[0].run_id, lease._number) == ("r", number)
        assert leases.state(folder) is None
    assert [info.uri for page in storage.pages(folder) for info in page] == [f"{folder}/000002.json"]


def test_while_one_holds_it_another_is_told_who(folder: str, elsewhere: Owner) -> None:
    put(folder, 1, elsewhere)
    with pytest.raises(LeaseHeld, match=rf"process {elsewhere.pid} on far-away is scoring this night as run other"):
        leases.acquire(folder, "r").__enter__()


def test_a_process_of_this_machine_that_died_is_followed_at_once(folder: str) -> None:
    put(folder, 4, Owner.me("r").model_copy(update={"started": 1.0, "token": "dead"}))
    with leases.acquire(folder, "r") as lease:
        assert lease._number == 5


def test_silence_for_long_enough_is_death(folder: str, elsewhere: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, 1, elsewhere)
    monkeypatch.setattr(leases, "TTL_S", 1.5)
    with pytest.raises(LeaseHeld):
        leases.acquire(folder, "r").__enter__()
    time.sleep(3)
    with leases.acquire(folder, "r") as lease:
        assert lease._number == 2


def test_heartbeats_keep_a_lease(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(leases, "TTL_S", 2.5)
    monkeypatch.setattr(Owner, "is_dead", lambda self: False)
    with leases.acquire(folder, "r"):
        time.sleep(4)
        assert leases.state(folder) is not None


def test_who_was_taken_for_dead_stops(folder: str, elsewhere: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.1)
    with leases.acquire(folder, "r") as lease:
        lease.check()
        lease.check_flag()
        put(folder, 2, elsewhere)
        with pytest.raises(LeaseLost, match="done by another process now"):
            lease.check()
        time.sleep(0.5)
        with pytest.raises(LeaseLost):
            lease.check_flag()
    # The other's lease is not touched.
    assert [info.uri for page in storage.pages(folder) for info in page] == [f"{folder}/000002.json"]


def test_a_lease_that_was_taken_over_and_given_back_is_lost_too(folder: str, elsewhere: Owner) -> None:
    with leases.acquire(folder, "r") as lease:
        put(folder, 1, elsewhere)  # the successor has gone, and a third one began with the same number
        with pytest.raises(LeaseLost):
            lease.check()
    assert [info.uri for page in storage.pages(folder) for info in page] == [f"{folder}/000001.json"]


@pytest.mark.parametrize("kept", [True, False])
def test_a_heartbeat_that_comes_late_brings_no_lease_back(folder: str, elsewhere: Owner, *, kept: bool) -> None:
    """Its process was stopped between the look at the lease and the heartbeat; the other is done meanwhile."""
    lease = leases._take(folder, Owner.me("r"), "at it as")
    if kept:  # the other one has released the same number, as it could before numbers were kept
        put(folder, 1, elsewhere.model_copy(update={"released": True}))
    else:
        storage.delete(f"{folder}/000001.json")
    with pytest.raises(FileExistsError if kept else FileNotFoundError):
        lease._replace(lease._owner)
    assert leases.state(folder) is None
    with pytest.raises(LeaseLost):
        lease.check()


def test_a_process_that_is_stopped_and_goes_on_does_not_get_its_lease_back(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process, stopped by SIGSTOP until another one took over and released."""
    code = (
        "import sys; from jobs.catalog import leases; leases.HEARTBEAT_S = 0.05\n"
        "with leases.acquire(sys.argv[1], 'r') as lease:\n"
        "    print('held', flush=True); sys.stdin.readline()\n"
        "    try: lease.check(); print('still mine')\n"
        "    except leases.LeaseLost: print('lost')\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    monkeypatch.setattr(leases, "TTL_S", 1.0)
    with subprocess.Popen([sys.executable, "-c", code, folder], **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(Owner, "is_dead", lambda self: False)
        time.sleep(2.5)
        with leases.acquire(folder, "other"):
            pass
        process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        assert process.communicate("\n")[0] == "lost\n"
    assert leases.state(folder) is None


def test_looking_writes_nothing(folder: str, elsewhere: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, 1, elsewhere)
    monkeypatch.setattr(storage, "write", None)
    holder = leases.state(folder, now=datetime.now(UTC))
    assert holder is not None
    assert holder[0].host == "far-away"


def test_of_many_that_take_over_one_wins(folder: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    put(folder, 1, Owner.me("r").model_copy(update={"started": 1.0}))

    def race(_: int) -> bool:
        try:
            leases._take(folder, Owner.me("r"), "at it as")
        except LeaseHeld:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(race, range(8))) == 1


def test_a_listing_that_fell_between_two_numbers_gives_nobody_a_second_lease(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is not listed at one moment: the old number may be gone by the time the new one is looked for."""
    with leases.acquire(folder, "first") as held:
        pages, blind = storage.pages, iter([True])
        monkeypatch.setattr(storage, "pages", lambda uri: [] if next(blind, False) else pages(uri))
        storage.write(f"{folder}/000007.json", storage.read(f"{folder}/000001.json"))
        storage.delete(f"{folder}/000001.json")
        with pytest.raises(LeaseHeld, match="another process has just begun"):
            leases._take(folder, Owner.me("second"), "at it as")
        assert [info.uri for page in pages(folder) for info in page] == [f"{folder}/000007.json"]
        held._number = 7


def test_a_lease_that_cannot_be_read_is_followed(folder: str) -> None:
    storage.write(f"{folder}/000001.json", b"{")
    with leases.acquire(folder, "r") as lease:
        assert lease._number == 2


@pytest.mark.s3
def test_the_age_is_measured_by_the_clock_of_the_store(s3: LocalS3, prefix: str, elsewhere: Owner) -> None:
    put(f"{prefix}/lease", 1, elsewhere)
    holder = leases.state(f"{prefix}/lease")
    assert holder is not None
    assert 0 <= holder[1] < 30
