"""Grad-CAM for the finished model, and the check that tells whether to believe it.

Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): how strongly the class' logit grows with
each channel of the last feature map, times that channel, summed, negative evidence cut off. One
change: our head standardises the features first, so a channel counts from its mean over the
training images, not from zero. For a linear head the map's mean is then exactly the logit minus
its bias; without it, what all images have in common drowns where they differ.

Heat maps are not explanations. Adebayo et al. 2018 (arXiv 1810.03292) found maps that stay the
same when the weights are shuffled; `check_saliency` reports how much of ours does.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from automl.evaluation.heatmaps import head_mask, outside_share, rank_correlation

FEATURE_MAP = "out_relu"


def grad_cam(
    model: keras.Model,
    pixels: np.ndarray,
    class_index: int | np.ndarray = 1,
    layer: str = FEATURE_MAP,
    batch_size: int = 32,
) -> np.ndarray:
    """Heat for ``class_index``, float32 (n, S, S) in [0, 1]; all 0 where nothing speaks for it.

    Args:
        model: a finished model with layers ``layer`` and "logits" (see search/model.py).
        pixels: (n, S, S, 3) in 0–255, any numeric type.
        class_index: whose logit, one for all or one for each image, int (n,); for a model with
            one logit, 1 is that logit and 0 its negative.
        layer: the feature map; an earlier one is finer and says less.
    """
    # In two, because a tape over the whole goes all the way back to the pixels.
    feature_map = model.get_layer(layer).output
    below = keras.Model(model.inputs, feature_map)
    above = keras.Model(feature_map, model.get_layer("logits").output)
    offset = channel_means(model) if layer == FEATURE_MAP else 0.0

    indices = np.broadcast_to(class_index, len(pixels))
    maps = [np.zeros((0, *pixels.shape[1:3]), np.float32)]
    # Eager: tracing this graph takes longer than the few dozen images that maps are made for.
    for start in range(0, len(pixels), batch_size):
        batch = tf.constant(pixels[start : start + batch_size], tf.float32)
        chosen = indices[start : start + batch_size]
        features = below(batch, training=False)
        with tf.GradientTape() as tape:
            tape.watch(features)
            logits = above(features, training=False)
            if logits.shape[1] == 1:
                score = logits[:, 0] * tf.constant(np.where(chosen == 1, 1.0, -1.0), tf.float32)
            else:
                score = tf.gather(logits, chosen, batch_dims=1)
        gradient = tape.gradient(score, features)
        weights = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)
        heat = tf.reduce_sum(weights * (features - offset), axis=-1)
        if len(heat) > len(batch):  # a mirrored network: the second half is of mirror images
            heat = heat[: len(batch)] + heat[len(batch) :, :, ::-1]
        heat = tf.nn.relu(heat)
        heat = tf.math.divide_no_nan(heat, tf.reduce_max(heat, axis=(1, 2), keepdims=True))
        resized = tf.image.resize(heat[..., None], pixels.shape[1:3], method="bilinear")
        maps.append(resized[..., 0].numpy())
    return np.concatenate(maps)


def channel_means(model: keras.Model) -> np.ndarray | float:
    """Each feature's mean over the training images, (1, channels); 0.0 without such a layer."""
    names = {layer.name for layer in model.layers}
    if "standardise" not in names:
        return 0.0
    return keras.ops.convert_to_numpy(model.get_layer("standardise").mean).reshape(1, -1)


def randomised_copy(model: keras.Model, seed: int = 0) -> keras.Model:
    """The same model with the values of every kernel and bias shuffled among themselves.

    Shuffling rather than drawing anew keeps each layer's scale, so that signals neither die out
    nor explode. BatchNorm and the standardisation stay as they are: they hold statistics.
    """
    copy = keras.models.clone_model(model)
    generator = np.random.default_rng(seed)
    kept = (keras.layers.BatchNormalization, keras.layers.Normalization)
    for old, new in zip(model.layers, copy.layers, strict=True):
        weights = old.get_weights()
        if not isinstance(old, kept):
            weights = [generator.permuted(w.ravel()).reshape(w.shape) for w in weights]
        new.set_weights(weights)
        if isinstance(new, keras.layers.Normalization):
            new.finalize_state()
    return copy


def check_saliency(
    model: keras.Model,
    pixels: np.ndarray,
    class_index: int | np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The numbers that belong beside heat maps.

    ``class_index`` is as in `grad_cam`; None is the positive class of two, and of more each
    image's most probable one.

    Returns:
        ``{"images": n, "sanity": {"correlation_randomised": r}, "outside_share": share,
        "outside_area": share}``: mean rank correlation with the maps of a shuffled model (near 0:
        the maps depend on what was learned; near 1: they only trace the image), mean share of
        the heat outside the head (None where there is no heat at all), and the mean share of
        the picture that lies outside the head, which heat spread evenly would have.
    """
    if class_index is None:
        probabilities = model.predict(np.asarray(pixels, np.float32), verbose=0)
        class_index = probabilities.argmax(axis=1) if probabilities.shape[1] > 2 else 1
    heat = grad_cam(model, pixels, class_index)
    shuffled = grad_cam(randomised_copy(model, seed), pixels, class_index)
    correlation = rank_correlation(heat, shuffled)
    masks = head_mask(np.asarray(pixels))
    shares = outside_share(heat, masks)
    known = shares[~np.isnan(shares)]
    return {
        "images": len(pixels),
        "sanity": {"correlation_randomised": float(correlation.mean()) if len(heat) else None},
        "outside_share": float(known.mean()) if len(known) else None,
        "outside_area": float(1 - masks.mean()) if len(masks) else None,
    }
