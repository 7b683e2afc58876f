"""Execute notebooks and store what the code printed: ``python notebooks/execute.py [NOTEBOOK ...]``, all when none is named.

Stored outputs are never written by hand. What changes from run to run without meaning (times, widget state) is not stored.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from tqdm import tqdm

FOLDER = Path(__file__).parent
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}


def execute(path: Path) -> None:
    """Run every cell of one notebook in a fresh kernel and write it back."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
    where = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", record_timing=False, store_widget_state=False, coalesce_streams=True, resources=where
    )
    client.execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop("application/vnd.jupyter.widget-state+json", None)
    notebook.metadata = METADATA
    nbformat.write(notebook, path)


def main() -> None:
    """Execute the notebooks named on the command line."""
    named = [Path(name) for name in sys.argv[1:]]
    for path in tqdm(named or sorted(p for p in FOLDER.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts), unit="notebook"):
        execute(path)


if __name__ == "__main__":
    main()
