"""Knowledge distillation with deep supervision.

Names are imported on first use, so ``import dskd`` alone does not import torch.

>>> import dskd
>>> dskd.load_model("resnet8", num_classes=10).stage_names
('layer1', 'layer2', 'layer3')
"""

import importlib
from typing import TYPE_CHECKING, Any

from dskd.errors import InputError, NonFiniteError, Stopped
from dskd.version import __version__

if TYPE_CHECKING:  # for type checkers and editors; at run time `__getattr__` does the same
    from dskd import losses, testing
    from dskd.api import graphs, segment
    from dskd.api.images import compare_methods, distill, export, predict, train
    from dskd.compare.tuning.from_python import tune
    from dskd.data import Dataset, Split, load_dataset
    from dskd.deploy.evaluate import evaluate
    from dskd.deploy.student import DeployedStudent, load_deployed
    from dskd.engine.check.from_python import check
    from dskd.engine.distiller import Distiller
    from dskd.engine.result import Result
    from dskd.models.factory import load_model
    from dskd.models.stage_table import stages
    from dskd.report.from_python import write_report

__all__ = [
    "Dataset",
    "DeployedStudent",
    "Distiller",
    "InputError",
    "NonFiniteError",
    "Result",
    "Split",
    "Stopped",
    "__version__",
    "check",
    "compare_methods",
    "distill",
    "evaluate",
    "export",
    "graphs",
    "load_dataset",
    "load_deployed",
    "load_model",
    "losses",
    "predict",
    "segment",
    "stages",
    "testing",
    "train",
    "tune",
    "write_report",
]

_MODULES = {
    "Dataset": "dskd.data",
    "DeployedStudent": "dskd.deploy.student",
    "Distiller": "dskd.engine.distiller",
    "Result": "dskd.engine.result",
    "Split": "dskd.data",
    "check": "dskd.engine.check.from_python",
    "compare_methods": "dskd.api.images",
    "distill": "dskd.api.images",
    "evaluate": "dskd.deploy.evaluate",
    "export": "dskd.api.images",
    "load_dataset": "dskd.data",
    "load_deployed": "dskd.deploy.student",
    "load_model": "dskd.models.factory",
    "predict": "dskd.api.images",
    "stages": "dskd.models.stage_table",
    "train": "dskd.api.images",
    "tune": "dskd.compare.tuning.from_python",
    "write_report": "dskd.report.from_python",
}
"""The module of each name that is imported on first use."""

if not TYPE_CHECKING:  # a type checker would take any misspelt name for one of these

    def __getattr__(name: str) -> Any:
        """Imports a public name on first use."""
        if name in ("losses", "testing"):
            return importlib.import_module(f"dskd.{name}")
        if name in ("graphs", "segment"):  # other tasks; they need extras
            return importlib.import_module(f"dskd.api.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """Lists the public names, imported or not."""
        return [*__all__]
