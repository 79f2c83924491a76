"""Predict the description of each story's last scene with one checkpoint and one variant.

Launch: python -m eval.predict --checkpoint DIR --variant imagechain --stories DIR --context c2_7 --output-dir OUT

Writes predictions.jsonl (one row a story), skipped.jsonl and run.json. A rerun goes on where it stopped, after checking
that nothing that decides the texts has changed. The checkpoint may be a whole model, a LoRA folder or a checkpoint-N.
Several processes share a split with --num-shards, or when torchrun or srun starts them (eval/predict/shards.py).
--backend vllm has vLLM run the language model (eval/predict/vllm_backend.py).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from eval.predict.controls import edit_of
from eval.predict.job import Job, PredictConfig, named_base, prepare, usable_rows
from eval.predict.ranks import SHARDS, own_gpus
from eval.predict.shards import merge_when_complete
from eval.predict.vllm_backend import vllm_version
from eval.runs import PREDICTIONS
from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, to_json
from llava.imagechain.files import JsonlAppender, write_jsonl
from llava.imagechain.locks import only_one
from llava.imagechain.manifest import Run, run_manifest

if TYPE_CHECKING:
    from eval.predict.generation import Generated, PromptExamples
    from llava.imagechain.checkpoint import LoadedModel
    from llava.imagechain.estimate import Estimate
    from llava.imagechain.story import StoryFrames

logger = logging.getLogger("eval.predict")


def device_and_dtype(config: PredictConfig) -> tuple[str, str]:
    """Return the names of both, after trying the device.

    Raises:
        ConfigError: The device cannot be used.
    """
    import torch

    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name; a device that is not there
        raise ConfigError(f"device: {device} cannot be used: {str(error).splitlines()[0]}") from error
    return device, config.dtype or ("float32" if device == "cpu" else "bfloat16")


def load_model(job: Job) -> LoadedModel:
    """Load the checkpoint and follow the decisions it carries."""
    import torch

    from llava.imagechain.checkpoint import load_checkpoint

    config = job.config
    device, dtype = device_and_dtype(config)
    loaded = load_checkpoint(
        config.checkpoint, base=config.base, device=device, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    follow_decisions(job, loaded.model.config)
    loaded.model.get_vision_tower().frames_per_call = config.frames_per_call
    return loaded


def follow_decisions(job: Job, model_config: Any) -> None:
    """Bring the checkpoint's decisions and the run's settings together, in the model's config."""
    from llava.imagechain.decisions import DECISIONS, asked_of, settle_decisions

    config = job.config
    carries = any(getattr(model_config, name, None) is not None for name in DECISIONS)
    settled = settle_decisions(
        model_config, asked_of(config), trained=carries or bool(job.trained) or job.variant.trained_as is not None
    )
    logger.info("decisions: %s", ", ".join(f"{name}={value}" for name, value in settled.items()))
    trained_as = job.trained.get("variant")
    if trained_as and trained_as != job.variant.trained_as:
        logger.warning("%s was trained as %s, but is used for %s.", config.checkpoint, trained_as, job.variant.name)
    if job.variant.trained_as and not job.trained:
        logger.warning("%s is a trained variant, but %s names no training run.", job.variant.title, config.checkpoint)


def make_examples(job: Job, loaded: LoadedModel) -> PromptExamples:
    """Write out the prompts of all stories; those that cannot be shown are in its `skipped`."""
    from eval.predict.generation import PromptExamples
    from llava.imagechain.data import ExampleSettings, text_stories
    from llava.imagechain.decisions import decision, max_frames_per_scene

    config, model = job.config, loaded.model
    tower = model.get_vision_tower()
    limits = (config.max_length, loaded.context_length, getattr(model.config, "tokenizer_model_max_length", None))
    settings = ExampleSettings(
        tokens_per_scene=tower.num_patches,
        prompt_format=decision(model.config, "imagechain_prompt"),
        conversation_name=config.conversation,
        scene_aspect=decision(model.config, "imagechain_scene_aspect"),
        max_frames_per_scene=max_frames_per_scene(model.config),
        max_length=min(limit for limit in limits if limit),
        overlength=config.overlength,
        for_generation=True,
        reserve_tokens=config.max_new_tokens,
        seed=config.seed,
    )
    chosen = job.chosen
    blank = config.control == "blank_images"
    return PromptExamples(
        chosen, job.variant, loaded.tokenizer, loaded.image_processor, settings,
        demonstrations=job.demonstrations,
        edit=edit_of(config.control, text_stories(job.stories), config.seed),
        blank=blank,
        **({} if blank else _features(job, loaded, chosen, settings.scene_aspect)),
    )  # fmt: skip


