"Fast forms of the energy and its chain, the teacher's cache in a run, and the command vemi_bench_step."
import copy, json
import pytest, torch
from torch import nn
from PIL import Image
from vemi_kit.core import frozen, generator
from vemi_kit.data.pictures import digits, resize
from vemi_kit.data.batches import Batches
from vemi_kit.distill import Distiller
from vemi_kit.cache import TeacherCache
from vemi_kit.energy import EnergyNet
from vemi_kit.study.loops import longer_steps
from vemi_kit.study.steps import vemi_bench_step
from vemi_kit.vem import VEM


def pair(n=16):
    t = digits(16)[0][:n]
    return t, resize(resize(t, 5), 16)


def test_paper_preset_is_what_it_was():
    "Figures of three iterations with the paper's energy, sigma constant in the backward pass."
    t, s = pair()
    vem = VEM.like(t, s, seed=3)
    vem.chain_stream = lambda device: generator(3, device)                 # the noise that it was measured with
    for _ in range(3): step = vem.tighten(t, s)
    x = s.clone().requires_grad_()
    loss = step.loss(x)
    loss.backward()
    got = [step.energy_pos, step.energy_neg, step.energy_loss, step.drift, step.move]
    was = [.0167135131, .0116420677, .00509454124, .082384944, .00909434445]
    assert [*got, loss.item()] == pytest.approx([*was, .000482389005], rel=1e-4)
    assert x.grad.abs().sum().item() == pytest.approx(.00230846484, rel=1e-4)


def test_fast_is_the_same_iteration():
    """Without noise, energies, energy step and the student's gradient agree to rounding; weights go from one
    form to the other.
    """
    t, s = pair()
    plain, fast = (VEM.like(t, s, fast=f, noise_std=0., step_size=1.) for f in (False, True))
    with torch.no_grad():
        for i, p in enumerate(plain.energy.parameters()):
            p.add_(.05*torch.randn(p.shape, generator=generator(i)))
    fast.energy.load_state_dict(plain.energy.state_dict())
    grads = []
    for vem in (plain, fast):
        step = [vem.tighten(t, s) for _ in range(2)][-1]
        x = s.clone().requires_grad_()
        step.loss(x).backward()
        grads.append((step, x.grad))
    (a, ga), (b, gb) = grads
    for k, v in a:
        # `move` is over what the energy sees
        if k != "move": assert dict(b)[k] == pytest.approx(v, rel=1e-3, abs=1e-6), k
    assert torch.nn.functional.cosine_similarity(ga.flatten(), gb.flatten(), 0) > .999
    state = fast.state_dict()
    again = VEM.like(t, s, fast=True, seed=7)
    again.load_state_dict(state)
    assert dict(again.tighten(t, s)) == dict(fast.tighten(t, s))


@pytest.mark.parametrize("fast", [False, True])
def test_energy_on_meta_and_under_autocast(fast):
    x = torch.zeros(2, 3, 64, 64, device="meta")
    assert EnergyNet(64, fast=fast).to("meta")(x, x).shape == (2,)
    net, x = EnergyNet(16, fast=fast), torch.randn(2, 2, 3, 16, 16)
    with frozen(net), torch.no_grad():
        e = net(*x)
        with torch.autocast("cpu", torch.bfloat16): assert torch.equal(net(*x), e)


def small(c=4):
    torch.manual_seed(c)
    return nn.Sequential(nn.Conv2d(1, c, 3, padding=1), nn.Tanh(), nn.Conv2d(c, 1, 3, padding=1), nn.Tanh())


def test_cached_teacher_same_student(tmp_path):
    teacher, pool = small(8), digits(8)[0][:48]
    cache = TeacherCache(teacher, pool, tmp_path/"t.safetensors", batch_size=16)
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    cache = TeacherCache(teacher, pool, tmp_path/"t.safetensors", batch_size=16)
    # read, not computed
    assert not calls and len(list(tmp_path.iterdir())) == 1
    states = []
    for t in (teacher, cache):
        student = small(2)
        Distiller(t, student, "l1 + vem", Batches(pool, 16), n_steps=4, device="cpu").fit()
        states.append(copy.deepcopy(student.state_dict()))
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    with torch.no_grad(): teacher[0].weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(ValueError, match="another teacher"):
        TeacherCache(teacher, pool, tmp_path/"t.safetensors")
    with pytest.raises(ValueError, match="1 of 3 inputs are not in the pool"):
        cache(torch.cat([pool[:2], -pool[:1]]))
    raw = (tmp_path/"t.safetensors").read_bytes()
    (tmp_path/"t.safetensors").write_bytes(raw[:-8])
    with pytest.raises(ValueError, match="cannot be read"):
        TeacherCache(teacher, pool, tmp_path/"t.safetensors")


def test_command(tmp_path, capsys):
    out = tmp_path/"steps.json"
    args = ["iteration", "--widths", "4", "--batches", "1", "--rounds", "1", "--out", str(out)]
    assert vemi_bench_step([*args, "--sizes", "16"]) == 0
    assert "plain loop, ms" in capsys.readouterr().out
    Image.open(tmp_path/"steps.png").verify()
    # goes on with the file
    assert vemi_bench_step([*args, "--sizes", "8", "16", "--bf16"]) == 0
    assert "fast, bf16, 3 longer" in capsys.readouterr().out
    r = json.loads(out.read_text())
    assert [row["size"] for row in r["iteration"]] == [8, 16] and r["machine"]["threads"] == 1
    assert all("--sizes 8 16 --bf16" in row["command"] for row in r["iteration"])
    row = r["iteration"][1]
    assert row["gmacs"]["floor of bf16"] == row["gmacs"]["floor of fast"] < row["gmacs"]["floor"]
    assert row["ms"]["floor"] < row["ms"]["plain loop"]
    assert {"fast, bf16", "fast, bf16, 3 longer", "floor of bf16"} <= row["ms"].keys()
    r["machine"]["torch"] = "0.1"
    out.write_text(json.dumps(r))
    assert vemi_bench_step([*args, "--sizes", "8"]) == 1 and "another machine" in capsys.readouterr().err
    assert vemi_bench_step(["speed"]) == 1 and "expected some of" in capsys.readouterr().err


def test_longer_steps_keep_time_and_temperature():
    a, b = longer_steps(10), longer_steps(3)
    assert a == dict(n_steps=10, step_size=100., noise_std=.005)
    for f in (lambda x: x["n_steps"]*x["step_size"], lambda x: x["noise_std"]**2/x["step_size"]):
        assert f(a) == pytest.approx(f(b))
    with pytest.raises(ValueError, match="1 to 10"): longer_steps(11)
