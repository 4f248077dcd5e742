"""The head of a Ray cluster, asked without Ray: Ray's own calls wait for it a minute and then end the process."""

import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from workers.errors import PrerequisiteError

T = TypeVar("T")

ANSWER_SECONDS = 5.0


class ClusterLostError(PrerequisiteError):
    """The Ray cluster went away while a sweep was running on it."""


def answers(address: str) -> bool:
    """Whether anything accepts connections at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def refuse_silence(address: str) -> None:
    """Raise ConnectionError when nothing accepts connections at `host:port`: Ray would try for a quarter of an hour.

    Any other form of address (auto) is left to Ray.
    """
    if address.rpartition(":")[2].isdecimal() and "://" not in address and not answers(address):
        raise ConnectionError("nothing accepts connections there")


def in_time(question: Callable[[], T], patience_seconds: float) -> T:
    """The answer to a question to Ray that only the head can answer.

    Raises ClusterLostError after `patience_seconds` without one: a head that goes down in the middle of a call leaves
    the caller waiting. The call is left behind on a thread of its own, which ends with the process.
    """
    answers: list[T] = []
    failures: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as error:  # noqa: BLE001  raised below, on the thread that asked
            failures.append(error)

    asking = threading.Thread(target=ask, name="question to Ray", daemon=True)
    asking.start()
    asking.join(patience_seconds)
    if failures:
        raise failures[0]
    if not answers:
        raise ClusterLostError(
            f"the head of the Ray cluster has not answered for {patience_seconds:.0f} s; start the cluster again if it "
            "is yours, then run the same command: what was finished is kept"
        )
    return answers[0]


def require_head(address: str, patience_seconds: float) -> None:
    """Return as soon as the head accepts connections. Raises ClusterLostError after `patience_seconds` without."""
    deadline = time.monotonic() + patience_seconds
    while not answers(address):
        if time.monotonic() >= deadline:
            raise ClusterLostError(
                f"the head of the Ray cluster at {address} does not answer any more; start the cluster again if it is "
                "yours, then run the same command: what was finished is kept"
            )
        time.sleep(1.0)
