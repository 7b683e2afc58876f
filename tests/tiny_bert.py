"""A tiny BERT of the library transformers with random weights, in a folder: for the path of a pretrained encoder, with nothing to download."""

from pathlib import Path

from mtlearn.lab.seeds import seeded

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = (*LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "matrix", "transform", "of", "long", "signal", "qr", "inverse", "sort", "graph")


def tiny_bert(folder: Path, *, layers: int = 1, width: int = 8, heads: int = 1) -> str:
    """Write model and tokeniser; the folder's name goes where a pretrained encoder's name goes."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=width,
        max_position_embeddings=160,
    )
    with seeded(0):
        BertModel(config).save_pretrained(folder)
    return str(folder)
