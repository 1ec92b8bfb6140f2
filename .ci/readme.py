"Write README.md from nbs/index.ipynb."
import re, shutil
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parent.parent
pictures = "README_files"                                       # exists only while the index shows a picture
directive = re.compile(r"^#\|.*\n?", re.M)

nb = nbformat.read(root/"nbs/index.ipynb", as_version=4)
nb.metadata["language_info"] = {"name": "python"}               # else the fences name no language
code = [c for c in nb.cells if c.cell_type == "code"]
hidden = [
    c
    for c in code
    if any(re.match(r"#\|\s*(hide|default_exp|export)\b", d) for d in directive.findall(c.source))
]
nb.cells = [c for c in nb.cells if not any(c is h for h in hidden)]
# markdown cells may speak of directives: leave those alone
for c in code: c.source = directive.sub("", c.source)

exporter = MarkdownExporter(exclude_input_prompt=True, exclude_output_prompt=True)
text, res = exporter.from_notebook_node(nb, resources={"output_files_dir": pictures, "unique_key": "README"})
text = re.sub(r"\]\(([\w./]+\.ipynb)\)", r"](nbs/\1)", text)              # links of the index start in nbs/
text = re.sub(r"[ \t]+$", "", text, flags=re.M)
text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
(root / "README.md").write_text(
    "<!-- made from nbs/index.ipynb by .ci/readme.py: edit there -->\n\n" + text, encoding="utf-8"
)

shutil.rmtree(root/pictures, ignore_errors=True)
for name, data in res["outputs"].items():
    (root/name).parent.mkdir(exist_ok=True)
    (root/name).write_bytes(data)
