"""Every check speaks when it should, and is silent when it should be."""

import base64
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scans import draw_picture, make_dataset, make_scan, make_twins, scan_and_twins
from sklearn.metrics import roc_auc_score

from automl.config import SearchConfig
from automl.data.audit import (
    audit_dataset,
    check_amount,
    check_balance,
    check_leaks,
    check_outliers,
    order_findings,
)
from automl.data.neighbours import nearest_others
from automl.data.shortcuts import (
    auc,
    auc_interval,
    encode,
    file_properties,
    fit_predict,
    make_folds,
    measure_shortcuts,
    name_properties,
)
from automl.data.split import finish_split, make_split, merge_groups
from automl.data.twins import find_twins
from automl.records import Audit, Finding, Scan, Split, Twins

CONFIG = SearchConfig()


def checks(audit: Audit) -> dict[str, Finding]:
    return {finding.check: finding for finding in audit.findings}


@pytest.fixture(scope="module")
def plain_scan() -> tuple[Scan, Twins]:
    """Sixty pictures without any fault, thirty of each class."""
    return scan_and_twins([draw_picture(seed) for seed in range(60)], ["a", "b"] * 30)


def given_split(scan: Scan, twins: Twins, part: list[str], kind: str = "file") -> Split:
    group = merge_groups(scan.dataset, twins)
    return finish_split(scan.dataset, twins, np.array(part, dtype=object), group, kind, 0)


def test_clean_data_has_no_finding_but_their_number(plain_scan: tuple[Scan, Twins]) -> None:
    scan, twins = plain_scan
    audit = audit_dataset(scan, twins, make_split(scan, twins, CONFIG), CONFIG)
    assert list(checks(audit)) == ["few_test_groups"]
    assert audit.summary["dataset"]["classes"] == {"a": 30, "b": 30}
    assert audit.summary["dataset"]["sizes"] == {"96x96": 60}
    assert audit.summary["dataset"]["group_kind"] == "images"
    assert audit.summary["twins"]["groups"] == 0
    assert audit.summary["twins"]["histogram"] == {"1": 60}
    assert audit.summary["without_twins"]["images"] == audit.summary["without_twins"]["of"]
    assert audit.summary["shortcuts"]["low"] < 0.6


def test_the_whole_audit_is_json(plain_scan: tuple[Scan, Twins]) -> None:
    scan, twins = plain_scan
    audit = audit_dataset(scan, twins, None, CONFIG)
    again = json.loads(json.dumps(audit.to_json(), allow_nan=False))
    assert set(again) == {"findings", "dataset", "twins", "shortcuts", "one_nn"}


def test_twins_and_their_conflicts_are_told_apart_by_what_is_identical() -> None:
    pictures = [draw_picture(seed) for seed in range(40)]
    labels = ["a", "b"] * 20
    pictures[10] = pictures[0]
    pictures[11] = pictures[20]
    pictures[13] = (pictures[30] * 0.9).astype(np.uint8)
    scan, twins = scan_and_twins(pictures, labels)
    audit = audit_dataset(scan, twins, None, CONFIG)
    found = checks(audit)
    assert found["twins"].count == 6
    assert found["twins"].severity == "warning"
    assert (found["identical_conflict"].severity, found["identical_conflict"].count) == ("error", 1)
    assert found["identical_conflict"].examples == ("scan_0011.png = scan_0020.png",)
    assert (found["twin_conflict"].severity, found["twin_conflict"].count) == ("warning", 1)
    assert audit.findings[0].severity == "error"
    pairs = audit.summary["twins"]["pairs"]
    assert [(pair["a"], pair["kind"]) for pair in pairs] == [
        ("scan_0013.png", "near"),
        ("scan_0011.png", "bytes"),
        ("scan_0000.png", "bytes"),
    ]
    assert audit.summary["twins"]["byte_identical"] == {"groups": 2, "images": 4}


