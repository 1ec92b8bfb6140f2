"""The console command vemi_enhance in real processes: folders with everything in them, interruptions, a
whole small training.
"""
import json, os, shutil, signal, subprocess, sys
import numpy as np, pytest, torch
from PIL import Image
from vemi_kit.core import set_seed
from vemi_kit.enhance.restorer import Restorer, load_restorer, save_restorer
from vemi_kit.enhance.files import JOURNAL
from vemi_kit.enhance.command import vemi_enhance
from vemi_kit.zoo.restorers import SRResNet

CODE = "import sys; from vemi_kit.enhance.command import vemi_enhance; sys.exit(vemi_enhance())"
COMMAND = [sys.executable, "-c", CODE]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(cwd, *args):
    "The command in a process of its own, to its end."
    args = [*COMMAND, *map(str, args), "--device", "cpu"]
    return subprocess.run(args, cwd=cwd, capture_output=True, text=True, timeout=300, env=ENV)


def start(cwd, *args):
    "The command in a process of its own, running."
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([*COMMAND, *map(str, args), "--device", "cpu"], cwd=cwd, env=ENV, **pipes)


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    "The same command in this process, on one thread: for what a process of its own would show no better."
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    def call(*args):
        code = vemi_enhance([str(a) for a in args] + ["--device", "cpu", "--threads", "1"])
        said = capsys.readouterr()
        return subprocess.CompletedProcess(args, code, said.out, said.err)
    yield call
    torch.set_num_threads(threads)


def pictures(folder, n, h=40, w=48):
    folder.mkdir(parents=True, exist_ok=True)
    yy, xx = np.mgrid[:h,:w]
    for i in range(n):
        v = np.stack([127 + 120*np.sin((i+2)*xx/9 + k + yy/(5+i)) for k in range(3)], 2).astype(np.uint8)
        Image.fromarray(v).save(folder/f"{i:02}.png")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    set_seed(0)
    return save_restorer(tmp_path_factory.mktemp("student")/"s.safetensors", Restorer(SRResNet(4, 1, 2), "x2"))


def test_installed_command_with_the_student_that_ships(tmp_path):
    pictures(tmp_path/"in", 1)
    (tmp_path/"x2").mkdir()                        # a folder called like the student: of a training run, say
    exe = shutil.which("vemi_enhance", path=os.path.dirname(sys.executable)) or shutil.which("vemi_enhance")
    assert exe, "console command not installed"
    args = [exe, "apply", "in", "--out", "out", "--device", "cpu"]
    r = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=ENV)
    assert r.returncode == 0, r.stderr
    assert Image.open(tmp_path/"out/00.png").size == (96, 80) and "1 written" in r.stdout
    assert "picture/s" in r.stderr                                                  # a progress bar


