"""Students of graphs from Python: ``dskd.graphs``, which needs the extra ``dskd[graphs]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from dskd.api.task import alone, compare, resolved, run_in_python, shared
from dskd.compare.summary import Summary
from dskd.config.contradictions import keys_of_teacher, warn_of_unused_training
from dskd.engine.arguments import Section
from dskd.engine.evaluate import EvaluationResult
from dskd.engine.result import Result
from dskd.engine.tasks.finished import Which
from dskd.engine.tasks.graphs.job import GraphJob
from dskd.engine.tasks.graphs.recipe import RECIPES, data_settings
from dskd.engine.tasks.graphs.student import evaluate as evaluate_run
from dskd.engine.tasks.graphs.student import load_student, probabilities
from dskd.storage.paths import as_path

Model = str | Section
"""A network: its name, or its settings."""


def distill(
    student: Model | None = None,
    *,
    teacher: Model | None = None,
    data: str | Path | Section | None = None,
    method: str | Section | None = None,
    epochs: int | None = None,
    train: Section | None = None,
    seed: int | None = None,
    recipe: str | Path | Section | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    verbose: int = 1,
) -> Result:
    """Trains students that learn from each other, or one that learns from a teacher.

    Args:
        student: ``gcn``, ``gat`` or ``sage``, or settings, as in ``{"name": "gcn", "hidden": 16}``.
        teacher: The same, for ``dskd``; it is trained first, unless it has a
            ``checkpoint``.
        data: An .npz file, the name of a data set, or settings.
        method: A name, as in ``alignahead``, or settings, as in ``{"name": "alignahead", "peers":
            ["gat"]}``; by default the recipe's, or ``alignahead``.
        epochs: Short for ``train={"epochs": ...}``.
        train: Settings of the training, as in ``{"epochs": 10, "lr": 0.01}``.
        seed: The seed of everything random; by default the recipe's, or 0.
        recipe: A shipped recipe (``cora``, ``generated`` or ``ppi``), a YAML file, or its content
            as a mapping. The arguments change it.
        out: The run's folder; by default the recipe's, or ``<method>-seed<seed>`` in
            ``runs/graphs/<recipe>``.
        resume: Continue an interrupted run.
        overwrite: Replace an existing run.
        verbose: As for `dskd.distill`.

    Raises:
        InputError: An argument cannot be used.

    Example:
        >>> import dskd, tempfile
        >>> result = dskd.graphs.distill(
        ...     "gcn", data="generated", method="alignahead", epochs=1, out=tempfile.mkdtemp(),
        ...     verbose=0,
        ... )
        >>> result.method
        'graphs/alignahead'
    """
    parts = {"student": student, "teacher": teacher, "data": data}
    settings = {"method": method, "epochs": epochs, "train": train, "seed": seed, "out": out}
    own = resolved(RECIPES, data_settings, *RECIPES.read(recipe), parts, settings)
    RECIPES.check_teaches(own, keys_of_teacher(teacher))
    return run_in_python(GraphJob(own), resume, overwrite, verbose)


def train(
    student: Model | None = None,
    *,
    data: str | Path | Section | None = None,
    epochs: int | None = None,
    train: Section | None = None,
    seed: int | None = None,
    recipe: str | Path | Section | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    verbose: int = 1,
) -> Result:
    """Trains one student on the labels alone.

    Args:
        student: As for `distill`.
        data: As for `distill`.
        epochs: As for `distill`.
        train: As for `distill`.
        seed: As for `distill`.
        recipe: As for `distill`; its teacher and its method are ignored.
        out: As for `distill`; the method is ``alone``.
        resume: As for `distill`.
        overwrite: As for `distill`.
        verbose: As for `distill`.

    Raises:
        InputError: An argument cannot be used.

    Example:
        >>> import dskd, tempfile
        >>> out = tempfile.mkdtemp()
        >>> result = dskd.graphs.train("gcn", data="generated", epochs=1, out=out, verbose=0)
        >>> result.method
        'graphs/alone'
    """
    parts = {"student": student, "data": data}
    settings = {"method": None, "epochs": epochs, "train": train, "seed": seed, "out": out}
    own = resolved(RECIPES, data_settings, *alone(RECIPES, recipe), parts, settings)
    return run_in_python(GraphJob(own), resume, overwrite, verbose)


def compare_methods(
    student: Model | None = None,
    *,
    teacher: Model | None = None,
    data: str | Path | Section | None = None,
    methods: str | Sequence[str] = "alone,alignment,alignahead,alignahead++",
    seeds: int = 3,
    epochs: int | None = None,
    train: Section | None = None,
    seed: int | None = None,
    recipe: str | Path | Section | None = None,
    out: str | Path | None = None,
    jobs: int | None = None,
    launcher: str | Section = "processes",
    verbose: int = 1,
) -> list[Summary]:
    """Compares methods: trains by each method at each seed.

    Finished runs stay: the same call continues, and more methods or seeds extend a comparison.

    Args:
        student: As for `distill`.
        teacher: As for `distill`. It is trained once.
        data: As for `distill`.
        methods: Names, also with settings: ``"alone,alignment,alignahead,alignahead++"`` or a list.
        seeds: The number of seeds: ``seed``, ``seed + 1`` and so on.
        epochs: As for `distill`.
        train: As for `distill`.
        seed: The first seed, and that of the teacher. None means the recipe's, or 0.
        recipe: As for `distill`; settings of its method hold where that is compared.
        out: Folder of the comparison; by default ``graphs-<recipe>`` in ``runs/compare``.
        jobs: Number of processes, each for students of one seed. None for one, on a cluster for any
            number.
        launcher: As for `dskd.compare_methods`.
        verbose: As for `distill`.

    Returns:
        One summary per method in the folder. Differences are those to ``alone``.

    Raises:
        InputError: An argument cannot be used.

    Example:
        >>> import dskd, tempfile
        >>> alone, other = dskd.graphs.compare_methods("gcn", data="generated", epochs=1, seeds=1,
        ...     methods="alone,alignahead", out=tempfile.mkdtemp(), verbose=0)
        >>> other.label, len(other.difference.interval.values)
        ('alignahead', 1)
    """
    parts = {"student": student, "teacher": teacher, "data": data}
    settings = {"method": None, "epochs": epochs, "train": train, "seed": seed, "out": None}
    own = resolved(RECIPES, data_settings, *shared(RECIPES, recipe, teacher), parts, settings)
    warn_of_unused_training(own.teacher, keys_of_teacher(teacher))
    return compare(own, methods, seeds, out, jobs, launcher, verbose)


def evaluate(run: str | Path, which: Which = "last", *, number: int = 1) -> EvaluationResult:
    """Evaluates the student of a finished run on the test split of its data.

    Args:
        run: The folder of the run.
        which: The weights of the ``last`` or of the ``best`` epoch.
        number: Which of several students that learned online, from 1.

    Raises:
        InputError: There is no finished run of graphs, or its data cannot be read.
    """
    return evaluate_run(as_path(run, "run"), which, number)


def predict(
    run: str | Path, graph: str | Path | None = None, which: Which = "last", *, number: int = 1
) -> Tensor:
    """Predicts the probability of each class, or of each label, for all nodes of a graph.

    Args:
        run: The folder of the run.
        graph: An .npz file with features and edges; None for the graph of the run, or for those of
            its test split, whose nodes follow each other.
        which: As for `evaluate`.
        number: As for `evaluate`.

    Returns:
        float32, ``[N, K]``.

    Raises:
        InputError: There is no finished run of graphs, or the graph cannot be used.

    Example:
        >>> import dskd, tempfile
        >>> out = tempfile.mkdtemp()
        >>> run = dskd.graphs.train("gcn", data="generated", epochs=1, out=out, verbose=0).path
        >>> dskd.graphs.predict(run).shape
        torch.Size([400, 4])
    """
    student = load_student(as_path(run, "run"), which, number)
    return probabilities(student, None if graph is None else as_path(graph, "graph"))
