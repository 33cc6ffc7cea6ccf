"""How the images of a model are normalised, and whether that suits a teacher from elsewhere."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from scipy.special import bdtrc  # scipy.stats takes half a second to import
from torch import Tensor, nn

from dskd.config.schema import ModelSettings
from dskd.data import Dataset
from dskd.data.loader import DataLoaders
from dskd.engine.load_checkpoint import role, weights_file
from dskd.errors import InputError, as_given
from dskd.models.factory import pretrained_statistics
from dskd.models.staged_model import StagedModel, normalized
from dskd.storage.file_facts import FileFacts, read_facts
from dskd.teacher.frozen import FrozenTeacher

log = logging.getLogger("dskd")

Channels = Sequence[float]
"""A number for each channel."""
PIXELS, FEWEST = 2_000 * 32 * 32, 128
"""Pixels of the test images on which other statistics are tried, and the fewest images."""
_BATCH = 32
_LEVEL = 1e-3
"""A change is better if chance explains the gain with a lower probability than this."""
_TRIALS = (
    ("pixels from 0 to 1", (0.0,), (1.0,)),
    ("pixels from -1 to 1", (0.5,), (0.5,)),
    ("the mean and std of ImageNet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
)
"""What networks are commonly trained on: words, mean and std."""


def normalization(
    settings: ModelSettings, module: nn.Module, data: Dataset, facts: FileFacts | None
) -> tuple[Channels, Channels]:
    """Mean and std of each channel, on the scale from 0 to 1.

    They are those of the settings, else of the file of weights, else of the model itself, else of
    the data. A setting that contradicts the file wins, and a line says so.

    Args:
        settings: Of the model.
        module: The model, which may say how it was trained.
        data: The data set of the run.
        facts: What the file of weights says; None without such a file.

    Raises:
        InputError: They are not of as many channels as the images.
    """
    channels = data.shape[0]
    found = []
    for key, default in zip(
        ("mean", "std"),
        pretrained_statistics(module, channels) or (data.mean, data.std),
        strict=True,
    ):
        own, stored = getattr(settings, key), getattr(facts, key, None)
        if own is not None and len(own) == 1:
            own = [*own] * channels
        if own is not None and stored is not None and not _close(own, stored):
            log.warning(
                "%s.%s=%s is used, but %s was trained with %s",
                *(role(settings), key, list(own), weights_file(settings), _rounded(stored)),
            )
        found.append(next(part for part in (own, stored, default) if part is not None))
    mean, std = found
    if len(mean) != channels or len(std) != channels:
        raise InputError(
            f"mean and std of {settings.name} have {len(mean)} and {len(std)} channels, the "
            f"images {channels}; give {channels} of each, or one number for all"
        )
    return mean, std


def log_input(settings: ModelSettings, model: StagedModel, data: Dataset) -> None:
    """Logs which pixels a module given in Python gets, and how to change that.

    Args:
        settings: Of the module.
        model: The wrapped module.
        data: The data set of the run.
    """
    what = role(settings)
    mean, std = (value.flatten().tolist() for value in (model.mean, model.std))
    low = min((0 - m) / s for m, s in zip(mean, std, strict=True))
    high = max((1 - m) / s for m, s in zip(mean, std, strict=True))
    if (low, high) == (0, 1):
        log.info("the %s %s gets pixels from 0 to 1", what, settings.name)
        return
    whose = f" of {data.name}" if _is_unknown(settings, model) else ""
    log.info(
        as_given(
            f"the {what} {settings.name} gets normalised pixels, from {low:.2f} to {high:.2f} "
            f"(mean {_text(mean)} and std {_text(std)}{whose}); for pixels from 0 to 1, give "
            f"{_as_setting(what, (0.0,), (1.0,))}"
        )
    )


def better_pixels(teacher: FrozenTeacher, settings: ModelSettings, data: DataLoaders) -> str:
    """Which other pixels a teacher was likely trained on, and the fix; empty if none are better.

    Nothing says how the images of a module given in Python, or of a file of another program, are
    normalised. So the statistics of the data set are used. Here a sample of the test images is
    tried with others. These must be `clearly_better`.

    Args:
        teacher: With its ``test_predictions``.
        settings: Of the teacher.
        data: On the device of the teacher.
    """
    if not _is_unknown(settings, teacher.model):
        return ""
    split = data.data.test
    count = min(len(split), max(FEWEST, PIXELS // math.prod(split.sample_shape[1:])))
    indices = torch.linspace(0, len(split) - 1, count, dtype=torch.float64).round().long()
    images, labels = split.images_at(indices), split.labels.cpu()[indices]
    assert teacher.test_predictions is not None, "it is evaluated before"
    own = teacher.test_predictions[indices] == labels
    best, fix = int(own.sum()), ""
    for words, mean, std in _TRIALS:
        if len(mean) not in (1, images.shape[1]):
            continue
        hits = _predictions(teacher.model, images, mean, std) == labels
        if clearly_better(hits, own) and int(hits.sum()) > best:
            best = int(hits.sum())
            fix = (
                f"it was likely trained on {words}, with which it is right on {best} of {count} "
                f"test images, and on {int(own.sum())} with the mean and std of {data.data.name}; "
                f"give {_as_setting(role(settings), mean, std)}"
            )
    return fix


def clearly_better(hits: Tensor, own: Tensor) -> bool:
    """Whether a change makes a teacher right on clearly more images.

    The sign test (McNemar) must have a p-value below `_LEVEL`.

    Args:
        hits: bool ``[N]``, on which images it is right with the change.
        own: bool ``[N]``, on which images it is right without.
    """
    gains, losses = int((hits & ~own).sum()), int((own & ~hits).sum())
    return gains > losses and bool(bdtrc(gains - 1, gains + losses, 0.5) < _LEVEL)


@torch.no_grad()
def _predictions(model: StagedModel, images: Tensor, mean: Channels, std: Channels) -> Tensor:
    """The classes that a model predicts for images with other statistics, on the CPU."""
    device = model.mean.device
    shift, scale = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (mean, std))
    parts = (normalized(part.to(device), shift, scale) for part in torch.split(images, _BATCH))
    return torch.cat([model.forward_normalized(part).logits.argmax(1).cpu() for part in parts])


def _is_unknown(settings: ModelSettings, model: StagedModel) -> bool:
    """Whether nothing says how a model's images are normalised."""
    facts = read_facts(weights_file(settings))
    own = pretrained_statistics(model.module, model.mean.shape[1])
    known = (settings.mean, settings.std, getattr(facts, "mean", None), own)
    return all(part is None for part in known)


def _as_setting(what: str, mean: Channels, std: Channels) -> str:
    return f"{what}.mean={_yaml(mean)} {what}.std={_yaml(std)}"


def _yaml(values: Channels) -> str:
    """Numbers as a setting has them: a list, or one number for all channels."""
    texts = [f"{value:g}" for value in values]
    return f"[{','.join(texts)}]" if len(texts) > 1 else texts[0]


def _text(values: Channels) -> str:
    return ", ".join(f"{value:.3g}" for value in dict.fromkeys(values))


def _close(one: Channels, other: Channels) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(abs(a - b) < 1e-3 for a, b in pairs)


def _rounded(values: Channels) -> list[float]:
    return [round(value, 4) for value in values]
