"""Writes uni_encoder.json: masks and scores of the authors' code on a tiny random BERT.

Their file is read from a copy of github.com/dll-wu/Uni-Encoder that is not part of this project (MIT licence)::

    python tests/pairs/public/make_uni_encoder.py path/to/uni_encoder.py

It imports ``AdamW`` from transformers, which newer versions do not have; a stand-in is put there before, nothing of it is used.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers

CONFIG = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attn_implementation": "eager",
}  # fmt: skip
CONTEXTS = [[2, 11, 12, 13, 14, 3], [2, 15, 16, 3]]
REPLIES = [[[2, 12, 3], [2, 17, 18, 19, 3], [2, 13, 11, 3]], [[2, 16, 15, 3], [2, 20, 3], [2, 21, 16, 3]]]


def weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by a formula, so that they need not be stored: sines of the entry's number and of the name's length."""
    return {
        name: (0.3 * torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.7 + len(name))).view(value.shape).to(value.dtype)
        for name, value in state.items()
        if value.is_floating_point()
    }


def main() -> None:
    if not hasattr(transformers, "AdamW"):
        setattr(transformers, "AdamW", torch.optim.AdamW)  # noqa: B010
    for name in ("WEIGHTS_NAME", "CONFIG_NAME"):
        if not hasattr(transformers, name):
            setattr(transformers, name, "")
    spec = importlib.util.spec_from_file_location("published", sys.argv[1])
    assert spec is not None
    assert spec.loader is not None
    published = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(published)
    found: dict[str, object] = {"config": dict(CONFIG), "contexts": CONTEXTS, "replies": REPLIES, "cases": []}
    for attention in ("arrow", "diag", "square"):
        for pools in (3, 1):
            model = published.UniEncoder(transformers.BertConfig(**CONFIG), SimpleNamespace(attn_map=attention)).eval()
            body, head = model.bert.bert, model.fc
            body.load_state_dict(weights(body.state_dict()), strict=False)
            head.load_state_dict(weights(head.state_dict()))
            rows, starts, positions, types = [], [], [], []
            for context, replies in zip(CONTEXTS, REPLIES, strict=True):
                row, start, place = list(context), [], list(range(len(context)))
                for reply in replies[:pools]:
                    start.append(len(row))
                    row += reply
                    place += range(len(context), len(context) + len(reply))
                rows.append(row)
                starts.append(start)
                positions.append(place)
                types.append([0] * len(context) + [1] * (len(row) - len(context)))
            longest = max(map(len, rows))

            def full(lists: list[list[int]]) -> torch.Tensor:
                return torch.tensor([row + [0] * (longest - len(row)) for row in lists])  # noqa: B023

            seen: list[torch.Tensor] = []
            body.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True)  # noqa: B023
            with torch.no_grad():
                logits, _, _ = model(
                    input_ids=full(rows),
                    token_type_ids=full(types),
                    attention_mask=full([[1] * len(row) for row in rows]),
                    position_ids=full(positions),
                    bos_locations=starts,
                )
            found["cases"].append(  # type: ignore[attr-defined]
                {
                    "attention": attention,
                    "pool": pools,
                    "positions": full(positions).tolist(),
                    "mask": seen[0].int().tolist(),
                    "logits": logits.view(2, pools).tolist(),
                }
            )
    Path(__file__).with_name("uni_encoder.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
