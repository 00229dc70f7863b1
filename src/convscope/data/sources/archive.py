"""A ``.zip`` or ``.tar`` of folders of images, read as it lies there: nothing is unpacked on the disk."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from convscope.data.decode import BYTE_CAP, HEAD, SUFFIXES, ImageError, refusal, too_many_bytes
from convscope.data.sources.base import CHUNK, Finding, Index, Reader, Source, count, sign
from convscope.data.sources.folder import Listing, arrange, is_clutter
from convscope.errors import DataError, sentence

SUFFIXES_OF_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# Bytes of image files that are in memory at a time.
CHUNK_BYTES = 64 * 2**20
_DAMAGED = (
    *(OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile),
    *(RuntimeError, NotImplementedError, ValueError),  # of a ZIP that is encrypted, or packed in another way
)


@dataclass(frozen=True)
class _Member:
    """A file inside an archive; it can be opened until the next one is asked for."""

    name: str
    open: Callable[[], IO[bytes] | None]

    def read(self, most: int) -> bytes:
        """Read at most so many bytes, whatever the archive says about its size."""
        stream = self.open()
        if stream is None:
            return b""
        with stream:
            return stream.read(most)


def read_archive(path: Path) -> Source:
    """Find the images of an archive, their classes and their splits, as in a folder."""
    places: dict[str, int] = {}
    heads: dict[str, bytes] = {}
    astray: list[str] = []
    for place, member in enumerate(_members(path)):
        steps = member.name.split("/")
        if member.name.startswith("/") or ".." in steps or "\\" in member.name:
            astray.append(member.name)
        elif not any(is_clutter(step) for step in steps if step != "."):
            name = "/".join(step for step in steps if step != ".")
            places.pop(name, None)  # of two with one name the last counts, as in unpacking
            places[name] = place
            if PurePosixPath(name).suffix.lower() not in SUFFIXES:
                heads[name] = member.read(HEAD)
    listing = Listing(str(path), list(places), lambda file: heads.get(file, b""))
    index, files, layout, findings = arrange(listing)
    if astray:
        message = f"{count(len(astray), 'entry')} with a name that leads out of the archive: not used."
        findings.append(Finding("astray", "warning", message, "Do not unpack it.", tuple(astray)))
    return Source(
        name=path.name.removesuffix(path.suffix).removesuffix(".tar"),
        layout=f"an archive; {layout}",
        signature=sign(path.parent, [path.name]),
        index=index,
        chunks=partial(_chunks, path, [places[file] for file in files], index),
        findings=tuple(findings),
    )


def _members(path: Path) -> Iterator[_Member]:
    """Go through the files of an archive: those of a ZIP by their names, those of a tar as they come."""
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                for info in sorted(archive.infolist(), key=lambda info: info.filename):
                    if not info.is_dir():
                        yield _Member(info.filename, partial(archive.open, info))
        else:
            with tarfile.open(path, "r|*") as tape:
                for entry in tape:
                    if entry.isreg():
                        yield _Member(entry.name, partial(tape.extractfile, entry))
    except _DAMAGED as error:
        found = str(error) or "one that is cut short"
        raise DataError(sentence(f"{path} to be a whole archive", found, "Get it again.")) from error


def _chunks(path: Path, places: list[int], index: Index) -> Iterator[list[Reader]]:
    """Go through the archive once more, and give the images' bytes, some at a time."""
    names = dict(zip(places, index.names, strict=True))
    chunk: list[Reader] = []
    size = 0
    for place, member in enumerate(_members(path)):
        if place in names:
            found = _image(member, names[place])
            chunk.append(partial(_give, found))
            size += len(found) if isinstance(found, bytes) else 0
        if len(chunk) == CHUNK or size > CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _image(member: _Member, name: str) -> bytes | ImageError:
    """Read an image file, or say why it cannot be read."""
    try:
        raw = member.read(BYTE_CAP + 1)
    except _DAMAGED as error:
        return refusal("damaged", name, f"a damaged place in its archive ({error})", "Get it again.")
    return raw if len(raw) <= BYTE_CAP else too_many_bytes(name, len(raw))


def _give(found: bytes | ImageError) -> bytes:
    """Return the bytes, or raise why there are none."""
    if isinstance(found, ImageError):
        raise found
    return found
