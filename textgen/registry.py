"""Published models: numbered versions that never change, and the champion, the version in use."""

import json
import re
import shutil
from pathlib import Path

from filelock import FileLock

from textgen.card import Sample, write_card
from textgen.checkpoint import CheckpointManifest
from textgen.config import Config, PublishConfig
from textgen.corpus import RawManifest, read_rows
from textgen.evaluate import Metrics
from textgen.export import check_with_transformers, load_model
from textgen.files import Damaged, InputError, Manifest, new_folder, set_aside, sha256_file, write_atomic
from textgen.gate import Decision
from textgen.generate import SamplingConfig, generate
from textgen.lineage import LINEAGE_FILE, describe_lineage
from textgen.storage import Storage
from textgen.tokens import TokensManifest

PUBLISH_VERSION = 1  # of the published form; a change makes every publish key new
CHAMPION_FILE = "champion"
METRICS_FILE = "metrics.json"
CLAIM_FILE = ".claim"  # in a remote root, of the machine that makes a version
VERSION = re.compile(r"v([1-9][0-9]*)")

SAMPLES = 3
SAMPLE_PROMPT_WORDS = 8
SAMPLE_CHECK_ROWS = 64  # rows whose ids stock transformers must give too
SAMPLING = SamplingConfig(max_tokens=48, temperature=0.8, top_k=50)


class PublishedManifest(Manifest):
    """A published version and why it was promoted or not."""

    name: str
    version: str
    promoted: bool
    reason: str
    checkpoint_sha256: str
    tokens_key: str
    raw_sha256: dict[str, str]
    bits_per_byte: float | None  # on validation
    samples: list[Sample]
    sha256: dict[str, str]

    def sha256_by_file(self) -> dict[str, str]:
        return self.sha256


def publish(
    checkpoint: CheckpointManifest,
    metrics: Metrics,
    tokens: TokensManifest,
    raw: RawManifest,
    config: Config,
    storage: Storage,
    flow_run_id: str | None = None,
) -> PublishedManifest:
    """Publish a checkpoint as the next version of `config.name`, promote it if it is better, and return its manifest.

    A checkpoint that is published already is returned as it is.

    Raises:
        Refused: stock transformers does not give the same logits or ids.
    """
    home = config.root / "models" / config.name
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock"):
        bring(storage, home)
        published = _read_versions(home)
        for manifest in published:
            if manifest.checkpoint_sha256 == checkpoint.weights_sha256:
                break
        else:
            folder = _next_folder(home, storage)
            manifest = _publish(folder, published, checkpoint, metrics, tokens, raw, config, flow_run_id)
        storage.push(manifest.folder, manifest)
        champion = read_champion(home)
        if manifest.promoted and (champion is None or _number(champion) < _number(manifest.version)):
            write_atomic(home / CHAMPION_FILE, manifest.version + "\n")
            storage.push_file(home / CHAMPION_FILE)
        return manifest


def bring(storage: Storage, home: Path) -> None:
    """Have the versions and the champion of the models in `home` here as they are in the remote root."""
    for folder in storage.folders(home, "v*"):
        if VERSION.fullmatch(folder.name):
            storage.bring(folder, PublishedManifest)
    storage.bring_file(home / CHAMPION_FILE)


def _next_folder(home: Path, storage: Storage) -> Path:
    """Return the folder of the next version, that no other machine will take."""
    number = 1 + max((_number(path.name.split(".")[0]) for path in home.glob("v*")), default=0)
    while not storage.claim(home / f"v{number}" / CLAIM_FILE):
        number += 1
    return home / f"v{number}"


def _publish(
    folder: Path,
    published: list[PublishedManifest],
    checkpoint: CheckpointManifest,
    metrics: Metrics,
    tokens: TokensManifest,
    raw: RawManifest,
    config: Config,
    flow_run_id: str | None,
) -> PublishedManifest:
    champion = next((manifest for manifest in published if manifest.version == read_champion(folder.parent)), None)
    bits_per_byte = metrics.splits["validation"].bits_per_byte
    promoted, reason = decide(config.publish, bits_per_byte, raw, champion)
    samples = draw_samples(checkpoint, raw, config.seed)
    with new_folder(folder) as temporary:
        for name in checkpoint.sha256:
            shutil.copyfile(checkpoint.folder / name, temporary / name)
        write_atomic(temporary / METRICS_FILE, json.dumps(metrics.content(), indent=2) + "\n")
        decision = Decision(promoted=promoted, reason=reason)
        lineage = describe_lineage(checkpoint, metrics, tokens, raw, decision, flow_run_id)
        write_atomic(temporary / LINEAGE_FILE, json.dumps(lineage, indent=2) + "\n")
        write_card(temporary, folder.name, checkpoint, metrics, tokens, raw, config, samples, decision, lineage)
        check_with_transformers(temporary, [row for row in read_rows(raw, "validation") if row][:SAMPLE_CHECK_ROWS])
        PublishedManifest(
            key=checkpoint.weights_sha256,
            name=config.name,
            version=folder.name,
            promoted=promoted,
            reason=reason,
            checkpoint_sha256=checkpoint.weights_sha256,
            tokens_key=tokens.key,
            raw_sha256=tokens.raw_sha256,
            bits_per_byte=bits_per_byte,
            samples=samples,
            sha256={path.name: sha256_file(path) for path in sorted(temporary.iterdir())},
        ).write(temporary)
    return PublishedManifest.read(folder).as_built()


