"""Whole groups, fair shares, the same answer every time, and honest counts of what leaks."""

import itertools
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scans import bare_scan, make_dataset, make_twins

from automl.config import SearchConfig
from automl.data.assign import assign_units, exact_counts
from automl.data.split import (
    describe_groups,
    divide_otherwise,
    make_split,
    merge_groups,
    read_split,
    rows_without_twins,
    summarise_split,
    write_split,
)
from automl.errors import DataError, UsageError
from automl.records import SPLITS, Dataset, Split, Twins


@st.composite
def grouped_data(draw: st.DrawFn) -> tuple[Dataset, Twins]:
    """Two or three classes, patients of up to six images, twins across patients."""
    n_classes = draw(st.integers(2, 3))
    sizes = draw(st.lists(st.integers(1, 6), min_size=30, max_size=60))
    patients = [f"patient {p}" for p, size in enumerate(sizes) for _ in range(size)]
    n = len(patients)
    classes = draw(st.lists(st.integers(0, n_classes - 1), min_size=n, max_size=n))
    # Enough of each class that a split exists.
    labels = [str(i % n_classes if i < 30 * n_classes else c) for i, c in enumerate(classes)]
    has_patients = draw(st.booleans())
    dataset = make_dataset(labels, patients if has_patients else None)
    links = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=8))
    group = list(range(n))
    for i, j in links:
        old, new = max(group[i], group[j]), min(group[i], group[j])
        group = [new if g == old else g for g in group]
    numbers = {g: k for k, g in enumerate(dict.fromkeys(group))}
    return dataset, make_twins([numbers[g] for g in group])


def split_by(dataset: Dataset, twins: Twins, **options: object) -> Split:
    return make_split(bare_scan(dataset), twins, SearchConfig(**options))


def plain(n: int) -> Twins:
    return Twins(np.arange(n), (), 0.98)


# The same examples every time: a check that fails on one day only helps nobody.
relaxed = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@relaxed
@given(grouped_data(), st.integers(0, 5))
def test_no_patient_and_no_twin_group_is_in_two_parts(
    data: tuple[Dataset, Twins], seed: int
) -> None:
    dataset, twins = data
    split = split_by(dataset, twins, seed=seed)
    assert split.kind == "grouped"
    assert set(split.part) == set(SPLITS)
    assert split.leaking_pairs == 0
    for unit in (split.group, twins.group, [s.group or s.image for s in dataset.samples]):
        parts: dict[object, set[str]] = {}
        for key, part in zip(unit, split.part, strict=True):
            parts.setdefault(key, set()).add(part)
        assert all(len(found) == 1 for found in parts.values())


@relaxed
@given(grouped_data())
def test_shares_are_met_within_the_largest_group(data: tuple[Dataset, Twins]) -> None:
    dataset, twins = data
    split = split_by(dataset, twins, val_fraction=0.2, test_fraction=0.2)
    largest = np.bincount(split.group).max()
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    for name in SPLITS:
        for k in range(len(dataset.classes)):
            members = dataset.targets == k
            found = np.sum(members & (split.part == name))
            assert found >= 2
            assert abs(found - shares[name] * members.sum()) <= largest + 1


@relaxed
@given(grouped_data(), st.randoms(use_true_random=False))
def test_a_split_does_not_depend_on_the_order_of_the_rows(
    data: tuple[Dataset, Twins], random: object
) -> None:
    dataset, twins = data
    order = list(range(len(dataset.samples)))
    random.shuffle(order)
    position = {row: new for new, row in enumerate(order)}
    shuffled = replace(dataset, samples=tuple(dataset.samples[row] for row in order))
    moved = replace(
        twins,
        group=twins.group[order],
        pairs=tuple((position[i], position[j], c, kind) for i, j, c, kind in twins.pairs),
    )
    for kind in ("grouped", "random"):
        one, other = split_by(dataset, twins, split=kind), split_by(shuffled, moved, split=kind)
        assert one.part[order].tolist() == other.part.tolist()
        assert one.digest == other.digest
        assert one.leaking_pairs == other.leaking_pairs


@relaxed
@given(
    st.lists(st.integers(0, 500), min_size=1, max_size=4),
    st.lists(st.floats(0.01, 1), min_size=2, max_size=3),
)
def test_exact_counts_add_up_and_round_by_less_than_the_minimum(
    totals: list[int], weights: list[float]
) -> None:
    share = np.array(weights) / sum(weights)
    goal = exact_counts(np.array(totals), share)
    assert goal.sum(axis=0).tolist() == totals
    assert (goal >= 0).all()
    enough = np.array(totals) >= 2 * len(share)
    assert (goal[:, enough] >= 2).all()


