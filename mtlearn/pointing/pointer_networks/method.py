r"""Pointer Networks: attention over the input as the output distribution.

Oriol Vinyals, Meire Fortunato, Navdeep Jaitly, NIPS 2015, arXiv:1506.03134.

**Idea.** The answers to some questions are positions of the input: the order of numbers, the corners of a hull, a tour. A softmax
over a fixed dictionary cannot serve them, because the dictionary grows with the input. A pointer network scores every
input against the decoder's state, as attention does, and stops there: the softmax over the scores *is* the output distribution.

**Equations** (section 2.3). An LSTM reads :math:`P_1 \dots P_n` and leaves :math:`e_1 \dots e_n`; a learned entry :math:`e_0` stands for
*stop*. A second LSTM starts from its last state, reads the points chosen so far and leaves :math:`d_1 \dots d_m`. Then

.. math::
    u^i_j = v^\top \tanh(W_1 e_j + W_2 d_i), \qquad p(C_i = j \mid C_{<i}, P) = \mathrm{softmax}_j(u^i)

No context vector goes back into the decoder, so with the answer known (teacher forcing) the decoder is one LSTM call and all
scores are one broadcast.

**Indices.** Points are 1..n, 0 is *stop*, -1 pads answers (:mod:`mtlearn.datasets.planar`).

**What differs from the paper.** Points are taken as :math:`4(P - 0.5)`: with coordinates in [0, 1] and today's default weights the
training stays on a plateau (the notebook shows it). ``no_repeats`` and ``tour`` masks are offered at inference; the paper constrains
only tours. Training uses Adam instead of plain SGD (see the experiment).
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mtlearn.pointing.decoding import Hypotheses, State, beam_search

STOP, PAD = 0, -1
START = -1  # the token that the first decoder step sees
BLOCK = 2**19  # numbers in a block of pairs: 2 MiB in float32, which a core's caches hold
LARGE = 40.0  # exp(2 * 40) is still a float32
Constraint = Literal["none", "no_repeats", "tour"]


class AdditiveScores(torch.autograd.Function):
    """v^T tanh(keys + queries) for every pair, without ever holding the (batch, steps, entries, hidden) tensor of all pairs.

    With the logistic s, v^T tanh(x) = 2 v^T s(2x) - sum(v), and s(2 (k + q)) = 1 / (1 + exp(-2k) exp(-2q)): the exponentials are one a key and
    one a query, and a pair costs a product and a reciprocal. What is left is the traffic of memory, so the batch is worked through in
    blocks that stay in a core's caches, in place, and backward computes a block again rather than fetching it.
    """

    @staticmethod
    def forward(ctx: Any, keys: Tensor, queries: Tensor, v: Tensor) -> Tensor:
        """(batch, entries, hidden), (batch, steps, hidden) and (hidden,) to (batch, steps, entries)."""
        small = bool((keys.abs().amax() < LARGE) & (queries.abs().amax() < LARGE))  # else a product of exponentials could be 0 times infinity
        a, b = ((-2 * keys).exp_(), (-2 * queries).exp_()) if small else (2 * keys, 2 * queries)
        ctx.save_for_backward(a, b, v)
        ctx.small = small
        scores = keys.new_empty(len(keys), queries.shape[1], keys.shape[1])
        for block, s in AdditiveScores.logistic(a, b, small):
            scores[block] = s @ v
        return scores.mul_(2).sub_(v.sum())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of keys, queries and v for that of the scores (batch, steps, entries)."""
        a, b, v = ctx.saved_tensors
        grad_keys, grad_queries, grad_v = torch.empty_like(a), torch.empty_like(b), torch.zeros_like(v)
        for block, s in AdditiveScores.logistic(a, b, ctx.small):
            grad_v += grad[block].flatten() @ s.flatten(0, 2)
            s.addcmul_(s, s, value=-1).mul_(grad[block][..., None])  # grad * s (1 - s)
            torch.sum(s, 1, out=grad_keys[block])
            torch.sum(s, 2, out=grad_queries[block])
        return grad_keys.mul_(4 * v), grad_queries.mul_(4 * v), grad_v.mul_(2).sub_(grad.sum())

    @staticmethod
    def logistic(a: Tensor, b: Tensor, small: bool) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the batch, each with s of all its pairs (rows, steps, entries, hidden), in one buffer that is used again and again.

        ``a`` (batch, entries, hidden) and ``b`` (batch, steps, hidden) are exp(-2k) and exp(-2q) where ``small``, else 2k and 2q.
        """
        (batch, entries, hidden), steps = a.shape, b.shape[1]
        rows = max(1, BLOCK // (steps * entries * hidden)) if a.device.type == "cpu" else batch
        buffer, one = a.new_empty(min(rows, batch), steps, entries, hidden), a.new_ones(1)
        for start in range(0, batch, rows):
            block = slice(start, min(start + rows, batch))
            s = buffer[: block.stop - block.start]
            if small:
                torch.addcmul(one, a[block, None], b[block, :, None], out=s).reciprocal_()
            else:
                torch.add(a[block, None], b[block, :, None], out=s).sigmoid_()
            yield block, s


class PointerAttention(nn.Module):
    """Scores u = v^T tanh(W1 e + W2 d) of every entry against every decoder state (section 2.3, equation 3)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.W1 = nn.Linear(hidden, hidden, bias=False)
        self.W2 = nn.Linear(hidden, hidden, bias=False)
        self.v = nn.Parameter(torch.randn(hidden) / hidden**0.5)  # norm about 1

    def forward(self, entries: Tensor, states: Tensor) -> Tensor:
        """(batch, entries, hidden) and (batch, steps, hidden) to scores (batch, steps, entries)."""
        scores: Tensor = AdditiveScores.apply(self.W1(entries), self.W2(states), self.v)  # type: ignore[no-untyped-call]
        return scores


