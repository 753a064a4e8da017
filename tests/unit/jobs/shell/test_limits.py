import os
import signal
import threading
import time

import pytest

from jobs.shell import limits


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_from_another_thread_until_that_helps(number: signal.Signals) -> None:
    """The handler of Python itself does nothing here, as if the main thread were in native code."""
    calls = list[str]()
    before = signal.signal(number, lambda *_: None)
    try:
        with limits.signals(lambda: calls.append(threading.current_thread().name)):
            os.kill(os.getpid(), number)
            until = time.monotonic() + 10
            while len(calls) < 2 and time.monotonic() < until:
                time.sleep(0.01)
        assert calls[:2] == ["signals", "signals"]
    finally:
        signal.signal(number, before)
    assert signal.set_wakeup_fd(-1) == -1  # as it was
    assert "signals" not in [thread.name for thread in threading.enumerate()]


def test_other_signals_and_other_threads_interrupt_nothing() -> None:
    calls = list[int]()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with limits.signals(lambda: calls.append(1)):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.3)
    finally:
        signal.signal(signal.SIGUSR1, before)

    def elsewhere() -> None:
        with limits.signals(lambda: calls.append(2)):
            pass

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert calls == []
