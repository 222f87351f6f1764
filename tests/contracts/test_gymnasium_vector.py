"""The Gymnasium view of a VecEnv, held against Gymnasium's own vector environment and wrappers."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from environments.adapters import GymnasiumVecEnv
from environments.alpaca_env import CryptoEnvAlpaca, VectorizedCryptoEnvAlpaca
from environments.errors import InputError
from environments.gymnasium_vector import GymnasiumVectorView

N = 4


@pytest.fixture(scope="module")
def market(make_market, random_bars):
    """Two assets, one listed late and with holes: features that are unknown now and then."""
    bars = {
        "BTC/USD": random_bars(1, 160, price=30_000.0, sigma=0.05),
        "ETH/USD": random_bars(2, 160, missing=0.1, listed=20, sigma=0.05),
    }
    return make_market(bars)


@pytest.fixture
def view(market) -> GymnasiumVectorView:
    return GymnasiumVectorView(VectorizedCryptoEnvAlpaca(market, N, episode_length=9, lookback=3, seed=5))


def cart_poles() -> GymnasiumVecEnv:
    return GymnasiumVecEnv(lambda: gymnasium.make("CartPole-v1"), N)


def play(envs: VectorEnv, steps: int, seed: int = 0) -> list:
    """What reset and `steps` random actions gave."""
    envs.action_space.seed(seed)
    return [envs.reset(seed=seed), *(envs.step(envs.action_space.sample()) for _ in range(steps))]


def assert_same(a, b) -> None:
    """Equal values, shapes and dtypes, through tuples, dictionaries and arrays of objects."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert sorted(a) == sorted(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, tuple):
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    elif isinstance(a, np.ndarray) and a.dtype == object:
        assert b.dtype == object
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    else:
        np.testing.assert_array_equal(a, b)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype


def test_spaces_and_metadata(view, market):
    assert isinstance(view, VectorEnv) and view.num_envs == N
    assert view.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    width = 3 * 2 * 11 + 7  # lookback * assets * features + account
    assert view.single_observation_space.shape == (width,) and view.observation_space.shape == (N, width)
    assert view.action_space.shape == (N, 2) and view.unwrapped is view
    poles = GymnasiumVectorView(cart_poles())
    assert poles.action_space == gymnasium.spaces.MultiDiscrete([2] * N)


@pytest.mark.parametrize("world", ["market", "poles"])
def test_what_is_given_lies_in_the_spaces(view, world):
    envs = view if world == "market" else GymnasiumVectorView(cart_poles())
    (observation, infos), *steps = play(envs, 60)
    assert envs.observation_space.contains(observation) and isinstance(infos, dict)
    ends = 0
    for observation, reward, terminated, truncated, infos in steps:
        assert envs.observation_space.contains(observation)  # NaN lies in no Box: unknown values are 0
        assert reward.shape == (N,) and reward.dtype == np.float64 and np.isfinite(reward).all()
        assert terminated.shape == truncated.shape == (N,)
        assert terminated.dtype == truncated.dtype == np.bool_
        done = terminated | truncated
        assert ("final_obs" in infos) == ("_final_obs" in infos) == ("final_info" in infos) == done.any()
        if done.any():
            np.testing.assert_array_equal(infos["_final_obs"], done)
            np.testing.assert_array_equal(infos["_final_info"], done)
            for last, ended in zip(infos["final_obs"], done, strict=True):
                assert (last is not None) == ended
                assert not ended or envs.single_observation_space.contains(last)
        ends += done.sum()
    assert ends >= N


def test_it_is_gymnasiums_own_vector_environment(market):
    """Four accounts over the same bars under different actions: every array and info of SyncVectorEnv's."""
    walk = {"segments": [(0, 60)], "random_start": False, "episode_length": 25, "lookback": 2, "ruin": 0.97}
    ours = GymnasiumVectorView(VectorizedCryptoEnvAlpaca(market, N, **walk))
    theirs = SyncVectorEnv([lambda: CryptoEnvAlpaca(market, **walk)] * N, autoreset_mode=AutoresetMode.SAME_STEP)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    ends = np.zeros(2, dtype=int)
    alone = 0
    for a, b in zip(play(ours, 80), play(theirs, 80), strict=True):
        assert_same(a, b)
        if len(a) == 5:
            ends += (a[2].sum(), a[3].sum())
            alone += 0 < (a[2] | a[3]).sum() < N
    # Ruin and the end of an episode, some environments ending while others go on.
    assert (ends > 0).all() and alone > 0


