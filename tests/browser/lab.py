"JupyterLab in Chromium: notebooks run whole from a fresh kernel, and every control moved."
import json, os, re, shutil, signal, socket, subprocess, sys, time, urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# a picture in a cell's output, and what Jupyter shows where something went wrong
PICTURE = ".jp-OutputArea-output img"
WRONG = "[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr']"
CONTROLS = ".widget-slider .noUi-handle, .widget-dropdown select, .widget-checkbox input"
# What stderr may hold: a warning is no fault of the page. Which ones libraries give depends on their versions, and
# some cells show a warning of the kit on purpose; the tests of the notebooks look at those.
WARNS = re.compile(r": \w*Warning: ")
OURS = re.compile(r"widget|comm|vemi|script|undefined", re.I)          # of console errors


def chromium():
    "Path of a Chromium; None without one."
    return next((p for n in ("chromium","chromium-browser","google-chrome") if (p := shutil.which(n))), None)


def without_browser():
    "Why no browser can be driven here; an empty text if one can."
    if chromium() is None: return "no chromium on this machine: apt-get install chromium"
    try: import playwright, jupyterlab, ipywidgets                      # noqa: F401
    except ImportError as e: return f"{e.name} is not installed: pip install -e '.[dev]'"
    return ""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def server(folder):
    "A JupyterLab over a copy of the notebooks; gives its address."
    shutil.copytree(ROOT/"nbs", folder/"nbs")
    settings = folder/"settings"/"@jupyterlab"/"notebook-extension"
    settings.mkdir(parents=True)
    # all cells are in the page, also those that nobody scrolls to
    (settings/"tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    port = free_port()
    flags = f"--ServerApp.port={port} --IdentityProvider.token= --ServerApp.open_browser=False --ServerApp.port_retries=0"
    flags = [*flags.split(), f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True", "--allow-root"]
    env = {**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(folder/"settings"), "JUPYTER_CONFIG_DIR": str(folder/"config")}
    env.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", JUPYTERLAB_WORKSPACES_DIR=str(folder/"workspaces"))
    env.pop("MPLBACKEND", None)                                        # kernels draw into the notebook
    log = (folder/"jupyter.log").open("w")
    p = subprocess.Popen([sys.executable, "-m", "jupyterlab", *flags], env=env, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address + "/api/status", p)
        yield address
    finally:
        p.send_signal(signal.SIGTERM)
        try: p.wait(20)
        except subprocess.TimeoutExpired: p.kill()


def wait_for(address, process, seconds=120):
    "Until a page answers."
    end = time.time() + seconds
    while time.time() < end and process.poll() is None:
        try: return urllib.request.urlopen(address, timeout=5).read()
        except OSError: time.sleep(.2)
    raise RuntimeError(f"JupyterLab does not answer at {address}")


@dataclass
class Visit:
    "What one notebook did in the browser."
    name:str
    seconds:float = 0.
    moved:int = 0
    still:list = field(default_factory=list)                           # controls that changed no picture
    redraws:list = field(default_factory=list)                         # (seconds, control)
    wrong:list = field(default_factory=list)                           # error outputs and errors of the console


class Lab:
    "A page of JupyterLab."
    def __init__(self, browser, address):
        self.page, self.address, self.errors = browser.new_page(), address, []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))

    def call(self, script, *args): return self.page.evaluate(script, *args)

    def open(self, path):
        "Open a notebook in a page of its own; its kernel is fresh."
        self.page.goto(f"{self.address}/lab/tree/{path}?reset", wait_until="domcontentloaded")
        self.page.wait_for_function("window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell')", timeout=120_000)
        self.call("window.jupyterapp.restored")
        ready = """() => {const w = jupyterapp.shell.currentWidget;
            return w && w.sessionContext && w.sessionContext.session && w.sessionContext.session.kernel
                && w.sessionContext.session.kernel.status == 'idle'}"""
        self.page.wait_for_function(ready, timeout=120_000)

    def run(self, seconds=300):
        "Run all cells; returns when the last is done."
        self.page.set_default_timeout(seconds*1000)
        self.call("async () => { await jupyterapp.commands.execute('notebook:run-all-cells') }")
        self.page.wait_for_function("jupyterapp.shell.currentWidget.sessionContext.session.kernel.status == 'idle'")

    def wrong(self):
        "Texts of error outputs, and of what else than warnings stands on stderr."
        said = [(e.get_attribute("data-mime-type"), e.inner_text()) for e in self.page.query_selector_all(WRONG)]
        return [text[-600:] for kind,text in said if kind.endswith("error") or not WARNS.search(text)]

    def close(self):
        "Shut the kernel down."
        self.call("async () => { const c = jupyterapp.shell.currentWidget.sessionContext; await c.shutdown() }")


PICTURES = "e => [...e.closest('.jp-Cell').querySelectorAll('.jp-OutputArea-output img')].map(i => i.src).join()"
TURN = dict(slider=("PageUp","End","Home"), select=("ArrowDown","End","Home"), check=(" ",))


def kind(control):
    tag = control.evaluate("e => e.tagName + (e.type || '')")
    return "check" if tag.startswith("INPUT") else "select" if tag.startswith("SELECT") else "slider"


def label(control):
    return control.evaluate("e => e.closest('.jupyter-widgets').innerText.split('\\n')[0].trim() || e.closest('.jupyter-widgets').textContent.slice(0, 20)")


def turn(lab, control, key):
    "Move a control by a key."
    if kind(control) == "check": return control.evaluate("e => e.click()")
    if kind(control) == "slider":
        control.focus()
        return lab.page.keyboard.press(key)
    n = control.evaluate("e => e.options.length")
    at = control.evaluate("e => e.selectedIndex")
    to = dict(ArrowDown=(at+1) % n, End=n-1, Home=0)[key]
    control.select_option(index=to)


def move(lab, control, visit, seconds=40):
    "Move a control until the picture of its cell changes, and measure how long that takes."
    name = label(control)
    visit.moved += 1
    for key in TURN[kind(control)]:
        was, start = control.evaluate(PICTURES), time.perf_counter()
        turn(lab, control, key)
        patience = 10                                                  # unless it says that it computes
        while time.perf_counter() - start < patience:
            if control.evaluate(PICTURES) != was:
                return visit.redraws.append((time.perf_counter()-start, f"{visit.name}: {name}"))
            if control.evaluate("e => e.closest('.jp-Cell').innerText.includes('computing...')"): patience = seconds
            time.sleep(.02)
    visit.still.append(f"{visit.name}: {name}")


def visit(lab, path):
    "Run a notebook whole, then move each of its controls."
    res, lab.errors[:], start = Visit(Path(path).stem), [], time.perf_counter()
    lab.open(path)
    lab.run()
    res.seconds = time.perf_counter() - start
    for control in lab.page.query_selector_all(CONTROLS): move(lab, control, res)
    res.wrong = lab.wrong() + [e for e in lab.errors if OURS.search(e)]
    lab.close()
    return res


def with_controls():
    "Paths of the notebooks that have a control, below the root."
    paths = sorted((ROOT/"nbs").rglob("[!.]*.ipynb"))
    text = lambda p: "".join("".join(c["source"]) for c in json.loads(p.read_text())["cells"] if c["cell_type"] == "code")
    found = [p for p in paths if ".ipynb_checkpoints" not in p.parts and "explore(" in text(p)]
    return [str(p.relative_to(ROOT)) for p in found]
