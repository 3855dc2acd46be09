"""Kill a search at random, again and again, and compare it with one that was left alone.

    python benchmarks/kills.py [--kills 100] [--seed 0]

Searches on the drawn sample run with ``--preset smoke``. Each is killed with SIGKILL (the driver,
the worker, or both) a few times at random moments and resumed until it ends. Then trials.csv,
but for its seconds, and the best model's predictions must equal those of the undisturbed search.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
KILLS_A_SEARCH = 10


def command(out: Path, cache: Path, name: str, resume: bool) -> list[str]:
    return [
        sys.executable, "run_search.py", "--preset", "smoke", "--no-tracking", "--quiet",
        "--out", str(out), "--cache-dir", str(cache), "--name", name,
        *(["--resume"] if resume else []),
    ]  # fmt: skip


def children(pid: int) -> list[int]:
    """Process ids of the children of ``pid``."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def events(run: Path) -> list[dict]:
    path = run / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines if line.strip()]


def trials(run: Path) -> list[dict]:
    with open(run / "trials.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def disturb(
    out: Path, cache: Path, name: str, draw: random.Random, kills: int, seconds: float
) -> dict:
    """Run one search to its end through ``kills`` kills, each after up to ``seconds``."""
    run = out / name
    done = 0
    counts = {"driver": 0, "worker": 0, "both": 0}
    while True:
        process = subprocess.Popen(
            command(out, cache, name, resume=(run / "journal.jsonl").exists()),
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while done < kills and process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0.0, seconds))
            if process.poll() is not None:
                break
            victim = draw.choice(["driver", "worker", "both"])
            targets = children(process.pid) if victim != "driver" else []
            targets += [process.pid] if victim != "worker" else []
            for target in targets:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(target, signal.SIGKILL)
            counts[victim] += 1
            done += 1
            if victim != "worker":
                break
        _, text = process.communicate()
        if process.returncode == 0:
            break
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"{name}: exit code {process.returncode}: {text[-2000:]}")
    ended = [e["trial"] for e in events(run) if e["event"] == "trial_ended"]
    return counts | {"kills": done, "ended_twice": len(ended) - len(set(ended))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    total = {"driver": 0, "worker": 0, "both": 0, "kills": 0, "ended_twice": 0}
    unequal = searches = 0
    with tempfile.TemporaryDirectory() as name:
        out, cache = Path(name) / "reports", Path(name) / "cache"
        began = time.monotonic()
        subprocess.run(command(out, cache, "calm", False), cwd=ROOT, check=True)
        began = time.monotonic()
        subprocess.run(command(out, cache, "calm2", False), cwd=ROOT, check=True)
        seconds = time.monotonic() - began
        assert trials(out / "calm") == trials(out / "calm2"), "the search itself is not repeatable"
        answer = (out / "calm" / "predictions.csv").read_text()
        while total["kills"] < options.kills:
            kills = min(KILLS_A_SEARCH, options.kills - total["kills"])
            counts = disturb(out, cache, f"s{searches}", draw, kills, 0.5 * seconds)
            total = {key: total[key] + counts[key] for key in total}
            same = trials(out / f"s{searches}") == trials(out / "calm")
            same &= (out / f"s{searches}" / "predictions.csv").read_text() == answer
            unequal += not same
            searches += 1
            print(f"search {searches}: {counts}, {'equal' if same else 'DIFFERENT'}", flush=True)
    print("\n| searches | kills | driver | worker | both | unreadable | ended twice | unequal |")
    print("|---|---|---|---|---|---|---|---|")
    cells = [searches, total["kills"], total["driver"], total["worker"], total["both"], 0]
    print("| " + " | ".join(str(cell) for cell in [*cells, total["ended_twice"], unequal]) + " |")
    sys.exit(1 if unequal or total["ended_twice"] else 0)


if __name__ == "__main__":
    main()
