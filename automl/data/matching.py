"""Which file a CSV means by an image name."""

import re
from collections import defaultdict

from automl.data.files import ImageFile, fold
from automl.data.images import ALL_EXTENSIONS


class FileIndex:
    """Finds files by name, with or without extension and folders, in any letter case."""

    def __init__(self, files: list[ImageFile]) -> None:
        self.by_name: dict[str, list[ImageFile]] = defaultdict(list)
        self.by_stem: dict[str, list[ImageFile]] = defaultdict(list)
        for file in files:
            name = fold(printable_part(file.parts[-1]))
            self.by_name[name].append(file)
            self.by_stem[strip_extension(name)].append(file)

    def find(self, value: str) -> list[ImageFile]:
        """Files that ``value`` may mean: one is a match, none is missing, more are ambiguous.

        Folders in ``value`` must be the last folders of the file's path. Of several candidates
        one at exactly this path wins, then one in exactly this letter case.
        """
        parts = [part for part in value.replace("\\", "/").split("/") if part not in ("", ".")]
        if not parts:
            return []
        folded = [fold(part) for part in parts]
        candidates = self.by_name.get(folded[-1]) or self.by_stem.get(folded[-1]) or []
        folders = folded[:-1]
        fitting = [
            file
            for file in candidates
            if not folders or [fold(p) for p in file.parts[:-1]][-len(folders) :] == folders
        ]
        for preferred in (
            [file for file in fitting if len(file.parts) == len(parts)] if folders else [],
            [file for file in fitting if file.parts[-1] == parts[-1]],
        ):
            if len(preferred) == 1:
                return preferred
        return fitting


def climbs_out(value: str) -> bool:
    """Whether an image name is absolute, a URL, or goes up: never looked for."""
    path = value.strip().replace("\\", "/")
    return (
        path.startswith(("/", "~"))
        or re.match(r"[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]+://", path) is not None
        or ".." in path.split("/")
    )


def strip_extension(name: str) -> str:
    """A folded file name without the extension of an image."""
    stem, dot, extension = name.rpartition(".")
    return stem if dot and "." + extension in ALL_EXTENSIONS else name


def printable_part(part: str) -> str:
    return part.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
