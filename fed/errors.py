"""The reasons for which a client, or a whole run, ends early although the program has no defect."""

import signal


class Failed(Exception):
    """A client's failure, for which it is left out of the round; raised by all processes that train it together."""


class Refused(Failed):
    """A refusal at a node of what the server sent, whatever the data are; the server is told why."""


class CannotContinue(Exception):
    """The end of a run that has written all it did to the disk; the message gives the reason."""


class NotFinite(CannotContinue):
    """Global weights, or their log-probs, that are infinite or not a number."""


class TooFewClients(CannotContinue):
    """A round in which fewer clients than `min_fit_clients` succeeded."""


class CannotWrite(CannotContinue):
    """A disk that refuses a file which the run must write."""


class Stopped(BaseException):
    """The end of a run that a signal asked for; no mistake, so `except Exception` does not catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
