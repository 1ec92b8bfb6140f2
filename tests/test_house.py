"The house: who imports whom, what the front offers, what CONTRIBUTING promises."
import doctest, importlib, json, re, subprocess, sys
from pathlib import Path
import vemi_kit

root = Path(__file__).parent.parent


def loaded_by(code):
    "Modules of the kit that a fresh interpreter has loaded after `code`."
    tell = "\nimport json, sys\nprint(json.dumps([m for m in sys.modules if m.startswith('vemi_kit.')]))"
    r = subprocess.run([sys.executable, "-c", code + tell], capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stderr
    return {m.removeprefix("vemi_kit.") for m in json.loads(r.stdout.splitlines()[-1])}


def test_every_notebook_has_a_number_of_its_own():
    numbers = [re.match(r"(\d+)_", p.name) for p in (root/"nbs").glob("*.ipynb") if p.stem != "index"]
    assert all(numbers) and len({m.group(1) for m in numbers}) == len(numbers)


def test_running_a_notebook_writes_no_package():
    for p in sorted((root/"nbs").rglob("*.ipynb")):
        code = ["".join(c["source"]) for c in json.loads(p.read_text())["cells"] if c["cell_type"] == "code"]
        assert not [c for c in code if "nbdev_export(" in c], p.name


def test_the_paper_s_road_knows_neither_tilts_nor_annealing():
    assert loaded_by("import vemi_kit.vem") == {"core", "doors", "processes", "energy", "chains", "vem", "show"}


DISTIL = """
import torch, vemi_kit
from vemi_kit.zoo.translators import ResNetGenerator
x = torch.rand(8, 1, 16, 16)*2 - 1
make = lambda w: ResNetGenerator(w, 1, 1, 1)
run = vemi_kit.distill(make(4).eval(), make(2), [x, x], "l1 + vem", n_steps=2, device="cpu", progress=False)
assert run.step == 2
"""


def test_a_pair_walks_through_few_files():
    "distill -> objective -> method -> vem -> chains -> energy, and nothing of nats or the comparisons."
    there = loaded_by(DISTIL)
    assert {"distill", "methods.base", "methods.l1", "methods.vem", "vem", "chains", "energy"} <= there
    assert not [m for m in there if m.split(".")[0] in ("nats","study","enhance","metrics")], there


def test_the_front_imports_nothing_until_it_is_used():
    assert loaded_by("import vemi_kit; assert 'distill' in dir(vemi_kit)") == set()
    assert loaded_by("import vemi_kit, vemi_kit.nats; vemi_kit.VEM") >= {"vem"}
    assert set(vemi_kit.__all__) >= {"distill", "VEM", "TiltedVEM", "shrink", "prune", "count_macs"}


def test_a_command_starts_without_what_it_may_not_need():
    "torchmetrics brings scipy and matplotlib: two seconds of a core, spent where something is measured."
    commands = "ship.compress", "study.demo", "study.command", "study.steps", "enhance.command", "nats.measure", "zoo.table"
    code = f"import sys, {', '.join(f'vemi_kit.{c}' for c in commands)}\n"
    loaded_by(code + "late = {'torchmetrics','scipy','matplotlib'} & sys.modules.keys()\nassert not late, late")


def test_distill_is_a_module_and_a_function():
    import vemi_kit.distill as module
    assert callable(module) and module.distill is importlib.import_module("vemi_kit.distill").distill
    assert vemi_kit.distill.__doc__ and callable(vemi_kit.distill)


def test_wings_answer_for_their_modules():
    from vemi_kit.enhance import enhance_folder
    from vemi_kit.nats import TiltedVEM
    assert enhance_folder.__module__ == "vemi_kit.enhance.files" and TiltedVEM.__module__ == "vemi_kit.nats.vem"


def test_contributing_s_examples_run():
    from vemi_kit.methods.base import Method
    from vemi_kit.nats.tasks import TASKS
    from vemi_kit.study.combinations import KINDS
    kept = [(d, dict(d)) for d in (Method.registry, TASKS, KINDS)]
    try: found = doctest.testfile(str(root/"CONTRIBUTING.md"), module_relative=False)
    finally:
        # what the kit itself loaded meanwhile stays: its modules are not run a second time
        own = lambda x: str(getattr(x, "__module__", "")).startswith("vemi_kit.")
        for d,was in kept:
            for k in d.keys() - was.keys():
                if not own(d[k]): del d[k]
    assert found.attempted >= 15 and found.failed == 0


def test_changelog_names_the_version():
    assert f"## {vemi_kit.__version__}" in (root/"CHANGELOG.md").read_text()
