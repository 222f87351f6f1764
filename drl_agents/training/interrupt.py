"""Ctrl-C that finishes what is running instead of losing it."""

import os
import signal
import threading
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
MESSAGE = "finishing the trials that are running, press Ctrl-C again to stop at once"


class Interrupt:
    """Context manager that turns the first SIGINT or SIGTERM into a request.

    The first signal sets `requested` and prints one line to standard error; the work in progress looks at
    `requested` where it can end well. The second raises KeyboardInterrupt in the main thread; from then on
    signals act as they do by default. On exit the handlers that were there before are put back.

    Python delivers signals to the main thread only. In any other thread this does nothing, and `requested`
    stays False.

        with Interrupt() as interrupt:
            while not interrupt.requested:
                run_trials()
    """

    def __init__(self, message: str = MESSAGE) -> None:
        self.message, self.requested = message, False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for signum in STOP_SIGNALS:
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for signum, handler in self._previous.items():
            # None stands for a handler that was not installed from Python, and cannot be put back.
            if handler is not None:
                signal.signal(signum, handler)
        self._previous.clear()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            raise KeyboardInterrupt
        self.requested = True
        # Not print: the signal may have interrupted a print, and a buffered stream is not reentrant. A
        # terminal has just echoed ^C, so the line begins on a fresh one there.
        newline = "\n" if os.isatty(2) else ""
        os.write(2, f"{newline}{self.message}\n".encode())
