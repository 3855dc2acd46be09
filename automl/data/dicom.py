"""DICOM files through pydicom (extra ``dicom``): pixels as a viewer shows them, no patient text.

Grey values go through the modality rescale and then the first VOI window or look-up table of the
file; a file without one is stretched like any deep image (see ``images.stretch``). MONOCHROME1 is
inverted. Of the header only what is on a short allow-list of technical tags leaves this module;
the patient's identity only as a digest that the caller turns into a running number.
"""

import hashlib
import io
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from automl.data.images import ImageError, check_size, scale_between, spread_grey, stretch

INSTALL = "needs the package pydicom; install it with: pip install 'automl[dicom]'"


def import_pydicom() -> Any:
    """pydicom, silenced: its messages may quote a patient's data."""
    try:
        import pydicom
    except ImportError:
        raise ImageError("dicom_support", f"is a DICOM file, which {INSTALL}") from None
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    return pydicom


def decode_dicom(data: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    """First frame of a DICOM file → RGB uint8 (height, width, 3) and facts.

    Raises:
        ImageError: no pixels, damaged, or a compression whose decoder is not installed.
    """
    pydicom = import_pydicom()
    # pydicom's warnings and errors may hold values of the header: neither leaves here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = pydicom.dcmread(io.BytesIO(data))
            rows, columns = int(header.Rows), int(header.Columns)
            frames = int(header.get("NumberOfFrames") or 1)
            syntax = header.file_meta.TransferSyntaxUID
        except Exception:
            raise ImageError("unreadable", "is a DICOM file without an image") from None
        check_size(columns, rows)
        try:
            values = pydicom.pixels.pixel_array(header, index=0)
        except (NotImplementedError, RuntimeError):
            raise ImageError(
                "dicom_support",
                f"is DICOM compressed as {syntax.name}, whose decoder is missing; install it with: "
                "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg",
            ) from None
        except Exception:
            raise ImageError("truncated", "is a DICOM file whose pixels are damaged") from None
        facts = {
            "format": "DICOM",
            "mode": technical(header.get("PhotometricInterpretation")),
            "bits": int(header.get("BitsStored") or 8),
            "frames": frames,
            "exif": False,
            "orientation": 1,
            "notes": ["animated"] if frames > 1 else [],
            "modality": technical(header.get("Modality")),
            "manufacturer": technical(header.get("Manufacturer")),
        }
        if str(header.get("BurnedInAnnotation", "")).upper() == "YES":
            facts["notes"].append("burned_in")
        try:
            return show(pydicom, header, values, facts), facts
        except ImageError:
            raise
        except Exception:
            raise ImageError("unreadable", "is a DICOM file whose grey scale is unclear") from None


def show(pydicom: Any, header: Any, values: np.ndarray, facts: dict[str, Any]) -> np.ndarray:
    """Stored values of one frame → what a viewer shows, RGB uint8."""
    if values.ndim == 3:
        return values if values.dtype == np.uint8 else stretch(values)
    if facts["mode"] == "PALETTE COLOR":
        colour = pydicom.pixels.apply_color_lut(values, header)
        return (colour >> 8).astype(np.uint8) if colour.dtype == np.uint16 else colour
    values = pydicom.pixels.apply_modality_lut(values, header)
    if "VOILUTSequence" in header:
        bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
        shown = pydicom.pixels.apply_voi_lut(values, header, prefer_lut=True)
        grey = scale_between(shown, 0, 2**bits - 1)
    elif first(header.get("WindowWidth")) is not None and first(header.WindowWidth) > 1:
        # The linear function of PS3.3 C.11.2.1.2.
        centre, width = first(header.WindowCenter), first(header.WindowWidth)
        low = centre - 0.5 - (width - 1) / 2
        grey = scale_between(values, low, low + width - 1)
    else:
        facts["notes"].append("stretched")
        grey = stretch(values)
    if facts["mode"] == "MONOCHROME1":
        grey = 255 - grey
    return spread_grey(grey)


def first(value: Any) -> float | None:
    """The first of one or several numbers of a tag."""
    if value is None or value == "":
        return None
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)


def technical(value: Any) -> str:
    """A technical tag's text, or "" if it holds anything unusual."""
    text = str(value or "")
    return text if re.fullmatch(r"[A-Za-z][A-Za-z0-9 _.-]{0,39}", text) else ""


def read_patient(path: Path) -> str | None:
    """A digest of the patient's id in the file at ``path``, or None; never the id itself."""
    try:
        with open(path, "rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
        pydicom = import_pydicom()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=["PatientID", "IssuerOfPatientID"]
            )
    except Exception:
        return None
    patient = str(header.get("PatientID") or "").strip()
    if not patient:
        return None
    issuer = str(header.get("IssuerOfPatientID") or "").strip()
    return hashlib.sha256(f"{issuer}\0{patient}".encode()).hexdigest()
