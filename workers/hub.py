"""What errors of the hub and the network mean: a refusal, which a person must mend, or an outage, worth another try."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

from workers.errors import PrerequisiteError, TransientError

# What the hub's client lets through: its own errors, its HTTP library's and its transfer library's.
HUB_ERRORS = (OSError, httpx2.HTTPError, RuntimeError)
NETWORK_LIBRARIES = ("aiohttp", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3")
# Refusals that carry no HTTP status, as a type or, where a library tells them as a lost connection, in its words.
REFUSALS = ("DatasetNotFoundError", "OfflineModeIsEnabled")
ASKED_TO_WAIT = (408, 425, 429)  # of the 4xx, those that say to come back later


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def is_refusal(error: BaseException) -> bool:
    """Whether this error itself, not its causes, says no: not found, gated, not allowed, or told to stay offline."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in ASKED_TO_WAIT
    return any(name in f"{type(error).__name__}: {error}" for name in REFUSALS)


def is_outage(error: BaseException) -> bool:
    """Whether this error itself says that the network or the other side did not answer."""
    libraries = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    is_network = isinstance(error, ConnectionError | TimeoutError) or bool(libraries & set(NETWORK_LIBRARIES))
    return is_network and not is_refusal(error)


def hub_failure(what: str, error: BaseException) -> PrerequisiteError | TransientError:
    """What to raise when the hub did not deliver `what`."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if any(is_refusal(cause) for cause in causes(error)):
        return PrerequisiteError(
            f"the hub does not give {what} to this node: {reason}. Check that it exists; where it is gated, accept its "
            "terms on the hub and give every node a token: cluster.secrets.HF_TOKEN=<file on every node>, or "
            "`hf auth login` there"
        )
    return TransientError(
        f"the hub did not deliver {what}: {reason}. It is asked again by itself; if that does not help, check this "
        "node's network and proxy"
    )


@contextmanager
def data_set_of_hub(fingerprint: str) -> Iterator[None]:
    """Within it, what the hub does not deliver of a data set is raised as `hub_failure`; a full disk as it is."""
    try:
        yield
    except HUB_ERRORS as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise hub_failure(fingerprint, error) from error
