"""TRL's GRPOTrainer as a peer, on the problems and rewards that our side gets."""

from __future__ import annotations

import tempfile
import time
from itertools import islice, pairwise
from typing import Any

from aha.chat import ChatFormat
from aha.evaluate import conversation
from aha.tasks.base import Task
from aha.train.stage import derive_seed
from aha.types import Completion, FinishReason, Problem
from bench.child import Job, Measurement
from bench.grpo_step import LEARNING_RATE, NUM_WARM_UP_STEPS
from bench.rewards import Tally, chosen_task


class Judge:
    """The reward function that TRL calls: scores with the task's own verifier, and tallies."""

    __name__ = "task_reward"  # TRL names its metrics after the function

    def __init__(self, task: Task, chat: ChatFormat, *, problems: list[Problem], job: Job) -> None:
        self._task = task
        self._chat = chat
        self._problems = problems
        self._stop_ids = set(chat.stop_token_ids)
        self._num_warm_up = NUM_WARM_UP_STEPS * job["prompts_per_step"] * job["group_size"]
        self.tally = Tally(group_size=job["group_size"])

    def __call__(self, *, completion_ids: list[list[int]], problem_index: list[int], **_: object) -> list[float | None]:
        return [self._reward(ids, self._problems[i]) for ids, i in zip(completion_ids, problem_index, strict=True)]

    def _reward(self, token_ids: list[int], problem: Problem) -> float:
        reason = FinishReason.STOP if token_ids[-1] in self._stop_ids else FinishReason.LENGTH
        prompt_ids = self._chat.render(conversation(self._task, problem=problem))
        drawn = Completion(tuple(token_ids), (), reason)
        parsed = self._chat.parse(drawn, starts_in_thinking=self._chat.starts_in_thinking(prompt_ids))
        reward = self._task.score(problem, parsed).reward
        if self._num_warm_up:
            self._num_warm_up -= 1
        else:
            self.tally.rewards.append(reward)
            self.tally.lengths.append(len(token_ids))
            self.tally.prompt_lengths.append(len(prompt_ids))
        return reward


def step_with_trl(job: Job) -> Measurement:
    """Time TRL's steps.

    Job: as for `grpo_step.step_with_aha`, with batch_size (sequences of a micro-batch), gradient_checkpointing and
    continuous_batching (transformers' own) in place of micro_batch_tokens.
    """
    from datasets import Dataset  # type: ignore[import-untyped, unused-ignore]
    from transformers import AutoTokenizer, TrainerCallback
    from trl.trainer.grpo_trainer import GRPOTrainer

    task, chat = chosen_task(job), ChatFormat.load(job["folder"])
    num_steps = NUM_WARM_UP_STEPS + job["steps"]
    problems = list(
        islice(task.problems("train", seed=derive_seed(0, "problems", 0)), num_steps * job["prompts_per_step"])
    )
    judge = Judge(task, chat, problems=problems, job=job)
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    rows = [{"prompt": _as_dicts(task, problem), "problem_index": i} for i, problem in enumerate(problems)]
    tokenizer: Any = AutoTokenizer.from_pretrained(job["folder"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with tempfile.TemporaryDirectory() as work:
        trainer = GRPOTrainer(
            model=_load(job),
            reward_funcs=judge,
            args=_arguments(job, folder=work, num_steps=num_steps),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    seconds = [end - start for start, end in pairwise(ends)][NUM_WARM_UP_STEPS:]
    assert len(seconds) == job["steps"], f"TRL took {len(seconds)} steps"
    return Measurement(seconds=tuple(seconds), num_tokens=judge.tally.num_tokens, details=judge.tally.summary())


def _as_dicts(task: Task, problem: Problem) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in conversation(task, problem=problem)]


def _load(job: Job) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(job["folder"], dtype=getattr(torch, job["dtype"]))


def _arguments(job: Job, *, folder: str, num_steps: int) -> Any:
    """The same step as ours: all completions sampled together, one update, no KL term, no truncation of sampling."""
    from trl.trainer.grpo_config import GRPOConfig

    num_completions = job["prompts_per_step"] * job["group_size"]
    # With the made-up reward every completion has all its tokens, as on our side.
    generation = {"min_new_tokens": job["num_tokens"]} if job["reward"] == "spread" else None
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        # The model's own dtype computes; autocast on top of it only adds casts.
        bf16=False,
        per_device_train_batch_size=job["batch_size"],
        gradient_accumulation_steps=num_completions // job["batch_size"],
        gradient_checkpointing=job["gradient_checkpointing"],
        use_transformers_continuous_batching=job["continuous_batching"],
        num_generations=job["group_size"],
        max_completion_length=job["num_tokens"],
        generation_kwargs=generation,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.0,
        num_iterations=1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        max_steps=num_steps,
        shuffle_dataset=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        seed=0,
    )
