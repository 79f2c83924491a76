"""What a LLaVA-NeXT checkout has to do; run by the tests in a process of its own, with the checkout on the path.

    python checks.py FOLDER RESULTS.json [NAME ...]

Each function named check_* is a check: it returns a JSON value, or raises. FOLDER keeps the tiny models between runs
over two checkouts (`families_of` in the one, `numbers_of` in the other).
"""

import contextlib
import importlib
import importlib.util
import json
import socket
import sys
import traceback
from pathlib import Path

FAMILIES = {
    "llava_qwen": ("LlavaQwen", {}),
    "llava_qwen_moe": (
        "LlavaQwenMoe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "llava_mistral": ("LlavaMistral", {}),
    "llava_mixtral": ("LlavaMixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "llava_gemma": ("LlavaGemma", {"head_dim": 16}),
}  # fmt: skip
# Their classes do not take `modalities`.
IMAGES_ONLY = ("llava_mistral", "llava_gemma")
SIZES = {
    "vocab_size": 480, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODULES = [
    "llava", "llava.constants", "llava.conversation", "llava.mm_utils", "llava.utils", "llava.model",
    "llava.model.builder", "llava.model.llava_arch", "llava.model.utils", "llava.model.apply_delta",
    "llava.model.consolidate", "llava.model.make_delta", "llava.model.multimodal_encoder.builder",
    "llava.model.multimodal_projector.builder", "llava.model.multimodal_resampler.builder",
    *[f"llava.model.language_model.{name}" for name in ("llava_llama", "llava_mpt", *FAMILIES)],
    "llava.eval.model_vqa", "llava.eval.evaluate_interleave", "llava.serve.cli", "llava.serve.controller",
    "llava.serve.model_worker", "llava.serve.register_worker", "llava.serve.sglang_worker", "llava.serve.test_message",
    "llava.serve.gradio_web_server", "llava.serve.gradio_multi_image", "llava.train.train", "llava.train.train_mem",
]  # fmt: skip


def tiny():
    """Return the builder of tiny folders that the unit tests use."""
    file = Path(__file__).parents[1] / "unit/conftest.py"
    spec = importlib.util.spec_from_file_location("tiny_folders", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pixels(seed, *shape):
    import torch

    return torch.randn(*shape, 3, 28, 28, generator=torch.Generator().manual_seed(seed))


def batch():
    """Return the ids, mask, labels and images of two rows."""
    import torch

    ids = torch.tensor([[1, 40, -200, 41, 42], [1, 50, 51, -200, 44]])
    return ids, torch.ones_like(ids), ids.masked_fill(ids < 0, -100), [pixels(1), pixels(2)]


def classes(family):
    module = importlib.import_module(f"llava.model.language_model.{family}")
    prefix = FAMILIES[family][0]
    return getattr(module, f"{prefix}ForCausalLM"), getattr(module, f"{prefix}Config")


def check_imports(folder):
    """Import every module that does not lack a package from outside; return what went wrong by module."""
    found = {}
    for name in MODULES:
        try:
            importlib.import_module(name)
            found[name] = "imported"
        except ModuleNotFoundError as error:
            inside = (error.name or "").split(".")[0] in ("llava", "trl")
            found[name] = f"ModuleNotFoundError: {error}" if inside else f"lacks {error.name}"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def check_where(folder):
    """Return the package's place and the library's version."""
    import transformers

    import llava

    return [str(Path(llava.__file__).parent), transformers.__version__]


def check_no_network(folder):
    """Import conversations and build every template's prompt without opening a connection."""

    def refuse(*arguments, **named):
        raise AssertionError(f"a connection was opened: {arguments}")

    before = socket.socket.connect
    socket.socket.connect = refuse
    try:
        sys.modules.pop("llava.conversation", None)
        conversation = importlib.import_module("llava.conversation")
    finally:
        socket.socket.connect = before
    return sorted(conversation.conv_templates)


def check_default_conversation(folder):
    """Set the default template from outside, as trainers of the checkout do, and return what is used then."""
    from llava import conversation as conversation_lib

    before = conversation_lib.default_conversation
    conversation_lib.default_conversation = conversation_lib.conv_templates["mpt"]
    try:
        again = importlib.import_module("llava.conversation")
        return [again.default_conversation.version, again.default_conversation.sep_style.name]
    finally:
        conversation_lib.default_conversation = before


def check_llama(folder):
    """Return shapes that Llama gives where callers of the checkout use it in their own ways."""
    import torch

    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

    paths = tiny().build_tiny_llava(Path(folder) / "tiny_llava")
    model = LlavaLlamaForCausalLM.from_pretrained(paths.full).eval()
    model.config.image_aspect_ratio, model.config.mm_patch_merge_type = "square", "flat"
    ids, mask, labels, images = batch()
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask, images=images).logits
        sizes = model.prepare_inputs_labels_for_multimodal(ids, None, mask, None, None, images, [(28, 28), (28, 28)])[4]
        logits, expanded = model(input_ids=ids, attention_mask=mask, labels=labels, images=images, dpo_forward=True)
        new = model.generate(
            inputs=ids[:1],
            images=images[:1],
            attention_mask=mask[:1],
            do_sample=False,
            max_new_tokens=3,
            pad_token_id=0,
        )  # fmt: skip
    torch.testing.assert_close(logits, plain)
    return {"sizes": list(sizes.shape), "dpo": [list(logits.shape), list(expanded.shape)], "new": list(new.shape)}


def family_check(family):
    def check(folder):
        """Build a tiny model, run and save it; return its numbers and what it cannot do."""
        import torch

        folder = Path(folder)
        kit = tiny()
        if not (folder / "tower").is_dir():
            kit.write_tower(folder / "tower")
        keys = {key: value for key, value in kit.LLAVA_CONFIG.items() if key.startswith(("mm_", "image_", "tokenizer"))}
        flat = {"mm_vision_tower": str(folder / "tower"), "image_aspect_ratio": "square", "mm_patch_merge_type": "flat"}
        model_class, config_class = classes(family)
        torch.manual_seed(0)
        model = model_class(config_class(**SIZES, **FAMILIES[family][1], **{**keys, **flat})).eval()
        model.get_vision_tower().load_model()
        ids, mask, labels, images = batch()
        scenes = [[pixels(3, 2)], [pixels(4, 3)]]
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask, images=images, image_sizes=[(28, 28)] * 2).logits
            assert expected.shape == (2, 20, 480) and torch.isfinite(expected).all()
            if family not in IMAGES_ONLY:
                logits = model(input_ids=ids, attention_mask=mask, images=scenes, modalities=["video-seq"] * 2).logits
                assert logits.shape == (2, 20, 480)
                logits, _ = model(input_ids=ids, attention_mask=mask, labels=labels, images=images, dpo_forward=True)
                torch.testing.assert_close(logits, expected)
        model.save_pretrained(folder / family, safe_serialization=True)
        kit.write_tokenizer(folder / family)
        again = model_class.from_pretrained(folder / family).eval()
        with torch.no_grad():
            torch.testing.assert_close(again(input_ids=ids, attention_mask=mask, images=images).logits, expected)
        return {"numbers": numbers_of(family, folder), "built": built(family, folder), "trains": trains(model)}

    return check


def trains(model):
    """Do one backward pass and return the library's error, if it has one (these classes are not ours)."""
    ids, mask, labels, images = batch()
    try:
        model.train()(input_ids=ids, attention_mask=mask, labels=labels, images=images).loss.backward()
    except AttributeError as error:
        return str(error)
    assert model.get_model().mm_projector[0].weight.grad.abs().sum() > 0
    return "yes"


def built(family, folder):
    """Load the folder without its vision weights through the builder; return whose tower it has then."""
    import torch
    from safetensors.torch import load_file, save_file

    from llava.model.builder import load_pretrained_model

    bare = Path(folder) / f"{family}-bare"
    bare.mkdir()
    for file in (Path(folder) / family).iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    tensors = load_file(Path(folder) / family / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if "vision_tower" not in name}
    save_file(kept, bare / "model.safetensors", metadata={"format": "pt"})
    _, model, processor, _ = load_pretrained_model(
        str(bare), None, family, device_map="cpu", torch_dtype="float32", attn_implementation="eager"
    )
    ids, mask, _, images = batch()
    with torch.no_grad():
        total = model(input_ids=ids, attention_mask=mask, images=images).logits.double().sum()
    return [float(total), processor.crop_size["height"]]


def numbers_of(family, folder):
    """Load a saved folder with the checkout's class; return row sums, loss and greedy ids (or the library's error)."""
    import torch

    model_class, _ = classes(family)
    model = model_class.from_pretrained(Path(folder) / family, attn_implementation="eager").eval()
    ids, mask, labels, images = batch()
    given = {"attention_mask": mask, "images": images, "image_sizes": [(28, 28)] * 2}
    extra = {} if family in IMAGES_ONLY else {"modalities": ["image", "image"]}
    result = {}
    with torch.no_grad():
        logits = model(input_ids=ids, **given, **extra).logits
        result["rows"] = [float(row.double().sum()) for row in logits]
        for name, run in {
            "loss": lambda: float(model(input_ids=ids, labels=labels, **given, **extra).loss),
            "new": lambda: model.generate(
                ids[:1], attention_mask=mask[:1], images=images[:1], image_sizes=[(28, 28)], do_sample=False,
                max_new_tokens=4, pad_token_id=0, **{key: value[:1] for key, value in extra.items()},
            ).tolist(),
        }.items():  # fmt: skip
            try:
                result[name] = run()
            except (AttributeError, TypeError) as error:
                result[name] = f"{type(error).__name__}: {error}"
    return result


CHECKS = {name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")}
CHECKS |= {family: family_check(family) for family in FAMILIES}
CHECKS |= {f"numbers_{f}": lambda folder, f=f: numbers_of(f, folder) for f in FAMILIES}


def main(folder, output, *names):
    """Run checks and write {name: {"value": ...} or {"error": text}}."""
    results = {}
    for name in names:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                results[name] = {"value": CHECKS[name](folder)}
        except Exception:
            results[name] = {"error": traceback.format_exc()}
    Path(output).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
