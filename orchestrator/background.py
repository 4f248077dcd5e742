"""One thread for a view of the storage that may be slow or away, so that the driver's loop never waits for it."""

import threading
from collections.abc import Callable

LONG_SECONDS = 5.0


class Background:
    """Calls `work` in a thread of its own each time it is asked, one call at a time.

    Asked during a call, it calls once more. `again` is looked at after each call: seconds after which to call unasked,
    or null. What a call raises is forgotten when a later one succeeds, and else raised by `close`.
    """

    def __init__(self, work: Callable[[], object], again: Callable[[], float | None]) -> None:
        self._work = work
        self._again = again
        self._asked = threading.Event()
        self._closing = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="view", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Have `work` called soon; returns at once."""
        self._asked.set()

    def close(self, waiting: Callable[[], object]) -> None:
        """Call `work` a last time and wait until it has returned; `waiting` is called once if that takes long."""
        self._closing = True
        self._asked.set()
        self._thread.join(LONG_SECONDS)
        if self._thread.is_alive():
            waiting()
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        closing = False
        while not closing:
            self._asked.wait(self._again())
            self._asked.clear()
            closing = self._closing
            try:
                self._work()
                self._error = None
            except Exception as error:  # noqa: BLE001 (handed on to the thread that closes)
                self._error = error
