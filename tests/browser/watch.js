// What a page of JupyterLab tells of itself. `acted` is when the reader last did something, `took` how long the picture then needed.
(() => {
  let acted = 0;
  for (const kind of ["keydown", "pointerdown", "pointermove", "pointerup", "click", "change"])
    addEventListener(kind, () => { acted = performance.now(); }, true);
  const panel = () => window.jupyterapp?.shell?.currentWidget;
  const cells = () => [...panel().content.model.cells].filter((cell) => cell.type === "code" && cell.sharedModel.source.trim());
  const outputs = () => cells().flatMap((cell) => Array.from({ length: cell.outputs.length }, (_, n) => cell.outputs.get(n).toJSON()));
  const idle = () => panel().sessionContext?.session?.kernel?.status === "idle";
  window.mtlearn = {
    ready: (path) => panel()?.context?.path === path && panel().context.isReady && panel().sessionContext.isReady && idle(),
    errors: () => outputs().filter((output) => output.output_type === "error").map((output) => `${output.ename}: ${output.evalue}`),
    idle,
    finished: () => idle() && (window.mtlearn.errors().length > 0
      || cells().every((cell) => cell.executionCount !== null && cell.executionState !== "running")),
    left: () => cells().filter((cell) => cell.executionCount === null).length,
    widgets: () => outputs().filter((output) => output.data?.["application/vnd.jupyter.widget-view+json"]).length,
    shown: () => {
      const roots = [...document.querySelectorAll(".jp-Notebook .jp-OutputArea-output")].filter((root) => root.querySelector(".jupyter-widgets"));
      const pictures = [...document.querySelectorAll(".jp-Notebook .mtlearn-explorer")].map((root) => root.querySelector("img.mtlearn-picture"));
      return roots.length >= window.mtlearn.widgets() && pictures.every((picture) => picture?.complete && picture.naturalWidth > 0);
    },
    label: (control) => {
      for (let element = control; element && !element.matches(".mtlearn-explorer"); element = element.parentElement) {
        const label = [...element.children].find((child) => child.matches("label, .widget-label") && child.textContent.trim());
        if (label) return label.textContent.trim();
      }
      return control.textContent.trim();
    },
    height: () => {
      const all = [...document.querySelectorAll(".jp-NotebookPanel .jp-Cell")];
      return all.at(-1).getBoundingClientRect().bottom - all[0].getBoundingClientRect().top;
    },
    top: () => { document.querySelector(".jp-NotebookPanel .jp-WindowedPanel-outer").scrollTop = 0; },
    watch: (picture) => new MutationObserver(() => { picture.took = performance.now() - acted; }).observe(picture, { attributeFilter: ["data-drawn"] }),
    drawn: (picture) => Number(picture.dataset.drawn),
    later: ([picture, drawn]) => Number(picture.dataset.drawn) > drawn && picture.complete && idle(),
    print: async (picture) => {
      const bytes = await (await fetch(picture.src)).arrayBuffer();
      return [...new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    },
  };
})();
