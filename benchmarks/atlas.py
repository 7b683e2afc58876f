"""aTLAS: a training step of the coefficients beside one of all weights and beside the merge written with a loop, and what scores of blocks cost."""

import torch
from ratios import ratios
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from mtlearn.merging.atlas.method import LinearisedComposition, PartitionedComposition, information
from mtlearn.merging.composition import Composition

TASKS = 8


class Looped(nn.Module):
    """The same merge as public layer-wise code writes it: for each parameter, a sum over the models."""

    def __init__(self, base: nn.Module, vectors: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self._model, self._vectors = [base], vectors
        self.coefficients = nn.Parameter(torch.zeros(len(vectors), len(vectors[0])))

    def forward(self, x: Tensor) -> Tensor:
        state = dict(self._model[0].named_parameters())
        for j, name in enumerate(self._vectors[0]):
            for i, vector in enumerate(self._vectors):
                state[name] = state[name] + self.coefficients[i, j] * vector[name]
        out: Tensor = functional_call(self._model[0], state, (x,))
        return out


def encoder() -> nn.Sequential:
    torch.manual_seed(0)
    hidden = [nn.Linear(64, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, 256), nn.LayerNorm(256), nn.GELU()]
    return nn.Sequential(*hidden, nn.Linear(256, 10))


def main() -> None:
    torch.set_num_threads(1)
    base = encoder().requires_grad_(False)
    vectors = [{name: 0.01 * torch.randn_like(value) for name, value in base.state_dict().items()} for _ in range(TASKS)]
    x, y = torch.randn(256, 64), torch.arange(256) % 10
    models = {
        "coefficients, as here": Composition(base, vectors),
        "coefficients, a loop over vectors and blocks": Looped(base, vectors),
        "aTLAS x 10": PartitionedComposition(base, vectors, 10),
        "in the tangent space": LinearisedComposition(base, vectors),
        "all weights": encoder(),
    }

    def step(model: nn.Module) -> None:
        cross_entropy(model(x), y).backward()
        model.zero_grad()

    ratios(
        f"Forward and backward of 256 inputs, {TASKS} task vectors",
        {name: (lambda model=model: step(model)) for name, model in models.items()},
        target="not slower than the loop",
    )

    weights = {name: value.clone().requires_grad_() for name, value in base.state_dict().items()}

    def one_pass() -> Tensor:
        loss = cross_entropy(functional_call(base, weights, (x,)), y)
        return information(dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True)), vectors)

    def one_by_one() -> Tensor:
        found = []
        for vector in vectors:
            model = Composition(base, [vector])
            found.append(torch.autograd.grad(cross_entropy(model(x), y), model.coefficients)[0][0])
        return torch.stack(found)

    torch.testing.assert_close(one_pass(), one_by_one(), atol=1e-5, rtol=1e-4)
    ratios("Scores of all blocks of all vectors", {"one backward pass": one_pass, "a pass for each vector": one_by_one})


if __name__ == "__main__":
    main()
