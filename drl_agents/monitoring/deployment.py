"""Reading the deployments: `<logs>/deployment/`, its champions and its audit trail."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

from drl_agents.monitoring.tail import Tail
from drl_agents.monitoring.trading_records import AuditEvent, Champion, DeploymentSnapshot
from drl_agents.monitoring.typed_json import fill, label, parse_json, read_json

AUDIT_EVENTS = 20
AUDIT_BYTES = 1 << 18  # a refusal lists its checks: about a kilobyte each


def read_deployment(folder: Path, problems: list[str]) -> DeploymentSnapshot | None:
    """Read the champion promoted last and the audit trail; None while neither exists. No champion is no problem."""
    audit = folder / "audit.jsonl"
    try:
        present = os.listdir(folder)
        pointers = list((folder / "champions").glob("*.json"))
        champion = max(pointers, key=lambda f: f.stat().st_mtime, default=None)
    except FileNotFoundError:
        return None
    except OSError as error:
        problems.append(f"{folder.name}: cannot be read ({error.strerror})")
        return None
    if champion is None and audit.name not in present:
        return None
    deployment = DeploymentSnapshot()
    if champion is not None and (raw := read_json(champion, problems)) is not None:
        deployment.champion = fill(Champion, raw, label(champion), problems)
    known, broken = {item.name for item in fields(AuditEvent)}, 0
    lines, _ = Tail(audit, AUDIT_BYTES).read(problems)
    for line in lines[-AUDIT_EVENTS:]:
        try:
            raw = parse_json(line)
        except (ValueError, RecursionError):
            broken += 1
            continue
        event = fill(AuditEvent, raw, label(audit), problems)
        if isinstance(raw, dict):
            event.details = {key: value for key, value in raw.items() if key not in known}
        deployment.audit.append(event)
    if broken:
        problems.append(f"{label(audit)}: {broken} lines are not JSON and were left out")
    return deployment
