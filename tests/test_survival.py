"A run that is killed, interrupted, cut short or fed wrong: it goes on to the bit, or says why it does not."
import json, os, random, re, resource, signal, subprocess, sys, time
import numpy as np, pytest, torch
from pathlib import Path
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from vemi_kit.core import DivergenceError, set_seed
from vemi_kit.callbacks import Callback
from vemi_kit.checkpoints import read_sealed
from vemi_kit.data.batches import Batches
from vemi_kit.distill import distill
from vemi_kit.methods.base import Method, Objective

SCRIPT = """
import sys, time, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from vemi_kit.core import set_seed
from vemi_kit.averages import Averaged
from vemi_kit.callbacks import Callback
from vemi_kit.data.batches import Batches, Latents
from vemi_kit.distill import distill
from vemi_kit.phases import read_phases
out, formula, kind, n_steps, every = sys.argv[1:4] + [int(v) for v in sys.argv[4:6]]

class Net(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.start = nn.Sequential(nn.Linear(8,16*w), nn.Unflatten(1, (w,4,4)), nn.BatchNorm2d(w), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(w,w,3,padding=1), nn.ReLU(), nn.Dropout(.2))
        self.end = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(w,1,3,padding=1), nn.Tanh())
    def forward(self, z): return self.end(self.middle(self.start(z)))
class Noisy(torch.utils.data.Dataset):
    def __len__(self): return 40
    def __getitem__(self, i): return torch.randn(8) + i/40
class Slow(Callback):
    def after_step(self, figures): time.sleep(.01)

torch.set_num_threads(1)
set_seed(0)
teacher, student, disc = Net(16), Net(4), nn.Sequential(nn.Flatten(), nn.Linear(64,1), nn.Flatten(0))
data = dict(latents=lambda: Latents(8,16), batches=lambda: Batches(torch.randn(60,8), 16),
    loader=lambda: DataLoader(Noisy(), 16, shuffle=True, drop_last=True))[kind]()
names = {n for p in read_phases(formula) for n in p.names}
settings = {"adversarial": dict(discriminator=disc)} if "adversarial" in names else {}
print("ready", flush=True)
kw = dict(out=out, resume=True, every=every, n_steps=n_steps, device="cpu", progress=False, log_every=3)
run = distill(teacher, student, data, formula, callbacks=[Averaged(.9), Slow()], settings=settings, **kw)
torch.save(dict(student=student.state_dict(), average=run[Averaged].net.state_dict()), out + "/end.pt")
"""
FORMULAS = ["l1", "l1 + vem", "l2 + vid + vem", "l1 + crd", "l1 + 0.05*adversarial", "ssim + features"]
KINDS = ["latents", "batches", "loader"]


def start(folder, formula="l1 + vem", kind="loader", n_steps=60, every=4):
    script = folder.parent/"script.py"
    script.write_text(SCRIPT)
    args = [sys.executable, str(script), str(folder), formula, kind, str(n_steps), str(every)]
    return subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(folder, *args, **kw):
    "Run to the end; the tensors and the history."
    p = start(folder, *args, **kw)
    _, err = p.communicate(timeout=300)
    assert p.returncode == 0, err
    return torch.load(folder/"end.pt", weights_only=True), (folder/"history.jsonl").read_text()


def same(a, b):
    (x, h), (y, g) = a, b
    assert h == g
    for k in x:
        for n in x[k]: assert torch.equal(x[k][n], y[k][n]), (k, n)


def killed_then_finished(folder, rng, *args, n_kills=1, **kw):
    "Kill the run at random moments, then let it finish."
    for _ in range(n_kills):
        p = start(folder, *args, **kw)
        p.stdout.readline()
        time.sleep(rng.uniform(.05, 2.5))
        p.kill()
        p.wait()
        p.stdout.close(), p.stderr.close()
    return finished(folder, *args, **kw)


def test_three_kills(tmp_path):
    "SIGKILL at three random moments of two phases: weights, average and history as if it had been left alone."
    phases = "l1 + vem for 50%, then l1 + vem + 0.05*adversarial at 50%"
    whole = finished(tmp_path/"whole", phases)
    same(whole, killed_then_finished(tmp_path/"killed", random.Random(0), phases, n_kills=3))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("formula", FORMULAS)
