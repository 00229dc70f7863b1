"""Downloads: the only outbound network of the package.

A file is downloaded into a temporary folder inside the cache, its decompressed content is held against a
SHA-256, and only then it is renamed into place, so that several processes may fetch at once and a broken
download is never mistaken for the data.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

from convscope.data.cache import disk_errors_named, scratch_folder
from convscope.data.formats import decompress
from convscope.errors import DataError, DataNotFoundError, sentence

CONNECT_AND_READ_SECONDS = (5, 60)


def verify(content: bytes, sha256: str, source: str) -> bytes:
    """Return the content if it is the expected one.

    Parameters
    ----------
    content : bytes
        Decompressed content of a file.
    sha256 : str
        The digest that it must have, in hexadecimal.
    source : str
        The file's name, for messages.

    Raises
    ------
    DataError
        If the digest differs.

    Examples
    --------
    >>> verify(b"", hashlib.sha256().hexdigest(), "empty")
    b''
    """
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        expected = f"{source} to have the SHA-256 {sha256[:12]}…"
        raise DataError(
            sentence(expected, f"{found[:12]}…", "The file is damaged or another one; get it again.")
        )
    return content


def fetch(filename: str, mirrors: Sequence[str], sha256: str, folder: Path) -> Path:
    """Download a file from the first mirror that serves the expected content.

    Parameters
    ----------
    filename : str
        The file's name, below each mirror's address and in the folder.
    mirrors : sequence of str
        Addresses, each ending in a slash, tried in turn.
    sha256 : str
        Digest of the decompressed content, in hexadecimal.
    folder : Path
        Where the file will lie, in the cache; made if needed.

    Returns
    -------
    Path
        The file in the folder.

    Raises
    ------
    DataNotFoundError
        If no mirror serves the expected content; the message says what each of them did.
    DataError
        If the cache cannot be written.

    Notes
    -----
    See ``convscope data fetch`` for the command.
    """
    import requests  # here, because most commands never download

    failures = []
    with disk_errors_named(), scratch_folder() as scratch:
        folder.mkdir(parents=True, exist_ok=True)
        for mirror in mirrors:
            try:
                return _fetch_once(mirror + filename, sha256, scratch, folder / filename)
            except (requests.RequestException, DataError) as error:
                failures.append(f"{mirror}: {_reason(error)}")
    raise DataNotFoundError(
        sentence(f"{filename} from one of {len(mirrors)} mirrors", "; ".join(failures), "Is there a network?")
    )


def _fetch_once(url: str, sha256: str, scratch: Path, target: Path) -> Path:
    """Download, verify, and rename into place."""
    with warnings.catch_warnings():
        # In a notebook without widgets, pooch's progress bar complains as it loads; it is never shown.
        warnings.filterwarnings("ignore", message="IProgress not found")
        import pooch

    pooch.get_logger().setLevel("ERROR")  # progress and failures are told by our own messages
    downloader = pooch.HTTPDownloader(timeout=CONNECT_AND_READ_SECONDS)
    # The hash is that of the content, which the compressed bytes do not determine: it is checked below.
    arrived = Path(
        pooch.retrieve(url, known_hash=None, fname=target.name, path=scratch, downloader=downloader)
    )
    try:
        verify(decompress(arrived.read_bytes(), target.name), sha256, target.name)
        arrived.replace(target)
    finally:
        arrived.unlink(missing_ok=True)
    return target


def _reason(error: Exception) -> str:
    """Shorten a failure to what a person needs to know."""
    import requests

    if isinstance(error, requests.ConnectionError):
        return "no connection"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    return str(error).splitlines()[0]
