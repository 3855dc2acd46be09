"""Logistic regression on frozen MobileNetV2 features, its penalty chosen on validation."""

import numpy as np
from job import read_images, read_job
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from automl.search.weights import load_backbone

SIZE, WIDTH = 224, 1.0
PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)


def main() -> None:
    job = read_job()
    backbone = load_backbone(SIZE, WIDTH, "imagenet", job.seed)
    features = {
        part: np.concatenate(
            [
                backbone.predict_on_batch(read_images(paths[i : i + 64], SIZE).astype("float32"))
                for i in range(0, len(paths), 64)
            ]
        )
        for part, paths in job.paths.items()
    }
    best = (-np.inf, 0.0, None)
    for penalty in PENALTIES:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=2000))
        model.fit(features["train"], job.labels["train"])
        score = roc_auc_score(job.labels["val"], model.predict_proba(features["val"])[:, 1])
        print(f"C {penalty}: validation ROC AUC {score:.4f}")
        if score > best[0]:
            best = (score, penalty, model)
    score, penalty, model = best
    answers = model.predict_proba(features["test"])[:, 1]
    job.write(answers, job.seconds, val_score=score, C=penalty)


if __name__ == "__main__":
    main()
