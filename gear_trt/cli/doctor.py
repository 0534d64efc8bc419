"""`gear doctor`: is everything there, and if not, what to install."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gear_trt.cli import _ui
from gear_trt.errors import ExitStatus

if TYPE_CHECKING:
    from gear_trt.runtime.environment import Finding

SCHEMA = "gear.doctor/1"


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log.")] = False,
) -> None:
    """Check packages, kernels, ONNX Runtime, GPU and TensorRT."""

    def action() -> None:
        from gear_trt.runtime.environment import examine

        findings = examine()
        if json:
            _ui.emit_json(SCHEMA, {"findings": [finding.model_dump() for finding in findings]})
        else:
            _print_findings(findings)
        if any(finding.is_fault for finding in findings):
            raise typer.Exit(ExitStatus.ENVIRONMENT)

    _ui.run(action, json=json, verbose=verbose)


def _print_findings(findings: list[Finding]) -> None:
    for finding in findings:
        mark = "[red]✗[/]" if finding.is_fault else "[green]✓[/]" if finding.value else "–"
        what = finding.value or f"not found ({finding.hint})"
        _ui.stdout.print(f"{mark} {finding.name}: ", end="")
        _ui.stdout.print(what, markup=False, highlight=False, soft_wrap=True)
