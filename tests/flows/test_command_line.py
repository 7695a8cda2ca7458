"""What the command `python -m flows.train_flow` refuses before Prefect is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.command_line import check_files, read_command
from tests.flow_runs import tiny
from textgen.errors import InputError

ROOT = Path(__file__).parents[2]
ABSENT = [
    ("--config=nowhere", "--config nowhere: no such file"),
    ("training.device=cuda", "no CUDA GPU"),
    ("training={compile: true, device: cpu}", "needs a C++ compiler on a CPU, and there is no 'nowhere'"),
    ("training.devices=1000", "cannot be shared by 1000 processes"),
    ("training.init_from=nowhere", "training.init_from: 'nowhere': no such folder"),
    ("training.init_from=other@champion", "training.init_from: other@champion: there is no champion"),
    ("training.init_from=.", "there is no model.safetensors"),
    ("tokenizer={kind: gpt2, path: nowhere}", "nowhere"),
    ("tokenizer.path=other@champion", "tokenizer.path: other@champion: there is no champion"),
    ("data.path=nowhere", "one source"),
    ("data.files.train=nowhere*", "no file matches"),
    ("storage.root=train.txt", "train.txt is no folder"),
    ("storage.root=foo://bar", "Protocol not known: foo"),
    ("training.batchsize=3", "training.batch_size"),
]


@pytest.fixture
def command(tmp_path, monkeypatch) -> list[str]:
    """Return the options of a command that can run, in a folder of its own."""
    (tmp_path / "tiny.yaml").write_text(json.dumps(tiny(tmp_path).model_dump(mode="json")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "nowhere")  # a machine without a C++ compiler
    return ["--config", "tiny.yaml"]


@pytest.mark.parametrize(("argument", "words"), ABSENT)
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_nothing(command, argument, words, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match=r"^2$"):
        read_command([*command, argument])
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("there", [[], ["data/text/.hidden"]])
def test_without_text_yet_the_weekly_recipe_ends_well_and_leaves_nothing(there, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in there:
        Path(name).parent.mkdir(parents=True)
        Path(name).touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match=r"^0$"):
        read_command(["--config", "weekly"])
    assert capsys.readouterr().out == "Nothing to train on yet: put your text into data/text\n"
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(SystemExit, match=r"^2$"):
        read_command(["--config", "weekly", "data.files=data/txt"])
    assert "data.files='data/txt': no file matches" in capsys.readouterr().err
    Path("data/text").mkdir(parents=True, exist_ok=True)
    Path("data/text/notes.txt").write_text("It is there now.\n" * 100)
    assert read_command(["--config", "weekly"])


def test_a_command_that_can_run_is_returned_as_it_was_typed(command):
    options = read_command([*command, "seed=3", "--force", "training.max_steps=7"])
    assert (options.config, options.overrides) == ("tiny.yaml", ["seed=3", "training.max_steps=7"])
    assert (options.force, options.refresh, options.json) == (True, False, False)


def test_a_model_in_a_remote_root_is_not_asked_for_without_need(command, capsys):
    """The root answers nobody; a name that can be no version of a model needs no answer."""
    remote = [*command, "storage.root=http://127.0.0.1:9/data", "storage.cache=cache"]
    assert read_command([*remote, "training.init_from=textgen@v3"])
    with pytest.raises(SystemExit, match=r"^2$"):
        read_command([*remote, "training.init_from=nowhere"])
    assert "no such folder" in capsys.readouterr().err


def test_the_answer_comes_before_prefect(command, tmp_path):
    """A server was started first, for half a minute; Prefect makes its folder when it is asked for the first time."""
    home = {"PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "flows.train_flow", *command, "training.init_from=nowhere"]
    run = subprocess.run(program, env={**os.environ, **home}, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert len(run.stderr.splitlines()) == 1
    assert not (tmp_path / "prefect").exists()


def test_text_that_is_not_utf_8_or_empty_is_refused(tmp_path):
    config = tiny(tmp_path)
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        check_files(config)
    (tmp_path / "train.txt").write_bytes(b"")
    with pytest.raises(InputError, match="empty"):
        check_files(config)
