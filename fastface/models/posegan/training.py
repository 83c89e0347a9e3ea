"""Training of PoseGAN and PGFace on clips: what a step learns from, and the loop around the steps.

Step n draws its windows from a generator of the seed and n, and an interruption waits for the end of its step. So a run
that was interrupted and goes on gives, on one machine, the numbers of a run that was not.
"""

from __future__ import annotations

import contextlib
import csv
import math
import pickle
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface._files import replacing
from fastface.face import built_in_head, lip_gap_mm
from fastface.models.posegan.corpus.visemes import WIDEST
from fastface.models.posegan.dataset import Example, Windows
from fastface.models.posegan.evaluation import measure_face, measure_pose
from fastface.models.posegan.losses import discriminator_loss, face_loss, pose_loss
from fastface.models.posegan.networks import (
    BEFORE,
    WINDOW,
    PGFace,
    PoseDiscriminator,
    PoseDiscriminatorConfig,
    PoseGAN,
    PoseStatistics,
    Shape,
)
from fastface.models.posegan.weights import NetworkT, load, save

__all__ = ["FaceLearner", "Learner", "PoseLearner", "Run", "TrainingConfig", "train"]

Row = dict[str, float]

_WARM_UP = 0.02  # of the training
_OPENING, _CLOSURE = 5.0, 8.0  # weights of the mouth's opening, and of closures among its frames
_ACCELERATION = 1000.0  # weight of second differences: without it heads tremble at a fraction of a degree
_LARGEST_GRADIENT = 5.0  # norm; velocities weigh much, and the first steps are rough
_STATE = ("step", "seconds", "best", "history", "losses")  # of a run, that going on needs


@dataclass(frozen=True)
class TrainingConfig:
    """How networks are trained.

    Attributes:
        steps: of the optimiser.
        seconds: after which it ends where the steps are too many; the learning rate falls by whichever is nearer.
        batch: windows per step.
        rate: the learning rate at its highest, which falls to 0 along a cosine.
        decay: of the weights (AdamW).
        every: steps between validations.
        precision: "float32", or "bfloat16" for autocast.
        seed: of windows and noise.
    """

    steps: int = 6000
    seconds: float | None = None
    batch: int = 32
    rate: float = 2e-3
    decay: float = 0.01
    every: int = 250
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.every) < 1 or not self.rate > 0 or not self.decay >= 0 or self.seed < 0:
            raise ValueError(f"steps, batch, every and rate must be positive, decay and seed at least 0, got {self}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds must be positive, got {self.seconds:g}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16, got {self.precision!r}")


class Learner(ABC, Generic[NetworkT]):
    """A network, what it learns from and how."""

    def __init__(
        self, network: NetworkT, held_out: Sequence[Example], config: TrainingConfig, **parts: nn.Module
    ) -> None:
        self.network: NetworkT = network
        self.held_out, self.config, self.parts = held_out, config, parts
        self.optimizers = {
            name: torch.optim.AdamW(part.parameters(), lr=config.rate, weight_decay=config.decay)
            for name, part in parts.items()
        }

    @property
    def device(self) -> torch.device:
        return self.network.statistics.mean.device

    @abstractmethod
    def step(self, rng: np.random.Generator) -> Row:
        """Learn from a batch: its losses by name."""

    @abstractmethod
    def validate(self) -> Row:
        """Measures on the clips that are held out; "score" is the one that the best weights have lowest."""

    def autocast(self) -> torch.autocast:
        """The precision of the networks' passes; losses are float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def update(self, name: str, loss: Tensor) -> None:
        """One step of a part's optimiser."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parts[name].parameters(), _LARGEST_GRADIENT)
        optimizer.step()


