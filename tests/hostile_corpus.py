"""Files that lie, break or attack: made by code, each with what must become of it.

``python tests/hostile_corpus.py FOLDER`` writes them all, to try another program on them.
"""

import io
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
GREY = np.clip(
    np.add.outer(np.arange(64) * 2, np.arange(64)) + RNG.integers(0, 40, (64, 64)), 0, 255
)
GREY = GREY.astype(np.uint8)
RGB = np.stack([GREY, GREY.T, 255 - GREY], axis=2)


def save(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes, data: bytes = b"") -> bytes:
    """A grey 8-bit PNG whose header says what it likes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = b"".join(extra) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def jpeg(**options: object) -> bytes:
    return save(Image.fromarray(RGB), "JPEG", **options)


def jpeg_of_size(width: int, height: int) -> bytes:
    data = jpeg()
    start = data.index(b"\xff\xc0")
    return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]


def tiff(values: np.ndarray) -> bytes:
    return save(Image.fromarray(values), "TIFF")


def tiff_header(width: int, height: int, next_directory: int = 0) -> bytes:
    """A little-endian TIFF of one directory; ``next_directory`` may point back to itself."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
    tags += [(273, 4, 200), (277, 3, 1), (278, 4, height), (279, 4, width * height)]
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + struct.pack("<I", next_directory)
    return data.ljust(200, b"\0") + GREY.tobytes()


def text_bomb() -> bytes:
    """A text chunk of 80 MB that takes 80 kB in the file."""
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000)))
    return png(64, 64, text, data=bytes(65 * 64))


def overwrite(data: bytes, start: float, value: bytes) -> bytes:
    """Replace what lies at the share ``start`` of the file."""
    at = int(len(data) * start)
    return data[:at] + value + data[at + len(value) :]


def exif_jpeg(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(exif=exif)


def animation(format: str) -> bytes:
    frames = [Image.fromarray(np.roll(RGB, 9 * i, axis=0)) for i in range(3)]
    return save(frames[0], format, save_all=True, append_images=frames[1:])


def palette(transparent: bool) -> bytes:
    image = Image.fromarray(RGB).quantize(32)
    return save(image, "PNG", transparency=0) if transparent else save(image, "PNG")


def with_alpha(alpha: int) -> bytes:
    return save(Image.fromarray(np.dstack([RGB, np.full_like(GREY, alpha)])), "PNG")


def not_a_number(value: float) -> bytes:
    values = GREY.astype(np.float32)
    values[3, 4] = value
    return tiff(values)


DEEP = GREY.astype(np.uint16) * 16
LOOP = tiff_header(64, 64, next_directory=8)

# Name of the file → (its bytes, the check it must fail). A check may be one of several, where
# decoders differ.
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.png": (lambda: b"", "zero_bytes"),
    "one_pixel.png": (lambda: save(Image.new("L", (1, 1)), "PNG"), "too_small"),
    "thin.png": (lambda: save(Image.new("L", (5000, 1)), "PNG"), "too_small"),
    "header_20000.png": (lambda: png(20_000, 20_000), "too_large"),
    "header_8000.png": (lambda: png(8_000, 8_000), "too_large"),
    "header_2147483647.png": (lambda: png(2**31 - 1, 2**31 - 1), "too_large"),
    "header_zero.png": (lambda: png(0, 0), "truncated|too_small"),
    "header_65535.jpg": (lambda: jpeg_of_size(65_535, 65_535), "too_large"),
    "header_30000.tif": (lambda: tiff_header(30_000, 30_000), "too_large"),
    "header_30000.bmp": (
        lambda: overwrite(
            save(Image.fromarray(GREY), "BMP"), 18 / 5174, struct.pack("<ii", 30_000, 30_000)
        ),
        "too_large",
    ),
    "real_bomb.png": (lambda: save(Image.new("1", (9_000, 9_000)), "PNG"), "too_large"),
    "text_bomb.png": (text_bomb, "truncated"),
    "half.jpg": (lambda: jpeg()[:900], "truncated"),
    "start.jpg": (lambda: jpeg()[:20], "truncated"),
    "zero_tail.jpg": (lambda: jpeg()[:900].ljust(len(jpeg()), b"\0"), "truncated"),
    "progressive_half.jpg": (lambda: jpeg(progressive=True)[:800], "truncated"),
    "half.png": (lambda: save(Image.fromarray(RGB), "PNG")[:1500], "truncated"),
    "start.png": (lambda: save(Image.fromarray(RGB), "PNG")[:12], "truncated"),
    "flipped_bits.png": (
        lambda: overwrite(save(Image.fromarray(RGB), "PNG"), 0.5, b"\xff\0\xff\0"),
        "truncated",
    ),
    "no_data.png": (lambda: png(64, 64), "truncated"),
    "half.bmp": (lambda: save(Image.fromarray(RGB), "BMP")[:4000], "truncated"),
    "half.tif": (lambda: tiff(GREY)[:2000], "truncated"),
    "half.webp": (lambda: save(Image.fromarray(RGB), "WEBP")[:600], "truncated"),
    "text.jpg": (lambda: b"hello", "wrong_format"),
    "page.png": (lambda: b"<!DOCTYPE html><html>not found</html>", "wrong_format"),
    "document.png": (lambda: b"%PDF-1.7\n%\xe2\xe3", "wrong_format"),
    "postscript.png": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(/etc/passwd) run\n",
        "wrong_format",
    ),
    "drawing.png": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "wrong_format"),
    "archive.png": (lambda: b"PK\x03\x04" + bytes(60), "wrong_format"),
    "nifti.png": (lambda: b"\x1f\x8b\x08" + bytes(60), "wrong_format"),
    "pointer.png": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "wrong_format"),
    "gif.png": (lambda: save(Image.fromarray(GREY), "GIF"), "wrong_format"),
    "icon.png": (lambda: save(Image.fromarray(RGB), "ICO"), "wrong_format"),
    "targa.png": (lambda: save(Image.fromarray(RGB), "TGA"), "wrong_format"),
    "noise.jpg": (lambda: RNG.bytes(3000), "wrong_format"),
    "zeros.png": (lambda: bytes(3000), "unreadable"),
    "nan.tif": (lambda: not_a_number(np.nan), "not_finite"),
    "infinite.tif": (lambda: not_a_number(np.inf), "not_finite"),
    "lab.tif": (lambda: save(Image.new("LAB", (64, 64)), "TIFF"), "wrong_format"),
    "no_image.dcm": (lambda: bytes(128) + b"DICM", "unreadable|dicom_support"),
    "noise.dcm": (lambda: bytes(128) + b"DICM" + RNG.bytes(500), "unreadable|dicom_support"),
}

