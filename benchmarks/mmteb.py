"""MMTEB: left-out predictions beside one scikit-learn fit each; a sample's clustering beside the whole."""

import numpy as np
import torch
from ratios import ratios
from sklearn.linear_model import LinearRegression

from mtlearn.retrieval.mmteb.method import bootstrap_v_measure, predict_left_out


def one_by_one(scores: np.ndarray) -> np.ndarray:
    """What the public function does: a fit of scikit-learn's for each model and task."""
    found = np.empty_like(scores)
    for task in range(scores.shape[1]):
        others = np.delete(scores, task, 1)
        for model in range(len(scores)):
            rest = np.delete(np.arange(len(scores)), model)
            found[model, task] = LinearRegression().fit(others[rest], scores[rest, task]).predict(others[[model]])[0]
    return found


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for models, tasks in ((23, 70), (152, 56)):
        scores = (0.5 * torch.rand(models, 1) + 0.5 * torch.rand(models, tasks)).double()
        ratios(
            f"Every score of {models} models and {tasks} tasks predicted",
            {"a fit of scikit-learn each": lambda s=scores: one_by_one(s.numpy()), "ours": lambda s=scores: predict_left_out(s)},
            repeats=3,
            target="never slower",
        )
        print(f"largest difference: {np.abs(one_by_one(scores.numpy()) - predict_left_out(scores).numpy()).max():.1e}")
    vectors, labels = torch.randn(20000, 64), [i % 20 for i in range(20000)]
    vectors += 2 * torch.eye(64)[labels]
    ratios(
        "Clustering 20,000 items, without embedding them",
        {
            "all, once": lambda: bootstrap_v_measure(vectors, labels, fraction=1.0, draws=0),
            "4 %, ten times": lambda: bootstrap_v_measure(vectors, labels, fraction=0.04),
        },
        repeats=3,
    )


if __name__ == "__main__":
    main()
