"Parts of the site's builder that need no Sphinx; the workflow builds all of it and checks every link."
import json, sys
from pathlib import Path
import pytest

root = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def website():
    sys.path.insert(0, str(root/".ci"))
    import website
    sys.path.remove(str(root/".ci"))
    return website


def test_pages_have_no_directives_no_widgets_and_no_hidden_cells(website):
    words = website.terms()
    for p in website.books():
        for c in website.notebook(p, words)["cells"]:
            text = "".join(c["source"])
            if c["cell_type"] == "code": assert not text.startswith("#|") and "nbdev_export(" not in text
            assert not [o for o in c.get("outputs", []) if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]


def test_words_link_to_the_glossary_once_and_not_in_code(website):
    words = website.terms()
    assert {"nats", "MACs", "iqr", "t_hat", "H(T~|S)", "I(B;X)", "FD"} <= words.keys()
    text = website.link_terms("`nats` $nats$ [nats](x.md) then nats, and nats\n| nats |", "../", set(), words)
    assert text == "`nats` $nats$ [nats](x.md) then [nats](../glossary.md#nats), and nats\n| nats |"


def test_words_below_a_heading_are_linked_and_headings_are_not(website):
    text = website.link_terms("## In nats\n\nMeasured in nats.", "", set(), website.terms())
    assert text == "## In nats\n\nMeasured in [nats](glossary.md#nats)."


