"""Build the site, static pages that need no network: python .ci/website.py OUT

All notebooks with their stored outputs, search, an API page for each module made from the docments, a gallery
with thumbnails and seconds, the glossary, contributing and the changelog. Needs the extra `site`. Ends with an
error if a link leads nowhere or a page would load something from elsewhere.
"""
import argparse, base64, collections, html.parser, importlib, inspect, io, json, re, shutil, subprocess, sys
import tempfile
from pathlib import Path
from urllib.parse import unquote

root = Path(__file__).resolve().parent.parent
nbs = root/"nbs"
WINGS = {
    "0": "Begin here", "1": "Foundations", "2": "Data, costs, measures", "3": "The paper",
    "4": "Networks and students", "5": "Nats", "6": "Methods", "7": "The loop, leaving the kit",
    "8": "Image enhancement", "9": "Studies, your own generator",
}
CONF = '''
import html
from docutils import nodes
from latex2mathml.converter import convert
project, html_title, author = "vemi_kit", "vemi_kit", "vemi_kit authors"
extensions = ["myst_nb"]
nb_execution_mode, nb_ipywidgets_js, nb_render_markdown_format = "off", {}, "myst"
myst_enable_extensions, myst_heading_anchors = ["dollarmath", "amsmath", "html_image"], 4
myst_links_external_new_tab = False
html_theme, html_copy_source, html_show_sphinx = "furo", False, False
html_static_path, html_css_files = ["_static"], ["site.css"]
html_math_renderer = "mathml"
exclude_patterns = ["_static"]
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type", "misc.highlighting_failure", "epub"]

def math(self, node, display):
    self.body.append(convert(html.unescape(node.astext()), display=display))
    raise nodes.SkipNode

def setup(app):
    app.add_html_math_renderer("mathml", inline_renderers=(lambda s,n: math(s, n, "inline"), None),
                               block_renderers=(lambda s,n: math(s, n, "block"), None))
'''
CSS = """
.gallery {display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem}
.gallery a {border: 1px solid var(--color-background-border); border-radius: 4px; padding: .5rem; color: inherit;
            text-decoration: none; font-size: .85rem}
.gallery img {width: 100%; height: 8rem; object-fit: contain; background: white}
.gallery b {display: block; overflow-wrap: anywhere}
math[display=block] {margin: 1em 0}
"""


def source(c): return "".join(c["source"])


def text_of(c):
    "A cell's source without directives."
    return re.sub(r"^#\|.*\n?", "", source(c), flags=re.M)


def is_hidden(c):
    "Cells that a reader is not shown."
    if c["cell_type"] != "code": return False
    directives = re.findall(r"^#\|\s*(\w+)", source(c), re.M)
    return {"hide", "default_exp"} & set(directives) or "nbdev_export(" in source(c) or not text_of(c).strip()


def shown(outputs):
    "Outputs without the lines that stand for widgets, which need a running notebook."
    stands = lambda o: "Run this cell to move its controls" in "".join(o.get("data", {}).get("text/html", ""))
    plain = [o for o in outputs if not stands(o)]
    if len(plain) == len(outputs): return plain
    note = {"text/markdown": "*With sliders, when the notebook runs:*"}
    return [dict(output_type="display_data", metadata={}, data=note), *plain]


def terms():
    "{word: anchor} of the glossary."
    text = (nbs/"glossary.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## (.+)$", text, re.M)
    return {w.strip(): slug(h) for h in heads for w in h.split(", ")}


def slug(title): return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


LINKED = ("nats", "VID", "t_hat", "MACs", "iqr", "H(T~|S)", "I(B;X)", "noise floor", "FD", "PSNR", "SSIM")


def link_terms(text, where, seen, words):
    "Link the first mention of each word on a page to the glossary; code, math, tables and links stay."
    kept = r"(```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$|!?\[[^\]]*\]\([^)]*\)|^[|#>][^\n]*$|<[^>]+>)"
    parts = re.split(kept, text, flags=re.S|re.M)
    for i in range(0, len(parts), 2):
        for w in LINKED:
            if w in seen or w not in words: continue
            at = re.search(rf"(?<![\w`*]){re.escape(w)}(?![\w`*])", parts[i] or "")
            if not at: continue
            seen.add(w)
            parts[i] = f"{parts[i][:at.start()]}\0{w}\0{parts[i][at.end():]}"
    linked = lambda m: f"[{m.group(1)}]({where}glossary.md#{words[m.group(1)]})"
    return "".join(re.sub("\0(.+?)\0", linked, p or "") if i % 2 == 0 else p or "" for i,p in enumerate(parts))


def notebook(path, words):
    "A notebook as its page has it."
    book, name = json.loads(path.read_text(encoding="utf-8")), path.relative_to(nbs)
    where, seen, cells = "../"*(len(name.parts)-1), set(), []
    for c in book["cells"]:
        if is_hidden(c): continue
        if c["cell_type"] == "markdown":
            text = re.sub(r"^# (.*)", lambda m: "# " + m.group(1).replace("_", r"\_"), source(c))
            c["source"] = link_terms(text, where, seen, words)
        else: c |= dict(source=text_of(c), outputs=shown(c["outputs"]))
        cells.append(c)
    meta = dict(language_info=dict(name="python"), kernelspec=book["metadata"]["kernelspec"])
    return dict(book, cells=cells, metadata=meta)