def _features(job: Job, loaded: LoadedModel, chosen: StoryFrames, scene_aspect: str) -> dict[str, Any]:
    if job.config.feature_cache is None:
        return {}
    from llava.imagechain.features import cached_features

    collections = [chosen] if job.demonstrations is None else [chosen, job.demonstrations]
    found = cached_features(
        job.config.feature_cache, collections, loaded.model.get_vision_tower(), loaded.image_processor,
        scene_aspect=scene_aspect, num_workers=job.config.num_workers,
    )  # fmt: skip
    return {"features": found, "unreadable": found[0].unreadable}


def answers(
    job: Job, loaded: LoadedModel, examples: PromptExamples, pending: Sequence[int]
) -> Iterator[list[Generated]]:
    """Return the answers to the pending examples, some at a time."""
    from eval.predict.generation import batches_by_length, generate

    config = job.config
    batches = batches_by_length(examples.plans, pending, config.batch_size)
    if config.backend == "vllm" and batches:
        from eval.predict.vllm_backend import generate_with_vllm, keep_vision_only, start_engine

        keep_vision_only(loaded.model)
        engine = start_engine(job, device_and_dtype(config)[1], examples.settings.max_length)
        return generate_with_vllm(engine, job, loaded, examples, batches)
    return generate(
        loaded.model, loaded.tokenizer, examples, batches,
        max_new_tokens=config.max_new_tokens, num_workers=config.num_workers,
    )  # fmt: skip


def predict(job: Job, run: Run) -> None:
    """Predict what is not done yet."""
    from tqdm import tqdm

    config = job.config
    loaded = load_model(job)
    examples = make_examples(job, loaded)
    pending = [index for index, plan in enumerate(examples.plans) if plan.story_id not in job.done]
    skipped = list(examples.skipped)
    refuse_skips(skipped, job.num_wanted, config.max_skipped)
    results = answers(job, loaded, examples, pending)
    counts = {"predicted": 0, "prompt_tokens": 0, "new_tokens": 0, "shortened": 0}
    started = time.time()
    interval_s = 0.5 if sys.stderr.isatty() else 60
    title = f"{job.variant.title} {job.shard}" if job.shard else job.variant.title
    with (
        JsonlAppender(job.path) as output,
        tqdm(total=len(pending), unit="story", desc=title, mininterval=interval_s) as progress,
    ):
        for batch in results:
            for result in batch:
                if result.problem:
                    skipped.append({"id": result.plan.story_id, "reason": result.problem})
                    continue
                output.write(prediction_row(job, result))
                counts["predicted"] += 1
                counts["prompt_tokens"] += result.plan.length
                counts["new_tokens"] += result.new_tokens
                counts["shortened"] += result.plan.num_dropped_scenes > 0
            progress.update(len(batch))
            refuse_skips(skipped, job.num_wanted, config.max_skipped)
    seconds = time.time() - started
    order = {story_id: number for number, story_id in enumerate(job.stories.ids)}
    write_jsonl(job.folder / "skipped.jsonl", sorted(skipped, key=lambda row: order[row["id"]]))
    rows = sorted(usable_rows(job.path).values(), key=lambda row: order.get(row["id"], len(order)))
    write_jsonl(job.path, rows)
    predicted = counts["predicted"]
    run.record(
        rows=len(rows), skipped=len(skipped), **counts, predict_seconds=round(seconds, 2),
        stories_per_second=round(predicted / seconds, 3) if predicted else None,
    )  # fmt: skip
    logger.info(
        "%s: %d stories, %d new in %.1f s, %d skipped, %d shortened -> %s",
        title, len(rows), predicted, seconds, len(skipped), counts["shortened"], job.path,
    )  # fmt: skip


def prediction_row(job: Job, result: Generated) -> dict[str, Any]:
    """Return the row of predictions.jsonl."""
    plan = result.plan
    return {
        "id": plan.story_id,
        "variant": job.variant.name,
        "train_context": job.train_context,
        "seed": job.trained.get("seed"),
        "num_scenes": plan.num_scenes,
        "video_name": plan.video_name,
        "prediction": result.text,
        "reference": plan.reference,
        "dropped_scenes": plan.num_dropped_scenes,
        "prompt_tokens": plan.length,
        "new_tokens": result.new_tokens,
        "control": None if job.config.control == "none" else job.config.control,
    }


