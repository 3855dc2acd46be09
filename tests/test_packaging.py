"""The wheel, the sdist and an editable install hold what a checkout holds."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import automl
from automl.cli import cli

ROOT = Path(__file__).parents[1]
SHIPPED = ("automl", "templates", "LICENSE", "README.md", "pyproject.toml", "setup.cfg")
# Distributions whose import name is another one, or that cannot but come with another.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "ai_edge_litert": "ai-edge-litert",
    "google": "tensorflow",
    "keras_tuner": "keras-tuner",
    "markupsafe": "jinja2",
    "sklearn": "scikit-learn",
    "sqlalchemy": "mlflow",
    "yaml": "pyyaml",
}


@pytest.fixture(scope="module")
def settings():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what is shipped, so that a build leaves nothing behind here."""
    folder = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in (*SHIPPED, "run_search.py"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def run(*command, cwd, **environment):
    """Run this Python; the build tools at hand are used, so no network is needed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(source, out):
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    run("-m", "pip", "wheel", *options, "--wheel-dir", out, source, cwd=out)
    (wheel,) = out.glob("*.whl")
    return wheel


def shipped_files(folder):
    """Names inside the wheel → for every file of automl/ and templates/ that must be in it."""
    code = [path.relative_to(folder) for path in (folder / "automl").rglob("*") if path.is_file()]
    pages = [path.relative_to(folder) for path in (folder / "templates").rglob("*")]
    return {str(path) for path in code} | {f"automl/{path}" for path in pages} | {"run_search.py"}


def test_every_package_is_listed(settings):
    listed = set(settings["options"]["packages"].split())
    found = {path.parent for path in (ROOT / "automl").rglob("__init__.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in found}
    assert listed == names | {"automl.templates"}


def test_every_library_that_is_imported_is_asked_for(settings):
    asked = settings["options"]["install_requires"]
    asked += "".join(settings["options.extras_require"].values())
    distributions = set(re.findall(r"^([\w-]+)", asked, re.MULTILINE))
    imported = set()
    for path in (ROOT / "automl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    imported -= {*sys.stdlib_module_names, "automl"}
    assert {DISTRIBUTIONS.get(name, name) for name in imported} <= distributions


def test_the_readme_names_only_commands_and_options_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if re.search(r"\b(automl|run_search\.py) ", line)]
    known = {"--help"}
    for command in cli.commands.values():
        known |= {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    for line in lines:
        commands = set(re.findall(r"(?:`|^|/)automl ([a-z]+)", line))
        assert commands <= set(cli.commands), line
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)) <= known, line


def test_the_entry_points_of_mlflow_run_use_options_that_exist():
    import yaml

    project = yaml.safe_load((ROOT / "MLproject").read_text())
    for name, entry in project["entry_points"].items():
        command = "search" if name == "main" else name
        known = {option for p in cli.commands[command].params for option in p.opts}
        assert set(re.findall(r"--[a-z-]+", entry["command"])) <= known
        assert set(re.findall(r"{(\w+)}", entry["command"])) == set(entry["parameters"])


def test_the_ci_script_and_the_makefile_are_well_formed():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)
    for target in ("help", "search", "test", "clean"):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.slow
def test_the_wheel_holds_every_module_template_and_schema(checkout, tmp_path):
    wheel = build_wheel(checkout, tmp_path)
    names = set(zipfile.ZipFile(wheel).namelist())
    assert shipped_files(checkout) <= names
    assert not any(name.startswith(("tests/", "benchmarks/", "reports/")) for name in names)
    assert automl.__version__ in wheel.name

    site = tmp_path / "site"
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    run("-m", "pip", "install", *options, "--target", site, wheel, cwd=tmp_path)
    shown = run("-m", "automl", "--version", cwd=tmp_path, PYTHONPATH=str(site))
    assert automl.__version__ in shown
    where = run("-c", "import automl; print(automl.__file__)", cwd=tmp_path, PYTHONPATH=str(site))
    assert str(site) in where
    assert (site / "bin" / "automl").is_file()


@pytest.mark.slow
def test_a_wheel_made_from_the_sdist_is_the_same(checkout, tmp_path):
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    run("-c", code, cwd=checkout)
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    out = tmp_path / "wheel"
    out.mkdir()
    assert shipped_files(checkout) <= set(zipfile.ZipFile(build_wheel(source, out)).namelist())


@pytest.mark.slow
def test_an_editable_install_sees_the_checkout(checkout, tmp_path):
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    prefix = tmp_path / "prefix"
    command = ["install", *options, "--prefix", prefix, "--ignore-installed", "-e", checkout]
    run("-m", "pip", *command, cwd=tmp_path)
    (site,) = {path.parent for path in prefix.rglob("*.pth")}
    # Without `site`, so that an editable install of this very checkout is not seen.
    code = (
        # First in the path: this environment's own editable install has a module of that name.
        f"import sys; sys.path[:0] = [{str(site)!r}];"
        f"sys.path.append({sysconfig.get_paths()['purelib']!r}); import site;"
        f"site.addsitedir({str(site)!r}); import automl, run_search; print(automl.__file__)"
    )
    shown = run("-S", "-c", code, cwd=tmp_path, PYTHONPATH="").strip()
    assert Path(shown) == checkout / "automl" / "__init__.py"
