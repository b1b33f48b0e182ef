"""Memory that several GPUs need in addition to what an estimate counts in torch's allocator. Standard library only.

- **NCCL** has buffers for each channel of a communicator. Two A100 with NVLink have 544 MiB, four 688 MiB
  (https://github.com/NVIDIA/nccl/issues/964). FSDP and DDP use one communicator. Without NVLink NCCL has fewer channels, so this is an
  upper bound there.
- **FSDP1** frees a gathered layer while the device still reads it (``record_stream``); its block can be used again only afterwards, and
  meanwhile other blocks are taken. Over a run memory is divided into more pieces than in the two steps of a trace. Of Mistral 7B and
  santacoder on two A100 ``nvidia-smi`` shows a median of 3.3 GiB more than the replay of the allocator, 1.7 GiB of which it also shows on
  one GPU and 0.5 GiB of which is NCCL's; 1.1 GiB is left. FSDP2 does not use ``record_stream``.

``benchmarks/published.py`` prints these medians.
"""

from __future__ import annotations

MIB = 2**20
NCCL_TWO_BYTES, NCCL_MORE_BYTES = 544 * MIB, 688 * MIB
PIECES_OF_FSDP1_BYTES = 1126 * MIB
# devices that a communicator with the smaller number of channels connects
PAIR = 2


def between_devices_bytes(distributed_backend: str, number_gpus: int) -> int:
    """Return what a device cannot give to the allocator because it trains together with others, bytes."""
    if number_gpus <= 1:
        return 0
    nccl = NCCL_TWO_BYTES if number_gpus == PAIR else NCCL_MORE_BYTES
    return nccl + (PIECES_OF_FSDP1_BYTES if distributed_backend == "FSDP" else 0)
