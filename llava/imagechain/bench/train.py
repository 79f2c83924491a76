"""Time training steps against steps done the authors' way, one row per lever.

Launch: python -m llava.imagechain.bench.train --model DIR --stories DIR --train-config FILE ... --output-dir OUT

Every row starts from the same weights and sees the same stories, with the same dtype, threads, optimizer and batch
size and no feature cache. A step is forward, backward, clipping and AdamW; reading and preprocessing the frames is not
timed. --config-from takes a config.json for random weights and --synthetic makes up stories, so that nothing need be
downloaded. The exit status is 1 when losses of equal batches differ or the last row is not fast enough.

Left out: packing of several stories into a row, which the model does not have (length grouping leaves a few percent of
padding). The peer does in this loop what the authors' model and script do in a step. LLaVA-NeXT's own trainer is one
more first row where --upstream-trainer names the file that makes it run; else the reason is said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llava.imagechain.bench.device import clock, machine_facts, peak_memory, start_memory, to_device
from llava.imagechain.bench.table import COMPILED, LOSS_TOLERANCE, ROWS, UPSTREAM, Measured, Row, summarize, table
from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, option, to_json
from llava.imagechain.files import write_json, write_text
from llava.imagechain.manifest import run_manifest

logger = logging.getLogger("llava.bench")
ROOT = Path(__file__).resolve().parents[3]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Settings of the benchmark."""

    model: Path | None = option(None, help="LLaVA folder to start from")
    config_from: Path | None = option(None, help="folder with a LLaVA config.json, for random weights")
    stories: Path | None = option(None, help="StoryFrames folder")
    synthetic: int | None = option(None, help="make up N stories of 2 to 7 scenes instead", minimum=1)
    train_config: list[str] = option([], help="YAML files of training settings, as llava.train.train takes them")
    set: list[str] = option([], help="changes to them, such as per_device_train_batch_size=16")
    output_dir: Path = option(help="folder for train.json and train.md")
    warmup: int = option(10, help="steps before the timed ones", minimum=0)
    steps: int = option(50, help="timed steps of a row", minimum=1)
    rounds: int = option(1, help="times that each row is measured; the median is shown", minimum=1)
    compiled: bool = option(False, help="one more row: the language model's layers by torch.compile")
    threads: int | None = option(None, help="threads of torch; by default as many as it takes by itself", minimum=1)
    least_speedup: float = option(2.0, help="wanted speed of the last row over the first")
    peer: Path = option(ROOT / "scripts" / "bench" / "peers" / "train_like_authors.py", help="the authors' way")
    upstream_trainer: Path | None = option(None, help="scripts/bench/peers/train_upstream.py, for one more first row")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """What all rows share.

    Attributes:
        start: Values of what trains.
        batches: The order by `Row.random_order`.
        upstream: The peer with LLaVA-NeXT's trainer, None where that row is left out.
        left_out: Why it is, None where nobody asked for it.
    """

    config: BenchConfig
    settings: Any
    peer: Any
    model: Any
    start: list[Any]
    examples: Any
    collate: Callable[..., Any]
    batches: dict[bool, list[list[int]]]
    upstream: Any = None
    left_out: str | None = None