class PointerNetwork(nn.Module):
    """A pointer network over vectors of ``input_dim`` numbers; its parameters do not depend on how many there are.

    Args:
        input_dim: numbers per input, 2 for planar points, 1 for sorting.
        hidden: units of both LSTMs and of the attention.
        centre, scale: inputs are read as ``scale * (input - centre)``.
    """

    def __init__(self, input_dim: int = 2, hidden: int = 128, *, centre: float = 0.5, scale: float = 4.0) -> None:
        super().__init__()
        self.centre, self.scale = centre, scale
        self.encoder = nn.LSTM(input_dim, hidden, batch_first=True)
        self.decoder = nn.LSTM(input_dim, hidden, batch_first=True)
        self.attention = PointerAttention(hidden)
        self.start = nn.Parameter(torch.zeros(input_dim))  # the decoder's first input
        self.stop = nn.Parameter(torch.zeros(hidden))  # the entry e_0 that means stop

    def encode(self, inputs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Read ``inputs`` (batch, n, input_dim).

        Args:
            inputs: the points; what lies beyond an instance's length is never read.
            lengths: (batch,) number of points of each instance, n for all when omitted.

        Returns:
            Entries e_0..e_n (batch, n + 1, hidden) and the LSTM's state at each instance's own last point.

        Raises:
            ValueError: wrong shape, coordinates that are not finite, lengths outside 1..n.
        """
        scaled = self.scale * (self.check(inputs, lengths) - self.centre)
        if lengths is None:
            encoded, state = self.encoder(scaled)
        else:
            packed = pack_padded_sequence(scaled, lengths.cpu(), batch_first=True, enforce_sorted=False)
            output, state = self.encoder(packed)
            encoded, _ = pad_packed_sequence(output, batch_first=True, total_length=inputs.shape[1])
        return torch.cat([self.stop.expand(len(inputs), 1, -1), encoded], 1), state

    def check(self, inputs: Tensor, lengths: Tensor | None) -> Tensor:
        """Return ``inputs`` with padding zeroed, or raise ValueError."""
        dim = self.start.shape[0]
        if inputs.dim() != 3 or inputs.shape[-1] != dim or inputs.shape[1] < 1:
            raise ValueError(f"inputs must have shape (batch, n >= 1, {dim}), got {tuple(inputs.shape)}")
        if lengths is not None:
            if lengths.shape != inputs.shape[:1] or int(lengths.min()) < 1 or int(lengths.max()) > inputs.shape[1]:
                raise ValueError(f"lengths must be {len(inputs)} numbers in 1..{inputs.shape[1]}, got {lengths.tolist()}")
            real = torch.arange(inputs.shape[1], device=inputs.device) < lengths[:, None]
            inputs = inputs.masked_fill(~real[..., None], 0.0)
        bad = ~inputs.isfinite().flatten(1).all(1)
        if bad.any():
            raise ValueError(f"inputs must be finite; instance {int(bad.nonzero()[0])} holds NaN or infinity")
        return inputs

    def forward(self, inputs: Tensor, answers: Tensor, lengths: Tensor | None = None, *, constraint: Constraint = "none") -> Tensor:
        """Log-probabilities of every pointer, given the answers before it (teacher forcing): one LSTM call, one broadcast.

        Args:
            inputs: (batch, n, input_dim).
            answers: (batch, m) int64 indices 1..n, ``STOP``, ``PAD``.
            lengths: (batch,) true numbers of points.
            constraint: which pointers are masked, as in :meth:`step`.

        Returns:
            (batch, m, n + 1) log-probabilities; -inf at padded and masked points.
        """
        entries, state = self.encode(inputs, lengths)
        chosen = self.look_up(inputs, answers[:, :-1])  # the decoder reads P_{C_{i-1}}
        first = self.start.expand(len(inputs), 1, -1)
        decoded, _ = self.decoder(torch.cat([first, chosen], 1), state)
        real = self._lengths(inputs, lengths)
        one_hot = F.one_hot(answers.clamp(min=STOP), entries.shape[1]).bool()  # (batch, m, n + 1)
        taken = F.pad(one_hot.cummax(1).values[:, :-1], (0, 0, 1, 0))  # before step i
        return self.point(entries, decoded, self.forbidden(taken, real[:, None], constraint))

    def look_up(self, inputs: Tensor, answers: Tensor) -> Tensor:
        """The scaled points (batch, m, input_dim) that ``answers`` (batch, m) name; zeros for ``STOP`` and ``PAD``."""
        index = (answers.clamp(min=1) - 1)[..., None].expand(-1, -1, inputs.shape[-1])
        points = self.scale * (inputs.gather(1, index) - self.centre)
        return points * (answers > STOP)[..., None]

    def point(self, entries: Tensor, decoded: Tensor, forbidden: Tensor) -> Tensor:
        """Log-softmax of the scores over what is not ``forbidden`` (batch, steps, n + 1)."""
        scores: Tensor = self.attention(entries, decoded)
        return scores.masked_fill(forbidden, -torch.inf).log_softmax(-1)

    @staticmethod
    def forbidden(taken: Tensor, lengths: Tensor, constraint: Constraint) -> Tensor:
        """Pointers to mask before the softmax (..., n + 1): padding always, more by the constraint.

        Args:
            taken: (..., n + 1) bool, which entries were pointed at before.
            lengths: (...) number of points.
            constraint: ``none``; ``no_repeats`` forbids points already chosen; ``tour`` forbids *stop* as well until all are chosen.
        """
        position = torch.arange(taken.shape[-1], device=taken.device)
        point = position > STOP
        mask = position > lengths[..., None]
        if constraint != "none":
            mask = mask | (taken & point)
        if constraint == "tour":
            unfinished = (taken & point).sum(-1) < lengths
            mask = mask | (~point & unfinished[..., None])
        return mask

    @staticmethod
    def _lengths(inputs: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is None:
            return torch.full((inputs.shape[0],), inputs.shape[1], device=inputs.device)
        return lengths.to(inputs.device)

    def initial_state(self, inputs: Tensor, lengths: Tensor | None = None) -> State:
        """The state from which :meth:`step` decodes ``inputs``: a mapping of tensors with one row an instance."""
        entries, (hidden, cell) = self.encode(inputs, lengths)
        real = self._lengths(inputs, lengths)
        taken = torch.zeros(entries.shape[:2], dtype=torch.bool, device=inputs.device)
        return {"inputs": inputs, "entries": entries, "hidden": hidden[0], "cell": cell[0], "lengths": real, "taken": taken}

    def step(self, tokens: Tensor, state: State, *, constraint: Constraint = "none") -> tuple[Tensor, State]:
        """One decoder step: the points chosen last (rows,) to log-probabilities (rows, n + 1) and the next state.

        ``constraint`` masks scores before the softmax, see :meth:`forbidden`.
        """
        inputs, entries, lengths = state["inputs"], state["entries"], state["lengths"]
        started = tokens != START
        point = torch.where(started[:, None], self.look_up(inputs, tokens[:, None])[:, 0], self.start)
        decoded, (hidden, cell) = self.decoder(point[:, None], (state["hidden"][None], state["cell"][None]))
        position = torch.arange(entries.shape[1], device=entries.device)
        taken = state["taken"] | (position == tokens[:, None])
        log_probs = self.point(entries, decoded, self.forbidden(taken, lengths, constraint)[:, None])[:, 0]
        return log_probs, {**state, "hidden": hidden[0], "cell": cell[0], "taken": taken}

    @torch.no_grad()
    def decode(
        self, inputs: Tensor, lengths: Tensor | None = None, *, width: int = 1, max_steps: int | None = None, constraint: Constraint = "none"
    ) -> Hypotheses:
        """Answer by greedy search (``width`` 1) or beam search: the best ``width`` answers of each instance.

        Args:
            inputs: (batch, n, input_dim).
            lengths: (batch,) true numbers of points.
            width: beams.
            max_steps: longest answer with *stop*; n + 1 when omitted.
            constraint: see :meth:`step`.
        """
        return beam_search(
            lambda tokens, state: self.step(tokens, state, constraint=constraint),
            self.initial_state(inputs, lengths),
            width=width, start=START, end=STOP, max_steps=max_steps or inputs.shape[1] + 1,
        )  # fmt: skip


def answer_loss(log_probs: Tensor, answers: Tensor) -> Tensor:
    """Mean negative log-likelihood a pointer: (batch, m, n + 1) against answers (batch, m), ``PAD`` left out (equation 2)."""
    return F.nll_loss(log_probs.flatten(0, 1), answers.flatten(), ignore_index=PAD)


def check_answers(answers: Tensor, lengths: Tensor, *, repeats: bool = False) -> Tensor:
    """Return ``answers`` (batch, m) when each names points 1..length, then stops; else raise ValueError naming the row.

    Args:
        answers: int64 indices, ``STOP``, ``PAD``.
        lengths: (batch,) number of points of each instance.
        repeats: whether an index may come twice (it may in triangulations, not in hulls and tours).
    """
    stopped = answers == STOP
    position = torch.arange(answers.shape[1], device=answers.device)
    end = torch.where(stopped.any(1), stopped.int().argmax(1), answers.shape[1])
    before = position < end[:, None]
    outside = (before & ((answers < 1) | (answers > lengths[:, None]))).any(1)
    twice = ((answers[:, :, None] == answers[:, None]) & before[:, :, None] & before[:, None] & (position[:, None] < position)).flatten(1).any(1)
    tail = (~before & (position > end[:, None]) & (answers != PAD)).any(1)
    for wrong, message in (
        (~stopped.any(1), f"does not end with the stop symbol {STOP}"),
        (outside, "points outside 1..n"),
        (twice & (not repeats), "names a point twice"),
        (tail, f"goes on after the stop symbol (pad with {PAD})"),
    ):
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(f"answer {row} {message}: {answers[row].tolist()} for n={int(lengths[row])}")
    return answers
