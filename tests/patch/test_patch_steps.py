"""Random sequences of what can be done with patches: the model is always what they make of it."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)
from patch_models import boot, random_patch, save_model
from safetensors.torch import load_file

from tars_lens.common.errors import TarsError
from tars_lens.patch.export import export
from tars_lens.patch.patch import Patch
from tars_lens.patch.patch_tools import merge
from tars_lens.patch.stack import applied_patches

ROUNDS = 2000 if "TARS_LENS_FUZZ" in os.environ else 20
STEPS = 50

_TENSOR = {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}
_PLACES = st.dictionaries(
    st.tuples(st.integers(0, 2), st.sampled_from(list(_TENSOR))),
    st.lists(st.integers(0, 23), min_size=1, max_size=3, unique=True),
    min_size=1,
    max_size=2,
)


class Patches(RuleBasedStateMachine):
    """One tiny model; `on` is what ought to be on it, kept by hand."""

    patches = Bundle("patches")

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp(prefix="tars_lens_steps_"))
        self.model = save_model(self.folder / "model", "llama")
        self.lens, _ = boot(self.model)
        self.hf = self.lens.model.original_model
        self.base = load_file(self.model / "model.safetensors")
        self.on = []

    def teardown(self):
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def expected(self, patches):
        """The base's file, the rows of each patch put over it: nothing of the package's."""
        tensors = {name: value.clone() for name, value in self.base.items()}
        for patch in patches:
            for (layer, role), rows in patch.edits.items():
                matrix = tensors[f"model.layers.{layer}.mlp.{_TENSOR[role]}.weight"]
                for neuron, new in zip(rows.neurons.tolist(), rows.new, strict=True):
                    if role == "out":
                        matrix[:, neuron] = new
                    else:
                        matrix[neuron] = new
        return tensors

    def has(self, patch):
        return any(other.sha256 == patch.sha256 for other in self.on)

    @rule(target=patches, where=_PLACES, seed=st.integers(0, 3))
    def build(self, where, seed):
        return random_patch(self.lens, where, seed)

    @rule(patch=patches)
    def apply(self, patch):
        if self.has(patch):
            with pytest.raises(TarsError, match="applied already"):
                patch.apply(self.lens)
        else:
            patch.apply(self.lens)
            self.on.append(patch)

    @rule(patch=patches)
    def revert(self, patch):
        if self.has(patch):
            patch.revert(self.lens)
            self.on = [other for other in self.on if other.sha256 != patch.sha256]
        else:
            with pytest.raises(TarsError, match="is not applied"):
                patch.revert(self.lens)

    @rule(patch=patches)
    def hold_for_a_while(self, patch):
        if not self.has(patch):
            with patch.applied(self.lens):
                self.compare([*self.on, patch])

    @rule(target=patches, patch=consumes(patches))
    def save_and_load(self, patch):
        file = self.folder / "patch.safetensors"
        patch.save(file)
        again = Patch.load(file)
        assert again.sha256 == patch.sha256
        return again

    @rule(target=patches, a=patches, b=patches)
    def stack_into_one(self, a, b):
        if a.sha256 == b.sha256:
            return a
        joined = merge([a, b])
        found, wanted = self.expected([joined]), self.expected([a, b])
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        return joined

    @precondition(lambda self: self.on)
    @rule()
    def export_them_all(self):
        out = self.folder / "out"
        export(self.on, self.model, out)
        found = load_file(out / "model.safetensors")
        wanted = self.expected(self.on)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        shutil.rmtree(out)

    @rule(patch=patches, width=st.sampled_from([0, 15, 17]))
    def refuse_what_does_not_fit(self, patch, width):
        for place, rows in patch.edits.items():
            wrong = rows.new.new_zeros(len(rows.neurons), width)
            with pytest.raises(TarsError):
                Patch.build(self.lens, {place: type(self).rows(rows.neurons, wrong)})

    @invariant()
    def the_model_is_what_its_patches_make_of_the_base(self):
        if hasattr(self, "on"):
            assert [p.sha256 for p in applied_patches(self.lens)] == [p.sha256 for p in self.on]
            self.compare(self.on)

    def compare(self, patches):
        state = self.hf.state_dict()
        found = {name.replace("._original_component", ""): state[name] for name in state}
        for name, value in self.expected(patches).items():
            assert torch.equal(found[name], value), name

    @staticmethod
    def rows(neurons, values):
        from tars_lens.model.weights import Rows

        return Rows(neurons, values)


def test_the_comparison_sees_one_changed_bit(tmp_path):
    machine = Patches()
    machine.begin()
    machine.compare([])
    with torch.no_grad():
        machine.lens.vectors(1, "out")[3, 4] += 1e-6
    with pytest.raises(AssertionError):
        machine.compare([])
    machine.teardown()


TestPatches = Patches.TestCase
TestPatches.settings = settings(
    max_examples=ROUNDS,
    stateful_step_count=STEPS,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