# Name of the file → (its bytes, a note it must carry or "" for none). All must show a picture.
READ: dict[str, tuple[Callable[[], bytes], str]] = {
    "jpeg.png": (jpeg, "wrong_extension"),
    "png.jpg": (lambda: save(Image.fromarray(RGB), "PNG"), "wrong_extension"),
    "no_extension": (jpeg, "wrong_extension"),
    "progressive.jpg": (lambda: jpeg(progressive=True), ""),
    "trailing.jpg": (lambda: jpeg() + b"PK\x03\x04 and more", ""),
    "cmyk.jpg": (lambda: save(Image.fromarray(RGB).convert("CMYK"), "JPEG"), ""),
    "cmyk.tif": (lambda: save(Image.fromarray(RGB).convert("CMYK"), "TIFF"), ""),
    "grey.jpg": (lambda: save(Image.fromarray(GREY), "JPEG"), ""),
    "rotated.jpg": (lambda: exif_jpeg(6), ""),
    "mad_orientation.jpg": (lambda: exif_jpeg(77), ""),
    "broken_exif.jpg": (lambda: jpeg(exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), ""),
    "bits1.png": (lambda: save(Image.fromarray(GREY > 90), "PNG"), ""),
    "bits16.png": (lambda: save(Image.fromarray(DEEP), "PNG"), "stretched"),
    "bits16_big_endian.tif": (
        lambda: save(Image.frombytes("I;16B", (64, 64), DEEP.astype(">u2").tobytes()), "TIFF"),
        "stretched",
    ),
    "bits12_in_16.tif": (lambda: tiff(DEEP), "stretched"),
    "bits32.tif": (lambda: tiff(DEEP.astype(np.int32) - 1000), "stretched"),
    "float.tif": (lambda: tiff(GREY.astype(np.float32) / 255), "stretched"),
    "hot_pixel.tif": (
        lambda: tiff(np.where(np.arange(4096).reshape(64, 64) == 7, 65535, DEEP).astype(np.uint16)),
        "stretched",
    ),
    "constant16.tif": (lambda: tiff(np.full((64, 64), 700, np.uint16)), "blank"),
    "black.png": (lambda: save(Image.new("L", (64, 64)), "PNG"), "blank"),
    "palette.png": (lambda: palette(False), ""),
    "palette_transparent.png": (lambda: palette(True), "transparent"),
    "transparent.png": (lambda: with_alpha(0), "blank"),
    "half_transparent.png": (lambda: with_alpha(128), "transparent"),
    "opaque.png": (lambda: with_alpha(255), ""),
    "grey_alpha.png": (
        lambda: save(Image.merge("LA", [Image.fromarray(GREY)] * 2), "PNG"),
        "transparent",
    ),
    "animated.png": (lambda: animation("PNG"), "animated"),
    "animated.webp": (lambda: animation("WEBP"), "animated"),
    "pages.tif": (lambda: animation("TIFF"), "animated"),
    "loop.tif": (lambda: LOOP, ""),
    "lossy.webp": (lambda: save(Image.fromarray(RGB), "WEBP"), ""),
    "grey.bmp": (lambda: save(Image.fromarray(GREY), "BMP"), ""),
    "ycbcr.tif": (lambda: save(Image.fromarray(RGB).convert("YCbCr"), "TIFF"), ""),
    "narrow.png": (lambda: save(Image.fromarray(np.tile(GREY[:8], (1, 90))), "PNG"), ""),
}

