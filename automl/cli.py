"""The commands. Each reads its options, calls one function of the layers below, and prints.

Functions are imported inside the commands: ``--help`` loads no framework.
"""

import functools
import shlex
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from automl import __version__
from automl.config import make_config
from automl.console import Console, hush, paint, quiet_frameworks, silence
from automl.errors import AutomlError, Interrupted, UsageError
from automl.options import (
    DATA_SETTINGS,
    config_options,
    given_settings,
    read_settings,
)
from automl.output import (
    audit_lines,
    export_lines,
    external_lines,
    print_json,
    summarise,
    summary_lines,
)

EXPORT_FORMATS = "saved_model, tflite, tflite_float16, tflite_int8, onnx"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="automl")
def cli() -> None:
    """From a folder of medical images to a model and a report that can be believed."""


def talk_options(command: Any) -> Any:
    """``--json -q -v`` and the Console made of them, passed as ``console``."""

    @functools.wraps(command)
    def wrapped(as_json: bool, quiet: bool, verbose: bool, **options: Any) -> Any:
        if not verbose:
            quiet_frameworks()
        return command(console=Console(quiet, verbose, as_json), **options)

    for option in (
        click.option("-v", "--verbose", is_flag=True, help="show more, and tracebacks"),
        click.option("-q", "--quiet", is_flag=True, help="show warnings and errors only"),
        click.option("--json", "as_json", is_flag=True, help="one JSON document on stdout"),
    ):
        wrapped = option(wrapped)
    return wrapped


