"""What the paper compares with: sequence to sequence with a fixed output dictionary, with and without attention.

Both read the same points with the same LSTMs as the pointer network and get the chosen *point* as the decoder's next input. What differs is
the output: a softmax over the indices 0..``dictionary``, computed from the decoder's state alone (Sutskever et al. 2014) or from the state and
the attention's blend of the encodings (Bahdanau et al. 2015). Two things favour them: classes above n are masked, and the blend is not
fed back into the decoder, so that training is one call for all three.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.pointing.pointer_networks.method import PointerNetwork


class FixedDictionary(PointerNetwork):
    """A sequence-to-sequence model that names inputs by an index of at most ``dictionary``.

    Args:
        dictionary: largest index that it can name.
        attention: whether the output sees the blend sum_j a_j e_j beside the decoder's state.
        input_dim, hidden, centre, scale: as in :class:`PointerNetwork`.
    """

    def __init__(self, dictionary: int, *, attention: bool, input_dim: int = 2, hidden: int = 128, centre: float = 0.5, scale: float = 4.0) -> None:
        super().__init__(input_dim, hidden, centre=centre, scale=scale)
        self.dictionary, self.blends = dictionary, attention
        if not attention:
            del self.attention  # it would be counted among the parameters
        self.output = nn.Linear(2 * hidden if attention else hidden, dictionary + 1)

    def point(self, entries: Tensor, decoded: Tensor, forbidden: Tensor) -> Tensor:
        """Log-softmax over stop and the indices 1..n; those above the dictionary have no class and stay at -inf.

        The encodings e_0..e_n are (batch, n + 1, hidden), decoder states (batch, steps, hidden), ``forbidden`` (batch, steps, n + 1).
        """
        if self.blends:
            padding = forbidden & (torch.arange(entries.shape[1], device=entries.device) == 0).logical_not()
            scores = self.attention(entries, decoded).masked_fill(padding, -torch.inf)
            decoded = torch.cat([decoded, scores.softmax(-1) @ entries], -1)  # [d_i; d'_i]
        classes = self.output(decoded)  # (batch, steps, dictionary + 1)
        inputs = entries.shape[1]
        classes = F.pad(classes[..., :inputs], (0, max(inputs - self.dictionary - 1, 0)), value=-torch.inf)
        return classes.masked_fill(forbidden, -torch.inf).log_softmax(-1)
