"""Trains a strong teacher on a split: ``python -m evidence.strong_teacher FOLDER OUT``.

FOLDER holds ``train/<class>`` and ``val/<class>``, as `evidence.prepare` writes them. The teacher
is trained with random crops, flips, TrivialAugment, mixup and CutMix
(docs/results/protocol-first.md). OUT gets ``student.safetensors``, which ``teacher.checkpoint``
takes, and ``result.json``. The same command continues a training that was stopped, and gives the
same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from dskd.data import Dataset, load_dataset
from dskd.models.zoo import build
from dskd.storage.atomic import replace_file, replacing
from dskd.storage.weights import write_weights

BATCH_SIZE, LR, WEIGHT_DECAY, MIXUP_ALPHA = 128, 0.1, 5e-4, 0.2
EVALUATED = 10
"""Epochs between two lines of the log. The result has the accuracy after the last epoch."""


class StrongTeacher:
    """A network, its optimizer and its epoch; each epoch draws from a seed of its own.

    Args:
        data: The images.
        name: A network of the zoo.
        epochs: Length of the cosine schedule.
        seed: Seed of the weights and of all augmentation.
    """

    def __init__(self, data: Dataset, name: str, epochs: int, seed: int) -> None:
        torch.manual_seed(seed)
        classes = len(data.classes)
        self.data, self.epochs, self.seed, self.epoch = data, epochs, seed, 0
        self.network = build(name, num_classes=classes, in_channels=data.shape[0])
        self.network.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), LR, 0.9, nesterov=True, weight_decay=WEIGHT_DECAY
        )
        self.augment = v2.Compose(
            [
                v2.RandomCrop(data.shape[1:], padding=4),
                v2.RandomHorizontalFlip(),
                v2.TrivialAugmentWide(),
            ]
        )
        self.mix = v2.RandomChoice(
            [v2.MixUp(alpha=MIXUP_ALPHA, num_classes=classes), v2.CutMix(num_classes=classes)]
        )
        self.mean = torch.tensor(data.mean).view(-1, 1, 1)
        self.std = torch.tensor(data.std).view(-1, 1, 1)

    def logits(self, images: Tensor) -> Tensor:
        """The logits of uint8 images, or of mixed ones between 0 and 255."""
        pixels = ((images.float() / 255 - self.mean) / self.std).to(
            memory_format=torch.channels_last
        )
        logits: Tensor = self.network(pixels)
        return logits

    def train_epoch(self) -> None:
        """Trains for one epoch."""
        torch.manual_seed((self.seed + 1) * 100_000 + self.epoch)
        self.network.train()
        images, labels = self.data.train.images, self.data.train.labels
        batches = torch.split(torch.randperm(len(labels)), BATCH_SIZE)
        for step, rows in enumerate(batches):
            done = (self.epoch + step / len(batches)) / self.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = LR * (1 + math.cos(math.pi * done)) / 2
            augmented = torch.stack([self.augment(image) for image in images[rows]])
            mixed, targets = self.mix(augmented.float(), labels[rows])
            loss = F.cross_entropy(self.logits(mixed), targets)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
        self.epoch += 1

    @torch.no_grad()
    def accuracy(self) -> float:
        """Top-1 accuracy on the test images, in percent."""
        self.network.eval()
        test = self.data.test
        found = torch.cat(
            [self.logits(images).argmax(1) for images in torch.split(test.images, 500)]
        )
        return 100 * (found == test.labels).double().mean().item()

    def save(self, path: Path) -> None:
        """Writes the whole state."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
        }
        with replacing(path) as file:
            torch.save(state, file)

    def load(self, path: Path) -> None:
        """Reads what `save` wrote."""
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]


def train(folder: Path, out: Path, name: str, epochs: int, seed: int) -> None:
    """Trains the teacher, or continues its training. A finished one stays as it is.

    Args:
        folder: The image folder of the split.
        out: The folder of the teacher.
        name: A network of the zoo.
        epochs: Length of the training.
        seed: Seed of the weights and of all augmentation.
    """
    if (out / "result.json").is_file():
        return
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = out / "checkpoint.pt", out / "metrics.jsonl"
    teacher = StrongTeacher(load_dataset("folder", root=folder, size=32), name, epochs, seed)
    if checkpoint.exists():
        teacher.load(checkpoint)
    while teacher.epoch < epochs:
        teacher.train_epoch()
        teacher.save(checkpoint)
        if teacher.epoch % EVALUATED == 0:
            row = {"epoch": teacher.epoch, "test_accuracy": round(teacher.accuracy(), 4)}
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
    replace_file(out / "student.safetensors", write_weights(teacher.network, {}))
    result = {
        "model": name,
        "epochs": epochs,
        "seed": seed,
        "test_accuracy": teacher.accuracy(),
        "parameters": sum(weight.numel() for weight in teacher.network.parameters()),
    }
    replace_file(out / "result.json", f"{json.dumps(result, indent=1)}\n".encode())


def main() -> None:
    """Trains the teacher of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="wrn_40_2")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    train(chosen.folder, chosen.out, chosen.model, chosen.epochs, chosen.seed)


if __name__ == "__main__":
    main()
