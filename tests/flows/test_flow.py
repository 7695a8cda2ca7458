"""The flow, end to end on a tiny configuration: what it makes, and which model is the champion then."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from prefect.client.schemas.objects import StateType

from flows.form import RunChoices
from flows.train_flow import summarize, train_flow
from tests.flow_runs import STAGES, cached, run_flow, tiny
from textgen.errors import InputError
from textgen.model.find import resolve
from textgen.publishing.runs import list_runs
from textgen.storage import Storage

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_the_flow_makes_a_published_model_out_of_text(finished):
    _, result = finished
    assert list(result["stages"]) == list(STAGES)
    assert cached(result) == []
    assert set(result) == {
        "run_id", "config", "raw", "text", "tokens", "drift", "checkpoint", "metrics", "published", "champion",
        "hub_commit", "stages", "tokenizer",
    }  # fmt: skip
    assert set(result["metrics"]) == {"validation", "test"}
    published = result["published"]
    assert (published["version"], published["promoted"]) == ("v1", True)
    assert len(published["samples"]) == 3
    files = {path.name for path in Path(published["path"]).iterdir()}
    assert files >= {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "README.md", "metrics.json", "lineage.json",
    }  # fmt: skip
    json.dumps(result)


def test_a_run_in_a_moved_folder_is_not_led_back_to_the_old_place(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    result = run_flow(tiny(tmp_path))
    assert Path(result["published"]["path"]).is_relative_to(tmp_path)
    assert Path(result["raw"]["path"]).is_relative_to(tmp_path)


def test_a_better_model_takes_over_and_a_worse_one_does_not(folder):
    better = run_flow(tiny(folder, training={"max_steps": 40}, publish={"policy": "gate"}))["published"]
    assert (better["version"], better["promoted"]) == ("v2", True)
    worse = run_flow(tiny(folder, training={"max_steps": 3}, publish={"policy": "gate"}))["published"]
    assert (worse["version"], worse["promoted"]) == ("v3", False)
    assert resolve("textgen@champion", Storage.at(folder / "data")).name == "v2"
    assert resolve("textgen@v3", Storage.at(folder / "data")).name == "v3"
    with pytest.raises(InputError, match="v1, v2, v3"):
        resolve("textgen@v9", Storage.at(folder / "data"))


def test_a_longer_run_goes_on_from_a_shorter_one_and_is_found_again(folder, caplog):
    caplog.set_level(logging.INFO)
    unset = {"schedule": "wsd", "warmup_steps": None, "eval_every": None}
    shorter = run_flow(tiny(folder, training={**unset, "max_steps": 10}))["checkpoint"]
    longer = tiny(folder, training={**unset, "max_steps": 20})
    checkpoint = run_flow(longer)["checkpoint"]
    assert f"going on from step 8 of {shorter['path']}, where its decay began" in caplog.text
    assert checkpoint["config"]["training"]["warmup_steps"] == 1, "the shorter one's"
    assert cached(run_flow(longer)) == list(STAGES)
    caplog.clear()
    run_flow(longer, run=RunChoices(force=True))
    assert "going on" not in caplog.text


def test_a_training_by_force_is_evaluated_though_another_has_its_bytes(folder):
    """It was listed as not evaluated."""
    first, forced = run_flow(tiny(folder)), run_flow(tiny(folder), run=RunChoices(force=True))
    assert cached(forced) == ["fetch", "tokenize", "publish"]
    assert forced["checkpoint"]["sha256"] == first["checkpoint"]["sha256"]
    rows = list_runs(Storage.at(folder / "data"))
    assert [row.evaluated for row in rows if row.folder.endswith(forced["run_id"])] == [True]


def test_the_same_text_again_does_nothing_though_its_model_became_the_champion(folder, capsys):
    config = tiny(folder, tokenizer={"path": "textgen@champion"}, training={"init_from": "textgen@champion"})
    first = run_flow(config)
    assert (first["published"]["version"], first["champion"]) == ("v2", "v2")
    assert first["config"]["training"]["init_from"] == first["config"]["tokenizer"]["path"] == "textgen@v1"
    summarize(first)
    assert "Tokenizer: that of textgen@v1, " in capsys.readouterr().out
    second = run_flow(config)
    assert cached(second) == list(STAGES)
    assert {**second, "run_id": 0, "stages": 0} == {**first, "run_id": 0, "stages": 0}


def test_without_text_yet_a_run_is_completed_and_says_where_it_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = train_flow("weekly", return_state=True)
    assert (state.type, state.name) == (StateType.COMPLETED, "Nothing to train on yet")
    assert state.message == "Nothing to train on yet: put your text into data/text"
    assert list(tmp_path.iterdir()) == []


def test_a_published_version_is_promoted_when_the_policy_becomes_always(folder, capsys, caplog):
    other = {"training": {"max_steps": 3}}
    never = run_flow(tiny(folder, publish={"policy": "never"}, **other))
    assert (never["published"]["promoted"], never["champion"]) == (False, "v1")
    always = run_flow(tiny(folder, publish={"policy": "always"}, **other))
    assert (always["published"]["version"], always["champion"]) == ("v2", "v2")
    assert (always["published"]["promoted"], always["published"]["reason"]) == (True, "publish.policy=always")
    assert cached(always) == list(STAGES)[:-1], "it moved the champion, and so did something"
    again = run_flow(tiny(folder, publish={"policy": "always"}, **other))
    assert again["published"] == always["published"] and cached(again) == list(STAGES)
    assert "not believed" not in caplog.text, "though the folder says what was decided first"
    summarize(always)
    assert "textgen v2: promoted (publish.policy=always); the champion\n" in capsys.readouterr().out
    summarize(never)
    assert "textgen v2: not promoted (publish.policy=never); the champion is v1\n" in capsys.readouterr().out


def test_a_model_of_another_text_is_compared_with_the_champion_on_that_text(folder, caplog):
    for split in ("validation", "test"):
        (folder / f"{split}.txt").write_text("an entirely different text of some twenty words\n" * 60)
    published = run_flow(tiny(folder, training={"max_steps": 3}, publish={"policy": "gate"}))["published"]
    assert (published["version"], published["promoted"]) == ("v2", False)
    assert (published["decision"]["opponent"], published["decision"]["documents"]) == ("v1", 60)
    assert published["decision"]["difference"] > 0
    assert "v1, the champion, is scored again" in caplog.text


def test_a_first_model_that_does_not_beat_a_unigram_model_is_not_promoted(tmp_path):
    published = run_flow(tiny(tmp_path, publish={"policy": "gate"}))["published"]
    assert (published["version"], published["promoted"]) == ("v1", False)
    assert published["decision"]["opponent"] == "unigram"
    assert "against unigram" in published["reason"]
