"""LaTeX and Markdown hold any name."""

import re

import numpy as np

from test.causal import NAMES
from tests.conftest import ROOT
from tests.reports.reading import tables
from tests.runs import write_run
from utils.files import read_json, write_json
from utils.run_record import RECORD


def test_latex_is_balanced(tmp_path):
    runs = tmp_path / "runs"
    write_run(runs / "scm")
    write_run(runs / "odd", method=r"50% & a_b #1 {x} $y^2 ~\z")
    text = tables(runs)["table.tex"]
    odd = r"50\% \& a\_b \#1 \{x\} \$y\textasciicircum{}2 \textasciitilde{}\textbackslash{}z"
    assert odd in text and r"($\theta$, k) chosen on test" in text
    assert r"paper: SCM-0.5B & partial detection & 96.18 & 96.12 & 96.15 & 95.09 &" in text
    code = "\n".join(re.sub(r"(?<!\\)%.*", "", one) for one in text.splitlines())
    bare = re.sub(r"\\[{}]", "", code)
    depth = np.cumsum([(letter == "{") - (letter == "}") for letter in bare])
    assert depth.min() == 0 and depth[-1] == 0
    assert len(re.findall(r"(?<!\\)\$", code)) % 2 == 0 and code.isascii()
    for name in ("table*", "tabular"):
        assert code.count(rf"\begin{{{name}}}") == code.count(rf"\end{{{name}}}") == 2
    tabulars = code.split(r"\begin{tabular}")[1:]
    # head, two methods' three kinds, what was not run; two heads, the same with the paper's lines
    for tabular, count in zip(tabulars, (1 + 6 + 9, 2 + 6 + 2 + 9), strict=True):
        columns = len(re.match("{([lr]+)}", tabular).group(1))
        lines = [one for one in tabular.splitlines() if one.rstrip().endswith(r"\\")]
        assert len(lines) == count
        for one in lines:
            spanned = sum(int(number) - 1 for number in re.findall(r"\\multicolumn{(\d)}", one))
            assert len(re.findall(r"(?<!\\)&", one)) + 1 + spanned == columns


def test_latex_has_a_letter_for_each_of_our_names(tmp_path):
    script = (ROOT / "scripts" / "run-ablations.sh").read_text()
    ablations = re.findall(r'^ *one \S+ "([^"]+)"', script, flags=re.MULTILINE)
    assert len(ablations) >= 4 and any("α" in name for name in ablations)
    marks = "αβγδεζηθικλμνξπρςστυφχψω ∞±×≤≥→–—…’“”\N{NO-BREAK SPACE}"
    for number, name in enumerate([*dict.fromkeys(NAMES.values()), *ablations, marks]):
        write_run(tmp_path / "runs" / f"{number}", method=name, target_false_alarm=0.5, target_k=2)
    text = tables(tmp_path / "runs")["table.tex"]
    code = "\n".join(re.sub(r"(?<!\\)%.*", "", one) for one in text.splitlines())
    assert code.isascii()
    assert r"SCM, no holistic scorer ($\alpha$ 1)" in code and r"SCM, $\alpha$ \$alpha" in code
    assert r"$\rho$$\varsigma$$\sigma$" in code and r"$\psi$$\omega$" in code


def test_markdown_cells_do_not_break(tmp_path):
    write_run(tmp_path / "runs" / "odd", method="a | b")
    text = tables(tmp_path / "runs")["table.md"]
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", one)) for one in block.splitlines()}) == 1


def test_names_and_devices_stay_in_their_line(tmp_path):
    """Nothing that a record holds steers a terminal, breaks a table or leaves a LaTeX comment."""
    folder = write_run(tmp_path / "runs" / "scm", method="red \x1b[31m\nline \u202e")
    record = read_json(folder / RECORD) | {"device": "cpu\n\\input{evil}\r\x07"}
    write_json(folder / RECORD, record)
    made = tables(tmp_path / "runs")
    for text in made["table.md"], made["table.tex"]:
        assert not set("\x1b\r\x07\u202e") & set(text)
    assert r"| red \x1b[31m\nline \u202e |" in made["table.md"]
    assert all("%" in one for one in made["table.tex"].splitlines() if "evil" in one)
