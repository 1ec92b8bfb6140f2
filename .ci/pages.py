"""Can the pages be read? Counts what makes a notebook hard to read: python .ci/pages.py [--table] [FOLDER]

Fails on lines over 110 columns, several statements a line, exported cells over 60 lines, a median of exported
cells over 12 lines, modules over 300 lines, public parameters without annotation, imports of another module's
private names, process-wide switches of torch that a notebook leaves on, stored widgets and errors, paths of a machine
in stored outputs, a picture stored twice, lines that differ by colour alone, letters under 8 points, pictures under 90
dpi, notebooks over 500 kB, controls that read what a later cell binds anew, and cells with imports that need cells
without: nbdev's documentation runs only the former.
"""
import argparse, ast, builtins, hashlib, io, json, re, statistics, sys, tokenize
from pathlib import Path

COLUMNS, CELL, MEDIAN, ROOM, BYTES = 110, 60, 12, 300, 500_000
LONG_CELLS = {}         # {(notebook, first name defined): reason}
LONG_ROOMS = {          # {module: reason}
    "core": "the checks that all doors share stand beside seeds and devices",
    "cache": "the cache, its file, and what a run remembers by itself",
    "distiller": "the settings of a run and one step of it",
    "show": "grids, lines, and the controls over both",
    "files": "how files are written and what a failing disk says belong together",
    "enhance.files": "one folder's work: decode, restore, record, report",
}


def cells(path):
    "Sources of the code cells of a notebook."
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


def body(source):
    "A cell without directives and magics."
    return "\n".join(re.sub(r"^\s*[%!].*", "", l) for l in source.split("\n") if not l.startswith("#|"))


def joined(source):
    "Lines on which a second statement follows a semicolon."
    try: tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, IndentationError): return 0
    rows = set()
    for t,after in zip(tokens, tokens[1:]):
        ends = after.type in (tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT, tokenize.ENDMARKER)
        if t.type == tokenize.OP and t.string == ";" and not ends: rows.add(t.start[0])
    return len(rows)


def functions(tree):
    """(name, function) of everything public that is defined at the top or in a public class. Methods that repeat
    the signature of a base class other than `nn.Module` are documented there.
    """
    for n in tree.body:
        if isinstance(n, ast.ClassDef) and not n.name.startswith("_"):
            own = all(ast.unparse(b) in ("nn.Module","object") for b in n.bases)
            inner = [m for m in n.body if isinstance(m, ast.FunctionDef)]
            public = [m for m in inner if m.name == "__init__" or (own and not m.name.startswith("_"))]
            yield from ((f"{n.name}.{m.name}", m) for m in public)
        elif isinstance(n, ast.FunctionDef) and not n.name.startswith("_"): yield n.name, n


def bare(tree):
    "Public parameters without annotation; `self`, `cls`, `*args` and `**kw` need none."
    res = []
    for name,f in functions(tree):
        a = f.args
        for p in [*a.posonlyargs, *a.args, *a.kwonlyargs]:
            if p.annotation is None and p.arg not in ("self","cls"): res.append(f"{name}({p.arg})")
    return res


def private(tree):
    "Private names that are imported from another module of the kit."
    found = []
    for n in ast.walk(tree):
        ours = isinstance(n, ast.ImportFrom) and (n.level or (n.module or "").startswith("vemi_kit"))
        if ours: found += [a.name for a in n.names if a.name.startswith("_") and not a.name.startswith("__")]
    return found


