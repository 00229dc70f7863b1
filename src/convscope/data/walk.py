"""Every file below a folder, whatever links, names and permissions are met on the way; nothing is changed."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from convscope.data.findings import Finding, count
from convscope.data.names import printable
from convscope.errors import DataError, DataNotFoundError, sentence

# What systems and storage boxes leave in folders without asking, in lower case.
CLUTTER = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "picasa.ini", "__macosx", "__pycache__"),
    *(
        "$recycle.bin",
        "recycler",
        "recycled",
        "system volume information",
        "lost+found",
        "@eadir",
        "#recycle",
    ),
    *("@recycle", "@recently-snapshot", "network trash folder", "temporary items"),
}
# Nobody nests folders so deeply; what does is a loop in disguise.
DEEPEST = 32

_Identity = tuple[int, int]  # device and inode: what a file or folder is, whatever leads to it


@dataclass
class Walk:
    """What was found below a folder.

    Attributes
    ----------
    root : Path
        The folder.
    files : list of str
        Regular files relative to the root, in sorted order, as the operating system names them.
    signature : str
        SHA-256 over names, sizes and times: while it stays the same, nothing below has changed.
    newest : float
        When a file was last changed, in seconds since 1970.
    empty : list of str
        Folders with nothing inside.
    findings : list of Finding
        What could not be followed.
    """

    root: Path
    files: list[str] = field(default_factory=list)
    signature: str = ""
    newest: float = 0.0
    empty: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def walk(root: Path) -> Walk:
    """List every file below a folder; links are followed, except in circles.

    Hidden files and what operating systems leave behind are passed over.

    Parameters
    ----------
    root : Path
        A folder.

    Returns
    -------
    Walk
        Files and findings, in an order that depends on names only.

    Raises
    ------
    DataNotFoundError
        If there is no such folder.
    DataError
        If it cannot be read.
    """
    try:
        status = root.stat()
    except OSError as error:
        found = f"no folder at {root}"
        raise DataNotFoundError(sentence("a folder with images", found, "Check the path.")) from error
    walker = _Walker(root)
    try:
        walker.enter("", [(status.st_dev, status.st_ino)])
    except OSError as error:
        raise DataError(sentence(f"{root} to be readable", error.strerror or str(error))) from error
    return walker.result()


class _Walker:
    """Goes through folders, deepest first, remembering what it met."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._found: list[str] = []
        self._empty: list[str] = []
        self._digest = hashlib.sha256(os.fsencode(root.resolve()))
        self._newest = 0.0
        self._linked: set[_Identity] = set()
        self._problems: dict[str, list[tuple[str, str]]] = {}

    def enter(self, folder: str, ancestors: list[_Identity]) -> None:
        """Go through one folder; the ancestors tell a circle."""
        with os.scandir(self._root / folder) as entries:
            wanted = [entry for entry in entries if not is_clutter(entry.name)]
        if not wanted and folder:
            self._empty.append(folder)
        for entry in sorted(wanted, key=lambda entry: entry.name):
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                self._visit(entry, name, ancestors)
            except OSError as error:
                self._fail(name, error)

    def _visit(self, entry: os.DirEntry[str], name: str, ancestors: list[_Identity]) -> None:
        """Take in one entry of a folder."""
        status = entry.stat()
        if stat.S_ISREG(status.st_mode):
            self._found.append(name)
            self._newest = max(self._newest, status.st_ctime, status.st_mtime)
            times = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            self._digest.update(os.fsencode(name) + repr(times).encode())
        elif stat.S_ISDIR(status.st_mode):
            status = os.stat(entry.path)  # noqa: PTH116  on Windows an entry's own has no identity
            self._visit_folder(entry, name, (status.st_dev, status.st_ino), ancestors)
        else:
            self._note("unreadable", name, "neither a file nor a folder")

    def _visit_folder(
        self, entry: os.DirEntry[str], name: str, identity: _Identity, ancestors: list[_Identity]
    ) -> None:
        """Enter a folder, unless that leads in a circle or to where a link has led before."""
        if identity in ancestors or len(ancestors) > DEEPEST:
            self._note("symlink_loop", name, "leads back to a folder that contains it")
        elif entry.is_symlink() and identity in self._linked:
            self._note("repeated_link", name, "leads to a folder that another link leads to")
        else:
            if entry.is_symlink():
                self._linked.add(identity)
            self.enter(name, [*ancestors, identity])

    def _fail(self, name: str, error: OSError) -> None:
        """Note what the operating system refused."""
        if error.errno == errno.ELOOP:
            self._note("symlink_loop", name, "leads to itself")
        elif isinstance(error, FileNotFoundError):
            self._note("missing", name, "a link to nothing")
        else:
            self._note("unreadable", name, error.strerror or str(error))

    def _note(self, kind: str, name: str, detail: str) -> None:
        self._problems.setdefault(kind, []).append((printable(name), detail))
        self._digest.update(f"{kind} {name}".encode("utf-8", "surrogateescape"))

    def result(self) -> Walk:
        """Sum up."""
        findings = [_finding(kind, rows) for kind, rows in self._problems.items()]
        signature = self._digest.hexdigest()
        return Walk(self._root, sorted(self._found), signature, self._newest, self._empty, findings)


def is_clutter(name: str) -> bool:
    """Tell what is hidden, or left behind by an operating system."""
    return name.startswith(".") or name.lower() in CLUTTER


_WORDS = {
    "symlink_loop": ("leads in a circle", "Remove the link."),
    "repeated_link": ("leads to a folder that is already there", "Remove one of the links."),
    "missing": ("leads to nothing", "Remove the link, or restore what it should lead to."),
    "unreadable": ("cannot be read", "Change its permissions, or copy it again."),
}


def _finding(kind: str, rows: list[tuple[str, str]]) -> Finding:
    """Make the row of one kind of obstacle."""
    words, advice = _WORDS[kind]
    names, details = zip(*rows, strict=True)
    return Finding(kind, "error", f"{count(len(rows), 'entry')}: {words}.", advice, names, details)
