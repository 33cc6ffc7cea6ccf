"""DSKD in a LightningModule."""

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dskd


class DistilledClassifier(lightning.LightningModule):
    """A student that learns from a teacher by DSKD."""

    def __init__(self, student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.student = student
        self.distiller = dskd.Distiller(student, teacher, images, method="dskd")

    def on_train_epoch_start(self) -> None:
        self.distiller.epoch = self.current_epoch

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        output = self.distiller(*batch)
        self.log_dict({f"loss/{name}": loss.detach() for name, loss in output.losses.items()})
        return output.objective

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.student(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.distiller.parameters(), lr=0.05, momentum=0.9)


if __name__ == "__main__":
    digits = dskd.load_dataset("digits")
    scaled = [(split.images.float() / 255 - 0.5) / 0.25 for split in (digits.train, digits.test)]
    train = TensorDataset(scaled[0], digits.train.labels)
    test = TensorDataset(scaled[1], digits.test.labels)
    teacher = dskd.load_model("resnet20", num_classes=10, in_channels=1)  # untrained: load weights
    student = dskd.load_model("resnet8", num_classes=10, in_channels=1)
    trainer = lightning.Trainer(max_epochs=2, logger=False, enable_checkpointing=False)
    trainer.fit(
        DistilledClassifier(student, teacher, scaled[0][:16]),
        DataLoader(train, batch_size=64, shuffle=True),
        DataLoader(test, batch_size=64),
    )
    print({name: round(value.item(), 3) for name, value in trainer.callback_metrics.items()})
