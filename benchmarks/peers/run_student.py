"""The student project that automl grew out of, made to run.

Its code is not kept; this follows what is recorded of it: MobileNetV2 with a new last part over
the frozen backbone, random search, oversampling of the training set, files read through
``ImageDataGenerator`` with pixels in 0–1, a range MobileNetV2 has never seen, augmentation also
of validation and test images, and a test generator that shuffles, so that answers and labels do
not belong together. Its accuracy was .560. What is not recorded (the strength of augmentation,
the ranges searched) is filled in as usual for such projects.

Two answers: ``answers_as_it_was.csv`` keeps the last two faults, ``answers.csv`` asks the same
model about the test images themselves, in their own order. The budget and early stopping are ours.
"""

import tempfile
from typing import Any

import keras
import keras_tuner
import numpy as np
import pandas as pd
from best_keras import BestSoFar, TimeIsUp
from job import Job, balanced_rows, read_job
from keras.src.legacy.preprocessing.image import ImageDataGenerator

SIZE, BATCH, EPOCHS = 224, 32, 10


def build(hp: keras_tuner.HyperParameters) -> keras.Model:
    base = keras.applications.MobileNetV2(
        weights="imagenet", include_top=False, input_shape=(SIZE, SIZE, 3)
    )
    base.trainable = False
    x = keras.layers.GlobalAveragePooling2D()(base.output)
    x = keras.layers.Dense(hp.Int("units", 32, 256, step=32), activation="relu")(x)
    x = keras.layers.Dropout(hp.Float("dropout", 0.0, 0.5, step=0.1))(x)
    output = keras.layers.Dense(1, activation="sigmoid")(x)
    model = keras.Model(base.input, output)
    rate = hp.Float("learning_rate", 1e-4, 1e-2, sampling="log")
    model.compile(keras.optimizers.Adam(rate), "binary_crossentropy", metrics=["accuracy"])
    return model


def flow(generator: Any, paths: list[str], labels: np.ndarray | None, **options: Any) -> Any:
    table = pd.DataFrame({"path": paths})
    if labels is not None:
        table["label"] = labels.astype(str)
    return generator.flow_from_dataframe(
        table,
        x_col="path",
        y_col=None if labels is None else "label",
        class_mode=None if labels is None else "binary",
        target_size=(SIZE, SIZE),
        batch_size=BATCH,
        **options,
    )


def search(job: Job, augmented: Any) -> BestSoFar:
    rows = balanced_rows(job.labels["train"], job.seed)
    paths = [job.paths["train"][row] for row in rows]
    train = flow(augmented, paths, job.labels["train"][rows], seed=job.seed)
    val = flow(augmented, job.paths["val"], job.labels["val"], seed=job.seed)
    clock = BestSoFar(job, "val_accuracy")
    patience = keras.callbacks.EarlyStopping("val_accuracy", patience=3, mode="max")
    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        tuner = keras_tuner.RandomSearch(
            build, "val_accuracy", max_trials=1000, seed=job.seed + 1, directory=folder
        )
        try:
            tuner.search(
                train, validation_data=val, epochs=EPOCHS, callbacks=[patience, clock], verbose=0
            )
        except TimeIsUp:
            print("the budget is over")
    return clock


def main() -> None:
    job = read_job()
    augmented = ImageDataGenerator(
        rescale=1 / 255,
        rotation_range=20,
        width_shift_range=0.1,
        height_shift_range=0.1,
        zoom_range=0.1,
        horizontal_flip=True,
    )
    clock = search(job, augmented)
    model = clock.best_model()
    shuffled = flow(augmented, job.paths["test"], None, shuffle=True, seed=job.seed)
    job.write(model.predict(shuffled, verbose=0), clock.seconds, "as_it_was", **clock.notes)
    ordered = flow(ImageDataGenerator(rescale=1 / 255), job.paths["test"], None, shuffle=False)
    job.write(model.predict(ordered, verbose=0), clock.seconds, **clock.notes)


if __name__ == "__main__":
    main()
