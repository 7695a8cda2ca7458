"""`textgen generate`: where the prompts come from, what is printed, and what is refused."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from textgen.__main__ import main
from textgen.commands.generate import FIELDS
from textgen.inference.engine import Engine, Piece, complete
from textgen.inference.protocol import CompletionRequest, engine_requests
from textgen.model import device

Run = Callable[..., tuple[int, str, str]]
GREEDY = ["--temperature", "0", "--max-tokens", "9"]


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def generate(opinionated, tmp_path, capsys, monkeypatch) -> Run:
    """Return a function that runs `textgen generate` on a model, and returns its code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, stdin: bytes = b"", terminal: bool = False) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", (Terminal if terminal else io.TextIOWrapper)(io.BytesIO(stdin), "utf-8"))
        code = main(["generate", str(opinionated[0]), *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def write(opinionated) -> Callable[..., list[str]]:
    """Return a function from a prompt and the fields of a request to the texts that the engine writes."""

    def of(prompt: str, **fields: Any) -> list[str]:
        engine = Engine(opinionated[1])
        asked = CompletionRequest.parse({"max_tokens": 9, "temperature": 0, **fields})
        requests = engine_requests(asked, [engine.encode(prompt)])
        return [completion.text for completion in complete(engine, requests)]

    return of


def write_lines(*lines: dict[str, Any] | str | bytes) -> Path:
    """Write a file of prompts into the working directory."""
    path = Path("prompts.jsonl")
    texts = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in texts))
    return path


def test_a_prompt_is_continued(generate, write):
    (text,) = write("the old")
    assert generate("--prompt", "the old", *GREEDY) == (0, f"the old{text}\n", "")


@pytest.mark.parametrize("end", ["", "\n"])
def test_the_prompt_can_come_from_stdin(generate, write, end):
    prompt = "naïve 塔\nthe"
    (text,) = write(prompt)
    assert generate(*GREEDY, stdin=f"{prompt}{end}".encode()) == (0, f"{prompt}{text}\n", "")


def test_of_a_prompt_longer_than_the_context_it_is_said_that_its_end_is_read(generate, opinionated, caplog):
    length = opinionated[1].seq_length
    prompt = "the " * (length + 1)
    assert generate("--prompt", prompt, *GREEDY)[0] == 0
    assert caplog.messages[-1].endswith(f" tokens; the model reads the last {length}")
    write_lines({"prompt": "a"}, {"prompt": prompt})
    generate("--file", "prompts.jsonl", *GREEDY)
    assert caplog.messages[-1].startswith("prompts.jsonl, line 2: ")


def test_an_empty_prompt_is_continued(generate, write):
    assert generate("--prompt", "", *GREEDY)[1] == f"{write('')[0]}\n"


def test_a_hundred_tokens_are_written_unless_asked_otherwise(generate):
    _, out, _ = generate("--prompt", "a", "--temperature", "0", "--json")
    found = json.loads(out)
    assert found["usage"]["completion_tokens"] == 100 or found["choices"][0]["finish_reason"] == "stop"
    code, out, _ = generate("--prompt", "a", "--temperature", "0", "--json", "--past", "stop")
    found = json.loads(out)
    assert code == 0 and found["usage"]["total_tokens"] <= 33


def test_json_is_one_document_with_log_probabilities(generate, write):
    code, out, _ = generate("--prompt", "the old", *GREEDY, "--json", "--logprobs", "2")
    (choice,) = json.loads(out)["choices"]
    assert code == 0 and choice["text"] == write("the old")[0]
    assert [len(top) for top in choice["logprobs"]["top_logprobs"]] == [2] * 9
    _, out, _ = generate("--prompt", "the old", *GREEDY, "--json")
    (plain,) = json.loads(out)["choices"]
    assert plain["logprobs"]["token_logprobs"] == choice["logprobs"]["token_logprobs"]


