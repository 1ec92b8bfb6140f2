"Two processes must take the steps that one takes: real processes through torch's launcher."
import subprocess, sys
import torch

SCRIPT = """
import sys, torch
from torch import nn
from vemi_kit.core import set_seed
from vemi_kit.data import Latents
from vemi_kit.distill import Distiller, Checkpoint, History
from vemi_kit.methods.l1 import L2
from vemi_kit.methods.vid import VID
from vemi_kit.methods.vem import VEMethod

class Net(nn.Module):
    def __init__(self, w): super().__init__(); self.body = nn.Sequential(nn.Linear(8, w), nn.ReLU(), nn.Linear(w, 64), nn.Tanh())
    def forward(self, z): return self.body(z).view(-1, 1, 8, 8)

torch.set_num_threads(1)
set_seed(0); teacher, student = Net(32), Net(4)
methods = [L2(), VID(init=0.)] + ([VEMethod(noise_std=0.)] if sys.argv[2] == "vem" else [])
run = Distiller(teacher, student, methods, Latents(8, 16), n_steps=6, device="cpu", callbacks=[Checkpoint(sys.argv[1] + "/run.pt"), History(sys.argv[1] + "/history.jsonl")], log_every=1).fit()
state = [*student.parameters(), *student.buffers(), *run.objective.methods.parameters(), *run.objective.methods.buffers()]      # the energy and the variances, too
torch.save([p.detach() for p in state], f"{sys.argv[1]}/params_{run.accelerator.process_index}.pt")
"""


def launch(tmp_path, n, kind):
    out = tmp_path/f"{kind}{n}"; out.mkdir()
    (tmp_path/"script.py").write_text(SCRIPT)
    cmd = [sys.executable, *(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)] if n > 1 else []), str(tmp_path/"script.py"), str(out), kind]
    r = subprocess.run(cmd, capture_output=True, text=True, timeout=100)
    assert r.returncode == 0, r.stderr[-3000:]
    return [torch.load(out/f"params_{i}.pt", weights_only=True) for i in range(n)], out


def test_two_processes_equal_one(tmp_path):
    for kind in ("plain", "vem"):
        (one,), _ = launch(tmp_path, 1, kind)
        (a, b), out = launch(tmp_path, 2, kind)
        for x, y, z in zip(one, a, b):
            assert torch.equal(y, z)                             # both processes hold the same networks
            torch.testing.assert_close(x, y, atol=2e-4, rtol=1e-3)  # and it is the one of the undivided batch
        assert torch.load(out/"run.pt", weights_only=True)["step"] == 6
        assert len((out/"history.jsonl").read_text().splitlines()) == 6      # written once, not once a process
