"""The stages of a run, in order, and what they leave."""

from typing import Any

from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.form import RunChoices
from tasks.cancel import ended_by
from tasks.compare import show_beside_champion
from tasks.drift import drift
from tasks.evaluate import evaluate
from tasks.fetch import fetch
from tasks.fit_tokenizer import fit_tokenizer
from tasks.look import look
from tasks.publish import publish
from tasks.report import show_drift, show_model
from tasks.stage import run_stage
from tasks.tokenize import tokenize
from tasks.tracking import track_champion
from tasks.train import train
from tasks.upload import upload_champion
from tasks.wandb_run import one_run
from textgen.config import Config
from textgen.model.find import read_champion
from textgen.publishing.resolution import resolve_champions
from textgen.publishing.verdict import decision_of, headline, nothing_new
from textgen.storage import Storage
from textgen.training.plan import train_key


def run_stages(config: Config, run: RunChoices) -> Any:
    """Run the stages and return what each of them made, as JSON can hold it, or the state that the run ends in."""
    with one_run():
        return _run_stages(config, run)


def _run_stages(config: Config, run: RunChoices) -> Any:
    reports = {}
    raw, reports["fetch"] = run_stage(fetch, config, refresh=run.refresh)
    looked = look(config, raw)
    config, resolution = resolve_champions(config, raw, Storage(config.storage))
    tokens, reports["tokenize"] = run_stage(tokenize, config, raw=raw)
    fit = fit_tokenizer(config, resolution, raw, tokens)
    if (drifted := drift(config, raw)) is not None:
        show_drift(config.name, drifted, fit)
    folder = f"{train_key(tokens, config)}-{flow_run.id}" if run.force else None
    try:
        checkpoint, reports["train"] = run_stage(train, config, tokens=tokens, folder=folder)
    except TerminationSignal as signal:
        return ended_by(signal)
    metrics, reports["evaluate"] = run_stage(evaluate, config, checkpoint=checkpoint, tokens=tokens, raw=raw)
    made = {"checkpoint": checkpoint, "metrics": metrics, "tokens": tokens, "raw": raw}
    published, reports["publish"] = run_stage(publish, config, **made, resolution=resolution)
    track_champion(config, published)
    result = {
        "run_id": str(flow_run.id),
        "config": config.model_dump(mode="json"),
        "raw": raw.model_dump(mode="json"),
        "text": looked.content(),
        "tokens": tokens.model_dump(mode="json"),
        "tokenizer": fit.content() if fit is not None else None,
        "drift": drifted.model_dump(mode="json") if drifted is not None else None,
        "checkpoint": checkpoint.model_dump(mode="json"),
        "metrics": {name: split.model_dump(mode="json") for name, split in metrics.splits.items()},
        "published": published.model_dump(mode="json"),
        "champion": read_champion(published.folder.parent),
        "hub_commit": upload_champion(config, published),
        "stages": {name: report.model_dump() for name, report in reports.items()},
    }
    show_model(published, metrics)
    if not reports["publish"].cached:
        show_beside_champion(published, config)
    if all(report.cached for report in reports.values()):
        reason = nothing_new(published, result["champion"], config.storage.root)
        return Completed(name="Nothing to do", message=reason, data=result)
    verdict = headline(decision_of(published))
    return Completed(message=f"{published.name} {published.version}: {verdict}", data=result)