def decide(
    policy: PublishConfig, bits_per_byte: float | None, raw: RawManifest, champion: PublishedManifest | None
) -> tuple[bool, str]:
    """Return whether a model with these validation bits a byte takes the champion's place, and the reason."""
    if policy.policy != "gate":
        return policy.policy == "always", f"publish.policy={policy.policy}"
    if champion is None:
        return True, "the first model"
    if champion.raw_sha256["validation"] != raw.splits["validation"].sha256:
        return True, f"the validation text is not the one {champion.version} was measured on"
    if bits_per_byte is None or champion.bits_per_byte is None:
        return True, f"no bits a byte to compare with {champion.version}"
    comparison = f"{bits_per_byte:.4f} bits a byte on validation, {champion.version} has {champion.bits_per_byte:.4f}"
    return bits_per_byte < champion.bits_per_byte, comparison


def draw_samples(checkpoint: CheckpointManifest, raw: RawManifest, seed: int) -> list[Sample]:
    """Return what the model writes after the first words of rows spread over the validation split."""
    rows = [row for row in read_rows(raw, "validation") if row.strip()]
    rows = [row for row in rows if len(row.split()) >= 2 * SAMPLE_PROMPT_WORDS] or rows or [""]
    loaded = load_model(checkpoint.folder)
    samples = []
    for number in range(SAMPLES):
        words = rows[number * len(rows) // SAMPLES].split()[:SAMPLE_PROMPT_WORDS]
        prompt = " ".join(words)
        sampling = SAMPLING.model_copy(update={"seed": seed + number})
        samples.append(Sample(prompt=prompt, continuation=generate(loaded, prompt, sampling)))
    return samples


def resolve(name: str, root: Path) -> Path:
    """Return the folder of MODEL: a published or a training folder, `NAME@champion` or `NAME@v3`.

    Raises:
        InputError: there is no such model.
    """
    if (folder := Path(name)).is_dir():
        return folder
    base, at, wanted = name.rpartition("@")
    if not at:
        raise InputError(f"{name!r}: no such folder; a published model is NAME@champion or NAME@v3")
    home = root / "models" / base
    chosen = read_champion(home) if wanted == "champion" else wanted
    if not VERSION.fullmatch(chosen or "") or not (home / chosen).is_dir():
        there = ", ".join(f"v{number}" for number in _numbers(home)) or "no version"
        raise InputError(f"{name!r}: no such model; {home} has {there}")
    return home / chosen


def read_tokens(folder: Path, root: Path) -> TokensManifest:
    """Return the tokens that the model of a published or a training folder was trained on.

    Raises:
        InputError: the folder does not say, or the tokens are no longer under `root`.
        Damaged: the tokens are not what they were.
    """
    for manifest_type in (PublishedManifest, CheckpointManifest):
        try:
            home = root / "processed" / manifest_type.read(folder).tokens_key
        except Damaged:
            continue
        if not home.is_dir():
            raise InputError(f"{folder}: its tokens are not at {home}; --root=FOLDER or --text=FILE")
        return TokensManifest.read(home)
    raise InputError(f"{folder}: no sound manifest says what it was trained on; --text=FILE measures it on a text")


def read_champion(home: Path) -> str | None:
    """Return the version in use of the models in `home`, None before the first is promoted."""
    file = home / CHAMPION_FILE
    return file.read_text().strip() if file.exists() else None


def _read_versions(home: Path) -> list[PublishedManifest]:
    """Return the versions that verify; a damaged one is set aside."""
    manifests = []
    for number in _numbers(home):
        folder = home / f"v{number}"
        try:
            manifests.append(PublishedManifest.read(folder))
        except Damaged as damage:
            set_aside(folder, damage)
    return manifests


def _numbers(home: Path) -> list[int]:
    return sorted(int(match[1]) for path in home.glob("v*") if (match := VERSION.fullmatch(path.name)))


def _number(version_name: str) -> int:
    match = VERSION.fullmatch(version_name)
    return int(match[1]) if match else 0