def test_forty_kills(tmp_path, formula, kind):
    "18 runs, 45 kills: six formulas, three kinds of data."
    n = 3 if kind == "loader" else 2 + (formula in FORMULAS[:3])
    whole = finished(tmp_path/"whole", formula, kind)
    rng = random.Random(f"{formula} {kind}")
    same(whole, killed_then_finished(tmp_path/"killed", rng, formula, kind, n_kills=n))


@pytest.mark.parametrize("sig, times", [(signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGHUP, 1)])
def test_signals_save(tmp_path, sig, times):
    """What a terminal or a scheduler sends ends `distill` with a checkpoint of its last step; a script that
    does not catch the KeyboardInterrupt ends as Python ends one, by SIGINT. Schedulers send SIGTERM to all
    processes, and a launcher passes its own on: the second one costs nothing.
    """
    p = start(tmp_path/"run", every=1000)
    p.stdout.readline()
    wait_for_steps(tmp_path/"run", 2)
    for _ in range(times):
        p.send_signal(sig)
        time.sleep(.003)
    _, err = p.communicate(timeout=60)
    state = torch.load(tmp_path/"run/checkpoint.pt", weights_only=True)
    assert 0 < state["step"] < 60
    # a second one that finds the run over ends Python at once
    if times > 1 and p.returncode == -sig: return
    assert f"stopped after step {state['step']} of 60" in err and "resume=True" in err
    assert p.returncode == -signal.SIGINT


def wait_for_steps(folder, rows, seconds=60):
    end = time.time() + seconds
    while time.time() < end:
        path = folder/"history.jsonl"
        if path.exists() and len(path.read_text().splitlines()) >= rows: return
        time.sleep(.02)
    raise AssertionError("the run did not start")


WORKERS = """
import sys, time, torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from vemi_kit.core import set_seed
from vemi_kit.distill import distill

class Slow(Dataset):
    def __len__(self): return 40
    def __getitem__(self, i):
        time.sleep(.05)
        return torch.full((1,8,8), i/40) + torch.randn(1)/9

class Net(nn.Module):
    def __init__(self, w, ballast):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1,w,3,padding=1), nn.ReLU(), nn.Conv2d(w,1,3,padding=1), nn.Tanh())
        self.register_buffer("ballast", torch.zeros(ballast))
    def forward(self, x): return self.layers(x)

if __name__ == "__main__":
    out, method, ballast, n_steps = *sys.argv[1:3], *map(int, sys.argv[3:])
    torch.set_num_threads(1)
    set_seed(0)
    kw = dict(num_workers=2, multiprocessing_context=method) if method != "none" else {}
    data = DataLoader(Slow(), 4, shuffle=True, **kw)
    distill(Net(4, 0), Net(2, ballast), data, out=out, resume=True, n_steps=n_steps, every=3, log_every=1,
        device="cpu", progress=False)
"""


def start_workers(out, method, ballast=0, n_steps=1000):
    "A run whose data come slowly, from processes; a session of its own, so that a terminal's signal can be sent."
    script = out.parent/"workers.py"
    script.write_text(WORKERS)
    args = [sys.executable, str(script), str(out), method, str(ballast), str(n_steps)]
    kw = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(args, start_new_session=True, **kw)


def nobody_left(group):
    try: os.killpg(group, 0)
    except ProcessLookupError: return True


def stopped_among_workers(out, wait_for, method, sig, delay=0.):
    "All processes get the signal: saved, ended as interrupted, and no worker is left."
    p = start_workers(out, method)
    wait_for_steps(out, 4, 120)
    time.sleep(delay)
    os.killpg(p.pid, sig)
    _, err = p.communicate(timeout=60)
    assert p.returncode not in (0, 1) and err.strip().splitlines()[-1].startswith("KeyboardInterrupt"), err
    state = torch.load(out/"checkpoint.pt", weights_only=True)
    assert state["step"] == len((out/"history.jsonl").read_text().splitlines()) >= 4
    wait_for(lambda: nobody_left(p.pid), seconds=20)


