"""The prompt of an exported model: a chat template for the library's processor, and the model card."""

from __future__ import annotations

import json
from typing import Any

from llava.imagechain.prompts import IMAGE_MARK, Encoded, encode, render
from llava.imagechain.variants import FIRST_QUESTION, NEXT_QUESTION, Dialogue, Part, Turn

# A conversation of three scenes, to compare the ids of both ways.
ANSWERS = ("a man opens the door.", "he walks to the table.")


def sample_dialogue() -> Dialogue:
    """Return a story of three scenes whose last description is to be generated."""
    questions = (FIRST_QUESTION, NEXT_QUESTION, NEXT_QUESTION)
    turns = tuple(
        Turn(user=(Part("question", question), Part("image")), assistant=answer)
        for question, answer in zip(questions, (*ANSWERS, "."), strict=True)
    )
    return Dialogue(story_id="sample", turns=turns, scenes=())


def sample_messages(prompt_format: str) -> list[dict[str, Any]]:
    """Return the same story as the library's chat messages; in the "template" format the image comes first."""
    messages: list[dict[str, Any]] = []
    for number, question in enumerate((FIRST_QUESTION, NEXT_QUESTION, NEXT_QUESTION)):
        content = [{"type": "text", "text": question}, {"type": "image"}]
        messages.append({"role": "user", "content": content if prompt_format == "figure3" else content[::-1]})
        if number < len(ANSWERS):
            messages.append({"role": "assistant", "content": [{"type": "text", "text": ANSWERS[number]}]})
    return messages


def sample_ids(prompt_format: str, tokenizer: Any, conversation_name: str) -> Encoded:
    """Return the ids this project's own prompts give for the story."""
    spans = render(sample_dialogue(), prompt_format, tokenizer, conversation_name, for_generation=True)
    return encode(spans, tokenizer)


def chat_template(prompt_format: str, tokenizer: Any, conversation_name: str, after_image: str) -> str | None:
    """Return a Jinja chat template that writes what the model was trained on, without the begin mark.

    Args:
        prompt_format: "figure3" or "template".
        tokenizer: Gives begin and end marks.
        conversation_name: Of `llava.conversation.conv_templates`.
        after_image: Text after each image mark. A space makes up for the word start that LLaVA's way of encoding puts
            there, where the library's tokenizer does not.

    Returns:
        The template, or None for a conversation that is not Vicuna's.
    """
    from llava.conversation import conv_templates

    begin, end = tokenizer.bos_token or "<s>", tokenizer.eos_token or "</s>"
    if prompt_format == "figure3":
        system, opening = conv_templates["vicuna_v1"].system, f"{begin}USER:"
        image = _literal(f" <Image>{IMAGE_MARK}{after_image}</Image>")
        text, between = "' ' + part['text']", "''"
    elif conversation_name in ("vicuna_v1", "v1"):
        system, opening = conv_templates[conversation_name].system + " ", "USER: "
        image = _literal(IMAGE_MARK + after_image)
        text, between = "part['text']", _literal("\n")
    else:
        return None
    return (
        f"{{{{ {_literal(system)} }}}}{{% for message in messages %}}{{% if message['role'] == 'user' %}}"
        f"{{{{ {_literal(opening)} }}}}{{% for part in message['content'] %}}"
        f"{{{{ {image} if part['type'] == 'image' else {text} }}}}{{{{ '' if loop.last else {between} }}}}"
        f"{{% endfor %}}{{% else %}}{{{{ ' ASSISTANT: ' + message['content'][0]['text'] + {_literal(end)} }}}}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
    )


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


CARD = """---
library_name: transformers
pipeline_tag: image-text-to-text
tags:
- llava
- imagechain
---

# {title}

A LLaVA model that reads a story scene by scene and describes the next one, exported from ImageChain to
`LlavaForConditionalGeneration`.

- Base model and its licence: {base}. The base's licence holds for these weights too.
- Variant: {variant}; stories of {context} scenes.
- Each scene is ONE square image ({aspect}). The original model averages the features of a scene's frames; this class
  does not, so give the middle frame of a scene.
- Prompt: {prompt}
- Opens in transformers {oldest} and newer; written and checked with {version}.
- Checked while exporting, on two images of random pixels in {dtype}: the logits of both models differ by
  {logits_relative_difference:.1e} of the largest (allowed {tolerance:.0e}). Token ids of a sample story are {ids}.

```python
from transformers import AutoProcessor, LlavaForConditionalGeneration

processor = AutoProcessor.from_pretrained(FOLDER)
model = LlavaForConditionalGeneration.from_pretrained(FOLDER)
messages = [
    {{"role": "user", "content": {content}}},
]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=[scene], text=prompt, return_tensors="pt")
print(processor.decode(model.generate(**inputs, max_new_tokens=128)[0], skip_special_tokens=True))
```
"""
PROMPT_NOTES = {
    "figure3": "the paper's Figure 3, as in the chat template: question first, then the image.",
    "template": "the conversation template vicuna_v1, as in the chat template: image first, then the question.",
    None: "the conversation template `{conversation}`, which has no chat template here: write the prompt out as LLaVA "
    "does, with `<image>` where an image stands and `{after_image!r}` after it.",
}


def model_card(facts: dict[str, Any]) -> str:
    """Return README.md; `facts` are what the export found out."""
    note = PROMPT_NOTES[facts["prompt_format"] if facts["has_template"] else None].format(**facts)
    first, second = f'{{"type": "text", "text": "{FIRST_QUESTION}"}}', '{"type": "image"}'
    parts = (first, second) if facts["prompt_format"] == "figure3" else (second, first)
    ids = "equal to the original's" if facts["ids_equal"] else "NOT quite the original's"
    oldest = "4.51" if facts["aspect"] == "pad" else "4.45"  # the first with an image processor that pads
    return CARD.format(**{**facts, "oldest": oldest, "prompt": note, "ids": ids, "content": f"[{', '.join(parts)}]"})
