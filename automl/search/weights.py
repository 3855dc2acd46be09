"""The backbone's weights: Keras' ImageNet release, a file, or a seeded random start."""

import hashlib
import socket
from pathlib import Path

import keras
import numpy as np

from automl.errors import WeightsError
from automl.search.model import build_backbone

# Without a network Keras' download may wait for minutes; nobody should.
DOWNLOAD_TIMEOUT_SECONDS = 20.0


def load_backbone(image_size: int, width: float, weights: str, seed: int) -> keras.Model:
    """A frozen backbone with the weights asked for.

    Args:
        weights: "imagenet" (Keras' cache, or its download), "none" (random, from
            ``seed``), or the path of a weights file for MobileNetV2 without its top.

    Raises:
        WeightsError: the weights cannot be had, with the ways out.
    """
    if weights == "none":
        return start_at_random(build_backbone(image_size, width), seed)
    if weights != "imagenet":
        return load_weights_file(build_backbone(image_size, width), Path(weights), width)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        return build_backbone(image_size, width, weights="imagenet")
    except Exception as error:
        # Keras raises whatever its download raised: URLError, OSError, a plain Exception.
        size = image_size if image_size in (96, 128, 160, 192, 224) else 224
        name = f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{width}_{size}_no_top.h5"
        reason = str(error).strip().splitlines()[0][:200]
        raise WeightsError(
            f"The ImageNet weights for MobileNetV2 of width {width} are not on this machine and "
            f"cannot be downloaded ({reason}). Three ways out: fetch {name} elsewhere, put it "
            "into a folder KERAS/models/ and set KERAS_HOME=KERAS; or give a weights file with "
            "--weights PATH; or start at random with --weights none."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def start_at_random(backbone: keras.Model, seed: int) -> keras.Model:
    """Draw every kernel so that activations keep their size through all layers.

    He, Zhang, Ren, Sun: "Delving Deep into Rectifiers", ICCV 2015: variance 2 / fan-in behind
    a rectifier, 1 / fan-in behind a linear bottleneck. Keras' own start, made for BatchNorm in
    training mode, lets the features of this network shrink to 1e-12.
    """
    draw = np.random.default_rng(seed)
    for layer in backbone.layers:
        if not isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            continue
        shape = layer.kernel.shape
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        fan_in = shape[0] * shape[1] * (1 if depthwise else shape[2])
        rectified = depthwise or layer.name.endswith("project")
        deviation = ((2 if rectified else 1) / fan_in) ** 0.5
        layer.set_weights([draw.normal(0, deviation, shape).astype(np.float32)])
    return backbone


def load_weights_file(backbone: keras.Model, path: Path, width: float) -> keras.Model:
    """Put the weights in the file ``path`` into ``backbone``.

    Raises:
        WeightsError: there is no such file, or it is not of this network.
    """
    if not path.is_file():
        raise WeightsError(
            f"--weights {path}: there is no such file. Give imagenet, none, or a .weights.h5 or "
            f".h5 file of MobileNetV2 width {width} without its top."
        )
    try:
        backbone.load_weights(path)
    except Exception as error:
        raise WeightsError(
            f"--weights {path} does not fit MobileNetV2 of width {width} without its top: "
            f"{str(error).strip().splitlines()[0][:200]}. Check --width."
        ) from error
    return backbone


def check_digest(found: str, expected: str | None, width: float) -> None:
    """Refuse weights that are not those the search was planned with.

    Raises:
        WeightsError: ``found`` and ``expected`` are digests of different weights.
    """
    if expected is not None and found != expected:
        raise WeightsError(
            f"The weights for MobileNetV2 of width {width} on this machine ({found[:12]}) are not "
            f"those that the search began with ({expected[:12]}). Copy the same file to every "
            "machine (KERAS_HOME/models/, or --weights PATH)."
        )


def digest_weights(backbone: keras.Model) -> str:
    """SHA-256 over all weights in order: the backbone's part of every cache key."""
    digest = hashlib.sha256()
    for array in backbone.get_weights():
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
