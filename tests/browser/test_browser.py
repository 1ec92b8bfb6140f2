"""Notebooks in JupyterLab, driven in Chromium: whole from a fresh kernel, then every control moved. A few light
ones a day in turn; all of them with `pytest -m slow tests/browser`, one with `-k 205` beside that.
"""
import datetime, json
import pytest
import lab as browser

LIGHT, A_DAY = 4, 3                                                    # seconds of a core, notebooks


def light():
    "Notebooks with controls that run within a few seconds."
    took = json.loads((browser.ROOT/"nbs/results/seconds.json").read_text())["seconds"]
    name = lambda p: p.removeprefix("nbs/").removesuffix(".ipynb")
    return [p for p in browser.with_controls() if took.get(name(p), LIGHT) < LIGHT]


def in_turn(paths, day, n=A_DAY):
    "The next `n` each day, round and round."
    return [paths[(day*n + i) % len(paths)] for i in range(n)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A page of a JupyterLab over a copy of the notebooks."
    if why := browser.without_browser(): pytest.skip(why)
    from playwright.sync_api import sync_playwright
    with browser.server(tmp_path_factory.mktemp("lab")) as address, sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=browser.chromium(), args=["--no-sandbox"])
        yield browser.Lab(chromium, address)
        chromium.close()


def holds(lab, path):
    "Nothing went wrong, and each control redraws."
    visit = browser.visit(lab, path)
    print(f"{visit.name}: {visit.seconds:.1f} s, {visit.moved} controls, slowest {max(visit.redraws, default='none')}")
    assert visit.wrong == [] and visit.still == []
    assert visit.moved > 0


@pytest.mark.parametrize("i", range(A_DAY))
def test_a_notebook_of_today(lab, i):
    today = datetime.datetime.now(datetime.timezone.utc).date().toordinal()
    holds(lab, in_turn(light(), today)[i])


@pytest.mark.slow
@pytest.mark.parametrize("path", browser.with_controls())
def test_a_notebook(lab, path): holds(lab, path)


def test_each_light_notebook_has_its_turn():
    paths = light()
    assert len(paths) > A_DAY
    assert {p for day in range(len(paths)) for p in in_turn(paths, day)} == set(paths)
