"""What explorers share: controls beside one picture that is redrawn at once, in a notebook or in a test without a browser.

An explorer is a function that draws, and controls named after the function's arguments::

    def draw(figure, n, temperature):
        axes = figure.subplots()
        ...

    explorer = Explorer(draw, {"n": slider("points", 5, 3, 20), "temperature": slider("temperature", 1.0, 0.1, 5.0, 0.1)}, seed=0)
    explorer              # in a notebook: the controls and the picture
    explorer.set(n=7)     # in a test: what moving the slider does
    explorer.png          # the picture as it is now

The picture is one widget whose image is replaced when the next one is ready, so that nothing flickers. It takes the mouse and the
keyboard where the explorer wants them: ``on_pointer`` gets presses, drags and releases in the coordinates of the axes under
the mouse, and a test sends the same with :meth:`Explorer.point`.
"""

import base64
import gc
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import anywidget
import ipywidgets as widgets
import traitlets
from matplotlib.figure import Figure
from PIL import Image

from mtlearn.explore.canvas import Canvas, Layout
from mtlearn.explore.style import GREY, suite_style

Kind = Literal["press", "drag", "release", "key"]


@dataclass(frozen=True)
class PointerEvent:
    """One thing that the mouse or the keyboard did on the picture.

    Attributes:
        kind: ``press``, ``drag``, ``release`` or ``key``.
        axes: number of the axes under it, in the order in which they were made; -1 outside all.
        x, y: where, in the data coordinates of those axes; figure fractions from the lower left where axes is -1.
        key: the key's name for ``key`` ("ArrowLeft", "Delete"), with "Shift+" before it where shift was held; for the mouse "" or "Shift".
    """

    kind: Kind
    axes: int
    x: float
    y: float
    key: str = ""


class Picture(anywidget.AnyWidget):
    """An image that sends mouse and keyboard events back; ``png`` is what it shows, ``alt`` what a screen reader says.

    On the page ``data-drawn`` tells which drawing is shown, so that a browser test sees a redraw even where it changed nothing.
    """

    _esm = """
    function render({ model, el }) {
      const image = document.createElement("img");
      image.className = "mtlearn-picture";
      image.draggable = false;
      function show() {
        const drawn = model.get("drawn");
        const next = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }));
        const loader = new Image();
        loader.onload = () => {
          if (drawn < Number(image.dataset.drawn || 0)) { URL.revokeObjectURL(next); return; }  // a later one was faster
          const old = image.src;
          image.src = next;
          image.dataset.drawn = drawn;
          if (old) URL.revokeObjectURL(old);
        };
        loader.src = next;
        image.alt = model.get("alt");
        image.setAttribute("aria-label", model.get("alt"));
      }
      function place(event) {
        const box = image.getBoundingClientRect();
        return [(event.clientX - box.left) / box.width, 1 - (event.clientY - box.top) / box.height];
      }
      let waiting = null, busy = false, last = [0.5, 0.5];
      function send(content) {
        if (busy && content.kind === "drag") { waiting = content; return; }
        busy = true;
        model.send(content);
      }
      model.on("change:drawn", () => {  // also when the new picture equals the old one, which changes no other trait
        show();
        busy = false;
        if (waiting) { const content = waiting; waiting = null; send(content); }
      });
      if (model.get("interactive")) {
        image.tabIndex = 0;
        image.style.cursor = "crosshair";
        image.style.touchAction = "none";
        let held = false;
        image.addEventListener("pointerdown", (event) => {
          held = true; image.setPointerCapture(event.pointerId); image.focus(); last = place(event);
          send({ kind: "press", at: last, key: event.shiftKey ? "Shift" : "" }); event.preventDefault();
        });
        image.addEventListener("pointermove", (event) => {
          if (held) { last = place(event); send({ kind: "drag", at: last, key: event.shiftKey ? "Shift" : "" }); }
        });
        image.addEventListener("pointerup", (event) => {
          held = false; last = place(event); waiting = null; send({ kind: "release", at: last, key: event.shiftKey ? "Shift" : "" });
        });
        image.addEventListener("keydown", (event) => {
          if (event.key === "Tab" || event.key === "Shift" || event.ctrlKey || event.metaKey || event.altKey) return;
          send({ kind: "key", at: last, key: (event.shiftKey ? "Shift+" : "") + event.key });
          event.preventDefault(); event.stopPropagation();
        });
      }
      show();
      el.appendChild(image);
    }
    export default { render };
    """
    _css = ".mtlearn-picture { max-width: 100%; height: auto; display: block; user-select: none; background: white; }"
    png = traitlets.Bytes(b"").tag(sync=True)
    alt = traitlets.Unicode("").tag(sync=True)
    drawn = traitlets.Int(0).tag(sync=True)
    interactive = traitlets.Bool(False).tag(sync=True)