def switched(tree):
    "Statements of a cell that change torch for the notebooks that the same process runs next."
    calls = [n.value for n in tree.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
    return [ast.unparse(c) for c in calls if re.match(r"torch\.(set_grad|set_default|use_det)", ast.unparse(c.func))]


def loads(node):
    "Names that a statement reads when it runs; bodies of functions run later."
    if isinstance(node, ast.Name): return {node.id} if isinstance(node.ctx, ast.Load) else set()
    inner = ast.iter_child_nodes(node)
    if isinstance(node, (ast.FunctionDef, ast.Lambda)):
        inner = [*getattr(node, "decorator_list", []), *node.args.defaults, *[d for d in node.args.kw_defaults if d]]
    return set().union(*map(loads, inner))


def binds(tree):
    "Names that a cell defines, wherever in it."
    found = set()
    for n in ast.walk(tree):
        if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load): found.add(n.id)
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)): found.add(n.name)
        if isinstance(n, ast.arg): found.add(n.arg)
        if isinstance(n, ast.ExceptHandler) and n.name: found.add(n.name)
        if isinstance(n, (ast.Import, ast.ImportFrom)): found |= {(a.asname or a.name).split(".")[0] for a in n.names}
    return found


def alone(sources):
    """Names that a cell with imports takes from cells without: the documentation of nbdev runs the cells that
    import or export, and no others.
    """
    known, missing = set(dir(builtins)) | {"show_doc", "get_ipython", "__name__"}, []
    for s in sources:
        tree = ast.parse(body(s))
        ours = re.match(r"#\|\s*export", s) or any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(tree))
        if not ours or "nbdev_export(" in s or "#| eval: false" in s: continue
        known |= binds(tree)
        if "*" in known: return []
        missing += sorted(loads(tree) - known)
    return missing


def outside(function):
    "Names that a function or class takes from the notebook when it runs."
    nodes = list(ast.walk(function))
    own = {n.arg for n in nodes if isinstance(n, ast.arg)}
    own |= {n.name for n in nodes[1:] if hasattr(n, "body") and hasattr(n, "name")}
    named = [n for n in nodes if isinstance(n, ast.Name)]
    own |= {n.id for n in named if not isinstance(n.ctx, ast.Load)}
    return {n.id for n in named if isinstance(n.ctx, ast.Load)} - own


def assigned(node):
    "Names that a cell itself binds; those of functions and comprehensions in it are theirs."
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)): return {node.name}
    if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)): return set()
    own = {node.id} if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load) else set()
    return own.union(*map(assigned, ast.iter_child_nodes(node)))


def defined(trees):
    "{name: functions, classes and lambdas that go by it} of the cells."
    found = {}
    for n in (n for t in trees for n in t.body):
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)): found.setdefault(n.name, []).append(n)
        if not isinstance(n, ast.Assign): continue
        inner = [l for l in ast.walk(n.value) if isinstance(l, ast.Lambda)]
        for name in assigned(n): found.setdefault(name, []).extend(inner)
    return found


def overwritten(sources):
    """Names that a drawing function behind controls reads and that a cell below its own binds anew: after Run All
    its controls draw something else, or nothing.
    """
    trees, found = [ast.parse(body(s)) for s in sources], set()
    for i,tree in enumerate(trees):
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "explore"]
        calls = [c for c in calls if c.args]
        known, reads, todo = defined(trees[:i+1]), set(), set().union(*(outside(c.args[0]) for c in calls))
        while todo:
            reads.add(name := todo.pop())
            todo |= set().union(*map(outside, known.get(name, []))) - reads
        found |= reads & set().union(*map(assigned, trees[i+1:]))
    return sorted(found)


CURVES = "plot", "semilogx", "semilogy", "loglog", "errorbar"
STYLED = "ls", "linestyle", "marker", "fmt", "lw", None               # None: **kw
NAMED = "style", "line", "ls", "look", "dash", "mark"                       # of variables that hold a style


def curves(node, loop=None):
    "(call, innermost loop around it) of each line with a label."
    loops = node if isinstance(node, (ast.For, ast.ListComp)) else loop
    if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in CURVES:
        if any(k.arg == "label" for k in node.keywords): yield node, loop
    for child in ast.iter_child_nodes(node): yield from curves(child, loops)