def test_several_texts_are_numbered(generate, write):
    texts = write("the old", n=3, seed=4, temperature=1)
    code, out, _ = generate("--prompt", "the old", "--n", "3", "--seed", "4", "--max-tokens", "9")
    assert code == 0 and len(set(texts)) == 3
    assert out == "".join(f"[{number}] the old{text}\n" for number, text in enumerate(texts, 1))
    _, out, _ = generate("--prompt", "the old", "--n", "3", "--seed", "4", "--max-tokens", "9", "--json")
    assert [choice["text"] for choice in json.loads(out)["choices"]] == texts


def test_a_stop_string_ends_the_text(generate, write):
    (text,) = write("the old")
    stop, other = text[4:6], text[2:4]
    assert generate("--prompt", "the old", *GREEDY, "--stop", stop)[1] == f"the old{text.split(stop)[0]}\n"
    _, out, _ = generate("--prompt", "the old", *GREEDY, "--stop", stop, "--stop", other)
    assert out == f"the old{text[: min(text.index(stop), text.index(other))]}\n"


def test_each_line_of_a_terminal_is_continued(generate, write):
    code, out, err = generate(*GREEDY, stdin=b"the\nold tower\n", terminal=True)
    assert code == 0 and err.startswith("type the beginning")
    assert out == "".join(f"> {prompt}{write(prompt)[0]}\n" for prompt in ("the", "old tower")) + "> "


def test_ctrl_c_ends_a_text_and_not_the_conversation(generate, write, monkeypatch):
    step, calls = Engine.step, []

    def interrupted(engine: Engine) -> list[Piece]:
        calls.append(engine)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(engine)

    monkeypatch.setattr(Engine, "step", interrupted)
    code, out, _ = generate(*GREEDY, stdin=b"the\nold tower\n", terminal=True)
    assert code == 0 and out.startswith("> the") and f"the{write('the')[0]}" not in out
    assert out.endswith(f"> old tower{write('old tower')[0]}\n> ")


# Files of prompts


def test_a_file_is_answered_in_order_a_line_of_json_a_prompt(generate, write):
    asked: list[dict[str, Any]] = [
        {"prompt": "the old", "max_tokens": 30},
        {"prompt": "a", "max_tokens": 2},
        {"prompt": "winds", "n": 2, "seed": 3, "temperature": 1},
        {"prompt": "naïve 塔"},
    ]
    path = write_lines(*asked[:2], "", *asked[2:])
    code, out, err = generate("--file", str(path), *GREEDY)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == len(asked)
    for line, fields in zip(lines, asked, strict=True):
        assert [choice["text"] for choice in json.loads(line)["choices"]] == write(**fields)


def test_a_line_may_hold_several_prompts_ids_and_an_echo(generate, opinionated):
    ids = opinionated[1].tokenizer.encode("the old").ids
    path = write_lines(
        {"prompt": ["the old", "the old"], "echo": True, "logprobs": 1, "max_tokens": 0},
        {"prompt": [ids, ids], "echo": True, "logprobs": 1, "max_tokens": 0},
        {"prompt": [[]], "max_tokens": 1},
    )
    code, out, _ = generate("--file", str(path))
    of_text, of_ids, of_nothing = map(json.loads, out.splitlines())
    assert code == 0 and of_text == of_ids
    assert [choice["text"] for choice in of_text["choices"]] == ["the old"] * 2
    assert of_text["choices"][0]["logprobs"]["token_ids"] == ids
    assert of_nothing["usage"]["prompt_tokens"] == 1


def test_a_file_without_prompts_gives_nothing(generate):
    assert generate("--file", str(write_lines("", ""))) == (0, "", "")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "no JSON: "),
        ("[" * 100_000, "no JSON: "),
        (b'{"prompt": "\xff"}', "no JSON: "),
        ('"the old"', 'a line is {"prompt": …}'),
        ('{"text": "a"}', 'a line is {"prompt": …}'),
        ('{"prompt": 3}', "prompt: a string, "),
        ('{"prompt": "a", "stream": true}', "stream has no meaning here"),
        ('{"prompt": "\\udc80"}', "prompt: a lone surrogate "),
        ('{"prompt": "a", "max_tokens": -1}', "max_tokens=-1: "),
        ('{"prompt": "a", "temperature": NaN}', "temperature=nan: "),
        ('{"prompt": "a", "logit_bias": 1}', "'logit_bias' is no field"),
        ('{"prompt": [5, 70000]}', "prompt: 70000 is no token id"),
    ],
)
def test_a_line_that_is_wrong_is_named_with_its_number(generate, line, fault):
    path = write_lines({"prompt": "a", "max_tokens": 1}, "", line, {"prompt": "b"})
    code, out, err = generate("--file", str(path))
    assert (code, out) == (2, "")
    assert err.startswith(f"{path}, line 3: {fault}") and err.count("\n") == 1 and len(err) < 500


