"""Resizing that equals TensorFlow's, thumbnails that survive changes, and the kept scan."""

import io
import json
import os
import shutil

import numpy as np
import pytest
from conftest import draw_picture
from PIL import Image, ImageEnhance

from automl.config import SearchConfig
from automl.data import arrays, pixels
from automl.data.arrays import describe_pixels, drop_colour
from automl.data.images import open_image
from automl.data.pixels import resize_pixels, scan_images
from automl.data.sources import load_dataset
from automl.errors import DataError, StorageError


def make_thumbnail(image):
    return describe_pixels(image)[0]


SIZES = [
    *[(240, 240, 160), (240, 240, 96), (240, 240, 224), (128, 128, 160), (131, 77, 96)],
    *[(512, 300, 224), (50, 60, 224), (160, 160, 160), (1024, 9, 33), (8, 8, 320)],
]


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_resizing_equals_tensorflow_to_the_bit(height, width, size):
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(height * width)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = tf.image.resize(image, (size, size), method="bilinear", antialias=True)
    expected = tf.cast(tf.clip_by_value(tf.round(expected), 0, 255), tf.uint8).numpy()
    assert np.array_equal(resize_pixels(image, size), expected)


@pytest.mark.parametrize("strip", [2**20, 500])
def test_resizing_adds_tap_after_tap_whatever_the_strips(monkeypatch, strip):
    monkeypatch.setattr(arrays, "STRIP", strip)
    rng = np.random.default_rng(0)
    for height, width, size in ((240, 240, 160), (131, 77, 96), (9, 50, 33)):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        values = image.astype(np.float32)
        for _ in range(2):
            source, weights = arrays.filter_taps(len(values), size)
            total = np.zeros((size, *values.shape[1:]), np.float32)
            for tap in range(source.shape[1]):
                total += values[source[:, tap]] * weights[:, tap, None, None]
            values = total.swapaxes(0, 1)
        expected = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        assert np.array_equal(resize_pixels(image, size), expected)


def test_a_grey_image_is_one_channel_with_the_same_answers():
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.integers(0, 256, (61, 47, 1), dtype=np.uint8), 3, axis=2)
    lean = drop_colour(grey)
    assert lean.shape == (61, 47, 1)
    assert np.array_equal(np.repeat(resize_pixels(lean, 32), 3, axis=2), resize_pixels(grey, 32))
    assert np.array_equal(make_thumbnail(lean), make_thumbnail(grey))
    for place in ((0, 0, 0), (30, 20, 1), (60, 46, 2)):
        tinted = grey.copy()
        tinted[place] ^= 1
        assert drop_colour(tinted).shape == (61, 47, 3), place


@pytest.mark.parametrize("size", [32, 64, 100])
def test_resizing_keeps_a_constant_image_and_the_shape(size):
    image = np.full((64, 48, 3), 77, np.uint8)
    assert np.array_equal(resize_pixels(image, size), np.full((size, size, 3), 77))


