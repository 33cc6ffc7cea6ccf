"""The file of a run's early exits: their branches, and what was measured on validation images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from dskd.errors import InputError
from dskd.settings import Count, Percent, Positive, Settings, Size, Weight, validate
from dskd.storage.weights import read_metadata, read_weights

_Extent = Annotated[Count, Field(le=65536)]
_Times = Annotated[Count, Field(le=64)]


class StageShape(Settings):
    """The values of a `dskd.models.spec.StageSpec`."""

    channels: _Extent
    height: _Extent
    width: _Extent
    nonnegative: bool


class BranchForm(Settings):
    """The values of a `dskd.methods.branches.AdapterForm`."""

    width: _Extent | None
    kind: Literal["pool", "stride", "linear"]
    depth: _Times


class BranchConfig(Settings):
    """The values of `dskd.methods.branches.Branch.config`."""

    stage: StageShape
    target: StageShape
    form: BranchForm
    classifier: Literal["linear", "mlp"]
    classes: _Extent
    bias: bool


class ExitFacts(Settings):
    """An early exit.

    Attributes:
        stage: The number of its stage, from 1.
        submodule: The path of the submodule that ends the stage.
        branch: How its branch is built.
        temperature: T of its calibrated logits ``z / T``.
        multiply_adds: Of the student up to this stage.
        branch_multiply_adds: Of the branch.
        val_accuracy: Top-1 on the validation images if it alone predicts, in percent.
        calibration: Expected calibration error on the validation images without and with the
            temperature, in percent.
    """

    stage: Count
    submodule: str
    branch: BranchConfig
    temperature: Positive
    multiply_adds: Size
    branch_multiply_adds: Size
    val_accuracy: Percent
    calibration: tuple[Percent, Percent]


class Policy(Settings):
    """Thresholds for all exits, with what they give on the validation images.

    Attributes:
        thresholds: The least confidence with which each exit predicts; above 1 if it never does.
        val_accuracy: Top-1 in percent.
        multiply_adds: The mean for an image.
    """

    thresholds: tuple[Weight, ...]
    val_accuracy: Percent
    multiply_adds: Weight


class ExitFile(Settings):
    """What ``exits.safetensors`` says about its branches.

    Attributes:
        exits: The exits, shallow to deep.
        policies: From the plain student to the cheapest; each is cheaper and less accurate than
            the one before.
        multiply_adds: Of the plain student.
        val_images: Number of validation images.
    """

    exits: Annotated[tuple[ExitFacts, ...], Field(min_length=1, max_length=256)]
    policies: Annotated[tuple[Policy, ...], Field(min_length=1)]
    multiply_adds: Size
    val_images: Count

    def choose(self, max_loss: float) -> Policy:
        """The cheapest policy that loses at most so much accuracy on the validation images.

        Args:
            max_loss: In percentage points, 0 or more.
        """
        least = self.policies[0].val_accuracy - max_loss
        return [policy for policy in self.policies if policy.val_accuracy >= least - 1e-9][-1]


def read_exits(path: Path) -> tuple[ExitFile, dict[str, Tensor]]:
    """Reads the file: what it says, and the weights of the branches.

    Args:
        path: The file.

    Raises:
        InputError: It is missing, damaged, or was not written by this package.
    """
    plain: dict[str, Any] = read_metadata(path)
    try:
        facts = validate(ExitFile, plain)
    except InputError as error:
        raise InputError(f"{path} was not written by dskd or is damaged: {error}") from None
    if any(len(policy.thresholds) != len(facts.exits) for policy in facts.policies):
        raise InputError(f"{path} was not written by dskd or is damaged: a threshold is missing")
    return facts, read_weights(path)
