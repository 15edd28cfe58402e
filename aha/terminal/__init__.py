"""What verbs show in a terminal: a model's answers as they are sampled, and how an evaluation went."""

from aha.terminal.conversation import OpenModel, answer, ask, converse, open_model, read_pictures, stream_answer

__all__ = ["OpenModel", "answer", "ask", "converse", "open_model", "read_pictures", "stream_answer"]
