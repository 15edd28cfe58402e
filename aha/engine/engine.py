"""Continuous batching: requests enter when rows are free, and every completion leaves the moment it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aha.engine.cache import DecodeAttention, KeyValueCache, PrefillAttention
from aha.engine.drafting import Drafter
from aha.engine.packing import PackedWeights, Quantize
from aha.engine.pictures import check_pixels, embed
from aha.engine.queue import RequestQueue
from aha.engine.request import Request, make_request
from aha.engine.rows import Rows, at_last
from aha.engine.speculation import Speculation, SpeculationTrials
from aha.engine.step import LENGTH, RUNNING, STOP, EngineEvent, Step, Verified, verify
from aha.errors import RequestError
from aha.models import Transformer
from aha.types import Completion, FinishReason, SamplingParams

OnCompletion = Callable[[int, int, Completion], None]
"""Told a finished completion with the index of its prompt and of its sample."""


class Engine:
    """Samples completions from a model whose parameters it shares.

    A completion depends on its prompt, its seed and the index of its sample; on what else is in the batch by rounding
    only, which decides near-ties in bfloat16. The prompt of a group is computed once. One thread owns an engine.

    Args:
        model: read at every step; whoever changes its parameters raises `weight_version`.
        max_batch_size: most completions that run at once.
        max_cached_tokens: most cached positions, counted as rows x longest row; bounds memory.
        decode: token ids to text, needed for stop strings only.
        stop_token_ids: tokens that end a completion; None takes the model's own.
        quantize: see PackedWeights.
        speculation: whether the model's multi-token prediction drafts tokens, if it has any, which the model then
            verifies several at a time. Completions stay the same but for rounding; "auto" follows the clock, and so
            does its rounding. Off with "int8", whose products of several rows are others than those of one.
        clock: seconds; what "auto" times steps with.
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
        speculation: Speculation = "off",
        clock: Callable[[], float] = time.perf_counter,
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
        self._decode_text = decode
        stop_ids = model.config.eos_token_ids if stop_token_ids is None else stop_token_ids
        self._stop_ids = torch.tensor(sorted(set(stop_ids)), dtype=torch.long, device=model.device)
        self.num_drafted_tokens = 0
        self.num_accepted_tokens = 0
        """Drafts that the model would have written too."""
        self._rows = Rows(model.device)
        self._linear = PackedWeights(quantize=quantize)
        can_draft = speculation != "off" and quantize == "none" and model.config.num_mtp_layers > 0
        self._drafter = Drafter(model, linear=self._linear) if can_draft else None
        self._trials = SpeculationTrials() if speculation == "auto" else None
        self._clock = clock
        self._cache = self._make_cache()
        self.queue = RequestQueue(model, max_batch_size=max_batch_size, max_cached_tokens=max_cached_tokens)
        self._next_id = 0
        self._weight_version = model.weight_version

    def _make_cache(self) -> KeyValueCache:
        model, num_mtp_layers = self.model, self._num_drafts
        return KeyValueCache(model.config, dtype=model.dtype, device=model.device, num_mtp_layers=num_mtp_layers)

    @property
    def _num_drafts(self) -> int:
        """Drafts of a row in a step that drafts."""
        return 0 if self._drafter is None else self._drafter.num_drafts

    @property
    def has_work(self) -> bool:
        return bool(self.queue) or self.num_running > 0

    @property
    def num_running(self) -> int:
        """Completions in the batch."""
        return self._rows.num_live

    @property
    def num_waiting(self) -> int:
        """Completions that wait for a free row."""
        return self.queue.num_waiting

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
            self.queue.add(request)
        try:
            done = self._run(requests, on_progress=on_progress, on_completion=on_completion)
        finally:
            # An interrupt may have come in the middle of a step: nothing half-done stays.
            self.queue.clear()
            self._rows = Rows(self.model.device)
            if self._drafter is not None:
                self._drafter.clear()
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
            finished = step.finished_rows()
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
        self.queue.add(request)
        return request.request_id

    @torch.inference_mode()
    def step(self) -> list[EngineEvent]:
        """Let waiting requests in, or else write one token for every row, and more where drafts were right.

        Before that, look at some tile of a picture that waits.

        If the weights changed since the last step, the rows in the batch end with FinishReason.ABORT, since their
        tokens would come from two models; waiting requests are computed with the new weights.
        """
        events = self._withdraw_stale_rows()
        if not self.has_work:
            return events
        step = self._advance()
        if step is None:
            return events
        events += step.events(self._rows.owners)
        self._remove(step.finished_rows())
        return events

    @torch.inference_mode()
    def abort(self, request_id: int) -> None:
        """Drop a request and its rows; no further events come. An unknown or finished id is no error."""
        self.queue.drop(request_id)
        owners = self._rows.owners
        self._remove([row for row, (request, _) in enumerate(owners) if request.request_id == request_id])

    def release_memory(self) -> None:
        """Give back the cache and the packed weights between two uses; the next use makes them again."""
        if self.has_work:
            raise RuntimeError("release_memory() needs an engine without requests")
        self._cache = self._make_cache()
        self._linear.clear()

    def _make_request(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, *, pixels_M3YX: Tensor | None = None
    ) -> Request:
        if sampling.stop and self._decode_text is None:
            raise RequestError("stop strings need an engine with decode=", param="stop")
        request = make_request(prompt_ids, sampling=sampling, config=self.model.config, request_id=self._next_id + 1)
        self._next_id += 1
        if pixels_M3YX is not None:
            check_pixels(self.model, prompt_ids, pixels_M3YX=pixels_M3YX)
            request.pixels_M3YX = pixels_M3YX
        return request

    def _advance(self) -> Step | None:
        """One forward pass: the prompts of requests that can enter, or else the next tokens of every row.

        Returns:
            None while no row runs: there was only a picture to look at.
        """
        self.queue.look()
        admitted = self.queue.admit(num_running=self.num_running, longest=self._rows.max_length)
        if admitted:
            return self._prefill(admitted)
        if not self.num_running:
            return None
        count, drafts = self._rows.num_live, self._drafts_now()
        if self._trials is None:
            return self._decode(drafts=drafts)
        began = self._clock()
        step = self._decode(drafts=drafts)
        num_tokens = int(step.counts_B.sum())
        self._trials.record(count, drafted=drafts, num_tokens=num_tokens, seconds=self._clock() - began)
        return step

    def _drafts_now(self) -> bool:
        """Whether the next step drafts: not where every row has one token left to write."""
        rows, count = self._rows, self._rows.num_live
        if self._drafter is None or int((rows.max_lengths_B - rows.lengths_B)[:count].max()) <= 2:
            return False
        return self._trials is None or self._trials.drafts_now(count)

    def _decode(self, *, drafts: bool) -> Step:
        """Compute the last token of every row, and drafts of the next ones behind it."""
        rows, count = self._rows, self._rows.num_live
        token_ids_BT, drafts_BK = rows.last_tokens_B[:count].unsqueeze(1), None
        self._cache.reserve(count, num_columns=rows.longest + 1 + (2 * self._num_drafts if drafts else 0))
        if drafts and self._drafter is not None:
            drafts_BK = self._drafter.draft(self._cache, rows)
            token_ids_BT = torch.cat((token_ids_BT, drafts_BK), dim=1)
        num_tokens = token_ids_BT.shape[1]
        columns_B = rows.lengths_B[:count].clone()
        positions_BT = columns_B.unsqueeze(1)
        if drafts_BK is not None:
            positions_BT = positions_BT + torch.arange(num_tokens, device=self.model.device)
        hidden_ND = self.model.hidden_states(
            token_ids_BT.flatten(),
            positions_N=positions_BT.flatten(),
            attention=DecodeAttention(self._cache, lengths_B=columns_B, num_tokens=num_tokens),
            linear=self._linear,
        )
        rows.lengths_B[:count] += 1
        step = self._draw(self._linear(hidden_ND, self.model.output_weight, None), first_row=0, drafts_BK=drafts_BK)
        if self._drafter is not None:
            hidden_BTD = hidden_ND.unflatten(0, token_ids_BT.shape)
            self._drafter.follow(hidden_BTD, step.token_ids_BT, counts_B=step.counts_B, columns_B=columns_B)
        return step

    def _reset_cache(self, requests: Sequence[Request]) -> None:
        """Shape the cache from the requests alone, so that a repeated run repeats to the last bit."""
        num_rows = min(sum(request.num_waiting for request in requests), self.max_batch_size)
        longest = max((request.max_length for request in requests), default=1)
        num_rows = max(1, min(num_rows, self.max_cached_tokens // longest))
        longest_prompt = max((len(request.prompt_ids) for request in requests), default=0)
        self._cache.reset(num_rows, num_columns=longest_prompt + 1 + 2 * self._num_drafts)

    def _prefill(self, admitted: list[tuple[Request, int]]) -> Step:
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
        step = self._draw(logits_PV[prompt_of_row], first_row=first_row)
        if self._drafter is not None:
            carried_PKD = None
            if self._drafts_now():
                carried_PKD = self._drafter.read_prompts(
                    self._cache, hidden_ND, token_ids_N, lengths=lengths, rows=groups
                )
            self._drafter.add(
                hidden_ND[last_P][prompt_of_row],
                step.token_ids_BT[:, 0],
                columns_B=self._rows.lengths_B[first_row : self._rows.num_live] - 1,
                carried_BKD=None if carried_PKD is None else carried_PKD[prompt_of_row],
            )
        return step

    def _draw(self, logits_NV: Tensor, *, first_row: int, drafts_BK: Tensor | None = None) -> Step:
        """Draw behind every token, and write what follows drafts that were right; N = B*T, T = 1 without drafts."""
        rows = self._rows
        live = slice(first_row, rows.num_live)
        num_rows, num_tokens = rows.num_live - first_row, 1 if drafts_BK is None else 1 + drafts_BK.shape[1]
        drawn = rows.draw(logits_NV, live=live, num_tokens=num_tokens)
        token_ids_BT = drawn.token_ids_B.view(num_rows, num_tokens)
        logprobs_BT = drawn.logprobs_B.view(num_rows, num_tokens)
        # A row is full when the token just drawn would need a column beyond its last.
        room_B1 = (rows.max_lengths_B[live] - rows.lengths_B[live]).unsqueeze(1)
        is_full_BT = room_B1 <= torch.arange(1, num_tokens + 1, device=self.model.device)
        codes_BT = torch.where(is_full_BT, LENGTH, RUNNING)
        codes_BT = torch.where(torch.isin(token_ids_BT, self._stop_ids), STOP, codes_BT)
        if drafts_BK is None:
            verified = Verified(torch.ones_like(codes_BT[:, 0]), torch.zeros_like(codes_BT[:, 0]))
        else:
            verified = verify(token_ids_BT, drafts_BK=drafts_BK, codes_BT=codes_BT)
        counts_B, num_accepted_B = verified
        rows.record(token_ids_BT, logprobs_BT, counts_B=counts_B, live=live)
        codes_B = at_last(codes_BT, counts_B)
        if rows.has_stop_strings and self._decode_text is not None:
            for index, num_kept in rows.cut_at_stop_strings(counts_B, first_row=first_row, decode=self._decode_text):
                counts_B[index], codes_B[index] = num_kept, STOP
            num_accepted_B = num_accepted_B.minimum(counts_B)
        self.num_decoded_tokens += num_rows
        if drafts_BK is not None:
            rows.lengths_B[live] += counts_B - 1
            self.num_decoded_tokens += int(counts_B.sum()) - num_rows
            self.num_drafted_tokens += drafts_BK.numel()
            self.num_accepted_tokens += int(num_accepted_B.sum())
        return Step(first_row, token_ids_BT, logprobs_BT, counts_B, num_accepted_B, codes_B)

    def _completion(self, row: int, step: Step) -> Completion:
        token_ids, logprobs = self._rows.history(row)
        return Completion(token_ids, logprobs, step.finish_reason(row), weight_version=self._weight_version)

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
        if self._drafter is not None:
            self._drafter.compact(sources, targets=targets, num_live=count)

    def _withdraw_stale_rows(self) -> list[EngineEvent]:
        """Follow a change of the weights: packed copies go, and so do rows that hold keys of the old ones."""
        if self.model.weight_version == self._weight_version:
            return []
        self._weight_version = self.model.weight_version
        self._linear.clear()
        self.queue.start_over()
        owners = list(self._rows.owners)
        self._remove(list(range(len(owners))))
        return [EngineEvent(r.request_id, i, None, 0.0, FinishReason.ABORT) for r, i in owners]
