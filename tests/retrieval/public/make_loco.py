"""Makes loco.json: outputs of the public sequence mixer of M2-BERT on small fixed inputs, with its weights.

In an environment with PyTorch, einops and opt_einsum: ``git clone https://github.com/HazyResearch/m2``, then ``python make_loco.py m2``.
Of the folder ``bert`` two files are run, ``src/mm/hyena_utils.py`` and ``src/mm/monarch_mixer_sequence_mixer.py``; the class OptimModule, which
only remembers learning rates, is replaced by one that registers tensors as buffers.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import torch

clone = Path(sys.argv[1])
git = ["git", "-C", str(clone)]
commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
BUFFERS = """from torch import nn


class OptimModule(nn.Module):
    def register(self, name, tensor, lr=None, wd=0.0):
        self.register_buffer(name, tensor)
"""

with tempfile.TemporaryDirectory() as folder:
    for name in ("src/mm/hyena_utils.py", "src/mm/monarch_mixer_sequence_mixer.py", "src/utils/train.py"):
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        public = subprocess.run([*git, "show", f"HEAD:bert/{name}"], capture_output=True, text=True, check=True).stdout if "mm" in name else BUFFERS
        path.write_text(public)
    sys.path.insert(0, folder)
    Mixer = import_module("src.mm.monarch_mixer_sequence_mixer").MonarchMixerSequenceMixing
    cases = []
    for residual in (False, True):
        torch.manual_seed(7)
        with contextlib.redirect_stdout(None):
            mixer = Mixer(4, l_max=12, bidirectional=True, hyena_emb_dim=5, hyena_filter_order=6, hyena_w=10, residual_long_conv=residual)
        u = torch.randn(2, 9, 4)
        with torch.no_grad():
            y = mixer(u)[0]
        weights = {name: value.tolist() for name, value in mixer.state_dict().items() if not name.endswith((".z", ".t", ".deltas"))}
        cases.append({"residual": residual, "u": u.tolist(), "y": y.tolist(), "weights": weights})
Path(__file__).with_name("loco.json").write_text(json.dumps({"commit": commit, "cases": cases}) + "\n")
