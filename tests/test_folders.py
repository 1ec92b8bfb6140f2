"""Output folders that are files, lie below files, have names that are too long, or are removed in mid-run;
and a user without a home. What is wrong is said in one line, with exit code 1, and before work where it can be.
"""
import json, os, resource, shlex, shutil, signal, subprocess, sys
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from vemi_kit.callbacks import Callback
from vemi_kit.data.batches import Batches
from vemi_kit.distill import distill
from vemi_kit.files import Ledger, read_rows, save_nets, write_text
from vemi_kit.enhance.command import vemi_enhance
from vemi_kit.nats.measure import vemi_bound
from vemi_kit.study.command import vemi_compare
from vemi_kit.study.demo import vemi_demo

TRAIN = "train in --teacher-width 4 --teacher-depth 1 --teacher-steps 2 --width 2 --crop 8 --batch-size 2 --methods l1"
COMMANDS = {
    "vemi_demo": (vemi_demo, "--seeds 1 --steps 2 --methods l2 --no-onnx --device cpu"),
    "vemi_compare": (vemi_compare, "--tasks digits16 --methods l1 --widths 4 --seeds 1 --steps 2 --device cpu"),
    "vemi_enhance train": (vemi_enhance, f"{TRAIN} --steps 2 --device cpu"),
    "vemi_enhance apply": (vemi_enhance, "apply x2 in --device cpu"),
    "vemi_bound task": (vemi_bound, "task 'dense 5x5' --n 200 --steps 2 --levels 2 --device cpu"),
    "vemi_bound table": (vemi_bound, "table --tasks 'dense 5x5' --seeds 1"),
}
LONG = "x"*256


def pictures(folder, n):
    folder.mkdir()
    for i in range(n):
        v = np.random.default_rng(i).integers(0, 255, (40, 48, 3)).astype(np.uint8)
        Image.fromarray(v).save(folder/f"{i:03}.png")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path/"in", 2)
    (tmp_path/"file").write_text("mine")
    return tmp_path


@pytest.mark.parametrize("out, told", [
    ("file", "is a file; give a folder"), ("file/below", "Not a directory"), (LONG, "File name too long"),
])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_folder_is_told_before_work(here, capsys, monkeypatch, name, out, told):
    "In one line with its name; nothing is touched."
    run, args = COMMANDS[name]
    def work(*args, **kw): raise AssertionError("work began")
    monkeypatch.setattr("vemi_kit.nats.measure.certify", work)
    assert run([*shlex.split(args), "--out", out]) == 1
    err = capsys.readouterr().err
    assert told in err and out in err and err.count("\n") == 1
    assert sorted(p.name for p in here.iterdir()) == ["file", "in"] and (here/"file").read_text() == "mine"


@pytest.mark.parametrize("out", ["file", "file/below", LONG])
def test_distill_without_a_folder(here, out):
    class Count(Callback):
        def after_step(self, figures): raise AssertionError("work began")
    net = nn.Conv2d(1, 1, 3, padding=1)
    with pytest.raises(OSError, match=f"out='{out}'"):
        distill(net, nn.Conv2d(1, 1, 3, padding=1), Batches(torch.zeros(4, 1, 8, 8), 2), out=out, n_steps=2,
            callbacks=[Count()], device="cpu", progress=False)


def start(name, *args, cwd, **kw):
    "A command in a process of its own."
    module = dict(vemi_demo="study.demo", vemi_compare="study.command", vemi_enhance="enhance.command",
        vemi_bound="nats.measure", vemi_distill="ship.compress")[name]
    # fewer pictures to judge by: what a comparison finds is not what is tested here
    few = "from vemi_kit.study.workloads import Digits16; Digits16.n_judge = 300" if "study" in module else ""
    code = f"import sys\n{few}\nfrom vemi_kit.{module} import {name}; sys.exit({name}())"
    env = kw.pop("env", {**os.environ, "OMP_NUM_THREADS": "1"})
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, "-c", code, *args, "--device", "cpu"], cwd=cwd, env=env, **pipes)


RUNS = {
    "train": (f"vemi_enhance {TRAIN} --steps 100000 --out rep", "student/history.jsonl"),
    "apply": ("vemi_enhance apply x2 in --out rep", "vemi_enhance.jsonl"),
    "compare": ("vemi_compare --tasks digits16 --methods l1 --widths 4 --seeds 40 --steps 2 --out rep", "runs.jsonl"),
}
SLOW = [pytest.param(k, marks=pytest.mark.slow) if k == "compare" else k for k in RUNS]


def begun(tmp_path, wait_for, name):
    "A command that has written its first line."
    pictures(tmp_path/"in", 200 if name == "apply" else 6)
    line, file = RUNS[name]
    name, *args = line.split()
    p = start(name, *args, cwd=tmp_path)
    path = tmp_path/"rep"/file
    wait_for(lambda: path.exists() and path.stat().st_size, p, 300)
    return p