def test_the_signal_of_a_terminal_among_workers(tmp_path, wait_for):
    stopped_among_workers(tmp_path/"run", wait_for, "spawn", signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_signals_among_workers(tmp_path, wait_for, method, sig):
    for i in range(3): stopped_among_workers(tmp_path/str(i), wait_for, method, sig, i*.17)


@pytest.mark.slow
def test_workers_that_are_ended_first(tmp_path, wait_for):
    "A scheduler ends process after process: torch tells of dead workers before our own signal comes."
    p = start_workers(tmp_path/"run", "spawn")
    wait_for_steps(tmp_path/"run", 4, 120)
    children = Path(f"/proc/{p.pid}/task/{p.pid}/children").read_text().split()
    for child in map(int, children): os.kill(child, signal.SIGTERM)
    time.sleep(.2)
    p.terminate()
    _, err = p.communicate(timeout=60)
    assert p.returncode not in (0, 1) and err.strip().splitlines()[-1].startswith("KeyboardInterrupt"), err
    assert torch.load(tmp_path/"run/checkpoint.pt", weights_only=True)["step"] >= 4
    wait_for(lambda: nobody_left(p.pid), seconds=20)


def test_a_second_signal_during_a_save(tmp_path):
    "It ends the process at once; the last whole checkpoint is there, and the run goes on from it."
    out = tmp_path/"run"
    p = start_workers(out, "none", 30_000_000)
    wait_for_steps(out, 4)
    p.send_signal(signal.SIGINT)
    while not list(out.glob("*.part*")): assert p.poll() is None, p.communicate()
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode not in (0, 1) and err.strip().splitlines()[-1].startswith("KeyboardInterrupt"), err
    assert torch.load(out/"checkpoint.pt", weights_only=True)["step"] == 3
    assert not list(out.glob("*.part*"))
    p = start_workers(out, "none", 30_000_000)
    wait_for_steps(out, 5)
    p.terminate()
    p.communicate(timeout=60)
    assert torch.load(out/"checkpoint.pt", weights_only=True)["step"] >= 5


def test_one_process_writes_to_a_folder(tmp_path):
    first = start(tmp_path/"run", n_steps=100)
    first.stdout.readline()
    wait_for_steps(tmp_path/"run", 1)
    second = start(tmp_path/"run", n_steps=100)
    _, err = second.communicate(timeout=60)
    assert second.returncode != 0 and "another process is writing" in err
    first.communicate(timeout=120)
    assert first.returncode == 0
    steps = [json.loads(l)["step"] for l in (tmp_path/"run/history.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


# ---------------------------------------------------------------- in this process
X = torch.linspace(-1, 1, 12*64).view(12, 1, 8, 8)
QUIET = dict(device="cpu", progress=False)


def net(w):
    return nn.Sequential(nn.Conv2d(1, w, 3, padding=1), nn.ReLU(), nn.Conv2d(w, 1, 3, padding=1), nn.Tanh())


class StopAt(Callback):
    def __init__(self, step): self.at = step
    def after_step(self, figures): self.run.stop = self.run.step == self.at


def fresh(seed=0):
    set_seed(seed)
    return net(4), net(2)


def interrupted(out, data=None, methods="l1", teacher=None, callbacks=(), **kw):
    "A run of 6 steps that ends after step 3."
    t, s = fresh()
    kw = {**dict(n_steps=6, log_every=1), **QUIET, **kw}
    with pytest.raises(KeyboardInterrupt):
        cbs = [*callbacks, StopAt(3)]
        distill(teacher or t, s, data or Batches(X, 4), methods, out=out, callbacks=cbs, **kw)


def resumed(out, data=None, methods="l1", teacher=None, callbacks=(), **kw):
    t, s = fresh()
    kw = {**dict(n_steps=6, log_every=1), **QUIET, **kw}
    cbs = [*callbacks, StopAt(None)]
    return distill(teacher or t, s, data or Batches(X, 4), methods, out=out, resume=True, callbacks=cbs, **kw)


def loader(b=4, x=X, **kw): return DataLoader(TensorDataset(x), b, **kw)


def changed(x, value=1e-3):
    x = x.clone()
    x[5, 0, 3, 3] += value
    return x


def adversarial(seed):
    set_seed(seed)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    return Objective("l1 + adversarial", adversarial=dict(discriminator=critic))


@pytest.mark.parametrize("key, was, now", [
    ("teacher", dict(), dict(teacher=1)),
    ("data", dict(data=loader), dict(data=lambda: loader(2))),
    ("data", dict(data=loader), dict(data=lambda: loader(shuffle=True))),
    ("data", dict(data=loader), dict(data=lambda: loader(x=changed(X)))),
    ("data", dict(), dict(data=lambda: Batches(changed(X), 4))),
    ("data", dict(), dict(data=lambda: Batches(X[:11], 4))),
    ("methods", dict(methods=lambda: adversarial(0)), dict(methods=lambda: adversarial(1))),
    ("read", dict(), dict(value_range=None)),
    ("read", dict(), dict(teacher_read=dict(clamp=True))),
    ("student_read", dict(), dict(student_read=dict(value_range=(-2, 2)))),
    ("precision", dict(), dict(mixed_precision="bf16")),
    ("plan", dict(plan={"student.lr": 1e-3}), dict(plan={"student.lr": lambda i: 1e-3 if i != 4 else 2e-3})),
])
def test_another_run_is_not_resumed(tmp_path, key, was, now):
    "Each difference is named; nothing is written."
    make = dict(data=lambda v: v(), methods=lambda v: v(), teacher=lambda v: fresh(v)[0])
    made = lambda kw: {k: make[k](v) if k in make else v for k, v in kw.items()}
    interrupted(tmp_path, **made(was))
    before = (tmp_path/"checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=f"is of another run; .*'{key}': \\("):
        resumed(tmp_path, **made({**was, **now}))
    assert (tmp_path/"checkpoint.pt").read_bytes() == before
    assert resumed(tmp_path, **made(was)).step == 6


class Figures(Callback):
    "A state of NumPy's numbers, arrays and paths."
    state = None
    def state_dict(self):
        return dict(best=np.float32(.5), at=np.int64(3), curve=np.arange(3), path=Path("a"), names={"x"})
    def load_state_dict(self, state): Figures.state = state


@pytest.mark.parametrize("kw", [
    dict(plan={"student.lr": lambda i: 1e-3*np.cos(i/20)}), dict(lr=np.float64(1e-3)),
    dict(n_steps=np.int64(6)),
    dict(methods="l1 + vem", plan={"vem.lambda_mi": lambda i: np.interp(i, [0, 6], [0, .1])}),
    dict(betas=(np.float32(.5), .9), seed=np.int32(3)), dict(plan={"l1.weight": torch.tensor(1.)}),
    dict(callbacks=[Figures()]),
])
def test_numbers_of_numpy_can_be_read_again(tmp_path, kw):
    interrupted(tmp_path, **kw)
    assert resumed(tmp_path, **kw).step == 6
    if "callbacks" in kw:
        s = Figures.state
        assert (s["best"], s["at"], s["path"], s["names"]) == (.5, 3, Path("a"), {"x"})
        assert list(s["curve"]) == [0, 1, 2]


def test_what_no_checkpoint_can_hold_is_refused_before_the_first_step(tmp_path):
    class Odd(Callback):
        steps = 0
        def state_dict(self): return dict(model=object())
        def after_step(self, figures): Odd.steps += 1
    with pytest.raises(TypeError, match=re.escape("state['callbacks']['Odd']['model'] is a object")):
        resumed(tmp_path, callbacks=[Odd()])
    assert Odd.steps == 0


def test_random_numbers_of_the_user_go_on():
    torch.manual_seed(77)
    draws, weights = [], []
    for _ in range(3):
        s = net(2)
        weights.append(s[0].weight.detach().clone())
        distill(net(4), s, Batches(X, 4), n_steps=2, **QUIET)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert not torch.equal(weights[1], weights[2]) and len(set(draws)) == 3


def test_the_users_accelerator_survives():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(reset_partial_state=True)
    a = Accelerator(mixed_precision="bf16", cpu=True, gradient_accumulation_steps=2)
    distill(net(4), net(2), Batches(X, 4), n_steps=2, **QUIET)
    assert (a.mixed_precision, a.gradient_accumulation_steps) == ("bf16", 2)
    assert Accelerator(mixed_precision="bf16", cpu=True).mixed_precision == "bf16"
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("formula", ["l1 + cat", "l1 + crd", "l1 + similarity"])
def test_a_last_batch_that_is_too_small_is_told_first(formula):
    seen = []
    class Count(Callback):
        def after_step(self, figures): seen.append(1)
    with pytest.raises(ValueError, match="smallest batch has 1 of 4 items.*drop_last=True"):
        distill(net(4), net(4), loader(x=X[:9]), formula, n_steps=6, callbacks=[Count()], **QUIET)
    assert not seen
    distill(net(4), net(4), loader(x=X[:9], drop_last=True), formula, n_steps=4, **QUIET)


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, g): return g*float("nan")


class NaNBelow(Method):
    "A loss that is finite, with a gradient that is not, from a step on."
    name = ""
    def __init__(self, at):
        super().__init__()
        self.at, self.n = at, 0
    def loss(self, batch, t, s, features=None):
        self.n += 1
        return (BadGradient.apply(s) if self.n > self.at else s).sub(t).square().mean(), {}


@pytest.mark.parametrize("at", [4, 5])
def test_a_gradient_that_is_not_finite_moves_nothing(tmp_path, at):
    "On the way and at the last step: no step, no checkpoint, an error; the last good checkpoint stays."
    t, s = fresh()
    method = NaNBelow(at)
    method.name = "odd"
    said = f"not finite at step {at+1}, though the loss is; no step was taken"
    with pytest.raises(FloatingPointError, match=said):
        distill(t, s, Batches(X, 4), [method], n_steps=6, out=tmp_path, every=2, **QUIET)
    assert all(p.isfinite().all() for p in s.parameters())
    state = torch.load(tmp_path/"checkpoint.pt", weights_only=True)
    assert state["step"] == 4 and all(v.isfinite().all() for v in state["student"].values())


@pytest.mark.parametrize("kw, message", [
    (dict(lr=float("nan")), "lr: expected a finite number"),
    (dict(plan={"l1.weight": lambda i: 1. if i < 5 else float("nan")}), "plan of 'l1.weight' at step 5"),
    (dict(every=0), "every: expected a whole number >= 1"),
    (dict(n_steps=2.5), "n_steps: expected a whole number"),
])
def test_wrong_numbers_are_told_before_work(tmp_path, kw, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)): resumed(tmp_path/"a", **kw)
    assert not (tmp_path/"a/checkpoint.pt").exists()


def test_a_weight_of_nan_is_told_before_work():
    objective = Objective("l1")
    objective.methods["l1"].weight = float("nan")
    with pytest.raises(ValueError, match="weight of 'l1': expected a finite number"):
        distill(*fresh(), Batches(X, 4), objective, n_steps=2, **QUIET)


def test_every_flipped_bit_is_noticed_and_the_one_before_is_used(tmp_path):
    interrupted(tmp_path, every=2)
    path, rng = tmp_path/"checkpoint.pt", random.Random(0)
    whole, before = path.read_bytes(), (tmp_path/"checkpoint.before.pt").read_bytes()
    end = {k: v.clone() for k, v in resumed(tmp_path).student.state_dict().items()}
    for i in rng.sample(range(len(whole)), 12):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << rng.randrange(8)]) + whole[i+1:])
        (tmp_path/"checkpoint.before.pt").write_bytes(before)
        with pytest.warns(UserWarning, match="cannot be read: .*'checkpoint.before.pt', is used"):
            again = resumed(tmp_path)
        assert all(torch.equal(v, end[k]) for k, v in again.student.state_dict().items())
    path.write_bytes(whole[:1000])
    (tmp_path/"checkpoint.before.pt").unlink()
    with pytest.raises(ValueError, match="cut short"): resumed(tmp_path)


