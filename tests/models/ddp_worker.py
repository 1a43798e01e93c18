"""One of the processes of test_ddp.py: ``python ddp_worker.py FOLDER RANK``. Not a test by itself."""

import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    # Pickled by another process: the class, which is made at run time, has to be found here.
    model = torch.load(folder / "model.pt", weights_only=False)
    images = torch.load(folder / "images.pt", weights_only=True)
    mine = images[rank * 4 : rank * 4 + 4]
    results = {}
    for checkpointing in (False, True):
        model.trunk.set_grad_checkpointing(checkpointing)
        # Left at False: with any gates every trainable tensor takes part in the loss.
        parallel = DistributedDataParallel(model, find_unused_parameters=False)
        for drop in (0.0, 0.5):
            for adapter in model.trunk.adapters():
                adapter.drop = drop
            torch.manual_seed(rank)
            parallel.zero_grad()
            for _ in range(2):  # a second pass fails if the first left something unreduced
                loss = parallel(mine).pow(3).sum(1).mean() + model.prompt_penalty(weight=1e-2)
                loss.backward()
            gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
            results[checkpointing, drop] = {name: gradient / 2 for name, gradient in gradients.items()}
    torch.save(results, folder / f"gradients{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
