"""DICOM files made by code, full of what must never leave them."""

import io

import hostile_corpus as corpus
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

# A part of each planted value; none may be found in anything that is written or said.
SECRETS = (
    *("DOE^JANE", "SECRET-4711", "19700131", "Planted Hospital", "Dr. Planted", "ACC-0815"),
    *("20240229", "1.2.826.0.1.3680043.8.498.4711", "private-0042", "PLANTED_AE", "Follow-up of"),
)
STORED = corpus.GREY.astype(np.uint16) * 10


def make_dicom(values: np.ndarray = STORED, patient: str = SECRETS[1], **tags: object) -> bytes:
    """An MR image with planted patient data; ``tags`` are added, None removes one."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = f"{SECRETS[7]}.1"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.SourceApplicationEntityTitle = SECRETS[9]
    meta.PrivateInformationCreatorUID = f"{SECRETS[7]}.9"
    meta.PrivateInformation = SECRETS[8].encode()
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = f"{SECRETS[7]}.2", f"{SECRETS[7]}.3"
    data.PatientName, data.PatientID = SECRETS[0], patient
    data.PatientBirthDate, data.InstitutionName = SECRETS[2], SECRETS[3]
    data.StudyDate = data.SeriesDate = data.ContentDate = SECRETS[6]
    data.ReferringPhysicianName, data.AccessionNumber = SECRETS[4], SECRETS[5]
    data.StudyDescription = data.ImageComments = f"{SECRETS[10]} {SECRETS[0]}"
    data.private_block(0x0011, "ACME", create=True).add_new(0x01, "LO", SECRETS[8])
    data.Modality, data.Manufacturer = "MR", "ACME"
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = values.dtype.itemsize * 8
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
