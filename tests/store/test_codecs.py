"""What goes in comes out: every dtype, codec, shape and size, read by Zarr's own codecs."""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import repaudit as ra
from repaudit.errors import LayoutError
from repaudit.store.format import encoding
from repaudit.store.format.layer_layout import lay_out_layers
from repaudit.store.format.values import stored_values
from repaudit.store.read.stored_probe_set import StoredProbeSet

RAW_DTYPES = {"float16": np.uint16, "float32": np.uint32, "float64": np.uint64}


def decoded(layer, parts):
    """Read one stored object with zarr alone."""
    from zarr.buffer.cpu import Buffer

    from repaudit.store.format.documents import dump

    objects = {
        "zarr.json": Buffer.from_bytes(dump(layer.document(1))),
        layer.step_key(0).rpartition("/")[2]: Buffer.from_bytes(b"".join(parts)),
    }
    return zarr.open_array(zarr.storage.MemoryStore(objects), mode="r")[0]


@pytest.mark.parametrize("codec", ["raw", "compact"])
@pytest.mark.parametrize("dtype", RAW_DTYPES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_bit_survives_with_nan_payloads_infinities_and_zeros(codec, dtype, data):
    shape = data.draw(st.sampled_from([(1, 1), (3, 2), (2, 3, 4)]))
    bits = data.draw(arrays(RAW_DTYPES[dtype], shape))
    (layer,) = lay_out_layers({"x": (shape, dtype)}, shape[0], codec=codec)
    parts, crc = encoding.encode_step(stored_values(layer, bits.view(dtype), copy=True), layer.grid, layer.codec)
    values = decoded(layer, parts)
    np.testing.assert_array_equal(values.view(RAW_DTYPES[dtype]), bits)
    assert crc == encoding.checksum(np.ascontiguousarray(values))


@pytest.mark.parametrize("codec", ["raw", "compact"])
@pytest.mark.parametrize("shape", [(10, 7, 5), (11, 7, 5), (3, 50)])
def test_a_large_step_is_sharded_within_itself(codec, shape, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK_BYTES", 300)
    values = np.random.default_rng(0).normal(size=shape).astype("f4")
    (layer,) = lay_out_layers({"x": (shape, "float32")}, shape[0], codec=codec)
    assert layer.grid.chunks > 1
    parts, _ = encoding.encode_step(values, layer.grid, layer.codec)
    np.testing.assert_array_equal(decoded(layer, parts), values)
    array = layer.document(1)
    assert array["codecs"][0]["name"] == "sharding_indexed"
    assert array["chunk_grid"]["configuration"]["chunk_shape"][0] == 1


def test_a_sharded_store_reads_back_through_xarray(url, probe_set, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK_BYTES", 100)
    values = np.random.default_rng(1).normal(size=(6, 5, 3)).astype("f4")
    with ra.TrajectoryWriter(
        url, model_name="m", probe_set=probe_set, layers={"tokens:all": ((6, 5, 3), "float32")}
    ) as writer:
        writer.append(0, {"tokens:all": values})
    array = ra.open_store(url)["models/m"]["tokens:all"]
    assert array.dims == ("step", "sample", "token", "feature")
    np.testing.assert_array_equal(array[0].values, values)
    assert ra.verify(url, data=True) == []


def test_every_bfloat16_value_survives(url):
    patterns = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    finite = patterns.view(ml_dtypes.bfloat16)
    probe_set = StoredProbeSet("b" * 64, [str(i) for i in range(256)], {})
    layers = {"numpy": ((256, 256), "bfloat16"), "torch": ((256, 256), "bfloat16")}
    with ra.TrajectoryWriter(url, model_name="m", probe_set=probe_set, layers=layers) as writer:
        tensor = torch.from_numpy(patterns.view(np.int16).copy()).view(torch.bfloat16)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "invalid value", RuntimeWarning)
            writer.append(0, {"numpy": finite, "torch": tensor})
    for name in layers:
        stored = ra.open_store(url)["models/m"][name][0].values
        numbers = ~np.isnan(stored)
        assert numbers.sum() == 2**16 - 2 * 127
        np.testing.assert_array_equal((stored.view(np.uint32) >> 16)[numbers], patterns[numbers])
        assert ra.open_store(url)["models/m"][name].attrs["codec"] == "compact"


@pytest.mark.parametrize("keepbits", [3, 7, 10])
def test_lossy_keeps_the_promised_bits_and_says_so(url, probe_set, keepbits):
    values = np.random.default_rng(2).normal(size=(6, 500)).astype("f4")
    values[0, :4] = np.nan, np.inf, -np.inf, np.finfo("f4").max
    values.view(np.uint32)[0, 4:6] = 0x7FFFFFFF, 0x7F800001  # NaNs that rounding would turn into zero and infinity
    with ra.TrajectoryWriter(
        url, model_name="m", probe_set=probe_set, layers={"x": ((6, 500), "float32")}, codec="lossy", keepbits=keepbits
    ) as writer:
        writer.append(0, {"x": values})
    array = ra.open_store(url)["models/m"]["x"]
    assert (array.attrs["codec"], array.attrs["keepbits"]) == ("lossy", keepbits)
    np.testing.assert_array_equal(array[0, 0, :6].values, values[0, :6])
    finite = np.isfinite(values)
    error = np.abs(array[0].values[finite] - values[finite]) / np.abs(values[finite])
    assert 2.0 ** -(keepbits + 3) < error.max() <= 2.0 ** -(keepbits + 1)
    assert ra.verify(url, data=True) == []


@pytest.mark.parametrize("choice", [("zip", None), ("raw", 5), ("lossy", 0), ("lossy", 24)])
def test_an_impossible_codec_is_refused(choice):
    with pytest.raises(LayoutError, match=r"codec|keepbits"):
        lay_out_layers({"x": ((2, 2), "float32")}, 2, codec=choice[0], keepbits=choice[1])


def test_a_column_chunk_that_was_tampered_with_is_refused():
    data = b"".join(encoding.encode_column(np.arange(3.0), 1024, np.nan))
    assert encoding.decode_column(data, np.dtype("<f8"))[:3] == [0.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="checksum"):
        encoding.decode_column(bytes([data[0] ^ 1]) + data[1:], np.dtype("<f8"))
