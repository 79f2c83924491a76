"""Tiny LLaVA folders with fixed weights: tower, whole model, without tower, LoRA, projector, language model.

The tensors are drawn from seeded generators in a fixed order, so that the numbers measured on LLaVA-NeXT itself
(upstream_numbers.json) hold for them. The vision weights in the model folder differ from those in the tower folder.
And judged run folders, for the tests of tables, comparison and figure.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from llava.imagechain.files import sha256_json

HIDDEN, LAYERS, HEADS, INNER, VOCABULARY = 64, 2, 4, 128, 480
TOWER_HIDDEN, TOWER_LAYERS, TOWER_INNER, IMAGE, PATCH = 32, 3, 64, 28, 7
GRID = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
LINES = [
    "A chat between a curious user and an artificial intelligence assistant. USER: hello ASSISTANT: good morning",
    "What is happening in the first image? What is happening in the next image? What is happening in this image?",
    "The order of these images matters; the woman in the red shirt kicks the ball, the dog jumps over the box.",
    "<Image></Image> a man walks to the door and opens it - then he sits (or stands) on a chair. 0123456789",
]


def draws(seed):
    """Return a function that draws the next tensor of a seeded sequence."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=None, around_one=False):
        values = torch.randn(shape, generator=generator)
        if around_one:
            return 1 + 0.05 * values
        return values * (scale or 1.2 / (shape[-1] if len(shape) > 1 else 64) ** 0.5)

    return draw


def tower_tensors(seed, prefix=""):
    draw, p, d = draws(seed), prefix + "vision_model.", TOWER_HIDDEN
    tensors = {
        p + "embeddings.class_embedding": draw(d, scale=0.5),
        p + "embeddings.patch_embedding.weight": draw(d, 3, PATCH, PATCH, scale=0.08),
        p + "embeddings.position_embedding.weight": draw((IMAGE // PATCH) ** 2 + 1, d, scale=0.3),
    }

    def norm(name):
        tensors[name + ".weight"], tensors[name + ".bias"] = draw(d, around_one=True), draw(d, scale=0.05)

    def linear(name, rows, columns):
        tensors[name + ".weight"], tensors[name + ".bias"] = draw(rows, columns), draw(rows, scale=0.05)

    norm(p + "pre_layrnorm")
    norm(p + "post_layernorm")
    for layer in range(TOWER_LAYERS):
        q = f"{p}encoder.layers.{layer}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            linear(f"{q}self_attn.{name}", d, d)
        norm(q + "layer_norm1")
        norm(q + "layer_norm2")
        linear(q + "mlp.fc1", TOWER_INNER, d)
        linear(q + "mlp.fc2", d, TOWER_INNER)
    return tensors


def language_tensors(seed):
    draw, d = draws(seed), HIDDEN
    tensors = {
        "model.embed_tokens.weight": draw(VOCABULARY, d, scale=1.0),
        "model.norm.weight": draw(d, around_one=True),
    }
    for layer in range(LAYERS):
        q = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{q}self_attn.{name}.weight"] = draw(d, d)
        tensors[q + "mlp.gate_proj.weight"] = draw(INNER, d)
        tensors[q + "mlp.up_proj.weight"] = draw(INNER, d)
        tensors[q + "mlp.down_proj.weight"] = draw(d, INNER)
        tensors[q + "input_layernorm.weight"] = draw(d, around_one=True)
        tensors[q + "post_attention_layernorm.weight"] = draw(d, around_one=True)
    tensors["lm_head.weight"] = draw(VOCABULARY, d, scale=0.3)
    for layer, columns in ((0, TOWER_HIDDEN), (2, d)):
        tensors[f"model.mm_projector.{layer}.weight"] = draw(d, columns)
        tensors[f"model.mm_projector.{layer}.bias"] = draw(d, scale=0.05)
    tensors["model.image_newline"] = draw(d, scale=0.5)
    return tensors


def lora_tensors(seed):
    draw, tensors = draws(seed), {}
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.v_proj": (HIDDEN, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    for layer in range(LAYERS):
        for name, (rows, columns) in shapes.items():
            stem = f"base_model.model.model.layers.{layer}.{name}."
            tensors[stem + "lora_A.weight"] = draw(4, columns)
            tensors[stem + "lora_B.weight"] = draw(rows, 4, scale=0.1)
    return tensors


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))


def write_tokenizer(folder):
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 4), model_writer=model, vocab_size=420, model_type="bpe", byte_fallback=True,
        hard_vocab_limit=False, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, normalization_rule_name="identity",
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False,
        "clean_up_tokenization_spaces": False, "model_max_length": 4096, "padding_side": "right", **special,
    })  # fmt: skip
    write_json(folder / "special_tokens_map.json", {**special, "pad_token": "<unk>"})


