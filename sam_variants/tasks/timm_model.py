"""timm:NAME: an image model of the timm package, without pretrained weights."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from landscape.table import unknown

from .shapes import image_shape
from .task import Task


def timm_model(task: Task, name: str, **arguments: Any) -> nn.Module:
    """The model that timm calls `name`, for the task's channels and classes; nothing is downloaded.

    Raises:
        ValueError: timm cannot be imported or has no such model, the task gives no images, or timm
            refuses the arguments.
    """
    num_colours, _, _ = image_shape(task, f"timm:{name}")
    try:
        timm = import_module("timm")
    except ModuleNotFoundError:
        raise ValueError(
            f"model timm:{name} needs the timm extra: pip install 'loss-landscape-toolkit[timm]'"
        ) from None
    except Exception as error:  # a torchvision for another torch raises RuntimeError
        message = " ".join(str(error).split())
        raise ValueError(
            f"model timm:{name}: timm cannot be imported: {type(error).__name__}: {message}"
        ) from error
    known = timm.list_models()
    if name not in known:
        near = unknown(name, known, "timm model").split(" (known:")[0]  # timm has a thousand
        raise ValueError(f"{near} (timm.list_models() lists {len(known)})")
    try:
        model = timm.create_model(
            name,
            pretrained=False,
            in_chans=num_colours,
            num_classes=task.num_classes,
            **arguments,
        )
    except Exception as error:  # foreign constructors raise what they like
        message = " ".join(str(error).split())
        raise ValueError(f"model timm:{name}: {type(error).__name__}: {message}") from error
    return model  # type: ignore[no-any-return]
