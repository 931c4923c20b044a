"""The training loop.

A step depends only on the weights, the state of the optimiser, the seed and the step's number.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ebmvk.config.schema import Config
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.windows import Ahead
from ebmvk.engine.device import Device
from ebmvk.engine.sharded import sharded
from ebmvk.errors import ArgumentError, ConfigError, DeviceError, EbmvkError, RankLost, StorageError
from ebmvk.evaluation.likelihood import Likelihood
from ebmvk.memory.while_training import TrainingSoc
from ebmvk.model import dropout
from ebmvk.model.language import LanguageModel
from ebmvk.monitoring.advice import advice
from ebmvk.monitoring.monitor import Monitor
from ebmvk.ranks import ALONE, Ranks
from ebmvk.report.trigram import against_trigram
from ebmvk.runs import checkpoint, steps
from ebmvk.runs.checkpoint import Checkpoint
from ebmvk.runs.folder import check_same_text, digest, model_record
from ebmvk.runs.known_faults import REVISION, revision
from ebmvk.runs.progress import Progress
from ebmvk.training import lines, resumption
from ebmvk.training.choosing import Choice, chosen
from ebmvk.training.evaluations import Evaluations, counts_record
from ebmvk.training.host_steps import HostSteps
from ebmvk.training.interruption import Interruption
from ebmvk.training.passes import batches_of
from ebmvk.training.recovery import Recovery
from ebmvk.training.reduction import check_same_weights
from ebmvk.training.stepping import Steps, Taken, trained_on_device
from ebmvk.training.streams import Streams

if TYPE_CHECKING:
    from ebmvk.compute.profile import Profile  # torch's tracer takes a while to import

LAST = 50  # steps whose mean is the loss on training text
Outcome = Literal["finished", "stopped", "interrupted"]
Probe = Callable[[int], Mapping[str, Any]]


class Trainer:
    """One run, in one process or as the first of several.

    Args:
        folder: the run folder, which already has config.toml and tokenizer.json.
        probe: called with the step at each evaluation; its result (the health of sampling) is added
        to the metrics.
        ranks: the processes of the run; all but this one are `follower.Follower`s.
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
        self.batches = batches_of(config, streams.train)
        self._ahead = Ahead(self.batches, config.data.num_workers)
        spread = dataclasses.replace(device, backend=sharded(device.backend, ranks, config.run.device))
        self.soc = (
            TrainingSoc(config, self.model, streams.train, streams.validation, self.batches, spread)
            if config.splats.enable_soc
            else None
        )
        self._interruption = Interruption()
        self._recovery = Recovery(config, folder)
        self.steps = self._steps_of(config)
        self.progress = Progress()
        self._text = digest(streams.train)
        self._first_batch, self._saved = 0, 0  # _saved: the step of the newest checkpoint
        self._revision = REVISION
        self._last_ce: deque[tuple[float, int]] = deque(maxlen=LAST)  # (loss, targets) of a step
        self.evaluations = Evaluations(config, self.model, tokenizer, streams, device)

    def _steps_of(self, config: Config) -> Steps:
        """What takes the steps; `ebmvk.config.where` decides. With `--device auto` it is the host,
        until `choose` is called."""
        if config.run.device == "auto" or not trained_on_device(self.device, config, self.ranks.size):
            return HostSteps(config, self.model, self.device, self._recovery, self._interruption, self.ranks)
        return self._device_steps()

    def _device_steps(self) -> Steps:
        from ebmvk.training.device_steps import DeviceSteps  # torch's tracer takes a while to import

        return DeviceSteps(
            *(self.config, self.model, self.device, self._recovery, self._interruption, self.ranks), self.monitor.doing
        )

    def choose(self) -> Choice | None:
        """With `--device auto` and a Vulkan device, measure where steps are faster, and take them
        there. Weights and moments stay as they are. None if there is nothing to choose.
        """
        if self.config.run.device != "auto" or not trained_on_device(self.device, self.config, self.ranks.size):
            return None
        self.monitor.doing("measuring steps on the CPU and on the Vulkan device")
        config, saved, step = self.config, self.steps.optimizer.state_dict(), self.progress.step
        tokens = self._ahead.batch(self._first_batch + step)
        made: list[Steps] = []

        def host() -> Steps:
            return self._with(HostSteps(
                config, copy.deepcopy(self.model), self.device, self._recovery, self._interruption
            ), saved)  # fmt: skip

        def device() -> Steps:  # it doesn't write to the model before `settle`
            made.append(self._with(self._device_steps(), saved))
            return made[0]

        found = chosen(host, device, lambda steps: steps.take(tokens, step, 0), config.training.steps - step)
        if found.where == "vulkan":
            self.steps = made[0]
            self.steps.begin()
        return found

    @staticmethod
    def _with(steps: Steps, moments: Mapping[str, Tensor]) -> Steps:
        """The steps with moments of the optimiser, if there are any."""
        if moments:
            steps.optimizer.load_state_dict(moments)
            steps.begin()
        return steps

    # ---- resuming --------------------------------------------------------------------------------

    def restore(self, found: Checkpoint) -> None:
        """Continue from a checkpoint of this configuration.

        Raises:
            CheckpointError: it doesn't fit the model, the optimiser or the text.
        """
        check_same_text(found, self.streams.train, self.config)
        progress = Progress.of(found)
        if progress.step > self.config.training.steps:
            raise ConfigError(
                f"--steps {self.config.training.steps} is less than the {progress.step} steps of {found.path}",
                hint="give more steps, or --resume an older checkpoint",
            )
        self.steps.restore(found)
        self.progress = resumption.comparable(found, progress, self.folder, self.streams, self.monitor.say)
        resumption.compare_masks(found, self.config, self.monitor.say)
        self._saved = progress.step
        self._revision = revision(found)
        if self.soc and not self.soc.restore(found, progress.seconds):
            self.monitor.say(f"splats      {found.path.name} has none: consolidation begins with an empty store")
        # If the batch size has changed, the position in the text is kept to within one batch.
        self._first_batch = self.progress.windows // self.config.training.windows_per_step - self.progress.step
        if self.config.run.deterministic:
            torch.set_num_threads(int(found.state.get("threads", torch.get_num_threads())))

    def take_over(self, found: Checkpoint) -> list[Path]:
        """Make the restored checkpoint the newest one.

        Returns the folders of later ones, which are set aside.
        """
        self.progress, aside = resumption.take_over(found, self.progress, self.folder)
        return aside

    def save(self) -> Path:
        """Write a checkpoint, point `latest` to it (and `best`, if it is the best), and prune old
        ones.

        Raises:
            DeviceError: the weights of the ranks differ, or the device has lost them; nothing is
                written. RankLost: a rank died; the checkpoint is written.
        """
        self._settle()
        lost: RankLost | None = None
        try:
            self._compare()
        except RankLost as error:
            lost = error
        state = {
            "progress": dataclasses.asdict(self.progress),
            "model": model_record(self.config, self.tokenizer),
            "revision": self._revision,
            "masks": dropout.VERSION,
            "train": self._text,
            "text": dict(self.streams.text),
            "threads": torch.get_num_threads(),
        }
        soc = self.soc.consolidation.state() if self.soc else None
        every = self.config.logging.keep_epochs
        keep = every > 0 and self._ended(every)
        path = checkpoint.save(
            self.folder, self.progress.step, self.model, self.steps.optimizer.state_dict(), state, soc, keep=keep
        )
        self._saved = self.progress.step
        if self.progress.best_step == self.progress.step:
            steps.point(self.folder, "best", path.name)
        steps.prune(self.folder, self.config.logging.keep_last)
        if lost:
            raise self._recovery.rank_lost(lost, self.progress.step)
        return path

    def _compare(self) -> None:
        """Compare the weights of all ranks that can be reached.

        Raises DeviceError if they differ; RankLost.
        """
        if not self.ranks.lost:
            with self.ranks.whole():
                self.ranks.tell("compare", step=self.progress.step)
                check_same_weights(self.ranks, self.model, self.progress.step)

    # ---- running ---------------------------------------------------------------------------------

    def run(self, stop_after: int | None = None) -> Outcome:
        """Train up to the configured step. After `stop_after` steps, or if interrupted, save and
        stop earlier.

        Raises:
            NonFinite: raised before the weights are changed. StorageError: something could not be
            written; the last step is saved as a checkpoint if possible.
        """
        outcome: Outcome = "interrupted"
        with self._interruption as interruption:
            try:
                outcome = self._run(interruption, stop_after)
            except ArgumentError as error:  # raised by an evaluation or a consolidation
                raise self._recovery.diverged(error, self.progress.step) from error
            except (StorageError, OSError) as error:  # a failed log must not cost steps
                raise self._recovery.not_written(error, self.progress.step, self._saved, self.save) from error
        return "interrupted" if interruption.came else outcome

    def _run(self, interruption: Interruption, stop_after: int | None) -> Outcome:
        total, first = self.config.training.steps, self.progress.step
        outcome: Outcome = "finished"
        if self._evaluate_if_due(interruption):  # an interruption may have skipped it at this step
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

    def _evaluate_if_due(self, interruption: Interruption) -> bool:
        """Evaluate if it is due at this step; True if the result is the best so far.

        Ctrl-C skips it.
        """
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
                self.save()  # a failed evaluation must not cost steps
                raise
        return improved

    def _ends(self, step: int) -> bool:
        """True if this step is the last one."""
        return step == self.config.training.steps or self._out_of_patience()

    def _save_due(self) -> bool:
        return self.progress.step % self.config.logging.save_every == 0 or self._ended(epochs=1)

    def _ended(self, epochs: int) -> bool:
        """True if the last step completed an epoch whose number is a multiple of `epochs`."""
        period, now = epochs * self.batches.windows, self.progress.windows
        return now // period > max(0, now - self.config.training.windows_per_step) // period

    def _out_of_patience(self) -> bool:
        """True if none of the last `--patience` evaluations was the best so far."""
        training, progress = self.config.training, self.progress
        if not training.patience or progress.evaluated != progress.step or progress.best_step is None:
            return False
        return (progress.since_best or 0) >= training.patience

    def plan(self) -> Iterator[str]:
        """Lines about the memory that a step will take, as `Steps.plan`."""
        return self.steps.plan(self._ahead.batch(self._first_batch + self.progress.step))

    def profile(self) -> dict[str, tuple[int, Profile]]:
        """See `Steps.profile`: of the next step."""
        return self.steps.profile(self._ahead.batch(self._first_batch + self.progress.step), self.progress.step)

    def step(self) -> None:
        """Do one step of the optimiser and record it.

        Raises:
            NonFinite: raised before the weights are changed. BatchTooLarge: the batch doesn't fit
                in memory; the message names a size that does. RankLost, DeviceError: another
                process or the device failed.
        """
        began = time.perf_counter()
        step, config = self.progress.step, self.config
        tokens = self._ahead.batch(self._first_batch + step).to(self.device.torch)
        taken = self._taken(tokens, step)
        found = self._consolidated(taken, tokens, step + 1)
        seconds = time.perf_counter() - began
        seen = int((tokens[:, 1:] >= 0).sum())
        self._last_ce.append((taken.parts["ce"], seen))
        self.progress = dataclasses.replace(
            self.progress,
            step=step + 1,
            windows=self.progress.windows + len(tokens),
            tokens=self.progress.tokens + seen,
            seconds=self.progress.seconds + seconds,
        )
        rate = seen / seconds
        values = {"loss": taken.total, "parts": taken.parts, "lr": taken.lr, "grad_norm": taken.norm}
        values |= {"seconds": seconds, "tokens_per_second": rate, "tokens": self.progress.tokens}
        counts = {"counts": counts_record(self.device.backend)} if (step + 1) % config.logging.log_every == 0 else {}
        self.monitor.step(step + 1, values | counts | ({"device": taken.device} if taken.device else {}))
        if self.soc and found:
            self._tell(found | {"share": self.soc.share(self.progress.seconds)})

    def _taken(self, tokens: Tensor, step: int) -> Taken:
        """Take a step. If another process or the device fails, everything learned before is saved.

        Raises:
            RankLost, DeviceError: as `Steps.take`.
        """
        try:
            return self.steps.take(tokens, step, self._first_batch + step)
        except (RankLost, DeviceError) as error:
            if step:
                self.ranks.fail(error)  # other ranks may be amid the step, so don't save with them
                self._recovery.saved(error, step, self._saved, self.save)
            raise

    def _consolidated(self, taken: Taken, tokens: Tensor, done: int) -> dict[str, Any] | None:
        if self.soc is None:
            return None
        self.soc.after(done, self._first_batch + done - 1, taken.sample, tokens)
        if not self.soc.due(done):
            return None
        self._settle()
        return self.soc.check(done, self.steps.layers)

    def _settle(self) -> None:
        """Bring to the host what only a device knows: weights, moments and samples."""
        self.steps.settle()
        if self.soc:
            self.soc.collect(self.steps.samples())

    def _tell(self, found: Mapping[str, Any]) -> None:
        """Record one consolidation."""
        self.monitor.record("soc", self.progress.step, found)
        self.monitor.detail(f"step {self.progress.step}: {lines.consolidated(found)}")

    # ---- evaluating ------------------------------------------------------------------------------

    def evaluate(self) -> bool:
        """Measure the exact likelihood of a part of validation, and write samples. True if the
        likelihood is the best so far.
        """
        self.monitor.doing("evaluating")
        layers = self.steps.layers()
        layers.did()  # since the last evaluation
        found, did = self.evaluations.part(layers), layers.did()
        self._settle()  # the rest reads the weights on the host
        measured = self.evaluations.details() | ({"device": did} if did else {})
        step, best = self.progress.step, self.progress.best_nats
        # Nats per token can only be compared over the same tokens; --eval-tokens may have changed.
        improved = best is None or self.progress.best_tokens != found.tokens or found.nats_per_token < best
        health = self.probe(step)
        if self.soc:
            health = {**health, "splats": self.soc.consolidation.summary(step)}
        counts = counts_record(self.device.backend)
        self.monitor.record("eval", step, {"validation": found.record(), "counts": counts, **measured, **health})
        since = 0 if improved else (self.progress.since_best or 0) + 1
        self.progress = dataclasses.replace(self.progress, evaluated=step, since_best=since)
        if improved:
            self.progress = dataclasses.replace(
                self.progress, best_step=step, best_nats=found.nats_per_token, best_tokens=found.tokens
            )
        self.monitor.evaluated(f"step {step}: {lines.evaluated(found, best=improved)}")
        return improved

    def _finish(self) -> None:
        """Measure the whole validation split, and the trigram on the same tokens."""
        self.monitor.doing("evaluating all of the validation text")
        found, base = self.evaluations.whole(self.steps.layers())
        self._settle()
        counts = counts_record(self.device.backend)
        gain = self.soc.gain(self.steps.layers) if self.soc else None
        if self.progress.step < self.config.training.steps:
            self.monitor.say(f"step {self.progress.step}: stopped early; step {self.progress.best_step} was the best")
        looks, advised = self.evaluations.looks(), list(self._advice(found))
        record: dict[str, Any] = {"advice": advised, "looks": looks, "validation": found.record()}
        record |= {"trigram": base.record(), "counts": counts, "soc": gain}
        self.monitor.record("end", self.progress.step, record | {"progress": dataclasses.asdict(self.progress)})
        for line in lines.details(found, base, gain):
            self.monitor.detail(line)
        self.monitor.say(f"result      {against_trigram(found.record(), base.record())}")
        for line in advised:
            self.monitor.say(f"advice      {line}")

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
