"""How a fault reaches the user: one clear line, as a Dagster Failure."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import dagster as dg

from montage_assets.media.errors import FfmpegFailed, MediaError

_SYSTEM_FAULTS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EROFS: "the file system is read-only",
}


@contextlib.contextmanager
def plain_failures() -> Iterator[None]:
    """Turn what a user can mend into a Failure of one line; let programming errors through as they are.

    The metadata `input` marks faults in the user's files or settings, which no retry mends.
    """
    try:
        yield
    except FfmpegFailed as error:
        raise dg.Failure(str(error), metadata={"log": error.log}, allow_retries=error.from_outside) from None
    except MediaError as error:
        raise dg.Failure(str(error), metadata={"input": True}, allow_retries=False) from None
    except OSError as error:
        fault = describe_system_fault(error)
        if fault is None:
            raise
        raise dg.Failure(fault, allow_retries=False) from None


def describe_cause(error: BaseException) -> str | None:
    """One line for an error that a fault of disk or rights is behind, however deep; None for any other."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and (fault := describe_system_fault(cause)):
            return fault
        if "database or disk is full" in str(cause):  # SQLite keeps the error number to itself
            return "the disk is full; free some space and run again: finished work is kept"
        cause = cause.__cause__ or cause.__context__
    return None


def describe_system_fault(error: OSError) -> str | None:
    """One line for a fault of disk or rights that the user can mend; None for any other."""
    fault = _SYSTEM_FAULTS.get(error.errno or 0)
    if fault is None:
        return None
    where = f" at {error.filename}" if error.filename else ""
    cure = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check who may write there"
    return f"{fault}{where}; {cure} and run again: finished work is kept"
