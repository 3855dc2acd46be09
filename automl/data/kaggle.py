"""``--data kaggle:OWNER/NAME`` through kagglehub (extra ``kaggle``)."""

import contextlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from automl.errors import AutomlError, UsageError

LOGIN = (
    "Log in with KAGGLE_USERNAME and KAGGLE_KEY in the environment or with ~/.kaggle/kaggle.json "
    "(kaggle.com, Settings, API), and accept the data set's conditions on its page"
)
BY_HAND = "Or download it by hand, unpack it, and give its folder to --data."


def download_dataset(source: str) -> Path:
    """The folder of a Kaggle data set, downloaded once and kept by kagglehub.

    ``kaggle:OWNER/NAME/versions/2`` is that version, and needs no network if it is there.

    Raises:
        UsageError: the name is not OWNER/NAME, Kaggle has no such data set, or kagglehub is
            not installed.
        AutomlError: Kaggle cannot be reached, or refuses, or the download failed.
    """
    handle = source.removeprefix("kaggle:")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(/versions/\d+)?", handle):
        raise UsageError(
            f"{source!r} is not a Kaggle data set. Expected kaggle:OWNER/NAME, such as "
            "kaggle:jakeshbohaju/brain-tumor."
        )
    try:
        import kagglehub
        import requests
    except ImportError:
        raise UsageError(
            f"{source!r} needs the package kagglehub: pip install 'automl[kaggle]'. {BY_HAND}"
        ) from None
    try:
        # It prints to standard output, which is for results.
        with contextlib.redirect_stdout(sys.stderr):
            return Path(kagglehub.dataset_download(handle))
    except requests.ConnectionError as error:
        kept = find_version(kagglehub.dataset_download, handle)
        offline = f" Version {kept} is on this machine: --data {source}/versions/{kept}."
        raise AutomlError(
            f"Kaggle cannot be reached for {handle}. Check the network."
            f"{offline if kept is not None else ''} {BY_HAND}"
        ) from error
    except requests.HTTPError as error:
        raise explain_answer(handle, error) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise AutomlError(
            f"Kaggle did not deliver {handle} ({type(error).__name__}: {reason}). Try again. "
            f"{BY_HAND}"
        ) from error


def explain_answer(handle: str, error: Any) -> AutomlError:
    """What an HTTP status of Kaggle means for the one who wants the data."""
    status = error.response.status_code
    if status == 404:
        return UsageError(
            f"Kaggle has no data set {handle} (404). Check the name: it is the end of the data "
            f"set's address, kaggle.com/datasets/{handle}."
        )
    if status in (401, 403):
        return AutomlError(
            f"Kaggle refuses {handle} ({status}): the name is wrong, it is private, or it wants a "
            f"login. {LOGIN}. {BY_HAND}"
        )
    return AutomlError(f"Kaggle answered {status} for {handle}. Try again later. {BY_HAND}")


def find_version(download: Callable[[str], str], handle: str) -> int | None:
    """The latest version of ``handle`` that is on this machine and whole."""
    kept = os.environ.get("KAGGLEHUB_CACHE") or Path.home() / ".cache" / "kagglehub"
    versions = [path.name for path in Path(kept, "datasets", handle).glob("versions/*")]
    for version in sorted((int(name) for name in versions if name.isdigit()), reverse=True):
        # What is complete is found without the network.
        with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):
            download(f"{handle}/versions/{version}")
            return version
    return None