def alike(source):
    """Labels of lines in one panel that a reader could tell apart by colour alone: no line style, no marker, or the
    same for all of a loop.
    """
    seen, found = {}, []
    for call,loop in curves(ast.parse(body(source))):
        given = {k.arg: k.value for k in call.keywords}
        bare = [a.value if isinstance(a, ast.Subscript) else a for a in call.args[:2]]
        first = [a for a,b in zip(call.args, bare) if isinstance(b, ast.Constant) or getattr(b, "id", "") in NAMED]
        style = [*first, *call.args[2:], *(given[k] for k in STYLED if k in given)]
        several = loop is not None and not isinstance(given["label"], ast.Constant)
        if not all(isinstance(v, ast.Constant) for v in style): continue
        owner = ast.unparse(call.func.value)
        if several and isinstance(loop, ast.For) and owner in binds(loop.target): several = False
        key = owner, tuple(v.value for v in style)
        if several or key in seen: found.append(ast.unparse(given["label"]))
        seen[key] = True
    return found


def tiny(source):
    "Sizes of letters below 8 points, and pictures below 90 dots an inch."
    letters = re.findall(r"(?:fontsize=|labelsize=|set_fontsize\()([\d.]+)", source)
    dots = re.findall(r"(?:\bdpi=|set_dpi\()([\d.]+)", source)
    return [m for m in letters if float(m) < 8] + [m for m in dots if float(m) < 90]


def widgets(book):
    "Stored widgets, which a notebook that was just opened shows as errors."
    kinds = [k for c in book["cells"] for o in c.get("outputs", []) for k in o.get("data", {})]
    return sum(k.startswith("application/vnd.jupyter.widget") for k in kinds) + ("widgets" in book["metadata"])


def pictures(book):
    "Digest and cell of each stored picture."
    code = [c for c in book["cells"] if c["cell_type"] == "code"]
    for i,c in enumerate(code):
        shown = [o["data"]["image/png"] for o in c["outputs"] if "image/png" in o.get("data", {})]
        yield from ((hashlib.sha256("".join(png).encode()).hexdigest(), i) for png in shown)


def twice(found):
    "Pictures that are stored twice, in one notebook or two."
    seen = {}
    for m in found:
        for digest,i in m["pictures"]:
            first = seen.get(digest)
            seen.setdefault(digest, (m["notebook"], i))
            if first is None: continue
            yield f"{m['notebook']}: code cell {i} stores the picture of {first[0]}, code cell {first[1]}"


def broken(book):
    "Stored outputs that are errors."
    return sum(o["output_type"] == "error" for c in book["cells"] for o in c.get("outputs", []))


def folders(book):
    "Paths of somebody's machine in stored outputs; pictures are not read."
    outputs = [o for c in book["cells"] for o in c.get("outputs", [])]
    data = [v for o in outputs for k,v in o.get("data", {}).items() if not k.startswith("image/")]
    texts = ["".join(v) if isinstance(v, list) else str(v) for v in [*data, *(o.get("text", "") for o in outputs)]]
    return [m.group() for t in texts for m in re.finditer(r"/(?:home|root|tmp|work|Users)/[\w.-]+", t)]


def measure(path):
    "What one notebook has."
    sources = cells(path)
    exported = [body(s).strip() for s in sources if re.match(r"#\|\s*export", s)]
    exported = [e for e in exported if not all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(e).body)]
    sizes = [sum(bool(l.strip()) for l in e.split("\n")) for e in exported]
    first = [next((getattr(n, "name", "?") for n in ast.parse(e).body), "?") for e in exported]
    lines = [l for s in sources for l in s.split("\n")]
    book = json.loads(path.read_text(encoding="utf-8"))
    return dict(
        widgets=widgets(book), broken=broken(book), folders=folders(book), pictures=list(pictures(book)),
        bytes=path.stat().st_size,
        notebook=path.stem, sizes=sizes, lines=len(lines), wide=sum(len(l) > COLUMNS for l in lines),
        joined=sum(joined(body(s)) for s in sources),
        long=[(path.stem, n) for n,s in zip(first, sizes) if s > CELL],
        bare=[b for e in exported for b in bare(ast.parse(e))],
        private=[p for s in sources for p in private(ast.parse(body(s)))],
        alike=[a for s in sources for a in alike(s)], tiny=[t for s in sources for t in tiny(s)],
        alone=alone(sources), overwritten=overwritten(sources),
        switched=[p for s in sources for p in switched(ast.parse(body(s)))],
    )


