"""Every kind of teacher through every step: read, made small, counted, distilled, exported, run by onnxruntime.
`python tests/test_matrix.py` prints the table of it; names choose rows."""
import sys, tempfile
import pytest, torch
from pathlib import Path
from vemi_kit import compress, load_student, load_teacher, save_nets
from vemi_kit.core import seeded
from vemi_kit.costs import count_macs
from vemi_kit.data.pictures import photo_crops
from vemi_kit.deploy import OnnxNetwork, export_onnx, export_program
from vemi_kit.deploy.program import ParityError
from vemi_kit.pruning import prune
from vemi_kit.recorded import RecordedTeacher
from vemi_kit.students import shrink
from vemi_kit.show import table
from vemi_kit.teachers import UnitRange
from vemi_kit.zoo.dcgan import SNGenerator
sys.path.insert(0, str(Path(__file__).parent))
import originals
sys.path.pop(0)


def checkpoint(folder, net):
    torch.save(net.state_dict(), folder/"net.pth")
    return folder/"net.pth", net.eval()


def restorer(folder, net): return (lambda path, net: (path, UnitRange(net)))(*checkpoint(folder, net))


def spandrel(folder, net):
    pytest.importorskip("spandrel", exc_type=ImportError)
    plain = isinstance(net, originals.SRVGGNetCompact)         # random weights leave [0, 1] far behind
    last = net.body[-1] if plain else net.conv_last
    last.weight.data *= .1
    last.bias.data.fill_(0. if plain else .5)
    return restorer(folder, net)


def stylegan2(folder):
    torch.save({"g_ema": originals.stylegan2_state()}, folder/"net.pt")
    return folder/"net.pt", None


def sngan(folder):
    net = SNGenerator(16, 3, 16, 16).eval()
    return save_nets(folder/"net.safetensors", generator=net), net


def program(folder, kind):
    net, x = originals.ResnetGenerator().eval(), photo_crops(32, 2)    # instance norms blow up a constant's rounding
    path = folder/f"net.{kind}"
    if kind == "onnx": export_onnx(net, path, x, seconds=None)
    elif kind == "pt2": export_program(net, path, x)
    else: torch.jit.trace(net, x).save(str(path))
    return path, net


def function(folder): return (lambda x: x.flip(1)), (lambda x: x.flip(1))


def whole(net): return (lambda folder: (net().eval(),)*2)


