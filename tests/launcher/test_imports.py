import gc

import pytest

from swarm_jax.launcher import imports


@pytest.fixture(autouse=True)
def thaw():
    yield
    gc.unfreeze()


def test_what_is_imported_is_set_aside_and_collection_goes_on():
    gc.unfreeze()
    with imports.many():
        assert not gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() > 0


def test_a_failing_import_leaves_the_collector_on():
    with pytest.raises(ImportError), imports.many():
        raise ImportError
    assert gc.isenabled()
