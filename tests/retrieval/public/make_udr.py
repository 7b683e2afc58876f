"""Makes udr.json: the list-wise loss and the in-batch loss of the public UDR code on small fixed vectors.

In an environment with PyTorch: ``git clone https://github.com/KaiLv69/UDR``, then ``python make_udr.py UDR``. Of ``DPR/dpr/models/biencoder.py`` one
function and one class are run, with the dot product that the file gives them.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

clone = Path(sys.argv[1])
git = ["git", "-C", str(clone)]
commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
shown = subprocess.run([*git, "show", "HEAD:DPR/dpr/models/biencoder.py"], capture_output=True, text=True, check=True).stdout
body = shown[shown.index("def lambda_mrr_loss") : shown.index("class BiEncoder_list_ranking_loss")]
following = shown[shown.index("class BiEncoder_list_ranking_loss") :]
ends = [place for place in (following.find("\nclass ", 1), following.find("\ndef ", 1)) if place > 0]
names = {"torch": torch, "nn": nn, "T": Tensor, "dot_product_scores": lambda q, c: q @ c.T}
exec(body + (following[: min(ends)] if ends else following), names)  # the public code is what is to be run

draws = torch.Generator().manual_seed(3)
cases = []
for queries, listed, width in ((3, 5, 4), (2, 8, 6)):
    q = torch.randn(queries, width, generator=draws, dtype=torch.float64).round(decimals=3)
    c = torch.randn(queries * listed, width, generator=draws, dtype=torch.float64).round(decimals=3)
    _, ranking, in_batch = names["BiEncoder_list_ranking_loss"]().calc(q, c, 1.0)
    cases.append({"queries": q.tolist(), "candidates": c.view(queries, listed, width).tolist(), "ranking": ranking, "in-batch": in_batch})
Path(__file__).with_name("udr.json").write_text(json.dumps({"commit": commit, "cases": cases}) + "\n")