def test_folder_of_all_kinds_one_bad_file_and_again(tmp_path, student, here):
    src, out = tmp_path/"in", tmp_path/"out"
    pictures(src/"deep/er", 2)
    im = Image.open(src/"deep/er/00.png")
    im.convert("L").save(src/"grey.png")
    im.convert("RGBA").save(src/"clear.png")
    im.save(src/"photo.JPG")
    Image.fromarray(np.full((20,30), 40_000, np.uint16)).save(src/"bits.png")
    (src/"broken.png").write_bytes((src/"grey.png").read_bytes()[:80])
    (src/"notes.txt").write_text("no picture")
    r = run(tmp_path, "apply", student, "in", "--out", "out")
    assert r.returncode == 1 and "6 written, 0 already there, 1 failed" in r.stdout
    assert "broken.png" in r.stdout and "Traceback" not in r.stderr
    assert {p.relative_to(out).as_posix(): Image.open(p).mode for p in out.rglob("*.png")} == {
        "deep/er/00.png": "RGB",
        "deep/er/01.png": "RGB",
        "grey.png": "L",
        "clear.png": "RGBA",
        "photo.png": "RGB",
        "bits.png": "I;16",
    }
    when = lambda: {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    before = when()
    (src/"broken.png").unlink()
    r = here("apply", student, "in", "--out", "out")
    assert r.returncode == 0 and "0 written, 6 already there" in r.stdout and before == when()
    # now these pictures could be anybody's
    (out/JOURNAL).unlink()
    r = here("apply", student, "in", "--out", "out")
    assert r.returncode == 1 and "would be replaced" in r.stderr and before == when()
    r = here("apply", student, "in", "--out", "out", "--overwrite")
    assert r.returncode == 0 and "6 written" in r.stdout


@pytest.mark.parametrize("sig, code", [
    (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_interrupted_apply_goes_on(tmp_path, student, here, wait_for, sig, code):
    "Whatever stops it, no half file stands under a good name, and the same command finishes the rest."
    pictures(tmp_path/"in", 40, 120, 160)
    p = start(tmp_path, "apply", student, "in", "--out", "out")
    out = tmp_path/"out"
    wait_for(lambda: len(list(out.glob("*.png"))) >= 3, p)
    p.send_signal(sig)
    _, err = p.communicate(timeout=600)
    assert p.returncode == code and ("Interrupted" in err) == (sig != signal.SIGKILL)
    done = {f: f.stat().st_mtime_ns for f in out.glob("*.png")}
    assert 3 <= len(done) < 40
    for f in done: Image.open(f).load()
    assert sig == signal.SIGKILL or not list(out.glob("*.part"))
    r = here("apply", student, "in", "--out", "out")
    assert r.returncode == 0, r.stderr
    written = int(r.stdout.split()[0])
    assert written + len(done) == 40 and all(f.stat().st_mtime_ns == t for f,t in done.items())
    assert len(list(out.glob("*.png"))) == 40 and not list(out.glob("*.part"))


ARGS = (
    "train in --out rep --teacher-width 4 --teacher-depth 1 --teacher-steps 30 --steps 70 --width 2 --crop 8 "
    "--batch-size 2 --methods l1+truth+vem"
).split()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "The student of a training that nothing interrupts."
    folder, threads = tmp_path_factory.mktemp("undisturbed"), torch.get_num_threads()
    pictures(folder/"in", 6)
    args = [str(folder/a) if a in ("in", "rep") else a for a in ARGS]
    try: assert vemi_enhance([*args, "--device", "cpu", "--threads", "1"]) == 0
    finally: torch.set_num_threads(threads)
    return load_restorer(folder/"rep/student.safetensors", "cpu").state_dict()


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_training_interrupted_resumed_and_applied(tmp_path, undisturbed, here, wait_for, sig):
    pictures(tmp_path/"in", 6)
    p = start(tmp_path, *ARGS, "--threads", "1")
    history = tmp_path/"rep/student/history.jsonl"
    wait_for(lambda: history.exists() and history.read_text().count("\n") >= 2, p)
    p.send_signal(sig)
    _, err = p.communicate(timeout=600)
    assert p.returncode == 128 + sig and "--resume" in err and not (tmp_path/"rep/student.safetensors").exists()
    r = here(*ARGS)
    assert r.returncode == 1 and "--resume" in r.stderr
    r = here(*ARGS, "--resume", "--steps", "401")
    assert r.returncode == 1 and "other settings" in r.stderr
    r = here(*ARGS, "--resume")
    assert r.returncode == 0, r.stderr
    state = load_restorer(tmp_path/"rep/student.safetensors", "cpu").state_dict()
    # as if it had never been interrupted
    assert all(torch.equal(v, state[k]) for k,v in undisturbed.items())
    report = json.loads((tmp_path/"rep/report.json").read_text())
    assert set(report["means"]) == {"bicubic", "teacher", "student"}
    assert "PSNR Y" in (tmp_path/"rep/report.md").read_text()
    r = here("apply", "rep/student.safetensors", "in/00.png", "--out", "out")
    assert r.returncode == 0 and Image.open(tmp_path/"out/00.png").size == (96, 80)


@pytest.mark.parametrize("args, message", [
    ("train empty --out o", "holds no image"),
    ("train in --out o --task x7", "2, 3 or 4"),
    ("train in --out o --crop 100", "lower the crop size"),
    ("train in --out o --task x3 --teacher {student} --crop 8", "enlarges 2 times"),
    ("apply none.safetensors in --out o", "no student file"),
    ("apply {student} empty --out o", "holds no image"),
    ("apply {student} in --out in", "folder of the pictures itself"),
])
def test_bad_arguments(tmp_path, student, here, args, message):
    (tmp_path/"empty").mkdir()
    pictures(tmp_path/"in", 2)
    r = here(*args.format(student=student).split())
    assert r.returncode == 1 and message in r.stderr and "Traceback" not in r.stderr
    assert not (tmp_path/"o").exists()


def train(*args):
    "Arguments of a training of a few steps."
    short = "--teacher-width 4 --teacher-depth 1 --teacher-steps 2 --steps 2 --crop 16 --batch-size 2 --width 2"
    return ["train", *args, *short.split(), "--methods", "l1"]


def test_a_small_held_out_picture_is_judged_or_refused_before_training(tmp_path, here):
    pictures(tmp_path/"in", 3, 96, 96)
    pictures(tmp_path/"held", 1, 28, 28)
    pictures(tmp_path/"tiny", 1, 14, 60)
    r = here(*train("in", "--test", "held", "--out", "o"))
    assert r.returncode == 0 and "only 0 patches" in (tmp_path/"o/report.md").read_text(), r.stderr
    r = here(*train("in", "--test", "tiny", "--out", "p"))
    assert r.returncode == 1 and "00.png': it is 14x60" in r.stderr and not (tmp_path/"p").exists()


def test_resume_keeps_the_pictures_and_a_mistake_does_not_lock_the_folder(tmp_path, here, monkeypatch):
    pictures(tmp_path/"in", 12, 64, 64)
    # it fails in the first step: nothing was trained, so other settings may take the folder
    with monkeypatch.context() as m:
        m.setattr("vemi_kit.enhance.train.Enhancer.train_teacher", lambda *a, **k: 1/0)
        r = here(*train("in", "--out", "o", "--seed", "7"))
    assert r.returncode == 1 and "division" in r.stderr and (tmp_path/"o/settings.json").exists()
    assert here(*train("in", "--out", "o")).returncode == 0
    split = json.loads((tmp_path/"o/settings.json").read_text())["pictures"]
    assert (len(split["train"]), len(split["held"])) == (11, 1)
    for name in ("a", "zz"): shutil.copy(tmp_path/"in/00.png", tmp_path/f"in/{name}.png")
    before = (tmp_path/"o/student.safetensors").read_bytes()
    r = here(*train("in", "--out", "o"), "--resume")
    assert r.returncode == 1 and "2 (a.png, zz.png)" in r.stderr and "trained on" in r.stderr
    assert (tmp_path/"o/student.safetensors").read_bytes() == before
    for name in ("a", "zz"): (tmp_path/f"in/{name}.png").unlink()
    assert here(*train("in", "--out", "o"), "--resume").returncode == 0
    # the same names, another picture
    first, second = split["train"][:2]
    shutil.copy(tmp_path/first, tmp_path/second)
    assert here(*train("in", "--out", "o"), "--resume").returncode == 1


@pytest.mark.skipif(sys.platform == "win32", reason="file names are Unicode there")
def test_names_that_are_not_utf8(tmp_path):
    "In a UTF-8 locale that refuses to encode them: they are escaped in all that is printed and written."
    strict = {**ENV, "PYTHONIOENCODING": "utf-8:strict"}
    old = os.fsencode(tmp_path/"in") + b"/caf\xe9.png"
    pictures(tmp_path/"in", 3, 64, 64)
    pictures(tmp_path/"held", 1, 64, 64)
    shutil.copy(tmp_path/"in/00.png", os.fsencode(tmp_path/"held") + b"/caf\xe9.png")
    open(old, "wb").write(b"x")
    call = lambda args: subprocess.run(
        [*COMMAND, *args, "--device", "cpu"], cwd=tmp_path, capture_output=True, timeout=300, env=strict)
    r = call(["apply", "in", "--out", "out"])
    assert r.returncode == 1 and b"Traceback" not in r.stderr, r.stderr
    assert b"failed: in/caf\\udce9.png" in r.stdout and b"3 written" in r.stdout
    os.unlink(old)
    r = call(train("in", "--test", "held", "--out", "o"))
    assert r.returncode == 0, r.stderr
    assert "caf\\udce9.png" in (tmp_path/"o/report.md").read_text(encoding="utf-8")
    rows = json.loads((tmp_path/"o/report.json").read_text())["evaluation"]["rows"]
    assert "caf\udce9.png" in {r["picture"] for r in rows}


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_one_process_a_folder(tmp_path, here):
    "A training in a folder that another process trains in is refused, and touches nothing."
    import fcntl
    pictures(tmp_path/"in", 3, 64, 64)
    (tmp_path/"o").mkdir()
    with (tmp_path/"o/lock").open("a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        r = here(*train("in", "--out", "o"))
        assert r.returncode == 1 and "another process is writing" in r.stderr
        assert [p.name for p in (tmp_path/"o").iterdir()] == ["lock"]
    assert here(*train("in", "--out", "o")).returncode == 0


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no file-size limit")
def test_a_full_disk_is_told_and_leaves_whole_files(tmp_path, student):
    "With a limit on the size of files the large pictures fail, each with its reason; the small ones come."
    pictures(tmp_path/"in", 1)
    noise = np.random.default_rng(0).integers(0, 255, (90,90,3), dtype=np.uint8)
    for i in range(2): Image.fromarray(noise).save(tmp_path/f"in/large{i}.png")
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); {CODE}"
    args = [sys.executable, "-c", code, "apply", student, "in", "--out", "out", "--device", "cpu"]
    r = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=ENV)
    assert r.returncode == 1 and "1 written, 0 already there, 2 failed" in r.stdout, r.stderr
    assert "large0.png: " in r.stderr and "Traceback" not in r.stderr
    assert sorted(p.name for p in (tmp_path/"out").iterdir()) == ["00.png", JOURNAL]