class FaceLearner(Learner[PGFace]):
    """PGFace from true poses and features.

    The mouth must not depend on how the head is held, though in any corpus the two go together, by nods on stressed
    vowels for example: half of the windows of a batch see the poses of another window, and all see them with noise.

    Args:
        network: to train.
        examples: to learn from.
        held_out: to validate on.
        config: see there.
        frames: of a window.
        noise: of the poses, in their standard deviations.
    """

    def __init__(
        self,
        network: PGFace,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        config: TrainingConfig,
        *,
        frames: int = 24,
        noise: float = 0.3,
    ) -> None:
        super().__init__(network, held_out, config, pgface=network)
        self.noise = noise
        head, expressions = built_in_head(), network.config.expressions
        # Of another face model it is not known what opens the mouth.
        known = expressions == head.expressions and network.config.face in (None, head.content_hash)
        opening = lip_gap_mm(head).slopes / WIDEST if known else torch.zeros(expressions)
        self._opening = opening.to(self.device)
        self._windows = Windows(examples, frames)
        self._statistics = PoseStatistics(network.statistics.mean.cpu(), network.statistics.std.cpu())  # of examples

    def step(self, rng: np.random.Generator) -> Row:
        drawn, frames = self._windows.draw(rng, self.config.batch), self._windows.frames
        features = _stacked([_around(e.features[copy], start, frames) for e, start, copy in drawn], self.device)
        poses = _stacked(
            [_around(self._statistics.normalize(e.pose), start, frames) for e, start, _ in drawn], self.device
        )
        half = len(poses) // 2
        poses = torch.cat([poses[:half].roll(1, 0), poses[half:]])
        poses += self.noise * torch.from_numpy(rng.standard_normal(poses.shape, dtype=np.float32)).to(poses)
        target = Shape(
            _stacked([e.identity[None] for e, _, _ in drawn], self.device),
            _stacked([e.expression[start : start + frames] for e, start, _ in drawn], self.device),
        )
        rows = torch.cat([poses, features], 2).mT.unfold(2, WINDOW, 1).transpose(1, 2)  # [B, frames, 35, 16]
        with self.autocast():
            shape = self.network.shapes(rows.flatten(0, 1))
        found = Shape(*(each.float().unflatten(0, (-1, frames)) for each in shape))
        closed = _stacked([_closed(e)[start : start + frames] for e, start, _ in drawn], self.device)
        terms = face_loss(found, target) | {"opening": self._opening_loss(found, target, closed)}
        self.update("pgface", sum(terms.values(), torch.zeros(())))
        return {name: float(term.detach()) for name, term in terms.items()}

    def _opening_loss(self, shape: Shape, target: Shape, closed: Tensor) -> Tensor:
        """``λ E[(1 + κ c) (o - p)²]`` of openings o and p and closures c; mean squares of modes leave lips ajar."""
        gap = (shape.expression - target.expression) @ self._opening
        return _OPENING * ((1 + _CLOSURE * closed) * gap.square()).mean()

    def validate(self) -> Row:
        return measure_face(self.network, self.held_out).row()


class PoseLearner(Learner[PoseGAN]):
    """PoseGAN, against a discriminator, from features and the true pose of a window's first frame.

    Args:
        network: to train, by windows of its `frames`.
        examples: to learn from.
        held_out: to validate on.
        config: see there.
        judge: sizes of the discriminator.

    Raises:
        ValueError: no example as long as a window, or a batch of 1 for windows of up to 32 frames: batch norm needs
            more than the one number per channel that is then left at the U-Net's lowest level.
    """

    def __init__(
        self,
        network: PoseGAN,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        config: TrainingConfig,
        *,
        judge: PoseDiscriminatorConfig | None = None,
    ) -> None:
        frames = network.config.frames
        if config.batch == 1 and frames <= 2 ** len(network.config.levels):
            raise ValueError(f"batch must be at least 2 for windows of up to 32 frames, got 1 for {frames} frames")
        self._judge = PoseDiscriminator(judge).to(network.statistics.mean.device)
        super().__init__(network, held_out, config, posegan=network, discriminator=self._judge)
        self._windows = Windows(examples, frames)

    def step(self, rng: np.random.Generator) -> Row:
        drawn, frames = self._windows.draw(rng, self.config.batch), self._windows.frames
        features = _stacked([e.features[copy, start : start + frames] for e, start, copy in drawn], self.device)
        poses = _stacked([e.pose[start : start + frames] for e, start, _ in drawn], self.device)
        normalize = self.network.statistics.normalize
        target = normalize(poses)
        with self.autocast():
            found = self.network(features, poses[:, 0])
        found = normalize(found.float())
        with self.autocast():
            judged = discriminator_loss(self._judge(target), self._judge(found.detach()))
        self.update("discriminator", judged)
        with self.autocast():
            fake = self._judge(found)
        terms = pose_loss(found, target, fake)
        terms["acceleration"] = _ACCELERATION * F.mse_loss(found.diff(2, 1), target.diff(2, 1))
        self.update("posegan", sum(terms.values(), torch.zeros(())))
        return {name: float(term.detach()) for name, term in (terms | {"discriminator": judged}).items()}

    def validate(self) -> Row:
        return measure_pose(self.network, self.held_out).row()


