"""Makes concrete.json: mask samples, and some steps of Concrete Task Arithmetic and Concrete AdaMerging, by the public package fusion-bench.

In an environment with PyTorch: ``pip install --no-deps fusion-bench``, then ``python make_concrete.py``. Only the files with the mask, the merged
models and the entropy are loaded, so that none of the package's many requirements is needed. The loops are those of its
``method/concrete_subspace/clip_concrete_*.py``, with their data loaders replaced by fixed random inputs and one line moved (see there).
"""

import json
import sys
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

folder = Path(find_spec("fusion_bench").submodule_search_locations[0])  # type: ignore[union-attr, index]
for package in ("fusion_bench", "fusion_bench.models", "fusion_bench.models.wrappers", "fusion_bench.utils"):
    sys.modules[package] = ModuleType(package)  # its own __init__ would import everything
    sys.modules[package].__path__ = []


def load(name: str) -> ModuleType:
    """A file of the package as the module that its other files import."""
    spec = spec_from_file_location(name, folder.joinpath(*name.split(".")[1:]).with_suffix(".py"))
    module = module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[name] = module
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


for name in ("fusion_bench.utils.type", "fusion_bench.utils.dict", "fusion_bench.models.utils", "fusion_bench.models.parameter_dict"):
    load(name)
sys.modules["fusion_bench.models"].ParameterDictModel = sys.modules["fusion_bench.models.parameter_dict"].ParameterDictModel  # type: ignore[attr-defined]
for name in ("StateDictType", "del_attr", "get_attr", "set_attr"):
    setattr(sys.modules["fusion_bench.models"], name, getattr(sys.modules["fusion_bench.models.utils"], name))
MaskModel = load("fusion_bench.models.masks.mask_model").MaskModel
layer_wise, task_wise = load("fusion_bench.models.wrappers.layer_wise_fusion"), load("fusion_bench.models.wrappers.task_wise_fusion")
entropy_loss = load("fusion_bench.method.adamerging.entropy_loss").entropy_loss

STEPS, TASKS, SEED = 4, 3, 11


def net(number: int) -> nn.Sequential:
    """A small classifier whose weights are of one seed; fine-tuned ones differ from number 0 by a fifth of another."""
    torch.manual_seed(number)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def tuned(number: int) -> nn.Sequential:
    """The base and a part of other weights."""
    model, other = net(0), net(number)
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            mine.add_(theirs)
    return model


inputs = torch.randn(2 * STEPS * TASKS, 5, 4, generator=torch.Generator().manual_seed(5))


def learn(kind: str) -> dict[str, object]:
    """The loop of clip_concrete_task_arithmetic.py (kind "arithmetic") or clip_concrete_adamerging.py (kinds "task" and "block")."""
    finetuned = [tuned(number) for number in range(1, TASKS + 1)]
    mask_model = MaskModel(net(0), ignore_untrained_params=True, parameter_type="logits")
    mask_model.fill_(0.0)
    given = {"pretrained_model": net(0), "finetuned_models": finetuned, "clamp_weights": False}
    if kind == "block":
        module = layer_wise.LayerWiseMergedModel(layer_wise_weight=layer_wise.get_layer_wise_weights(TASKS, 4, 0.3), **given)
    else:
        module = task_wise.TaskWiseMergedModel(task_wise_weight=task_wise.get_task_wise_weights(TASKS, 0.3), **given)
    start = module.merge_weight.detach().clone()
    base_optimizer = torch.optim.Adam([module.merge_weight], lr=0.1)
    optimizer = torch.optim.Adam(mask_model.parameters(), lr=0.05)
    batches, losses = iter(inputs), []

    def total() -> torch.Tensor:
        return sum(entropy_loss(module(next(batches))) for _ in range(TASKS))  # type: ignore[return-value]

    torch.manual_seed(SEED)
    for _ in range(STEPS):
        mask = mask_model.sample_mask(mask_type="continuous", temperature=0.5)
        mask = {name: m / torch.mean(m) for name, m in mask.items()}
        if kind != "arithmetic":
            module.merge_weight.data = start.clone()  # the package resets after merging, so that its inner gradient is taken at the step before's
            module.merge_weights(task_vector_mask={name: m.detach() for name, m in mask.items()})
            loss = total()
            base_optimizer.zero_grad()
            loss.backward()
            base_optimizer.step()
        module.merge_weights(task_vector_mask=mask)
        loss = total()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {
        "logits": {name: value.tolist() for name, value in mask_model.named_parameters()},
        "coefficients": module.merge_weight.tolist(),
        "losses": losses,
    }


logits = 2 * torch.randn(40, generator=torch.Generator().manual_seed(1))
samples = []
for temperature in (0.1, 0.5, 2.0):
    model = MaskModel({"w": logits}, parameter_type="logits")
    model["w"].data.copy_(logits)
    torch.manual_seed(SEED)
    mask = model.sample_mask(mask_type="continuous", temperature=temperature)["w"].detach()
    samples.append({"temperature": temperature, "mask": mask.tolist(), "rescaled": (mask / torch.mean(mask)).tolist()})
found = {
    "origin": f"fusion-bench {version('fusion-bench')}, torch {torch.__version__}, made by {Path(__file__).name}",
    "seed": SEED,
    "sample_logits": logits.tolist(),
    "samples": samples,
    "base": {name: value.tolist() for name, value in net(0).state_dict().items()},
    "tuned": [{name: value.tolist() for name, value in tuned(number).state_dict().items()} for number in range(1, TASKS + 1)],
    "inputs": inputs.tolist(),
    "learned": {kind: learn(kind) for kind in ("arithmetic", "task", "block")},
}
Path(__file__).with_name("concrete.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")
