"""The command line of a plugin: run, plan, report, compare, doctor, dataset and convert.

Of packages it imports typer and yaml. Each command imports its module when it is called, so that ``--help`` and completion are fast and
``doctor`` works where ado does not.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..workload.command import distribution
from .console import in_no_directory, open_closed_streams
from .options import SOURCE, Actuator, Format, Samples, Seed, Weights, Words, experiments, percent, properties

if TYPE_CHECKING:
    from ..measurement.plugin import Plugin

Load = Callable[[], tuple["Plugin", type[Any]]]


def main(plugin: str, environment: str, load: Load, arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        plugin: identifier of the plugin.
        environment: where the plugin trains by default: ``current`` or ``managed``.
        load: returns the plugin and the class of its parameters.
        arguments: of the command line; default: the arguments of this process.
    """
    open_closed_streams()
    if in_no_directory():
        print("The current directory does not exist any more; change to another one.", file=sys.stderr)
        return 2
    try:
        build(plugin, environment, load)(args=arguments if arguments is None else list(arguments))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def build(plugin: str, environment: str, load: Load) -> typer.Typer:
    """Return the plugin's commands; the arguments are those of ``main``."""
    name = distribution(plugin)
    app = typer.Typer(
        help=f"Measure LLM fine-tuning with the actuator {plugin}, and report the results.",
        no_args_is_help=True,
        rich_markup_mode="rich",
        # an unexpected error is reported with Python's own traceback, which can be pasted into an issue
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    _add_run(app, name, plugin, load)
    _add_plan(app, name, load)
    _add_report(app, name, plugin)
    _add_compare(app, name)
    _add_doctor(app, name, plugin, environment)
    app.add_typer(_dataset(name), name="dataset")
    _add_convert(app, name, plugin)
    return app


def _add_run(app: typer.Typer, name: str, plugin: str, load: Load) -> None:
    text = f"""Measure one fine-tuning workload on this machine, without ado's store and without Ray.

    Required are model_name, model_max_length (tokens of a sample), batch_size (samples, all devices together) and number_gpus (0: CPU).
    method=lora chooses LoRA, price=2.5 (USD for a device-hour) adds the cost. The other properties are listed in docs/{plugin}.md, or by
    `ado describe experiment {plugin}.finetune_full_benchmark`.

    Exit status: 0 measured, 1 the workload cannot run or failed, 2 usage error.

    \b
    Examples:
      {name} run model_name=tiny-llama-5m model_max_length=128 \\
        batch_size=4 number_gpus=0
      {name} run workload.yaml method=lora
      {name} run workload.yaml --vary method=full,lora
      {name} run workload.yaml --vary batch_size
      {name} run w.yaml --vary actuator=sfttrainer,fms_hf_tuning
      {name} run workload.yaml batch_size=8 price=2.5 --json
    """

    @app.command(help=text)
    def run(
        workload: Annotated[
            list[str],
            typer.Argument(
                help="YAML files with the workload's properties, property=value pairs, or both. Later values win.",
                autocompletion=properties,
            ),
        ],
        experiment: Annotated[
            str | None,
            typer.Option(
                metavar="NAME",
                help="What to measure. Default: the experiment that the file names, else finetune_full_benchmark. "
                "An unknown name prints the list of experiments.",
                autocompletion=experiments,
            ),
        ] = None,
        config: Annotated[
            Path | None, typer.Option(help="A YAML file with the actuator configuration's parameters.")
        ] = None,
        vary: Annotated[
            str | None,
            typer.Option(
                metavar="NAME=V1,V2",
                help="Measure each of these values of a property and compare them; batch_size without values is doubled as long as "
                "that is faster and fits; actuator=sfttrainer,fms_hf_tuning compares both stacks.",
            ),
        ] = None,
        json: Annotated[bool, typer.Option("--json", help="Print properties and metadata as JSON.")] = False,
    ) -> None:
        from . import run as command

        status = command.main(*load(), workload, experiment=experiment, config=config, vary=vary, as_json=json)
        raise typer.Exit(status)


def _add_plan(app: typer.Typer, name: str, load: Load) -> None:
    text = f"""Show which GPUs and methods a model can be fine-tuned with, how fast at most and at what cost. Needs no GPU.

    Exit status: 0 something fits, 1 nothing fits or the workload is impossible, 2 usage error.

    \b
    Examples:
      {name} plan model_name=llama3.1-8b model_max_length=2048 \\
        gpu_model=RTX-4090,L40S,H100
      {name} plan model_name=llama3.1-8b gpu_model=L40S,H100 \\
        --price L40S=0.9 --price H100=2.5 --output plan
    """

    @app.command(help=text)
    def plan(
        workload: Annotated[
            list[str],
            typer.Argument(
                help="YAML files with the workload's properties, property=value pairs, or both. gpu_model may name several types.",
                autocompletion=properties,
            ),
        ],
        price: Annotated[
            list[str] | None,
            typer.Option(
                metavar="NAME=USD", help="The price of an hour of a GPU of gpu_model. Give it once for each type."
            ),
        ] = None,
        output: Annotated[
            Path | None,
            typer.Option(
                "-o", "--output", metavar="DIR", help="Write a page, a picture, and ado's space and operation there."
            ),
        ] = None,
        config: Annotated[
            Path | None, typer.Option(help="A YAML file with the actuator configuration's parameters.")
        ] = None,
    ) -> None:
        from . import plan as command

        raise typer.Exit(command.main(*load(), workload, prices=price or [], output=output, config=config))


def _add_report(app: typer.Typer, name: str, plugin: str) -> None:
    text = f"""Write an HTML page and image files of measurements.

    Exit status: 0 written, 2 usage error.

    \b
    Examples:
      {name} report latest
      {name} report measurements.csv -o my-report --format html
      {name} report latest --tokens 100e6 --price 2.5
    """

    @app.command(help=text)
    def report(
        source: Annotated[list[str], typer.Argument(help=SOURCE)],
        output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where to write.")] = Path(
            "ado-report"
        ),
        form: Annotated[
            Format, typer.Option("--format", help="What to write; autoconf: a CSV file that ado-autoconf trains on.")
        ] = Format.both,
        tokens: Annotated[
            float | None,
            typer.Option(
                metavar="N", min=1, max=1e18, help="Show the hours and the cost of training on N tokens, such as 100e6."
            ),
        ] = None,
        price: Annotated[
            float | None,
            typer.Option(
                metavar="USD",
                min=0,
                max=1e6,
                help="Price of one GPU (on CPU: one process) for an hour. Default: that of the measurements.",
            ),
        ] = None,
    ) -> None:
        from . import report as command

        if not (math.isfinite(tokens or 0) and math.isfinite(price or 0)):
            raise typer.BadParameter("expected a finite number.", param_hint="--tokens, --price")
        raise typer.Exit(command.main(plugin, source, output=output, form=form.value, tokens=tokens, price=price))


