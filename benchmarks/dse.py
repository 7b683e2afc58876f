"""DSE: one query against 1,000 and 10,000 cached candidates beside its teacher, for small and deep teachers; the split head beside the plain one."""

import torch
from ratios import ratios

from mtlearn.layers.text_encoders import JointEncoder, TokenEncoder
from mtlearn.pairs.dse.method import DSE, SentenceEmbedder
from mtlearn.pairs.dse.worlds import WORDS, WordBody, pretrained_words, word_teacher

LENGTH = 16


def main() -> None:
    torch.manual_seed(0)
    vectors = pretrained_words(0, dim=32, noise=0.7)
    small = DSE(SentenceEmbedder(WordBody(vectors), top=2, class_token=False), hidden=64).eval()
    teacher = word_teacher(vectors, "binary").eval()
    tokens = torch.randint(1, len(vectors), (10_000, WORDS))
    race("word against word, 8 words", teacher, small, tokens)
    for layers, width in ((1, 32), (2, 64), (4, 128)):
        joint = JointEncoder(TokenEncoder(1000, width, 4, layers, longest=2 * LENGTH), outputs=2, pooling="mean").eval()
        body = TokenEncoder(1000, width, 4, layers, longest=LENGTH)
        student = DSE(SentenceEmbedder(body, top=min(4, layers + 1), class_token=False), hidden=64).eval()
        race(f"joint transformer, {layers} layers of width {width}, {LENGTH} words a side", joint, student, torch.randint(1, 1000, (10_000, LENGTH)))
    dot = DSE(SentenceEmbedder(TokenEncoder(1000, 128, 4, 4, longest=LENGTH), top=4, class_token=False), head="dot").eval()
    heads(student, dot, torch.randint(1, 1000, (2000, LENGTH)))


@torch.no_grad()
def race(name: str, teacher: torch.nn.Module, student: DSE, tokens: torch.Tensor) -> None:
    """The teacher is timed on 1,000 pairs; that 10,000 take ten times as long is arithmetic."""
    query = tokens[:1]
    thousand, all_of_them = student.index(tokens[:1000]), student.index(tokens)
    found = ratios(
        f"One query, candidates cached; teacher: {name}",
        {
            "student, 1,000 candidates": lambda: student.rank(query, thousand),
            "student, 10,000 candidates": lambda: student.rank(query, all_of_them),
            "teacher, 1,000 candidates": lambda: teacher(query.expand(1000, -1), tokens[:1000]),
        },
        repeats=5,
    )
    one, ten, slow = found["student, 1,000 candidates"], found["student, 10,000 candidates"], found["teacher, 1,000 candidates"]
    print(f"faster than the teacher: {slow / one:.0f} times for 1,000 candidates, {10 * slow / ten:.0f} times for 10,000\n")


@torch.no_grad()
def heads(student: DSE, dot: DSE, tokens: torch.Tensor) -> None:
    queries, vectors = student.embed(tokens[:20]), student.embed(tokens)
    cache, inner = student.head.cache(vectors), dot.head.cache(vectors)
    every = queries.repeat_interleave(len(vectors), 0), vectors.repeat(len(queries), 1)
    ratios(
        "The head alone: 20 queries, 2,000 candidates, vectors of 512 numbers",
        {
            "split, candidates' side cached": lambda: student.head.rank(queries, cache),
            "plain, on all pairs": lambda: student.head(*every),
            "inner product": lambda: dot.head.rank(queries, inner),
        },
        repeats=5,
    )


if __name__ == "__main__":
    main()
