"""The files of a model of the Hugging Face Hub, from its cache, the network, or a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from dskd.errors import InputError, first_line
from dskd.models.catalog import HF, local_folder
from dskd.models.pretrained import offline_without_network
from dskd.storage.json_file import read_json

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
SAFETENSORS, PYTORCH = "model.safetensors", "pytorch_model.bin"
"""The names of files of weights. ``.bin`` is read with ``weights_only=True``."""
_FILES = (
    (
        (SAFETENSORS, f"{SAFETENSORS}.index.json"),
        ("model*.safetensors", f"{SAFETENSORS}.index.json"),
    ),
    ((PYTORCH, f"{PYTORCH}.index.json"), ("pytorch_model*.bin", f"{PYTORCH}.index.json")),
)
"""The file or the index of several, and patterns of all that belong to it, by preference."""

Kind = Literal["dskd", "timm", "transformers"]


@dataclass(frozen=True)
class HubModel:
    """A model of the Hub or of a folder in the Hub's format, without its weights.

    Attributes:
        name: As the user gave it.
        kind: The library that saved it.
        folder: With its configuration.
        config: The content of ``config.json``.
        processor: The content of ``preprocessor_config.json``; empty without one.
    """

    name: str
    kind: Kind
    folder: Path = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    processor: Mapping[str, Any] = field(repr=False)

    def weights(self) -> Path:
        """The file of the weights, or the index of several; downloaded if need be.

        Raises:
            InputError: There are none, or they cannot be downloaded.
        """
        for names, patterns in _FILES:
            folder = local_folder(self.name) or _download(self.name, patterns)
            for file in names:
                if (folder / file).is_file():
                    return folder / file
        raise InputError(
            f"{self.name} has neither {SAFETENSORS} nor {PYTORCH}, or they are not in the cache "
            "and there is no network; take another repository, or download it elsewhere and give "
            f"its folder as {HF}FOLDER"
        )


def open_model(name: str) -> HubModel:
    """Reads the configuration of a model.

    Args:
        name: ``hf/OWNER/NAME``, perhaps with ``@`` and a revision, or ``hf/FOLDER``.

    Raises:
        InputError: There is no such model, no network, or it is of an unknown format.
    """
    if (folder := local_folder(name)) is not None:
        return _opened(name, folder)
    from huggingface_hub import constants

    return _cached(name, str(constants.HF_HUB_CACHE))


@lru_cache(maxsize=16)
def _cached(name: str, cache: str) -> HubModel:
    """The model in a cache. Each model is looked up once in a process."""
    return _opened(name, _download(name, (CONFIG, PROCESSOR)))


def _opened(name: str, folder: Path) -> HubModel:
    fix = f"give {HF}OWNER/NAME or {HF}FOLDER of an image classifier"
    if not (folder / CONFIG).is_file():
        raise InputError(f"{name} has no {CONFIG}; {fix}")
    config = read_json(folder / CONFIG, dict[str, Any], fix)
    processor = {}
    if (folder / PROCESSOR).is_file():
        processor = read_json(folder / PROCESSOR, dict[str, Any], fix)
    kind: Kind
    if isinstance(config.get("dskd"), dict):
        kind = "dskd"
    elif isinstance(config.get("architecture"), str) and config.get("model_type") is None:
        kind = "timm"
    elif isinstance(config.get("model_type"), str):
        kind = "transformers"
    else:
        raise InputError(f"{name} was saved by neither timm, transformers nor dskd; {fix}")
    return HubModel(name, kind, folder, config, processor)


def _download(name: str, patterns: tuple[str, ...]) -> Path:
    """The folder of a repository in the cache, with the files of some names."""
    from huggingface_hub import errors, snapshot_download

    repository, _, revision = name.removeprefix(HF).partition("@")
    try:
        with offline_without_network():
            found = snapshot_download(
                repository, revision=revision or None, allow_patterns=list(patterns)
            )
    except errors.HFValidationError as error:
        raise InputError(
            f"{name!r} is neither {HF}OWNER/NAME nor {HF} and a folder that exists; check the name"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise InputError(
            f"{name!r}: the Hub does not show it ({type(error).__name__}); check the name, or log "
            "in by `hf auth login` if it is private"
        ) from error
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        raise InputError(
            f"the files of {name} are not in the cache and cannot be downloaded "
            f"({type(error).__name__}: {first_line(error)}); download the repository elsewhere, "
            f"and give its folder as {HF}FOLDER"
        ) from error
    return Path(found)