def test_the_history_does_not_grow_in_the_checkpoint(tmp_path):
    sizes = []
    for n in (10, 200):
        distill(*fresh(), Batches(X, 4), n_steps=n, out=tmp_path/str(n), log_every=1, **QUIET)
        sizes.append((tmp_path/str(n)/"checkpoint.pt").stat().st_size)
    assert abs(sizes[1]-sizes[0]) < 200


def test_a_full_disk_is_told_first_and_costs_no_checkpoint(tmp_path):
    "A limit on the size of files stands for the disk."
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    interrupted(tmp_path/"a")
    good = (tmp_path/"a/checkpoint.pt").read_bytes()
    class Count(Callback):
        steps = 0
        def after_step(self, figures): Count.steps += 1
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
        for out in ("a", "b"):
            with pytest.raises(OSError): resumed(tmp_path/out, callbacks=[Count()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, old)
    assert Count.steps == 0 and (tmp_path/"a/checkpoint.pt").read_bytes() == good
    (tmp_path/"file").touch()
    with pytest.raises(OSError, match="is a file; give a folder"): resumed(tmp_path/"file")


class Line(nn.Module):
    "A student without bounds."
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
    def forward(self, x): return self.conv(x)


def later(good, bad): return lambda step: good if step < 8 else bad


@pytest.mark.parametrize("what, student, kw", [
    ("the loss is over", Line, dict(
        methods="l2", plan={"student.lr": lambda i: 1e-3 if i < 8 else 10*1.5**(i-8)}, value_range=None)),
    ("the student answers all inputs alike", lambda: net(2), dict(
        methods="tv", plan={"student.lr": later(1e-4, 1.)})),
    ("the chain is dead", lambda: net(2), dict(
        methods="l1 + vem", plan={"vem.step_size": later(1., 1e-30), "vem.noise_std": later(.005, 0.)})),
    ("the chain is dead, vem/clamped is 1", lambda: net(2), dict(
        methods="l1 + vem", plan={"vem.step_size": later(1., 1e6)})),
    ("the chain is far outside the pictures", lambda: net(2), dict(
        methods=lambda: Objective("l1 + vem", vem=dict(clamp=None)), plan={"vem.step_size": later(1., 1e6)})),
])
def test_guards(tmp_path, what, student, kw):
    "Caught within 50 steps after 8 good ones, with advice; the checkpoint is whole, and of a step before."
    set_seed(0)
    x = torch.rand(12, 1, 8, 8)*2 - 1
    weights = []
    class Steps(Callback):
        def after_step(self, figures):
            weights.append({k: v.clone() for k, v in self.run.student.state_dict().items()})
    if callable(kw["methods"]): kw = {**kw, "methods": kw["methods"]()}
    with pytest.raises(DivergenceError, match=rf"{what}.*; (lower|change)"):
        kw = dict(n_steps=300, out=tmp_path, every=1, callbacks=[Steps()], **kw, **QUIET)
        distill(net(4), student(), Batches(x, 4), **kw)
    assert 8 < len(weights) <= 58
    state = read_sealed(tmp_path/"checkpoint.pt")
    assert 8 <= state["step"] < len(weights) - 5
    assert all(torch.equal(v, weights[state["step"]-1][k]) for k, v in state["student"].items())
    assert all(v.isfinite().all() for v in state["student"].values())


def test_a_guard_ends_the_process(tmp_path):
    "A script without a word about errors: exit code 1, what to do on the last line, a checkpoint of before."
    script = """
import sys, torch
from torch import nn
from vemi_kit.core import set_seed
from vemi_kit.data.batches import Batches
from vemi_kit.distill import distill
set_seed(0)
net = lambda: nn.Conv2d(1, 1, 3, padding=1)
plan = {"student.lr": lambda i: 1e-3 if i < 8 else 10*1.5**(i-8)}
kw = dict(n_steps=300, every=1, value_range=None, device="cpu")
distill(net(), net(), Batches(torch.rand(12, 1, 8, 8)*2 - 1, 4), "l2", plan=plan, out=sys.argv[1], **kw)
"""
    args = [sys.executable, "-c", script, str(tmp_path/"run")]
    r = subprocess.run(args, capture_output=True, text=True, timeout=120)
    last = r.stderr.strip().splitlines()[-1]
    assert r.returncode == 1 and "DivergenceError: at step" in last and "lower the learning rate" in last, r.stderr
    assert 8 <= read_sealed(tmp_path/"run/checkpoint.pt")["step"] < 50
