"""Write what every notebook has alike: the "you are here" line, and the last cell.

The line names the rooms before and after, those the notebook builds on, and the map. The last cell says how the
module is written. It does not write it: running a notebook must not change the package that it imports.
"""
import hashlib, json, re
from pathlib import Path

nbs = Path(__file__).resolve().parent.parent/"nbs"
HERE = "You are here: "
TOOK = json.loads((nbs/"results/seconds.json").read_text(encoding="utf-8"))
EXPORT = "nbdev.nbdev_export()"
LAST = ["#| hide\n", "# vemi_kit is written from the notebooks by `nbdev_export`, in a shell"]


def source(cell): return "".join(cell["source"])


def module(notebook):
    "Name of the module that a notebook exports, without the package; None without one."
    found = re.search(r"#\|\s*default_exp\s+(\S+)", "\n".join(source(c) for c in notebook["cells"]))
    return found and found.group(1)


def imported(notebook):
    "Modules of the kit that the exported cells import."
    exported = [source(c) for c in notebook["cells"] if source(c).startswith("#| export")]
    return re.findall(r"^\s*from vemi_kit\.([\w.]+) import", "\n".join(exported), re.M)


def cost(name):
    "Extras and seconds of a notebook; empty where nobody has measured them."
    if name not in TOOK["seconds"]: return ""
    extras, seconds = ",".join(TOOK["needs"][name]), TOOK["seconds"][name]
    kit = f"`vemi_kit[{extras}]`" if extras else "`vemi_kit`"
    return f" It needs {kit} and takes {max(1, round(seconds))} s of a core."


def line(name, names, rooms):
    "The line of one notebook."
    link = lambda n: f"[{n}]({n}.ipynb)"
    at = names.index(name)
    way = [f"before it {link(n)}" for n in names[:at][-1:]] + [f"after it {link(n)}" for n in names[at+1:][:1]]
    below = list(dict.fromkeys(rooms[m] for m in imported(books[name]) if m in rooms))
    on = f" It builds on {', '.join(map(link, sorted(below)))}." if below and name != "999_all" else ""
    maps = "[the map](index.ipynb) shows all rooms, [the glossary](glossary.md) explains the words."
    return f"{HERE}**{name}**, {', '.join(way)}; {maps}{on}{cost(name)}"


books = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(nbs.glob("[0-9]*.ipynb"))}
rooms = {module(b): n for n,b in books.items()}
for name,book in books.items():
    text = line(name, list(books), rooms)
    cells = [c for c in book["cells"] if not (c["cell_type"] == "markdown" and source(c).startswith(HERE))]
    here = dict(cell_type="markdown", id=hashlib.sha1(name.encode()).hexdigest()[:8], metadata={}, source=[text])
    book["cells"] = cells[:1] + [here] + cells[1:]
    for c in book["cells"]:
        if c["cell_type"] == "code" and source(c).strip().endswith(EXPORT): c["source"] = LAST
    (nbs/f"{name}.ipynb").write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
