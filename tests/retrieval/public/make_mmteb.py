"""Makes mmteb.json: how well the public function ``most_predictable_task`` says that the columns of small fixed matrices are predicted.

In an environment with pandas, SciPy, scikit-learn and tqdm: ``pip download mteb==1.20.0 --no-deps``, unpack the wheel into FOLDER, then
``python make_mmteb.py FOLDER``. Of the package only ``mteb/task_selection.py`` is run; the package itself, which the file needs for the names of
types alone, is left out. Nine models with four tasks, and six models with ten.
"""

import json
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

package = types.ModuleType("mteb")
package.MTEBResults = object
sys.modules["mteb"] = package
names = {"__name__": "mteb.task_selection"}
exec((Path(sys.argv[1]) / "mteb" / "task_selection.py").read_text(), names)  # the public functions are what is to be run
warnings.simplefilter("ignore")

cases = []
for models, tasks in ((9, 4), (6, 10)):
    draw = np.random.default_rng(models)
    level = draw.random((models, 1))
    scores = np.round(0.7 * level + 0.3 * draw.random((models, tasks)), 4)
    frame = pd.DataFrame(scores, columns=[f"task {i}" for i in range(tasks)])
    found = {task: values for row in names["most_predictable_task"](frame) for task, values in row.items()}
    # its standardised error fits the scaler on the first argument, which is the observed column
    rows = [[found[f"task {i}"][name] for name in ("spearman", "pearson", "mse_with_zscore")] for i in range(tasks)]
    cases.append({"scores": scores.tolist(), "spearman, pearson, error": rows})
Path(__file__).with_name("mmteb.json").write_text(json.dumps({"version": "1.20.0", "cases": cases}) + "\n")
