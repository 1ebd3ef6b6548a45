"""Names in a table that look alike: of people, cameras and splits."""

import re
import unicodedata
from collections.abc import Iterable

# Space, joiners and byte-order mark without any width, which spreadsheets and web pages leave.
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))


def plain(text: str) -> str:
    r"""The text composed (Unicode's NFC), without characters of zero width.

    >>> plain("jose\u0301\u200b") == "jos\u00e9"
    True
    """
    return unicodedata.normalize("NFC", text.translate(_INVISIBLE))


def alike(kind: str, names: Iterable[str]) -> list[str]:
    """A warning if names differ only by case, leading zeros or a trailing ``.0``; else empty.

    Args:
        kind: what is named, in the plural.
        names: each name once, sorted.

    >>> alike("cameras", ["01", "1", "2"])  # doctest: +NORMALIZE_WHITESPACE
    ["1 cameras differ from another only by case, leading zeros or a trailing .0, such as '01' and
    '1'; if they are the same, give them one name"]
    """
    first: dict[str, str] = {}
    pairs = [
        (first[key], name) for name in names if first.setdefault(key := _key(name), name) != name
    ]
    if not pairs:
        return []
    one, other = pairs[0]
    return [
        f"{len(pairs):,} {kind} differ from another only by case, leading zeros or a trailing .0, "
        f"such as {one!r} and {other!r}; if they are the same, give them one name"
    ]


def _key(name: str) -> str:
    """What names that look alike have in common.

    >>> _key("Cam007"), _key("3.0"), _key("100"), _key("1.05")
    ('cam7', '3', '100', '1.05')
    """
    return re.sub(r"(?<![\d.])0+(?=\d)", "", re.sub(r"(?<=\d)\.0$", "", name.casefold()))
