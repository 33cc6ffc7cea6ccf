"""Several processes that train one model: as one process would, written by one, ended together."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from torch.distributed import run as torchrun
from torch.distributed.launcher.api import elastic_launch

import dskd
from dskd import methods
from dskd.cli import demo
from dskd.cli.commands import main as dskd_main
from dskd.compare.grid import plan as comparison
from dskd.compare.progress import LogLines
from dskd.compare.runner import run_grid
from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.data import Split
from dskd.data.augmentation import NO_AUGMENTATION
from dskd.data.epoch_plan import draw_plan, largest_batch, steps
from dskd.data.joint_loader import JointLoader
from dskd.data.loader import Batch, DataLoaders, MemoryLoader
from dskd.deploy.early_exits import load_early
from dskd.engine import run
from dskd.engine.build import build_run
from dskd.engine.build_data import load_data
from dskd.engine.evaluate import evaluate_accuracy, percent
from dskd.engine.exit_calibration import fit_temperature
from dskd.engine.metrics import EpochMetrics
from dskd.engine.mixing import Mixing
from dskd.engine.prepare import prepare
from dskd.engine.step import train_step
from dskd.engine.targets import SoftTargets
from dskd.engine.trainer import Trainer
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, NonFiniteError, ProcessLost, Stopped
from dskd.methods.base import Method
from dskd.methods.contracts import StepOutput
from dskd.models.early_exits import EarlyExitStudent
from dskd.runtime import compile as compiling
from dskd.runtime import device, distributed, process_group
from dskd.runtime.signals import StopRequest, stop_requests
from dskd.storage.run_directory import RunDirectory
from dskd.teacher.outputs import TeacherOutputs
from tests import processes
from tests.builders import make_dataset, make_pair, staged

CPU = torch.device("cpu")
DATA = make_dataset(per_class=6)
EXACT = ["ce", "kd", "at", "fitnet", "dskd"]
"""Methods that look at each image for itself, once there is no BatchNorm."""
SMALL = [
    "data.fraction=0.1",
    "data.test_fraction=0.1",
    "student.name=resnet8",
    "teacher.name=resnet8",
    "teacher.epochs=1",
    "train.epochs=12",
    "train.batch_size=32",
]
FILES = ("student.safetensors", "student_best.safetensors", "auxiliary.safetensors")


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    return {k: str(v) for k, v in values.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _process(rank: int, world: int, port: int, work: Callable[[Path], None], out: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment(rank, world, port))
    work(Path(out))


def together(world: int, work: Callable[[Path], None], out: Path) -> None:
    """Runs a function in so many processes, as torchrun would."""
    processes.together(world, _process, world, free_port(), work, str(out))


def without_batchnorm(module: nn.Module) -> None:
    """A norm of each image in place of every BatchNorm."""
    for parent in list(module.modules()):
        for name, part in parent.named_children():
            if isinstance(part, nn.BatchNorm2d):
                setattr(parent, name, nn.GroupNorm(1, part.num_features))


def made_method(name: str) -> tuple[Method, TeacherOutputs]:
    torch.manual_seed(0)
    student, teacher = staged(), staged("resnet14")
    needed = teacher if methods.find(name).needs_teacher else None
    pair, teacher_forward = make_pair(student, needed, DATA)
    method = methods.find(name)(pair)
    without_batchnorm(method)
    return method.train(), TeacherOutputs(teacher_forward)


def parallel(method: Method, *, accumulates: bool = False) -> nn.Module | None:
    """The method as several processes train it."""
    if distributed.world_size() == 1:
        return None
    static_graph = method.static_graph and not accumulates
    return distributed.data_parallel(method, static_graph=static_graph)


def gradients(name: str, size: int = 10, parts: int = 1) -> dict[str, torch.Tensor]:
    """Of one step with ten images: two or three for each of four processes."""
    method, teacher_outputs = made_method(name)
    shared = draw_plan(0, 0, len(DATA.train.labels), 2, True)
    batch = next(
        MemoryLoader(DATA.train, CPU).batches(
            shared, size, 0, distributed.rank(), distributed.world_size()
        )
    )
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.0)
    wrapped = parallel(method, accumulates=parts > 1)
    train_step(method, teacher_outputs, batch, optimizer, "float32", wrapped, parts=parts)
    return {n: p.grad for n, p in method.named_parameters() if p.grad is not None}


def joint_gradients(name: str, parts: int = 1) -> dict[str, torch.Tensor]:
    """Of one step with twelve labelled and eight other images, mixed by CutMix."""
    method, teacher_outputs = made_method(name)
    rank, world = distributed.rank(), distributed.world_size()
    others = Split.unlabelled(make_dataset(seed=1).train.images)
    loader = JointLoader(MemoryLoader(DATA.train, CPU), MemoryLoader(others, CPU), 0.4)
    plan = loader.draw_plan(0, 0, (2, True, None, NO_AUGMENTATION), 20, world)
    batch = next(loader.batches(plan, 20, 0, rank, world))
    mixing = Mixing(seed=0, classes=4, mixup=0.0, cutmix=1.0, probability=1.0)
    batch = SoftTargets(4, 0.1)(mixing(batch))
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.0)
    wrapped = parallel(method, accumulates=parts > 1)
    train_step(method, teacher_outputs, batch, optimizer, "float32", wrapped, parts=parts)
    return {n: p.grad for n, p in method.named_parameters() if p.grad is not None}


class Poisoned(Method):
    """Its loss is NaN in process 1."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.student = staged()

    def forward(self, batch: Batch, teacher: Any) -> Any:
        output = methods.find("ce").forward(self, batch, teacher)
        if distributed.rank() == 1:
            output.losses["ce"] = output.losses["ce"] * float("nan")
        return output

    ce = 1.0


