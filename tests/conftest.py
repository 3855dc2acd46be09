"""Small real things that many tests use: drawn images in folders and in a CSV, a cache."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parents[2] / "shared"


def draw_picture(seed: int, bright: bool, size: int = 64) -> np.ndarray:
    """A disc on black with texture of its own, and a bright spot if asked; uint8 (size, size)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size * 2 - 1
    radius = np.hypot(x / rng.uniform(0.6, 0.9), y / rng.uniform(0.6, 0.9))
    texture = np.kron(rng.uniform(60, 140, (8, 8)), np.ones((size // 8, size // 8)))
    image = np.where(radius < 1, texture, 0) + rng.normal(0, 2, (size, size))
    if bright:
        u, v = rng.uniform(-0.4, 0.4, 2)
        image[np.hypot(x - u, y - v) < 0.2] = 230
    return np.clip(image, 0, 255).astype(np.uint8)


def write_pictures(root: Path, per_class: int = 12) -> Path:
    """``root/healthy`` and ``root/tumour`` with ``per_class`` PNG files each."""
    for label in ("healthy", "tumour"):
        (root / label).mkdir(parents=True)
        for i in range(per_class):
            picture = draw_picture(i + 1000 * (label == "tumour"), label == "tumour")
            Image.fromarray(picture).save(root / label / f"{label[0]}{i:02d}.png")
    return root


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders of 12 images of 64×64; read it, never write to it."""
    return write_pictures(tmp_path_factory.mktemp("classes") / "scans")


@pytest.fixture(scope="session")
def csv_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV as Kaggle's (Image without extension, Class, patient, sex, texture) and its images."""
    root = tmp_path_factory.mktemp("table") / "Brain"
    write_pictures(root / "Brain")
    with open(root / "Brain.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Image", "Class", "patient_id", "sex", "Mean"])
        for label in ("healthy", "tumour"):
            for i in range(12):
                name, patient = f"{label[0]}{i:02d}", f"P{label[0]}{i // 2}"
                writer.writerow([name, int(label == "tumour"), patient, "FM"[i % 2], i / 7])
    return root / "Brain.csv"


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def brain_tumor() -> Path:
    """The real data set, where it is at hand."""
    path = SHARED / "data" / "brain-tumor"
    if not path.is_dir():
        pytest.skip(f"needs {path}")
    return path


# Files are shared out whole, in this order and then the rest: the longest first, so that at the
# end no worker is left with one while the others have nothing to do.
LONGEST_FIRST = (
    "test_pipeline.py", "test_mlflow_server.py", "test_cluster.py", "test_report_browser.py",
    "test_export.py", "test_space.py", "test_mlflow_sink.py", "test_render.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
