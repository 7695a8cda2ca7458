"""The form of a run: what it shows, what it refuses, and the configuration that it makes."""

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

import flows.form
from flows.form import NAME_LENGTH, DataChoices, RunChoices, TrainingChoices, make_config, run_name
from flows.train_flow import train_flow
from textgen.config import Config, find_config, known_keys, load_config, shipped_configs
from textgen.errors import InputError
from textgen.sections import DataConfig

ROOT = Path(__file__).parents[2]
NOTHING = (TrainingChoices(), RunChoices())


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """Return what Prefect stores with a deployment, shows as a form and checks parameters by."""
    return parameter_schema(train_flow.fn).model_dump_for_openapi()


@pytest.fixture
def config_file(tmp_path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 7\ntraining: {epochs: 3, batch_size: 3, learning_rate: 3e-3}\npublish: {policy: never}\n")
    return str(path)


def refusals(schema: dict[str, Any], **parameters: Any) -> list[str]:
    """Return why the API refuses these parameters of a run."""
    from prefect.utilities.schema_tools.validation import validate  # with it SQLAlchemy, on every worker

    return [error.message for error in validate(parameters, schema)]


def test_a_choice_wins_over_the_file_and_an_override_over_the_choice(config_file):
    training, run = TrainingChoices(batch_size=5, learning_rate=0.01, seed=8), RunChoices(promote="always")
    chosen = make_config(config_file, training, run, [])
    assert (chosen.training.batch_size, chosen.training.learning_rate, chosen.seed) == (5, 0.01, 8)
    assert chosen.publish.policy == "always"
    overridden = make_config(config_file, training, run, ["training.batch_size=6", "publish.policy=gate", "seed=9"])
    assert (overridden.training.batch_size, overridden.publish.policy, overridden.seed) == (6, "gate", 9)
    assert overridden.training.learning_rate == 0.01


def test_what_is_left_empty_is_as_in_the_file(config_file):
    assert make_config(config_file, *NOTHING, []) == load_config(Path(config_file), [])


def test_steps_take_the_place_of_the_files_epochs(config_file):
    assert make_config(config_file, *NOTHING, []).training.epochs == 3
    training = make_config(config_file, TrainingChoices(steps=500), RunChoices(), []).training
    assert (training.max_steps, training.epochs) == (500, None)


def test_the_gpu_deployment_is_a_setting_and_force_and_refresh_are_none(config_file):
    run = RunChoices(gpu_deployment="train-model/gpu", force=True, refresh=True)
    config = make_config(config_file, TrainingChoices(), run, [])
    plain = make_config(config_file, *NOTHING, [])
    assert config == plain.model_copy(
        update={"compute": plain.compute.model_copy(update={"gpu_deployment": "train-model/gpu"})}
    )


def test_a_configuration_has_a_name_or_is_a_file(config_file, tmp_path, monkeypatch):
    assert make_config("wikitext2", *NOTHING, []) == load_config(ROOT / "configs" / "wikitext2.yaml", [])
    monkeypatch.chdir(tmp_path)
    assert make_config("mine.yaml", *NOTHING, []).seed == 7
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such file"):
        make_config("nowhere.yaml", *NOTHING, [])


def test_a_mistake_that_only_the_whole_shows_is_one_line(config_file):
    with pytest.raises(InputError, match=r"^training.min_learning_rate=0.0001 is above training.learning_rate=1e-05$"):
        make_config(config_file, TrainingChoices(learning_rate=1e-5), RunChoices(), [])


def test_the_form_has_its_groups_in_order_with_the_configs_to_choose_from(schema):
    groups = sorted(schema["properties"], key=lambda name: schema["properties"][name]["position"])
    assert groups == ["config", "data", "training", "run", "overrides"]
    assert schema["properties"]["config"]["enum"] == sorted(path.stem for path in (ROOT / "configs").iterdir())
    assert schema.get("required", []) == []


@pytest.mark.parametrize(
    ("group", "fields"),
    [
        ("DataChoices", ["Files", "Folder in Hub layout", "Dataset", "Configuration of the dataset"]),
        ("TrainingChoices", ["Steps", "Learning rate", "Warm-up steps", "Batch size", "Seed"]),
        ("RunChoices", ["Model name", "Train again", "Look for new data", "Promote", "GPU deployment"]),
    ],
)
def test_a_field_has_a_title_a_description_a_place_and_one_type(group, fields, schema):
    properties = schema["definitions"][group]["properties"].values()
    assert [field["title"] for field in sorted(properties, key=lambda field: field["position"])] == fields
    for field in properties:
        assert field["description"].endswith(".")
        assert field["type"] in ("integer", "number", "string", "boolean")
        assert not {"anyOf", "oneOf", "allOf"} & set(field)


def test_a_field_says_what_its_key_means_and_its_value_in_each_configuration(schema):
    fields = schema["definitions"]["TrainingChoices"]["properties"]
    meaning = Config.model_json_schema()["$defs"]["TrainingConfig"]["properties"]["max_steps"]["description"]
    values = fields["steps"]["description"].rstrip(".").partition("Left empty: ")[2].split("; ")
    said = {
        name: value for value, _, names in (one.rpartition(" in ") for one in values) for name in names.split(" and ")
    }
    steps = {name: load_config(path, []).training.max_steps for name, path in shipped_configs().items()}
    assert said == {name: str(number) for name, number in steps.items()}
    assert fields["steps"]["description"].startswith(meaning.partition(" null: ")[0])
    assert "a tenth of the steps, at most 100 (0 from a kept state) in default" in fields["warmup_steps"]["description"]
    assert "null" not in json.dumps(schema["definitions"])


def test_a_shipped_configuration_with_a_mistake_is_left_out_of_the_descriptions(tmp_path, monkeypatch):
    (tmp_path / "wrong.yaml").write_text("training: {max_steps: many}")
    paths = {"default": find_config("default"), "wrong": tmp_path / "wrong.yaml"}
    monkeypatch.setattr(flows.form, "shipped_configs", lambda: paths)
    assert list(flows.form.shipped_settings.__wrapped__()) == ["default"]


def test_a_source_that_is_chosen_takes_the_place_of_the_files(config_file):
    with Path(config_file).open("a") as file:
        file.write("data: {files: mine, dataset_config: raw}\n")

    def data(**chosen: str) -> DataConfig:
        return make_config(config_file, *NOTHING, [], DataChoices(**chosen)).data

    assert (data().files, data(dataset_config="other").dataset_config) == ("mine", "other")
    dataset = data(dataset_name="a/b")
    assert (dataset.dataset_name, dataset.files, dataset.dataset_config) == ("a/b", None, None)
    assert (data(path="folder").path, data(path="folder").files) == ("folder", None)
    assert data(files="*.txt").files == "*.txt"
    with pytest.raises(InputError, match=r"^data: files and dataset_name are both chosen; choose one source$"):
        data(files="*.txt", dataset_name="a/b")


def test_an_empty_form_and_a_full_one_are_taken(schema):
    assert refusals(schema) == []
    data = {"files": "notes/*.txt", "path": "hub", "dataset_name": "a/b", "dataset_config": "raw"}
    training = {"steps": 100, "learning_rate": 1e-3, "warmup_steps": 0, "batch_size": 4, "seed": 0}
    run = {"name": "mine", "force": True, "refresh": True, "promote": "never", "gpu_deployment": "train-model/gpu"}
    overrides = ["name=mine", "model={hidden_size: 32}", "data.files.train=a/*.txt", "training.epochs=null"]
    assert refusals(schema, config="wikitext2", data=data, training=training, run=run, overrides=overrides) == []
    defaults = {name: group["default"] for name, group in schema["properties"].items()}
    assert refusals(schema, **defaults) == [], "the form sends its defaults back"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"config": "no-such"}, "'no-such' is not one of"),
        ({"training": {"steps": 0}}, "0 is less than the minimum of 1"),
        ({"training": {"steps": 1.5}}, "1.5 is not valid"),
        ({"training": {"learning_rate": 0}}, "0 is less than or equal to the minimum of 0"),
        ({"training": {"learning_rate": 1.5}}, "1.5 is greater than the maximum of 1"),
        ({"training": {"batch_size": 0}}, "less than the minimum"),
        ({"training": {"seed": 2**32}}, "greater than or equal to the maximum"),
        ({"training": {"epochs": 3}}, "'epochs' was unexpected"),
        ({"training": {"warmup_steps": -1}}, "less than the minimum"),
        ({"data": {"file": "notes"}}, "'file' was unexpected"),
        ({"run": {"name": "my model"}}, "'my model' does not match"),
        ({"run": {"promote": "perhaps"}}, "'perhaps' is not one of"),
        ({"run": {"gpu_deployment": "gpu"}}, "does not match"),
        ({"run": {"force": "yes"}}, "'yes' is not "),
        ({"overrides": ["training.max_step=3"]}, "'training.max_step=3' does not match"),
        ({"overrides": ["seed 3"]}, "does not match"),
        ({"overrides": ["training.batch_size"]}, "does not match"),
        ({"overrides": ["ztraining.batch_size=3"]}, "does not match"),
    ],
)
def test_a_bad_value_is_refused_by_the_form(parameters, words, schema):
    (message,) = refusals(schema, **parameters)
    assert words in message


