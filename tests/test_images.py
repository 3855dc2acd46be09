"""The one door for images: values, modes, orientation."""

import warnings

import hostile_corpus as corpus
import numpy as np
import pytest
from PIL import Image

from automl.data.images import ImageError, decode_bytes, open_image, scale_between, stretch


def decode(image: Image.Image, format: str = "PNG", **options) -> tuple[np.ndarray, dict]:
    return decode_bytes(corpus.save(image, format, **options))


def test_eight_bit_grey_and_colour_are_taken_as_they_are():
    for format in ("PNG", "BMP", "TIFF"):
        pixels, facts = decode(Image.fromarray(corpus.RGB), format)
        assert np.array_equal(pixels, corpus.RGB)
        assert facts["format"] == format and facts["mode"] == "RGB" and facts["bits"] == 8
        pixels, facts = decode(Image.fromarray(corpus.GREY), format)
        assert all(np.array_equal(pixels[:, :, i], corpus.GREY) for i in range(3))
        assert facts["mode"] == "L"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright(orientation):
    wide = np.zeros((32, 64), np.uint8)
    wide[:16, :16] = 255
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turn[orientation](wide)))
    pixels, facts = decode(stored, exif=exif)
    assert np.array_equal(pixels[:, :, 0], wide)
    assert (facts["width"], facts["height"]) == (64, 32)
    assert facts["exif"] and facts["orientation"] == orientation


def test_transparency_is_composited_on_black():
    alpha = np.full_like(corpus.GREY, 128)
    pixels, facts = decode(Image.fromarray(np.dstack([corpus.RGB, alpha])))
    assert np.abs(pixels.astype(int) - corpus.RGB * (128 / 255)).max() <= 1
    assert facts["notes"] == ["transparent"]


def test_deep_values_are_stretched_between_their_percentiles():
    values = np.arange(10_000, dtype=np.uint16).reshape(100, 100) * 6
    pixels, facts = decode(Image.fromarray(values))
    low, high = np.percentile(values, (0.5, 99.5))
    expected = np.clip(np.rint((values - low) / (high - low) * 255), 0, 255)
    assert np.abs(pixels[:, :, 0] - expected).max() <= 1
    assert facts["bits"] == 16 and facts["notes"] == ["stretched"]
    assert pixels.min() == 0 and pixels.max() == 255


def test_one_hot_pixel_does_not_darken_a_deep_image():
    hot = corpus.DEEP.copy()
    hot[0, 0] = 65535
    clean, stained = (decode(Image.fromarray(v))[0] for v in (corpus.DEEP, hot))
    assert np.abs(clean.astype(int) - stained)[1:].max() <= 2


@pytest.mark.parametrize("factor", [1, 16, 256])
def test_deep_images_look_the_same_in_any_unit(factor):
    values = corpus.GREY.astype(np.uint16) * factor
    assert np.abs(stretch(values).astype(int) - stretch(corpus.GREY)).max() <= 1


def test_a_few_bright_dots_on_nothing_are_not_lost():
    values = np.zeros((64, 64), np.uint16)
    values[10, 10] = 3000
    assert stretch(values)[10, 10] == 255


def test_big_and_little_endian_tiffs_are_equal():
    big = Image.frombytes("I;16B", (64, 64), corpus.DEEP.astype(">u2").tobytes())
    assert np.array_equal(decode(big, "TIFF")[0], decode(Image.fromarray(corpus.DEEP), "TIFF")[0])


def test_cmyk_keeps_its_colours():
    pixels, facts = decode(Image.fromarray(corpus.RGB).convert("CMYK"), "TIFF")
    assert facts["mode"] == "CMYK"
    assert np.abs(pixels.astype(int) - corpus.RGB).max() <= 2


def test_the_first_frame_of_an_animation_is_read():
    pixels, facts = decode_bytes(corpus.animation("PNG"))
    assert np.array_equal(pixels, corpus.RGB)
    assert facts["frames"] == 3 and "animated" in facts["notes"]


def test_facts_of_a_file_name_its_bytes(tmp_path):
    path = tmp_path / "picture.JPG"
    path.write_bytes(corpus.jpeg())
    facts = open_image(path)[1]
    assert facts["bytes"] == len(corpus.jpeg()) and len(facts["sha256"]) == 64
    assert facts["extension"] == ".jpg" and facts["notes"] == []


def test_a_message_says_what_the_file_really_is():
    with pytest.raises(ImageError, match="is a PDF document; supported are JPEG, PNG"):
        decode_bytes(b"%PDF-1.4")


def test_scaling_rounds_half_to_even_and_clips():
    assert scale_between(np.array([-1, 0, 0.5, 1, 2]), 0, 1).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.slow
def test_jpegs_equal_tensorflows_accurate_decoder(brain_tumor):
    tf = pytest.importorskip("tensorflow")
    paths = sorted((brain_tumor / "Brain Tumor" / "Brain Tumor").iterdir())[::37]
    assert len(paths) > 100
    for path in paths:
        data = path.read_bytes()
        expected = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE").numpy()
        assert np.array_equal(decode_bytes(data)[0], expected)


@pytest.mark.parametrize("cut", range(0, 1300, 97))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_a_file_cut_anywhere_is_refused(format, cut):
    data = corpus.save(Image.fromarray(corpus.RGB), format)
    with warnings.catch_warnings(), pytest.raises(ImageError):
        warnings.simplefilter("ignore")
        decode_bytes(data[: min(cut, int(len(data) * 0.95))])


def test_bytes_changed_anywhere_never_crash():
    rng = np.random.default_rng(0)
    for format in ("JPEG", "PNG", "BMP", "TIFF", "WEBP"):
        data = bytearray(corpus.save(Image.fromarray(corpus.RGB), format))
        for _ in range(60):
            changed = bytearray(data)
            for at in rng.integers(0, len(data), 4):
                changed[at] = rng.integers(256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    pixels, _ = decode_bytes(bytes(changed))
                except ImageError:
                    continue
            assert pixels.dtype == np.uint8 and pixels.ndim == 3
