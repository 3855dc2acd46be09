"""A disk that is full, a folder that is read-only, a run that is in use: what a search says.

    sudo python benchmarks/faults.py

Searches of the drawn sample write to small tmpfs mounts. Each must end with its exit code and
one clear message, without a traceback, and with room again must go on with --resume to the
trials of the undisturbed search.
"""

import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


# Folders that fill up, at so many MB: a run's at its checkpoints; a cache at the drawn sample, at
# the decoded images, at the activations.
FULL = (("run", 2), ("run", 8), ("run", 20), ("cache", 2), ("cache", 25), ("cache", 36))


def search(out: Path, cache: Path, name: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(out, cache, name, *more), cwd=ROOT, capture_output=True, text=True
    )


def command(out: Path, cache: Path, name: str, *more: str) -> list[str]:
    return [
        sys.executable, "run_search.py", "--preset", "smoke", "--no-tracking", "--quiet",
        "--out", str(out), "--cache-dir", str(cache), "--name", name, *more,
    ]  # fmt: skip


def mount(folder: Path, options: str) -> None:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def trials(run: Path) -> list[dict]:
    with open(run / "trials.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def show(name: str, result: subprocess.CompletedProcess[str], code: int, after: str = "") -> None:
    text = result.stderr.strip().splitlines()
    bad = result.returncode != code or "Traceback" in result.stderr
    said = text[-1].replace("|", "/") if text else ""
    print(
        f"| {name} | {result.returncode}{' WRONG' if bad else ''} | {said} | {after} |", flush=True
    )
    global failed
    failed |= bad or "DIFFERENT" in after


failed = False


def main() -> None:
    mounts = []
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        cache = base / "cache"
        try:
            assert search(base / "calm", cache, "run").returncode == 0
            calm = trials(base / "calm" / "run")
            print("| fault | exit code | what is said | with room again |\n|---|---|---|---|")

            for number, (what, megabytes) in enumerate(FULL):
                small = base / f"full{number}"
                mount(small, f"size={megabytes}m")
                mounts.append(small)
                out, store = (small, cache) if what == "run" else (base / f"out{number}", small)
                first = search(out, store, "run")
                remount(small, "size=900m")
                begun = (out / "run" / "journal.jsonl").exists()
                again = search(out, store, "run", "--resume" if begun else "--overwrite")
                same = again.returncode == 0 and trials(out / "run") == calm
                after = "equal" if same else f"DIFFERENT: {again.stderr[-300:]}"
                show(f"{what} folder full at {megabytes} MB", first, 1, after)

            sealed = base / "sealed"
            mount(sealed, "size=900m,ro")
            mounts.append(sealed)
            show("run folder read-only", search(sealed, cache, "run"), 1)
            show("cache folder read-only", search(base / "b", sealed, "run"), 1)

            process = subprocess.Popen(command(base / "c", cache, "run"), cwd=ROOT)
            while not (base / "c" / "run" / "journal.jsonl").exists():
                time.sleep(0.1)
            second = search(base / "c", cache, "run", "--resume")
            process.wait()
            same = "equal" if trials(base / "c" / "run") == calm else "DIFFERENT"
            show("a second search on the run folder", second, 2, same)
        finally:
            for folder in mounts:
                subprocess.run(["umount", str(folder)], check=False)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
