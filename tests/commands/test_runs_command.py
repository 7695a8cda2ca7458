"""`textgen runs`: the list, and runs side by side as text, JSON, Markdown and a page."""

import json
import subprocess
import sys

import pytest

from textgen.__main__ import main


@pytest.fixture
def runs(rivals, capsys):
    """Return a function that runs `textgen runs` and returns its code, output and errors."""

    def run(command: str, *arguments: str) -> tuple[int, str, str]:
        code = main(["runs", command, *arguments, "--root", str(rivals[0].config.root)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_list_has_a_line_a_run(runs):
    code, out, _ = runs("list")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[:2] for line in lines[1:4]] == [["textgen", "v1"], ["textgen", "v2"], ["textgen", "v3"]]
    assert "max_steps 20 to 40" in lines[2] and "other text" in lines[3]
    rows = json.loads(runs("list", "--json")[1])
    assert [row["steps"] for row in rows] == [20, 40, 40]


def test_the_list_loads_no_torch(rivals):
    code = (
        "import sys; from textgen.__main__ import main; "
        f"main(['runs', 'list', '--root', {str(rivals[0].config.root)!r}]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_runs_are_compared_in_each_form(runs, tmp_path):
    page = tmp_path / "page.html"
    code, out, _ = runs("compare", "v1", "run-2", "--html", str(page))
    assert code == 0 and "training.max_steps" in out and str(page) in out
    assert page.read_text().startswith("<!doctype html>")
    assert runs("compare", "v1", "v2", "--md")[1].startswith("# textgen v1 beside textgen v2\n")
    made = json.loads(runs("compare", "v1", "v2", "v3", "--json")[1])
    assert [side["name"] for side in made["runs"]] == ["textgen v1", "textgen v2", "textgen v3"]
    assert made["paired"]["test"][0]["difference"] and made["paired"]["test"][1] is None


def test_a_run_that_is_not_there_is_one_line(runs):
    code, out, err = runs("compare", "v1", "v9")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert runs("compare", "v1")[0] == 2


def test_a_run_is_not_compared_with_itself(runs):
    code, out, err = runs("compare", "v2", "v1", "textgen@v2")
    assert (code, out) == (2, "") and "v2 and textgen@v2 are the same run" in err


def test_a_page_in_place_of_a_folder_is_a_mistake(runs, tmp_path):
    code, out, err = runs("compare", "v1", "v2", "--html", str(tmp_path))
    assert (code, out, err) == (2, "", f"--html {tmp_path}: it is a folder; name a file\n")


def test_a_root_without_a_run_says_so(runs, tmp_path, capsys):
    assert main(["runs", "list", "--root", str(tmp_path / "nothing")]) == 2
    assert "no training" in capsys.readouterr().err
