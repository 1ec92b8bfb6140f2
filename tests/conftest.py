"What tests of several files share."
import signal, subprocess, time
import pytest, torch

# started in the background: processes of the tests would inherit that, and Ctrl-C is what some of them test
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The files that take longest, first: the last one begun would keep one core busy while the other waits.
LONGEST = "demo survival compare methods processes enhance folders bound any_generator browser front doors".split()


def pytest_configure(config):
    config.option.loadscopereorder = False                             # of xdist, which would begin with most tests
    config.addinivalue_line("markers", "slow: minutes; run with pytest -m slow")
    config.addinivalue_line("markers", "gpu: needs a CUDA device; run with python .ci/gpu tests")


def pytest_collection_modifyitems(config, items):
    "The longest files first; slow tests, and those for a GPU, run only when they are asked for."
    place = {f"test_{name}": i for i,name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    ways = dict(slow="pytest -m slow", gpu="python .ci/gpu tests")
    for name,how in ways.items():
        if name in config.option.markexpr: continue
        for item in items:
            if name in item.keywords: item.add_marker(pytest.mark.skip(reason=f"{name}: run with {how}"))


@pytest.fixture
def inside(tmp_path, monkeypatch, capsys):
    """`inside(command, *args)`: a command of the kit in this process, in the test's folder, to its end. A process
    of its own takes seconds to import torch, and shows what a terminal and signals do, not what a command does.
    """
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    def call(command, *args):
        code = command([str(a) for a in args])
        said = capsys.readouterr()
        return subprocess.CompletedProcess(args, code, said.out, said.err)
    yield call
    torch.set_num_threads(threads)


@pytest.fixture
def wait_for():
    def wait(condition, process=None, seconds=900):
        "Wait until the condition holds; a process, if given, has to live until then."
        end = time.time() + seconds
        while not condition():
            assert process is None or process.poll() is None, process.communicate()
            assert time.time() < end, "waited in vain"
            time.sleep(.01)
    return wait
