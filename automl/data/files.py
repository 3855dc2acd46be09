"""The image files below a folder, found without ever leaving it.

Nothing else turns a name into a path: a CSV's image names are matched against what is listed
here, so a name that climbs out of the folder can only fail to match.
"""

import os
import re
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from automl.data.images import ALL_EXTENSIONS
from automl.records import Finding

# Files that lie beside images everywhere and are never images: not worth a word.
SILENT = {".csv", ".tsv", ".txt", ".md", ".json", ".yaml", ".yml", ".xml", ".html", ".py", ".ipynb"}
SILENT_NAMES = {"license", "readme", "thumbs.db", "desktop.ini", "dicomdir"}


@dataclass(frozen=True)
class ImageFile:
    """One candidate; ``parts`` are its path below the root, as on disk."""

    path: Path
    parts: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name used in every output; see ``printable_name``."""
        return printable_name("/".join(self.parts))


def list_images(root: Path) -> tuple[list[ImageFile], list[Finding]]:
    """All files below ``root`` that may be images, sorted by name, and what was passed over.

    Hidden files and folders are skipped. Symbolic links are followed only if they lead to a file
    below ``root``. Only regular files count; files without an image's extension count if their
    content is DICOM.
    """
    root = root.resolve()
    files: list[ImageFile] = []
    refused: list[str] = []
    ignored: list[str] = []
    closed: list[str] = []

    def note_error(error: OSError) -> None:
        closed.append(relative_name(error.filename, root))

    for folder, folders, names in os.walk(root, onerror=note_error):
        visible = [name for name in sorted(folders) if not is_hidden(name)]
        folders[:] = [name for name in visible if not os.path.islink(os.path.join(folder, name))]
        refused += [
            relative_name(os.path.join(folder, name), root)
            for name in visible
            if name not in folders
        ]
        for name in names:
            if is_hidden(name) or name.casefold() in SILENT_NAMES:
                continue
            path = Path(folder, name)
            extension = path.suffix.lower()
            if path.is_symlink() and not stays_inside(path, root):
                refused.append(relative_name(path, root))
            elif not is_regular(path):
                ignored.append(relative_name(path, root))
            elif extension in ALL_EXTENSIONS or (extension not in SILENT and is_dicom(path)):
                files.append(ImageFile(path, path.relative_to(root).parts))
            elif extension not in SILENT:
                ignored.append(relative_name(path, root))
    files.sort(key=lambda file: file.name)
    return files, report_walk(refused, ignored, closed)


def report_walk(refused: list[str], ignored: list[str], closed: list[str]) -> list[Finding]:
    findings = []
    if refused:
        findings.append(
            Finding(
                "refused",
                "error",
                f"{len(refused):,} symbolic links were not followed: they lead out of the data "
                "folder, nowhere, or to a whole folder.",
                len(refused),
                tuple(sorted(refused)[:12]),
                "Copy the files into the folder, or name the real folder.",
            )
        )
    if closed:
        findings.append(
            Finding(
                "closed_folders",
                "error",
                f"{len(closed):,} folders cannot be read; what is in them is left out.",
                len(closed),
                tuple(sorted(closed)[:12]),
                "Give yourself read permission, and run again.",
            )
        )
    if ignored:
        findings.append(
            Finding(
                "ignored_files",
                "info",
                f"{len(ignored):,} files are not images of a supported format; ignored.",
                len(ignored),
                tuple(sorted(ignored)[:12]),
                "Convert them to PNG, JPEG, TIFF, BMP, WebP or DICOM if they belong to the data; "
                "of volumes (NIfTI), the slices that show what the label says.",
            )
        )
    return findings


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def stays_inside(link: Path, root: Path) -> bool:
    """Whether a symbolic link ends, at a place below ``root``."""
    try:
        return link.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):
        return False


def is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def is_dicom(path: Path) -> bool:
    """Whether the content is DICOM (Part 10: "DICM" after a preamble of 128 bytes)."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def relative_name(path: str | Path, root: Path) -> str:
    return printable_name(os.path.relpath(path, root).replace(os.sep, "/"))


def printable_name(name: str) -> str:
    r"""A file name that every output can hold: valid UTF-8, and one name for one file.

    Bytes that are not UTF-8 become ``\xff`` and the like. A name that already holds such an
    escape has its backslashes doubled, so that two files never share a name.
    """
    broken = any("\udc80" <= character <= "\udcff" for character in name)
    if broken or re.search(r"\\x[0-9a-f]{2}", name):
        name = name.replace("\\", "\\\\")
    if not broken:
        return name
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def fold(text: str) -> str:
    """How names and labels are compared: without case, composed Unicode, single blanks."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
