"""Reading class folders, split folders and CSV files."""

import shutil
from pathlib import Path

import pytest

from automl.config import SearchConfig
from automl.data.kaggle import download_dataset
from automl.data.sources import cache_folder, load_dataset
from automl.errors import DataError, UsageError
from automl.records import Dataset


def load(path: Path | str, **settings: object) -> Dataset:
    return load_dataset(SearchConfig(data=str(path), **settings))


def checks(dataset: Dataset) -> dict[str, int]:
    return {finding.check: finding.count for finding in dataset.findings}


def copy_into(root: Path, source: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, root / name)


@pytest.fixture
def picture(class_folders: Path) -> Path:
    return class_folders / "healthy" / "h00.png"


def test_class_folders_give_sorted_samples_and_the_positive_class_last(class_folders):
    dataset = load(class_folders)
    assert dataset.kind == "folders"
    assert dataset.classes == ("healthy", "tumour")
    assert dataset.positive == "tumour"
    names = [sample.image for sample in dataset.samples]
    assert names == sorted(names) and len(names) == 24
    assert names[0] == "healthy/h00.png"
    assert dataset.targets.tolist() == [0] * 12 + [1] * 12


def test_a_wrapping_folder_is_passed(class_folders, tmp_path):
    shutil.copytree(class_folders, tmp_path / "download" / "Data" / "Data")
    dataset = load(tmp_path / "download")
    assert dataset.classes == ("healthy", "tumour")
    assert dataset.samples[0].image == "Data/Data/healthy/h00.png"


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "val", "test"), {"train", "val", "test"}),
        (("Training", "Testing"), {"train", "test"}),
        (("TRAIN", "valid"), {"train", "val"}),
        (("train",), {"train"}),
    ],
)
def test_split_folders_are_recognised_even_if_some_are_missing(
    folders, splits, class_folders, tmp_path
):
    for folder in folders:
        shutil.copytree(class_folders, tmp_path / folder)
    dataset = load(tmp_path)
    assert dataset.kind == "split_folders"
    assert dataset.classes == ("healthy", "tumour")
    assert {sample.split for sample in dataset.samples} == splits


def test_split_folders_may_spell_a_class_differently(class_folders, tmp_path):
    shutil.copytree(class_folders, tmp_path / "train")
    shutil.copytree(class_folders, tmp_path / "test")
    (tmp_path / "test" / "tumour").rename(tmp_path / "test" / "Tumour")
    dataset = load(tmp_path)
    assert dataset.classes == ("healthy", "Tumour") or dataset.classes == ("healthy", "tumour")
    assert "labels_merged" in checks(dataset)


def test_images_outside_class_folders_are_listed(class_folders, tmp_path):
    shutil.copytree(class_folders, tmp_path / "data")
    shutil.copy(class_folders / "healthy" / "h00.png", tmp_path / "data" / "loose.png")
    dataset = load(tmp_path / "data")
    assert len(dataset.samples) == 24
    assert checks(dataset)["unlisted"] == 1


def test_csv_columns_are_found_and_images_matched_without_extension(csv_file):
    dataset = load(csv_file)
    assert dataset.kind == "csv" and dataset.name == "Brain"
    assert dataset.classes == ("0", "1") and dataset.positive == "1"
    first = dataset.samples[0]
    assert first.image == "Brain/healthy/h00.png" and first.path.is_file()
    assert first.group == "Ph0" and first.attributes == {"sex": "F"}


def test_a_folder_with_one_fitting_csv_is_read_as_that_csv(csv_file):
    dataset = load(csv_file.parent)
    assert dataset.kind == "csv" and len(dataset.samples) == 24


def test_the_positive_class_can_be_named(class_folders):
    dataset = load(class_folders, positive="Healthy")
    assert dataset.classes == ("tumour", "healthy") and dataset.positive == "healthy"
    with pytest.raises(UsageError, match="Classes: healthy, tumour"):
        load(class_folders, positive="lesion")