def _poisoned_step() -> tuple[str, bool]:
    """What the error says, and whether the weights are as before."""
    method = Poisoned()
    before = [p.clone() for p in method.parameters()]
    shared = draw_plan(0, 0, len(DATA.train.labels))
    batch = next(
        MemoryLoader(DATA.train, CPU).batches(
            shared, 10, 0, distributed.rank(), distributed.world_size()
        )
    )
    optimizer = torch.optim.SGD(method.parameters(), 0.1)
    try:
        train_step(method, TeacherOutputs(None), batch, optimizer, "float32", parallel(method))
    except NonFiniteError as error:
        same = all(torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))
        return str(error), same
    return "", False


def _refusing(who: int) -> Callable[[], str]:
    def work() -> str:
        if distributed.launched_rank() == who:
            raise InputError(f"process {who} refuses")
        return "done"

    return work


def _refusals() -> list[str]:
    """What every process hears when one refuses."""
    heard = []
    for work in (
        distributed.on_rank_zero(_refusing(0)),
        lambda: distributed.local_rank_zero_first(_refusing(0)),
        lambda: distributed.local_rank_zero_first(_refusing(1)),
    ):
        try:
            heard.append(str(work()))
        except InputError as error:
            heard.append(str(error))
    return heard


def _evaluated() -> list[Any]:
    """Of a model that differs between processes, but for the buffers of the first."""
    torch.manual_seed(0)
    model = staged()
    for value in model.buffers():
        value.add_(distributed.rank())
    distributed.broadcast([*model.parameters(), *model.buffers()])
    many = make_dataset(per_class=150, size=8)
    said = evaluate_accuracy(
        model, lambda images: {"student": model(images).logits}, MemoryLoader(many.train, CPU)
    )
    evaluated = said["student"]
    return [evaluated.accuracy, evaluated.accuracy_top5, evaluated.predictions]


def _metered() -> dict[str, float]:
    """The mean of a number over twelve images, of which each process has some."""
    metrics = EpochMetrics()
    own = torch.arange(12)[distributed.rank() :: distributed.world_size()]
    logits = torch.nn.functional.one_hot(own % 3, 4).float()
    batch = Batch(logits, own % 2, own, own, own, 0, 0)
    output = StepOutput({"ce": own.double().mean()}, logits)
    metrics.add(batch, output)
    return metrics.means()


