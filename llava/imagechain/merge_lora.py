"""Add a LoRA adapter to its base and write the whole LLaVA model as one folder.

Launch: python -m llava.imagechain.merge_lora --checkpoint RUN --output-dir MERGED [--base DIR]

The folder appears when everything in it is written and its logits, read back, equal those of base and adapter side by
side. Tokenizer files are copied byte by byte, the decisions of training stay in config.json, and the training run's
run.json comes along. merge.json says how the folder was made.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, to_json
from llava.imagechain.files import read_object
from llava.imagechain.manifest import Run, run_manifest
from llava.imagechain.saving import (
    FolderConfig,
    check_folders,
    compare_logits,
    copy_training_manifest,
    new_folder,
    probe_logits,
    trained_base,
)

logger = logging.getLogger("llava.merge_lora")
PROGRAM = "python -m llava.imagechain.merge_lora"


def check(config: FolderConfig) -> tuple[Path, str]:
    """Return base folder and dtype after all checks that need no weights.

    Raises:
        ConfigError: Something is missing or would be overwritten.
    """
    if not (config.checkpoint / "adapter_config.json").is_file():
        raise ConfigError(f"{config.checkpoint} is no LoRA folder: adapter_config.json was wanted in it")
    kind = read_object(config.checkpoint / "adapter_config.json").get("peft_type")
    if kind != "LORA":
        raise ConfigError(f"{config.checkpoint}: a LoRA adapter was wanted, found {kind!r}")
    base = trained_base(config)
    return base, check_folders(config, base, base)


def merge(config: FolderConfig, base: Path, dtype: str, folder: Path, manifest: Run) -> None:
    """Write the merged model into a folder and compare what is read back with base and adapter.

    Raises:
        ValueError: The logits differ by more than the tolerance.
    """
    import torch

    from llava.imagechain.checkpoint import TOKENIZER_FILES, copy_tokenizer, load_checkpoint
    from llava.imagechain.distributed import spare_deepspeed_a_guess

    spare_deepspeed_a_guess()
    place: dict[str, Any] = {"device": config.device, "dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
    loaded = load_checkpoint(config.checkpoint, base=base, merge_adapter=False, **place)
    tokenizer, model = loaded.tokenizer, loaded.model
    wanted = probe_logits(model, tokenizer)
    model = model.merge_and_unload()
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(str(folder), safe_serialization=True, max_shard_size="5GB")
    own = any((config.checkpoint / name).is_file() for name in TOKENIZER_FILES)
    copy_tokenizer(folder, tokenizer, config.checkpoint if own else base)
    copy_training_manifest(config.checkpoint, folder)
    del model, loaded
    gc.collect()  # a 7B model twice in memory would be too much for most machines

    merged = load_checkpoint(folder, **place)
    found = compare_logits(probe_logits(merged.model, merged.tokenizer), wanted, config, dtype)
    manifest.record(base=str(base), dtype=dtype, **found)


def run(config: FolderConfig) -> None:
    """Check, then write the folder."""
    base, dtype = check(config)
    if config.dry_run:
        print(f"{config.checkpoint} on {base}, in {dtype} on {config.device} -> {config.output_dir}")
        return
    with (
        new_folder(config.output_dir, overwrite=config.overwrite) as folder,
        run_manifest(folder, config=to_json(config), name="merge.json") as manifest,
    ):
        merge(config, base, dtype, folder, manifest)
    logger.info("merged: %s", config.output_dir)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(FolderConfig, run, argv, program=PROGRAM, description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
