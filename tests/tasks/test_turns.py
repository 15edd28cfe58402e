"""Episodes held by messages: what an endpoint is sent, what it may spend, and what is made of it."""

from __future__ import annotations

from dataclasses import dataclass

from aha.evaluate import conversation, evaluate
from aha.tasks import Arithmetic, Warehouse
from aha.tasks.turns import answer_problems, converse
from aha.types import Completion, FinishReason, Message, Observation, Problem, SamplingParams, Score, Transcript, Turn

TASK = Warehouse()
PROBLEMS = [problem for problem, _ in zip(TASK.problems("test", seed=0), range(4), strict=False)]


def said(answer: str, *, num_tokens: int = 10, reason: FinishReason = FinishReason.STOP) -> Completion:
    return Completion((), (), reason, answer, "", answer, reported_tokens=num_tokens, cost_nano_usd=7)


class Clerk:
    """An endpoint that knows nothing but what it is told, and asks for each shelf in turn."""

    def __init__(self, *, num_tokens: int = 10) -> None:
        self.num_tokens = num_tokens
        self.calls: list[tuple[list[list[Message]], SamplingParams]] = []

    def __call__(self, conversations: list[list[Message]], sampling: SamplingParams) -> list[list[Completion]]:
        self.calls.append(([list(messages) for messages in conversations], sampling))
        answers = [said(self.next_turn(messages), num_tokens=self.num_tokens) for messages in conversations]
        return [[answer] * sampling.num_samples for answer in answers]

    def next_turn(self, messages: list[Message]) -> str:
        question, *told = [message.content for message in messages if message.role == "user"]
        shelves = question.split(" + ")
        return f"<tool>{shelves[len(told)]}</tool>" if len(told) < len(shelves) else str(sum(map(int, told)))


def held(task: Warehouse, clerk: Clerk, sampling: SamplingParams) -> list[list[Completion]]:
    return converse(task, PROBLEMS, [conversation(task, problem=p) for p in PROBLEMS], clerk, sampling)


def test_endpoint_is_told_what_the_tool_says_and_solves_the_task() -> None:
    clerk = Clerk()
    result = evaluate(TASK, clerk, num_problems=20, num_samples=2)
    assert result.pass_at_1 == 1.0
    assert result.mean_tokens == 30.0
    messages = clerk.calls[1][0][0]
    assert [message.role for message in messages] == ["system", "user", "assistant", "user"]


def test_episode_counts_tokens_and_cost_of_all_turns() -> None:
    ((episode, other), *_) = held(TASK, Clerk(), SamplingParams(num_samples=2, max_tokens=100, seed=3))
    assert (episode.num_tokens, episode.cost_nano_usd, episode.token_ids) == (30, 21, ())
    assert [turn.observation is None for turn in episode.turns] == [False, False, True]
    assert episode.answer == PROBLEMS[0].answer == other.answer
    assert TASK.score(PROBLEMS[0], episode).is_correct


def test_samples_and_turns_are_drawn_from_seeds_of_their_own() -> None:
    clerk = Clerk()
    held(TASK, clerk, SamplingParams(num_samples=3, seed=3))
    seeds = [sampling.seed for _, sampling in clerk.calls]
    assert len(set(seeds)) == len(seeds) == 1 + 3 * 2
    again = Clerk()
    held(TASK, again, SamplingParams(num_samples=3, seed=3))
    assert [sampling.seed for _, sampling in again.calls] == seeds
    unseeded = Clerk()
    held(TASK, unseeded, SamplingParams(seed=None))
    assert {sampling.seed for _, sampling in unseeded.calls} == {None}


def test_budget_is_of_the_whole_episode() -> None:
    clerk = Clerk()
    ((episode,), *_) = held(TASK, clerk, SamplingParams(max_tokens=25))
    assert [sampling.max_tokens for _, sampling in clerk.calls] == [25, 15, 5]
    # The clerk wrote 10 tokens where 5 were left: what stands beyond the budget was never said.
    assert (episode.finish_reason, episode.answer, episode.num_tokens) == (FinishReason.LENGTH, "", 30)
    ((spent,), *_) = held(TASK, Clerk(), SamplingParams(max_tokens=20))
    assert (spent.finish_reason, len(spent.turns), spent.turns[-1].observation) == (FinishReason.LENGTH, 2, None)


def test_turns_are_bounded_however_long_a_model_goes_on_asking() -> None:
    class Stubborn(Clerk):
        def next_turn(self, messages: list[Message]) -> str:
            return "<tool>1</tool>"

    clerk = Stubborn()
    ((episode,), *_) = held(TASK, clerk, SamplingParams(max_tokens=10_000))
    assert len(episode.turns) == len(clerk.calls) == TASK.max_turns
    assert TASK.score(PROBLEMS[0], episode).reward == 0.0


def test_task_without_turns_is_asked_once() -> None:
    task = Arithmetic()
    asked = next(task.problems("test", seed=0))
    calls = []

    def respond(conversations: list[list[Message]], sampling: SamplingParams) -> list[list[Completion]]:
        calls.append(conversations)
        return [[said(asked.answer)] for _ in conversations]

    ((answer,),) = answer_problems(task, [asked], [conversation(task, problem=asked)], respond, SamplingParams())
    assert (answer.answer, answer.turns, len(calls)) == (asked.answer, (), 1)


@dataclass(frozen=True)
class Never(Warehouse):
    """A task that must not be asked for its observation."""

    def respond(self, problem: Problem, transcript: Transcript) -> Observation | None:
        raise AssertionError

    def score(self, problem: Problem, completion: Completion) -> Score:
        return Score(0.0, False)


def test_turn_that_was_cut_off_ends_the_episode() -> None:
    def respond(conversations: list[list[Message]], sampling: SamplingParams) -> list[list[Completion]]:
        return [[said("<tool>1</tool>", reason=FinishReason.LENGTH)] for _ in conversations]

    task = Never()
    ((episode,),) = converse(
        task, PROBLEMS[:1], [conversation(task, problem=PROBLEMS[0])], respond, SamplingParams(max_tokens=50)
    )
    assert episode.finish_reason is FinishReason.LENGTH
    assert episode.turns == (Turn("", "<tool>1</tool>", text="<tool>1</tool>"),)