@cli.command()
@config_options()
@click.option("--config", "config_file", metavar="FILE.yaml", help="settings; options win over it")
@click.option("--resume", is_flag=True, help="go on with the run of this name")
@click.option("--overwrite", is_flag=True, help="throw away the run of this name")
@click.option("--dry-run", is_flag=True, help="print the plan and stop before any training")
@talk_options
def search(
    console: Console,
    config_file: str | None,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Search for the best model, evaluate it, write its report, export it."""
    config = make_config({**read_settings(config_file), **given_settings(options)})
    if resume and overwrite:
        raise UsageError("--resume goes on with a run and --overwrite throws it away: choose one.")
    from automl import pipeline

    if dry_run:
        plan = pipeline.plan_search(config, console)
        if console.json:
            print_json(plan)
        return
    run = pipeline.run_search(
        config,
        resume=resume,
        overwrite=overwrite,
        command=command_line(click.get_current_context().obj),
        console=console,
    )
    if console.json:
        print_json(summarise(run))
    else:
        console.summary(summary_lines(run))


@cli.command()
@click.argument("data")
@config_options(DATA_SETTINGS)
@click.option("--html", metavar="FILE.html", help="also write a page with pictures of the pairs")
@talk_options
def audit(console: Console, data: str, html: str | None, **options: Any) -> None:
    """Look at DATA without training: findings, near-copies, a split that does not leak."""
    config = make_config({"data": data, **given_settings(options)})
    if html is not None and (Path(html).suffix.lower() != ".html" or Path(html).is_dir()):
        raise UsageError(f"--html {html} must be a file that ends in .html.")
    from automl.pipeline import audit_data, write_audit_page

    dataset, result = audit_data(config, console)
    if html is not None:
        write_audit_page(dataset, result, Path(html))
    if console.json:
        print_json(result.to_json())
    else:
        console.say("\n".join(audit_lines(dataset, result)))
        if html is not None:
            console.say(f"\npage  {html}")


@cli.command()
@click.argument("run")
@talk_options
def report(console: Console, run: str) -> None:
    """Make RUN's report.html and model_card.md again; needs no TensorFlow.

    The authors' answers are read anew from study.yaml in RUN's folder.
    """
    folder = find_run(run)
    from automl.pipeline import write_report
    from automl.reporting.page import read_report

    path = write_report(folder, read_report(folder / "report.json")).report_path
    if console.json:
        print_json({"report": str(path), "model_card": str(folder / "model_card.md")})
    else:
        console.say(str(path))


@cli.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@click.option("--out", metavar="FILE.csv|.json", help="write there instead of to stdout")
@click.option("--image-column", metavar="NAME", help="column of image names in CSV files [found]")
@click.option("--saliency", metavar="FOLDER", help="paint there what each label rests on")
@click.option("--html", metavar="FILE.html", help="also write a page of the results")
@click.option("--trust", is_flag=True, help="load a model whose files are not as exported")
@talk_options
def predict(
    console: Console,
    model: str,
    images: tuple[str, ...],
    out: str | None,
    image_column: str | None,
    saliency: str | None,
    html: str | None,
    trust: bool,
) -> None:
    """Classify IMAGES with MODEL, a run folder or a SavedModel folder.

    IMAGES are files, folders, CSV files with a column of image names, or - for paths on
    standard input, one a line.
    """
    for name, value, endings in (("--out", out, (".csv", ".json")), ("--html", html, (".html",))):
        if value is not None and Path(value).suffix.lower() not in endings:
            raise UsageError(f"{name} {value} must end in {' or '.join(endings)}.")
    from automl.serving.inputs import find_images, read_list
    from automl.serving.predictor import load
    from automl.serving.tables import write_json_list, write_predictions

    folder = find_model(model)
    with hush():
        predictor = load(folder, trust=trust)
    info = predictor.info
    given = read_list(sys.stdin.buffer.read()) if images == ("-",) else images
    files = list(find_images(given, image_column, console.warn))
    if not files:
        raise UsageError("No images were given: standard input holds no path.")
    kept: list[Any] = []
    predictions = console.count(predictor.iterate(files), "predicting", len(files))
    if saliency is not None or html is not None:
        predictions = keep_all(predictions, kept)
    if out is None and console.json:
        write_json_list(predictions, info.classes, sys.stdout)
    else:
        write_predictions(predictions, info.classes, out and Path(out))
    if out is not None:
        console.say(f"{len(files):,} predictions in {out}")
    answers = [
        (file if isinstance(file, Path) else None, row)
        for file, row in zip(files, kept, strict=False)
    ]
    overlays = {}
    if saliency is not None:
        with hush():
            from automl.serving.overlays import write_overlays

        overlays = write_overlays(folder, info, answers, Path(saliency), console.progress)
    if html is not None:
        from automl.reporting.answers import write_answers_page

        write_answers_page(info, answers, Path(html), overlays)


def keep_all(items: Iterable[Any], kept: list[Any]) -> Iterator[Any]:
    """Hand ``items`` on and remember them."""
    for item in items:
        kept.append(item)
        yield item


@cli.command()
@click.argument("run")
@click.argument("data")
@click.option(
    "--map",
    "names",
    metavar="LABEL=CLASS,…",
    help="what labels of DATA mean; LABEL= leaves its images out",
)
@config_options(("image_column", "label_column", "group_column"))
@talk_options
def evaluate(console: Console, run: str, data: str, names: str | None, **columns: Any) -> None:
    """Test RUN's model on DATA, images from elsewhere; the result joins RUN's report."""
    folder = find_run(run)
    from automl.pipeline import evaluate_run

    result = evaluate_run(folder, data, names, console, **given_settings(columns))
    if console.json:
        print_json(result)
    else:
        console.say("\n".join(external_lines(result)))


@cli.command()
@click.argument("run")
@click.option("--format", "formats", required=True, metavar="NAME,…", help=EXPORT_FORMATS)
@talk_options
def export(console: Console, run: str, formats: str) -> None:
    """Write RUN's model in further formats, each proved to give the same answers."""
    folder = find_run(run)
    from automl.exports import export_run

    results = export_run(folder, [name.strip() for name in formats.split(",")], console)
    if console.json:
        print_json(results)
    else:
        console.say("\n".join(export_lines(results)))


@cli.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN…")
@talk_options
def compare(console: Console, runs: tuple[str, ...]) -> None:
    """Put runs side by side on one page."""
    if len(runs) < 2:
        raise UsageError("compare needs at least two runs, such as reports/a reports/b.")
    folders = [find_run(run) for run in runs]
    from automl.reporting.compare import compare_runs

    path = compare_runs(folders)
    if console.json:
        print_json({"report": str(path)})
    else:
        console.say(str(path))


@cli.command()
@click.argument("run")
@click.option("--tracking-uri", metavar="URI", help="MLflow server or store [the search's own]")
@click.option("--experiment", metavar="NAME", help="MLflow experiment [the search's own]")
@click.option("--register", metavar="NAME", help="also register the model under this name")
@click.option("--promote", is_flag=True, help="make it champion if it is better")
@talk_options
def sync(console: Console, run: str, **options: Any) -> int:
    """Send to MLflow what RUN's journal has and the server lacks."""
    folder = find_run(run)
    from automl.tracking.mlflow_sync import describe, sync_run

    result = sync_run(folder, progress=console.progress, **options)
    if console.json:
        print_json(asdict(result))
    else:
        console.say(describe(result, folder))
    return 1 if result.error else 0


@cli.command()
@click.option("--out", default="reports", metavar="FOLDER", help="where runs would be written")
@click.option("--tracking-uri", metavar="URI", help="MLflow server or store to try")
@talk_options
def doctor(console: Console, out: str, tracking_uri: str | None) -> int:
    """Check this machine: versions, weights, processor, folders, MLflow."""
    from automl.doctor import examine, render_checks

    checks = examine(Path(out), tracking_uri)
    if console.json:
        print_json(checks)
    else:
        console.say(render_checks(checks))
    return 1 if any(check["status"] == "missing" for check in checks) else 0


def find_model(model: str) -> Path:
    """A run's name under reports/ counts as its folder, as in ``find_run``."""
    named = Path("reports") / model
    return named if named.is_dir() and not Path(model).exists() else Path(model)


def find_run(run: str) -> Path:
    """The run's folder, from its path or its name under reports/.

    Raises:
        UsageError: there is none, or it has no report.json.
    """
    for folder in (Path(run), Path("reports") / run):
        if (folder / "report.json").is_file() or (folder / "journal.jsonl").is_file():
            return folder
    if not Path(run).exists():
        raise UsageError(f"There is no run {run}. Give a folder such as reports/NAME.")
    raise UsageError(f"{run} is not a run: it holds neither report.json nor journal.jsonl.")


def command_line(arguments: Sequence[str]) -> str:
    """The command as it can be typed again; credentials in addresses are masked."""
    from automl.tracking.replay import redact

    if Path(sys.argv[0]).name == "run_search.py":
        return redact(f"python run_search.py {shlex.join(arguments[1:])}".strip())
    return redact(f"automl {shlex.join(arguments)}")


def run_command(arguments: Sequence[str]) -> int:
    """Parse ``arguments``, run the command, print its error if any; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # `kill`, `docker stop` and a job scheduler end a search as Ctrl-C does: resumable.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with cli.make_context("automl", list(arguments), obj=list(arguments)) as context:
            return cli.invoke(context) or 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print_error(f"Interrupted.{resume_hint(arguments)}", "stopped")
        return Interrupted.exit_code
    except AutomlError as error:
        show_traceback(arguments)
        print_error(str(error), "stopped" if isinstance(error, Interrupted) else "error")
        return error.exit_code
    except BrokenPipeError:  # the reader has what it wanted, as in `| head`
        silence(sys.stdout)
        return 0
    except Exception as error:
        show_traceback(arguments)
        text = " ".join(str(error).split()) or "no message"
        print_error(f"{type(error).__name__}: {text[:500]} (-v shows where)", "unexpected error")
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def resume_hint(arguments: Sequence[str]) -> str:
    """How to go on with an interrupted search; nothing for other commands."""
    if not arguments or arguments[0] != "search":
        return ""
    kept = [part for part in arguments if part not in ("--resume", "--overwrite")]
    return f" Go on with: {command_line([*kept, '--resume'])}"


def show_traceback(arguments: Sequence[str]) -> None:
    if {"-v", "--verbose"} & set(arguments):
        traceback.print_exc()


def print_error(text: str, word: str) -> None:
    sys.stderr.write(paint(f"{word}: ", "31", sys.stderr) + text + "\n")