def test_leaks_into_the_test_are_errors_and_name_what_remains_honest() -> None:
    pictures = [draw_picture(seed) for seed in range(40)]
    pictures[35], pictures[36], pictures[25] = pictures[0], pictures[26], pictures[1]
    scan, twins = scan_and_twins(pictures, ["a", "b"] * 20)
    split = given_split(scan, twins, ["train"] * 20 + ["val"] * 10 + ["test"] * 10)
    audit = audit_dataset(scan, twins, split, CONFIG)
    leak = checks(audit)["leaking_twins"]
    assert (leak.severity, leak.count) == ("error", 3)
    assert leak.detail["sides"] == {"train and val": 1, "test and train": 1, "test and val": 1}
    assert "8 test images without relatives" in leak.remedy
    assert "2 of 10 test images are touched" in leak.title
    assert audit.summary["without_twins"]["names"] == [
        f"scan_{i:04d}.png" for i in range(30, 40) if i not in (35, 36)
    ]
    only_val = given_split(scan, twins, ["train"] * 20 + ["val"] * 10 + ["test"] * 5 + [""] * 5)
    assert check_leaks(scan.dataset, twins, only_val)[0].severity == "warning"


def test_patients_on_two_sides_are_an_error_without_their_names() -> None:
    dataset = make_dataset(["a", "b"] * 10, [f"Jane Doe {i // 2}" for i in range(20)])
    scan = make_scan([draw_picture(seed) for seed in range(20)], dataset)
    twins = make_twins(list(range(20)))
    split = given_split(scan, twins, ["train"] * 11 + ["val"] * 4 + ["test"] * 5)
    finding = check_leaks(dataset, twins, split)[0]
    assert (finding.check, finding.severity, finding.count) == ("leaking_patients", "error", 2)
    assert "Jane" not in json.dumps([finding.title, finding.examples, finding.remedy])


def test_a_grouped_split_has_no_leak_finding() -> None:
    pictures = [draw_picture(seed % 30) for seed in range(60)]
    scan, twins = scan_and_twins(pictures, [label for label in "ab" * 15] * 2)
    audit = audit_dataset(scan, twins, make_split(scan, twins, CONFIG), CONFIG)
    assert not {"leaking_twins", "leaking_patients"} & set(checks(audit))


@pytest.mark.parametrize(("large", "severity"), [(50, None), (70, "info"), (250, "warning")])
def test_imbalance_is_graded(large: int, severity: str | None) -> None:
    found = check_balance(make_dataset(["common"] * large + ["rare"] * 20))
    assert [finding.severity for finding in found] == ([severity] if severity else [])


