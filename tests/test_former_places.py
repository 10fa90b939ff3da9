"""What scripts written for version 0.1 import is still there, and is no second copy."""

import importlib

import pytest

from tars_lens.common.former_places import PLACES


@pytest.mark.parametrize("former", PLACES)
def test_a_former_name_is_the_module_itself(former):
    module = importlib.import_module(PLACES[former])
    assert importlib.import_module(former) is module
    assert module.__name__ == module.__spec__.name == PLACES[former]


def test_former_names_are_imported_as_scripts_do():
    from tars_lens.errors import TarsError

    import tars_lens
    from tars_lens import hub
    from tars_lens.concept import forms_in

    assert TarsError is tars_lens.TarsError
    assert hub.__name__ == "tars_lens.model.hub" and callable(forms_in)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("tars_lens.no_such_room")
