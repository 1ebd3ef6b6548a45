"""The error of a data set, pose file or table that cannot be used."""

from pgfl_jax.errors import UserError


class DataError(UserError):
    """Unusable data; the message names the file or option and says what to do."""
