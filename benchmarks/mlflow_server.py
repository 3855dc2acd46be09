"""Whole searches beside real MLflow servers that die, stay away or never answer.

    python benchmarks/mlflow_server.py content [--backend sqlite|postgresql] [--small]
    python benchmarks/mlflow_server.py cost [--rounds 3]

``content``: searches of the drawn sample (``--preset smoke``), one left alone, the others with
the server killed and restarted at random moments, the server absent and ``automl sync`` later,
the search killed twice and resumed, interrupted and resumed, and two at once. Afterwards what the
server holds is compared by query with one quiet copy of the same run folder in a fresh store
(everything, times too) and with the search that was left alone (everything but times).
``--small``: 48 drawn images of 64 pixels instead of the sample.

``cost``: the same search with tracking off and with it, in turns, while the server refuses
connections, drops them, or accepts them and never answers, and with a local database. Wall time
against tracking off, and the processor time of the process that sends.

Both print a table and write JSON beside this file.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from servers import Server, free_port, postgres, wait_until  # noqa: E402
from test_pipeline import write_scans  # noqa: E402
from tracking_run import read_store  # noqa: E402

# With a share of 1 so short a search is copied while it runs, and not at its end only.
LIVE = (
    "import sys; from automl.tracking import mlflow_sink; mlflow_sink.SHARE = {share}\n"
    "from automl.__main__ import main; sys.exit(main(['search', *sys.argv[1:]]))"
)
SMALL = "scans"
TIMES = ("start", "end")
# What differs between two searches that found the same: names, ids, times, sessions.
OWN_PARAMS = ("name", "out", "tracking_uri", "register")
OWN_TAGS = (
    "automl.run_id", "automl.created", "automl.events", "automl.sessions", "automl.artifacts",
    "automl.digest", "mlflow.source.name", "mlflow.runName",
)  # fmt: skip


class Search:
    """One search in a process of its own."""

    def __init__(self, work: Path, name: str, uri: str | None, share: float = 1.0) -> None:
        self.work, self.name, self.folder = work, name, work / "reports" / name
        self.code = LIVE.format(share=share)
        tracking = ["--tracking-uri", uri] if uri else ["--no-tracking"]
        small = (work / SMALL).exists()
        data = ["--data", SMALL, "--weights", "none", "--image-size", "64"] if small else []
        self.options = ["--preset", "smoke", "--name", name, "--quiet", *data, *tracking]

    def begin(self, *options: str) -> "Search":
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.code, *self.options, *options],
            cwd=self.work,
            env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(self.work / "cache")},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        return self

    def count(self, kind: str) -> int:
        path = self.folder / "journal.jsonl"
        return path.read_text().count(f'"event":"{kind}"') if path.exists() else 0

    def reach(self, kind: str, count: int) -> None:
        wait_until(lambda: self.count(kind) >= count or self.process.poll() is not None, 1200)

    def end(self, code: int = 0) -> None:
        found = self.process.wait(timeout=1200)
        assert found == code, f"{self.name} ended with {found}"


def sync(folder: Path) -> None:
    command = [sys.executable, "-m", "automl", "sync", str(folder), "-q"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


@contextlib.contextmanager
def tormented(server: Server, draw: random.Random) -> Iterator[list[float]]:
    """Kill the server at random moments and start it again, until the block ends."""
    over, kills = threading.Event(), []

    def torment() -> None:
        while not over.wait(draw.uniform(2.0, 12.0)):
            server.kill()
            kills.append(time.monotonic())
            over.wait(draw.uniform(0.0, 4.0))
            server.start()

    thread = threading.Thread(target=torment)
    thread.start()
    try:
        yield kills
    finally:
        over.set()
        thread.join()


def content(uri: str, folder: Path) -> dict[str, Any]:
    first = (folder / "journal.jsonl").read_text().split("\n", 1)[0]
    return json.loads(json.dumps(read_store(uri, json.loads(first)["run_id"])))


def quiet_copy(folder: Path, store: Path) -> dict[str, Any]:
    """What one undisturbed copy of the folder makes of a fresh database."""
    from automl.tracking.mlflow_sync import sync_run

    link = (folder / "mlflow.json").read_bytes()
    uri = f"sqlite:///{store}"
    sync_run(folder, uri)
    (folder / "mlflow.json").write_bytes(link)
    return content(uri, folder)


def timeless(held: dict[str, Any]) -> dict[str, Any]:
    """What two searches that found the same have in common."""
    kept = {}
    for key, part in held.items():
        if key in ("models", "versions"):
            kept[key] = len(part)
            continue
        kept[key] = {
            **{k: v for k, v in part.items() if k not in TIMES},
            "name": "search" if key == "search" else part["name"],
            "params": {k: v for k, v in part["params"].items() if k not in OWN_PARAMS},
            "tags": {k: v for k, v in part["tags"].items() if k not in OWN_TAGS},
            "points": sorted([p[0], p[1], p[3]] for p in part["points"] if "seconds" not in p[0]),
            "files": [path for path, _ in part["files"]],
        }
    return kept


def measure_content(kind: str, work: Path) -> dict[str, Any]:
    draw = random.Random(0)
    with postgres() as backend:
        if kind == "postgresql" and backend is None:
            sys.exit("PostgreSQL cannot be had here: apt-get install postgresql")
        place = work / "server"
        place.mkdir()
        server = Server(place, backend if kind == "postgresql" else None)
        server.start()
        try:
            return compare_scenarios(server, work, draw)
        finally:
            server.kill()


def compare_scenarios(server: Server, work: Path, draw: random.Random) -> dict[str, Any]:
    def new(name: str) -> Search:
        return Search(work, name, server.uri)

    notes: dict[str, str] = {}
    alone = new("alone").begin("--register", "alone")
    alone.end()
    searches = [alone]

    search = new("tormented")
    with tormented(server, draw) as kills:
        search.begin("--register", "tormented").end()
    notes["tormented"] = f"server killed {len(kills)} times"
    sync(search.folder)
    searches.append(search)

    server.kill()
    search = new("absent")
    search.begin("--register", "absent").end()
    server.start()
    sync(search.folder)
    searches.append(search)

    for name, blow in (("killed", signal.SIGKILL), ("interrupted", signal.SIGINT)):
        search = new(name).begin("--register", name)
        for trials in (1, 4):
            search.reach("trial_ended", trials)
            time.sleep(draw.uniform(0, 1))
            search.process.send_signal(blow)
            search.end(-9 if blow == signal.SIGKILL else 130)
            search.begin("--resume", "--register", name)
        search.end()
        searches.append(search)

    pair = [new(name).begin("--register", name) for name in ("one", "other")]
    for search in pair:
        search.end()
    searches += pair

    expected = timeless(content(server.uri, alone.folder))
    store = work / "quiet.db"
    table = {}
    for search in searches:
        held = content(server.uri, search.folder)
        quiet = quiet_copy(search.folder, store)
        runs = [part for key, part in held.items() if key not in ("models", "versions")]
        table[search.name] = {
            "runs": len(runs),
            "points": sum(len(part["points"]) for part in runs),
            "models": len(held["models"]),
            "versions": len(held["versions"]),
            "left running": sum(part["status"] == "RUNNING" for part in runs),
            "equals a quiet copy of its folder": held == quiet,
            "equals the search left alone": timeless(held) == expected,
            "note": notes.get(search.name, ""),
        }
        if held != quiet or timeless(held) != expected:
            (work / f"{search.name}.json").write_text(json.dumps([held, quiet, expected]))
    return table


def deaf(listening: bool) -> tuple[str, list[socket.socket]]:
    """A server that never answers: it accepts connections, or drops them as a firewall does."""
    door = socket.socket()
    door.bind(("127.0.0.1", 0))
    door.listen(64 if listening else 0)
    kept = [door]
    if not listening:
        # The queue is full; what else arrives is dropped.
        kept.append(socket.create_connection(door.getsockname()))
    return f"http://127.0.0.1:{door.getsockname()[1]}", kept


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def find_sink(folder: Path) -> int | None:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"automl.tracking.mlflow_sink" in words and str(folder.name) in str(words):
                return int(path.parent.name)
    return None


def time_search(work: Path, name: str, uri: str | None) -> dict[str, float]:
    """Seconds of a search, its wait for the last copy, and the sink's processor seconds.

    The wait is from the journal's last word to the end of the process: it is measured apart,
    because searches differ by more than it for other reasons.
    """
    search = Search(work, name, uri, share=0.01)
    began = time.monotonic()
    search.begin("--overwrite")
    sink, during, last, over = None, 0.0, 0.0, 0.0
    while search.process.poll() is None:
        time.sleep(0.05)
        if uri and sink is None:
            sink = find_sink(search.folder)
        elif sink is not None:
            with contextlib.suppress(OSError):
                last = processor_seconds(sink)
            if not over:
                during = last
        if not over and search.count("session_ended"):
            over = time.monotonic()
    wall = time.monotonic() - began
    search.end()
    shutil.rmtree(search.folder)
    return {"wall": wall, "wait": began + wall - over, "during": during, "in all": last}


def measure_cost(rounds: int, work: Path, earlier: Path) -> dict[str, Any]:
    """Every kind once a round; what ``earlier`` holds of former calls is counted with it."""
    accepts, _one = deaf(listening=True)
    drops, _two = deaf(listening=False)
    kinds = {
        "tracking off": None,
        "server refuses": f"http://127.0.0.1:{free_port()}",
        "server drops": drops,
        "server never answers": accepts,
        "local database": f"sqlite:///{work / 'mlflow.db'}",
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    if earlier.exists():
        found = json.loads(earlier.read_text())["rounds"]
    time_search(work, "warm", None)
    for _ in range(rounds):
        for name, uri in kinds.items():
            found[name].append(time_search(work, name.replace(" ", "-"), uri))
            print(name, found[name][-1], file=sys.stderr)
    earlier.write_text(json.dumps({"rounds": found}, indent=1) + "\n", encoding="utf-8")
    off = [run["wall"] for run in found["tracking off"]]
    table = {}
    for name, runs in found.items():
        ratios = [run["wall"] / base for run, base in zip(runs, off, strict=True)]
        table[name] = {
            "wall s": ", ".join(f"{run['wall']:.1f}" for run in runs),
            "ratio, median": round(statistics.median(ratios), 3),
            "ratio of the fastest": round(min(r["wall"] for r in runs) / min(off), 3),
            "wait at the end, median s": round(statistics.median(r["wait"] for r in runs), 2),
            "sink CPU s during the search": max(round(run["during"], 2) for run in runs),
            "sink CPU s in all": max(round(run["in all"], 2) for run in runs),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("content", "cost"))
    parser.add_argument("--backend", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    work = Path(tempfile.mkdtemp(prefix="automl-benchmark-"))
    if options.small:
        write_scans(work / SMALL)
    here = Path(__file__).parent
    if options.what == "content":
        table = measure_content(options.backend, work)
        text = json.dumps(table, indent=2) + "\n"
        (here / f"mlflow_server_{options.backend}.json").write_text(text, encoding="utf-8")
    else:
        table = measure_cost(options.rounds, work, here / "mlflow_server_cost.json")
    rows = list(next(iter(table.values())))
    print("| | " + " | ".join(rows) + " |\n|---|" + "---|" * len(rows))
    for what, values in table.items():
        print(f"| {what} | " + " | ".join(str(value) for value in values.values()) + " |")
    if options.what == "content" and not all(
        row["equals a quiet copy of its folder"] and row["equals the search left alone"]
        for row in table.values()
    ):
        sys.exit(f"The contents differ; see {work}.")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
