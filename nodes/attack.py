"""ONRW_Attack: an attack on images."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..onrw_core.attacks import ATTACKS, Attack, attack
from . import images
from .adapter import ordinary_tensors
from .inputs import generator_for, seed
from .schemas import schema
from .sockets import CATEGORY

__all__ = ["AttackNode"]


class AttackNode(io.ComfyNode):
    """Applies one attack to images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        kinds = "\n".join(
            f"{name}: {kind.description}" + (f" ({kind.low:g} to {kind.high:g} {kind.unit})" if kind.unit else "")
            for name, kind in ATTACKS.items()
        )
        return schema(
            node_id="ONRW_Attack",
            display_name="Attack Image (Watermark Test)",
            search_aliases=["distortion", "crop and compress", "robustness"],
            category=CATEGORY,
            description="Crops, rotates, compresses or blurs images, to test which attacks a watermark survives.",
            inputs=[
                io.Image.Input("image", tooltip="The images."),
                io.Combo.Input("attack", options=list(ATTACKS), default="jpeg", tooltip=f"The attack.\n{kinds}"),
                io.Boolean.Input(
                    "default_strength",
                    default=True,
                    tooltip="Use the default strength of the attack. Off: use `strength`.",
                ),
                io.Float.Input(
                    "strength",
                    default=50.0,
                    min=min(kind.low for kind in ATTACKS.values()),
                    max=max(kind.high for kind in ATTACKS.values()),
                    step=0.01,
                    round=False,
                    tooltip="Strength in the unit of the attack: JPEG quality, degrees, remaining area, ...",
                ),
                seed("Seed of random noise and positions."),
            ],
            outputs=[io.Image.Output("attacked", "attacked", tooltip="The attacked images; crops are smaller.")],
        )

    @classmethod
    @ordinary_tensors
    def execute(cls, image: Tensor, attack: str, default_strength: bool, strength: float, seed: int) -> io.NodeOutput:
        generator = generator_for(seed)
        attacked = _attack(attack, default_strength, strength)(images.from_comfy(image), generator)
        return io.NodeOutput(images.to_comfy(attacked.images))


def _attack(name: str, default: bool, strength: float) -> Attack:
    return attack(name, None if default or not ATTACKS[name].unit else strength)
