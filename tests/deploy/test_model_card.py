"""The model card states only what was measured of the weights that it describes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dskd
from dskd.deploy.formats import FORMATS
from dskd.deploy.input_contract import InputContract
from dskd.deploy.latency import Latency
from dskd.deploy.measure import Measurements
from dskd.deploy.model_card import CardParts, RunFacts, model_card
from dskd.deploy.student import Which


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a validation split."""
    out = tmp_path_factory.mktemp("card") / "run"
    data = {"name": "digits", "fraction": 0.1}
    train = {"epochs": 1, "ema": 0.9}
    return dskd.train("resnet8", data=data, train=train, out=out, verbose=0).path


def parts(run: Path, which: Which = "last", *, int8: bool = False, **more: Any) -> CardParts:
    contract = InputContract(dskd.load_deployed(run, which), None, normalizes=True, int8=int8)
    facts = more.pop("facts", RunFacts.read(run))
    return CardParts(contract, "print()", "student.onnx", "ONNX Runtime", facts, **more)


def rounded(facts: RunFacts) -> RunFacts:
    train = facts.recipe.train.model_copy(update={"int8_rounding": True})
    return replace(facts, recipe=facts.recipe.changed(train=train))


def test_a_file_that_computes_as_the_run_did_has_its_accuracy(run: Path) -> None:
    card, facts = model_card(parts(run)), RunFacts.read(run)
    (result,) = card.data.eval_results
    assert result.metric_value == round(facts.result["test_accuracy"] / 100, 6)
    assert f"in its run: {facts.result['test_accuracy']:.2f} %" in card.text


@pytest.mark.parametrize("change", ["int8", "qat", "rounded"])
def test_a_file_that_computes_otherwise_has_no_accuracy_unless_measured(
    run: Path, change: str
) -> None:
    options: dict[str, dict[str, Any]] = {
        "int8": {"int8": True},
        "qat": {"qat": 3},
        "rounded": {"facts": rounded(RunFacts.read(run))},
    }
    card = model_card(parts(run, **options[change]))
    assert not card.data.eval_results
    assert "in its run" not in card.text
    assert "- Accuracy of this file: not measured" in card.text


def test_the_card_names_the_weights(run: Path) -> None:
    assert "- Weights: of the last epoch\n" in model_card(parts(run)).text
    assert "- Weights: the moving average (`train.ema`)" in model_card(parts(run, "ema")).text
    best = model_card(parts(run, "best"))
    assert (
        "- Weights: of the best epoch, 1, which was chosen on the test images, so the accuracy on "
        "them is too optimistic"
    ) in best.text
    (result,) = best.data.eval_results
    assert result.metric_name == "accuracy, epoch chosen on the test split"
    facts = RunFacts.read(run)
    chosen = replace(facts, result={**facts.result, "best_chosen_on": "validation"})
    card = model_card(parts(run, "best", facts=chosen))
    assert "of the best epoch, 1, which was chosen on the validation images\n" in card.text
    assert card.data.eval_results[0].metric_name is None


def test_a_runtime_that_takes_no_number_of_threads_is_named(run: Path) -> None:
    assert [name for name, form in FORMATS.items() if not form.takes_threads] == ["executorch"]
    times = {1: {"student": Latency(1, 1, 1), "exported": Latency(1, 1, 1)}}
    measured = Measurements(latency=times, all_cores=True)
    assert "ONNX Runtime on all cores |" in model_card(parts(run, measured=measured)).text
    measured = Measurements(latency=times)
    assert "on all cores" not in model_card(parts(run, measured=measured)).text
