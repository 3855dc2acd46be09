"""One nearest neighbour on 32×32 thumbnails: the label of the most similar training image."""

from pathlib import Path

import numpy as np
from job import read_job

from automl.data.pixels import scan_images
from automl.evaluation.baselines import predict_one_nearest_neighbour
from automl.records import Dataset, Sample


def main() -> None:
    job = read_job()
    parts = ("train", "test")
    paths = [path for part in parts for path in job.paths[part]]
    samples = tuple(Sample(f"{row:06d}", Path(path), "") for row, path in enumerate(paths))
    dataset = Dataset("peer", job.folder, "csv", samples, ("",))
    thumbnails = scan_images(dataset, None, job.folder / "cache").thumbnails
    n_train = len(job.paths["train"])
    answers = predict_one_nearest_neighbour(
        thumbnails[:n_train], job.labels["train"], thumbnails[n_train:], 2
    )
    job.write(np.asarray(answers)[:, 1], job.seconds)


if __name__ == "__main__":
    main()
