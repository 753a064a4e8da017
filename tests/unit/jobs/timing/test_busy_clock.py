"""The clock of work that several threads do."""

import threading
import time

from jobs.timing.busy_clock import BusyClock


def test_time_that_several_threads_are_at_it_counts_once() -> None:
    clock, everybody = BusyClock(), threading.Barrier(4)

    def work() -> None:
        with clock.busy():
            everybody.wait()
            time.sleep(0.05)
            everybody.wait()

    began = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.05 <= clock.seconds() <= time.perf_counter() - began


def test_the_clock_stands_while_nobody_is_at_it_and_goes_on_while_somebody_is() -> None:
    clock = BusyClock()
    assert clock.seconds() == 0
    with clock.busy():
        first = clock.seconds()
        time.sleep(0.001)
        assert clock.seconds() > first
    stopped = clock.seconds()
    time.sleep(0.001)
    assert clock.seconds() == stopped
