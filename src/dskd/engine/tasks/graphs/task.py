"""How the students of a run on graphs are evaluated and described."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dskd.data.loader import Loader
from dskd.engine.evaluate import EvaluationResult, percent
from dskd.engine.task import RunLoaders, Task
from dskd.engine.tasks.graphs.data import metric_of_labels
from dskd.engine.tasks.graphs.loader import GraphLoader, GraphLoaders, predicted
from dskd.engine.tasks.graphs.models import hidden_layers
from dskd.engine.tasks.graphs.settings import GraphRecipe
from dskd.engine.tasks.teacher_facts import record_teacher
from dskd.engine.teacher_accuracy import near_chance
from dskd.engine.training_run import TrainingRun
from dskd.methods.base import Method
from dskd.models.eval_mode import eval_mode


def micro_f1(predictions: Tensor, labels: Tensor) -> float:
    """The F1 score over all labels of all nodes together, in percent.

    Args:
        predictions: ``[N, K]`` of 0 and 1.
        labels: ``[N, K]`` of 0 and 1.

    Example:
        >>> micro_f1(torch.tensor([[1, 0], [1, 1]]), torch.tensor([[1, 0], [0, 1]]))
        80.0
    """
    both = float((predictions * labels).sum())
    either = float(predictions.sum()) + float(labels.sum())
    return round(100 * 2 * both / either, 4) if either else 100.0


def _score(predictions: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy, or micro-F1 with several labels a node."""
    several = labels.dim() == 2
    return micro_f1(predictions, labels) if several else percent(predictions == labels)


def _near_chance(predictions: Tensor, loader: Loader) -> bool:
    """Whether a guess would be as good."""
    labels = loader.labels.cpu()
    if labels.dim() == 1:
        return near_chance(predictions, labels, 1 + int(torch.max(labels.max(), predictions.max())))
    return micro_f1(predictions, labels) <= micro_f1(torch.ones_like(predictions), labels)


class GraphTask(Task):
    """Classification of nodes: accuracy, or micro-F1 with several labels a node."""

    samples: ClassVar[str] = "nodes"

    @torch.no_grad()
    def evaluate(
        self, module: nn.Module, logits: Callable[[Any], dict[str, Tensor]], loader: Loader
    ) -> dict[str, EvaluationResult]:
        """See `Task.evaluate`. Each graph is evaluated by itself, in float32."""
        assert isinstance(loader, GraphLoader), "of a split of graphs"
        with eval_mode(module):
            parts = [logits(batch) for batch in loader.single()]
        whole = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
        return {name: self._result(values, loader) for name, values in whole.items()}

    def _result(self, logits: Tensor, loader: Loader) -> EvaluationResult:
        top5 = None
        if loader.labels.dim() == 1:
            predictions = logits.argmax(1)
            if logits.shape[1] > 5:
                hits = logits.topk(5).indices == loader.labels.cpu()[:, None]
                top5 = percent(hits.any(1))
        else:
            predictions = predicted(logits)
        finite = bool(logits.isfinite().all())
        metric = metric_of_labels(loader.labels)
        score = _score(predictions, loader.labels.cpu())
        return EvaluationResult(score, top5, predictions, finite, metric)

    def score(self, predictions: Tensor, data: RunLoaders) -> float | None:
        """Top-1 accuracy, or micro-F1."""
        return _score(predictions, data.test.labels.cpu())

    def student_metadata(
        self, recipe: GraphRecipe, loaders: GraphLoaders, method: Method
    ) -> Mapping[str, Any]:
        """See `Task.student_metadata`."""
        data, student = loaders.data, recipe.student
        return {
            "task": "graphs",
            "model": student.model_dump(mode="json") | {"layers": hidden_layers(student)},
            "features": data.features,
            "classes": list(data.classes),
            "multilabel": data.multilabel,
            "normalize": recipe.data.normalize,
            "method": recipe.method.name,
        }

    def record_models(self, run: TrainingRun, *, resumes: bool) -> None:
        """Writes how good the teacher is, if there is one."""
        record_teacher(self, run, _near_chance)


GRAPHS = GraphTask()
