"""The overlay inside a LLaVA-NeXT checkout: everything that worked there before still works."""

import re
from pathlib import Path

import pytest

FAMILIES = ("llava_qwen", "llava_qwen_moe", "llava_mistral", "llava_mixtral", "llava_gemma")
ALONE = ("where", "imports", "no_network", "default_conversation", "llama")
CONVERSATIONS = [
    "chatml_direct", "default", "gemma_instruct", "llama_2", "llava_llama_2", "llava_llama_2_mmtag",
    "llava_llama_2_simple", "llava_llama_3", "llava_mistral_instruct", "llava_v0", "llava_v0_mmtag", "llava_v1",
    "llava_v1_mmtag", "mistral_direct", "mistral_instruct", "mistral_orca", "mistral_zephyr", "mpt", "plain",
    "qwen_1_5", "qwen_2", "qwen_2_5", "v0", "v0_plain", "v1", "vicuna_v1",
]  # fmt: skip


def version():
    import transformers

    return tuple(int(part) for part in transformers.__version__.split(".")[:2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checks")


@pytest.fixture(scope="module")
def results(overlaid, folder, run_checks):
    return run_checks(overlaid, folder, *ALONE, *FAMILIES)


def value(results, name):
    assert "error" not in results[name], results[name]["error"]
    return results[name]["value"]


def test_the_checkouts_package_is_the_one_that_runs(results, overlaid):
    assert value(results, "where")[0] == str(overlaid / "llava")


def test_every_module_of_the_checkout_imports(results):
    found = value(results, "imports")
    if version() >= (4, 56):  # a name that the library moved; LLaVA-NeXT's own file
        assert "apply_chunking_to_forward" in found.pop("llava.model.multimodal_resampler.builder")
    wrong = {name: what for name, what in found.items() if what != "imported" and not what.startswith("lacks")}
    assert not wrong
    lacking = [name for name, what in found.items() if what.startswith("lacks")]
    assert all(name.startswith(("llava.eval.", "llava.serve.")) for name in lacking), found


def test_conversations_import_without_network_and_are_all_there(results):
    assert value(results, "no_network") == CONVERSATIONS and len(CONVERSATIONS) == 26


def test_a_default_conversation_set_from_outside_is_used(results):
    assert value(results, "default_conversation") == ["mpt", "MPT"]


def test_llama_takes_what_callers_of_the_checkout_pass(results):
    found = value(results, "llama")
    assert found == {"sizes": [2, 20, 64], "dpo": [[2, 20, 480], [2, 20]], "new": [1, 3]}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_language_models_run_on_the_overlays_base_classes(results, family):
    if version() >= (5, 0) and "rope_parameters" in results[family].get("error", ""):
        pytest.skip("LLaVA-NeXT's config class of this family does not fit transformers 5")
    found = value(results, family)
    numbers = found["numbers"]
    assert found["built"] == [pytest.approx(sum(numbers["rows"]), rel=1e-6), 28]  # the tower is filled from its folder
    trouble = [what for what in (numbers["loss"], numbers["new"], found["trains"]) if "rror" in str(what) or what == ""]
    if family == "llava_mixtral":  # its forward lacks an argument (4.45), its constructor an attribute (4.57)
        assert all("output_router_logits" in what or "vocab_size" in what for what in trouble)
    else:
        assert not trouble and found["trains"] == "yes"


def test_other_language_models_give_what_they_gave_without_the_overlay(results, unmodified, folder, run_checks):
    if version() >= (4, 56):
        pytest.skip("LLaVA-NeXT without the overlay imports up to transformers 4.55 only")
    before = run_checks(unmodified, folder, *[f"numbers_{family}" for family in FAMILIES])
    for family in FAMILIES:
        now, then = value(results, family)["numbers"], value(before, f"numbers_{family}")
        assert now["rows"] == pytest.approx(then["rows"], rel=1e-4), family
        assert now["loss"] == pytest.approx(then["loss"], rel=1e-5) and now["new"] == then["new"], family


def test_the_models_own_tests_pass_inside_the_checkout(overlaid, python_in):
    unit = Path(__file__).parents[1] / "unit"
    files = sorted([*unit.glob("test_model_*.py"), unit / "test_mm_utils.py", unit / "test_conversation.py"])
    options = ["-q", "-x", "-p", "no:cacheprovider", "--import-mode=importlib", f"--rootdir={unit.parent}"]
    done = python_in(overlaid, "-m", "pytest", *options, *files)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 50
