"""Keep the branches of a trained method as early exits, calibrated on the validation images."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dskd.data import Dataset
from dskd.data.loader import Loader
from dskd.engine.evaluate import own_batches, percent
from dskd.engine.exit_calibration import (
    ExitPredictions,
    calibration_error,
    find_policies,
    fit_temperature,
)
from dskd.engine.training_run import TrainingRun
from dskd.errors import InputError, as_given
from dskd.methods.base import Method
from dskd.methods.branches import Branch
from dskd.models.early_exits import EarlyExitStudent, ExitCosts, exit_costs
from dskd.models.eval_mode import eval_mode
from dskd.models.feature_hooks import remove_hooks
from dskd.models.plain_copy import plain_copy
from dskd.models.staged_model import StagedModel
from dskd.runtime import distributed
from dskd.settings import MAX_LOSS
from dskd.storage.exit_file import ExitFacts, ExitFile
from dskd.storage.run_files import EXITS
from dskd.storage.weights import write_weights

log = logging.getLogger("dskd")

_COMPARED = 2
"""Images on which the exits are compared with the branches of the method."""


def check_exits(name: str, method: Method, data: Dataset) -> None:
    """Refuses early exits that a run could not keep or calibrate.

    Args:
        name: Of the method.
        method: Before the first step.
        data: Of the run.

    Raises:
        InputError: The method has no branches that predict by themselves, there are no validation
            images, or a stage of the student runs more than once.
    """
    branches = method.exit_branches()
    if not branches and getattr(method, "fuse", False):
        raise InputError(
            "train.exits=true: method.fuse=true makes each branch need the deeper stages, so none "
            "predicts early; drop one of them"
        )
    if not branches:
        raise InputError(
            f"train.exits=true: the method {name} has no branches that could predict early; take "
            "dskd, dsn or byot, or drop it"
        )
    if data.validation is None:
        raise InputError(
            "train.exits=true: exits are calibrated on validation images, and there are none; "
            "hold some training images out with data.val_fraction=0.1"
        )
    _check_stages(method, branches, data)


@torch.no_grad()
def _check_stages(method: Method, branches: dict[int, Branch], data: Dataset) -> None:
    """Refuses a student whose exits would see other maps than the branches are trained on."""
    student = _plain_student(method)
    images = data.train.images_at(torch.arange(min(_COMPARED, len(data.train))))
    images = images.to(method.student.mean.device)
    early = early_exit_student(student, exits_of(method), [1.0] * len(branches))
    with eval_mode(method), eval_mode(early):
        expected = _branch_logits(method, images)
        found = early.all_logits(images)
    if len(found) != len(expected) or not all(
        torch.allclose(a, b, atol=1e-3, rtol=1e-3) for a, b in zip(found, expected, strict=True)
    ):
        raise InputError(
            "train.exits=true: a stage of the student runs more than once or out of order, so its "
            "branch cannot predict early; name other stages with student.stages, or drop it"
        )


def keep_exits(run: TrainingRun) -> None:
    """Calibrates the branches of the last epoch, and writes them with their policies.

    Args:
        run: With no epoch left, after its last evaluation.
    """
    method, loader = run.trainer.method, run.data.validation
    assert loader is not None, "check_exits comes first"
    logits, labels = _validation_logits(method, loader), loader.labels.cpu()
    costs = _costs(method, loader.sample_shape)
    branches = method.exit_branches()
    temperatures = [fit_temperature(z, labels) for z in logits[:-1]]
    calibrated = [z / t for z, t in zip(logits[:-1], temperatures, strict=True)]
    predictions = ExitPredictions(
        confidences=torch.stack([z.softmax(1).amax(1) for z in calibrated], 1),
        correct=torch.stack([z.argmax(1) == labels for z in logits], 1),
        costs=costs,
    )
    paths = stage_paths(method.student)
    facts = ExitFile(
        exits=tuple(
            ExitFacts.model_validate(
                {
                    "stage": stage + 1,
                    "submodule": paths[stage],
                    "branch": branch.config(),
                    "temperature": temperatures[number],
                    "multiply_adds": costs.until[number],
                    "branch_multiply_adds": costs.branches[number],
                    "val_accuracy": percent(predictions.correct[:, number]),
                    "calibration": (
                        calibration_error(logits[number], labels),
                        calibration_error(calibrated[number], labels),
                    ),
                }
            )
            for number, (stage, branch) in enumerate(branches.items())
        ),
        policies=tuple(find_policies(predictions)),
        multiply_adds=costs.student,
        val_images=len(labels),
    )
    content = write_weights(nn.ModuleList(branches.values()), facts.model_dump(mode="json"))
    run.directory.write_bytes(EXITS, content)
    log.info(as_given(_summary(facts)))


def _summary(facts: ExitFile) -> str:
    """A line about what the exits save."""
    share = facts.choose(MAX_LOSS).multiply_adds / facts.multiply_adds
    if share < 1:
        return (
            f"early exits: {100 * share:.0f} % of the multiply-adds on average, at a loss of at "
            f"most {MAX_LOSS:g} points on the {facts.val_images} validation images"
        )
    return (
        f"early exits save nothing at a loss of at most {MAX_LOSS:g} points on the "
        f"{facts.val_images} validation images; branches are cheapest with "
        "method.feature_target=last"
    )


def stage_paths(student: StagedModel) -> tuple[str, ...]:
    """The paths of the submodules that end the stages of a student."""
    own: tuple[str, ...] = getattr(student.module, "stage_names", ())
    return student.stage_names or own


def exits_of(method: Method) -> dict[str, nn.Module]:
    """The branches of a method by the path of the submodule that ends their stage."""
    paths = stage_paths(method.student)
    return {paths[stage]: branch for stage, branch in method.exit_branches().items()}


def early_exit_student(
    student: StagedModel, exits: dict[str, nn.Module], temperatures: list[float]
) -> EarlyExitStudent:
    """A student all of whose exits may predict."""
    return EarlyExitStudent(student, exits, temperatures, [0.0] * len(exits))


def _plain_student(method: Method) -> StagedModel:
    """A copy of the student without hooks, on its device."""
    own = method.student
    module = plain_copy(own.module)
    remove_hooks(module)
    mean, std = (value.flatten().tolist() for value in (own.mean, own.std))
    return StagedModel(module, mean=mean, std=std).to(own.mean.device).eval()


def _costs(method: Method, shape: Sequence[int]) -> ExitCosts:
    exits = {path: copy.deepcopy(branch) for path, branch in exits_of(method).items()}
    student = early_exit_student(_plain_student(method), exits, [1.0] * len(exits))
    return exit_costs(student, shape)


def _branch_logits(method: Method, images: Tensor) -> list[Tensor]:
    """The logits of the branches that may predict, and then the student's own."""
    found = method.classifier_logits(images)
    names = [f"stage{stage + 1}" for stage in method.exit_branches()]
    return [*(found[name] for name in names), found["student"]]


@torch.no_grad()
def _validation_logits(method: Method, loader: Loader) -> Tensor:
    """The logits of every exit and of the student, ``[E + 1, N, K]``, on the CPU.

    Several processes each evaluate a share of the batches; all get the whole result.
    """
    with eval_mode(method):
        parts = distributed.shard_map(
            lambda images: torch.stack(_branch_logits(method, images)).float().cpu(),
            own_batches(loader),
        )
    return torch.cat(parts, 1)
