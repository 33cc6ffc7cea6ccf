"""Learning from masks alone, from seeds alone, and from both with two decoders."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from dskd.data.loader import Batch
from dskd.engine.tasks.segmentation.base import SegmentationMethod, masked_batch
from dskd.engine.tasks.segmentation.loader import Supervision
from dskd.engine.tasks.segmentation.losses import (
    decoder_kl,
    partial_cross_entropy,
    pixel_cross_entropy,
    prediction_entropy,
)
from dskd.engine.tasks.segmentation.unet import UNetDecoder, init_convolution
from dskd.methods.base import LearnsFrom
from dskd.methods.contracts import Pair, StepOutput
from dskd.models.output import ModelOutput
from dskd.settings import Positive, Weight, checked


class Masks(SegmentationMethod):
    """One decoder learns from the masks: ``L = CE(z, y)``.

    Args:
        pair: The student.
        all_images: Read the masks of the training images that should have seeds only, too. This is
            the upper bound of mixed supervision.
    """

    @checked
    def __init__(self, pair: Pair, *, all_images: bool = False) -> None:
        super().__init__(pair)
        self.all_images = all_images

    @property
    def supervision(self) -> Supervision:
        """See `SegmentationMethod.supervision`."""
        return "all masks" if self.all_images else "masks"

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The loss of the masks."""
        logits = self.student(batch.images).logits
        return StepOutput({"ce": pixel_cross_entropy(logits, batch.labels)}, logits)


class Seeds(SegmentationMethod):
    """One decoder learns from the seeds of all images: ``L = pCE(z, s)``.

    The seeds lie in the foreground alone, so nothing says what the background is: the student
    learns to call every pixel foreground. This is the lower bound of mixed supervision.

    Args:
        pair: The student.
    """

    @checked
    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)

    @property
    def supervision(self) -> Supervision:
        """See `SegmentationMethod.supervision`."""
        return "seeds"

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The loss of the seeds."""
        logits = self.student(batch.images).logits
        seeds = masked_batch(batch).seeds_of
        return StepOutput({"seeds": partial_cross_entropy(logits, seeds)}, logits)


class Mixed(SegmentationMethod):
    """Decoder A learns from masks and teaches decoder B, which learns from seeds.

    ``L = ce CE(A) + seeds [pCE(B, full) + pCE(B, weak)] + kl T^2/2 KL(A || B) + entropy H(B)``.
    Both decoders read one encoder. A reads the images with masks, and so does the divergence. B
    reads all images, and so does its entropy. What is deployed is the encoder with B.

    Source: Dolz, Desrosiers, Ben Ayed, Teach me to segment with mixed supervision, IPMI 2021, arXiv
    2012.08051; Liu et al., Segmentation with mixed supervision, Medical Image Analysis 2022, arXiv
    2109.10902. The terms and the weight of the seeds are those of the first one's public training
    code, with the weights of the divergence and of the entropy that its authors chose. See
    `dskd.engine.tasks.segmentation.losses` for each term, and for where that code differs from
    the paper; the preset ``public-code`` follows the code. In that code, images with masks pass
    through the encoder more than once in a step, A reads all images, and the entropy counts the
    images with masks three times. Here each image passes and counts once, and A reads those with
    masks (*our choice*).

    Args:
        pair: The student, which becomes the encoder with B.
        ce: Weight of the masks.
        seeds: Weight of the seeds.
        kl: Weight of the divergence, by which A teaches B.
        entropy: Weight of B's entropy.
        temperature: T of the divergence.
        double_softmax: Whether the divergence takes the softmax of a softmax.
        reverse: Whether the divergence is KL(B || A).
        detach: Whether A gets no gradient from the divergence.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "public-code": {"double_softmax": True, "reverse": True, "detach": False}
    }
    learns_from: ClassVar[LearnsFrom] = "logits"

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        seeds: Weight = 0.1,
        kl: Weight = 50.0,
        entropy: Weight = 1.0,
        temperature: Positive = 2.0,
        double_softmax: bool = False,
        reverse: bool = False,
        detach: bool = True,
    ) -> None:
        super().__init__(pair)
        self.decoder_a = UNetDecoder(self.classes, self.net.width).apply(init_convolution)
        self.ce, self.seeds, self.kl, self.entropy = ce, seeds, kl, entropy
        self.temperature = temperature
        self.form = {"double_softmax": double_softmax, "reverse": reverse, "detach": detach}

    @property
    def supervision(self) -> Supervision:
        """See `SegmentationMethod.supervision`."""
        return "mixed"

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The four losses."""
        own = masked_batch(batch)
        full = own.masked
        maps = self.net.encoder(self.student.normalize(own.images))
        b, _ = self.net.decoder(maps)
        a, _ = self.decoder_a([one[:full] for one in maps])
        by_seeds = partial_cross_entropy(b[:full], own.seeds_of[:full])
        if full < len(b):
            by_seeds = by_seeds + partial_cross_entropy(b[full:], own.seeds_of[full:])
        losses = {
            "ce": self.ce * pixel_cross_entropy(a, own.labels[:full]),
            "seeds": self.seeds * by_seeds,
        }
        if self.kl:
            losses["kl"] = self.kl * decoder_kl(b[:full], a, self.temperature, **self.form)
        if self.entropy:
            losses["entropy"] = self.entropy * prediction_entropy(b)
        return StepOutput(losses, b)

    def classifier_logits(self, images: Tensor) -> dict[str, Tensor]:
        """The logits of B as ``student``, and those of A as ``masks``."""
        maps = self.net.encoder(self.student.normalize(images))
        return {"student": self.net.decoder(maps)[0], "masks": self.decoder_a(maps)[0]}
