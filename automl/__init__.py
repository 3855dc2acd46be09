"""automl: from a folder of medical images to a model and a report that can be believed.

    import automl

    run = automl.search("scans/", budget="10m")
    automl.load(run.model_dir).predict(["new.jpg"])

Names are loaded on first use (PEP 562), so that ``import automl`` loads no framework.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

# The package of the search; also the function ``automl.search``, see below.
import automl.search as _search_package

if TYPE_CHECKING:
    from automl.records import Audit, Run

__version__ = "0.1.0"

_HOMES = {
    "SearchConfig": "automl.config",
    "make_config": "automl.config",
    "AutomlError": "automl.errors",
    "ClusterError": "automl.errors",
    "DataError": "automl.errors",
    "Interrupted": "automl.errors",
    "ModelError": "automl.errors",
    "ResumeError": "automl.errors",
    "SearchError": "automl.errors",
    "StorageError": "automl.errors",
    "UsageError": "automl.errors",
    "WeightsError": "automl.errors",
    "Audit": "automl.records",
    "Finding": "automl.records",
    "Prediction": "automl.records",
    "Run": "automl.records",
    "load": "automl.serving.predictor",
}

__all__ = sorted(["audit", "search", *_HOMES])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'automl' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def audit(data: str | Path, *, quiet: bool = False, **settings: Any) -> "Audit":
    """Look at a data set without training: findings, twins, a split that does not leak.

    Args:
        data: a folder, a CSV file or ``"sample"``.
        quiet: print nothing.
        **settings: fields of ``SearchConfig``, such as ``label_column`` or ``split``.

    Raises:
        UsageError: a setting that does not exist or is not allowed.
        DataError: the data cannot support a fair evaluation.
    """
    from automl.config import make_config
    from automl.console import Console
    from automl.pipeline import audit_data

    config = make_config({"data": data, **settings})
    _, result = audit_data(config, Console(quiet=quiet))
    return result


class _SearchPackage(ModuleType):
    """``automl.search`` is a package of modules and, when called, the search itself.

    The import system binds a subpackage's name in its parent, so a plain function of that
    name would vanish as soon as anything imported ``automl.search.study``.
    """

    def __call__(
        self,
        data: str | Path = "sample",
        *,
        resume: bool = False,
        overwrite: bool = False,
        quiet: bool = False,
        **settings: Any,
    ) -> "Run":
        """Search, evaluate, report and export; the result lies in ``reports/NAME/``.

        Args:
            data: a folder, a CSV file or ``"sample"``.
            resume: go on with the run of this name.
            overwrite: throw away the run of this name and start again.
            quiet: print nothing.
            **settings: fields of ``SearchConfig``, such as ``budget="10m"``.

        Raises:
            AutomlError: see ``automl.errors``.
        """
        from automl.config import make_config
        from automl.console import Console, quiet_frameworks

        config = make_config({"data": data, **settings})
        quiet_frameworks()
        from automl.pipeline import run_search

        given = ", ".join([repr(str(data)), *(f"{k}={v!r}" for k, v in settings.items())])
        return run_search(
            config,
            resume=resume,
            overwrite=overwrite,
            command=f"automl.search({given})",
            console=Console(quiet=quiet),
        )


_search_package.__class__ = _SearchPackage
assert sys.modules["automl.search"] is _search_package
