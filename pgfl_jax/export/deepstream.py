"""What TensorRT and DeepStream need beside the ONNX file."""

BATCHES = 1, 32, 100
"""Smallest, usual and largest batch of an engine; DeepStream embeds up to 100 people at once."""


def trtexec(input_shape: list[int], name: str = "images") -> str:
    """The command that builds an engine.

    >>> trtexec([3, 256, 128]).split()[2]
    '--minShapes=images:1x3x256x128'
    """
    sizes = zip(("min", "opt", "max"), BATCHES, strict=True)
    dims = "x".join(map(str, input_shape))
    shapes = " ".join(f"--{kind}Shapes={name}:{size}x{dims}" for kind, size in sizes)
    return f"trtexec --onnx=model.onnx {shapes} --saveEngine=model.engine"


def tracker(height: int, width: int, dim: int) -> str:
    """The section of DeepStream's tracker configuration for a model of ``float255_nchw``.

    The tracker computes netScaleFactor * (x - offsets) of the RGB pixels of a crop, and the graph
    does the rest. It cannot divide each channel by its own deviation, which is why the graph must.

    Args:
        height: of the network's input.
        width: of the network's input.
        dim: numbers of an embedding.
    """
    return f"""\
ReID:
  reidType: 2                    # match people again after they were lost
  onnxFile: model.onnx           # DeepStream builds an engine from it
  batchSize: {BATCHES[-1]}
  workspaceSize: 1000            # MiB
  reidFeatureSize: {dim}
  reidHistorySize: 100
  inferDims: [3, {height}, {width}]
  networkMode: 0                 # float32; 1: float16
  inputOrder: 0                  # NCHW
  colorFormat: 0                 # RGB
  netScaleFactor: 1.0            # normalised inside the graph
  offsets: [0.0, 0.0, 0.0]
  keepAspc: 0                    # a crop is stretched, as in training
  addFeatureNormalization: 1     # changes nothing: rows have length 1 already
"""