def books(): return [p for p in sorted(nbs.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]


def title(book):
    "Title and subtitle."
    lines = source(book["cells"][0]).strip().split("\n")
    sub = next((l for l in lines if l.startswith("> ")), "")
    return lines[0].lstrip("# "), sub.lstrip("> ")


def thumbnail(book, path):
    "The last picture of a notebook, small."
    from PIL import Image
    found = [o.get("data", {}) for c in book["cells"] for o in c.get("outputs", [])]
    pngs = [d["image/png"] for d in found if "image/png" in d]
    if not pngs: return False
    im = Image.open(io.BytesIO(base64.b64decode("".join(pngs[-1])))).convert("RGB")
    im.thumbnail((360, 240))
    im.save(path)
    return True


def gallery(src):
    "All notebooks, a picture each."
    stored = nbs/"results/seconds.json"
    took = json.loads(stored.read_text())["seconds"] if stored.exists() else {}
    (src/"_static/thumbs").mkdir(parents=True)
    items = []
    for p in books():
        name = p.relative_to(nbs).with_suffix("").as_posix()
        book = json.loads(p.read_text(encoding="utf-8"))
        pic = name.replace("/", "_") + ".png"
        if name == "index" or not thumbnail(book, src/"_static/thumbs"/pic): continue
        head, sub = title(book)
        time = f"{took[name]:.0f} s" if name in took else ""
        img = f'<img src="_static/thumbs/{pic}" alt="" loading="lazy">'
        items.append(f'<a href="{name}.html">{img}<b>{escape(head)}</b>{escape(sub)} <i>{time}</i></a>')
    note = "Seconds are those of a run on one core." if took else ""
    body = "\n".join(items)
    (src/"gallery.md").write_text(f"# Gallery\n\n{note}\n\n<div class=\"gallery\">\n{body}\n</div>\n")
    return len(items)


def escape(text): return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def plain(text):
    "Text whose marks are no Markdown; code between backticks stays code."
    parts = re.split(r"(`[^`\n]+`)", text)
    safe = [re.sub(r"([*_<>\[\]$`~])", r"\\\1", p) if i % 2 == 0 else p for i,p in enumerate(parts)]
    return "".join(safe)


def parameters(f):
    "Table of a callable's parameters from its docments."
    from fastcore.docments import docments
    try: found = docments(f, full=True, returns=True)
    except Exception: return ""
    rows = []
    for name,d in found.items():
        if name in ("self", "cls"): continue
        kind = d.anno.__name__ if isinstance(d.anno, type) else str(d.anno)
        both = (d.anno, kind), (d.default, repr(d.default))
        kind, default = ["" if x is inspect.Parameter.empty else y for x,y in both]
        if d.docment or name != "return": rows.append([name, kind, default, " ".join((d.docment or "").split())])
    if not rows: return ""
    code = lambda s: f"`{s[:60].replace('|', chr(92)+'|')}`" if s and "`" not in s else plain(s)
    cells = lambda n,k,v,t: [code(n), code(k), code(v), plain(t).replace("|", r"\|")]
    lines = [f"| {' | '.join(cells(*r))} |" for r in rows]
    return "\n".join(["| | type | default | |", "|---|---|---|---|", *lines, ""])


def entry(name, x, level=2):
    "A function or class on an API page."
    doc = inspect.cleandoc(x.__doc__ or "")
    lines = [f"{'#'*level} {name.replace('_', chr(92)+'_')}", "", "\n".join(plain(l) for l in doc.split("\n")), ""]
    call = x.__init__ if inspect.isclass(x) and "__init__" in vars(x) else x
    if callable(x) and (call is not x or not inspect.isclass(x)): lines.append(parameters(call))
    if inspect.isclass(x):
        own = [(n, m) for n,m in vars(x).items() if not n.startswith("_") and inspect.isfunction(m)]
        for n,m in own: lines.append(entry(f"{name}.{n}", m, level+1))
    return "\n".join(lines)


def api(src):
    "A page for each module."
    from vemi_kit import public_names
    (src/"api").mkdir()
    rooms = {}
    for p in books():
        found = re.search(r"default_exp\s+(\S+?)[\\\"\s]", p.read_text(encoding="utf-8"))
        if found: rooms[found.group(1)] = p.stem
    listed, n = [], 0
    for m,room in sorted(rooms.items(), key=lambda mr: mr[1]):
        if m in ("all", "__init__"): continue
        module = importlib.import_module("vemi_kit." + m)
        things = [(k, getattr(module, k)) for k in public_names("vemi_kit." + m) if hasattr(module, k)]
        things = [(k, x) for k,x in things if inspect.isclass(x) or inspect.isroutine(x)]
        body = "\n".join(entry(k, x) for k,x in things)
        head = f"# vemi_kit.{m}\n\nFrom [{room}](../{room}.ipynb).\n\n"
        (src/f"api/{m}.md").write_text(head + body, encoding="utf-8")
        listed.append(m)
        n += len(things)
    names = "\n".join(listed)
    tree = f"```{{toctree}}\n:maxdepth: 1\n{names}\n```\n"
    (src/"api/index.md").write_text(f"# API\n\nEvery public name, in the order of the notebooks.\n\n{tree}")
    return n


def page(path, target, links):
    "A Markdown file of the repository as a page, its links changed."
    text = path.read_text(encoding="utf-8")
    for a,b in links.items(): text = re.sub(rf"\]\({a}", f"]({b}", text)
    target.write_text(re.sub(r"<!--.*?-->\n*", "", text, flags=re.S), encoding="utf-8")


def front_page(src, words):
    "The map is the first page; the trees of the sidebar hang on it."
    book, wings = notebook(nbs/"index.ipynb", words), collections.OrderedDict()
    for p in books():
        name = p.relative_to(nbs).with_suffix("").as_posix()
        if name != "index": wings.setdefault(WINGS.get(name[0], "Stories"), []).append(name)
    trees = [("The kit", ["readme", "gallery", "glossary", "api/index", "contributing", "changelog"]), *wings.items()]
    tree = lambda t,names: f"```{{toctree}}\n:hidden:\n:caption: {t}\n" + "\n".join(names) + "\n```"
    text = "\n\n".join(tree(*t) for t in trees)
    book["cells"].append(dict(cell_type="markdown", id="trees", metadata={}, source=text))
    (src/"index.ipynb").write_text(json.dumps(book), encoding="utf-8")


def prepare(src):
    "Everything that Sphinx reads."
    (src/"_static").mkdir()
    (src/"_static/site.css").write_text(CSS)
    (src/"conf.py").write_text(CONF)
    shutil.copytree(nbs/"images", src/"images")
    shutil.copytree(nbs/"results/recipes", src/"recipes")
    shutil.copy(root/"LICENSE", src/"LICENSE.txt")
    words = terms()
    for p in books():
        to = src/p.relative_to(nbs)
        to.parent.mkdir(exist_ok=True)
        to.write_text(json.dumps(notebook(p, words)), encoding="utf-8")
    front_page(src, words)
    shutil.copy(nbs/"glossary.md", src/"glossary.md")
    moved = {"nbs/results/recipes/": "recipes/", "nbs/": "", "CONTRIBUTING.md": "contributing.md"}
    moved["LICENSE"] = "LICENSE.txt"
    page(root/"README.md", src/"readme.md", moved)
    page(root/"CONTRIBUTING.md", src/"contributing.md", moved)
    page(root/"CHANGELOG.md", src/"changelog.md", moved)
    return gallery(src), api(src)


class Page(html.parser.HTMLParser):
    "Links, loaded files and anchors of a page."
    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.ids = [], [], set()
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ("id","name") if a.get(k)}
        if tag == "a" and a.get("href"): self.links.append(a["href"])
        if tag in ("img","script","iframe","source") and a.get("src"): self.loaded.append(a["src"])
        if tag == "link" and a.get("href") and a.get("rel") not in ("canonical",): self.loaded.append(a["href"])


