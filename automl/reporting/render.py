"""Plain numbers → one HTML file that opens anywhere: no request, no script needed."""

import base64
import hashlib
import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import automl
from automl.reporting import formats, view
from automl.reporting.checklist import fill_checklists
from automl.reporting.figure import Figure
from automl.reporting.page import complete, read_schema
from automl.reporting.plots import draw_figure
from automl.reporting.study_file import study_rows
from automl.reporting.verdict import judge
from automl.writing import write_text

PACKAGE = Path(automl.__file__).parent
# The wheel holds the templates inside the package, a checkout beside it.
TEMPLATE_FOLDERS = (PACKAGE / "templates", PACKAGE.parent / "templates")
PICTURE_BYTES = 1_150_000  # keeps the whole page under 2 MB with figures and base64's third
PICTURE_TYPES = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}


def render_report(report: dict[str, Any], folder: Path, now: datetime | None = None) -> Path:
    """Write ``folder``/report.html from report.json's content and ``folder``/pictures.

    Args:
        report: what ``page.build_report`` made; see report.schema.json.
        folder: the run folder; pictures that are named but absent are said to be so.
        now: the timestamp printed at the foot, the only thing that differs between two
            renderings; the current time if None.

    Raises:
        StorageError: the folder cannot be written.
    """
    report = view.name_classes(complete(report))
    verdict = report["verdict"] or judge(report)
    figures = view.make_figures(report)
    pictures, left_out = embed_pictures(view.importance_of_picture(report), folder / "pictures")
    page = render_page(
        "report.html",
        title=f"{report['run']['name']}: automl report",
        report=report,
        verdict=verdict,
        figures={name: draw(figure) for name, figure in figures.items()},
        pictures=pictures,
        left_out=left_out,
        sections=view.SECTIONS,
        headlines=view.headlines(report),
        winner_values=view.winner_values(report["search"]),
        natural=view.natural_groups(report),
        class_recalls=view.class_recalls(report),
        study_rows=study_rows(report["study"] or {}),
        prefix=view.common_folder(report),
        eighty=view.eighty_percent(report),
        confusion=view.confusion_rows(report),
        metric_table=view.metric_table(report),
        checklists=fill_checklists(report),
        rendered_at=stamp(now),
    )
    return write_text(folder / "report.html", page)


def render_audit(
    audit: dict[str, Any], name: str, path: Path, folder: Path, now: datetime | None = None
) -> Path:
    """Write the page of ``automl audit --html``: the data section alone.

    Args:
        audit: audit.json's content: the report's "audit" part, with its "dataset" and "split".
        name: the data set's name.
        path: the HTML file.
        folder: where the pictures are that ``audit`` names.
    """
    parts = read_schema()["properties"]
    dataset, split = (complete(audit[part], parts[part]) for part in ("dataset", "split"))
    audit = complete(audit, parts["audit"])
    holder = {"audit": audit}
    made = (view.figures_data.twin_figure(holder), view.figures_data.shortcut_figure(holder))
    pairs = view.pairs_of(audit)
    names = [pair[key] for pair in pairs for key in ("picture_a", "picture_b") if pair[key]]
    pictures, left_out = embed_pictures(list(dict.fromkeys(names)), folder)
    page = render_page(
        "audit.html",
        prefix=view.folder_of([pair[end] for pair in pairs for end in ("a", "b")]),
        title=f"{name}: data audit",
        name=name,
        audit=audit,
        dataset=dataset,
        split=split,
        figures={figure.name: draw(figure) for figure in made if figure},
        pictures=pictures,
        left_out=left_out,
        rendered_at=stamp(now),
    )
    return write_text(path, page)


def render_page(template: str, **values: Any) -> str:
    """Fill a template; style and script go inside, the script's hash into the policy."""
    environment = make_environment()
    loader = environment.loader
    assert loader is not None
    style = shrink(loader.get_source(environment, "style.css")[0])
    script = loader.get_source(environment, "script.js")[0].strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style_digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style_digest}'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    # The two files are ours; everything else passes through autoescape.
    trusted = {"style": Markup(style), "script": Markup(script)}
    return environment.get_template(template).render(policy=policy, **trusted, **values)


@cache
def make_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader([str(folder) for folder in TEMPLATE_FOLDERS]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in (
        "words",
        "number",
        "brief",
        "percent",
        "whole_percent",
        "interval",
        "plural",
        "percent_interval",
        "points",
        "policy",
        "grouping",
        "listing",
        "times",
        "span",
        "duration",
        "size",
        "megabytes",
        "large",
        "scientific",
        "store",
    ):
        environment.filters[name] = getattr(formats, name)
    return environment


def draw(figure: Figure) -> dict[str, Any]:
    return {"figure": figure, "svg": Markup(draw_figure(figure))}


def embed_pictures(names: list[str], folder: Path) -> tuple[dict[str, str], int]:
    """Data URIs of the pictures in ``folder``, in order until the page would grow too large.

    Returns:
        name → URI, and how many pictures there was no room for. Names that are not plain
        file names, or whose file is absent or of another type, are left out.
    """
    found, left_out, total = {}, 0, 0
    for name in names:
        kind = PICTURE_TYPES.get(Path(name).suffix.lower())
        if kind is None or Path(name).name != name or not (folder / name).is_file():
            continue
        data = (folder / name).read_bytes()
        if total + len(data) > PICTURE_BYTES:
            left_out += 1
            continue
        total += len(data)
        found[name] = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return found, left_out


def shrink(style: str) -> str:
    """Comments and indentation out: the page is mailed around."""
    style = re.sub(r"/\*.*?\*/", "", style, flags=re.S)
    return re.sub(r"\s*\n\s*", "\n", style).strip()


def stamp(now: datetime | None) -> str:
    return (now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC")
