"""The settings of the training: names, types, defaults and help texts."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from dskd.settings import (
    Count,
    DeviceName,
    Fraction,
    Positive,
    Precision,
    Rate,
    Schedule,
    Settings,
    Share,
    Weight,
)


def _class_weights(value: Any) -> Any:
    """Checks ``train.class_weights``."""
    if value is None or value == "balanced":
        return value
    if isinstance(value, list | tuple) and all(
        type(weight) in (int, float) and 0 <= weight < math.inf for weight in value
    ):
        return [float(weight) for weight in value]
    raise ValueError("balanced, or a list of a number of 0 or more for each class is needed")


MixAlpha = Annotated[Weight, Field(le=1000)]
ClassWeights = Annotated[str | list[float] | None, BeforeValidator(_class_weights)]


def _increasing(milestones: tuple[float, ...]) -> tuple[float, ...]:
    if sorted(set(milestones)) != list(milestones):
        raise ValueError("milestones must increase")
    return milestones


class TrainSettings(Settings):
    """The training: schedule, optimizer and hardware."""

    epochs: Count = 240
    """Passes over the training images."""
    evaluate_every: Count = 1
    """Epochs from one evaluation to the next. The last epoch is always evaluated. The other epochs
    have no accuracies in metrics.jsonl, and the best epoch is one of those that have."""
    batch_size: Annotated[Count, Field(ge=2)] = 64
    """Images per step, over all processes. Each process needs two or more, because BatchNorm cannot
    learn from one image."""
    lr: Rate = 0.05
    """Base learning rate, at most 1e6."""
    schedule: Schedule = "step"
    """Learning-rate schedule. ``step`` multiplies the rate by gamma at every milestone. ``cosine``
    lowers it to min_lr."""
    min_lr: Annotated[Weight, Field(le=1e6)] = 0.0
    """Learning rate at the end of ``cosine``."""
    milestones: Annotated[tuple[Fraction, ...], AfterValidator(_increasing)] = (0.625, 0.75, 0.875)
    """Milestones of ``step``, as fractions of the epochs."""
    gamma: Share = 0.1
    """Factor of ``step`` at a milestone."""
    warmup: Weight = 0.0
    """Epochs at the start in which the learning rate rises linearly from 0."""
    optimizer: str = "sgd"
    """``sgd``, ``adamw``, ``dot``, or an optimizer of timm, such as ``timm/lamb`` or ``lamb``.
    ``dot`` is sgd in which the gradients of the labels and of distillation have a momentum of their
    own (DOT, ICCV 2023), for all methods with a teacher; a teacher that the run trains uses sgd.
    timm's optimizers keep timm's defaults for what is not listed here."""
    momentum: Fraction = 0.9
    """Momentum of sgd, of dot, and of those optimizers of timm that have one number for it."""
    dot_delta: Fraction = 0.075
    """How far dot moves the two momenta apart: that of the labels is momentum - dot_delta, that of
    distillation momentum + dot_delta. 0.09 is the published value for ImageNet."""
    nesterov: bool = False
    """Use Nesterov momentum with sgd."""
    weight_decay: Weight = 5e-4
    """Weight decay of every parameter."""
    decay_norms_and_biases: bool = True
    """Apply the weight decay to biases and to scale and shift of normalisation layers too. If
    false, they have none, nor have the parameters that a timm model names in no_weight_decay()."""
    clip_norm: Positive | None = None
    """Highest norm of all gradients together; larger gradients are scaled down to it. The metric
    ``gradient_norm`` is the norm before that. None does not clip."""
    accumulate: Count = 1
    """Batches whose gradients are added up for one update. A step then sees ``batch_size *
    accumulate`` images, and its gradient is that of the mean loss over all of them. Only what
    relates the images of a batch, such as BatchNorm, sees ``batch_size`` of them at a time."""
    label_smoothing: Fraction = 0.0
    """Share of each label that is spread evenly over all classes, in every cross-entropy with the
    labels: 0.1 is common."""
    class_weights: ClassWeights = None
    """Weights of the classes in every cross-entropy with the labels: a list with one for each, or
    ``balanced`` for classes that all count the same, however many images they have. The loss stays
    the mean over the images. None for 1."""
    mixup: MixAlpha = 0.0
    """Alpha of mixup, which blends each image with its neighbour in the batch by a share from
    Beta(alpha, alpha). The teacher sees the same mixed images. In ``train_accuracy``, the class of
    a mixed image is the one with the larger share. 0 turns it off; 0.2 to 1 are common."""
    cutmix: MixAlpha = 0.0
    """Alpha of CutMix, which replaces a box in each image by that of its neighbour. With mixup too,
    each is taken for half of the steps. 0 turns it off; 1 is common."""
    mix_probability: Share = 1.0
    """Share of the steps whose images are mixed, with mixup or cutmix."""
    ema: Fraction | None = None
    """Decay of the moving average of the student's weights (EMA): 0.999 or 0.9999 are common. The
    decay of step t is at most ``(1 + t) / (10 + t)``. The average is evaluated when the student is,
    as ``ema_test_accuracy``, and saved as student_ema.safetensors, which evaluate, predict and
    export take if it is there. The teacher's own training has none. None keeps no average."""
    exits: bool = False
    """Keep the branches of dskd, dsn or byot as early exits of the student, calibrated on the
    validation images at the end of the training. The student itself stays the same. evaluate,
    predict and export use them with ``--exits``."""
    int8_rounding: bool = False
    """Round the student's weights and activations to 8 bits in every forward pass, so that it loses
    little when it is exported with ``--int8`` (quantization-aware training). The weights that are
    saved are not rounded. ``dskd export --qat`` finishes a run in this way. Methods that ship
    another module than the student (simkd, norm) are refused."""
    precision: Precision = "float32"
    """Number format of the forward passes: ``float32``, ``bfloat16`` or ``float16``. Losses and
    weights stay in float32. With float16 the loss is scaled, and a step whose gradients overflow is
    skipped; the metric ``skipped_steps`` counts them."""
    sync_batchnorm: bool = False
    """Compute BatchNorm statistics over the images of all processes (torch.nn.SyncBatchNorm). Each
    process needs a GPU."""
    compile: bool = False
    """Compile the forward passes with torch.compile, on a GPU with CUDA graphs. The first steps
    take long. Whether the others are faster depends on model and machine."""
    device: DeviceName = "auto"
    """``cpu``, ``cuda``, or ``auto`` for a GPU if there is one."""
    threads: Annotated[Count, Field(le=1024)] | None = None
    """Threads that torch uses on the CPU, in each process. None leaves the choice to torch. Other
    work on the machine slows down a run with as many threads as cores; a warning says so."""

    @property
    def mixing(self) -> Literal["mixup", "cutmix"] | None:
        """The setting by which images are mixed, the first if both are; None if they are not."""
        return "mixup" if self.mixup else "cutmix" if self.cutmix else None
