"""The tower: which hidden state, frames to pixels, and processes that stay in step."""

import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionModel

from llava.imagechain.vision import CLIPVisionTower, encode_frames, process_scene_frames

FRAMES = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(5))


class Settings:
    mm_vision_select_layer = -2
    mm_vision_select_feature = "patch"


@pytest.fixture()
def tower(tiny_llava):
    built = CLIPVisionTower(str(tiny_llava.tower), Settings())
    built.load_model()
    return built


@pytest.mark.parametrize("layer", [-1, -2, 1, 0])
@pytest.mark.parametrize("feature", ["patch", "cls_patch"])
def test_the_chosen_hidden_state_is_the_librarys(tiny_llava, tower, layer, feature):
    library = CLIPVisionModel.from_pretrained(tiny_llava.tower)
    tower.select_layer, tower.select_feature = layer, feature
    wanted = library(FRAMES, output_hidden_states=True).hidden_states[layer]
    wanted = wanted if feature == "cls_patch" else wanted[:, 1:]
    found = tower(FRAMES)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert found.shape == (5, tower.num_patches, tower.hidden_size)


def test_features_of_several_layers_stand_side_by_side(tower):
    tower.select_feature = "slicefour_patch"
    tower.select_layer = -1
    assert tower(FRAMES).shape == (5, 16, tower.hidden_size) == (5, 16, 4 * 32)


def test_a_frozen_tower_keeps_no_graph_and_a_trained_one_does(tower):
    assert not tower(FRAMES).requires_grad
    tower.requires_grad_(True)
    assert tower(FRAMES).requires_grad


def test_features_come_back_in_the_pixels_dtype(tower):
    assert tower(FRAMES.to(torch.bfloat16)).dtype == torch.bfloat16


def test_scene_frames_are_cropped_or_padded_to_one_square_each(tower):
    wide = Image.new("RGB", (60, 30), (255, 0, 0))
    wide.paste((0, 0, 255), (0, 0, 15, 30))
    cropped = process_scene_frames([wide, wide.convert("L")], tower.image_processor)
    assert cropped.shape == (2, 3, 28, 28) and cropped.dtype == torch.float32
    padded = process_scene_frames([wide], tower.image_processor, "pad")
    assert padded[0, :, 0, 0].abs().max() < 0.05  # the mean colour
    assert cropped[0, 2].max() < padded[0, 2].max()  # the blue edge is cut away, or kept
    with pytest.raises(ValueError, match="crop or pad"):
        process_scene_frames([wide], tower.image_processor, "stretch")


def test_no_frame_gives_no_feature_and_no_call(tower):
    tower.forward = None
    assert encode_frames(tower, FRAMES[:0]).shape == (0, 16, 32)


# Both end without taking the interpreter down, as llava.imagechain.distributed.end_process does and says why.
WORKER = """
import os, sys, torch
import torch.distributed as dist
from llava.imagechain.vision import encode_frames

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=2)


class Tower:
    image_size, num_patches, hidden_size, device = 4, 1, 3, torch.device("cpu")
    calls = 0

    def __call__(self, frames):
        Tower.calls += 1
        dist.all_reduce(torch.ones(1))  # what a partitioned parameter would need
        return frames.mean((2, 3))[:, None]


for counts, limit in (((3, 17), 2), ((0, 5), None), ((4, 0), 3)):
    Tower.calls = 0
    frames = torch.arange(counts[rank] * 48.0).view(-1, 3, 4, 4)
    features = encode_frames(Tower(), frames, limit, in_step=True)
    assert torch.equal(features[:, 0], frames.mean((2, 3))), features
    print(Tower.calls, flush=True)
dist.barrier()
dist.destroy_process_group()
os._exit(0)
"""


def in_two_processes(code, *arguments):
    """Run code in two processes, rank 0 and 1, and return what each printed."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        results = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert all(worker.returncode == 0 for worker in workers), [error[-2000:] for _, error in results]
    return [output for output, _ in results]


def test_two_processes_with_unequal_frames_make_equally_many_calls(tmp_path):
    for output in in_two_processes(WORKER, f"file://{tmp_path / 'store'}"):
        assert output.split() == ["9", "1", "2"]


EVALUATION = """
import os, sys, torch
import torch.distributed as dist
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

rank, batches = int(sys.argv[1]), [3, 1][int(sys.argv[1])]
dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=2)
model = LlavaLlamaForCausalLM.from_pretrained(sys.argv[3]).eval()
for _ in range(batches):
    model.generate(torch.tensor([[1, 40, -200]]), images=[torch.zeros(3, 28, 28)], max_new_tokens=1, pad_token_id=0)
print("done", flush=True)
os._exit(0)
"""


def test_processes_that_generate_each_for_itself_do_not_wait_for_each_other(tiny_llava, tmp_path):
    for output in in_two_processes(EVALUATION, f"file://{tmp_path / 'store'}", str(tiny_llava.full)):
        assert output == "done\n"
