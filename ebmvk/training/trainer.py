"""The training loop. A step is a pure function of the weights, the optimiser's state and (seed, step)."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ebmvk.config.schema import Config
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.windows import Ahead, TokenStream
from ebmvk.engine import Backend
from ebmvk.engine.device import Device
from ebmvk.engine.sharded import sharded
from ebmvk.errors import (
    ArgumentError,
    BatchTooLarge,
    ConfigError,
    EbmvkError,
    NonFinite,
    OutOfMemory,
    RankLost,
    StorageError,
)
from ebmvk.evaluation.likelihood import Likelihood, likelihood, text_size, trigram
from ebmvk.evaluation.score_matching import ScoreMatching, frequencies, score_matching, windows
from ebmvk.memory.while_training import TrainingSoc, observed
from ebmvk.model import inspection
from ebmvk.model.language import LanguageModel
from ebmvk.monitoring.advice import advice, lower_rate, why_it_diverged
from ebmvk.monitoring.monitor import Monitor
from ebmvk.objective import noise
from ebmvk.objective.losses import Losses
from ebmvk.ranks import ALONE, Ranks
from ebmvk.report import tables
from ebmvk.runs import checkpoint, steps
from ebmvk.runs.checkpoint import Checkpoint
from ebmvk.runs.folder import check_same_text, digest, model_record
from ebmvk.runs.known_faults import REVISION, revision
from ebmvk.runs.manifest import STEP
from ebmvk.runs.metrics import read_history
from ebmvk.runs.progress import Progress
from ebmvk.training import finite, optim
from ebmvk.training.interruption import _Interruption
from ebmvk.training.passes import Passes, alone, attempted, batches_of, smaller_batches
from ebmvk.training.reduction import add_up, check_same_weights

LAST = 50  # steps whose mean loss is what training text costs
LOOKED_AT = 32  # tokens of validation whose attention the report shows
EXPERT_TOKENS = 4096  # of validation, by which the report says what experts specialise in
SCORED_TOKENS = 512  # of validation, for the score-matching figures

Outcome = Literal["finished", "stopped", "interrupted"]
Probe = Callable[[int], Mapping[str, Any]]


@dataclass(frozen=True)
class Streams:
    """text: {split: SHA-256 of its text} for all splits of the corpus."""

    train: TokenStream
    validation: TokenStream
    text: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Trainer:
    """One run, in one process or as the first of several.

    Args:
        folder: the run folder, which has its config.toml and tokenizer.json.
        probe: called at each evaluation with the step; what it returns joins the metrics (sampling health).
        ranks: the processes of the run; the others are `follower.Follower`s.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        model: LanguageModel,
        tokenizer: Tokenizer,
        streams: Streams,
        device: Device,
        monitor: Monitor,
        probe: Probe,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.folder, self.tokenizer, self.streams = config, folder, tokenizer, streams
        self.model = model.to(device.torch).train()
        self.device, self.monitor, self.probe, self.ranks = device, monitor, probe, ranks
        self.optimizer = optim.build(self.model, config.training)
        self.batches = batches_of(config, streams.train)
        self._ahead = Ahead(self.batches, config.data.num_workers)
        spread = dataclasses.replace(device, backend=sharded(device.backend, ranks, config.run.device))
        self.soc = (
            TrainingSoc(config, self.model, streams.train, streams.validation, self.batches, spread)
            if config.splats.enable_soc
            else None
        )
        self._interruption = _Interruption()
        self.progress = Progress()
        self._text = digest(streams.train)
        self._first_batch, self._saved = 0, 0  # the newest checkpoint's step
        self._revision = REVISION
        self._last_ce: deque[tuple[float, int]] = deque(maxlen=LAST)  # loss of each step, and its number of targets
        self.unigram = frequencies(streams.train, tokenizer.vocab_size)

    # ---- resuming --------------------------------------------------------------------------------------------------

    def restore(self, found: Checkpoint) -> None:
        """Continue from a checkpoint of this configuration.

        Raises:
            CheckpointError: it does not fit the model, the optimiser or the text.
        """
        check_same_text(found, self.streams.train, self.config)
        progress = Progress.of(found)
        if progress.step > self.config.training.steps:
            raise ConfigError(
                f"--steps {self.config.training.steps} is below the {progress.step} that {found.path} has behind it",
                hint="give more steps, or --resume an older checkpoint",
            )
        checkpoint.restore(self.model, found)
        self.optimizer.load_state_dict(found.optimizer)
        self.progress, self._saved = self._comparable(found, progress), progress.step
        self._revision = revision(found)
        if self.soc and not self.soc.restore(found, progress.seconds):
            self.monitor.say(f"splats      {found.path.name} has none: consolidation begins with an empty store")
        # With another batch size the position in the text is kept, to within one batch.
        self._first_batch = self.progress.windows // self.config.training.windows_per_step - self.progress.step
        if self.config.run.deterministic:
            torch.set_num_threads(int(found.state.get("threads", torch.get_num_threads())))

    def _comparable(self, found: Checkpoint, progress: Progress) -> Progress:
        """The progress with what compares with evaluations to come: without the best one where it was of another
        validation text, and with the number of evaluations since."""
        if self._validation_changed(found):
            self.monitor.say(
                "validation  the text isn't the one that was evaluated before, and losses on two texts cannot be "
                "compared: the best checkpoint and --patience start anew"
            )
            return dataclasses.replace(progress, best_step=None, best_nats=None, best_tokens=None, since_best=None)
        if progress.best_step is None or progress.since_best is not None:
            return progress
        evaluated = {row["step"] for row in read_history(self.folder).evals}
        since = len([step for step in evaluated if progress.best_step < step <= progress.step])
        return dataclasses.replace(progress, since_best=since)

    def _validation_changed(self, found: Checkpoint) -> bool:
        """True if the checkpoint was saved with another validation text, by its digest. Earlier versions kept none:
        then by the number of tokens in metrics.jsonl, if that has one."""
        if saved := (found.state.get("text") or {}).get("validation"):
            return bool(saved != self.streams.text.get("validation"))
        now = len(self.streams.validation) - 1
        sizes = read_history(self.folder).facts.get("text", {}).get("validation", {})
        return bool(sizes.get("tokens", now) != now)

    def take_over(self, found: Checkpoint) -> list[Path]:
        """Make the restored checkpoint the newest: later ones are set aside, `latest` and `best` name what is left.

        Returns the folders set aside.
        """
        aside = steps.supersede(self.folder, found.step)
        if STEP.fullmatch(found.path.name):  # not one that was itself set aside
            steps.point(self.folder, "latest", found.path.name)
        best = f"step-{self.progress.best_step}"
        if (self.folder / "checkpoints" / best).is_dir():
            steps.point(self.folder, "best", best)
        else:  # set aside or pruned: the next evaluation is the best one then
            (self.folder / "best").unlink(missing_ok=True)
            self.progress = dataclasses.replace(self.progress, best_step=None, best_nats=None, best_tokens=None)
        return aside

    def save(self) -> Path:
        """Write a checkpoint of now, let `latest` (and `best`, if it is) name it, prune old ones.

        Raises:
            DeviceError: other ranks have other weights; nothing is written. RankLost: one died; all is written.
        """
        lost: RankLost | None = None
        try:
            self._compare()
        except RankLost as error:
            lost = error
        state = {
            "progress": dataclasses.asdict(self.progress),
            "model": model_record(self.config, self.tokenizer),
            "revision": self._revision,
            "train": self._text,
            "text": dict(self.streams.text),
            "threads": torch.get_num_threads(),
        }
        soc = self.soc.consolidation.state() if self.soc else None
        every = self.config.logging.keep_epochs
        keep = every > 0 and self._ended(every)
        path = checkpoint.save(
            self.folder, self.progress.step, self.model, self.optimizer.state_dict(), state, soc, keep=keep
        )
        self._saved = self.progress.step
        if self.progress.best_step == self.progress.step:
            steps.point(self.folder, "best", path.name)
        steps.prune(self.folder, self.config.logging.keep_last)
        if lost:
            raise self._saved_before(lost)
        return path

    def _compare(self) -> None:
        """The weights of all ranks that can be reached. Raises DeviceError where they differ, RankLost."""
        if not self.ranks.lost:
            with self.ranks.whole():
                self.ranks.tell("compare", step=self.progress.step)
                check_same_weights(self.ranks, self.model, self.progress.step)

    def _saved_before(self, lost: RankLost) -> RankLost:
        """The error, with what is left of the run."""
        lost.what += f"; the run is saved as it was after step {self.progress.step}"
        lost.hint = f"continue with --resume --run-dir {shlex.quote(str(self.folder))}, with any number of processes"
        return lost

    # ---- running ---------------------------------------------------------------------------------------------------

    def run(self, stop_after: int | None = None) -> Outcome:
        """Train to the configured step; stop earlier after `stop_after` steps, or when interrupted, with a checkpoint.

        Raises:
            NonFinite: before the weights are touched. StorageError: something could not be written; the last step is
            saved as a checkpoint if possible.
        """
        outcome: Outcome = "interrupted"
        with self._interruption as interruption:
            try:
                outcome = self._run(interruption, stop_after)
            except ArgumentError as error:  # an evaluation or a consolidation refuses the model's values
                raise self._diverged(error) from error
            except (StorageError, OSError) as error:  # a failed log must not cost steps
                kept = self._kept(error)
                # A closed terminal may fail a write before its signal is handled: that is an interruption, too.
                if not (interruption.hung_up and self._saved == self.progress.step):
                    raise kept from error
        return "interrupted" if interruption.came else outcome

    def _kept(self, error: StorageError | OSError) -> StorageError:
        """The error to raise if something could not be written; saves the steps if possible."""
        what, why, hint = str(error), "", "free some space"
        if isinstance(error, StorageError):
            what, why, hint = error.what, error.why, error.hint
        try:
            if self.progress.step != self._saved:
                self.save()
            what += f"; the run is saved as it was after step {self.progress.step}"
        except StorageError:
            saved = f"the newest is of step {self._saved}" if self._saved else "the run has none yet"
            what += f"; nor could a checkpoint of step {self.progress.step}: {saved}"
        hint = "free some space" if "--resume" in hint else hint
        again = f"continue with --resume --run-dir {shlex.quote(str(self.folder))}"
        return StorageError(what, why=why, hint=f"{hint}, then {again}")

    def _run(self, interruption: _Interruption, stop_after: int | None) -> Outcome:
        total, first = self.config.training.steps, self.progress.step
        outcome: Outcome = "finished"
        if self._evaluate_if_due(interruption):  # an interruption at this step skipped it
            self.save()
        while self.progress.step < total and outcome == "finished" and not self._out_of_patience():
            self.step()
            done = self.progress.step
            improved = self._evaluate_if_due(interruption)
            if interruption.came:
                outcome = "interrupted"
            elif stop_after is not None and done - first >= stop_after and done < total:
                outcome = "stopped"
            if improved or outcome != "finished" or self._ends(done) or self._save_due():
                self.save()
        if outcome == "finished" and not interruption.came:
            with interruption.at_once():
                self._finish()
        return outcome

    def _evaluate_if_due(self, interruption: _Interruption) -> bool:
        """Evaluate where this step asks for it; True if it is the best so far. Ctrl-C ends it undone."""
        step, every = self.progress.step, self.config.logging.eval_every
        due = self.progress.evaluated != step and (step % every == 0 or step == self.config.training.steps)
        improved = False
        if due and not interruption.came:
            try:
                with interruption.at_once():
                    improved = self.evaluate()
            except StorageError:
                raise  # `run` saves
            except EbmvkError:
                self.save()  # steps must not be lost to what only looks at them
                raise
        return improved

    def _ends(self, step: int) -> bool:
        """Whether this step is the last one."""
        return step == self.config.training.steps or self._out_of_patience()

    def _save_due(self) -> bool:
        return self.progress.step % self.config.logging.save_every == 0 or self._ended(epochs=1)

    def _ended(self, epochs: int) -> bool:
        """Whether the last step came to the end of an epoch, and so many epochs (or twice as many, …) are behind it."""
        period, now = epochs * self.batches.windows, self.progress.windows
        return now // period > max(0, now - self.config.training.windows_per_step) // period

    def _out_of_patience(self) -> bool:
        """Whether the last evaluations, as many as `patience` says, brought none that is the best so far."""
        training, progress = self.config.training, self.progress
        if not training.patience or progress.evaluated != progress.step or progress.best_step is None:
            return False
        return (progress.since_best or 0) >= training.patience

    def step(self) -> None:
        """One step of the optimiser, recorded.

        Raises:
            NonFinite: before the weights are touched. BatchTooLarge: with what was seen to fit.
        """
        began = time.perf_counter()
        step, config = self.progress.step, self.config
        tokens = self._ahead.batch(self._first_batch + step).to(self.device.torch)
        passes = self._passes(tokens, step)
        losses, sample = self._of_all_ranks(passes)
        parts = {name: float(value) for name, value in losses.parts.items()}
        norm = self.optimizer.gradient_norm()
        self._refuse_non_finite(losses.total, norm, parts, passes)
        lr = optim.lr_at(step, config.training)
        self.optimizer.step(lr, norm)
        found = self.soc.after(step + 1, self._first_batch + step, sample, tokens) if self.soc else None
        seconds = time.perf_counter() - began
        seen = int((tokens[:, 1:] >= 0).sum())
        self._last_ce.append((parts["ce"], seen))
        self.progress = dataclasses.replace(
            self.progress,
            step=step + 1,
            windows=self.progress.windows + len(tokens),
            tokens=self.progress.tokens + seen,
            seconds=self.progress.seconds + seconds,
        )
        rate = seen / seconds
        values = {"loss": float(losses.total), "parts": parts, "lr": lr, "grad_norm": float(norm), "seconds": seconds}
        counts = {"counts": counts_record(self.device.backend)} if (step + 1) % config.logging.log_every == 0 else {}
        self.monitor.step(step + 1, values | {"tokens_per_second": rate, "tokens": self.progress.tokens} | counts)
        if self.soc and found:
            self._tell(found | {"share": self.soc.share(self.progress.seconds)})

    def _passes(self, tokens: Tensor, step: int) -> Passes:
        return Passes(
            *(self.model, self.device, self.config, tokens, step, self.config.training.accumulation_steps),
            *(self.ranks.share, self.ranks.total),
        )

    def _of_all_ranks(self, passes: Passes) -> tuple[Losses, Tensor]:
        """Losses and gradients of a step over all ranks, and the sample of states that consolidation takes.

        Raises:
            RankLost: one died. OutOfMemory: here or elsewhere. What was learned before is saved.
        """
        tokens, step = passes.tokens, passes.step
        try:
            self.ranks.tell("step", step=step, batch=self._first_batch + step)
            losses = self._if_it_fits(passes)
            if losses is None:
                raise self._out_of_memory(tokens, step)
            sample = observed(self.config, losses, tokens, self.ranks.share, step + 1)
            came = self._interruption.came
            losses, came = add_up(self.ranks, self.model, losses, sample, interrupted=came)
            if came:  # to any rank; one that has come to this one meanwhile stays
                self._interruption.came = True
        except (RankLost, OutOfMemory) as error:
            if step:
                self.ranks.fail(error)  # others may be in the midst of the step, and could not be told of a save
                self.save()
            if step and isinstance(error, RankLost):
                raise self._saved_before(error) from None
            raise
        return losses, sample

    def _out_of_memory(self, tokens: torch.Tensor, step: int) -> BatchTooLarge:
        """What to raise where all that was learned before is saved."""
        flags = self._what_fits(tokens, step)
        self.optimizer.zero_grad()
        what = f"step {step + 1}: no memory for --batch-size {self.config.training.batch_size}"
        if not step:
            return BatchTooLarge(what, hint=f"start again in another --run-dir with {flags}", flags=flags)
        again = f"continue with --resume --run-dir {shlex.quote(str(self.folder))} {flags}"
        return BatchTooLarge(f"{what}; what was learned before is saved", hint=again, flags=flags)

    def _what_fits(self, tokens: torch.Tensor, step: int) -> str:
        """Flags for a smaller batch that was seen to fit (found by halving) and keeps the step as it is: the number of
        windows in all stays the same."""
        windows, ranks = self.config.training.windows_per_step, self.ranks.size
        for rows in smaller_batches(self.config.training.batch_size, windows, ranks):
            flags = f"--batch-size {rows} --accumulation-steps {windows // rows}"
            if ranks > 1:  # the other ranks can't take part in the trial
                return flags
            if self._if_it_fits(dataclasses.replace(self._passes(tokens[:rows], step), batches=1)):
                return f"{flags}: a batch of {rows} has just fitted"
        twice = "" if self.config.model.gradient_checkpointing else "--gradient-checkpointing, or "
        return f"{twice}a new run with --seq-length {max(2, self.config.data.seq_length // 2)}"

    def _if_it_fits(self, passes: Passes) -> Losses | None:
        self.optimizer.zero_grad()
        return attempted(self.model, passes, self._non_finite)

    def _tell(self, found: Mapping[str, Any]) -> None:
        """Record one consolidation and say it in a line."""
        self.monitor.record("soc", self.progress.step, found)
        self.monitor.say(f"step {self.progress.step}: {consolidated(found)}")

    def _refuse_non_finite(self, total: Tensor, norm: Tensor, parts: Mapping[str, float], passes: Passes) -> None:
        """Raise NonFinite naming the first bad tensor, before the optimiser sees it."""
        if bad := finite.first_bad(self.model, total, norm, parts, alone(passes).run):
            raise self._non_finite(bad)

    def _non_finite(self, bad: str) -> NonFinite:
        """What to raise. A step depends on the weights before it only: from earlier ones another rate may help."""
        step, lr = self.progress.step, lower_rate(self.config)
        older = [path for path in steps.step_folders(self.folder) if path.name != f"step-{step}"]
        return NonFinite(
            f"step {step + 1}: {_not_finite(bad)}; the weights are as they were after step {step}",
            why=why_it_diverged(self.config),
            hint=f"go back before it: --resume {shlex.quote(str(older[0]))} {lr}"
            if older
            else f"start again in another --run-dir with {lr}",
        )

    def _diverged(self, error: ArgumentError) -> NonFinite:
        """The error to raise if the engine refuses the model's values outside of a step's passes."""
        found = self._non_finite(error.what)
        found.what = f"step {self.progress.step}: training diverged ({error.what}); what was saved before is intact"
        return found

    # ---- evaluating ------------------------------------------------------------------------------------------------

    def evaluate(self) -> bool:
        """Exact likelihood of a part of validation, and the probe; True if it is the best so far."""
        part = self.streams.validation.take(self.config.logging.eval_tokens + 1)
        found = self._likelihood(part)
        step, best = self.progress.step, self.progress.best_nats
        # Nats per token compare only over the same tokens: --eval-tokens may have changed.
        improved = best is None or self.progress.best_tokens != found.tokens or found.nats_per_token < best
        scored = self._score_matching(part) if self.model.on_sphere else []
        levels = {"score_matching": [level.record() for level in scored], "gates": self._gates(part)}
        health = self.probe(step)
        if self.soc:
            health = {**health, "splats": self.soc.consolidation.summary(step)}
        counts = counts_record(self.device.backend)
        self.monitor.record("eval", step, {"validation": found.record(), "counts": counts, **levels, **health})
        since = 0 if improved else (self.progress.since_best or 0) + 1
        self.progress = dataclasses.replace(self.progress, evaluated=step, since_best=since)
        if improved:
            self.progress = dataclasses.replace(
                self.progress, best_step=step, best_nats=found.nats_per_token, best_tokens=found.tokens
            )
        self.monitor.say(f"step {step}: validation part, {_figures(found)}{'  (best)' if improved else ''}")
        return improved

    def _score_matching(self, stream: TokenStream) -> list[ScoreMatching]:
        """L_kappa per noise level on the first tokens of validation, dropout off."""
        self.model.eval()
        found = score_matching(
            self.model,
            windows(stream, self.config.data.seq_length, SCORED_TOKENS).to(self.device.torch),
            self.device.backend,
            self.unigram.to(self.device.torch),
            starts=stream.starts,
            k=self.config.langevin.knn_k,
            seed=self.config.run.seed,
            extra=noise.given(self.config.training, self.config.model.latent_dim),
        )
        self.model.train()
        return found

    def _gates(self, stream: TokenStream) -> dict[str, list[float]]:
        """Means of the model's gates on the first tokens of validation, dropout off."""
        looked = windows(stream, self.config.data.seq_length, SCORED_TOKENS)[:, :-1]
        return inspection.gates(self.model, looked.to(self.device.torch))

    def _likelihood(self, stream: TokenStream) -> Likelihood:
        context = self.config.data.seq_length
        size = text_size(stream, self.tokenizer)
        return likelihood(self.model, stream, size, context=context, stride=context, device=self.device.torch)

    def _finish(self) -> None:
        """The whole validation split, exactly, and the trigram on the same tokens."""
        validation = self.streams.validation
        found = self._likelihood(validation)
        size = text_size(validation, self.tokenizer)
        base = trigram(self.streams.train, validation, size, self.tokenizer.vocab_size)
        counts = counts_record(self.device.backend)
        gain = self.soc.gain() if self.soc else None
        if self.progress.step < self.config.training.steps:
            self.monitor.say(f"step {self.progress.step}: stopped early, no better than at {self.progress.best_step}")
        experts = inspection.specialisation_in(self.model, validation.tokens[:EXPERT_TOKENS])
        looks = inspection.record(self.model, self.tokenizer, validation.tokens[:LOOKED_AT], experts)
        advised = list(self._advice(found))
        record: dict[str, Any] = {"advice": advised}
        record |= {
            "looks": looks,
            "validation": found.record(),
            "trigram": base.record(),
            "counts": counts,
            "soc": gain,
        }
        self.monitor.record("end", self.progress.step, record | {"progress": dataclasses.asdict(self.progress)})
        self.monitor.say(f"validation, all of it: {_figures(found)}")
        self.monitor.say(f"Kneser-Ney trigram, same tokens: {_figures(base)}")
        self.monitor.say(f"compared    {tables.against_trigram(found.record(), base.record())}")
        for line in advised:
            self.monitor.say(f"advice      {line}")
        if gain:
            self.monitor.say(
                f"memory of {gain['splats']:,} splats from training, part of validation: "
                f"{tables.number(gain['with'])} nats per token, {tables.number(gain['without'])} without, "
                f"{tables.number(gain['calibrated'])} without but calibrated"
            )

    def _advice(self, found: Likelihood) -> Iterator[str]:
        progress, targets = self.progress, sum(seen for _, seen in self._last_ce)
        learned = sum(ce * seen for ce, seen in self._last_ce) / targets if targets else found.nats_per_token
        return advice(
            self.config,
            perplexity=found.ppl_token,
            nats=found.nats_per_token,
            train_nats=learned,
            rose=progress.best_step != progress.step,
            rate=progress.tokens / max(progress.seconds, 1e-9),
            epochs=progress.windows / self.batches.windows,
        )


