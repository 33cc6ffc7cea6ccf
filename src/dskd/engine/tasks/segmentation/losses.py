"""Losses on the logits of every pixel.

Every function computes in float32 or more, whatever the precision of the logits. Shapes: ``B``
images, ``K`` classes with the background 0, ``H x W`` pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dskd.losses.checks import (
    check_flag,
    check_indices,
    check_same_shape,
    check_temperature,
    check_tensor,
)
from dskd.losses.logits import kd
from dskd.losses.precision import in_full_precision

WHAT = "logits [B, K, H, W]"


def in_rows(logits: Tensor) -> Tensor:
    """The pixels as rows, ``[B, K, H, W]`` to ``[B H W, K]``, for losses on logits ``[B, K]``."""
    return logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])


def _check_classes(logits: Tensor, classes: Tensor, name: str) -> None:
    """Refuses classes of pixels that do not fit the logits."""
    check_tensor(logits, WHAT)
    shape = (len(logits), *logits.shape[2:])
    check_indices(classes, shape, logits.shape[1], f"{name} [B, H, W]")


@in_full_precision
def pixel_cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy with a mask, the mean over all pixels: ``-mean log p_y``.

    Args:
        logits: ``[B, K, H, W]``.
        masks: y, int64, ``[B, H, W]``.

    Raises:
        InputError: The shapes do not fit, or, on the CPU, a value is not one of the classes.

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 2, 4, 4)
        >>> round(pixel_cross_entropy(logits, torch.zeros(1, 4, 4, dtype=torch.int64)).item(), 4)
        0.6931
    """
    _check_classes(logits, masks, "masks")
    return F.cross_entropy(logits, masks)


@in_full_precision
def partial_cross_entropy(logits: Tensor, seeds: Tensor) -> Tensor:
    """Cross-entropy on the seeds alone: ``-sum_i s_i log p_i / sum_i s_i``.

    ``s_i`` is 1 on the pixels of a seed and 0 elsewhere, and ``p_i`` is the probability of the
    seed's class. Without any seed the loss is 0.

    Source: arXiv 2012.08051 and its public training code, for one foreground class. Seeds of
    several classes, which share the sum, are *our choice*.

    Args:
        logits: ``[B, K, H, W]``.
        seeds: int64, ``[B, H, W]``: the class of a seed's pixel, 0 for pixels without a label.

    Raises:
        InputError: The shapes do not fit, or, on the CPU, a value is not one of the classes.

    Example:
        >>> import torch
        >>> seeds = torch.tensor([[[1, 0]]])
        >>> logits = torch.tensor([[[[0.0, 9.0]], [[0.0, -9.0]]]])
        >>> round(partial_cross_entropy(logits, seeds).item(), 4)  # the second pixel does not count
        0.6931
    """
    _check_classes(logits, seeds, "seeds")
    labelled = seeds > 0
    by_pixel = F.cross_entropy(logits, seeds, reduction="none")
    return (by_pixel * labelled).sum() / labelled.sum().clamp_min(1)


@in_full_precision
def prediction_entropy(logits: Tensor) -> Tensor:
    """How undecided the predictions are: ``H = -mean(p log p)``, over pixels and classes.

    Source: the public training code of arXiv 2012.08051, which takes this mean. The entropy of a
    pixel is the sum over its classes, so this is its mean over the pixels, divided by K.

    Args:
        logits: ``[B, K, H, W]``.

    Raises:
        InputError: They have another number of dimensions.

    Example:
        >>> import torch
        >>> round(prediction_entropy(torch.zeros(1, 2, 4, 4)).item(), 4)  # log(2) / 2
        0.3466
    """
    check_tensor(logits, WHAT)
    log_p = F.log_softmax(logits, 1)
    return -(log_p.exp() * log_p).mean()


@in_full_precision
def decoder_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 2.0,
    *,
    double_softmax: bool = False,
    reverse: bool = False,
    detach: bool = True,
) -> Tensor:
    r"""Decoder A teaches decoder B: ``T^2 / 2 * mean(p_A (log p_A - log p_B))``.

    ``p = softmax(z / T)``; the mean is over pixels and classes. The decoder A has no gradient.

    Source: that A teaches B by a divergence KL(A||B) with a temperature is said by arXiv
    2012.08051. The factor ``T^2 / 2`` and the mean over classes are those of its public training
    code. That code differs in three ways, each an option here: it takes the softmax of a softmax
    (``p = softmax(softmax(z) / T)``), has the divergence KL(B||A), and lets gradients reach A.

    Args:
        student_logits: z_B, ``[B, K, H, W]``.
        teacher_logits: z_A, of the same shape.
        temperature: T, above 0.
        double_softmax: Take the probabilities of each decoder for its logits.
        reverse: KL(B||A) in place of KL(A||B).
        detach: Let no gradient reach A.

    Raises:
        InputError: The temperature is not above 0, or the shapes differ.

    Example:
        >>> import torch
        >>> a, b = torch.zeros(1, 2, 1, 1), torch.tensor([0.0, 2.0]).view(1, 2, 1, 1)
        >>> round(decoder_kl(b, a, temperature=1.0).item(), 4)  # (1 - log 2 + log(1 + e^-2)) / 4
        0.1084
    """
    check_temperature(temperature)
    for name, value in (("double_softmax", double_softmax), ("reverse", reverse)):
        check_flag(name, value)
    check_flag("detach", detach)
    check_same_shape(student_logits, teacher_logits, WHAT)
    teacher_logits = teacher_logits.detach() if detach else teacher_logits
    b, a = student_logits, teacher_logits
    if double_softmax:
        b, a = b.softmax(1), a.softmax(1)
    log_b, log_a = F.log_softmax(b / temperature, 1), F.log_softmax(a / temperature, 1)
    of, on = (log_a, log_b) if reverse else (log_b, log_a)
    return temperature**2 / 2 * F.kl_div(of, on, reduction="none", log_target=True).mean()


@in_full_precision
def pixel_kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """Knowledge distillation at every pixel: `dskd.losses.kd` with pixels in place of images.

    ``T^2 mean_i KL(softmax(z_t,i / T) || softmax(z_s,i / T))``, the mean over the pixels i.

    Source: pixel-wise distillation, Liu et al., Structured Knowledge Distillation for Semantic
    Segmentation, CVPR 2019, arXiv 1903.04197, from its abstract; there without a temperature.

    Args:
        student_logits: ``[B, K, H, W]``.
        teacher_logits: Of the same shape.
        temperature: T, above 0.

    Raises:
        InputError: The temperature is not above 0, or the shapes differ.

    Example:
        >>> import torch
        >>> pixel_kd(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4)).item()
        0.0
    """
    check_same_shape(student_logits, teacher_logits, WHAT)
    return kd(in_rows(student_logits), in_rows(teacher_logits), temperature)
