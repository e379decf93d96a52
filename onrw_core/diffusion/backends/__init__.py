"""Adapters of other libraries' networks, one module for each library; only these modules import the libraries."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import torch

__all__ = ["ensure_torchvision"]

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_declared: list[torch.library.Library] = []  # a declaration lasts as long as its Library object


def ensure_torchvision() -> None:
    """Let transformers and diffusers import although the installed torchvision does not match torch.

    A torchvision built for CUDA cannot register its operators with a CPU-only torch, and its import fails with
    "operator torchvision::nms does not exist". Neither library needs the operators here, only the import; declaring
    them is enough. Does nothing where torchvision is absent or works.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in OPERATORS:
            library.define(operator)
        _declared.append(library)
