"""``teacher.head=fit``: a classifier for the run's classes on a teacher's frozen features."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from dskd.config.schema import TeacherSettings
from dskd.data import Dataset
from dskd.data.download import cache_folder
from dskd.data.loader import Loader
from dskd.engine.evaluate import evaluation_batch
from dskd.errors import InputError
from dskd.models.eval_mode import eval_mode
from dskd.models.staged_model import StagedModel
from dskd.runtime import distributed
from dskd.runtime.memory import require_memory
from dskd.storage.atomic import make_folder, replace_file
from dskd.teacher.frozen import weights_fingerprint

log = logging.getLogger("dskd")

FOLDER = "teacher-heads"
"""Of the cached heads, in the cache folder."""
VERSION = 2
"""Raise it when the same facts come to stand for another head."""
STRENGTHS = (0.01, 0.1, 1.0)
"""Inverse strengths of the penalty on the weights, of which the best on held-out images is taken.
They are scikit-learn's ``C``, for features of variance 1."""
HELD_OUT = 5
"""Every fifth image of each class is held out for the choice."""
_ITERATIONS = 500


def fit_head(model: StagedModel, settings: TeacherSettings, data: Dataset, loader: Loader) -> None:
    """Fits the head of a teacher on the training images, or reads it from the cache.

    It is a multinomial logistic regression on the vectors that the teacher's own classifier sees
    (without a classifier: the average of its last feature map), by scikit-learn's L-BFGS, which
    draws nothing at random. A head is cached under a hash of the teacher's name, its options, its
    weights, its normalisation, the images and the labels.

    Args:
        model: The teacher, on the loader's device, with a head (`StagedModel.add_head`).
        settings: Of the teacher.
        data: The data set of the run.
        loader: Of its training split.

    Raises:
        InputError: The features do not fit into memory, or are not finite.
    """
    head = model.head
    assert head is not None, "it is added before"
    path = _path(model, settings, data)
    weight, bias = distributed.on_rank_zero(lambda: _read_or_fit(model, loader, path))()
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)


def _path(model: StagedModel, settings: TeacherSettings, data: Dataset) -> Path:
    """The file of the head that belongs to a teacher and images."""
    facts: dict[str, Any] = {
        "version": VERSION,
        "name": settings.name,
        "options": settings.options,  # some change the features and not the weights
        "teacher": weights_fingerprint(model.module),
        "classifier": model.classifier,
        "stages": list(model.stage_names or ()),
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "data": data.fingerprint(),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return cache_folder(None) / FOLDER / f"head-{digest[:32]}.safetensors"


def _read_or_fit(model: StagedModel, loader: Loader, path: Path) -> tuple[Tensor, Tensor]:
    assert model.head is not None, "it is added before"
    shape = tuple(model.head.weight.shape)
    if (found := _read(path, shape)) is not None:
        log.info("the teacher's head is read from %s", path)
        return found
    log.info("fitting the teacher's head on the features of %d images", len(loader))
    features = _features(model, loader)
    weight, bias = _fit(features, loader.labels.cpu().numpy(), shape[0])
    try:
        make_folder(path.parent)
        replace_file(path, safetensors.torch.save({"weight": weight, "bias": bias}))
    except OSError as error:  # the run has its head; a later one fits it again
        reason = error.strerror or error
        log.warning("the teacher's head is not kept for later runs in %s: %s", path.parent, reason)
    return weight, bias


def _read(path: Path, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
    """A cached head; None if there is none, or if the file is damaged."""
    if not path.is_file():
        return None
    try:
        tensors = safetensors.torch.load(path.read_bytes())
        weight, bias = tensors["weight"], tensors["bias"]
    except Exception:  # the file may hold anything
        weight = bias = torch.empty(0)
    if tuple(weight.shape) != shape or bias.shape != weight.shape[:1]:
        log.warning("%s is damaged; the head is fitted again", path)
        return None
    return weight.float(), bias.float()


@torch.no_grad()
def _features(model: StagedModel, loader: Loader) -> np.ndarray[Any, Any]:
    """The features of all training images, float32 ``[N, D]``."""
    head: nn.Linear | None = model.head
    assert head is not None, "it is added before"
    needed = 4 * len(loader) * head.in_features
    require_memory(2 * needed, f"the features of {len(loader)} images")
    batch_size = evaluation_batch(loader)
    with eval_mode(model):
        parts = [model(images).pooled.cpu() for images, _ in loader.in_order(batch_size)]
    features: np.ndarray[Any, Any] = torch.cat(parts).float().numpy()
    if not np.isfinite(features).all():
        raise InputError("the teacher's features are not finite; check its weights, mean and std")
    return features


def _fit(
    features: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], classes: int
) -> tuple[Tensor, Tensor]:
    """Weights ``[K, D]`` and biases ``[K]`` for features as they are."""
    mean, deviation = features.mean(0), features.std(0)
    scale = np.where(deviation > 1e-6 * max(float(deviation.max()), 1e-12), deviation, np.inf)
    standard = (features - mean) / scale
    position = np.zeros(len(labels), int)  # of an image among those of its class
    for label in range(classes):
        position[labels == label] = np.arange((labels == label).sum())
    held_out = position % HELD_OUT == HELD_OUT - 1
    strength = _strength(standard, labels, held_out) if held_out.any() else STRENGTHS[1]
    weight, bias = np.zeros((classes, features.shape[1])), np.full(classes, -10.0)
    fitted = _regression(strength).fit(standard, labels)
    coefficients, intercepts = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # one row, for the second class
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    weight[fitted.classes_] = coefficients / scale
    bias[fitted.classes_] = intercepts - weight[fitted.classes_] @ mean
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()


def _strength(
    features: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], held_out: np.ndarray[Any, Any]
) -> float:
    """The strength with the lowest cross-entropy on held-out images."""
    from sklearn.metrics import log_loss

    losses = {}
    for strength in STRENGTHS:
        fitted = _regression(strength).fit(features[~held_out], labels[~held_out])
        known = held_out & np.isin(labels, fitted.classes_)
        probabilities = fitted.predict_proba(features[known])
        losses[strength] = log_loss(labels[known], probabilities, labels=fitted.classes_)
    return min(losses, key=lambda strength: losses[strength])


def _regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=_ITERATIONS)
