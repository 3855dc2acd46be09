"""From the fields of SearchConfig to command-line options, and from YAML to settings."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from automl.config import PRESETS, SearchConfig, flag
from automl.errors import UsageError

# The settings that say which images there are, what they are called and who is held out.
DATA_SETTINGS = (
    "image_column",
    "label_column",
    "group_column",
    "split_column",
    "positive",
    "split",
    "val_fraction",
    "test_fraction",
    "twin_threshold",
    "seed",
    "cache_dir",
)
SHORT_METAVARS = {int: "N", float: "NUMBER", str: "TEXT"}


def config_options(names: tuple[str, ...] | None = None) -> Callable[[Any], Any]:
    """Decorate a command with one option for each field (or those in ``names``).

    An option that is not given is None: a preset or a YAML file may then decide. Values
    stay text; SearchConfig reads and checks them, as it does those of a YAML file.
    """

    def decorate(command: Any) -> Any:
        for item in reversed(fields(SearchConfig)):
            if names is None or item.name in names:
                command = make_option(item)(command)
        return command

    return decorate


def make_option(item: Any) -> Callable[[Any], Any]:
    """One ``dataclasses.Field`` as a click option with its help and its default."""
    rules = item.metadata
    text = f"{rules['help']} [{default_text(item)}]"
    if item.type is bool:
        names = f"{flag(item.name)}/--no-{item.name.replace('_', '-')}"
        return click.option(names, item.name, default=None, help=text)
    metavar = rules.get("metavar")
    if metavar is None and "choices" in rules:
        metavar = ("," if rules.get("many") else "|").join(str(part) for part in rules["choices"])
    if metavar is None:
        kind = rules.get("many") or item.type
        metavar = SHORT_METAVARS.get(kind, "TEXT") + (",…" if rules.get("many") else "")
    return click.option(flag(item.name), item.name, metavar=metavar, help=text)


def default_text(item: Any) -> str:
    """What holds when the option is absent, as the help says it."""
    if any(item.name in preset for preset in PRESETS.values()):
        return "set by --preset"
    if item.default is None:
        return "optional"
    if isinstance(item.default, tuple):
        return "default " + ",".join(str(part) for part in item.default)
    if isinstance(item.default, bool):
        return "default on" if item.default else "default off"
    return f"default {item.default}"


def given_settings(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; the others are None."""
    return {name: value for name, value in options.items() if value is not None}


def read_settings(path: str | None) -> dict[str, Any]:
    """The settings in a YAML file; {} without a file. Dashes in keys count as underscores.

    Raises:
        UsageError: the file cannot be read, is not YAML, or is not a list of settings.
    """
    if path is None:
        return {}
    import yaml

    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"Cannot read --config {path}: {reason}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise UsageError(f"--config {path}{where} is not YAML: {problem}.") from error
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise UsageError(
            f"--config {path} must hold one setting a line, such as 'max_epochs: 9', "
            f"not a {type(document).__name__}."
        )
    return {key.replace("-", "_"): value for key, value in document.items()}
