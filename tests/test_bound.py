"""The command vemi_bound in real processes: a task, a folder of pairs, two networks, a resumable table, bad
input.
"""
import json, subprocess, sys
import pytest, torch
from PIL import Image
from vemi_kit.files import save_nets
from vemi_kit.show import image_grid
from vemi_kit.data.pictures import digits, resize
from vemi_kit.nats import bounds
from vemi_kit.nats.measure import measure_pairs
from vemi_kit.zoo.dcgan import SNGenerator

CODE = "import sys; from vemi_kit.nats.measure import vemi_bound; sys.exit(vemi_bound())"
COMMAND = [sys.executable, "-c", CODE]


def run(cwd, *args):
    return subprocess.run([*COMMAND, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300)


def quick(levels, steps, out): return f"--levels {levels} --steps {steps} --device cpu --out {out}".split()


def check(folder):
    r = json.loads((folder/"bound.json").read_text())
    Image.open(folder/"bound.png").verify()
    last = r["sandwiches"][-1]
    assert last["lower"]["mean"] <= last["upper"]["mean"] + 3*last["lower"]["se"]
    assert r["sandwiches"][0]["n_levels"] == 1
    return r


def test_task_twice(tmp_path):
    p = run(tmp_path, "task", "dense 5x5", "--n", 3000, *quick(20, 20, "a"))
    assert p.returncode == 0, p.stderr
    r = check(tmp_path/"a")
    assert "truth 0.593 nats" in p.stdout and "lower (certified)" in p.stdout
    lower = r["sandwiches"][-1]["lower"]
    assert lower["mean"] < r["truth"] + 3*lower["se"]
    again = run(tmp_path, "task", "dense 5x5", "--n", 3000, *quick(20, 20, "b"))
    # the same seed, the same figures
    assert json.loads((tmp_path/"b/bound.json").read_text())["sandwiches"] == r["sandwiches"], again.stderr


def test_folder_of_pairs(tmp_path):
    t = digits(8, "all")[0][:240]
    for name,x in (("t",t), ("s",resize(resize(t,4),8))):
        (tmp_path/name).mkdir()
        for i,im in enumerate(x):
            Image.fromarray((image_grid(im[None])[...,0]*255).astype("uint8")).save(tmp_path/name/f"{i}.png")
    p = run(tmp_path, "pairs", "t", "s", "--channels", 1, *quick(10, 5, "r"))
    assert p.returncode == 0, p.stderr
    assert check(tmp_path/"r")["noise_floor"] == .1 and "noise floor 0.1" in p.stdout
    (tmp_path/"s/0.png").unlink()
    p = run(tmp_path, "pairs", "t", "s", "--channels", 1)
    assert p.returncode == 1 and "in one folder only" in p.stderr and "Traceback" not in p.stderr


def test_two_networks(tmp_path):
    torch.manual_seed(0)
    for name,width in (("teacher",8), ("student",4)):
        save_nets(tmp_path/f"{name}.safetensors", net=SNGenerator(8, 1, width, 8))
    files = "teacher.safetensors", "student.safetensors"
    p = run(tmp_path, "nets", *files, "--n", 400, *quick(10, 5, "r"))
    assert p.returncode == 0, p.stderr
    check(tmp_path/"r")


@pytest.mark.parametrize("args, message", [
    (["pairs","none","none"], "no folder"),
    (["nets","none","none"], "no weights file"),
    (["task","dense 5x5","--n","20"], "at least 200 pairs"),
    (["nets","a","b","--noise-floor","0"], "--noise-floor > 0"),
    (["table","--tasks","none"], "no task ['none']"),
])
def test_bad_input_is_one_line(tmp_path, args, message):
    p = run(tmp_path, *args)
    assert p.returncode == 1 and message in p.stderr and "Traceback" not in p.stderr


def spies(monkeypatch):
    "What `certify_pairs` fits on, evaluates, and spaces its levels with."
    seen, fit, certify = {}, bounds.fit_tilted, bounds.ais_bounds
    def spy_fit(t, s, **kw):
        seen["fit"] = t, s
        return fit(t, s, **kw)
    def spy_certify(model, t, s, n, pilot, **kw):
        seen["held"], seen["pilot"] = (t, s), pilot
        return certify(model, t, s, n, pilot, **kw)
    monkeypatch.setattr(bounds, "fit_tilted", spy_fit)
    monkeypatch.setattr(bounds, "ais_bounds", spy_certify)
    return seen


@pytest.mark.parametrize("measure, levels", [(measure_pairs, (1,4)), (bounds.certify_pairs, (4,))])
def test_pairs_that_are_evaluated_were_not_trained_on(monkeypatch, measure, levels):
    "A certificate is void if model, levels or steps were chosen with the pairs that it is taken on."
    seen, g = spies(monkeypatch), torch.Generator().manual_seed(0)
    s = torch.randn(240, 2, generator=g)
    t = s + torch.randn(240, 2, generator=g)
    rows = lambda *x: {tuple(r) for r in torch.cat(x, 1).tolist()}
    measure(t, s, 0., levels, n_steps=5, n_checks=1, progress=False)
    assert not rows(*seen["fit"]) & rows(*seen["held"])
    assert rows(*seen["fit"]) | rows(*seen["held"]) == rows(t, s)
    assert rows(seen["pilot"]) <= rows(seen["fit"][1])
