"The console command of the zoo, in a process of its own and in this one."
import os, shutil, subprocess, sys
import pytest
from PIL import Image
from vemi_kit.zoo.table import vemi_zoo

CYCLEGAN = "| CycleGAN ResNet-9, width 64 | 3x256x256 | 11,378,179 | 49,551,507,456 | 56,799,264,768 |"
STYLEGAN = "| StyleGAN2-1024 | 512 | 30,370,060 | 74,266,894,336 |"


def run(cwd, *args):
    exe = shutil.which("vemi_zoo", path=os.path.dirname(sys.executable)) or shutil.which("vemi_zoo")
    assert exe, "console command not installed"
    return subprocess.run([exe, *args], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_table_of_all_architectures(tmp_path):
    p = run(tmp_path)
    assert p.returncode == 0, p.stderr
    assert CYCLEGAN in p.stdout and STYLEGAN in p.stdout
    # nothing is written unless a folder is named
    assert not list(tmp_path.iterdir())


def test_measured_table_and_picture_in_a_folder(tmp_path, inside):
    args = "--only digits --latency --seconds 0.05 --threads 1 --out a/b".split()
    p = inside(vemi_zoo, "--only", "width 16", *args)
    assert not p.returncode, p.stderr
    assert (tmp_path/"a/b/zoo.md").read_text() == p.stdout
    assert "batch 1, 1 threads" in p.stdout and "(iqr" in p.stdout
    rows = [l for l in p.stdout.splitlines() if l.startswith("| ")]
    # header; mobile ResNet, U-Net, digits, restorer
    assert len(rows) == 1 + 4
    Image.open(tmp_path/"a/b/zoo.png").verify()


WRONG = [(["--only", "vgg"], "no architecture has 'vgg'"), (["--seconds", "0"], "must be positive")]


@pytest.mark.parametrize("args, message", WRONG)
def test_bad_arguments_say_why(tmp_path, inside, args, message):
    p = inside(vemi_zoo, *args)
    assert p.returncode == 1 and message in p.stderr and "Traceback" not in p.stderr
    assert not list(tmp_path.iterdir())
