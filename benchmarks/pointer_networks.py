"""A pointer network's training step beside the LSTM calls that it cannot avoid and beside a Python loop over decoder steps."""

import torch
from ratios import ratios
from torch import Tensor, nn

from mtlearn.datasets import planar
from mtlearn.lab.seeds import stream
from mtlearn.pointing.pointer_networks.method import PointerNetwork, answer_loss


def looped_log_probs(network: PointerNetwork, points: Tensor, answers: Tensor) -> Tensor:
    """The same numbers as ``network(points, answers)`` in the style of most public re-implementations: one decoder step after another."""
    entries, (hidden, cell) = network.encode(points)
    token = torch.full((len(points),), -1)
    state = {"inputs": points, "entries": entries, "hidden": hidden[0], "cell": cell[0]}
    state |= {"lengths": torch.full((len(points),), points.shape[1]), "taken": torch.zeros(entries.shape[:2], dtype=torch.bool)}
    rows = []
    for at in range(answers.shape[1]):
        row, state = network.step(token, state)
        rows.append(row)
        token = answers[:, at]
    return torch.stack(rows, 1)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for n, hidden in ((5, 128), (12, 128), (20, 128), (12, 256)):
        points = planar.sample_points(128, n, generator=stream(0, n))
        answers = planar.convex_hull(points)
        network = PointerNetwork(hidden=hidden)
        encoder, decoder = nn.LSTM(2, hidden, batch_first=True), nn.LSTM(2, hidden, batch_first=True)
        chosen = points[:, : answers.shape[1]]
        if chosen.shape[1] < answers.shape[1]:
            chosen = torch.cat([chosen, chosen[:, : answers.shape[1] - n]], 1)
        torch.testing.assert_close(looped_log_probs(network, points, answers), network(points, answers), atol=1e-5, rtol=1e-5)

        def bare(encoder: nn.LSTM = encoder, decoder: nn.LSTM = decoder, points: Tensor = points, chosen: Tensor = chosen) -> None:
            encoded, state = encoder(points)
            decoded, _ = decoder(chosen, state)
            (encoded.sum() + decoded.sum()).backward()

        def projected(
            network: PointerNetwork = network,
            encoder: nn.LSTM = encoder,
            decoder: nn.LSTM = decoder,
            points: Tensor = points,
            chosen: Tensor = chosen,
        ) -> None:
            encoded, state = encoder(points)
            decoded, _ = decoder(chosen, state)
            (network.attention.W1(encoded).sum() + network.attention.W2(decoded).sum()).backward()

        def ours(network: PointerNetwork = network, points: Tensor = points, answers: Tensor = answers) -> None:
            answer_loss(network(points, answers), answers).backward()

        def loop(network: PointerNetwork = network, points: Tensor = points, answers: Tensor = answers) -> None:
            answer_loss(looped_log_probs(network, points, answers), answers).backward()

        ways = {
            "the two LSTM calls alone": bare,
            "those and the projections W1, W2": projected,
            "mtlearn: one decoder call": ours,
            "a loop over decoder steps": loop,
        }
        ratios(f"forward and backward, batch 128, n = {n}, {hidden} units", ways, target="ours at most 1.5")


if __name__ == "__main__":
    main()
