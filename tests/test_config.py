"""Settings are checked when they are made, wherever they come from."""

from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest

from automl.config import PRESETS, REFINE_IN_BUDGET, SearchConfig, make_config, parse_seconds
from automl.errors import UsageError


@pytest.mark.parametrize("preset", PRESETS)
def test_a_config_comes_back_whole_from_its_own_json(preset):
    config = make_config({"preset": preset, "budget": "10m", "positive": "yes", "data": "x.csv"})
    assert make_config(config.to_json()) == config


def test_what_is_given_wins_over_the_preset_and_the_preset_over_the_defaults():
    config = make_config({"preset": "smoke", "views": 5})
    assert (config.views, config.max_epochs) == (5, PRESETS["smoke"]["max_epochs"])
    assert make_config({}).max_epochs == PRESETS["fast"]["max_epochs"]


def test_flags_yaml_and_python_spell_the_same_value():
    for width in ("0.35,1.0", [0.35, 1.0], (0.35, 1)):
        assert make_config({"width": width}).width == (0.35, 1.0)
    for depth in ("4", 4, [4], 4.0):
        assert make_config({"fine_tune_depths": depth}).fine_tune_depths == (4,)
    assert SearchConfig(data=Path("scans"), budget="2m", max_epochs="9") == SearchConfig(
        data="scans", budget=120, max_epochs=9.0
    )
    assert make_config({"positive": 1}).positive == "1"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5H", 5400), (12.5, 12.5)],
)
def test_times_are_read_in_hours_minutes_and_seconds(text, seconds):
    assert parse_seconds(text) == seconds


def test_seed_zero_stays_zero():
    assert make_config({"seed": 0}).seed == 0 and make_config({"seed": "0"}).seed == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("budget", "0"),
        ("budget", ""),
        ("budget", "soon"),
        ("budget", "-5m"),
        ("budget", float("nan")),
        ("budget", float("inf")),
        ("budget", [10]),
        ("budget", True),
        ("max_epochs", "9.5"),
        ("max_epochs", 9.5),
        ("max_epochs", True),
        ("max_epochs", "many"),
        ("max_epochs", float("inf")),
        ("max_epochs", None),
        ("max_epochs", [9]),
        ("max_epochs", 0),
        ("max_epochs", 1001),
        ("val_fraction", float("nan")),
        ("val_fraction", 0),
        ("val_fraction", 1),
        ("fine_tune_depths", [0.5]),
        ("fine_tune_depths", []),
        ("fine_tune_depths", "0,0"),
        ("fine_tune_depths", "18"),
        ("fine_tune_depths", "0,,1"),
        ("fine_tune_depths", {"a": 1}),
        ("width", "0.4"),
        ("width", None),
        ("tracking", "yes"),
        ("tracking", 1),
        ("positive", True),
        ("positive", ["tumour"]),
        ("data", ""),
        ("data", None),
        ("objective", "accuracy"),
        ("balance", "smote"),
        ("preset", "turbo"),
        ("preset", None),
        ("preset", ["fast"]),
        ("name", "a/b"),
        ("name", ".."),
        ("name", ".hidden"),
        ("name", "x" * 121),
        ("name", "語" * 100),
        ("name", "line\nbreak"),
        ("seed", -1),
        ("seed", 2**31),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_the_name_of_its_flag(name, value):
    with pytest.raises(UsageError, match="^--" + name.replace("_", "-")):
        make_config({name: value})


def test_a_refusal_says_what_is_allowed():
    with pytest.raises(UsageError, match="Allowed: oversample, class_weight, none"):
        make_config({"balance": "smote"})
    with pytest.raises(UsageError, match="between 1 and 1000, not 0"):
        make_config({"max_epochs": 0})
    with pytest.raises(UsageError, match="90s, 10m or 1h30m"):
        make_config({"budget": "soon"})
    with pytest.raises(UsageError, match="in quotes"):
        make_config({"positive": True})


def test_an_unknown_setting_is_refused_with_the_nearest_known_one():
    with pytest.raises(UsageError, match=r"no setting 'max_epoch'. Did you mean 'max_epochs'"):
        make_config({"max_epoch": 3})
    with pytest.raises(UsageError, match="Known: balance, batch_size"):
        make_config({"zzz": 3})


def test_a_number_that_may_be_absent_is_read_from_text_too():
    assert make_config({"workers": "2"}).workers == 2
    assert make_config({}).workers is None
    with pytest.raises(UsageError, match="--workers cannot be 'few'"):
        make_config({"workers": "few"})


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(UsageError, match=r"--workers 2 .* --scheduler tcp://a:1.* choose one"):
        make_config({"workers": 2, "scheduler": "tcp://a:1"})
    with pytest.raises(UsageError, match="less than a tenth"):
        make_config({"val_fraction": 0.5, "test_fraction": 0.45})
    with pytest.raises(UsageError, match="--min-epochs 20 is more than --max-epochs 3"):
        make_config({"min_epochs": 20})


def test_weights_default_to_none_for_the_sample_only():
    assert make_config({}).weights_used == "none"
    assert make_config({"data": "scans"}).weights_used == "imagenet"
    assert make_config({"weights": "imagenet"}).weights_used == "imagenet"


def test_a_budget_may_refine_and_heads_on_frozen_layers_are_never_refined():
    assert SearchConfig().most_refine_epochs == 0
    assert make_config({"preset": "balanced"}).most_refine_epochs == 9
    assert make_config({"preset": "balanced", "budget": "10m"}).most_refine_epochs == (
        REFINE_IN_BUDGET
    )
    assert make_config({"refine_epochs": 0, "budget": "10m"}).most_refine_epochs == 0
    assert make_config({"preset": "balanced", "fine_tune_depths": 0}).most_refine_epochs == 0


def test_a_config_cannot_be_changed_only_replaced():
    config = make_config({})
    with pytest.raises(FrozenInstanceError):
        config.seed = 1
    assert replace(config, seed=1).seed == 1


def test_every_field_has_a_help_text_and_every_preset_key_is_a_field():
    names = {item.name for item in fields(SearchConfig)}
    assert all(item.metadata["help"] for item in fields(SearchConfig))
    assert all(set(preset) <= names for preset in PRESETS.values())
