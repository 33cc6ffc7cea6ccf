"""Knowledge distillation with deep supervision.

>>> import dskd
>>> dskd.load_model("resnet8", num_classes=10).stage_names
('layer1', 'layer2', 'layer3')
"""

from dskd import losses
from dskd.api import compare_methods, distill, train
from dskd.data import Dataset, Split, load_dataset
from dskd.deployed import evaluate, load_deployed, predict
from dskd.errors import InputError
from dskd.finite import NotFinite
from dskd.interrupt import Stopped
from dskd.models.load import load_model
from dskd.session import Result

__version__ = "0.1.0"
__all__ = [
    "Dataset",
    "InputError",
    "NotFinite",
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