@pytest.mark.parametrize(
    ("names", "positive"),
    [
        (("no_tumor", "tumor"), "tumor"),
        (("benign", "malignant"), "malignant"),
        (("normal", "abnormal"), "abnormal"),
        (("tumor", "notumor"), "tumor"),
        (("yes", "no"), "yes"),
        (("apple", "pear"), "pear"),
        (("positive", "negative"), "positive"),
        (("glioma", "Healthy Control"), "glioma"),
    ],
)
def test_the_positive_class_is_guessed_from_its_name(names, positive, picture, tmp_path):
    for name in names:
        copy_into(tmp_path, picture, [f"{name}/{i}.png" for i in range(3)])
    dataset = load(tmp_path)
    assert dataset.positive == positive and dataset.classes[-1] == positive


def test_more_classes_have_no_positive_one(picture, tmp_path):
    for name in ("glioma", "meningioma", "pituitary", "none"):
        copy_into(tmp_path, picture, [f"{name}/{i}.png" for i in range(3)])
    dataset = load(tmp_path)
    assert dataset.positive is None and len(dataset.classes) == 4
    with pytest.raises(UsageError, match="two classes"):
        load(tmp_path, positive="glioma")


def test_split_and_group_columns_can_be_named(csv_file, tmp_path):
    shutil.copytree(csv_file.parent, tmp_path / "t")
    path = tmp_path / "t" / "Brain.csv"
    lines = path.read_text().splitlines()
    rows = [f"{line},{('train', 'test', '')[i % 3]}" for i, line in enumerate(lines[1:])]
    path.write_text("\n".join([lines[0] + ",my part", *rows]))
    dataset = load(path, split_column="my part", group_column="sex")
    assert {sample.split for sample in dataset.samples} == {"train", "test", None}
    assert {sample.group for sample in dataset.samples} == {"F", "M"}
    with pytest.raises(UsageError, match="It has: Image, Class, patient_id, sex, Mean, my part"):
        load(path, label_column="diagnosis")


def test_a_column_that_is_not_there_is_not_passed_over_for_folders(csv_file, class_folders):
    with pytest.raises(UsageError, match=r"'diagnosis' is not a column of .*Brain.csv. It has: Im"):
        load(csv_file.parent, label_column="diagnosis")
    with pytest.raises(UsageError, match="--label-column is about a CSV file"):
        load(class_folders, label_column="diagnosis")


def test_the_sample_is_the_default_and_needs_no_path(cache_dir):
    dataset = load_dataset(SearchConfig(cache_dir=str(cache_dir)))
    assert dataset.synthetic and dataset.kind == "sample"


def test_cache_folder_follows_the_setting_then_the_environment(monkeypatch, tmp_path):
    assert cache_folder(SearchConfig(cache_dir=str(tmp_path))) == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(SearchConfig()) == tmp_path / "automl"


def test_the_real_data_set_is_read_whole(brain_tumor):
    dataset = load(brain_tumor)
    assert len(dataset.samples) == 3762
    assert dataset.classes == ("0", "1") and dataset.positive == "1"
    assert sum(sample.label == "1" for sample in dataset.samples) == 1683
    assert checks(dataset) == {"columns": 0}
    assert not any(sample.attributes for sample in dataset.samples)


def test_a_kaggle_name_must_be_owner_and_name():
    with pytest.raises(UsageError, match="OWNER/NAME"):
        download_dataset("kaggle:brain-tumor")


def test_kaggle_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "kagglehub", None)
    with pytest.raises(UsageError, match=r"pip install 'automl\[kaggle\]'"):
        download_dataset("kaggle:jakeshbohaju/brain-tumor")


def test_too_few_images_of_a_class_are_a_data_error(picture, tmp_path):
    copy_into(tmp_path, picture, ["a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png"])
    with pytest.raises(DataError, match="too few images of 'b'"):
        load(tmp_path)
