"""A ``.zip`` or ``.tar`` of images, read as it lies there: no image is unpacked on the disk."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import IO

from convscope.data.dataset import printable
from convscope.data.decode import BYTE_CAP, HEAD, SUFFIXES, ImageError, refusal, too_many_bytes
from convscope.data.sources.base import CHUNK, Finding, Index, Reader, Source, find, index_of, sign
from convscope.data.sources.folder import Listing, arrange, is_clutter
from convscope.data.sources.table import SUFFIXES_OF_TABLES, is_form
from convscope.errors import DataError, expected_got

SUFFIXES_OF_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# Bytes of image files that are in memory at a time.
CHUNK_BYTES = 64 * 2**20
# A larger table is no list of images and labels.
TABLE_BYTES = 64 * 2**20
_DAMAGED = (
    *(OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile),
    *(RuntimeError, ValueError),  # as zipfile has them for what its other errors do not cover
)
_WAYS_OF_PACKING = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
# Bits of the flags of a file in a ZIP (APPNOTE.TXT, 4.4.4).
_IS_ENCRYPTED, _SAYS_UTF8 = 0x1, 0x800
_UNPACK = "Unpack it, and give the folder."


@dataclass(frozen=True)
class _Member:
    """A file inside an archive; it can be opened until the next one is asked for, unless it is a link."""

    name: str
    open: Callable[[], IO[bytes] | None]
    is_link: bool = False

    def read(self, most: int) -> bytes:
        """Read at most so many bytes, whatever the archive says about its size."""
        stream = self.open()
        if stream is None:
            return b""
        with stream:
            return stream.read(most)


@dataclass(frozen=True)
class Archive:
    """What one pass through an archive has found: places of its files by name, beginnings, whole tables.

    Files with other ``readers``, by their endings, are not read in it.
    """

    path: Path
    readers: tuple[str, ...]
    places: dict[str, int]
    heads: dict[str, bytes]
    tables: dict[str, bytes]
    astray: list[str]
    links: list[str]

    @property
    def name(self) -> str:
        """The archive's name, without its endings."""
        return self.path.name.removesuffix(self.path.suffix).removesuffix(".tar")

    @property
    def not_read(self) -> list[str]:
        """Files with data that are read on a disk only."""
        return [
            printable(name)
            for name in self.places
            if name.lower().endswith(self.readers) and name not in self.tables and not is_form(Path(name))
        ]

    def unpack_tables(self, folder: Path) -> None:
        """Write the tables into an empty folder; one whose name the disk refuses is not read."""
        for name, content in self.tables.items():
            with suppress(OSError, ValueError):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)

    def by_folders(self) -> Source:
        """Find the images, their classes and their splits by their folders."""
        listing = Listing(str(self.path), list(self.places), lambda file: self.heads.get(file, b""))
        try:
            index, files, layout, findings = arrange(listing)
        except DataError as error:
            if not self.not_read:
                raise
            raise DataError(f"{error}\nIn an archive {self.not_read[0]} is not read. {_UNPACK}") from error
        return self._source(index, [self.places[file] for file in files], layout, findings)

    def by_table(self, found: Source) -> Source:
        """Take images and labels from a table of the archive, in the order in which the images lie there."""
        index, place_of = index_of(found), {printable(name): place for name, place in self.places.items()}
        if len(set(index.names)) < len(index):
            raise DataError(expected_got(f"each image once in {found.layout}", "some several times"))
        rows = [row for row, name in enumerate(index.names) if name in place_of]
        rows.sort(key=lambda row: place_of[index.names[row]])
        names = [index.names[row] for row in rows]
        chosen = Index(names, index.labels[rows], index.splits[rows], index.class_names)
        missing = sorted(set(index.names) - set(names))
        words, advice = "of the table not in the archive.", "Get the whole archive, or remove the rows."
        findings = [*found.findings, *find("missing", "error", missing, "image", words, advice)]
        return self._source(chosen, [place_of[name] for name in names], found.layout, findings)

    def _source(self, index: Index, places: list[int], layout: str, findings: list[Finding]) -> Source:
        findings = list(findings)
        words = "the folders or tables give the labels"
        for kind, severity, names, message, detail, advice in (
            ("astray", "error", self.astray, "not used", "leads out of the archive", "Do not unpack it."),
            ("link", "error", self.links, "not used", "only links to another", _UNPACK),
            ("unused_table", "warning", self.not_read, words, "not read in an archive", _UNPACK),
        ):
            text, details = f"of the archive: {message}.", [detail] * len(names)
            findings += find(kind, severity, names, "entry", text, advice, details)
        return Source(
            name=self.name,
            layout=f"an archive; {layout}",
            signature=sign(self.path.parent, [self.path.name]),
            index=index,
            chunks=partial(_chunks, self.path, places, index),
            findings=tuple(findings),
        )


def look_into(path: Path, readers: tuple[str, ...]) -> Archive:
    """Go through an archive once; only tables, and the beginnings of odd files, are read."""
    found = Archive(path, readers, {}, {}, {}, [], [])
    for place, member in enumerate(_members(path)):
        steps = member.name.split("/")
        name = "/".join(step for step in steps if step != ".")
        if any(is_clutter(step) for step in steps if step not in {".", ".."}):
            continue
        if member.name.startswith("/") or ".." in steps:
            found.astray.append(printable(member.name))
        elif member.is_link:
            found.links.append(printable(name))
        else:
            found.places.pop(name, None)  # of two with one name the last counts, as in unpacking
            found.places[name] = place
            with suppress(*_DAMAGED):  # whatever it was, it is no image
                if name.lower().endswith(SUFFIXES_OF_TABLES):
                    content = member.read(TABLE_BYTES + 1)
                    found.heads[name] = content[:HEAD]
                    if len(content) <= TABLE_BYTES:
                        found.tables[name] = content
                elif PurePosixPath(name).suffix.lower() not in SUFFIXES:
                    found.heads[name] = member.read(HEAD)
    return found


def _members(path: Path) -> Iterator[_Member]:
    """Go through the files of an archive: those of a ZIP by their names, those of a tar as they come."""
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                files = [
                    (name, info) for info in archive.infolist() if not (name := _name(info)).endswith("/")
                ]
                for name, info in sorted(files, key=itemgetter(0)):
                    _require_readable(path, info)
                    yield _Member(name, partial(archive.open, info))
        else:
            with tarfile.open(path, "r|*") as tape:
                for entry in tape:
                    if entry.isreg() or entry.issym() or entry.islnk():
                        yield _Member(entry.name, partial(tape.extractfile, entry), not entry.isreg())
    except _DAMAGED as error:
        found = str(error) or "one that is cut short"
        raise DataError(expected_got(f"{path} to be a whole archive", found, "Get it again.")) from error


def _name(info: zipfile.ZipInfo) -> str:
    """Name a file of a ZIP: some programs write UTF-8 without saying so, some of Windows backslashes."""
    name = info.filename
    if not info.flag_bits & _SAYS_UTF8:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _require_readable(path: Path, info: zipfile.ZipInfo) -> None:
    """Refuse a ZIP that Python cannot unpack."""
    if info.flag_bits & _IS_ENCRYPTED:
        raise DataError(expected_got(f"{path} to need no password", "an encrypted archive", _UNPACK))
    if info.compress_type not in _WAYS_OF_PACKING:
        expected = f"{path} to be packed by Deflate, bzip2 or LZMA"
        raise DataError(expected_got(expected, f"method {info.compress_type} of ZIP", _UNPACK))


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
