"""The way in for ``automl``, ``python -m automl`` and ``run_search.py``."""

import sys


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; ``arguments`` default to the process's."""
    from automl.cli import run_command

    return run_command(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
