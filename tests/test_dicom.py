"""DICOM: the window a viewer would show, and no word of the patient."""

import io
import json
from dataclasses import asdict

import hostile_corpus as corpus
import numpy as np
import pytest

from automl.config import SearchConfig
from automl.data.images import ImageError, decode_bytes
from automl.data.pixels import scan_images
from automl.data.sources import load_dataset

pydicom = pytest.importorskip("pydicom")

from dicom_files import SECRETS, STORED, make_dicom  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import MPEG4HP41  # noqa: E402


def test_the_window_of_the_file_is_applied_after_the_rescale():
    data = make_dicom(RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=500.5, WindowWidth=1001)
    pixels, facts = decode_bytes(data)
    expected = np.clip(np.rint((STORED * 2.0 - 1000) / 1000 * 255), 0, 255)
    assert np.abs(pixels[:, :, 0] - expected).max() <= 1
    assert facts["format"] == "DICOM" and facts["notes"] == []


def test_the_first_of_several_windows_counts():
    several = make_dicom(WindowCenter=[500, 90], WindowWidth=[1000, 10])
    single = make_dicom(WindowCenter=500, WindowWidth=1000)
    assert np.array_equal(decode_bytes(several)[0], decode_bytes(single)[0])


def test_without_a_window_values_are_stretched():
    pixels, facts = decode_bytes(make_dicom())
    assert facts["notes"] == ["stretched"] and pixels.min() == 0 and pixels.max() == 255


def test_monochrome1_is_inverted():
    window = {"WindowCenter": 1000, "WindowWidth": 2000}
    plain = decode_bytes(make_dicom(**window))[0]
    inverted = decode_bytes(make_dicom(PhotometricInterpretation="MONOCHROME1", **window))[0]
    assert np.array_equal(inverted, 255 - plain)


def test_signed_values_are_read():
    values = corpus.GREY.astype(np.int16) * 4 - 500
    assert decode_bytes(make_dicom(values))[0].std() > 20


def test_the_first_of_many_frames_is_read():
    data = make_dicom(NumberOfFrames=2, PixelData=np.stack([STORED, STORED.T]).tobytes())
    pixels, facts = decode_bytes(data)
    assert np.array_equal(pixels, decode_bytes(make_dicom())[0])
    assert facts["frames"] == 2 and "animated" in facts["notes"]


def test_burned_in_text_is_noted():
    assert "burned_in" in decode_bytes(make_dicom(BurnedInAnnotation="YES"))[1]["notes"]


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (lambda: make_dicom()[:-3000], "truncated"),
        (lambda: make_dicom(PixelData=b"\0\0"), "truncated"),
        (lambda: make_dicom(Rows=0), "too_small"),
        (lambda: make_dicom(Rows=60_000, Columns=60_000), "too_large"),
        (lambda: make_dicom()[:200], "unreadable"),
    ],
)
def test_a_broken_dicom_is_refused_without_a_word_of_the_patient(make, check):
    with pytest.raises(ImageError) as caught:
        decode_bytes(make())
    assert caught.value.check == check
    assert not any(secret in caught.value.message for secret in SECRETS)


def test_a_compression_without_decoder_is_named():
    # MPEG-4: never decoded to frames by any of pydicom's plugins.
    data = make_dicom(PixelData=encapsulate([bytes(100)]))
    header = pydicom.dcmread(io.BytesIO(data))
    header.file_meta.TransferSyntaxUID = MPEG4HP41
    header["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    with pytest.raises(ImageError, match=r"compressed as MPEG-4.*decoder is missing") as caught:
        decode_bytes(buffer.getvalue())
    assert caught.value.check == "dicom_support"


def test_without_pydicom_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(ImageError, match=r"pip install 'automl\[dicom\]'"):
        decode_bytes(make_dicom())


@pytest.fixture
def series(tmp_path):
    """Two classes of three patients with two slices each, some without an extension."""
    for label in ("healthy", "lesion"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(6):
            patient = f"{SECRETS[1]}-{label[0]}{number // 2}"
            name = f"{number}.dcm" if number % 2 else f"IM{number}"
            values = np.roll(STORED, number)
            (tmp_path / "data" / label / name).write_bytes(make_dicom(values, patient))
    return tmp_path / "data"


def test_the_patient_becomes_a_numbered_group(series):
    dataset = load_dataset(SearchConfig(data=str(series)))
    assert len(dataset.samples) == 12
    groups = {}
    for item in dataset.samples:
        groups.setdefault(item.group, []).append(item.label)
    assert sorted(groups) == [f"patient-{i:04d}" for i in range(1, 7)]
    assert all(len(labels) == 2 and len(set(labels)) == 1 for labels in groups.values())


def test_no_word_of_the_patient_leaves(series, tmp_path):
    dataset = load_dataset(SearchConfig(data=str(series)))
    scan = scan_images(dataset, 32, tmp_path / "cache")
    assert len(scan.facts) == 12 and scan.facts[0]["modality"] == "MR"
    written = [path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    said = json.dumps([asdict(f) for f in (*dataset.findings, *scan.findings)]).encode()
    known = repr([(s.group, s.attributes) for s in scan.dataset.samples]).encode()
    for text in (*written, said, known, json.dumps(scan.facts).encode()):
        assert not any(secret.encode() in text for secret in SECRETS)
