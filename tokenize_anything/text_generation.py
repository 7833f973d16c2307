"""Batched caption writing with the text decoder: greedy, sampling and beam search."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenize_anything.modeling.text_decoder import TextDecoder

MAX_BATCH = 128
"""Default number of sequences decoded together: about 250 MB of float32 cache at published size."""

_ACCELERATOR_CHECK_INTERVAL = 4  # reading "which rows are finished" makes the host wait
_DROP_FRACTION = 0.125  # dropping rows copies the cache, so it waits until it pays


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How captions are written.

    Attributes:
        max_new_tokens: tokens after the start token, end token counted; None takes what the
            decoder has positions for (`max_text_length - 2`).
        num_beams: beams per caption; 1 follows a single sequence.
        temperature: 0 takes the likeliest token, above 0 samples.
        top_p: when sampling, keep the likeliest tokens that together reach this probability.
        length_penalty: beam search ranks by log-probability / length ** length_penalty: 1 by the
            mean, 0 by the sum, which favours short captions.
        seed: fixes sampling. The draws depend on the seed and the position of a row alone,
            whatever the other rows hold. None draws from torch's global generator.
    """

    max_new_tokens: int | None = None
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    length_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            _require_positive("max_new_tokens", self.max_new_tokens)
        _require_positive("num_beams", self.num_beams)
        rules = [
            (0 <= self.temperature < math.inf,
             f"temperature: expected 0 or a positive number, got {self.temperature}"),
            (0 < self.top_p <= 1,
             f"top_p: expected a probability above 0 and at most 1, got {self.top_p}"),
            (0 <= self.length_penalty < math.inf,
             f"length_penalty: expected 0 or a positive number, got {self.length_penalty}"),
            (self.top_p == 1 or self.temperature > 0,
             f"top_p: {self.top_p} has no effect without sampling; set temperature above 0"),
            (self.num_beams == 1 or self.temperature == 0,
             "num_beams: beam search does not sample; set temperature to 0 or num_beams to 1"),
            (self.length_penalty == 1 or self.num_beams > 1,
             f"length_penalty: {self.length_penalty} has no effect on a single beam; set num_beams "
             "above 1"),
            (self.seed is None or (isinstance(self.seed, int) and self.seed >= 0),
             f"seed: expected None or an integer from 0, got {self.seed!r}"),
        ]  # fmt: skip
        for holds, message in rules:
            if not holds:
                raise ValueError(message)


@dataclass(frozen=True)
class GeneratedText:
    """Captions of R regions as token ids.

    token_ids: R lists of new tokens, without start and end token.
    scores: (R,) float32 on the CPU, mean log-probability per new token, the end token included,
        under the decoder's own distribution (temperature 1, no `top_p`).
    """

    token_ids: list[list[int]]
    scores: Tensor

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class _Plan:
    """One call's choices, resolved for its decoder."""

    config: GenerationConfig
    start_id: int
    end_id: int
    max_new_tokens: int
    check_interval: int


