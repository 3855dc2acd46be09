"""The script that lies beside an export reads images as the search does, with Pillow alone."""

import numpy as np
import pytest
from PIL import Image

from automl.data.images import open_image
from automl.data.pixels import resize_pixels
from automl.serving.run_export import read_image


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("height", "width", "size"), [(60, 83, 32), (32, 32, 32), (20, 41, 64)])
def test_files_are_read_as_the_search_reads_them(mode, height, width, size, tmp_path):
    values = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for name in ("a.png", "a.jpg"):
        Image.fromarray(values).convert(mode).save(tmp_path / name)
        expected = resize_pixels(open_image(tmp_path / name)[0], size)
        assert np.array_equal(read_image(tmp_path / name, size), expected)


def test_deep_images_are_refused_rather_than_guessed(tmp_path):
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(SystemExit, match="more than 8 bits"):
        read_image(tmp_path / "deep.png", 32)
