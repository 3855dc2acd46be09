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
KINDS = ("trial_started", "trial_ended")
KILLS_A_SEARCH = 10
VICTIMS = ("driver", "worker", "both")
# Kills of each kind; lines that no reader can read; trials that ran when a kill came; trials
# that were begun again; trials that ended twice.
COUNTED = (*VICTIMS, "unreadable", "running", "repeated", "ended_twice")


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
    """The journal's whole lines; one that cannot be read is {"event": "unreadable"}."""
    path = run / "journal.jsonl"
    found = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            found.append({"event": "unreadable"})
    return found


def running(run: Path) -> int:
    """Trials begun and not ended in the last session."""
    open_trials: set[str] = set()
    for event in events(run):
        if event["event"] == "session_started":
            open_trials.clear()
        elif event["event"] == "trial_started":
            open_trials.add(event["trial"])
        elif event["event"] in ("trial_ended", "trial_failed"):
            open_trials.discard(event["trial"])
    return len(open_trials)


def trials(run: Path) -> list[dict]:
    with open(run / "trials.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def disturb(
    out: Path, cache: Path, name: str, draw: random.Random, kills: int, seconds: float
) -> dict:
    """Run one search to its end through ``kills`` kills, each after up to ``seconds``."""
    run = out / name
    done = 0
    counts = dict.fromkeys(COUNTED, 0)
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
            victim = draw.choice(VICTIMS)
            targets = children(process.pid) if victim != "driver" else []
            targets += [process.pid] if victim != "worker" else []
            counts["running"] += running(run)
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
    found = events(run)
    names = {kind: [e["trial"] for e in found if e["event"] == kind] for kind in KINDS}
    again, twice = (len(all_) - len(set(all_)) for all_ in names.values())
    counts["unreadable"] += sum(event["event"] == "unreadable" for event in found)
    return counts | {"repeated": again, "ended_twice": twice}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    total = dict.fromkeys(COUNTED, 0)
    unequal = searches = 0
    with tempfile.TemporaryDirectory() as name:
        out, cache = Path(name) / "reports", Path(name) / "cache"
        subprocess.run(command(out, cache, "calm", False), cwd=ROOT, check=True)
        began = time.monotonic()
        subprocess.run(command(out, cache, "calm2", False), cwd=ROOT, check=True)
        seconds = time.monotonic() - began
        assert trials(out / "calm") == trials(out / "calm2"), "the search itself is not repeatable"
        answer = (out / "calm" / "predictions.csv").read_text()
        while (done := sum(total[kind] for kind in VICTIMS)) < options.kills:
            kills = min(KILLS_A_SEARCH, options.kills - done)
            counts = disturb(out, cache, f"s{searches}", draw, kills, 0.5 * seconds)
            total = {key: total[key] + counts[key] for key in total}
            same = trials(out / f"s{searches}") == trials(out / "calm")
            same &= (out / f"s{searches}" / "predictions.csv").read_text() == answer
            unequal += not same
            searches += 1
            print(f"search {searches}: {counts}, {'equal' if same else 'DIFFERENT'}", flush=True)
    rows = {"searches": searches, "kills": sum(total[kind] for kind in VICTIMS)} | total
    rows["unequal"] = unequal
    print("\n| " + " | ".join(rows).replace("_", " ") + " |")
    print("|" + "---|" * len(rows))
    print("| " + " | ".join(map(str, rows.values())) + " |")
    bad = unequal or total["unreadable"] or total["ended_twice"]
    sys.exit(1 if bad or total["repeated"] > total["running"] else 0)


if __name__ == "__main__":
    main()
