"""Load the early exits of a run, and evaluate them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dskd.data import Dataset
from dskd.deploy.evaluate import load_evaluated
from dskd.deploy.latency import measure_latency, one_thread
from dskd.deploy.student import DeployedStudent, Which, load_deployed
from dskd.engine.evaluate import evaluation_batch, percent
from dskd.engine.exit_calibration import chosen_exits
from dskd.engine.given_data import DataArgument
from dskd.errors import InputError, weights_option
from dskd.methods.branches import branch_of
from dskd.models.early_exits import NEVER, EarlyExitStudent, ExitCosts
from dskd.settings import MAX_LOSS
from dskd.storage.exit_file import BranchConfig, ExitFile, Policy, read_exits
from dskd.storage.run_files import EXITS, RESULT
from dskd.storage.weights import fitting, load_weights

LOSSES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""The largest losses that a table shows, in percentage points."""

_RUNS_ONLY = 1.5
"""A threshold of an exit that runs and never predicts."""


@dataclass(frozen=True, eq=False)
class EarlyExits:
    """The early exits of a run.

    Attributes:
        student: Predicts early.
        deployed: The plain student.
        facts: What was measured on the validation images.
        policy: The thresholds of ``student``.
        max_loss: The loss of accuracy for which they were chosen, in percentage points.
    """

    student: EarlyExitStudent
    deployed: DeployedStudent
    facts: ExitFile
    policy: Policy
    max_loss: float

    @property
    def names(self) -> list[str]:
        """Where predictions come from: each exit by its stage, and at last the student."""
        return [*(f"stage{one.stage}" for one in self.facts.exits), "student"]

    @property
    def running(self) -> tuple[int, ...]:
        """The exits that are not switched off."""
        return self.student.active

    @property
    def costs(self) -> ExitCosts:
        """Multiply-adds."""
        exits = self.facts.exits
        return ExitCosts(
            tuple(one.multiply_adds for one in exits),
            tuple(one.branch_multiply_adds for one in exits),
            self.facts.multiply_adds,
        )


def load_exits(deployed: DeployedStudent, max_loss: float = MAX_LOSS) -> EarlyExits:
    """Loads the early exits of a run.

    Args:
        deployed: Its student of the last epoch.
        max_loss: The largest loss of accuracy on the validation images, in percentage points.

    Raises:
        InputError: The run kept no exits, the student is another one, or ``max_loss`` is no number
            of 0 or more.
    """
    if not 0 <= max_loss < math.inf:
        raise InputError(f"max_loss: a number of 0 or more is needed, got {max_loss}")
    path = _exits_path(deployed)
    facts, weights = read_exits(path)
    policy = facts.choose(max_loss)
    branches = nn.ModuleList(_branch(one.branch) for one in facts.exits)
    fitting(branches, weights, str(path))  # before memory is taken for them
    branches = branches.to_empty(device="cpu")
    load_weights(branches, weights, str(path))
    stages = [one.submodule for one in facts.exits]
    for stage in stages:
        try:
            deployed.model.module.get_submodule(stage)
        except AttributeError:
            raise InputError(f"{path} does not fit the student: it has no {stage!r}") from None
    student = EarlyExitStudent(
        deployed.model,
        dict(zip(stages, branches, strict=True)),
        [one.temperature for one in facts.exits],
        policy.thresholds,
    )
    student.eval().branches.requires_grad_(False)
    return EarlyExits(student, deployed, facts, policy, max_loss)


def load_early(
    run: str | Path,
    which: Which | None = None,
    max_loss: float = MAX_LOSS,
    *,
    student: nn.Module | None = None,
    allow_code: bool = False,
) -> EarlyExits:
    """Loads the student of a run with its early exits.

    Args:
        run: Folder of the run.
        which: None or ``last``, as the exits are those of the last epoch.
        max_loss: As for `load_exits`.
        student: The module, if it was given in Python.
        allow_code: Whether a model ``package.module:function`` may run.

    Raises:
        InputError: There is no such run, or it kept no exits.
    """
    if which not in (None, "last"):
        raise InputError(
            f"early exits are those of the last epoch's student; drop {weights_option(which)}"
        )
    return load_exits(load_deployed(run, "last", student=student, allow_code=allow_code), max_loss)


