"""2D Matryoshka: our loss beside that of sentence-transformers on one BERT, encoders that are cut, and searches with sliced vectors."""

import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from ratios import ratios
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import Matryoshka2dLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast

from mtlearn.layers.contrastive import info_nce
from mtlearn.layers.pretrained import pretrained
from mtlearn.layers.search import ExactIndex
from mtlearn.layers.text_encoders import TokenEncoder
from mtlearn.retrieval.matryoshka_2d.method import ElasticEncoder, draw, nested_loss, sliced, two_d_loss

SIZES = (64, 32, 16, 8)


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        letters = "abcdefghijklmnopqrstuvwxyz"
        (Path(folder) / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)]))
        BertTokenizerFast(str(Path(folder) / "vocab.txt")).save_pretrained(folder)
        size = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 57}
        BertModel(BertConfig(**size)).save_pretrained(folder)
        theirs: Any = SentenceTransformer(modules=[Transformer(folder), Pooling(64, "mean")], device="cpu").eval()
        body, _ = pretrained(folder)
    columns = torch.randint(5, 57, (2, 64, 24))
    peer = Matryoshka2dLoss(theirs, MultipleNegativesRankingLoss(theirs), list(SIZES))
    encoder, generator = ElasticEncoder(body).eval(), torch.Generator().manual_seed(0)

    def library() -> None:
        random.seed(0)
        peer([{"input_ids": column, "attention_mask": torch.ones_like(column)} for column in columns], torch.zeros(64)).backward()

    def ours() -> None:
        nested_loss([encoder.exits(column) for column in columns], info_nce, draw(4, SIZES, generator=generator)).backward()

    def authors() -> None:
        two_d_loss([encoder.exits(column) for column in columns], info_nce, 2, 16).backward()

    def plain() -> None:
        info_nce(*(encoder.exits(column)[-1] for column in columns)).backward()

    ways = {"sentence-transformers": library, "ours, its form": ours, "ours, the authors' form": authors, "the last layer alone": plain}
    ratios("A training step on 64 pairs, 4 layers of width 64", ways, target="ours at most 1")

    own = ElasticEncoder(TokenEncoder(5000, 64, 4, 4, 128, norm_first=True)).eval()
    texts = torch.randint(5, 5000, (256, 24))
    short = {n: own.truncated(n) for n in (4, 3, 2, 1)}

    def encoding(n: int) -> Any:
        def way() -> None:
            with torch.no_grad():
                short[n](texts)

        return way

    ratios("Encode 256 texts of 24 words", {f"{n} of 4 layers": encoding(n) for n in short}, target="half the layers, half the time")

    documents, queries = torch.randn(20_000, 64), torch.randn(64, 64)
    indices = {size: (ExactIndex(sliced(documents, size)), sliced(queries, size)) for size in SIZES}
    ways = {f"{size} numbers": (lambda size=size: indices[size][0].search(indices[size][1], 10)) for size in indices}
    ratios("Search 20,000 documents with 64 queries", ways)


if __name__ == "__main__":
    main()
