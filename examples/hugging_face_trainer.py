"""DSKD in a Trainer of Hugging Face transformers."""

import tempfile

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import dskd


class Distilled(nn.Module):
    """What a Trainer trains: it takes the columns of the data, and gives a loss and logits."""

    def __init__(self, student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.distiller = dskd.Distiller(student, teacher, images, method="dskd")
        self.student = student

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if not self.training:
            logits = self.student(pixel_values).logits
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
        output = self.distiller(pixel_values, labels)
        return {"loss": output.objective, "logits": output.logits}


class Digits(Dataset):
    """Rows as a Trainer takes them."""

    def __init__(self, split: dskd.Split) -> None:
        self.images, self.labels = (split.images.float() / 255 - 0.5) / 0.25, split.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def network(width: int) -> nn.Module:
    sizes = [width, 2 * width, 3 * width, 4 * width]
    config = ResNetConfig(num_channels=1, embedding_size=width, hidden_sizes=sizes, num_labels=10)
    config.depths, config.layer_type = [1, 1, 1, 1], "basic"
    return ResNetForImageClassification(config)


if __name__ == "__main__":
    data = dskd.load_dataset("digits")
    train, test = Digits(data.train), Digits(data.test)
    student, teacher = network(8), network(16)  # load the teacher's trained weights here
    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        num_train_epochs=1,
        per_device_train_batch_size=64,
        learning_rate=1e-2,
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    model = Distilled(student, teacher, train.images[:16])
    trainer = Trainer(model, arguments, train_dataset=train, eval_dataset=test)
    trainer.train()
    print(trainer.evaluate())
