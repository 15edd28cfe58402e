"""What runs in worker processes (aha.tasks.worker): each module answers the questions of one job.

A module has `answer(question)`, which raises UnreadableError where a model's text holds no answer.
"""
