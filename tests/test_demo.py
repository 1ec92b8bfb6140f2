"The console command: a whole small demo in a process of its own, and interrupted ones; the rest in this process."
import json, os, shutil, signal, subprocess, sys
import pytest, torch
from PIL import Image
from vemi_kit.deploy.folder import load_student
from vemi_kit.study.demo import vemi_demo
from vemi_kit.study.workloads import Digits16

# how it ends is tested with fewer pictures to judge by: 2,048 take longer than the runs
FEW = 300
CODE = f"""
import sys
from vemi_kit.study.demo import vemi_demo
from vemi_kit.study.workloads import Digits16
Digits16.n_judge = {FEW}
sys.exit(vemi_demo())
"""
COMMAND = [sys.executable, "-c", CODE]
METHODS = {"best", "l2 + adversary", "l1"}
QUICK = ["--jobs", "1", "--no-onnx", "--device", "cpu"]


def check_report(out, n_runs, complete):
    r = json.loads((out/"report.json").read_text())
    assert r["complete"] is complete and len(r["runs"]) == n_runs
    md = (out/"report.md").read_text()
    assert ("(unfinished" in md) is not complete and "σ_n = 0.1" in md and "Protocols" in md
    Image.open(out/"samples.png").verify()
    if n_runs: Image.open(out/"curves.png").verify()
    return r


def finish(command, cwd, **kw):
    "Run a command to its end."
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, **kw)


def test_installed_command_and_its_report(tmp_path):
    "The entry point that the installer made; all default recipes, in two processes, and the student to ship."
    exe = shutil.which("vemi_demo", path=os.path.dirname(sys.executable)) or shutil.which("vemi_demo")
    assert exe, "console command not installed"
    p = finish([exe, "--seeds", "1", "--steps", "10", "--out", "rep", "--device", "cpu"], tmp_path)
    assert p.returncode == 0, p.stderr
    r = check_report(tmp_path/"rep", 3, True)
    assert r["costs"]["macs_ratio"] >= 20
    # the table, a progress bar, and how to do it with a network of one's own
    assert "| l2 + adversary | 10 | 1 |" in p.stdout and "s/it" in p.stderr and "vemi_distill" in p.stdout
    assert {x["name"] for x in r["runs"]} == METHODS and "nats" in r["runs"][0]["held_out"][0]
    student = load_student(tmp_path/"rep/student").eval()
    with torch.no_grad(): assert student(torch.randn(2, 64)).shape == (2, 1, 16, 16)
    assert (tmp_path/"rep/student/student.onnx").stat().st_size > 10_000


def test_ctrl_c_leaves_a_valid_partial_report(tmp_path, wait_for):
    args = ["--seeds", "50", "--steps", "8", "--methods", "l2", "--out", "rep", *QUICK]
    with open(tmp_path/"err", "w") as err:
        p = subprocess.Popen([*COMMAND, *args], cwd=tmp_path, stderr=err, stdout=subprocess.PIPE, text=True)
        report = tmp_path/"rep/report.json"
        wait_for(lambda: report.exists() and len(json.loads(report.read_text())["runs"]) >= 2, p)
        p.send_signal(signal.SIGINT)
        said, _ = p.communicate(timeout=600)
    assert p.returncode == 130 and "Interrupted" in (tmp_path/"err").read_text() and "| l2 |" in said
    n = len(json.loads(report.read_text())["runs"])
    assert 2 <= n < 50
    check_report(tmp_path/"rep", n, False)


def test_ctrl_c_before_the_first_run_says_so(tmp_path):
    args = ["--retrain-teacher", "--out", "rep", "--device", "cpu"]
    pipe = subprocess.PIPE
    p = subprocess.Popen([*COMMAND, *args], cwd=tmp_path, stderr=pipe, stdout=pipe, text=True)
    for line in iter(lambda: p.stderr.read(40), ""):
        if "training the GAN" in line: break
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=600)
    assert p.returncode == 130 and "there is no report" in err and not (tmp_path/"rep/report.json").exists()


