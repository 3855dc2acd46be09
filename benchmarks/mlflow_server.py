"""Whole searches beside real MLflow servers that die, stay away or never answer.

    python benchmarks/mlflow_server.py content [--backend sqlite|postgresql] [--small] [--only …]
    python benchmarks/mlflow_server.py cost [--pairs 3] [--kinds refuses drops silent database]

``content``: searches of the drawn sample (``--preset smoke``), one left alone, the others with
the server killed and restarted at random moments, the server absent and ``automl sync`` later,
the search killed twice and resumed, interrupted and resumed, and two at once. Afterwards what the
server holds is compared by query with one quiet copy of the same run folder in a fresh store
(everything, times too) and with the search that was left alone (everything but times and the
order in which two workers ended their trials).
``--small``: 48 drawn images of 64 pixels instead of the sample. The code must not change meanwhile.

``cost``: the same search with tracking off and with it, in pairs whose order alternates, while
the server refuses connections, drops them, or accepts them and is silent, and with a new local
database. Two searches differ by more than is asked for, so beside the ratios of whole searches
stand what tracking is made of: the seconds that the search itself spends on it, and the processor
time of the process that sends. Both together, as if nothing ran beside anything, are the most that
it can cost. Calls add up: what ``mlflow_server_cost.json`` holds of former ones is counted too.
``--keep FOLDER`` works there and leaves it, so that the next call finds its caches filled.

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
    "import sys; from automl.tracking import mlflow_sink; mlflow_sink.SHARE = 1.0\n"
    "from automl.__main__ import main; sys.exit(main(['search', *sys.argv[1:]]))"
)
# The same, and what its sink takes: seconds of the search in ``start`` and ``stop``; processor
# seconds of the sink's process before ``stop`` and in all.
TIMED = """
import json, os, resource, sys, time
from pathlib import Path
from automl.tracking import mlflow_sink
path, spent = Path({path!r}), {{}}
def processor():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
def timed(name):
    method = getattr(mlflow_sink.MlflowSink, name)
    def call(self):
        before, began = processor(), time.perf_counter()
        result = method(self)
        spent[name] = time.perf_counter() - began
        if name == "start":
            spent["pid"] = self._process.pid
        else:
            spent["sink"] = processor() - before  # the one child that ended meanwhile
        path.write_text(json.dumps(spent))
        return result
    setattr(mlflow_sink.MlflowSink, name, call)
timed("start"); timed("stop")
from automl.__main__ import main; sys.exit(main(['search', *sys.argv[1:]]))
"""
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

    def __init__(self, work: Path, name: str, uri: str | None) -> None:
        self.work, self.name, self.folder = work, name, work / "reports" / name
        self.code = LIVE
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
            # The best so far depends on which of two workers ends first.
            "points": sorted(
                [name, step, value]
                for name, step, _, value in part["points"]
                if "seconds" not in name and name != "best_score"
            ),
            "files": [path for path, _ in part["files"]],
        }
    return kept


def measure_content(kind: str, work: Path, only: list[str]) -> dict[str, Any]:
    draw = random.Random(0)
    with postgres() as backend:
        if kind == "postgresql" and backend is None:
            sys.exit("PostgreSQL cannot be had here: apt-get install postgresql")
        place = work / "server"
        place.mkdir()
        server = Server(place, backend if kind == "postgresql" else None)
        server.start()
        try:
            return compare_scenarios(server, work, draw, only)
        finally:
            server.kill()


def compare_scenarios(
    server: Server, work: Path, draw: random.Random, only: list[str]
) -> dict[str, Any]:
    table: dict[str, Any] = {}
    expected: dict[str, Any] = {}

    def new(name: str) -> Search:
        return Search(work, name, server.uri)

    def compare(search: Search, note: str = "") -> None:
        held = content(server.uri, search.folder)
        quiet = quiet_copy(search.folder, work / "quiet.db")
        if not expected:
            expected.update(timeless(held))
        runs = [part for key, part in held.items() if key not in ("models", "versions")]
        table[search.name] = {
            "runs": len(runs),
            "points": sum(len(part["points"]) for part in runs),
            "models": len(held["models"]),
            "versions": len(held["versions"]),
            "left running": sum(part["status"] == "RUNNING" for part in runs),
            "equals a quiet copy of its folder": held == quiet,
            "equals the search left alone": timeless(held) == expected,
            "note": note,
        }
        print(search.name, table[search.name], file=sys.stderr, flush=True)
        if held != quiet or timeless(held) != expected:
            (work / f"{search.name}.json").write_text(json.dumps([held, quiet, expected]))

    search = new("alone").begin("--register", "alone")
    search.end()
    compare(search)

    if "tormented" in only:
        search = new("tormented")
        with tormented(server, draw) as kills:
            search.begin("--register", "tormented").end()
        sync(search.folder)
        compare(search, f"server killed {len(kills)} times")

    if "absent" in only:
        server.kill()
        search = new("absent")
        search.begin("--register", "absent").end()
        server.start()
        sync(search.folder)
        compare(search)

    for name, blow in (("killed", signal.SIGKILL), ("interrupted", signal.SIGINT)):
        if name not in only:
            continue
        search = new(name).begin("--register", name)
        for trials in (1, 4):
            search.reach("trial_ended", trials)
            time.sleep(draw.uniform(0, 1))
            search.process.send_signal(blow)
            search.end(-9 if blow == signal.SIGKILL else 130)
            search.begin("--resume", "--register", name)
        search.end()
        compare(search)

    names = ("one", "other") if "pair" in only else ()
    pair = [new(name).begin("--register", name) for name in names]
    for search in pair:
        search.end()
    for search in pair:
        compare(search, "both at once")
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


def time_search(work: Path, name: str, uri: str | None) -> dict[str, float]:
    """Seconds of a search, processor seconds of it and all its processes, and its sink's part."""
    search, spent_path = Search(work, name, uri), work / f"{name}.spent"
    spent_path.unlink(missing_ok=True)
    search.code = TIMED.format(path=str(spent_path))
    began = time.monotonic()
    search.begin("--overwrite")
    beside = 0.0
    while True:
        pid, status, usage = os.wait4(search.process.pid, os.WNOHANG)
        if pid:
            break
        if not beside and spent_path.exists() and search.count("search_ended"):
            beside = processor_seconds(json.loads(spent_path.read_text())["pid"])
        time.sleep(0.05)
    wall = time.monotonic() - began
    search.process.returncode = os.waitstatus_to_exitcode(status)
    search.end()
    shutil.rmtree(search.folder)
    spent = json.loads(spent_path.read_text()) if uri else {}
    return {
        "wall": wall,
        "processor": usage.ru_utime + usage.ru_stime,
        "in the search": spent.get("start", 0.0) + spent.get("stop", 0.0),
        "sink beside the trials": beside,
        "sink": spent.get("sink", 0.0),
    }