@pytest.mark.parametrize("name", ["nowhere.jsonl", "."])
def test_a_file_that_is_none_is_named(generate, name):
    assert generate("--file", name) == (2, "", f"--file={name}: no such file\n")


# What is refused


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-tokens", "-1"),
        ("--temperature", "nan"),
        ("--temperature", "-0.5"),
        ("--top-k", "-2"),
        ("--top-p", "0"),
        ("--min-p", "2"),
        ("--repetition-penalty", "0"),
        ("--presence-penalty", "3"),
        ("--frequency-penalty", "-3"),
        ("--seed", "-1"),
        ("--n", "0"),
        ("--logprobs", "21"),
        ("--stop", ""),
        ("--stop", "a\udcff"),
    ],
)
def test_an_option_that_is_wrong_is_named_as_it_is_typed(generate, option, value):
    code, out, err = generate("--prompt", "a", f"{option}={value}")
    assert (code, out) == (2, "")
    assert err.startswith((f"{option}=", f"{option}: ")) and err.count("\n") == 1


def test_every_option_is_a_field_of_a_request():
    assert {name for name, *_ in FIELDS} <= CompletionRequest.model_fields.keys()


@pytest.mark.parametrize("option", ["--max-tokens", "--seed", "--temperature"])
def test_an_option_that_is_no_number_is_named(generate, option, capsys):
    with pytest.raises(SystemExit) as ended:
        generate("--prompt", "a", option, "many")
    assert ended.value.code == 2 and f"argument {option}: invalid" in capsys.readouterr().err


def test_bytes_that_are_not_utf_8_are_refused(generate):
    assert generate("--prompt", "a\udcff") == (2, "", "--prompt: it has bytes that are not UTF-8\n")
    code, _, err = generate(stdin=b"a\xff\n", terminal=True)
    assert code == 2 and err.endswith("stdin: it has bytes that are not UTF-8\n")
    assert generate(stdin="塔".encode() + b"\xff\xfe") == (2, "", "stdin: byte 4 is not UTF-8\n")


def test_a_prompt_and_a_file_are_not_given_together(generate, capsys):
    with pytest.raises(SystemExit) as ended:
        generate("--prompt", "a", "--file", "b")
    assert ended.value.code == 2 and "not allowed with" in capsys.readouterr().err


def test_the_speed_is_measured_and_ends_in_a_line_of_json(generate, monkeypatch):
    monkeypatch.setattr(device, "read_bandwidth", lambda device: 1e9)
    code, out, err = generate("--bench", "--prompt", "the", "--max-tokens", "5", "--weights", "int8")
    found = json.loads(out)
    assert code == 0 and "tokens/s" in err and found["kernels"] == "int8"
    assert generate("--bench", "--max-tokens", "5")[0] == 0  # an empty prompt
    assert found["bandwidth_share"] == pytest.approx(found["weight_bytes"] * found["tokens_per_second"] / 1e9)


@pytest.mark.parametrize(
    "options", [("--logprobs", "1"), ("--json", "--file", "x.jsonl"), ("--bench", "--json"), ("--bench", "--file", "x")]
)
def test_an_option_that_would_do_nothing_is_refused(generate, options):
    prompt = () if "--file" in options else ("--prompt", "a")
    code, out, err = generate(*options, *prompt)
    assert (code, out) == (2, "") and err.startswith(options[0])