def consolidated(found: Mapping[str, Any]) -> str:
    """One consolidation in a line. found: the result of `TrainingSoc.after`."""
    events = [f"{found[name]} {name}" for name in ("created", "split", "merged", "pruned") if found[name]]
    if growth := found["growth"]:
        change = growth["after"] - growth["before"]
        how = f"{tables.number(abs(change))} nats per token {'worse' if change > 0 else 'better'} on validation with it"
        events.insert(0, f"growth to phase {growth['phase']} {'accepted' if growth['accepted'] else 'refused'}: {how}")
    return (
        f"{found['splats']:,} of {found['capacity']:,} splats, phi {tables.number(found['phi'], '.3f')} "
        f"against {tables.number(found['threshold'], '.3f')}; {', '.join(events) or 'no event'}"
    )


def _figures(found: Likelihood) -> str:
    record = found.record()
    token, per_word = tables.number(found.ppl_token, ",.2f"), tables.per_word(record)
    word = "" if per_word is None else f"{tables.number(per_word, ',.2f')} per word, "
    return (
        f"perplexity {token} per token, {word}{tables.number(found.bits_per_byte)} bits per byte "
        f"({found.tokens:,} tokens, context {found.context}, stride {found.stride})"
    )


def _not_finite(bad: str) -> str:
    """bad: a tensor's name, or the engine's message about a tensor that it refused."""
    return f"training diverged ({bad})" if " needed" in bad else f"{bad} is not finite"


def counts_record(backend: Backend) -> dict[str, dict[str, float]]:
    """The engine's operation counts so far, JSON-able."""
    return {name: dataclasses.asdict(count) for name, count in backend.counts().items()}
