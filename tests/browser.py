"""A real JupyterLab in a real Chromium, for the tests that use the course as a learner does.

Lab is started by `dlcourse lab` on a copy of the notebooks, with its own folders for settings,
run-time files and temporary files, so a test neither sees nor changes anything of the user's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import psutil
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

REPOSITORY = Path(__file__).resolve().parents[1]
MARK = "DLCOURSE_TEST_LAB"  # in the environment of every process of one Lab, whoever its parent is
PATIENCE = 600_000  # ms; a condition is waited for, so a quiet machine never takes this long
POLLING = 200  # ms; by default a condition is asked at each frame, which costs a tenth of a core
VIEWPORT = {"width": 1200, "height": 1000}
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def chromium_path() -> str:
    """The browser; where there is none the test fails in CI and is skipped elsewhere."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    reason = "needs Chromium: install chromium or google-chrome"
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A Chromium without a window."""
    from playwright.sync_api import sync_playwright

    path = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


def new_page(browser: Browser, **viewport: int) -> Page:
    """A page that shares nothing with other pages and is patient."""
    page = browser.new_context(viewport=VIEWPORT | viewport).new_page()
    page.set_default_timeout(PATIENCE)
    page.add_init_script(NOTE_OPENED)
    return page


# ------------------------------------------------------------------------------------ JupyterLab


class Lab:
    """JupyterLab as `dlcourse lab` starts it; `with Lab(place) as lab: ... lab.url`.

    place: an empty folder, of which Lab sees `course`, a copy of `notebooks/` and `data/`.
    interface: the language of Lab's own words, as chosen in its menu; None leaves it to the course.
    """

    def __init__(self, place: Path, lang: str = "ko", interface: str | None = "en") -> None:
        self.place, self.lang, self.course = place, lang, place / "course"
        for folder in ("notebooks", "data"):
            hidden = shutil.ignore_patterns(".*", "__pycache__")
            shutil.copytree(REPOSITORY / folder, self.course / folder, ignore=hidden)
        if interface:
            chosen = place / "settings" / "@jupyterlab" / "translation-extension"
            chosen.mkdir(parents=True)
            (chosen / "plugin.jupyterlab-settings").write_text(f'{{"locale": "{interface}"}}')
        self.mark = uuid.uuid4().hex
        # Not below `place`: names of sockets have to be short.
        self.temporary = Path(tempfile.mkdtemp(prefix="lab"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        options = [
            "--no-browser", "--allow-root", "--expose-app-in-browser", "--ip=127.0.0.1",
            f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=",
        ]  # fmt: skip
        self.log = (place / "lab.log").open("w+")
        self.server = psutil.Popen(
            [*self.command(), *options],
            env=self._environment(),
            cwd=place,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def command(self) -> list[str]:
        return [sys.executable, "-m", "dlcourse.cli", "lab", "--lang", self.lang]

    def address(self, path: str) -> str:
        """Where the page shows a notebook."""
        return f"{self.url}/lab/tree/{path}?reset"

    def _environment(self) -> dict[str, str]:
        own = {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "IPYTHONDIR": "ipython",
            "DLCOURSE_ROOT": "course",
            "DLCOURSE_LEARNER": "learner",
        }
        env = {name: str(self.place / folder) for name, folder in own.items()}
        env |= {"TMPDIR": str(self.temporary), MARK: self.mark}
        # conftest.py turns the panel off for kernels that no browser looks at.
        return {k: v for k, v in os.environ.items() if k != "DLCOURSE_PANEL"} | env

    def __enter__(self) -> Lab:
        limit = time.monotonic() + PATIENCE / 1000
        while time.monotonic() < limit:
            assert self.server.poll() is None, self.said()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.url}/api", timeout=5)
                return self
            time.sleep(0.1)
        self.__exit__()
        raise TimeoutError(self.said())

    def __exit__(self, *_: object) -> None:
        if self.server.poll() is None:
            self.server.send_signal(signal.SIGTERM)  # it ends its kernels, too
            try:
                self.server.wait(20)
            except psutil.TimeoutExpired:
                self.server.kill()
        self.log.close()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def said(self) -> str:
        """What the server has written so far."""
        return (self.place / "lab.log").read_text()

    def write(self, name: str, cells: list[str]) -> str:
        """Make a notebook beside the lessons; returns its path as Lab names it."""
        code = [nbformat.v4.new_code_cell(cell.strip("\n")) for cell in cells]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=code, metadata={"kernelspec": kernel})
        nbformat.write(notebook, self.course / f"{name}.ipynb")
        return f"{name}.ipynb"

    # -- what it leaves --------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """The server and all that it started, also what has lost its parent since."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and alive(process):
                    found.append(process)
        return found

    def kernels(self) -> list[psutil.Process]:
        return [p for p in self.processes() if "ipykernel_launcher" in " ".join(p.cmdline())]

    def of_ranks(self) -> list[psutil.Process]:
        """The agents, the launchers and the ranks."""
        return [p for p in self.processes() if "dlcourse.ranks" in " ".join(p.cmdline())]

    def role(self, process: psutil.Process) -> str:
        """What a process is for, and its id: each starts the next."""
        roles = ("Lab", "kernel", "agent", "launcher", "rank")
        above = [p.pid for p in process.parents()]
        depth = above.index(self.server.pid) + 1 if self.server.pid in above else 0
        return f"{roles[min(depth, 4)]} {process.pid}"

    def files(self, pids: Iterable[int]) -> list[str]:
        """Sockets, pipes and shared memory that these processes have made and not removed."""
        found = [str(path) for path in self.temporary.glob("dlc*")]
        memory = Path("/dev/shm")
        if memory.is_dir():
            found += [str(path) for p in pids for path in memory.glob(f"*_{p}_*")]
        return found


