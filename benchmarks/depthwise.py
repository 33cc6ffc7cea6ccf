"""Times training steps in float32 and bfloat16: ``python benchmarks/depthwise.py [NET=SIZE...]``.

The networks have depthwise convolutions, unless others are given, as in ``resnet8=32``. Each takes
a step in float32, under torch's own autocast to bfloat16, and under that of this package, in turns,
on one thread. Prints the median CPU time of each as a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import product

import timm
import torch
from torch import nn

from dskd.models.zoo import build
from dskd.runtime.device import autocast

NETWORKS = {
    "MobileNetV2": 32,
    "ShuffleV2": 32,
    "timm/mobilenetv3_small_050": 128,
    "timm/mobilenetv4_conv_small": 128,
    "timm/efficientnet_b0": 128,
    "timm/convnext_atto": 128,
}
"""Networks and the size of their images."""
BATCH = 64
CPU = torch.device("cpu")
PRECISIONS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "float32": nullcontext,
    "torch's bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "train.precision=bfloat16": lambda: autocast(CPU, "bfloat16"),
}


def stepper(name: str, size: int, precision: str) -> Callable[[], float]:
    """A training step on noise that returns its CPU time in seconds."""
    torch.manual_seed(0)
    kind, _, own = name.rpartition("/")
    net: nn.Module = timm.create_model(own, num_classes=10) if kind else build(own, num_classes=10)
    net = net.to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)

    def step() -> float:
        start = time.process_time()
        with PRECISIONS[precision]():
            logits = net(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - start

    return step


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NET=SIZE")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each that count")
    chosen = parser.parse_args()
    given = {name: int(size) for name, size in (one.split("=") for one in chosen.networks)}
    torch.set_num_threads(1)
    print("| network | image size |", " | ".join(f"{name}, ms" for name in PRECISIONS), "|")
    print("|---|" + "---:|" * (1 + len(PRECISIONS)))
    for name, size in (given or NETWORKS).items():
        steps = {precision: stepper(name, size, precision) for precision in PRECISIONS}
        times: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
        for number, precision in product(range(1 + chosen.rounds), PRECISIONS):
            seconds = steps[precision]()
            if number:  # the first step allocates memory
                times[precision].append(seconds)
        found = [f"{1000 * statistics.median(times[one]):.0f}" for one in PRECISIONS]
        print(f"| `{name}` | {size} |", " | ".join(found), "|", flush=True)


if __name__ == "__main__":
    main()
