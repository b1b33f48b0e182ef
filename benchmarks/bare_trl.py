"""A plain fine-tuning script with a timer. It uses transformers and TRL only, nothing of this repository.

python bare_trl.py SPEC.json RESULT.json; SPEC holds ``architecture`` (configuration keys), ``model_max_length``, ``batch_size``,
``max_steps``, ``torch_dtype``, ``optim``, ``seed``, ``number_gpus``, ``threads``, ``output_dir`` and ``edge`` (steps before the timed
window).
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import numpy
import torch
import transformers
import trl
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from trl import SFTConfig, SFTTrainer


class Stopwatch(transformers.TrainerCallback):
    """Times of step ends: ``perf_counter``; on CUDA, which runs asynchronously, events without synchronisation."""

    def __init__(self, edge: int, cuda: bool) -> None:
        self.edge, self.cuda = edge, cuda
        self.ticks: list[Any] = []
        self.window_s = 0.0

    def tick(self) -> None:
        """Record the time of a step end."""
        if self.cuda:
            self.ticks.append(torch.cuda.Event(enable_timing=True))
            self.ticks[-1].record()
        else:
            self.ticks.append(time.perf_counter())

    def wall(self) -> float:
        """Synchronise the device and return the wall clock."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        self.wall()
        self.tick()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        self.tick()
        if state.global_step == self.edge:
            self.window_s -= self.wall()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        self.window_s += self.wall()

    def steps(self) -> list[float]:
        """Return the duration of every step in seconds."""
        pairs = list(itertools.pairwise(self.ticks))
        return [a.elapsed_time(b) / 1e3 for a, b in pairs] if self.cuda else [b - a for a, b in pairs]


def main(spec: dict[str, Any]) -> dict[str, Any]:
    """Train; return step times in seconds, and the settings as read back."""
    # with OMP_NUM_THREADS alone, MKL takes no more threads than there are physical cores
    torch.set_num_threads(spec["threads"])
    transformers.set_seed(spec["seed"])
    config = transformers.AutoConfig.for_model(**spec["architecture"])
    cuda = spec["number_gpus"] > 0
    with torch.device("cuda" if cuda else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, spec["torch_dtype"]))
    model.config.use_cache = False

    samples, length = spec["batch_size"] * spec["max_steps"], spec["model_max_length"]
    tokens = numpy.random.default_rng(spec["seed"]).integers(3, config.vocab_size, (samples, length)).tolist()
    data = datasets.Dataset.from_dict({"input_ids": tokens, "labels": tokens})
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
    )

    arguments = SFTConfig(
        output_dir=spec["output_dir"],
        per_device_train_batch_size=spec["batch_size"],
        gradient_accumulation_steps=1,
        max_steps=spec["max_steps"],
        num_train_epochs=1,
        max_length=length,
        packing=False,
        padding_free=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=False,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=False,
        fp16=False,
        optim=spec["optim"],
        learning_rate=2e-5,
        lr_scheduler_type="constant",
        seed=spec["seed"],
        use_cpu=not cuda,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=cuda,
    )
    stopwatch = Stopwatch(spec["edge"], cuda)
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=[stopwatch]
    )
    trainer.train()
    return {
        "step_s": stopwatch.steps(),
        "window_s": stopwatch.window_s,
        "arguments": trainer.args.to_dict(),
        "facts": {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "attn_implementation": model.config._attn_implementation,
            "optimizer": type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__name__,
            "threads": torch.get_num_threads(),
            "trl": trl.__version__,
        },
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text())), default=str))
