"""Templates: the 26 names, the shape of each style's prompt, ImageChain's bare form, no network at import."""

import hashlib
import subprocess
import sys

import pytest
from PIL import Image

from llava import conversation
from llava.conversation import Conversation, SeparatorStyle, conv_templates

# First 8 digits of SHA-256 of the prompt of ("hello <image> x", "an answer", "second", None) by LLaVA-NeXT at df17966.
DIGESTS = {
    "default": "64fa24bb",
    "v0": "64fa24bb",
    "v1": "274f33dd",
    "vicuna_v1": "274f33dd",
    "llama_2": "69bf0373",
    "mistral_instruct": "b909a980",
    "mistral_orca": "79ca980e",
    "mistral_zephyr": "58e8c7b4",
    "mistral_direct": "49b6033a",
    "chatml_direct": "49b6033a",
    "llava_v0": "86191f2f",
    "llava_v0_mmtag": "007a09b6",
    "llava_v1": "bd90a704",
    "llava_v1_mmtag": "2caf6434",
    "llava_llama_2": "9057ae0d",
    "llava_llama_3": "3e58b101",
    "llava_llama_2_simple": "4c8bf7d7",
    "llava_llama_2_mmtag": "9f38bba6",
    "llava_mistral_instruct": "b909a980",
    "mpt": "801eb3da",
    "qwen_1_5": "c6e99fb3",
    "qwen_2": "c6e99fb3",
    "qwen_2_5": "4bc871dd",
    "gemma_instruct": "0ae710e1",
}


class ChatTokenizer:
    def apply_chat_template(self, messages, **_):
        return repr(messages)


def prompt_of(name, *messages):
    talk = conv_templates[name].copy()
    if name == "llava_llama_3":
        talk.tokenizer = ChatTokenizer()
    for number, message in enumerate(messages):
        talk.append_message(talk.roles[number % 2], message)
    return talk.get_prompt()


def test_all_names_are_there():
    assert len(conv_templates) == 26 and set(DIGESTS) | {"plain", "v0_plain"} == set(conv_templates)


@pytest.mark.parametrize("name", DIGESTS)
def test_prompts_are_upstreams_to_the_letter(name):
    prompt = prompt_of(name, "hello <image> x", "an answer", "second", None)
    assert hashlib.sha256(prompt.encode()).hexdigest()[:8] == DIGESTS[name]


def test_vicuna_v1_prompt():
    assert prompt_of("vicuna_v1", "hi", "yes", "more", None) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: hi ASSISTANT: yes</s>USER: more ASSISTANT:"
    )


def test_plain_prompt_is_the_messages():
    assert prompt_of("plain", "<image>", "a caption") == "<image>\na caption"


def test_without_roles_the_messages_stand_alone_in_style_two_only():
    talk = conv_templates["llava_v1"].copy()
    talk.append_message("USER", "whole transcript ASSISTANT:")
    talk.append_message("ASSISTANT", None)
    assert talk.get_prompt(add_roles=False) == "whole transcript ASSISTANT:"
    single = conv_templates["llava_v0"].copy()
    single.append_message("Human", "hi")
    assert single.get_prompt(add_roles=False) == single.get_prompt()


def test_a_first_message_with_an_image_gets_its_mark_in_front():
    assert "USER: <image>\nlook here ASSISTANT:" in prompt_of("v1", ("look <image>here", "a.png", "Crop"), None)
    tagged = prompt_of("llava_v1_mmtag", ("look", "a.png", "Crop"), None)
    assert "USER: <Image><image></Image> ASSISTANT: Received.</s>USER: look ASSISTANT:" in tagged


def test_later_messages_with_images_get_marks_in_chatml():
    assert "<image><image>more" in prompt_of("qwen_2", "hi", "yes", ("more", ["a.png", "b.png"], "Pad"), None)


def test_copies_share_nothing_and_drop_the_tokenizer():
    talk = conv_templates["llava_llama_3"].copy()
    talk.append_message("user", "hi")
    assert conv_templates["llava_llama_3"].messages == [] and talk.tokenizer is None and talk.tokenizer_id == ""


def test_rules_on_turns_are_errors():
    talk = conv_templates["llama_2"].copy()
    with pytest.raises(ValueError, match="first message"):
        talk.get_prompt()
    gemma = conv_templates["gemma_instruct"].copy()
    gemma.append_message(gemma.roles[1], "hi")
    with pytest.raises(ValueError, match="Turn 0"):
        gemma.get_prompt()
    with pytest.raises(ValueError, match="sep_style"):
        Conversation(system="", roles=("a", "b"), messages=[], offset=0, sep_style=SeparatorStyle.QWEN).get_prompt()


def test_llama_3_without_its_tokenizer_says_what_to_do():
    talk = conv_templates["llava_llama_3"].copy()
    talk.append_message("user", "hi")
    with pytest.raises(ValueError, match="tokenizer"):
        talk.get_prompt()


def test_images_are_handed_over_and_shown(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (60, 40), (255, 0, 0)).save(path)
    talk = conv_templates["v1"].copy()
    talk.append_message("USER", ("look", [str(path), "clip.mp4"], "Pad"))
    talk.append_message("ASSISTANT", "a <b>")
    assert talk.get_images(return_path=True) == [str(path), "clip.mp4"]
    shown, video = talk.get_images(return_pil=True)
    assert shown.size == (60, 60) and video == "clip.mp4"
    assert isinstance(talk.get_images()[0], str)
    pairs = talk.to_gradio_chatbot()
    assert pairs[0] == (("clip.mp4",), None) and "data:image/jpeg;base64," in pairs[1][0] and pairs[1][1] == "a <b>"
    assert talk.dict()["messages"][0] == ["USER", "look"]


def test_the_default_template_can_be_set_from_outside(monkeypatch):
    monkeypatch.setattr(conversation, "default_conversation", conv_templates["v1"])
    assert conversation.default_conversation.version == "v1"


def test_the_import_needs_no_network_and_no_transformers():
    code = "import sys, llava.conversation; assert not {'transformers', 'torch'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0