def measure_cost(pairs: int, kinds: list[str], work: Path, earlier: Path) -> dict[str, Any]:
    """``pairs`` of each kind, counted with those that ``earlier`` holds of former calls."""
    accepts, _one = deaf(listening=True)
    drops, _two = deaf(listening=False)
    uris = {
        "refuses": f"http://127.0.0.1:{free_port()}",
        "drops": drops,
        "silent": accepts,
        "database": f"sqlite:///{work / 'mlflow.db'}",
    }
    found = json.loads(earlier.read_text()) if earlier.exists() else {}
    if not (work / "cache").exists():
        time_search(work, "warm", None)
    for _ in range(pairs):
        for kind in kinds:
            done = found.setdefault(kind, [])
            (work / "mlflow.db").unlink(missing_ok=True)
            pair = [("off", None), ("with", uris[kind])]
            if len(done) % 2:
                pair.reverse()
            done.append({side: time_search(work, f"{kind}-{side}", uri) for side, uri in pair})
            print(kind, done[-1], file=sys.stderr, flush=True)
            earlier.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    def ratio(done: list[dict[str, Any]], what: str) -> str:
        ratios = sorted(pair["with"][what] / pair["off"][what] for pair in done)
        return f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}–{ratios[-1]:.3f})"

    table = {}
    for kind, done in found.items():
        most = {name: max(pair["with"][name] for pair in done) for name in done[0]["with"]}
        off = statistics.median(pair["off"]["wall"] for pair in done)
        table[kind] = {
            "pairs": len(done),
            "off, median s": round(off, 1),
            "ratio of seconds": ratio(done, "wall"),
            "ratio of processor seconds": ratio(done, "processor"),
            "s in the search": round(most["in the search"], 2),
            "sink, processor s beside the trials": round(most["sink beside the trials"], 2),
            "sink, processor s": round(most["sink"], 2),
            "ratio at most": round(1 + (most["in the search"] + most["sink"]) / off, 3),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("content", "cost"))
    parser.add_argument("--backend", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--small", action="store_true")
    scenarios = ("tormented", "absent", "killed", "interrupted", "pair")
    parser.add_argument("--only", nargs="+", choices=scenarios, default=scenarios)
    parser.add_argument("--pairs", type=int, default=3)
    kinds = ("refuses", "drops", "silent", "database")
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    work = options.keep or Path(tempfile.mkdtemp(prefix="automl-benchmark-"))
    if options.small and not (work / SMALL).exists():
        write_scans(work / SMALL)
    here = Path(__file__).parent
    if options.what == "content":
        table = measure_content(options.backend, work, options.only)
        text = json.dumps(table, indent=2) + "\n"
        (here / f"mlflow_server_{options.backend}.json").write_text(text, encoding="utf-8")
    else:
        earlier = here / "mlflow_server_cost.json"
        table = measure_cost(options.pairs, options.kinds, work, earlier)
    rows = list(next(iter(table.values())))
    print("| | " + " | ".join(rows) + " |\n|---|" + "---|" * len(rows))
    for what, values in table.items():
        print(f"| {what} | " + " | ".join(str(value) for value in values.values()) + " |")
    if options.what == "content" and not all(
        row["equals a quiet copy of its folder"] and row["equals the search left alone"]
        for row in table.values()
    ):
        sys.exit(f"The contents differ; see {work}.")
    if not options.keep:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
