"""The inference cost of a model."""

from __future__ import annotations

import pytest
import torch

from dskd.deploy import latency
from dskd.models.catalog import ZOO
from dskd.report.cost import measure
from tests.builders import staged


def test_cost_is_the_zoo_s_and_latency_grows_with_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.05)
    threads = torch.get_num_threads()
    found = measure(staged("resnet8", classes=100).eval(), (3, 32, 32))
    assert (found.parameters, found.multiply_adds) == (
        ZOO["resnet8"].parameters,
        ZOO["resnet8"].multiply_adds,
    )
    assert found.latency_batch is not None
    assert 0 < found.latency < found.latency_batch
    assert torch.get_num_threads() == threads
