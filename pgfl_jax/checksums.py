"""Whether the files in a folder are still as they were written."""

import hashlib
import json
from pathlib import Path

DIGESTS = "digests.json"


def write(folder: Path) -> None:
    """Write ``digests.json``: the SHA-256 of every file in the subfolders of ``folder``.

    Files directly in ``folder`` are left out.
    """
    digests = {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in sorted(folder.glob("*/**/*"))
        if path.is_file()
    }
    (folder / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


def find_damage(folder: Path) -> str | None:
    """Name the first file that differs from its checksum, and how.

    Args:
        folder: a folder that :func:`write` has been called on.

    Returns:
        The file and what is wrong with it; None if every file is as it was written.
    """
    try:
        digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        files = [(folder / name, name, digest) for name, digest in digests.items()]
    except FileNotFoundError:
        return f"{DIGESTS} is missing, as in checkpoints of older versions"
    except (ValueError, AttributeError):  # not JSON, or not an object
        return f"{DIGESTS} is unreadable"
    for path, name, digest in files:
        try:
            if sha256(path) != digest:
                return f"{name} is not as it was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:  # a bad disk
            return f"{name} cannot be read: {error.strerror}"
    return None


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
