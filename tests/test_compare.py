"""The comparison in real processes: killed, interrupted, with runs that diverge and processes that die; the
four tasks in small.
"""
import json, math, os, signal, subprocess, sys
import pytest, torch
from vemi_kit.study.runner import compare_run
from vemi_kit.study.comparison import compare
from vemi_kit.study.command import vemi_compare
from vemi_kit.study.workloads import Workload, Digits16, Edges64, Faces32, Photos2x
from vemi_kit.study.report import t_quantile
from vemi_kit.study.figures import rank_correlation
from vemi_kit.files import Ledger, read_rows

COMMAND = [sys.executable, "-c", "from vemi_kit.study.command import vemi_compare; exit(vemi_compare())"]
PLUGIN = '''
import multiprocessing, os
from pathlib import Path
from vemi_kit.study.workloads import Digits16
from vemi_kit.methods.base import Method

class Tiny(Digits16):
    name, n_judge, steps, batch_size = "tiny", 80, 30, 4
    def data(self, seed):
        if multiprocessing.parent_process(): (Path(__file__).parent/f"worker_{os.getpid()}").touch()
        return super().data(seed)

class Crash(Method):
    "Takes its process down, if that is a worker."
    name = "crash"
    def loss(self, batch, t, s, features=None):
        if multiprocessing.parent_process(): os._exit(3)
        return 0*s.mean(), {}
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    d = tmp_path_factory.mktemp("plugin")
    (d/"tiny_plugin.py").write_text(PLUGIN)
    sys.path.insert(0, str(d))
    torch.set_num_threads(1)
    yield d
    sys.path.remove(str(d))


def start(plugin, out, *args, **kw):
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(plugin), os.environ.get("PYTHONPATH", "")]))
    args = ["--plugin", "tiny_plugin", "--tasks", "tiny", "--device", "cpu", "--out", str(out), *args]
    pipe = subprocess.PIPE
    return subprocess.Popen([*COMMAND, *args], env=env, stdout=pipe, stderr=pipe, text=True, **kw)


def lines(path): return read_rows(path) if path.exists() else []


def alive(pid):
    try: return "Z" not in open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
    except FileNotFoundError: return False


def test_killed_and_resumed(plugin, tmp_path, wait_for):
    """kill -9 in mid-run: whole lines stay, workers end, a process that died is a line, and what follows is
    what would have come anyway.
    """
    kw = dict(methods="l1,l1+crash", widths=[8], seeds=3, plugins=["tiny_plugin"], device="cpu", progress=False)
    path = tmp_path/"runs.jsonl"
    line = "--methods l1,l1+crash --widths 8 --seeds 3 --steps 30 --jobs 2"
    p = start(plugin, tmp_path, *line.split())
    try:
        wait_for(lambda: p.poll() is not None or {"error" in r for r in lines(path)} == {True, False})
        assert p.poll() is None, p.communicate()
    finally:
        p.kill()
        p.wait()                                                       # SIGKILL
    pids = [int(f.name.split("_")[1]) for f in plugin.glob("worker_*")]
    assert len(pids) >= 2
    wait_for(lambda: not any(map(alive, pids)), seconds=60)
    before = read_rows(path)
    died = [r for r in before if "error" in r]
    assert died and all("its process died (exit code 3)" in r["error"] for r in died)
    assert all(not r["diverged"] and r["formula"] == "l1 + crash" for r in died)
    # and a line that was cut off
    with path.open("a") as f: f.write('{"task": "tiny", "na')
    rows = compare(tmp_path, "tiny", steps=30, **kw)
    assert len(rows) == 6 and not any("error" in r for r in rows)
    after = read_rows(path)
    assert after[:len(before)] == before and len(after) == 6 + len(died)
    whole = [r for r in before if "error" not in r]
    # finished ones were not repeated
    assert all(r in rows for r in whole)
    path.write_text("".join(json.dumps(r) + "\n" for r in after if r not in whole[:1]))
    again = compare(tmp_path, "tiny", steps=30, **kw)
    # a worker's run is the one of this process
    assert [r["figures"] for r in again] == [r["figures"] for r in rows]


def test_interrupted(plugin, tmp_path, wait_for):
    p = start(plugin, tmp_path, "--methods", "l1", "--widths", "8", "--seeds", "50", "--steps", "20")
    try: wait_for(lambda: lines(tmp_path/"runs.jsonl") or p.poll() is not None)
    except AssertionError:
        p.kill()
        raise
    with pytest.raises(RuntimeError, match="another process is writing"):
        Ledger(tmp_path/"runs.jsonl").__enter__()
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=600)
    assert p.returncode == 130 and "the same command goes on from there" in err and "Traceback" not in err
    assert 1 <= len(lines(tmp_path/"runs.jsonl")) < 50


@pytest.mark.parametrize("jobs", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_scheduler_that_stops_all_processes(plugin, tmp_path, wait_for, jobs):
    "SIGTERM to the whole group: finished runs are kept, none becomes an error, no worker stays behind."
    before = set(plugin.glob("worker_*"))
    line = f"--methods l1 --widths 8 --seeds 50 --steps 20 --jobs {jobs}"
    p = start(plugin, tmp_path, *line.split(), start_new_session=True)
    try: wait_for(lambda: lines(tmp_path/"runs.jsonl") or p.poll() is not None)
    except AssertionError:
        p.kill()
        raise
    os.killpg(p.pid, signal.SIGTERM)
    out, err = p.communicate(timeout=600)
    assert p.returncode == 143 and "the same command goes on from there" in err and "Traceback" not in err
    rows = lines(tmp_path/"runs.jsonl")
    assert 1 <= len(rows) < 50 and not any("error" in r for r in rows)
    pids = [int(f.name.split("_")[1]) for f in set(plugin.glob("worker_*")) - before]
    wait_for(lambda: not any(map(alive, pids)), seconds=60)


def test_diverged_runs_are_lines(plugin, tmp_path, capsys):
    line = ("--plugin tiny_plugin --tasks tiny --methods l1+vem,l1 --set vem.energy_limit=1e-9 --widths 8,4 "
            "--seeds 2 --steps 4 --device cpu --out")
    args = [*line.split(), str(tmp_path)]
    assert vemi_compare(args) == 1
    said, rows = capsys.readouterr(), read_rows(tmp_path/"runs.jsonl")
    assert len(rows) == 8 and sum("error" in r for r in rows) == 4
    assert all(r["diverged"] and "energy_limit" in r["error"] for r in rows if r["formula"] == "l1 + vem")
    assert "| l1 + vem | 0 (2 failed) |" in said.out and "| l1 | 2 |" in said.out
    assert "energy_limit" in said.err
    assert vemi_compare(args) == 1 and len(read_rows(tmp_path/"runs.jsonl")) == 8     # it would diverge again
    assert vemi_compare(["--report", str(tmp_path)]) == 0
    assert "4 runs, 4 failed" in (tmp_path/"report.md").read_text()


@pytest.mark.parametrize("args, message", [
    (["--tasks", "digits"], "no task ['digits']; there are ['digits16'"),
    (["--methods", "l1,l7"], "no method 'l7'; there are"),
    (["--methods", "l1+vem", "--set", "vem.foo=1"], "VEM has no setting ['foo']"),
    (["--methods", "l1", "--set", "vem.n_steps=1"], "no formula has the method ['vem']"),
    (["--methods", "adversarial", "--set", "adversarial.loss=wasserstein"], "loss: expected one of"),
    (["--widths", "0"], "a width from 1 to 64"),
    (["--widths", "8,many"], "--widths: expected whole numbers"),
    (["--seeds", "0"], "compare: at least one seed expected, got none"),
    (["--jobs", "0"], "compare: jobs: expected a whole number >= 1, got 0"),
    (["--steps", "-3"], "compare: steps: expected a whole number >= 1, got -3"),
    (["--seconds-of", "l2"], "seconds_of: expected one of ['l1', 'l1 + vem']"),
    (["--certified", "20"], "at least 200 pairs"),
    (["--lr", "nan"], "compare: lr: expected a finite number > 0, got nan"),
    (["--configs", "nowhere.json"], "nowhere.json"),
    (["--report", "nowhere"], "no runs at"),
    (["--tune", "vid.init=1"], "no formula has the knobs ['vid.init']"),
    (["--plugin", "no_such_module"], "no_such_module"),
    (["--combinations", "--kinds", "video"], "do not know ['video']"),
])
def test_bad_arguments_before_work(args, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert vemi_compare([*args, "--out", "runs"] if "--report" not in args else args) == 1
    err = capsys.readouterr().err
    assert message in err and err.startswith("vemi_compare: ") and not list(tmp_path.iterdir())


def test_equal_time(plugin, tmp_path):
    kw = dict(seconds_of="l1", plugins=["tiny_plugin"], device="cpu", progress=False)
    l1, vem, timed = compare(tmp_path, "tiny", "l1,l1+vem", [8], 1, 40, **kw)
    assert timed["budget"] == "seconds of l1" and timed["seconds"] == l1["seconds_used"]
    assert timed["formula"] == "l1 + vem" and timed["steps_done"] < 40
    assert l1["seconds_used"] <= timed["seconds_used"] < l1["seconds_used"] + 5*vem["seconds_used"]/40
    assert len(compare(tmp_path, "tiny", "l1,l1+vem", [8], 1, 40, **kw)) == 3
    assert len(lines(tmp_path/"runs.jsonl")) == 3


@pytest.mark.parametrize("base", [Faces32, Photos2x, pytest.param(Edges64, marks=pytest.mark.slow)])
def test_tasks_in_small(base, tmp_path):
    """Teachers are trained once and kept; photographs of training and judging differ; restoration is judged
    against the truth, too.
    """
    class Small(base): name, teacher_steps, n_judge = base.name + "_small", 2, 164
    try:
        t = Small()
        nets = t.teacher(tmp_path)
        stamp = (tmp_path/f"{t.name}_2.safetensors").stat().st_mtime_ns
        again = t.teacher(tmp_path)
        assert (tmp_path/f"{t.name}_2.safetensors").stat().st_mtime_ns == stamp
        states = [list(n["teacher"].state_dict().values()) for n in (nets, again)]
        assert all(torch.equal(a, b) for a,b in zip(*states))
        spec = dict(task=t.name, name="x", formula="l1 + 0.1*adversarial", settings={}, lr=1e-3, seed=0, steps=2)
        row = compare_run(Small, tmp_path, "cpu", dict(spec, width=t.widths[1], budget="steps"))
        assert ("psnr_truth" in row["figures"]) == (base is not Faces32)
        assert {"frechet_teacher", "frechet_real", "psnr", "ssim", "nats_per_dim"} <= row["figures"].keys()
        assert any("PooledFeatures" in p for p in row["protocols"])
        assert row["macs"] > 0 and row["latency_ms"] > 0
        json.dumps(row, allow_nan=False)
        if base is not Faces32:
            a, b = t.crops("train", 2, 0).photos.names, t.crops("test", 2, 0).photos.names
            assert not set(a) & set(b)
    finally: del Workload.registry[base.name + "_small"]


def test_certified_values(plugin, tmp_path, monkeypatch):
    """Of the averaged student only; on small pictures, as the protocol says; and such a run is another run. A short
    chain: how good a certificate is, is tested where it is made.
    """
    from tiny_plugin import Tiny
    from vemi_kit.study import judge
    short = dict(chain=dict(progress=False, n_steps=10), levels=(5,))
    monkeypatch.setattr(judge, "certify", lambda *args, certify=judge.certify, **kw: certify(*args, **{**kw, **short}))
    class Certified(Tiny): name, n_judge, certified_size = "tiny_certified", 200, 4
    try:
        kw = dict(methods="l1", widths=[8], seeds=1, steps=2, device="cpu", progress=False)
        plain, = compare(tmp_path, "tiny_certified", **kw)
        row, = compare(tmp_path, "tiny_certified", certified=200, **kw)
    finally: del Workload.registry["tiny_certified"]
    assert row["key"] != plain["key"] and row["last"] == plain["last"]
    assert math.isfinite(row["figures"]["certified_per_dim"])
    assert "certified_per_dim" not in plain["figures"]
    assert any("200 pairs, 4x4" in p for p in row["protocols"])


def test_pool(plugin, tmp_path):
    """With a pool, a method that looks at pictures calls the teacher for a first look only, one that looks
    inside calls it each step; the students are those that a live teacher makes.
    """
    from tiny_plugin import Tiny
    from vemi_kit.study.runner import student_run
    task, calls = Tiny(), []
    nets = task.teacher()
    pool, answers = task.answers(nets["teacher"], 40, tmp_path)
    nets["teacher"].register_forward_hook(lambda *_: calls.append(1))
    spec = dict(settings={}, lr=1e-2, width=8, seed=0, steps=3)
    weights = lambda run: torch.cat([p.flatten() for p in run.student.parameters()])
    with_cache = weights(student_run(task, nets, dict(spec, formula="l1"), pool=(pool, answers))[0])
    assert len(calls) <= 1
    calls.clear()
    live = weights(student_run(task, nets, dict(spec, formula="l1", cache=False), pool=(pool, answers))[0])
    assert torch.allclose(with_cache, live, atol=1e-6) and len(calls) > 2
    calls.clear()
    student_run(task, nets, dict(spec, formula="l1 + 0.1*crd"), pool=(pool, answers))
    assert len(calls) > 2
    kw = dict(methods="l1", widths=[8], seeds=1, steps=2, device="cpu", progress=False)
    fresh, = compare(tmp_path, "tiny", **kw)
    pooled, = compare(tmp_path, "tiny", pool=40, **kw)
    assert fresh["key"] != pooled["key"] and pooled["pool"] == 40 and fresh["figures"] != pooled["figures"]
    for bad, told in ((-1, "compare: pool: expected a whole number >= 0, got -1"), (3, "at least a batch of")):
        with pytest.raises(ValueError, match=told): compare(tmp_path, "tiny", pool=bad, **kw)


def test_statistics_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    for dof in (1, 2, 5, 30):
        for level in (.9, .95, .99):
            assert math.isclose(t_quantile(dof, level), stats.t.ppf((1+level)/2, dof), rel_tol=1e-4)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randint(0, 6, (40,), generator=g).double(), torch.randn(40, generator=g).double()
    assert math.isclose(rank_correlation(x, y), stats.spearmanr(x, y).statistic, abs_tol=1e-12)


def test_the_users_random_numbers_are_left_alone(plugin, tmp_path, capsys, monkeypatch):
    "compare, combinations, demo and a single run leave Python's, NumPy's and torch's generators as they were."
    import random
    import numpy as np
    from tiny_plugin import Tiny
    from vemi_kit.study.combinations import combinations
    from vemi_kit.study.demo import demo
    from vemi_kit.study.runner import student_run
    kw, spec = dict(device="cpu"), dict(formula="l1", settings={}, lr=1e-2, width=8, seed=0, steps=2)
    small = dict(side=16, warm=1, steps=2, progress=False)
    doors = [
        lambda: compare(tmp_path/"a", "tiny", "l1", [8], 1, 2, progress=False, **kw),
        lambda: combinations(tmp_path/"b", ["restoration"], ["l1"], **small),
        lambda: demo(1, 2, 8, ("l2",), tmp_path/"c", onnx=False, **kw),
        lambda: student_run(Tiny(), nets, spec),
        lambda: Small().teacher(tmp_path/"d"),
    ]
    nets = Tiny().teacher()
    monkeypatch.setattr(Digits16, "n_judge", 300)                        # of the demo
    class Small(Photos2x): name, teacher_steps = "photos_small", 2
    draw = lambda: (random.random(), np.random.rand(), torch.rand(1).item())
    seed = lambda: (random.seed(9), np.random.seed(9), torch.manual_seed(9))
    try:
        for door in doors:
            seed()
            want = draw()
            seed()
            door()
            assert draw() == want
    finally: del Workload.registry["photos_small"]
