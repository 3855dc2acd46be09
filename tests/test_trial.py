"""Trials on cached activations: exact, repeatable, continued where they stopped."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from automl.errors import StorageError
from automl.search.activations import Activations, evict
from automl.search.checkpoint import read_checkpoint
from automl.search.course import REFINE_DEPTH, REFINE_RATE
from automl.search.engine import litert_engine, tensorflow_engine
from automl.search.model import cut_layer, cut_prefix, join, trained_variables
from automl.search.plan import measure_speeds
from automl.search.spec import PixelSource, StudySpec, TrialTask
from automl.search.suffix import build_suffix
from automl.search.trial import balance_rows, digest_checkpoint, get_trainer, run_trial
from automl.search.views import make_view
from automl.search.weights import digest_weights, load_backbone

SIZE = 64
PARAMS = {
    "fine_tune_depth": 2,
    "head_units": 64,
    "dropout": 0.2,
    "learning_rate": 3e-3,
    "width": 0.35,
}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> StudySpec:
    """120 noisy squares, half with a bright patch, and a random backbone."""
    folder = tmp_path_factory.mktemp("pixels")
    draw = np.random.default_rng(0)
    targets = np.arange(120) % 2
    pixels = draw.integers(0, 60, (120, SIZE, SIZE, 3)).astype(np.uint8)
    for i in np.flatnonzero(targets):
        a, b = draw.integers(8, 40, 2)
        pixels[i, a : a + 14, b : b + 14] += 80
    np.save(folder / "pixels.npy", pixels)
    return StudySpec(
        pixels=PixelSource(folder / "pixels.npy", pixels.shape, "drawn"),
        targets=targets,
        train_rows=np.arange(80),
        val_rows=np.arange(80, 120),
        n_classes=2,
        weights="none",
        depths=(0, 2),
        views=2,
        balance="oversample",
        objective="roc_auc",
        seed=0,
        cache_folder=folder / "cache",
        cache_limit=1e9,
    )


def task(folder: Path, name: str, epochs: int, parent: Path | None = None, **params) -> TrialTask:
    return TrialTask(name, 5, PARAMS | params, epochs, 4, parent, folder / f"{name}.npz", 16)


@pytest.mark.slow
def test_training_with_and_without_the_cache_gives_the_same_losses(spec, tmp_path):
    cached, live = replace(spec, views=1), replace(spec, views=1, cache_folder=None)
    for depth in spec.depths:
        one = run_trial(cached, task(tmp_path, "a", 3, fine_tune_depth=depth, dropout=0.0))
        two = run_trial(live, task(tmp_path, "b", 3, fine_tune_depth=depth, dropout=0.0))
        for name in ("loss", "val_loss"):
            first, second = ([row[name] for row in result.history] for result in (one, two))
            np.testing.assert_allclose(first, second, atol=1e-4)


@pytest.mark.slow
def test_a_trial_is_repeatable_and_can_be_continued(spec, tmp_path):
    whole = run_trial(spec, task(tmp_path, "whole", 4))
    again = run_trial(spec, task(tmp_path, "again", 4))
    run_trial(spec, task(tmp_path, "other", 2, head_units=0, fine_tune_depth=0))
    run_trial(spec, task(tmp_path, "half", 2))
    rest = run_trial(spec, task(tmp_path, "rest", 4, parent=tmp_path / "half.npz"))
    assert [row["loss"] for row in whole.history] == [row["loss"] for row in again.history]
    assert [row["loss"] for row in whole.history[2:]] == [row["loss"] for row in rest.history]
    assert [row["epoch"] for row in rest.history] == [3, 4]
    assert digest_checkpoint(tmp_path / "whole.npz") == digest_checkpoint(tmp_path / "rest.npz")


@pytest.mark.slow
@pytest.mark.parametrize("depth", [0, 2])
def test_a_refinement_goes_on_from_the_best_weights_with_more_of_the_network(
    spec, tmp_path, depth, monkeypatch
):
    run_trial(spec, task(tmp_path, "parent", 3, fine_tune_depth=depth))
    refining = replace(
        task(tmp_path, "refined", 5, tmp_path / "parent.npz", fine_tune_depth=depth), refines=2
    )
    seen = []
    read = Activations.read
    monkeypatch.setattr(
        Activations, "read", lambda self, d, v, rows: seen.append((d, v)) or read(self, d, v, rows)
    )
    result = run_trial(spec, refining)
    again = run_trial(spec, replace(refining, checkpoint=tmp_path / "again.npz"))
    assert [row["loss"] for row in result.history] == [row["loss"] for row in again.history]
    assert [row["epoch"] for row in result.history] == [4, 5]
    # Every epoch has a view of its own, none of them cached.
    assert {view for d, view in seen if d == REFINE_DEPTH} == {0, spec.views + 4, spec.views + 5}
    rates = [row["learning_rate"] for row in result.history]
    assert rates == pytest.approx([REFINE_RATE, REFINE_RATE / 2])
    _, before, _ = read_checkpoint(tmp_path / "parent.npz")
    _, after, meta = read_checkpoint(tmp_path / "refined.npz")
    assert meta["depth"] == REFINE_DEPTH and len(after) > len(before)
    assert (meta["best_epoch"], result.score) == (5, result.history[-1]["val_roc_auc"])
    # The last layer is the parent's, a little changed; the first ones the backbone's.
    backbone = load_backbone(SIZE, 0.35, "none", 0)
    start = [variable.numpy() for variable in trained_variables(backbone, REFINE_DEPTH)]
    bodies = [[a for n, a in s.items() if n.startswith("body/")] for s in (before, after)]
    for old, new in [(start[0], bodies[1][0]), ((bodies[0] or start)[-1], bodies[1][-1])]:
        change = np.linalg.norm(new - old) / np.linalg.norm(old)
        assert 0 < change < 0.1
    model = join(*get_trainer(spec, 0.35).best_parts(refining.params, tmp_path / "refined.npz"), 2)
    pixels = np.load(spec.pixels.path)[spec.val_rows].astype(np.float32)
    scores = model.predict(pixels, verbose=0)[:, 1]
    assert abs(roc_auc_score(spec.targets[spec.val_rows], scores) - result.score) < 1e-6
    hurried = run_trial(spec, replace(refining, checkpoint=tmp_path / "hurried.npz", seconds=0.0))
    assert [row["loss"] for row in hurried.history] == [result.history[0]["loss"]]
    assert read_checkpoint(tmp_path / "hurried.npz")[2]["best_epoch"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("head_units", [0, 64])
def test_the_delivered_model_has_the_score_that_was_reported(spec, tmp_path, head_units):
    params = PARAMS | {"head_units": head_units}
    result = run_trial(spec, task(tmp_path, "t", 3, head_units=head_units))
    trainer = get_trainer(spec, 0.35)
    model = join(*trainer.best_parts(params, tmp_path / "t.npz"), 2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    pixels = np.load(spec.pixels.path)[spec.val_rows].astype(np.float32)
    probabilities = loaded.predict(pixels, verbose=0)
    assert probabilities.shape == (40, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    y = spec.targets[spec.val_rows]
    assert abs(roc_auc_score(y, probabilities[:, 1]) - result.score) < 1e-6
    _, _, meta = read_checkpoint(tmp_path / "t.npz")
    loss = -np.log(probabilities[np.arange(40), y]).mean()
    reported = result.history[meta["best_epoch"] - 1]["val_loss"]
    assert abs(loss - reported) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("width", [0.35, 1.0])
def test_prefix_and_suffix_are_the_whole_at_every_depth(width):
    backbone = load_backbone(SIZE, width, "none", 1)
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.float32)
    whole = backbone(images, training=False).numpy()
    for depth in range(1, 18):
        middle = cut_prefix(backbone, (depth,))(images, training=False)
        middle = middle[0] if isinstance(middle, list) else middle
        joined = build_suffix(backbone, depth)(tf.constant(middle)).numpy()
        np.testing.assert_allclose(joined, whole, atol=1e-5, err_msg=cut_layer(depth))


@pytest.mark.slow
def test_litert_agrees_with_tensorflow_to_1e_4():
    backbone = load_backbone(SIZE, 0.35, "none", 1)
    prefix = cut_prefix(backbone, (0, 2, 7))
    images = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.float32)
    for ours, theirs in zip(
        litert_engine(prefix)(images), tensorflow_engine(prefix)(images), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def make_cache(spec: StudySpec, folder: Path, **changes) -> Activations:
    backbone = load_backbone(SIZE, 0.35, "none", changes.pop("weights_seed", 0))
    settings = {"views": 2, "seed": 0, "train_rows": spec.train_rows, "folder": folder} | changes
    return Activations(backbone, digest_weights(backbone), spec.pixels, (0, 2), **settings)


@pytest.mark.slow
def test_the_cache_is_shared_by_equals_and_by_nobody_else(spec, tmp_path):
    first = make_cache(spec, tmp_path)
    first.fill()
    assert (first.hits, first.misses) == (0, 4)
    second = make_cache(spec, tmp_path)
    assert second.is_filled()
    second.fill()
    assert (second.hits, second.misses) == (4, 0)
    rows = np.array([7, 3])
    np.testing.assert_array_equal(first.read(2, 1, rows), second.read(2, 1, rows))
    assert not make_cache(spec, tmp_path, weights_seed=1).is_filled()
    other_view = make_cache(spec, tmp_path, seed=1)
    other_view.fill()
    assert (other_view.hits, other_view.misses) == (2, 2), "view 0 does not depend on the seed"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can mount")
def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(spec, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)]
    if subprocess.run(mounting, capture_output=True).returncode != 0:
        pytest.skip("this machine does not let us mount")
    try:
        with pytest.raises(StorageError, match=r"No space left on device\. Free some space"):
            make_cache(spec, small).fill()
        assert list(small.rglob("*.part")) == []
        subprocess.run(["mount", "-o", "remount,size=90m", str(small)], check=True)
        make_cache(spec, small).fill()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_torn_file_is_not_taken_for_a_whole_one(spec, tmp_path):
    cache = make_cache(spec, tmp_path, views=1)
    torn = cache._path(0, 0).with_suffix(".part")
    torn.parent.mkdir(exist_ok=True)
    torn.write_bytes(b"half of an array")
    assert not cache.is_filled()
    cache.fill()
    assert not torn.exists()
    assert cache.read(0, 0, np.array([1])).shape == (1, 1280)


def test_eviction_takes_what_was_used_longest_ago_and_spares_what_is_in_use(tmp_path):
    arrays, scans = tmp_path / "activations", tmp_path / "scans"
    arrays.mkdir()
    for age, name in enumerate(["new", "used", "old"]):
        (arrays / f"{name}.npy").write_bytes(bytes(10_000))
        os.utime(arrays / f"{name}.npy", (1000 - age, 1000 - age))
        (scans / name).mkdir(parents=True)
        (scans / name / "pixels.npy").write_bytes(bytes(10_000))
        os.utime(scans / name, (500 - age, 500 - age))
    left = lambda: {str(p.relative_to(tmp_path)) for p in [*arrays.iterdir(), *scans.iterdir()]}  # noqa: E731
    size = sum(p.stat().st_size for p in tmp_path.rglob("*")) - 2 * 4096
    evict(arrays, size, keep=set())
    assert len(left()) == 6
    evict(arrays, size - 10_000, keep={scans / "old"})
    assert left() == {
        "activations/new.npy", "activations/used.npy", "activations/old.npy",
        "scans/old", "scans/new",
    }  # fmt: skip
    evict(arrays, 0, keep={arrays / "used.npy", scans / "new"})
    assert left() == {"activations/used.npy", "scans/new"}


def test_views_are_fixed_and_view_zero_is_the_image():
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)
    rows = np.array([4, 9, 2])
    np.testing.assert_array_equal(make_view(pixels, rows, 0, 0), pixels)
    view = make_view(pixels, rows, 1, 0)
    np.testing.assert_array_equal(view, make_view(pixels, rows, 1, 0))
    # A view belongs to the image's row, not to its place in the batch.
    np.testing.assert_array_equal(view[1:], make_view(pixels[1:], rows[1:], 1, 0))
    assert np.abs(view - make_view(pixels, rows, 2, 0)).mean() > 1
    assert view.min() >= 0 and view.max() <= 255


@pytest.mark.parametrize("method", ["oversample", "class_weight", "none"])
def test_balancing_gives_classes_equal_weight_and_keeps_every_row(method):
    targets = np.array([0] * 30 + [1] * 8)
    rows = np.arange(38)
    drawn, weights = balance_rows(rows, targets, method, 2, np.random.default_rng(0))
    assert set(drawn) == set(rows)
    total = [weights[targets[drawn] == c].sum() for c in (0, 1)]
    assert (total[0] == pytest.approx(total[1])) == (method != "none")
    assert len(drawn) == (60 if method == "oversample" else 38)


@pytest.mark.slow
def test_measuring_the_machine_does_not_change_what_is_cached(spec, tmp_path):
    measured = replace(spec, cache_folder=tmp_path / "measured", views=1)
    speeds = measure_speeds(measured, 0.35, 16)
    assert set(speeds.train) == {0, 2}
    trainer = get_trainer(measured, 0.35)
    trainer.prepare()
    fresh = make_cache(spec, tmp_path / "fresh", views=1)
    fresh.fill()
    rows = np.arange(120)
    for depth in (0, 2):
        ours, theirs = (cache.read(depth, 0, rows) for cache in (trainer.activations, fresh))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
