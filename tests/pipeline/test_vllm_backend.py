"""vLLM against the library's own model: the same texts, the same logits of the first token.

Runs where this Python has vLLM, or with VLLM_PYTHON=/path/to/python of an environment that has it; skipped otherwise.
The model is the tiny one with two attention heads of 32 in place of four of 16, which vLLM's CPU build cannot do.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("VLLM_PYTHON") or (sys.executable if importlib.util.find_spec("vllm") else None)
ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1",
}  # fmt: skip
pytestmark = pytest.mark.skipif(PYTHON is None, reason="vLLM is not installed; VLLM_PYTHON names a Python that has it")

FIRST_TOKEN = """
import json, sys
from pathlib import Path
import torch
from eval.predict.generation import answer_batch
from eval.predict.run import load_model, make_examples, prepare
from eval.predict.job import PredictConfig
from eval.predict.vllm_backend import make_prompts, start_engine

def main():
    model, stories, output = map(Path, sys.argv[1:])
    config = PredictConfig(
        checkpoint=model, stories=stories, output_dir=output, variant="imagechain_noft", device="cpu", backend="vllm",
        engine_dir=output / "engine", enforce_eager=True, max_new_tokens=6,
    )
    job = prepare(config)
    loaded = load_model(job)
    examples = make_examples(job, loaded)
    batch = [examples[index] for index in range(len(examples))]
    wanted = []
    decode = loaded.model.lm_head.forward
    loaded.model.lm_head.forward = lambda states: wanted.append(decode(states)) or wanted[-1]
    for example in batch:
        answer_batch(loaded.model, [example], [], 1)
    engine = start_engine(job, "float32", 1024, logprobs_mode="raw_logits", max_logprobs=-1)
    prompts = make_prompts(loaded.model, batch, engine.image_id)
    from vllm import SamplingParams
    found = engine.llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=1, logprobs=-1, detokenize=False),
                         use_tqdm=False)
    differences, lengths = [], []
    for ours, theirs, example, plan in zip(wanted, found, batch, examples.plans, strict=True):
        seen = theirs.outputs[0].logprobs[0]
        rows = torch.tensor([seen[token].logprob for token in range(ours.shape[1])])
        differences.append(float((rows - ours[0]).abs().max()))
        lengths.append(len(theirs.prompt_token_ids) == plan.length)
    json.dump({"differences": differences, "lengths": lengths, "largest": float(torch.cat(wanted).abs().max())},
              (output / "logits.json").open("w"))

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def model(tiny_base, tmp_path_factory):
    """The tiny model with heads of 32."""
    import shutil

    root = tmp_path_factory.mktemp("heads")
    shutil.copytree(tiny_base.parent, root / "family")
    folder = root / "family" / tiny_base.name
    settings = json.loads((folder / "config.json").read_text())
    settings.update(num_attention_heads=2, num_key_value_heads=2)
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def run(*words):
    result = subprocess.run(
        [str(word) for word in words], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result


def test_texts_are_those_of_the_library(model, small_stories, tmp_path):
    rows = {}
    for backend in ("hf", "vllm"):
        run(
            PYTHON, "-m", "eval.predict", "--checkpoint", model, "--variant", "imagechain_noft", "--split", "train",
            "--stories", small_stories, "--output-dir", tmp_path / backend, "--backend", backend, "--device", "cpu",
            "--engine-dir", tmp_path / "engine", "--enforce-eager", "--max-new-tokens", 8,
        )  # fmt: skip
        rows[backend] = (tmp_path / backend / "predictions.jsonl").read_text()
    assert rows["hf"] == rows["vllm"] and rows["hf"].count("\n") >= 40
    assert json.loads((tmp_path / "vllm" / "run.json").read_text())["identity"]["backend"] == "vllm"
    assert json.loads((tmp_path / "engine" / "engine.json").read_text())["dtype"] == "float32"


def test_logits_of_the_first_token_are_those_of_the_library(model, small_stories, tmp_path):
    (tmp_path / "first_token.py").write_text(FIRST_TOKEN)
    run(PYTHON, tmp_path / "first_token.py", model, small_stories, tmp_path)
    found = json.loads((tmp_path / "logits.json").read_text())
    assert all(found["lengths"]) and found["differences"]
    assert max(found["differences"]) <= 1e-4 * found["largest"]
