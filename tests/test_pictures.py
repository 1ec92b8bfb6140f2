"""Forty broken or odd picture files, made here: what reads a folder of them ends in time, leaves nothing
half-written, and restores each file or names it with its reason.
"""
import io, os, struct, subprocess, sys, warnings, zlib
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from vemi_kit.core import set_seed
from vemi_kit.data.folders import find_images, image_files, load_image
from vemi_kit.enhance.files import JOURNAL, enhance_folder, read_picture
from vemi_kit.enhance.restorer import Restorer, load_restorer, save_restorer
from vemi_kit.zoo.restorers import SRResNet

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes, links and bytes as names")
yy, xx = np.mgrid[:24,:32]
PIXELS = np.stack([127 + 120*np.sin(xx/(4+k) + yy/9) for k in range(3)], 2).astype(np.uint8)
RGB = Image.fromarray(PIXELS)


def encoded(im, kind, **kw):
    "Bytes of a picture file."
    f = io.BytesIO()
    im.save(f, kind, **kw)
    return f.getvalue()


def png(width, height, data, bits=8, colour=2):
    "Bytes of a PNG with any header."
    chunk = lambda k, d: len(d).to_bytes(4,"big") + k + d + zlib.crc32(k+d).to_bytes(4,"big")
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def deep(v, mode):
    "Bytes of a TIFF of that mode."
    return encoded(Image.fromarray(v.astype(mode)), "TIFF")


grey16 = (np.arange(24*32).reshape(24,32)*85).astype(np.uint16)
rgba = RGB.convert("RGBA")
rgba.putalpha(RGB.convert("L"))
frames = [RGB.rotate(90*k) for k in (1,2)]
turned = Image.Exif()
turned[0x0112] = 6
PNG, JPEG = encoded(RGB, "PNG"), encoded(RGB, "JPEG")
rows = b"".join(b"\0" + r.tobytes() for r in grey16.astype(">u2").repeat(3, 1))
space = lambda name: b"\0"*16 + name + b"\0"*112

