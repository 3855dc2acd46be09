"""``automl export`` on a finished run: the proof runs on the run's own test images."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from automl.cli import run_command
from automl.config import make_config
from automl.data.pixels import scan_images
from automl.data.sources import load_dataset
from automl.tracking.journal import FILE_NAME, Journal, read_journal

pytestmark = pytest.mark.slow
SIZE = 96


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A small run as the pipeline leaves it, with the model of a random backbone."""
    from report_fixture import minimal_report
    from serving_model import draw_images, make_info, make_model

    from automl.serving.export import export_saved_model

    tmp_path = tmp_path_factory.mktemp("exports")
    data = tmp_path / "scans"
    for i, pixels in enumerate(draw_images(24, SIZE)):
        folder = data / ("tumour" if i % 2 else "healthy")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    config = make_config(
        {"data": data, "image_size": SIZE, "cache_dir": tmp_path / "cache", "positive": "tumour"}
    )
    scan = scan_images(load_dataset(config), SIZE, tmp_path / "cache")
    run = tmp_path / "run"
    run.mkdir()
    model = make_model(image_size=SIZE)
    model.save(run / "model.keras")
    export_saved_model(model, make_info(image_size=SIZE), run / "model")
    names = [sample.image for sample in scan.dataset.samples]
    test = list(range(0, 24, 2))
    probabilities = model.predict(np.asarray(scan.pixels[test], np.float32), verbose=0)
    write_rows(
        run / "predictions.csv",
        ["image", "label", "predicted", "probability_healthy", "probability_tumour"],
        # In another order than the data set: rows are matched by name.
        [[names[i], "", "", *row] for i, row in zip(test, probabilities, strict=True)][::-1],
    )
    parts = ["test" if i in test else "val" if i % 3 == 0 else "train" for i in range(24)]
    write_rows(run / "split.csv", ["image", "split"], zip(names, parts, strict=True))
    (run / "report.json").write_text(json.dumps(minimal_report()))
    with Journal(run / FILE_NAME) as journal:
        journal.append("search_started", config=config.to_json(), dataset={"digest": scan.digest})
    return run


def write_rows(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def test_an_export_is_proved_on_the_test_images_and_joins_the_report(run_folder, capsys):
    assert run_command(["export", str(run_folder), "--format", "tflite", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["parity"]["images"] == 12
    assert result["parity"]["max_difference"] < 1e-4 and result["parity"]["agreement"] == 1
    report = json.loads((run_folder / "report.json").read_text())
    assert [item["format"] for item in report["cost"]["exports"]].count("tflite") == 1
    assert (run_folder / "report.html").is_file()
    assert read_journal(run_folder / FILE_NAME)[-1]["format"] == "tflite"


def test_without_the_images_it_is_written_but_not_called_proved(run_folder, capsys):
    data = run_folder.parent / "scans"
    data.rename(run_folder.parent / "moved")
    try:
        assert run_command(["export", str(run_folder), "--format", "tflite"]) == 0
    finally:
        (run_folder.parent / "moved").rename(data)
    shown = capsys.readouterr()
    assert "without a proof" in shown.err and "not proved" in shown.out
    assert (run_folder / "exports" / "tflite").is_dir()
