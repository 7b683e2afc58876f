"""A real vision encoder in the place of the small ones: any module from images to features enters a composition by one argument.

``open_clip``'s ``model.visual`` returns features as it is. A vision model of the library *transformers* returns an object; :class:`PooledVision`
takes the features out of it::

    encoder = load_clip_vision("openai/clip-vit-base-patch32")
    merged = Composition(encoder, vectors)
"""

from typing import Any

from torch import Tensor, nn


class PooledVision(nn.Module):
    """A vision model of *transformers* as a module from images (n, channels, height, width) to features (n, d).

    Args:
        vision: such as ``CLIPVisionModel`` or ``CLIPVisionModelWithProjection``.
    """

    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, images: Tensor) -> Tensor:
        """The projected features where the model has them, else the pooled ones."""
        out: Any = self.vision(pixel_values=images)
        features: Tensor = out.image_embeds if hasattr(out, "image_embeds") else out.pooler_output
        return features


def load_clip_vision(name: str) -> PooledVision:
    """The vision encoder of a CLIP, from a folder or a name of a hub; needs the extra ``hf``.

    Attention is computed by plain products ("eager"), which have the forward-mode derivative that the linearised variant takes.
    """
    from transformers import CLIPVisionModelWithProjection

    return PooledVision(CLIPVisionModelWithProjection.from_pretrained(name, attn_implementation="eager").eval())