def check(out):
    "Sentences about what is wrong, and counts."
    pages = {p.resolve(): Page(p.read_text(encoding="utf-8")) for p in sorted(out.rglob("*.html"))}
    wrong, counts = [], collections.Counter()
    for p,page in pages.items():
        for l in page.loaded:
            if re.match(r"(https?:)?//", l): wrong.append(f"{p.relative_to(out)} loads {l}")
        for l in page.links + page.loaded:
            if re.match(r"[a-z]+:|//", l):
                counts["elsewhere"] += 1
                continue
            counts["links"] += 1
            path, _, at = l.partition("#")
            to = (p.parent/unquote(path.split("?")[0])).resolve() if path else p
            if to.is_dir(): to = to/"index.html"
            if not to.exists(): wrong.append(f"{p.relative_to(out)}: no {l}")
            elif at and to in pages and unquote(at) not in pages[to].ids:
                wrong.append(f"{p.relative_to(out)}: no anchor {l}")
    return wrong, counts, len(pages)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the pages; emptied first if it has some")
    out = parser.parse_args().out.resolve()
    if out.exists() and any(out.iterdir()) and not (out/".buildinfo").exists():
        sys.exit(f"{out} has other files in it")
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as tmp:
        src = Path(tmp)/"src"
        src.mkdir()
        n_books, n_names = prepare(src)
        command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-d", f"{tmp}/trees", str(src), str(out)]
        subprocess.run(command, check=True)
    shutil.rmtree(out/"jupyter_execute", ignore_errors=True)
    (out/".nojekyll").touch()
    wrong, counts, n = check(out)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    print(f"{n} pages, {n_books} notebooks in the gallery, {n_names} names in the API, {size/1e6:.1f} MB; "
          f"{counts['links']} links checked, {counts['elsewhere']} lead elsewhere, {len(wrong)} wrong")
    if wrong: sys.exit("\n".join(wrong[:50]))


if __name__ == "__main__": main()
