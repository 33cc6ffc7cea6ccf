"""Image classifiers of the library transformers, which is imported when it is used.

No code of a repository ever runs: the class of a model is that of the library for its
``model_type``, and the weights are tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dskd.errors import InputError, first_line, unknown
from dskd.models.catalog import TRANSFORMERS

_REFUSED = frozenset({"timm_wrapper", "perceiver"})
"""Models of timm, which are read as such, and a type that has three kinds of classifiers."""
_NOT_OF_THE_NETWORK = frozenset(
    {
        *("id2label", "label2id", "num_labels", "problem_type", "architectures", "_name_or_path"),
        *("transformers_version", "model_type", "auto_map", "dtype", "torch_dtype"),
        *("output_hidden_states", "output_attentions", "return_dict", "is_encoder_decoder"),
        *("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
        *("experts_implementation", "_experts_implementation", "use_kernels"),
    }
)
"""Keys of a configuration that do not change the network, or that could load other code."""


def from_transformers(
    kind: str,
    num_classes: int,
    in_channels: int,
    size: int | None,
    options: Mapping[str, Any],
) -> nn.Module:
    """Build an image classifier with random weights, see `dskd.models.factory.load_model`.

    Args:
        kind: A ``model_type`` of transformers, as in ``vit``.
        num_classes: Number of classes.
        in_channels: Channels of the images.
        size: Height and width of the images, for models that need it.
        options: Keys of its configuration.

    Raises:
        InputError: The library is missing, the type does not exist, or the options do not fit.
    """
    library = _library()
    known = _check_options(kind, options)
    try:
        config = library.CONFIG_MAPPING[kind].from_dict(_cleaned(options))
        _fit(config, kind, num_classes, in_channels)
        if size is not None and "image_size" in known and "image_size" not in options:
            config.image_size = size
        with _quiet():
            model: nn.Module = library.AutoModelForImageClassification.from_config(
                config, trust_remote_code=False, dtype=torch.float32
            )
    except InputError:
        raise
    except Exception as error:  # its models raise many types
        raise _not_built(f"{TRANSFORMERS}{kind}", options, error) from error
    return model


def load_transformers(
    name: str,
    weights: Path,
    kind: str,
    num_classes: int,
    in_channels: int,
    options: Mapping[str, Any],
) -> nn.Module:
    """Build an image classifier with the weights of a folder; its classifier may be left out.

    Args:
        name: Names the model in errors.
        weights: The file in the folder, or the index of several.
        kind: Its ``model_type``.
        num_classes: Number of classes. A classifier of others keeps its random weights.
        in_channels: Channels of the images.
        options: Keys of its configuration, those of the repository included.

    Raises:
        InputError: The weights are damaged or do not fit, or an option does not exist.
    """
    library = _library()
    _check_options(kind, options)  # the library ignores others, and no later program builds them
    try:
        config = library.CONFIG_MAPPING[kind].from_dict(_cleaned(options))
        _fit(config, kind, num_classes, in_channels)
        with _quiet():
            model, report = library.AutoModelForImageClassification.from_pretrained(
                weights.parent,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                use_safetensors=weights.name.startswith("model."),
                trust_remote_code=False,
                local_files_only=True,
            )
    except InputError:
        raise
    except Exception as error:  # its models raise many types
        raise _not_built(name, options, error) from error
    _check_report(name, model, report, num_classes)
    return model  # type: ignore[no-any-return]


def _check_report(name: str, model: nn.Module, report: Mapping[str, Any], classes: int) -> None:
    """Refuses weights that leave more than the classifier out."""
    own = model.state_dict()
    left_out = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    wrong = sorted(key for key in left_out if own[key].dim() == 0 or len(own[key]) != classes)
    if wrong:
        raise InputError(
            f"the weights of {name} do not fit {type(model).__name__}: {wrong[0]} is missing or of "
            "another shape; take a repository of an image classifier"
        )


def known_options(kind: str) -> frozenset[str]:
    """The keys of a type's configuration that determine the network.

    Raises:
        InputError: The library is missing, or the type is no image classifier.
    """
    library = _library()
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as classifiers,
    )

    if kind not in classifiers.keys() - _REFUSED:
        raise unknown("image classifier of transformers", kind, classifiers.keys() - _REFUSED)
    config = library.CONFIG_MAPPING[kind]
    keys = {*config().to_dict(), *config.attribute_map}
    return frozenset(keys - _NOT_OF_THE_NETWORK)


def _check_options(kind: str, options: Mapping[str, Any]) -> frozenset[str]:
    """The keys that a type knows, if the options are among them."""
    known = known_options(kind)
    if wrong := sorted(options.keys() - known):
        raise unknown(f"option of {TRANSFORMERS}{kind}", wrong[0], known)
    return known


def _cleaned(values: Any) -> Any:
    """A configuration without what does not belong to the network, on all its levels."""
    if isinstance(values, Mapping):
        kept = {
            k: v for k, v in values.items() if k not in _NOT_OF_THE_NETWORK or k == "model_type"
        }
        return {key: _cleaned(value) for key, value in kept.items()}
    return [_cleaned(value) for value in values] if isinstance(values, list) else values


def _fit(config: Any, kind: str, num_classes: int, in_channels: int) -> None:
    """Sets the number of classes and of channels."""
    config.num_labels = num_classes
    if getattr(config, "num_channels", 3) != in_channels:
        if not hasattr(config, "num_channels"):
            raise InputError(
                f"{TRANSFORMERS}{kind} takes RGB images, and these have {in_channels} channels; "
                "set data.channels=3 if the images are your own"
            )
        config.num_channels = in_channels


def _not_built(name: str, options: Mapping[str, Any], error: Exception) -> InputError:
    return InputError(f"{name} cannot be built with options {dict(options)}: {first_line(error)}")


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "models of transformers need the library transformers; pip install 'dskd[transformers]'"
        ) from error
    return transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block, transformers prints nothing, and nothing is downloaded."""
    from huggingface_hub import constants
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging  # its functions are not typed
    level, offline = logging.get_verbosity(), constants.HF_HUB_OFFLINE
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
