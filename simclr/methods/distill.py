"""Distillation: predict what a fine-tuned network says about the same views (SimCLR v2, arXiv 2006.10029)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from simclr.errors import UserError
from simclr.methods.base import Method, single
from simclr.settings import Section


class DistillConfig(Section):
    """Settings of distillation."""

    # A run with a fine-tuned network, kept by `simclr eval --finetune 0.1 --keep`, or the file of such a network. The
    # suite appends @ and the digest of its tensors, and checks it.
    teacher: str | None = Field(None, min_length=1)
    temperature: float = Field(1.0, ge=0.01, le=1000)  # temperature of the softmax of both networks
    # Weight of the teacher. The rest weights the cross-entropy on the images that have labels (SimCLR v2 paper, Eq. 3).
    weight: float = Field(1.0, ge=0, le=1)

    def effective_settings(self) -> dict[str, Any]:
        """Of the teacher, only the digest counts, once it is known."""
        return super().effective_settings() | {"teacher": self.teacher and self.teacher.rpartition("@")[2]}


class Distill(Method):
    """The student's z are logits, which approach the teacher's (Eq. 2 there). The teacher has seen labels."""

    section_name = "distill"
    section = DistillConfig
    loss_label = "distillation loss"
    figures = ("agreement",)
    reads_labels = True
    takes_local = False
    takes_teacher = True
    settings: DistillConfig
    teacher: nn.Module
    classes: tuple[str, ...]  # that the teacher knows

    def set_teacher(self, teacher: nn.Module, classes: Sequence[str]) -> None:
        """Give it the network (images -> N x classes) that it learns from, which is never trained."""
        if (count := len(classes)) != self.network.z_width:
            raise UserError(
                f"the teacher knows {count} classes, but the network has {self.network.z_width} outputs: set "
                f"model.out_dim to {count}, and model.head to linear, mlp or mlp3"
            )
        self.teacher, self.classes = teacher.requires_grad_(False), tuple(classes)

    def train(self, mode: bool = True) -> Self:
        """As for any module, but the teacher always stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def own_state(self) -> dict[str, Any]:
        """As for any method, without the teacher, which never changes and has a file of its own."""
        return {name: value for name, value in super().own_state().items() if not name.startswith("teacher.")}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restore what `own_state` returned."""
        super().load_own_state(self.teacher.state_dict(prefix="teacher.") | state)

    def embed(self, views: Tensor) -> Tensor:
        """Logits of the student for all views, and of the teacher for the same views (2V x n x classes)."""
        with torch.no_grad():
            targets = self.on_views(self.teacher, views)
        return torch.cat([self.project(self.network, views), targets])

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The cross-entropy of both networks' predictions, and how often they agree on the class."""
        student, teacher = (logits.flatten(0, 1) for logits in single(embeddings).chunk(2))
        temperature, weight = self.settings.temperature, self.settings.weight
        targets = (teacher.detach() / temperature).softmax(1)
        loss = weight * F.cross_entropy(student / temperature, targets)
        if weight < 1:
            classes = labels.repeat(len(embeddings) // 2)
            known = (classes >= 0).sum().clamp(min=1)
            loss = loss + (1 - weight) * F.cross_entropy(student, classes, ignore_index=-1, reduction="sum") / known
        agreement = (student.detach().argmax(1) == teacher.argmax(1)).to(student.dtype).mean()
        return loss, agreement.view(1)

    def check_labels(self, labels: Tensor, classes: Sequence[str]) -> None:
        """Raise UserError if it would train on labels, and there are none, or their classes are not the teacher's."""
        if (weight := self.settings.weight) == 1:
            return
        if int(labels.max()) < 0:
            raise UserError(
                f"distill.weight = {weight:g} also learns from labels, but no training image has one: set it to 1"
            )
        if classes and tuple(classes) != self.classes:
            theirs, own = (", ".join(map(repr, names[:5])) for names in (self.classes, tuple(classes)))
            raise UserError(
                f"distill.weight = {weight:g} also learns from labels, but the teacher knows other classes than the "
                f"images have ({len(self.classes)}: {theirs}; {len(classes)}: {own}): set it to 1"
            )
