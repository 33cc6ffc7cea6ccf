"""How the teacher's outputs for one sample lie in a record of the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dskd.errors import NonFiniteError
from dskd.methods.contracts import TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.teacher.record_file import Words


@dataclass(frozen=True)
class RecordPart:
    """One tensor of the teacher's outputs, as a record stores it.

    Attributes:
        shape: For one sample, as the model gives it: ``[K]``, ``[D]`` or ``[C, H, W]``.
        dtype: Of the teacher's output.
        start: Its first word in the record.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int

    @property
    def stored_dtype(self) -> torch.dtype:
        """The two-byte type in the record: bfloat16 for bfloat16, float16 for anything else."""
        return torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float16

    @property
    def words(self) -> int:
        """Its length in two-byte words."""
        return int(np.prod(self.shape))


class RecordLayout:
    """Packs teacher outputs into records: tensor after tensor, maps with the channels last.

    Args:
        output: Any output of the teacher, for types and shapes.
        needs: Which outputs are stored.

    Attributes:
        parts: The tensors of a record by name.
        words: Length of a record in two-byte words.
        needs: Which outputs are stored.
    """

    def __init__(self, output: ModelOutput, needs: TeacherNeeds) -> None:
        self.parts: dict[str, RecordPart] = {}
        self.words = 0
        for name, tensor in selected_outputs(output, needs).items():
            part = RecordPart(tuple(tensor.shape[1:]), tensor.dtype, self.words)
            self.parts[name] = part
            self.words += part.words
        self.needs = needs | TeacherNeeds()  # with its stages in order

    def describe(self) -> dict[str, Any]:
        """The parts of a record as plain values."""
        return {
            name: {
                "shape": list(part.shape),
                "type": str(part.stored_dtype).removeprefix("torch."),
            }
            for name, part in self.parts.items()
        }

    def pack(self, output: ModelOutput, words: int) -> Words:
        """Teacher outputs as records of ``words`` words, int16 ``[B, words]``.

        Raises:
            NonFiniteError: A number is not finite, or too large for the stored type.
        """
        packed = np.zeros((len(output.logits), words), np.int16)
        for name, tensor in selected_outputs(output, self.needs).items():
            part = self.parts[name]
            stored = tensor.to(part.stored_dtype)
            if not stored.isfinite().all():
                raise NonFiniteError(_not_storable(name, tensor))
            flat = (stored.permute(0, 2, 3, 1) if stored.dim() == 4 else stored).flatten(1)
            packed[:, part.start : part.start + part.words] = flat.view(torch.int16).cpu().numpy()
        return packed

    def unpack(self, words: Words, device: torch.device) -> ModelOutput:
        """Records as teacher outputs on a device, in the types in which the teacher gives them."""
        records = torch.from_numpy(words)
        if device.type == "cuda":
            records = records.pin_memory()  # else the host waits for the copy
        records = records.to(device, non_blocking=True)
        found: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            flat = records[:, part.start : part.start + part.words].view(part.stored_dtype)
            tensor = flat.to(part.dtype).contiguous()
            if len(part.shape) == 3:
                channels, height, width = part.shape
                tensor = tensor.view(-1, height, width, channels).permute(0, 3, 1, 2)
            found[name] = tensor
        empty = records.new_empty(0)  # a stage that is not stored keeps its place
        stages = [found.get(stage_name(i), empty) for i in range(max((-1, *self.needs.stages)) + 1)]
        logits = found.get("logits", empty)
        return ModelOutput(logits, tuple(stages), found.get("pooled"), found.get("last"))


def stage_name(index: int) -> str:
    """What a record calls a stage, counted from 0 here."""
    return f"stage {index + 1}"


def selected_outputs(output: ModelOutput, needs: TeacherNeeds) -> dict[str, Tensor]:
    """The tensors of an output that are needed, by name."""
    selected: dict[str, Tensor | None] = {"logits": output.logits} if needs.logits else {}
    selected |= {stage_name(index): output.stages[index] for index in needs.stages}
    if needs.pooled:
        selected["pooled"] = output.pooled
    if needs.last:
        selected["last"] = output.last
    return {name: tensor for name, tensor in selected.items() if tensor is not None}


def _not_storable(name: str, tensor: Tensor) -> str:
    if not tensor.isfinite().all():
        return f"the teacher's outputs ({name}) are not finite; give another teacher"
    return (
        f"the teacher's outputs ({name}) reach {tensor.abs().max().item():.3g}, more than float16 "
        "holds; take train.precision=bfloat16 or teacher.cache=none"
    )
