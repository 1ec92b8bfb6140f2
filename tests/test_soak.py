"""Memory, open files and time of a long run: `python tests/test_soak.py 20000 tilted FOLDER` for the whole one
(or `paper`; with `norows` behind it the history is emptied), a shorter one behind `pytest -m slow`.
"""
import gc, json, os, subprocess, sys, time
from pathlib import Path
import numpy as np, pytest, torch
from torch import nn
from vemi_kit.core import set_seed
from vemi_kit.callbacks import Callback, History
from vemi_kit.data.batches import Latents
from vemi_kit.distill import distill
from vemi_kit.methods.base import Objective


class Net(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.start = nn.Sequential(nn.Linear(8, 16*w), nn.Unflatten(1, (w,4,4)), nn.BatchNorm2d(w), nn.ReLU())
        self.end = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(w, 1, 3, padding=1), nn.Tanh())
    def forward(self, z): return self.end(self.start(z))


def resident(): return int(Path("/proc/self/statm").read_text().split()[1])*os.sysconf("SC_PAGE_SIZE")/2**20


class Sample(Callback):
    "A line of JSON every `every` steps: MB, open files, processor's milliseconds a step, objects, rows."
    def __init__(self, every, keep): self.every, self.keep, self.start = every, keep, time.process_time()
    def after_step(self, figures):
        if self.run.step % self.every: return
        ms, rows = (time.process_time()-self.start)/self.every*1e3, self.run[History].rows
        # rows are what a history is for; without them the rest of the memory is seen alone
        if not self.keep: rows.clear()
        gc.collect()
        n = dict(files=len(os.listdir("/proc/self/fd")), objects=len(gc.get_objects()), rows=len(rows))
        print(json.dumps(dict(step=self.run.step, mb=resident(), ms=ms, **n)), flush=True)
        self.start = time.process_time()


def soak(n_steps, preset, out, every=500, keep=True):
    "A run with pictures of 8x8, a small energy and one thread."
    torch.set_num_threads(1)
    set_seed(0)
    small = dict(paper=dict(n_steps=3, width=4), tilted=dict(preset="tilted", n_chains=16, every=2))
    kw = dict(out=out, every=1000, n_steps=n_steps, device="cpu", progress=False, callbacks=[Sample(every, keep)])
    distill(Net(8), Net(2), Latents(8, 8), Objective("l1 + vem", vem=small[preset]), **kw)


def slope(samples, key):
    "Of a figure, a thousand steps, by least squares over the second half."
    late = samples[len(samples)//2:]
    return np.polyfit([s["step"]/1000 for s in late], [s[key] for s in late], 1)[0]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("preset", ["paper", "tilted"])
def test_memory_files_and_time_are_flat(tmp_path, preset):
    "5,000 steps. What grows is the history, by 0.8 kB a row: 0.08 MB a thousand steps."
    cmd = [sys.executable, __file__, "5000", preset, str(tmp_path/"run")]
    r = subprocess.run(cmd, capture_output=True, text=True, timeout=3000)
    assert r.returncode == 0, r.stderr
    samples = [json.loads(l) for l in r.stdout.splitlines() if l.startswith("{")]
    assert len(samples) == 10 and samples[-1]["rows"] == 500
    assert len({s["files"] for s in samples}) == 1
    assert len({s["objects"] for s in samples[-4:]}) == 1
    assert slope(samples, "mb") < .2
    times = [s["ms"] for s in samples[1:]]
    assert np.median(times[-4:]) < 1.5*np.median(times[:4])


if __name__ == "__main__":
    n_steps, preset, out, *more = sys.argv[1:]
    soak(int(n_steps), preset, out, keep="norows" not in more)
