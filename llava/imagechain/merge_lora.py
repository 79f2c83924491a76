"""Add a LoRA adapter to its base and write the whole LLaVA model as one folder.

Launch: python -m llava.imagechain.merge_lora --checkpoint RUN --output-dir MERGED [--base DIR]

The folder appears when everything in it is written and its logits, read back, equal those of base and adapter side by
side. Tokenizer files are copied byte by byte, the decisions of training stay in config.json, and the training run's
run.json comes along. merge.json says how the folder was made.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.imagechain.config import ConfigError, option, parse_config, to_json
from llava.imagechain.files import read_json
from llava.imagechain.manifest import Run, run_manifest
from llava.imagechain.saving import (
    TOLERANCE,
    copy_training_manifest,
    find_base,
    new_folder,
    probe_logits,
    refuse_existing,
    relative_difference,
    same_folder,
)

logger = logging.getLogger("llava.merge_lora")
PROGRAM = "python -m llava.imagechain.merge_lora"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Settings of merge_lora."""

    checkpoint: Path = option(help="LoRA folder or checkpoint-N of a run")
    base: Path | None = option(None, help="base model's folder; by default the one the adapter names")
    output_dir: Path = option(help="folder of the whole model")
    dtype: str | None = option(
        None, help="type of the weights; by default the base's", choices=("float32", "bfloat16", "float16")
    )
    device: str = option("cpu", help="where the model is held while it is merged, such as cuda:0")
    tolerance: float | None = option(
        None, help="largest difference of logits, relative to the largest; by default 1e-4 in float32, more in 16 bit"
    )
    overwrite: bool = option(False, help="replace the output folder")
    dry_run: bool = option(False, help="check everything that needs no weights, say what would be done, and stop")


def check(config: MergeConfig) -> tuple[Path, str]:
    """Return base folder and dtype after all checks that need no weights.

    Raises:
        ConfigError: Something is missing or would be overwritten.
    """
    if not (config.checkpoint / "adapter_config.json").is_file():
        raise ConfigError(f"{config.checkpoint} is no LoRA folder: adapter_config.json was wanted in it")
    kind = read_json(config.checkpoint / "adapter_config.json").get("peft_type")
    if kind != "LORA":
        raise ConfigError(f"{config.checkpoint}: a LoRA adapter was wanted, found {kind!r}")
    base = find_base(config.checkpoint, config.base)
    for name, folder in (("checkpoint", config.checkpoint), ("base", base)):
        if same_folder(config.output_dir, folder):
            raise ConfigError(f"output_dir is the {name}'s folder {folder}; give another one")
    refuse_existing(config.output_dir, overwrite=config.overwrite)
    settings = read_json(base / "config.json")
    dtype = config.dtype or str(settings.get("dtype") or settings.get("torch_dtype") or "float16")
    if dtype not in TOLERANCE:
        raise ConfigError(f"{base} is of type {dtype!r}; choose one of {', '.join(TOLERANCE)} with --dtype")
    return base, dtype


def merge(config: MergeConfig, base: Path, dtype: str, folder: Path, run: Run) -> None:
    """Write the merged model into a folder and compare what is read back with base and adapter.

    Raises:
        ValueError: The logits differ by more than the tolerance.
    """
    from llava.imagechain.checkpoint import TOKENIZER_FILES, copy_tokenizer

    tokenizer, model, _, _ = _load(config.checkpoint, base, config.device, dtype, merge_adapter=False)
    wanted = probe_logits(model, tokenizer)
    model = model.merge_and_unload()
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(str(folder), safe_serialization=True, max_shard_size="5GB")
    own = any((config.checkpoint / name).is_file() for name in TOKENIZER_FILES)
    copy_tokenizer(folder, tokenizer, config.checkpoint if own else base)
    copy_training_manifest(config.checkpoint, folder)
    del model
    gc.collect()  # a 7B model twice in memory would be too much for most machines

    tokenizer, model, _, _ = _load(folder, None, config.device, dtype)
    difference = relative_difference(probe_logits(model, tokenizer), wanted)
    tolerance = TOLERANCE[dtype] if config.tolerance is None else config.tolerance
    run.record(base=str(base), dtype=dtype, logits_relative_difference=difference, tolerance=tolerance)
    if not difference <= tolerance:
        raise ValueError(
            f"the merged model's logits differ from base and adapter by {difference:.2g} of the largest, allowed are "
            f"{tolerance:.2g}; nothing was written. Try --dtype float32."
        )
    logger.info("logits: largest relative difference %.2g, allowed %.2g", difference, tolerance)


def _load(path: Path, base: Path | None, device: str, dtype: str, **options: Any) -> tuple[Any, Any, Any, int]:
    from llava.model.builder import load_pretrained_model

    return load_pretrained_model(
        str(path), str(base) if base else None, "llava", device_map=device, torch_dtype=dtype,
        attn_implementation="sdpa", multimodal=True, **options,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    config = parse_config(MergeConfig, argv, program=PROGRAM, description=__doc__ or "")
    try:
        base, dtype = check(config)
        if config.dry_run:
            print(f"{config.checkpoint} on {base}, in {dtype} on {config.device} -> {config.output_dir}")
            return 0
        with (
            new_folder(config.output_dir, overwrite=config.overwrite) as folder,
            run_manifest(folder, config=to_json(config), name="merge.json") as run,
        ):
            merge(config, base, dtype, folder, run)
    except (ConfigError, ValueError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    logger.info("merged: %s", config.output_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
