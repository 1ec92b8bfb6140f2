"A student leaves the kit: every family, whole folders, environments without torch."
import json, subprocess, sys
import numpy as np, pytest, torch
from pathlib import Path
from PIL import Image
from vemi_kit.core import seeded, stream
from vemi_kit.deploy import OnnxNetwork, deploy, export_onnx, export_program, load_program, load_student
from vemi_kit.zoo.dcgan import SNGenerator
from vemi_kit.zoo.restorers import SRResNet, UNetRestorer
from vemi_kit.zoo.stylegan2 import StyleGAN2Generator
from vemi_kit.zoo.translators import ResNetGenerator, UNetGenerator

root = Path(__file__).parent.parent
z, x = (lambda n: torch.randn(2, n, generator=stream(0, "latents"))), torch.rand(2, 3, 33, 48)*2 - 1
FAMILIES = {
    "SNGAN": (lambda: SNGenerator(32, 3, 16, 16), z(16), {}),
    "CycleGAN ResNet": (lambda: ResNetGenerator(8, 3), x[:,:,:32], {}),
    "mobile ResNet": (lambda: ResNetGenerator(8, 3, separable=True), x[:,:,:32], {}),
    "pix2pix U-Net": (lambda: UNetGenerator(8, 4), x[:,:,:32], {}),
    "SRResNet x3": (lambda: SRResNet(8, 2, 3), x, {}),
    "SRResNet x4, BasicSR": (lambda: SRResNet(8, 2, 4, unit_range=True), x, {}),
    "U-Net restorer": (lambda: UNetRestorer(8, 2), x, {}),
    "StyleGAN2, noise stored": (lambda: StyleGAN2Generator(16, 3, 16, z_dim=16, n_mapping=2), z(16), {}),
    "StyleGAN2, noise as input": (
        lambda: StyleGAN2Generator(16, 3, 16, z_dim=16, n_mapping=2), z(16), dict(noise="input"),
    ),
}


def family(name):
    "A network with statistics and noise scales that are not those of the start."
    make, sample, how = FAMILIES[name]
    with seeded(0):
        net = make()
        for m in net.modules():
            if getattr(m, "running_mean", None) is not None:
                m.running_mean.normal_()
                m.running_var.uniform_(.5, 2)
            if hasattr(m, "noise_scale"): m.noise_scale.data.fill_(.3)
    return net.eval(), sample, how


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_family_leaves(name, tmp_path):
    "Both files compute what the student computes, for other batches and other sides than they were made with."
    net, sample, how = family(name)
    onnx = export_onnx(net, tmp_path, sample, seconds=None, **how)
    parity = export_program(net, tmp_path, sample, **how)
    assert max(onnx.parity.difference, parity.difference) < 1e-4
    if sample.ndim == 2: return
    m = onnx.notes["multiple"]
    assert m == {"CycleGAN ResNet": 4, "mobile ResNet": 4, "pix2pix U-Net": 16, "U-Net restorer": 4}.get(name, 1)
    other = torch.rand(3, 3, 5*m, 7*m, generator=stream(1, "pictures"))*2 - 1
    for run in (OnnxNetwork(tmp_path/"student.onnx"), load_program(tmp_path)):
        assert (run(other)-net(other)).abs().max() < 1e-4


def pictures(folder, sides):
    "Pictures of these sides, of noise."
    folder.mkdir()
    for i,(h,w) in enumerate(sides):
        v = np.random.default_rng(i).integers(0, 256, (h, w, 3)).astype(np.uint8)
        Image.fromarray(v).save(folder/f"{i}.png")
    return folder


def is_what_the_student_draws(net, folder, out):
    "Each picture is the student's own, to the rounding of 8 bits."
    read = lambda p: torch.tensor(np.array(Image.open(p))).permute(2,0,1)[None]/127.5 - 1
    for f in sorted(folder.iterdir()):
        assert (read(out/f.name)-net(read(f)).clamp(-1, 1)).abs().max() < 1.1/255, f


@torch.no_grad()
def test_a_restorer_runs_where_torch_and_the_kit_do_not(tmp_path):
    folder = pictures(tmp_path/"in", [(24,32), (21,17), (40,9)])
    with seeded(0): net = SRResNet(4, 1, 2).eval()
    found = deploy(net, tmp_path/"student", folder, seconds=None, note="a test")
    assert [r["file"] for r in found.rows][3:] == ["student.int8.onnx", "config.json", "run.py"]
    assert json.loads((tmp_path/"student/config.json").read_text())["about"] == {"note": "a test"}
    block = "import sys, runpy\nfor m in ('torch','vemi_kit','fastcore'): sys.modules[m] = None\n"
    code = block + "sys.argv[1:] = ['in', 'out']\nrunpy.run_path('student/run.py', run_name='__main__')"
    r = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stderr
    is_what_the_student_draws(load_student(tmp_path/"student"), folder, tmp_path/"out")
    for f in (tmp_path/"student").iterdir(): assert str(root).encode() not in f.read_bytes(), f


@pytest.mark.slow
@torch.no_grad()
def test_in_an_environment_without_torch(tmp_path):
    "A fresh environment with onnxruntime, numpy and Pillow: a restorer, a translator and a generator."
    run = lambda *args: subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert run(sys.executable, "-m", "venv", "env").returncode == 0
    python, limits = str(tmp_path/"env/bin/python"), str(root/"constraints.txt")
    r = run(python, "-m", "pip", "install", "-q", "-c", limits, "onnxruntime", "numpy", "pillow")
    assert r.returncode == 0, r.stderr
    assert "No module named 'torch'" in run(python, "-c", "import torch").stderr
    folder = pictures(tmp_path/"in", [(24,32), (21,17)])
    fours = pictures(tmp_path/"fours", [(24,32), (20,16)])
    for name,inputs in {"SRResNet x3": folder, "U-Net restorer": folder, "CycleGAN ResNet": fours}.items():
        net = family(name)[0]
        deploy(net, tmp_path/name, inputs, int8=False, seconds=None)
        r = run(python, f"{name}/run.py", inputs.name, f"{name}/out")
        assert r.returncode == 0, r.stderr
        is_what_the_student_draws(net, inputs, tmp_path/name/"out")
    net, sample, _ = family("SNGAN")
    deploy(net, tmp_path/"g", sample, int8=False, seconds=None)
    for out in ("a.png", "b.png"): assert run(python, "g/run.py", "3", out, "5").returncode == 0
    assert (tmp_path/"a.png").read_bytes() == (tmp_path/"b.png").read_bytes()
    assert Image.open(tmp_path/"a.png").size == (96, 64)
