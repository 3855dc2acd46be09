"""Disturb a cluster while it searches, and compare with a search on one worker.

    python benchmarks/cluster.py [--runs 20] [--hosts processes|namespaces] [--seed 0]
    python benchmarks/cluster.py --efficiency [--epochs 9]

A Dask scheduler and three workers run as processes of this machine, or, as root, each in a
network namespace with a mount of its own, so that no folder is shared (iproute2). While a search
on the drawn sample runs, workers and their trial processes are killed with SIGKILL and started
anew, the scheduler is killed and started anew and, between namespaces, one host's link is cut and
restored. The moments are drawn from the seed. A search counts as ended when its journal says so
and trials.csv is there; the driver is then stopped, because evaluation and report know nothing of
the cluster. trials.csv must equal that of one worker in all columns but the seconds.

--efficiency disturbs nothing: one worker of two threads and two workers of one thread, each by
this machine's own processes and by a cluster, and what a trial costs besides its training.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORKERS = 3
NET = "10.77.0"
# A search that takes longer does not end.
LIMIT_SECONDS = 1200.0
# Dask's own limit is 30 s; a shorter one makes the cuts shorter that count as lost.
TCP_SECONDS = 12


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Here:
    """Processes of this machine, on one folder unless ``apart``."""

    def __init__(self, hidden: Path, apart: bool = False) -> None:
        self.apart = apart
        self.scheduler = "127.0.0.1"

    def enter(self, host: int | None) -> list[str]:
        """The words before a command that runs on ``host`` (None: the scheduler's)."""
        return []

    def cut(self, host: int, down: bool) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Namespaces(Here):
    """A network namespace a host, all on one bridge; what is ``hidden`` cannot be seen there."""

    def __init__(self, hidden: Path) -> None:
        super().__init__(hidden, apart=True)
        self.hidden = hidden
        self.names = ["automl-s", *(f"automl-{i}" for i in range(WORKERS))]
        self.close()
        ip("link", "add", "automl-br", "type", "bridge")
        ip("addr", "add", f"{NET}.1/24", "dev", "automl-br")
        ip("link", "set", "automl-br", "up")
        for number, name in enumerate(self.names):
            ip("netns", "add", name)
            ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", name, "master", "automl-br", "up")
            ip("-n", name, "addr", "add", f"{NET}.{10 + number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        self.scheduler = f"{NET}.10"

    def enter(self, host: int | None) -> list[str]:
        name = self.names[0 if host is None else host + 1]
        script = f'mount -t tmpfs none "{self.hidden}" && exec "$@"'
        return ["ip", "netns", "exec", name, "sh", "-c", script, "sh"]

    def cut(self, host: int, down: bool) -> None:
        ip("link", "set", self.names[host + 1], "down" if down else "up")

    def close(self) -> None:
        for name in self.names:
            for words in (("link", "del", name), ("netns", "del", name)):
                with contextlib.suppress(subprocess.CalledProcessError):
                    ip(*words)
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", "automl-br")


class Cluster:
    """A scheduler and workers that are started anew when they end, as SLURM or systemd would."""

    def __init__(self, folder: Path, net: Here, workers: int = WORKERS, threads: int = 1) -> None:
        self.folder, self.net, self.threads = folder, net, threads
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("", 0))
            self.port = probe.getsockname()[1]
        self.address = f"tcp://{net.scheduler}:{self.port}"
        self.scheduler: subprocess.Popen | None = None
        self.workers: list[subprocess.Popen | None] = [None] * workers
        self.closed = False
        self.start_scheduler()
        self.keeper = threading.Thread(target=self._keep, daemon=True)
        self.keeper.start()

    def _start(self, name: str, host: int | None, words: list[str]) -> subprocess.Popen:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{TCP_SECONDS}s",
        }
        if self.net.apart:
            environment["AUTOML_WORKER_CACHE"] = str(home / "cache")
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                [*self.net.enter(host), sys.executable, "-m", "dask", *words],
                env=environment, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def start_scheduler(self) -> None:
        words = ["scheduler", "--host", self.net.scheduler, "--port", str(self.port)]
        self.scheduler = self._start("scheduler", None, [*words, "--no-dashboard"])

    def _keep(self) -> None:
        while not self.closed:
            for number, process in enumerate(self.workers):
                if not self.closed and (process is None or process.poll() is not None):
                    self.workers[number] = self._start(
                        f"worker{number}",
                        number,
                        ["worker", self.address, "--nthreads", str(self.threads), "--no-nanny",
                         "--no-dashboard", "--memory-limit", "0",
                         "--local-directory", str(self.folder / f"worker{number}")],
                    )  # fmt: skip
            time.sleep(1)

    def kill_worker(self, number: int) -> None:
        process = self.workers[number]
        if process is not None:
            process.kill()

    def kill_trial(self, number: int) -> None:
        process = self.workers[number]
        for child in children(process.pid) if process is not None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def restart_scheduler(self, pause: float) -> None:
        assert self.scheduler is not None
        self.scheduler.kill()
        self.scheduler.wait()
        time.sleep(pause)
        self.start_scheduler()

    def close(self) -> None:
        self.closed = True
        self.keeper.join()
        for process in (*self.workers, self.scheduler):
            if process is not None:
                process.kill()
                process.wait()


