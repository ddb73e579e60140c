"""Why a client, or a whole run, ends early although the program has no defect."""

import signal


class Failed(Exception):
    """A client is left out of the round; raised by all processes that train it together."""


class CannotGoOn(Exception):
    """The run ends, with all that was done on the disk; the message says why."""


class TooFewClients(CannotGoOn):
    """Fewer clients than `min_fit_clients` succeeded in a round."""


class CannotWrite(CannotGoOn):
    """The disk does not take what a run has to keep."""


class Stopped(BaseException):
    """The run ends because it was asked to; no mistake, so no `except Exception` takes it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
