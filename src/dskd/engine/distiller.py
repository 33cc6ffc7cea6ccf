"""A method as an ordinary module, for a training loop of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dskd import methods
from dskd.data.loader import Batch
from dskd.engine.arguments import method_settings
from dskd.engine.method_warnings import log_warnings
from dskd.errors import InputError
from dskd.methods.base import Method
from dskd.methods.contracts import Pair, StepOutput
from dskd.models.default_stages import default_stages
from dskd.models.output import ModelOutput
from dskd.models.spec import describe
from dskd.models.staged_model import StagedModel
from dskd.teacher.frozen import FrozenTeacher


class Distiller(nn.Module):
    """A student, a teacher and a method as one module: images and labels in, losses out.

    The optimizer, the schedule, the data and the device are yours. The student is trained in
    place. `parameters` and `state_dict` hold the student and the parts that the method trains with
    it, such as branches. They do not hold the teacher; `to` moves it, too.

    The student and the teacher get your images as you give them: normalise them yourself.

    Args:
        student: The module to train. It maps images to logits ``[B, K]``.
        teacher: A trained module of the same classes, which is set to evaluation mode and frozen.
            None for methods without a teacher.
        images: A few images as the student gets them, floating point ``[B, C, H, W]``, on its
            device. They show the shapes of the feature maps.
        method: A name, a class, or a mapping with settings, as in
            ``{"name": "dskd", "beta": 2.0}``.
        student_stages: Names of the submodules whose outputs are the stages, shallow to deep. None
            chooses them (see `dskd.stages`).
        teacher_stages: The same for the teacher.
        labels: int64 ``[N]``, the labels of all training images, for methods that remember each
            image (crd).
        batch_size: The largest number of images in a batch, for methods that compare the images of
            a batch by a layer of that size (semckd). None takes the number of ``images``.

    Attributes:
        epoch: The epoch from 0, for losses whose weight changes. Set it at the start of an epoch.

    Raises:
        InputError: The method does not exist or does not fit the pair, or it must prepare itself
            before the student trains (as sskd), which only `dskd.distill` does.

    Example:
        >>> import dskd
        >>> student = dskd.load_model("resnet8", num_classes=10)
        >>> teacher = dskd.load_model("resnet14", num_classes=10)
        >>> images, labels = torch.rand(4, 3, 32, 32), torch.tensor([1, 2, 3, 4])
        >>> distiller = Distiller(student, teacher, images, method="dskd")
        >>> output = distiller(images, labels)
        >>> sorted(output.losses), output.objective.requires_grad
        (['ce', 'kd', 'shallow'], True)
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        images: Tensor,
        *,
        method: str | type[Method] | Mapping[str, Any] = "dskd",
        student_stages: Sequence[str] | None = None,
        teacher_stages: Sequence[str] | None = None,
        labels: Tensor | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        settings = method_settings(method)
        name = settings.pop("name", "dskd")
        kind = methods.find(name)
        options = methods.resolve(name, settings)
        if kind.prepares(options):
            raise InputError(
                f"{name} prepares itself before the student trains, which a loop of your own does "
                "not do; use dskd.distill or another method"
            )
        _check(name, kind, teacher, images, labels)
        staged = _staged(student, student_stages, images)
        # In a tuple, so that the teacher is no part of parameters and state_dict.
        self._teacher: tuple[FrozenTeacher, ...] = ()
        if teacher is not None and kind.needs_teacher:
            self._teacher = (FrozenTeacher(_staged(teacher, teacher_stages, images)),)
        pair = Pair.measured(
            staged,
            next((frozen.model for frozen in self._teacher), None),
            lambda model, _: describe(model, images),
            labels if labels is not None else torch.zeros(0, dtype=torch.long),
            batch_size if batch_size is not None else len(images),
        )
        self.method = kind(pair, **options).to(images.device)
        log_warnings(self.method)
        self.epoch = 0

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        teacher_images: Tensor | None = None,
        indices: Tensor | None = None,
    ) -> StepOutput:
        """The losses of a batch.

        Args:
            images: ``[B, C, H, W]``, normalised for the student.
            labels: int64 ``[B]``.
            teacher_images: The same images, normalised or resized for the teacher; None if it
                takes those of the student.
            indices: int64 ``[B]``, the place of each image in ``labels``, for methods that
                remember each image.

        Returns:
            The named ``losses``, their sum as ``objective``, the student's ``logits`` and
            ``metrics``.

        Raises:
            InputError: The method remembers each image, and ``indices`` is missing.
        """
        method = self.method
        if indices is None and method.remembers_images:
            raise InputError(
                "this method remembers each image; give the place of each image in labels, as in "
                "distiller(images, labels, indices=indices)"
            )
        found = indices if indices is not None else torch.zeros_like(labels)
        seeds = torch.randint(2**63 - 1, labels.shape).to(labels.device)
        batch = Batch(images, labels, found, torch.zeros_like(labels), seeds, self.epoch, 0)
        output: StepOutput = method(batch, self._teacher_output(batch, teacher_images))
        return output

    def deployed(self) -> nn.Module:
        """The module to ship: the trained student, for most methods the very module given."""
        return self.method.deployed()

    def _teacher_output(self, batch: Batch, images: Tensor | None) -> ModelOutput | None:
        if not self._teacher or not self.method.needs:
            return None
        output: ModelOutput = self._teacher[0](batch.images if images is None else images)
        return output

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        for teacher in self._teacher:
            teacher._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


def _check(
    name: str,
    kind: type[Method],
    teacher: nn.Module | None,
    images: Tensor,
    labels: Tensor | None,
) -> None:
    """Refuses what a `Distiller` cannot train."""
    if kind.needs_teacher and teacher is None:
        raise InputError(f"{name} needs a teacher; give a trained module")
    if kind.remembers_images and labels is None:
        raise InputError(
            f"{name} remembers each image; give the labels of all training images as labels"
        )
    if images.dim() != 4 or not images.is_floating_point():
        raise InputError(
            "images must be floating point [B, C, H, W], normalised as the student takes them, "
            f"got {str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        )


def _staged(module: nn.Module, stages: Sequence[str] | None, images: Tensor) -> StagedModel:
    """A module with its stages, without any normalisation."""
    channels = images.shape[1]
    chosen = stages if stages is not None else default_stages(module, images)
    model = StagedModel(module, chosen, mean=(0.0,) * channels, std=(1.0,) * channels)
    return model.to(images.device)
