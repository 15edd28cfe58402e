"""Continuous batching: requests enter when rows are free, and every completion leaves the moment it ends."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from aha.engine.cache import DecodeAttention, KeyValueCache, PrefillAttention
from aha.engine.packing import PackedWeights, Quantize
from aha.engine.pictures import PictureQueue, check_pixels, embed
from aha.engine.rows import Request, Rows, check_prompt
from aha.engine.sampling import draw, uniforms
from aha.errors import RequestError
from aha.models import Transformer
from aha.types import Completion, FinishReason, SamplingParams

OnCompletion = Callable[[int, int, Completion], None]
"""Told a finished completion with the index of its prompt and of its sample."""
_RUNNING, _STOP, _LENGTH = 0, 1, 2
_REASONS = {_STOP: FinishReason.STOP, _LENGTH: FinishReason.LENGTH}
MARGIN_TOKENS = 8
"""Tokens decoded before those that can spell a stop string: decoders treat the first ones specially."""
MAX_PREFILL_TOKENS = 8192
"""Prompt tokens of one pass; a longer prompt passes alone. Bounds the memory of its activations."""


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """One token of one completion, for streaming."""

    request_id: int
    sample_index: int
    token_id: int | None
    """None only when the completion was withdrawn because the weights changed."""
    logprob: float
    finish_reason: FinishReason | None
    """None while the completion goes on."""


class _Step(NamedTuple):
    """What one forward pass drew, for rows `first_row` and up."""

    first_row: int
    token_ids_B: Tensor
    logprobs_B: Tensor
    codes_B: Tensor
    """_RUNNING, _STOP or _LENGTH."""


class Engine:
    """Samples completions from a model whose parameters it shares.

    A completion depends on its prompt, its seed and the index of its sample; not on what else is in the batch. The
    prompt of a group is computed once. One thread owns an engine.

    Args:
        model: read at every step; whoever changes its parameters raises `weight_version`.
        max_batch_size: most completions that run at once.
        max_cached_tokens: most cached positions, counted as rows x longest row; bounds memory.
        decode: token ids to text, needed for stop strings only.
        stop_token_ids: tokens that end a completion; None takes the model's own.
        quantize: see PackedWeights.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        max_batch_size: int = 512,
        max_cached_tokens: int = 262_144,
        decode: Callable[[Sequence[int]], str] | None = None,
        stop_token_ids: Sequence[int] | None = None,
        quantize: Quantize = "none",
    ) -> None:
        self.model = model
        self.max_batch_size = max_batch_size
        self.max_cached_tokens = max_cached_tokens
        self.num_decoded_tokens = 0
        """Tokens sampled since the engine was made."""
        self.num_prefilled_tokens = 0
        """Prompt tokens computed."""
        self.num_cached_prompt_tokens = 0
        """Prompt tokens of further samples of a group, which took the first one's keys and values."""
        self._decode = decode
        stop_ids = model.config.eos_token_ids if stop_token_ids is None else stop_token_ids
        self._stop_ids = torch.tensor(sorted(set(stop_ids)), dtype=torch.long, device=model.device)
        self._cache = KeyValueCache(model.config, dtype=model.dtype, device=model.device)
        self._rows = Rows(model.device)
        self._linear = PackedWeights(quantize=quantize)
        self.unseen = PictureQueue(model)
        """Requests with pictures that the model has not wholly seen; text goes before them."""
        self._waiting: deque[Request] = deque()
        self._next_id = 0
        self._weight_version = model.weight_version

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self.unseen) or self.num_running > 0

    @property
    def num_running(self) -> int:
        """Completions in the batch."""
        return self._rows.num_live

    @property
    def num_waiting(self) -> int:
        """Completions that wait for a free row."""
        return sum(request.num_waiting for request in self._waiting)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams | Sequence[SamplingParams],
        *,
        on_progress: Callable[[int], None] | None = None,
        on_completion: OnCompletion | None = None,
        pixels: Sequence[Tensor | None] | None = None,
    ) -> list[list[Completion]]:
        """Complete every prompt; the parameters must not change meanwhile.

        With stop strings, `token_ids` reach to the token that completed one; whoever makes the text cuts it there.

        Args:
            prompts: token ids, none empty.
            sampling: one for all, or one per prompt.
            on_progress: told the number of completions done so far whenever it grows.
            on_completion: handed every completion as soon as it ends, with the index of its prompt and of its sample;
                sampling goes on when it returns, so that slow work belongs in another thread.
            pixels: tiles of each prompt's pictures, as for `submit`.

        Returns:
            Per prompt, `num_samples` completions in the order of their index.

        Raises:
            RequestError: as `submit`; nothing is sampled then.
        """
        if self.has_work:
            raise RuntimeError("generate() needs an engine without submitted requests")
        each = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else list(sampling)
        tiles = pixels or [None] * len(prompts)
        requests = [self._make_request(p, s, pixels_M3YX=m) for p, s, m in zip(prompts, each, tiles, strict=True)]
        self._withdraw_stale_rows()
        self._reset_cache(requests)
        for request in requests:
            self._enqueue(request)
        try:
            done = self._run(requests, on_progress=on_progress, on_completion=on_completion)
        finally:
            # An interrupt may have come in the middle of a step: nothing half-done stays.
            self._waiting.clear()
            self.unseen.clear()
            self._rows = Rows(self.model.device)
        return [[done[r.request_id, i] for i in range(r.sampling.num_samples)] for r in requests]

    def _run(
        self,
        requests: Sequence[Request],
        *,
        on_progress: Callable[[int], None] | None,
        on_completion: OnCompletion | None,
    ) -> dict[tuple[int, int], Completion]:
        """Step until nothing is left; completions by request id and index of the sample."""
        done: dict[tuple[int, int], Completion] = {}
        prompt_indices = {request.request_id: index for index, request in enumerate(requests)}
        while self.has_work:
            if self.model.weight_version != self._weight_version:
                raise RuntimeError("the model's weights changed while generate() was running")
            step = self._advance()
            if step is None:
                continue
            finished = self._finished_rows(step)
            for row in finished:
                request, sample_index = self._rows.owners[row]
                completion = done[request.request_id, sample_index] = self._completion(row, step)
                if on_completion is not None:
                    on_completion(prompt_indices[request.request_id], sample_index, completion)
            self._remove(finished)
            if finished and on_progress is not None:
                on_progress(len(done))
        return done

    def submit(self, prompt_ids: Sequence[int], sampling: SamplingParams, *, pixels_M3YX: Tensor | None = None) -> int:
        """Queue a request for `step`.

        Args:
            pixels_M3YX: tiles of the pictures whose tokens are in the prompt.

        Raises:
            RequestError: a prompt that does not fit the model's window, or pictures that do not fit the prompt.
        """
        request = self._make_request(prompt_ids, sampling, pixels_M3YX=pixels_M3YX)
        self._enqueue(request)
        return request.request_id

    @torch.inference_mode()
    def step(self) -> list[EngineEvent]:
        """Let waiting requests in, or else draw one token for every row; before that, look at some tile of a picture.

        If the weights changed since the last step, the rows in the batch end with FinishReason.ABORT, since their
        tokens would come from two models; waiting requests are computed with the new weights.
        """
        events = self._withdraw_stale_rows()
        if not self.has_work:
            return events
        step = self._advance()
        if step is None:
            return events
        owners = self._rows.owners[step.first_row : step.first_row + len(step.token_ids_B)]
        drawn = zip(owners, step.token_ids_B.tolist(), step.logprobs_B.tolist(), step.codes_B.tolist(), strict=True)
        for (request, sample_index), token_id, logprob, code in drawn:
            events.append(EngineEvent(request.request_id, sample_index, token_id, logprob, _REASONS.get(code)))
        self._remove(self._finished_rows(step))
        return events

    @torch.inference_mode()
    def abort(self, request_id: int) -> None:
        """Drop a request and its rows; no further events come. An unknown or finished id is no error."""
        self.unseen.drop(request_id)
        self._waiting = deque(request for request in self._waiting if request.request_id != request_id)
        owners = self._rows.owners
        self._remove([row for row, (request, _) in enumerate(owners) if request.request_id == request_id])

    def release_memory(self) -> None:
        """Give back the cache and the packed weights between two uses; the next use makes them again."""
        if self.has_work:
            raise RuntimeError("release_memory() needs an engine without requests")
        self._cache = KeyValueCache(self.model.config, dtype=self.model.dtype, device=self.model.device)
        self._linear.clear()

    def _make_request(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, *, pixels_M3YX: Tensor | None = None
    ) -> Request:
        check_prompt(self.model.config, prompt_ids)
        if sampling.stop and self._decode is None:
            raise RequestError("stop strings need an engine with decode=", param="stop")
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._next_id += 1
        max_length = min(len(prompt_ids) + sampling.max_tokens, self.model.config.max_position_embeddings)
        if pixels_M3YX is not None:
            check_pixels(self.model, prompt_ids, pixels_M3YX=pixels_M3YX)
        return Request(self._next_id, tuple(prompt_ids), sampling, seed, max_length, pixels_M3YX)

    def _enqueue(self, request: Request) -> None:
        (self._waiting.append if request.is_seen else self.unseen.add)(request)

    def _advance(self) -> _Step | None:
        """One forward pass: the prompts of requests that can enter, or else one token for every row; None: no row."""
        seen = self.unseen.look()
        if seen is not None:
            self._waiting.append(seen)
        admitted = self._admit()
        if admitted:
            return self._prefill(admitted)
        if not self.num_running:
            return None
        rows, count = self._rows, self._rows.num_live
        lengths_B = rows.lengths_B[:count]
        self._cache.reserve(count, num_columns=rows.longest + 1)
        hidden_BD = self.model.hidden_states(
            rows.last_tokens_B[:count],
            positions_N=lengths_B,
            attention=DecodeAttention(self._cache, lengths_B=lengths_B),
            linear=self._linear,
        )
        rows.lengths_B[:count] += 1
        return self._draw(self._linear(hidden_BD, self.model.output_weight, None), first_row=0)

    def _reset_cache(self, requests: Sequence[Request]) -> None:
        """Shape the cache from the requests alone, so that a repeated run repeats to the last bit."""
        num_rows = min(sum(request.num_waiting for request in requests), self.max_batch_size)
        longest = max((request.max_length for request in requests), default=1)
        num_rows = max(1, min(num_rows, self.max_cached_tokens // longest))
        self._cache.reset(num_rows, num_columns=max((len(r.prompt_ids) + 1 for r in requests), default=1))

    def _admit(self) -> list[tuple[Request, int]]:
        """Take requests from the queue, in order, each with how many of its samples enter now."""
        admitted: list[tuple[Request, int]] = []
        num_rows, longest, num_tokens = self.num_running, self._rows.max_length, 0
        while self._waiting:
            request = self._waiting[0]
            # A group enters whole, so that its prompt is computed once; one larger than the batch enters in pieces.
            count = min(request.num_waiting, self.max_batch_size)
            longest = max(longest, request.max_length)
            fits = num_rows + count <= self.max_batch_size and (num_rows + count) * longest <= self.max_cached_tokens
            num_tokens += len(request.prompt_ids)
            is_first = not admitted
            if (not fits and num_rows > 0) or (num_tokens > MAX_PREFILL_TOKENS and not is_first):
                break
            # Pictures pass alone: an image token that stands in a text by chance is not one of theirs.
            sees = any(one.pixels_M3YX is not None for one in (request, *(before for before, _ in admitted)))
            if sees and not is_first:
                break
            if not fits:
                count = max(1, min(count, self.max_cached_tokens // longest))
            num_rows += count
            admitted.append((request, count))
            if count == request.num_waiting:
                self._waiting.popleft()
            else:
                break
        return admitted

    def _prefill(self, admitted: list[tuple[Request, int]]) -> _Step:
        first_row = self._rows.num_live
        lengths = [len(request.prompt_ids) for request, _ in admitted]
        groups: list[list[int]] = []
        for request, count in admitted:
            groups.append(self._rows.add(request, count=count))
        self._cache.reserve(self._rows.num_live, num_columns=self._rows.longest + 1)
        device = self.model.device
        token_ids_N = torch.tensor([t for request, _ in admitted for t in request.prompt_ids], device=device)
        hidden_ND = self.model.hidden_states(
            token_ids_N,
            positions_N=torch.cat([torch.arange(n) for n in lengths]).to(device),
            attention=PrefillAttention(self._cache, lengths=lengths, rows=groups),
            linear=self._linear,
            embeddings_ND=embed(self.model, admitted[0][0], token_ids_N=token_ids_N),
        )
        self.num_prefilled_tokens += sum(lengths)
        self.num_cached_prompt_tokens += sum(n * (len(g) - 1) for n, g in zip(lengths, groups, strict=True))
        last_P = torch.tensor(lengths, device=device).cumsum(0) - 1
        logits_PV = self._linear(hidden_ND[last_P], self.model.output_weight, None)
        prompt_of_row = torch.arange(len(groups)).repeat_interleave(torch.tensor([len(g) for g in groups])).to(device)
        return self._draw(logits_PV[prompt_of_row], first_row=first_row)

    def _draw(self, logits_BV: Tensor, *, first_row: int) -> _Step:
        rows = self._rows
        live = slice(first_row, rows.num_live)
        drawn = draw(
            logits_BV,
            uniforms_B=uniforms(rows.stream_keys_B[live], positions_B=rows.num_drawn_B[live]),
            sampling=rows.sampling(live),
        )
        rows.record(drawn, live=live)
        self.num_decoded_tokens += len(drawn.token_ids_B)
        # A row is full when the token just drawn would need a column beyond its last.
        is_full_B = rows.lengths_B[live] + 1 >= rows.max_lengths_B[live]
        codes_B = torch.where(is_full_B, _LENGTH, _RUNNING)
        codes_B = torch.where(torch.isin(drawn.token_ids_B, self._stop_ids), _STOP, codes_B)
        for row in range(first_row, rows.num_live) if rows.has_stop_strings else ():
            if self._has_stop_string(row):
                codes_B[row - first_row] = _STOP
        return _Step(first_row, drawn.token_ids_B, drawn.logprobs_B, codes_B)

    def _has_stop_string(self, row: int) -> bool:
        stop = self._rows.owners[row][0].sampling.stop
        if not stop or self._decode is None:
            return False
        # A token is at least one byte, so a string of n bytes lies within the last n tokens.
        num_tail = max(len(text.encode()) for text in stop) + MARGIN_TOKENS
        tail = self._decode(self._rows.tail(row, num_tokens=num_tail))
        return any(text in tail for text in stop)

    def _finished_rows(self, step: _Step) -> list[int]:
        return [step.first_row + i for i in step.codes_B.nonzero().squeeze(1).tolist()]

    def _completion(self, row: int, step: _Step) -> Completion:
        token_ids, logprobs = self._rows.history(row)
        reason = _REASONS[int(step.codes_B[row - step.first_row])]
        return Completion(token_ids, logprobs, reason, weight_version=self._weight_version)

    def _remove(self, finished: list[int]) -> None:
        """Free rows by moving the last live ones into their places."""
        if not finished:
            return
        count = self._rows.num_live - len(finished)
        gone = set(finished)
        targets = [row for row in finished if row < count]
        sources = [row for row in range(count, self._rows.num_live) if row not in gone]
        if sources:
            device = self.model.device
            of, to = torch.tensor(sources, device=device), torch.tensor(targets, device=device)
            self._cache.move(of, targets=to, num_columns=self._rows.longest)
        self._rows.compact(sources, targets=targets, num_live=count)

    def _withdraw_stale_rows(self) -> list[EngineEvent]:
        """Follow a change of the weights: packed copies go, and so do rows that hold keys of the old ones."""
        if self.model.weight_version == self._weight_version:
            return []
        self._weight_version = self.model.weight_version
        self._linear.clear()
        self.unseen.start_over(request for request in self._waiting if request.pixels_M3YX is not None)
        self._waiting = deque(request for request in self._waiting if request.pixels_M3YX is None)
        owners = list(self._rows.owners)
        self._remove(list(range(len(owners))))
        return [EngineEvent(r.request_id, i, None, 0.0, FinishReason.ABORT) for r, i in owners]
