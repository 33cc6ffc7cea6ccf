"""What a student's file says about the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
from pydantic import BaseModel, Field

from dskd.errors import InputError
from dskd.settings import Number, Positive, validate
from dskd.storage.checkpoint_reader import is_safetensors
from dskd.storage.weights import METADATA, read_metadata


class FileFacts(BaseModel):
    """The part of a file's metadata that matters where its weights are loaded.

    Attributes:
        model: Name of the model.
        classes: Name of each class, by label.
        shape: Channels, height and width of the images.
        mean: Of each channel, for the normalisation.
        std: Of each channel.
        method: The method that trained it.
        deploy_config: What the method has added to the model; empty for most.
    """

    model: str | None = None
    classes: tuple[str, ...] | None = None
    shape: tuple[int, int, int] | None = None
    mean: tuple[Number, ...] | None = None
    std: tuple[Positive, ...] | None = None
    method: str | None = None
    deploy_config: dict[str, Any] = Field(default_factory=dict)


def read_facts(path: Path | None) -> FileFacts | None:
    """The facts in a file that this package wrote; None for any other file.

    Raises:
        InputError: The metadata is damaged.
    """
    if path is None or not path.is_file() or not is_safetensors(path):
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            if METADATA not in (file.metadata() or {}):
                return None
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"cannot read the checkpoint {path}: {error}") from None
    return validate(FileFacts, read_metadata(path), f"{path}: ")
