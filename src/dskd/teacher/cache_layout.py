"""How the teacher's outputs lie in a cache: each tensor in a record file of its own.

So methods that read different outputs of the same teacher share what both read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dskd.errors import NonFiniteError
from dskd.losses.feature_maps import pool_to
from dskd.methods.contracts import TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.settings import Precision
from dskd.teacher.record_file import CHECKSUM_BYTES, Indices, Mask, RecordFile, Words, require_room


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the teacher's outputs, as its records store it.

    A feature map is stored with its channels last.

    Attributes:
        name: As in messages, such as ``stage 2``.
        shape: For one sample, as the model gives it: ``[K]``, ``[D]`` or ``[C, H, W]``.
        dtype: Of the teacher's output.
        precision: Of the teacher's forward pass.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    precision: Precision

    @property
    def stored_dtype(self) -> torch.dtype:
        """The two-byte type in the record: bfloat16 if the teacher computes in it, else float16.

        Which outputs autocast leaves in float32 depends on the device. The records do not.
        """
        if self.precision == "bfloat16" or self.dtype == torch.bfloat16:
            return torch.bfloat16
        return torch.float16

    @property
    def words(self) -> int:
        """Its length in two-byte words."""
        return int(np.prod(self.shape))

    def describe(self) -> dict[str, Any]:
        """The tensor as plain values."""
        stored = str(self.stored_dtype).removeprefix("torch.")
        return {"tensor": self.name, "shape": list(self.shape), "type": stored}

    def pack(self, tensor: Tensor, words: int) -> Words:
        """Outputs ``[B, ...]`` as records of ``words`` words, int16 ``[B, words]``.

        Raises:
            NonFiniteError: A number is not finite, or too large for the stored type.
        """
        stored = tensor.to(self.stored_dtype)
        if not stored.isfinite().all():
            raise NonFiniteError(_not_storable(self.name, tensor))
        packed = np.zeros((len(tensor), words), np.int16)
        flat = (stored.permute(0, 2, 3, 1) if stored.dim() == 4 else stored).flatten(1)
        packed[:, : self.words] = flat.view(torch.int16).cpu().numpy()
        return packed

    def unpack(self, words: Words, device: torch.device) -> Tensor:
        """Records as outputs on a device, in the type in which the teacher gives them."""
        records = torch.from_numpy(words)
        if device.type == "cuda":
            records = records.pin_memory()  # else the host waits for the copy
        records = records.to(device, non_blocking=True)
        tensor = records[:, : self.words].view(self.stored_dtype).to(self.dtype).contiguous()
        if len(self.shape) == 3:
            channels, height, width = self.shape
            tensor = tensor.view(-1, height, width, channels).permute(0, 3, 1, 2)
        return tensor


class OutputRecords:
    """The record files of a teacher's outputs.

    Args:
        path: The folder of all tensors of this teacher. It need not exist yet.
        facts: What the outputs depend on, as plain values.
        count: Number of records of each tensor.
        output: Any output of the teacher, for types and shapes.
        needs: Which tensors are used.
        precision: Of the teacher's forward pass.

    Attributes:
        path: The folder.
        tensors: The tensors by name.
        files: The record file of each tensor.
        needs: Which tensors are used.
        size: Bytes of all files when all records exist.
        bytes_a_record: Bytes of one record of every tensor, with the checksums.
    """

    def __init__(
        self,
        path: Path,
        facts: Mapping[str, Any],
        count: int,
        output: ModelOutput,
        needs: TeacherNeeds,
        precision: Precision,
    ) -> None:
        self.path = path
        self.needs = needs | TeacherNeeds()  # with its stages in order
        self.tensors = {
            name: OutputTensor(name, tuple(tensor.shape[1:]), tensor.dtype, precision)
            for name, tensor in selected_outputs(output, needs).items()
        }
        whole = selected_outputs(output, replace(needs, map_size=None))
        self.files = {
            name: RecordFile(
                path / _folder_name(tensor, tuple(whole[name].shape[1:])),
                {**facts, **tensor.describe()},
                count,
                tensor.words,
            )
            for name, tensor in self.tensors.items()
        }
        self.size = sum(file.size for file in self.files.values())
        self.bytes_a_record = sum(2 * file.words + CHECKSUM_BYTES for file in self.files.values())

    def require_room(self) -> None:
        """Refuses records that the disk cannot hold once all of them exist.

        Raises:
            InputError: There is too little space; the message names both sizes.
        """
        require_room(self.path, self.missing_bytes())

    def require_writable(self) -> None:
        """Refuses files that lack records and cannot be written to. Leaves no file behind.

        Raises:
            InputError: One cannot be written to.
        """
        for file in self.files.values():
            file.require_writable()

    def missing_bytes(self) -> int:
        """Bytes that still need disk space."""
        return sum(file.missing_bytes() for file in self.files.values())

    def load(self) -> None:
        """Verifies and maps the files that exist; writes nothing.

        Raises:
            InputError: A file is damaged or holds something else.
        """
        for name in self.existing():
            self.files[name].load()

    def existing(self) -> list[str]:
        """The names of the tensors that have a record file."""
        return [name for name, file in self.files.items() if file.path.is_dir()]

    def open(self) -> None:
        """Makes the files that do not exist, and verifies all of them.

        Raises:
            InputError: The disk cannot hold them, or one is damaged or holds something else.
        """
        self.require_room()
        for file in self.files.values():
            file.open()

    def filled(self) -> float:
        """Share of the records that exist."""
        return float(np.mean([file.filled() for file in self.files.values()]))

    def read(
        self, numbers: Indices, device: torch.device, needs: TeacherNeeds
    ) -> tuple[ModelOutput, Mask]:
        """Reads records by number.

        Args:
            numbers: int64 ``[B]``.
            device: The device of the outputs.
            needs: Which outputs are read, of those that are used.

        Returns:
            The outputs, and bool ``[B]``: whether all of these tensors of a sample exist. The
            outputs of a sample for which one does not are arbitrary.
        """
        tensors, exists = {}, np.ones(len(numbers), bool)
        for name in filter(self.files.__contains__, needed_names(needs)):
            tensors[name], there = self.read_tensor(name, numbers, device)
            exists &= there
        empty = torch.empty(0, dtype=torch.int16, device=device)  # keeps the place of a stage
        last = max((-1, *self.needs.stages))
        stages = tuple(tensors.get(stage_name(index), empty) for index in range(last + 1))
        logits = tensors.get("logits", empty)
        return ModelOutput(logits, stages, tensors.get("pooled"), tensors.get("last")), exists

    def read_tensor(self, name: str, numbers: Indices, device: torch.device) -> tuple[Tensor, Mask]:
        """Reads the records of one tensor: its values, and for which samples they exist."""
        words, there = self.files[name].read(numbers)
        return self.tensors[name].unpack(words, device), there

    def pack(self, output: ModelOutput) -> dict[str, Words]:
        """Teacher outputs as records of each tensor.

        Raises:
            NonFiniteError: A number is not finite, or too large for the stored type.
        """
        return {
            name: self.tensors[name].pack(tensor, self.files[name].words)
            for name, tensor in selected_outputs(output, self.needs).items()
        }

    def add(self, numbers: Indices, packed: Mapping[str, Words]) -> None:
        """Adds records that `pack` made; existing ones stay as they are.

        Raises:
            OSError: The disk is full.
        """
        for name, words in packed.items():
            self.files[name].add(numbers, words)


def stage_name(index: int) -> str:
    """The name of a stage in a cache; ``index`` counts from 0."""
    return f"stage {index + 1}"


def _folder_name(tensor: OutputTensor, whole: tuple[int, ...]) -> str:
    """The folder of a tensor's records; a pooled map has another than the map as it was."""
    name = tensor.name.replace(" ", "-")
    return name if tensor.shape == whole else f"{name}-{tensor.shape[1]}x{tensor.shape[2]}"


def needed_names(needs: TeacherNeeds) -> list[str]:
    """The names of the tensors that are needed.

    Example:
        >>> needed_names(TeacherNeeds(logits=True, stages=(0, 2), pooled=True))
        ['logits', 'stage 1', 'stage 3', 'pooled']
    """
    names = ["logits"] * needs.logits + [stage_name(index) for index in needs.stages]
    return names + ["pooled"] * needs.pooled + ["last"] * needs.last


def selected_outputs(output: ModelOutput, needs: TeacherNeeds) -> dict[str, Tensor]:
    """The tensors of an output that are needed, by name; larger maps of stages are pooled."""
    selected: dict[str, Tensor | None] = {"logits": output.logits} if needs.logits else {}
    for index in needs.stages:
        stage, side = output.stages[index], needs.map_size
        selected[stage_name(index)] = stage if side is None else pool_to(stage, side, side)
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
