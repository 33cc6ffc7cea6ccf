"""Weights that timm and torchvision publish."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from torch import Tensor, nn

from dskd.errors import InputError, first_line
from dskd.models.catalog import TIMM, TORCHVISION
from dskd.storage.state_dicts import match_keys
from dskd.storage.weights import load_weights


def timm_weights(name: str) -> str:
    """Name of the weights that timm publishes for a model, for messages.

    Raises:
        InputError: There are none.
    """
    import timm

    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag, as in resnet18.a4_in1k
        config = None
    if config is None or not config.has_weights:
        raise _no_weights(TIMM, name, "timm.list_pretrained()")
    return f"{config.hf_hub_id} of the Hugging Face Hub" if config.hf_hub_id else str(config.url)


def load_torchvision_weights(name: str, model: nn.Module, options: Mapping[str, Any]) -> None:
    """Load the weights that torchvision publishes for a model; its classifier may be left out.

    Args:
        name: A name of ``torchvision.models``.
        model: Gets the weights, and ``pretrained_cfg`` with ``mean``, ``std`` and
            ``num_classes``, as timm's models have it.
        options: The user's arguments for the model.

    Raises:
        InputError: There are none, they cannot be downloaded, or they do not fit the model.
    """
    from torchvision import models

    published = models.get_model_weights(name)
    if not list(published):
        raise _no_weights(TORCHVISION, name, "torchvision.models.list_models()")
    weights = published.DEFAULT
    try:
        weights.get_state_dict(progress=False, check_hash=True)  # into the cache
    except (OSError, RuntimeError) as error:
        raise not_downloaded(f"{weights.url}", error) from error
    original = models.get_model(name, weights=weights, **options)
    there, here = original.state_dict(), model.state_dict()
    _resize_positions(model, there)
    classes = len(weights.meta["categories"])
    left_out = {k for k in here.keys() & there.keys() if _of_classes(there[k], here[k], classes)}
    fitting = {k: there[k] for k in here.keys() & there.keys() if k not in left_out}
    try:
        missing = model.load_state_dict(fitting, strict=False).missing_keys
    except RuntimeError as error:
        raise InputError(
            f"the weights {weights.url} do not fit {TORCHVISION}{name}: {first_line(error)}"
        ) from error
    assert {*missing} <= left_out, "both models have the same options"
    shown = weights.transforms()
    model.pretrained_cfg = {"mean": shown.mean, "std": shown.std, "num_classes": classes}  # type: ignore[assignment]


def load_but_classifier(
    model: nn.Module, weights: Mapping[str, Tensor], classes: int, what: str
) -> None:
    """Load weights into a model; a classifier of other classes keeps its own.

    Args:
        model: Gets the weights.
        weights: All of the same network.
        classes: Number of classes of the weights.
        what: Names the weights in an error.

    Raises:
        InputError: They do not fit.
    """
    here, there = model.state_dict(), match_keys(weights, model, what)
    both = here.keys() & there.keys()
    own = {key: here[key] for key in both if _of_classes(there[key], here[key], classes)}
    load_weights(model, {**there, **own}, what)


def _of_classes(there: Tensor, here: Tensor, classes: int) -> bool:
    """Whether a tensor has one row for each class, and the model has other classes."""
    return (
        there.dim() > 0 and len(there) == classes != len(here) and there[0].shape == here[0].shape
    )


def _resize_positions(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Interpolates the position embedding of a transformer to the model's images."""
    key = "encoder.pos_embedding"
    if key in weights:
        from torchvision.models.vision_transformer import interpolate_embeddings

        side, patch = int(model.image_size), int(model.patch_size)  # type: ignore[arg-type]
        weights.update(interpolate_embeddings(side, patch, weights))


def not_downloaded(what: str, error: Exception) -> InputError:
    """The error for weights that are not in the cache, where there is no network.

    Args:
        what: Names the weights.
        error: From the download.
    """
    return InputError(
        f"the pretrained weights {what} are not in the cache and cannot be downloaded "
        f"({type(error).__name__}); download them elsewhere, and give the file with "
        "student.pretrained=FILE or teacher.pretrained=FILE"
    )


def is_download_error(error: Exception) -> bool:
    """Whether an exception of timm comes from a download."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in (
        "huggingface_hub",
        "httpx",
        "httpcore",
    )


def _no_weights(library: str, name: str, listing: str) -> InputError:
    return InputError(
        f"there are no pretrained weights of {library}{name}; {listing} names models that have some"
    )


@contextmanager
def offline_without_network() -> Iterator[None]:
    """Within the block, the Hugging Face Hub is asked only if its address is known.

    Without a network it would be asked again and again for most of a minute, with a warning each
    time. Files in the cache are found in both cases.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    if not getproxies() and not _is_known(urlsplit(constants.ENDPOINT).hostname or ""):
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def _is_known(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True
