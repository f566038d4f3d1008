"""The loader of a mixture: as the arguments of the run have it, without a draw from the random numbers of training."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from hf_interp.mixture.slots import SlotDataset, SlotSampler

WORKER_EXIT_GRACE_SECONDS = 1.0  # by then the system has told torch of a worker that died


def slot_loader(
    dataset: SlotDataset,
    sampler: SlotSampler,
    collator: Callable[[Any], Any],
    args: TrainingArguments,
    accelerator: Accelerator,
) -> DataLoader[Any]:
    """Return a loader over the slots of a plan that belong to this process."""
    of_workers = {
        "persistent_workers": args.dataloader_persistent_workers,
        "multiprocessing_context": args.dataloader_multiprocessing_context,
        "prefetch_factor": args.dataloader_prefetch_factor,
    }
    num_workers = dataset.shard.num_workers
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collator,
        num_workers=num_workers,
        pin_memory=args.dataloader_pin_memory,
        **(of_workers if num_workers else {}),
        # Of its own, so that starting the loader draws nothing from the generator that dropout uses.
        generator=torch.Generator().manual_seed(dataset.plan.seed % (1 << 63)),
    )
    # The sampler gives this process its own examples, from the right place on: accelerate is to move them only.
    return prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=accelerator.device_placement,
        dispatch_batches=False,
        non_blocking=accelerator.non_blocking,
    )


@contextmanager
def report_dead_workers() -> Iterator[None]:
    """Say that a worker died where a connection to one breaks while its batches are awaited.

    torch receives batches over sockets. Those of a worker that is killed close a moment before torch is told of its
    end, and what is read in between breaks with an error that does not mention a worker.
    """
    try:
        yield
    except (ConnectionError, EOFError) as error:
        if "in DataLoader worker process" in str(error):  # raised there by what reads or collates, and told by torch
            raise
        time.sleep(WORKER_EXIT_GRACE_SECONDS)  # torch's signal handler ends it with the worker's process id and signal
        raise RuntimeError(
            f"A DataLoader worker exited unexpectedly, for its connection broke ({type(error).__name__}: {error}). If "
            "the machine ran out of memory, lower `dataloader_num_workers` or `dataloader_prefetch_factor`; the run "
            "goes on with `resume_from_checkpoint=True`."
        ) from error


def check_loader_arguments(args: TrainingArguments, *, num_workers: int) -> list[str]:
    """Return what to warn of in the arguments that shape the loader; `num_workers` is how many there can be."""
    if not args.dataloader_in_order:
        raise ValueError("A mixture needs `dataloader_in_order=True`: a batch that overtakes another has the wrong α.")
    if args.accelerator_config is not None and args.accelerator_config.split_batches:
        raise ValueError("A mixture needs `split_batches=False`: `per_device_train_batch_size` is per process.")
    warnings = []
    if args.train_sampling_strategy == "batch_rebalance":
        warnings.append(
            "`train_sampling_strategy='batch_rebalance'` is ignored: the plan of the mixture sets the order. Take "
            "'group_by_length', whose batches hold examples of like length on all processes."
        )
    if args.dataloader_num_workers > num_workers:
        warnings.append(
            "`dataloader_num_workers` is taken as 0, because a corpus is a stream that cannot be divided by shards as "
            "a `datasets.IterableDataset` can."
        )
    return warnings
