"""Time prediction against a loop of one story at a time, one row per lever.

Launch: python -m eval.predict.bench --checkpoint DIR --stories DIR --output-dir OUT

Every row uses the same weights, dtype, threads, prompts and greedy decoding, a key-value cache and no feature cache;
frames are decoded and preprocessed in the timed part. Rounds are interleaved and the median is shown, with the
processor time beside it (other work on the machine disturbs that less; vLLM's own processes are not in it). The exit
status is 1 when prediction is not at least 4 times as fast as the authors' loop, or a text differs; vLLM's texts are
counted only, as its sums round otherwise.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.predict.job import PredictConfig, prepare
from eval.predict.vllm_backend import vllm_version
from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, option, to_json
from llava.imagechain.files import write_json, write_text
from llava.imagechain.manifest import git_revision, package_versions, run_manifest
from llava.imagechain.story import CONTEXTS
from llava.imagechain.variants import VARIANTS

if TYPE_CHECKING:
    from eval.predict.job import Job
    from llava.imagechain.checkpoint import LoadedModel
    from llava.imagechain.story import StoryFrames

logger = logging.getLogger("eval.predict.bench")
PEERS = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "peers"
AUTHORS = "one story at a time, one tower call a scene (the authors' way)"
LMMS_EVAL = "one request at a time, one tower call a request (lmms-eval's way)"
OURS = "+ batches of like length, a video's frames encoded once (eval.predict)"
VLLM = "the same, the language model run by vLLM (eval.predict --backend vllm)"
WANTED_SPEEDUP = 4.0
SHOWN_PACKAGES = ("python", "torch", "transformers")
Texts = dict[str, str]
Times = dict[str, list[tuple[float, float]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Settings of the benchmark."""

    checkpoint: Path = option(help="model folder, LoRA folder, or checkpoint-N of a run")
    base: Path | None = option(None, help="base model of a LoRA folder; by default the one it names")
    stories: Path = option(help="StoryFrames folder")
    context: str = option("c2_7", help="numbers of scenes", choices=list(CONTEXTS))
    variant: str = option(
        "imagechain", help="how a story is shown", choices=[n for n, v in VARIANTS.items() if not v.demonstrations]
    )
    output_dir: Path = option(help="folder for predict.json and predict.md")
    limit: int = option(64, help="stories (about), spread over the split video by video")
    batch_size: int = option(32, help="stories per batch")
    max_new_tokens: int = option(40, help="most tokens of an answer")
    rounds: int = option(3, help="times that each row is measured")
    threads: int | None = option(None, help="threads of torch; by default as many as it takes by itself")
    vllm: bool = option(False, help="add a row of eval.predict --backend vllm; vLLM has to be installed")
    engine_dir: Path | None = option(None, help="vllm: folder of the exported model; by default beside the checkpoint")
    enforce_eager: bool = option(False, help="vllm: do not compile; starts faster, runs slower")
    gpu_memory: float = option(0.5, help="vllm: share of the GPU's memory that it takes for itself")
    device: str | None = option(None, help="such as cpu or cuda:0; by default a GPU when there is one")
    dtype: str = option("float32", help="type of the weights", choices=("float32", "bfloat16", "float16"))


def load_peer(name: str) -> Any:
    """Load a file of scripts/bench/peers."""
    path = PEERS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"{path} is missing")
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    return peer


def make_rows(job: Job, loaded: LoadedModel, engine: Any = None) -> dict[str, Callable[[], Texts]]:
    """Return what is measured: the peers, the levers in their order, each row keeping those above it, and vLLM."""
    from eval.predict.generation import batches_by_length, generate
    from eval.predict.run import make_examples
    from llava.imagechain.decisions import decision

    config, size = job.config, job.config.batch_size

    def peer(name: str) -> Texts:
        return getattr(load_peer(name), name)(
            loaded.model, loaded.tokenizer, loaded.image_processor, job.chosen, job.variant,
            prompt_format=decision(loaded.model.config, "imagechain_prompt"), tokens=config.max_new_tokens,
        )  # fmt: skip

    def ours(batch_size: int, *, by_length: bool, vllm: bool = False) -> Texts:
        examples = make_examples(job, loaded)
        indices = list(range(len(examples)))
        batches = batches_by_length(examples.plans, indices, batch_size)
        if not by_length:
            batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        if vllm:
            from eval.predict.vllm_backend import generate_with_vllm

            engine.llm.reset_prefix_cache()  # the rounds before it count for nothing
            results = generate_with_vllm(engine, job, loaded, examples, batches)
        else:
            results = generate(loaded.model, loaded.tokenizer, examples, batches, max_new_tokens=config.max_new_tokens)
        return {result.plan.story_id: result.text for batch in results for result in batch}

    rows = {
        AUTHORS: lambda: peer("predict_one_by_one"),
        LMMS_EVAL: lambda: peer("predict_like_lmms_eval"),
        "one tower call a story; wanted layers and logits only": lambda: ours(1, by_length=False),
        f"+ batches of {size} in file order, one tower call a batch, shared prompt starts once": lambda: ours(
            size, by_length=False
        ),
        OURS: lambda: ours(size, by_length=True),
    }
    return rows | {VLLM: lambda: ours(size, by_length=True, vllm=True)} if engine else rows


