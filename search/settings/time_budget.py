"""From hours to the amounts of a run: the inverse of ``foretell``.

All amounts follow from one number, the training tokens of search and retraining together, so that the largest
number whose time fits is found by bisection. With fewer tokens

1. retraining shrinks alone, down to the tokens of the search; then both shrink alike;
2. calibration and validation shrink, to a fixed share of the time of training;
3. candidates become fewer, but with the fourth root of the tokens, so rung 1 shrinks faster;
4. promoted candidates become fewer, until each retraining has tokens enough for a second rung below it;
5. the baselines are no longer retrained, if even one promoted candidate would have fewer;
6. the trial of bases is left out, if it would take longer than an eighth of the training.

Block and batch shrink alike, until rung 1 has some tens of steps. What the user has named stays as it is.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, replace
from typing import Any

from evaluators.metrics.pace import Pace
from search.settings.bracket_plan import ETA, RESERVE, plan_bracket, plan_nested, rungs_up_to, tokens_for
from search.settings.config import NESTED, RunConfig
from search.settings.run_time import (
    Work,
    foretell,
    ranking_seconds,
    retraining_tokens,
    trial_seconds,
    validation_seconds,
)
from space.cutting.basis import BasisName

#: Fields of the configuration that follow from the hours, where the user leaves them open.
AMOUNTS = (
    *("block", "batch_blocks", "calibration_blocks", "validation_blocks", "distillation_blocks", "basis"),
    *("trials", "rung_tokens", "rung_candidates", "search_tokens"),
    *("retrain_tokens", "promote", "retrain_baselines"),
)
#: Candidates and tokens at rung 1 of the smallest search, if the defaults are not below.
_FEWEST_CANDIDATES, _FEWEST_TOKENS = 8, 8192
#: The most training tokens that hours are turned into, as a multiple of the default.
_GROWTH = 100
#: From this many candidates a search has a second rung, which then has three.
_TWO_RUNGS = 3 * ETA
#: Steps of a candidate at rung 1; tokens of the shortest block.
_STEPS, _SHORTEST = 32, 128
#: The fewest tokens of the calibration set, and of the validation set.
_FEWEST_SAMPLES = 8192
#: The most time of ranking, of validations and of the trial of bases, as shares of that of training.
_RANKING, _VALIDATION, _TRIAL = 1 / 6, 1 / 8, 1 / 8
_BISECTIONS = 40


@dataclass(frozen=True)
class TimeBudget:
    """Finds the amounts of a run that fit into a time."""

    usual: RunConfig
    """The configuration with the default amounts, and with those that the user named."""
    given: frozenset[str]
    """The amounts that the user named, by the names of their flags; they stay."""
    work: Work
    pace: Pace

    def seconds(self, config: RunConfig) -> float:
        """Foretell the seconds of a configuration."""
        return foretell(config, self.work, self.pace).total

    def smallest(self) -> RunConfig:
        """Return the smallest search that makes sense."""
        return self.at(self._fewest)

    def within(self, seconds: float) -> RunConfig | None:
        """Return the configuration with the most training tokens that fit; None if the smallest is too large.

        Args:
            seconds: time of the whole run.
        """
        low, high = self._fewest, max(self._fewest, _GROWTH * self._usual_tokens)
        if self.seconds(self.at(high)) <= seconds:
            return self.at(high)
        if self.seconds(self.at(low)) > seconds:
            return None
        for _ in range(_BISECTIONS):
            middle = math.sqrt(low * high)
            if self.seconds(self.at(middle)) <= seconds:
                low = middle
            else:
                high = middle
        return self.at(low)

    def at(self, tokens: float) -> RunConfig:
        """Return the configuration for this many training tokens of search and retraining together."""
        search = self._search_tokens(tokens)
        rungs = self.usual.rung_tokens if "rung_tokens" in self.given else ()
        first = rungs[0] if rungs else self._first_rung_tokens(search)
        retraining: dict[str, Any] = self._retraining(max(tokens - search, tokens / 2), first)
        every = bool(rungs)
        rungs = rungs or rungs_up_to(first, retraining["retrain_tokens"])
        trials = self.usual.trials if "trials" in self.given else None
        if self.usual.search == NESTED:
            bracket = plan_nested(search, self.work.architectures, trials)
        else:
            bracket = plan_bracket(search, rungs, self.work.architectures, trials, every)
        block, batch_blocks = self._step(bracket.rung_tokens[0])
        config = replace(
            self.usual,
            **retraining | {"promote": min(retraining["promote"], bracket.rung_candidates[-1])},
            search_tokens=search,
            trials=bracket.trials,
            rung_tokens=bracket.rung_tokens,
            rung_candidates=bracket.rung_candidates,
            block=block,
            batch_blocks=batch_blocks,
            distillation_blocks=math.ceil(max(*bracket.rung_tokens, retraining["retrain_tokens"]) / block),
        )
        return self._with_samples(config)

    @property
    def _usual_tokens(self) -> int:
        return self.usual.search_tokens + retraining_tokens(self.usual, self.work.hand_made)

    @property
    def _fewest(self) -> float:
        """Training tokens of the smallest search."""
        if "rung_tokens" in self.given:
            return 2.0 * tokens_for(self._fewest_candidates, self.usual.rung_tokens)
        return 2.0 * tokens_for(self._fewest_candidates, (self._fewest_tokens,))

    @property
    def _fewest_tokens(self) -> int:
        """Tokens of a candidate at rung 1 in the smallest search."""
        return min(_FEWEST_TOKENS, self.usual.rung_tokens[0])

    @property
    def _fewest_candidates(self) -> int:
        return min(_FEWEST_CANDIDATES, self.usual.rung_candidates[0], self.work.architectures)

    def _search_tokens(self, tokens: float) -> int:
        """Return the tokens of the search: half, up to the default; beyond that the default's share."""
        if "search_tokens" in self.given:
            return self.usual.search_tokens
        usual = self.usual.search_tokens
        return math.ceil(min(tokens / 2, usual * max(1.0, tokens / self._usual_tokens)))

    def _first_rung_tokens(self, search: int) -> int:
        """Return the tokens of a candidate at rung 1, by the number of candidates."""
        usual = self.usual.rung_candidates[0] * (search / self.usual.search_tokens) ** 0.25
        planned = search * (1 - RESERVE)
        candidates = min(self.work.architectures, usual, planned / (2 * self._fewest_tokens))
        if candidates >= _TWO_RUNGS:
            return int(planned / (2 * candidates))
        candidates = min(self.work.architectures, usual, planned / self._fewest_tokens)
        return max(1, int(planned / max(self._fewest_candidates, candidates)))

    def _retraining(self, tokens: float, first: int) -> dict[str, Any]:
        """Return the fields of retraining.

        Args:
            tokens: of all retrainings together.
            first: tokens of a candidate at rung 1.
        """
        usual = self.usual
        fixed = usual.retrain_tokens if "retrain_tokens" in self.given else None
        each = fixed or ETA * ETA * first
        beside = 1 + self.work.hand_made / 4  # the best baseline in full, the others and random weights short
        baselines = usual.retrain_baselines
        if "retrain_baselines" not in self.given:
            baselines = baselines and tokens >= (1 + beside) * each
        others = beside if baselines else 0.0
        promote = usual.promote
        if "promote" not in self.given:
            promote = max(1, min(promote, int(tokens / each - others)))
        whole = fixed or max(first, int(tokens / (promote + others)))
        return {"retrain_tokens": whole, "promote": promote, "retrain_baselines": baselines}

    def _step(self, first: int) -> tuple[int, int]:
        """Return block and blocks per step: rung 1 has some tens of steps, or those of the default."""
        block, blocks = self.usual.block, self.usual.batch_blocks
        tokens = min(block * blocks, first // _STEPS)
        if tokens == block * blocks or "block" in self.given:
            return block, blocks
        halvings = round(math.log2(block * blocks / max(1, tokens)) / 2)
        shorter = max(min(_SHORTEST, block), block >> halvings)
        return shorter, max(1, tokens // shorter)

    def _with_samples(self, config: RunConfig) -> RunConfig:
        """Return the configuration with calibration, validation and trial of bases in proportion."""
        usual, work, pace = self.usual, self.work, self.pace
        training = (config.search_tokens + retraining_tokens(config, work.hand_made)) / pace.learnt
        for field, seconds_of, share in (
            ("validation_blocks", validation_seconds, _VALIDATION),
            ("calibration_blocks", ranking_seconds, _RANKING),
        ):
            if field == "calibration_blocks" and self._trial_is_too_long(config, training):
                config = replace(config, basis=BasisName.COORDINATE.value)
            if field in self.given:
                continue
            tokens = getattr(usual, field) * usual.block
            fewest = max(1, min(tokens, _FEWEST_SAMPLES) // config.block)
            counts = range(fewest, max(fewest, tokens // config.block) + 1)

            def seconds(blocks: int) -> float:
                return seconds_of(_with_blocks(config, field, blocks), work, pace)  # noqa: B023

            fitting = bisect.bisect_right(counts, share * training, key=seconds)
            config = _with_blocks(config, field, counts[max(0, fitting - 1)])
        return config

    def _trial_is_too_long(self, config: RunConfig, training: float) -> bool:
        return trial_seconds(config, self.work, self.pace) > _TRIAL * training


def _with_blocks(config: RunConfig, field: str, blocks: int) -> RunConfig:
    amounts: dict[str, Any] = {field: blocks}
    return replace(config, **amounts)