def _exits_path(deployed: DeployedStudent) -> Path:
    if deployed.run is None:
        raise InputError("early exits are kept in the folder of a run; give that folder")
    if deployed.which != "last":
        raise InputError(
            f"early exits are those of the last epoch's student; load it with "
            f"{weights_option('last')}"
        )
    path = deployed.run / EXITS
    if not path.is_file():
        raise InputError(
            f"{deployed.run} kept no early exits; train with train.exits=true, by the method dskd, "
            "dsn or byot"
        )
    if not (deployed.run / RESULT).is_file():
        raise InputError(f"the run in {deployed.run} is not finished, and its exits are not; wait")
    return path


def _branch(config: BranchConfig) -> nn.Module:
    """A branch without memory for its weights."""
    values = config.model_dump()
    with torch.device("meta"):
        return branch_of(**values)


@dataclass(frozen=True)
class ExitResult:
    """A student with exits on the test split.

    Attributes:
        max_loss: The largest loss of accuracy on the validation images for which the thresholds
            are the cheapest, in percentage points; None for a policy of the curve.
        thresholds: Of each exit.
        val_accuracy: Top-1 on the validation images, in percent.
        accuracy: Top-1 on the test images, in percent.
        multiply_adds: The mean for a test image.
        latency: The mean milliseconds for one test image, from the time of each exit.
        shares: The percentage of the test images for which each exit and the student predict.
    """

    max_loss: float | None
    thresholds: tuple[float, ...]
    val_accuracy: float
    accuracy: float
    multiply_adds: float
    latency: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class ExitEvaluation:
    """Early exits on the test split, next to the plain student.

    Attributes:
        names: Where predictions come from: the exits and the student.
        accuracies: Top-1 on the test images if one alone predicts, in percent.
        multiply_adds: Of the plain student.
        latency: Of the plain student, in milliseconds for one image.
        images: Size of the test split.
        rows: For the largest losses of a table.
        curve: All policies, from the plain student to the cheapest.
    """

    names: tuple[str, ...]
    accuracies: tuple[float, ...]
    multiply_adds: int
    latency: float
    images: int
    rows: tuple[ExitResult, ...]
    curve: tuple[ExitResult, ...]


def evaluate_exits(
    run: str | Path,
    which: Which | None = None,
    max_loss: float = MAX_LOSS,
    *,
    root: str | Path | None = None,
    data: DataArgument | None = None,
    student: nn.Module | None = None,
    allow_code: bool = False,
) -> ExitEvaluation:
    """Evaluates the student of a run with its early exits on the test split.

    Every exit predicts once for every image. Each policy then chooses among these predictions. The
    latency of an exit is that of one image on one thread of the processor.

    Args:
        run: Folder of the run.
        which: As for `load_early`.
        max_loss: A largest loss that the table shows besides `LOSSES`.
        root: Folder of the data set, in place of the recipe's.
        data: The data set, if it was given in Python, in the same form.
        student: The module, if it was given in Python.
        allow_code: Whether a model ``package.module:function`` may run.

    Raises:
        InputError: There is no finished run with early exits, or its data set cannot be loaded.
    """
    early = load_early(run, which, max_loss, student=student, allow_code=allow_code)
    found, _ = measure_exits(early, load_evaluated(run, early.deployed, root, data))
    return found


def measure_exits(
    early: EarlyExits, images: Dataset, others: Sequence[nn.Module] = ()
) -> tuple[ExitEvaluation, list[float]]:
    """Evaluates early exits on the test split of a data set.

    Args:
        early: The exits.
        images: The images of their run.
        others: Students whose latency is measured in turns with the exits.

    Returns:
        The exits, and the milliseconds of each other student for one image.
    """
    confidences, correct = predictions_on_test(early, images)
    plain, times, latencies = _times(early, images, others)
    result = partial(_result, early, confidences, correct, (plain, times))
    losses = sorted({*LOSSES, early.max_loss})
    found = ExitEvaluation(
        names=tuple(early.names),
        accuracies=tuple(percent(column) for column in correct.unbind(1)),
        multiply_adds=early.facts.multiply_adds,
        latency=plain,
        images=len(correct),
        rows=tuple(result(early.facts.choose(loss), loss) for loss in losses),
        curve=tuple(result(policy, None) for policy in early.facts.policies),
    )
    return found, latencies


