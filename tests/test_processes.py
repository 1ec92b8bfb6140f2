"Two processes must take the steps that one takes: real processes through torch's launcher."
import subprocess, sys
import pytest, torch

SCRIPT = """
import os, sys, time, torch
from pathlib import Path
from torch import nn
from vemi_kit.core import set_seed
from vemi_kit.processes import process_index
from vemi_kit.data.pictures import digits
from vemi_kit.data.batches import Batches, Latents
from vemi_kit.callbacks import Callback, Checkpoint, History
from vemi_kit.distill import Distiller
from vemi_kit.methods.features import Features
from vemi_kit.methods.l1 import L2
from vemi_kit.methods.omgd import OMGD
from vemi_kit.methods.relations import CRD
from vemi_kit.methods.vid import VID, VIDFeatures
from vemi_kit.methods.vem import VEMethod
from vemi_kit.zoo.dcgan import SNDiscriminator

class Net(nn.Module):
    def __init__(self, w, norm=nn.Identity, drop=0.):
        super().__init__()
        self.start = nn.Sequential(nn.Linear(8, 16*w), nn.Unflatten(1, (w, 4, 4)), norm(w), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(w, w, 3, padding=1), nn.ReLU(), nn.Dropout(drop))
        self.end = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(w, 1, 3, padding=1), nn.Tanh())
    def forward(self, z): return self.end(self.middle(self.start(z)))

def omgd():
    teachers = {"wide": Net(8, nn.BatchNorm2d), "deep": Net(4)}
    real = Batches(digits(8)[0], 8)
    return [OMGD(SNDiscriminator(8, 1, 4), teachers, real=real, loss="hinge", reconstruction=0.)]

# the first three see pictures or features one by one: a divided batch is an undivided one
METHODS = dict(
    plain=lambda: [L2(), VID(init=0.)],
    vem=lambda: [L2(), VID(init=0.), VEMethod(noise_std=0.)],
    # noise is drawn for the whole batch in each process
    noisy=lambda: [L2(), VEMethod(noise_std=.1)],
    tilted=lambda: [L2(), VEMethod(preset="tilted", every=1, n_chains=8)],
    features=lambda: [Features(), VIDFeatures()],
    # a network's own draws: each process has a stream of its own
    dropout=lambda: [L2(), VEMethod(noise_std=.1)],
    # contrast and batch norm see what else is in the batch
    crd=lambda: [L2(), CRD(memory=8)],
    omgd=omgd,
)

RESUMED = "noisy", "tilted", "dropout", "crd", "omgd"

class StopLast(Callback):
    "The last process alone is asked to stop after its step 2; the first writes its last checkpoint slowly."
    everywhere = True
    def after_step(self, figures):
        self.run.stop = self.run.step == 2 and process_index() == self.run.accelerator.num_processes-1
    def after_fit(self, status): time.sleep(2*self.run.is_main)

torch.set_num_threads(1)
root = Path(sys.argv[1])

rank = int(os.environ.get("RANK", 0))

def go(kind, *callbacks, resume=None, name=None, data=Latents(8, 16)):
    out = root/(name or kind)
    out.mkdir(exist_ok=True)
    set_seed(0)
    teacher = Net(16)
    # a script without a seed: every process builds another student, and all start from the first one's
    if kind == "plain": set_seed(100 + rank)
    norm = nn.BatchNorm2d if kind == "omgd" else nn.Identity
    student = Net(4, norm, .2 if kind == "dropout" else 0.)
    cbs = [*callbacks, Checkpoint(out/"run.pt"), History(out/"history.jsonl")]
    kw = dict(n_steps=6, device="cpu", callbacks=cbs, log_every=1)
    run = Distiller(teacher, student, METHODS[kind](), data, **kw)
    messages, send = [], torch.distributed.all_reduce
    def count(x, *args, **kw):
        messages.append(x.numel())
        return send(x, *args, **kw)
    torch.distributed.all_reduce = count
    try: run.fit(resume)
    except KeyboardInterrupt: pass
    finally: torch.distributed.all_reduce = send
    own = run.objective.methods
    # energy, variances, adaptors, embeddings and memory, online teachers and critics, too
    state = [*student.parameters(), *student.buffers(), *own.parameters(), *own.buffers()]
    end = dict(state=[p.detach() for p in state], step=run.step, messages=len(messages))
    torch.save(end, out/f"end_{process_index()}.pt")

for kind in METHODS: go(kind)
go("plain", StopLast(), name="stopped")
go("plain", resume=root/"stopped/run.pt", name="resumed")
for kind in RESUMED:
    go(kind, StopLast(), name=f"{kind}_stopped")
    go(kind, resume=root/f"{kind}_stopped/run.pt", name=f"{kind}_resumed")
try: go("plain", name="other", data=Latents(8, 16, seed=rank))
except ValueError as e: (root/f"refused_{rank}.txt").write_text(str(e))
"""


