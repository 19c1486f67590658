"""Leases in a record that several homes share, and the claims that take them."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from experiments.tracking import claims, leases
from experiments.tracking.claims import Busy, claim_config, claim_name
from experiments.tracking.leases import Lease
from experiments.tracking.store import Store
from simclr.progress import Observer


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Store]:
    """Three homes, as of three machines, with one record."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    monkeypatch.setattr(claims, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0)
    return [Store(tmp_path / name) for name in ("one", "two", "three")]


def tags(store: Store) -> list[str]:
    experiment = store.client.get_experiment(store.experiment)
    return [tag for tag in experiment.tags if tag.startswith(leases.LEASE)]


def is_busy(store: Store) -> bool:
    try:
        with claim_config(store, "k", "d", wait=False):
            return False
    except Busy:
        return True


def test_a_config_is_trained_by_one_home_at_a_time(homes: list[Store]) -> None:
    one, two, _ = homes
    with claim_config(one, "k", "d"):
        assert is_busy(two)
        with claim_config(one, "k", "d"), claim_config(two, "k", "other"):  # within its own claim, and on other images
            assert len(tags(one)) == 2
        assert is_busy(two)  # the inner claim took nothing with it
    assert tags(one) == []
    assert not is_busy(two)


def test_of_homes_that_try_at_once_one_holds_the_lease(homes: list[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (Lease(store, "work") for store in homes)
    renew = second._renew

    def write_after_the_first() -> None:
        assert first.acquired()  # after the second has read that there is no other
        renew()
        assert not third.acquired()

    monkeypatch.setattr(second, "_renew", write_after_the_first)
    assert not second.acquired()
    assert tags(homes[0]) == [first.tag]
    first.release()
    assert third.acquired()
    third.release()
    assert tags(homes[0]) == []


def test_a_lease_that_nobody_renews_ends(homes: list[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, _ = homes
    dead = Lease(one, claims.claim_file(one, "study", "s").stem)
    one.client.set_experiment_tag(one.experiment, dead.tag, "its process was killed")
    with claim_name(one, "study", "s"):  # a process of the same home knows that
        pass
    one.client.set_experiment_tag(one.experiment, dead.tag, "its process was killed")
    looks = count(step=20)
    monkeypatch.setattr(leases, "monotonic", lambda: next(looks))
    with claim_name(two, "study", "s"):
        assert next(looks) > leases.LEASE_SECONDS


def test_time_without_the_store_does_not_end_a_lease(homes: list[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, _ = homes
    held, wanted = Lease(one, "work"), Lease(two, "work")
    assert held.acquired()
    looks = count(step=100)  # as if each answer took that many seconds
    monkeypatch.setattr(leases, "monotonic", lambda: next(looks))
    assert not any(wanted.acquired() for _ in range(6))
    held.release()
    assert wanted.acquired()
    wanted.release()


def test_a_study_that_runs_on_another_machine_is_busy(homes: list[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.01)
    one, two, _ = homes
    with (
        claim_name(one, "study", "s"),
        pytest.raises(Busy, match="another process is running the study 's'"),
        claim_name(two, "study", "s"),
    ):
        pass


def test_waiting_for_a_study_of_another_machine_ends_when_the_observer_asks_to_stop(homes: list[Store]) -> None:
    one, two, _ = homes

    class Watch(Observer):
        said = ""

        def say(self, text: str) -> None:
            self.said += text

        def stop(self) -> bool:
            return True

    watch = Watch()
    with claim_name(one, "study", "s"), pytest.raises(KeyboardInterrupt), claim_name(two, "study", "s", watch):
        pass
    assert watch.said.startswith("a process on another machine has claimed the study 's': waiting for up to 180 s")


def test_waiting_for_another_machine_ends_when_the_work_is_free(homes: list[Store]) -> None:
    one, two, _ = homes
    lease = Lease(one, claims.claim_file(one, "k", "d").stem)
    assert lease.acquired()

    class Watch(Observer):
        def stop(self) -> bool:
            lease.release()
            return False

    with claim_config(two, "k", "d", observer=Watch()):
        assert len(tags(two)) == 1
