"""The folder of published benchmark files, where there is one; tests that need a file of it are skipped elsewhere."""

import os
from pathlib import Path

REAL = Path(os.environ.get("MTLEARN_DATA") or Path(__file__).resolve().parents[2] / "shared" / "datasets")
