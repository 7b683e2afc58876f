"""Makes fusion_bench.json: what the functions of the public package fusion-bench give for small inputs.

The package is too heavy for the test environment. In an environment of its own: ``pip install fusion-bench``, then ``python make.py``.
"""

import json
from importlib.metadata import version
from pathlib import Path

import torch
from fusion_bench.method.adamerging.entropy_loss import entropy_loss
from fusion_bench.method.tall_mask.utils import generate_task_masks
from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging
from fusion_bench.utils.state_dict_arithmetic import state_dict_add, state_dict_mul, state_dict_sub


def task_arithmetic(base: torch.Tensor, tuned: list[torch.Tensor], scale: float) -> torch.Tensor:
    """The lines of the package's task_arithmetic_merge on state dicts (the function itself, 0.2.33, stops at two models with a type error)."""
    total = None
    for weights in tuned:
        vector = state_dict_sub({"w": weights}, {"w": base})
        total = vector if total is None else state_dict_add(total, vector)
    merged: torch.Tensor = state_dict_add({"w": base}, state_dict_mul(total, scale))["w"]
    return merged


draws = torch.Generator().manual_seed(20)
base = torch.randn(24, generator=draws)
vectors = torch.randn(3, 24, generator=draws) * (torch.rand(3, 24, generator=draws) < 0.7)
logits = 3 * torch.randn(6, 5, generator=draws)

found = {
    "origin": f"fusion-bench {version('fusion-bench')}, torch {torch.__version__}, made by make.py",
    "base": base.tolist(),
    "vectors": vectors.tolist(),
    "ties": [
        {"keep": keep, "combine": combine, "merged": ties_merging(vectors, reset_thresh=keep, merge_func=f"dis-{combine}").tolist()}
        for keep in (0.2, 0.5)
        for combine in ("mean", "sum", "max")
    ],
    "task_arithmetic": task_arithmetic(base, [base + vector for vector in vectors], 0.3).tolist(),
    "tall_masks": [
        {"threshold": threshold, "masks": generate_task_masks(vectors, base + vectors, base, tall_mask_lambda=threshold).int().tolist()}
        for threshold in (0.2, 0.4, 1.0)
    ],
    "logits": logits.tolist(),
    "entropy": entropy_loss(logits).item(),
}
(Path(__file__).parent / "fusion_bench.json").write_text(json.dumps(found) + "\n")
