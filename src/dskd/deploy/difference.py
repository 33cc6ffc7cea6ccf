"""Compare the outputs of an exported file with those of the student."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dskd.deploy.early_exits import EarlyExits
from dskd.deploy.onnx_exits import exit_runner
from dskd.errors import InputError, first_line

_OFF = 2.0
"""A threshold that no confidence reaches."""


@torch.no_grad()
def exits_difference(exits: EarlyExits, path: Path, example: Tensor) -> float:
    """The largest relative difference of the logits of each exit, from those of the student.

    Each exit predicts in turn, by thresholds that the others do not reach.

    Args:
        exits: The exits.
        path: The exported file.
        example: An image, ``[1, C, H, W]``, from 0 to 1.

    Raises:
        InputError: ONNX Runtime does not run the file, or another exit predicts.
    """
    expected, found = exits.student.all_logits(example), []
    try:
        for number in range(len(expected)):
            thresholds = [_OFF if one != number else 0.0 for one in range(len(expected) - 1)]
            logits, exit_ = exit_runner(path, thresholds)(example.numpy())
            if exit_ != number:
                raise InputError(
                    f"exit {exit_} of the exported student predicts in place of {number}"
                )
            found.append(torch.from_numpy(logits))
    except InputError:
        raise
    except Exception as error:  # the runtime has its own types
        raise InputError(
            f"ONNX Runtime does not run the exported student: {first_line(error)}"
        ) from error
    pairs = zip(found, expected, strict=True)
    return torch.stack([relative_difference(a, b) for a, b in pairs]).max().item()


def relative_difference(found: Tensor, expected: Tensor) -> Tensor:
    """The largest difference, relative to the largest expected value; NaN if there is one.

    Example:
        >>> relative_difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])).item()
        0.5
    """
    return (found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