def test_without_groups_the_class_shares_are_exact() -> None:
    dataset = make_dataset(["a"] * 200 + ["b"] * 100)
    split = split_by(dataset, plain(300))
    counts = summarise_split(split, dataset)["classes"]
    assert counts == {
        "train": {"a": 140, "b": 70},
        "val": {"a": 30, "b": 15},
        "test": {"a": 30, "b": 15},
    }


def test_another_seed_is_another_split_and_the_same_seed_the_same() -> None:
    dataset = make_dataset(["a", "b"] * 50)
    parts = [split_by(dataset, plain(100), seed=seed).part.tolist() for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


def test_few_patients_are_divided_so_that_every_part_has_every_class() -> None:
    labels = ["sick"] * 40 + ["well"] * 9
    groups = [f"s{i // 12}" for i in range(40)] + [f"w{i // 3}" for i in range(9)]
    split = split_by(make_dataset(labels, groups), plain(49))
    for name in SPLITS:
        assert {labels[row] for row in split.rows(name)} == {"sick", "well"}


def test_a_split_is_found_wherever_trying_all_of_them_finds_one() -> None:
    random = np.random.default_rng(0)
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    solved = 0
    while solved < 25:
        counts = random.integers(0, (6, 4), size=(6, 2)) * (random.random((6, 2)) < 0.8)
        counts = counts[counts.sum(axis=1) > 0]
        possible = any(
            all((counts[np.array(parts) == part].sum(axis=0) >= 2).all() for part in range(3))
            for parts in itertools.product(range(3), repeat=len(counts))
        )
        if not possible:
            continue
        solved += 1
        targets = np.concatenate([np.repeat((0, 1), count) for count in counts])
        ends = np.cumsum(counts.sum(axis=1))
        units = [
            (f"unit {end}", list(range(end - size, end)))
            for end, size in zip(ends, counts.sum(axis=1), strict=True)
        ]
        found = {name: np.zeros(2, dtype=int) for name in shares}
        for rows, name in assign_units(units, targets, 2, shares, {}, seed=0):
            found[name] += np.bincount(targets[rows], minlength=2)
        assert all((count >= 2).all() for count in found.values()), counts.tolist()


def test_a_class_in_too_few_groups_is_refused_with_the_number_needed() -> None:
    labels = ["well"] * 60 + ["sick"] * 20
    groups = [f"w{i}" for i in range(60)] + [f"s{i % 2}" for i in range(20)]
    with pytest.raises(DataError, match=r"'sick' has .* in 2 groups .* at least 3 groups") as error:
        split_by(make_dataset(labels, groups), plain(80))
    assert error.value.exit_code == 3
    with pytest.raises(DataError, match=r"'sick' .* 5 images .* at least 6"):
        split_by(make_dataset(["well"] * 60 + ["sick"] * 5), plain(65))
    with pytest.raises(DataError, match="at least two classes"):
        split_by(make_dataset(["well"] * 60), plain(60))


def test_twins_chain_patients_together() -> None:
    dataset = make_dataset(["a", "b"] * 3, ["p", "p", "q", "q", None, None])
    group = merge_groups(dataset, make_twins([0, 1, 1, 2, 3, 4]))
    assert group.tolist() == [0, 0, 0, 0, 1, 2]
    assert describe_groups(dataset, make_twins([0, 1, 1, 2, 3, 4])) == "patients and twins"
    assert describe_groups(make_dataset(["a", "b"]), plain(2)) == "images"


def test_a_random_split_counts_its_leaks() -> None:
    labels = ["a", "b"] * 60
    twins = make_twins([i // 4 for i in range(120)])
    split = split_by(make_dataset(labels), twins, split="random")
    part = split.part
    assert split.leaking_pairs == sum(part[i] != part[j] for i, j, _, _ in twins.pairs) > 50
    assert split.group.tolist() == twins.group.tolist()


def official(parts: list[str | None]) -> Dataset:
    dataset = make_dataset(["a" if i % 2 else "b" for i in range(len(parts))])
    samples = [replace(s, split=part) for s, part in zip(dataset.samples, parts, strict=True)]
    return replace(dataset, samples=tuple(samples))


def test_the_other_split_has_the_same_images_and_sizes_and_leaks_if_it_is_random() -> None:
    dataset, twins = make_dataset(["a", "b"] * 60), make_twins([i // 4 for i in range(120)])
    grouped = split_by(dataset, twins, val_fraction=0.2, test_fraction=0.1)
    random = divide_otherwise(dataset, twins, grouped, 0)
    assert (grouped.kind, grouped.leaking_pairs) == ("grouped", 0)
    assert random.kind == "random" and random.leaking_pairs > 20
    assert np.array_equal(random.group, grouped.group)
    for name in SPLITS:
        assert len(random.rows(name)) == len(grouped.rows(name))
    back = divide_otherwise(dataset, twins, random, 0)
    assert (back.kind, back.leaking_pairs) == ("grouped", 0)


def test_images_that_a_given_split_leaves_out_stay_out_of_the_other(tmp_path: Path) -> None:
    dataset, twins = make_dataset(["a", "b"] * 60), make_twins([i // 2 for i in range(120)])
    parts = ["train"] * 60 + ["val"] * 20 + ["test"] * 20
    rows = [f"{s.image},{p}" for s, p in zip(dataset.samples[20:], parts, strict=True)]
    (tmp_path / "given.csv").write_text("\n".join(["image,split", *rows]))
    given = split_by(dataset, twins, split=str(tmp_path / "given.csv"))
    other = divide_otherwise(dataset, twins, given, 0)
    assert (given.kind, other.kind, other.leaking_pairs) == ("file", "grouped", 0)
    assert np.array_equal(other.part == "", given.part == "")
    assert {name: len(other.rows(name)) for name in SPLITS} == {"train": 60, "val": 20, "test": 20}


def test_an_official_split_is_kept_and_its_leaks_are_counted() -> None:
    parts = ["train"] * 60 + ["val"] * 20 + ["test"] * 20
    group = list(range(100))
    group[99] = group[0]
    group[98] = group[61]
    split = split_by(official(parts), make_twins(group))
    assert split.kind == "official"
    assert split.part.tolist() == parts
    assert split.leaking_pairs == 2
    assert rows_without_twins(split).tolist() == list(range(80, 98))


def test_a_missing_validation_part_is_carved_from_train_by_whole_groups() -> None:
    parts: list[str | None] = ["train"] * 80 + ["test"] * 20
    group = [i // 2 for i in range(80)] + list(range(40, 60))
    # Images 0 to 19 are twins of test images: in validation they would leak into the test.
    group[80:90] = [g for g in range(10)]
    numbers = {g: k for k, g in enumerate(dict.fromkeys(group))}
    split = split_by(official(parts), make_twins([numbers[g] for g in group]))
    assert split.part[80:].tolist() == ["test"] * 20
    assert set(split.part[:20]) == {"train"}
    assert 12 <= len(split.rows("val")) <= 16
    assert set(split.group[split.rows("val")]).isdisjoint(split.group[split.rows("train")])
    assert split.leaking_pairs == 20


def test_a_missing_test_part_is_carved_from_train() -> None:
    split = split_by(official(["train"] * 80 + ["val"] * 20), plain(100))
    assert split.part[80:].tolist() == ["val"] * 20
    assert 12 <= len(split.rows("test")) <= 16


def test_images_without_an_official_part_train_and_are_named() -> None:
    parts: list[str | None] = ["train"] * 60 + ["val"] * 20 + ["test"] * 20
    parts[5] = None
    split = split_by(official(parts), plain(100))
    assert split.part[5] == "train"
    assert [(f.check, f.examples) for f in split.findings] == [
        ("split_incomplete", ("scan_0005.png",))
    ]


def test_train_alone_is_no_official_split() -> None:
    assert split_by(official(["train"] * 100), plain(100)).kind == "grouped"


HOSTILE_NAMES = [
    "=cmd()",
    "+1",
    "-1",
    "@x",
    "'quoted",
    "'=twice",
    'a"b',
    "a,b",
    "ünï/ç.png",
    "p/a b.png",
    "x;y.png",
    "tumour/<script>.png",
]


def test_a_written_split_is_read_back_the_same(tmp_path: Path) -> None:
    names = HOSTILE_NAMES + [f"plain/{i}.png" for i in range(28)]
    dataset = make_dataset(["=a", "b"] * 20, names=names)
    twins = make_twins([0, 0, *range(1, 39)])
    split = split_by(dataset, twins)
    path = tmp_path / "split.csv"
    write_split(split, dataset, path)
    again = read_split(path, dataset, twins, seed=split.seed)
    assert again.part.tolist() == split.part.tolist()
    assert again.group.tolist() == split.group.tolist()
    assert (again.digest, again.leaking_pairs) == (split.digest, 0)
    text = path.read_text("utf-8")
    assert text.splitlines()[0] == "image,label,group,split"
    for line in text.splitlines()[1:]:
        assert line.lstrip('"')[0] not in "=+-@"
    assert list(tmp_path.iterdir()) == [path]


def write_csv(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8-sig")
    return str(path)


def test_a_split_file_names_images_by_path_name_or_stem(tmp_path: Path) -> None:
    names = [f"{i % 3}/scan{i:02d}.png" for i in range(30)]
    dataset = make_dataset(["a", "b"] * 15, names=names)
    words = ["Train"] * 10 + ["validation"] * 10 + ["test"] * 10
    keys = (
        names[:10] + [f"scan{i}.png" for i in range(10, 20)] + [f"scan{i}" for i in range(20, 30)]
    )
    rows = "".join(f"{key};{word}\n" for key, word in zip(keys, words, strict=True))
    path = write_csv(tmp_path / "split.csv", "Image;Split\n" + rows)
    split = split_by(dataset, plain(30), split=path)
    assert split.kind == "file"
    assert split.part.tolist() == ["train"] * 10 + ["val"] * 10 + ["test"] * 10


def test_images_that_a_split_file_does_not_list_are_left_out_and_named(tmp_path: Path) -> None:
    dataset = make_dataset(["a", "b"] * 15)
    rows = "".join(f"scan_{i:04d}.png,{SPLITS[i % 3]}\n" for i in range(24))
    path = write_csv(tmp_path / "split.csv", "image,split\n" + rows)
    twins = make_twins([0, *range(1, 29), 0])
    split = split_by(dataset, twins, split=path)
    assert split.part[24:].tolist() == [""] * 6
    assert split.leaking_pairs == 0
    assert [(f.check, f.count) for f in split.findings] == [("split_unlisted", 6)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,part\nscan_0000.png,test\n", "no column split"),
        ("scan_0000.png,test\n", "no column image and no column split|columns .* no usable row"),
        ("image,split\nscan_0000.png,exam\n", "line 2: the split of 'scan_0000.png' is 'exam'"),
        ("image,split\nscan_0000.png\n", "line 2: the split of 'scan_0000.png' is ''"),
        ("image,split\nelsewhere.png,test\n", "1 images that are not in the data.*elsewhere"),
        ("image,split\nscan_0001.png,val\nscan_0001.png,test\n", "in val and in test"),
        ("image,split\na,val\nscan_0001.png,val,test\n", "line 3, has more fields"),
        ("", "is empty"),
    ],
)
def test_a_wrong_split_file_is_refused_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write_csv(tmp_path / "split.csv", text)
    with pytest.raises(UsageError, match=message):
        split_by(make_dataset(["a", "b"] * 15), plain(30), split=path)


def test_a_split_file_without_a_class_in_the_test_is_refused(tmp_path: Path) -> None:
    labels = ["a", "b"] * 15
    rows = "".join(
        f"scan_{i:04d}.png,{'test' if i % 2 and i > 20 else 'val' if i < 10 else 'train'}\n"
        for i in range(30)
    )
    path = write_csv(tmp_path / "split.csv", "image,split\n" + rows)
    with pytest.raises(DataError, match="Class 'a' has 0 images in the test part"):
        split_by(make_dataset(labels), plain(30), split=path)
    with pytest.raises(UsageError, match="Cannot read"):
        split_by(make_dataset(labels), plain(30), split=str(tmp_path / "none.csv"))


def test_a_listed_image_that_could_not_be_read_is_no_error(tmp_path: Path) -> None:
    dataset = replace(make_dataset(["a", "b"] * 15), root=tmp_path)
    (tmp_path / "broken.png").write_bytes(b"")
    rows = "".join(f"scan_{i:04d}.png,{SPLITS[i % 3]}\n" for i in range(30))
    path = write_csv(tmp_path / "split.csv", "image,split\nbroken.png,test\n" + rows)
    split = split_by(dataset, plain(30), split=path)
    assert [(f.check, f.examples) for f in split.findings] == [
        ("split_unreadable", ("broken.png",))
    ]


def test_dividing_twenty_thousand_images_takes_seconds() -> None:
    labels = ["a" if i % 3 else "b" for i in range(20_000)]
    dataset = make_dataset(labels, [f"p{i // 3}" for i in range(20_000)])
    begin = time.process_time()
    split = split_by(dataset, plain(20_000))
    assert time.process_time() - begin < 5
    assert abs(len(split.rows("test")) - 3000) <= 3
