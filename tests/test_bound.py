"The command vemi_bound: a task in a process of its own and in this one, a folder of pairs, two networks, bad input."
import json, math, subprocess, sys
import pytest, torch
from PIL import Image
from vemi_kit.files import save_nets
from vemi_kit.show import image_grid
from vemi_kit.data.pictures import digits, resize
from vemi_kit.nats import bounds
from vemi_kit.nats.measure import measure_pairs, vemi_bound
from vemi_kit.zoo.dcgan import SNGenerator

CODE = "import sys; from vemi_kit.nats.measure import vemi_bound; sys.exit(vemi_bound())"
COMMAND = [sys.executable, "-c", CODE]


def run(cwd, *args):
    return subprocess.run([*COMMAND, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300)


def quick(levels, steps, out): return f"--levels {levels} --steps {steps} --device cpu --out {out}".split()


def check(folder):
    r = json.loads((folder/"bound.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    Image.open(folder/"bound.png").verify()
    last = r["sandwiches"][-1]
    assert last["lower"]["mean"] <= last["upper"]["mean"] + 3*last["lower"]["se"]
    assert r["sandwiches"][0]["n_levels"] == 1
    return r


def test_task_twice(tmp_path, inside):
    p = run(tmp_path, "task", "dense 5x5", "--n", 3000, *quick(20, 20, "a"))
    assert p.returncode == 0, p.stderr
    r = check(tmp_path/"a")
    assert "truth 0.593 nats" in p.stdout and "lower (certified)" in p.stdout
    lower = r["sandwiches"][-1]["lower"]
    assert lower["mean"] < r["truth"] + 3*lower["se"]
    again = inside(vemi_bound, "task", "dense 5x5", "--n", 3000, *quick(20, 20, "b"))
    # the same seed, the same figures
    assert json.loads((tmp_path/"b/bound.json").read_text())["sandwiches"] == r["sandwiches"], again.stderr


def test_folder_of_pairs(tmp_path, inside):
    t = digits(8, "all")[0][:240]
    for name,x in (("t",t), ("s",resize(resize(t,4),8))):
        (tmp_path/name).mkdir()
        for i,im in enumerate(x):
            Image.fromarray((image_grid(im[None])[...,0]*255).astype("uint8")).save(tmp_path/name/f"{i}.png")
    p = inside(vemi_bound, "pairs", "t", "s", "--channels", 1, *quick(10, 5, "r"))
    assert p.returncode == 0, p.stderr
    assert check(tmp_path/"r")["noise_floor"] == .1 and "noise floor 0.1" in p.stdout
    (tmp_path/"s/0.png").unlink()
    p = inside(vemi_bound, "pairs", "t", "s", "--channels", 1)
    assert p.returncode == 1 and "in one folder only" in p.stderr and "Traceback" not in p.stderr


def test_two_networks(tmp_path, inside):
    torch.manual_seed(0)
    for name,width in (("teacher",8), ("student",4)):
        save_nets(tmp_path/f"{name}.safetensors", net=SNGenerator(8, 1, width, 8))
    files = "teacher.safetensors", "student.safetensors"
    p = inside(vemi_bound, "nets", *files, "--n", 400, *quick(10, 5, "r"))
    assert p.returncode == 0, p.stderr
    check(tmp_path/"r")


@pytest.mark.parametrize("args, message", [
    (["pairs","none","none"], "no folder"),
    (["nets","none","none"], "no weights file"),
    (["task","dense 5x5","--n","20"], "at least 200 pairs"),
    (["nets","a","b","--noise-floor","0"], "--noise-floor > 0"),
    (["table","--tasks","none"], "no task ['none']"),
    (["task","dense 5x5","--levels","0"], "--levels: expected a whole number >= 1, got 0"),
    (["nets","a","b","--noise-floor","nan"], "--noise-floor > 0"),
])
def test_bad_input_is_one_line(inside, args, message):
    p = inside(vemi_bound, *args)
    assert p.returncode == 1 and message in p.stderr and p.stderr.count("\n") == 1


@pytest.mark.parametrize("args, message", [
    (["task","dense 5x5","--n","-5"], "--n: expected a whole number >= 1, got -5"),
    (["task","dense 5x5","--steps","0"], "--steps: expected a whole number >= 1, got 0"),
    (["pairs","a","b","--size","0"], "--size: expected a whole number >= 1, got 0"),
    (["table","--seeds","0"], "--seeds: expected a whole number >= 1, got 0"),
    (["nets","net.pth","net.pth"], "expected a file written by save_nets"),
    (["nets","cut.safetensors","cut.safetensors"], "expected a file written by save_nets"),
    (["nets","net.safetensors","net.safetensors","--arch","torch.nn:Linear"], "does not fit"),
    (["nets","net.safetensors","net.safetensors","--arch","json"], "expected module:Class"),
])
def test_bad_options_and_files(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    net = SNGenerator(8, 1, 2, 8)
    save_nets("net.safetensors", net=net)
    torch.save(net.state_dict(), "net.pth")
    (tmp_path/"cut.safetensors").write_bytes((tmp_path/"net.safetensors").read_bytes()[:700])
    assert vemi_bound(args) == 1
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_data_of_the_same_seed_are_not_our_noise(seed):
    "The first numbers that a user draws are no noise floor, so the certified value stays below the truth."
    truth = -.5*math.log(2*math.pi*math.e*(.05**2 + .1**2))
    torch.manual_seed(seed)
    s = torch.randn(2000, 1)
    t = s + .05*torch.randn(2000, 1)
    lower = bounds.certify_pairs(t, s, .1, (3,), n_steps=60, n_checks=1, progress=False)[0][0].lower
    assert truth - .2 < lower.mean < truth + 3*lower.se
    # the noise alone, for a student that knows the teacher: its entropy, not less
    torch.manual_seed(seed)
    z = torch.randn(2000, 1)
    left = bounds.conditional_bound(z, z, .1, seed=seed)
    assert left.mean > .5*math.log(2*math.pi*math.e*.1**2) - 3*left.se


@pytest.mark.parametrize("n_levels", [0, -1, 2.5, math.nan])
def test_no_levels_certify_nothing(n_levels):
    "Without levels the path would not reach the model, and its energy would count as if it had no normaliser."
    g = torch.Generator().manual_seed(0)
    s = torch.randn(200, 2, generator=g)
    t = s + torch.randn(200, 2, generator=g)
    model = bounds.fit_tilted(t, s, n_steps=5, n_checks=1, progress=False)
    with pytest.raises((ValueError, TypeError), match="n_levels: expected a whole number >= 1"):
        bounds.ais_bounds(model, t, s, n_levels, s[:20])
    with pytest.raises(ValueError, match="rising from 0 to 1"):
        bounds.ais_bounds(model, t, s, path=bounds.AnnealPath([0.], [1.], [False], 0.))


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
