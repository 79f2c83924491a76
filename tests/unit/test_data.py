"""Examples and batches: lengths without frames, over-long stories, demonstrations, ragged scenes."""

import io
import random

import pytest
import torch
from PIL import Image

from llava.imagechain.data import Collator, ExampleSettings, StoryExamples, frame_problem, unreadable_stories
from llava.imagechain.labels import IGNORE_INDEX
from llava.imagechain.pooling import evenly_spaced
from llava.imagechain.prompts import IMAGE_TOKEN_INDEX
from llava.imagechain.story import StoryFrames, storyframes_features
from llava.imagechain.variants import VARIANTS

TOKENS = 16


def jpeg(seed, size=(40, 32)):
    buffer = io.BytesIO()
    generator = random.Random(str(seed))
    Image.new("RGB", size, tuple(generator.randrange(256) for _ in range(3))).save(buffer, "JPEG")
    return buffer.getvalue()


def stories_of(*counts, prefix="s", videos=None, frames=None):
    """Return stories with these numbers of scenes; scene i of a story has 2 + i frames."""
    import datasets

    rows = []
    for n, count in enumerate(counts):
        scenes = [
            [{"bytes": frames or jpeg((prefix, n, i, k)), "path": None} for k in range(2 + i)] for i in range(count)
        ]
        rows.append({
            "sentence_parts": [f"{prefix}{n} scene {i}: he goes on." for i in range(count)],
            "start_times": [float(i) for i in range(count)], "end_times": [i + 1.0 for i in range(count)],
            "background_description": "", "video_name": (videos or {}).get(n, f"{prefix}-video-{n}"),
            "question_info": "", "num_actors_in_video": 1, "caption": "", "sentence_parts_nocontext": [""] * count,
            "subsampled_frames_per_scene": [[float(k) for k in range(len(s))] for s in scenes],
            "story_id": f"{prefix}{n}", "scenes": scenes, "num_scenes": count,
        })  # fmt: skip
    return StoryFrames(datasets.Dataset.from_list(rows, features=storyframes_features()))


@pytest.fixture(scope="module")
def parts(tiny_llava):
    from transformers import AutoTokenizer

    from llava.imagechain.compat import load_image_processor

    tokenizer = AutoTokenizer.from_pretrained(tiny_llava.full, use_fast=False)
    return tokenizer, load_image_processor(str(tiny_llava.tower))


def examples(parts, stories, variant="imagechain", demonstrations=None, unreadable=None, **settings):
    made = ExampleSettings(tokens_per_scene=TOKENS, **settings)
    return StoryExamples(stories, VARIANTS[variant], *parts, made, demonstrations=demonstrations, unreadable=unreadable)


def test_an_example_has_ids_labels_and_a_tensor_per_scene(parts):
    example = examples(parts, stories_of(3))[0]
    assert [tuple(scene.shape) for scene in example["images"]] == [(2, 3, 28, 28), (3, 3, 28, 28), (4, 3, 28, 28)]
    assert (example["input_ids"] == IMAGE_TOKEN_INDEX).sum() == 3
    assert example["length"] == len(example["input_ids"]) + 3 * (TOKENS - 1)
    assert example["reference"] == "s0 scene 2: he goes on."
    assert (example["story_id"], example["modality"], example["num_dropped_scenes"]) == ("s0", "video-seq", 0)


def test_lengths_are_known_without_reading_a_frame(parts, monkeypatch):
    stories = stories_of(2, 3)
    monkeypatch.setattr(StoryFrames, "__getitem__", lambda *_: pytest.fail("a story's frames were read"))
    made = examples(parts, stories)
    assert made.lengths == [plan.length for plan in made.plans]
    assert made.lengths[1] > made.lengths[0]