class Notebook7(Lab):
    """`jupyter notebook`, in the course's folder and with nothing of ours set up."""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "notebook", f"--ServerApp.root_dir={self.course}"]

    def address(self, path: str) -> str:
        return f"{self.url}/notebooks/{path}"


def alive(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie has ended, its parent only has to collect it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(condition: Callable[[], Any], seconds: float) -> Any:
    """Wait until the condition holds, at most so long; returns its last value."""
    limit = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < limit:
        time.sleep(0.05)
    return value


def pss_bytes(process: psutil.Process) -> int:
    """Memory of a process, with its share of the pages that it shares (Linux)."""
    return process.memory_full_info().pss


# ------------------------------------------------------------------------------------ the page


class Watch:
    """Notes what a page asks for from elsewhere, and what it reports as an error."""

    def __init__(self, page: Page, lab: Lab) -> None:
        self.outside: list[str] = []
        self.errors: list[str] = []
        own = (lab.url, lab.url.replace("http", "ws"), "data:", "blob:")

        def asked(url: str) -> None:
            if not url.startswith(own):
                self.outside.append(url)

        page.context.on("request", lambda request: asked(request.url))
        page.on("websocket", lambda socket: asked(socket.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)


# Cells as Lab has them in memory: what a cell put out, and whether it has run.
CELLS = "() => Array.from(jupyterapp.shell.currentWidget.content.model.cells, c => c.toJSON())"
# The address names a notebook, so Lab opens it when it is loaded, in front of all that it restores
# by itself. That may come last of all, and take the place of what a test has opened since.
NOTE_OPENED = """
let app;
Object.defineProperty(window, "jupyterapp", {
  get: () => app,
  set: value => {
    app = value;
    app.commands.commandExecuted.connect((_, { id, result }) => {
      if (id === "filebrowser:open-path") result.finally(() => { window.addressIsOpen = true; });
    });
  },
});
"""
# Ends all kernels, and closes all that is open without a question whether to save it.
CLOSE_ALL = """
async () => {
  await jupyterapp.serviceManager.sessions.shutdownAll();
  for (const widget of [...jupyterapp.shell.widgets("main")]) widget.dispose();
}
"""
# Returns nothing: the widget that is opened cannot be sent to the test.
OPEN = "async path => { await jupyterapp.commands.execute('docmanager:open', { path }); }"
ACTIVATE = """
index => {
  const notebook = jupyterapp.shell.currentWidget.content;
  notebook.activeCellIndex = index;
  notebook.mode = "command";
  notebook.node.focus();
}
"""
CURRENT = "path => jupyterapp.shell.currentWidget?.context?.path === path"
IDLE = """
() => {
  const kernel = window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel;
  return kernel?.connectionStatus === "connected" && kernel.status === "idle";
}
"""
STATE = """
() => {
  const widget = window.jupyterapp?.shell.currentWidget;
  const kernel = widget?.sessionContext?.session?.kernel;
  const dialogs = [...document.querySelectorAll(".jp-Dialog")].map(d => d.innerText);
  return [widget?.context?.path, kernel?.connectionStatus, kernel?.status, dialogs];
}
"""
ENDED = """
cells => {
  const all = jupyterapp.shell.currentWidget.content.model.cells;
  const failed = i => all.get(i).outputs.toJSON().some(o => o.output_type === "error");
  // A failed cell ends a run: those below it never get a number.
  return cells.every(i => all.get(i).executionCount) || cells.some(failed);
}
"""


class Notebook:
    """A notebook open in Lab, used through the page as a person uses it."""

    def __init__(self, page: Page, lab: Lab, path: str) -> None:
        """Open it in a page; where Lab is there already, in place of all that is open in it."""
        self.page, self.lab = page, lab
        if page.url.startswith(lab.url):
            page.evaluate(CLOSE_ALL)
        self.watch = Watch(page, lab)
        if page.url.startswith(lab.url):
            page.evaluate(OPEN, path)
            page.wait_for_function(CURRENT, arg=path)
        else:
            page.goto(lab.address(path))
        self.idle()

    def idle(self) -> None:
        """Wait until the kernel is connected and has nothing to do.

        Raises:
            AssertionError: with what Lab says of the kernel, its questions and the server's log.
        """
        from playwright.sync_api import TimeoutError as TooLong

        try:
            self.page.wait_for_function(IDLE, polling=POLLING)
        except TooLong:
            state = self.page.evaluate(STATE)
            raise AssertionError(f"not idle: {state}\n{self.lab.said()[-3000:]}") from None

    def cells(self) -> list[dict[str, Any]]:
        """All cells, as in the file."""
        return self.page.evaluate(CELLS)

    def menu(self, menu: str, command: str) -> None:
        """Choose an item of Lab's menu bar."""
        self.page.get_by_role("menuitem", name=menu, exact=True).click()
        self.page.locator(f".lm-Menu-item[data-command='{command}']").click()

    def accept(self) -> None:
        """Say yes to Lab's question."""
        self.page.locator(".jp-Dialog .jp-mod-accept").click()

    def cell(self, index: int) -> Locator:
        """A cell of the page, with its output."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index)

    def select(self, index: int) -> None:
        """Click into a cell; one whose input is hidden has nothing to click into."""
        if self.cells()[index]["metadata"].get("jupyter", {}).get("source_hidden"):
            self.page.evaluate(ACTIVATE, index)
        else:
            self.cell(index).locator(".cm-content").click()

    def start(self, index: int) -> None:
        """Run a cell by its keys and do not wait for its end."""
        self.select(index)
        self.page.keyboard.press("Control+Enter")

    def finish(self, *indices: int) -> str:
        """Wait until these cells have run; returns what the last one put out, as text."""
        self.page.wait_for_function(ENDED, arg=list(indices), polling=POLLING)
        self.idle()
        return "".join(map(as_text, self.cells()[indices[-1]]["outputs"]))

    def run(self, index: int) -> str:
        """Run a cell to its end; returns what it put out, as text."""
        self.start(index)
        return self.finish(index)

    def stop(self) -> None:
        """Press the toolbar's stop button."""
        self.page.locator(".jp-Toolbar [data-command='notebook:interrupt-kernel']").click()

    def save_and_reload(self) -> None:
        """Save, load the page again, and wait until the kernel is connected and idle."""
        self.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
        saved = "() => !jupyterapp.shell.currentWidget.context.model.dirty"
        self.page.wait_for_function(saved)
        self.page.reload()
        self.page.wait_for_function("() => window.addressIsOpen")
        self.idle()

    def theme(self, name: str) -> None:
        """Choose a theme: "JupyterLab Dark" or "JupyterLab Light"."""
        change = "theme => jupyterapp.commands.execute('apputils:change-theme', { theme })"
        self.page.evaluate(change, name)
        self.page.wait_for_function(
            "dark => document.body.dataset.jpThemeLight === String(!dark)", arg="Dark" in name
        )

    @property
    def panel(self) -> Locator:
        """The live panel of the ranks."""
        return self.page.locator(".dlc-panel")


def as_text(output: dict[str, Any]) -> str:
    """A cell's output: what it printed, its error, or its result."""
    if output["output_type"] == "stream":
        return "".join(output["text"])
    if output["output_type"] == "error":
        return "\n".join(output["traceback"])
    return "".join(output["data"].get("text/plain", ""))


# ------------------------------------------------------------------------------------ what one sees

# Everything that is drawn in a figure: its size, its shapes, and words that one cannot read
# because they stick out of the figure or lie on others.
FIGURE = """
figure => {
  const box = figure.getBoundingClientRect();
  const seen = node => { const b = node.getBoundingClientRect(); return b.width + b.height > 0; };
  const words = [...figure.querySelectorAll("text")].filter(t => t.textContent.trim() && seen(t));
  const boxes = words.map(word => [word.textContent, word.getBoundingClientRect()]);
  const cut = boxes.filter(([, b]) => b.left < box.left - 2 || b.right > box.right + 2
    || b.top < box.top - 2 || b.bottom > box.bottom + 2);
  const over = [];
  boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
    const width = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const height = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (width > 3 && height > 3) over.push(`${a} / ${b}`);
  }));
  const shapes = ".trace path, .shapelayer path, .hm image";
  return {
    size: [box.width, box.height],
    shapes: [...figure.querySelectorAll(shapes)].filter(seen).length,
    title: figure.querySelector(".gtitle")?.textContent ?? "",
    cut: cut.map(([text]) => text),
    over,
  };
}
"""
# The contrast (WCAG 2.1) of every piece of text inside an element with what is behind it.
CONTRASTS = """
root => {
  const color = text => [...text.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
  const over = (top, below) => below.map((c, i) => top[i] * top[3] + c * (1 - top[3]));
  // In an SVG picture: what was painted before the words, at their middle, or their own halo.
  const painted = node => {
    const box = node.getBoundingClientRect();
    const middle = new DOMPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2);
    const covers = shape => node.compareDocumentPosition(shape) & Node.DOCUMENT_POSITION_PRECEDING
      && getComputedStyle(shape).fill !== "none"
      && shape.isPointInFill(middle.matrixTransform(shape.getScreenCTM().inverse()));
    const layers = [...node.ownerSVGElement.querySelectorAll("rect, path")].filter(covers)
      .map(shape => getComputedStyle(shape))
      .map(style => color(style.fill).map((c, i) => i < 3 ? c : c * style.fillOpacity));
    const { paintOrder, stroke } = getComputedStyle(node);
    return paintOrder.startsWith("stroke") && stroke !== "none"
      ? [...layers, color(stroke)] : layers;
  };
  const behind = node => {
    const layers = node.ownerSVGElement ? painted(node) : [];
    for (; node; node = node.parentElement)
      layers.unshift(color(getComputedStyle(node).backgroundColor));
    return layers.reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = rgb => {
    const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.map(c => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = {};
  const words = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const node = words.currentNode.parentElement;
    const text = words.currentNode.textContent.trim();
    if (!text || !node.checkVisibility() || node.closest("[aria-hidden=true]")) continue;
    const style = getComputedStyle(node);
    const back = behind(node);
    const front = over(color(node.closest("svg") ? style.fill : style.color), back);
    const [dark, bright] = [light(front), light(back)].sort((a, b) => a - b);
    found[text] = Math.min(found[text] ?? 21, (bright + 0.05) / (dark + 0.05));
  }
  return found;
}
"""


# The contrast of every text of a diagram with the shape or the ground on which it stands, and of
# every line with a given page; 1 where a text stands on the page itself, whatever that is.
DIAGRAM = """
([source, page]) => {
  const place = document.body.appendChild(document.createElement("div"));
  place.innerHTML = decodeURIComponent(source.slice(source.indexOf(",") + 1))
    .replace(/^[^]*?<svg/, "<svg");
  const color = text => (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const opaque = text => text !== "none" && (color(text)[3] ?? 1) >= 0.5;
  const light = text => {
    const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = color(text).slice(0, 3).map(c => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [dark, bright] = [light(a), light(b)].sort((x, y) => x - y);
    return (bright + 0.05) / (dark + 0.05);
  };
  const ground = label => {
    for (let node = label; node !== place; node = node.parentElement) {
      const back = getComputedStyle(node).backgroundColor;
      if (opaque(back)) return back;
      const shape = node.matches(".node, .cluster")
        && node.querySelector("rect, circle, ellipse, polygon, path");
      if (shape && opaque(getComputedStyle(shape).fill)) return getComputedStyle(shape).fill;
    }
  };
  const found = {};
  for (const label of place.querySelectorAll(".nodeLabel, .edgeLabel, text")) {
    const text = label.textContent.trim();
    if (!text || label.querySelector(".nodeLabel, .edgeLabel, text")) continue;
    const style = getComputedStyle(label);
    const front = label.closest("text") ? style.fill : style.color;
    const back = ground(label);
    found[text] = back ? contrast(front, back) : 1;
  }
  place.querySelectorAll(".flowchart-link").forEach((line, i) => {
    found[`line ${i}`] = 1.5 * contrast(getComputedStyle(line).stroke, page);
  });
  place.remove();
  return found;
}
"""


def diagram_contrasts(diagram: Locator, page: str) -> dict[str, float]:
    """How well a diagram can be read: 4.5 and more is enough, for lines (needing 3) as well.

    page: the colour of the page below it, such as "rgb(255, 255, 255)".
    """
    return diagram.evaluate(f"(img, page) => ({DIAGRAM})([img.src, page])", page)


def figure_facts(figure: Locator) -> dict[str, Any]:
    """What is drawn in a plotly figure: see FIGURE."""
    return figure.evaluate(FIGURE)


def contrasts(element: Locator) -> dict[str, float]:
    """The contrast of every text in an element with its background, 1 to 21."""
    return element.evaluate(CONTRASTS)


# ------------------------------------------------------------------------------------ the picture

PICTURE = """
%%ranks
from dlcourse.models.gpt import GPT
from dlcourse.parallel.data import OverlappedDataParallel, train
from dlcourse.corpus import Corpus

model = OverlappedDataParallel(GPT(seed=rank))
losses = train(model, Corpus(), steps=200, batch_size=2 * world_size)
"""


def take_picture(path: Path, steps: int = 12) -> None:
    """Photograph the panel in Lab while four ranks train a GPT: README.md's picture."""
    pool = "from dlcourse import Ranks\n\nranks = Ranks(4)"
    with chromium() as browser, tempfile.TemporaryDirectory() as place, Lab(Path(place)) as lab:
        page = new_page(browser, width=1000, height=560)
        notebook = Notebook(page, lab, lab.write("ranks", [pool, PICTURE]))
        page.evaluate("() => { jupyterapp.shell.collapseLeft(); }")
        notebook.run(0)
        notebook.start(1)
        page.wait_for_function(
            "steps => +document.querySelector('[data-field=steps]')?.textContent >= steps",
            arg=steps,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=path)
        notebook.stop()


if __name__ == "__main__":  # python tests/browser.py data/images/panel.png
    take_picture(Path(sys.argv[1]))