def write_tower(folder):
    from safetensors.torch import save_file

    write_json(folder / "config.json", {
        "architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", "hidden_size": TOWER_HIDDEN,
        "intermediate_size": TOWER_INNER, "num_hidden_layers": TOWER_LAYERS, "num_attention_heads": 4,
        "image_size": IMAGE, "patch_size": PATCH, "num_channels": 3, "projection_dim": TOWER_HIDDEN,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    })  # fmt: skip
    write_json(folder / "preprocessor_config.json", {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": IMAGE},
        "resample": 3, "do_center_crop": True, "crop_size": {"height": IMAGE, "width": IMAGE}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    })  # fmt: skip
    save_file(tower_tensors(11), folder / "model.safetensors", metadata={"format": "pt"})


PLAIN_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
    "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "torch_dtype": "float32",
}  # fmt: skip
LLAVA_CONFIG = {
    **PLAIN_CONFIG, "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "use_mm_proj": True,
    "mm_vision_tower": "../tower", "mm_hidden_size": TOWER_HIDDEN, "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "mm_patch_merge_type": "spatial_unpad",
    "mm_spatial_pool_mode": "bilinear", "mm_newline_position": "one_token", "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": GRID, "mm_use_im_start_end": False, "mm_use_im_patch_token": False,
    "tokenizer_model_max_length": 4096, "tokenizer_padding_side": "right",
}  # fmt: skip
EXTRA = ("mm_projector", "image_newline")


@dataclass(frozen=True)
class TinyLlava:
    """Where the folders lie."""

    root: Path

    def __getattr__(self, name):
        """Return the folder `full`, `notower`, `lora`, `projector`, `plain` or `tower`."""
        folder = self.root / name
        if not folder.is_dir():
            raise AttributeError(name)
        return folder


def build_tiny_llava(root):
    """Write all folders under a root."""
    import torch
    from safetensors.torch import save_file

    language = language_tensors(12)
    extra = {name: tensor for name, tensor in language.items() if any(part in name for part in EXTRA)}
    plain = {name: tensor for name, tensor in language.items() if name not in extra}
    tower = tower_tensors(13, "model.vision_tower.vision_tower.")
    write_tower(root / "tower")
    folders = {
        "full": (LLAVA_CONFIG, {**language, **tower}),
        "notower": (LLAVA_CONFIG, language),
        "plain": (PLAIN_CONFIG, plain),
        "lora": (LLAVA_CONFIG, None),
        "projector": (LLAVA_CONFIG, None),
    }
    for name, (config, tensors) in folders.items():
        write_tokenizer(root / name) if name == "full" else None
        write_json(root / name / "config.json", config)
        for file in (root / "full").glob("*token*"):
            (root / name / file.name).write_bytes(file.read_bytes())
        if tensors:
            save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
    torch.save(extra, root / "projector" / "mm_projector.bin")
    torch.save(
        {"base_model.model." + key: value for key, value in extra.items()}, root / "lora" / "non_lora_trainables.bin"
    )
    save_file(lora_tensors(14), root / "lora" / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(root / "lora" / "adapter_config.json", {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "../plain", "r": 4, "lora_alpha": 8,
        "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
        "target_modules": r"model\.layers\.\d+\.(self_attn\.[qv]_proj|mlp\.down_proj)",
    })  # fmt: skip
    return TinyLlava(root)


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory):
    """Folders of the tiny LLaVA family."""
    return build_tiny_llava(tmp_path_factory.mktemp("tiny_llava"))


@pytest.fixture()
def copy_of_tiny_llava(tmp_path):
    """Folders of their own, to be damaged."""
    return build_tiny_llava(tmp_path / "family")


@pytest.fixture(scope="session")
def upstream_numbers():
    """Outputs of LLaVA-NeXT with the authors' ImageChain files on these weights."""
    return json.loads((Path(__file__).parent / "upstream_numbers.json").read_text())


@pytest.fixture(scope="session")
def make_run():
    """Write judged run folders."""
    return write_judged_run


def write_judged_run(
    folder, verdicts, *, variant="imagechain", control=None, context="c2_7", judge="world", stories="DIR", seed=None,
    videos=True,
):  # fmt: skip
    """Write a run folder; `verdicts` is a list of (number of scenes, "yes" | "no" | "unparsed" | None).

    Story i is "s<i>"; two stories after one another are of one video.
    """
    folder.mkdir(parents=True)
    predictions, judgments = [], []
    for i, (num_scenes, verdict) in enumerate(verdicts):
        texts = [f"reference {i}", f"prediction {i}"]
        predictions.append({
            "id": f"s{i}", "variant": variant, "train_context": context, "num_scenes": num_scenes, "seed": seed,
            "reference": texts[0], "prediction": texts[1], "dropped_scenes": int(num_scenes == 6), "control": control,
            **({"video_name": f"v{i // 2}"} if videos else {}),
        })  # fmt: skip
        judgments.append({
            "id": f"s{i}", "verdict": "no" if verdict == "unparsed" else verdict, "parsed": verdict != "unparsed",
            "answer": "a", "error": None, "judge": judge, "pair_sha256": sha256_json(texts),
        })  # fmt: skip
    for name, rows in (("predictions", predictions), ("judgments", judgments)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps({"status": "success", "config": {"stories": stories}}))
    return folder