def test_drop_oldest_leaves_out_whole_scenes_and_keeps_the_last_question_and_answer(parts):
    stories = stories_of(2, 4)
    whole = examples(parts, stories)
    limit = whole.lengths[1] - 1
    made = examples(parts, stories, max_length=limit)
    assert [plan.num_dropped_scenes for plan in made.plans] == [0, 1]
    assert made.lengths[1] <= limit
    assert [len(scene) for scene in made[1]["images"]] == [3, 4, 5]
    assert made[1]["reference"] == "s1 scene 3: he goes on."
    text = parts[0].decode([t for t in made.plans[1].input_ids if t >= 0])
    assert "scene 0" not in text
    assert text.count("in this image?") == 1
    assert made.summary() == {
        "c2": {"stories": 1, "shortened": 0, "dropped_scenes": 0},
        "c4": {"stories": 1, "shortened": 1, "dropped_scenes": 1},
    }


def test_skip_leaves_out_the_story_with_its_reason(parts):
    stories = stories_of(2, 4)
    limit = examples(parts, stories).lengths[0]
    made = examples(parts, stories, max_length=limit, overlength="skip")
    assert [plan.story_id for plan in made.plans] == ["s0"]
    assert made.skipped[0]["id"] == "s1"
    assert f"at most {limit} were wanted" in made.skipped[0]["reason"]


def test_a_story_whose_last_scene_alone_is_too_long_is_skipped(parts):
    made = examples(parts, stories_of(3), max_length=50)
    assert (len(made), len(made.skipped)) == (0, 1)


def test_room_for_the_answer_counts_in_the_limit(parts):
    stories = stories_of(4)
    length = examples(parts, stories, for_generation=True).lengths[0]
    assert examples(parts, stories, for_generation=True, max_length=length).plans[0].num_dropped_scenes == 0
    shorter = examples(parts, stories, for_generation=True, max_length=length, reserve_tokens=1)
    assert shorter.plans[0].num_dropped_scenes == 1


def test_generation_examples_end_where_the_model_writes(parts):
    example = examples(parts, stories_of(2), for_generation=True)[0]
    text = parts[0].decode([t for t in example["input_ids"].tolist() if t >= 0])
    assert text.endswith("ASSISTANT:")
    assert example["reference"] not in text
    assert len(example["labels"]) == 0


def test_demonstrations_are_the_same_each_time_and_never_of_the_same_video(parts):
    pool = stories_of(2, 2, 3, 2, 2, prefix="t", videos={0: "shared", 1: "t-video-2"})
    stories = stories_of(2, 3, videos={0: "shared"})
    made = examples(parts, stories, "mllm_icl", demonstrations=pool)
    again = examples(parts, stories, "mllm_icl", demonstrations=pool)
    assert [p.input_ids for p in made.plans] == [p.input_ids for p in again.plans]
    assert [p.input_ids for p in made.plans] != [
        p.input_ids for p in examples(parts, stories, "mllm_icl", demonstrations=pool, seed=1).plans
    ]
    shown = [pool[s.row] for s in made.plans[0].scenes if s.demonstration]
    assert len({story.video_name for story in shown}) == 3
    assert "shared" not in {story.video_name for story in shown}
    assert [s.number for s in made.plans[0].scenes if s.demonstration] == [story.num_scenes - 1 for story in shown]
    assert len(made[0]["images"]) == 3 + 2


def test_the_shown_demonstrations_are_those_that_are_used(parts, tmp_path, tiny_llava):
    from llava.imagechain.variants import ShowConfig, show

    pool, stories = stories_of(2, 2, 2, 2, 2, prefix="t"), stories_of(2)
    pool.table.save_to_disk(str(tmp_path / "scene_2" / "train"))
    stories.table.save_to_disk(str(tmp_path / "scene_2" / "val"))
    text = show(ShowConfig(show=True, stories=tmp_path, split="validation", variant=["mllm_icl"]))
    plan = examples(parts, stories, "mllm_icl", demonstrations=pool).plans[0]
    used = [pool[scene.row].scenes[-1].description for scene in plan.scenes if scene.demonstration]
    assert [line.split("ASSISTANT: ")[1] for line in text.splitlines()[2:5]] == [f"{t}</s>" for t in used]


