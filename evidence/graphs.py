"""Computes the study on graphs: ``python -m evidence.graphs DATA OUT``.

DATA holds an .npz file for each graph, see docs/tasks/graphs.md. OUT takes a comparison for each.
The rules are in docs/results/protocol-graphs.md. The same command continues a study that was
stopped. After the last run the results are written to ``docs/results/graphs.json`` and drawn as
``docs/results/graphs.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dskd.compare.grid import plan
from dskd.compare.progress import LogLines
from dskd.compare.runner import run_grid
from dskd.compare.summary import Summary, summarize
from dskd.engine.tasks.graphs.recipe import RECIPES
from evidence.command import origin, rules, study_arguments, write_results
from evidence.exits import exit_codes
from evidence.numbers import as_sentence, number, p_text, verdict
from evidence.opening import bullets
from evidence.page import machine_line

RECIPE = str(Path(__file__).parent / "graphs.yaml")
SEEDS = 10
GRAPHS = ("cora", "citeseer", "amazon_photo", "amazon_cs")
METHODS = (
    "alone",
    "alignment",
    "alignahead",
    "alignahead++",
    "alignahead++:features=0",
    "alignahead++:auxiliary=0",
    "dskd",
)
NAMES = {
    "alone": "one student alone",
    "alignment": "one-to-one alignment",
    "alignahead": "Alignahead",
    "alignahead++": "Alignahead++ (our form)",
    "alignahead++:features=0": "Alignahead++ without the transfer of features",
    "alignahead++:auxiliary=0": "Alignahead++ without auxiliary classifiers",
    "dskd": "DSKD from a larger teacher",
}


def compute(
    data: Path, out: Path, changes: Sequence[str] = (), seeds: int = SEEDS
) -> dict[str, Any]:
    """Computes the missing runs.

    Args:
        data: The folder of the graphs.
        out: The folder of the study.
        changes: Settings that depart from the protocol.
        seeds: Number of seeds.

    Returns:
        Everything that the page shows.
    """
    source = origin("graphs", changes)
    found = {name: _compared(data / f"{name}.npz", out / name, changes, seeds) for name in GRAPHS}
    return {
        **source,
        "seeds": seeds,
        "graphs": found,
    }


def _compared(graph: Path, out: Path, changes: Sequence[str], seeds: int) -> dict[str, Any]:
    """The numbers of a comparison, whose missing runs are computed."""
    recipe = RECIPES.load_shared(RECIPE, [*changes, f"data.root={graph.resolve()}"])
    comparison = run_grid(plan(recipe, METHODS, out.resolve(), seeds=seeds), LogLines())
    summaries = summarize(comparison.variants, comparison.test_images, comparison.baseline)
    teachers = [
        result["teacher_accuracy"]
        for variant in comparison.variants
        for result in variant.results.values()
        if result["teacher_accuracy"] is not None
    ]
    return {
        "test_nodes": comparison.test_images,
        "teacher": teachers[0],
        "methods": {summary.label: _numbers(summary) for summary in summaries},
    }


def _numbers(summary: Summary) -> dict[str, Any]:
    assert summary.test_accuracy is not None, "every run is finished"
    gap = summary.difference
    return {
        "accuracy": summary.test_accuracy.mean,
        "accuracy_half": summary.test_accuracy.half,
        "seeds": list(summary.test_accuracy.values),
        "gap": gap.interval.mean if gap else None,
        "gap_half": gap.interval.half if gap else None,
        "p_holm": gap.p_holm if gap else None,
        "sampling_error": summary.sampling_error,
        "seconds": summary.seconds,
    }


def page(facts: Mapping[str, Any]) -> str:
    """The page of the study.

    Args:
        facts: What `compute` returned.
    """
    lines = [
        "# Graphs",
        "",
        *bullets(
            "Do students of graphs gain from learning online, or from a larger teacher?",
            " ".join(_findings(facts["graphs"])),
            f"{facts['seeds']} seeds on one split of each graph. The p-values are corrected for "
            "the six comparisons of a graph (Holm).",
        ),
        "",
        f"{rules(facts)} Accuracies are top-1 on "
        "the test nodes in percent, after the last epoch. ± is the 95 % interval over "
        f"{facts['seeds']} seeds; it covers the noise of training, on one split of each graph. "
        "Differences to one student alone are paired by seed. p is from a paired t-test, with "
        "Holm's correction within each graph. The seconds depend on what else runs "
        "on the machine. What each method rests on is in [Graphs](../tasks/graphs.md).",
        "",
    ]
    for name, graph in facts["graphs"].items():
        lines += _table(name, graph)
    return "\n".join([*lines, machine_line(facts), ""])


def _findings(graphs: Mapping[str, Any]) -> Iterator[str]:
    """On which graphs each method differs from one student alone."""
    same = []
    for label in METHODS[1:]:
        found = {name: verdict(graph["methods"][label]) for name, graph in graphs.items()}
        words = [
            f"{word} on {' and '.join(name for name in found if found[name] == word)}"
            for word in dict.fromkeys(filter(None, found.values()))
        ]
        if words:
            yield as_sentence(f"{NAMES[label]} is {', '.join(words)} than one student alone")
        else:
            same.append(NAMES[label])
    if same:
        yield as_sentence(f"No difference to one student alone is shown for {', '.join(same)}")


def _table(name: str, graph: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    error = graph["methods"]["alone"]["sampling_error"]
    yield (
        f"{graph['test_nodes']:,} test nodes, with a sampling error of ± {error:.1f}. The teacher "
        f"of DSKD has {graph['teacher']:.1f} %."
    )
    yield ""
    yield "| method | accuracy | difference from alone | p (Holm) | | seconds a seed |"
    yield "|---|---:|---:|---:|---|---:|"
    for label, one in graph["methods"].items():
        accuracy = number(one["accuracy"], one["accuracy_half"], ".1f")
        gap, p, said = "", "", ""
        if one["gap"] is not None:
            gap = number(one["gap"], one["gap_half"], "+.1f")
            p, said = p_text(one["p_holm"]), verdict(one)
        yield f"| {NAMES[label]} | {accuracy} | {gap} | {p} | {said} | {one['seconds']:.0f} |"
    yield ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Computes the missing runs and writes the page.

    Args:
        arguments: The command line; None for that of the process.
    """
    chosen = study_arguments(__doc__, arguments, SEEDS)
    with exit_codes():
        facts = compute(chosen.data, chosen.out / "graphs", chosen.changes, chosen.seeds)
    write_results(chosen.results, "graphs", facts, page(facts))


if __name__ == "__main__":
    main()
