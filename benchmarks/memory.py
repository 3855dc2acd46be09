"""Does a long search grow? Resident memory of driver and workers over 206 trials.

    python benchmarks/memory.py

A search of the drawn sample with R = 81 and heads or one block; it is ended after its last
trial. Printed are the resident sizes after every twentieth trial; growth by more than a tenth
after the twentieth is exit code 1.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * 4096 / 1e6


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def count(run: Path) -> tuple[int, bool]:
    """Trials that ended, and whether the search did."""
    path = run / "journal.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    kinds = [json.loads(line)["event"] for line in lines]
    return kinds.count("trial_ended"), "search_ended" in kinds


def main() -> None:
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        command = [
            sys.executable, "run_search.py", "--preset", "smoke", "--max-epochs", "81",
            "--no-tracking", "--quiet", "--out", name, "--cache-dir", f"{name}/cache",
            "--name", "long",
        ]  # fmt: skip
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
        ended, over = 0, False
        while not over and process.poll() is None:
            time.sleep(0.2)
            ended, over = count(Path(name) / "long")
            workers = sorted((resident_mb(pid) for pid in children(process.pid)), reverse=True)[:2]
            if ended >= 20 * (len(rows) + 1) and len(workers) == 2 and min(workers) > 0:
                rows[ended] = [resident_mb(process.pid), *workers]
        process.send_signal(signal.SIGTERM)
        process.communicate()
    print("| trials | driver, MB | workers, MB |\n|---|---|---|", flush=True)
    for trials, (driver, *workers) in rows.items():
        print(f"| {trials} | {driver:.0f} | {' / '.join(f'{worker:.0f}' for worker in workers)} |")
    early, late = rows[min(rows)], rows[max(rows)]
    growth = max(late[0] / early[0], sum(late[1:]) / sum(early[1:])) - 1
    print(f"\nGrowth since the 20th trial: {growth:+.1%} (at most +10 %)")
    sys.exit(growth > 0.1)


if __name__ == "__main__":
    main()