# Names that break paths, shells, pages and encodings.
NAMES = [
    b"plain.png",
    b"quote'\".png",
    b"new\nline.png",
    b"<script>alert(1)<script>.png",
    b"; rm -rf ~.png",
    b"$(touch owned).png",
    b"-rf.png",
    b"100%s%n.png",
    b"back\\slash.png",
    b"comma, semicolon;.png",
    b"=cmd|'!A1.png",
    b"\xff\xfe not utf8.png",
    "\u202etxt right to left.png".encode(),
    "e\u0301 decomposed.png".encode(),
    "\u8133\u816b\u760d.png".encode(),
    b"x" * 251 + b".png",
    b"UPPER.PNG",
    b"two.dots.png",
]

# Name → (text of the CSV, what must happen). Images a0 … a5 (label 0) and b0 … b5 (label 1) lie
# beside it in pictures/, dup.png in pictures/one/ and pictures/two/. What happens is the class of
# an error and a word of its message, or a finding's check and its count ("ok": neither).
PLAIN = "".join(f"a{i},0\nb{i},1\n" for i in range(6))
HEAD = "image,label\n" + PLAIN
TABLES: dict[str, tuple[bytes, tuple[str, object]]] = {
    "plain": (HEAD.encode(), ("ok", 12)),
    "bom": (HEAD.encode("utf-8-sig"), ("ok", 12)),
    "utf16": (HEAD.encode("utf-16"), ("ok", 12)),
    "windows": (
        HEAD.replace("label", "Maß,label")
        .replace(",0", ",ü,0")
        .replace(",1", ",ü,1")
        .encode("cp1252"),
        ("ok", 12),
    ),
    "semicolons": (HEAD.replace(",", ";").encode(), ("ok", 12)),
    "tabs": (HEAD.replace(",", "\t").encode(), ("ok", 12)),
    "bars": (HEAD.replace(",", "|").encode(), ("ok", 12)),
    "excel_separator": (b"sep=;\n" + HEAD.replace(",", ";").encode(), ("ok", 12)),
    "crlf": (HEAD.replace("\n", "\r\n").encode(), ("ok", 12)),
    "old_macintosh": (HEAD.replace("\n", "\r").encode(), ("ok", 12)),
    "quoted": (HEAD.replace("a0,0", '"a0","0"').encode(), ("ok", 12)),
    "letter_case": (HEAD.replace("a0,", "A0.PNG,").encode(), ("ok", 12)),
    "with_folder": (HEAD.replace("a0,", "pictures/a0.png,").encode(), ("ok", 12)),
    "backslashes": (HEAD.replace("a0,", ".\\pictures\\a0.png,").encode(), ("ok", 12)),
    "blanks": (HEAD.replace("a0,0", "  a0 ,  0 ").encode(), ("ok", 12)),
    "blank_rows": (HEAD.replace("b3", "\n,\n\nb3").encode(), ("ok", 12)),
    "float_labels": (
        HEAD.replace(",0\n", ",0.0\n").replace("a1,0.0", "a1,0").encode(),
        ("labels_merged", 2),
    ),
    "words_and_numbers": (
        HEAD.replace("a0,0", "a0,no").replace("b0,1", "b0,Yes").encode(),
        ("labels_merged", 4),
    ),
    "mixed_case_labels": (
        HEAD.replace(",0", ", Healthy").replace("a1, H", "a1,h").replace(",1", ",Tumor").encode(),
        ("labels_merged", 2),
    ),
    "duplicate_row": ((HEAD + "a0,0\na0.png,0.0\n").encode(), ("duplicate_rows", 1)),
    "conflict": ((HEAD + "a0,1\n").encode(), ("conflicting_rows", 1)),
    "empty_label": (HEAD.replace("a0,0", "a0,").encode(), ("empty_label", 1)),
    "nan_label": (HEAD.replace("a0,0", "a0,NaN").encode(), ("empty_label", 1)),
    "empty_image": ((HEAD + ",1\n").encode(), ("empty_image", 1)),
    "short_row": ((HEAD + "a0\n").encode(), ("empty_label", 1)),
    "long_row": ((HEAD + "a0,0,surprise\n").encode(), ("malformed_rows", 1)),
    "missing": ((HEAD + "gone,1\nlost.png,0\n").encode(), ("missing", 2)),
    "unlisted": (HEAD.replace("b5,1\n", "").encode(), ("unlisted", 3)),
    "ambiguous": ((HEAD + "dup,1\n").encode(), ("ambiguous", 1)),
    "told_apart": ((HEAD + "one/dup.png,1\n").encode(), ("ok", 13)),
    "climbs_out": ((HEAD + "../outside.png,1\n").encode(), ("refused_path", 1)),
    "climbs_inside": ((HEAD + "pictures/../../outside.png,1\n").encode(), ("refused_path", 1)),
    "absolute": ((HEAD + "/etc/passwd,1\n").encode(), ("refused_path", 1)),
    "drive": ((HEAD + "C:\\Users\\a0.png,1\n").encode(), ("refused_path", 1)),
    "address": ((HEAD + "https://example.org/a0.png,1\n").encode(), ("refused_path", 1)),
    "home": ((HEAD + "~/outside.png,1\n").encode(), ("refused_path", 1)),
    "line_break_in_name": ((HEAD + '"a\n0",1\n').encode(), ("missing", 1)),
    "script_in_name": ((HEAD + "<script>alert(1)</script>,1\n").encode(), ("missing", 1)),
    "formula": ((HEAD + "=HYPERLINK(1),1\n").encode(), ("missing", 1)),
    "same_column_twice": (HEAD.replace("image,label", "image,label,label").encode(), ("ok", 12)),
    "empty": (b"", ("UsageError", "is empty")),
    "header_only": (b"image,label\n", ("UsageError", "no usable row")),
    "no_header": (PLAIN.replace(",", ".png,").encode(), ("UsageError", "first line must name")),
    "no_label": (HEAD.replace("label", "colour").encode(), ("UsageError", "It has: image, colour")),
    "no_image": (HEAD.replace("image", "thing").encode(), ("UsageError", "It has: thing, label")),
    "binary": (HEAD.encode() + b"\0\1\2\3", ("UsageError", "not a text file")),
    "excel": (b"PK\x03\x04" + HEAD.encode(), ("UsageError", "Excel")),
    "open_quote": (HEAD.replace("b3", '"b3').encode(), ("UsageError", "quotation mark")),
    "huge_field": ((HEAD + "a" * 200_000 + ",1\n").encode(), ("UsageError", "field larger")),
    "one_class": (HEAD.replace(",1", ",0").encode(), ("DataError", "one class only")),
    "two_images": (b"image,label\na0,0\na1,0\na2,0\nb0,1\nb1,1\n", ("DataError", "too few images")),
    "all_missing": (
        HEAD.replace("a", "x").replace("b", "y").replace("imxge,lxyel", "image,label").encode(),
        ("UsageError", "No row of"),
    ),
    "all_refused": (
        b"image,label\n" + PLAIN.replace("a", "../a").replace("b", "/b").encode(),
        ("UsageError", "refused"),
    ),
    "labels_are_text": (
        HEAD.replace(",0", "," + "report " * 30).encode(),
        ("UsageError", "text, not"),
    ),
    "labels_are_numbers": (
        b"image,label\n"
        + "".join(f"{n}{i},0.{i}{ord(n)}\n" for n in "ab" for i in range(6)).encode(),
        ("UsageError", "not classes"),
    ),
}


def write_all(folder: Path) -> None:
    for name, (make, _) in {**REFUSED, **READ}.items():
        (folder / name).write_bytes(make())
    for name, (data, _) in TABLES.items():
        (folder / f"{name}.csv").write_bytes(data)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_all(target)
