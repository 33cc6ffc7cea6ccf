"""DSKD as a task of timm, for its train script or a loop of your own."""

import torch
from timm.task import TrainingTask
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import dskd


class DSKDTask(TrainingTask):
    """A task as timm's own: images and labels in, a loss and the student's logits out."""

    def __init__(self, student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
        super().__init__(device=images.device)
        self.trainable_module = dskd.Distiller(student, teacher, images, method="dskd")
        self.eval_model = student  # what timm validates and saves

    def prepare_distributed(self, device_ids: list[int] | None = None, **options) -> "DSKDTask":
        module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **options)
        self.trainable_module = module
        return self

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        output = self.trainable_module(input, target)
        return {"loss": output.objective, "output": output.logits, **output.losses}


if __name__ == "__main__":
    import timm
    from timm.optim import create_optimizer_v2

    images, labels = torch.randn(16, 3, 64, 64), torch.arange(16) % 4
    teacher = timm.create_model("resnet18", num_classes=4)  # load its trained weights here
    student = timm.create_model("mobilenetv3_small_050", num_classes=4)
    task = DSKDTask(student, teacher, images)
    optimizer = create_optimizer_v2(task.get_trainable_module(), "sgd", lr=0.01)
    for step in range(3):
        result = task(images, labels)
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        print(step, round(result["loss"].item(), 3))
