"""Is a model that trades live what its held-out bars said it would be?

What it may earn from here is drawn from its held-out returns by a stationary bootstrap. Its live result is held against
a lower bound of these paths, and against a loss limit, for some bars after it took over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drl_agents.deployment.bundle import Bundle
from drl_agents.evaluation.bootstrap import growth_paths
from environments.errors import InputError
from environments.files import write_json

HELDOUT = "heldout.json"
QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}


def keep_heldout(bundle: Bundle, returns: NDArray[np.float64]) -> None:
    """Write the model's per-bar returns (T,) on the bars its study held out, beside the bundle."""
    write_json(bundle.folder / HELDOUT, {"bundle": bundle.id, "returns": [round(float(r), 10) for r in returns]})


def heldout_returns(bundle: Bundle) -> NDArray[np.float64]:
    """What `keep_heldout` wrote, (T,).

    Raises:
        InputError: it is not there, damaged, or of another bundle.
    """
    path = bundle.folder / HELDOUT
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["bundle"] != bundle.id:
            raise InputError(f"{path}: of bundle {str(kept['bundle'])[:12]}, not {bundle.id[:12]}")
        return np.array(kept["returns"], dtype=np.float64)
    except FileNotFoundError:
        raise InputError(f"{path}: missing; a bundle made anew has its held-out returns beside it") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged ({error})") from error


@dataclass(frozen=True)
class Prediction:
    """What a model as good as its held-out bars earns in its first h bars, as cumulative log returns.

    quantiles: {"q05": (h,), "q50": ..., "q95": ...}, each bar by itself. floor: (h,), see `predict`.
    """

    quantiles: dict[str, NDArray[np.float64]]
    floor: NDArray[np.float64]

    @property
    def bars(self) -> int:
        return self.floor.size


def predict(returns: NDArray[np.float64], bars: int, false_alarms: float) -> Prediction:
    """Resample held-out `returns` (T,) into paths of `bars` bars.

    The floor is the same rank among the paths at every bar, the highest such that at most the share `false_alarms` of
    the paths is ever below it: a model that is what its held-out bars say stays above it in all other windows.
    (Quantiles of each bar by itself would be crossed by far more.)

    Raises:
        InputError: returns that cannot be resampled, no bars, or a share outside 0 to 1.
    """
    if not 0 <= false_alarms < 1:
        raise InputError(f"false_alarms={false_alarms}: accepted are 0 to below 1")
    paths = growth_paths(returns, bars)
    lowest = np.sort(paths.argsort(axis=0).argsort(axis=0).min(axis=1))
    rank = int(lowest[math.floor(false_alarms * len(paths))])
    quantiles = dict(zip(QUANTILES, np.quantile(paths, list(QUANTILES.values()), axis=0), strict=True))
    return Prediction(quantiles, np.sort(paths, axis=0)[rank])


def unhealthy(prediction: Prediction | None, growth: float, seen: int, max_loss: float) -> list[str]:
    """Why the model is to be rolled back, in numbers; empty where it is not.

    Args:
        prediction: None where nothing is known of its held-out bars: then the loss limit alone holds.
        growth: cumulative log return since it took over, `seen` >= 1 bars ago.
        max_loss: fraction of the equity it took over with.
    """
    reasons = []
    loss = -math.expm1(growth)
    if not loss <= max_loss:
        reasons.append(f"loss since it took over {loss:.4g} <= {max_loss:.4g} (fraction): FAILED")
    if prediction is not None and not growth >= prediction.floor[min(seen, prediction.bars) - 1]:
        floor = prediction.floor[min(seen, prediction.bars) - 1]
        reasons.append(
            f"log return after {seen} bars {growth:.4g} >= {floor:.4g} (lower bound of the back-test's): FAILED"
        )
    return reasons


def growth_of(value: float, before: float) -> float:
    """Log return; an account that lost everything has lost more than any limit."""
    return math.log(max(value, 1e-300) / before)


def prediction_facts(prediction: Prediction, bundle: Bundle, since: str, equity: float) -> dict[str, Any]:
    """For `prediction.json` beside a trader: cumulative log returns by bar, from the bar `since` and its equity on."""
    curves: dict[str, Sequence[float]] = {
        name: [round(float(x), 8) for x in curve] for name, curve in prediction.quantiles.items()
    }
    return {"model": bundle.id, "from": since, "equity": equity, "bars": list(range(1, prediction.bars + 1)), **curves}
