"""Makes xmc.json: the losses of the public DEXML code on small fixed scores, with their gradients.

In an environment with PyTorch: ``git clone https://github.com/nilesh2797/DEXML``, then ``python make_xmc.py DEXML``. ``losses.py`` and
``utils/topk_utils.py`` are run in one process, where the helper that gathers from all processes gives its own rows alone.
"""

import json
import subprocess
import sys
import types
from pathlib import Path

import torch

clone = Path(sys.argv[1])
git = ["git", "-C", str(clone)]
commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def module(name, file):
    found = types.ModuleType(name)
    sys.modules[name] = found
    if file:
        exec(subprocess.run([*git, "show", f"HEAD:{file}"], capture_output=True, text=True, check=True).stdout, found.__dict__)  # the public code
    return found


module("utils", "")
helpers = module("utils.dl_utils", "")
helpers.unwrap = lambda model: model
helpers.GatherLayer = types.SimpleNamespace(apply=lambda x: x[None])
module("utils.topk_utils", "utils/topk_utils.py")
losses = module("losses", "losses.py")

draws = torch.Generator().manual_seed(11)
scores = (3 * torch.randn(4, 9, generator=draws, dtype=torch.float64)).round(decimals=3)
targets = torch.tensor([[0, 4, 7], [2, 5, 8], [1, 3, 6], [8, 0, 2]])
present = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
out = {}
for criterion in ("softmax", "decoupled-softmax", "bce", "topk"):
    settings = types.SimpleNamespace(
        loss_criterion=criterion, loss_sample=False, loss_reduction="mean", loss_weighted=False, numy=9, topk_K=3, topk_alpha=2.0, topk_n_iter=80
    )
    given = scores.clone().requires_grad_()
    loss = losses.SimLoss(settings).compute_loss(given.clone(), (targets, present), lambda *found: found)  # it writes into the scores
    loss.backward()
    out[criterion] = {"loss": loss.item(), "gradient": given.grad.tolist()}
pairs = [[row, int(targets[row, i])] for row, i in present.nonzero().tolist()]
Path(__file__).with_name("xmc.json").write_text(json.dumps({"commit": commit, "scores": scores.tolist(), "pairs": pairs, "losses": out}) + "\n")