def diffusion(folder):
    diffusers = pytest.importorskip("diffusers")
    kinds = dict(down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    kw = dict(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4)
    return (diffusers.UNet2DModel(16, 3, 3, **kinds, **kw).eval(),)*2


def recorded(folder):
    pool = photo_crops(32, 40)
    return RecordedTeacher(pool, pool.flip(1)), (lambda x: x.flip(1))


with seeded(0):
    NOISED = torch.randn(40, 3, 16, 16), torch.randint(1000, (40,))      # pictures with noise, and when
    CLASSES = torch.randn(40, 16), torch.arange(40) % 10                 # latents and classes
latents, fewer = dict(data="latents"), dict(macs_ratio=2)
classes = fewer | dict(data=CLASSES)
noised = fewer | dict(data=NOISED, teacher_read=dict(value_range=(-4, 4)))
ROWS = {                       # how it is made in a folder: (what load_teacher takes, the network); how it is compressed
    "CycleGAN ResNet": (lambda f: checkpoint(f, originals.ResnetGenerator()), {}),
    "mobile ResNet": (lambda f: checkpoint(f, originals.ResnetGenerator(mobile=True)), {}),
    "pix2pix U-Net": (lambda f: checkpoint(f, originals.UnetGenerator()), {}),
    "StyleGAN2": (stylegan2, latents),
    "SNGAN": (sngan, latents),
    "MSRResNet x4": (lambda f: restorer(f, originals.MSRResNet()), {}),
    "RRDBNet x4, spandrel": (lambda f: spandrel(f, originals.RRDBNet(grow=32)), fewer),
    "SRVGG x4, spandrel": (lambda f: spandrel(f, originals.SRVGGNetCompact()), fewer),
    "ONNX file": (lambda f: program(f, "onnx"), {}),
    "torch.export file": (lambda f: program(f, "pt2"), {}),
    "TorchScript file": (lambda f: program(f, "pt"), {}),
    "plain function": (function, {}),
    "recorded pictures": (recorded, {}),
    "segmentation network": (whole(originals.Segmenter), fewer | dict(teacher_read=dict(value_range=None))),
    "class-conditional": (whole(originals.Conditional), classes),
    "diffusers UNet2DModel": (diffusion, noised),
}
PICTURES = ("CycleGAN ResNet", "mobile ResNet", "pix2pix U-Net", "MSRResNet x4", "RRDBNet x4, spandrel",
            "SRVGG x4, spandrel")


@pytest.mark.parametrize("name", PICTURES)
@torch.no_grad()
def test_a_file_is_read_as_the_network_that_wrote_it(name, tmp_path):
    with seeded(0): source, net = ROWS[name][0](tmp_path)
    x = photo_crops(32, 2)
    assert (load_teacher(source)(x)-net(x.clone())).abs().max() < 1e-4


def steps_of(name, folder):
    "One row of the matrix: what each step gave."
    how = dict(data=photo_crops(32, 40), width=4) | ROWS[name][1]
    if "macs_ratio" in how: how.pop("width")
    with seeded(0): source, _ = ROWS[name][0](folder)
    made = compress(source, out=folder/"out", recipe="l1", steps=4, n_held=16, verbose=False, **how)
    again, onnx = load_student(folder/"out/student", trust=True), OnnxNetwork(folder/"out/student/student.onnx")
    data = how["data"]
    x = load_teacher(source).sample(2, g=torch.Generator().manual_seed(1)) if data == "latents" else data
    x = tuple(part[:2] for part in (x if isinstance(x, tuple) else (x,)))
    value = lambda net: (lambda y: y if torch.is_tensor(y) else y.sample)(net(*x))
    with torch.no_grad(): y = value(again)
    same, parity = torch.equal(y, value(made.student)), (onnx(*x)-y).abs().max().item()
    read, student = (told.split(": ", 1)[1] for told in (made.folder/"report.md").read_text().split("\n- ")[1:3])
    row = dict(teacher=name, read=read.split(":")[0], student=student.rstrip("."), costs=made.costs)
    return row | dict(steps=made.run.step, parity=parity, same=same)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_teacher_goes_through_every_step(name, tmp_path):
    row = steps_of(name, tmp_path)
    assert row["steps"] == 4 and row["same"] and row["parity"] < 1e-4, row
    assert (tmp_path/"out/report.md").is_file()


def test_a_network_of_several_inputs_is_pruned_and_told_the_way_by_load_teacher():
    with seeded(0): net, z = originals.Conditional().eval(), torch.randn(4, 16)
    sample = z, torch.arange(4)
    small = prune(net, macs_ratio=2, sample=sample)
    assert 2*count_macs(small, *sample) <= count_macs(net, *sample) and small(*sample).shape == (4, 1, 16, 16)
    assert small.embed.weight.shape == net.embed.weight.shape                  # it meets z, which stays
    with pytest.raises(ValueError, match=r"example=\(z, label\)"): load_teacher(net, latents=16)
    teacher = load_teacher(net, example=(z[:1], sample[1][:1]))
    assert str(teacher).startswith("Conditional: latents of 16 numbers and 1 more input to pictures of 16x16")
    with pytest.raises(ValueError, match="4 of the first input and 3 of input 2"):
        prune(net, macs_ratio=2, sample=(z, torch.arange(3)))


def test_a_network_of_diffusers_is_shrunk_and_not_pruned():
    diffusers = pytest.importorskip("diffusers")
    kinds = {f"{k}_block_types": (f"{k.title()}Block2D",)*2 for k in ("down", "up")}
    net = diffusers.UNet2DModel(16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, **kinds)
    sample = torch.zeros(1, 3, 16, 16), torch.tensor([3])
    with pytest.raises(ValueError, match="Upsample2D asserts numbers .* such as its .*channels.* give student="):
        prune(net.eval(), macs_ratio=2, sample=sample)
    small = shrink(net, macs_ratio=4, sample=sample)
    assert 4*count_macs(small, *sample) <= count_macs(net, *sample)
    assert small.config["norm_num_groups"] < 4 and small(*sample).sample.shape == (1, 3, 16, 16)


@pytest.mark.slow
def test_an_export_that_fails_leaves_the_student_and_a_remark(tmp_path):
    with seeded(0): teacher, student = originals.ResnetGenerator(8, 1), originals.Branching()
    how = dict(recipe="l1", student=student, steps=2, n_held=8, size=32)
    (tmp_path/"student").mkdir()
    (tmp_path/"student/student.onnx").write_text("of an earlier student")
    made = compress(teacher, photo_crops(32, 24), out=tmp_path, **how)
    again, x = load_student(tmp_path/"student", trust=True), photo_crops(32, 2, "test")
    with torch.no_grad(): assert torch.equal(again(x), made.student(x))
    for page in ("report.md", "README.md"):
        text = (tmp_path/page).read_text()
        assert "PSNR to the teacher" in text and "- not exported: " in text and "load_student" in text
    assert made.files is None and "not exported, see report.md" in str(made)
    kept = sorted(p.name for p in (tmp_path/"student").iterdir())
    assert kept == ["config.json", "student.safetensors"]


def main(names):
    rows = []
    for name in names or ROWS:
        with tempfile.TemporaryDirectory() as folder:
            try: row = steps_of(name, Path(folder))
            except (pytest.skip.Exception, ValueError, ParityError) as e: row = e
        if isinstance(row, BaseException):
            rows.append((name, f"not done: {str(row)[:150]}", *[""]*5))
            continue
        cost = {r[0].split()[0].strip(","): r[3] for r in row["costs"]}
        rows.append((name, row["read"], row["student"], *[cost.get(k) or "unknown" for k in ("MACs", "parameters")],
                     row["steps"], f"{row['parity']:.0e}"))
    head = ["teacher", "read as", "student", "fewer MACs", "fewer parameters", "steps", "ONNX differs by"]
    print(table(head, rows))


if __name__ == "__main__": main(sys.argv[1:])
