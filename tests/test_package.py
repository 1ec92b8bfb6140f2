"The package as an installer sees it: what it imports, what it ships, what it says when something is missing."
import ast, json, re, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
notebooks = sorted((root/"nbs").rglob("*.ipynb"))
ini = ConfigParser(delimiters=["="])
ini.read(root/"settings.ini")
EXTRAS = ["sklearn", "skimage", "ipywidgets", "jupyterlab", "nbdev", "execnb", "scipy.linalg", "torch_pruning"]
EXTRAS += ["onnx", "onnxscript", "onnxruntime"]


def python(code, cwd):
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_runtime_needs_no_extra(tmp_path):
    "All modules import with the extras' packages out of reach, and VEM trains."
    block = "import sys\nfor m in %r: sys.modules[m] = None\n" % [m for m in EXTRAS if "." not in m]
    r = python(block + """
import pkgutil, importlib, vemi_kit, torch
for m in pkgutil.walk_packages(vemi_kit.__path__, 'vemi_kit.'):
    if not m.name.endswith('_modidx'): importlib.import_module(m.name)
from vemi_kit.vem import VEM
t = torch.zeros(2,1,16,16); s = torch.zeros(2,1,16,16, requires_grad=True)
VEM.like(t, s).tighten(t, s).loss(s).backward(); assert s.grad is not None
from vemi_kit.data.pictures import digits
try: digits()
except ImportError as e: print(e)
from vemi_kit.schedules import schedule_designer
try: schedule_designer()
except ImportError as e: print(e)
from vemi_kit.pruning import prune
try: prune(torch.nn.Conv2d(3, 3, 1), macs_ratio=2, sample=torch.zeros(1,3,8,8))
except ImportError as e: print(e)
from vemi_kit.deploy import export_onnx
try: export_onnx(torch.nn.Conv2d(3, 3, 1).eval(), "x", torch.zeros(1,3,8,8))
except ImportError as e: print(e)
""", tmp_path)
    assert r.returncode == 0, r.stderr
    for extra in ("demo","explore","prune","deploy"): assert f"pip install 'vemi_kit[{extra}]'" in r.stdout


def test_missing_extra_stops_the_demo_with_the_pip_command(tmp_path):
    r = python("""
import sys
sys.modules['sklearn'] = None
from vemi_kit.study.demo import vemi_demo
sys.exit(vemi_demo(['--steps','2']))
""", tmp_path)
    assert r.returncode == 1 and "pip install 'vemi_kit[demo]'" in r.stderr


def test_shipped_weights_are_small():
    files = list((root/"vemi_kit/weights").glob("*.safetensors"))
    assert {f.stem for f in files} >= {"digits_teacher", "digit_classifier"}
    assert all(f.stat().st_size < 1_000_000 for f in files)


def cells(path):
    found = json.loads(path.read_text())["cells"]
    return [(c["cell_type"], "".join(c["source"]), c.get("outputs", [])) for c in found]


def number(name):
    "Reading order: 602_methods.base -> 602; the start (0xx), tutorials and index build on all."
    m = re.match(r"([1-9]\d+)_", name)
    return int(m.group(1)) if m else 1000


MODULE = {}
for nb in notebooks:
    for kind, src, _ in cells(nb):
        m = kind == "code" and re.search(r"#\|\s*default_exp\s+(\S+)", src)
        if m: MODULE["vemi_kit." + m.group(1)] = number(nb.name)


@pytest.mark.parametrize("nb", notebooks, ids=lambda p: p.stem)
def test_notebook(nb):
    "Imports lower numbers only, shows pictures, has a slider, stays small, names no machine's folders."
    own, text = number(nb.name), nb.read_text()
    for kind, src, _ in cells(nb):
        if kind != "code": continue
        for mod in re.findall(r"^\s*from (vemi_kit\.[\w.]+) import", src, re.M):
            assert MODULE[mod] < own, f"{nb.name} imports {mod}, number {MODULE[mod]}"
    assert nb.stat().st_size < 500_000
    assert not re.search(r"/(home|root|tmp|work)/\w", text)
    if nb.stem == "index": return
    assert '"image/png"' in text, "no stored picture: python .ci/refresh.py " + nb.name
    assert "explore(" in text or "interact(" in text, "no widget"


def test_every_module_has_a_notebook_and_public_things_are_documented():
    for path in (root/"vemi_kit").rglob("*.py"):
        if path.name.startswith("_"): continue
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        assert name in MODULE, f"{name} has no notebook"
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"


def test_readme_has_the_two_commands_and_is_generated():
    text = (root/"README.md").read_text()
    assert "&& vemi_demo" in text and "nbdev_test --n_workers 2" in text
    assert "pytest -q -n 2 --dist loadfile --doctest-modules vemi_kit tests" in text
    assert "pip install -c constraints.txt -e \".[demo]\"" in text
    assert "#|" not in text and "RESULTS" not in text


def test_ci_runs_the_readme_s_test_command():
    command = re.search(r'-e "\.\[dev\]" && (.*)', (root/"README.md").read_text()).group(1)
    lines = [l.strip() for l in (root/".ci/run").read_text().splitlines()]
    assert all(any(l.endswith(part.strip()) for l in lines) for part in command.split("&&"))
    # pytest's closing line comes last
    assert lines[-1] == command.split("&&")[-1].strip()
