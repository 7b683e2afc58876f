"""Make multiple_negatives.json: what MultipleNegativesRankingLoss of sentence-transformers says of given embeddings.

    pip install sentence-transformers
    python tests/merging/public/make_multiple_negatives.py

The library is not needed to run the tests: they compare with the stored numbers.
"""

import json
from importlib.metadata import version
from pathlib import Path

import torch
from sentence_transformers import util
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss


def main() -> None:
    cases = []
    for number, (batch, width, scale, hard) in enumerate([(4, 3, 20.0, False), (6, 5, 20.0, True), (3, 2, 5.0, False)]):
        draws = torch.Generator().manual_seed(number)
        names = ("query", "positive", "negative") if hard else ("query", "positive")
        sides = {name: torch.randn(batch, width, generator=draws).round(decimals=3) for name in names}
        loss = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=scale, similarity_fct=util.cos_sim)
        value = float(loss.compute_loss_from_embeddings(list(sides.values()), None))
        cases.append({"scale": scale, "loss": value, **{name: [[round(v, 3) for v in row] for row in side.tolist()] for name, side in sides.items()}})
    origin = f"MultipleNegativesRankingLoss of sentence-transformers {version('sentence-transformers')}, by {Path(__file__).name}"
    Path(__file__).with_name("multiple_negatives.json").write_text(json.dumps({"origin": origin, "cases": cases}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
