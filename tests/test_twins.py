"""Twins are found whatever was done to the copy, and nothing else is called a twin."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scans import draw_picture, make_dataset, make_scan

from automl.data import neighbours
from automl.data import twins as module
from automl.data.twins import connect, find_twins, group_sizes, link_thumbnails, rotate
from automl.records import Twins

N = 30
CHANGES = {
    "copied": (lambda image: image, "bytes"),
    "brighter": (lambda image: image.point(lambda v: min(255, v * 1.1)), "near"),
    "darker": (lambda image: image.point(lambda v: v * 0.9), "near"),
    "smaller": (lambda image: image.resize((70, 70), Image.Resampling.BICUBIC), "near"),
    "larger": (lambda image: image.resize((150, 150), Image.Resampling.BICUBIC), "near"),
    "cropped": (lambda image: image.crop((3, 3, 93, 93)), "near"),
    "flipped": (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "flipped"),
    "turned left": (lambda image: image.rotate(2.5, Image.Resampling.BICUBIC), "rotated"),
    "turned right": (lambda image: image.rotate(-2.5, Image.Resampling.BICUBIC), "rotated"),
}


def twins_of(pictures: list[np.ndarray], **options: float) -> Twins:
    labels = ["a" if i % 2 else "b" for i in range(len(pictures))]
    return find_twins(make_scan(pictures, make_dataset(labels)), **options)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_a_twin_of_its_original_and_of_nothing_else(change: str) -> None:
    apply, kind = CHANGES[change]
    pictures = [draw_picture(seed) for seed in range(N)]
    pictures.append(np.asarray(apply(Image.fromarray(pictures[4]))))
    twins = twins_of(pictures)
    assert [(i, j) for i, j, _, _ in twins.pairs] == [(4, N)]
    found = twins.pairs[0][3]
    # A turn of a smooth picture may stay above the threshold as it is.
    assert found == kind or (kind == "rotated" and found == "near")
    assert twins.group[4] == twins.group[N]
    assert group_sizes(twins.group) == {1: N - 1, 2: 1}


def test_a_turn_that_moves_fine_detail_is_found_by_turning_back() -> None:
    random = np.random.default_rng(0)
    coarse = random.normal(size=(2, 11, 11)).astype(np.float32)
    fine = np.array([np.asarray(Image.fromarray(c).resize((32, 32))) for c in coarse])
    unit = module.unit_rows(fine.reshape(2, -1)).reshape(2, 32, 32)
    for degrees in (3, -3):
        turned = module.unit_rows(rotate(unit[:1], degrees).reshape(1, -1)).reshape(1, 32, 32)
        as_it_is = float((unit[0] * turned[0]).sum())
        links = link_thumbnails(np.concatenate([unit, turned]), 0.98, 0.95)
        assert as_it_is < 0.96
        assert list(zip(links["i"], links["j"], strict=True)) == [(0, 2)]
        assert module.KINDS[links["kind"][0]] == "rotated"


def test_byte_identical_files_are_told_from_equal_pixels() -> None:
    scan = make_scan([draw_picture(1)] * 3, make_dataset(["a", "b", "a"]))
    facts = tuple(dict(fact) for fact in scan.facts)
    facts[2]["sha256"] = "the same picture in another file format"
    twins = find_twins(replace(scan, facts=facts))
    assert [pair[3] for pair in twins.pairs] == ["bytes", "pixels", "pixels"]
    assert find_twins(scan, threshold=1.0).pairs == tuple(
        (i, j, 1.0, "bytes") for i, j in ((0, 1), (0, 2), (1, 2))
    )


def test_blank_and_nearly_constant_images_are_twins_of_nothing() -> None:
    random = np.random.default_rng(0)
    speckle = (random.random((96, 96, 1)) < 0.5).repeat(3, axis=2).astype(np.uint8)
    pictures = [draw_picture(seed) for seed in range(5)]
    pictures += [np.zeros((96, 96, 3), np.uint8)] * 3 + [np.full((96, 96, 3), 200, np.uint8)]
    pictures += [speckle, speckle]
    scan = make_scan(pictures, make_dataset(["a"] * len(pictures)))
    # The scan has said so of the first image of a single colour.
    notes = tuple({**fact, "notes": ["blank"] * (i == 5)} for i, fact in enumerate(scan.facts))
    twins = find_twins(replace(scan, facts=notes))
    assert twins.pairs == ()
    assert len(np.unique(twins.group)) == len(pictures)
    assert [(f.check, f.count) for f in twins.findings] == [("blank_images", 5)]


def test_chains_join_groups_and_groups_are_numbered_by_first_member() -> None:
    group = connect(np.arange(6), np.array([5, 3, 1]), np.array([3, 1, 4]))
    assert group.tolist() == [0, 1, 2, 1, 1, 1]


def test_pairs_and_groups_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [draw_picture(seed % 17) for seed in range(40)]
    whole = twins_of(pictures)
    monkeypatch.setattr(module, "BLOCK", 7)
    blocked = twins_of(pictures)
    assert blocked.pairs == whole.pairs
    assert blocked.group.tolist() == whole.group.tolist()


@pytest.mark.parametrize("dense", [0.0, 1.0])
def test_comparing_in_a_subspace_first_changes_nothing(
    dense: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse = np.random.default_rng(0).normal(size=(25, 11, 11)).astype(np.float32)
    plain = np.array([np.asarray(Image.fromarray(c).resize((32, 32))) for c in coarse])
    noisy = plain[:6] + np.random.default_rng(1).normal(0, 0.2, (6, 32, 32))
    every = np.concatenate([plain, rotate(plain[:5], 3), plain[3:8, :, ::-1], noisy])
    unit = module.unit_rows(every.reshape(len(every), -1).astype(np.float32))
    unit = unit.reshape(-1, 32, 32)
    whole = link_thumbnails(unit, 0.96, 0.9)
    monkeypatch.setattr(neighbours, "FEWEST", 10)
    monkeypatch.setattr(neighbours, "DIMENSIONS", 6)
    monkeypatch.setattr(neighbours, "DENSE", dense)
    short = link_thumbnails(unit, 0.96, 0.9)
    assert set(whole["kind"]) == {2, 3, 4}
    for name in ("i", "j", "kind", "group", "neighbours"):
        assert np.array_equal(short[name], whole[name]), name
    assert whole["neighbours"] > 0


def test_thinned_pairs_keep_the_groups_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAIRS", 3)
    twins = twins_of([draw_picture(0)] * 8)
    assert len(twins.pairs) == 3
    assert twins.group.tolist() == [0] * 8
    assert "twin_pairs_thinned" in [finding.check for finding in twins.findings]


def test_a_threshold_that_merges_the_data_is_warned_of_with_a_better_one() -> None:
    random = np.random.default_rng(0)
    base = random.normal(size=(1, 32 * 32))
    rows = module.unit_rows((base + 0.12 * random.normal(size=(60, 32 * 32))).astype(np.float32))
    scan = make_scan([draw_picture(0)] * 60, make_dataset(["a", "b"] * 30))
    facts = tuple({**fact, "sha256": i, "pixel_sha256": i} for i, fact in enumerate(scan.facts))
    scan = replace(scan, thumbnails=rows.reshape(60, 32, 32), facts=facts)
    finding = find_twins(scan, threshold=0.98).findings[0]
    assert (finding.check, finding.severity, finding.count) == ("twins_merged", "warning", 60)
    assert finding.detail["suggested"] == 0.99
    assert find_twins(scan, threshold=0.99).findings == ()


def test_neighbours_are_pairs_between_the_two_thresholds() -> None:
    pictures = [draw_picture(seed) for seed in range(6)] + [draw_picture(0)]
    scan = make_scan(pictures, make_dataset(["a", "b"] * 3 + ["a"]))
    flat = scan.thumbnails.reshape(7, -1)
    correlation = (flat @ flat.T)[np.triu_indices(7, 1)]
    low = float(np.sort(correlation)[-4]) - 1e-6
    assert find_twins(scan, neighbour=low).neighbours == 3


def test_a_single_image_has_no_twin() -> None:
    assert twins_of([draw_picture(0)]).pairs == ()


@pytest.mark.slow
def test_the_brain_tumour_set_has_its_known_copies(tmp_path: Path) -> None:
    root = Path(__file__).parents[2] / "shared" / "data" / "brain-tumor"
    if not root.is_dir():
        pytest.skip("needs the brain-tumour data in ../shared")
    from automl.config import SearchConfig
    from automl.data.pixels import scan_images
    from automl.data.sources import load_dataset

    scan = scan_images(load_dataset(SearchConfig(data=str(root))), None, tmp_path)
    twins = find_twins(scan)
    identical = [pair for pair in twins.pairs if pair[3] == "bytes"]
    members = {row for pair in identical for row in pair[:2]}
    assert len(members) == 113
    assert len(np.unique(twins.group[list(members)])) <= 50
    labels = [sample.label for sample in scan.dataset.samples]
    assert all(labels[i] == labels[j] for i, j, _, _ in identical)
    share = np.mean(np.bincount(twins.group)[twins.group] > 1)
    assert 0.35 < share < 0.45