def ends(p, seconds=120):
    "What is told last by a command that fails in one line."
    _, err = p.communicate(timeout=seconds)
    assert p.returncode == 1 and "Traceback" not in err, err[-3000:]
    told = [l for l in err.replace("\r", "\n").splitlines() if l.startswith("vemi_")]
    assert len(told) == 1 and "rep" in told[0], err[-3000:]
    return told[0]


@pytest.mark.parametrize("name", SLOW)
def test_a_folder_removed_in_mid_run(tmp_path, wait_for, name):
    "The run ends soon, and says that its folder is gone. What was under way may make it again, and no more."
    p = begun(tmp_path, wait_for, name)
    os.rename(tmp_path/"rep", tmp_path/"elsewhere")
    told = ends(p)
    assert "is gone" in told or "No such file" in told
    assert len([*(tmp_path/"rep").rglob("*.png")]) < 2 and any((tmp_path/"elsewhere").iterdir())


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="no limits of another process")
@pytest.mark.parametrize("name", SLOW)
def test_a_disk_that_is_full_in_mid_run(tmp_path, wait_for, name):
    "A limit on the size of files stands for the disk. What was written stays whole."
    p = begun(tmp_path, wait_for, name)
    size = (tmp_path/"rep"/RUNS[name][1]).stat().st_size
    resource.prlimit(p.pid, resource.RLIMIT_FSIZE, (size//2, size//2))
    assert "File too large" in ends(p)
    assert not list((tmp_path/"rep").rglob("*.part"))
    # the last line may be cut off
    rows = (tmp_path/"rep"/RUNS[name][1]).read_text().strip().splitlines()[:-1]
    assert all(json.loads(row) for row in rows if row)


def test_a_ledger_on_a_full_disk(tmp_path):
    "A row is written whole or not at all, and the rows after it are whole."
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Ledger(tmp_path/"runs.jsonl") as ledger:
        ledger.add(dict(a=1))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
            with pytest.raises(OSError, match="runs.jsonl"): ledger.add(dict(a="x"*5000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, old)
        ledger.add(dict(a=2))
    assert [r["a"] for r in read_rows(tmp_path/"runs.jsonl")] == [1, 2]


def test_weights_on_a_full_disk(tmp_path):
    "What safetensors says is an error of the disk, with the file's name."
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
        with pytest.raises(OSError, match="net.safetensors"):
            save_nets(tmp_path/"net.safetensors", net=nn.Linear(50, 50))
        with pytest.raises(OSError, match="a.txt"): write_text(tmp_path/"a.txt", "x"*5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, old)
    assert not list(tmp_path.iterdir())


def test_a_ledger_whose_folder_is_removed(tmp_path):
    "A row is not written to a file that has no name any more."
    with Ledger(tmp_path/"rep/runs.jsonl") as ledger:
        ledger.add(dict(a=1))
        shutil.rmtree(tmp_path/"rep")
        with pytest.raises(OSError, match="runs.jsonl is gone; its folder was removed"): ledger.add(dict(a=2))


DEMO = "--seeds 1 --steps 2 --methods l2 --no-onnx --out rep"
BOUND = "task 'dense 5x5' --n 200 --steps 2 --levels 2 --out rep"
COMPARE = "--tasks digits16 --methods l1 --widths 4 --seeds 1 --steps 2 --out rep"
DISTILL = "vemi_kit.zoo.dcgan:digits_teacher --recipe l1 --width 4 --steps 2 --held 8 --out rep"


@pytest.mark.parametrize("name, line, home, made", [
    ("vemi_demo", DEMO, None, "report.md"),
    ("vemi_bound", BOUND, "/proc/nobody", "bound.png"),         # neither there nor to be made
    pytest.param("vemi_compare", COMPARE, "/proc/nobody", "report.md", marks=pytest.mark.slow),
    ("vemi_enhance", "apply x2 in --out rep", "/proc/nobody", "000.png"),
    ("vemi_distill", DISTILL, "/proc/nobody", "report.md"),
])
def test_without_a_home(tmp_path, name, line, home, made):
    "The work is done without HOME, or with one that cannot be written."
    places = "HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TORCH_HOME"
    env = {k: v for k,v in os.environ.items() if k not in places}
    env.update(OMP_NUM_THREADS="1", **({"HOME": home} if home else {}))
    pictures(tmp_path/"in", 1)
    p = start(name, *shlex.split(line), cwd=tmp_path, env=env)
    _, err = p.communicate(timeout=300)
    assert p.returncode == 0 and (tmp_path/"rep"/made).exists(), err
