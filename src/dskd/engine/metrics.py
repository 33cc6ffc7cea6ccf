"""Mean losses and accuracy of an epoch's steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from dskd.data.loader import Batch
from dskd.methods.contracts import StepOutput
from dskd.runtime import distributed


class EpochMetrics:
    """Means over the samples of an epoch. Sums stay on the device; each process sums its own.

    Attributes:
        data_seconds: Time spent waiting for batches.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.sums: Tensor | None = None
        self.num_samples = 0
        self.data_seconds = 0.0

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, of which each adds the time until it comes to ``data_seconds``."""
        start = time.perf_counter()
        for batch in batches:
            self.data_seconds += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    def add(self, batch: Batch, output: StepOutput) -> None:
        """Adds a step."""
        learns_labels = batch.kinds is None or batch.kinds[0] > 0
        hits = batch.hits(output.logits)
        if batch.kinds is not None and learns_labels:
            hits = hits * batch.label_scale  # no class is that of an image without a label
        values = {
            "train_loss": output.objective,
            **({"train_accuracy": 100 * hits} if learns_labels else {}),
            **{f"loss/{name}": loss for name, loss in output.losses.items()},
            **output.metrics,
        }
        # Stacked first: on a GPU each operation costs the host more than the device.
        totals = torch.stack([v.detach() for v in values.values()]).double() * len(batch.labels)
        self.sums = totals if self.sums is None else self.sums + totals
        self.names = tuple(values)
        self.num_samples += len(batch.labels)

    def means(self) -> dict[str, float]:
        """The mean of each value so far, over the samples of all processes."""
        if self.sums is None:
            return {}
        num_samples = sum(distributed.all_gather(self.num_samples))
        totals = distributed.all_reduce_sum(self.sums).tolist()
        return {name: total / num_samples for name, total in zip(self.names, totals, strict=True)}

    def mean(self, name: str) -> float:
        """The mean of one value so far, over the samples of this process."""
        assert self.sums is not None, "no step was added"
        return self.sums[self.names.index(name)].item() / self.num_samples

    def state(self) -> dict[str, Any]:
        """The sums so far, on the CPU."""
        sums = None if self.sums is None else self.sums.cpu()
        numbers = {"num_samples": self.num_samples, "data_seconds": self.data_seconds}
        return {"names": self.names, "sums": sums, **numbers}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Restores a saved state."""
        sums = state["sums"]
        self.names, self.num_samples = tuple(state["names"]), state["num_samples"]
        self.data_seconds = float(state["data_seconds"])
        self.sums = None if sums is None else sums.to(device)
