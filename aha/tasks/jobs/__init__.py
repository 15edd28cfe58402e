"""What runs in worker processes (aha.tasks.worker): each module answers the questions of one job."""


class UnreadableAnswer(ValueError):  # noqa: N818: not a fault but a finding about a model's text
    """A model's text holds no answer of the kind that is looked for; the message is the score's note."""
