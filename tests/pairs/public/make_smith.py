"""Numbers of the public SMITH code for the tests: ``python tests/pairs/public/make_smith.py FOLDER`` writes smith.json beside this file.

FOLDER holds the package ``smith`` of github.com/google-research/google-research; TensorFlow 2.15 runs it in its version 1 mode. Two functions are
called: the matching loss (loss_fns.get_prediction_loss_cosine) and the masked sentence block loss (layers.get_masked_sent_lm_output). Of the latter
the vectors that meet in its output layer are read from the graph, so that what stands before it (a dense layer with random weights) does not matter.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np


def main() -> None:
    """Run both and write what went in and what came out."""
    sys.path.insert(0, sys.argv[1])
    tf, layers, loss_fns = (import_module(name) for name in ("tensorflow.compat.v1", "smith.layers", "smith.loss_fns"))
    tf.disable_eager_execution()
    tf.set_random_seed(0)
    draws = np.random.default_rng(0)
    first, second = (draws.normal(size=(4, 6)).astype("float32") for _ in range(2))
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    labels, weight = [1.0, 0.0, 0.0, 1.0], 3.0
    matching = loss_fns.get_prediction_loss_cosine(
        tf.constant(first), tf.constant(second), tf.constant(labels), similarity_score_amplifier=6.0, neg_to_pos_example_ratio=weight
    )
    states, true = (draws.normal(size=(3, 5, 8)).astype("float32") for _ in range(2))
    places = np.array([[0, 2], [1, 4], [2, 3]], dtype="int32")
    weights = np.array([[1, 1], [1, 0], [1, 1]], dtype="float32")
    config = SimpleNamespace(hidden_size=8, hidden_act="gelu", initializer_range=0.5)
    blocks = layers.get_masked_sent_lm_output(config, *(tf.constant(x) for x in (states, true, places, weights)))
    product = [op for op in tf.get_default_graph().get_operations() if op.type == "MatMul" and op.get_attr("transpose_b")][-1]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        loss, _, logits = session.run(matching)
        block_loss, h, e = session.run([blocks[0], *product.inputs])
    found = {
        "matching": {
            "first": first.tolist(),
            "second": second.tolist(),
            "labels": labels,
            "weight": weight,
            "loss": float(loss),
            "logits": logits.tolist(),
        },
        "blocks": {"h": h.reshape(3, 2, 8).tolist(), "e": e.reshape(3, 2, 8).tolist(), "weights": weights.tolist(), "loss": float(block_loss)},
    }
    Path(__file__).with_name("smith.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
