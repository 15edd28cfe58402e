"""What a run leaves behind: a plain model, and with LoRA also its adapter and the proof that the two are one."""

from __future__ import annotations

from aha.evaluate import conversation, select_problems
from aha.tasks import get_task
from aha.train.adapter import finish_lora
from aha.train.job import EVAL_SEED, Job
from aha.train.stage import StageConfig

PROBE_PROMPTS = 4
"""Held-out prompts on which a merged model is compared with base and adapter."""


def save_trained_model(job: Job, config: StageConfig) -> None:
    """Write model/, with its tokenizer; with LoRA also adapter/ and merge.json.

    Raises:
        ModelError: the merged model is not equal to base and adapter; adapter/ is there all the same.
    """
    if job.model.lora is None:
        job.model.save(job.run.model_folder)
        job.chat.save(job.run.model_folder)
        return
    task = get_task(config.task)
    problems = select_problems(task, num_problems=PROBE_PROMPTS, seed=EVAL_SEED)
    prompts = [job.chat.render(conversation(task, problem=problem)) for problem in problems]
    for name in ("adapter", "model"):
        job.chat.save(job.run.folder / name)
    proof = finish_lora(job.model, job.run.folder, prompts=prompts)
    job.console.say(proof.describe())
