"""The journal survives crashes, a full disk and a second writer; it never loses an event."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from automl.errors import StorageError, UsageError
from automl.tracking.journal import Journal, read_journal

ROOT = Path(__file__).parents[1]


def write_events(path, count=5):
    with Journal(path) as journal:
        return [
            journal.append("trial_ended", trial=f"{i:04d}-0", score=i / 7, text="naïve\n語")
            for i in range(count)
        ]


def mount_tmpfs(folder, options):
    """Mount a small file system there (root only); returns the function that unmounts it."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine does not allow mounting a tmpfs")
    return lambda: subprocess.run(["umount", str(folder)], check=True)


def test_events_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert read_journal(path) == []
    events = write_events(path)
    assert read_journal(path) == events
    assert path.read_bytes().count(b"\n") == len(events)


def test_a_journal_opened_again_knows_the_past_and_appends(tmp_path):
    path = tmp_path / "journal.jsonl"
    events = write_events(path)
    with Journal(path) as journal:
        assert journal.events == events
        events.append(journal.append("session_ended", reason="done"))
    assert read_journal(path) == events


def test_a_cut_at_any_byte_of_the_last_three_lines_loses_only_what_was_cut(tmp_path):
    path = tmp_path / "journal.jsonl"
    events = write_events(path)
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(ends[-4], len(data)):
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        assert read_journal(path) == events[:whole]
        with Journal(path) as journal:
            assert journal.events == events[:whole]
            added = journal.append("session_started", session=2)
        assert read_journal(path) == [*events[:whole], added]


def test_a_last_line_of_zeros_is_cut_off(tmp_path):
    """Some file systems extend the file before its data reaches the disk."""
    path = tmp_path / "journal.jsonl"
    events = write_events(path)
    whole = path.read_bytes()
    for tail in (b"\0" * 40, b"\0" * 40 + b"\n", b'{"event": 3}\n', b"[1]\n", b"\xff\xfe\n", b"\n"):
        path.write_bytes(whole + tail)
        assert read_journal(path) == events
        with Journal(path):
            pass
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [b"", b"{", b"null", b'{"time": 1}', b"\x00\x00", b"\xff"])
def test_damage_before_the_last_line_is_an_error_that_names_the_line(tmp_path, line):
    path = tmp_path / "journal.jsonl"
    write_events(path)
    lines = path.read_bytes().split(b"\n")
    lines[1] = line
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(StorageError, match="line 2, is not a journal entry"):
        read_journal(path)
    before = path.read_bytes()
    with pytest.raises(StorageError), Journal(path):
        pass
    assert path.read_bytes() == before, "a damaged journal is left for its owner to repair"


def test_a_journal_of_a_newer_automl_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "search_started", "schema": 2}\n')
    with pytest.raises(StorageError, match="newer automl"):
        read_journal(path)


def test_a_second_writer_is_refused_until_the_first_one_leaves(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as first:
        with pytest.raises(UsageError, match="Another process is writing"), Journal(path):
            pass
        first.append("still_fine")
    with Journal(path) as second:
        assert [event["event"] for event in second.events] == ["still_fine"]


def test_a_killed_writer_leaves_its_events_and_no_lock(tmp_path):
    path = tmp_path / "journal.jsonl"
    code = """
        import sys, time
        from pathlib import Path
        from automl.tracking.journal import Journal
        with Journal(Path(sys.argv[1])) as journal:
            while True:
                journal.append("tick", padding="x" * 5000)
                print("ticked", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
        for _ in range(3):
            writer.stdout.readline()
        with pytest.raises(UsageError), Journal(path):
            pass
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    with Journal(path) as journal:
        assert len(journal.events) >= 3


def test_numbers_that_are_not_json_are_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        with pytest.raises(ValueError):
            journal.append("trial_ended", score=float("nan"))
        journal.append("trial_ended", score=None)
    assert len(read_journal(path)) == 1


def test_a_clock_that_goes_back_does_not_reorder_events(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append("first")
        monkeypatch.setattr("automl.tracking.journal.time.time", lambda: 5.0)
        journal.append("second")
    assert [event["event"] for event in read_journal(path)] == ["first", "second"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_disk_is_an_error_and_leaves_whole_lines(tmp_path):
    unmount = mount_tmpfs(tmp_path, "size=64k")
    try:
        path = tmp_path / "journal.jsonl"
        with Journal(path) as journal:
            written = [journal.append("small")]
            with pytest.raises(StorageError, match=r"No space left on device.*--resume"):
                for _ in range(100):
                    written.append(journal.append("large", padding="x" * 3000))
            assert journal.events == written
            assert path.read_bytes().endswith(b"}\n")
            # What fits in the rest of the last page is still taken.
            written.append(journal.append("small"))
        assert read_journal(path) == written
    finally:
        unmount()


def test_a_folder_that_cannot_be_written_is_an_error_not_a_traceback(tmp_path):
    with pytest.raises(StorageError, match="No such file or directory"):
        Journal(tmp_path / "absent" / "journal.jsonl").__enter__()
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="Is a directory"):
        Journal(tmp_path / "folder").__enter__()
    with pytest.raises(StorageError, match="Cannot read"):
        read_journal(tmp_path / "folder")


def test_a_read_only_folder_is_an_error(tmp_path):
    if os.geteuid() == 0:  # root may write whatever the mode says, but not to a read-only mount
        make_writable = mount_tmpfs(tmp_path, "ro")
        expected = "Read-only file system"
    else:
        tmp_path.chmod(0o500)
        make_writable = lambda: tmp_path.chmod(0o700)  # noqa: E731
        expected = "Permission denied"
    try:
        with pytest.raises(StorageError, match=expected):
            Journal(tmp_path / "journal.jsonl").__enter__()
    finally:
        make_writable()


def test_every_line_is_one_json_object(tmp_path):
    path = tmp_path / "journal.jsonl"
    write_events(path)
    for line in path.read_text(encoding="ascii").splitlines():
        entry = json.loads(line)
        assert entry["event"] == "trial_ended" and entry["time"] > 1e9
