"""What a training leaves on disk."""

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError, safe_open
from torch import nn

from gdkd_cache.errors import MismatchError
from gdkd_cache.files import open_plain
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.weights import save_weights
from gdkd_cache.training.records.layout import CONFIG, LOG, METRICS, STATE
from gdkd_cache.training.records.saved import unreadable

_WEIGHTS = ("best.safetensors", "last.safetensors")
_CARDS = ("best.json", "last.json")  # beside the weights of 0.1.0
_FURTHER = re.compile(r"(best|last)-ema\.safetensors|epoch-\d+\.safetensors")
_STAGED = re.compile(r"\.epoch-\w{8}\.partial")
_PARTIAL = re.compile(r"(best|last)\.(safetensors|json)\.\d+\.partial")  # of 0.1.0


class RunFolder:
    """The folder of one training: its state, weights and, the mark of a training, `metrics.jsonl`.

    An earlier training there stays whole until the first epoch of this one is on disk. While files of two trainings
    lie side by side there is no `metrics.jsonl`; so a kill leaves the one, or the other, or none. Of an epoch's files
    the state is moved in place first, and the metrics last: a state whose metrics are not there says all that is needed
    to write the others again.

    Attributes:
        path: of the folder.
        state: of the state.
        replaces: a digest of the metrics that are to be replaced; None for none.
    """

    def __init__(self, path: Path, *, force: bool) -> None:
        """Look at the folder; nothing is written yet.

        Raises:
            MismatchError: it holds an earlier training without a state to go on from, and `force` is off; or something
                else is in the way.
        """
        if path.exists() and not path.is_dir():
            raise MismatchError(f"{path} is no folder; name another --out")
        for file in (path / name for name in (*_WEIGHTS, *_CARDS, METRICS, STATE, CONFIG, LOG)):
            if file.exists() and not file.is_file():
                raise MismatchError(f"{file} is no plain file; remove it, or name another --out")
        self.state = path / STATE
        if (path / METRICS).exists() and not self.state.exists() and not force:
            raise MismatchError(f"{path} holds an earlier training; name another --out, or add --force to replace it")
        self.path, self._force = path, force
        self._metrics = b""
        self._read: os.stat_result | None = None
        found = self._found()
        self.replaces = hashlib.sha256(found).hexdigest() if found and force else None

    def read_state(self) -> bytes | None:
        """The file of the state to go on from; None for none.

        Raises:
            MismatchError: it is not as long as its header says.
            OSError: it cannot be read.
        """
        if self._force or not self.state.exists():
            return None
        with open_plain(self.state, "the state of a training", MismatchError) as file:
            self._read = os.fstat(file.fileno())
            try:
                with safe_open(self.state, "pt"):  # before a file takes memory that is mostly holes
                    pass
            except SafetensorError as error:
                raise unreadable(self.state, error) from None
            return file.read()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only training there in the block; what trainings that were killed while writing left is removed.

        Raises:
            MismatchError: another training runs there, or has done so since the state was read.
            OSError: it cannot be written.
        """
        with self._telling():
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MismatchError(f"another training writes to {self.path} now; name another --out") from None
            except OSError:  # a file system without locks
                pass
            if self._read is not None and not os.path.samestat(self._read, self.state.stat()):
                raise self._of_another()
            with self._telling():
                self._sweep()
            yield
        finally:
            os.close(descriptor)

    def _sweep(self) -> None:
        for path in self.path.iterdir():
            if _STAGED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
            elif _PARTIAL.fullmatch(path.name):
                path.unlink(missing_ok=True)
        with self._staged():
            pass

    def go_on(self, lines: Sequence[str], replaces: str | None) -> bool:
        """Go on with the training whose state says that these were its metrics; whether its files are all there.

        Raises:
            MismatchError: the metrics there are of another training.
        """
        whole, found, self.replaces = _joined(lines), self._found(), replaces
        if found not in (b"", _joined(lines[:-1]), whole):
            if hashlib.sha256(found).hexdigest() != replaces:
                raise self._of_another()
            found = b""
        self._metrics = found
        return found == whole

    def write_state(self, state: bytes) -> None:
        """Keep a state between two epochs.

        Raises:
            OSError: it cannot be written; the one before stays.
            MismatchError: another training has written there meanwhile.
        """
        with self._telling(), self._staged() as staged:
            (staged / STATE).write_bytes(state)
            self._require_own()
            _move(staged, self.path)

    def write_epoch(
        self,
        lines: Sequence[str],
        state: bytes,
        weights: Mapping[str, tuple[nn.Module, ModelCard]],
        texts: Mapping[str, str],
    ) -> None:
        """Keep an epoch's weights and its state and, when they are there, its line of metrics.

        Args:
            lines: of the metrics so far.
            state: the bytes of its file.
            weights: networks and their cards, by file.
            texts: other files.

        Raises:
            OSError: they cannot be written; what was there stays.
            MismatchError: another training has written there meanwhile.
        """
        metrics = _joined(lines)
        with self._telling(), self._staged() as staged:
            for name, (model, card) in weights.items():
                save_weights(model, card, staged / name)
            for name, text in texts.items():
                (staged / name).write_text(text)
            (staged / STATE).write_bytes(state)
            (staged / METRICS).write_bytes(metrics)
            self._require_own()
            if len(lines) == 1:
                self._remove_replaced()
            _move(staged, self.path)
        self._metrics = metrics

    def _remove_replaced(self) -> None:
        others = [path.name for path in self.path.iterdir() if _FURTHER.fullmatch(path.name)]
        for name in (METRICS, STATE, CONFIG, *_CARDS, *others):
            (self.path / name).unlink(missing_ok=True)

    def _found(self) -> bytes:
        """The metrics that are there."""
        with suppress(FileNotFoundError):
            return (self.path / METRICS).read_bytes()
        return b""

    def _require_own(self) -> None:
        found = self._found()
        if found != self._metrics and (not found or hashlib.sha256(found).hexdigest() != self.replaces):
            raise self._of_another()

    def _of_another(self) -> MismatchError:
        return MismatchError(f"another training has written to {self.path} meanwhile; name another --out")

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        """A folder for files until all of an epoch are whole."""
        with TemporaryDirectory(prefix=".epoch-", suffix=".partial", dir=self.path) as staged:
            yield Path(staged)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Have errors of the disk name this folder: a full one names no file, or one that was never to stay."""
        try:
            yield
        except OSError as error:
            error.filename = str(self.path)
            raise


def _joined(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _move(staged: Path, path: Path) -> None:
    """Move files in place: on the disk before their names are; the state first, the metrics last."""
    for made in sorted(staged.iterdir(), key=lambda made: (made.name == METRICS, made.name != STATE)):
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.replace(path / made.name)