def test_retrained_teacher(tmp_path, inside, monkeypatch):
    monkeypatch.setattr(Digits16, "n_judge", FEW)
    args = ["--seeds", "1", "--steps", "4", "--methods", "l2", "--out", "rep", *QUICK]
    p = inside(vemi_demo, *args, "--retrain-teacher", "--teacher-steps", "3")
    assert p.returncode == 0, p.stderr
    assert (tmp_path/"rep/teacher.safetensors").stat().st_size < 1_000_000
    mine = check_report(tmp_path/"rep", 1, True)
    # it is the retrained one that is compared with: a teacher of three steps is no match for the shipped
    # one, which has 71 with so few pictures
    assert mine["floor"]["frechet_real"] > 200


@pytest.mark.parametrize("args, message", [
    (["--methods", "l1+nothing"], "no method 'nothing'"),
    (["--seeds", "0"], "demo: seeds: expected a whole number >= 1, got 0"),
    (["--steps", "1"], "demo: steps: at least 2"),
    (["--device", "warp"], "warp"),
    (["--methods", "l1+nothing", "--retrain-teacher"], "no method 'nothing'"),
])
def test_bad_arguments_stop_before_training(tmp_path, inside, args, message):
    p = inside(vemi_demo, *args)
    assert p.returncode == 1 and message in p.stderr and "Traceback" not in p.stderr
    assert not list(tmp_path.iterdir())


def test_a_console_that_cannot_show_all_characters(tmp_path):
    "What an encoding lacks becomes an escape; the work is not lost to a print (case 15)."
    args = ["--seeds", "1", "--steps", "3", "--methods", "l2", "--out", "d", *QUICK]
    p = finish([*COMMAND, *args], tmp_path, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert p.returncode == 0, p.stderr
    assert "Fr\\xe9chet" in p.stdout and "\\u2264" in p.stdout
    assert "Fréchet" in (tmp_path/"d/report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_scheduler_that_stops_the_demo(tmp_path, inside, monkeypatch, wait_for, name):
    """The signals of cluster schedulers end the run in progress like Ctrl-C; the same command finds what is
    finished. Meanwhile another demo in that folder is refused, before it touches anything.
    """
    monkeypatch.setattr(Digits16, "n_judge", FEW)
    args = ["--steps", "8", "--methods", "l2", "--out", "rep", *QUICK]
    report = tmp_path/"rep/report.json"
    with open(tmp_path/"err", "w") as err:
        p = subprocess.Popen([*COMMAND, *args, "--seeds", "50"], cwd=tmp_path, stderr=err, stdout=err)
        wait_for(lambda: report.exists() and json.loads(report.read_text())["runs"], p)
        other = inside(vemi_demo, *args, "--retrain-teacher", "--teacher-steps", "3")
        assert p.poll() is None and other.returncode == 1 and "another process is writing" in other.stderr
        assert report.exists() and not (tmp_path/"rep/teacher.safetensors").exists()
        p.send_signal(getattr(signal, name))
        assert p.wait(timeout=600) == 128 + getattr(signal, name)
    assert "the same command goes on from there" in (tmp_path/"err").read_text()
    n = len(check_report(tmp_path/"rep", len(json.loads(report.read_text())["runs"]), False)["runs"])
    lines = (tmp_path/"rep/runs.jsonl").read_text()
    assert lines.count("\n") == n
    p = inside(vemi_demo, *args, "--seeds", n)
    assert p.returncode == 0 and (tmp_path/"rep/runs.jsonl").read_text() == lines
    check_report(tmp_path/"rep", n, True)


def test_folders_that_cannot_be_written_to(tmp_path, inside):
    "A file, and a disk without room (a limit on the size of files), are told before the first run."
    import resource
    args = ["--seeds", "1", "--steps", "3", "--methods", "l2", *QUICK, "--out"]
    (tmp_path/"file").write_text("mine")
    p = inside(vemi_demo, *args, "file")
    assert p.returncode == 1 and "is a file; give a folder" in p.stderr and "Traceback" not in p.stderr
    assert (tmp_path/"file").read_text() == "mine"
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    p = finish([*COMMAND, *args, "full"], tmp_path, preexec_fn=small)
    assert p.returncode == 1 and "cannot write there" in p.stderr and "Traceback" not in p.stderr
    assert not list((tmp_path/"full").iterdir())
