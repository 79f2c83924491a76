"""LLaVA's JSON as training data: files, samples of each kind, what is skipped, order, the model's own lengths."""

import json
from types import SimpleNamespace

import pytest
import torch

from llava.imagechain.checkpoint import load_checkpoint
from llava.imagechain.data import Collator
from llava.imagechain.files import sha256_json
from llava.imagechain.llava_json import JsonSettings, LlavaJsonExamples
from llava.imagechain.media import Sampling
from llava.imagechain.order import LengthGroupedSampler
from llava.imagechain.samples import expand_braces, read_samples


def say(question, answer="A cat.", **media):
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "-".join([*media, question[:8]]), "conversations": said, **media}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of several sizes, a folder of frames, a damaged image and a link out of the folder."""
    from PIL import Image

    root = tmp_path_factory.mktemp("media")
    inner = root / "inside"
    for name, size in {"a.jpg": (40, 30), "b.png": (30, 90), "s1/0.jpg": (28, 28), "s1/1.jpg": (28, 28)}.items():
        (inner / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (200, 10, 10)).save(inner / name)
    (inner / "broken.jpg").write_bytes((inner / "a.jpg").read_bytes()[:-30])
    Image.new("RGB", (9, 9)).save(root / "outside.png")
    (inner / "link.png").symlink_to(root / "outside.png")
    return inner


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    import importlib.util
    from pathlib import Path

    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return load_checkpoint(module.build_tiny_llava(tmp_path_factory.mktemp("tiny")).full, device="cpu")


@pytest.fixture(scope="module")
def make(loaded, folder):
    def build(samples, **changes):
        config = SimpleNamespace(**vars(loaded.model.config))
        for name, value in changes.pop("config", {}).items():
            setattr(config, name, value)
        settings = JsonSettings(
            config=config, side=4, image_size=28, image_folder=str(folder), video_folder=str(folder), **changes
        )
        return LlavaJsonExamples(samples, loaded.tokenizer, loaded.image_processor, settings)

    return build


# --- files ------------------------------------------------------------------------------------------------------------


def write(path, samples):
    text = json.dumps(samples) if path.suffix == ".json" else "".join(json.dumps(s) + "\n" for s in samples)
    path.write_text(text)


def test_json_jsonl_and_braces_are_read(tmp_path):
    write(tmp_path / "x_a.json", [1, 2])
    write(tmp_path / "x_b.json", [3])
    write(tmp_path / "c.jsonl", [{"id": 4}])
    assert read_samples(str(tmp_path / "x_{a,b}.json")) == [1, 2, 3]
    assert read_samples(str(tmp_path / "c.jsonl")) == [{"id": 4}]
    assert expand_braces("p{1,2}/q{a,b}.json") == ["p1/qa.json", "p1/qb.json", "p2/qa.json", "p2/qb.json"]


def test_a_file_that_was_cut_off_is_not_taken_for_a_whole_one(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"id": 1}\n{"id": 2}')
    assert read_samples(str(tmp_path / "c.jsonl")) == [{"id": 1}, {"id": 2}]
    (tmp_path / "c.jsonl").write_text('{"id": 1}\n{"id": ')
    with pytest.raises(ValueError, match=r"the last line of .*c\.jsonl is cut off"):
        read_samples(str(tmp_path / "c.jsonl"))


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("first:3", [0, 1, 2]), ("end:2", [8, 9]), ("first:25%", [0, 1, 2]), ("end:99%", list(range(10)))],
)  # fmt: skip
def test_a_mixture_takes_what_its_strategy_says(strategy, expected, tmp_path):
    write(tmp_path / "a.json", list(range(10)))
    (tmp_path / "m.yaml").write_text(f"datasets:\n- json_path: {tmp_path}/a.json\n  sampling_strategy: {strategy}\n")
    assert read_samples(str(tmp_path / "m.yaml")) == expected


def test_random_sampling_depends_on_the_seed_alone(tmp_path):
    write(tmp_path / "a.json", list(range(50)))
    (tmp_path / "m.yaml").write_text(f"datasets:\n- json_path: {tmp_path}/a.json\n  sampling_strategy: random:20%\n")
    first, again, other = (read_samples(str(tmp_path / "m.yaml"), seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 10


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.json", None, "is not a file"),
        ("a.json", "{}", "a list of samples was wanted"),
        ("a.json", "[", "not valid JSON"),
        ("a.yaml", "x: 1", "no list `datasets`"),
        ("a.yaml", "datasets:\n- json_path: q.json\n", "q.json is not a file"),
        ("a.yaml", "- x", "a.yaml: settings .* were wanted, found list"),
        ("a.yaml", "datasets:\n- json_path: q.json\n  sampling_stratgy: first:1\n", "did you mean 'sampling_strategy'"),
    ],
)
def test_files_that_are_no_data_are_named(name, text, message, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_samples(str(tmp_path / name))


# --- samples ----------------------------------------------------------------------------------------------------------

SCENES = [["s1/0.jpg", "s1/1.jpg"], ["s1/1.jpg"]]
KINDS = [
    say("What is it?"),
    say("What is it? <image>", image="a.jpg"),
    say("<image>\n<image> Compare.", image=["a.jpg", "b.png"]),
    say("<image>\nWhat happens?", video="s1"),
    say("First <image> then <image>?", **{"video-seq": SCENES}),
]


@pytest.mark.parametrize("aspect", ["square", "pad", "anyres", "anyres_max_2"])
def test_lengths_are_the_models_own_and_every_kind_gives_a_finite_loss(aspect, make, loaded):
    examples = make(KINDS, config={"image_aspect_ratio": aspect})
    assert examples.skipped == []
    model, before = loaded.model, loaded.model.config.image_aspect_ratio
    model.config.image_aspect_ratio = aspect
    try:
        for index in range(len(KINDS)):
            batch = Collator()([examples[index]])
            mask = model.prepare_inputs_labels_for_multimodal(
                batch["input_ids"], None, batch["attention_mask"], None, batch["labels"], batch["images"],
                batch["modalities"], batch["image_sizes"],
            )[2]  # fmt: skip
            assert int(mask.sum()) == examples.lengths[index], KINDS[index]["id"]
        with torch.no_grad():
            mixed = model(**Collator()([examples[index] for index in range(len(KINDS))])).loss
        assert 0 < float(mixed) < 30
    finally:
        model.config.image_aspect_ratio = before


def test_video_seq_and_video_count_as_multimodal(make):
    assert make(KINDS).multimodal == [False, True, True, True, True]


def test_global_batches_are_of_one_kind_and_the_rest_comes_last():
    kinds = [True] * 11 + [False] * 7
    sampler = LengthGroupedSampler(list(range(18)), 4, 2, seed=1, kinds=kinds)
    order = list(sampler)
    assert sorted(order) == list(range(18))
    whole = [[kinds[i] for i in order[start : start + 4]] for start in range(0, 12, 4)]
    assert all(len(set(batch)) == 1 for batch in whole)


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (say("<image>", image="../outside.png"), "are refused"),
        (say("<image>", image="/etc/passwd"), "are refused"),
        (say("<image>", image="link.png"), "leads out of image_folder through a link"),
        (say("<image>", image="none.jpg"), "is not in image_folder"),
        (say("<image>", image="broken.jpg"), "cannot be read"),
        (say("<image>", image=7), "a file name was wanted, found int"),
        (say("<image>", video="../inside/s1"), "are refused"),
        (say("<image>", video="a.jpg/x"), "is not in video_folder"),
        (say("<image><image>", image="a.jpg"), "2 image marks, it names 1 images"),
        (say("no mark", image="a.jpg"), "0 image marks, it names 1 images"),
        (say("<image>", **{"video-seq": SCENES}), "1 image marks, it names 2 images"),
        (say("<image>", **{"video-seq": ["a.jpg"]}), "a list over scenes of lists"),
        (say("<image>", image="a.jpg", video="s1"), "found image and video"),
        (say("word " * 400), "too long"),
        (say("Half \ud800 a character."), "it holds half a character, '\\ud800'"),
        (say("A name.") | {"id": "half \udfff"}, "it holds half a character"),
        (say("hi", ""), "no answer to learn"),
        ({"id": 3}, "no list `conversations`"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "in turn were wanted"),
        ("text", "no list `conversations`"),
    ],
)
def test_what_cannot_be_used_is_skipped_once_with_its_reason_and_not_replaced(sample, reason, make):
    examples = make([KINDS[0], sample, KINDS[1]], max_length=300)
    assert [plan.story_id for plan in examples.plans] == [KINDS[0]["id"], KINDS[1]["id"]]
    (row,) = examples.skipped
    assert reason in row["reason"]
    assert json.dumps(row, ensure_ascii=False).encode() and sha256_json([sample])  # what the run does with both


def test_special_tokens_in_the_data_stay_text_but_a_transcripts_turn_marks_count(make, loaded):
    end = loaded.tokenizer.eos_token_id
    harmless = make([say("Say </s> now <unk>", "I say </s>.")]).plans[0]
    assert harmless.input_ids.count(end) == 1
    turn = "<s>USER: What? <Image><image></Image> ASSISTANT:"
    text = f"You see. {turn} A dog.</s>{turn}"
    transcript = make([say(text, "It runs.</s>", **{"video-seq": SCENES})]).plans[0]
    assert transcript.input_ids.count(end) == 2
    learnt = [token for token, label in zip(transcript.input_ids, transcript.labels, strict=True) if label != -100]
    assert loaded.tokenizer.decode(learnt).replace(" ", "") == "Itruns.</s>"


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0, 10, 20]),
        (Sampling(fps=2), [0, 5, 10, 15, 20, 25]),
        (Sampling(fps=2, most=3), [0, 14, 29]),
        (Sampling(most=4, always_most=True), [0, 9, 19, 29]),
        (Sampling(most=1, always_most=True), [0]),
    ],
)
def test_frames_of_a_video_follow_llava_nexts_rule(sampling, expected):
    assert sampling.indices(30, 10.0) == expected


def test_a_video_file_gives_the_frames_of_its_plan(make, folder):
    av = pytest.importorskip("av")
    import numpy

    with av.open(str(folder / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for number in range(30):
            picture = numpy.full((32, 32, 3), number * 8, dtype=numpy.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    examples = make([say("<image> What?", video="v.mp4")], add_time_instruction=True)
    (pixels,) = examples[0]["images"]
    assert pixels.shape == (3, 3, 28, 28)
    means = pixels.mean(dim=(1, 2, 3))
    assert means[0] < means[1] < means[2]
    assert "0.00s,1.00s,2.00s" in examples.tokenizer.decode([t for t in examples.plans[0].input_ids if t > 0])


def test_images_of_the_tower_are_counted_without_reading_them(make):
    scenes = [["a.jpg"], ["b.png", "a.jpg", "s1/0.jpg"]]
    samples = [
        say("<image>", image="a.jpg"), say("<image>", video="s1"), say("hi"),
        say("<image><image>", **{"video-seq": scenes}),
    ]  # fmt: skip
    assert make(samples).num_frames() == [5, 2, 0, 4]
    assert make(samples, max_frames_per_scene=2, config={"image_aspect_ratio": "pad"}).num_frames() == [1, 2, 0, 3]
