"""Names in a table that look alike: of people, cameras and splits."""

import re
import unicodedata
from collections.abc import Iterable, Mapping

# Space, joiners and byte-order mark without any width, which spreadsheets and web pages leave.
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))

_DASHES = dict.fromkeys(range(0x2010, 0x2016), "-") | {0x2212: "-"}
# By which spreadsheets keep a number as text: '007, ="007".
_SHEET_TEXT = re.compile(r"""^['\u2018\u2019]|^="|"$""")
# Names that stand for nobody in particular; Market-1501 marks people to be ignored by -1.
_NOBODY = re.compile(r"-1|-+|\?+|unk|unknown|undefined|unlabell?ed|nobody|junk|n\.a\.|_+|\.+")


def plain(text: str) -> str:
    r"""The text composed (Unicode's NFC), without characters of zero width.

    >>> plain("jose\u0301\u200b") == "jos\u00e9"
    True
    """
    return unicodedata.normalize("NFC", text.translate(_INVISIBLE))


def alike(kind: str, names: Iterable[str]) -> list[str]:
    """A warning if names differ only in ways that tools change them; else empty.

    These are case, spaces, kinds of hyphens, full-width characters, leading zeros, a trailing
    ``.0``, and the apostrophe or ``="…"`` by which spreadsheets keep a number as text.

    Args:
        kind: what is named, in the plural.
        names: each name once, sorted.

    >>> alike("cameras", ["01", "1", "2"])  # doctest: +NORMALIZE_WHITESPACE
    ["1 cameras differ from another only by case, spaces, leading zeros or the like, such as '01'
    and '1'; if they are the same, give them one name"]
    """
    first: dict[str, str] = {}
    pairs = [
        (first[key], name) for name in names if first.setdefault(key := _key(name), name) != name
    ]
    if not pairs:
        return []
    one, other = pairs[0]
    return [
        f"{len(pairs):,} {kind} differ from another only by case, spaces, leading zeros or the "
        f"like, such as {one!a} and {other!a}; if they are the same, give them one name"
    ]


def placeholders(images: Mapping[str, int]) -> list[str]:
    """A warning if identities have names for people who are not known; else empty.

    Args:
        images: identity → number of its images in training and query splits.

    >>> placeholders({"-1": 57, "anna": 4})  # doctest: +NORMALIZE_WHITESPACE
    ["identity '-1' (57 images) is one person here; if it marks people who are not known, leave its
    lines out of train and query"]
    """
    return [
        f"identity {name!r} ({count:,} images) is one person here; if it marks people who are not "
        "known, leave its lines out of train and query"
        for name, count in images.items()
        if _NOBODY.fullmatch(_key(name))
    ]


def _key(name: str) -> str:
    """What names that look alike have in common.

    >>> _key("Cam007"), _key("3.0"), _key("100"), _key("1.05")
    ('cam7', '3', '100', '1.05')
    >>> _key("'007"), _key('="7"'), _key("\uff10\uff17"), _key("Anna\u00a0 B")
    ('7', '7', '7', 'anna b')
    """
    name = " ".join(unicodedata.normalize("NFKC", name).casefold().translate(_DASHES).split())
    name = re.sub(r"(?<=\d)\.0$", "", _SHEET_TEXT.sub("", name))
    return re.sub(r"(?<![\d.])0+(?=\d)", "", name)
