"""The base class of errors that a user can fix, and how to recognise a full disk."""

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
    """The system's message if a full disk caused this error or one behind it; else None.

    Libraries wrap the system's error in types of their own, but keep its message.
    """
    while error is not None:
        for words in _FULL:
            if words in str(error):
                return words.lower()
        error = error.__cause__ or error.__context__
    return None
