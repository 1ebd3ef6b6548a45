"""The root of the errors that a user can mend, and how a full disk is known."""

import errno
import os

_FULL = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]


class UserError(Exception):
    """Bad input; the message is one line that names the file or option and what to do.

    The command line shows that line and no traceback.
    """


class DiskFullError(UserError):
    """There was no room for a file; the message says what is safe."""


def full_disk(error: BaseException | None) -> str | None:
    """The system's words if an error, or one that led to it, comes of a full disk; else None.

    Libraries wrap the system's error in types of their own, but keep its words.
    """
    while error is not None:
        for words in _FULL:
            if words in str(error):
                return words.lower()
        error = error.__cause__ or error.__context__
    return None
