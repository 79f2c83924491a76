"""Describe the benchmark's image sequences with one checkpoint and one variant.

Launch: python -m eval.mementos.predict --checkpoint DIR --variant imagechain --data DIR --output-dir RUN

Writes predictions.jsonl (one row a sample), skipped.jsonl and run.json. A rerun goes on where it stopped, after
checking that nothing that decides the texts has changed. --show prints the prompts and stops.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.mementos import sequences
from eval.mementos.data import DOMAINS, Benchmark, load_benchmark
from eval.mementos.sequences import Described, Sequences, Showing, settle
from eval.predict.job import (
    Job,
    PredictConfig,
    earlier_rows,
    length_problems,
    model_problems,
    named_base,
    trained_with,
)
from eval.predict.run import refuse_skips
from eval.runs import PREDICTIONS
from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, all_problems, option, to_json
from llava.imagechain.files import JsonlAppender, read_json, sha256_json, sha256_model, write_jsonl
from llava.imagechain.locks import only_one
from llava.imagechain.manifest import Run, run_manifest
from llava.imagechain.variants import VARIANTS, build_dialogue, get_variant

logger = logging.getLogger("eval.mementos")
# MLLM-ICL shows stories of the training set first; the paper's Table 3 has no such row.
USABLE = [name for name, variant in VARIANTS.items() if not variant.demonstrations]
BATCHES_PER_BLOCK = 8
# Settings that may change between a run and its resumption: they do not decide the texts.
FREE = {"checkpoint", "base", "data", "domains", "output_dir", "batch_size", "num_workers", "frames_per_call", "device",
        "max_skipped", "limit", "resume", "overwrite", "dry_run", "show"}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class MementosConfig:
    """Settings of eval.mementos.predict."""

    checkpoint: Path = option(help="model folder, LoRA folder, or checkpoint-N of a run")
    base: Path | None = option(None, help="base model of a LoRA folder; by default the one it names")
    variant: str = option(help="how a sequence is shown", choices=USABLE)
    data: Path = option(help="folder with the benchmark's CSVs and pictures, in any arrangement")
    domains: list[str] = option(list(DOMAINS), help="parts of the benchmark", choices=list(DOMAINS))
    output_dir: Path = option(help="folder for predictions.jsonl, skipped.jsonl and run.json")
    frames: str | None = option(
        None, help="single frames in groups, all averaged, or the composite; by default the variant's",
        choices=sequences.FRAMES,
    )  # fmt: skip
    max_scenes: int = option(6, help="most groups of frames, each one scene", minimum=1)
    earlier_text: str | None = option(
        None, help="texts of earlier scenes: the model's own answers, or empty; by default the variant's",
        choices=sequences.EARLIER_TEXT,
    )  # fmt: skip
    question: str | None = option(
        None, help="the last question: the variant's own, or the benchmark's; by default the variant's",
        choices=sequences.QUESTIONS,
    )  # fmt: skip
    answer: str | None = option(
        None, help="with own earlier text, all answers or the last one; by default joined with own questions",
        choices=sequences.ANSWERS,
    )  # fmt: skip
    batch_size: int = option(8, help="samples per batch", minimum=1)
    max_new_tokens: int = option(256, help="most tokens of an answer", minimum=1)
    max_length: int | None = option(
        None, help="most positions of prompt and answer; by default what the model takes", minimum=1
    )
    conversation: str = option("vicuna_v1", help="conversation template of the model")
    device: str | None = option(None, help="such as cpu or cuda:0; by default a GPU when there is one")
    dtype: str | None = option(
        None, help="by default bfloat16 on a GPU, float32 else", choices=("float32", "bfloat16", "float16")
    )
    frames_per_call: int | None = option(
        None, help="most frames in one call of the vision tower; by default all", minimum=1
    )
    num_workers: int = option(0, help="processes that decode pictures ahead", minimum=0)
    max_skipped: float = option(0.05, help="largest share of samples that may be left out", minimum=0)
    limit: int | None = option(None, help="only the first N samples of each domain", minimum=1)
    resume: bool = option(True, help="keep the predictions that are already there")
    overwrite: bool = option(False, help="drop the predictions that are already there")
    show: bool = option(False, help="print the prompt of the first samples (--limit, else 1 a domain) and stop")
    dry_run: bool = option(False, help="say what would be done and stop; no weight is loaded")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MementosJob:
    """What is to be predicted, checked before any weight is loaded."""

    config: MementosConfig
    showing: Showing
    benchmark: Benchmark
    described: list[Described]  # within the limit, not done yet
    unusable: list[dict[str, Any]]  # {"id", "domain", "reason"}: rows and samples that cannot be shown
    order: dict[str, int]  # place of each sample's row in predictions.jsonl
    model: Job  # what eval.predict needs to load the model


def prepare(config: MementosConfig) -> MementosJob:
    """Check everything that can be checked without loading weights.

    Raises:
        ConfigError: With all problems in one message.
    """
    problems = model_problems(config.checkpoint, config.base)
    problems += length_problems(config.checkpoint, config.base, config.max_length, config.max_new_tokens)
    try:
        benchmark = load_benchmark(config.data, config.domains)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError(all_problems("nothing was predicted", problems))
    variant = get_variant(config.variant)
    showing = settle(
        variant, config.max_scenes, config.frames, config.earlier_text, config.question, config.answer
    )  # fmt: skip
    described, unusable = usable_samples(config, benchmark, showing)
    base = config.base or named_base(config.checkpoint)
    settings = {name: value for name, value in to_json(config).items() if name not in FREE}
    identity = {
        **settings, **dataclasses.asdict(showing),
        "checkpoint_sha256": sha256_model(config.checkpoint),
        "base_sha256": sha256_model(base) if base else None,
    }  # fmt: skip
    inner = PredictConfig(
        checkpoint=config.checkpoint, base=config.base, variant=config.variant, stories=config.data,
        output_dir=config.output_dir, batch_size=config.batch_size, device=config.device, dtype=config.dtype,
        frames_per_call=config.frames_per_call, resume=config.resume, overwrite=config.overwrite,
    )  # fmt: skip
    job = earlier_rows(
        Job(
            config=inner, variant=variant, stories=Sequences([], []), demonstrations=None, identity=identity,
            trained=trained_with(config.checkpoint), done={}, skipped=set(), finished=False,
        )
    )  # fmt: skip
    return MementosJob(
        config=config, showing=showing, benchmark=benchmark, unusable=unusable, model=job,
        described=[one for one in described if not is_done(one, job.done)],
        order={sample.sample_id: number for number, sample in enumerate(benchmark.samples)},
    )  # fmt: skip


def usable_samples(
    config: MementosConfig, benchmark: Benchmark, showing: Showing
) -> tuple[list[Described], list[dict[str, Any]]]:
    """Return the samples whose pictures are there, and the others with the reason.

    Raises:
        ConfigError: More than the allowed share cannot be shown.
    """
    described: list[Described] = []
    unusable = [] if config.limit else list(benchmark.skipped)  # a few samples are not measured by all bad rows
    for name in benchmark.counts():
        for sample in [sample for sample in benchmark.samples if sample.domain == name][: config.limit]:
            try:
                described.append(Described(sample=sample, scenes=showing.scenes_of(sample)))
            except ValueError as error:
                unusable.append({"id": sample.sample_id, "domain": name, "reason": str(error)})
    refuse_skips(unusable, len(described) + len(unusable), config.max_skipped)
    return described, unusable


def is_done(one: Described, done: dict[str, dict[str, Any]]) -> bool:
    """Return whether an earlier run described this sample.

    Raises:
        ConfigError: It did, with another human description: other data.
    """
    row = done.get(one.sample.sample_id)
    if row is not None and row.get("reference") != one.sample.reference:
        raise ConfigError(
            f"sample {one.sample.sample_id} had another description in the earlier run; use --overwrite or another "
            "--output-dir"
        )
    return row is not None


def prediction_row(job: MementosJob, one: Described) -> dict[str, Any]:
    """Return the row of predictions.jsonl."""
    trained = job.model.trained
    return {
        "id": one.sample.sample_id,
        "domain": one.sample.domain,
        "variant": job.config.variant,
        "train_context": job.model.train_context,
        "seed": trained.get("seed"),
        "num_scenes": len(one.scenes),
        "num_frames": sum(map(len, one.scenes)),
        "prediction": job.showing.text(one.answers),
        "reference": one.sample.reference,
        "answers": one.answers,
        "dropped_scenes": one.dropped_scenes,
        "prompt_tokens": one.prompt_tokens,
        "new_tokens": one.new_tokens,
        "control": None,
    }


def predict(job: MementosJob, run: Run) -> None:
    """Predict what is not done yet, and write the rows in the order of the data."""
    from tqdm import tqdm

    from eval.mementos.generate import Prompting, describe
    from eval.predict.run import load_model

    config = job.config
    prompting = Prompting(
        loaded=load_model(job.model), variant=job.model.variant, showing=job.showing, conversation=config.conversation,
        max_length=config.max_length, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size,
        num_workers=config.num_workers,
    )  # fmt: skip
    skipped = list(job.unusable)
    total = len(job.described) + len(job.model.done) + len(skipped)
    pending = sorted(job.described, key=lambda one: -len(one.scenes))  # what does not fit shows at once
    size = config.batch_size * BATCHES_PER_BLOCK
    started = time.time()
    rows = dict(job.model.done)
    with (
        JsonlAppender(job.model.path) as output,
        tqdm(
            total=len(pending), unit="sample", desc=job.model.variant.title,
            mininterval=0.5 if sys.stderr.isatty() else 60,
        ) as progress,
    ):  # fmt: skip
        for start in range(0, len(pending), size):
            for one in describe(prompting, pending[start : start + size]):
                progress.update()
                if one.problem:
                    skipped.append({"id": one.sample.sample_id, "domain": one.sample.domain, "reason": one.problem})
                    refuse_skips(skipped, total, config.max_skipped)
                    continue
                rows[one.sample.sample_id] = prediction_row(job, one)
                output.write(rows[one.sample.sample_id])
    seconds = time.time() - started
    write_jsonl(config.output_dir / "skipped.jsonl", skipped)
    ordered = sorted(rows.values(), key=lambda row: job.order.get(row["id"], len(job.order)))
    write_jsonl(job.model.path, ordered)
    predicted = len(rows) - len(job.model.done)
    run.record(rows=len(rows), predicted=predicted, skipped=len(skipped), predict_seconds=round(seconds, 2))
    logger.info(
        "%s: %d samples, %d new in %.1f s, %d skipped -> %s",
        job.model.variant.title, len(rows), predicted, seconds, len(skipped), job.model.path,
    )  # fmt: skip


# --- command line -----------------------------------------------------------------------------------------------------


def show_prompts(job: MementosJob) -> str:
    """Return the conversation of the first samples of each domain; own earlier answers are named, not made."""
    from llava.imagechain.prompts import describe_dialogue

    config = job.config
    model_config = config.checkpoint / "config.json"
    chosen = read_json(model_config).get("imagechain_prompt") if model_config.is_file() else None
    blocks = [f"{job.model.variant.title}: {describe_showing(job.showing)}"]
    for name in job.benchmark.counts():
        for one in [one for one in job.described if one.sample.domain == name][: config.limit or 1]:
            if job.showing.earlier_text == "own":
                one.answers += [f"(the model's answer {number})" for number in range(1, len(one.scenes))]
            story = dataclasses.replace(Sequences([one], [len(one.scenes)])[0], background="")
            dialogue = sequences.ask(build_dialogue(story, job.model.variant), job.showing.final_question())
            text = describe_dialogue(dialogue, chosen or "figure3", None, config.conversation, None)
            frames = " + ".join(str(len(paths)) for paths in one.scenes)
            blocks.append(f"=== {one.sample.sample_id} ({name}): {frames} frames\n{text}")
    return "\n\n".join(blocks)


def describe_showing(showing: Showing) -> str:
    """Return the settings in one line."""
    most = f" (at most {showing.max_scenes})" if showing.frames == "groups" else ""
    return (
        f"frames {showing.frames}{most}, earlier text {showing.earlier_text}, question {showing.question}, "
        f"answer {showing.answer}"
    )


def show_plan(job: MementosJob) -> None:
    """Print what a run would do."""
    scenes = sum(len(one.scenes) for one in job.described)
    frames = sum(len(paths) for one in job.described for paths in one.scenes)
    answers = scenes if job.showing.earlier_text == "own" else len(job.described)
    print(
        f"{job.model.variant.title} with {job.config.checkpoint} (trained: {job.model.trained or 'base model'}): "
        f"{describe_showing(job.showing)}; {len(job.model.done)} samples are done, {len(job.described)} to predict "
        f"with {frames} pictures in {scenes} scenes, {answers} answers, {len(job.unusable)} cannot be used "
        f"-> {job.model.path}"
    )


def run(config: MementosConfig) -> None:
    """Predict what is not done yet, or show what would be done."""
    job = prepare(config)
    for row in job.unusable:
        logger.warning("skipped %s (%s): %s", row["id"], row["domain"], row["reason"])
    if config.show:
        print(show_prompts(job))
    elif config.dry_run:
        show_plan(job)
    elif all(one.sample.sample_id in job.model.skipped for one in job.described) and job.model.finished:
        logger.info("%s: all samples are predicted already -> %s", job.model.variant.title, job.model.path)
    else:
        if config.overwrite:
            (config.output_dir / PREDICTIONS).unlink(missing_ok=True)
        with (
            only_one(config.output_dir / ".predicting"),
            run_manifest(config.output_dir, config=to_json(config)) as manifest,
        ):
            facts = {"identity": job.model.identity, "trained": job.model.trained}
            manifest.record(**facts, showing=dataclasses.asdict(job.showing), data_sha256=data_sha256(job.benchmark))
            predict(job, manifest)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        MementosConfig, run, argv, program="python -m eval.mementos.predict", description=__doc__ or "",
        interrupted="the predictions so far are kept, run the same command again",
    )  # fmt: skip


def data_sha256(benchmark: Benchmark) -> str:
    """Return the hash of all ids and descriptions."""
    return sha256_json([[sample.sample_id, sample.domain, sample.reference] for sample in benchmark.samples])


if __name__ == "__main__":
    sys.exit(main())
