"""Small pictures for the report: thumbnails and heat maps, written as JPEG or PNG."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from automl.errors import StorageError

JPEG_QUALITY = 80


def write_picture(pixels: np.ndarray, path: Path, size: int | None = None) -> Path:
    """Write uint8 (h, w), or (h, w, 3), to ``path``; its suffix (.jpg or .png) is the format.

    ``size`` is the longest side in pixels; larger pictures are scaled down to it, smaller ones
    stay. The same array gives the same bytes. Folders on the way are made. Returns ``path``.

    Raises:
        StorageError: the file cannot be written.
    """
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if size is not None:
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    is_jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    options = {"quality": JPEG_QUALITY} if is_jpeg else {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, "JPEG" if is_jpeg else "PNG", optimize=True, **options)
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror or error}.") from error
    return path


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """The bytes of a JPEG file of uint8 (h, w, 3) at ``quality`` 1–95."""
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
