"""The drawn sample: slices of synthetic heads, half of the patients with a lesion.

A head is the modified Shepp–Logan phantom in three dimensions (Toft 1996, table B.3, with the
z-axes of Kak & Slaney's 3-D head), bent for each patient: sizes, positions, angles and grey values
of all ten ellipsoids vary, cortex and noise textures differ, a smooth bias field lies over it, and
the noise is Rician as in magnitude MRI (Gudbjartsson & Patz 1995). A lesion is a little
brighter than its surroundings and much rougher; small bright vessels are drawn in every head.
Every slice of a lesion patient cuts the lesion; slices of healthy patients are chosen by the same
rule through a lesion that is not drawn, so that the slice's height says nothing.

Drawn from one seed, so the same seed gives the same images.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from automl.errors import StorageError
from automl.records import Dataset, Sample

# Raise it whenever the drawing changes.
VERSION = 3
CLASSES = ("healthy", "lesion")

# How hard it is. A lesion differs in its texture more than in its brightness, which a convolution
# sees and neither a thumbnail nor a mean does: with these ranges a logistic regression on pooled
# features of a random MobileNetV2 (width 1.0, 160 px, patients kept apart) has ROC AUC 0.93 to
# 0.95, one on brightness, spread and margins about 0.5. Some lesions are missed, as in a real
# study, and there are enough patients to tell how many.
# Rougher, brighter, larger or with less noise is easier. Contrast and roughness are shares of the
# skull's brightness, radii of half the field of view, the noise's standard deviation of the skull.
LESION_CONTRAST = (0.05, 0.18)
LESION_ROUGHNESS = (0.27, 0.58)
LESION_RADIUS = (0.16, 0.33)
NOISE = (0.006, 0.014)
# Mean grey value of an image, as a share of white: every image is windowed to one of its own, so
# that a lesion cannot be told by an image's brightness.
BRIGHTNESS = (0.11, 0.17)

# Grey value added, semi-axes a b c, centre x y z, rotation about z in degrees.
ELLIPSOIDS = np.array(
    [
        (1.00, 0.690, 0.920, 0.810, 0.00, 0.0000, 0.00, 0),
        (-0.80, 0.6624, 0.874, 0.780, 0.00, -0.0184, 0.00, 0),
        (-0.20, 0.110, 0.310, 0.220, 0.22, 0.0000, 0.00, -18),
        (-0.20, 0.160, 0.410, 0.280, -0.22, 0.0000, 0.00, 18),
        (0.10, 0.210, 0.250, 0.410, 0.00, 0.3500, -0.15, 0),
        (0.10, 0.046, 0.046, 0.050, 0.00, 0.1000, 0.25, 0),
        (0.10, 0.046, 0.046, 0.050, 0.00, -0.1000, 0.25, 0),
        (0.10, 0.046, 0.023, 0.050, -0.08, -0.6050, 0.00, 0),
        (0.10, 0.023, 0.023, 0.020, 0.00, -0.6060, 0.00, 0),
        (0.10, 0.023, 0.046, 0.020, 0.06, -0.6050, 0.00, 0),
    ]
)


def draw_sample(
    cache_dir: Path, seed: int = 0, patients: int = 340, slices: int = 2, size: int = 128
) -> Dataset:
    """Draw the sample, or find it in the cache.

    Args:
        cache_dir: PNG files are kept in a folder below it, made when missing.
        seed: the same seed gives the same images.
        patients: half of them have a lesion.
        slices: images of each patient.
        size: side of the images in pixels.

    Raises:
        StorageError: the cache cannot be written.
    """
    recipe = [VERSION, seed, patients, slices, size, LESION_CONTRAST, LESION_ROUGHNESS]
    recipe += [LESION_RADIUS, NOISE, BRIGHTNESS]
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]
    folder = Path(cache_dir) / "sample" / f"heads-{digest}"
    samples = list_samples(folder, seed, patients, slices)
    # The folder appears by a rename when all is written; a file that someone removed since is
    # drawn again with all others.
    if not all(sample.path.is_file() for sample in samples):
        try:
            write_images(folder, samples, draw_heads(seed, patients, slices, size))
        except OSError as error:
            raise StorageError(
                f"Cannot write the sample to {folder}: {error.strerror}. Choose another folder "
                "with --cache-dir."
            ) from error
    return Dataset(
        name="sample",
        root=folder,
        kind="sample",
        samples=tuple(sorted(samples, key=lambda sample: sample.image)),
        classes=CLASSES,
        positive="lesion",
        synthetic=True,
    )


def list_samples(folder: Path, seed: int, patients: int, slices: int) -> list[Sample]:
    """Samples patient by patient, slice by slice."""
    samples = []
    for patient, has_lesion in enumerate(choose_patients(seed, patients)):
        label = CLASSES[int(has_lesion)]
        for number in range(slices):
            image = f"{label}/patient{patient + 1:03d}_{number + 1}.png"
            samples.append(Sample(image, folder / image, label, group=f"patient{patient + 1:03d}"))
    return samples


def choose_patients(seed: int, patients: int) -> np.ndarray:
    """Which patients have a lesion, bool (patients,): half of them, in no order."""
    return np.random.default_rng([seed, 1]).permutation(patients) < patients // 2


def draw_heads(seed: int, patients: int, slices: int, size: int) -> np.ndarray:
    """All images, uint8 (patients * slices, size, size)."""
    lesions = choose_patients(seed, patients)
    return np.concatenate(
        [
            draw_patient(np.random.default_rng([seed, 2, patient]), lesions[patient], slices, size)
            for patient in range(patients)
        ]
    )


def draw_patient(rng: np.random.Generator, has_lesion: bool, slices: int, size: int) -> np.ndarray:
    """Slices through one head, uint8 (slices, size, size)."""
    head = ELLIPSOIDS.copy()
    vary_anatomy(rng, head)
    x, y = make_grid(rng, size)
    lesion = choose_lesion(rng, head)
    # Through the lesion's inner part, so that each slice shows enough of it to be called one.
    depth = np.linspace(-0.6, 0.6, slices) + rng.uniform(-0.1, 0.1, slices)
    z = lesion[6] + lesion[3] * depth
    heights = z[:, None, None].astype(np.float32)
    inside = soften(head[1], x, y, heights, size)
    image = np.zeros((slices, size, size), np.float32)
    for row in head:
        image += np.float32(row[0]) * soften(row, x, y, heights, size)
    image += inside * draw_texture(rng, slices, size)
    for vessel in choose_vessels(rng, z):
        image += np.float32(vessel[0]) * soften(vessel, x, y, heights, size) * inside
    mask = soften(lesion, x, y, heights, size, edge=rng.uniform(2.0, 4.0)) * inside
    if has_lesion:
        roughness = np.float32(rng.uniform(*LESION_ROUGHNESS))
        image += mask * (np.float32(lesion[0]) + roughness * draw_noise(rng, slices, size, 40))
    image *= draw_bias(rng, x, y)
    sigma = rng.uniform(*NOISE)
    noise = sigma * rng.standard_normal((2, *image.shape), np.float32)
    image = np.sqrt((image + noise[0]) ** 2 + noise[1] ** 2)
    gain = 255 * rng.uniform(*BRIGHTNESS) / image.mean(axis=(1, 2), keepdims=True)
    return np.clip(np.rint(image * gain), 0, 255).astype(np.uint8)


def vary_anatomy(rng: np.random.Generator, head: np.ndarray) -> None:
    """Make a patient's own head of the phantom, in place."""
    head[:, 1:4] *= rng.normal(1, 0.045, 3)
    head[2:, 1:4] *= np.clip(rng.normal(1, 0.12, (8, 3)), 0.7, 1.4)
    head[2:, 4:7] += rng.normal(0, 0.015, (8, 3))
    head[2:, 7] += rng.normal(0, 5, 8)
    # A skull between dim and bright, so that the brightest pixel says little.
    skull = rng.uniform(0.6, 1.0)
    brain = rng.uniform(0.28, 0.34)
    head[0, 0], head[1, 0] = skull, brain - skull
    head[2:4, 0] = -rng.uniform(0.10, 0.25)
    head[4, 0] = rng.uniform(-0.03, 0.08)
    head[5:, 0] = rng.uniform(0.02, 0.10, 5)