def refuse_skips(skipped: Sequence[dict[str, Any]], total: int, share: float) -> None:
    """Stop a run in which too many stories cannot be used.

    Raises:
        ConfigError: With the first reasons.
    """
    if len(skipped) > max(share * total, 0):
        shown = "; ".join(f"{row['id']}: {row['reason']}" for row in skipped[:3])
        raise ConfigError(
            f"{len(skipped)} of {total} stories cannot be used ({shown}); --max-skipped allows a share of {share:g}"
        )


def model_without_weights(job: Job) -> LoadedModel:
    """Return tokenizer and config of the checkpoint around a model on the meta device."""
    from llava.imagechain.checkpoint import LoadedModel
    from llava.imagechain.estimate import meta_model
    from llava.model.builder import load_tokenizer

    folder = job.config.checkpoint
    model = meta_model(folder)
    follow_decisions(job, model.config)
    try:
        tokenizer = load_tokenizer(str(folder))
    except FileNotFoundError:
        base = job.config.base or named_base(folder)
        if base is None:
            raise
        tokenizer = load_tokenizer(str(base))
    limit = int(getattr(model.config, "max_position_embeddings", None) or 2048)
    return LoadedModel(tokenizer=tokenizer, model=model, image_processor=None, context_length=limit)


def needs(job: Job) -> Estimate:
    """Estimate what predicting what is not done yet will need."""
    from llava.imagechain.estimate import PredictPlan, estimate

    loaded = model_without_weights(job)
    config = dataclasses.replace(job.config, feature_cache=None)  # nothing is computed or read for an estimate
    examples = make_examples(dataclasses.replace(job, config=config), loaded)
    left = [number for number, plan in enumerate(examples.plans) if plan.story_id not in job.done]
    counts = examples.num_frames()
    frames = [counts[number] for number in left]
    plan = PredictPlan(
        batch_size=config.batch_size, max_new_tokens=config.max_new_tokens, dtype=config.dtype or "bfloat16"
    )
    return estimate(
        loaded.model, [examples.plans[number].length for number in left], plan,
        frames=None if job.config.feature_cache or config.control == "blank_images" else frames, tflops=config.tflops,
    )  # fmt: skip


def show_plan(job: Job) -> None:
    """Print what a run would do and need."""
    chosen = job.chosen
    left = [row for row, story_id in enumerate(chosen.ids) if story_id not in job.done]
    frames = chosen.frame_counts()
    scenes = sum(chosen.num_scenes[row] for row in left)
    total = sum(sum(frames[row]) for row in left)
    print(
        f"{job.variant.title} with {job.config.checkpoint} (trained: {job.trained or 'base model'}): "
        f"{len(chosen)} stories, {len(left)} to predict with {scenes} scenes and {total} frames, in "
        f"{-(-len(left) // job.config.batch_size)} batches of {job.config.batch_size} -> {job.path}"
    )
    print(needs(job).describe())


def start(job: Job) -> None:
    """Predict in the job's folder, on GPUs of its own when there are other processes on the machine."""
    config = job.config
    if config.device is None and (gpus := own_gpus(os.environ, config.tensor_parallel_size)):
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    if job.shard:  # the others work for themselves: no library has to look for them
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)
    device, dtype = device_and_dtype(config)
    if job.done and job.dtype not in (None, dtype):
        raise ConfigError(
            f"{job.folder} holds predictions in {job.dtype}, and {device} takes {dtype} by itself; go on with "
            f"--dtype {job.dtype}, use --overwrite or another folder"
        )
    if config.overwrite:
        job.path.unlink(missing_ok=True)
        (config.output_dir / PREDICTIONS).unlink(missing_ok=True)
        if job.shard is None:
            shutil.rmtree(config.output_dir / SHARDS, ignore_errors=True)
    with run_manifest(job.folder, config=to_json(config)) as run:
        run.record(identity=job.identity, trained=job.trained, device=device, dtype=dtype)
        if config.backend == "vllm":
            run.record(vllm=vllm_version())
        predict(job, run)


def run(config: PredictConfig) -> None:
    """Predict what is not done yet, or show what would be done."""
    job = prepare(config)
    if config.dry_run:
        show_plan(job)
        return
    if job.finished and set(job.chosen.ids) <= job.done.keys() | job.skipped:
        logger.info("%s: all stories are predicted already -> %s", job.variant.title, job.path)
    else:
        with only_one(job.folder / ".predicting"):
            start(job)
    merge_when_complete(job)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        PredictConfig, run, argv, program="python -m eval.predict", description=__doc__ or "",
        interrupted="the predictions so far are kept, run the same command again",
    )  # fmt: skip