def test_too_few_patients_are_counted_as_patients_with_the_number_needed() -> None:
    labels = ["a"] * 2000 + ["b"] * 2000
    dataset = make_dataset(labels)
    assert check_amount(dataset, np.arange(4000), None, CONFIG, "images") == []
    finding = check_amount(dataset, np.arange(4000) // 40, None, CONFIG, "patients")[0]
    assert finding.detail == {"needed": 139, "have": {"a": 7, "b": 7}}
    assert "139" in finding.remedy and "patients" in finding.title
    part = np.where(np.arange(4000) % 2000 < 400, "test", "train").astype(object)
    split = Split(part, np.arange(4000) // 40, "file", 0, 0, "")
    finding = check_amount(dataset, split.group, split, CONFIG, "patients")[0]
    assert finding.detail["have"] == {"a": 10, "b": 10}


@pytest.mark.parametrize(
    ("key", "values", "name"),
    [
        ("width", (96, 97), "image size"),
        ("mode", ("RGB", "L"), "colour mode"),
        ("format", ("PNG", "JPEG"), "file format"),
        ("exif", (False, True), "EXIF"),
        ("mean", (60.0, 90.0), "brightness"),
        ("margin_left", (0.0, 0.2), "margin"),
        ("bytes", (5000, 9000), "file size"),
        ("manufacturer", ("one", "two"), "manufacturer"),
    ],
)
def test_a_property_that_tells_the_label_is_a_shortcut(
    plain_scan: tuple[Scan, Twins], key: str, values: tuple[object, object], name: str
) -> None:
    scan, twins = plain_scan
    facts = tuple({**fact, key: values[i % 2]} for i, fact in enumerate(scan.facts))
    audit = audit_dataset(replace(scan, facts=facts), twins, None, CONFIG)
    finding = checks(audit)["shortcuts"]
    assert finding.severity == "warning"
    assert name in finding.remedy
    assert audit.summary["shortcuts"]["auc"] > 0.95
    assert audit.summary["shortcuts"]["properties"][0] == {"name": name, "auc": 1.0, "seen": True}


def test_names_that_tell_the_label_are_a_remark_and_not_a_shortcut(
    plain_scan: tuple[Scan, Twins],
) -> None:
    scan, twins = plain_scan
    names = [f"{'site1' if i % 2 else 'site2'}/{'N' if i % 2 else 'Y'}{i}.png" for i in range(60)]
    dataset = make_dataset(["a", "b"] * 30, names=names)
    audit = audit_dataset(replace(scan, dataset=dataset), twins, None, CONFIG)
    assert checks(audit)["name_patterns"].severity == "info"
    assert "file name 1.00" in checks(audit)["name_patterns"].title
    assert "folder 1.00" in checks(audit)["name_patterns"].title
    assert "shortcuts" not in checks(audit)


def test_the_folder_and_name_of_the_class_itself_give_nothing_away() -> None:
    labels = ["no tumour", "tumour"] * 10
    names = [f"{label}/{label} ({i % 7}).png" for i, label in enumerate(labels)]
    properties = name_properties(make_dataset(labels, names=names).samples)
    assert set(properties) == {"number in the name"}


def test_twins_do_not_help_the_shortcut_model() -> None:
    random = np.random.default_rng(0)
    n = 80
    noise = random.random(n // 8)
    facts = tuple({"mean": float(noise[i // 8])} for i in range(n))
    targets = random.integers(0, 2, n // 8)[np.arange(n) // 8]
    samples = make_dataset(["a"] * n).samples
    open_ = measure_shortcuts(facts, samples, targets, np.arange(n), 2)
    kept = measure_shortcuts(facts, samples, targets, np.arange(n) // 8, 2)
    assert open_["auc"] > 0.9
    assert kept["auc"] < 0.75


def test_folds_keep_groups_whole_and_a_lonely_class_has_none() -> None:
    targets = np.array([0, 1] * 20)
    group = np.arange(40) // 4
    fold = make_folds(make_dataset(["a"] * 40).samples, targets, group, 2, 0)
    assert fold is not None
    assert len(np.unique(fold)) == 5
    assert all(len(np.unique(fold[group == g])) == 1 for g in range(10))
    lonely = np.where(np.arange(40) < 4, 1, 0)
    assert make_folds(make_dataset(["a"] * 40).samples, lonely, group, 2, 0) is None


@pytest.mark.parametrize("boosted", [False, True])
def test_trees_that_saw_one_class_predict_that_class(boosted: bool) -> None:
    values = np.arange(8.0)[:, None]
    probabilities = fit_predict(values, np.ones(8, dtype=int), values[:2], 3, boosted)
    assert probabilities.tolist() == [[0.0, 1.0, 0.0]] * 2


def test_encoding_takes_scalars_that_vary_and_nothing_else() -> None:
    assert encode([1, 1, 1]) is None
    assert encode([["note"], []]) is None
    assert encode(["x", "y", "x", None]).tolist() == [0, 2, 0, 1]
    assert encode([True, False]).tolist() == [1, 0]
    assert np.isfinite(encode([1.0, float("nan"), None])).all()
    assert file_properties([{"sha256": "a", "notes": []}, {"sha256": "b", "notes": ["x"]}]) == {}


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_auc_is_that_of_scikit_learn_with_ties_and_weights(n_classes: int) -> None:
    random = np.random.default_rng(n_classes)
    targets = random.integers(0, n_classes, 200)
    scores = random.integers(1, 6, (200, n_classes)) / 6.0
    weights = random.integers(0, 4, 200).astype(float)
    if n_classes == 2:
        scores[:, 0] = 1 - scores[:, 1]
    expected = np.mean(
        [roc_auc_score(targets == k, scores[:, k], sample_weight=weights) for k in range(n_classes)]
    )
    assert auc(targets, scores, weights) == pytest.approx(expected)
    low, high = auc_interval(targets, scores, np.arange(200), 0)
    assert low < auc(targets, scores) < high


def test_an_interval_over_few_groups_is_wider() -> None:
    random = np.random.default_rng(0)
    targets = np.arange(200) % 2
    scores = np.column_stack([np.zeros(200), targets + random.normal(size=20).repeat(10)])
    narrow = auc_interval(targets, scores, np.arange(200), 0)
    wide = auc_interval(targets, scores, np.arange(200) // 10, 0)
    assert wide[1] - wide[0] > 1.2 * (narrow[1] - narrow[0])


def test_an_image_unlike_all_others_is_an_outlier_and_a_blank_one_is_not() -> None:
    base = draw_picture(0).astype(float)
    pictures = [
        np.clip(0.7 * base + 0.3 * draw_picture(seed), 0, 255).astype(np.uint8)
        for seed in range(1, 40)
    ]
    random = np.random.default_rng(0)
    pictures.append(random.integers(0, 255, (96, 96, 3)).astype(np.uint8))
    pictures.append(np.zeros((96, 96, 3), np.uint8))
    scan = make_scan(pictures, make_dataset(["a", "b"] * 20 + ["a"]))
    _, _, similarity = nearest_others(scan.thumbnails, np.arange(41))
    found = check_outliers(scan, similarity)
    assert [finding.examples for finding in found] == [("scan_0039.png",)]


@pytest.mark.parametrize("fewest", [10, 1000])
def test_nearest_others_equal_a_plain_loop(fewest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from automl.data import neighbours

    monkeypatch.setattr(neighbours, "BLOCK", 6)
    # With fewer rows than that there is no subspace.
    monkeypatch.setattr(neighbours, "FEWEST", fewest)
    monkeypatch.setattr(neighbours, "DIMENSIONS", 5)
    thumbnails = np.array(
        [make_scan([draw_picture(s)], make_dataset(["a"])).thumbnails[0] for s in range(20)]
    )
    group = np.array([i // 3 for i in range(20)])
    other, outside, correlation = nearest_others(thumbnails, group)
    flat = thumbnails.reshape(20, -1)
    for i in range(20):
        rest = [j for j in range(20) if j != i]
        far = [j for j in range(20) if group[j] != group[i]]
        assert other[i] == max(rest, key=lambda j: flat[i] @ flat[j])
        assert outside[i] == max(far, key=lambda j: flat[i] @ flat[j])
        assert correlation[i] == pytest.approx(float(flat[i] @ flat[outside[i]]), abs=1e-5)
    _, outside, correlation = nearest_others(thumbnails, np.zeros(20, dtype=int))
    assert set(outside) == {-1} and set(correlation) == {-1.0}


def test_a_nearest_neighbour_profits_from_twins_only_without_groups() -> None:
    random = np.random.default_rng(0)
    labels = [str(random.integers(2)) for _ in range(30)] * 2
    scan, twins = scan_and_twins([draw_picture(seed % 30) for seed in range(60)], labels)
    scores = audit_dataset(scan, twins, None, CONFIG).summary["one_nn"]
    assert scores["random"] == 1.0
    assert scores["grouped"] < 0.8


def test_findings_are_ordered_by_severity_and_said_once() -> None:
    remark, fault = Finding("x", "info", "a remark"), Finding("y", "error", "a fault")
    assert order_findings([remark, fault, remark]) == (fault, remark)


def test_findings_of_earlier_stages_are_carried_over(plain_scan: tuple[Scan, Twins]) -> None:
    scan, _ = plain_scan
    dataset = replace(scan.dataset, findings=(Finding("missing", "error", "one is missing"),))
    scan = replace(scan, dataset=dataset, findings=(Finding("truncated", "error", "one is cut"),))
    found = checks(audit_dataset(scan, find_twins(scan), None, CONFIG))
    assert {"missing", "truncated"} <= set(found)


def test_importing_the_audit_loads_no_framework() -> None:
    code = (
        "import sys, automl.data.audit;"
        "print(sorted({'sklearn', 'scipy', 'pandas', 'tensorflow'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_page_shows_conflicting_copies_side_by_side(
    class_folders: Path, tmp_path: Path
) -> None:
    from automl.pipeline import audit_data, write_audit_page

    root = tmp_path / "scans"
    shutil.copytree(class_folders, root)
    shutil.copy(root / "healthy" / "h00.png", root / "tumour" / "copy.png")
    shutil.copy(root / "healthy" / "h01.png", root / "healthy" / "again.png")
    config = SearchConfig(data=str(root), cache_dir=str(tmp_path / "cache"))
    dataset, audit = audit_data(config)
    page = write_audit_page(dataset, audit, tmp_path / "audit.html").read_text()
    assert "<strong>healthy</strong> and <strong>tumour</strong>" in page
    assert page.count("<img") == 4 and "not kept" not in page
    shown = [
        np.asarray(Image.open(BytesIO(base64.b64decode(text))).convert("L"), dtype=float)
        for text in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    ]
    original = np.asarray(Image.open(root / "healthy" / "h00.png"), dtype=float)
    assert all(np.abs(picture - original).mean() < 4 for picture in shown[:2])
    (root / "tumour" / "copy.png").unlink()
    later = write_audit_page(dataset, audit, tmp_path / "later.html").read_text()
    assert later.count("<img") == 3 and later.count("not kept") == 1