def test_every_glossary_link_leads_to_a_notebook():
    import re
    text = (root/"nbs/glossary.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) > 10 and all((root/"nbs"/l).exists() for l in links)


def test_the_check_finds_what_is_wrong(website, tmp_path):
    a = '<a href="b.html#x">1</a><a href="b.html#y">2</a><a href="c.html">3</a><a href="https://a.b/">4</a>'
    (tmp_path/"a.html").write_text(a + '<script src="https://a.b/c.js"></script><img src="d.png">')
    (tmp_path/"b.html").write_text('<p id="x"></p>')
    wrong, counts, n = website.check(tmp_path)
    assert n == 2 and counts == dict(links=4, elsewhere=2)
    assert wrong == ["a.html loads https://a.b/c.js", "a.html: no anchor b.html#y", "a.html: no c.html", "a.html: no d.png"]


def test_cells_with_imports_stand_alone():
    "The page check says what nbdev's documentation would stumble over."
    sys.path.insert(0, str(root/".ci"))
    import pages
    sys.path.remove(str(root/".ci"))
    plain = ["#| export\nimport math", "x = 2", "def f(y): return math.pi*y"]
    assert pages.alone([*plain, "import os\nz = [math.e*k for k in (1,2)]"]) == []
    assert pages.alone([*plain, "import os\nprint(x, f(1))"]) == ["f", "x"]
    assert pages.alone([*plain, "import os\ndef g(): return x"]) == []


def test_a_cell_that_takes_a_name_from_the_controls_above_is_found():
    sys.path.insert(0, str(root/".ci"))
    import pages
    sys.path.remove(str(root/".ci"))
    cells = ["x = 1\ndef inner(k): return x*k", "def draw(a=1): show(inner(a))", "explore(draw, a=(0,3))"]
    assert pages.overwritten(cells) == []
    assert pages.overwritten([*cells, "a = k = show = 2\ndef f():\n    x = 3\nprint([x for x in (1,2)])"]) == ["show"]
    assert pages.overwritten([*cells, "for x in range(3): pass"]) == ["x"]
    assert pages.overwritten([*cells, "def inner(k): return k"]) == ["inner"]
    assert pages.overwritten([*cells[:1], "explore(lambda a=1: inner(a), a=(0,3))\nx = 2"]) == []


def test_lines_that_differ_by_colour_alone_and_small_letters_are_found():
    sys.path.insert(0, str(root/".ci"))
    import pages
    sys.path.remove(str(root/".ci"))
    two = "ax.plot(a, label='a')\nax.plot(b, {}label='b')"
    assert pages.alike(two.format("")) == ["'b'"] and pages.alike(two.format("'--', ")) == []
    assert pages.alike("ax.plot(a, label='a')\nax2.plot(b, label='b')") == []
    loop = "for i,k in enumerate(xs): {}.plot(x[k], {}label=k)"
    assert pages.alike(loop.format("ax", "")) == pages.alike(loop.format("ax", "'o-', ")) == ["k"]
    assert pages.alike(loop.format("ax", "**line_look(i), ")) == pages.alike(loop.format("ax", "'os^'[i], ")) == []
    assert pages.alike("for ax,k in zip(axes, xs): ax.plot(x[k], label=k)") == []
    assert pages.tiny("ax.legend(fontsize=7)\na.title.set_fontsize(6.5)\na.tick_params(labelsize=8)") == ["7", "6.5"]
    assert pages.tiny("fig.set_dpi(60)\nplt.subplots(dpi=90)") == ["60"]


def test_start_opens_elsewhere_and_installs_nothing_here():
    book = json.loads((root/"nbs/001_start.ipynb").read_text(encoding="utf-8"))
    text = "\n".join("".join(c["source"]) for c in book["cells"])
    assert "colab.research.google.com/github/" in text and "mybinder.org/v2/gh/" in text
    assert 'if importlib.util.find_spec("vemi_kit") is None:' in text


def test_widgets_are_not_stored():
    "Without their models they would be shown as errors; what stands beside them stays."
    sys.path.insert(0, str(root/".ci"))
    import pages, refresh
    sys.path.remove(str(root/".ci"))
    picture = dict(data={"image/png": "x", "text/plain": ""})
    bare, told = {refresh.WIDGET: {}, "text/plain": "VBox()"}, {refresh.WIDGET: {}, "text/html": "a", "text/plain": "VBox()"}
    line = dict(data={"text/html": ["<em>Run this cell to move its controls.</em>"]})
    book = dict(metadata=dict(widgets={}), cells=[dict(outputs=[dict(data=dict(bare)), dict(data=dict(told)), picture])])
    assert pages.widgets(book) == 3
    assert refresh.without_widgets(book["cells"][0]["outputs"]) == [line, dict(data={"text/html": "a"}), picture]


def test_stored_pictures_and_errors_are_looked_at():
    "A picture twice, in one notebook or two, is a fault, above a control too."
    sys.path.insert(0, str(root/".ci"))
    import pages
    sys.path.remove(str(root/".ci"))
    stored = lambda p: dict(output_type="display_data", data={"image/png": p})
    shows = lambda source, *pngs: dict(cell_type="code", source=source, outputs=[stored(p) for p in pngs])
    book = lambda name, *cells: dict(notebook=name, pictures=list(pages.pictures(dict(cells=cells))))
    a = book("a", shows("draw()", "x"), shows("explore(draw)", "z"))
    assert list(pages.twice([a])) == []
    both = book("a", shows("draw()", "x"), shows("explore(draw)", "x"))
    assert list(pages.twice([both])) == ["a: code cell 1 stores the picture of a, code cell 0"]
    assert list(pages.twice([a, book("b", shows("draw()", "y", "y"))])) == ["b: code cell 0 stores the picture of b, code cell 0"]
    assert list(pages.twice([a, book("b", shows("explore(draw)", "x"))])) == ["b: code cell 0 stores the picture of a, code cell 0"]
    assert len(list(pages.twice([book("c", shows("draw()", "x"), shows("draw()", "x"))]))) == 1
    assert pages.broken(dict(cells=[dict(outputs=[dict(output_type="error"), dict(output_type="stream")])])) == 1


def test_stored_outputs_name_no_folder_of_a_machine():
    "In text, in a table, in HTML; a picture's letters are chance, and a path in a cell's source is a reader's own."
    sys.path.insert(0, str(root/".ci"))
    import pages
    sys.path.remove(str(root/".ci"))
    told = dict(output_type="stream", text=["wrote /tmp/x1/run.py\n", "and out/run.py\n"])
    table = dict(output_type="display_data", data={"text/markdown": "| /Users/me |", "image/png": "A/tmp/B"})
    book = dict(cells=[dict(source="open('/home/a')", outputs=[told, table]), dict(source="x")])
    assert sorted(pages.folders(book)) == ["/Users/me", "/tmp/x1"]
    assert pages.folders(dict(cells=[dict(outputs=[dict(data={"image/png": "A/tmp/B"})])])) == []