# {name: bytes}: those that have to come back, with size, mode and what else the output has to be
GOOD = {
    "plain.png": PNG, "plain.jpg": JPEG, "UPPER.PNG": PNG, "plain.bmp": encoded(RGB, "BMP"),
    "plain.webp": encoded(RGB, "WEBP", lossless=True), "plain.tif": encoded(RGB, "TIFF"),
    "suffix_says_jpeg.jpg": PNG, "suffix_says_png.png": JPEG, "suffix_says_tiff.tiff": encoded(RGB, "WEBP"),
    "grey.png": encoded(RGB.convert("L"), "PNG"), "one_bit.png": encoded(RGB.convert("1"), "PNG"),
    "cmyk.jpg": encoded(RGB.convert("CMYK"), "JPEG", icc_profile=space(b"CMYK")),
    "cmyk.tif": encoded(RGB.convert("CMYK"), "TIFF"), "ycbcr.tif": encoded(RGB.convert("YCbCr"), "TIFF"),
    "palette.png": encoded(RGB.convert("P"), "PNG"),
    "palette_with_alpha.png": encoded(RGB.convert("P"), "PNG", transparency=bytes(range(256))),
    "alpha.png": encoded(rgba, "PNG"), "grey_alpha.png": encoded(rgba.convert("LA"), "PNG"),
    "sixteen_bits.png": encoded(Image.fromarray(grey16), "PNG"), "sixteen_bits.tif": deep(grey16, np.uint16),
    "thirty_two_bits.tif": deep(grey16, np.int32), "one_pixel.png": encoded(RGB.crop((0,0,1,1)), "PNG"),
    "one_line.png": encoded(RGB.crop((0,0,32,1)), "PNG"), "turned.jpg": encoded(RGB, "JPEG", exif=turned),
    "phone.jpg": encoded(RGB, "MPO", save_all=True, append_images=[RGB.resize((8,8))]),
    "broken_exif.jpg": encoded(RGB, "JPEG", exif=b"Exif\0\0XX*\0\x08\0\0\0"),
    "rubbish_after_the_end.png": PNG + b"rubbish"*99, os.fsdecode(b"caf\xe9.png"): PNG, "x"*251 + ".png": PNG,
}
# those that have to be named, with the reason
BAD = {
    "zero_bytes.png": (b"", "cannot be decoded"), "text.png": (b"no picture", "cannot be decoded"),
    "cut.png": (PNG[:len(PNG)//2], "cannot be decoded"), "cut.jpg": (JPEG[:len(JPEG)//2], "cannot be decoded"),
    "header_only.png": (PNG[:33], "cannot be decoded"), "flipped_bits.png": (PNG[:60] + b"\xff"*9 + PNG[69:], "cannot"),
    "no_width.png": (png(0, 5, b""), "cannot be decoded"), "huge_header.png": (png(60_000, 60_000, b""), "MAX_IMAGE"),
    "large_header.png": (png(7_000, 7_000, b"\0"*99), "cannot be decoded"),
    "large.png": (png(12_000, 14_000, bytes(14_000*1_501), 1, 0), "12000x14000 pixels are more than 64,000,000"),
    "animated.webp": (encoded(RGB, "WEBP", save_all=True, append_images=frames), "3 frames"),
    "animated.png": (encoded(RGB, "PNG", save_all=True, append_images=frames), "3 frames"),
    "pages.tif": (encoded(RGB, "TIFF", save_all=True, append_images=frames), "3 frames"),
    "float.tif": (deep(PIXELS[...,0]/255, np.float32), "mode F"),
    "negative.tif": (deep(-PIXELS[...,0].astype(int), np.int32), "beyond"),
    "deep_colour.png": (png(32, 24, rows, 16), "16-bit colour"),
    "lab.tif": (encoded(RGB.convert("LAB"), "TIFF"), "mode LAB"),
}
# no regular files
ODD = ("pipe.png", "loop.png", "dead_link.jpg")
# a link to what nobody may read, root included
MEMORY = Path("/proc/self/mem")
if MEMORY.exists(): BAD["unreadable.png"] = (None, "Errno")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    "The folder of all of them."
    root = tmp_path_factory.mktemp("corpus")/"in"
    (root/"a_folder.png").mkdir(parents=True)
    for name,data in GOOD.items(): (root/name).write_bytes(data)
    for name,(data,_) in BAD.items(): os.symlink(MEMORY, root/name) if data is None else (root/name).write_bytes(data)
    (root/"a_folder.png/inside.png").write_bytes(PNG)
    (root/"a_folder.jpg").write_bytes(JPEG)         # its output would be called like the folder
    os.mkfifo(root/"pipe.png")
    os.symlink("loop.png", root/"loop.png")
    os.symlink("nowhere.jpg", root/"dead_link.jpg")
    os.symlink("plain.png", root/"linked.png")
    os.symlink(root, root/"circle")
    return root


@pytest.fixture(scope="module")
def restored(corpus):
    "Output folder and what `vemi_enhance apply` said, in a process of its own that must end in time."
    set_seed(0)
    student = save_restorer(corpus.parent/"s.safetensors", Restorer(SRResNet(2, 1, 2), "x2"))
    code = "import sys; from vemi_kit.enhance.command import vemi_enhance; sys.exit(vemi_enhance())"
    args = [sys.executable, "-c", code, "apply", student, corpus, "--out", corpus.parent/"out", "--device", "cpu"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
    return corpus.parent/"out", subprocess.run(args, capture_output=True, text=True, timeout=240, env=env)


def output(out, name):
    "The output of a file: a PNG of its name, which keeps the suffix where another file has the same stem."
    plain = out/Path(name).with_suffix(".png")
    return plain if plain.is_file() else out/f"{name}.png"


WHOLE = [*GOOD, "a_folder.jpg", "a_folder.png/inside.png", "linked.png"]


def test_the_corpus_is_as_large_as_it_says(): assert len(GOOD) + len(BAD) + len(ODD) >= 40


def test_the_folder_is_done_and_told(restored):
    out, r = restored
    assert "Traceback" not in r.stderr, r.stderr
    assert r.returncode == 1 and f"{len(WHOLE)} written, 0 already there, {len(BAD) + len(ODD)} failed" in r.stdout
    assert not [p for p in out.rglob("*") if p.name.endswith(".part")]
    made = {p for p in out.rglob("*") if p.is_file()}
    assert made == {output(out, n) for n in WHOLE} | {out/JOURNAL}
    assert len(made) == len(WHOLE) + 1


@pytest.mark.parametrize("name", WHOLE, ids=ascii)
def test_good_ones_come_back(corpus, restored, name):
    "Twice as large, of the same bits, with transparency where there was one."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)        # broken EXIF
        before = read_picture(corpus/name)
    after = read_picture(output(restored[0], name))
    assert tuple(after.colour.shape) == (len(before.colour), *[2*d for d in before.colour.shape[1:]])
    assert (after.bits, after.alpha is None) == (before.bits, before.alpha is None)


@pytest.mark.parametrize("name", [*BAD, *ODD])
def test_bad_ones_are_named_with_their_reason(restored, name):
    out, r = restored
    line = next(l for l in r.stderr.replace("\r", "\n").splitlines() if f"/{name}: " in l)
    assert BAD.get(name, (0, "is not a regular file"))[1] in line
    assert f"/{name}\n" in r.stdout


def test_again_nothing_is_written(corpus, restored):
    out, student = restored[0], load_restorer(corpus.parent/"s.safetensors", "cpu")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        r = enhance_folder(student, corpus, out, progress=False, tile=256, overlap=None, batch_size=4)
    assert (len(r.written), len(r.skipped), len(r.failed)) == (0, len(WHOLE), len(BAD) + len(ODD))
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}


def test_known_pixels(corpus):
    "Read without a restorer: the numbers that were written."
    want = torch.tensor(PIXELS).permute(2,0,1)/127.5 - 1
    same = ("plain.png", "plain.bmp", "plain.tif", "plain.webp", "suffix_says_jpeg.jpg", "rubbish_after_the_end.png")
    for name in same: assert torch.equal(read_picture(corpus/name).colour, want), name
    for name in ("sixteen_bits.png", "sixteen_bits.tif", "thirty_two_bits.tif"):
        got = read_picture(corpus/name)
        assert got.bits == 16 and ((got.colour[0]+1)*32767.5).round().int().tolist() == grey16.tolist(), name
    assert "icc_profile" not in read_picture(corpus/"cmyk.jpg").info


def test_training_reads_or_names_each(corpus):
    "`load_image` gives finite pictures in [-1, 1], or a `ValueError` that begins with the file."
    files, odd = find_images(corpus)
    assert sorted(p.name for p in odd) == sorted(ODD)
    for f in files + odd:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                x = load_image(f, 3, convert=True)
        except ValueError as e: assert str(e).startswith(f"{f}: "), e
        else: assert x.shape[0] == 3 and x.isfinite().all() and x.abs().max() <= 1, f
    with pytest.warns(UserWarning, match="not regular files"): assert image_files(corpus) == files


def test_a_small_file_of_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    "168 megapixels in 21 kB, of which Pillow only warns: refused from its header, unless the user says more."
    (tmp_path/"large.png").write_bytes(BAD["large.png"][0])
    (tmp_path/"small.png").write_bytes(PNG)
    assert (tmp_path/"large.png").stat().st_size < 30_000
    script = """
import resource, sys
from vemi_kit.data.folders import ImageFolder, PairedFolder, load_image
from vemi_kit.enhance.files import read_picture
from vemi_kit.nats.measure import vemi_bound
folder, file = sys.argv[1], sys.argv[1] + "/large.png"
most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
was = most()
for read in (read_picture, load_image):
    try: read(file)
    except ValueError as e: assert "VEMI_KIT_MAX_PIXELS" in str(e) and file in str(e), e
    else: raise AssertionError(read)
for read in (lambda: ImageFolder(folder, 8), lambda: PairedFolder(folder, folder, 8)):
    try: read()
    except ValueError as e: assert "more than 64,000,000" in str(e), e
    else: raise AssertionError(read)
assert vemi_bound(["pairs", folder, folder, "--size", "8"]) == 1
print(most() - was)
"""
    args = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)]
    r = subprocess.run(args, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert r.returncode == 0 and "more than 64,000,000" in r.stderr, r.stderr
    assert int(r.stdout.split()[-1]) < 60_000          # kB; decoded it is 168 MB, and 672 MB as numbers
    monkeypatch.setenv("VEMI_KIT_MAX_PIXELS", "767")
    with pytest.raises(ValueError, match="32x24 pixels are more than 767"): load_image(tmp_path/"small.png")
    monkeypatch.setenv("VEMI_KIT_MAX_PIXELS", "768")
    assert load_image(tmp_path/"small.png").shape == read_picture(tmp_path/"small.png").colour.shape == (3, 24, 32)
    monkeypatch.setenv("VEMI_KIT_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="VEMI_KIT_MAX_PIXELS: expected a number, got 'many'"):
        load_image(tmp_path/"small.png")
