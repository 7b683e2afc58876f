"""Self Positioning: a step of the search beside a step of training all weights, and the fold from the Gram matrix beside the fold of the vectors."""

import torch
from ratios import ratios
from torch.func import functional_call

from mtlearn.merging.self_positioning.encoders import WordEncoder
from mtlearn.merging.self_positioning.method import SelfPositioning, TaskSpace, fold_coefficients, info_nce, slerp


def main() -> None:
    torch.manual_seed(0)
    model = WordEncoder()
    base = {name: value.detach().clone() for name, value in model.state_dict().items()}
    vectors = {f"task {i}": {name: 0.01 * torch.randn_like(value) for name, value in base.items()} for i in range(4)}
    space = TaskSpace(base, vectors)
    position = SelfPositioning(space.gram)
    tokens = torch.randint(1, 5000, (2, 64, 80))
    everything = torch.optim.Adam(model.parameters(), lr=1e-5)
    scalars = torch.optim.SGD(position.parameters(), lr=1e-5)

    def train() -> None:
        everything.zero_grad()
        info_nce(model(tokens[0]), model(tokens[1])).backward()
        everything.step()

    def search() -> None:
        scalars.zero_grad()
        state = space.state(position.coefficients())
        info_nce(functional_call(model, state, (tokens[0],)), functional_call(model, state, (tokens[1],))).backward()
        scalars.step()

    def forward() -> None:
        with torch.no_grad():
            info_nce(model(tokens[0]), model(tokens[1]))

    ratios(
        "One step on 64 pairs, four tasks, 337,000 weights", {"Adam on all weights": train, "SGD on five scalars": search, "forward alone": forward}
    )

    rows, a = list(space.vectors), torch.ones(4)

    def by_vectors() -> None:
        found = rows[0]
        for k in range(1, 4):
            found = slerp(found, rows[k], a[:k].mean(), a[k])

    ratios(
        "The merged vector of four tasks",
        {
            "slerp of vectors, step by step": by_vectors,
            "coefficients from the Gram matrix": lambda: fold_coefficients(space.gram, a) @ space.vectors.double(),
        },
    )


if __name__ == "__main__":
    main()
