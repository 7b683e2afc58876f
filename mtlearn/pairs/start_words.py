"""Word vectors that encoders start from: made of the texts at hand or of all docstrings, or those of a real sentence encoder."""

from collections.abc import Sequence

from torch import Tensor

from mtlearn.datasets.documentation import documentation
from mtlearn.datasets.word_vectors import word_vectors
from mtlearn.layers.pretrained import word_table
from mtlearn.layers.tokens import SPECIAL, Tokeniser, Vocabulary

TABLE = "wordllama"  # the name of the word table, where an encoder is asked for by name
BODY = 200  # words of a docstring that are read


def sentence_vectors(name: str, sentences: Sequence[str], *, size: int, dim: int, longest: int, window: int = 5) -> tuple[Tensor, Tokeniser]:
    """Vectors (tokens, width) and their tokeniser for sentences: the word table where ``name`` is "wordllama", else made of the sentences.

    Args:
        name: "wordllama", or anything else for vectors that are made here.
        sentences: whose words are counted.
        size: of the vocabulary that is made.
        dim: of the vectors that are made.
        longest: words of a sentence that are read.
        window: how far apart two words may stand to count together.

    Raises:
        ImportError: the package with the word table is not installed.
    """
    if name == TABLE:
        return word_table()
    known = Vocabulary.of(sentences, size)
    return word_vectors(known(sentences, longest, truncate=True), len(known), dim, window=window, special=len(SPECIAL)), known


def docstring_vectors(known: Vocabulary, dim: int, *, window: int = 5) -> Tensor:
    """Vectors (len(known), dim) of a vocabulary's words, made of all docstrings of the documentation."""
    bodies = known([page.body() or page.summary for page in documentation().pages], BODY, truncate=True)
    return word_vectors(bodies, len(known), dim, window=window, special=len(SPECIAL))
