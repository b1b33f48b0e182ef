"""The ``convert`` command: converts the files of a study that was written for IBM's actuator ``SFTTrainer``."""

from __future__ import annotations

import sys
from pathlib import Path

from ..workload.ibm_values import Choices
from .console import show
from .conversion import Document, Unusable, convert, model_map, read


def main(
    files: list[Path], *, actuator: str, output: Path, check: bool, weights: str, data: str, adaptive: bool
) -> int:
    """Run the command; return its exit status: 0 the study is the same, 1 it differs, 2 usage error.

    Args:
        files: spaces, points, operations and actuator configurations.
        actuator: identifier of the actuator to convert to.
        output: directory to write to.
        check: report only, without writing files.
        weights: ``random`` or ``pretrained``.
        data: directory of IBM's data sets; empty: synthetic data.
        adaptive: end measurements once the rate's confidence interval is narrow enough.
    """
    try:
        documents = [read(path) for path in files]
        choices = Choices(actuator, weights, data, adaptive, model_map(documents))
        for document in documents:
            convert(document, choices)
        if not check:
            _write(documents, output)
    except Unusable as reason:
        print(reason, file=sys.stderr)
        return 2
    show("\n\n".join([*(_report(document, output, check=check) for document in documents), _conclusion(documents)]))
    return 0 if all(finding.same for document in documents for finding in document.findings) else 1


def _write(documents: list[Document], output: Path) -> None:
    targets = [output / document.path.name for document in documents]
    if twice := next((path for path in targets if targets.count(path) > 1), None):
        raise Unusable(f"Two files are called {twice.name}: convert them one by one, with a directory each (-o DIR).")
    for document, target in zip(documents, targets, strict=True):
        if target.exists() and target.samefile(document.path):
            raise Unusable(f"{target} would be overwritten: name another directory with -o DIR.")
    try:
        output.mkdir(parents=True, exist_ok=True)
        for document, target in zip(documents, targets, strict=True):
            target.write_text(document.text(), encoding="utf-8", newline="")
    except OSError as error:
        text = f"{error.filename or output} cannot be written ({error.strerror})"
        raise Unusable(f"{text}: name another directory with -o DIR.") from None


def _report(document: Document, output: Path, *, check: bool) -> str:
    head = f"{document.path}, {document.kind}" + ("" if check else f": written to {output / document.path.name}")
    lines = [f"  {step}" for step in document.steps]
    lines += [f"  note     {finding.text}" for finding in document.findings if finding.same]
    lines += [f"  differs  {finding.text}" for finding in document.findings if not finding.same]
    return "\n".join([head, *lines])


def _conclusion(documents: list[Document]) -> str:
    count = sum(not finding.same for document in documents for finding in document.findings)
    if not count:
        return "The study is the same."
    return f"The study differs in {count} point{'s' if count > 1 else ''}, marked above."