def _mixed() -> dict[str, torch.Tensor]:
    """The mixed images of every step, with the labels and targets, by sample."""
    mixing = Mixing(seed=0, classes=4, mixup=0.4, cutmix=1.0, probability=1.0)
    rank, world = distributed.rank(), distributed.world_size()
    plan = draw_plan(0, 0, len(DATA.train.labels), 2, True)
    found = [mixing(b) for b in MemoryLoader(DATA.train, CPU).batches(plan, 13, 0, rank, world)]
    assert len(found) == 2
    parts = {
        key: torch.cat([getattr(batch, key) for batch in found])
        for key in ("indices", "images", "labels", "targets")
    }
    order = parts["indices"].argsort()
    return {key: values[order] for key, values in parts.items()}


def _steps_of_many(out: Path) -> None:
    with distributed.process_group(CPU):
        said = {
            "gradients": {name: gradients(name) for name in EXACT},
            "accumulated": {name: gradients(name, 15, parts=2) for name in ("ce", "kd", "at")},
            "joint": {
                f"{name} {n}": joint_gradients(name, n) for name in ("kd", "at") for n in (1, 2)
            },
            "poisoned": _poisoned_step(),
            "refusals": _refusals(),
            "evaluated": _evaluated(),
            "metered": _metered(),
            "mixed": _mixed(),
            "prepared": _prepared(),
            "largest": distributed.all_reduce_max(distributed.rank()),
            "gathered": distributed.all_gather(distributed.rank()),
            "spread": distributed.shard_map(
                lambda item: (item, distributed.rank()),
                range(distributed.rank(), 5, distributed.world_size()),
            ),
            "ranges": _int8_ranges(),
            "alone": _world_alone(),
        }
    said["after"] = distributed.world_size()
    torch.save(said, out / f"said{distributed.launched_rank()}.pt")


def _prepared() -> dict[str, torch.Tensor]:
    """What sskd trains before the student."""
    torch.manual_seed(0)
    student, teacher = staged(), staged("resnet14")
    pair, teacher_forward = make_pair(student, teacher, DATA)
    sskd: Any = methods.find("sskd")
    method = sskd(pair, head_epochs=1)
    settings: dict[str, Any] = {"seed": 0, "epochs": 1, "batch_size": 8, "padding": 0, "flip": True}
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.0)
    trainer = Trainer(
        method,
        TeacherOutputs(teacher_forward),
        MemoryLoader(DATA.train, CPU),
        optimizer,
        lambda _: 0.0,
        precision="float32",
        **settings,
    )
    trainer.prepare()
    prepared: dict[str, torch.Tensor] = method.state_dict()
    return prepared


def _int8_ranges() -> list[torch.Tensor]:
    """The ranges of a student whose processes saw other images, after a step."""
    settings = [*SMALL, "train.int8_rounding=true", "method={name: ce}", "teacher=null"]
    plan = recipe.load("digits", settings)
    loaders = DataLoaders(load_data(plan.data), CPU)
    prepared = prepare(plan, loaders.data, UserObjects(), CPU)
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder))
        made = build_run(plan, prepared.student, loaders, TeacherOutputs(None), directory).trainer
        made.synchronize()
        next(made.train_epoch())
    ranges = made.method.student.int8
    assert ranges is not None
    return [ranges.low, ranges.high]


def _world_alone() -> int:
    with distributed.independently():
        return distributed.world_size()