def prepare(config: BenchConfig) -> Bench:
    """Load or make the model and the stories, and choose the batches."""
    import torch

    from llava.imagechain.arguments import parse_arguments
    from llava.imagechain.bench.synthetic import SyntheticStories, random_model
    from llava.imagechain.data import Collator
    from llava.imagechain.examples import make_examples, read_stories
    from llava.imagechain.order import LengthGroupedSampler
    from llava.imagechain.parts import prepare_model
    from llava.imagechain.start import load_model
    from llava.imagechain.variants import get_variant

    folder = config.model or config.config_from
    if not folder or (config.model and config.config_from) or bool(config.stories) == bool(config.synthetic):
        raise ConfigError("one of --model and --config-from, and one of --stories and --synthetic, were wanted")
    given = {
        "model_name_or_path": str(folder), "stories": str(config.stories or folder), "eval_strategy": "no",
        "output_dir": str(config.output_dir),
    }  # fmt: skip
    for change in config.set:
        name, _, value = change.partition("=")
        given[name] = value
    flags = [word for name, value in given.items() for word in (f"--{name}", value)]
    groups, _ = parse_arguments([*(["--config", *config.train_config] if config.train_config else []), *flags])
    model_arguments, data, settings = groups
    torch.manual_seed(settings.seed)
    loaded = load_model(groups) if config.model else random_model(folder, groups, with_files=not config.synthetic)
    if config.synthetic:
        examples: Any = SyntheticStories(
            config.synthetic,
            loaded.model.config,
            loaded.model.get_vision_tower(),
            settings.model_max_length,
            settings.seed,
        )
    else:
        variant = get_variant(str(data.variant), data.variant_set)
        examples, _ = make_examples(groups, variant, read_stories(data, settings), loaded)
    size, needed = settings.per_device_train_batch_size, config.steps * settings.per_device_train_batch_size
    if len(examples) < needed:
        raise ConfigError(f"{config.steps} steps of {size} take {needed} stories, found {len(examples)}")
    peer = load_peer(config.peer)
    upstream = load_peer(config.upstream_trainer) if config.upstream_trainer else None
    left_out = upstream.why_not() if upstream else None
    if left_out:
        logger.warning("left out, %s: %s", UPSTREAM.title, left_out)
    chosen = peer.random_order(len(examples), settings.seed)[:needed]
    lengths = [examples.lengths[index] for index in chosen]
    grouped = LengthGroupedSampler(lengths, settings.global_batch_size, settings.length_group_batches, settings.seed)
    orders = {True: chosen, False: [chosen[position] for position in grouped]}
    batches = {kind: [order[i : i + size] for i in range(0, needed, size)] for kind, order in orders.items()}
    model = prepare_model(loaded.model, model_arguments).train()
    start = [parameter.detach().cpu().clone() for parameter in model.parameters() if parameter.requires_grad]
    return Bench(
        config=config, settings=settings, peer=peer, model=model, start=start, examples=examples,
        collate=Collator(getattr(loaded.tokenizer, "pad_token_id", None) or 0), batches=batches,
        upstream=None if left_out else upstream, left_out=left_out,
    )  # fmt: skip


def load_peer(path: Path) -> Any:
    """Load the authors' way from its file."""
    if not path.is_file():
        raise ConfigError(f"peer: {path} is missing; a file of scripts/bench/peers was wanted")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_row(bench: Bench, row: Row, warmup: int, steps: int) -> Measured:
    """Train from the start values with warm-up steps and timed steps."""
    import torch

    settings, model, peer = bench.settings, bench.model, bench.peer
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.no_grad():
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        for parameter, value in zip(trained, bench.start, strict=True):
            parameter.copy_(value)
            parameter.grad = None
    torch.manual_seed(settings.seed)
    found, before, order = Measured(), start_memory(settings.device), bench.batches[row.random_order]
    batches = [order[number % len(order)] for number in (*range(warmup), *range(steps))]
    with contextlib.ExitStack() as stack:
        if row.scene_by_scene:
            stack.enter_context(peer.one_tower_call_per_scene(inner))
        if row.checkpointing:
            stack.enter_context(peer.full_checkpointing(inner))
        if row.compiled:
            stack.enter_context(compiled_layers(inner))
        if row.upstream_trainer:
            done = bench.upstream.train(model, bench.examples, batches, bench.collate, settings)
        else:
            done = train(bench, row, batches)
        for number, (indices, (seconds, used, loss)) in enumerate(zip(batches, done, strict=True)):
            lengths = [bench.examples.lengths[index] for index in indices]
            if number >= warmup:
                found.seconds += seconds
                found.processor_seconds += used
                found.useful += sum(lengths)
                found.padded += max(lengths) * len(lengths)
            found.losses.append(loss)
            if not math.isfinite(loss):
                raise ValueError(f"{row.title}: the loss of step {len(found.losses)} is {loss}")
    found.memory = peak_memory(settings.device, before)
    return found


