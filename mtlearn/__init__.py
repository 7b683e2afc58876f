"""mtlearn: learn multi-task representation learning from sixty-eight papers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["datasets", "explore", "lab", "papers", "paths", "pointing"])