@pytest.fixture(
    scope="module", params=[pytest.param(world, marks=pytest.mark.distributed) for world in (2, 4)]
)
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of two, or four, processes has to say."""
    if request.param == 2:  # processes take long to start
        out: Path = request.getfixturevalue("of_two")
    else:
        out = tmp_path_factory.mktemp("said")
        together(request.param, _steps_of_many, out)
    return [torch.load(out / f"said{rank}.pt") for rank in range(request.param)]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_gradients_are_those_of_one_process(said: list[Any], name: str) -> None:
    expected = gradients(name)
    for one in said:
        own = one["gradients"][name]
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[key], said[0]["gradients"][name][key]) for key in own)
        for key, value in expected.items():
            scale = value.abs().max().clamp_min(1.0).item()
            torch.testing.assert_close(own[key], value, rtol=0, atol=1e-5 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ce", "kd", "at"])
def test_gradients_that_are_accumulated_are_those_of_one_process_and_one_batch(
    said: list[Any], name: str
) -> None:
    expected = gradients(name, 15)
    for one in said:
        own = one["accumulated"][name]
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[key], said[0]["accumulated"][name][key]) for key in own)
        for key, value in expected.items():
            scale = value.abs().max().clamp_min(1.0).item()
            torch.testing.assert_close(own[key], value, rtol=0, atol=1e-5 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kd", "at"])
@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_with_images_without_labels_are_those_of_one_process_and_one_batch(
    said: list[Any], name: str, parts: int
) -> None:
    expected = joint_gradients(name)
    for one in said:
        own = one["joint"][f"{name} {parts}"]
        assert own.keys() == expected.keys()
        for key, value in expected.items():
            scale = value.abs().max().clamp_min(1.0).item()
            torch.testing.assert_close(own[key], value, rtol=0, atol=1e-5 * scale)


def test_what_is_not_finite_in_one_process_stops_all_and_changes_nothing(said: list[Any]) -> None:
    for one in said:
        message, same = one["poisoned"]
        assert "the loss is not finite (ce nan)" in message
        assert message == said[0]["poisoned"][0]
        assert same


def test_what_one_process_refuses_all_refuse(said: list[Any]) -> None:
    refused = ["process 0 refuses", "process 0 refuses", "process 1 refuses"]
    assert [one["refusals"] for one in said] == [refused] * len(said)


def test_evaluation_is_shared_and_all_get_the_whole(said: list[Any]) -> None:
    accuracy, top5, predictions = _evaluated()
    labels = make_dataset(per_class=150, size=8).train.labels
    assert len(predictions) == len(labels) == 600
    hits = sum(int(found) == int(label) for found, label in zip(predictions, labels, strict=True))
    assert accuracy == round(hits / 6, 4)
    assert top5 is None, "there are four classes"
    for one in said:
        assert one["evaluated"][:2] == [accuracy, top5]
        assert torch.equal(one["evaluated"][2], predictions)


def test_metrics_are_those_of_the_whole_batch(said: list[Any]) -> None:
    for one in said:
        assert one["metered"] == pytest.approx(_metered())


def test_mixed_images_are_those_of_one_process(said: list[Any]) -> None:
    whole, parts = _mixed(), [one["mixed"] for one in said]
    order = torch.cat([part["indices"] for part in parts]).argsort()
    for key, values in whole.items():
        assert torch.equal(torch.cat([part[key] for part in parts])[order], values), key


def test_what_comes_before_the_student_is_the_same_in_all(said: list[Any]) -> None:
    expected = _prepared()
    for one in said:
        for key, value in expected.items():
            torch.testing.assert_close(one["prepared"][key], value)


def test_ranges_of_int8_rounding_are_those_of_the_first_process(said: list[Any]) -> None:
    """A checkpoint holds those alone, and a resumed run goes on with them."""
    for one in said:
        for range_, first in zip(one["ranges"], said[0]["ranges"], strict=True):
            assert torch.equal(range_, first)
            assert not range_.isnan().any()


def test_processes_say_the_same_and_end_as_one(said: list[Any]) -> None:
    world = len(said)
    for one in said:
        assert one["largest"] == world - 1
        assert one["gathered"] == list(range(world))
        assert one["spread"] == [(item, item % world) for item in range(5)]
        assert one["alone"] == one["after"] == 1


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("images", [8, 61, 64, 65, 66, 67, 71, 72, 200])
def test_processes_share_the_images_that_one_would_see(world: int, images: int) -> None:
    plan = draw_plan(0, 0, images)
    alone = list(plan.batches(32))
    shares = [list(plan.batches(32, rank, world)) for rank in range(world)]
    wholes = [torch.cat(parts) for parts in zip(*shares, strict=True)]
    assert {len(part) for part in shares} == {steps(images, 32, world)}
    assert min(len(rows) for part in shares for rows in part) >= 2
    assert max(len(rows) for part in shares for rows in part) <= largest_batch(32, world)
    assert torch.equal(torch.cat(wholes).sort().values, plan.order.sort().values)
    if len(alone[-1]) >= 2 * world:
        for whole, batch in zip(wholes, alone, strict=True):
            assert torch.equal(whole.sort().values, batch.sort().values)


def _plan(out: Path, *overrides: str) -> Recipe:
    return recipe.load("digits", [*SMALL, f"out={out}", *overrides])


def _runs_of_two(out: Path) -> None:
    """A whole run; then one that process 1 is asked to stop, twice, and that goes on.

    Each process has a folder of its own, as on machines that share none.
    """
    own = out / str(distributed.launched_rank())
    run.distill(_plan(own / "whole"))
    train_epoch, taken = Trainer.train_epoch, 0

    def signalled(self: Trainer) -> Iterator[None]:
        nonlocal taken
        for _ in train_epoch(self):
            taken += 1
            if taken in (2, 12) and distributed.rank() == 1:
                signal.raise_signal(signal.SIGTERM)
            yield

    Trainer.train_epoch = signalled  # type: ignore[method-assign]
    stopped = []
    for resume in (False, True, True):
        try:
            result = run.distill(_plan(own / "parts"), resume=resume)
        except Stopped as error:
            stopped.append(error.signal)
    torch.save([stopped, taken, result.numbers()], out / f"{distributed.launched_rank()}.pt")


def _fast_paths_of_two(out: Path) -> None:
    """Two runs that share a cache of teacher outputs, and one with compiled steps."""
    own = out / str(distributed.launched_rank())
    teacher = f"teacher.checkpoint={own / 'whole/teacher/student.safetensors'}"
    if distributed.launched_rank():  # it reads the files of the first process
        teacher = teacher.replace(f"{own}", f"{out / '0'}")
    kd = [teacher, "method={name: kd}", "train.epochs=2"]
    cache = ["teacher.cache=logits", f"teacher.cache_dir={out / 'teacher-outputs'}"]
    results = [run.distill(_plan(own / name, *kd, *cache)).numbers() for name in ("cold", "warm")]
    compiling.BACKEND = "aot_eager"  # inductor takes minutes
    kd.append("train.batch_size=26")  # each size is compiled: all batches have the same
    run.distill(_plan(own / "eager", *kd))
    run.distill(_plan(own / "compiled", *kd, "train.compile=true"))
    torch.save(results, out / f"cached{distributed.launched_rank()}.pt")


def _convolutional(width: int, classes: int) -> nn.Module:
    convs = (nn.Conv2d(a, b, 3, 2, 1) for a, b in ((1, width), (width, 2 * width)))
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(classes))


def _given_modules_of_two(out: Path) -> None:
    """A run of modules whose stages are found, with a teacher whose head is fitted."""
    torch.manual_seed(0)
    modules = [_convolutional(4, 10), _convolutional(8, 7)]
    for module in modules:
        module(torch.zeros(1, 1, 8, 8))
    own = ["data.fraction=0.1", "student.name=<Sequential>", "train.epochs=2"]
    own += ["teacher={name: <Sequential>, head: fit, trust: true}", f"out={out / 'given'}"]
    own += ["data.val_fraction=0.3", "train.exits=true"]
    plan = recipe.load("digits", own)
    result = run.distill(plan, objects=UserObjects(student=modules[0], teacher=modules[1]))
    torch.save(result.numbers() | {"memory": 0}, out / f"given{distributed.launched_rank()}.pt")


def _all_of_two(out: Path) -> None:
    _steps_of_many(out)
    _runs_of_two(out)
    _fast_paths_of_two(out)
    _given_modules_of_two(out)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    together(2, _all_of_two, out)
    return out


def _timeless(path: Path) -> list[str]:
    """The metrics without the times."""
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [line.partition('"seconds"')[0] for line in lines]


@pytest.mark.distributed
def test_a_stop_at_one_process_stops_all_at_the_same_step_and_the_run_goes_on(of_two: Path) -> None:
    (stopped, taken, numbers), other = (torch.load(of_two / f"{rank}.pt") for rank in (0, 1))
    assert stopped == other[0] == [signal.SIGTERM] * 2
    assert taken == other[1]
    assert numbers | {"memory": 0} == other[2] | {"memory": 0}
    whole, parts = of_two / "0/whole", of_two / "0/parts"
    for name in FILES:
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert _timeless(whole) == _timeless(parts)


@pytest.mark.distributed
def test_processes_share_a_cache_of_teacher_outputs(of_two: Path) -> None:
    for rank in (0, 1):
        cold, warm = torch.load(of_two / f"cached{rank}.pt")
        assert cold["teacher_cache_hit_rate"] < 1
        assert warm["teacher_cache_hit_rate"] == 1
    cold, warm = (of_two / "0" / name / "student.safetensors" for name in ("cold", "warm"))
    assert cold.read_bytes() == warm.read_bytes()


@pytest.mark.distributed
def test_several_processes_train_with_compiled_steps(of_two: Path) -> None:
    eager, compiled = (_losses(of_two / "0" / name) for name in ("eager", "compiled"))
    assert compiled == pytest.approx(eager, rel=1e-2)


@pytest.mark.distributed
def test_stages_are_found_and_a_head_is_fitted_in_all_processes(of_two: Path) -> None:
    one, other = (torch.load(of_two / f"given{rank}.pt") for rank in (0, 1))
    assert one == other
    assert one["teacher_accuracy"] > 30
    stages = json.loads((of_two / "given/stages.json").read_text())
    for role in ("student", "teacher"):
        assert [stage["name"] for stage in stages[role]] == ["0", "1"]


@pytest.mark.distributed
@torch.no_grad()
def test_exits_are_calibrated_on_all_validation_images(of_two: Path) -> None:
    validation = dskd.load_dataset("digits", fraction=0.1, val_fraction=0.3).validation
    assert validation is not None
    images, labels = validation.images_at(torch.arange(len(validation))), validation.labels
    student = _convolutional(4, 10)
    student(torch.zeros(1, 1, 8, 8))
    early = load_early(of_two / "given", max_loss=100, student=student)
    assert early.facts.val_images == len(validation)
    everyone = EarlyExitStudent(
        early.student.model,
        dict(zip(early.student.stages, early.student.branches, strict=True)),
        early.student.temperatures,
        [0.0] * len(early.facts.exits),
    )
    *exits, own = everyone.eval().all_logits(images)
    for fact, logits in zip(early.facts.exits, exits, strict=True):
        assert fact.val_accuracy == percent(logits.argmax(1) == labels)
        alone = fit_temperature(fact.temperature * logits, labels)
        assert alone == pytest.approx(fact.temperature, rel=1e-3)
    accuracy = percent(own.argmax(1) == labels)
    assert early.facts.policies[0].val_accuracy == pytest.approx(accuracy, abs=1e-3)


def _losses(path: Path) -> list[float]:
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train_loss"] for line in lines]


@pytest.mark.distributed
def test_one_process_writes(of_two: Path) -> None:
    assert (of_two / "0/whole/teacher/result.json").is_file()
    assert not (of_two / "1").exists()


@pytest.mark.distributed
def test_another_number_of_processes_does_not_go_on(of_two: Path, tmp_path: Path) -> None:
    parts = of_two / "0/parts"
    result = (parts / "result.json").read_bytes()
    (parts / "result.json").unlink()
    with pytest.raises(InputError, match="started with 2 processes, and there are 1"):
        run.distill(_plan(parts), resume=True)
    (parts / "result.json").write_bytes(result)


def _torchrun(log: Path, arguments: list[str], forks: bool) -> None:
    """``torchrun --nproc-per-node=2 -m dskd ...``; with ``forks`` it starts no interpreters."""
    processes.redirect(log, log)
    words = ["--nproc-per-node=2", f"--master-port={free_port()}", "-m", "dskd", *arguments]
    if not forks:
        torchrun.main(words)
        return
    config, _, _ = torchrun.config_from_args(torchrun.parse_args(words))  # type: ignore[no-untyped-call]
    config.start_method = "fork"
    elastic_launch(config, _worker)(arguments, log.parent)


def _worker(arguments: list[str], folder: Path) -> None:
    # torch has a forked worker get SIGINT when its parent dies. One that torchrun starts does not.
    torch.multiprocessing._prctl_pr_set_pdeathsig(0)  # type: ignore[attr-defined]
    (folder / f"rank{os.environ['RANK']}").write_text(f"{os.getpid()}")
    dskd_main(arguments)


@contextmanager
def command(arguments: list[str], log: Path, *, forks: bool = True) -> Iterator[BaseProcess]:
    """A command in two processes of torchrun, gone at the end of the block."""
    process = processes.SERVER.Process(target=_torchrun, args=(log, arguments, forks))
    process.start()
    with gone(process):
        yield process


@contextmanager
def gone(process: BaseProcess) -> Iterator[None]:
    """Kills a process and its children at the end of the block."""
    try:
        yield
    finally:
        if process.is_alive() and process.pid is not None:
            for worker in psutil.Process(process.pid).children():
                worker.kill()
            process.kill()
        process.join()


def _epochs(out: Path) -> int:
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def _reached(process: BaseProcess, out: Path, epochs: int, log: Path) -> None:
    """Waits until a run is so far."""
    deadline = time.monotonic() + 600
    while _epochs(out) < epochs:
        assert process.is_alive(), log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


@pytest.mark.distributed(seconds=18)
def test_the_command_goes_on_after_a_signal_and_after_a_death(of_two: Path, tmp_path: Path) -> None:
    out, port = tmp_path / "run", free_port()
    stopped, lost, ended = (tmp_path / name for name in ("stopped", "lost", "ended"))
    arguments = ["distill", "digits", *SMALL, f"out={out}"]
    with command(arguments, stopped, forks=False) as torchrun_:
        _reached(torchrun_, out, 2, stopped)
        torchrun_.terminate()
        assert processes.wait(torchrun_, 300) != 0
    assert stopped.read_text().count("dskd: stopped; the state is saved") == 1
    done = _epochs(out)

    # Without torchrun, which would end the others itself.
    arguments.append("--resume")
    words = ["-m", "dskd", *arguments]
    one, other = (
        processes.start(words, lost, lost, environment=os.environ | environment(rank, 2, port))
        for rank in (0, 1)
    )
    with gone(one), gone(other):
        _reached(one, out, done + 2, lost)
        other.kill()
        assert processes.wait(one, 300) == 4
    assert _epochs(out) < 12
    last = lost.read_text().splitlines()[-1]
    assert last.startswith("dskd, process 0: another process of this run died")
    assert last.endswith("go on with --resume")
    assert "Traceback" not in lost.read_text()

    with command(arguments, ended) as torchrun_:
        assert processes.wait(torchrun_) == 0, ended.read_text()
    assert ended.read_text().count("run saved in") == 1
    for name in FILES:
        assert (out / name).read_bytes() == (of_two / "0/whole" / name).read_bytes()
    assert _timeless(out) == _timeless(of_two / "0/whole")


@pytest.mark.distributed
@pytest.mark.parametrize("victim", ["torchrun", "process 0"])
def test_what_is_killed_takes_all_the_others_with_it(tmp_path: Path, victim: str) -> None:
    log, out = tmp_path / "log", tmp_path / "run"
    changes = ["teacher=null", "method={name: ce}", "train.epochs=1000", f"out={out}"]
    with command(["distill", "digits", *SMALL[:2], *changes], log) as torchrun_:
        _reached(torchrun_, out, 1, log)
        workers = [psutil.Process(int((tmp_path / f"rank{n}").read_text())) for n in (0, 1)]
        (torchrun_ if victim == "torchrun" else workers[0]).kill()
        assert processes.wait(torchrun_, 300) != 0
        _, alive = psutil.wait_procs(workers, 60)
    for one in alive:
        one.kill()
    assert not alive, log.read_text()
    text = log.read_text()
    # Other processes write to the log too, and may do so in the middle of a line.
    said = re.findall(r"dskd(?:, process \d)?: .*", text)
    if victim == "torchrun":
        assert said == ["dskd: stopped; the state is saved, go on with --resume"], text
    else:
        assert len(said) == 1, text
        assert said[0].startswith("dskd, process 1: another process of this run died"), text
        assert "go on with --resume" in said[0], text


class _Refuses(nn.Module):
    def forward(self, error: Exception) -> None:
        raise error


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize(
    ("error", "recognized"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer"), True),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (InputError("a setting does not fit"), False),
    ],
)
def test_a_loss_is_recognized_wherever_the_backend_reports_it(
    error: Exception, recognized: bool
) -> None:
    """As in a forward pass, where `DistributedDataParallel` communicates too."""
    ended = pytest.raises(ProcessLost if recognized else type(error))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with ended, distributed.process_group(CPU), stop_requests():
            _Refuses()(error)
        # torchrun sends SIGTERM to a process that lost another: it must still be able to say so.
        assert (signal.getsignal(signal.SIGTERM) != handler) == recognized
    finally:
        signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize("backend", ["hangs", "fails"])
def test_a_backend_that_does_not_end_keeps_no_process_from_reporting_a_loss(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    released = threading.Event()

    def destroy() -> None:
        assert backend == "hangs"
        assert released.wait(60)

    monkeypatch.setattr(torch.distributed, "destroy_process_group", destroy)
    monkeypatch.setattr(process_group, "PATIENCE_SECONDS", 0.1)
    with pytest.raises(ProcessLost, match="another process"), distributed.process_group(CPU):
        raise ProcessLost("another process of this run died")
    released.set()


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As one of two processes, of which the other is not needed."""
    for key, value in environment(0, 2, 1).items():
        monkeypatch.setenv(key, value)
    place = f"file://{tmp_path / 'store'}"

    def join(_backend: str) -> process_group.Group:
        torch.distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
        assert torch.distributed.group.WORLD is not None
        return process_group.Group(0, 1, torch.distributed.group.WORLD)

    destroy = torch.distributed.destroy_process_group
    monkeypatch.setattr(process_group, "_join", join)
    yield
    if torch.distributed.is_initialized():
        destroy()


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of four processes, which never meet."""
    for key, value in environment(1, 4, 1).items():
        monkeypatch.setenv(key, value)


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("method={name: crd}", "crd.*keeps state that processes do not share.*started 4"),
        ("train.batch_size=7", '"batch_size": 7} leaves some of 4 processes fewer than 2.*set 8'),
        ("train.sync_batchnorm=true", "on GPUs, and this run has 4 on cpu"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_before_any_work(
    tmp_path: Path, change: str, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        run.distill(_plan(tmp_path / "run", "train.device=cpu", change))
    assert not (tmp_path / "run").exists()


def test_batchnorm_is_synchronised_between_processes_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sync_batchnorm works between .* has 1 on cpu"):
        run.distill(_plan(tmp_path / "run", "train.device=cpu", "train.sync_batchnorm=true"))


@pytest.mark.usefixtures("four")
def test_too_few_images_for_all_are_refused() -> None:
    few = make_dataset(per_class=1)
    with pytest.raises(InputError, match="4 training images are too few for 4 processes"):
        prepare(_plan(Path("run")), few, UserObjects(), CPU)


@pytest.mark.usefixtures("four")
def test_comparisons_and_the_demo_run_in_one_process(tmp_path: Path) -> None:
    grid = comparison(_plan(tmp_path), ["ce"], tmp_path / "grid", seeds=1)
    with pytest.raises(InputError, match=r"a comparison runs in one process, and torchrun .* 4"):
        run_grid(grid, LogLines())
    with pytest.raises(InputError, match="the demo runs in one process"):
        demo.run_demo(tmp_path / "demo")


@pytest.mark.usefixtures("four")
def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device.pick("auto") == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"4 processes here, and torch sees 2.*-node=2"):
        device.pick("cuda")
    assert device.pick("cpu") == CPU


@pytest.mark.usefixtures("four")
def test_torchrun_s_second_signal_does_not_cut_the_step_short() -> None:
    request = StopRequest()
    request.handle(signal.SIGTERM, None)
    request.handle(signal.SIGINT, None)
    assert request.signal == signal.SIGTERM


def test_one_process_is_untouched() -> None:
    values = torch.ones(3)
    assert distributed.weighted_mean(values, 2) is values
    assert distributed.all_reduce_sum(values) is values
    assert distributed.all_true(values) is values
    with distributed.process_group(CPU), distributed.independently():
        assert not torch.distributed.is_initialized()
