"""The only door through which image files come in: allow-listed formats, checked, as RGB.

A file's content decides what it is, never its name. Whatever cannot be shown faithfully is an
``ImageError`` with the name of the check it failed; nothing is ever silently read as black.

Values. 8-bit images are taken as they are. Deeper ones (16- and 32-bit integers, floats) have no
common unit in MRI or CT exports, so each is stretched by itself: its 0.5th percentile becomes 0,
its 99.5th 255, linearly, what lies outside is clipped. Percentiles rather than the extremes,
because one hot pixel would otherwise darken the whole image; where they coincide (a mask, a few
bright dots on nothing) the extremes are used. Transparency is composited on black. DICOM has its
own rule, in ``dicom.py``.
"""

import hashlib
import io
import stat
import struct
import threading
import warnings
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 50_000_000
MAX_BYTES = 100 * 1024 * 1024
MIN_SIDE = 8
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
EXTENSIONS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "PNG": {".png", ".apng"},
    "BMP": {".bmp", ".dib"},
    "TIFF": {".tif", ".tiff"},
    "WEBP": {".webp"},
    "DICOM": {".dcm", ".dicom", ".ima", ""},
}
ALL_EXTENSIONS = frozenset().union(*EXTENSIONS.values()) - {""}
LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5

# First bytes of what is often found under an image's name, for a message that helps.
FOREIGN = {
    b"%PDF": "a PDF document",
    b"%!PS": "a PostScript (EPS) file",
    b"\xc5\xd0\xd3\xc6": "an EPS file",
    b"GIF8": "a GIF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive (NIfTI?)",
    b"<svg": "an SVG drawing",
    b"<?xm": "an XML file",
    b"<htm": "an HTML page",
    b"<!do": "an HTML page",
    b"<!DO": "an HTML page",
    b"\x89HDF": "an HDF5 file",
    b"version https://git-lfs": "a Git LFS pointer, not the image itself",
}

# Pillow warns from 89 megapixels on; the limit here is stricter and an error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_LARGE = threading.Lock()
_LARGE_PIXELS = 8_000_000


class ImageError(Exception):
    """A file that cannot be used; ``check`` is the finding's name, ``message`` for people.

    Checks: missing, not_a_file, unreadable, zero_bytes, too_large, too_small, wrong_format,
    truncated, not_finite, dicom_support.
    """

    def __init__(self, check: str, message: str) -> None:
        super().__init__(message)
        self.check = check
        self.message = message


def open_image(path: Path | str) -> tuple[np.ndarray, dict[str, Any]]:
    """Read the image at ``path``.

    Returns:
        The pixels, RGB uint8 (height, width, 3), upright, not to be written to, and facts: those of
        ``decode_bytes`` with ``bytes``, ``sha256`` of the file and ``extension``.

    Raises:
        ImageError: see its checks.
    """
    path = Path(path)
    data = read_bytes(path)
    pixels, facts = decode_bytes(data)
    extension = path.suffix.lower()
    facts["bytes"] = len(data)
    facts["sha256"] = hashlib.sha256(data).hexdigest()
    facts["extension"] = extension
    if extension not in EXTENSIONS[facts["format"]]:
        facts["notes"].append("wrong_extension")
    return pixels, facts


