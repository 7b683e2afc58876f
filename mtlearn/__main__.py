"""``python -m mtlearn`` is the command ``mtlearn``."""

from mtlearn.cli import main

main()
