"""Contrastive representation distillation: each image is told apart from many others."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.data.epoch_plan import draw_below
from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.checks import (
    check_indices,
    check_same_batch,
    check_temperature,
    check_tensor,
    described,
)
from dskd.losses.precision import full_precision, in_full_precision
from dskd.methods.base import FeatureMethod
from dskd.methods.checks import check_pooled
from dskd.methods.contracts import Pair, TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.settings import Count, Fraction, Positive, Weight, checked

WHOLE_RANGE = 2**32
"""Numbers are drawn below this, then scaled down: uniform but for an error of range / 2^32."""


class CRDTerms(NamedTuple):
    """The loss of `crd_loss` and its constants.

    Attributes:
        loss: Scalar.
        log_z: Logarithms of the constants Z, ``[2]``, for the student's vectors and for the
            teacher's; without gradient.
    """

    loss: Tensor
    log_z: Tensor


@in_full_precision
def crd_terms(
    student: Tensor,
    teacher: Tensor,
    student_memory: Tensor,
    teacher_memory: Tensor,
    contrasted: Tensor,
    log_z: Tensor,
    temperature: float = 0.07,
) -> CRDTerms:
    """The loss of `crd_loss` and the constants that it used; see there for the arguments.

    The rows in ``contrasted`` are not compared with the length of the memories here: in a training
    step there are thousands for every image.
    """
    _check_contrast(student, teacher, student_memory, teacher_memory, contrasted)
    check_tensor(log_z, "two constants log_z [2]")
    if len(log_z) != 2:
        raise InputError(f"two constants log_z [2] are needed, got {described(log_z)}")
    check_temperature(temperature)
    images, drawn = len(student_memory), contrasted.shape[1]
    # Multiplying with the whole memory moves far less data than gathering the contrasted rows.
    products = torch.stack([student @ teacher_memory.T, teacher @ student_memory.T])
    scores = products.gather(2, contrasted.expand(2, -1, -1)) / temperature
    mean = scores.detach().flatten(1).logsumexp(1) - math.log(len(student) * drawn)
    log_z = torch.where(log_z.isinf(), mean + math.log(images), log_z)
    # h = p / (p + M / N) is the logistic function of these.
    odds = scores - log_z[:, None, None] - math.log((drawn - 1) / images)
    positive = F.softplus(-odds[:, :, 0]).sum()
    negative = F.softplus(odds[:, :, 1:]).sum()
    return CRDTerms((positive + negative) / len(student), log_z)


@in_full_precision
def crd_loss(
    student: Tensor,
    teacher: Tensor,
    student_memory: Tensor,
    teacher_memory: Tensor,
    contrasted: Tensor,
    log_z: Tensor | None = None,
    temperature: float = 0.07,
) -> Tensor:
    r"""Contrastive representation distillation: find an image's own vector among many others.

    For each of the two sides, with the vectors of one and the memory of the other::

        p_k = exp(<v, m_k> / T) / Z,    h_k = p_k / (p_k + M / N)
        loss = -mean over the batch of (log h_0 + sum_{k = 1 .. M} log(1 - h_k))

    ``m_0`` is the image's own row, ``m_1 .. m_M`` are the rows that it is contrasted with. The
    function works with logarithms, so that no temperature overflows.

    Source: Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020,
    arXiv 1910.10699, section 3.1 (equation 18 as the authors' code counts). The paper has no ``Z``.
    The authors' code sets it once, from the first batch, to ``N`` times the mean score. It also
    adds 1e-7 to ``M / N``, which is left out here.

    Args:
        student: Unit vectors of the student, ``[B, D]``.
        teacher: Unit vectors of the teacher, ``[B, D]``.
        student_memory: The remembered vectors of the student for all images, ``[N, D]``.
        teacher_memory: Those of the teacher, ``[N, D]``.
        contrasted: int64 ``[B, 1 + M]``, rows of the memories: the image's own, then M others.
        log_z: Logarithms of Z for the student's vectors and the teacher's, ``[2]``. An infinite
            one is set from this batch, and so are both by default.
        temperature: T, above 0.

    Raises:
        InputError: The shapes do not fit, the temperature is not above 0, or, on the CPU,
            ``contrasted`` names rows that the memories do not have.

    Example:
        >>> vectors, memory = torch.eye(2), torch.eye(2)
        >>> contrasted = torch.tensor([[0, 1], [1, 0]])
        >>> right = crd_loss(vectors, vectors, memory, memory, contrasted)
        >>> mistaken = crd_loss(vectors, vectors, memory, memory, 1 - contrasted)
        >>> bool(right < mistaken)
        True
    """
    _check_contrast(student, teacher, student_memory, teacher_memory, contrasted)
    rows = len(student_memory)
    check_indices(contrasted, contrasted.shape, rows, "rows of the memories in contrasted")
    if log_z is None:
        log_z = torch.full((2,), math.inf, device=student.device)
    return crd_terms(
        student, teacher, student_memory, teacher_memory, contrasted, log_z, temperature
    ).loss


def _check_contrast(
    student: Tensor,
    teacher: Tensor,
    student_memory: Tensor,
    teacher_memory: Tensor,
    contrasted: Tensor,
) -> None:
    check_same_batch(student, teacher, 2, "vectors [B, D]")
    check_same_batch(student_memory, teacher_memory, 2, "memories [N, D]")
    lengths = {tensor.shape[1] for tensor in (student, teacher, student_memory, teacher_memory)}
    if len(lengths) > 1:
        raise InputError(
            f"vectors and memories of one length are needed, got lengths {sorted(lengths)}"
        )
    whole = isinstance(contrasted, Tensor) and contrasted.dtype == torch.int64
    if (
        not whole
        or contrasted.dim() != 2
        or len(contrasted) != len(student)
        or contrasted.shape[1] < 2
    ):
        raise InputError(
            "contrasted must name each image's own row and one other at least, int64 "
            f"[{len(student)}, 1 + M], got {described(contrasted)}"
        )


@in_full_precision
def updated_memory(memory: Tensor, indices: Tensor, vectors: Tensor, momentum: float) -> Tensor:
    """A memory whose rows ``indices`` have moved towards ``vectors``, as a new tensor.

    ``m_i = normalized(momentum m_i + (1 - momentum) v_i)``.

    Source: the authors' code of CRD (`crd_loss`).

    Args:
        memory: ``[N, D]``; it does not change, since a backward pass may still need it.
        indices: int64 ``[B]``, each row once.
        vectors: ``[B, D]``.
        momentum: From 0, below 1.

    Example:
        >>> memory, vectors = torch.eye(2), torch.tensor([[0.0, 2.0]])
        >>> updated_memory(memory, torch.tensor([1]), vectors, 0.5).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    rows = momentum * memory[indices] + (1 - momentum) * vectors.detach()
    return memory.index_copy(0, indices, F.normalize(rows))


class CRD(FeatureMethod):
    """Contrasts images with a memory of others: ``ce * CE + kd * KD + weight * CRD``.

    Two linear layers, trained with the student, map the pooled vectors of student and teacher to
    unit vectors of the same dimension. A memory holds such a vector of every training image for
    both sides. The loss (`dskd.losses.crd`) tells an image's own row apart from ``negatives`` rows
    of images of other classes (of all other images if there is only one class). They are drawn
    uniformly and with replacement, never more than there are other images. Then the rows are
    updated. The memory is state of the run; in eval mode it does not change.

    Source: Tian, Krishnan, Isola, ICLR 2020, arXiv 1910.10699, section 3.1. Sizes, momentum and
    temperature are those of the authors' code, which draws without replacement where it can.
    ``literature`` is CRD alone. The default is the paper's CRD+KD, which the authors' code runs
    with the weights 1, 1 and 0.8.

    Args:
        pair: Student and teacher, of the same classes, with pooled vectors.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the contrast.
        temperature: T of the predictions.
        feat_dim: Dimension of the vectors that are compared.
        negatives: Number of images that each image is contrasted with.
        contrast_temperature: T of the contrast.
        momentum: Share of the old row in an updated row of the memory.

    Raises:
        InputError: A setting is out of range, one of the two has no pooled vector, or there are
            fewer than two images.
    """

    learns_from = "relations"
    presets: ClassVar = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 0.8}}
    needs = TeacherNeeds(logits=True, pooled=True)
    remembers_images = True
    distributed = False  # each process would remember its own images only
    uncompiled = "torch's code for its draw of negatives (whole numbers that wrap) crashes"

    student_memory: Tensor
    teacher_memory: Tensor
    log_z: Tensor
    by_class: Tensor
    start: Tensor
    size: Tensor

    hard_labels = "it contrasts each training image with the images of other classes"

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        weight: Weight = 0.8,
        temperature: Positive = 4.0,
        feat_dim: Count = 128,
        negatives: Count = 16384,
        contrast_temperature: Positive = 0.07,
        momentum: Fraction = 0.5,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        student, teacher = check_pooled(pair)
        images = len(pair.labels)
        if images < 2:
            raise InputError(
                f"crd tells training images apart, and there are {images}; give two or more"
            )
        self.weight, self.momentum = weight, momentum
        self.negatives = min(negatives, images - 1)
        self.contrast_temperature = contrast_temperature
        self.student_embedding = Embedding(student, feat_dim)
        self.teacher_embedding = Embedding(teacher, feat_dim)
        bound = math.sqrt(3 / feat_dim)  # rows of about length 1
        for side in ("student", "teacher"):
            memory = torch.empty(images, feat_dim).uniform_(-bound, bound)
            self.register_buffer(f"{side}_memory", memory)
        self.register_buffer("log_z", torch.full((2,), math.inf))
        for name, values in zip(("by_class", "start", "size"), _blocks(pair.labels), strict=True):
            self.register_buffer(name, values, persistent=False)

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The loss of the contrast."""
        assert student.pooled is not None
        assert teacher.pooled is not None
        contrasted = torch.cat([batch.indices[:, None], self.others(batch)], dim=1)
        loss = self.contrast(student.pooled, teacher.pooled, batch.indices, contrasted)
        return {"crd": self.weight * loss}

    def others(self, batch: Batch) -> Tensor:
        """The images that each image is contrasted with, int64 ``[B, negatives]``."""
        start, size = self.start[batch.indices, None], self.size[batch.indices, None]
        numbers = draw_below(batch.seeds, self.negatives, WHOLE_RANGE)
        places = numbers * (len(self.by_class) - size) // WHOLE_RANGE
        return self.by_class[places + size * (places >= start)]

    def contrast(
        self, student: Tensor, teacher: Tensor, indices: Tensor, contrasted: Tensor
    ) -> Tensor:
        """The loss, from the memories before this step; in training they are then updated.

        Args:
            student: Pooled vectors, ``[B, D_s]``.
            teacher: Pooled vectors, ``[B, D_t]``.
            indices: int64 ``[B]``, the index of each image.
            contrasted: int64 ``[B, 1 + M]``, the same indices, each followed by M others.
        """
        vectors = self.student_embedding(student), self.teacher_embedding(teacher)
        memories = self.student_memory, self.teacher_memory
        loss, log_z = crd_terms(
            *vectors, *memories, contrasted, self.log_z, self.contrast_temperature
        )
        if self.training:
            self.log_z = log_z
            self.student_memory, self.teacher_memory = (
                updated_memory(memory, indices, vector, self.momentum)
                for memory, vector in zip(memories, vectors, strict=True)
            )
        return loss


class Embedding(nn.Module):
    """A linear layer from a pooled vector to a unit vector of another length.

    Args:
        length: Length of the pooled vector.
        feat_dim: Length of the embedded vector.
    """

    def __init__(self, length: int, feat_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(length, feat_dim)

    def forward(self, pooled: Tensor) -> Tensor:
        """Unit vectors ``[B, feat_dim]``, in float32 or more."""
        return F.normalize(full_precision(self.linear(pooled)))


def _blocks(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All images sorted by class, and for each image the start and size of its class in that.

    If all images are of one class, each image counts as its own class.
    """
    if (labels == labels[0]).all():
        labels = torch.arange(len(labels))
    sizes = labels.bincount()
    starts = sizes.cumsum(0) - sizes
    return labels.argsort(stable=True), starts[labels], sizes[labels]