def read_bytes(path: Path) -> bytes:
    """The whole file, if it is a regular one of 1 byte to 100 MB; else an ImageError."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not_a_file", "is not a regular file")
        if status.st_size == 0:
            raise ImageError("zero_bytes", "is empty (0 bytes)")
        if status.st_size > MAX_BYTES:
            raise ImageError(
                "too_large", f"has {status.st_size / 1e6:.0f} MB; at most {MAX_BYTES // 2**20} MiB"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError("missing", "does not exist") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ImageError("unreadable", f"cannot be read: {reason}") from None


def decode_bytes(data: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    """Decode a file's bytes; the content decides the format.

    Returns:
        RGB uint8 (height, width, 3) and facts: width, height (upright), format, mode, bits,
        frames, exif (bool), orientation (1–8), notes (a list of words: animated, stretched,
        transparent, blank …).

    Raises:
        ImageError: see its checks.
    """
    if not data:
        raise ImageError("zero_bytes", "is empty (0 bytes)")
    if data[128:132] == b"DICM":
        from automl.data.dicom import decode_dicom

        pixels, facts = decode_dicom(data)
    else:
        pixels, facts = decode_picture(data)
    facts["height"], facts["width"] = pixels.shape[:2]
    # A coarse look first: the whole comparison takes long for a large image.
    if (pixels[::7, ::7] == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all():
        facts["notes"].append("blank")
    return pixels, facts


def decode_picture(data: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    """``decode_bytes`` for the formats that Pillow reads."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError("too_large", f"has more than {MAX_PIXELS // 10**6} megapixels") from None
    except Exception:
        raise ImageError(*explain_refusal(data)) from None
    with image:
        check_size(*image.size)
        if image.format not in FORMATS and image.format != "MPO":
            raise ImageError("wrong_format", f"is {image.format}, which is not supported")
        facts = read_facts(image)
        if facts["format"] == "JPEG" and not data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda"):
            raise ImageError("truncated", "is a JPEG without an end: it was cut off or overwritten")
        if facts["format"] == "PNG":
            check_png(data)
        many = image.width * image.height > _LARGE_PIXELS
        with _LARGE if many else nullcontext():
            try:
                image.load()
                image = ImageOps.exif_transpose(image) if facts["orientation"] != 1 else image
                return convert_to_rgb(image, facts), facts
            except ImageError:
                raise
            except MemoryError:
                raise ImageError("too_large", "does not fit into memory") from None
            except Exception as error:
                # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error,
                # EOFError and zlib.error for damaged content.
                raise ImageError(
                    "truncated", f"is damaged or cut off ({describe(error)})"
                ) from None


def check_png(data: bytes) -> None:
    """Hold every chunk against its checksum: Pillow skips that for pixels, and shows garbage."""
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        end = at + 8 + length
        if data[end : end + 4] != struct.pack(">I", zlib.crc32(data[at + 4 : end])):
            break
        if kind == b"IEND":
            return
        at = end + 4
    raise ImageError("truncated", "is a PNG that was damaged or cut off (a checksum is wrong)")


def read_facts(image: Image.Image) -> dict[str, Any]:
    """What the header says, before any pixel is decoded."""
    notes = []
    try:
        frames = int(getattr(image, "n_frames", 1))
    except Exception:
        frames = 1
    if frames > 1 and image.format != "MPO":
        notes.append("animated")
    try:
        exif = image.getexif()
        orientation = exif.get(0x0112, 1)
        has_exif = image.format != "TIFF" and len(exif) > 0
    except Exception:
        orientation, has_exif = 1, True
    return {
        "format": "JPEG" if image.format == "MPO" else image.format,
        "mode": image.mode,
        "bits": 16 if image.mode.startswith("I;16") else 32 if image.mode in "IF" else 8,
        "frames": frames,
        "exif": has_exif,
        "orientation": orientation if orientation in range(1, 9) else 1,
        "notes": notes,
    }


def convert_to_rgb(image: Image.Image, facts: dict[str, Any]) -> np.ndarray:
    """Any Pillow mode → RGB uint8 (height, width, 3), by the rules in the module's head."""
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        facts["notes"].append("stretched")
        return spread_grey(stretch(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema() != (255, 255):
            facts["notes"].append("transparent")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    if image.mode == "LAB":
        raise ImageError("wrong_format", "has the colour mode LAB; save it as RGB or grey")
    if image.mode in ("L", "1"):
        return spread_grey(np.asarray(image.convert("L")))
    return read_rgb(image if image.mode == "RGB" else image.convert("RGB"))


def spread_grey(grey: np.ndarray) -> np.ndarray:
    """uint8 (h, w) as RGB (h, w, 3): a view, so that nothing is copied or compared thrice."""
    return np.broadcast_to(grey[:, :, None], (*grey.shape, 3))


def read_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an RGB image; a view as of ``spread_grey`` where the channels are equal."""
    red = image.getchannel("R").tobytes()
    # One after the other: the second of a colour image differs, and ends it.
    if all(image.getchannel(other).tobytes() == red for other in "GB"):
        return spread_grey(np.frombuffer(red, np.uint8).reshape(image.height, image.width))
    return np.asarray(image)


def stretch(values: np.ndarray) -> np.ndarray:
    """Deep grey values of any number type → uint8 of the same shape, by the percentile rule.

    Raises:
        ImageError: a value is NaN or infinite.
    """
    values = np.asarray(values)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError("not_finite", "holds values that are not numbers (NaN or infinity)")
    # A regular sample of about a million values is enough for a percentile, and bounds memory.
    some = values.ravel()[:: max(1, values.size // 1_000_000)]
    low, high = (float(v) for v in np.percentile(some, (LOW_PERCENTILE, HIGH_PERCENTILE)))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.full(values.shape, 128, dtype=np.uint8)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return scale_between(np.arange(2**16), low, high)[values]
    return scale_between(values, low, high)


def scale_between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Linear map of ``low``…``high`` to 0…255, rounded half to even, clipped; uint8."""
    scaled = (np.asarray(values, dtype=np.float32) - np.float32(low)) * np.float32(
        255.0 / (high - low)
    )
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def check_size(width: int, height: int) -> None:
    """Refuse what would not fit, or shows nothing; called before any pixel is decoded."""
    if width * height > MAX_PIXELS:
        raise ImageError(
            "too_large",
            f"has {width}×{height} pixels; at most {MAX_PIXELS // 10**6} million are read",
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError("too_small", f"has {width}×{height} pixels; at least {MIN_SIDE} a side")


def explain_refusal(data: bytes) -> tuple[str, str]:
    """Check and message for bytes that no allowed decoder recognises."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    for start, what in FOREIGN.items():
        if head.startswith(start):
            return "wrong_format", f"is {what}; supported are {', '.join(FORMATS)} and DICOM"
    if not any(data[:512]):
        return "unreadable", "holds only zeros; it was probably lost while copying"
    known = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\0", b"MM\0*")
    if data.startswith(known) or data[8:12] == b"WEBP":
        return "truncated", "begins like an image, but its header is damaged or cut off"
    return "wrong_format", f"is not an image; supported are {', '.join(FORMATS)} and DICOM"


def describe(error: Exception) -> str:
    """An exception in a few words, on one line."""
    return " ".join(str(error).split())[:80] or type(error).__name__
