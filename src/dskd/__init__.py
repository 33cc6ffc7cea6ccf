"""Knowledge distillation with deep supervision.

>>> import dskd
>>> dskd.load_model("resnet8", num_classes=10).stage_names
('layer1', 'layer2', 'layer3')
"""

from dskd import losses
from dskd.api import compare_methods, distill, train
from dskd.data import Dataset, Split, load_dataset
from dskd.deploy.student import evaluate, load_deployed, predict
from dskd.engine.training_run import Result
from dskd.errors import InputError, NonFiniteError, Stopped
from dskd.models.factory import load_model

__version__ = "0.1.0"
__all__ = [
    "Dataset",
    "InputError",
    "NonFiniteError",
    "Result",
    "Split",
    "Stopped",
    "compare_methods",
    "distill",
    "evaluate",
    "load_dataset",
    "load_deployed",
    "load_model",
    "losses",
    "predict",
    "train",
]