def generate(
    text_decoder: TextDecoder,
    semantic_tokens: Tensor,
    *,
    start_id: int,
    end_id: int,
    config: GenerationConfig | None = None,
    max_batch: int = MAX_BATCH,
) -> GeneratedText:
    """Write one caption per semantic token.

    Args:
        text_decoder: in eval mode; its weights set device and dtype.
        semantic_tokens: (R,C), one per region; R may be 0.
        start_id: token fed first.
        end_id: token that ends a caption.
        config: None is greedy.
        max_batch: bound on memory, regions times beams decoded together. More regions are
            worked off in turns, with the same result.

    Raises:
        ValueError: a shape, token id or length that does not fit the decoder, or a decoder in
            training mode.
    """
    config = config or GenerationConfig()
    _require_positive("max_batch", max_batch)
    _check_inputs(text_decoder, semantic_tokens, start_id, end_id)
    weight = text_decoder.visual_proj.weight
    plan = _Plan(
        config=config,
        start_id=start_id,
        end_id=end_id,
        max_new_tokens=_resolve_max_new_tokens(config.max_new_tokens, text_decoder),
        check_interval=1 if weight.device.type == "cpu" else _ACCELERATOR_CHECK_INTERVAL,
    )
    if semantic_tokens.shape[0] == 0:
        return GeneratedText([], torch.zeros(0, dtype=torch.float32))
    with torch.inference_mode():
        parts = semantic_tokens.to(weight).split(max(1, max_batch // config.num_beams))
        if config.num_beams > 1:
            results = [_search_beams(text_decoder, part, plan) for part in parts]
        else:
            noise = _draw_noise(len(semantic_tokens), plan).to(weight.device)
            shares = noise.split([len(part) for part in parts])
            results = [
                _follow_one(text_decoder, part, plan, share)
                for part, share in zip(parts, shares, strict=True)
            ]
        token_ids = torch.cat([ids for ids, _ in results]).cpu()
        totals = torch.cat([total for _, total in results]).cpu()
    num_words = (token_ids != end_id).cumprod(dim=1).sum(dim=1)
    lengths = (num_words + 1).clamp(max=plan.max_new_tokens)
    rows = zip(token_ids.tolist(), num_words.tolist(), strict=True)
    return GeneratedText([row[:count] for row, count in rows], totals / lengths)


def _follow_one(
    text_decoder: TextDecoder, semantic_tokens: Tensor, plan: _Plan, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Extend one sequence per row, by the likeliest or a drawn token.

    `noise` is (R,max_new_tokens) in (0,1], or (R,0) to take the likeliest token. Returns token_ids
    (R,max_new_tokens), valid up to the first end token, and sums of log-probabilities (R,).
    """
    token_ids, totals = _start_rows(semantic_tokens, plan)
    active = torch.arange(len(totals), device=totals.device)  # rows still written, (A,)
    is_done = torch.zeros_like(active, dtype=torch.bool)
    last = torch.full_like(active, plan.start_id)
    cache = text_decoder.start_cache(semantic_tokens)
    for step in range(plan.max_new_tokens):
        logits = text_decoder.next_logits(last, cache)
        if noise.shape[1]:
            last = _draw_tokens(logits, noise[active, step], plan.config)
        else:
            last = logits.argmax(dim=-1)
        log_probs = logits.gather(-1, last[:, None])[:, 0] - logits.logsumexp(dim=-1)
        token_ids[active, step] = last
        totals[active] += log_probs.masked_fill(is_done, 0.0)
        is_done = is_done | (last == plan.end_id)
        kept = _rows_to_keep(is_done, step, plan)
        if kept is None:
            continue
        if len(kept) == 0:
            break
        active, is_done, last, cache = active[kept], is_done[kept], last[kept], cache.select(kept)
    return token_ids, totals


def _start_rows(semantic_tokens: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
    """token_ids (R,max_new_tokens) full of end tokens, and zero totals (R,) float32."""
    rows, device = semantic_tokens.shape[0], semantic_tokens.device
    token_ids = torch.full((rows, plan.max_new_tokens), plan.end_id, device=device)
    return token_ids, torch.zeros(rows, dtype=torch.float32, device=device)


def _rows_to_keep(is_done: Tensor, step: int, plan: _Plan) -> Tensor | None:
    """Indices of the unfinished rows, or None while dropping the finished ones does not pay."""
    if (step + 1) % plan.check_interval:
        return None
    kept = (~is_done).nonzero()[:, 0]
    num_dropped = len(is_done) - len(kept)
    return kept if 0 < num_dropped >= _DROP_FRACTION * len(is_done) else None


def _draw_noise(num_rows: int, plan: _Plan) -> Tensor:
    """(R,max_new_tokens) uniform in (0,1] on the CPU, alike for every device; (R,0) for greedy."""
    if plan.config.temperature == 0:
        return torch.zeros(num_rows, 0)
    generator = None
    if plan.config.seed is not None:
        generator = torch.Generator().manual_seed(plan.config.seed)
    # drawn row by row, so that a row's draws do not change with the number of rows
    rows = [
        torch.rand(plan.max_new_tokens, generator=generator, dtype=torch.float32)
        for _ in range(num_rows)
    ]
    return 1.0 - torch.stack(rows)


def _draw_tokens(logits: Tensor, noise: Tensor, config: GenerationConfig) -> Tensor:
    """Sample from logits (A,V) by inverting the cumulative distribution at `noise` (A,)."""
    logits = logits - logits.amax(dim=-1, keepdim=True)  # stays finite at tiny temperatures
    probs = (logits / config.temperature).softmax(dim=-1)
    if config.top_p == 1.0:
        return _invert_cumulative(probs, noise)
    probs, order = probs.sort(dim=-1, descending=True)
    is_kept = probs.cumsum(dim=-1) - probs < config.top_p
    is_kept[:, 0] = True
    index = _invert_cumulative(probs * is_kept, noise)
    index = torch.minimum(index, is_kept.sum(dim=-1) - 1)  # whatever rounding did to the sums
    return order.gather(-1, index[:, None])[:, 0]


def _invert_cumulative(probs: Tensor, noise: Tensor) -> Tensor:
    """First index (A,) where the running sum of `probs` (A,V) reaches its share `noise` (A,)."""
    cumulative = probs.cumsum(dim=-1)
    return (cumulative < noise[:, None] * cumulative[:, -1:]).sum(dim=-1)


@dataclass(frozen=True)
class _Beams:
    """Hypotheses of A rows, b each.

    token_ids: (A,b,max_new_tokens), filled up with the end token.
    totals: (A,b) log-probabilities; -inf marks a beam with nothing in it yet.
    lengths: (A,b) tokens so far, the end token included.
    is_done: (A,b) whether the end token has come.
    """

    token_ids: Tensor
    totals: Tensor
    lengths: Tensor
    is_done: Tensor

    @classmethod
    def start(cls, rows: int, plan: _Plan, device: torch.device) -> _Beams:
        """One empty hypothesis per row, in the first beam; the others have nothing in them."""
        shape = (rows, plan.config.num_beams)
        totals = torch.full(shape, -math.inf, dtype=torch.float32, device=device)
        totals[:, 0] = 0.0
        return cls(
            torch.full((*shape, plan.max_new_tokens), plan.end_id, device=device),
            totals,
            torch.zeros(shape, dtype=torch.long, device=device),
            torch.zeros(shape, dtype=torch.bool, device=device),
        )

    def select(self, rows: Tensor) -> _Beams:
        """Keep some of the rows, (A',) indices."""
        return _Beams(
            self.token_ids[rows], self.totals[rows], self.lengths[rows], self.is_done[rows]
        )


class _BestCaptions:
    """The best complete caption of each of R rows so far, ranked with the length penalty."""

    def __init__(self, semantic_tokens: Tensor, plan: _Plan) -> None:
        self.token_ids, self.totals = _start_rows(semantic_tokens, plan)
        self.ranks = torch.full_like(self.totals, -math.inf)
        self._plan = plan

    def update(self, active: Tensor, beams: _Beams, step: int) -> None:
        """Take over complete captions of the rows `active` (A,); after the last step all are."""
        is_complete = beams.is_done | (step + 1 == self._plan.max_new_tokens)
        ranks = beams.totals / beams.lengths**self._plan.config.length_penalty
        ranks, beam = ranks.masked_fill(~is_complete, -math.inf).max(dim=1)
        is_better = ranks > self.ranks[active]
        rows = torch.arange(len(active), device=active.device)
        token_ids = torch.where(
            is_better[:, None], beams.token_ids[rows, beam], self.token_ids[active]
        )
        self.token_ids[active] = token_ids
        self.totals[active] = torch.where(is_better, beams.totals[rows, beam], self.totals[active])
        self.ranks[active] = torch.where(is_better, ranks, self.ranks[active])

    def is_final(self, active: Tensor, beams: _Beams) -> Tensor:
        """Whether no beam can still overtake, (A,): a total only falls, a length has its limit."""
        bounds = beams.totals / self._plan.max_new_tokens**self._plan.config.length_penalty
        can_win = ~beams.is_done & (bounds > self.ranks[active][:, None])
        return ~can_win.any(dim=1)


def _search_beams(
    text_decoder: TextDecoder, semantic_tokens: Tensor, plan: _Plan
) -> tuple[Tensor, Tensor]:
    """Beam search; a finished caption keeps its place until better beams take it.

    Returns token_ids (R,max_new_tokens) of the best captions, filled up with the end token, and
    the sums of their log-probabilities (R,).
    """
    num_beams = plan.config.num_beams
    best = _BestCaptions(semantic_tokens, plan)
    active = torch.arange(len(best.totals), device=best.totals.device)  # rows not final, (A,)
    beams = _Beams.start(len(active), plan, active.device)
    last = torch.full_like(active, plan.start_id).repeat_interleave(num_beams)
    cache = text_decoder.start_cache(semantic_tokens.repeat_interleave(num_beams, dim=0))
    for step in range(plan.max_new_tokens):
        beams, parents = _extend(beams, text_decoder.next_logits(last, cache), step, plan)
        best.update(active, beams, step)
        kept = _rows_to_keep(best.is_final(active, beams), step, plan)
        if kept is not None:
            if len(kept) == 0:
                break
            active, beams, parents = active[kept], beams.select(kept), parents[kept]
        cache = cache.select(parents.flatten())
        last = beams.token_ids[:, :, step].flatten()
    return best.token_ids, best.totals


def _extend(beams: _Beams, logits: Tensor, step: int, plan: _Plan) -> tuple[_Beams, Tensor]:
    """Add a token to every unfinished beam and keep the b best hypotheses of each row.

    `logits` is (A*b,V). Returns the new beams and (A,b) the sequence, 0..A*b-1, each continues.
    """
    rows, num_beams = beams.totals.shape
    log_probs = logits.log_softmax(dim=-1).unflatten(0, (rows, num_beams))
    width = min(num_beams, log_probs.shape[-1])  # no more of one beam's extensions can survive
    gains, tokens = log_probs.topk(width, dim=-1)  # (A,b,width)
    # a finished beam has one extension: itself
    is_done = beams.is_done[..., None]
    stays = is_done & (torch.arange(width, device=logits.device) == 0)
    gains = gains.masked_fill(is_done, -math.inf).masked_fill(stays, 0.0)
    tokens = tokens.masked_fill(is_done, plan.end_id)
    totals = beams.totals[..., None] + gains
    lengths = beams.lengths.masked_fill(~beams.is_done, step + 1)
    ranks = totals / lengths[..., None] ** plan.config.length_penalty
    top = ranks.flatten(1).topk(num_beams, dim=1).indices  # (A,b)
    parents = top // width
    first = torch.arange(rows, device=logits.device)[:, None]
    token_ids, token = beams.token_ids[first, parents], tokens.flatten(1).gather(1, top)
    token_ids[..., step] = token
    kept = _Beams(
        token_ids,
        totals.flatten(1).gather(1, top),
        lengths.gather(1, parents),
        token == plan.end_id,
    )
    return kept, first * num_beams + parents


def _require_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")


def _check_inputs(
    text_decoder: TextDecoder, semantic_tokens: Tensor, start_id: int, end_id: int
) -> None:
    if text_decoder.training:
        raise ValueError(
            "text_decoder: expected eval mode, got training mode, whose dropout would change the "
            "captions; call text_decoder.eval() first"
        )
    dim = text_decoder.visual_proj.in_features
    if semantic_tokens.ndim != 2 or semantic_tokens.shape[1] != dim:
        raise ValueError(
            f"semantic_tokens: expected shape (R,{dim}), got {tuple(semantic_tokens.shape)}; "
            "choose one of the four slots first"
        )
    vocabulary_size = text_decoder.word_embedding.num_embeddings
    for name, token_id in (("start_id", start_id), ("end_id", end_id)):
        if not 0 <= token_id < vocabulary_size:
            raise ValueError(
                f"{name}: expected a token id from 0 to {vocabulary_size - 1}, got {token_id}; is "
                "this the tokenizer the text decoder was trained with?"
            )


def _resolve_max_new_tokens(wanted: int | None, text_decoder: TextDecoder) -> int:
    """All new tokens the decoder has positions for, or fewer if asked."""
    limit = text_decoder.max_text_length - 2  # the visual and the start token take two
    if wanted is not None and wanted > limit:
        raise ValueError(
            f"max_new_tokens: expected at most {limit}, as the decoder has "
            f"{text_decoder.max_text_length} positions, got {wanted}"
        )
    return limit if wanted is None else wanted