class Explorer:
    """Controls beside one figure.

    Args:
        draw: ``draw(figure, **values)`` draws the current values on an empty figure and may return the text that describes it (for
            screen readers and for tests).
        controls: argument name to widget; the order is the order on the screen.
        title: printed above the controls.
        figsize: inches at 100 dots; a notebook shows up to about 10 in full.
        seed: written on the figure, so that a screenshot can be made again.
        on_pointer: gets a :class:`PointerEvent`; it changes what ``draw`` sees, then the picture is redrawn.
        presets: label to control values, a button each; the first state is always there as "reset", also in the attribute ``presets``.
        extra: widgets of the explorer's own, shown below the controls (a text that it fills in ``draw``, say).
        on_reset: called when the reset button is pressed, before redrawing.
    """

    def __init__(
        self,
        draw: Callable[..., str | None],
        controls: Mapping[str, Any],
        *,
        title: str = "",
        figsize: tuple[float, float] = (9.0, 4.5),
        seed: int | None = None,
        on_pointer: Callable[[PointerEvent], None] | None = None,
        presets: Mapping[str, Mapping[str, Any]] | None = None,
        extra: Sequence[Any] = (),
        on_reset: Callable[[], None] | None = None,
    ) -> None:
        self.controls = dict(controls)
        self.text = ""
        self._draw, self._seed, self._on_pointer, self._on_reset = draw, seed, on_pointer, on_reset
        self._first = self.values
        self._held = False
        with suite_style():
            self.figure = Figure(figsize=figsize, layout=Layout())
        self._canvas = Canvas(self.figure)
        self.picture = Picture(interactive=on_pointer is not None)
        self.picture.on_msg(self._message)
        for control in self.controls.values():
            control.observe(self._changed, "value")
        buttons = {label: widgets.Button(description=label, layout=widgets.Layout(width="auto")) for label in (*(presets or {}), "reset")}
        for label, button in buttons.items():
            button.on_click(lambda _, label=label: self.preset(label))
        self.presets = {**(presets or {}), "reset": self._first}
        heading = [widgets.HTML(f"<b>{title}</b>")] if title else []
        row = widgets.Layout(display="flex", flex_flow="row wrap")
        self.widget = widgets.VBox(
            [*heading, widgets.Box(list(self.controls.values()), layout=row), widgets.Box(list(buttons.values()), layout=row), *extra, self.picture]
        )
        self.widget.add_class("mtlearn-explorer")  # what a browser test looks for
        self.redraw()

    @property
    def values(self) -> dict[str, Any]:
        """The controls' values by name."""
        return {name: control.value for name, control in self.controls.items()}

    @property
    def png(self) -> bytes:
        """The picture as it is now."""
        return bytes(self.picture.png)

    def set(self, **values: Any) -> None:
        """Move controls, as a person would, and redraw once.

        A slider stops at its ends. Unknown names raise KeyError and move nothing; a value that is none of a choice's options raises TraitError.
        """
        if unknown := [name for name in values if name not in self.controls]:
            raise KeyError(f"no control {unknown[0]!r}; there are {', '.join(self.controls)}")
        with self._together():
            for name, value in values.items():
                self.controls[name].value = value

    def preset(self, label: str) -> None:
        """Press a preset's button, or "reset". KeyError lists them."""
        if label not in self.presets:
            raise KeyError(f"no preset {label!r}; there are {', '.join(self.presets)}")
        with self._together():
            if label == "reset" and self._on_reset is not None:
                self._on_reset()
            self.set(**self.presets[label])

    def point(self, kind: Kind, x: float, y: float, *, axes: int = 0, key: str = "") -> None:
        """Press, drag, release or type at data coordinates (x, y) of axes number ``axes``, as the mouse and keyboard would."""
        if self._on_pointer is None:
            raise ValueError("this explorer takes no mouse: give on_pointer")
        with self._together():
            self._on_pointer(PointerEvent(kind, axes, x, y, key))

    @contextmanager
    def _together(self) -> Iterator[None]:
        """However many controls move inside, and however deep this is nested: the picture is drawn once, at the end."""
        outer, self._held = self._held, True
        try:
            yield
        finally:
            self._held = outer
            if not outer:
                self.redraw()

    def redraw(self) -> None:
        """Draw the current values and show the picture."""
        with _uncollected(), suite_style():
            for axes in self.figure.axes:
                axes.remove()  # clear() alone would first make each of them empty and new, which takes as long as drawing it
            self.figure.clear()
            self.text = self._draw(self.figure, **self.values) or ""
            if self._seed is not None:
                self.figure.text(0.995, 0.005, f"seed {self._seed}", ha="right", va="bottom", fontsize=8, color=GREY)
            self._canvas.draw()  # type: ignore[no-untyped-call]
        buffer = io.BytesIO()
        pixels = self._canvas.buffer_rgba()  # type: ignore[no-untyped-call]
        Image.frombuffer("RGBA", self._canvas.get_width_height(), pixels).convert("RGB").save(buffer, "png", compress_level=1)
        with self.picture.hold_sync():
            self.picture.drawn += 1
            self.picture.alt = self.text
            self.picture.png = buffer.getvalue()

    def _changed(self, change: object) -> None:
        if not self._held:
            self.redraw()

    def _message(self, sender: object, content: dict[str, Any], buffers: object) -> None:
        if self._on_pointer is None:
            return
        across, up = content["at"]
        width, height = self._canvas.get_width_height()
        for number, axes in enumerate(self.figure.axes):
            if axes.bbox.contains(across * width, up * height):
                x, y = axes.transData.inverted().transform((across * width, up * height))
                self.point(content["kind"], float(x), float(y), axes=number, key=content.get("key", ""))
                return
        self.point(content["kind"], across, up, axes=-1, key=content.get("key", ""))

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        # where no kernel runs (a repository's page, a printed notebook) the picture stands for the widget
        return {**self.widget._repr_mimebundle_(**kwargs), "image/png": base64.b64encode(self.png).decode(), "text/plain": self.text}


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: a drawing makes many objects that all live on, and searching them takes a sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def slider(label: str, value: float, low: float, high: float, step: float | None = None) -> Any:
    """A slider for whole numbers (when ``value``, ``low`` and ``high`` are ints) or for real ones, labelled in full."""
    whole = all(isinstance(number, int) for number in (value, low, high))
    kind = widgets.IntSlider if whole else widgets.FloatSlider
    room = widgets.Layout(width="auto", min_width=f"{max(280, 200 + 7 * len(label))}px", margin="2px 12px 2px 0")  # a long label must leave a track
    shape = {"style": {"description_width": "initial"}, "layout": room}
    return kind(value=value, min=low, max=high, step=step or (1 if whole else (high - low) / 50), description=label, **shape)


def choice(label: str, options: Sequence[Any], value: Any = None) -> Any:
    """One of a few: buttons side by side."""
    shown = widgets.ToggleButtons(options=list(options), value=options[0] if value is None else value, description=label, **_SHAPE)
    shown.style.button_width = "auto"  # as wide as the words, which a fixed width would cut
    return shown


def menu(label: str, options: Sequence[Any], value: Any = None) -> Any:
    """One of many: a drop-down list."""
    return widgets.Dropdown(options=list(options), value=options[0] if value is None else value, description=label, **_SHAPE)


def switch(label: str, value: bool = False) -> Any:
    """On or off."""
    return widgets.Checkbox(value=value, description=label, indent=False, layout=widgets.Layout(width="auto", margin="2px 12px"))


def entry(label: str, value: str) -> Any:
    """A line of text; it counts when the reader presses Enter or leaves it."""
    return widgets.Text(value=value, description=label, continuous_update=False, **_SHAPE)


_SHAPE: dict[str, Any] = {
    "style": {"description_width": "initial"},
    "layout": widgets.Layout(width="auto", min_width="280px", margin="2px 12px 2px 0"),
}