def test_cart_poles_are_gymnasiums_own():
    ours = GymnasiumVectorView(cart_poles())
    theirs = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * N, autoreset_mode=AutoresetMode.SAME_STEP)
    for a, b in zip(play(ours, 60), play(theirs, 60), strict=True):
        if len(a) == 2:
            np.testing.assert_array_equal(a[0], b[0])
            continue
        for left, right in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(left, right)
        assert_same({k: v for k, v in a[4].items() if "obs" in k}, {k: v for k, v in b[4].items() if "obs" in k})


def test_a_seed_starts_the_same_run_again(view):
    first, again, other = play(view, 30, seed=1), play(view, 30, seed=1), play(view, 30, seed=2)
    for a, b in zip(first, again, strict=True):
        assert_same(a, b)
    assert any(not np.array_equal(a[0], b[0]) for a, b in zip(first, other, strict=True))
    assert view.np_random_seed == 2


def test_later_steps_leave_what_was_given_alone(view):
    view.reset(seed=0)
    given = view.step(np.full((N, 2), 0.5, dtype=np.float32))
    infos = given[4]
    kept = [array.copy() for array in (*given[:4], infos["equity"], infos["bar"])]
    for _ in range(12):
        view.step(np.full((N, 2), -0.5, dtype=np.float32))
    for now, before in zip((*given[:4], infos["equity"], infos["bar"]), kept, strict=True):
        np.testing.assert_array_equal(now, before)


def test_gymnasiums_statistics_and_final_info_tell_the_same_story(market):
    """The episode's return, as Gymnasium's wrapper adds it up, is the log of the last equity over the first."""
    core = VectorizedCryptoEnvAlpaca(market, N, episode_length=9, reward="log_return")
    scale = core.reward_scale[0].item()
    envs = RecordEpisodeStatistics(GymnasiumVectorView(core))
    ended = [step[4] for step in play(envs, 27)[1:] if "final_info" in step[4]]
    assert len(ended) == 3 and envs.episode_count == 3 * N
    for infos in ended:
        np.testing.assert_array_equal(infos["episode"]["l"], [9] * N)
        growth = np.log(infos["final_info"]["equity"] / 100_000.0)
        np.testing.assert_allclose(infos["episode"]["r"] / scale, growth, rtol=1e-5, atol=1e-7)
        assert np.ptp(growth) > 0 and (infos["bar"] != infos["final_info"]["bar"]).any()


def test_gymnasiums_list_of_infos_is_each_environments_own(market):
    """A wrapper that reads every mask: an environment is told of a final observation when its own episode ended."""
    options = {"segments": [(0, 60), (20, 75)], "random_start": False, "episode_length": None}
    plain = play(GymnasiumVectorView(VectorizedCryptoEnvAlpaca(market, 2, **options)), 70)[1:]
    lists = play(DictInfoToList(GymnasiumVectorView(VectorizedCryptoEnvAlpaca(market, 2, **options))), 70)[1:]
    ends = 0
    for (_, _, terminated, truncated, infos), (*_, own) in zip(plain, lists, strict=True):
        for i, done in enumerate(terminated | truncated):
            assert ("final_obs" in own[i]) == ("final_info" in own[i]) == done == ("equity" not in own[i])
            told = own[i]["final_info"] if done else own[i]
            where = infos["final_info"] if done else infos
            assert told["equity"] == where["equity"][i] and told["bar"] == where["bar"][i]
            ends += done
        assert not (terminated | truncated).all()
    assert ends == 3  # of 70 steps: a walk of 26 bars ends twice, one of 41 bars once


def test_what_is_wrong_is_refused(view):
    view.reset()
    with pytest.raises(InputError, match=r"shape \(4, 3\): \(4, 2\) is accepted"):
        view.step(np.zeros((N, 3), dtype=np.float32))
    with pytest.raises(InputError, match="NaN"):
        view.step(np.full((N, 2), np.nan, dtype=np.float32))
    with pytest.raises(InputError, match="reset options reset_mask: none is accepted"):
        view.reset(options={"reset_mask": np.ones(N, dtype=bool)})


def test_closing_it_closes_the_environments():
    closed = []

    class Recorded(gymnasium.Wrapper):
        def close(self):
            closed.append(self)
            super().close()

    view = GymnasiumVectorView(GymnasiumVecEnv(lambda: Recorded(gymnasium.make("CartPole-v1")), 2))
    view.close()
    view.close()
    assert len(closed) == 2 and view.closed
