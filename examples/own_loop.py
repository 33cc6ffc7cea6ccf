"""DSKD in a training loop of your own."""

import torch
from torch.utils.data import DataLoader, TensorDataset

import dskd

# Your data and your models: any tensors, any modules. Here, digits and networks of the package.
digits = dskd.load_dataset("digits").train
images, labels = (digits.images.float() / 255 - 0.5) / 0.25, digits.labels
loader = DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True)
teacher = dskd.load_model("resnet20", num_classes=10, in_channels=1)  # untrained: load weights
student = dskd.load_model("resnet8", num_classes=10, in_channels=1)

distiller = dskd.Distiller(student, teacher, images[:16], method="dskd")
optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05, momentum=0.9)
for epoch in range(2):
    distiller.epoch = epoch
    for batch, targets in loader:
        output = distiller(batch, targets)
        optimizer.zero_grad()
        output.objective.backward()
        optimizer.step()
    print(epoch, {name: round(loss.item(), 3) for name, loss in output.losses.items()})
torch.save(student.state_dict(), "student.pth")  # the plain student, without branches