def train(bench: Bench, row: Row, batches: Sequence[Sequence[int]]) -> Iterator[tuple[float, float, float]]:
    """Train a step on each batch; yield its seconds, the processors' seconds and the loss."""
    import torch

    settings, model = bench.settings, bench.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    for indices in batches:
        batch = to_device(bench.collate([bench.examples[index] for index in indices]), settings.device)
        started, used = clock(settings.device), time.process_time()
        with torch.autocast(settings.device.type, dtype=torch.bfloat16, enabled=settings.bf16):
            if row.all_positions:
                loss = bench.peer.loss_of_all_positions(model, batch)
            else:
                loss = model(**batch, return_logits=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        seconds = clock(settings.device) - started
        yield seconds, time.process_time() - used, float(loss.detach())


@contextlib.contextmanager
def compiled_layers(model: Any) -> Iterator[None]:
    """Run the layers of the language model through torch.compile, for any length."""
    layers = model.get_model().layers
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


def useful_flops(bench: Bench) -> float:
    """Return the floating point operations of the timed steps; padding and recomputation are not counted."""
    from llava.imagechain.estimate import TrainPlan, estimate
    from llava.imagechain.pooling import needed_frames

    inner = bench.model.get_base_model() if hasattr(bench.model, "get_base_model") else bench.model
    rank = next((int(lora.r) for lora in getattr(bench.model, "peft_config", {}).values()), None)
    chosen = [index for batch in bench.batches[True] for index in batch]
    lengths = [bench.examples.lengths[index] for index in chosen]
    frames = [sum(map(len, needed_frames(bench.examples[index]["images"], inner.config))) for index in chosen]
    return estimate(inner.config, lengths, TrainPlan(lora_rank=rank), frames=frames).flops / TrainPlan().epochs


def bench_training(config: BenchConfig) -> int:
    """Measure, write the table, return the exit status."""
    import torch

    if config.threads:
        torch.set_num_threads(config.threads)
    with run_manifest(config.output_dir, config=to_json(config), name="bench_run.json"):
        bench = prepare(config)
        device = bench.settings.device
        try:
            runs = measure(bench)
        except torch.cuda.OutOfMemoryError as error:
            raise ConfigError(f"{error} A smaller per_device_train_batch_size was wanted (--set).") from error
        facts = {
            **machine_facts(device), "autocast": "bfloat16" if bench.settings.bf16 else "float32",
            "weights": str(next(p.dtype for p in bench.model.parameters() if not p.requires_grad)).split(".")[-1],
            "parameters": sum(p.numel() for p in bench.model.parameters()),
            "trained": sum(start.numel() for start in bench.start),
            "batch size": bench.settings.per_device_train_batch_size, "warm-up": config.warmup, "steps": config.steps,
            "rounds": config.rounds, **({"left out": bench.left_out} if bench.left_out else {}),
        }  # fmt: skip
        return report(bench, facts, runs, useful_flops(bench))


def measure(bench: Bench) -> list[list[Measured]]:
    """Run all rows in turn, round by round."""
    rows = rows_of(bench)
    runs: list[list[Measured]] = [[] for _ in rows]
    for row in rows:
        run_row(bench, row, 0, 1)  # what is made on the first use belongs to no row
    for number in range(bench.config.rounds):
        for row, done in zip(rows, runs, strict=True):
            done.append(run_row(bench, row, bench.config.warmup, bench.config.steps))
            logger.info("round %d: %-45s %8.2f s", number + 1, row.title, done[-1].seconds)
    return runs


def rows_of(bench: Bench) -> tuple[Row, ...]:
    """Return what is measured."""
    return (*([UPSTREAM] if bench.upstream else []), *ROWS, *([COMPILED] if bench.config.compiled else []))


def report(bench: Bench, facts: dict[str, Any], runs: list[list[Measured]], flops: float) -> int:
    """Print and write the table; 1 when losses differ or the aim is missed."""
    stories = bench.config.steps * bench.settings.per_device_train_batch_size
    rows = summarize(rows_of(bench), runs, stories, flops)
    write_json(bench.config.output_dir / "train.json", {"facts": facts, "rows": rows})
    text = table(rows, facts, with_tflops=bench.settings.device.type == "cuda")
    write_text(bench.config.output_dir / "train.md", text)
    print(text + f"-> {bench.config.output_dir / 'train.md'}")
    tolerance = LOSS_TOLERANCE[facts["autocast"]]
    wrong = [row["row"] for row in rows if row["loss_difference"] > tolerance]
    if wrong:
        logger.error("losses differ by more than %g on the same batches: %s", tolerance, "; ".join(wrong))
    return 0 if not wrong and rows[-1]["speedup"] >= bench.config.least_speedup else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # between the libraries themselves
    program = "python -m llava.imagechain.bench.train"
    return run_command(BenchConfig, bench_training, argv, program=program, description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
