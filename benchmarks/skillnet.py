"""A merged active path beside PyTorch's layer of that width, merged beside unmerged, one skill a modality beside a multiway block."""

import torch
from ratios import ratios
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.moe.skillnet.baselines import skillnet
from mtlearn.moe.skillnet.method import SHARED, TABLE, Inputs, Sizes, SkillLayer
from mtlearn.moe.skillnet.tasks import Data

BATCH, LENGTH, WIDTH, HEADS, HIDDEN = 32, 36, 48, 4, 96  # clips at the laptop's sizes
ACTIVE = TABLE["video"].calls[1].skills


def peer(width: int, heads: int, hidden: int, merged: SkillLayer) -> nn.TransformerEncoderLayer:
    """PyTorch's layer with the weights of a merged one."""
    layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(merged.qkv.of["merged"].weight)
        layer.self_attn.in_proj_bias.copy_(merged.qkv.of["merged"].bias)
    pairs = ((layer.self_attn.out_proj, merged.out), (layer.linear1, merged.ffn.inner["merged"]), (layer.linear2, merged.ffn.outer["merged"]))
    for theirs, ours in (*pairs, (layer.norm1, merged.attention_norm), (layer.norm2, merged.ffn_norm)):
        theirs.load_state_dict(ours.state_dict())
    return layer


def layers(width: int, heads: int, hidden: int, batch: int, length: int) -> None:
    torch.manual_seed(0)
    skills = ("general", "text", "image", "sound", "video", "code")
    ours = SkillLayer(skills, width, heads, hidden)
    merged = ours.merged(ACTIVE)
    theirs = peer(width, heads, len(ACTIVE) * hidden, merged)
    x = torch.randn(batch, length, width)
    torch.testing.assert_close(merged(x, None, ("merged",)), theirs(x), atol=1e-4, rtol=0)
    torch.testing.assert_close(ours(x, None, ACTIVE), theirs(x), atol=1e-4, rtol=0)
    wanted = x.clone().requires_grad_()
    sizes = f"{batch} x {length} tokens, width {width}, FFN {len(ACTIVE)} x {hidden}"
    ratios(
        f"A layer, {sizes}, forward and backward",
        {
            "nn.TransformerEncoderLayer": lambda: theirs(wanted).sum().backward(),
            "ours, merged": lambda: merged(wanted, None, ("merged",)).sum().backward(),
            "ours, unmerged": lambda: ours(wanted, None, ACTIVE).sum().backward(),
        },
        target="merged at most 1",
    )
    theirs.eval()

    def without_gradient(call: object) -> object:
        def way() -> None:
            with torch.no_grad():
                call()

        return way

    ratios(
        f"A layer, {sizes}, inference",
        {
            "nn.TransformerEncoderLayer": without_gradient(lambda: theirs(x)),
            "ours, merged": without_gradient(lambda: merged(x, None, ("merged",))),
            "ours, unmerged": without_gradient(lambda: ours(x, None, ACTIVE)),
        },
        target="merged at most 1",
    )


def call() -> None:
    torch.manual_seed(0)
    net = skillnet(Data().modalities(), Sizes()).eval()
    tower = net.merged("video", 1)
    clips = Inputs(torch.randn(BATCH, LENGTH, 16), torch.ones(BATCH, LENGTH, dtype=torch.bool))
    ways = {"unmerged": lambda: net.embed("video", 1, clips), "merged": lambda: tower(clips)}
    with torch.no_grad():
        torch.testing.assert_close(ways["merged"](), ways["unmerged"](), atol=1e-4, rtol=0)
        ratios("Encoding 32 clips with the whole SkillNet, inference", ways, target="below 1")


class Multiway(nn.Module):
    """VLMo and BEiT-3 in their own order: shared attention, then the FFN of the modality."""

    def __init__(self, layer: SkillLayer) -> None:
        super().__init__()
        self.layer = layer
        self.ffns = nn.ModuleDict({s: nn.Sequential(layer.ffn.inner[s], nn.GELU(), layer.ffn.outer[s]) for s in layer.ffn.inner})

    def forward(self, x: Tensor, way: str) -> Tensor:
        layer = self.layer
        qkv = layer.qkv.of[SHARED](layer.attention_norm(x)).view(*x.shape[:2], 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + layer.out(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))
        return x + self.ffns[way](layer.ffn_norm(x))


def multiway() -> None:
    torch.manual_seed(0)
    layer = SkillLayer(("vision", "language"), 256, 4, 512, "ffn")
    theirs, x = Multiway(layer), torch.randn(BATCH, LENGTH, 256, requires_grad=True)
    torch.testing.assert_close(layer(x, None, ("vision",)), theirs(x, "vision"), atol=1e-4, rtol=0)
    ways = {
        "an FFN a modality": lambda: theirs(x, "vision").sum().backward(),
        "ours, one skill": lambda: layer(x, None, ("vision",)).sum().backward(),
    }
    ratios(f"One skill in the FFN alone, {BATCH} x {LENGTH} tokens, width 256, forward and backward", ways, target="at most 1.05")


if __name__ == "__main__":
    torch.set_num_threads(1)
    layers(WIDTH, HEADS, HIDDEN, BATCH, LENGTH)
    layers(256, 4, 512, BATCH, LENGTH)
    call()
    multiway()
