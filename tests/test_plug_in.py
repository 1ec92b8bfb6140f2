"The loops of nbs/tutorials/plug_in.ipynb inside the real packages, where they are installed."
import copy, json
from pathlib import Path
import pytest, torch
from vemi_kit.core import set_seed
from vemi_kit.data.pictures import faces
from vemi_kit.vem import VEM
from vemi_kit.zoo.translators import ResNetGenerator


def cell(start):
    "Source of the tutorial's code cell that begins with this line."
    nb = json.loads((Path(__file__).parent.parent/"nbs/tutorials/plug_in.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "code"]
    return next(s for s in sources if s.startswith(start))


def pair():
    set_seed(0)
    x = faces(16)[:32]
    teacher = ResNetGenerator(8, 1, 1, 1).eval()
    with torch.no_grad(): return teacher, ResNetGenerator(4, 1, 1, 1), x, teacher(x)


def test_lightning(tmp_path):
    pl = pytest.importorskip("pytorch_lightning")
    scope = dict(torch=torch, nn=torch.nn, VEM=VEM)
    exec(cell("try: from pytorch_lightning"), scope)
    exec(cell("class StudentModule"), scope)
    assert scope["LightningModule"] is pl.LightningModule
    teacher, student, x, t = pair()
    l1 = lambda: (student(x)-t).abs().mean().item()
    before, was = l1(), copy.deepcopy(list(teacher.state_dict().values()))
    module = scope["StudentModule"](teacher, student, step_size=20.)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = pl.Trainer(max_epochs=4, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(module, torch.utils.data.DataLoader(x, batch_size=8))
    assert l1() < before and module.vem.n_updates == 16 and "gap" in trainer.callback_metrics
    assert all(torch.equal(a, b) for a,b in zip(teacher.state_dict().values(), was))
    assert not any("_teacher" in k for k in module.state_dict())
    optimised = {id(p) for o in trainer.optimizers for g in o.param_groups for p in g["params"]}
    assert optimised == {id(p) for p in student.parameters()}


def test_fastai():
    learner = pytest.importorskip("fastai.learner")
    core = pytest.importorskip("fastai.callback.core")
    data = pytest.importorskip("fastai.data.core")
    scope = dict(torch=torch, VEM=VEM)
    exec(cell("def term_callback"), scope)
    teacher, student, x, t = pair()
    set_, cpu = torch.utils.data.TensorDataset(x, t), torch.device("cpu")
    dls = data.DataLoaders(*[data.TfmdDL(set_, bs=8, device=cpu, num_workers=0) for _ in range(2)], device=cpu)
    cb = scope["term_callback"](core.Callback)(step_size=20.)
    before = (student(x)-t).abs().mean().item()
    learn = learner.Learner(dls, student, loss_func=lambda s, y: (s-y).abs().mean(), lr=3e-3, cbs=[cb])
    with learn.no_logging(): learn.fit(3)
    assert (student.eval()(x)-t).abs().mean().item() < before
    assert cb.vem.n_updates == 12 and len(cb.gaps) == 12
    assert {id(p) for p in learn.opt.all_params().itemgot(0)} == {id(p) for p in student.parameters()}


def test_the_stand_in_does_where_lightning_is_missing():
    scope = dict(torch=torch, nn=torch.nn, VEM=VEM)
    source = cell("try: from pytorch_lightning")
    exec(source.replace("from pytorch_lightning import LightningModule", "raise ImportError", 1), scope)
    exec(cell("class StudentModule"), scope)
    teacher, student, x, t = pair()
    before = (student(x)-t).abs().mean().item()
    module = scope["StudentModule"](teacher, student, step_size=20.)
    for i,batch in enumerate(x.split(8)*4): module.training_step(batch, i)
    assert (student(x)-t).abs().mean().item() < before and module.vem.n_updates == 16
    assert {"gap", "drift", "loss"} <= module.logged.keys()
