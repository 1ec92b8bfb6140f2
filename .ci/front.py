"""The pictures of the README, from stored lines. With RUNS: store what the first of them shows.

    python .ci/front.py [RUNS]

RUNS is a file of lines with pictures, of `study.comparison.compare(..., course=True)` on digits16: one line is
named "best", one "published" (`l2 + 0.03*adversarial`, 1,000 steps at 0.02).
"""
import base64, hashlib, json, statistics, sys
from pathlib import Path
import numpy as np
from vemi_kit.files import read_rows
from vemi_kit.study.recipes import trial_seconds
from vemi_kit.study.report import finished, spread, verdict
from vemi_kit.study.workloads import Digits16, Workload

root = Path(__file__).resolve().parent.parent
results, images = root/"nbs/results", root/"nbs/images"
STORED = results/"front.json"
PUBLISHED = ("published", "l2 + adversary", "OMGD", "GAN Compression", "CAT", "DCD")
LOOKS = {"best": ("*", "k"), "l1": ("v", "C0"), "published": ("s", "C3"), "l2 + adversary": ("s", "C3"),
         "OMGD": ("^", "C6"), "GAN Compression": ("p", "C7"), "CAT": ("h", "C8"), "DCD": ("X", "C9"),
         "critic of pairs last": ("d", "C5")}
EARLIER = {"l2 + adv": ("o", "C1"), "l1 + vem paper + adv": ("D", "C2"), "vem tilted + adv": ("P", "C4")}


def tasks():
    "{folder: lines} of the comparisons of recipes in which `best` has run."
    found = {p.parent.name: read_rows(p) for p in sorted((results/"recipes").glob("*/runs.jsonl"))}
    return {k: rows for k,rows in found.items() if "best" in by_name(rows)}


def by_name(rows):
    "Finished lines of each recipe."
    good = finished(rows)
    return {n: [r for r in good if r["name"] == n] for n in dict.fromkeys(r["name"] for r in good)}


def store(runs):
    "What the first picture shows: teacher and students on the same latents, costs, latency on this machine."
    import torch
    from vemi_kit.costs import count_macs
    from vemi_kit.students import shrink
    from vemi_kit.study.runner import to_levels
    from vemi_kit.timing import latency, machine_text
    from vemi_kit.zoo.dcgan import digits_teacher
    torch.set_num_threads(1)
    net, work = digits_teacher()[0], Digits16()
    x = work.held_out(2*work.n_judge)[0][:12]
    students = {n: rs[0] for n,rs in by_name(read_rows(runs)).items()}
    width, = {r["width"] for r in students.values()}
    small = shrink(net, width=width).eval()
    with torch.no_grad(): pictures = dict(teacher=to_levels(net(x)))
    pictures |= {n: r["pictures"] for n,r in students.items()}
    both = dict(teacher=net, student=small)
    times = {n: latency(m, x[:1], seconds=3.) for n,m in both.items()}
    cost = {n: dict(macs=count_macs(m, x[:1]), ms=times[n].ms, iqr_ms=times[n].iqr_ms) for n,m in both.items()}
    pack = lambda p: base64.b64encode(np.array(p, dtype=np.uint8)[:,0].tobytes()).decode()
    side = np.array(pictures["teacher"]).shape[-1]
    told = {n: dict(seed=r["seed"], formula=r["formula"], last=r["last"]) for n,r in students.items()}
    for n,r in students.items(): told[n]["seconds"] = trial_seconds(r)
    found = dict(task=work.name, width=width, side=side, cost=cost, machine=machine_text("cpu"), lines=told)
    found["pictures"] = {n: pack(p) for n,p in pictures.items()}
    STORED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def unpack(text, side): return np.frombuffer(base64.b64decode(text), dtype=np.uint8).reshape(-1, side, side)


def captions(found):
    "Below each panel: costs, and how far from the teacher."
    cost = lambda n: f"{found['cost'][n]['macs']/1e6:.2f} M MACs, {found['cost'][n]['ms']:.2g} ms"
    line = lambda n: found["lines"][n]
    far = lambda n: f"Fréchet distance {line(n)['last']['frechet_teacher']:.1f} after {line(n)['seconds']:.0f} s"
    return {
        "teacher": f"teacher\n{cost('teacher')}",
        "best": f"student, recipe `best`\n{cost('student')}\n{far('best')}",
        "published": f"L2 + adversary (published form)\n{cost('student')}\n{far('published')}",
    }


def conclusion(found):
    "Title of the first picture."
    far = {n: r["last"]["frechet_teacher"] for n,r in found["lines"].items()}
    fewer = found["cost"]["teacher"]["macs"]/found["cost"]["student"]["macs"]
    which = "nearer to" if far["best"] < far["published"] else "farther from"
    return f"{fewer:.0f} times fewer MACs; `best` ends {which} the teacher than the published form"


def draw_front(found):
    "Teacher, student of `best`, student of the published form: the same twelve latents each."
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 3, figsize=(8,3.1), dpi=100, layout="constrained")
    for ax,(name,text) in zip(axes, captions(found).items()):
        x = np.pad(unpack(found["pictures"][name], found["side"]), ((0,0),(1,1),(1,1)), constant_values=255)
        grid = np.concatenate([np.concatenate(list(row), 1) for row in x.reshape(3, 4, *x.shape[1:])], 0)
        ax.imshow(grid, cmap="gray", vmin=0, vmax=255)
        ax.set(xticks=[], yticks=[], frame_on=False)
        ax.set_xlabel(text, fontsize=10)
    fig.suptitle(conclusion(found), fontsize=11)
    return fig


