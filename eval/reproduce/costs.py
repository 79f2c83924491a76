"""What the cells of a grid cost: GPU hours, disk, calls of the judge; from configs and texts, no weight is loaded.

What is not on this disk yet is taken from eval/reproduce/published.py, and marked as such.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.judge.base import Judge
from eval.judge.cost import estimate as estimate_judge
from eval.judge.cost import price_of
from eval.reproduce import published
from eval.reproduce.grid import GridConfig
from eval.reproduce.states import is_model, train_groups
from eval.reproduce.tasks import Task, places_of
from llava.imagechain.config import build_config
from llava.imagechain.story import HUB_DATASET, StoryFrames, load_stories
from llava.imagechain.variants import get_variant

BYTES_A_ROW = 750  # a prediction with its judgment
SPARE = Path("no-such-folder")  # for jobs whose output does not matter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """What a task, or a part of it, needs."""

    stories: int = 0
    gpu_hours: float = 0.0
    disk_bytes: int = 0
    epochs: float | None = None
    calls: int = 0
    usd: float | None = 0.0
    published: bool = False  # rests on sizes that are not those of files on this disk

    def __add__(self, other: Need) -> Need:
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return Need(
            stories=self.stories + other.stories, gpu_hours=self.gpu_hours + other.gpu_hours,
            disk_bytes=self.disk_bytes + other.disk_bytes, calls=self.calls + other.calls, usd=usd,
            published=self.published or other.published,
        )  # fmt: skip


class Costs:
    """Estimates for the tasks of a grid; None where an input is neither there nor a published one.

    What several tasks share (the model without its weights, the lengths of stories under a variant) is computed once.

    Attributes:
        absent: What is not on this disk -> what was taken from the publications instead.
    """

    def __init__(self, config: GridConfig) -> None:
        self.config = config
        self.absent: dict[str, str] = {}
        self._loaded: Any = None
        self._model_config: Any = None
        self._stories: dict[tuple[str, ...], StoryFrames] = {}
        self._predictions: dict[str, dict[int, Need]] = {}
        self._trainings: dict[str, Need] = {}

    def work(self, task: Task) -> float | None:
        """Return the work of a task in GPU hours, to tell the remaining time from."""
        if task.kind == "train":
            need = self.training(task)
            return need.gpu_hours if need else None
        if task.kind == "predict":
            parts = self.prediction(task)
            return sum(need.gpu_hours for need in parts.values()) if parts else None
        return None

    def training(self, task: Task) -> Need | None:
        """Return what a training needs."""
        if task.name not in self._trainings:
            try:
                self._trainings[task.name] = self._training(task)
            except (ValueError, OSError):  # the task's state tells the reason
                return None
        return self._trainings[task.name]

    def prediction(self, task: Task) -> dict[int, Need] | None:
        """Return what predicting needs, by number of scenes; the judge's calls are not in it."""
        own = ("checkpoint", "base", "output_dir")
        key = str({name: value for name, value in task.settings.items() if name not in own})
        if key not in self._predictions:
            try:
                self._predictions[key] = self._prediction(task)
            except (ValueError, OSError):
                return None
        return self._predictions[key]

    def mementos(self, task: Task) -> Need | None:
        """Return what describing the Mementos benchmark needs; the prompts' texts are taken for 150 positions."""
        try:
            return self._mementos(task)
        except (ValueError, OSError):
            return None

    def extracting(self, task: Task, samples: int) -> Need:
        """Return what asking for the keywords of so many samples costs."""
        from eval.mementos.keywords import TOKENS_OF_AN_ANSWER, KeywordsConfig, load_extractor

        extractor = load_extractor(build_config(KeywordsConfig, [task.settings]))
        cost = estimate_judge(extractor, planned=samples)
        usd = price_of(extractor, cost.prompt_tokens, cost.calls * TOKENS_OF_AN_ANSWER) if cost.calls else 0.0
        return Need(calls=cost.calls, usd=usd)

    def judging(self, judge: Judge, pairs: Sequence[tuple[str, str]], planned: int) -> Need:
        """Return what it costs to ask about pairs of texts, and about others that do not exist yet."""
        cost = estimate_judge(judge, pairs, planned=planned)
        return Need(calls=cost.calls, usd=cost.usd)

    def _load(self) -> Any:
        """Return the model to start from without its weights, its config as on disk or as published.

        Raises:
            FileNotFoundError: It is neither there nor a published one.
        """
        from llava.imagechain.checkpoint import LoadedModel
        from llava.imagechain.estimate import meta_model
        from llava.model.builder import load_tokenizer

        folder = str(places_of(self.config).model)
        if self._loaded is None:
            name = published.known_model(folder)
            if name:
                self.absent[folder] = f"the config of {name}, four characters to a token"
            elif not is_model(folder):
                raise FileNotFoundError(f"{folder} is not there")
            model = meta_model(published.model_config(name) if name else folder)
            tokenizer = published.plain_tokenizer() if name else load_tokenizer(folder)
            limit = int(getattr(model.config, "max_position_embeddings", None) or 2048)
            self._loaded = LoadedModel(tokenizer=tokenizer, model=model, image_processor=None, context_length=limit)
            self._model_config = model.config
        self._loaded.model.config = copy.deepcopy(self._model_config)  # its decisions are settled anew by each task
        return self._loaded

    def _read(self, stories: str, split: str, context: str) -> StoryFrames:
        """Return stories as on disk, or as many as were published.

        Raises:
            FileNotFoundError: They are not there, and the grid is not on StoryFrames.
        """
        key = (stories, split, context)
        if key not in self._stories:
            there = published.is_downloaded(stories)
            if not there and not self._is_published(stories):
                raise FileNotFoundError(f"{stories} is not there")
            if not there:
                self.absent[stories] = published.STORIES_IN_WORDS
            self._stories[key] = (
                load_stories(stories, split, context) if there else published.published_stories(split, context)
            )
        return self._stories[key]

    def _is_published(self, stories: str) -> bool:
        """Tell whether stories that are not there have published counts."""
        return not published.is_downloaded(stories) and (self.config.paper or stories == HUB_DATASET)

    def _rests_on_publications(self, stories: str) -> bool:
        return published.known_model(places_of(self.config).model) is not None or self._is_published(stories)

    def _training(self, task: Task) -> Need:
        from llava.imagechain.data import StoryExamples
        from llava.imagechain.decisions import asked_of, settle_decisions
        from llava.imagechain.estimate import TrainPlan, estimate
        from llava.imagechain.examples import example_settings

        loaded, source = self._load(), str(task.settings["stories"])
        # The command's checks want a model and stories that are there; the settings do not depend on them.
        there = {"model_name_or_path": str(published.TEMPLATE), "stories": HUB_DATASET}
        groups = train_groups(dataclasses.replace(task, settings=task.settings | there))
        model, data, settings = groups
        model_config = loaded.model.config
        settle_decisions(model_config, asked_of(model), trained=False)
        variant = get_variant(str(data.variant), data.variant_set)
        made = example_settings(groups, variant, model_config, loaded.model.get_vision_tower().num_patches)
        stories = self._read(source, "train", data.context)
        examples = StoryExamples(
            stories[: data.limit] if data.limit else stories, variant, loaded.tokenizer, None, made
        )
        plan = TrainPlan(
            lora_rank=model.lora_r if model.lora_enable else None,
            projector=not model.freeze_mm_mlp_adapter,
            num_gpus=1,
            zero_stage=0,
            micro_batch=settings.per_device_train_batch_size,
            global_batch=settings.global_batch_size,
            epochs=settings.num_train_epochs,
            max_steps=settings.max_steps if settings.max_steps > 0 else None,
            tower_runs=data.feature_cache is None,
        )
        found = estimate(loaded.model, examples.lengths, plan, frames=examples.num_frames(), tflops=self.config.tflops)
        # The result, and in every checkpoint that is kept the weights again with Adam's two moments, float32.
        kept = (
            0
            if str(getattr(settings.save_strategy, "value", settings.save_strategy)) == "no"
            else settings.save_total_limit or 1
        )
        return Need(
            stories=len(examples), gpu_hours=found.seconds / 3600, epochs=settings.num_train_epochs,
            disk_bytes=found.trainable * (4 + 12 * kept), published=self._rests_on_publications(source),
        )  # fmt: skip

    def _prediction(self, task: Task) -> dict[int, Need]:
        from eval.predict.job import Job, PredictConfig
        from eval.predict.run import follow_decisions, make_examples
        from llava.imagechain.estimate import PredictPlan, estimate

        base, source = places_of(self.config).model, str(task.settings["stories"])
        config = build_config(
            PredictConfig,
            [task.settings, {"checkpoint": base, "base": None, "output_dir": SPARE, "feature_cache": None}],
        )
        variant, loaded = get_variant(config.variant, config.variant_set), self._load()
        job = Job(
            config=config, variant=variant, stories=self._read(source, config.split, config.context),
            demonstrations=self._read(source, "train", config.context) if variant.demonstrations else None,
            identity={}, trained={}, done={}, skipped=set(), finished=False,
        )  # fmt: skip
        follow_decisions(job, loaded.model.config)
        examples = make_examples(job, loaded)
        counts = examples.num_frames()
        plan = PredictPlan(batch_size=config.batch_size, max_new_tokens=config.max_new_tokens)
        tower = self.config.feature_cache is False and config.control != "blank_images"
        by_scenes: dict[int, list[int]] = collections.defaultdict(list)
        for number, each in enumerate(examples.plans):
            by_scenes[each.num_scenes].append(number)
        needs = {}
        for scenes, numbers in sorted(by_scenes.items()):
            lengths = [examples.plans[number].length for number in numbers]
            frames = [counts[number] for number in numbers] if tower else None
            found = estimate(loaded.model, lengths, plan, frames=frames, tflops=self.config.tflops)
            needs[scenes] = Need(
                stories=len(numbers), gpu_hours=found.seconds / 3600, disk_bytes=BYTES_A_ROW * len(numbers),
                published=self._rests_on_publications(source),
            )  # fmt: skip
        return needs

    def _mementos(self, task: Task) -> Need:
        from eval.mementos.data import load_benchmark
        from eval.mementos.predict import MementosConfig, usable_samples
        from eval.mementos.sequences import settle
        from llava.imagechain.estimate import PredictPlan, estimate

        loaded, config = self._load(), build_config(MementosConfig, [task.settings])
        showing = settle(
            get_variant(config.variant), config.max_scenes, config.frames, config.earlier_text, config.question
        )
        there = config.data.is_dir()
        if there:
            described, _ = usable_samples(config, load_benchmark(config.data, config.domains), showing)
            frames = [[len(scene) for scene in one.scenes] for one in described]
        elif self.config.paper:
            self.absent[str(config.data)] = published.MEMENTOS_IN_WORDS
            frames = published.mementos_frames(showing)
        else:
            raise FileNotFoundError(f"{config.data} is not there")
        lengths = [len(each) * loaded.model.get_vision_tower().num_patches + 150 for each in frames]
        answers = max(map(len, frames), default=1) if showing.earlier_text == "own" else 1
        plan = PredictPlan(batch_size=config.batch_size, max_new_tokens=config.max_new_tokens * answers)
        found = estimate(loaded.model, lengths, plan, frames=list(map(sum, frames)), tflops=self.config.tflops)
        return Need(
            stories=len(frames), gpu_hours=found.seconds / 3600, disk_bytes=2 * BYTES_A_ROW * len(frames),
            published=not there or published.known_model(places_of(self.config).model) is not None,
        )  # fmt: skip
