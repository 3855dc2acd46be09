"""Who may import whom, and that nothing heavy is loaded before it is needed."""

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from automl.cli import cli

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "automl"

# Low to high; a module imports from lower ones and from its own package only.
LAYERS = (
    {"errors", "machine"},
    {"config"},
    {"console", "writing"},
    {"records"},
    {"data", "tracking"},
    {"search"},
    {"evaluation"},
    {"serving"},
    {"reporting"},
    {"folder"},
    {"stages"},
    {"comparison", "external"},
    {"pipeline"},
    {"exports"},
    {"options", "output", "doctor"},
    {"cli"},
    {"__main__", "__init__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Where a library may be met; what it returns is turned into our records there.
HOMES = {
    # mlflow_model.py is copied into the logged model and runs in MLflow's server, without us.
    "tensorflow": ("search/", "evaluation/saliency.py", "serving/", "tracking/mlflow_model.py"),
    "keras": ("search/", "evaluation/saliency.py", "serving/"),
    "keras_tuner": ("search/",),
    "mlflow": ("tracking/mlflow_",),
    "matplotlib": ("reporting/plots.py",),
    "jinja2": ("reporting/render.py",),
    # run_export.py is copied into the folders of exports and runs there without us.
    "PIL": ("data/", "serving/run_export.py"),
    "pydicom": ("data/dicom.py",),
    "dask": ("search/dask_link.py",),
    "distributed": ("search/dask_link.py",),
    "click": ("cli.py", "options.py"),
}
HEAVY = {"tensorflow", "keras", "keras_tuner", "mlflow", "matplotlib", "sklearn", "pandas", "numpy"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that the file imports, in functions too."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: write imports in full"
            # `from automl import records` names a module; `from automl.records import Run` too.
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def home(path: Path) -> str:
    """The layer's name: ``automl/data/images.py`` → data, ``automl/cli.py`` → cli."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def test_every_module_belongs_to_a_layer():
    assert {home(path) for path in modules()} <= set(LEVEL)


def test_modules_import_from_lower_layers_only():
    wrong = []
    for path in modules():
        for line, name in imports(path):
            parts = name.split(".")
            # The bare package is good for its version and its folder.
            if parts[0] != "automl" or parts[1:] in ([], ["__version__"]):
                continue
            ours, theirs = home(path), parts[1]
            if ours != theirs and LEVEL[theirs] >= LEVEL[ours]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_met_only_where_it_lives(library):
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules()
        for line, name in imports(path)
        if name.split(".")[0] == library
        and not str(path.relative_to(PACKAGE)).startswith(HOMES[library])
    ]
    assert not wrong, "\n".join(wrong)


def test_image_files_are_opened_in_one_place_only():
    """Limits on size, format and content hold for every image because there is one door."""
    opens = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        for node in nodes(path)
        if path.name != "run_export.py"  # runs without us, see HOMES
        and isinstance(node, ast.Attribute)
        and node.attr == "open"
        and isinstance(node.value, ast.Name)
        and node.value.id == "Image"
    }
    assert opens == {"data/images.py"}


def loaded_by(code: str) -> set[str]:
    """Top-level names of the modules in a fresh process after ``code``."""
    probe = f"{code}\nimport sys; print('\\n' + ' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_importing_automl_loads_no_framework():
    assert not loaded_by("import automl") & HEAVY


def test_help_loads_no_framework():
    code = "from automl.cli import run_command\nassert run_command(['--help']) == 0\n"
    code += "".join(f"assert run_command(['{name}', '--help']) == 0\n" for name in cli.commands)
    assert not loaded_by(code) & HEAVY


def test_a_missing_data_set_is_reported_before_tensorflow_is_loaded():
    code = (
        "from automl.cli import run_command\nassert run_command(['search', '--data', 'nope']) == 2"
    )
    assert not loaded_by(code) & {"tensorflow", "keras", "mlflow"}


@pytest.mark.parametrize("module", ["automl.folder", "automl.pipeline", "automl.reporting.render"])
def test_the_light_half_needs_no_tensorflow(module):
    assert not loaded_by(f"import {module}") & {"tensorflow", "keras", "keras_tuner"}


@pytest.mark.parametrize("arguments", [["-c", "import automl"], ["-m", "automl", "--help"]])
def test_the_command_line_starts_well_within_half_a_second(arguments):
    def run() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    # Processor time, and the best of a few: other processes may be at work on this machine.
    assert min(run() for _ in range(5)) < 0.3