def _add_compare(app: typer.Typer, name: str) -> None:
    text = f"""Compare two sets of measurements, workload by workload.

    Exit status: 0 no regression, 1 a regression, 2 usage error or nothing to compare.

    \b
    Examples:
      {name} compare before.csv after.csv --tolerance 3
      {name} compare latest --by method
    """

    @app.command(help=text)
    def compare(
        before: Annotated[str, typer.Argument(help=SOURCE)],
        after: Annotated[
            str | None, typer.Argument(help="The same for the later measurements; not with --by.", show_default=False)
        ] = None,
        by: Annotated[
            str | None,
            typer.Option(
                metavar="PROPERTY",
                help="Compare workloads of one source that differ in this property only, such as method or packing.",
            ),
        ] = None,
        tolerance: Annotated[
            float,
            typer.Option(
                metavar="PERCENT",
                callback=percent,
                help="A throughput ratio whose whole interval is below 1 by more than this is a regression.",
            ),
        ] = 3.0,
        memory_tolerance: Annotated[
            float,
            typer.Option(
                metavar="PERCENT",
                callback=percent,
                help="Allocated or predicted memory that grows by more than this is a regression.",
            ),
        ] = 5.0,
        json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
    ) -> None:
        from . import compare as command

        status = command.main(
            before, after, by=by, tolerance=tolerance, memory_tolerance=memory_tolerance, as_json=json
        )
        raise typer.Exit(status)


