"""One for all: branches turn every stage into predictions, which any teacher can supervise."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.checks import check_choice, check_labels, check_number, check_temperature
from dskd.losses.logits import ce as cross_entropy
from dskd.losses.logits import check_logits
from dskd.losses.precision import in_full_precision
from dskd.methods.base import TARGET_SPLIT, LearnsFrom, Method
from dskd.methods.checks import check_classes, how_to_name, supervised_stages
from dskd.methods.contracts import Pair, StepOutput, TeacherNeeds, require_outputs
from dskd.methods.ofa_branches import ConvolutionBranch, TokenBranch
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec
from dskd.settings import Count, Positive, Weight, checked

Form = Literal["paper", "code"]
"""Which probabilities of the teacher the exponent applies to."""
BranchKind = Literal["auto", "convolution", "transformer"]
"""The form of the branches."""


@in_full_precision
def ofa_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    gamma: float = 1.0,
    temperature: float = 1.0,
    form: Form = "paper",
) -> Tensor:
    """One for all: ``mean_b -(((1 + p_y)^gamma - 1) log q_y + sum_{c != y} p_c log q_c)``.

    ``p`` and ``q`` are the softmax of the teacher's and the student's logits at T. With gamma above
    1, the label has more weight if the teacher is more certain of it. 1 is subtracted from the
    label's factor because the cross-entropy with the labels is a term of its own. With gamma = 1
    the loss is the cross-entropy with the teacher's predictions. There is no factor ``T^2``. For
    the teacher's own logits the loss is not 0.

    Source: Hao, Guo, Han, Tang, Hu, Wang, Xu, One-for-All: Bridge the Gap Between Heterogeneous
    Architectures in Knowledge Distillation, NeurIPS 2023, arXiv 2310.19444, its adaptive target
    enhancement. The exponent is the authors' ``eps``. In their code it applies to the other classes
    too, ``p_c^gamma`` (``form=code``).

    Args:
        student_logits: ``[B, K]``.
        teacher_logits: ``[B, K]``.
        labels: int64, ``[B]``.
        gamma: The exponent, 0 or more.
        temperature: T, above 0.
        form: ``paper``: the exponent applies to the label alone. ``code``: to all classes.

    Raises:
        InputError: A number is out of range, ``form`` does not exist, the shapes do not fit, or, on
            the CPU, a label is not one of the classes.

    Example:
        >>> logits = torch.zeros(1, 2)
        >>> round(ofa_loss(logits, logits, torch.tensor([0]), gamma=2.0).item(), 4)
        1.213
    """
    check_choice("form", form, get_args(Form))
    check_number("gamma", gamma, least=0)
    check_temperature(temperature)
    check_logits(student_logits, teacher_logits)
    check_labels(labels, student_logits)
    label = labels[:, None]
    p = F.softmax(teacher_logits / temperature, dim=1)
    log_q = F.log_softmax(student_logits / temperature, dim=1)
    enhanced = (1 + p.gather(1, label)) ** gamma - 1
    others = p**gamma if form == "code" else p
    return -(others.scatter(1, label, enhanced) * log_q).sum(1).mean()


class OFA(Method):
    """Predictions at every stage: ``ce * CE + kd * L(z_s) + branch * sum_l L(z_l)``.

    A branch on every stage of the student, the last included, computes logits ``z_l``. The teacher
    supervises them by its predictions alone, so that student and teacher may be of any architecture
    (CNN, vision transformer, MLP). L raises the weight of the label where the teacher is sure of
    it, see `dskd.losses.ofa`. The branches are trained with the student and never deployed.

    A stage of a CNN has a branch of separable convolutions; a stage of a vision transformer or MLP
    has one of transformer blocks (`dskd.methods.ofa_branches`). For a student that is a transformer
    or an MLP, name four blocks as stages; the last one must be the final block.

    Source: Hao, Guo, Han, Tang, Hu, Wang, Xu, One-for-All: Bridge the Gap Between Heterogeneous
    Architectures in Knowledge Distillation, NeurIPS 2023, arXiv 2310.19444. ``literature`` has the
    values of the authors' code for CIFAR-100, ``imagenet`` those for ImageNet, in the form of their
    code. We did not have the paper's full text, so we could not check that ``form=paper``, where
    the exponent applies to the label alone, is the paper's form. With ``gamma=1`` the two forms are
    one.

    *Our choice*: their models have four stages, here any number. Their transformer branches compute
    the logits from the class token. Our stages have patch tokens only, so our branches average
    these. The authors do so for models without a class token.

    Args:
        pair: Student and teacher, of the same classes. The student has a stage.
        ce: Weight of the labels.
        kd: Weight of L for the student's own logits.
        branch: Weight of L for the branches; the losses of all branches are added.
        gamma: Exponent of L; the label's weight rises with it.
        branch_gammas: Exponents of the branches, shallow to deep; None for ``gamma`` in all.
        temperature: T of the predictions.
        form: ``paper``: the exponent applies to the label alone. ``code``: to all classes.
        supervise: Which stages have a branch, from 1; None for all.
        kind: ``convolution`` or ``transformer`` branches. ``auto`` takes ``transformer`` if the
            student has prefix tokens, as in timm's vision transformers, or if all of its stages
            have the same size and width.

    Raises:
        InputError: A setting is out of range, the student has no stages, ``supervise`` names one
            that is not there, or there is not one exponent for each branch.
    """

    needs = TeacherNeeds(logits=True)
    learns_from: ClassVar[LearnsFrom] = "shallow stages"
    presets: ClassVar = {
        "literature": {"ce": 1.0, "kd": 1.0, "branch": 1.0, "gamma": 1.0, "temperature": 1.0},
        "imagenet": {
            "ce": 1.0,
            "kd": 1.0,
            "branch": 1.0,
            "gamma": 1.5,
            "temperature": 1.0,
            "form": "code",
        },
    }

    hard_labels = TARGET_SPLIT

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        branch: Weight = 1.0,
        gamma: Positive = 1.0,
        branch_gammas: list[Positive] | None = None,
        temperature: Positive = 1.0,
        form: Form = "paper",
        supervise: list[Count] | None = None,
        kind: BranchKind = "auto",
    ) -> None:
        super().__init__(pair)
        teacher, student = check_classes(pair), pair.student_spec
        self.ce, self.kd, self.branch, self.gamma = ce, kd, branch, gamma
        self.temperature, self.form = temperature, form
        self.supervised = _supervised(student, supervise)
        same = [gamma] * len(self.supervised)
        self.gammas = branch_gammas if branch_gammas is not None else same
        if len(self.gammas) != len(self.supervised):
            raise InputError(
                f"branch_gammas needs one exponent for each of the {len(self.supervised)} branches,"
                f" got {len(self.gammas)}"
            )
        if kind == "auto":
            kind = "transformer" if _has_tokens(pair) else "convolution"
        stages, width = student.stages, _width(student)
        branches: list[nn.Module] = []
        for stage in self.supervised:
            after = len(stages) - 1 - stage
            if kind == "transformer":
                branches.append(TokenBranch(stages[stage], width, max(after, 1), student.classes))
            else:
                target = max(width, _width(teacher))
                branches.append(ConvolutionBranch(stages[stage], target, after, student.classes))
        self.branches = nn.ModuleList(branches)

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The losses of the labels, of the student's logits and of the branches."""
        taught = require_outputs(teacher).logits
        student: ModelOutput = self.student(batch.images)

        def loss(logits: Tensor, gamma: float) -> Tensor:
            return ofa_loss(logits, taught, batch.labels, gamma, self.temperature, self.form)

        by_branches = [
            loss(logits, gamma)
            for logits, gamma in zip(self._branch_logits(student), self.gammas, strict=True)
        ]
        losses = {
            "ce": self.ce * cross_entropy(student.logits, batch.targets),
            "kd": self.kd * loss(student.logits, self.gamma),
            "ofa": self.branch * torch.stack(by_branches).sum(),
        }
        return StepOutput(losses, student.logits)

    def classifier_logits(self, images: Tensor) -> dict[str, Tensor]:
        """The student's logits, and those of the branches as ``stage1``, ``stage2`` and so on."""
        student: ModelOutput = self.student(images)
        names = [f"stage{stage + 1}" for stage in self.supervised]
        branches = self._branch_logits(student)
        return {"student": student.logits} | dict(zip(names, branches, strict=True))

    def _branch_logits(self, student: ModelOutput) -> list[Tensor]:
        return [
            branch(student.stages[stage])
            for stage, branch in zip(self.supervised, self.branches, strict=True)
        ]


def _supervised(student: ModelSpec, supervise: list[int] | None) -> list[int]:
    """The stages that have a branch, from 0."""
    if not student.stages:
        raise InputError(
            "ofa puts branches on the student's stages, and the student has none; name them with "
            f"{how_to_name('student', student, 'a,b')}"
        )
    return supervised_stages(len(student.stages), supervise)


def _has_tokens(pair: Pair) -> bool:
    """Whether the student's stages are grids of tokens."""
    stages = pair.student_spec.stages
    shapes = {(stage.channels, stage.height, stage.width) for stage in stages}
    return pair.student.prefix_tokens is not None or (len(stages) > 1 and len(shapes) == 1)


def _width(spec: ModelSpec) -> int:
    """The length of a model's vector before its classifier, or of its last map; 0 without both."""
    last = spec.last.channels if spec.last is not None else 0
    return spec.pooled if spec.pooled is not None else last