def children(pid: int) -> list[int]:
    """Process ids of the children of ``pid``."""
    found = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in thread.read_text().split()]
    return found


def command(out: Path, cache: Path, name: str, epochs: int, extra: list[str]) -> list[str]:
    return [
        sys.executable, str(ROOT / "run_search.py"), "--preset", "smoke", "--max-epochs",
        str(epochs), "--no-tracking", "--quiet", "--out", str(out), "--cache-dir", str(cache),
        "--name", name, *extra,
    ]  # fmt: skip


def events(run: Path) -> list[dict]:
    path = run / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines if line.strip()]


def count(run: Path, kind: str) -> int:
    return sum(event["event"] == kind for event in events(run))


def trials(run: Path) -> list[dict]:
    with open(run / "trials.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


class Search:
    """A search as a user starts it; ``finish`` waits until its trials are done."""

    def __init__(self, words: list[str], run: Path) -> None:
        self.run = run
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.log = run.with_suffix(".log")
        run.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                words, cwd=ROOT, env=environment, stdout=log, stderr=log,
                # A shell's background jobs, and what they start, ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )  # fmt: skip
        self.began = time.monotonic()

    def running(self) -> bool:
        """Whether trials still run; stops the driver once they do not."""
        if self.process.poll() is not None or time.monotonic() > self.began + LIMIT_SECONDS:
            self.process.kill()
            self.process.wait()
            text = self.log.read_text(errors="replace")
            raise SystemExit(f"{self.run.name} did not end: {self.process.returncode}\n{text}")
        if count(self.run, "search_ended") and (self.run / "trials.csv").exists():
            self.process.kill()
            self.process.wait()
            return False
        return True

    def finish(self) -> float:
        while self.running():
            time.sleep(0.2)
        return time.monotonic() - self.began


def disturb(search: Search, cluster: Cluster, draw: random.Random, total: int) -> dict[str, int]:
    """Kill, cut and restart at drawn moments until the search has ended; says what was done."""
    done = {"worker": 0, "trial": 0, "scheduler": 0, "link": 0}
    plan = ["worker", "worker", "trial", "scheduler"]
    if isinstance(cluster.net, Namespaces):
        plan.append("link")
    draw.shuffle(plan)
    # In the order of the trials; the last ones may find the search at its end.
    for moment, what in zip(sorted(draw.choices(range(total), k=len(plan))), plan, strict=True):
        pause = draw.uniform(0, 3)
        number = draw.randrange(len(cluster.workers))
        seconds = draw.uniform(1, 2 * TCP_SECONDS)
        while count(search.run, "trial_started") <= moment:
            if not search.running():
                return done
            time.sleep(0.1)
        time.sleep(pause)
        if what == "worker":
            cluster.kill_worker(number)
        elif what == "trial":
            cluster.kill_trial(number)
        elif what == "scheduler":
            cluster.restart_scheduler(draw.uniform(0, 5))
        else:
            cluster.net.cut(number, down=True)
            time.sleep(seconds)
            cluster.net.cut(number, down=False)
        done[what] += 1
    return done


def measure(folder: Path, epochs: int) -> None:
    """Print the table of ``--efficiency``."""
    net = Here(folder)
    out, cache = folder / "reports", folder / "cache"
    print("| trials run by | trials | search s | trial s, mean | besides training, s a trial "
          "| busy |")  # fmt: skip
    print("|---" * 6 + "|")
    for workers, threads in ((1, 2), (2, 1)):
        for by in ("processes", "cluster"):
            name = f"{by}{workers}"
            extra = ["--workers", str(workers), "--threads", str(threads)]
            cluster = None
            if by == "cluster":
                cluster = Cluster(folder / name, net, workers, threads)
                extra = ["--scheduler", cluster.address]
            try:
                search = Search(command(out, cache, name, epochs, extra), out / name)
                search.finish()
            finally:
                if cluster is not None:
                    cluster.close()
            found = events(out / name)
            started = [e["time"] for e in found if e["event"] == "trial_started"]
            ended = [e for e in found if e["event"] == "trial_ended"]
            wall = max(e["time"] for e in ended) - min(started)
            trained = sum(e["seconds"] for e in ended)
            # The next trial of a worker starts when the last has been told; at a rung's end
            # workers wait, which is no overhead: only the gaps of a single worker count.
            gap = f"{(wall - trained) / len(ended):.3f}" if workers == 1 else "–"
            print(f"| {by}, {workers} × {threads} threads | {len(ended)} | {wall:.1f} "
                  f"| {trained / len(ended):.2f} | {gap} | {trained / wall / workers:.2f} |",
                  flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--hosts", choices=("processes", "namespaces"), default="processes")
    parser.add_argument("--epochs", type=int, default=3, help="R of the search")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--efficiency", action="store_true", help="measure, disturb nothing")
    parser.add_argument("--keep", metavar="FOLDER", help="work there, and leave it")
    options = parser.parse_args()
    folder = Path(options.keep or tempfile.mkdtemp(prefix="automl-cluster-")).absolute()
    hidden = folder / "driver"
    out, cache = hidden / "reports", hidden / "cache"
    hidden.mkdir(parents=True)
    if options.efficiency:
        try:
            measure(hidden, options.epochs)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    net = Namespaces(hidden) if options.hosts == "namespaces" else Here(hidden)
    unequal = twice = 0
    totals = {"worker": 0, "trial": 0, "scheduler": 0, "link": 0}
    try:
        one = [*command(out, cache, "one", options.epochs, ["--workers", "1", "--threads", "1"])]
        calm = Search(one, out / "one").finish()
        expected = trials(out / "one")
        print(f"one worker: {len(expected)} trials, {calm:.0f} s", flush=True)
        for number in range(options.runs):
            draw = random.Random(f"{options.seed}/{options.hosts}/{number}")
            cluster = Cluster(folder / f"cluster{number}", net)
            try:
                words = command(
                    out, cache, f"run{number}", options.epochs, ["--scheduler", cluster.address]
                )
                search = Search(words, out / f"run{number}")
                done = disturb(search, cluster, draw, len(expected))
                seconds = search.finish() if search.process.poll() is None else 0.0
                seconds = seconds or time.monotonic() - search.began
            finally:
                cluster.close()
            run = out / f"run{number}"
            ended = [e["trial"] for e in events(run) if e["event"] == "trial_ended"]
            again = len(ended) - len(set(ended))
            same = trials(run) == expected
            unequal, twice = unequal + (not same), twice + again
            totals = {what: totals[what] + done[what] for what in totals}
            print(f"run {number}: {done}, {seconds:.0f} s, ended twice {again}, "
                  f"{'equal' if same else 'DIFFERENT'}", flush=True)  # fmt: skip
            if not options.keep:
                shutil.rmtree(cluster.folder, ignore_errors=True)
    finally:
        net.close()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print("\n| hosts | runs | ended | workers killed | trial processes killed "
          "| schedulers restarted | links cut | ended twice | unequal |")  # fmt: skip
    print("|---" * 9 + "|")
    cells = [options.hosts, options.runs, options.runs, *totals.values(), twice, unequal]
    print("| " + " | ".join(str(cell) for cell in cells) + " |")
    sys.exit(1 if unequal or twice else 0)


if __name__ == "__main__":
    main()