@torch.no_grad()
def predictions_on_test(early: EarlyExits, images: Dataset) -> tuple[Tensor, Tensor]:
    """What each exit, and at last the student, predicts for the test images.

    Returns:
        The confidences ``[N, E]``, and whether the predictions are right, bool ``[N, E + 1]``.
    """
    everyone = _with_thresholds(early, [0.0] * len(early.facts.exits))
    loader = images.test.loader(torch.device("cpu"))
    confidences, predicted = [], []
    for batch, _ in loader.in_order(evaluation_batch(loader)):
        logits = torch.stack(everyone.all_logits(batch), 1)
        confidences.append(logits[:, :-1].softmax(2).amax(2))
        predicted.append(logits.argmax(2))
    return torch.cat(confidences), torch.cat(predicted) == loader.labels.cpu()[:, None]


def _with_thresholds(early: EarlyExits, thresholds: Sequence[float]) -> EarlyExitStudent:
    """The same exits with other thresholds."""
    own = early.student
    exits = dict(zip(own.stages, own.branches, strict=True))
    return EarlyExitStudent(own.model, exits, own.temperatures, thresholds).eval()


def _times(
    early: EarlyExits, images: Dataset, others: Sequence[nn.Module]
) -> tuple[float, dict[tuple[int, ...], float], list[float]]:
    """Milliseconds of the plain student, until an exit has predicted, and of other students.

    The second is by the exits that run, the last of which predicts. The student is E.
    """
    exits = len(early.facts.exits)
    paths = sorted({path for policy in early.facts.policies for path in _paths(policy)})
    image = images.test.images_at(torch.tensor([0])).cpu()
    calls: dict[str, Callable[[], object]] = {"": lambda: early.deployed.model(image)}
    for path in paths:
        thresholds = [_RUNS_ONLY if exit_ in path else NEVER for exit_ in range(exits)]
        if path[-1] < exits:
            thresholds[path[-1]] = 0.0
        calls[str(path)] = partial(_with_thresholds(early, thresholds), image)
    calls |= {f"other {number}": partial(other, image) for number, other in enumerate(others)}
    with one_thread(), torch.inference_mode():
        found = measure_latency(calls)
    median = {name: latency.median for name, latency in found.items()}
    latencies = [median[f"other {number}"] for number in range(len(others))]
    return median[""], {path: median[str(path)] for path in paths}, latencies


def _paths(policy: Policy) -> list[tuple[int, ...]]:
    """The exits that run until each exit of a policy, and at last the student, predicts."""
    active = [number for number, one in enumerate(policy.thresholds) if one < NEVER]
    ends = [*active, len(policy.thresholds)]
    return [(*(one for one in active if one < end), end) for end in ends]


def _result(
    early: EarlyExits,
    confidences: Tensor,
    correct: Tensor,
    latencies: tuple[float, dict[tuple[int, ...], float]],
    policy: Policy,
    max_loss: float | None,
) -> ExitResult:
    exits = chosen_exits(confidences, policy.thresholds)
    counts = torch.bincount(exits, minlength=correct.shape[1]).double() / len(exits)
    plain, times = latencies
    by_end = {path[-1]: times[path] for path in _paths(policy)}
    if all(one >= NEVER for one in policy.thresholds):
        by_end = {correct.shape[1] - 1: plain}
    paths = torch.tensor(early.costs.paths(policy.thresholds), dtype=torch.float64)
    return ExitResult(
        max_loss=max_loss,
        thresholds=policy.thresholds,
        val_accuracy=policy.val_accuracy,
        accuracy=percent(correct.gather(1, exits[:, None])),
        multiply_adds=float((counts * paths).sum()),
        latency=sum(float(counts[end]) * time for end, time in by_end.items()),
        shares=tuple((100 * counts).tolist()),
    )
