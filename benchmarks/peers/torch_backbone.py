"""The common ImageNet weights in a PyTorch MobileNetV2, for the peers that use PyTorch."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

# What torchvision's and timm's own MobileNetV2 expect; ours was trained on pixels in [-1, 1].
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)


def import_torchvision() -> None:
    """Let torchvision be imported where it was built for CUDA and torch was not.

    Its compiled operations cannot be loaded then, and its import ends at the first that is
    missing. No peer here uses one, so a name without a body will do.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        # What it defined goes away with it.
        torch.torchvision_names = library
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]


def transplant(model: nn.Module, backbone: Path, pixels: np.ndarray) -> None:
    """Fill ``model`` from the arrays that peers.py wrote, layer by layer in order.

    The release has BatchNorm folded into the kernels: mean 0, variance 1. PyTorch's users train
    with BatchNorm in training mode, which would then throw the features' scale away, so the
    statistics are measured on ``pixels``, uint8 (n, S, S, 3), and the scale set to match: in
    inference mode the network computes what Keras' does.
    """
    arrays = np.load(backbone)
    kernels = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    n_layers = len(arrays.files) // 3
    if len(kernels) != n_layers or len(norms) != n_layers:
        raise ValueError(f"{len(kernels)} convolutions, {len(norms)} norms; expected {n_layers}")
    slopes = []
    with torch.no_grad():
        for row, (kernel, norm) in enumerate(zip(kernels, norms, strict=True)):
            kernel.weight.copy_(torch.from_numpy(arrays[f"kernel_{row}"]))
            slope, shift = (
                torch.from_numpy(arrays[f"{name}_{row}"]) for name in ("slope", "shift")
            )
            norm.running_mean.zero_()
            norm.running_var.fill_(1.0)
            norm.weight.copy_(slope * (1.0 + norm.eps) ** 0.5)
            norm.bias.copy_(shift)
            slopes.append(slope)
        measured = measure(model, norms, pixels)
        for norm, slope, (mean, variance) in zip(norms, slopes, measured, strict=True):
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.weight.copy_(slope * (variance + norm.eps).sqrt())
            norm.bias.add_(slope * mean)


def measure(
    model: nn.Module, norms: list[nn.BatchNorm2d], pixels: np.ndarray
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mean and variance of what enters each norm, by channel."""
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def look(number: int):
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
            found[number] = mean, variance

        return hook

    hooks = [norm.register_forward_pre_hook(look(row)) for row, norm in enumerate(norms)]
    was_training = model.training
    model.eval()
    model(to_tensor(pixels))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return [found[row] for row in range(len(norms))]


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (n, S, S, 3) → float32 (n, 3, S, S) in [-1, 1], as MobileNetV2 was trained."""
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32)) / 127.5 - 1.0


class TensorFlowPadding(nn.Conv2d):
    """A convolution of stride 2 that pads as TensorFlow does: of one odd pixel, behind."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = (1 - side % 2 for side in images.shape[-2:])
        padded = nn.functional.pad(images, (1 - width, 1, 1 - height, 1))
        return nn.functional.conv2d(padded, self.weight, None, self.stride, 0, 1, self.groups)


def pad_as_tensorflow(model: nn.Module) -> None:
    """Without it torchvision's features are half strangers to the weights (correlation .59)."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
            layer.__class__ = TensorFlowPadding


def take_imagenet_norm(kernel: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Fold into the first layer that pixels come as (pixel - mean) / std, not in [-1, 1].

    Exact but for the outermost pixels, where the padding now stands for another grey.
    """
    factor = torch.from_numpy(2 * IMAGENET_STD)
    offset = torch.from_numpy(2 * IMAGENET_MEAN - 1)
    with torch.no_grad():
        constant = (kernel.weight.sum(dim=(2, 3)) * offset).sum(dim=1)
        kernel.weight.mul_(factor[None, :, None, None])
        norm.running_mean.sub_(constant)
