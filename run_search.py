"""The search command: ``python run_search.py --data scans/`` is ``automl search --data scans/``."""

import sys

from automl.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
