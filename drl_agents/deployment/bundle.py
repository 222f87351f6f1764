"""Bundles: a trained policy with all that is needed to run it as it was trained, and to refuse anything else.

    bundle.json          the manifest: market, features, observation, actions, costs, rules, lineage, SHA-256 of files
    policy.safetensors   weights and normalisers

The bundle's id is the SHA-256 of the manifest, so a change of any byte of either file is found. Loading runs no code
from the files; where the manifest names a network of the user's own, that class is imported from what is installed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from drl_agents.networks.build import build_policy
from drl_agents.networks.player import Player
from drl_agents.networks.policy import ActorCritic, PolicySpec
from drl_agents.networks.population import member_state
from drl_agents.training.record import code_version
from environments.errors import InputError
from environments.files import write_atomic
from environments.market import Market
from environments.market_env import MarketVecEnv
from environments.plugin import build_env
from environments.rules import RuleBook

FORMAT = 1
MANIFEST, WEIGHTS = "bundle.json", "policy.safetensors"
# How a model trades that was written before these options were: they are not what they would be for a new one.
EARLIER = {"fee_in": "quote"}


def env_options(env: MarketVecEnv) -> dict[str, Any]:
    """The options that make an environment trade as `env` does, JSON-able."""
    return {
        "lookback": env.lookback,
        "action": env.scheme.name,
        "action_options": env.scheme.options,
        "reward": env.reward_name,
        "initial_cash": env.initial_cash,
        "ruin": env.ruin,
        "decision_lag": env.decision_lag,
        "fill_at": env.fill_at,
        **env.frictions.to_dict(),
        **env.margin.to_dict(),
        "slippage_seed": env.slippage_seed,
        "features": list(env.features.names),
    }


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle. policy: one member, in evaluation."""

    folder: Path
    manifest: dict[str, Any]
    policy: ActorCritic

    @property
    def id(self) -> str:
        return self.manifest["id"]

    @property
    def decide(self) -> Player:
        """Dense observations (1, n, D) -> actions (1, n, ...). One for each walk: where the policy remembers, it
        carries the memory from one call to the next."""
        return Player(self.policy)

    def check_market(self, market: Market) -> None:
        """Does the market fit? Symbols in their order, bar size, asset class, further columns. A policy whose weights
        are shared by the assets (`PolicySpec.per_asset`) may meet other symbols.

        Raises:
            InputError: it does not; names the field, what the bundle has and what the market has.
        """
        own = self.manifest["market"]
        here = market_facts(market)
        fields = ("timeframe", "asset_class", "extra")
        for field in fields if self.policy.spec.per_asset else ("symbols", *fields):
            if own[field] != here[field]:
                raise InputError(
                    f"bundle {self.id[:12]} does not fit: "
                    f"its {field} is {own[field]!r}, the market's is {here[field]!r}"
                )

    def env(
        self, market: Market, window: tuple[int, int], decision_lag: int | None = None, **overrides: Any
    ) -> MarketVecEnv:
        """An environment of one that walks `window` of `market` as the model was trained to trade.

        decision_lag, overrides: options of the bundle's environment to replace; None keeps the bundle's.

        Raises:
            InputError: the market does not fit, or the bundle's environment has no such option.
        """
        self.check_market(market)
        own = {**EARLIER, **self.manifest["env"]["options"]}
        changes = {k: v for k, v in {"decision_lag": decision_lag, **overrides}.items() if v is not None}
        if unknown := sorted(set(changes) - set(own)):
            accepted = ", ".join(own)
            raise InputError(f"bundle {self.id[:12]} has no option {', '.join(unknown)}: accepted are {accepted}")
        options = {**own, **changes}
        rules = RuleBook.from_dict(market.asset_class, self.manifest["rules"])
        env = build_env(
            self.manifest["env"]["name"],
            market,
            1,
            segments=[window],
            random_start=False,
            episode_length=None,
            rules=rules,
            **options,
        )
        return env


def market_facts(market: Market) -> dict[str, Any]:
    return {
        "symbols": list(market.symbols),
        "timeframe": str(market.timeframe),
        "asset_class": market.asset_class,
        "extra": list(market.extra_names),
        "source": market.source,
        "fingerprint": market.fingerprint,
        "synthetic": market.synthetic,
        "bars_per_year": market.bars_per_year,
    }


def save_bundle(
    folder: str | Path, policy: ActorCritic, member: int, env: MarketVecEnv, env_name: str, lineage: Mapping[str, Any]
) -> Path:
    """Write member `member` of `policy`, trained in environments like `env`.

    lineage: study, trial, seed, value, bars trained on, ...; JSON-able, kept in the manifest.
    """
    folder = Path(folder)
    weights = save_tensors({k: v.contiguous().cpu() for k, v in member_state(policy, member).items()})
    manifest = {
        "format": FORMAT,
        "code_version": code_version(),
        "torch": torch.__version__,
        "market": market_facts(env.market),
        "env": {"name": env_name, "options": env_options(env)},
        "rules": env.rule_book.to_dict(env.market.symbols),
        "policy": policy.spec.to_dict(),
        "lineage": dict(lineage),
        "files": {WEIGHTS: hashlib.sha256(weights).hexdigest()},
    }
    manifest["id"] = _manifest_id(manifest)
    write_atomic(folder / WEIGHTS, weights)
    # The manifest last: a folder without one is no bundle yet.
    write_atomic(folder / MANIFEST, _manifest_text(manifest))
    return folder


def load_bundle(folder: str | Path) -> Bundle:
    """Read and verify a bundle.

    Raises:
        InputError: missing, damaged or changed files (which one is named), or another format.
    """
    folder = Path(folder)
    try:
        text = (folder / MANIFEST).read_bytes().decode("utf-8")
        manifest = json.loads(text)
    except FileNotFoundError:
        raise InputError(f"{folder}: no bundle there (no {MANIFEST})") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{folder / MANIFEST}: damaged ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{folder / MANIFEST}: not a bundle of format {FORMAT}")
    # The text too: some changes of a byte (white space, a number's last digit) leave the content as it was.
    if manifest.get("id") != _manifest_id(manifest) or text != _manifest_text(manifest):
        raise InputError(f"{folder / MANIFEST}: changed after it was written (its id does not match its content)")
    for name, digest in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: missing")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise InputError(f"{path}: changed after it was written (its SHA-256 does not match)")
    policy = build_policy(PolicySpec(**manifest["policy"]), seeds=(0,))
    try:
        policy.load_state_dict(load_tensors((folder / WEIGHTS).read_bytes()))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder / WEIGHTS}: does not fit the manifest ({str(error).splitlines()[0]})") from error
    return Bundle(folder, manifest, policy.eval())


def _manifest_text(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=2, allow_nan=False) + "\n"


def _manifest_id(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "id"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
