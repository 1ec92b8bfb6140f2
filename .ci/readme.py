"Write README.md from nbs/index.ipynb."
import re
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parent.parent
nb = nbformat.read(root/"nbs/index.ipynb", as_version=4)
nb.metadata["language_info"] = {"name": "python"}
nb.cells = [c for c in nb.cells if not re.match(r"#\|\s*(hide|default_exp|export)\b", c.source)]
for c in nb.cells: c.source = re.sub(r"(?m)^#\|.*\n?", "", c.source)
text, _ = MarkdownExporter(exclude_input_prompt=True, exclude_output_prompt=True).from_notebook_node(nb)
text = re.sub(r"[ \t]+$", "", text, flags=re.M)
text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
(root/"README.md").write_text("<!-- made from nbs/index.ipynb by .ci/readme.py: edit there -->\n\n" + text, encoding="utf-8")
