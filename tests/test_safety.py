"Files are data: a pickle that would run code is refused everywhere, and nothing opens a connection."
import os, pickle, subprocess, sys
import pytest, torch
from torch import nn
from vemi_kit.cache import TeacherCache
from vemi_kit.distill import Distiller
from vemi_kit.enhance.restorer import load_restorer
from vemi_kit.files import load_nets, read_config, read_state
from vemi_kit.metrics.fidelity import LPIPS
from vemi_kit.nats.measure import load_saved
from vemi_kit.pruning import load_pruned
from vemi_kit.zoo.dcgan import SNGenerator, digits_teacher
from vemi_kit.zoo.weights import load_basicsr, load_cyclegan, load_stylegan2


class Evil:
    "Unpickling this makes a folder."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir, (self.path,)


def write_raw(x, path):
    with open(path, "wb") as f: pickle.dump(x, f)


def write_zip(x, path): torch.save(x, path)


def write_old(x, path): torch.save(x, path, _use_new_zipfile_serialization=False)


def resume_from(path):
    net = nn.Conv2d(1, 1, 1)
    data = [torch.zeros(2,1,8,8)]*2
    run = Distiller(net, nn.Conv2d(1, 1, 1), "l1", data, n_steps=2, device="cpu")
    run.load(path)


LOADERS = dict(
    read_state=read_state, nested_state=lambda p: read_state(p, nested=("g_ema",)),
    read_config=lambda p: read_config(p, "net"), load_nets=lambda p: load_nets(p, net=nn.Conv2d(1, 1, 1)),
    load_cyclegan=load_cyclegan, load_stylegan2=load_stylegan2, load_basicsr=load_basicsr,
    digits_teacher=digits_teacher, load_pruned=lambda p: load_pruned(p, "net", SNGenerator),
    load_saved=load_saved, load_restorer=load_restorer, checkpoint=resume_from,
    teacher_cache=lambda p: TeacherCache(nn.Conv2d(1, 1, 1), torch.zeros(2,1,8,8), p),
    lpips=lambda p: LPIPS(p),
)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("write", [write_raw, write_zip, write_old])
@pytest.mark.parametrize("load", LOADERS)
def test_a_malicious_pickle_runs_nothing(load, write, suffix, tmp_path):
    made, path = tmp_path/"code_was_run", tmp_path/f"weights{suffix}"
    write({"g_ema": {"conv.weight": torch.zeros(1)}, "x": Evil(made)}, path)
    with pytest.raises(ValueError, match="weights"): LOADERS[load](path)
    assert not made.exists()


@pytest.mark.parametrize("write", [write_raw, write_zip, write_old])
def test_the_pickle_of_these_tests_is_malicious(write, tmp_path):
    made, path = tmp_path/"code_was_run", tmp_path/"weights.pt"
    write({"x": Evil(made)}, path)
    if write is write_raw: pickle.loads(path.read_bytes())
    else: torch.load(path, weights_only=False)
    assert made.is_dir()


def test_reading_a_file_leaves_torch_s_list_of_safe_classes_alone(tmp_path):
    import argparse
    before = set(torch.serialization.get_safe_globals())
    torch.save({"g_ema": {"a": torch.zeros(1)}, "args": argparse.Namespace(x=1)}, tmp_path/"a.pt")
    assert read_state(tmp_path/"a.pt", nested=("g_ema",), plain=(argparse.Namespace,))["a"] == 0
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(ValueError, match="could not read it"): read_state(tmp_path/"a.pt", nested=("g_ema",))


OFFLINE = """
import sys
def told(event, args):
    calls = ("connect","getaddrinfo","gethostbyname","sendto")
    if event in (*(f"socket.{c}" for c in calls), "urllib.Request"):
        raise RuntimeError(f"network: {event} {args}")
sys.addaudithook(told)
import socket
for call in (socket.create_connection, lambda at: socket.getaddrinfo(*at)):
    try: call(("127.0.0.1", 9))
    except RuntimeError as e: assert "network:" in str(e)
    else: raise SystemExit("the watch does not work")
"""
USE = """
import importlib, pkgutil, torch, vemi_kit
for m in pkgutil.walk_packages(vemi_kit.__path__, "vemi_kit."): importlib.import_module(m.name)
from vemi_kit.data.pictures import digits
from vemi_kit.distill import distill
from vemi_kit.enhance.restorer import load_restorer
from vemi_kit.metrics.fidelity import fidelity
from vemi_kit.zoo.dcgan import SNGenerator, digits_teacher
teacher, z = digits_teacher()[0], torch.randn(8, 64)
student = vemi_kit.shrink(teacher, width=8)
run = distill(teacher, student, [z, z], "l1 + vem", n_steps=2, device="cpu", progress=False)
assert run.step == 2
real = digits(16, "test")[0][:80]
print(vemi_kit.FrechetDistance(real, "digits")(real), fidelity(real[:4], real[:4]))
print(vemi_kit.count_macs(student, z), vemi_kit.latency(student, z, seconds=.01, warmup=1))
load_restorer("x2", "cpu")
"""


def test_neither_import_nor_use_opens_a_connection(tmp_path):
    args = dict(cwd=tmp_path, capture_output=True, text=True, timeout=300)
    r = subprocess.run([sys.executable, "-c", OFFLINE + USE], **args)
    assert r.returncode == 0, r.stderr
