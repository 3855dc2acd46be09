"""Commands parse, call, print and return the exit codes that scripts rely on."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

import automl
from automl import errors
from automl.cli import cli, command_line, run_command
from automl.config import SearchConfig
from automl.console import Console, format_seconds, hush, progress_text
from automl.errors import AutomlError
from automl.options import read_settings
from automl.output import export_lines, external_lines
from automl.records import Audit, Dataset, Finding, Run, Sample

ROOT = Path(__file__).parents[1]
REPORT = {
    "search": {"best": {"number": 3, "score": 0.9, "params": {}}},
    "evaluation": {
        "test": {
            "threshold": 0.4,
            "metrics": {
                "roc_auc": {"value": 0.912, "low": 0.85, "high": 0.961},
                "accuracy": {"value": 0.8, "low": None, "high": None},
            },
        }
    },
}


@pytest.fixture
def pipeline(monkeypatch):
    """The layer below the commands, which remembers what it was asked."""
    module = ModuleType("automl.pipeline")
    module.asked = {}
    finding = Finding("twins", "warning", "3 images have a twin.", 3, ("a.png",), "Look at them.")
    samples = tuple(Sample(f"{i}.png", Path(f"{i}.png"), label) for i, label in enumerate("nny"))
    dataset = Dataset("scans", Path("scans"), "folders", samples, ("n", "y"), "y")

    def run_search(config, **options):
        module.asked = {"config": config, **options}
        return Run(Path("reports/first"), REPORT)

    def plan_search(config, console):
        return {"trials": 12}

    def audit_data(config, console):
        module.asked = {"config": config}
        split = {"kind": "grouped", "train": 1, "val": 1, "test": 1, "leaking_pairs": 0}
        return dataset, Audit((finding,), {"split": split})

    def write_audit_page(dataset, audit, path):
        module.asked["page"] = path

    def evaluate_run(folder, data, names, console):
        module.asked = {"folder": folder, "data": data, "names": names}
        return {"images": 5}

    for function in (run_search, plan_search, audit_data, write_audit_page, evaluate_run):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, "automl.pipeline", module)
    monkeypatch.setattr(automl, "pipeline", module, raising=False)
    return module


def test_every_setting_is_an_option_of_search():
    names = {name for option in cli.commands["search"].params for name in option.opts}
    assert {"--" + item.name.replace("_", "-") for item in fields(SearchConfig)} <= names


@pytest.mark.parametrize("command", cli.commands)
def test_every_command_explains_itself(command, capsys):
    assert run_command([command, "--help"]) == 0
    help_text = capsys.readouterr().out
    assert "--json" in help_text and "--quiet" in help_text and "--verbose" in help_text


def test_options_win_over_the_file_and_the_file_over_the_preset(pipeline, tmp_path, capsys):
    path = tmp_path / "settings.yaml"
    path.write_text("preset: smoke\nviews: 3\nfine-tune-depths: [0, 2]\nbudget: 10m\n")
    code = run_command(["search", "--config", str(path), "--views", "7", "--no-tracking"])
    config = pipeline.asked["config"]
    assert code == 0
    assert (config.preset, config.views, config.fine_tune_depths) == ("smoke", 7, (0, 2))
    assert (config.budget, config.max_epochs, config.tracking) == (600, 3, False)


def test_the_config_file_of_a_run_gives_the_same_config_again(pipeline, tmp_path, capsys):
    run_command(["search", "--preset", "best", "--budget", "1h", "--positive", "yes"])
    first = pipeline.asked["config"]
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(first.to_json()))  # JSON is YAML
    run_command(["search", "--config", str(path)])
    assert pipeline.asked["config"] == first


def test_search_prints_its_result_for_people_and_for_programs(pipeline, capsys):
    assert run_command(["search"]) == 0
    text = capsys.readouterr().out
    assert "0.912  (0.850 to 0.961)" in text and "reports/first/report.html" in text
    assert run_command(["search", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["metrics"]["roc_auc"]["value"] == 0.912
    assert run_command(["search", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"trials": 12}
    assert run_command(["search", "-q"]) == 0
    assert capsys.readouterr().out == ""


def test_the_command_that_is_remembered_can_be_typed_again_and_holds_no_password(pipeline, capsys):
    uri = "http://me:secret@host:5000"
    run_command(["search", "--tracking-uri", uri, "--name", "my run"])
    command = pipeline.asked["command"]
    assert command == "automl search --tracking-uri http://***@host:5000 --name 'my run'"


def test_run_search_py_is_named_as_it_was_called(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["./run_search.py"])
    assert command_line(["search", "--seed", "1"]) == "python run_search.py --seed 1"


def test_audit_prints_findings_or_json(pipeline, capsys):
    assert run_command(["audit", "scans", "--label-column", "Class"]) == 0
    text = capsys.readouterr().out
    assert "grouped split: 1 to train" in text and "0 pairs of near-copies" in text
    assert "3 images (n 2, y 1)" in text and "warning: 3 images have a twin." in text
    assert pipeline.asked["config"].label_column == "Class"
    assert run_command(["audit", "scans", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"][0]["check"] == "twins"
    assert run_command(["audit", "scans", "--html", "page.html"]) == 0
    assert pipeline.asked["page"] == Path("page.html") and "page.html" in capsys.readouterr().out


def test_a_page_of_the_audit_is_not_written_over_a_folder_or_the_data(pipeline, tmp_path, capsys):
    (tmp_path / "folder.html").mkdir()
    for path in (tmp_path / "folder.html", "labels.csv"):
        assert run_command(["audit", "scans", "--html", str(path)]) == 2
        assert pipeline.asked == {} and "ends in .html" in capsys.readouterr().err


def test_evaluate_renames_labels(pipeline, tmp_path, capsys):
    (tmp_path / "report.json").write_text("{}")
    assert run_command(["evaluate", str(tmp_path), "x.csv", "--map", "1=yes,0=no", "--json"]) == 0
    assert pipeline.asked["names"] == "1=yes,0=no"
    assert json.loads(capsys.readouterr().out) == {"images": 5}


def test_an_external_test_is_told_with_its_change():
    section = {
        "name": "other",
        "images": 1200,
        "unreadable": 3,
        "seen_in_training": 40,
        "unlike_training": 7,
        "metrics": {
            "roc_auc": {"value": 0.91, "low": 0.88, "high": 0.93},
            "recall": {"value": 0.5, "low": None, "high": None},
        },
        "change": {"roc_auc": {"value": -0.06, "low": -0.09, "high": -0.03}},
    }
    lines = external_lines(section)
    assert "1,200 images, 3 unreadable, 40 of them near-copies" in lines[0]
    joined = " ".join(lines[2].split())
    assert joined == "roc auc 0.910 (0.880 to 0.930) -0.060 (-0.090 to -0.030)"
    assert lines[3].split() == ["recall", "0.500"]
    assert len(lines) == 4
    some = {**section, "lacking": ["healthy"], "undefined": ["accuracy", "roc_auc"]}
    assert external_lines(some)[-1] == (
        "There are too few images of healthy: accuracy, roc auc are not defined without them."
    )


WRONG = [
    (["serch"], "No such command"),
    (["search", "--sed", "1"], "--seed"),
    (["search", "--objective", "accuracy"], "Allowed: roc_auc"),
    (["search", "--max-epochs", "many"], "--max-epochs cannot be 'many'"),
    (["search", "--resume", "--overwrite"], "choose one"),
    (["search", "--config", "absent.yaml"], "No such file"),
    (["predict", "absent"], "Missing argument"),
    (["predict", "absent", "x.png", "--out", "x.txt"], "must end in .csv or .json"),
    (["report", "absent"], "no run absent"),
    (["report", "."], "is not a run"),
    (["compare", "one"], "at least two"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_use_is_exit_code_2_with_a_reason(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "report.json").write_text("{}")
    assert run_command(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.out == "" and "Traceback" not in shown.err


def test_without_a_command_the_help_is_shown(capsys):
    assert run_command([]) == 2
    assert "Commands:" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("viewz: 3", "Did you mean 'views'"),
        ("views: [3]", "--views cannot be [3]"),
        ("tracking: 'no'", "--tracking cannot be 'no'"),
        ("positive: yes", "in quotes"),
        ("a: b: c", "line 1 is not YAML"),
        ("- views", "one setting a line"),
        ("1: 2", "one setting a line"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_wrong_file_of_settings_is_exit_code_2(text, message, tmp_path, capsys):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    assert run_command(["search", "--config", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_files_without_settings_or_without_text(tmp_path):
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing yet\n")
    assert read_settings(str(empty)) == {} == read_settings(None)
    binary = tmp_path / "image.yaml"
    binary.write_bytes(b"\x89PNG\xff")
    with pytest.raises(errors.UsageError, match="not text"):
        read_settings(str(binary))


def subclasses(kind):
    return [kind, *(below for child in kind.__subclasses__() for below in subclasses(child))]


@pytest.mark.parametrize("kind", subclasses(AutomlError))
def test_every_error_becomes_its_exit_code_and_one_message(kind, monkeypatch, capsys):
    fail(monkeypatch, kind("This happened. Do that."))
    assert run_command(["doctor"]) == kind.exit_code
    shown = capsys.readouterr()
    assert shown.err.endswith("This happened. Do that.\n") and shown.err.count("\n") == 1


def fail(monkeypatch, error):
    def examine(*arguments):
        raise error

    monkeypatch.setattr("automl.doctor.examine", examine)


def test_exit_codes_are_those_of_the_contract():
    codes = {kind.__name__: kind.exit_code for kind in subclasses(AutomlError)}
    assert codes["UsageError"] == codes["ResumeError"] == 2
    assert codes["DataError"] == 3 and codes["Interrupted"] == 130
    assert {codes[name] for name in ("StorageError", "ModelError", "SearchError")} == {1}


def test_a_bug_is_one_line_and_its_traceback_only_on_request(monkeypatch, capsys):
    fail(monkeypatch, ZeroDivisionError("division\nby zero"))
    assert run_command(["doctor"]) == 1
    shown = capsys.readouterr().err
    assert shown == "unexpected error: ZeroDivisionError: division by zero (-v shows where)\n"
    assert run_command(["doctor", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_during_a_search_says_how_to_go_on(pipeline, capsys):
    def run_search(config, **options):
        raise KeyboardInterrupt

    pipeline.run_search = run_search
    assert run_command(["search", "--name", "a", "--overwrite"]) == 130
    assert "Go on with: automl search --name a --resume" in capsys.readouterr().err


def test_a_termination_signal_is_an_interruption(pipeline, capsys):
    def run_search(config, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    pipeline.run_search = run_search
    before = signal.getsignal(signal.SIGTERM)
    assert run_command(["search"]) == 130
    assert signal.getsignal(signal.SIGTERM) is before


def run_for_nobody(code, *arguments):
    """Run a program whose standard output nobody reads; its exit code and its errors."""
    command = [sys.executable, "-c", code, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        process.stdout.close()
        shown = process.stderr.read().decode()
        return process.wait(30), shown


@pytest.mark.parametrize("rows", [1, 20000])
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_reader_that_leaves_early_is_not_an_error(rows, arguments):
    code = (
        "import sys; from automl.cli import run_command; import automl.doctor as doctor;"
        f"rows = [{{'name': 'x' * 99, 'status': 'ok', 'detail': ''}}] * {rows};"
        "doctor.examine = lambda *a: rows; sys.exit(run_command(['doctor', *sys.argv[1:]]))"
    )
    assert run_for_nobody(code, *arguments) == (0, "")


def test_a_lost_terminal_does_not_end_a_search():
    code = (
        "import sys; from automl.console import Console; console = Console()\n"
        "for line in range(3): console.say('trial done')\n"
        "sys.stderr.write('went on')"
    )
    assert run_for_nobody(code) == (0, "went on")


def test_an_export_without_a_proof_is_called_so():
    proof = {"images": 500, "max_difference": 2e-6, "agreement": 1.0}
    lines = export_lines(
        [
            {"folder": "a/tflite", "mb": 9.1, "parity": proof},
            {"folder": "a/onnx", "mb": 9.0, "parity": None},
        ]
    )
    assert "500 test images" in lines[0] and "2.0e-06, 100.0% of the labels" in lines[0]
    assert lines[1] == "a/onnx (9.0 MB): not proved"


def test_names_that_are_not_text_are_printed_all_the_same():
    code = (
        "from automl.cli import run_command; import automl.doctor as doctor;"
        r"doctor.examine = lambda *a: [{'name': 'caf\udce9 \u8a9e', 'status': 'ok', 'detail': ''}];"
        "run_command(['doctor'])"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, env=environment, check=True
    )
    assert rb"caf\udce9 \u8a9e" in done.stdout


def test_doctor_tells_programs_and_people_what_is_missing(tmp_path, capsys):
    from automl.doctor import check_folder, check_mlflow, check_package, check_weights

    assert check_folder("runs", tmp_path / "not" / "yet")["status"] == "ok"
    (tmp_path / "file").write_text("")
    assert check_folder("runs", tmp_path / "file")["status"] == "missing"
    assert check_package("no-such-package-here")["status"] == "missing"
    assert check_mlflow(tmp_path, "http://127.0.0.1:9")["status"] == "missing"
    for uri in ("http://ann:s3cr3t@127.0.0.1:9", "http://ann:s3/cr3t@127.0.0.1:9", "mlruns"):
        check = check_mlflow(tmp_path, uri)
        assert check["status"] == "missing" and "cr3t" not in check["detail"]
    assert check_weights()["status"] in ("ok", "absent")


def test_doctor_finds_weights_where_keras_looks(tmp_path, monkeypatch):
    from automl.doctor import check_weights

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert check_weights()["status"] == "absent"
    (tmp_path / "models").mkdir()
    name = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_160_no_top.h5"
    (tmp_path / "models" / name).write_bytes(b"")
    assert "0.35_160" in check_weights()["detail"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3599.9, "1 h 00 min")],
)
def test_durations_are_easy_to_read(seconds, text):
    assert format_seconds(seconds) == text


def test_the_time_left_follows_the_pace_since_the_stage_began():
    assert progress_text("reading", 25, 100, 10.0) == "reading: 25 of 100 (25 %), 30 s left"
    assert progress_text("trials", 3, 5, 10.0, first=2).endswith("20 s left")
    assert progress_text("reading", 1, 100, 0.1) == "reading: 1 of 100 (1 %)"
    assert progress_text("reading", 0, 0, 0.0) == "reading: 0 of 0"


def test_a_log_file_gets_a_line_a_stage_and_no_escape_codes(capsys):
    console = Console()
    for done in range(1001):
        console.progress("reading images", done, 1000)
    assert capsys.readouterr().err == "reading images: 1,000 of 1,000 (100 %)\n"


def test_quiet_shows_warnings_only_and_json_keeps_stdout_clean(capsys):
    quiet = Console(quiet=True)
    quiet.say("hello")
    quiet.progress("reading", 1, 1)
    quiet.warn("look out")
    assert capsys.readouterr() == ("", "warning: look out\n")
    Console(json=True).say("hello")
    assert capsys.readouterr() == ("", "hello\n")
    Console().detail("hidden")
    Console(verbose=True).detail("shown")
    assert capsys.readouterr() == ("", "shown\n")


def test_hush_silences_what_writes_past_python_and_lets_errors_through(capfd):
    with hush():
        os.write(2, b"from C++\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
    with pytest.raises(ValueError), hush():
        raise ValueError
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def run_on_terminal(code, **environment):
    """What a program shows on a terminal of its own."""
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=side,
        stderr=side,
        env={**os.environ, "TERM": "xterm", **environment},
    )
    os.close(side)
    shown = b""
    while select.select([main], [], [], 30)[0]:
        try:
            part = os.read(main, 4096)
        except OSError:  # Linux: the other side was closed
            break
        if not part:
            break
        shown += part
    os.close(main)
    assert process.wait(30) == 0
    return shown.decode()


def test_a_terminal_gets_one_line_that_is_rewritten_and_colours_unless_refused():
    code = (
        "from automl.console import Console\nimport time\nconsole = Console()\n"
        "for i in range(4):\n    console.progress('reading', i, 3); time.sleep(0.11)\n"
        "console.warn('look out')"
    )
    shown = run_on_terminal(code, NO_COLOR="")
    assert shown.count("\r\x1b[2Kreading: ") == 4 and shown.count("\n") == 2
    assert "\x1b[33mwarning: \x1b[0mlook out" in shown
    assert "\x1b[33m" not in run_on_terminal(code, NO_COLOR="1")
    assert "\x1b" not in run_on_terminal(code, TERM="dumb")


def test_public_names_are_all_there_and_a_misspelt_one_is_an_attribute_error():
    assert all(name in dir(automl) for name in automl.__all__)
    assert automl.make_config({}).preset == "fast" and automl.UsageError is errors.UsageError
    with pytest.raises(AttributeError, match="serch"):
        automl.serch  # noqa: B018


def test_three_lines_of_python_search_audit_and_hand_on_the_settings(pipeline):
    run = automl.search("scans", budget="10m", seed=3, quiet=True)
    assert run.folder == Path("reports/first")
    assert pipeline.asked["config"].budget == 600
    assert pipeline.asked["command"] == "automl.search('scans', budget='10m', seed=3)"
    assert automl.audit("scans", quiet=True).findings[0].check == "twins"


@pytest.mark.slow
def test_automl_search_can_be_called_even_after_its_modules_were_imported(pipeline):
    import automl.search.hyperband

    assert automl.search("scans", quiet=True).name == "first"
    assert automl.search.hyperband.__name__ == "automl.search.hyperband"
