"Write README.md: the text of .ci/readme.md, pictures and sentences from the stored lines."
import re, sys
from pathlib import Path
import front

root = Path(__file__).resolve().parent.parent

front.pictures()
shown = {t: rows for t,rows in front.tasks().items() if t == rows[0]["task"]}
said = [*(front.task_sentence(t, rows) for t,rows in shown.items()), front.term_sentence()]
text = (root/".ci/readme.md").read_text(encoding="utf-8").replace("{verdict}", "\n".join(said))
(root/"README.md").write_text("<!-- made from .ci/readme.md by .ci/readme.py: edit there -->\n\n" + text, encoding="utf-8")
gone = [l for l in re.findall(r"\]\(([^)#]+)", text) if not l.startswith("http") and not (root/l).exists()]
if gone: sys.exit(f"README.md links to what is not there: {', '.join(gone)}")
