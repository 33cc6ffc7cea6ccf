"""Early exits in an ONNX file: ``If`` nodes run the later layers only for images that need them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskd.deploy.input_contract import EXIT, INPUT, OUTPUT, THRESHOLDS

ExitRunner = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], int]]
"""Runs one image: its logits, and the exit that gave them."""


def exit_output(number: int) -> str:
    """The name of the logits of an exit in the graph, or at last of the student."""
    return f"logits_of_exit_{number}"


def add_exits(proto: Any, thresholds: Sequence[float]) -> None:
    """Turns a graph with the logits of all exits into one that predicts early.

    The nodes that the first exit needs stay outside. An ``If`` then holds either the logits of this
    exit, or the nodes that the next exit needs and its ``If``, and so on. A runtime runs the branch
    of an ``If`` only if it is chosen.

    Args:
        proto: An ONNX model for one image, whose outputs are the logits of the exits and at last of
            the student.
        thresholds: Of the exits.
    """
    from onnx import numpy_helper

    graph = proto.graph
    classes = graph.output[-1].type.tensor_type.shape.dim[-1].dim_value
    builder = _Builder(graph, len(thresholds), classes)
    nodes = builder.body(0)
    initializers = builder.initializers(0)
    constant = numpy_helper.from_array(np.asarray(thresholds, np.float32), THRESHOLDS)
    for field, values in (
        (graph.node, nodes),
        (graph.initializer, [constant, *initializers]),
        (graph.output, builder.outputs(OUTPUT, EXIT)),
        (graph.value_info, []),
    ):
        del field[:]
        field.extend(values)


@dataclass
class _Builder:
    """Builds the nested graphs. The graph of level l is within that of level l - 1.

    Attributes:
        graph: All exits without ``If`` nodes.
        exits: Number of exits.
        classes: Length of the logits.
    """

    graph: Any
    exits: int
    classes: int

    def __post_init__(self) -> None:
        self.levels = self._levels()

    def _levels(self) -> dict[int, int]:
        """The level of each node: that of the first exit that needs it."""
        producers = {
            name: place for place, node in enumerate(self.graph.node) for name in node.output
        }
        levels: dict[int, int] = {}
        for level in range(self.exits + 1):
            left = [exit_output(level)]
            while left:
                place = producers.get(left.pop())
                if place is not None and place not in levels:
                    levels[place] = level
                    left.extend(self.graph.node[place].input)
        return levels

    def initializers(self, level: int) -> list[Any]:
        """The weights whose first user is in a level."""
        first: dict[str, int] = {}
        for place, node in enumerate(self.graph.node):
            for name in node.input if place in self.levels else ():
                first[name] = min(first.get(name, self.exits), self.levels[place])
        return [one for one in self.graph.initializer if first.get(one.name) == level]

    def outputs(self, logits: str, exit_: str) -> list[Any]:
        """The outputs of a graph."""
        from onnx import TensorProto, helper

        return [
            helper.make_tensor_value_info(logits, TensorProto.FLOAT, [1, self.classes]),
            helper.make_tensor_value_info(exit_, TensorProto.INT64, [1]),
        ]

    def body(self, level: int) -> list[Any]:
        """The nodes of a level, which end in the logits and the number of the exit."""
        from onnx import helper

        nodes = [
            node for place, node in enumerate(self.graph.node) if self.levels.get(place) == level
        ]
        logits, exit_ = self._names(level)
        if level == self.exits:
            return [*nodes, *self._prediction(level, logits, exit_)]
        if level == 0:
            logits, exit_ = OUTPUT, EXIT
        chosen = helper.make_node(
            "If",
            [f"is_confident_{level}"],
            [logits, exit_],
            name=f"exit_{level}",
            then_branch=self._graph_of_prediction(level),
            else_branch=self._graph(level + 1),
        )
        return [*nodes, *self._decision(level), chosen]

    def _names(self, level: int) -> tuple[str, str]:
        return f"{OUTPUT}_from_{level}", f"{EXIT}_from_{level}"

    def _prediction(self, level: int, logits: str, exit_: str) -> list[Any]:
        """The nodes that give the logits and the number of an exit."""
        from onnx import helper, numpy_helper

        number = numpy_helper.from_array(np.asarray([level], np.int64))
        return [
            helper.make_node("Identity", [exit_output(level)], [logits]),
            helper.make_node("Constant", [], [exit_], value=number),
        ]

    def _decision(self, level: int) -> list[Any]:
        """The nodes that compare the confidence of an exit with its threshold."""
        from onnx import helper, numpy_helper

        index = numpy_helper.from_array(np.asarray(level, np.int64))
        names = {
            part: f"{part}_{level}"
            for part in ("probabilities", "confidence", "number", "threshold", "is_confident")
        }
        return [
            helper.make_node("Softmax", [exit_output(level)], [names["probabilities"]], axis=1),
            helper.make_node(
                "ReduceMax", [names["probabilities"]], [names["confidence"]], keepdims=0
            ),
            helper.make_node("Constant", [], [names["number"]], value=index),
            helper.make_node("Gather", [THRESHOLDS, names["number"]], [names["threshold"]]),
            helper.make_node(
                "GreaterOrEqual",
                [names["confidence"], names["threshold"]],
                [names["is_confident"]],
            ),
        ]

    def _graph_of_prediction(self, level: int) -> Any:
        from onnx import helper

        logits, exit_ = f"{OUTPUT}_at_{level}", f"{EXIT}_at_{level}"
        nodes = self._prediction(level, logits, exit_)
        return helper.make_graph(nodes, f"predict_{level}", [], self.outputs(logits, exit_))

    def _graph(self, level: int) -> Any:
        from onnx import helper

        return helper.make_graph(
            self.body(level),
            f"from_exit_{level}",
            [],
            self.outputs(*self._names(level)),
            initializer=self.initializers(level),
        )


def exit_runner(path: Path, thresholds: Sequence[float]) -> ExitRunner:
    """Loads a file with early exits into ONNX Runtime, with other thresholds.

    Args:
        path: The file.
        thresholds: Of its exits.
    """
    import onnx
    import onnxruntime

    proto = onnx.load(path)
    own = next(one for one in proto.graph.initializer if one.name == THRESHOLDS)
    own.CopyFrom(onnx.numpy_helper.from_array(np.asarray(thresholds, np.float32), THRESHOLDS))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run(image: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
        logits, exit_ = session.run([OUTPUT, EXIT], {INPUT: image})
        return logits, int(exit_[0])

    return run
