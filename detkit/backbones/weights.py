"""Read weights by published name or path, and load them with errors a person can act on.

Published files are torchvision's; they live in torch.hub's cache and are checked against the
hash in their name on every reading, not only after the download.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn

from detkit.files import damaged_member
from detkit.registry import suggest

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

# our name -> torchvision's, the best one first
_PUBLISHED = {
    "imagenet": ("IMAGENET1K_V2", "IMAGENET1K_V1"),
    "imagenet_v1": ("IMAGENET1K_V1",),
    "coco": ("COCO_V1",),
}


def read_weights(model: str, weights: str | Path) -> StateDict:
    """The state_dict that `weights=` stands for.

    Args:
        model: torchvision's name of the network ("resnet50", "fasterrcnn_resnet50_fpn").
        weights: "imagenet" (the best published file), "imagenet_v1", "coco", or a path.

    Raises:
        ValueError: nothing is published under that name, or the file is unusable.
        ConnectionError: the published file is neither in the cache nor to be had.
    """
    if is_published(weights):
        return load_published(published_url(model, str(weights)))
    if not Path(weights).is_file():
        allowed = suggest(str(weights), _PUBLISHED)
        raise ValueError(f"weights {str(weights)!r}: no such file; {allowed}, or a path")
    return load_weights_file(weights)


def is_published(weights: str | Path | None) -> bool:
    """Whether `weights=` names published weights, and not a file."""
    return weights in _PUBLISHED


def published_url(model: str, weights: str) -> str:
    """Where torchvision publishes a file.

    Args:
        model: torchvision's name of the network.
        weights: "imagenet", "imagenet_v1" or "coco".

    Raises:
        ValueError: nothing is published under that name for this network.
    """
    members: Mapping[str, object] = {}
    if model in torchvision.models.list_models():
        members = torchvision.models.get_model_weights(model).__members__
    for choice in _PUBLISHED.get(weights, ()):
        if choice in members:
            return str(members[choice].url)  # type: ignore[attr-defined]
    allowed = [
        name for name, choices in _PUBLISHED.items() if any(each in members for each in choices)
    ]
    raise ValueError(
        f"no weights {weights!r} are published for {model}; "
        f"allowed: {', '.join(['None', *allowed, 'a path'])}"
    )


def load_published(url: str) -> StateDict:
    """Read a published file through torch.hub's cache, downloading it the first time.

    Args:
        url: its name ends in `-<start of its sha256>.<suffix>`.

    Raises:
        ValueError: the file does not match its hash.
        ConnectionError: it is not in the cache and cannot be downloaded.
    """
    name = Path(urlparse(url).path).name
    expected = _hash_in_name(name)
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if not path.exists():
        _download(url, path)
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if not digest.hexdigest().startswith(expected):
        raise ValueError(f"{path} does not match its hash; delete it and try again")
    # torch.hub's reader, because it knows the older file formats too
    return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)


def _hash_in_name(name: str) -> str:
    found = re.search(r"-([0-9a-f]{8,})\.", name)
    if found is None:
        raise ValueError(
            f"cannot check {name!r}: its name carries no hash, as in 'net-1a2b3c4d.pth'"
        )
    return found.group(1)


def _download(url: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # writes aside and renames: a broken download leaves nothing behind
        torch.hub.download_url_to_file(url, str(path), hash_prefix=_hash_in_name(path.name))
    except RuntimeError as error:  # torch.hub's word for a wrong hash
        raise ValueError(f"what {url} sent does not match its hash; try again") from error
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"cannot download {url} ({error}); get it by other means and place it as {path}"
        ) from error


def load_weights_file(path: str | Path) -> StateDict:
    """Read a state_dict from a file written by `torch.save`, on the CPU and without running code.

    A checkpoint that holds it under "model" or "state_dict" is accepted as well.

    Raises:
        ValueError: no such file, not readable, or not a state_dict.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights file {path} does not exist; give the path of a file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        reason = str(error).partition("\n")[0].strip() or type(error).__name__
        raise ValueError(f"cannot read weights from {path}: {reason[:200]}") from error
    if (member := damaged_member(path)) is not None:
        raise ValueError(f"{path} is damaged (wrong checksum of {member}); fetch it again")
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not _is_state_dict(content):
        raise ValueError(
            f"{path} holds no state_dict (names to tensors, possibly under 'model' or "
            f"'state_dict') but a {type(content).__name__}; save model.state_dict()"
        )
    return dict(content)


def _is_state_dict(content: object) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) for key in content)
        and all(isinstance(value, Tensor) for value in content.values())
    )