def earlier(task, width, judge):
    "Adversarial methods of the first comparison, where the width and the judge are the same."
    path = results/"compare"/task/"runs.jsonl"
    rows = read_rows(path) if path.exists() else []
    same = dict(width=width, judge=judge, budget="steps")
    mine = by_name([r for r in rows if all(r.get(k) == v for k,v in same.items())])
    return {n: mine[n] for n in EARLIER if n in mine}


def draw_verdict(found):
    "Distance to the teacher over the seconds of a run, a panel for each task."
    import matplotlib.pyplot as plt
    n_rows, n_cols = -(-len(found)//3), min(3, len(found))
    fig, axes = plt.subplots(n_rows, n_cols, figsize=(3.2+2.6*n_cols,.4+2.6*n_rows), dpi=100,
                             layout="constrained", squeeze=False)
    for ax in axes.flat[len(found):]: ax.set_axis_off()
    seen = {}
    for ax,(task,rows) in zip(axes.flat, found.items()):
        recipes = {n: rs for n,rs in by_name(rows).items() if n in LOOKS}
        before = earlier(*(rows[0].get(k) for k in ("task", "width", "judge")))
        for name,mine in [*recipes.items(), *before.items()]:
            mark, colour = {**LOOKS, **EARLIER}[name]
            face = colour if name in recipes else "none"
            style = dict(ls="", marker=mark, ms=9 if name == "best" else 6, color=colour, mfc=face)
            at = [trial_seconds(r) for r in mine], [r["last"]["frechet_teacher"] for r in mine]
            seen[name], = ax.plot(*at, **style)
        low, high = min(ax.dataLim.y0, rows[0]["floor"]["frechet_teacher"]), ax.dataLim.y1
        wide = high > 10*low
        ax.axhline(rows[0]["floor"]["frechet_teacher"], color="0.5", lw=.8, ls=":", zorder=0)
        ax.set(title=f"{task}, width {rows[0]['width']}", xlabel="seconds of a core", xlim=(0,1.08*ax.dataLim.x1))
        ax.set(yscale="log" if wide else "linear", ylim=(.8*low if wide else 0, (1.5 if wide else 1.1)*high))
    fig.legend(seen.values(), seen.keys(), loc="outside right center", fontsize=8)
    fig.supylabel("Fréchet distance to the teacher", fontsize=10)
    fig.suptitle("Each mark a run; lower is nearer; dotted: the teacher itself; hollow: the first comparison", fontsize=10)
    return fig


def task_sentence(task, rows):
    "One sentence from the lines of a task: `best` beside the published form of three seeds or more that came nearest."
    groups = by_name(rows)
    seconds = lambda n: f"{statistics.fmean(map(trial_seconds, groups[n])):.0f} s"
    values = lambda n: [r["last"]["frechet_teacher"] for r in groups[n]]
    digits = 0 if min(values("best")) > 100 else 2
    psnr = lambda n: f"{statistics.fmean(r['last']['psnr'] for r in groups[n]):.1f} dB"
    said = lambda n: f"{spread(values(n), digits)}, {psnr(n)} ({seconds(n)})"
    published = [n for n in groups if n in PUBLISHED]
    nearest = min(published, key=lambda n: (len(groups[n]) < 3, statistics.fmean(values(n))), default=None)
    n, where = len(groups["best"]), f"nbs/results/recipes/{task}/runs.jsonl"
    text = f"**{task}**, [{n} seed{'s'*(n > 1)}]({where}): `best` {said('best')}"
    if nearest: text += f", {nearest} {said(nearest)}"
    return f"- {text}."


def term_sentence():
    "How often the paper's kind of term helped in the first comparison."
    paths = [results/"compare"/t/"runs.jsonl" for t in Workload.registry]
    found = verdict([r for p in paths if p.exists() for r in read_rows(p)])
    ahead, behind = sum(v["low"] > 0 for v in found), sum(v["high"] < 0 for v in found)
    where = f"in {ahead or 'none'} of {len(found)} comparisons, behind in {behind} (95% intervals)"
    return f"- **The mutual-information term**: ahead {where}; [why](nbs/tutorials/comparison.ipynb)."


def digest(data):
    "Of what a picture shows and of this file, which draws it."
    text = json.dumps(data, sort_keys=True) + Path(__file__).read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def keep(name, data, draw):
    "Draw a picture anew unless the stored one was made of the same data by the same code."
    from PIL import Image
    path, key = images/f"{name}.png", digest(data)
    if path.exists() and Image.open(path).info.get("Source") == key: return
    images.mkdir(exist_ok=True)
    draw(data).savefig(path, metadata={"Source": key})


def pictures():
    "Both pictures of the README, up to date."
    import matplotlib
    matplotlib.use("Agg")
    recipes = tasks()
    keep("front", json.loads(STORED.read_text(encoding="utf-8")), draw_front)
    keep("verdict", recipes, draw_verdict)


if __name__ == "__main__":
    if len(sys.argv) > 1: store(Path(sys.argv[1]))
    pictures()
