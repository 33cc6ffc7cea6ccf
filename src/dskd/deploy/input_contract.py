"""What an exported student expects and returns, for its metadata, its caller and its card."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from dskd.deploy.early_exits import EarlyExits
from dskd.deploy.formats import DYNAMIC
from dskd.deploy.student import DeployedStudent

INPUT, OUTPUT = "images", "logits"
"""The names of the input and the output of a graph."""
EXIT, THRESHOLDS = "exit", "thresholds"
"""The names of a further output and of a constant of a graph with early exits."""
CONTRACT = "expects"
"""The key of a file's metadata that holds the contract as JSON."""


@dataclass(frozen=True)
class InputContract:
    """What an exported student expects and returns.

    Attributes:
        student: The student: its classes, the shape of its images, how image files are read.
        batch: Images of a call; None for any number.
        normalizes: Whether the file normalises the images itself.
        int8: Whether weights and activations have 8 bits.
        exits: The early exits of the file; None without any.
    """

    student: DeployedStudent
    batch: int | None
    normalizes: bool
    int8: bool = False
    exits: EarlyExits | None = None

    @property
    def mean(self) -> list[float]:
        """The mean of each channel, on the scale from 0 to 1."""
        return _short(self.student.model.mean.flatten().tolist())

    @property
    def std(self) -> list[float]:
        """The standard deviation of each channel."""
        return _short(self.student.model.std.flatten().tolist())

    @property
    def shape(self) -> list[int | str]:
        """The shape of the input."""
        return [DYNAMIC if self.batch is None else self.batch, *self.student.shape]

    @property
    def resize_rule(self) -> str:
        """How an image file becomes an image of the right size, in words."""
        _, height, width = self.student.shape
        form = self.student.form
        if height != width:
            return f"none: images must have {width}x{height} pixels"
        if form.crop_pct != 1 or form.interpolation is not None:
            return (
                f"resize the shorter side to int({height} / {form.crop_pct:g}) = "
                f"{int(height / form.crop_pct)} pixels ({form.interpolation or 'bicubic'}), then "
                f"crop the central {height}x{height} pixels"
            )
        return (
            f"crop the largest centred square, then resize it to {height}x{height} pixels: "
            "Pillow's BOX filter if the side is a multiple of that size, else BICUBIC"
        )

    @property
    def pixel_rule(self) -> str:
        """What becomes of the pixels of an image file before the resizing, in words."""
        rule = "turned upright by EXIF, transparency becomes white"
        if self.student.form.value_range is not None:
            return rule
        return f"{rule}, of 16 bits the upper 8 count"

    def plain(self) -> dict[str, Any]:
        """The contract as plain values."""
        channels, height, width = self.student.shape
        form = self.student.form
        return {
            "input": {
                "name": INPUT,
                "type": "float32",
                "layout": "NCHW",
                "shape": self.shape,
                "range": [0.0, 1.0],
                "colour": "RGB" if channels == 3 else f"{channels} channels",
            },
            "pixels": self.pixel_rule,
            "size": [height, width],
            "resize": {
                "rule": self.resize_rule,
                "crop_pct": form.crop_pct,
                "interpolation": form.interpolation,
            },
            "value_range": list(form.value_range) if form.value_range is not None else None,
            "normalization": {"inside": self.normalizes, "mean": self.mean, "std": self.std},
            "output": {
                "name": OUTPUT,
                "type": "float32",
                "shape": [self.shape[0], len(self.student.classes)],
                "meaning": "logits: softmax gives probabilities",
            },
            "precision": "int8" if self.int8 else "float32",
            "classes": list(self.student.classes),
            **({"exits": _exits(self.exits)} if self.exits is not None else {}),
        }

    def text(self) -> str:
        """The contract as JSON."""
        return json.dumps(self.plain(), ensure_ascii=False)


def _exits(exits: EarlyExits) -> dict[str, Any]:
    """The early exits of a file as plain values."""
    return {
        "output": {
            "name": EXIT,
            "type": "int64",
            "shape": [1],
            "meaning": "the number of the exit that predicted: its name stands in names",
        },
        "thresholds": [exits.policy.thresholds[number] for number in exits.running],
        "names": [*(exits.names[number] for number in exits.running), exits.names[-1]],
        "max_loss": exits.max_loss,
    }


def _short(values: list[float]) -> list[float]:
    """Numbers that were stored as float32, with as few digits as give the same float32.

    Example:
        >>> _short([0.48500001430511475])
        [0.485]
    """
    return [float(str(np.float32(value))) for value in values]
