"""The report's pictures."""

from pathlib import Path
from typing import Any

import numpy as np

from automl.config import SearchConfig
from automl.data.pictures import write_picture
from automl.evaluation.heatmaps import overlay
from automl.evaluation.saliency import grad_cam
from automl.records import Scan, Split
from automl.stages.evaluating import Winner

GRID_IMAGES = 6
PICTURE_SIDE = 160


def draw_pictures(
    scan: Scan,
    split: Split,
    winner: Winner,
    report: dict[str, Any],
    folder: Path,
    config: SearchConfig,
) -> None:
    """Write the report's pictures and put their names where the report has room for them."""
    assert scan.pixels is not None
    pictures = folder / "pictures"
    row_of = {sample.image: row for row, sample in enumerate(scan.dataset.samples)}

    def picture(row: int) -> str:
        path = pictures / f"{row:06d}.jpg"
        if not path.exists():
            write_picture(np.asarray(scan.pixels[row]), path, PICTURE_SIDE)
        return path.name

    draw = np.random.default_rng(config.seed)
    grid = {}
    for index, name in enumerate(scan.dataset.classes):
        rows = np.flatnonzero(scan.dataset.targets == index)
        chosen = np.sort(draw.choice(rows, min(GRID_IMAGES, len(rows)), replace=False))
        grid[name] = [picture(int(row)) for row in chosen]
    report["dataset"]["grid"] = grid
    for pair in report["audit"].get("twins", {}).get("pairs", []):
        pair["picture_a"], pair["picture_b"] = (
            picture(row_of[pair["a"]]),
            picture(row_of[pair["b"]]),
        )
    evaluation = report["evaluation"]
    cases = [*evaluation["mistakes"], *evaluation["label_suspects"]]
    explained = [case for group in evaluation["examples"].values() for case in group]
    explained += evaluation["mistakes"]
    for case in [*cases, *explained]:
        case["picture"] = picture(row_of[case["image"]])
    names = {case["image"]: case["predicted"] for case in explained}
    if not names:
        return
    rows = np.array([row_of[name] for name in names])
    pixels = np.asarray(scan.pixels[rows])
    classes = list(scan.dataset.classes)
    guesses = np.array([classes.index(guess) for guess in names.values()])
    for index in np.unique(guesses):
        at = np.flatnonzero(guesses == index)
        for row, image, heat in zip(
            rows[at], pixels[at], grad_cam(winner.model, pixels[at], int(index)), strict=True
        ):
            path = pictures / f"{row:06d}-heat.jpg"
            write_picture(overlay(image, heat), path, PICTURE_SIDE)
    for case in explained:
        case["saliency"] = f"{row_of[case['image']]:06d}-heat.jpg"
