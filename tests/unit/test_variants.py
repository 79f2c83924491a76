"""The variant table: what each variant shows, and that it is data only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from llava.imagechain import variants
from llava.imagechain.config import ConfigError
from llava.imagechain.variants import FIRST_QUESTION, NEXT_QUESTION, VARIANTS, build_dialogue, example_stories

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "variants"
CONVERSATIONS = ("vicuna_v1", "llama_2", "llava_llama_3", "mpt", "qwen_1_5", "gemma_instruct", "plain")


def shown(name, changes=()):
    """Return the dialogue as ("image"|"question text"|"text", ...) per turn, with the answer last."""
    variant = variants.get_variant(name, changes)
    story, others = example_stories()
    dialogue = build_dialogue(story, variant, others[: variant.demonstrations])
    number = {id(scene): i for i, scene in enumerate(story.scenes)}
    texts = {scene.description: f"d{i}" for i, scene in enumerate(story.scenes)}
    scenes = iter(dialogue.scenes)

    def part(p):
        return f"v{number.get(id(next(scenes)), '?')}" if p.kind == "image" else texts.get(p.text, p.text)

    return [([part(p) for p in turn.user], texts.get(turn.assistant, "?")) for turn in dialogue.turns]


def test_the_seven_variants_of_section_5_1_are_there():
    assert [v.title for v in VARIANTS.values()] == [
        "MLLM", "MLLM-ICL", "MLLM-FT", "VisualContext", "FinalScene", "ImageChain-NoFT", "ImageChain",
    ]  # fmt: skip
    assert {name for name, v in VARIANTS.items() if v.trained_as is None} == {"mllm", "mllm_icl", "imagechain_noft"}


def test_imagechain_has_a_turn_per_scene():
    expected = [
        ([FIRST_QUESTION, "v0"], "d0"),
        ([NEXT_QUESTION, "v1"], "d1"),
        ([NEXT_QUESTION, "v2"], "d2"),
    ]
    assert shown("imagechain") == expected
    assert shown("imagechain_noft") == expected


def test_mllm_has_one_turn_with_images_and_texts_in_order():
    assert shown("mllm") == [(["v0", "d0", "v1", "d1", NEXT_QUESTION, "v2"], "d2")]
    assert shown("mllm_ft") == shown("mllm")


def test_visual_context_shows_no_earlier_text_and_final_scene_no_earlier_scene():
    assert shown("visual_context") == [(["v0", "v1", NEXT_QUESTION, "v2"], "d2")]
    assert shown("final_scene") == [([FIRST_QUESTION, "v2"], "d2")]


def test_in_context_learning_shows_three_last_scenes_in_the_same_turn_format():
    *demonstrations, last = shown("mllm_icl")
    assert demonstrations == [([FIRST_QUESTION, "v?"], "?")] * 3
    assert [last] == shown("mllm")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_story_of_one_scene_asks_about_this_image(name):
    story, others = example_stories()
    last = story.without_oldest(2)
    dialogue = build_dialogue(last, VARIANTS[name], others[: VARIANTS[name].demonstrations])
    assert dialogue.turns[-1].user[-2].text == FIRST_QUESTION
    assert dialogue.scenes[-1] is last.scenes[-1]


def test_variant_set_gives_the_alternatives_of_the_baselines():
    assert shown("mllm", ["earlier_parts=none"]) == [([FIRST_QUESTION, "v2"], "d2")]
    assert shown("mllm", ["earlier_parts=image"]) == shown("visual_context")
    assert shown("mllm_icl", ["demonstration_parts=text"])[0] == ([FIRST_QUESTION], "?")
    assert shown("mllm_icl", ["demonstration_parts=story"])[0] == (
        ["v?", "A cat looks at a shelf.", NEXT_QUESTION, "v?"],
        "?",
    )
    assert len(shown("mllm_icl", ["demonstrations=1"])) == 2


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("imagechan", [], "did you mean 'imagechain'"),
        ("mllm", ["earlier_part=image"], "did you mean 'earlier_parts'"),
        ("mllm", ["earlier_parts=images"], "did you mean 'image'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        variants.get_variant(name, changes)


def test_epochs_are_the_papers():
    epochs = {name: [VARIANTS[name].num_epochs(c) for c in ("c2", "c3", "c4_7", "c2_7")] for name in VARIANTS}
    assert epochs["imagechain"] == [5, 5, 7, 3]
    assert epochs["mllm_ft"] == epochs["visual_context"] == epochs["final_scene"] == [3, 3, 3, 3]


def test_no_code_of_the_overlay_asks_for_a_variant_by_name():
    for file in (ROOT / "llava").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                words = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
                assert not words & set(VARIANTS), f"{file}:{node.lineno}"


@pytest.mark.parametrize("name", ["figure3", *CONVERSATIONS])
def test_the_printed_conversations_are_the_golden_ones(name):
    """Made by `python -m llava.imagechain.variants --show --imagechain_prompt template --conversation NAME`."""
    config = variants.ShowConfig(show=True)
    if name != "figure3":
        config = variants.ShowConfig(show=True, imagechain_prompt="template", conversation=name)
    assert variants.show(config) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_the_marks_of_the_final_tokens_are_those_of_the_text(tiny_llava, capsys):
    arguments = ["--show", "--variant", "imagechain", "mllm_ft", "--tokenizer", str(tiny_llava.full)]
    assert variants.main(arguments) == 0
    printed = capsys.readouterr().out
    golden = (GOLDEN / "figure3.txt").read_text(encoding="utf-8")

    def marked(text, title):
        body = text[text.index(f"=== {title} (") :].split("\n\n")[0]
        return [part.split("»")[0].replace("▁", "").replace(" ", "") for part in body.split("«")[1:]]

    def spelled(pieces):  # bytes of letters outside the small vocabulary
        import re

        return [re.sub("<0x([0-9A-F]{2})>", lambda found: chr(int(found[1], 16)), piece) for piece in pieces]

    for title in ("ImageChain", "MLLM-FT"):
        assert spelled(marked(printed, title)) == marked(golden, title)


def test_the_command_does_not_load_torch_and_refuses_an_unknown_variant():
    code = "import sys; from llava.imagechain import variants; variants.main(['--show']); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.endswith("False\n")
    command = [sys.executable, "-m", "llava.imagechain.variants", "--show", "--variant", "imagechan"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 2
    assert "did you mean 'imagechain'" in run.stderr


def test_the_command_writes_to_a_file_and_names_what_is_wrong(tmp_path, capsys):
    assert variants.main(["--output", str(tmp_path / "new" / "table.txt")]) == 0
    assert "imagechain       ImageChain" in (tmp_path / "new" / "table.txt").read_text()
    assert variants.main(["--show", "--variant", "mllm", "--variant-set", "earlier_parts=images"]) == 2
    assert "variant_set earlier_parts: unknown value 'images' (did you mean 'image'?)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        variants.main(["--limit", "0"])
    assert "limit: at least 1 was wanted, found 0" in capsys.readouterr().err
