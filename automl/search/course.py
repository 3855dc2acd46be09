"""How a task is trained: how deep, on which views of the images, at which rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from automl.search.space import step_size
from automl.search.spec import TrialTask

# Linear probing before fine-tuning keeps the pretrained features: Kumar, Raghunathan,
# Jones, Ma, Liang: "Fine-Tuning can Distort Pretrained Features and Underperform
# Out-of-Distribution", ICLR 2022. On cached features an epoch takes a fraction of a second.
HEAD_FIRST_EPOCHS = 8
HEAD_FIRST_RATE = 1e-3
# Adam's first steps are as long as the rate allows in every weight, whatever the gradients say
# (Ma & Yarats: "On the adequacy of untuned warmup for adaptive optimization", AAAI 2021). At
# full rate they undo the pretrained layers: the loss of the first epoch is five times the head's.
WARM_UP_STEPS = 200
# The winner's refinement: all but the stem, at a rate below that of the search's default for
# pretrained layers.
REFINE_DEPTH = 17
REFINE_RATE = 3e-4
REFINE_WARM_UP_STEPS = 50


@dataclass(frozen=True)
class Course:
    """``depth`` counts the blocks that are trained, from the last one.

    ``view`` names what an epoch sees of each image, by the epoch's number, from 1. ``rate`` is
    Adam's at a moment, where 2.5 is the middle of epoch 2; it rises from zero over
    ``warm_up_steps``. ``keeps_last``: the last epoch is delivered, not the best.
    """

    depth: int
    view: Callable[[int], int]
    rate: Callable[[float], float]
    warm_up_steps: float = 1.0
    keeps_last: bool = False


HEAD_FIRST = Course(0, view=lambda epoch: 0, rate=lambda moment: HEAD_FIRST_RATE)


def course_of(task: TrialTask, views: int, rows: int) -> Course:
    """The course of ``task`` in a study of so many cached ``views``, ``rows`` to an epoch."""
    depth = trained_depth(task.params, task.refines)
    if task.refines:
        return Course(
            depth,
            # Views above the cached ones are made while they are read: each epoch sees every
            # image changed anew.
            view=lambda epoch: views + epoch,
            rate=lambda moment: refine_rate(1 - (task.epochs + 1 - moment) / task.refines),
            warm_up_steps=REFINE_WARM_UP_STEPS,
            # It is what the refinement is for, where the rate has come down.
            keeps_last=True,
        )
    # At most a quarter of the longest trial, where that has so few steps.
    quarter = math.ceil(rows / task.batch_size) * max(1, task.max_epochs // 4)
    return Course(
        depth,
        view=lambda epoch: (epoch - 1) % views,
        rate=lambda moment: step_size(task.params) * decay(int(moment), task.max_epochs),
        warm_up_steps=float(min(WARM_UP_STEPS, quarter)) if depth else 1.0,
    )


def trained_depth(params: dict[str, Any], refines: int) -> int:
    """How many of the last blocks are trained by a rung, or by ``refines`` epochs after it."""
    depth = int(params["fine_tune_depth"])
    return max(depth, REFINE_DEPTH) if refines else depth


def decay(epoch: int, max_epochs: int) -> float:
    """Half a cosine over the longest trial, from 1 in epoch 1 down to a twentieth.

    A trial that ends at an early rung has seen the beginning of the same course (Loshchilov &
    Hutter: "SGDR", ICLR 2017), so what a promotion continues is what it would have been.
    """
    progress = (epoch - 1) / max(1, max_epochs - 1)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


def refine_rate(progress: float) -> float:
    """Half a cosine down to nothing, falling within an epoch, too: there are only a few.

    ``progress`` is 0 to 1.
    """
    return REFINE_RATE * 0.5 * (1 + math.cos(math.pi * progress))