def launch(folder, n):
    out = folder/f"processes_{n}"
    out.mkdir()
    (folder/"script.py").write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)] if n > 1 else []
    cmd = [sys.executable, *launcher, str(folder/"script.py"), str(out)]
    r = subprocess.run(cmd, capture_output=True, text=True, timeout=600)
    assert r.returncode == 0, r.stderr
    return out


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    "ends(n, kind): what each of n processes held at the end of a run, and its folder."
    folder = tmp_path_factory.mktemp("processes")
    outs = {n: launch(folder, n) for n in (1, 2)}
    read = lambda path: torch.load(path, weights_only=True)
    return lambda n, kind: ([read(outs[n]/kind/f"end_{i}.pt") for i in range(n)], outs[n]/kind)


@pytest.mark.parametrize("kind", ["plain", "vem", "noisy", "tilted", "features", "dropout", "crd", "omgd"])
def test_two_processes_equal_one(ends, kind):
    (one,), _ = ends(1, kind)
    (a, b), out = ends(2, kind)
    # both processes hold the same networks
    for y, z in zip(a["state"], b["state"]): assert torch.equal(y, z)
    if kind in ("plain", "vem", "noisy", "features"):
        # and they are those of the undivided batch
        for x, y in zip(one["state"], a["state"]): torch.testing.assert_close(x, y, atol=2e-4, rtol=1e-3)
    assert torch.load(out/"run.pt", weights_only=True)["step"] == 6
    # written once, not once a process
    assert len((out/"history.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize("kind", ["noisy", "tilted", "dropout", "crd", "omgd"])
def test_noise_and_chains_go_on_after_a_resume_in_two_processes(ends, kind):
    whole, resumed = ends(2, kind)[0], ends(2, f"{kind}_resumed")[0]
    assert ends(2, f"{kind}_stopped")[0][0]["step"] < 6
    for a, b in zip(whole, resumed):
        for x, y in zip(a["state"], b["state"]): assert torch.equal(x, y)


def test_processes_with_other_data_are_refused(ends):
    out = ends(2, "plain")[1].parent
    for i in (0, 1):
        assert "processes of this run differ in ['data']" in (out/f"refused_{i}.txt").read_text()
    assert not (out/"other/run.pt").exists()


def test_a_request_to_stop_travels_with_the_gradients(ends):
    """One process is asked to stop after step 2: both leave together a step later, no message was sent for
    it, and the run goes on to where the others ended.
    """
    (one,), _ = ends(1, "stopped")
    (a, b), out = ends(2, "stopped")
    assert (one["step"], a["step"], b["step"]) == (2, 3, 3)
    assert a["messages"] == b["messages"] == 3 and one["messages"] == 0
    for n in (1, 2):
        whole, resumed = (ends(n, kind)[0][-1]["state"] for kind in ("plain", "resumed"))
        for x, y in zip(whole, resumed): assert torch.equal(x, y)
