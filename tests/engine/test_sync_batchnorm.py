"""Synchronised BatchNorms compute what the BatchNorms computed in whose place they are."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from dskd.engine.sync_batchnorm import check_norms, synchronized
from dskd.errors import InputError


class WithActivation(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Named(nn.BatchNorm2d):
    pass


def test_an_activation_inside_of_timm_s_batchnorm_stays() -> None:
    torch.manual_seed(0)
    net = timm.create_model("mobilenetv3_small_050", num_classes=4).eval()
    images = torch.randn(2, 3, 32, 32)
    check_norms(net)
    with torch.no_grad():
        expected = net(images)
        found = synchronized(net)
        assert any(isinstance(part, nn.SyncBatchNorm) for part in found.modules())
        torch.testing.assert_close(found(images), expected)


def test_a_norm_that_would_lose_its_own_work_is_refused() -> None:
    check_norms(nn.Sequential(nn.BatchNorm2d(3), Named(3), nn.SyncBatchNorm(3)))
    # timm's function would make a plain one of it.
    again = nn.Sequential(synchronized(nn.Sequential(BatchNormAct2d(3)))[0])
    with pytest.raises(InputError, match="0 is a SyncBatchNormAct, which computes more"):
        check_norms(again)
    with pytest.raises(InputError, match="0 is a WithActivation, which computes more than a Batch"):
        check_norms(nn.Sequential(WithActivation(3)))
