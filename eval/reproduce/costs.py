"""What the cells of a grid cost: GPU hours, disk, calls of the judge; from configs and texts, no weight is loaded."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from eval.judge.base import Judge
from eval.judge.cost import estimate as estimate_judge
from eval.judge.cost import price_of
from eval.reproduce.grid import GridConfig
from eval.reproduce.states import has_stories, is_model, mementos_job, predict_job, train_groups
from eval.reproduce.tasks import Task, places_of
from llava.imagechain.config import build_config

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

    def __add__(self, other: Need) -> Need:
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return Need(
            stories=self.stories + other.stories, gpu_hours=self.gpu_hours + other.gpu_hours,
            disk_bytes=self.disk_bytes + other.disk_bytes, calls=self.calls + other.calls, usd=usd,
        )  # fmt: skip


class Costs:
    """Estimates for the tasks of a grid; None where an input is not there yet.

    What several tasks share (the model without its weights, the lengths of stories under a variant) is computed once.
    """

    def __init__(self, config: GridConfig) -> None:
        self.config = config
        self._models: dict[str, Any] = {}
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
        settings = task.settings
        if not (is_model(settings["model_name_or_path"]) and has_stories(settings["stories"])):
            return None
        if task.name not in self._trainings:
            try:
                self._trainings[task.name] = self._training(train_groups(task))
            except (ValueError, OSError):  # the task's state tells the reason
                return None
        return self._trainings[task.name]

    def prediction(self, task: Task) -> dict[int, Need] | None:
        """Return what predicting needs, by number of scenes; the judge's calls are not in it."""
        settings = task.settings
        model = self._base()
        if not (is_model(model) and has_stories(settings["stories"])):
            return None
        key = str({name: value for name, value in settings.items() if name not in ("checkpoint", "output_dir")})
        if key not in self._predictions:
            try:
                job = predict_job(task, checkpoint=model, base=None, output_dir=SPARE)
                self._predictions[key] = self._prediction(job)
            except (ValueError, OSError):
                return None
        return self._predictions[key]

    def mementos(self, task: Task) -> Need | None:
        """Return what describing the Mementos benchmark needs; the prompts' texts are taken for 150 positions."""
        from llava.imagechain.estimate import PredictPlan, estimate

        model, data = self._base(), Path(task.settings["data"])
        if not (is_model(model) and data.is_dir()):
            return None
        try:
            job = mementos_job(task, checkpoint=model, base=None, output_dir=SPARE)
        except (ValueError, OSError):
            return None
        meta = self._model(model)
        shown = job.showing
        scenes = [len(one.scenes) for one in job.described]
        lengths = [count * meta.get_vision_tower().num_patches + 150 for count in scenes]
        answers = max(scenes, default=1) if shown.earlier_text == "own" else 1
        plan = PredictPlan(batch_size=job.config.batch_size, max_new_tokens=job.config.max_new_tokens * answers)
        frames = [sum(map(len, one.scenes)) for one in job.described]
        found = estimate(meta, lengths, plan, frames=frames, tflops=self.config.tflops)
        return Need(stories=len(scenes), gpu_hours=found.seconds / 3600, disk_bytes=2 * BYTES_A_ROW * len(scenes))

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

    def _base(self) -> str:
        return str(places_of(self.config).model)

    def _model(self, folder: str) -> Any:
        from llava.imagechain.estimate import meta_model

        if folder not in self._models:
            self._models[folder] = meta_model(folder)
        return self._models[folder]

    def _training(self, groups: Any) -> Need:
        from llava.imagechain.data import StoryExamples
        from llava.imagechain.decisions import asked_of, settle_decisions
        from llava.imagechain.estimate import TrainPlan, estimate
        from llava.imagechain.files import read_json
        from llava.imagechain.story import load_stories
        from llava.imagechain.variants import get_variant
        from llava.model.builder import load_tokenizer
        from llava.train.train import example_settings, tokens_per_scene

        model, data, settings = groups
        folder = str(model.model_name_or_path)
        model_config = SimpleNamespace(**read_json(Path(folder) / "config.json"))
        settle_decisions(model_config, asked_of(model), trained=False)
        variant = get_variant(str(data.variant), data.variant_set)
        made = example_settings(groups, variant, model_config, tokens_per_scene(model_config, folder))
        stories = load_stories(str(data.stories), "train", data.context)
        examples = StoryExamples(
            stories[: data.limit] if data.limit else stories, variant, load_tokenizer(folder), None, made
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
        found = estimate(
            self._model(folder), examples.lengths, plan, frames=examples.num_frames(), tflops=self.config.tflops
        )
        # The result, and in every checkpoint that is kept the weights again with Adam's two moments, float32.
        kept = (
            0
            if str(getattr(settings.save_strategy, "value", settings.save_strategy)) == "no"
            else settings.save_total_limit or 1
        )
        return Need(
            stories=len(examples), gpu_hours=found.seconds / 3600, epochs=settings.num_train_epochs,
            disk_bytes=found.trainable * (4 + 12 * kept),
        )  # fmt: skip

    def _prediction(self, job: Any) -> dict[int, Need]:
        from eval.predict.run import make_examples, model_without_weights
        from llava.imagechain.estimate import PredictPlan, estimate

        config = dataclasses.replace(job.config, feature_cache=None)
        job = dataclasses.replace(job, config=config)
        loaded = model_without_weights(job)
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
                stories=len(numbers), gpu_hours=found.seconds / 3600, disk_bytes=BYTES_A_ROW * len(numbers)
            )
        return needs
