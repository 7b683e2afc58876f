r"""UDR (Li, Lv and others, ACL 2023): one retriever of demonstrations for many tasks.

Xiaonan Li, Kai Lv, Hang Yan, Tianyang Lin, Wei Zhu, Yuan Ni, Guotong Xie, Xiaoling Wang, Xipeng Qiu: Unified Demonstration Retriever for In-Context
Learning. https://arxiv.org/abs/2305.04320

**Idea.** A language model that is shown examples of a task answers better if the examples fit the question. Which ones fit, the model itself can say:
show it one candidate at a time and look how likely the right answer becomes. These scores rank the candidates, and a rank means the same for every
task, be it classification or generation. So one bi-encoder, told the task by an instruction, learns from all tasks together.

**Scores** (equations 2 and 3) of a candidate :math:`z = (x', y')` for a question :math:`(x, y)` under a frozen model :math:`G`:

.. math:: s_{gen}(z) = p_G(y \mid z, x), \qquad s_{cls}(z) = \frac{p_G(y \mid z, x)}{\sum_{y' \in Y} p_G(y' \mid z, x)}

**Losses** (equations 4 to 6) over a list :math:`Z` of candidates with ranks :math:`r(z)`, 1 the best, and similarities
:math:`\mathrm{sim}(x, z) = E_q(I \oplus x) \cdot E_d(I \oplus z)`:

.. math::
    L_{rank} &= \sum_{z_i, z_j \in Z} \max\Big(0, \frac1{r(z_i)} - \frac1{r(z_j)}\Big)
        \log\big(1 + e^{\mathrm{sim}(x, z_j) - \mathrm{sim}(x, z_i)}\big) \\
    L_{ib} &= -\log \frac{e^{\mathrm{sim}(x, z^*)}}{\sum_{z \in \text{batch}} e^{\mathrm{sim}(x, z)}}, \qquad
        L = \lambda L_{rank} + (1 - \lambda) L_{ib}

**Mining.** Candidates come first from a surface likeness (BM25); then the trained retriever proposes its own nearest, which are scored and merged
with what was scored before, and training goes on (:class:`Candidates`).

**Paper and released code differ** in the weight of a pair: the paper takes ranks by the language model, the code positions in the *predicted* order,
over pairs that are truly in that order, and the mean over these pairs. Both are here: ``weight="lm"`` and ``weight="predicted"``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.search import ExactIndex

Weight = Literal["lm", "predicted"]
CLAMP = 50.0  # of differences of similarities, as in the released code


# the language model's feedback


def class_score(probabilities: Tensor, answer: Tensor) -> Tensor:
    """s_cls: the share of the right answer among the allowed ones.

    Args:
        probabilities: (..., C) of each class's answer, at least 0.
        answer: (...) int64.

    Raises:
        ValueError: an answer outside the C classes, or probabilities that are negative, not finite or all 0.
    """
    _check_scores("probabilities", probabilities)
    classes = probabilities.shape[-1]
    if bool(((answer < 0) | (answer >= classes)).any()):
        raise ValueError(f"answers must be one of the {classes} classes, 0 to {classes - 1}, got {int(answer.min())} to {int(answer.max())}")
    total = probabilities.sum(-1)
    if bool((probabilities < 0).any()) or bool((total <= 0).any()):
        raise ValueError("probabilities must be at least 0, with one above 0 for each candidate")
    return probabilities.gather(-1, answer[..., None])[..., 0] / total


def generation_score(log_probabilities: Tensor, mask: Tensor) -> Tensor:
    """s_gen: the probability of the answer, the product over its tokens.

    The released scorer ranks by the mean over tokens, which is the same order for candidates of one question.

    Args:
        log_probabilities: (..., length) of the right tokens.
        mask: bool (..., length), which of them belong to the answer; at least one.
    """
    if not bool(mask.any(-1).all()):
        raise ValueError("every answer needs at least one token")
    _check_scores("log_probabilities", log_probabilities.masked_fill(~mask, 0.0))
    return log_probabilities.masked_fill(~mask, 0.0).sum(-1).exp()


def prompt(question: str, demonstrations: Sequence[tuple[str, str]] = (), answer: str = "") -> str:
    """``x' TAB y' NEWLINE x TAB y``: demonstrations in the order in which they stand, the best last."""
    return "".join(f"{text}\t{said}\n" for text, said in demonstrations) + f"{question}\t{answer}"


class LanguageModelScorer:
    """Feedback of a causal language model of the library transformers, one demonstration at a time (section 2.2).

    Args:
        model: takes ``input_ids`` and gives ``logits``.
        tokenizer: text to ``input_ids``.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @torch.no_grad()
    def log_probability(self, question: str, answer: str, demonstrations: Sequence[tuple[str, str]] = ()) -> float:
        """Log p(answer | demonstrations, question), the sum over the answer's tokens.

        Raises:
            ValueError: an answer without a token.
        """
        before = self.tokenizer(prompt(question, demonstrations))["input_ids"]
        said = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if not said:
            raise ValueError(f"the answer {answer!r} has no token")
        tokens = torch.tensor([[*before, *said]])
        found: Any = self.model(input_ids=tokens)
        logits = found.logits[0, len(before) - 1 : -1].log_softmax(-1)  # each place says what comes next
        return float(logits.gather(1, tokens[0, len(before) :, None]).sum())

    def score(self, question: str, answer: str, demonstration: tuple[str, str], answers: Sequence[str] | None = None) -> float:
        """s_gen, or s_cls where the allowed answers are given.

        Raises:
            ValueError: the right answer is not among the allowed ones.
        """
        if answers is None:
            return float(torch.tensor(self.log_probability(question, answer, [demonstration])).exp())
        if answer not in answers:
            raise ValueError(f"the answer {answer!r} is none of the task's: {', '.join(answers)}")
        logs = torch.tensor([self.log_probability(question, one, [demonstration]) for one in answers], dtype=torch.float64)
        return float(logs.softmax(0)[list(answers).index(answer)])


