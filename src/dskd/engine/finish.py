"""The end of a run: its last student is written, with the result."""

from __future__ import annotations

import logging

import safetensors.torch
import torch
from torch import Tensor, nn

from dskd.data import Dataset
from dskd.engine.branch_warning import branch_warnings
from dskd.engine.evaluate import EvaluationResult, SplitResults, percent
from dskd.engine.keep_exits import keep_exits
from dskd.engine.result import Result
from dskd.engine.training_run import TrainingRun, evaluate_run
from dskd.errors import as_given
from dskd.methods.base import BranchedMethod, Method
from dskd.models.feature_hooks import remove_hooks
from dskd.runtime import distributed
from dskd.runtime.nonfinite import nonfinite_logits_error
from dskd.storage.run_files import EMA, LAST

log = logging.getLogger("dskd")


def finish(run: TrainingRun) -> Result:
    """Writes the student of the last epoch and the result.

    The last epoch has evaluated the student. Only a run that was killed between its last checkpoint
    and its result evaluates it again, because no file holds its predictions.

    Args:
        run: With no epoch left.

    Raises:
        NonFiniteError: The student's logits are not finite.
    """
    tested, average = run.tested or evaluate_run(run), run.trainer.average
    _require_finite(run, tested.student)
    run.write_student(LAST)
    if average is not None and tested.average is not None:
        _require_finite(run, tested.average)
        run.write_student(EMA, average.module)
    if auxiliary := run.trainer.method.auxiliary_state_dict():
        # Copies: a file cannot hold tensors that share memory, such as those of a shared layer.
        tensors = {
            key: value.detach().cpu().contiguous().clone() for key, value in auxiliary.items()
        }
        run.directory.write_bytes("auxiliary.safetensors", safetensors.torch.save(tensors))
    if run.recipe.train.exits:
        keep_exits(run)
    _warn_of_branches(run, tested)
    result = _result(run, tested, _teacher_predictions(run))
    run.directory.write_json("result.json", result.numbers() | {"fingerprints": run.fingerprints})
    run.directory.close()
    return result


def _require_finite(run: TrainingRun, evaluated: EvaluationResult) -> None:
    """Ends a run whose student has logits that are not finite, before it is written."""
    if not evaluated.finite:
        with run.recording_nonfinite():
            raise nonfinite_logits_error(run.trainer.epochs - 1, run.trainer.steps)


def _warn_of_branches(run: TrainingRun, tested: SplitResults) -> None:
    """Logs which branches have not learned, see `dskd.engine.branch_warning`."""
    data, options = run.data.data, run.recipe.method.options
    branched = isinstance(run.trainer.method, BranchedMethod)
    if not branched or not isinstance(data, Dataset) or not run.rows:
        return
    labels = run.data.test.labels.cpu()
    for line in branch_warnings(tested.others, run.rows[-1], labels, len(data.classes), options):
        log.warning(as_given(line))


def _teacher_predictions(run: TrainingRun) -> Tensor | None:
    """The teacher's predictions on the test split, which were made before the first step.

    None without a teacher, or if it is of other classes.
    """
    teacher = run.trainer.teacher_outputs.teacher
    return teacher.test_predictions if teacher is not None else None


def _result(run: TrainingRun, tested: SplitResults, teacher: Tensor | None) -> Result:
    method, rows = run.trainer.method, run.rows
    student, averaged = tested.student, tested.average
    deployed = method.deployed()
    checkpoints = sum(row["checkpoint_seconds"] for row in rows) + run.checkpoint_seconds
    rates = [row["teacher_cache_hit_rate"] for row in rows if "teacher_cache_hit_rate" in row]
    return Result(
        path=run.directory.path,
        student=_plain(deployed),
        method=run.recipe.method.name,
        parameters=sum(p.numel() for p in deployed.parameters()),
        test_accuracy=student.accuracy,
        test_accuracy_top5=student.accuracy_top5,
        best_test_accuracy=run.best.accuracy,
        best_epoch=run.best.epoch,
        best_chosen_on="validation" if run.data.validation is not None else "test",
        teacher_accuracy=run.task.score(teacher, run.data) if teacher is not None else None,
        agreement=percent(student.predictions == teacher) if teacher is not None else None,
        seconds=round(sum(row["seconds"] for row in rows), 3),
        teacher_seconds=round(sum(row["teacher_seconds"] for row in rows), 3),
        checkpoint_seconds=round(distributed.on_rank_zero(lambda: checkpoints)(), 3),
        teacher_cache_hit_rate=sum(rates) / len(rates) if rates else None,
        extra_parameters=_extra_parameters(method, deployed),
        memory=run.trainer.memory,
        ema_test_accuracy=averaged.accuracy if averaged is not None else None,
        ema_student=_plain(run.trainer.average.module) if run.trainer.average else None,
        metric=run.data.data.metric,
    )


def _plain(module: nn.Module) -> nn.Module:
    """The module on the CPU, with its weights as any module has them, in eval mode."""
    remove_hooks(module)
    return module.cpu().to(memory_format=torch.contiguous_format).eval()


def _extra_parameters(method: Method, deployed: nn.Module) -> int:
    """How many of the method's trained parameters are not deployed.

    Those of the student are: a method may deploy a copy of it.
    """
    shipped = {id(p) for module in (method.student, deployed) for p in module.parameters()}
    trained = (p for p in method.parameters() if p.requires_grad)
    return sum(p.numel() for p in trained if id(p) not in shipped)
