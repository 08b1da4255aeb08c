"""Passes over a cached dataset, an epoch each, that stop at any batch and go on there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from gdkd_cache.cache.batch import TeacherBatch
from gdkd_cache.data.order import Stretch, this_part
from gdkd_cache.data.views import ViewRequest
from gdkd_cache.errors import MismatchError, UsageError
from gdkd_cache.schema import short

LoadedBatch = tuple[Tensor, Tensor, TeacherBatch]
_PLACE = ("epoch", "batch", "done", "world_size", "batch_size")


class CachedLoader:
    """Epochs of (images, labels, `TeacherBatch`), a pass each. Made by `CachedDataset.loader`.

    A pass that gave its last batch is over: the next one is the next epoch, in another order and of the next view. One
    that was broken off begins anew where it began. One pass runs at a time: `iter`, `set_epoch` to another epoch and
    `load_state_dict` end the one before, whose iterator then raises instead of giving batches of neither.

    It holds an epoch number and counts batches; what comes is a function of these, so `state_dict` is small, and what
    goes on from it is equal to the bit.

    Attributes:
        epoch: of the running pass, or of the next.

    Args:
        requests: a rank's batches of an epoch: (epoch, stretches done, first batch) -> requests.
        load: these batches, loaded: (epoch, requests) -> batches.
        part: (rank, world size), or None to ask torch.distributed as each pass begins.
        batch_size: rows a batch.
        epoch, first_batch, done: where the first pass begins.
        facts: what decides which rows a batch holds, by name: a state with others is refused.
    """

    def __init__(
        self,
        requests: Callable[[int, Sequence[Stretch], int], list[ViewRequest]],
        load: Callable[[int, list[ViewRequest]], Iterator[LoadedBatch]],
        *,
        part: tuple[int, int] | None,
        batch_size: int,
        epoch: int,
        first_batch: int,
        done: Sequence[Stretch],
        facts: Callable[[], dict[str, Any]],
    ) -> None:
        self._requests, self._load, self._facts = requests, load, facts
        self._part, self._batch_size = part, batch_size
        self._pass = 0
        self._begin(epoch, done, first_batch)

    def _begin(self, epoch: int, done: Sequence[Stretch] = (), batch: int = 0) -> None:
        """Have the next pass begin there."""
        self.epoch, self._done, self._first = epoch, tuple(done), batch
        self._given = batch  # of this epoch, after its stretches
        self._pass += 1

    def __len__(self) -> int:
        """Batches of the epoch on this rank; those that were given before a stop count too, as in torchdata."""
        left = len(self._requests(self.epoch, self._done, self._first))
        return sum(batches for *_, batches in self._done) + self._first + left

    def __iter__(self) -> Iterator[LoadedBatch]:
        """One pass; nothing is loaded before its first batch is asked for.

        Raises, from the iterator:
            UsageError: another pass has begun meanwhile; or a number out of range.
            CacheError: the view's data is damaged.
            MismatchError: a decoded image is not the teacher's; no batch with it was given out.
        """
        self._pass += 1
        return self._batches(self._pass)

    def _batches(self, number: int) -> Iterator[LoadedBatch]:
        self._require_newest(number)
        epoch, first = self.epoch, self._first
        requests = self._requests(epoch, self._done, first)
        if not requests:  # all were given before a stop
            self._begin(epoch + 1)
            return
        for count, batch in enumerate(self._load(epoch, requests), 1):
            if count == len(requests):  # now, as whoever counts batches does not ask for one more
                self._begin(epoch + 1)
                yield batch
            else:
                self._given = first + count
                yield batch
                self._require_newest(number)

    def _require_newest(self, number: int) -> None:
        if number != self._pass:
            raise UsageError(
                "a newer pass over this loader has begun, or its epoch was set; only the newest goes on: for two at a "
                "time make two loaders"
            )

    def set_epoch(self, epoch: int) -> None:
        """Have the next pass be this epoch, from its first batch; in the midst of that very epoch nothing changes.

        Raises:
            UsageError: it is below 0.
        """
        if epoch < 0:
            raise UsageError(f"epoch is {epoch}; it must be at least 0")
        if epoch != self.epoch:
            self._begin(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where it stands: numbers, texts and lists of them, alike on all ranks.

        A batch counts as given as soon as the loop has it: save after its step.
        """
        place = {"epoch": self.epoch, "batch": self._given, "done": [list(stretch) for stretch in self._done]}
        return place | {"world_size": this_part(self._part)[1], "batch_size": self._batch_size} | self._facts()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Have the next pass go on behind the last batch that was given when the state was saved.

        With another number of ranks, and a batch size that gives as many rows a step, the rows that are left are split
        anew, and each still comes once.

        Raises:
            MismatchError: the state is of another seed, order, batch size, cache or data; it names which.
            UsageError: it is no state of such a loader.
        """
        state, facts = dict(state_dict), self._facts()
        unknown = [name for name in (*_PLACE, *facts) if name not in state]
        if unknown:
            raise UsageError(f"the loader's state has no {unknown[0]}; give what state_dict of such a loader gave")
        for name, ours in facts.items():
            if state[name] != ours:
                raise MismatchError(
                    f"the loader's state has {name} {short(state[name])}, and this loader {short(ours)}; make the "
                    "loader with what it was saved with"
                )
        done = [(ranks, rows, batches) for ranks, rows, batches in state["done"]]
        then, now = (state["world_size"], state["batch_size"]), (this_part(self._part)[1], self._batch_size)
        if then[0] * then[1] != now[0] * now[1]:
            raise MismatchError(
                f"the loader's state has batches of {then[1]} rows on {then[0]} ranks, and this loader of {now[1]} on "
                f"{now[0]}; a step must have as many rows of all ranks together"
            )
        if then == now:
            self._begin(state["epoch"], done, state["batch"])
        else:
            self._begin(state["epoch"], [*done, (*then, state["batch"])])
