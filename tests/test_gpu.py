"What .ci/gpu does without a GPU, and what a GPU must give."
import json, os, subprocess, sys
from pathlib import Path
import pytest, torch
from vemi_kit.callbacks import History
from vemi_kit.data.batches import Latents
from vemi_kit.distill import distill
from vemi_kit.students import shrink
from vemi_kit.vem import VEM
from vemi_kit.zoo.dcgan import digits_teacher

root = Path(__file__).parent.parent
script = root/".ci/gpu"
here = pytest.mark.skipif(not script.exists(), reason="of the repository")


def gpu(*args):
    env = dict(os.environ, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    return subprocess.run([sys.executable, script, *map(str, args)], capture_output=True, text=True, env=env)


@here
def test_without_a_gpu_it_says_so():
    p = gpu()
    assert p.returncode == 1 and "no CUDA device" in p.stderr
    p = gpu("photos", "--device", "cpu")
    assert p.returncode == 2 and "no part ['photos']" in p.stderr


@here
def test_a_part_on_the_cpu(tmp_path):
    "The lines name the device that made them."
    p = gpu("mixed", "--device", "cpu", "--steps", 3, "--out", tmp_path)
    assert p.returncode == 0, p.stderr
    rows = [json.loads(line) for line in (tmp_path/"gpu/cpu/mixed.jsonl").read_text().splitlines()]
    assert [r["precision"] for r in rows] == ["no", "bf16"] and all(r["machine"] for r in rows)


@here
@pytest.mark.slow
def test_a_task_on_the_cpu(tmp_path):
    p = gpu("edges128", "--device", "cpu", "--steps", 30, "--seeds", 1, "--out", tmp_path)
    assert p.returncode == 0, p.stderr
    rows = (tmp_path/"recipes/edges128_cpu/runs.jsonl").read_text().splitlines()
    assert len(rows) == 3


@pytest.mark.gpu
def test_the_energy_step_is_that_of_the_cpu():
    "Same weights, no noise: one step of the energy on both."
    t, s = torch.rand(2, 4, 1, 16, 16, generator=torch.Generator().manual_seed(0))*2 - 1
    found = {}
    for d in ("cpu", "cuda"):
        vem = VEM.like(t, s, noise_std=0.).to(d)
        found[d] = dict(vem.tighten(t.to(d), s.to(d)))
    for k,v in found["cpu"].items(): assert abs(found["cuda"][k]-v) < 1e-3*max(1, abs(v)), k


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_student_learns_in_every_precision(precision):
    teacher, _ = digits_teacher(device="cuda")
    student = shrink(teacher, width=16)
    kw = dict(device="cuda", mixed_precision=precision, progress=False)
    run = distill(teacher, student, Latents(64, 32), "l1 + vem", n_steps=60, **kw)
    assert run[History]["l1"][-1] < run[History]["l1"][0]


@pytest.mark.gpu
def test_a_term_with_one_graph_a_chain_is_the_same_term():
    "Energies and chain ends of a few updates, with launches one by one and with a CUDA graph."
    t, s = torch.rand(2, 8, 1, 16, 16, generator=torch.Generator().manual_seed(0)).cuda()*2 - 1
    found = []
    for graph in (False, True):
        vem = VEM.like(t, s, graph=graph)
        found.append([dict(vem.tighten(t, s)) for _ in range(4)])
    for a,b in zip(*found):
        for k in a: assert abs(a[k]-b[k]) < 1e-3*max(1, abs(a[k])), k
