"""What the operating system says about a directory, in words a person can act on."""

import contextlib
import errno
from collections.abc import Iterator

from workers.errors import PrerequisiteError

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
GONE = (errno.ENOENT, errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT)
KEPT = "then run the same command again; what was finished is kept"


@contextlib.contextmanager
def explained(what: str, otherwise: str) -> Iterator[None]:
    """Raise PrerequisiteError in place of an OSError. what: the directory and its part, as in `storage /data`;
    otherwise: what to do when it can never be used.
    """
    try:
        yield
    except OSError as error:
        path = str(error.filename2 or error.filename or "")  # the second: what something was to be renamed to
        where = what if not path or path in what.split() else f"{what}: {path}"
        reason = error.strerror or str(error)
        raise PrerequisiteError(f"{where}: {reason}; {_next_step(error.errno, otherwise)}") from error


def _next_step(code: int | None, otherwise: str) -> str:
    if code in FULL:
        return f"make room there (ptqbench gc lists checkpoints that no sweep needs), {KEPT}"
    if code in REFUSED:
        return f"make it writable, {KEPT}; or {otherwise}"
    if code in GONE:
        return f"see that it is there (is it mounted?), {KEPT}; or {otherwise}"
    return otherwise
