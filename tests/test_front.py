"What the front page says: it runs as it stands, and comes from the stored lines."
import re, subprocess, sys
from pathlib import Path

root = Path(__file__).parent.parent
text = (root/"README.md").read_text(encoding="utf-8")


def test_the_front_page_s_python_runs_as_it_stands(tmp_path):
    code, = re.findall(r"```python\n(.*?)```", text, re.S)
    r = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stderr
    from vemi_kit import load_student
    assert load_student(tmp_path/"small") is not None


def test_the_front_page_is_short_and_its_links_lead_somewhere():
    assert len(text.split()) < 380
    links = re.findall(r"\]\(([^)#]+)", text)
    assert len(links) > 8 and all((root/l).exists() for l in links if not l.startswith("http"))


def test_the_front_page_s_pictures_are_of_the_stored_lines():
    sys.path.insert(0, str(root/".ci"))
    try: import front
    finally: sys.path.remove(str(root/".ci"))
    from PIL import Image
    import json
    made_of = dict(front=json.loads(front.STORED.read_text(encoding="utf-8")), verdict=front.tasks())
    for name,data in made_of.items():
        assert Image.open(front.images/f"{name}.png").info["Source"] == front.digest(data)
    # a change of one figure makes it another picture
    made_of["front"]["lines"]["best"]["last"]["frechet_teacher"] += .1
    assert Image.open(front.images/"front.png").info["Source"] != front.digest(made_of["front"])
