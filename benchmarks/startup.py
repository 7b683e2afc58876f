"""Starting up: the package, the catalogue and the command, beside an empty interpreter and beside importing PyTorch."""

import subprocess
import sys
from pathlib import Path

from ratios import ratios


def main() -> None:
    command = Path(sys.executable).with_name("mtlearn")
    calls = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import mtlearn": [sys.executable, "-c", "import mtlearn"],
        "import mtlearn.papers; papers()": [sys.executable, "-c", "import mtlearn.papers as p; p.papers()"],
        "mtlearn papers (target: 300 ms)": [str(command), "papers"],
        "import torch": [sys.executable, "-c", "import torch"],
    }
    ways = {name: lambda call=call: subprocess.run(call, check=True, stdout=subprocess.DEVNULL) for name, call in calls.items()}
    ratios("starting up", ways, repeats=7)


if __name__ == "__main__":
    main()
