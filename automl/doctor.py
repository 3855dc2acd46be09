"""``automl doctor``: what this machine has, and what is in the way of a search.

Nothing heavy is imported here. TensorFlow is tried in a process of its own, because a
build for another processor does not raise an error but dies.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from automl.errors import UsageError
from automl.machine import PACKAGES, cpu_name
from automl.tracking.lookout import check_uri, probe
from automl.tracking.replay import redact

Check = dict[str, str]

# Import name, distribution, what it is for.
OPTIONAL = (
    ("ai_edge_litert", "ai-edge-litert", "faster extraction of features"),
    ("onnxruntime", "onnxruntime", "faster extraction of features, export to ONNX"),
    ("pydicom", "pydicom", "DICOM files"),
    ("kagglehub", "kagglehub", "--data kaggle:OWNER/NAME"),
    ("distributed", "distributed", "--scheduler: trials on a Dask cluster"),
)
# What TensorFlow's and LiteRT's fast kernels look for, as Linux spells them.
CPU_FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "amx_bf16", "asimd", "bf16")
WEIGHTS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/"
GIB = 2**30


def examine(out: Path, tracking_uri: str | None = None) -> list[Check]:
    """All checks; each a dict with ``name``, ``status`` (ok, missing, absent) and ``detail``.

    ``missing`` is in the way of a search, ``absent`` is something it can do without.
    """
    return [
        check_python(),
        *(check_package(name) for name in PACKAGES),
        check_tensorflow(),
        check_processor(),
        check_memory(),
        check_weights(),
        check_folder("run folders", out),
        check_folder("cache", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))),
        check_mlflow(out, tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")),
        *(check_optional(*entry) for entry in OPTIONAL),
    ]


def check_python() -> Check:
    status = "ok" if sys.version_info >= (3, 11) else "missing"
    return row("Python", status, f"{platform.python_version()} on {platform.platform()}")


def check_package(name: str) -> Check:
    try:
        return row(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return row(name, "missing", f"install it with: pip install {name}")


def check_tensorflow() -> Check:
    """Whether it loads, and on which devices it would run."""
    code = "import tensorflow; print(*[d[1] for d in tensorflow.config.list_physical_devices()])"
    start = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
    except subprocess.TimeoutExpired:
        return row("TensorFlow loads", "missing", "no answer within 120 s")
    if done.returncode < 0:
        reason = f"killed by signal {-done.returncode}; this build may need another processor"
        return row("TensorFlow loads", "missing", reason)
    if done.returncode:
        return row("TensorFlow loads", "missing", (done.stderr.strip().splitlines() or ["?"])[-1])
    devices = (done.stdout.strip().splitlines() or [""])[-1]
    return row("TensorFlow loads", "ok", f"{devices}, in {time.monotonic() - start:.1f} s")


def check_processor() -> Check:
    """Cores this process may use, and the features that make inference fast."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                flags = set(value.split())
    except OSError:
        pass
    features = " ".join(feature for feature in CPU_FEATURES if feature in flags)
    return row("processor", "ok", f"{cores} cores, {cpu_name()} {features}".strip())


def check_memory() -> Check:
    """Free memory; a search of the default size needs about 2 GiB."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return row("memory", "ok", "unknown on this system")
    enough = kib * 1024 >= 2 * GIB
    return row("memory", "ok" if enough else "absent", f"{kib * 1024 / GIB:.1f} GiB free")


def check_weights() -> Check:
    """MobileNetV2's ImageNet files where Keras will look for them."""
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    found = sorted(
        path.name.removeprefix("mobilenet_v2_weights_tf_dim_ordering_tf_kernels_")
        for path in (home / "models").glob("mobilenet_v2_*_no_top.h5")
    )
    if found:
        listed = ", ".join(name.removesuffix("_no_top.h5") for name in found)
        return row("ImageNet weights", "ok", f"{home / 'models'} (width_size {listed})")
    detail = f"none in {home / 'models'}; Keras downloads them from {WEIGHTS_URL} when first used"
    return row("ImageNet weights", "absent", detail)


def check_folder(name: str, folder: Path) -> Check:
    """Whether files can be made in ``folder`` or, if it is not there yet, above it."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free / GIB
    except OSError as error:
        return row(name, "missing", f"cannot write {folder}: {error.strerror}")
    # Pixels, activations and a few models; MLflow keeps a copy of the best.
    status = "ok" if free >= 2 else "missing"
    return row(name, status, f"{folder} is writable, {free:.1f} GiB free")


def check_mlflow(out: Path, uri: str | None) -> Check:
    """A server must answer within 3 s; a store in a file only needs its folder."""
    if uri is None:
        return row("MLflow", "ok", f"sqlite under {out}, no server needed")
    try:
        problem = probe(check_uri(uri), timeout=3.0)
    except UsageError as error:
        return row("MLflow", "missing", str(error))
    if problem:
        return row("MLflow", "missing", f"{redact(uri)}: {problem}")
    if uri.startswith(("http://", "https://")):
        return row("MLflow", "ok", f"the server at {redact(uri)} answers")
    return row("MLflow", "ok", f"{uri.partition(':')[0]} store, not opened")


def check_optional(module: str, distribution: str, purpose: str) -> Check:
    if find_spec(module) is None:
        return row(distribution, "absent", f"optional: {purpose}")
    return row(distribution, "ok", f"{metadata.version(distribution)}, {purpose}")


def row(name: str, status: str, detail: str) -> Check:
    return {"name": name, "status": status, "detail": detail}


def render_checks(checks: list[Check]) -> str:
    """One line a check, and what follows from them."""
    lines = [f"{check['status']:<8} {check['name']:<18} {check['detail']}" for check in checks]
    missing = [check["name"] for check in checks if check["status"] == "missing"]
    verdict = f"In the way of a search: {', '.join(missing)}." if missing else "Ready to search."
    return "\n".join([*lines, "", verdict])