def load_into(
    module: nn.Module, state: Mapping[str, Tensor], *, source: str, ignore: Sequence[str] = ()
) -> None:
    """Load every weight of a module, and say in one line what does not fit.

    Batch norm's `num_batches_tracked` may be there or not.

    Args:
        module: changed in place.
        state: names to tensors.
        source: what the weights are, for the error message ("resnet50.pth").
        ignore: beginnings of names that the weights may have and the module need not.

    Raises:
        ValueError: missing or unexpected names, or different shapes.
    """
    own = module.state_dict()
    given = {
        name: value
        for name, value in state.items()
        if name in own or not _is_optional(name, ignore)
    }
    missing = [name for name in own if name not in given and not _is_optional(name, ())]
    unexpected = [name for name in given if name not in own]
    mismatched = [
        f"{name} {list(value.shape)} instead of {list(own[name].shape)}"
        for name, value in given.items()
        if name in own and value.shape != own[name].shape
    ]
    problems = [
        _summarise(label, names)
        for label, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", mismatched),
        )
        if names
    ]
    if problems:
        raise ValueError(f"weights {source} do not fit {_name(module)}: {'; '.join(problems)}")
    module.load_state_dict(given)


def load_what_fits(
    module: nn.Module, state: Mapping[str, Tensor], *, source: str, core: str
) -> None:
    """Load the weights that fit by name and shape, and warn of the others, counted by layer.

    Args:
        module: changed in place.
        state: names to tensors.
        source: what the weights are, for the messages.
        core: beginning of the names of which at least half must fit. Weights of one dimension do
            not count: norms of the same width fit nearly everywhere.

    Raises:
        ValueError: less than half of the core fits.
    """
    own = module.state_dict()
    fitting = {n: each for n, each in state.items() if n in own and each.shape == own[n].shape}
    kernels = [name for name, each in own.items() if name.startswith(core) and each.ndim > 1]
    found = sum(name in fitting for name in kernels)
    if 2 * found < len(kernels):
        raise ValueError(
            f"weights {source} do not fit {_name(module)}: only {found} of {len(kernels)} weights "
            f"under {core.rstrip('.')} are there with the same name and shape; "
            "set model as it was for them"
        )
    module.load_state_dict(fitting, strict=False)
    needed = [name for name in own if not _is_optional(name, ())]
    groups = {
        "absent from the file, start anew": [name for name in needed if name not in state],
        "of another shape, start anew": [n for n in needed if n in state and n not in fitting],
        "in the file only": [n for n in state if n not in own and not _is_optional(n, ())],
    }
    if any(groups.values()):
        taken = sum(name in fitting for name in needed)
        logger.warning("%s: %d of %d weights are taken over", source, taken, len(needed))
    for label, names in groups.items():
        if names:
            logger.warning("  %d %s: %s", len(names), label, _count_by_layer(names))


def _count_by_layer(names: Sequence[str], most: int = 6) -> str:
    """`neck.inner_blocks 4, rpn.head 6`, for a message."""
    layers = Counter(".".join(name.split(".")[:2]) for name in names)
    listed = [f"{layer} {count}" for layer, count in list(layers.items())[:most]]
    return ", ".join([*listed, "..."] if len(layers) > most else listed)


def _is_optional(name: str, ignore: Sequence[str]) -> bool:
    return name.endswith("num_batches_tracked") or name.startswith(tuple(ignore))


def _summarise(label: str, names: Sequence[str]) -> str:
    rest = ", ..." if len(names) > 3 else ""
    return f"{len(names)} {label} ({', '.join(names[:3])}{rest})"


def _name(module: nn.Module) -> str:
    return str(getattr(module, "name", type(module).__name__))


def adapt_stem(state: Mapping[str, Tensor], key: str, in_channels: int) -> StateDict:
    """Make a first convolution learnt on RGB take another number of channels.

    One channel gets the sum of the kernels, so that a grey picture gives what the same picture
    copied into R, G and B gave; otherwise the kernels repeat in turn, scaled by 3 / in_channels
    to keep the size of the activations.

    Args:
        state: names to tensors; not changed.
        key: name of the convolution's weight `[D, 3, k, k]`.
        in_channels: wanted number of channels.
    """
    kernel = state.get(key)
    if kernel is None or kernel.ndim != 4 or kernel.shape[1] in (1, in_channels):
        return dict(state)
    if in_channels == 1:
        return {**state, key: kernel.sum(dim=1, keepdim=True)}
    given = kernel.shape[1]
    turn = torch.arange(in_channels, device=kernel.device) % given
    return {**state, key: kernel[:, turn] * (given / in_channels)}