def test_overlong_in_context_learning_gives_up_scenes_before_demonstrations(parts):
    pool, stories = stories_of(2, 2, 2, prefix="t"), stories_of(3)
    length = examples(parts, stories, "mllm_icl", demonstrations=pool).lengths[0]
    made = examples(parts, stories, "mllm_icl", demonstrations=pool, max_length=length - 1)
    assert made.plans[0].num_dropped_scenes == 1
    assert sum(scene.demonstration for scene in made.plans[0].scenes) == 3
    made = examples(parts, stories, "mllm_icl", demonstrations=pool, max_length=length - 150)
    assert made.plans[0].num_dropped_scenes == 2
    assert 0 < sum(scene.demonstration for scene in made.plans[0].scenes) < 3


def test_a_variant_with_demonstrations_wants_training_stories(parts):
    with pytest.raises(ValueError, match="MLLM-ICL shows 3 training stories"):
        examples(parts, stories_of(2), "mllm_icl")


def test_unknown_overlength_is_refused(parts):
    with pytest.raises(ValueError, match="drop_oldest, skip, rope_scaling was wanted"):
        examples(parts, stories_of(2), overlength="cut")


def test_unreadable_stories_are_left_out_by_id_with_their_reason(parts):
    stories = stories_of(2, 2)
    made = examples(parts, stories, unreadable={"s0": "a frame cannot be read: x"})
    assert [plan.story_id for plan in made.plans] == ["s1"]
    assert made.skipped == [{"id": "s0", "reason": "a frame cannot be read: x"}]


@pytest.mark.parametrize("data", [b"", None, b"not an image", jpeg(1)[:-30], jpeg(1)[:100]])
def test_damaged_frames_are_found(data):
    assert frame_problem(data)


def test_whole_frames_are_fine():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    assert frame_problem(jpeg(1)) is None
    assert frame_problem(buffer.getvalue()) is None
    assert unreadable_stories(stories_of(2)) == {}
    assert list(unreadable_stories(stories_of(2, frames=jpeg(1)[:-30]))) == ["s0"]


def test_a_batch_pads_text_on_the_right_and_keeps_scenes_ragged(parts):
    made = examples(parts, stories_of(2, 4))
    batch = Collator(pad_token_id=7)([made[0], made[1]])
    short, long = (len(plan.input_ids) for plan in made.plans)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (2, long)
    assert (batch["input_ids"][0, short:] == 7).all()
    assert (batch["labels"][0, short:] == IGNORE_INDEX).all()
    assert batch["attention_mask"].sum(dim=1).tolist() == [short, long]
    assert [[len(scene) for scene in story] for story in batch["images"]] == [[2, 3], [2, 3, 4, 5]]
    assert batch["modalities"] == ["video-seq", "video-seq"]


def test_the_mask_does_not_depend_on_the_pad_id(parts):
    made = examples(parts, stories_of(2, 4))
    masks = [Collator(pad_token_id=pad)([made[0], made[1]])["attention_mask"] for pad in (0, 29)]
    assert torch.equal(*masks)


@pytest.mark.parametrize(
    ("count", "most", "kept"),
    [(5, None, [0, 1, 2, 3, 4]), (5, 0, [0, 1, 2, 3, 4]), (3, 4, [0, 1, 2]), (5, 1, [2]), (4, 1, [1]), (2, 1, [0]),
     (5, 2, [0, 4]), (5, 3, [0, 2, 4]), (6, 3, [0, 3, 5]), (9, 4, [0, 3, 5, 8])],
)  # fmt: skip
def test_kept_frames_are_evenly_spaced_with_both_ends_and_one_is_the_middle(count, most, kept):
    assert evenly_spaced(count, most) == kept


def test_no_frame_is_kept_twice():
    for count in range(1, 40):
        for most in range(1, 40):
            kept = evenly_spaced(count, most)
            assert len(set(kept)) == len(kept) == min(count, most)


def test_at_most_that_many_frames_of_a_scene_are_shown(parts):
    stories = stories_of(4)
    whole, made = examples(parts, stories)[0], examples(parts, stories, max_frames_per_scene=3)
    assert [len(scene) for scene in made[0]["images"]] == [2, 3, 3, 3]
    assert torch.equal(made[0]["images"][3], whole["images"][3][[0, 2, 4]])
    assert made.lengths == examples(parts, stories).lengths
    assert (examples(parts, stories).num_frames(), made.num_frames()) == ([2 + 3 + 4 + 5], [2 + 3 + 3 + 3])
