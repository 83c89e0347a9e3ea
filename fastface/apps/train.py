"""`fastface train`: PGFace or PoseGAN, trained or measured on clips of speech and the face that goes with it."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastface.apps._common import UserError, check_seconds, guarded, tell_notes, torch_device, within

if TYPE_CHECKING:
    from fastface.audio import SpeechFeatures
    from fastface.models.posegan import PGFace, PoseGAN
    from fastface.models.posegan.corpus import Corpus
    from fastface.models.posegan.dataset import Example
    from fastface.models.posegan.evaluation import FaceMeasures, PoseMeasures
    from fastface.models.posegan.training import Learner, Run, TrainingConfig

_EPILOG = """\
examples:
  fastface fit interviews/*.mp4 -o interviews_fit             clips of a person from videos
  python -m fastface.models.posegan.corpus corpus --hours 2   or clips of synthetic speech
  fastface train pgface corpus -o mine                        mine/pgface.safetensors: the mouth
  fastface train posegan corpus -o mine                       mine/posegan.safetensors: the head
  fastface train pgface interviews_fit -o mine --weights mine_before/pgface.safetensors    on from trained weights
  fastface train pgface corpus --evaluate                     the measures of the weights that come with fastface
  fastface speak me.jpg words.wav --speaker mine

DATA is a folder that either of the first two wrote. Clips that it holds out validate; the weights with the lowest score
are kept, beside the last ones, NAME.csv with a row per validation and NAME.png with its curves. Ctrl+C keeps what is
there, and --resume goes on. On one machine and with --steps alone, a seed gives one result.
"""
_NETWORKS = ("posegan", "pgface")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("network", choices=_NETWORKS, help="posegan: poses of the head; pgface: shapes of the face")
    parser.add_argument("data", metavar="DATA", help="folder of clips")
    parser.add_argument("-o", "--output", metavar="DIR", default="speaker", help="folder (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with the training in that folder")
    parser.add_argument("--evaluate", action="store_true", help="measure on the clips held out; train nothing")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="start from these, or evaluate them (default: start from random ones, evaluate those of the package)",
    )
    parser.add_argument("--steps", type=int, default=6000, metavar="N", help="of training (default: %(default)s)")
    parser.add_argument("--seconds", type=float, metavar="S", help="end after so long, where the steps are too many")
    parser.add_argument("--batch", type=int, metavar="N", help="windows per step (default: 32, posegan: 16)")
    parser.add_argument("--rate", type=float, metavar="X", help="learning rate (default: 0.002, posegan: 0.004)")
    parser.add_argument("--frames", type=int, metavar="N", help="of a window of posegan (default: 128, published 256)")
    parser.add_argument(
        "--published", action="store_true", help="published widths in place of those that come with fastface"
    )
    parser.add_argument(
        "--copies",
        type=int,
        metavar="N",
        help="of each clip as a recording in a room may sound: gain, noise, narrow band (default: 2, --features: 0)",
    )
    parser.add_argument(
        "--recognizer",
        metavar="NAME",
        help="hear through a wav2vec2-CTC model of transformers, name or folder (default: the built-in features)",
    )
    parser.add_argument(
        "--features",
        metavar="DIR",
        help="hear what is in this folder: NAME.npy for each clip, [T, 29], 50 steps a second, of any other recogniser",
    )
    parser.add_argument("--every", type=int, default=250, metavar="N", help="steps to a validation (default: 250)")
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: bfloat16 on a GPU that has it, float32 elsewhere",
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is random (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the measures as JSON instead of words")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return guarded("train", _run, args)


def _run(args: argparse.Namespace) -> int:
    from fastface.models.posegan.corpus import read_corpus

    _check(args)
    corpus = read_corpus(args.data)
    return _evaluate(args, corpus) if args.evaluate else _train(args, corpus)


def _check(args: argparse.Namespace) -> None:
    check_seconds(args.seconds)
    within("--copies", args.copies, 0, 20)
    within("--seed", args.seed, 0, 2**31 - 1)
    if args.resume and (args.evaluate or args.weights):
        raise UserError("--resume goes on from the folder's own weights: leave --evaluate and --weights out")
    for name in ("published", "frames"):
        if getattr(args, name) and (args.evaluate or args.weights):
            raise UserError(f"--{name} is for new networks: leave it out with --weights and --evaluate")
    if args.frames is not None:
        within("--frames", args.frames, 16, 4096)
    if args.frames and args.network == "pgface":
        raise UserError("--frames is for posegan: the windows of pgface have 16")
    if args.features and (args.recognizer or args.copies):
        raise UserError("--features are of the clips as they are: leave --recognizer and --copies out")


def _evaluate(args: argparse.Namespace, corpus: Corpus) -> int:
    from fastface.models.posegan import PGFace
    from fastface.models.posegan.default import DEFAULT_WEIGHTS
    from fastface.models.posegan.evaluation import measure_face, measure_pose, measure_stream

    path = Path(args.weights or DEFAULT_WEIGHTS / f"{args.network}.safetensors")
    network = _trained(args, corpus, path).to(torch_device(args.device))
    held_out = _read(args, corpus, "held_out", _speech(args.recognizer))
    streams = []
    if isinstance(network, PGFace):
        measures: FaceMeasures | PoseMeasures = measure_face(network, held_out)
    else:
        measures, frames = measure_pose(network, held_out), network.config.frames
        # As `speak` has it, and live: of the usual 128 frames 32 and 8.
        hops = sorted({max(1, frames // part) for part in (4, 16)}, reverse=True)
        streams = [measure_stream(network, held_out, hop=hop) for hop in hops]
    if args.json:
        live = {"live": [asdict(each) for each in streams]} if streams else {}
        print(_json(asdict(measures) | live))
        return 0
    minutes = sum(map(len, held_out)) / corpus.fps / 60
    print(f"{path} on {len(held_out)} clips held out, {minutes:.1f} minutes")
    print(measures, *streams, sep="\n")
    return 0


def _train(args: argparse.Namespace, corpus: Corpus) -> int:
    from fastface.models.posegan.training import Run, TrainingConfig, train

    defaults = {"pgface": (32, 2e-3), "posegan": (16, 4e-3)}[args.network]
    device = torch_device(args.device)
    config = TrainingConfig(
        steps=args.steps,
        seconds=args.seconds,
        batch=defaults[0] if args.batch is None else args.batch,
        rate=defaults[1] if args.rate is None else args.rate,
        every=args.every,
        precision=_precision(args.precision, device),
        seed=args.seed,
    )
    progress = Run(Path(args.output), args.network)
    if progress.path("last.safetensors").exists() and not args.resume:
        raise UserError(f"{args.output} holds a training of {args.network}: --resume goes on with it, -o names another")
    speech = _speech(args.recognizer)
    copies = args.copies if args.copies is not None else 0 if args.features else 2
    examples = _read(args, corpus, "train", speech, copies=copies)
    held_out = _read(args, corpus, "held_out", speech)
    learner = _learner(args, corpus, speech, examples, held_out, config, device)
    if args.resume:
        progress.resume(learner)
    try:
        with _bar(config, progress) as watch:
            train(learner, progress, watch)
    except KeyboardInterrupt:
        again = "the same command with --resume goes on" if not args.weights else "--resume, without --weights, goes on"
        saved = progress.path("last.pt").exists()
        print(f"interrupted after {progress.step} steps; {again if saved else 'nothing was saved'}", file=sys.stderr)
        return 130
    if not progress.history:
        raise UserError(f"--steps must be above the {progress.step} that are done, got {args.steps}")
    picture = _plot(progress)
    best = min(progress.history, key=lambda row: row["score"])
    if args.json:
        print(_json(best | {"output": str(progress.path("safetensors"))}))
        return 0
    print(f"{progress.step} steps in {progress.seconds:.0f} s; the best weights are those of step {best['step']:.0f}")
    print(f"weights: {progress.path('safetensors')}, measured: fastface train {args.network} {args.data} --evaluate "
          f"--weights {progress.path('safetensors')}")  # fmt: skip
    print(f"curves: {picture or progress.path('csv')}")
    return 0


def _json(values: dict[str, Any]) -> str:
    """With null for what is not known."""

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: known(each) for name, each in value.items()}
        if isinstance(value, list):
            return [known(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(known(values), allow_nan=False)


def _learner(
    args: argparse.Namespace,
    corpus: Corpus,
    speech: SpeechFeatures | None,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    config: TrainingConfig,
    device: torch.device,
) -> Learner[Any]:
    from fastface.audio import SpectralSpeech
    from fastface.audio.sound import SAMPLE_RATE
    from fastface.models.posegan import PGFace, PoseDiscriminatorConfig, PoseStatistics
    from fastface.models.posegan.dataset import with_silence
    from fastface.models.posegan.training import FaceLearner, PoseLearner, Run

    torch.manual_seed(args.seed)  # of the first weights
    source = args.weights
    if args.resume and not (args.published or args.frames):
        source = Run(Path(args.output), args.network).path("last.safetensors")
    network = _trained(args, corpus, Path(source)) if source else _new(args, corpus, examples[0])
    network.config = replace(network.config, face=corpus.face)  # of older weights it is not known
    network.statistics = PoseStatistics.of(torch.cat([example.pose for example in examples]))
    network.to(device)
    if isinstance(network, PGFace):
        return FaceLearner(network, examples, held_out, config)
    if not args.features:  # else nobody knows what silence is
        silence = np.zeros(SAMPLE_RATE, dtype=np.float32)
        heard = (speech or SpectralSpeech())(silence, SAMPLE_RATE)[25]  # in its middle
        examples = [*examples, *with_silence(examples, network.config.frames, torch.from_numpy(heard))]
    judge = PoseDiscriminatorConfig() if args.published else PoseDiscriminatorConfig(channels=32)
    return PoseLearner(network, examples, held_out, config, judge=judge)


def _new(args: argparse.Namespace, corpus: Corpus, example: Example) -> PoseGAN | PGFace:
    from fastface.models.posegan import PGFace, PGFaceConfig, PoseGAN, PoseGANConfig
    from fastface.models.posegan.default import small_pgface, small_posegan

    heard: dict[str, Any] = {"fps": corpus.fps, "speech": _front_end(args), "face": corpus.face}
    if args.network == "posegan":
        posegan = PoseGANConfig() if args.published else small_posegan()
        return PoseGAN(replace(posegan, frames=args.frames or posegan.frames, **heard))
    sizes: dict[str, Any] = {"identities": len(example.identity), "expressions": example.expression.shape[1]}
    return PGFace(replace(PGFaceConfig() if args.published else small_pgface(), **sizes, **heard))


def _trained(args: argparse.Namespace, corpus: Corpus, path: Path) -> PoseGAN | PGFace:
    """The network of a file. Refuses one for other features, frame rate or face model than the corpus has."""
    from fastface.models.posegan import PGFace, PoseGAN, load
    from fastface.models.posegan.speaker import SPECTRAL

    network: PoseGAN | PGFace = load(path, PGFace) if args.network == "pgface" else load(path, PoseGAN)
    expected = (corpus.fps, _front_end(args))
    found = (network.config.fps, network.config.speech)
    if args.features and found[1] != SPECTRAL:  # whatever its name, the file has it
        expected = (corpus.fps, found[1])
    if found != expected:
        raise UserError(f"the weights must be for fps and features {expected}, got {found}: {path}")
    if network.config.face not in (None, corpus.face):
        raise UserError(f"the weights must be for the face model {corpus.face}, got {network.config.face}: {path}")
    return network


def _front_end(args: argparse.Namespace) -> str:
    """As the configurations of the networks name what hears."""
    from fastface.models.posegan.speaker import PRECOMPUTED, SPECTRAL, WAV2VEC2

    return PRECOMPUTED if args.features else WAV2VEC2 if args.recognizer else SPECTRAL


def _speech(recognizer: str | None) -> SpeechFeatures | None:
    from fastface.audio import Wav2Vec2Recognizer

    return None if recognizer is None else Wav2Vec2Recognizer.from_pretrained(recognizer).log_probabilities


def _read(
    args: argparse.Namespace, corpus: Corpus, split: str, speech: SpeechFeatures | None, *, copies: int = 0
) -> list[Example]:
    """The examples, with a progress bar on a terminal."""
    from tqdm import tqdm

    from fastface.audio import PrecomputedSpeech
    from fastface.models.posegan.dataset import prepare, read_examples

    names = corpus.names(split)
    if not names:
        raise UserError(f"{corpus.folder} must have clips of the split {split!r}, got none")
    examples = read_examples(corpus, split, speech=speech, copies=copies, seed=args.seed)
    if args.features:
        heard = ((name, PrecomputedSpeech(Path(args.features) / f"{name}.npy")) for name in names)
        examples = (prepare(name, corpus.read(name), speech=speech) for name, speech in heard)
    about = f"hearing {split.replace('_', ' ')} clips"
    return list(tqdm(examples, about, len(names), disable=not sys.stderr.isatty(), leave=False))


@contextlib.contextmanager
def _bar(config: TrainingConfig, progress: Run) -> Iterator[Callable[[Run], None]]:
    """A progress bar on a terminal, a line per validation elsewhere."""
    from tqdm import tqdm

    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(desc="training", total=1.0, bar_format=form, disable=not sys.stderr.isatty(), leave=False) as bar:
        bar.update(progress.done(config))

        def watch(run: Run) -> None:
            bar.update(run.done(config) - bar.n)
            row = run.history[-1] if run.history else None
            if row is None or row["step"] != run.step:
                return
            bar.set_postfix(step=run.step, score=f"{row['score']:.3f}", best=f"{run.best:.3f}")
            if bar.disable:
                print(f"step {run.step}: score {row['score']:.3f}, best {run.best:.3f}", file=sys.stderr)

        yield watch


def _plot(progress: Run) -> Path | None:
    """The curves of a training as a picture; None, with a note, where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        tell_notes(["the plot needs matplotlib: pip install 'fastface-kernels[demo]'"])
        return None
    from fastface._files import replacing

    rows, path = progress.history, progress.path("png")
    names = [name for name in rows[0] if name not in ("step", "seconds", "rate", "closures")]
    figure = Figure(figsize=(16, 10), layout="constrained")
    for index, name in enumerate(names, 1):
        axes = figure.add_subplot(-(-len(names) // 4), 4, index, title=name)
        axes.plot([row["step"] for row in rows], [row[name] for row in rows])
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)
    return path


def _precision(asked: str, device: torch.device) -> str:
    if asked != "auto":
        return asked
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
