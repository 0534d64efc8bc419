"""Every invariant of a routed model is missed when it is broken."""

import onnx
import onnx_ir as ir
import pytest

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export import export_model
from gear_trt.export.passes.verify import check_file, verify
from gear_trt.export.passes.weights import WeightGuard
from gear_trt.runtime.manifest import MODEL_FILE
from gear_trt.spec import DOMAIN
from tests.export import text_graphs as text
from tests.export.conftest import EXACT


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    onnx.save(text.written_out(), folder / "model.onnx")
    export_model(folder / "model.onnx", folder / "engine", config=EXACT, max_context=text.CONTEXT)
    return folder / "engine"


@pytest.fixture
def model(engine):
    return ir.load(engine / MODEL_FILE)


def gear_node(model):
    return next(node for node in model.graph if node.domain == DOMAIN)


def lose_attribute(model):
    del gear_node(model).attributes["sinks"]


def lose_output(model):
    del model.graph.outputs[-1]


def lose_layer(model):
    node = gear_node(model)
    node.outputs[0].replace_all_uses_with(node.inputs[0])
    model.graph.remove(node)


def swap_state(model):
    gear_node(model).replace_input_with(3, model.graph.inputs[4])


def read_from_nowhere(model):
    gear_node(model).replace_input_with(0, ir.val("phantom", ir.DataType.FLOAT, ("B", "S", 64)))


def lose_hash(model):
    model.metadata_props.clear()


def forget_shape(model):
    model.graph.inputs[0].shape = None


def leave_a_symbolic_node(model):
    left = ir.node("UnroutedAttention", [model.graph.inputs[0]], domain=DOMAIN, name="left")
    model.graph.append(left)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lose_attribute, "has no attributes ['sinks']"),
        (lose_output, "outputs are ['logits', 'page_pool_out.0'], not"),
        (lose_layer, "GearAttention nodes are of layers [], not of 0 to 0"),
        (swap_state, "reads page_table as page_pool"),
        (read_from_nowhere, "reads phantom, which nothing writes"),
        (lose_hash, "metadata has no gear.layout_hash"),
        (forget_shape, "input input_ids has no type or shape"),
        (leave_a_symbolic_node, "node left was not routed"),
    ],
)
def test_a_broken_structure_is_named(model, damage, fault):
    verify(model, 1, WeightGuard(model))
    damage(model)
    with pytest.raises(GearError) as caught:
        verify(model, 1, WeightGuard(model))
    assert caught.value.code is ErrorCode.VERIFICATION_FAILED
    assert fault in f"{caught.value.message}\n{caught.value.detail}"


def test_the_checker_looks_at_what_was_written(engine, tmp_path):
    proto = onnx.load(engine / MODEL_FILE)
    matmul = next(node for node in proto.graph.node if node.op_type == "MatMul")
    del matmul.input[1:]
    onnx.save(proto, tmp_path / "broken.onnx")
    with pytest.raises(GearError, match="MatMul") as caught:
        check_file(tmp_path / "broken.onnx")
    assert caught.value.code is ErrorCode.VERIFICATION_FAILED