def colour(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


def reencode(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer)


CHANGES = {
    "re-encoded": reencode,
    "scaled down": lambda image: image.resize((96, 96), Image.Resampling.BICUBIC),
    "scaled up": lambda image: image.resize((200, 170), Image.Resampling.BICUBIC),
    "brighter": lambda image: image.point(lambda value: min(255, value * 1.1)),
    "darker": lambda image: image.point(lambda value: value * 0.9),
    "shifted grey": lambda image: image.point(lambda value: min(255, value + 20)),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.9),
    "padded": lambda image: Image.fromarray(np.pad(np.asarray(image), ((9, 20), (5, 0), (0, 0)))),
    "cropped": lambda image: image.crop((3, 3, 125, 125)),
    "noisy": lambda image: Image.fromarray(
        np.clip(np.asarray(image) + np.random.default_rng(0).normal(0, 4, (128, 128, 3)), 0, 255)
        .round()
        .astype(np.uint8)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_thumbnail_survives_what_copies_go_through(change):
    image = Image.fromarray(colour(draw_picture(1, True, size=128)))
    changed = CHANGES[change](image).convert("RGB")
    correlation = (make_thumbnail(np.asarray(image)) * make_thumbnail(np.asarray(changed))).sum()
    assert correlation > 0.98


def test_thumbnails_of_different_images_differ():
    first, second = (make_thumbnail(colour(draw_picture(i, False))) for i in (1, 2))
    assert (first * second).sum() < 0.95


def test_a_thumbnail_has_no_mean_and_unit_norm_or_is_all_zeros():
    thumbnail = make_thumbnail(colour(draw_picture(3, True)))
    assert thumbnail.shape == (32, 32) and thumbnail.dtype == np.float32
    assert abs(thumbnail.mean()) < 1e-6 and abs(np.linalg.norm(thumbnail) - 1) < 1e-5
    assert not make_thumbnail(np.full((40, 40, 3), 9, np.uint8)).any()


@pytest.mark.parametrize("position", [(0, 0), (63, 63), (0, 40), (63, 1)])
def test_a_single_bright_pixel_has_a_thumbnail(position):
    image = np.zeros((64, 64, 3), np.uint8)
    image[position] = 255
    assert np.isfinite(make_thumbnail(image)).all()


@pytest.fixture
def scans(class_folders, tmp_path):
    """A copy of the class folders that a test may change."""
    return shutil.copytree(class_folders, tmp_path / "scans")


def load(folder):
    return load_dataset(SearchConfig(data=str(folder)))


def test_a_scan_holds_what_was_read_row_by_row(class_folders, tmp_path):
    dataset = load(class_folders)
    done = []
    scan = scan_images(dataset, 48, tmp_path, lambda *step: done.append(step))
    assert done[-1] == ("reading images", 24, 24)
    assert scan.pixels.shape == (24, 48, 48, 3) and scan.pixels.dtype == np.uint8
    assert isinstance(scan.pixels, np.memmap)
    assert np.load(scan.pixels_path, mmap_mode="r").shape == (24, 48, 48, 3)
    for row in (0, 13, 23):
        array, facts = open_image(dataset.samples[row].path)
        assert np.array_equal(scan.pixels[row], resize_pixels(array, 48))
        assert np.allclose(scan.thumbnails[row], make_thumbnail(array))
        assert scan.facts[row]["sha256"] == facts["sha256"]
        assert abs(scan.facts[row]["mean"] - array.mean()) < 1


def test_a_scan_without_size_has_no_pixels_and_the_same_digest(class_folders, tmp_path):
    dataset = load(class_folders)
    without = scan_images(dataset, None, tmp_path)
    assert without.pixels is None and without.pixels_path is None
    assert without.digest == scan_images(dataset, 32, tmp_path).digest


def count_reads(monkeypatch):
    reads = []

    def read(path, size, original=pixels.read_row):
        reads.append(path)
        return original(path, size)

    monkeypatch.setattr(pixels, "read_row", read)
    return reads


def test_a_second_scan_reads_no_image(scans, tmp_path, monkeypatch):
    dataset = load(scans)
    first = scan_images(dataset, 32, tmp_path / "cache")
    reads = count_reads(monkeypatch)
    second = scan_images(dataset, 32, tmp_path / "cache")
    os.utime(scans / "healthy" / "h00.png", (1, 1))
    third = scan_images(dataset, 32, tmp_path / "cache")
    assert not reads
    assert first.digest == second.digest == third.digest
    assert first.facts == third.facts and np.array_equal(first.pixels, third.pixels)


def test_a_changed_image_is_read_again(scans, tmp_path):
    dataset = load(scans)
    first = scan_images(dataset, 32, tmp_path / "cache")
    Image.fromarray(draw_picture(99, False)).save(scans / "healthy" / "h00.png")
    second = scan_images(dataset, 32, tmp_path / "cache")
    assert first.digest != second.digest
    assert not np.array_equal(first.pixels[0], second.pixels[0])
    assert np.array_equal(first.pixels[1:], second.pixels[1:])


def test_the_digest_depends_on_labels(scans, tmp_path):
    first = scan_images(load(scans), None, tmp_path / "cache")
    (scans / "tumour").rename(scans / "lesion")
    assert scan_images(load(scans), None, tmp_path / "cache").digest != first.digest


@pytest.mark.parametrize("part", ["pixels.npy", "thumbnails.npy", "scan.json"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_torn_cache_is_made_again(part, how, scans, tmp_path):
    dataset = load(scans)
    first = scan_images(dataset, 32, tmp_path / "cache")
    expected = np.array(first.pixels)
    torn = first.pixels_path.parent / part
    if how == "cut":
        torn.write_bytes(torn.read_bytes()[:200])
    else:
        torn.unlink()
    second = scan_images(dataset, 32, tmp_path / "cache")
    assert np.array_equal(second.pixels, expected) and second.facts == first.facts


def test_nothing_temporary_is_left_behind(scans, tmp_path):
    scan_images(load(scans), 32, tmp_path / "cache")
    names = [path.name for path in (tmp_path / "cache" / "scans").iterdir()]
    assert len(names) == 2 and not any("scan-" in name or "tmp" in name for name in names)


def test_an_interrupted_scan_leaves_nothing(scans, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_images(load(scans), 32, tmp_path / "cache", stop)
    assert list((tmp_path / "cache" / "scans").iterdir()) == []


def test_a_class_that_cannot_be_read_is_a_data_error(scans, tmp_path):
    for path in sorted((scans / "tumour").iterdir())[3:]:
        path.unlink()
    (scans / "tumour" / "t00.png").write_bytes(b"")
    with pytest.raises(DataError, match="Of class 'tumour' only 2 images"):
        scan_images(load(scans), None, tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_a_storage_error(class_folders, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="--cache-dir"):
        scan_images(load(class_folders), 32, tmp_path / "file")


def test_facts_are_json(class_folders, tmp_path):
    scan = scan_images(load(class_folders), None, tmp_path)
    json.dumps(scan.facts, allow_nan=False)


@pytest.mark.slow
def test_the_real_data_has_the_known_twins_and_neighbours(brain_tumor, cache_dir):
    scan = scan_images(load(brain_tumor), None, cache_dir)
    flat = scan.thumbnails.reshape(len(scan.facts), -1)
    correlation = flat @ flat.T
    np.fill_diagonal(correlation, -1)
    labels = scan.dataset.targets
    hits = labels[correlation.argmax(axis=1)] == labels
    # The design's own measure: 36 % have a twin, 95.5 % by the nearest neighbour.
    assert 0.30 < (correlation.max(axis=1) >= 0.98).mean() < 0.50
    assert 0.94 < hits.mean() < 0.98
    hashes = [fact["sha256"] for fact in scan.facts]
    copies = [digest for digest in set(hashes) if hashes.count(digest) > 1]
    assert len(copies) == 50 and sum(digest in copies for digest in hashes) == 113
