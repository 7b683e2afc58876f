"""Makes slerp.json: what the slerp of the public package fusion-bench gives for small vectors.

In an environment with PyTorch: ``pip install --no-deps fusion-bench``, then ``python make_slerp.py``. The file with the function is loaded by itself,
so that none of the package's many requirements is needed.
"""

import json
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import torch

folder = find_spec("fusion_bench").submodule_search_locations[0]  # type: ignore[union-attr, index]
spec = spec_from_file_location("slerp_utils", Path(folder, "method", "slerp", "slerp_utils.py"))
public = module_from_spec(spec)  # type: ignore[arg-type]
spec.loader.exec_module(public)  # type: ignore[union-attr]

cases = []
for number, t in enumerate((0.0, 0.1, 0.35, 0.5, 0.8, 1.0)):
    draws = torch.Generator().manual_seed(number)
    first, second = torch.randn(7, generator=draws, dtype=torch.float64), (number + 0.5) * torch.randn(7, generator=draws, dtype=torch.float64)
    cases.append({"t": t, "first": first.tolist(), "second": second.tolist(), "slerp": public.slerp(t, first, second).tolist()})
found = {"origin": f"fusion-bench {version('fusion-bench')}, fusion_bench/method/slerp/slerp_utils.py, made by make_slerp.py", "cases": cases}
Path(__file__).with_name("slerp.json").write_text(json.dumps(found) + "\n")
