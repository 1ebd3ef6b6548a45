"""The root of the errors that a user can mend."""


class UserError(Exception):
    """Bad input; the message is one line that names the file or option and what to do.

    The command line shows that line and no traceback.
    """