@dataclass
class Run:
    """Where a training is, and what it leaves in a folder.

    NAME.safetensors has the best weights, NAME.last.safetensors the last ones, NAME.last.pt all that going on needs,
    NAME.csv a row per validation; NAME is "pgface" or "posegan".

    Attributes:
        folder: of the files.
        name: of the network.
        step, seconds: so far.
        best: the lowest score so far.
        history: the rows: step, seconds, losses (means since the row before) and measures.
        losses: of the steps since the last row.
    """

    folder: Path
    name: str
    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    history: list[Row] = field(default_factory=list)
    losses: list[Row] = field(default_factory=list)

    def path(self, ending: str) -> Path:
        """The file with that ending."""
        return self.folder / f"{self.name}.{ending}"

    def done(self, config: TrainingConfig) -> float:
        """The share of the training, in [0, 1]."""
        by_time = 0.0 if config.seconds is None else self.seconds / config.seconds
        return min(1.0, max(self.step / config.steps, by_time))

    def resume(self, learner: Learner[NetworkT]) -> None:
        """Go on where the folder's files end.

        Raises:
            ValueError: no such files, damaged ones, or those of a network of another configuration.
        """
        path, expected = self.path("last.pt"), learner.network.config
        network = load(self.path("last.safetensors"), type(learner.network))
        if replace(network.config, face=network.config.face or expected.face) != expected:
            raise ValueError(f"the network to go on with must be {expected}, got {network.config}")
        try:
            state = torch.load(path, map_location=learner.device, weights_only=True)
            for name, part in learner.parts.items():
                part.load_state_dict(state["parts"][name])
                learner.optimizers[name].load_state_dict(state["optimizers"][name])
            for name in _STATE:
                setattr(self, name, state[name])
        except (OSError, EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            raise ValueError(f"cannot go on from {path}: {str(error).splitlines()[0]}") from error

    def save(self, learner: Learner[Any]) -> None:
        """Write the last weights, the state and the history, each file whole or not at all."""
        save(learner.network, self.path("last.safetensors"))
        state = {
            "parts": {name: part.state_dict() for name, part in learner.parts.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in learner.optimizers.items()},
        } | {name: getattr(self, name) for name in _STATE}
        with replacing(self.path("last.pt")) as temporary:
            torch.save(state, temporary)
        if self.history:
            with replacing(self.path("csv")) as temporary, temporary.open("w", newline="") as file:
                rows = csv.DictWriter(file, list(self.history[0]))
                rows.writeheader()
                rows.writerows(self.history)


def train(learner: Learner[Any], run: Run, watch: Callable[[Run], Any] = lambda run: None) -> None:
    """Train until the configuration's end; `watch` hears of every step.

    Ctrl+C ends it after the step under way: the state is saved, then KeyboardInterrupt raised. A second one ends it at
    once, and what was saved last stays.
    """
    config, before, started = learner.config, run.seconds, time.perf_counter()
    with _interruption() as interrupted:
        while (done := run.done(config)) < 1:
            rate = config.rate * min(1.0, (done + 1e-3) / _WARM_UP) * (1 + math.cos(math.pi * done)) / 2
            for optimizer in learner.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = rate
            learner.network.train()
            run.losses.append(learner.step(np.random.default_rng((config.seed, run.step))))
            run.step += 1
            run.seconds = before + time.perf_counter() - started
            if run.step % config.every == 0 or run.done(config) == 1:
                _validate(learner, run, rate)
            watch(run)
            if interrupted.is_set():
                run.save(learner)
                raise KeyboardInterrupt


@contextlib.contextmanager
def _interruption() -> Iterator[threading.Event]:
    """Set by the first Ctrl+C, where that would raise KeyboardInterrupt; the second one does."""
    interrupted, default = threading.Event(), signal.default_int_handler

    def wait(*_: object) -> None:
        signal.signal(signal.SIGINT, default)
        interrupted.set()

    # Only the main thread may set handlers; one of somebody else's stays.
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is default
    if ours:
        signal.signal(signal.SIGINT, wait)
    try:
        yield interrupted
    finally:
        if ours:
            signal.signal(signal.SIGINT, default)


def _validate(learner: Learner[Any], run: Run, rate: float) -> None:
    """A row of the history, and the files."""
    means = {name: float(np.mean([row[name] for row in run.losses])) for name in run.losses[0]}
    run.losses = []
    measures = learner.validate()
    run.history.append({"step": run.step, "seconds": round(run.seconds, 1), "rate": rate} | means | measures)
    if measures["score"] < run.best:
        run.best = measures["score"]
        save(learner.network, run.path("safetensors"))
    run.save(learner)


def _around(values: Tensor, start: int, frames: int) -> Tensor:
    """Rows ``[T, n]`` that PGFace sees of so many frames, zeros beyond the ends: ``[frames + 15, n]``."""
    first, last = start - BEFORE, start + frames + WINDOW - BEFORE - 1
    inside = values[max(0, first) : last]
    return F.pad(inside, (0, 0, max(0, -first), max(0, last - len(values))))


def _closed(example: Example) -> Tensor:
    """``[T]``, 1 in closures; 0 where they are not known."""
    return torch.zeros(len(example)) if example.closed is None else example.closed.float()


def _stacked(rows: Sequence[Tensor], device: torch.device) -> Tensor:
    return torch.stack(list(rows)).to(device)
