"""Write the `__init__.py` of every wing: a front that imports a name when it is used."""
from pathlib import Path

text = """# made by .ci/wings.py
from vemi_kit import lazy_front

__getattr__, __dir__ = lazy_front(__name__)
"""
root = Path(__file__).resolve().parent.parent/"vemi_kit"
for folder in sorted(p.parent for p in root.glob("*/*.py") if p.name == "__init__.py"):
    (folder/"__init__.py").write_text(text, encoding="utf-8")
