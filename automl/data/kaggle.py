"""``--data kaggle:OWNER/NAME`` through kagglehub (extra ``kaggle``)."""

import re
from pathlib import Path

from automl.errors import AutomlError, UsageError


def download_dataset(source: str) -> Path:
    """The folder of a Kaggle data set, downloaded once and kept by kagglehub.

    Raises:
        UsageError: the name is not OWNER/NAME, or kagglehub is not installed.
        AutomlError: the download failed.
    """
    handle = source.removeprefix("kaggle:")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(/versions/\d+)?", handle):
        raise UsageError(
            f"{source!r} is not a Kaggle data set. Expected kaggle:OWNER/NAME, such as "
            "kaggle:jakeshbohaju/brain-tumor."
        )
    try:
        import kagglehub
    except ImportError:
        raise UsageError(
            f"{source!r} needs the package kagglehub: pip install 'automl[kaggle]'. Or download "
            "the data set by hand, unpack it, and give its folder to --data."
        ) from None
    try:
        return Path(kagglehub.dataset_download(handle))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise AutomlError(
            f"Kaggle did not deliver {handle} ({type(error).__name__}: {reason}). Check the name, "
            "the network and your Kaggle login, or download it by hand and give its folder to "
            "--data."
        ) from error
