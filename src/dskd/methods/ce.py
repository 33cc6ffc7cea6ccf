"""Training by labels alone: for teachers, and as the baseline."""

from __future__ import annotations

from dskd.data.loader import Batch
from dskd.losses.logits import ce as ce_loss
from dskd.methods.base import Method
from dskd.methods.contracts import Pair, StepOutput
from dskd.models.output import ModelOutput
from dskd.settings import Weight, checked


class CE(Method):
    """Cross-entropy with the labels: ``ce * CE(z_s, y)``.

    Args:
        pair: The student; no teacher is needed.
        ce: Weight of the labels.

    Example:
        >>> from dskd.models.spec import ModelSpec
        >>> from dskd.models.staged_model import StagedModel
        >>> from dskd.models.zoo import build
        >>> student = StagedModel(build("resnet8", num_classes=10), mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> bool(CE(Pair(student, ModelSpec(10, (), 64))).needs)
        False
    """

    needs_teacher = False

    @checked
    def __init__(self, pair: Pair, *, ce: Weight = 1.0) -> None:
        super().__init__(pair)
        self.ce = ce

    def forward(self, batch: Batch, teacher: ModelOutput | None = None) -> StepOutput:
        """The loss of the labels; the teacher is not read."""
        logits = self.student(batch.images).logits
        return StepOutput({"ce": self.ce * ce_loss(logits, batch.targets)}, logits)
