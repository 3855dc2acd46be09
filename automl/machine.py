"""The machine and the installation, as reports and ``doctor`` name them."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "tensorflow",
    "keras",
    "keras-tuner",
    "mlflow",
    "numpy",
    "pandas",
    "scikit-learn",
    "pillow",
    "matplotlib",
    "jinja2",
)


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PACKAGES}


def environment() -> dict[str, Any]:
    return {**describe_machine(), "packages": versions()}


def describe_machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "git": git_commit(),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The checkout's commit, if this is a checkout and git is there."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
