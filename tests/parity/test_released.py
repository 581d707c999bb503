"""The loader of the authors' checkpoint, fed with files of its layout."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from micu.base.errors import CheckpointError
from micu.train.released import (
    DEAD_KEYS,
    ENCODER_SECTION,
    TEXT_LSTM_SECTION,
    encoder_keys,
    load_released,
    text_lstm_keys,
)
from tests.parity import recipe
from tests.parity.conftest import Golden
from tests.parity.recipe import assert_close
from tests.parity.reference import (
    encoder_shapes,
    standard_inputs,
    step_shapes,
    text_lstm_shapes,
)

Checkpoint = dict[str, object]


@pytest.fixture
def blank(checkpoint_listing: Path) -> Checkpoint:
    """A checkpoint of zeros, its grid branch narrow."""
    sections = {
        ENCODER_SECTION: encoder_shapes(checkpoint_listing, 4),
        TEXT_LSTM_SECTION: text_lstm_shapes(checkpoint_listing),
    }
    zeros = {
        name: {key: torch.zeros(shape) for key, shape in shapes.items()}
        for name, shapes in sections.items()
    }
    return {**zeros, "epoch": 3, "total_step": 1533}


def section(checkpoint: Checkpoint, name: str = ENCODER_SECTION) -> dict[str, Tensor]:
    found = checkpoint[name]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_published_checkpoint_gives_the_published_embeddings(
    tmp_path: Path,
    golden: Golden,
    base: int,
    grid_width: int,
    checkpoint_listing: Path,
    dtype: torch.dtype,
) -> None:
    def tensors(state: Mapping[str, recipe.Array]) -> dict[str, Tensor]:
        return {key: torch.from_numpy(x).to(dtype) for key, x in state.items()}

    encoder = encoder_shapes(checkpoint_listing, grid_width)
    lstm = text_lstm_shapes(checkpoint_listing)
    checkpoint = {
        ENCODER_SECTION: tensors(recipe.fill_state(encoder, recipe.ENCODER, base)),
        TEXT_LSTM_SECTION: tensors(recipe.fill_state(lstm, recipe.TEXT_LSTM, base)),
        "epoch": 3,
        "total_step": 1533,
    }
    path = tmp_path / "MICU.pt"
    torch.save(checkpoint, path)
    model = load_released(path)
    expected = golden("semantic")
    batch_size, steps = expected["sem_audio"].shape[:2]
    inputs = standard_inputs(checkpoint_listing, base, batch_size, steps, dtype)
    with torch.no_grad():
        output = model.encode(inputs)
    path.unlink()

    assert not model.training
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not {name for name, p in model.named_parameters() if not p.isfinite().all()}
    tolerance = recipe.FLOAT64_TOLERANCE if dtype == torch.float64 else 5e-5
    for name in model.modalities:
        assert_close(output[name].semantic, expected[f"sem_{name}"], tolerance)
        assert np.array_equal(output[name].codes.numpy(), expected[f"eval_idx_{name}"])


def test_every_published_key_is_mapped_or_known_to_be_dead(checkpoint_listing: Path) -> None:
    listing = json.loads(checkpoint_listing.read_text(encoding="utf-8"))
    entries = {entry["key"]: entry["status"] for entry in listing[ENCODER_SECTION]}
    assert set(entries) == {*encoder_keys(), *DEAD_KEYS}
    assert {key for key, status in entries.items() if status.startswith("dead")} == DEAD_KEYS
    assert {entry["key"] for entry in listing[TEXT_LSTM_SECTION]} == set(text_lstm_keys())


def test_sizes_come_from_the_file(
    blank: Checkpoint, tmp_path: Path, checkpoint_listing: Path
) -> None:
    torch.save(blank, tmp_path / "MICU.pt")
    model = load_released(tmp_path / "MICU.pt")
    assert model.shapes == step_shapes(checkpoint_listing)
    assert model.config.reconstruction.grid_width == 4
    assert model.config.optimizer.dtype == "float32"


def test_older_checkpoints_with_more_sections_are_read(blank: Checkpoint, tmp_path: Path) -> None:
    blank["Decoder_parameters"] = {"anything": torch.zeros(1)}
    torch.save(blank, tmp_path / "DCID.pt")
    assert load_released(tmp_path / "DCID.pt").modalities == ("audio", "video", "text")


def drop_key(checkpoint: Checkpoint) -> None:
    del section(checkpoint)["audio_self_att.affine_matrix.bias"]


def add_key(checkpoint: Checkpoint) -> None:
    section(checkpoint)["audio_self_att.affine_matrix.bais"] = torch.zeros(1)


def drop_section(checkpoint: Checkpoint) -> None:
    del checkpoint[TEXT_LSTM_SECTION]


def change_shape(checkpoint: Checkpoint) -> None:
    section(checkpoint)["Text_encoder.text_linear.bias"] = torch.zeros(7)


def change_dtype(checkpoint: Checkpoint) -> None:
    key = "Text_encoder.text_linear.bias"
    section(checkpoint)[key] = section(checkpoint)[key].double()


def expand(checkpoint: Checkpoint) -> None:
    key = "Text_encoder.text_linear.bias"
    section(checkpoint)[key] = torch.zeros(()).expand(10**12)


def overstate_codebook(checkpoint: Checkpoint) -> None:
    section(checkpoint)["Cross_quantizer.ema_count"] = torch.zeros(7)


def change_kind(checkpoint: Checkpoint) -> None:
    section(checkpoint, TEXT_LSTM_SECTION)["bias_hh_l0"] = [0.0]  # type: ignore[assignment]


def flatten_codebook(checkpoint: Checkpoint) -> None:
    section(checkpoint)["Cross_quantizer.embedding"] = torch.zeros(7)


def spoil(checkpoint: Checkpoint) -> None:
    key = "Text_encoder.text_linear.bias"
    section(checkpoint)[key] = section(checkpoint)[key].clone()
    section(checkpoint)[key][-1] = torch.nan


def add_long_keys(checkpoint: Checkpoint) -> None:
    section(checkpoint).update({f"{number}" + "x" * 10**5: torch.zeros(1) for number in range(12)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (spoil, "Encoder_parameters: 'Text_encoder.text_linear.bias': expected finite numbers"),
        (add_long_keys, r"(?s)unknown '0xxx.{1,4000}and 2 more$"),
        (drop_key, "missing 'audio_self_att.affine_matrix.bias'"),
        (add_key, "unknown 'audio_self_att.affine_matrix.bais'; did you mean"),
        (drop_section, "no 'Text_ar_lstm_parameters'"),
        (change_shape, "shapes do not fit together"),
        (expand, "claim more than is there"),
        (overstate_codebook, r"'quantizer.ema_count': expected \(400,\) .* got \(7,\)"),
        (change_dtype, "expected all float32 or all float64"),
        (change_kind, "'bias_hh_l0' is no tensor"),
        (flatten_codebook, "shapes do not fit together"),
    ],
)
def test_a_checkpoint_of_another_layout_is_refused(
    blank: Checkpoint, tmp_path: Path, damage: object, message: str
) -> None:
    assert callable(damage)
    damage(blank)
    torch.save(blank, tmp_path / "MICU.pt")
    with pytest.raises(CheckpointError, match=message):
        load_released(tmp_path / "MICU.pt")


class Code:
    """Not data."""


def test_files_that_are_no_checkpoint_are_refused(blank: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "MICU.pt"
    with pytest.raises(CheckpointError, match="no such file"):
        load_released(path)
    torch.save(blank, path)
    whole = path.read_bytes()
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="expected a dictionary, got list"):
        load_released(path)
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            load_released(path)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_released(tmp_path)


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    torch.save({"Encoder_parameters": Code()}, tmp_path / "MICU.pt")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_released(tmp_path / "MICU.pt")