def rooms(root):
    "Lines of each module."
    files = [p for p in sorted((root/"vemi_kit").rglob("*.py")) if not p.name.startswith("_")]
    return {".".join(p.relative_to(root/"vemi_kit").with_suffix("").parts): len(p.read_text().split("\n")) for p in files}


def faults(found, sizes, lines):
    "Sentences, one for each thing that is off."
    for m in found:
        if m["wide"]: yield f"{m['notebook']}: {m['wide']} lines over {COLUMNS} columns"
        if m["joined"]: yield f"{m['notebook']}: {m['joined']} lines with more than one statement"
        for name in m["long"]:
            if name not in LONG_CELLS: yield f"{m['notebook']}: the exported cell of {name[1]} is over {CELL} lines"
        if m["bare"]: yield f"{m['notebook']}: parameters without annotation: {', '.join(m['bare'])}"
        if m["alone"]: yield f"{m['notebook']}: cells with imports take from cells without: {', '.join(m['alone'])}"
        if m["alike"]: yield f"{m['notebook']}: lines that differ by colour alone (`show.line_look`): {', '.join(m['alike'])}"
        if m["tiny"]: yield f"{m['notebook']}: {len(m['tiny'])} texts under 8 points or pictures under 90 dpi"
        if m["overwritten"]: yield f"{m['notebook']}: controls read what a later cell binds anew: {', '.join(m['overwritten'])}"
        if m["switched"]: yield f"{m['notebook']}: left for the notebooks after it: {', '.join(m['switched'])}"
        if m["widgets"]: yield f"{m['notebook']}: {m['widgets']} stored widgets: python .ci/refresh.py drops them"
        if m["broken"]: yield f"{m['notebook']}: {m['broken']} stored errors"
        if m["folders"]: yield f"{m['notebook']}: stored outputs name folders of a machine: {', '.join(m['folders'])}"
        if m["bytes"] > BYTES: yield f"{m['notebook']}: {m['bytes']//1000} kB, over {BYTES//1000}"
        if m["private"]: yield f"{m['notebook']}: imports private names: {', '.join(m['private'])}"
    yield from twice(found)
    if statistics.median(sizes) > MEDIAN: yield f"median of exported cells: {statistics.median(sizes)} lines, over {MEDIAN}"
    for name,n in lines.items():
        if n > ROOM and name not in LONG_ROOMS: yield f"vemi_kit.{name}: {n} lines, over {ROOM}"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    p.add_argument("--table", action="store_true", help="one line a notebook")
    a = p.parse_args()
    paths = sorted((a.folder/"nbs").rglob("*.ipynb"))
    found, lines = [measure(n) for n in paths if ".ipynb_checkpoints" not in n.parts], rooms(a.folder)
    sizes = [s for m in found for s in m["sizes"]]
    if a.table:
        print("notebook, exported cells, median, longest, code lines, wide, joined, parameters without annotation")
        for m in found:
            middle, most = (statistics.median(m["sizes"]), max(m["sizes"])) if m["sizes"] else (0, 0)
            print(m["notebook"], len(m["sizes"]), middle, most, m["lines"], m["wide"], m["joined"], len(m["bare"]))
    total = sum(m["lines"] for m in found)
    print(
        f"{len(found)} notebooks, {len(lines)} rooms, longest {max(lines.values())} lines; {len(sizes)} exported cells, "
        f"median {statistics.median(sizes)}, longest {max(sizes)} lines; "
        f"{sum(m['wide'] for m in found)} of {total} lines over {COLUMNS} columns, "
        f"{sum(m['joined'] for m in found)/total:.1%} with more than one statement"
    )
    off = list(faults(found, sizes, lines))
    print("\n".join(off))
    return 1 if off else 0


if __name__ == "__main__": sys.exit(main())