def _add_doctor(app: typer.Typer, name: str, plugin: str, environment: str) -> None:
    text = f"""Show what this machine or a Ray cluster can measure, what is missing, and the command that installs it.

    Exit status: 0 nothing is missing, 1 something is missing, 2 usage error.

    \b
    Examples:
      {name} doctor
      {name} doctor --address 127.0.0.1:6379
    """

    @app.command(help=text)
    def doctor(
        address: Annotated[
            str | None,
            typer.Option(help="Address of a Ray cluster. Default: RAY_ADDRESS; without it, this machine."),
        ] = None,
        state_dir: Annotated[
            str,
            typer.Option(
                metavar="DIR",
                help="The actuator configuration's state_dir, which holds the managed environments. Each node has its own. "
                "Default: ado-actuators in the user's cache.",
                show_default=False,
            ),
        ] = "",
    ) -> None:
        from . import doctor as command

        raise typer.Exit(command.main(plugin, environment, address=address, state_dir=state_dir))


def _add_convert(app: typer.Typer, name: str, plugin: str) -> None:
    own = Actuator(plugin)
    text = f"""Convert spaces, points, operations and actuator configurations of IBM's own actuator SFTTrainer.

    Exit status: 0 the study is the same, 1 it differs where the output says so, 2 usage error.

    \b
    Examples:
      {name} convert space.yaml operation.yaml configuration.yaml
      {name} convert space.yaml --check
    """

    @app.command(help=text)
    def convert(
        files: Annotated[list[Path], typer.Argument(help="YAML files of one study.")],
        to: Annotated[Actuator, typer.Option(help="The actuator to convert to.")] = own,
        output: Annotated[
            Path, typer.Option("-o", "--output", metavar="DIR", help="Where to write files of the same names.")
        ] = Path("converted"),
        check: Annotated[bool, typer.Option("--check", help="Only show what would change; write nothing.")] = False,
        weights: Annotated[
            Weights, typer.Option(help="random needs no download; pretrained loads, as IBM's actuator does.")
        ] = Weights.random,
        data: Annotated[
            str,
            typer.Option(
                metavar="DIR",
                help="Directory with the data sets of IBM's actuator, on every node. Default: synthetic data.",
                show_default=False,
            ),
        ] = "",
        adaptive: Annotated[
            bool,
            typer.Option(
                "--adaptive", help="End each measurement once its rate is precise enough, whatever the study says."
            ),
        ] = False,
    ) -> None:
        from . import convert as command

        raise typer.Exit(
            command.main(
                files,
                actuator=to.value,
                output=output,
                check=check,
                weights=weights.value,
                data=data,
                adaptive=adaptive,
            )
        )


def _dataset(name: str) -> typer.Typer:
    app = typer.Typer(
        help="Write a data set of a given size: text as .jsonl, or images with captions as .parquet.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )

    @app.command(
        help=f"Write lines of text.\n\n\b\nExample:\n  {name} dataset text samples.jsonl --samples 1000 --words 200"
    )
    def text(
        path: Annotated[Path, typer.Argument(help="The .jsonl file to write.")],
        samples: Samples = 1000,
        words: Words = 200,
        seed: Seed = 42,
    ) -> None:
        from . import dataset

        _write(lambda: dataset.write_text(path, samples=samples, words=words, seed=seed))

    @app.command(
        help=f"Write images with captions.\n\n\b\nExample:\n  {name} dataset image samples.parquet --pixels 224"
    )
    def image(
        path: Annotated[Path, typer.Argument(help="The .parquet file to write.")],
        samples: Samples = 1000,
        words: Words = 12,
        seed: Seed = 42,
        pixels: Annotated[int, typer.Option(help="Width and height of an image.")] = 224,
    ) -> None:
        from . import dataset

        _write(lambda: dataset.write_images(path, samples=samples, pixels=pixels, words=words, seed=seed))

    return app


def _write(write: Callable[[], None]) -> None:
    """Call ``write``; print an error as one line and exit with status 2."""
    try:
        write()
    except ImportError:
        message = "Images need numpy, pillow and pyarrow: pip install numpy pillow pyarrow"
    except (ValueError, OSError) as error:
        message = str(error)
    else:
        return
    print(message, file=sys.stderr)
    raise typer.Exit(2)
