"""Which servers get images."""

from __future__ import annotations

from eca_service.fleet import Fleet
from eca_service.sharing import Sharing


def test_a_server_gets_images_once_it_has_all_models_that_another_has() -> None:
    fleet = Fleet("a:1,b:1", Sharing(False))
    for loaded, serving in (
        ({"a": {"m", "n"}, "b": {"m"}}, {"a"}),
        ({"a": {"m", "n"}, "b": {"n", "m"}}, {"a", "b"}),
        ({"a": {"m"}, "b": {"n"}}, {"a", "b"}),  # nobody has all: as it was
    ):
        fleet._loaded = loaded
        fleet._choose()
        assert fleet.serving == serving