def ranks(scores: Tensor) -> Tensor:
    """Ranks (..., l) of scores (..., l), 1 for the highest; equal scores share the mean of their ranks.

    Raises:
        ValueError: a score that is NaN or infinite, or a list shorter than 2.
    """
    _check_scores("scores", scores)
    if scores.shape[-1] < 2:
        raise ValueError(f"a list needs at least two candidates to be ranked, got {scores.shape[-1]}")
    above = (scores[..., None, :] > scores[..., :, None]).sum(-1)  # how many are better
    equal = (scores[..., None, :] == scores[..., :, None]).sum(-1)  # itself among them
    return above + (equal + 1) / 2


def _check_scores(name: str, scores: Tensor) -> None:
    if not bool(scores.isfinite().all()):
        raise ValueError(f"{name} must be finite; {int((~scores.isfinite()).sum())} of {scores.numel()} are not")


# losses


def rank_loss(similarities: Tensor, scores: Tensor, *, weight: Weight = "lm") -> Tensor:
    """The list-wise ranking loss, the mean over queries.

    Args:
        similarities: (B, l) of each query with the candidates of its list.
        scores: (B, l) of the language model; only their order counts.
        weight: "lm" (the paper: 1/r - 1/r' of the language model's ranks, summed over pairs) or "predicted" (the released code: of positions in the
            predicted order, mean over the pairs that the language model puts in that order).

    Raises:
        ValueError: shapes that differ, lists shorter than 2, NaN, or an unknown weight.
    """
    if similarities.dim() != 2 or similarities.shape != scores.shape:
        raise ValueError(f"similarities and scores must both be (B, l), got {tuple(similarities.shape)} and {tuple(scores.shape)}")
    if weight not in ("lm", "predicted"):
        raise ValueError(f"weight must be 'lm' or 'predicted', got {weight!r}")
    gain = 1 / ranks(scores)
    ahead = gain[:, :, None] - gain[:, None, :]  # (B, i, j), positive where i is truly before j
    apart = (similarities[:, None, :] - similarities[:, :, None]).clamp(-CLAMP, CLAMP)  # sim_j - sim_i
    each = F.softplus(apart)
    if weight == "lm":
        return (ahead.clamp(min=0) * each).sum((1, 2)).mean()
    place = 1 / (1 + similarities.argsort(dim=1, descending=True, stable=True).argsort(1)).to(similarities.dtype)
    wanted = ahead > 0
    pairs = ((place[:, :, None] - place[:, None, :]).abs() * each)[wanted]
    return pairs.mean() if len(pairs) else (similarities * 0).sum()


def in_batch_loss(queries: Tensor, candidates: Tensor, best: Tensor) -> Tensor:
    """Cross-entropy of each query's best candidate against all candidates of the batch.

    Args:
        queries: (B, d).
        candidates: (B, l, d).
        best: (B,) int64, which of its list each query should find.
    """
    batch, length, _ = candidates.shape
    scores = queries @ candidates.flatten(0, 1).T  # (B, B l)
    return F.cross_entropy(scores, torch.arange(batch, device=scores.device) * length + best)


