"""Makes cur_retrieval.json: factors and scores of the public class CURApprox on a fixed small matrix.

In an environment with PyTorch: ``git clone https://github.com/iesl/anncur``, then ``python make_cur_retrieval.py anncur``. Of the class's file only
the class is run. Its assertion calls ``torch.eq`` on two matrices, whose answer is a matrix and has no truth; it is replaced by ``torch.equal``.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

clone = Path(sys.argv[1])
commit = subprocess.run(["git", "-C", str(clone), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
shown = subprocess.run(["git", "-C", str(clone), "show", "HEAD:eval/matrix_approx_zeshel.py"], capture_output=True, text=True, check=True).stdout
body = shown[shown.index("class CURApprox") : shown.index("def plot_heat_map")]
names = {"torch": torch, "np": np}
exec(body.replace("assert torch.eq(", "assert torch.equal("), names)  # the public class is what is to be run

draws = torch.Generator().manual_seed(5)
scores = torch.randn(7, 3, generator=draws, dtype=torch.float64) @ torch.randn(3, 9, generator=draws, dtype=torch.float64)
scores = (scores + 0.3 * torch.randn(7, 9, generator=draws, dtype=torch.float64)).round(decimals=3)
new = torch.randn(2, 3, generator=draws, dtype=torch.float64).round(decimals=3)
queries, anchors = [0, 2, 3, 5], [1, 4, 8]
cases = {}
for preference in ("rows", "cols"):
    for oracle in (False, True):
        found = names["CURApprox"](scores[queries], scores[:, anchors], queries, anchors, preference, A=scores.numpy() if oracle else None)
        case = {"rows": found.latent_rows.tolist(), "columns": found.latent_cols.tolist(), "all": found.get(list(range(7)), list(range(9))).tolist()}
        if preference == "rows":
            top = found.topk_in_row(new, 4)
            case |= {"new": found.get_complete_row(new).tolist(), "top": top.indices.tolist()}
        cases[f"{preference}{', oracle' if oracle else ''}"] = case
out = {"commit": commit, "scores": scores.tolist(), "new": new.tolist(), "queries": queries, "anchors": anchors, "cases": cases}
Path(__file__).with_name("cur_retrieval.json").write_text(json.dumps(out) + "\n")