def make_grid(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in the head, x to the right and y up, each (1, size, size), about −1 to 1."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(axis, -axis)
    angle = np.deg2rad(rng.normal(0, 4))
    zoom = rng.uniform(1.02, 1.15)
    x, y = x * zoom + rng.normal(0, 0.02), y * zoom + rng.normal(0, 0.02)
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = x * cos + y * sin, y * cos - x * sin
    return u[None].astype(np.float32), v[None].astype(np.float32)


def choose_lesion(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    """An ellipsoid inside the brain, away from its middle and its edge; a row as ELLIPSOIDS'."""
    radius = rng.uniform(*LESION_RADIUS)
    direction = rng.uniform(0, 2 * np.pi)
    distance = np.sqrt(rng.uniform(0.25, 0.85)) * 0.8
    a, b = head[1, 1] - radius, head[1, 2] - radius
    value = rng.uniform(*LESION_CONTRAST)
    axes = radius * rng.uniform(0.75, 1.3, 3)
    x, y = distance * a * np.cos(direction), distance * b * np.sin(direction)
    z = rng.uniform(-0.2, 0.3)
    return np.array([value, *axes, x, y, z, rng.uniform(0, 180)])


def choose_vessels(rng: np.random.Generator, z: np.ndarray) -> list[np.ndarray]:
    """Small bright ellipsoids that every head has, near the slices' heights ``z``."""
    vessels = []
    for _ in range(rng.integers(4, 9)):
        axes = rng.uniform(0.015, 0.04, 3)
        direction, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.7)
        x, y = distance * 0.6 * np.cos(direction), distance * 0.8 * np.sin(direction)
        height = rng.uniform(z.min(), z.max())
        vessels.append(np.array([rng.uniform(0.1, 0.35), *axes, x, y, height, 0]))
    return vessels


def soften(
    row: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray, size: int, edge: float = 1.0
) -> np.ndarray:
    """How much of each pixel an ellipsoid covers, 0–1 (slices, size, size).

    ``edge`` is the width of its border in pixels: partial volume, or a lesion without a clear one.
    """
    # Single precision halves the time, and 8 bits are kept.
    _, a, b, c, x0, y0, z0, degrees = row.astype(np.float32)
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    u = (x - x0) * cos + (y - y0) * sin
    v = (y - y0) * cos - (x - x0) * sin
    radius = np.sqrt((u / a) ** 2 + (v / b) ** 2 + ((z - z0) / c) ** 2)
    pixels = (1 - radius) * (min(a, b) * np.float32(size / 2 / edge))
    return np.clip(pixels + np.float32(0.5), 0, 1)


def draw_texture(rng: np.random.Generator, slices: int, size: int) -> np.ndarray:
    """Anatomy that no ellipsoid has, (slices, size, size).

    The coarse part is a patient's own, so that no two heads are near-copies of each other.
    """
    coarse = draw_noise(rng, slices, size, 7)
    fine = draw_noise(rng, slices, size, 28)
    return np.float32(0.045) * coarse + np.float32(0.010) * fine


def draw_noise(rng: np.random.Generator, slices: int, size: int, cells: int) -> np.ndarray:
    """Smooth noise of unit spread with ``cells`` cells across, alike in neighbouring slices."""
    common = rng.normal(0, 0.7, (1, cells, cells))
    grid = (common + rng.normal(0, 0.7, (slices, cells, cells))).astype(np.float32)
    position = np.linspace(0, cells - 1, size)
    low = np.minimum(position.astype(int), cells - 2)
    share = (position - low).astype(np.float32)
    # Smoothstep between the grid's values, one axis after the other.
    share = share * share * (3 - 2 * share)
    rows = grid[:, low] * (1 - share)[:, None] + grid[:, low + 1] * share[:, None]
    return rows[:, :, low] * (1 - share) + rows[:, :, low + 1] * share


def draw_bias(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The coil's smooth sensitivity, about 0.6 to 1.4, (1, size, size)."""
    a, b, c, d = rng.uniform(-0.20, 0.20, 4).astype(np.float32)
    return 1 + a * x + b * y + c * x * y + d * (x * x - y * y)


def write_images(folder: Path, samples: list[Sample], images: np.ndarray) -> None:
    """Write all PNG files to a temporary folder, then put it in place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="heads-", dir=folder.parent))
    try:
        for name in CLASSES:
            (work / name).mkdir()
        for sample, image in zip(samples, images, strict=True):
            # Not compressed, so that a file's size does not tell of its texture.
            Image.fromarray(image).save(work / sample.image, compress_level=0)
        if folder.exists():
            shutil.rmtree(folder)
        try:
            os.rename(work, folder)
        except OSError:
            # Another process was faster; its images are the same.
            if not all(sample.path.is_file() for sample in samples):
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