@pytest.mark.parametrize("choices", [{"steps": 0}, {"learning_rate": 2.0}, {"epochs": 3}])
def test_a_command_that_makes_bad_choices_is_refused_too(choices):
    with pytest.raises(ValidationError):
        TrainingChoices(**choices)


def test_every_key_of_the_configuration_may_be_overridden(schema):
    keys = known_keys()
    assert {"seed", "training", "training.batch_size", "storage.cache"} <= set(keys)
    assert refusals(schema, overrides=[f"{key}=x" for key in keys]) == []
    sections = Config().model_dump()
    assert len(keys) == len(sections) + sum(len(section) for section in sections.values() if isinstance(section, dict))


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({}, "default"),
        ({"config": "wikitext2"}, "wikitext2"),
        ({"config": "/some/where/mine.yaml", "overrides": ["seed=3"]}, "mine seed=3"),
        (
            {"config": "default", "training": {"steps": 100, "seed": 0, "learning_rate": None}},
            "default steps=100 seed=0",
        ),
        ({"training": TrainingChoices(batch_size=8)}, "default batch_size=8"),
        ({"run": {"force": True, "refresh": False, "gpu_deployment": "train-model/gpu"}}, "default force=True"),
    ],
)
def test_a_run_is_named_by_what_was_chosen(parameters, name):
    assert run_name(parameters) == name


def test_no_two_names_are_cut_to_the_same_text():
    keys = [
        f"training.{key}=1" for key in ("batch_size", "log_every", "eval_every", "checkpoint_every", "warmup_steps")
    ]
    names = [run_name({"training": {"steps": 60}, "overrides": [*keys, f"seed={seed}"]}) for seed in range(3)]
    folders = [run_name({"overrides": [f"data.files=/a/folder/of/{one}/with/many/notes"]}) for one in "ab"]
    assert len({*names, *folders}) == 5
    assert all(name.startswith("default steps=60 training.batch_size=1 … ") for name in names)
    assert all(name.startswith("default data.files=…h/many/notes … ") for name in folders)
    assert all(len(name) <= NAME_LENGTH for name in [*names, *folders])


def test_what_says_where_things_are_is_last_in_a_name():
    assert run_name({"overrides": ["storage.root=here", "seed=3"]}) == "default seed=3 storage.root=here"


def test_a_run_is_named_by_the_last_value_of_a_key_that_is_set_twice():
    """A run of 600 steps was named by the 20 that they took the place of."""
    assert run_name({"overrides": ["training.max_steps=20", "seed=1", "training.max_steps=600"]}) == (
        "default training.max_steps=600 seed=1"
    )