def measure(rows: dict[str, Callable[[], Texts]], rounds: int) -> tuple[Times, dict[str, Texts]]:
    """Run each row once per round and return its (seconds, processor seconds) and texts."""
    seconds: Times = {name: [] for name in rows}
    texts: dict[str, Texts] = {}
    for number in range(rounds):
        for name, run in rows.items():
            started = (time.perf_counter(), time.process_time())
            texts[name] = run()
            seconds[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
            logger.info("round %d: %-72s %7.2f s", number + 1, name, seconds[name][-1][0])
    return seconds, texts


def bench(config: BenchConfig) -> int:
    """Measure, write the table, return the exit status."""
    import torch

    from eval.predict.run import load_model

    if config.threads:
        torch.set_num_threads(config.threads)
    job = prepare(predict_config(config))
    spread = spread_videos(job.stories, config.limit)
    job = dataclasses.replace(job, stories=spread)
    with run_manifest(config.output_dir, config=to_json(config), name="bench_run.json"):
        loaded = load_model(job)
        engine = started_engine(job, loaded) if config.vllm else None
        warm_up = dataclasses.replace(job, stories=spread.select(range(min(4, len(spread)))))
        measure(make_rows(warm_up, loaded, engine), 1)
        seconds, texts = measure(make_rows(job, loaded, engine), config.rounds)
        facts = {
            "device": str(loaded.model.device), "dtype": config.dtype, "threads": torch.get_num_threads(),
            "parameters": sum(p.numel() for p in loaded.model.parameters()), "stories": len(spread),
            "scenes": sum(spread.num_scenes), "frames": sum(map(sum, spread.frame_counts())), "rounds": config.rounds,
            "checkpoint": config.checkpoint.name, "variant": config.variant, "commit": git_revision(),
            **{name: version for name, version in package_versions().items() if name in SHOWN_PACKAGES},
            **({"vllm": vllm_version()} if engine else {}),
        }  # fmt: skip
    return report(config, facts, seconds, texts)


def started_engine(job: Job, loaded: LoadedModel) -> Any:
    """Start vLLM beside the model, which the other rows need whole.

    Raises:
        ConfigError: It is not installed, or cannot run the checkpoint.
    """
    from eval.predict.vllm_backend import find_problems, start_engine

    if problems := find_problems(job.config.checkpoint):
        raise ConfigError("; ".join(problems))
    return start_engine(job, job.config.dtype or "float32", min(loaded.context_length, 4096))


def spread_videos(stories: StoryFrames, limit: int) -> StoryFrames:
    """Return about `limit` stories: all those of videos that are spread evenly over the split, in file order."""
    videos = list(stories.table["video_name"])
    names = list(dict.fromkeys(videos))
    chosen = set(names[:: max(1, round(len(videos) / limit))])
    return stories.select([row for row, name in enumerate(videos) if name in chosen])


def predict_config(config: BenchConfig) -> PredictConfig:
    """Return the settings of eval.predict that the benchmark stands for."""
    shared = {field.name for field in dataclasses.fields(PredictConfig)} & set(vars(config)) - {"limit", "output_dir"}
    return PredictConfig(
        **{name: getattr(config, name) for name in shared}, output_dir=config.output_dir / "none", max_skipped=0.0
    )


def report(config: BenchConfig, facts: dict[str, Any], seconds: Times, texts: dict[str, Texts]) -> int:
    """Print and write the table; 1 when the aim is missed."""
    names = list(seconds)
    medians = {name: statistics.median(wall for wall, _ in values) for name, values in seconds.items()}
    work = {name: statistics.median(processor for _, processor in values) for name, values in seconds.items()}
    wanted = texts[names[0]]
    rows = [
        {
            "row": name,
            "stories_per_second": round(facts["stories"] / medians[name], 3),
            "speedup": round(medians[names[0]] / medians[name], 2),
            "same_text": sum(texts[name].get(story_id) == text for story_id, text in wanted.items()),
            "processor_ms_per_story": round(1000 * work[name] / facts["stories"], 1),
            "seconds": [round(wall, 3) for wall, _ in seconds[name]],
        }
        for name in names
    ]
    lines = ["| row | stories/s | speed | processor ms/story | same text |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {r['row']} | {r['stories_per_second']:.2f} | {r['speedup']:.2f}x | {r['processor_ms_per_story']} | "
        f"{r['same_text']}/{len(wanted)} |"
        for r in rows
    ]
    lines += ["", ", ".join(f"{name} {value}" for name, value in facts.items())]
    write_json(config.output_dir / "predict.json", {"facts": facts, "rows": rows})
    write_text(config.output_dir / "predict.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"-> {config.output_dir / 'predict.md'}")
    fast = next(row["speedup"] for row in rows if row["row"] == OURS) >= WANTED_SPEEDUP
    return 0 if fast and all(row["same_text"] == len(wanted) for row in rows if row["row"] != VLLM) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(BenchConfig, bench, argv, program="python -m eval.predict.bench", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
