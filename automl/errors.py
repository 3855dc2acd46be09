"""Every error that automl raises on purpose.

    AutomlError             exit code 1   something failed
    ├── UsageError          exit code 2   a wrong option, path or file format
    │   └── ResumeError     exit code 2   the run on disk is not the run that was asked for
    ├── DataError           exit code 3   the data cannot support a fair evaluation
    ├── WeightsError        exit code 1   the backbone's weights cannot be had
    ├── SearchError         exit code 1   no trial could be completed
    ├── ClusterError        exit code 1   no scheduler, or no worker that can run trials
    ├── StorageError        exit code 1   the disk is full, read-only or torn
    ├── ModelError          exit code 1   a model folder is foreign, altered or broken
    └── Interrupted         exit code 130 Ctrl-C; the run can be resumed

A message says what happened, what was expected, and how to fix it. ``raise`` is for
the user's mistakes, ``assert`` for ours.
"""


class AutomlError(Exception):
    """The root of the tree; ``exit_code`` is what the command line returns."""

    exit_code = 1


class UsageError(AutomlError):
    """An option, a path or a file is not what the command takes."""

    exit_code = 2


class ResumeError(UsageError):
    """The run folder holds a search that differs from the one asked for."""


class DataError(AutomlError):
    """The data cannot support a fair evaluation."""

    exit_code = 3


class WeightsError(AutomlError):
    """The backbone's weights are neither in the cache nor to be downloaded."""


class SearchError(AutomlError):
    """The search could not complete a single trial, or fails again and again."""


class ClusterError(AutomlError):
    """A Dask cluster cannot be reached, or has no worker that fits."""


class StorageError(AutomlError):
    """The run folder cannot be written, or what is in it cannot be read."""


class ModelError(AutomlError):
    """A model folder is not one of ours, was altered, or cannot be loaded."""


class Interrupted(AutomlError):
    """The user stopped the search; nothing but the running trial is lost."""

    exit_code = 130
