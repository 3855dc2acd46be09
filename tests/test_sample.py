"""The drawn heads: true labels, patients kept, the same from the same seed."""

import time

import numpy as np
import pytest
from PIL import Image

from automl.data import sample
from automl.data.sample import choose_patients, draw_heads, draw_patient, draw_sample


def read_all(dataset):
    return [np.asarray(Image.open(s.path)) for s in dataset.samples]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return draw_sample(tmp_path_factory.mktemp("sample"), patients=8, slices=3, size=64)


def test_the_sample_says_that_it_is_synthetic_and_has_patients(small):
    assert small.synthetic and small.kind == "sample" and small.name == "sample"
    assert small.classes == ("healthy", "lesion") and small.positive == "lesion"
    assert len(small.samples) == 24
    labels = {}
    for item in small.samples:
        labels.setdefault(item.group, set()).add(item.label)
    assert len(labels) == 8 and all(len(found) == 1 for found in labels.values())
    assert sum(found == {"lesion"} for found in labels.values()) == 4


def test_samples_are_sorted_and_their_files_exist(small):
    names = [item.image for item in small.samples]
    assert names == sorted(names)
    assert all(
        item.path == small.root / item.image and item.path.is_file() for item in small.samples
    )
    assert {image.shape for image in read_all(small)} == {(64, 64)}


def test_the_same_seed_draws_the_same_bits_and_another_seed_does_not(small, tmp_path):
    again = draw_sample(tmp_path / "a", patients=8, slices=3, size=64)
    other = draw_sample(tmp_path / "b", seed=1, patients=8, slices=3, size=64)
    pairs = zip(read_all(small), read_all(again), strict=True)
    assert all(np.array_equal(first, second) for first, second in pairs)
    assert not np.array_equal(read_all(small)[0], read_all(other)[0])


def test_the_drawing_has_not_changed_without_a_new_version():
    # Means of bands, not a digest: processors differ in the last bit of a sine.
    bands = draw_heads(0, 2, 2, 32).reshape(4, 4, 8, 32).mean(axis=(2, 3))
    assert sample.VERSION == 3
    assert np.allclose(
        bands,
        [
            [27.2, 57.3, 60.5, 26.0],
            [30.7, 55.4, 56.5, 28.4],
            [17.4, 49.7, 47.0, 13.9],
            [20.5, 45.7, 43.9, 17.7],
        ],
        atol=0.2,
    )


def test_the_sample_is_drawn_once(small, monkeypatch):
    monkeypatch.setattr(sample, "draw_heads", None)
    again = draw_sample(small.root.parents[1], patients=8, slices=3, size=64)
    assert again == small


def test_a_removed_image_is_drawn_again(tmp_path):
    first = draw_sample(tmp_path, patients=4, slices=2, size=32)
    first.samples[3].path.unlink()
    assert draw_sample(tmp_path, patients=4, slices=2, size=32) == first
    assert first.samples[3].path.is_file()
    assert [path.name for path in first.root.parent.iterdir()] == [first.root.name]


def test_a_lesion_shows_in_every_slice_of_its_patient_and_nowhere_else():
    for patient in range(6):
        healthy, lesion = (
            draw_patient(np.random.default_rng([5, patient]), has_lesion, 4, 64).astype(float)
            for has_lesion in (False, True)
        )
        # Each image is windowed by itself: compare with the window taken out.
        healthy, lesion = (v / np.median(v[v > 25]) for v in (healthy, lesion))
        changed = (np.abs(healthy - lesion) > 0.35).sum(axis=(1, 2))
        assert (changed > 8).all()
        assert (changed < 64 * 64 / 6).all()


def test_half_of_the_patients_have_a_lesion():
    assert choose_patients(0, 120).sum() == 60
    assert not np.array_equal(choose_patients(0, 120), choose_patients(1, 120))


@pytest.mark.slow
def test_drawing_the_whole_sample_takes_seconds(tmp_path):
    start = time.process_time()
    dataset = draw_sample(tmp_path)
    assert time.process_time() - start < 15
    assert len(dataset.samples) == 680
