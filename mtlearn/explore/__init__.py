"""What explorers, notebooks and exercises share."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "explorer": ["Explorer", "PointerEvent", "choice", "entry", "menu", "slider", "switch"],
        "exercises": ["Exercise"],
        "listing": ["source"],
        "style": ["suite_style"],
    },
)
