"""Choose the stages of a model, if the user names none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.models.eval_mode import eval_mode
from dskd.models.feature_hooks import feature_hooks
from dskd.models.feature_maps import to_feature_map
from dskd.models.prefix_tokens import find_prefix_tokens
from dskd.models.stage_choice import FEWEST, SHALLOWEST, SMALLER, choose_stages, evenly

_HEADS = ("avgpool", "dropout", "classifier", "fc", "head", "heads")
"""Parts of torchvision's models behind the last feature map."""
_LIBRARY_MODULES = ("timm.models.", "torchvision.models.")
_INNER_BLOCKS = ("encoder.layers",)
"""The containers of blocks in torchvision's transformers."""


def default_stages(module: nn.Module, images: Tensor) -> tuple[str, ...] | None:
    """The stages of a model that names none, from shallow to deep.

    For a model of timm or torchvision the candidates are the modules that timm lists in
    ``feature_info``; of other models, the parts of the network and the blocks in them. One forward
    pass shows their maps. A stage is the deepest module of each map size, without the stem. If all
    maps have one size, the stages are four evenly spaced modules.

    For any other module, and where that does not find two stages, or where not all modules in
    ``feature_info`` return maps, the stages are those of `dskd.models.stage_choice.choose_stages`.

    Args:
        module: The model, on the CPU. It is not changed.
        images: A few images ``[B, C, H, W]``, as the module expects them.

    Returns:
        None for a model that returns stages itself, as those of the zoo do, and if no part of the
        model returns a map.

    Raises:
        InputError: The module does not run on the images.

    Example:
        >>> from dskd.models.factory import load_model
        >>> model = load_model("timm/resnet18", num_classes=10)
        >>> default_stages(model, torch.zeros(2, 3, 32, 32))
        ('layer1', 'layer2', 'layer3', 'layer4')
    """
    if hasattr(module, "forward_stages"):
        return None
    if (parameter := next(module.parameters(), None)) is not None:
        images = images.to(parameter.device)
    chosen = _library_stages(module, images) if _is_of_library(module) else ()
    return chosen or choose_stages(module, images) or None


def _is_of_library(module: nn.Module) -> bool:
    """Whether a module is a model of timm or torchvision, or derives from one."""
    return any(kind.__module__.startswith(_LIBRARY_MODULES) for kind in type(module).__mro__)


def _library_stages(module: nn.Module, images: Tensor) -> tuple[str, ...]:
    """The stages of a model of timm or torchvision; empty if they are to be found otherwise."""
    listed = [info.get("module", "") for info in getattr(module, "feature_info", None) or ()]
    maps = _map_sizes(module, listed or list(_parts(module)), images)
    size = tuple(images.shape[2:])
    chosen = evenly([*maps]) if len({*maps.values()}) == 1 else _deepest(maps, size)
    incomplete = len({*listed} & maps.keys()) < len({*listed})
    return () if len(chosen) < 2 or (incomplete and len(chosen) < FEWEST) else tuple(chosen)


def _parts(module: nn.Module) -> Iterator[str]:
    """The parts of a network, and the blocks of those parts that are containers."""
    submodules = dict(module.named_modules())
    for path in _INNER_BLOCKS:
        if path in submodules:
            yield from (f"{path}.{block}" for block, _ in submodules[path].named_children())
            return
    for name, part in module.named_children():
        if name in _HEADS:
            continue
        if isinstance(part, nn.Sequential | nn.ModuleList):
            yield from (f"{name}.{block}" for block, _ in part.named_children())
        yield name


@torch.no_grad()
def _map_sizes(
    module: nn.Module, names: Sequence[str], images: Tensor
) -> dict[str, tuple[int, int]]:
    """Height and width of each module's map, in the order in which they run.

    Modules are left out that do not exist or do not run, whose output is no map, or is changed in
    place by a later module. A container is left out if its blocks have maps of several sizes.
    """
    there = {name for name, _ in module.named_modules()}
    prefix = find_prefix_tokens(module)
    with eval_mode(module), feature_hooks(module, [n for n in names if n in there], None) as found:
        module(images)
    sizes: dict[str, tuple[int, int]] = {}
    for name, (output, version) in found.outputs.items():
        try:
            height, width = to_feature_map(output, name, images, prefix).shape[2:]
        except InputError:
            continue
        if isinstance(output, Tensor) and output._version == version:
            sizes[name] = (height, width)
    blocks = {name: {s for n, s in sizes.items() if n.startswith(f"{name}.")} for name in sizes}
    return {name: size for name, size in sizes.items() if len(blocks[name]) < 2}


def _deepest(maps: dict[str, tuple[int, int]], image: tuple[int, ...]) -> list[str]:
    """The last module of each map size, without those of the stem if two others remain."""
    last: dict[str, tuple[int, int]] = {}
    for name, size in maps.items():
        last = {other: there for other, there in last.items() if there[0] >= SMALLER * size[0]}
        last[name] = size
    small = [name for name, size in last.items() if SHALLOWEST * size[0] <= image[0]]
    return small if len(small) >= 2 else list(last)