def udr_loss(queries: Tensor, candidates: Tensor, scores: Tensor, *, balance: float = 0.8, weight: Weight = "lm") -> Tensor:
    """The whole loss: ``balance`` of the ranking loss and the rest of the in-batch loss.

    Args:
        queries: (B, d).
        candidates: (B, l, d).
        scores: (B, l) of the language model.
        balance: lambda, 0 to 1; the code's factor of 4 is 0.8.
        weight: of :func:`rank_loss`.

    Raises:
        ValueError: ``balance`` outside [0, 1], and as :func:`rank_loss`.
    """
    if not 0 <= balance <= 1:
        raise ValueError(f"balance must be between 0 and 1, got {balance}")
    similarities = torch.einsum("bd,bld->bl", queries, candidates)
    ranked = rank_loss(similarities, scores, weight=weight)
    return balance * ranked + (1 - balance) * in_batch_loss(queries, candidates, scores.argmax(1))


def epr_loss(queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """The rival's loss (EPR, Rubin et al. 2022): one of the best against one of the worst and all others of the batch; (B, d) each."""
    return in_batch_loss(queries, torch.stack([positives, negatives], 1), torch.zeros(len(queries), dtype=torch.int64, device=queries.device))


# sampling


def task_probabilities(sizes: Tensor, alpha: float = 0.5) -> Tensor:
    """Chance (T,) of each task to give the next batch, in proportion to the power ``alpha`` of its share of the data.

    Raises:
        ValueError: ``alpha`` below 0, or a task without data.
    """
    if alpha < 0:
        raise ValueError(f"alpha must be 0 (all tasks alike) or more, got {alpha}")
    if not bool((sizes > 0).all()):
        raise ValueError("every task needs at least one row")
    weight = sizes.double() ** alpha
    return weight / weight.sum()


def draw_lists(order: Tensor, length: int, *, top: int = 0, bottom: int = 0, generator: torch.Generator | None = None) -> Tensor:
    """Draw a list of candidates a query, without replacement, sorted as they are ranked.

    Args:
        order: (B, K) candidates, the best first.
        length: of a list.
        top: of these first places one is drawn at least; 0 for a plain draw (the paper).
        bottom: of these last places exactly one is drawn; 0 for a plain draw. The code has 5 and 5.
        generator: of the draws.

    Returns:
        (B, length) columns of ``order``, ascending.

    Raises:
        ValueError: a list longer than what there is, shorter than 2, or top and bottom that overlap.
    """
    batch, size = order.shape
    if not 2 <= length <= size:
        raise ValueError(f"length must be between 2 and the {size} candidates, got {length}")
    if (top == 0) != (bottom == 0) or top < 0 or top + bottom > size or (top and size - bottom < length - 1):
        raise ValueError(f"top and bottom must both be 0, or leave a list of {length} apart among {size}, got {top} and {bottom}")
    key = torch.rand(batch, size, generator=generator)
    if top:
        key[:, size - bottom :] += 2  # later than all others ...
        first = key[:, :top].argmin(1, keepdim=True)
        last = size - bottom + key[:, size - bottom :].argmin(1, keepdim=True)
        key = key.scatter(1, first, -1.0).scatter(1, last, -1.0)  # ... but for one of each end
    return key.topk(length, 1, largest=False).indices.sort(1).values.to(order.device)


class Candidates:
    """What the language model has scored of each row of a task: it grows, and nothing is scored twice.

    Args:
        rows: n, the size of the task's training set.
        device: where the scores lie.
    """

    def __init__(self, rows: int, device: torch.device | None = None) -> None:
        if rows < 3:
            raise ValueError(f"mining needs at least three rows, so that two are left beside the question, got {rows}")
        self.scores = torch.full((rows, rows), torch.nan, device=device)
        self.calls = 0

    def add(self, proposed: Tensor, score: Any) -> int:
        """Score what is new among the proposed and keep it.

        Args:
            proposed: (n, k) numbers of candidates for each row; a row's own number is passed over.
            score: questions (m,) and candidates (m,) to scores (m,).

        Returns:
            how many were new.

        Raises:
            ValueError: a number that is no row, or a score that is not finite.
        """
        n = len(self.scores)
        if proposed.dim() != 2 or len(proposed) != n or bool(((proposed < 0) | (proposed >= n)).any()):
            raise ValueError(f"proposed must be ({n}, k) numbers of rows between 0 and {n - 1}, got {tuple(proposed.shape)}")
        wanted = torch.zeros_like(self.scores, dtype=torch.bool).scatter(1, proposed, True)
        wanted.fill_diagonal_(False)
        wanted &= self.scores.isnan()
        questions, found = wanted.nonzero(as_tuple=True)
        if len(questions):
            values = score(questions, found)
            _check_scores("scores", values)
            self.scores[questions, found] = values.to(self.scores.dtype)
        self.calls += len(questions)
        return len(questions)

    def best(self, proposed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The scored candidates of each row, best first, all rows cut to the shortest list: numbers (n, k) and scores (n, k).

        Args:
            proposed: (n, k); only these, where given.
        """
        scores = self.scores
        if proposed is not None:
            kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, proposed, True)
            scores = scores.masked_fill(~kept, torch.nan)
        size = int((~scores.isnan()).sum(1).min())
        if size < 2:
            raise ValueError("a row has fewer than two scored candidates; propose more")
        values, order = scores.nan_to_num(-torch.inf).sort(dim=1, descending=True, stable=True)
        return order[:, :size], values[:, :size]


def mine(queries: Tensor, demonstrations: Tensor, k: int) -> Tensor:
    """The ``k`` nearest demonstrations of each row of the training set, itself left out: (n, k), best first.

    Args:
        queries: (n, d) vectors of the n rows as questions.
        demonstrations: (n, d) vectors of the same rows as demonstrations.
        k: 1 to n - 1.

    Raises:
        ValueError: ``k`` out of range, or shapes that differ.
    """
    if queries.shape != demonstrations.shape:
        raise ValueError(f"queries and demonstrations must be vectors of the same rows, got {tuple(queries.shape)} and {tuple(demonstrations.shape)}")
    if not 1 <= k < len(queries):
        raise ValueError(f"k must be between 1 and {len(queries) - 1}, the other rows, got {k}")
    found = ExactIndex(demonstrations).search(queries, k + 1)[1]
    own = found == torch.arange(len(queries), device=found.device)[:, None]
    return found.gather(1, own.to(torch.uint8).argsort(dim=1, stable=True)[:, :k])


# the retriever


@dataclass(frozen=True)
class Task:
    """What a retriever is told of a task.

    Attributes:
        instruction: words that say what is asked, of a known vocabulary.
        classes: number of answers.
    """

    instruction: tuple[str, ...]
    classes: int


class Instructions(nn.Module):
    """Instructions as vectors: the mean of their words' vectors, so that a new combination of known words has a meaning.

    Args:
        words: that an instruction may have.
        width: of a vector.
    """

    def __init__(self, words: Sequence[str], width: int) -> None:
        super().__init__()
        self.number = {word: i for i, word in enumerate(words)}
        self.table = nn.Embedding(len(self.number), width)

    def forward(self, instruction: Sequence[str]) -> Tensor:
        """(width,).

        Raises:
            ValueError: no word, or an unknown one; the known ones are listed.
        """
        unknown = [word for word in instruction if word not in self.number]
        if unknown or not instruction:
            said = repr(unknown[0]) if unknown else "an empty instruction"
            raise ValueError(f"{said} is not known; an instruction has words of: {', '.join(self.number)}")
        numbers = torch.tensor([self.number[word] for word in instruction], device=self.table.weight.device)
        out: Tensor = self.table(numbers).mean(0)
        return out


class UnifiedRetriever(nn.Module):
    """Two encoders and an instruction (section 2.1): a question and a demonstration as vectors of one space.

    Args:
        query, demonstration: encoders, called with inputs (n, ...) and an instruction's vector (width,): (n, d) each.
        instructions: of the tasks.
        answers: most answers that a task has.
        width: d.
    """

    def __init__(self, query: nn.Module, demonstration: nn.Module, instructions: Instructions, answers: int, width: int) -> None:
        super().__init__()
        self.query, self.demonstration, self.instructions = query, demonstration, instructions
        self.answer = nn.Embedding(answers, width)
        self.answer_of_task = nn.Linear(instructions.table.embedding_dim, width)
        nn.init.normal_(self.answer.weight, std=0.1)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def embed_queries(self, inputs: Tensor, instruction: Sequence[str]) -> Tensor:
        """(n, d)."""
        out: Tensor = self.scale * self.query(inputs, self.instructions(instruction))
        return out

    def embed_demonstrations(self, inputs: Tensor, answers: Tensor, instruction: Sequence[str]) -> Tensor:
        """(n, d) of inputs (n, ...) with their answers (n,)."""
        told = self.instructions(instruction)
        out: Tensor = self.demonstration(inputs, told) + self.answer(answers) * torch.tanh(self.answer_of_task(told))
        return out
