"""The image and compose.yaml, as far as they can be checked without Docker. `python -m tests.e2e.compose` runs them."""

import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from prefect.cli._app import _app as prefect

from textgen.__main__ import main
from textgen.config import StorageConfig, find_config, load_config

ROOT = Path(__file__).parents[1]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
IN_THE_IMAGE = PurePosixPath("/opt/textgen")


@pytest.fixture
def image(tmp_path) -> Path:
    """Return a folder with what .dockerignore lets into the image."""
    folder, lines = tmp_path / "image", (ROOT / ".dockerignore").read_text().splitlines()
    folder.mkdir()
    left_out = [line.removeprefix("**/") for line in lines if line.startswith("**/")]
    assert "*" in lines
    for name in [line.removeprefix("!") for line in lines if line.startswith("!")]:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*left_out))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_the_image_holds_the_code_that_its_services_and_deployments_run(image):
    for folder in ("flows", "tasks", "textgen", "configs"):
        ours, copied = (
            {path.relative_to(root) for path in (root / folder).rglob("*") if "__pycache__" not in path.parts}
            for root in (ROOT, image)
        )
        assert ours and copied == ours
    for one in DEPLOYMENTS:
        module = one["entrypoint"].rpartition(".")[0]
        assert (image / module.replace(".", "/")).with_suffix(".py").is_file()
        assert (image / "configs" / one.get("parameters", {}).get("config", "default")).with_suffix(".yaml").is_file()


@pytest.mark.parametrize("name", ["server", "worker-cpu", "worker-gpu"])
def test_prefect_knows_the_options_of_a_service(name):
    prefect.parse_args(SERVICES[name]["command"][1:], print_error=False, exit_on_error=False)


def test_serve_knows_its_options(capsys):
    _, _, module, *arguments = SERVICES["serve"]["command"]
    assert module == "textgen"
    assert main([*arguments, "--port", "-1"]) == 2
    assert capsys.readouterr().err == "--port=-1: 0 to 65535 are needed\n"


def test_what_setup_deploys_has_a_worker():
    _, _, script = SERVICES["setup"]["command"]
    assert script.endswith(" deploy --all")
    polled = {SERVICES[name]["command"][4] for name in ("worker-cpu", "worker-gpu")}
    assert {one["work_pool"]["name"] for one in DEPLOYMENTS} == polled


def test_the_text_is_where_the_weekly_recipe_reads_it():
    files = load_config(find_config("weekly"), []).data.files
    for name in ("worker-cpu", "worker-gpu"):
        assert any(volume.endswith(f":{IN_THE_IMAGE / files}:ro") for volume in SERVICES[name]["volumes"])


def test_nothing_is_open_beyond_this_host():
    for service in SERVICES.values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_each_service_that_stays_is_looked_after():
    for name, service in SERVICES.items():
        assert "restart" in service
        assert name == "setup" or "test" in service["healthcheck"], name


def test_runs_and_the_server_of_their_models_share_the_data():
    folder = f"{IN_THE_IMAGE / StorageConfig().root}"
    for name in ("worker-cpu", "worker-gpu", "serve"):
        assert f"data:{folder}" in SERVICES[name]["volumes"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"WORKDIR {IN_THE_IMAGE}\nUSER 1000" in dockerfile
    assert f"install -d -o textgen -g textgen {folder}" in dockerfile
