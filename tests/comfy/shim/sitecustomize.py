"""Lets torchvision import beside a CPU-only torch (test environments only).

The torchvision wheel of the package index wants CUDA's libraries; on a CPU-only torch its operators do not register and
``import torchvision`` fails with "operator torchvision::nms does not exist". ComfyUI imports torchvision without need
of the operators, so declaring their schemas is enough. Put this directory on PYTHONPATH of a process, or import this
module before torchvision: the declaration happens when torchvision is imported, and torch is not loaded earlier.
"""

import importlib.abc
import sys

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class DeclareOperators(importlib.abc.MetaPathFinder):
    """Declares torchvision's operators just before torchvision is found."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if "+cpu" in torch.__version__ and not hasattr(torch.ops.torchvision, "nms"):
                library = torch.library.Library("torchvision", "FRAGMENT")
                for schema in SCHEMAS:
                    library.define(schema)
                self.kept.append(library)  # the declarations end with the object that made them
        return None

    kept: list = []


if "torchvision" not in sys.modules and not any(isinstance(f, DeclareOperators) for f in sys.meta_path):
    sys.meta_path.insert(0, DeclareOperators())
